"""The files that describe the package agree with pyproject.toml, and it with the code."""

import ast
import json
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]
RUNTIME = [Requirement(line) for line in PROJECT["dependencies"]]
TEST = [Requirement(line) for e in PROJECT["optional-dependencies"].values() for line in e]


def names(requirements: list[Requirement]) -> set[str]:
    return {canonicalize_name(requirement.name) for requirement in requirements}


def sources(folder: str) -> list[Path]:
    """The Python files and notebooks under a folder of the clone, hidden folders left out."""
    files = [path.relative_to(ROOT) for path in (ROOT / folder).rglob("*")]
    return [
        path
        for path in files
        if path.suffix in {".py", ".ipynb"} and not any(p.startswith(".") for p in path.parts)
    ]


def code(path: Path) -> str:
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.suffix == ".py":
        return text
    cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    lines = [line for cell in cells for line in "".join(cell["source"]).splitlines()]
    return "\n".join(line for line in lines if not line.startswith(("%", "!")))  # magics


def imports(path: Path) -> set[str]:
    """The top-level modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(code(path), filename=str(path))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.partition(".")[0])
    return found


def constraints() -> dict[str, str]:
    """The version that constraints.txt pins, by canonical name."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pins}


@pytest.fixture(scope="module")
def providers() -> dict[str, set[str]]:
    """The installed packages that hold a top-level module, by its name."""
    found = metadata.packages_distributions()
    return {module: set(map(canonicalize_name, packages)) for module, packages in found.items()}


@pytest.mark.parametrize(
    ("folder", "declared"),
    [("robustlib", RUNTIME), ("notebooks", RUNTIME), ("tests", RUNTIME + TEST)],
    ids=["robustlib", "notebooks", "tests"],
)
def test_every_import_is_a_declared_dependency(
    folder: str, declared: list[Requirement], providers: dict[str, set[str]]
) -> None:
    known = sys.stdlib_module_names | {"robustlib", "__future__"}
    known |= {path.stem for path in sources("tests")} if folder == "tests" else set()
    undeclared = {
        f"{path}: {module}"
        for path in sources(folder)
        for module in imports(path) - known
        if not providers.get(module, set()) & names(declared)
    }
    assert not undeclared


def test_constraints_pin_every_dependency_within_its_bounds() -> None:
    pins = constraints()
    for requirement in RUNTIME + TEST:
        pin = pins.get(canonicalize_name(requirement.name))
        assert pin, f"{requirement.name} has no pin in constraints.txt: make lock"
        assert requirement.specifier.contains(pin), f"{requirement}: the pin is {pin}"


def test_constraints_leave_other_platforms_their_own_builds() -> None:
    pins = constraints()
    assert not [name for name in pins if name.startswith(("nvidia-", "cuda-", "triton"))]
    assert not [name for name, version in pins.items() if "+" in version]


def test_conda_environment_leaves_the_dependencies_to_pyproject() -> None:
    python, pip, by_pip = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))[
        "dependencies"
    ]
    assert (python, pip) == (f"python{PROJECT['requires-python']}", "pip")
    assert by_pip == {"pip": ["-c constraints.txt", "-e .[test]"]}


def test_the_installed_package_is_this_one() -> None:
    assert metadata.version("robustlib") == PROJECT["version"]


def test_licence_is_mit() -> None:
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert licence.startswith("MIT License\n")
    assert "The robustlib authors" in licence
    assert PROJECT["license"] == "MIT"


def test_citation_names_this_version_and_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["title"] == PROJECT["name"]
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    (paper,) = citation["references"]
    assert {"type": "other", "value": "arXiv:2304.11834"} in paper["identifiers"]
