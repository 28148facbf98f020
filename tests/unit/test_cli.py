"""The command line as a user meets it."""

import re
import subprocess
import sys

import pytest

import robustlib
from robustlib import profiles, store
from robustlib.cli import main
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
    + ["data build"],
)
def test_each_command_has_help(name, capsys):
    assert main([*name.split(), "--help"]) == 0
    assert "--" in capsys.readouterr().out


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
        (["results", "--csv", "/nowhere/rows.csv"], "csv='/nowhere/rows.csv'"),
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
