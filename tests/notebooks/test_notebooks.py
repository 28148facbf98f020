"""The notebooks as they are committed: short, without outputs, each parameter explained.

That they run is pytest's own business: it collects notebooks/ through nbval, and conftest.py gives
them the parameters of `helpers.parameters_of` after their own.
"""

import ast
import json
import re
import tomllib
from dataclasses import replace
from types import SimpleNamespace

import pandas
import papermill
import pytest
from helpers import parameters_of, small_profile

from robustlib import figures, models, specs, tickets
from robustlib.batch import NOTEBOOKS
from robustlib.profile_files import PROFILES
from robustlib.profiles import grid
from robustlib.specs import Pretrain, Ticket

PATHS = sorted(NOTEBOOKS.glob("*.ipynb"))
CHECKED = {
    "00_explorer",
    *("01_robust_pretraining", "02_ticket_extraction", "03_transfer", "04_segmentation"),
    *("05_ablations", "06_properties", "07_edge_deployment", "08_your_task"),
    "09_paper_figures",
}

OWN_TASK = {"08_your_task"}
"""Notebooks that belong to no study."""


def load(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    cells = [dict(c, text="".join(c["source"])) for c in notebook["cells"]]
    return notebook, cells, [c for c in cells if c["cell_type"] == "code"]


def test_they_are_there():
    assert {p.stem for p in PATHS} >= CHECKED


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_format_and_no_outputs(path):
    notebook, cells, code = load(path)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) >= (4, 5)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    ids = [c["id"] for c in cells]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[\w-]{1,64}", i) for i in ids)
    assert all(c["outputs"] == [] and c["execution_count"] is None for c in code)


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_thin(path):
    _, cells, code = load(path)
    assert len(code) <= 25
    for cell in code:
        assert len(cell["text"].splitlines()) <= 12, cell["text"]
        nodes = list(ast.walk(ast.parse(cell["text"])))
        assert not [n for n in nodes if isinstance(n, ast.ClassDef | ast.FunctionDef | ast.While)]
        called = {getattr(n.func, "attr", "") for n in nodes if isinstance(n, ast.Call)}
        assert not called & {"backward", "step", "plot", "subplots", "errorbar", "imshow"}
    # A notebook tells: no call that shows something stands without text before it.
    assert cells[0]["cell_type"] == "markdown" and cells[0]["text"].startswith("# ")
    assert sum(c["cell_type"] == "markdown" for c in cells) >= len(code) - 3


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_parameters_are_scalars_with_type_and_comment(path):
    _, _, code = load(path)
    tagged = [c for c in code if "parameters" in c["metadata"].get("tags", [])]
    assert tagged == code[:1]
    for line in tagged[0]["text"].splitlines():
        name, kind, value, comment = re.fullmatch(r"(\w+): (\w+) = (.+?)  # (.+)", line).groups()
        assert type(ast.literal_eval(value)).__name__ == kind in ("str", "int", "float", "bool")
        assert len(comment) > 10
    inspected = papermill.inspect_notebook(str(path))
    assert all(p["help"] and p["inferred_type_name"] for p in inspected.values())
    needed = {"profile", "figures"} if path.stem not in OWN_TASK else {"figures"}
    assert needed <= set(inspected)
    used = {n.id for c in code[1:] for n in ast.walk(ast.parse(c["text"])) if type(n) is ast.Name}
    assert set(inspected) <= used


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)
def test_what_they_are_tested_with_is_theirs_and_less_than_their_own(path):
    inspected = papermill.inspect_notebook(str(path))
    own = {name: ast.literal_eval(p["default"]) for name, p in inspected.items()}
    less = parameters_of(path.stem, own, "small.toml")
    assert set(less) <= set(own)
    if path.stem != "09_paper_figures":
        assert {"profile", "workers"} & set(own) <= set(less)
    for name in set(less) - {"profile", "workers", "names"}:
        assert type(less[name]) is type(own[name]) and 0 < less[name] < own[name]
    if "names" in less:
        assert set(less["names"].split(",")) < set(figures.FIGURES) and own["names"] == ""
    # As they are committed they begin as well: on the grids of `quick`.
    checks(path)


def test_the_profile_that_they_are_tested_with_is_quick_with_smaller_numbers():
    def alike(small, quick):
        assert type(small) is type(quick)
        if isinstance(quick, dict):
            assert small.keys() == quick.keys()
            for key in quick:
                alike(small[key], quick[key])
        elif isinstance(quick, list):
            assert len(small) == len(quick)
            for pair in zip(small, quick, strict=True):
                alike(*pair)
        elif isinstance(quick, int) and not isinstance(quick, bool):
            assert 0 <= small <= quick
        else:
            assert small == quick

    quick = tomllib.loads((PROFILES / "quick.toml").read_text(encoding="utf-8"))
    small = tomllib.loads(small_profile())
    assert small.pop("seeds") == quick.pop("seeds")[:2]
    alike(small, quick)
    assert small != quick


def checks(path, **own):
    """Runs what follows the parameters, as papermill would have set them; what it has defined."""
    _, _, code = load(path)
    scope = {}
    exec(code[0]["text"], scope)
    assert set(own) <= set(scope)
    scope |= own
    exec(code[1]["text"], scope)
    return scope


def later(name, cell, scope):
    """Runs a later cell of a notebook, by its id."""
    _, _, code = load(NOTEBOOKS / f"{name}.ipynb")
    (text,) = [c["text"] for c in code if c["id"] == cell]
    exec(text, scope)
    return scope


COMMON = [
    ("profile", "quik", "choose one of cpu, cpu32, gpu, paper, quick"),
    ("profile", "nowhere.toml", "there is no such file"),
    ("eps", 0.7, "choose among 0.5"),
    ("eps", "a", "must be float"),
    ("figures", "/dev/null", "must be a folder"),
]
ONE = [
    *COMMON,
    ("seed", 9, "choose among 0, 1, 2"),
    ("seed", "a", "seed='a'"),
    ("arch", "resnet", "choose among resnet10s"),
]
BAD = {
    "00_explorer": [
        *(case for case in COMMON if case[0] != "eps"),
        ("sparsity", 1.0, "must be a number in [0, 1)"),
        ("sparsity", "a", "sparsity='a'"),
        ("workers", -1, "workers=-1"),
    ],
    "09_paper_figures": [
        ("profile", "quik", "choose one of cpu, cpu32, gpu, paper, quick"),
        ("rows", "nowhere", "rows='nowhere': must be a folder of the CSVs"),
        ("names", "detail,maskss", "did you mean 'masks'"),
        ("venue", "icml", "venue='icml'"),
        ("figures", "/dev/null", "must be a folder"),
    ],
    "01_robust_pretraining": [
        ("profile", "quik", "choose one of cpu, cpu32, gpu, paper, quick"),
        ("eps", 0.7, "0.1, 0.5"),
        ("seed", 9, "choose among 0, 1"),
        ("figures", "/dev/null", "must be a folder"),
        ("n_examples", 0, "n_examples=0"),
        ("n_images", 0.5, "n_images=0.5"),
        ("radii", "-1", "must be a number in"),
        ("radii", "big", "radii='big'"),
    ],
    "02_ticket_extraction": [
        *ONE,
        ("sparsities", 1.0, "must be a number in [0, 1)"),
        ("sparsities", "a,b", "sparsities='a,b'"),
        ("scope", "globl", "choose one of global, layer"),
        ("layer", "conv9", "choose one of conv1.weight"),
        ("task", "digitz", "did you mean 'digits'"),
        ("n_train", 10**6, "n_train=1000000"),
        ("n_train", -1, "n_train=-1"),
        ("epochs", -1, "epochs=-1"),
    ],
    "03_transfer": [
        *COMMON,
        ("seeds", "0,9", "choose among 0, 1, 2"),
        ("seeds", "a", "seeds='a'"),
        ("tasks", "digitz", "did you mean 'digits'"),
        ("modes", "linea", "choose among finetune, linear"),
        ("sparsities", "0.5,1", "must be a number in [0, 1)"),
        ("n_train", 5000, "digits has 1294 training images"),
        ("n_train", -1, "n_train=-1"),
        ("workers", -1, "workers=-1"),
        ("scheduler", "here", "scheduler='here'"),
    ],
    "04_segmentation": [
        *COMMON,
        ("seeds", "0,9", "choose among 0, 1"),
        ("task", "glyphs_sag", "did you mean 'glyphs_seg'"),
        ("task", "digits", "labels each image"),
        ("sparsities", 1, "must be a number in [0, 1)"),
        ("n_shown", 0, "n_shown=0"),
        ("workers", -1, "workers=-1"),
    ],
    "05_ablations": [
        *(case for case in COMMON if case[0] != "eps"),
        ("ablations", "pattern", "choose among detail, patterns, schemes"),
        ("seeds", "0,9", "choose among 0, 1"),
        ("gap_images", 2, "gap_images=2"),
        ("scheduler", "here", "scheduler='here'"),
    ],
    "06_properties": [
        *COMMON,
        ("seeds", "0,9", "choose among 0, 1"),
        ("sparsities", "a", "sparsities='a'"),
        ("workers", -1, "workers=-1"),
    ],
    "07_edge_deployment": [
        *(case for case in COMMON if case[0] != "eps"),
        ("seed", 9, "choose among 0, 1"),
        ("seed", "a", "seeds='a'"),
        ("task", "digitz", "did you mean 'digits'"),
        ("rounds", 0, "rounds=0"),
        ("rounds", "many", "rounds='many'"),
    ],
    "08_your_task": [
        ("task", "digitz", "did you mean 'digits'"),
        ("task", "nowhere/photos", "no such folder"),
        ("most_bytes", -1, "bytes=-1"),
        ("most_ms", "fast", "latency='fast'"),
        ("effort", "most", "choose one of quick, full"),
        ("n_train", 10**6, "n_train=1000000"),
        ("workers", -1, "workers=-1"),
        ("figures", "/dev/null", "must be a folder"),
    ],
}


@pytest.mark.parametrize(
    ("name", "parameter", "value", "says"),
    [(name, *case) for name, cases in BAD.items() for case in cases],
)
def test_a_bad_value_fails_in_the_first_cell(name, parameter, value, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        checks(NOTEBOOKS / f"{name}.ipynb", **{parameter: value})


@pytest.mark.parametrize("name", sorted(CHECKED))
def test_good_values_of_any_kind_pass(name, tmp_path):
    path = NOTEBOOKS / f"{name}.ipynb"
    given = {"eps": 0.5, "figures": str(tmp_path / "new"), "sparsities": 0.5, "seeds": 1, "seed": 1}
    given |= {"radii": "1/2, 1", "modes": "linear", "tasks": "glyphs,digits", "n_train": 100}
    known = papermill.inspect_notebook(str(path))
    checks(path, **{k: v for k, v in given.items() if k in known})
    assert (tmp_path / "new").is_dir()


def test_segmentation_is_of_one_task(tmp_path):
    """A profile may name several sets, whose classes are not the same."""
    two = tmp_path / "two.toml"
    text = (PROFILES / "quick.toml").read_text(encoding="utf-8")
    two.write_text(text.replace('"glyphs_seg"', '["glyphs_seg", "voc2012_seg"]'), encoding="utf-8")
    path = NOTEBOOKS / "04_segmentation.ipynb"
    for task, expected in (("", "glyphs_seg"), ("voc2012_seg", "voc2012_seg")):
        wanted = checks(path, profile=str(two), task=task)["wanted"]
        assert {spec.task for spec in wanted} == {expected} and len(wanted) == 4


def test_curves_keep_the_rate_of_the_spec_beside_that_of_each_epoch():
    row = {"epoch": 0, "lr": 0.01, "loss": 1.0, "val_accuracy": 0.5}
    result = SimpleNamespace(spec=Pretrain(lr=0.2), extra={"curve": [row]})
    scope = {"results": {"natural": result}, "pd": pandas, "specs": specs, "draw": figures}
    curves = later("01_robust_pretraining", "curves", scope | {"out": None})["curves"]
    assert (curves.lr[0], curves.rate[0], curves.loss[0]) == (0.2, 0.01, 1.0)


@pytest.mark.parametrize("profile", ["quick", "cpu", "paper"])
def test_rounds_are_trained_on_the_profiles_own_task(profile):
    path, first = NOTEBOOKS / "02_ticket_extraction.ipynb", grid(profile)[0]
    own = checks(path, profile=profile)["downstream"]
    assert (own["dataset"], own["n_train"]) == (first.task, first.n_train)
    own = checks(path, profile=profile, task="digits", n_train=100)["downstream"]
    assert (own["dataset"], own["n_train"]) == ("digits", 100)


def test_tables_of_masks_say_of_which_seed_and_network(tmp_path):
    path = NOTEBOOKS / "02_ticket_extraction.ipynb"
    scope = checks(path, seed=1, sparsities=0.5, figures=str(tmp_path))
    mask = tickets.omp(models.build("resnet10s", 2, width=8), 0.5)
    scope |= {"pd": pandas, "replace": replace, "kinds": ["row"], "cut": 0.5}
    scope |= {"last": {"sparsity": 0.5, "scope": "global"}}
    scope |= {"masks": {("natural", 0.5): mask, ("robust", 0.5): mask}}
    scope |= {"found": {"OMP, natural": mask, "LMP, natural": mask}}
    scope |= {"patterned": {("natural", "row"): Ticket(scope["natural"], pattern="row")}}
    scope |= {"stages": SimpleNamespace(mask=lambda ticket: mask)}
    for cell in ("overlap", "patterns-picture", "schemes-overlap"):
        later("02_ticket_extraction", cell, scope)
    for name in ("mask_overlap", "masks_by_pattern", "masks_by_scheme"):
        assert set(pandas.read_csv(tmp_path / f"{name}.csv").seed) == {1}, name
    rows = pandas.read_csv(tmp_path / "masks_by_pattern.csv")
    assert set(rows.objective) == {"natural"} and set(rows.source) == {"tinyimagenet150"}
    rows = pandas.read_csv(tmp_path / "masks_by_scheme.csv")
    assert set(rows.task) == {"digits"} and set(rows.n_train) == {200}


@pytest.mark.parametrize(
    ("old", "new", "drawn"),
    [
        ("epochs = 6\nlr = 0.1\nbatch_size = 32", 'mode = "linear"', set()),
        ('"channel"', '"row"', {"edge"}),
        ('"channel", "2:4"]\nsparsity = 0.5', '"channel"]\nsparsity = 0.0', {"edge"}),
        ("", "", {"edge", "channels"}),
    ],
    ids=["linear", "no channel", "sparsity 0", "quick"],
)
def test_deployment_says_what_the_profile_has_no_tickets_for(tmp_path, old, new, drawn):
    """Cells on what they would be given: only finetuned tickets have a cost here, and only channel
    tickets above sparsity 0 become smaller networks."""
    name, saved = "07_edge_deployment", set()

    def measure(wanted, rounds):
        assert wanted and {s.mode for s in wanted} == {"finetune"}
        return pandas.DataFrame([specs.columns(s) for s in wanted])

    def steps(wanted, rounds):
        assert {(s.ticket.pattern, s.ticket.sparsity > 0) for s in wanted} == {("channel", True)}

    def sweep(wanted):
        return pandas.DataFrame([specs.columns(s) | {"accuracy": 0, "n": 1} for s in wanted])

    file = tmp_path / "mine.toml"
    text = (PROFILES / "quick.toml").read_text("utf-8")
    head, table, rest = text.partition("[ablation.patterns]")
    own, end, rest = rest.partition("[ablation.schemes]")
    assert old in own
    file.write_text(head + table + own.replace(old, new) + end + rest, "utf-8")
    scope = checks(NOTEBOOKS / f"{name}.ipynb", profile=str(file)) | {"sweep": sweep}
    scope["deployment"] = SimpleNamespace(
        dense=scope["deployment"].dense,
        measure=measure,
        training_steps=steps,
        channels=lambda timed, steps: timed,
        int8=lambda frame: frame[["task"]],
    )
    scope["draw"] = SimpleNamespace(
        edge=lambda frame: "drawn",
        channels=lambda frame: "drawn",
        saved=str,
        save=lambda figure, out, name, frame: saved.add(name),
    )
    for cell in ("sweep", "costs", "channels", "int8"):
        later(name, cell, scope)
        if cell in ("costs", "channels"):
            what = {"costs": "edge"}.get(cell, cell)
            assert (scope["figure"] == "drawn") == (what in drawn)
            assert scope["figure"] == "drawn" or scope["figure"].startswith(f"{what}: no ")
    assert saved == drawn
