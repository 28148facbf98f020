"""The public face: what a newcomer imports, and masks of networks that are none of ours."""

import inspect
import subprocess
import sys

import pytest
import torch
from torch import nn

import robustlib
import robustlib.tickets
from robustlib import Mask, Pretrain, Ticket, Transfer, run


def test_the_names_are_where_the_documentation_says():
    from robustlib import stages, tickets

    assert run is stages.run and robustlib.network is stages.network
    assert Mask is tickets.Mask
    assert set(robustlib.__all__) >= {"Mask", "Pretrain", "Ticket", "Transfer", "network", "run"}
    for name in robustlib.__all__:
        assert callable(getattr(robustlib, name)), name
    with pytest.raises(AttributeError, match="'rum'"):
        robustlib.rum  # noqa: B018 - asking for it is the test


def test_a_spec_reads_as_a_sentence():
    spec = Transfer(Ticket(Pretrain("digits"), "omp", sparsity=0.8), "mnist", "linear", n_train=50)
    assert (spec.ticket.pretrain.source, spec.ticket.scheme) == ("digits", "omp")
    assert (spec.task, spec.mode, spec.n_train, spec.ticket.sparsity) == (
        "mnist",
        "linear",
        50,
        0.8,
    )


def test_the_signature_of_omp_is_kept():
    """Code outside the library calls it with these names and leans on these defaults."""
    parameters = inspect.signature(robustlib.tickets.omp).parameters.values()
    given = {p.name: p.default for p in parameters}
    assert list(given)[:4] == ["model", "sparsity", "pattern", "scope"]
    assert inspect.Parameter.empty not in list(given.values())[2:]
    assert (given["pattern"], given["scope"]) == ("unstructured", "global")


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_omp_on_any_module_is_a_mapping_from_names_to_booleans(scope):
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.ModuleDict({"a": nn.Conv2d(2, 3, 2), "b": nn.Conv2d(2, 3, 2)})
            self.scale = nn.Parameter(torch.zeros(3))

    model = Odd()
    with torch.no_grad():
        for i, conv in enumerate(model.inner.values()):
            conv.weight.copy_(torch.arange(1.0, 25).view(3, 2, 2, 2) + 24 * i)
    mask = robustlib.tickets.omp(model, 0.25, pattern="unstructured", scope=scope)
    assert isinstance(mask, Mask) and dict(mask) == {n: mask[n] for n in mask}
    assert list(mask) == ["inner.a.weight", "inner.b.weight"]
    removed = [int((~m).sum()) for m in mask.values()]
    assert removed == ([12, 0] if scope == "global" else [6, 6])
    for m in mask.values():
        assert m.dtype == torch.bool and m.shape == (3, 2, 2, 2)
    assert not mask["inner.a.weight"].flatten()[: removed[0]].any()


def test_a_single_convolution_is_a_module_too():
    conv = nn.Conv2d(1, 4, 1, bias=False)
    mask = robustlib.tickets.omp(conv, 0.5)
    assert list(mask) == ["weight"] and mask.apply(conv).weight.count_nonzero() == 2


def test_importing_the_library_loads_nothing_and_a_spec_no_torch():
    code = (
        "import sys; before = set(sys.modules); import robustlib; more = set(sys.modules) - before;"
        "assert not {m.split('.')[0] for m in more} & {'torch', 'numpy', 'pydantic'};"
        "assert {*robustlib.__all__, 'specs'} <= {*dir(robustlib)};"
        "assert robustlib.specs.Pretrain is robustlib.Pretrain;"
        "robustlib.Pretrain(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
