"""Prints constraints.txt: pins of what is installed beside this interpreter (`make lock`)."""

import re
import subprocess
import sys

HEAD = """\
# Written by `make lock`: the versions that the tests ran on (Linux, x86_64, Python {}.{}).
# A constraint binds only what gets installed. CUDA's libraries and triton are not here: torch asks
# for the right ones itself, and other platforms have none."""
PLATFORM = re.compile(r"(nvidia|cuda)-|triton=")

freeze = [sys.executable, "-m", "pip", "freeze", "--exclude", "robustlib"]
installed = subprocess.run(freeze, check=True, capture_output=True, text=True).stdout
pins = [pin for pin in installed.splitlines() if not PLATFORM.match(pin)]
print(HEAD.format(*sys.version_info[:2]), *pins, sep="\n")
