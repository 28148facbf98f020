"""The command line as a user meets it."""

import subprocess
import sys

import pytest

from robustlib import study
from robustlib.cli import main

COMMANDS = ["study", "sweep", "batch", "pretrain", "ticket", "transfer", "data", "results", "bench"]
PROFILES = ", ".join(study.profiles())
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
        assert f"• {name} " in out


@pytest.mark.parametrize(
    "name", ["study", "sweep", "batch", "pretrain", "ticket", "transfer", "results", "data"]
)
def test_each_command_has_help(name, capsys):
    assert main([name, "--help"]) == 0
    assert "--" in capsys.readouterr().out


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
        (["pretrain", "--objective", "pdg"], "'natural'"),
        (["pretrain", "--nope", "1"], "--nope"),
        (["pretrain", "--lr", "fast"], "--lr"),
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
