"""Profiles: TOML files that say which grid of specs a study is."""

import itertools
import json
import math
import re
import string
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from robustlib import specs
from robustlib.profile_files import ABLATION, Profile, axis, checked, read
from robustlib.profile_files import profiles as profiles
from robustlib.specs import Evaluation, Pretrain, Spec, Ticket, Transfer, one_of, reason, shown

SPEEDS = {"one core": 1e10, "a GPU": 1e13}
"""Multiply-adds a second that each sustains in training: a guess for the estimate of cost."""
GAP_IMAGES = 300
Some = str | Sequence[Any]
"""Some values of an axis: a sequence, or comma-separated text."""
_WAY: dict[str, Any] = {n: getattr(Transfer, n) for n in ("task", "mode", "n_train")}
"""What a [[transfer]] has by default."""
_FORMAT = r"[.0-9]{0,3}[defg]?"
"""How a field may be written into the name of a checkpoint."""


def profile(name: str | Profile) -> Profile:
    """A profile by name, or from a TOML file by its path; "cpu:patterns" is an ablation of it.

    Tables: about (text), seeds (list), [pretrain], and one for each way to pretrain [[objective]]
    (fields of Pretrain), to draw [[ticket]] (or [ticket]) and to transfer [[transfer]]. A ticket's
    dataset "task" is that of the transfer, whose n_train and seed it takes over; its mask_from
    holds the fields in which that network differs from [pretrain]. [ablation.NAME] holds the tables
    that the study PROFILE:NAME replaces; in [ablation.properties] alone, [[evaluation]] is what to
    measure (see `evaluations`). Raises ValueError that names the file, the key and what is allowed.
    """
    if isinstance(name, Profile):
        return name
    path, raw, ablation = read(name)
    try:
        own = raw.pop(ABLATION, {})
        if "evaluation" in raw or any("evaluation" in own[k] for k in {*own} - {"properties"}):
            raise ValueError("evaluation: it must be in [[ablation.properties.evaluation]]")
        if ablation:
            raw |= own[one_of("ablation", ablation, sorted(own))]
        out = checked(f"{path.stem}:{ablation}" if ablation else path.stem, raw)
        if not (transfers := grid(out)):
            raise ValueError("its grid is empty")
        evaluations(replace(out, seeds=out.seeds[:1]), transfers[:1])
        return out
    except (ValueError, TypeError, AttributeError) as e:
        raise ValueError(f"{path}: {e}") from None


def ablations(name: str, chosen: Some = "") -> list[str]:
    """The names of a profile's ablations, in its order; or those chosen among them (a sequence, or
    comma-separated text). Raises ValueError that lists them."""
    return _choose("ablations", chosen, list(read(name)[1].get(ABLATION, {})), str)


def pretrains(study: str | Profile, *, seeds: Some = "", eps: Some = "") -> list[Pretrain]:
    """The source networks of a study, natural ones first, by seed. `seeds` and `eps` choose among
    the profile's (empty: all); natural networks are kept whatever eps is. Raises ValueError that
    lists the profile's values."""
    return [source for source, _ in _sources(profile(study), seeds, eps)]


def family(
    study: str | Profile, *, seed: int | None = None, eps: Some = "", arch: str = ""
) -> list[Pretrain]:
    """A natural network of a study and the robust ones that differ from it in nothing but how they
    were pretrained. `seed`, `eps` and `arch` choose among the profile's; no seed, an empty arch:
    its first. Raises ValueError as `pretrains`, and if it has no natural network."""
    from robustlib import stats

    study = profile(study)
    seed = study.seeds[0] if seed is None else specs.integer("seed", seed, 0)
    sources = pretrains(study, seeds=[seed], eps=eps)
    chosen = _choose("arch", arch, list(dict.fromkeys(p.arch for p in sources)), str)[0]
    sources = [p for p in sources if p.arch == chosen]
    if not sources or sources[0].objective != "natural":
        raise ValueError("the profile has no natural network to compare robust ones with")
    recipe = {name.removeprefix("pretrain_") for name in stats.RECIPE}
    alike = [{k: v for k, v in specs.columns(p).items() if k not in recipe} for p in sources]
    return [p for p, own in zip(sources, alike, strict=True) if own == alike[0]]


def _sources(study: Profile, seeds: Some, eps: Some) -> list[tuple[Pretrain, list[int]]]:
    """As `pretrains`, each with the seeds of what is built on it: its own, or for a checkpoint that
    is one network all of them."""
    chosen = _choose("seeds", seeds, study.seeds, int)
    out: dict[Pretrain, list[int]] = {}
    for entry in study.objectives:
        for values in _product({**study.pretrain, **entry}):
            checkpoint = str(values.get("checkpoint", ""))
            one = checkpoint != "" and "{seed" not in checkpoint
            for seed in [0] if one else chosen:
                out.setdefault(_network(values, seed), chosen if one else [seed])
    radii = sorted({p.eps for p in out if p.eps > 0})
    kept = [0, *(_choose("eps", eps, radii, float) if radii else [])]
    order = sorted(out, key=lambda p: (p.objective != "natural", p.objective, p.eps, p.seed))
    return [(p, out[p]) for p in order if p.eps in kept]


def _network(values: dict[str, Any], seed: int) -> Pretrain:
    """The network of these fields; those in braces are filled into the name of its checkpoint."""
    values = values | {"seed": seed}
    if not isinstance(checkpoint := values.get("checkpoint"), str):
        return Pretrain(**values)
    try:
        for _, name, spec, _ in string.Formatter().parse(checkpoint):
            # Fields alone: a dot would reach into Python, and {eps:999999999} is a gigabyte.
            if name is not None and (name not in values or not re.fullmatch(_FORMAT, spec or "")):
                raise ValueError(f"{{{name}{':' * bool(spec)}{spec}}} is not a field")
        filled = checkpoint.format(**values)
    except (LookupError, AttributeError, TypeError, ValueError) as e:
        raise ValueError(
            f"checkpoint={shown(checkpoint)}: {reason(e)}; "
            f"in braces, choose among {', '.join(values)}"
        ) from None
    return Pretrain(**values | {"checkpoint": filled})


def grid(
    study: str | Profile,
    *,
    seeds: Some = "",
    eps: Some = "",
    tasks: Some = "",
    modes: Some = "",
    sparsities: Some = "",
    n_train: int = 0,
) -> list[Transfer]:
    """The transfers of a study, robust and natural paired by seed: one seed drives the chain.

    An argument narrows or replaces an axis (empty or 0: the profile's): seeds, eps and modes choose
    among the profile's; tasks, sparsities and n_train may be any valid ones. Raises ValueError that
    names the bad value and lists the good ones."""
    study = profile(study)
    given: dict[str, Any] = {}
    if values := items("tasks", tasks, str):
        from robustlib.data import sources

        known = {row.name: row.masks for row in sources.available()}
        for way in study.transfers:  # its own may be packs that are not here yet
            for task in axis(way.get("task", Transfer.task)):
                known.setdefault(task, way.get("mode") == "segment")
        given["task"] = [one_of("tasks", t, known) for t in values]
    if specs.integer("n_train", n_train, 0):
        given["n_train"] = n_train
    replaced = items("sparsities", sparsities, float)
    replaced = [specs.number("sparsities", s, 0, 1, open_high=True) for s in replaced]
    drawings = []
    for drawn in (drawn for entry in study.tickets for drawn in _product(entry)):
        fixed = specs.n_of_m(drawn.get("pattern", Ticket.pattern)) or drawn.get("scheme") == "dense"
        drawings += [drawn] if fixed else [drawn | {"sparsity": s} for s in replaced] or [drawn]
    ways = [_WAY | way for entry in study.transfers for way in _product({**entry, **given})]
    kept = _choose("modes", modes, list(dict.fromkeys(way["mode"] for way in ways)), str)
    ways = [way for way in ways if way["mode"] in kept]
    for task, mode in dict.fromkeys((way["task"], way["mode"]) for way in ways):
        if values and known[task] != (mode == "segment"):
            word = "labels each image" if mode == "segment" else "labels each pixel"
            raise ValueError(f"tasks: {task!r} {word}, which is not for mode={mode!r}")
        if n_train:
            from robustlib.data import load, load_segmentation

            # refuses more images than there are
            (load_segmentation if mode == "segment" else load)(task, n_train=n_train)
    product = itertools.product(_sources(study, seeds, eps), drawings, ways)
    found = (
        Transfer(_drawing(study, pretrain, drawn, way, seed), **way, seed=seed)
        for (pretrain, own), drawn, way in product
        for seed in own
    )
    return list(dict.fromkeys(found))


def evaluations(
    study: str | Profile, transfers: Sequence[Transfer] | None = None
) -> dict[str, list[Evaluation]]:
    """What a profile's tables [[evaluation]] ask of transfers (None: of its grid's), by name.

    A table holds fields of Evaluation. other = "dense" compares a ticket with the network that it
    was drawn from, finetuned alike, "natural" a robust ticket with the natural one of the seed. The
    name is the suite, and what tells two tables of one suite apart. Raises ValueError as `profile`.
    """
    study = profile(study)
    transfers = grid(study) if transfers is None else transfers
    out: dict[str, list[Evaluation]] = {}
    for entry in study.evaluations:
        for values in _product(entry):
            other, parts = values.pop("other", None), [values.get("suite", Evaluation.suite)]
            for k, v in values.items():
                if isinstance(entry[k], list):
                    no = "not " if v is False else ""
                    parts.append(f"{no}{k}" if isinstance(v, bool) else f"{k} {v}")
            name = " ".join(parts if other is None else [*parts, f"with {other}"])
            if name in out:
                raise ValueError(
                    f"evaluation: two are called {name!r}; write the values that differ as a list"
                )
            out[name] = []
            for spec in transfers:
                own = values | ({} if other is None else {"other": _other(study, spec, other)})
                if own.get("other") != spec:
                    out[name].append(Evaluation(spec, **own))
    return out


def gaps(name: str) -> list[Evaluation]:
    """How far the source is from each task of a profile, and of its ablation `gap`, in the features
    of each of their networks, on GAP_IMAGES images of each set."""
    known = [name, *(f"{name}:gap" for ablation in ablations(name) if ablation == "gap")]
    pairs = {(s.ticket.pretrain, s.task): None for one in known for s in grid(one)}
    return [Evaluation(p, "domain_gap", against=t, limit=GAP_IMAGES) for p, t in pairs]


def _other(study: Profile, spec: Transfer, which: str) -> Transfer:
    if one_of("other", which, ("dense", "natural")) == "dense":
        return replace(spec, ticket=Ticket(spec.ticket.pretrain))
    entry = next((e for e in study.objectives if e.get("objective") == "natural"), None)
    if entry is None:
        raise ValueError("other='natural': the profile has no natural network")
    natural = _partner(study, entry, spec.ticket.pretrain)
    return replace(spec, ticket=replace(spec.ticket, pretrain=natural))


def _partner(study: Profile, entry: dict[str, Any], of: Pretrain) -> Pretrain:
    """The network of another entry of [[objective]], else like `of`."""
    return _network({name: getattr(of, name) for name in study.pretrain} | entry, of.seed)


def _drawing(
    study: Profile, pretrain: Pretrain, drawn: dict[str, Any], way: dict[str, Any], seed: int
) -> Ticket:
    """The ticket that an entry of a profile's [[ticket]] stands for in one way to transfer."""
    own = dict(drawn)
    if (entry := own.get("mask_from")) is not None:
        own["mask_from"] = _partner(study, entry, pretrain)
    if own.get("dataset") == "task":
        own |= {"dataset": way["task"], "n_train": way["n_train"]}
    if own.get("scheme") in ("random", "imp", "lmp") or own.get("control", "none") != "none":
        own["seed"] = seed
    return Ticket(pretrain, **own)


def wanted(what: str) -> list[Spec]:
    """The specs that a name stands for: the grid of a profile, by name or TOML file, or a JSON
    file, a list of one table for each spec: [{"transfer": {"ticket": {...}, "task": ...}}, ...].

    Raises ValueError that names the file and what is wrong.
    """
    if not what.endswith(".json"):
        return list(grid(what))
    try:
        rows = json.loads(Path(what).read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as e:
        raise ValueError(f"{what}: cannot be read as JSON: {e}") from None
    if not isinstance(rows, list) or not rows:
        raise ValueError(f"{what}: must be a list of specs, not empty")
    out = []
    for i, row in enumerate(rows):
        try:
            out.append(specs.from_tagged("kind", row))
        except ValueError as e:
            raise ValueError(f"{what}: spec {i}: {e}") from None
    return out


def _product(table: dict[str, Any]) -> list[dict[str, Any]]:
    axes = [axis(v) for v in table.values()]
    # TOML has no null: "all" images is None in a spec.
    return [
        {k: None if v == "all" else v for k, v in zip(table, values, strict=True)}
        for values in itertools.product(*axes)
    ]


def items(name: str, value: Any, to: type) -> list[Any]:
    """The values of a parameter: a sequence, comma-separated text, or a single one (papermill makes
    an int of -p seeds 0). to: int, float or str. Raises ValueError that names the parameter."""
    single = isinstance(value, str) or not isinstance(value, Iterable)
    read = partial(specs.number, name, low=-math.inf, high=math.inf) if to is float else to
    try:
        parts = [p.strip() for p in str(value).split(",")] if single else value
        return [read(p) for p in parts if p != ""]
    except (TypeError, ValueError):
        raise ValueError(
            f"{name}={shown(value)}: must be {to.__name__} values, separated by commas"
        ) from None


def _choose(name: str, value: Any, among: Sequence[Any], to: type) -> list[Any]:
    chosen = items(name, value, to) or list(among)
    for v in chosen:
        if v not in among:
            named = specs.plain(v) if isinstance(v, str) else v
            raise ValueError(f"{name}={named}: choose among {', '.join(map(str, among))}")
    return chosen


def _asked(name: str) -> tuple[list[Transfer], list[Spec]]:
    """What a profile, or one ablation, has computed: its grid, and what is measured of it."""
    transfers = grid(name)
    measured: list[Spec] = [e for own in evaluations(name, transfers).values() for e in own]
    if read(name)[2] == "gap":
        of, tasks = family(name)[0], dict.fromkeys(t.task for t in transfers)
        measured += [Evaluation(of, "domain_gap", against=t, limit=GAP_IMAGES) for t in tasks]
    return transfers, measured


def plan(name: str) -> str:
    """What a study would run, its ablations too, or one of these (PROFILE:NAME), with counts, what
    is stored already, and an estimate of cost."""
    from robustlib import store
    from robustlib.costs import absent, cost

    study, names = profile(name), [] if read(name)[2] else ablations(name)
    parts = {one: _asked(one) for one in (name, *(f"{name}:{own}" for own in names))}
    transfers = [t for own, _ in parts.values() for t in own]
    wanted = [*transfers, *(e for _, own in parts.values() for e in own)]
    everything = specs.closure(wanted)
    lines = [f"study {study.name}: {study.about}", ""]
    if names:
        sizes = [f"{own} {len(parts[f'{name}:{own}'][0])}" for own in names]
        lines += [f"transfers: grid {len(parts[name][0])}, {', '.join(sizes)}", ""]
    for kind, cls in specs.KINDS.items():
        own = [s for s in everything if isinstance(s, cls)]
        here = sum(store.has(s) for s in own)
        lines.append(f"{kind:9} {len(own):6} specs, {here} stored")
    rows = [specs.columns(t) for t in dict.fromkeys(transfers)]
    for column in ("objective", "eps", "sparsity", "task", "mode", "n_train", "seed"):
        values = dict.fromkeys(row[column] for row in rows)
        lines.append(f"  {column:10} {', '.join(map(str, values))}")
    missing = store.lacking(wanted)
    lines += ["", *found] if (found := absent(missing)) else []
    total = sum(map(cost, missing))
    lines += ["", f"to compute: {total:.3g} multiply-adds; at speeds that are assumptions,"]
    for machine, speed in SPEEDS.items():
        lines.append(f"  {machine} at {speed:.0e} a second: {total / speed / 3600:.1f} hours")
    return "\n".join(lines)
