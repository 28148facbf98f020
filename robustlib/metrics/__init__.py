"""Measures of a network on data, beyond accuracy on clean images: one module a suite of Evaluation.

Each has `measure(model, data, spec, *, other, against)`: of the network of `spec.of`, on the set
that it was made for, with the network of `spec.other` and the images of `spec.against`. It returns
a row, a flat dict of numbers, and tables by name, each a list of dicts. With a `limit` all networks
are measured on the same images (`sample`). A model is left as it was, and so is the caller's random
generator. What needs a large library imports it when it is called.
"""
