"""The structure of a module without its numbers."""

from collections.abc import Callable
from typing import TypeVar

import numpy as np
from flax import nnx

Module = TypeVar("Module", bound=nnx.Module)


def structure_of(make: Callable[[nnx.Rngs], Module]) -> Module:
    """Return the module that `make` returns, with shapes and dtypes in place of arrays; nothing is computed.

    Flax compares the shardings of its count of random numbers before and after each of them. While a function is
    traced they have none, and JAX searches everything that was traced for the text of that error: most of the time of
    a ResNet. A count that NumPy holds is not compared. Its numbers are not those of `nnx.Rngs`.
    """

    def build() -> Module:
        rngs = nnx.Rngs(0)
        rngs["default"].count.set_value(np.zeros((), np.uint32))
        return make(rngs)

    return nnx.eval_shape(build)
