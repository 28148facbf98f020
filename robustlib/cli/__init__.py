"""The `robustlib` command: its flags are the fields of the specs."""

import os
import sys

import pydantic
from cyclopts import CycloptsError

from robustlib.cli import stored, studies  # noqa: F401 - each adds its commands
from robustlib.cli.app import app, refuse

# Reading Markdown is an eighth of the time of `robustlib --help`, which has none.
app.help_format = "plaintext"
for _name in app:
    app[_name].help_format = "markdown"


def main(argv: list[str] | None = None) -> int:
    """Runs a command line; returns the exit code.

    Bad input is a line on stderr and exit code 2; work that failed says why and exits with 1.
    """
    try:
        given = sys.argv[1:] if argv is None else argv
        if not given:
            raise ValueError(f"which command? {', '.join(n for n in app if n[0] != '-')}")
        call, bound, _ = app.parse_args(given, exit_on_error=False, print_error=False)
        call(*bound.args, **bound.kwargs)
        print(end="", flush=True)  # while it is still here that what fails is told
    except CycloptsError as e:
        cause = e.__cause__  # what a spec refused, which pydantic has packed
        refused = cause.errors()[0]["ctx"] if isinstance(cause, pydantic.ValidationError) else {}
        return refuse(str(refused.get("error", e)))
    except BrokenPipeError:  # who reads has enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13  # as a program that the signal ends
    except (ValueError, OSError) as e:
        return refuse(str(e))
    except RuntimeError as e:
        print(f"robustlib: {e}", file=sys.stderr)  # whole: what failed, and where, may take lines
        return 1
    except KeyboardInterrupt:
        print(
            "robustlib: interrupted; what is stored stays, the same call goes on", file=sys.stderr
        )
        return 130
    return 0
