"""The widgets redraw what their controls say: driven through traits, without a browser."""

import pytest
import torch
from helpers import transfer_rows

from robustlib import explorer, figures, models, tickets


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    names = ("natural", "robust, L2 ε = 0.1", "robust, L2 ε = 0.5")
    return {name: models.build("resnet10s", 5, width=4, stem_stride=2) for name in names}


def controls(box):
    return {control.description: control for control in box.children}


def picture(box):
    """The mask picture as it is now, as numbers."""
    return box.figure.axes[0].images[0].get_array().data


def test_the_slider_redraws_the_masks_that_omp_draws(networks):
    box = explorer.masks(networks, sparsity=0.9)
    slider, menu = controls(box)["sparsity"], controls(box)["layer"]
    seen = []
    for sparsity in (0.9, 0.5, 0.0, 0.99):
        slider.value = sparsity
        a, b = (tickets.omp(networks[n], sparsity) for n in ("natural", "robust, L2 ε = 0.5"))
        expected = figures.overlay(a[menu.value], b[menu.value])
        assert (picture(box) == expected).all()
        seen.append(expected.copy())
    assert (seen[2] == 3).all()
    assert len({tuple(s.ravel()) for s in seen}) == 4


def test_the_menus_choose_layer_and_robust_network(networks):
    box = explorer.masks(networks, sparsity=0.8, scope="layer")
    controls(box)["layer"].value = "layer3.0.conv2.weight"
    controls(box)["robust"].value = "robust, L2 ε = 0.1"
    a, b = (
        tickets.omp(networks[n], 0.8, scope="layer")["layer3.0.conv2.weight"]
        for n in ("natural", "robust, L2 ε = 0.1")
    )
    assert (picture(box) == figures.overlay(a, b)).all()
    assert "layer3.0.conv2" in box.figure.axes[0].get_title()


def test_overlay_counts_each_kind_once():
    a = torch.tensor([True, True, False, False]).view(1, 1, 2, 2)
    b = torch.tensor([True, False, True, False]).view(1, 1, 2, 2)
    assert figures.overlay(a, b).tolist() == [[3, 1], [2, 0]]


def test_masks_wants_two_networks(networks):
    with pytest.raises(ValueError, match="natural and at least one robust"):
        explorer.masks({"natural": networks["natural"]})
    with pytest.raises(ValueError, match="sparsity"):
        explorer.masks(networks, sparsity=1.0)


def drawn(box):
    """(tasks, the mean accuracies of natural in the first panel) as drawn."""
    first = box.figure.axes[0]
    line = next(line for line in first.lines if line.get_linestyle() != "None")
    titles = [ax.get_title().lower() for ax in box.figure.axes if ax.get_title()]
    return titles, line.get_ydata()


def test_transfers_shows_what_is_chosen():
    frame = transfer_rows(tasks=("mnist", "gtsrb"), modes=("finetune", "linear"), seeds=(0, 1, 2))
    box = explorer.transfers(frame)
    menus = controls(box)
    assert set(menus) == {"picture", "task", "mode", "seed"}
    assert drawn(box)[0] == ["mnist", "gtsrb"] * 2
    menus["task"].value, menus["mode"].value = ("gtsrb",), ("linear",)
    for seeds in ((0,), (1, 2)):
        menus["seed"].value = seeds
        rows = frame[(frame.task == "gtsrb") & (frame["mode"] == "linear")]
        rows = rows[rows.seed.isin(seeds) & (rows.objective == "natural")]
        titles, means = drawn(box)
        assert titles == ["gtsrb"]
        assert means == pytest.approx(100 * rows.groupby("sparsity").accuracy.mean().to_numpy())
    menus["seed"].value = ()
    assert len(drawn(box)[0]) == 1
    before = box.figure
    menus["picture"].value = "robust − natural"
    assert box.figure is not before and "robust − natural" in box.figure.axes[0].get_ylabel()


def test_an_executed_notebook_shows_the_picture_without_a_kernel(networks):
    """The picture is an output of the cell, not the state of a widget."""
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output

    InteractiveShell.instance()
    try:
        with capture_output() as captured:
            box = explorer.masks(networks)
            controls(box)["sparsity"].value = 0.5
    finally:
        InteractiveShell.clear_instance()
    first, second = captured.outputs
    assert type(box.figure).__name__ in first.data["text/plain"]
    assert not first.update and second.update
    assert first.transient["display_id"] == second.transient["display_id"]
