"""3x3 convolutions with a quarter of the products: F(4x4, 3x3) of Lavin and Gray (2016), for the CPU.

A tile of 4x4 outputs depends on 6x6 inputs. Tiles and kernels are transformed to 36 values each, by products with
constant matrices. Each value then needs one product over the channels, where the 16 outputs of a convolution need nine
each.
"""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

TAPS, OUTPUTS = 3, 4  # of a kernel and of a tile, in each direction
INPUTS = TAPS + OUTPUTS - 1  # of a tile
# Polynomials are evaluated at these points and at infinity. With 2 in place of 1/2 the errors double.
POINTS = (0, 1, -1, 1 / 2, -2)


def _transforms() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the matrices that transform inputs [36, 36] and kernels [36, 9], and that of outputs [16, 36]."""
    points = np.array(POINTS)

    def powers(number: int) -> np.ndarray:  # of each point; infinity has the highest one alone
        return np.vstack([points[:, None] ** np.arange(number), np.arange(number) == number - 1])

    differences = points[:, None] - points + np.eye(len(points))
    scale = np.append(differences.prod(1), 1)[:, None]  # larger numbers for inputs, smaller ones for kernels
    of_side = np.linalg.inv(powers(INPUTS)).T * scale, powers(TAPS) / scale, powers(OUTPUTS).T
    return tuple(np.kron(matrix, matrix) for matrix in of_side)


OF_INPUTS, OF_KERNEL, TO_OUTPUTS = _transforms()


def convolution(x: Float[Array, "b h w i"], kernel: Float[Array, "3 3 i o"], dilation: int) -> Float[Array, "b h w o"]:
    """Return the convolution with stride 1 and a padding of `dilation` zeros, linear in both arguments.

    It is computed in float32 or more: the transforms would lose most digits of bfloat16.
    """
    dtype, wide = x.dtype, jnp.promote_types(x.dtype, jnp.float32)
    x, kernel = x.astype(wide), kernel.astype(wide)
    batch, height, width, inputs = x.shape
    step = OUTPUTS * dilation
    rows, columns = -(-height // step), -(-width // step)  # of tiles
    pad = [(dilation, (number + 1) * step - dilation - side) for number, side in ((rows, height), (columns, width))]
    # A tile has every `dilation`-th cell: four rows and columns of its own, and two of the next tile.
    x = jnp.pad(x, ((0, 0), *pad, (0, 0)))
    x = x.reshape(batch, rows + 1, OUTPUTS, dilation, columns + 1, OUTPUTS, dilation, inputs)
    x = jnp.concatenate([x[:, :-1], x[:, 1:, : TAPS - 1]], axis=2)
    x = jnp.concatenate([x[:, :, :, :, :-1], x[:, :, :, :, 1:, : TAPS - 1]], axis=5)
    x = x.transpose(2, 5, 0, 1, 3, 4, 6, 7).reshape(INPUTS**2, -1)
    tiles = (OF_INPUTS.astype(wide) @ x).reshape(INPUTS**2, -1, inputs)
    values = (OF_KERNEL.astype(wide) @ kernel.reshape(TAPS**2, -1)).reshape(INPUTS**2, inputs, -1)
    y = jnp.einsum("vti,vio->vto", tiles, values)
    y = TO_OUTPUTS.astype(wide) @ y.reshape(INPUTS**2, -1)
    y = y.reshape(OUTPUTS, OUTPUTS, batch, rows, dilation, columns, dilation, -1).transpose(2, 3, 0, 4, 5, 1, 6, 7)
    return y.reshape(batch, rows * step, columns * step, -1)[:, :height, :width].astype(dtype)
