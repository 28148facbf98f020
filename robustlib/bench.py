"""`robustlib bench`: how fast the machinery is. The harness is benchmarks/bench.py of the clone."""

import runpy
from pathlib import Path


def main() -> None:
    """Prints every measure. Raises ValueError outside a clone of the project."""
    script = Path(__file__).parents[1] / "benchmarks" / "bench.py"
    if not script.exists():
        raise ValueError(f"{script}: not there; the harness runs from a clone of the project")
    runpy.run_path(str(script))["main"]()
