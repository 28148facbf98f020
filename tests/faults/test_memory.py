"""What is trained stays within its memory: in processes that check theirs."""

import ctypes.util
import os
import subprocess
import sys

import pytest
from jobs import ROOT

NARROW = """
import torch
from robustlib import Evaluation, Pretrain, Ticket, Transfer, run
few = {"n_train": 40, "batch_size": 8}
robust = {"objective": "pgd", "eps": 0.1}
for side in (8, 64):
    narrow = Pretrain("digits", width=4, stem_stride=1, size=side, epochs=1, **few, **robust)
    wide = Pretrain("digits", width=16, stem_stride=1, size=side, epochs=0)
    nets = [Transfer(Ticket(narrow), "digits", epochs=1, **few)]
    for sparsity in (0.5, 0.75):
        ticket = Ticket(wide, pattern="channel", scope="layer", sparsity=sparsity)
        nets.append(Transfer(ticket, "digits", epochs=2, **few))
    for net in nets:
        run(Evaluation(net, "adversarial", attack="cheap", eps=0.1, limit=4))
    drawn = Ticket(narrow, "lmp", sparsity=0.5, dataset="digits", epochs=1, **few)
    run(Transfer(drawn, "digits", epochs=1, **few))
net = Pretrain("digits", width=4, stem_stride=1, size=8, epochs=0)
run(Transfer(Ticket(net), "glyphs_seg", "segment", n_train=40, epochs=2, batch_size=4))
print(len([torch.randn(n) for n in range(1, 2000)]))
"""


@pytest.mark.parametrize("instructions", ["", "AVX2"])
def test_narrow_networks_do_not_corrupt_memory(instructions, tmp_path):
    """In channels_last torch 2.14 writes beyond its memory here; glibc notices when it checks, from
    2.34 on through a library of its own. With AVX2 the layers that do so are others."""
    environment = {**os.environ, "MALLOC_CHECK_": "3", "ROBUSTLIB_STORE": str(tmp_path)}
    environment |= {"LD_PRELOAD": ctypes.util.find_library("c_malloc_debug") or ""}
    environment |= {"ONEDNN_MAX_CPU_ISA": instructions, "TQDM_DISABLE": "1"}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(
        [sys.executable, "-c", NARROW], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.split()[-1:] == ["1999"], done.stderr[-500:]
