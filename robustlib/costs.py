"""What specs take: an estimate of their arithmetic, and data sets that are not here."""

from collections import defaultdict
from collections.abc import Iterable
from functools import cache, lru_cache
from pathlib import Path

from robustlib import specs
from robustlib.specs import Evaluation, Spec, Ticket, Transfer


def cost(spec: Spec) -> float:
    """An estimate of the multiply-adds of a spec, without what it is built on.

    A training step is 3 forward passes, a step of an attack 2; pruning at once is free, and masked
    weights are multiplied like others. An image for segmentation counts as one of the source.
    """
    row = specs.columns(spec)
    forward = _forward(*(row[name] for name in ("arch", "width", "stem_stride", "stem", "size")))
    if isinstance(spec, Evaluation):
        n = _sizes()[row.get("task", row["source"])][1]
        # AutoAttack in its two versions, 75 corruptions, noisy copies; as measured or counted.
        attack = {"cheap": 250, "standard": 8_000}[spec.attack]
        passes = {"adversarial": attack, "certified": spec.draws, "corruption": 75}
        return forward * min(n, spec.limit or n) * passes.get(spec.suite, 2)
    if isinstance(spec, Transfer):
        n_train, n_test = _sizes()[spec.task]
        each = 1.0 if spec.mode == "linear" else 3.0 * spec.epochs
        return forward * (each * (spec.n_train or n_train) + n_test)
    each = spec.epochs * (3.0 + 2.0 * spec.steps * (spec.objective in ("pgd", "trades")))
    if isinstance(spec, Ticket):
        if spec.scheme not in ("imp", "lmp") or specs.drawn_as(spec) is not None:
            return 0.0
        own = spec.pretrain.n_train if not spec.dataset else None
        return forward * each * (spec.n_train or own or _sizes()[spec.dataset or row["source"]][0])
    n_train, n_test = _sizes()[spec.source]
    each += 4.0 * spec.epochs * (spec.objective == "trades")
    each *= 0 if spec.checkpoint else spec.replays if spec.objective == "free" else 1
    return forward * (each * (spec.n_train or n_train) + n_test)


@cache
def _forward(arch: str, width: int, stem_stride: int, stem: str, size: int) -> int:
    from robustlib import models

    return models.multiply_adds(models.build(arch, 2, width, stem_stride, stem=stem), size)


def _sizes() -> defaultdict[str, tuple[int, int]]:
    """How many images data sets have for training and test; zeros where one is not there."""
    from robustlib.data import sources

    root = sources.data_root()
    return _listed(root, root.stat().st_mtime_ns if root.is_dir() else 0)


@lru_cache(maxsize=1)
def _listed(root: Path, changed: int) -> defaultdict[str, tuple[int, int]]:
    """changed: when a pack was added last."""
    from robustlib.data import sources

    found = {row.name: (row.n_train, row.n_test) for row in sources.available(root)}
    return defaultdict(lambda: (0, 0), found)


def absent(wanted: Iterable[Spec]) -> list[str]:
    """What to say of the data sets that specs need and that are neither known nor packs of the data
    root: a line, and one for each; nothing where there is none. What is published is fetched when
    it is needed."""
    from robustlib.data import sources

    trained = [s for s in wanted if not getattr(s, "checkpoint", "")]
    fields = ("source", "dataset", "task", "against")
    names = dict.fromkeys(getattr(s, field, "") for field in fields for s in trained)
    lines = [f"  {name}" for name in names if name and not sources.here(name)]
    start = f"no packs of these names are in {sources.data_root()} (docs/data.md says how to make"
    return [f"{start} those of the study):", *lines] if lines else []
