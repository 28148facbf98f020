"""From a spec to its artifact: `run`, and one module a kind of spec.

Each module has `data(spec)`: the images that the stage takes, and what is refused about them before
any work; and `compute(spec, inputs)`: from the artifacts of what the spec is built on to (row,
tensors, extra). All but evaluation have `network(spec, inputs)`: the network that the spec ends
with, in eval mode, and its mask; and `images(spec)`: the set that this network is measured on.
"""

from robustlib.stages.run import layers, mask, network, run

__all__ = ["layers", "mask", "network", "run"]
