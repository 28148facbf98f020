"""A network to take away: its ONNX files, what they cost here, its card, and a script to use it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from robustlib import checkpoints, deployment, devices, models, specs, stats, store, sweeps
from robustlib.compact import compact
from robustlib.data import sources
from robustlib.export import INPUT, export, latencies, packed
from robustlib.files import whole
from robustlib.specs import Evaluation, Transfer
from robustlib.stages import network, run, transfer
from robustlib.tickets import prunable

if TYPE_CHECKING:
    import pandas as pd

RULE = (
    "the highest accuracy on validation images within the budget; of those that are behind by no "
    "more than one standard error of the paired difference, the smallest file, where 5 % more "
    "count as equal"
)
FIGURES = Path(__file__).parents[1] / "figures"
"""The rows of the study, in a clone of the project."""
GAP_IMAGES = 300
"""Images of each set that the study's domain gaps are of."""
FORMS = ("fp32", "int8")
FILES = ("network.onnx.gz", *(f"{form}.onnx" for form in FORMS), "classify.py", "card.json")
"""What is taken away, in the order in which it is written."""
_GRAPH, _CHANNEL = 7_000, {"fp32": 5, "int8": 14}
"""Bytes, through gzip, of a file beside its weights: of the graph, and of each output channel its
bias and, in int8, its scale (measured)."""
SCRIPT = '''"""Classifies images: python classify.py IMAGE ... (numpy, onnxruntime and Pillow)."""
import gzip, json, pathlib, sys
import numpy as np, onnxruntime
from PIL import Image, ImageOps
here = pathlib.Path(__file__).parent
card = json.loads((here / "card.json").read_text(encoding="utf-8"))
run = onnxruntime.InferenceSession(gzip.decompress((here / card["network"]).read_bytes())).run
for file in sys.argv[1:]:
    image = Image.open(file)
    raw, clear = image.format == "PNG" and image.tile[0][3], image.info.get("transparency")
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        pixels = np.asarray(image)  # of 16 bits the upper 8
        image = Image.fromarray((pixels >> 8).astype(np.uint8))
        image.putalpha(Image.fromarray(np.where(pixels == clear, 0, 255).astype(np.uint8)))
    elif image.mode in ("I", "F") or (clear and raw == "RGB;16B"):
        sys.exit(f"{file}: {image.mode} pixels of no known range, or 16 bits with a clear colour")
    elif clear and raw in ("L;2", "L;4"):
        image.info["transparency"] = clear * (85 if raw == "L;2" else 17)
    image = image.convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    image = ImageOps.fit(image, [card["stored_size"]] * 2, 2).resize([card["size"]] * 2, 2)
    x = np.asarray(image, np.float32).transpose(2, 0, 1)[None] / 255
    logits = run(None, {card["input"]: x})[0][0]
    sure = 1 / np.exp(logits - logits.max()).sum()
    print(file, card["classes"][logits.argmax()], f"{sure:.3f}", sep="\\t")
'''


def expected(task: str, detail: int) -> list[str]:
    """What the study would have said of robust tickets on such a task beforehand: by the detail of
    its images (their side in pixels), and, where the source's images are here, by the domain
    gap."""
    import pandas as pd

    pretrain = checkpoints.pretrain("zoo/natural-0")
    if not (FIGURES / "claims.csv").exists():
        return ["Not known: the rows of the study are in a clone of the project."]
    claims = pd.read_csv(FIGURES / "claims.csv").set_index(["claim", "part"])
    part = "full" if detail >= pretrain.size else "coarse"
    row = claims.loc["C1", f"{part} tasks"]
    lines = [
        f"Detail: the images show {detail} px, those of the zoo {pretrain.size}. On the "
        f"{row.tasks:.0f} {part} tasks of the study, finetuned, robust minus natural was "
        f"{row['mean']:+.1f} points [{row.low:+.1f}, {row.high:+.1f}]: {row.verdict}."
    ]
    about = "Domain gap: not known, "
    if not sources.here(pretrain.source):
        return [*lines, f"{about}since the images of the source, {pretrain.source}, are not here."]
    try:
        measured = run(Evaluation(pretrain, "domain_gap", against=task, limit=GAP_IMAGES)).row
    except ValueError as e:
        return [*lines, f"{about}{e}."]
    gaps, gap = pd.read_csv(FIGURES / "domain_gap.csv"), measured["frechet_infinity"]
    gaps = gaps[(gaps.objective == "natural") & (gaps.seed == 0)].frechet_infinity
    row = claims.loc["C7", "finetune"]
    return [
        *lines,
        f"Domain gap: {gap:.0f}; of the {len(gaps)} tasks of the study {(gaps < gap).sum()} were "
        f"nearer to the source. The rank correlation of gap and advantage was {row['mean']:.2f} "
        f"[{row.low:.2f}, {row.high:.2f}]: {row.verdict}.",
    ]


def estimates(spec: Transfer, n_classes: int) -> list[dict[str, Any]]:
    """What the forms of a ticket will cost, nothing trained for it, as rows of `forms`: parameters
    and bytes."""
    model = _untrained(spec, n_classes)
    row = _named(spec) | {"parameters": sum(p.numel() for p in model.parameters())}
    return [row | {"form": form, "bytes": size} for form, size in compressed(model).items()]


def compressed(model: models.ResNet) -> dict[str, int]:
    """About how many bytes the ONNX file of a network has through gzip, by form, without it being
    made: those of its weights, and what there is beside them."""
    weights = [model.get_parameter(name).detach() for name in (*prunable(model), "fc.weight")]
    # The file's weights have the scale of a norm in them, which leaves no bit as it was.
    largest = [w.abs().flatten(1).amax(1).clamp_min(1e-12) for w in weights]
    scaled = [w / m.view(-1, *[1] * (w.dim() - 1)) for w, m in zip(weights, largest, strict=True)]
    of = {"fp32": scaled, "int8": [(w * 64).round().to(torch.int8) for w in scaled]}
    data = {form: b"".join(w.numpy().tobytes() for w in own) for form, own in of.items()}
    beside = {form: _GRAPH + n * sum(map(len, weights)) for form, n in _CHANNEL.items()}
    return {form: len(packed(own)) + beside[form] for form, own in data.items()}


def forms(wanted: Sequence[Transfer], folder: Path, client: Any) -> pd.DataFrame:
    """The networks of specs in two forms, a row each: columns of the spec, `spec` (its
    place), network, form, costs, and its ONNX file, which has its gzip beside it. Those of linear
    evaluation are not trained for it: their head is a fresh one."""
    import pandas as pd

    folder.mkdir()
    jobs = [
        sweeps.Job(specs.key(s), f"export {specs.key(s)}", _write, (s, str(folder))) for s in wanted
    ]
    if failures := sweeps.compute(jobs, unit="network", client=client):
        raise sweeps.SweepFailed(failures, len(jobs))
    rows = [
        {"spec": i, **_named(spec), "form": form}
        | json.loads((folder / f"{specs.key(spec)}.json").read_text(encoding="utf-8"))
        | {"bytes": file.with_name(f"{file.name}.gz").stat().st_size, "file": str(file)}
        for i, spec in enumerate(wanted)
        for form, suffix in zip(FORMS, ("", ".int8"), strict=True)
        for file in [folder / f"{specs.key(spec)}{suffix}.onnx"]
    ]
    frame = pd.DataFrame(rows)
    times = latencies({f: f for f in frame.file}, wanted[0].ticket.pretrain.size, 1)
    return frame.assign(latency=[median(times[f]) for f in frame.file])


def _write(spec: Transfer, folder: str) -> None:
    """A worker's job: the files of a network, and the costs that do not depend on the form, zeros
    included."""
    torch.set_num_threads(1)
    size, data = spec.ticket.pretrain.size, transfer.images(spec)
    model = network(spec) if spec.mode == "finetune" else _untrained(spec, data.n_classes)
    file = export(model, Path(folder) / f"{specs.key(spec)}.onnx", size)
    for made in (file, deployment.calibrated(file, data.train, spec.seed).path):
        made.with_name(f"{made.name}.gz").write_bytes(packed(made.read_bytes()))
    held = sum(p.numel() for p in model.parameters())
    for p in model.parameters():
        p.data.fill_(1)  # zeros in place are multiplied like any number
    row = {"parameters": held, "multiply_adds": models.multiply_adds(model, size)}
    file.with_suffix(".json").write_text(json.dumps(row), encoding="utf-8")


def _named(spec: Transfer) -> dict[str, Any]:
    """The spec as columns, and the name of its network."""
    name = spec.ticket.pretrain.checkpoint.removeprefix("zoo/")
    return specs.columns(spec) | {"network": name}


def _untrained(spec: Transfer, n_classes: int) -> Any:
    """The ticket as it is before its transfer, with a fresh head."""
    model = network(spec.ticket)
    if spec.ticket.pattern == "channel":
        model = compact(model, spec.ticket.pretrain.size, transfer.MULTIPLE).model
    return models.swap_head(model, n_classes, seed=0)


def card(spec: Transfer, data: Any, options: pd.DataFrame, hits: np.ndarray) -> dict[str, Any]:
    """What is known of the chosen network, once it is measured on test images. hits: which
    validation images each option has right, bools [options, N]."""
    own = options[options.chosen].iloc[0]
    costs = ["form", "parameters", "multiply_adds", "bytes", "latency", "val_accuracy", "met"]
    able = options[options.met].sort_values(["val_accuracy", "bytes"], ascending=[False, True])
    natural = able.objective == "natural"
    versus: dict[str, Any] | None = None
    if natural.any() and not natural.all():
        best = {"robust": able.index[~natural][0], "natural": able.index[natural][0]}
        mean, low, high = stats.paired_interval(hits[best["robust"]], hits[best["natural"]])
        versus = {"mean": mean, "low": low, "high": high, "n": hits.shape[1]}
        versus |= {side: said(options.loc[i]) for side, i in best.items()}
        versus["interval"] = "95 % (Bonett and Price), paired by validation image"
    correct = deployment.right(own.file, data.test)
    low, high = stats.accuracy_interval(correct.mean(), len(correct))
    test = {"accuracy": float(correct.mean()), "low": low, "high": high, "n": len(correct)}
    return {
        "network": FILES[0],
        "form": own.form,
        "classes": list(data.class_names),
        "input": INPUT,
        "size": spec.ticket.pretrain.size,
        "stored_size": data.native,
        "preprocessing": "8 bits a channel (of 16 the upper), upright, transparency on white, the "
        "middle square at stored_size px, scaled to size px, RGB in [0, 1], float32 [N, 3, H, W]",
        "ticket": said(own),
        "rule": RULE,
        "test": test | {"interval": "95 % (Clopper and Pearson)"},
        "val": {"accuracy": float(own.val_accuracy), "n": hits.shape[1]},
        "forms": options.loc[options.spec == own.spec, costs].to_dict("records"),
        "robust_minus_natural": versus,
        "instructions": devices.instructions(),
        "licence": checkpoints.zoo()[own.network]["licence"],
        "spec": specs.to_dict(spec),
        "versions": store.versions(),
    }


def save(folder: Path, card: dict[str, Any], options: pd.DataFrame) -> None:
    """Writes the chosen network, both its forms, the script, and the card as the last."""
    own = options[options.chosen].iloc[0]
    copies = {f"{o.form}.onnx": o.file for o in options[options.spec == own.spec].itertuples()}
    copies[card["network"]] = f"{own.file}.gz"
    contents = {name: Path(file).read_bytes() for name, file in copies.items()}
    contents |= {"classify.py": SCRIPT.encode(), "card.json": json.dumps(card, indent=1).encode()}
    for name, data in contents.items():
        with whole(folder / name) as file:
            file.write(data)


def said(option: Any) -> str:
    """An option in words: its network, its ticket and its form."""
    return f"{option.network}, {option.pattern}, sparsity {option.sparsity:g}, {option.form}"


def told(card: dict[str, Any]) -> str:
    """A card in a few lines: what was chosen, how good it is, what it costs, and against what."""
    own, test, val = (card[name] for name in ("ticket", "test", "val"))
    (form,) = (f for f in card["forms"] if f["form"] == card["form"])
    lines = [
        f"chosen: {own}",
        f"rule: {card['rule']}",
        f"accuracy: {100 * test['accuracy']:.1f} % [{100 * test['low']:.1f}, "
        f"{100 * test['high']:.1f}] of {test['n']} test images; {100 * val['accuracy']:.1f} % of "
        f"{val['n']} validation images, by which it was chosen",
        f"costs: {form['parameters']:,} parameters, {form['bytes']:,} bytes, "
        f"{form['latency']:.3f} ms an image",
    ]
    if versus := card["robust_minus_natural"]:
        mean, low, high = (100 * versus[name] for name in ("mean", "low", "high"))
        lines.append(
            f"robust minus natural, the best of each: {mean:+.1f} points [{low:+.1f}, {high:+.1f}] "
            f"on the {versus['n']} validation images ({versus['robust']}; {versus['natural']})"
        )
    else:
        lines.append("robust minus natural: not known, only one of them is within the budget")
    return "\n".join([*lines, *card["expected"]])
