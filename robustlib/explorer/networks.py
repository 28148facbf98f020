"""Networks close up: the masks of tickets, and what attacks do to what they say."""

from __future__ import annotations

import random
from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any, NamedTuple

import ipywidgets as widgets
import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F

from robustlib import attacks, checkpoints, figures, models, specs, stages, store, tickets, training
from robustlib.data import Dataset, batches, load
from robustlib.data.splits import Split, take
from robustlib.explorer import choices
from robustlib.explorer.panel import Drawn, Panel, button, offer
from robustlib.figures.names import radius
from robustlib.metrics.sample import in_memory
from robustlib.specs import Norm, Pretrain, Transfer, closure, columns
from robustlib.stages import transfer
from robustlib.transfer import linear

IMAGES = 500
"""Test images that can be chosen, at most: all are classified to find those that are not right."""
ZOO = "digits (the zoo's networks)"
STEPS = 10


def masks(
    networks: Mapping[str, nn.Module | Pretrain], sparsity: float = 0.9, scope: str = "global"
) -> Panel:
    """Two tickets close up (`figures.masks`), drawn anew by `tickets.omp` at each move of a slider.

    networks: by label (`figures.label`, the first one natural): modules, or specs of what is stored
    or comes with the package. Raises ValueError for fewer than two.
    """
    if len(networks) < 2:
        raise ValueError(f"networks={list(networks)}: must be a natural and at least one robust")
    names = list(networks)
    slider = widgets.FloatSlider(sparsity, min=0, max=0.99, step=0.01, readout_format=".2f")
    layer, pattern = widgets.Dropdown(), widgets.Dropdown(options=specs.PATTERNS)
    scopes = widgets.Dropdown(options=specs.SCOPES, value=scope)
    first, second = widgets.Dropdown(options=names), widgets.Dropdown()

    def draw() -> Drawn:
        alike = [n for n in names if _shape(networks[n]) == _shape(networks[first.value])]
        others = sorted(alike, key=lambda n: _way(n) == _way(first.value))
        offer(second, [n for n in others if n != first.value] or [first.value])
        pair = {n: _module(networks[n]) for n in (first.value, second.value)}
        if len(pair) < 2:
            raise ValueError(f"{first.value}: no other network has its architecture")
        weights = {n: tickets.prunable(model) for n, model in pair.items()}
        fresh = not layer.options
        offer(layer, own := list(weights[first.value]))
        if fresh:  # the stem is small and of no interest
            layer.value = own[min(1, len(own) - 1)]
        blocks = specs.n_of_m(pattern.value)
        cut = 1 - blocks[0] / blocks[1] if blocks else slider.value
        drawn = {n: tickets.omp(m, cut, pattern.value, scopes.value) for n, m in pair.items()}
        kernels = {n: own[layer.value].detach().cpu() for n, own in weights.items()}
        same = layer.value, *pair
        onto = last.get(same)
        last.clear()
        last[same] = figures.masks(drawn, kernels, layer.value, onto)
        return [last[same]], ""

    last: dict[Any, Figure] = {}
    controls = {"sparsity": slider, "layer": layer, "network": first, "other": second}
    return Panel(draw, controls | {"pattern": pattern, "scope": scopes})


def ticket(sparsity: float = 0.9) -> Panel:
    """`masks` of the networks that come with the package and of all that are stored."""
    found = [checkpoints.pretrain(f"zoo/{name}") for name in checkpoints.zoo()]
    stored: list[Any] = [a.spec for a in store.artifacts(Pretrain, [])]
    found += [spec for spec in stored if not _bundled(spec) and store.has_tensors(spec)]
    networks: dict[str, nn.Module | Pretrain] = {}
    small = Pretrain.arch
    # The pair that is shown first: natural, and what the study calls robust.
    first = {"natural": 0, "pgd": 1}
    found.sort(
        key=lambda s: (s.arch != small, first.get(s.objective, 2), not _bundled(s), s.eps, s.seed)
    )
    for s in found:
        where = f"{'zoo' if _bundled(s) else s.source}, seed {s.seed}"
        where = where if s.arch == small else f"{s.arch}, {where}"
        name = f"{figures.label(columns(s))} ({where})"
        # Two of one name differ in how they were trained.
        networks[f"{name[:-1]}, {specs.key(s)[:6]})" if name in networks else name] = s
    return masks(networks, sparsity)


def _bundled(spec: Pretrain) -> bool:
    return spec.checkpoint.startswith("zoo/")


def _way(name: str) -> str:
    return name.partition(" (")[0]


def _shape(network: nn.Module | Pretrain) -> Any:
    if isinstance(network, Pretrain):
        return network.arch, network.width, network.stem
    return {name: p.shape for name, p in tickets.prunable(network).items()}


@lru_cache(maxsize=8)
def _module(network: nn.Module | Pretrain) -> nn.Module:
    if isinstance(network, nn.Module):
        return network
    # Not `run`: what comes with the package needs neither the store nor its source's images.
    return checkpoints.load(network.checkpoint) if _bundled(network) else stages.network(network)


def attack() -> Panel:
    """A test image, and what an attack of a chosen radius makes of it for a natural and a robust
    ticket.

    Offered are all stored pairs that differ in nothing but pretraining, and linear classifiers of
    digits on two networks of the zoo, which need nothing that is stored.
    """
    pairs = _pairs()
    tasks = [*dict.fromkeys(task for task, _ in pairs), ZOO]
    task, chosen = widgets.Dropdown(options=tasks), widgets.Dropdown()
    chosen.layout = widgets.Layout(width="420px")
    image = widgets.BoundedIntText(0, min=0, max=IMAGES - 1)
    eps = widgets.FloatSlider(0.5, min=0, max=2, step=0.05, readout_format=".3f")

    def pair() -> _Pair:
        return _loaded(*pairs.get((task.value, chosen.value), (None, None)))

    def draw() -> Drawn:
        offer(chosen, [name for where, name in pairs if where == task.value] or [ZOO])
        own = pair()
        image.max, eps.max, eps.step = len(own.test) - 1, 4 * own.eps, own.eps / 10
        x, y = next(batches.ordered(take(own.test, np.array([image.value]))))
        threat = attacks.Threat(own.norm, eps.value, STEPS)
        seen = {name: _seen(model, x, y, threat) for name, model in own.networks.items()}
        note = f"test image {image.value} of {len(own.test)}; {radius(own.norm, eps.value)}"
        return [figures.attacked(x[0], int(y), seen, own.class_names, note)], ""

    def move(name: str) -> None:
        wrong, now = pair().wrong, image.value
        after = [*range(now + 1, len(wrong)), *range(now)]
        if name == "misclassified":
            after = [i for i in after if wrong[i]]
        if after:
            image.value = random.choice(after) if name == "random" else after[0]

    names = ("next", "random", "misclassified")
    bar = widgets.HBox([button(name, partial(move, name)) for name in names])
    return Panel(draw, {"task": task, "tickets": chosen, "image": image, "ε": eps}, above=[bar])


class _Pair(NamedTuple):
    """A natural and a robust network of one task, and what they are tried on."""

    networks: dict[str, nn.Module]
    test: Split
    class_names: tuple[str, ...]
    norm: Norm
    eps: float
    wrong: Tensor
    """Of each test image, whether one of them is wrong before any attack."""


def _pairs() -> dict[tuple[str, str], tuple[Transfer, Transfer]]:
    """The stored pairs, (natural, robust), by task and by what tells them apart in it."""
    frame, stored, _ = choices.load()
    frame = frame[frame["mode"] != "segment"]
    found: dict[tuple[str, str], tuple[Transfer, Transfer]] = {}
    if frame.empty:
        return found
    table = choices.facets(frame)
    usual = {n: table[n].mode()[0] for n in table if n not in ("task", "robust", "mode", "seed")}
    partner = choices.partners(frame)
    for i, row in frame.loc[partner.index].iterrows():
        parts = [table.robust[i], row["mode"], f"sparsity {row.sparsity:g}"]
        parts += [f"{n} {table[n][i]}" for n, value in usual.items() if table[n][i] != value]
        name = ", ".join([*parts, f"seed {row.seed}"])
        pair = stored[frame.key[partner[i]]], stored[row.key]
        if all(map(store.has_tensors, closure(pair))):  # else networks would have to be trained
            found[row.task, name] = pair
    return found


@lru_cache(maxsize=4)
def _loaded(natural: Transfer | None, robust: Transfer | None) -> _Pair:
    if natural is None or robust is None:
        data, names = load("digits", 64, n_train=200), ("zoo/natural-0", "zoo/robust-0")
        labels = [figures.label(columns(checkpoints.pretrain(name))) for name in names]
        networks = {label: _classifier(n, data) for label, n in zip(labels, names, strict=True)}
        source = checkpoints.pretrain(names[1])
    else:
        source = robust.ticket.pretrain
        data = transfer.images(robust)
        label = figures.label(columns(source))
        networks = {"natural": stages.network(natural), label: stages.network(robust)}
    test = in_memory(take(data.test, np.arange(min(IMAGES, len(data.test)))))
    found = [training.logits(model, test) for model in networks.values()]
    wrong = torch.stack([out.argmax(1) != y for out, y in found]).any(0)
    networks = {name: model.cpu() for name, model in networks.items()}  # one image is soon done
    return _Pair(networks, test, data.class_names, source.norm, source.eps or 0.5, wrong)


def _classifier(name: str, data: Dataset) -> nn.Module:
    """A network of the zoo, four fifths of it removed, with a logistic regression as its head."""
    model = checkpoints.load(name)
    tickets.masked(model, tickets.omp(model, 0.8), "unstructured")
    training.recalibrate(model, data.train)
    head, _ = linear(model, data)
    models.swap_head(model, data.n_classes).load_state_dict(head, strict=False)
    return model.eval()


def _seen(
    model: nn.Module, x: Tensor, y: Tensor, threat: attacks.Threat
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The attacked image, the gradient of the loss at the image, and the probabilities before and
    after."""
    at = x.clone().requires_grad_()
    with torch.random.fork_rng():
        torch.manual_seed(0)  # A slider that comes back shows what it showed.
        new = attacks.pgd(model, x, y, threat, worst=True)
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(at), y), at)
    with torch.no_grad():
        before, after = (model(images).softmax(1)[0] for images in (x, new))
    return new[0], gradient[0], before, after
