"""Figures of networks: how they were trained, what fools them, and how they label pixels."""

import itertools
import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib import colormaps
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor

from robustlib import stats
from robustlib.figures import grid
from robustlib.figures.names import alike, labelled, ordered, shared
from robustlib.figures.style import column_width, looks, page_width, style, written
from robustlib.specs import columns
from robustlib.store import Artifact


@style()
def curves(frame: pd.DataFrame) -> Figure:
    """Loss, and accuracy on validation images as they are and under attack, by epoch.

    frame: a row a network and epoch, with the columns of its Pretrain, and what
    `run(Pretrain(...)).extra["curve"]` holds: epoch, loss, val_accuracy, val_robust if measured.
    """
    columns = {"loss": "training loss", "val_accuracy": "validation accuracy (%)"}
    columns |= {"val_robust": "under attack at its ε (%)"}
    rows = labelled(frame).assign(x=frame.epoch + 1 if "epoch" in frame else None)
    colours = looks(rows.label)
    fig = grid.plain(page_width(), 2.2)
    for ax, (column, title) in zip(fig.subplots(1, 3), columns.items(), strict=True):
        if column in rows:
            own = rows.dropna(subset=[column])
            grid.curves(ax, own, "x", column, colours, 1 if column == "loss" else 100)
        ax.set_ylim(0, None)
        if not ax.lines:
            ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center", fontsize=7)
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.set(xlabel="epoch", title=title)
    said = "" if rows.empty else f"pretrained on {shared(rows, 'source', 'seed')}"
    grid.legend(fig, colours, said)
    return fig


IGNORED = "#FFFFFF"
LONGEST = 12
"""Letters of a class name that are shown."""


def adversarial_examples(
    images: Tensor,
    truth: Sequence[int],
    attacked: Mapping[str, tuple[Tensor, Sequence[int], Sequence[int]]],
    class_names: Sequence[str],
    note: str = "",
) -> Figure:
    """Images, and for each network what an attack adds to them and what the network then says.

    images: [N, 3, H, W] in [0, 1]; truth: labels [N]; attacked: for each network's label the
    adversarial images [N, 3, H, W] and its predictions [N] before and after. Perturbations are
    drawn around grey, all amplified by one factor. note: of which data set and seed they are.
    """
    images = images.cpu()
    attacked = {name: (new.cpu(), old, now) for name, (new, old, now) in attacked.items()}
    factor = _amplification([new - images for new, *_ in attacked.values()])
    side = page_width() / (len(images) + 1)
    # A name and an arrow are as wide as an image; a letter of 6 points is some 0.6 of that wide.
    longest = min(LONGEST, int(72 * side / (0.6 * 6)) - 3)
    names = [_short(name, longest) for name in class_names]
    lines = [("image and class", _seen(images), [names[int(label)] for label in truth])]
    for name, (adversarial, before, after) in attacked.items():
        change = _seen(0.5 + factor * (adversarial - images))
        lines.append((f"{name}\nchange × {factor:g}", change, [""] * len(images)))
        said = [
            f"{names[int(b)]} →\n{_judged(names, int(a), int(label))}"
            for b, a, label in zip(before, after, truth, strict=True)
        ]
        lines.append(("attacked image\nand prediction", _seen(adversarial), said))
    with style(class_names):
        height = 0.4 + len(lines) * (side + 0.12)
        fig = grid.pictures(lines, page_width(), height, size=6)
        for ax in fig.axes:
            ax.spines[:].set_visible(False)
            ax.yaxis.label.set(rotation=0, ha="right", va="center", fontsize=6.5)
        if note:
            fig.suptitle(note, fontsize=6.5)
    return fig


def attacked(
    image: Tensor,
    truth: int,
    networks: Mapping[str, tuple[Tensor, Tensor, Tensor, Tensor]],
    class_names: Sequence[str],
    note: str = "",
) -> Figure:
    """One image as each network sees it: what it says and how sure it is, before and after an
    attack; what the attack changed; and the gradient of the loss, where the network would look.

    image: [3, H, W] in [0, 1]; networks: for each label the attacked image and the gradient at the
    image, shaped alike, and the probabilities [K] before and after. Changes and gradients are drawn
    around grey: changes by one factor, each gradient by its own largest values.
    """
    factor = _amplification([new - image for new, *_ in networks.values()])
    names, lines = list(map(_short, class_names)), []
    for name, (new, gradient, *says) in networks.items():
        said = [f"{_judged(names, int(p.argmax()), truth)} {p.max():.0%}" for p in says]
        titles = [f"image: {said[0]}", f"attacked: {said[1]}"]
        titles += [f"change × {factor:g}", "gradient of the loss"]
        slope = 0.5 + 0.5 * gradient / float(gradient.abs().flatten().quantile(0.995) or 1)
        drawn = torch.stack([image, new, 0.5 + factor * (new - image), slope])
        lines.append((name, _seen(drawn), titles))
    with style(class_names):
        fig = grid.pictures(lines, page_width(), 0.45 + 1.75 * len(networks), size=7)
        fig.suptitle(f"class {names[truth]}{'; ' * bool(note)}{note}", fontsize=8)
    return fig


@style()
def robust_accuracy(frame: pd.DataFrame) -> Figure:
    """Accuracy of each network against the radius of an attack, with exact 95 % intervals.

    frame: a row a network and attack, with the columns of its Pretrain, and attack, attack_norm,
    attack_eps, correct and n. The attack with most radii is drawn as a line, others as hollow
    points around its own.
    """
    rows = labelled(frame).assign(accuracy=frame.correct / frame.n)
    lined = rows.groupby("attack").attack_eps.nunique().idxmax()
    others = [attack for attack in sorted(rows.attack.unique()) if attack != lined]
    colours = looks(rows.label)
    fig = grid.plain(column_width(), 2.8)
    ax = fig.subplots()
    for attack, (name, look) in itertools.product([lined, *others], colours.items()):
        points = rows[(rows.attack == attack) & (rows.label == name)].sort_values("attack_eps")
        counted = zip(points.accuracy, points.n, strict=True)
        y, ends = 100 * points.accuracy, [stats.accuracy_interval(a, n) for a, n in counted]
        reach = np.abs(np.transpose(ends) * 100 - y.to_numpy())
        own = look if attack == lined else look | {"ls": "", "mfc": "none", "ms": 6}
        ax.errorbar(points.attack_eps, y, yerr=reach, capsize=1.5, elinewidth=0.7, **own)
        for eps in points.eps.unique():
            if eps > 0:
                ax.axvline(eps, color=look["color"], lw=0.6, ls=":", zorder=0)
    norm = {"l2": "L2", "linf": "L∞"}[rows.attack_norm.iloc[0]]
    ax.set_ylim(-0.02 * ax.get_ylim()[1], None)
    ax.set_xlabel(f"radius ε of the attack ({norm}, pixels in [0, 1])")
    ax.set_ylabel(f"accuracy on {rows.n.max():,} test images (%)")
    note = f"{shared(rows, 'source', 'seed')}; lines: {lined}"
    note += f"; hollow: {', '.join(others)}" * bool(others)
    grid.legend(fig, colours, note, "bars: 95 % intervals; dotted: the radius trained against")
    return fig


def attacked_rows(found: Iterable[Artifact]) -> pd.DataFrame:
    """The rows that `robust_accuracy` draws, of adversarial evaluations of networks: what is right
    as it is (radius 0) and under each of the two attacks."""
    attacks = {"PGD-20": "pgd_correct", "AutoAttack": "autoattack_correct"}
    rows = []
    for artifact in found:
        spec: Any = artifact.spec
        row = artifact.row
        own = columns(spec.of) | {"n": row["n"], "attack_norm": row["evaluation_norm"]}
        own["attack_eps"] = row["evaluation_eps"]
        clean = {"attack": "PGD-20", "attack_eps": 0.0, "correct": row["clean_correct"]}
        rows += [own | clean, *(own | {"attack": a, "correct": row[c]} for a, c in attacks.items())]
    return pd.DataFrame(rows).drop_duplicates(ignore_index=True)


def scenes(
    images: Tensor,
    masks: Tensor,
    predicted: Mapping[str, Tensor],
    class_names: Sequence[str],
    ignore: int = 255,
) -> Figure:
    """Images, their masks, and what each network predicts, a row each; white has no class.

    images: uint8 [N, H, W, 3]; masks, predicted: integers [N, H, W], labels of class_names.
    """
    labels, n = {"truth": masks, **predicted}, len(images)
    # 60 colours: VOC has 21 classes, and twenty would give two of them one.
    maps: list[Any] = [colormaps[name] for name in ("tab20", "tab20b", "tab20c")]
    colours = [colour for part in maps for colour in part.colors]
    own = [colours[i % len(colours)] for i in range(len(class_names))]
    known = ListedColormap(own).with_extremes(bad=IGNORED)
    present = [i for i in range(len(own)) if any(bool((m == i).any()) for m in labels.values())]
    lines: list[grid.Line] = [("image", images.numpy(), [""] * n)]
    lines += [(k, np.ma.masked_equal(m.numpy(), ignore), [""] * n) for k, m in labels.items()]
    with style(class_names):
        height = len(lines) * (page_width() / n * images.shape[1] / images.shape[2] + 0.08) + 0.5
        scale: dict[str, Any] = {"cmap": known, "vmin": -0.5, "vmax": len(own) - 0.5}
        fig = grid.pictures(lines, page_width(), height, **scale)
        for ax in fig.axes[:n]:
            ax.images[0].set_interpolation("auto")
        patches = [Patch(fc=known(i), label=written(class_names[i])) for i in present]
        fig.legend(handles=patches, loc="outside upper center", ncols=6)
    return fig


def by_class(frame: pd.DataFrame) -> Figure:
    """IoU of each class, natural against robust, one panel for each sparsity.

    frame: a row for each network and class, with the columns of its Transfer, name (of the class)
    and iou. Classes that no test image has are left out. Raises ValueError for rows that differ in
    what has no place here, the task for one.
    """
    alike(frame, "task", "arch", "n_train", "scheme", "pattern", "scope")
    rows = labelled(frame.dropna(subset=["iou"]))
    names, natural = rows["name"].map(written), rows.label == "natural"
    rows["ahead"] = stats.beside(rows, natural, ["name", "sparsity", "seed"], "iou")
    title = "sparsity " + rows.sparsity.map("{:g}".format)
    x = pd.Categorical(names, names.unique())
    rows = grid.measured(rows, "iou", "ahead", x=x, title=title, line=rows.sparsity)
    colours, height = looks(ordered(rows)), 1.2 + 1.2 * rows.sparsity.nunique()
    with style(rows["name"].unique()):
        wide = names.nunique() > 6
        return grid.panels(rows, height, colours, ("task", "seed"), wide=wide, of=grid.TO_NATURAL)


def _judged(names: Sequence[str], said: int, truth: int) -> str:
    return f"{names[said]} {'✓' if said == truth else '✗'}"


def _seen(images: Tensor) -> np.ndarray:
    """Images [N, 3, H, W] as `grid.pictures` takes them."""
    return images.clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()


def _amplification(changes: Any) -> float:
    """A round factor that makes the largest changes of most pixels fill half of [0, 1]."""
    large = max(float(c.abs().flatten().quantile(0.995)) for c in changes)
    if large == 0:
        return 1.0
    factor = max(1.0, 0.5001 / large)
    unit = 10 ** math.floor(math.log10(factor))
    return float(max(k for k in (1, 2, 5) if k * unit <= factor) * unit)


def _short(name: str, longest: int = LONGEST) -> str:
    name = name.split(",")[0]  # ImageNet's names are lists of synonyms
    if _width(written(name)) <= longest:
        return written(name)
    while _width(written(name)) >= longest:
        name = name[:-1]
    return f"{written(name)}…"


def _width(text: str) -> int:
    """In letters; a Chinese one is as wide as two."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
