"""From a spec to its artifact: `run`, and one module a kind of spec.

Each module has `data(spec)`, the images that the stage takes, with what is refused about them
before any work; `compute(spec, inputs)`, from the artifacts of what the spec is built on to
(row, tensors, extra); and, but for an evaluation, `tested(spec)`, the field and the set that its
network is measured on, and `network(spec, inputs)`, that network and its mask.
"""

from robustlib.stages.run import layers, mask, network, run

__all__ = ["layers", "mask", "network", "run"]
