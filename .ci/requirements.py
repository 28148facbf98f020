"""What follows from the dependencies in pyproject.toml: environment.yml and constraints.txt.

    python .ci/requirements.py environment.yml     writes the conda environment file
    python .ci/requirements.py constraints.txt     pins what the running interpreter has installed

tests/test_packaging.py holds both files to pyproject.toml.
"""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

ENVIRONMENT = """\
# Written by `make environment.yml` from pyproject.toml: change that file, not this one.
name: robustlib
channels:
  - conda-forge
  - nodefaults
dependencies:
{conda}
  - pip
  - pip:
{pip}
"""

CONSTRAINTS = """\
# Written by `make lock`: the versions that the tests ran on (Linux, x86_64, Python {python}).
# A constraint binds only what gets installed. CUDA's libraries and triton are not here: torch asks
# for the right ones itself, and other platforms have none.
{pins}
"""
PLATFORM = re.compile(r"(nvidia|cuda)-|triton=")


def split(requirement: str) -> tuple[str, str]:
    """The name and the version specifier of a requirement. Conda knows no extras or markers."""
    match = re.fullmatch(r"([\w.-]+)([^\[\];]*)", requirement)
    if not match:
        raise ValueError(f"{requirement!r}: environment.yml cannot say extras or markers")
    return match[1], match[2]


def environment(pyproject: dict) -> str:
    """environment.yml as text: conda's name for each dependency, pip for what conda-forge lacks."""
    conda = pyproject["tool"]["robustlib"]["conda"]
    project = pyproject["project"]
    lines = [f"  - python{project['requires-python']}"]
    pip = []
    for requirement in project["dependencies"] + project["optional-dependencies"]["test"]:
        name, version = split(requirement)
        if name in conda["pip"]:
            pip.append(f"      - {requirement}")
        else:
            lines.append(f"  - {conda['names'].get(name, name)}{version}")
    return ENVIRONMENT.format(conda="\n".join(lines), pip="\n".join([*pip, "      - -e ."]))


def constraints() -> str:
    """constraints.txt as text, from the packages installed beside the running interpreter."""
    freeze = [sys.executable, "-m", "pip", "freeze", "--exclude", "robustlib"]
    installed = subprocess.run(freeze, check=True, capture_output=True, text=True).stdout
    pins = [pin for pin in installed.splitlines() if not PLATFORM.match(pin)]
    python = ".".join(map(str, sys.version_info[:2]))
    return CONSTRAINTS.format(python=python, pins="\n".join(pins))


if __name__ == "__main__":
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    for name in sys.argv[1:]:
        text = {
            "environment.yml": lambda: environment(pyproject),
            "constraints.txt": constraints,
        }[name]()
        (ROOT / name).write_text(text, encoding="utf-8")
