"""The command line as a user meets it."""

import re
import subprocess
import sys

import pandas as pd
import pytest
from helpers import transfer_rows

import robustlib
from robustlib import profiles, store
from robustlib.cli import main
from robustlib.cli.app import app
from robustlib.specs import Evaluation, Pretrain, Ticket, Transfer

COMMANDS = ["study", "sweep", "batch", "pretrain", "ticket", "transfer", "data", "results", "bench"]
PROFILES = ", ".join(profiles.profiles())
TINY = ["--source", "digits", "--width", "4", "--n-train", "100", "--epochs", "1"]


def command(*arguments: str) -> subprocess.CompletedProcess:
    code = "import sys; from robustlib.cli import main; sys.exit(main())"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120
    )


def test_help_lists_the_commands_without_importing_torch():
    code = (
        "import sys; from robustlib.cli import main\n"
        "main(['--help'])\n"
        "print('torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout
    assert out.endswith("False\n")
    for name in (
        "study",
        "sweep",
        "batch",
        "pretrain",
        "ticket",
        "transfer",
        "data",
        "results",
        "bench",
    ):
        assert f"│ {name} " in out


@pytest.mark.parametrize(
    "name",
    ["study", "sweep", "batch", "pretrain", "ticket", "transfer", "evaluate", "results"]
    + ["data build", "figures", "claims"],
)
def test_each_command_has_help_and_an_example_that_it_takes(name, capsys, monkeypatch, tmp_path):
    assert main([*name.split(), "--help"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    examples = out.partition("Examples: ")[2].split("robustlib ")[1:]
    assert "--" in out and examples
    for example in examples:
        words = example.partition(">")[0].split()
        assert " ".join(words).startswith(name)
        app.parse_args(words, exit_on_error=False, print_error=False)


def test_the_fields_of_a_spec_explain_its_flags(capsys):
    assert main(["transfer", "--help"]) == 0
    out = " ".join(re.sub("[│]", " ", capsys.readouterr().out).split())
    assert "Weight of the robust term of trades." in out and "--ticket.pretrain.eps" in out
    assert main(["--version"]) == 0
    assert robustlib.__version__ in capsys.readouterr().out


def test_flags_are_read_as_what_their_fields_are(monkeypatch, capsys):
    asked = []

    def run(spec, recompute):
        asked.append(spec)
        return store.Artifact(spec, {}, {}, store.path(spec))

    monkeypatch.setattr(robustlib, "run", run, raising=False)
    ticket = ["--scheme", "imp", "--sparsity", ".5", "--rounds", "0.1", "2/5", "--n-train", "None"]
    assert main(["ticket", *ticket, "--pretrain.decay-norms", "--pretrain.lr=1/4"]) == 0
    source = Pretrain(decay_norms=True, lr=0.25)
    assert asked.pop() == Ticket(source, "imp", sparsity=0.5, rounds=(0.1, 0.4))
    measure = ["--suite", "ood", "--against", "gtsrb", "--of.ticket.sparsity", "0.5", "--limit=8"]
    assert main(["evaluate", *measure, "--of.n-train", "None"]) == 0
    of = Transfer(Ticket(sparsity=0.5), n_train=None)
    assert asked.pop() == Evaluation(of, "ood", against="gtsrb", limit=8)
    assert main(["transfer"]) == 0 and asked.pop() == Transfer()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["pretrain", "--eps", "0.5"], "objective='natural' does not use it"),
        (["pretrain", "--epochs", "-1"], "epochs=-1"),
        (["pretrain", "--source", "digitz"], "did you mean 'digits'"),
        (["pretrain", "--objective", "pgd", "--eps", "nan"], "eps=nan"),
        (["ticket", "--sparsity", "1.0"], "sparsity=1.0"),
        (["transfer", "--task", "mnits", *["--ticket.pretrain.epochs", "-1"]], "epochs=-1"),
        (["study", "--profile", "quik"], f"choose one of {PROFILES}"),
        (["study", "--profile", "quick", "--workers", "0", "--dry-run"], "workers=0"),
        (["pretrain", "--objective", "pdg"], "did you mean 'pgd'?): choose one of natural"),
        (["pretrain", "--nope", "1"], "--nope"),
        (["pretrain", "--lr", "fast"], "lr='fast'"),
        (["pretrain", "--width", "5000"], "width=5000: must be a whole number"),
        (["pretrain", "--checkpoint", "nowhere.pt"], "nowhere.pt"),
        (["transfer", "--task", "digits", "--ticket.pretrain.checkpoint", "no.pt"], "no.pt"),
        (["sweep", "quick", "--csv", "/nowhere/rows.csv"], "csv='/nowhere/rows.csv'"),
        (["sweep", "quick", "--workers", "1.6"], "Invalid value for --workers: '1.6' must be"),
        (["fit", "digits", "--n-train", "30.7"], "--n-train: '30.7' must be a whole number"),
        (["data", "build", "mine", "/tmp", "--size", "32.5"], "--size: '32.5' must be a whole"),
        (["results", "--csv", "/nowhere/rows.csv"], "csv='/nowhere/rows.csv'"),
        (["results", "--where", "tusk=cifar10"], "column='tusk' (did you mean 'task'?)"),
        (["results", "--where", "task"], "'task': must be NAME=VALUE"),
        (["results", "--sort", "accurcy"], "column='accurcy'"),
        (["results", "--sort", "task:dwn"], "sort='dwn' (did you mean 'down'?)"),
        (["results", "--columns", "task,n_trian"], "did you mean 'n_train'"),
        (["figures", "--rows", "/nowhere"], "rows='/nowhere': must be a folder of the CSVs"),
        (["figures", "--profile", "quik"], "choose one of cpu"),
        (["nothing"], "nothing"),
        ([], "study"),
        (["data", "build", "../evil", "/nowhere"], "'../evil'"),
        (["data", "build", "mine", "/nowhere"], "/nowhere"),
    ],
)
def test_bad_input_is_one_message_and_leaves_nothing(arguments, says, capsys, tmp_path):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert says in error and error.startswith("robustlib: ") and error.count("\n") == 1
    assert not (tmp_path / "store").exists()


def test_from_pretraining_to_results(capsys, tmp_path):
    nested = [f"--ticket.pretrain.{a[2:]}" if a[:2] == "--" else a for a in TINY]
    task = ["--task", "digits", "--mode", "linear", "--n-train", "50", "--ticket.sparsity", "0.5"]
    assert main(["transfer", *task, *nested]) == 0
    first = capsys.readouterr().out
    assert "accuracy" in first and "sparsity_measured" in first
    assert main(["transfer", *task, *nested]) == 0
    assert capsys.readouterr().out == first  # from the store, seconds and all
    assert main(["results"]) == 0
    assert "no transfer" not in capsys.readouterr().out
    assert main(["results", "--csv", str(tmp_path / "rows.csv")]) == 0
    assert (tmp_path / "rows.csv").read_text().startswith("task,mode,n_train,")


@pytest.fixture
def stored(monkeypatch):
    """Made up rows in the place of the store's."""
    frame = transfer_rows(("mnist", "gtsrb"), n_train=None).assign(key="k", torch_version="2")
    monkeypatch.setattr(store, "frame", lambda kind: frame)
    return frame


def table(out):
    """What was printed, as columns and lines of words."""
    names, *lines = (line.split() for line in out.splitlines())
    return names, lines


def test_results_are_filtered_and_sorted(stored, capsys):
    where = ["--where", "task=mnist", "-w", "sparsity=0.90,0", "-w", "n_train=None"]
    chosen = ["--columns", "sparsity,eps,seed,accuracy", "--sort", "sparsity:down,accuracy"]
    assert main(["results", *where, *chosen]) == 0
    names, lines = table(capsys.readouterr().out)
    own = stored[(stored.task == "mnist") & stored.sparsity.isin([0, 0.9])]
    own = own.sort_values(["sparsity", "accuracy"], ascending=[False, True])
    assert names == ["sparsity", "eps", "seed", "accuracy"]
    assert [line[2] for line in lines] == list(map(str, own.seed))
    assert [float(line[3]) for line in lines] == pytest.approx(list(own.accuracy), abs=1e-5)
    assert main(["results", "--where", "task=svhn"]) == 0
    assert "no transfer with task=svhn is stored" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("where", "seeds"),
    [
        ("eps=8/255", "0"),
        ("eps=0.031373", "0"),
        ("eps=0.03137254901960784", "0"),
        ("eps=0.50", "1"),
        ("eps=1e-8", "2"),
        ("eps=1.234568e-08", "3"),
        ("eps=0.03,0.5000001,1e-08", "2"),
        ("recalibrate=True", "02"),
        ("recalibrate=false", "13"),
        ("n_train=None", "3"),
        ("n_train=1000.0,NaN", "03"),
        ("bytes=12345678901234567", "0"),
        ("bytes=12345678", "2"),
        ("torch_version=2.1", "1"),
        ("eps=many", ""),
        ("eps=0", ""),
        ("eps=1/0", ""),
        ("bytes=8/2", ""),
        ("torch_version=2.100", ""),
    ],
)
def test_a_value_is_found_as_it_is_written_printed_or_stored(where, seeds, monkeypatch, capsys):
    frame = pd.DataFrame(
        {
            "seed": range(4),
            "eps": [8 / 255, 0.5, 1e-8, 1.23456789e-8],
            "recalibrate": [True, False, True, False],
            "n_train": [1000, 50, 200, None],
            "bytes": [12345678901234567, 12345678901234568, 12345678, 12345679],
            "torch_version": ["2.10", "2.1", "2.11", "2"],
        }
    )
    monkeypatch.setattr(store, "frame", lambda kind: frame)
    assert main(["results", "--where", where, "--columns", "seed"]) == 0
    out = capsys.readouterr().out
    assert "".join(out.split()[1:]) == seeds if seeds else f"with {where} is stored" in out


def test_results_are_as_narrow_as_the_terminal_unless_all_are_wanted(stored, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    assert main(["results"]) == 0
    out = capsys.readouterr().out
    *rows, left = out.splitlines()
    assert max(map(len, rows)) <= 40 and rows[0].split()[:2] == ["task", "sparsity"]
    assert re.search(r"^\d+ more columns \(--csv FILE has all\): .*accuracy", left)
    assert main(["results", "--all-columns"]) == 0
    assert {*stored} == set(capsys.readouterr().out.splitlines()[0].split())


def test_results_as_latex(stored, capsys):
    arguments = ["--where", "task=mnist", "--columns", "task,n_train,accuracy", "--latex"]
    assert main(["results", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == [r"\begin{tabular}{lll}", r"\toprule"] + [
        r"task & n\_train & accuracy \\",
        r"\midrule",
    ]
    assert lines[4].startswith("MNIST & ") and lines[-1] == r"\end{tabular}"
    assert len(lines) == 6 + (stored.task == "mnist").sum()


def test_a_message_is_one_line_but_in_a_terminal(capsys, monkeypatch):
    assert main(["results", "--sort", "nothing"]) == 2
    (once,) = capsys.readouterr().err.splitlines()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    assert main(["results", "--sort", "nothing"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) > 3 and max(map(len, lines)) <= 60
    assert " ".join(" ".join(lines).split()) == once


def test_who_reads_no_further_ends_it_in_silence():
    code = "import sys; from robustlib.cli import main; sys.exit(main())"
    argv = [sys.executable, "-c", code, "data", "list"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        running.stdout.close()
        assert running.stderr.read() == b""
    assert running.returncode == 141


@pytest.mark.parametrize("name", ["study", "sweep"])
def test_the_help_names_every_profile(name, capsys):
    assert main([name, "--help"]) == 0
    words = re.findall(r"[\w.]+", capsys.readouterr().out)
    assert set(profiles.profiles()) <= set(words)


def test_where_there_are_no_rows_there_is_nothing_to_draw(tmp_path, capsys):
    assert main(["figures", "--rows", str(tmp_path), "--out", str(tmp_path / "new")]) == 0
    assert f"nothing to draw: no rows of a figure are in {tmp_path}" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_completion_knows_the_commands_and_their_flags():
    script = app.generate_completion(shell="bash")
    assert "--where" in script and "--ticket.pretrain.eps" in script and "figures" in script


def test_eps_may_be_a_fraction(capsys):
    arguments = ["--objective", "pgd", "--norm", "linf", "--eps", "8/255", "--batch-size", "50"]
    assert main(["pretrain", *TINY, *arguments]) == 0
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("eps "))
    assert float(line.split()[1]) == 8 / 255


def test_the_list_of_datasets_reads_well():
    out = command("data", "list")
    assert out.returncode == 0
    for name in ("digits", "glyphs", "cifar10", "imagenet"):
        assert f" {name} " in out.stdout


def test_dry_run_of_the_paper_profile_computes_nothing(tmp_path):
    out = command("study", "--profile", "paper", "--dry-run")
    assert out.returncode == 0 and "multiply-adds" in out.stdout and "resnet" not in out.stderr
    assert not (tmp_path / "store").exists()
