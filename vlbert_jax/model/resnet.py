"""ResNet stages with fixed batch-norm statistics (He et al., 2016; torchvision layout), NHWC."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from vlbert_jax.model import winograd

Folded = tuple[Float[Array, "_ _ _ _"], Float[Array, "_"]]  # kernel and shift of a convolution with its norm
EXPANSION = 4  # channels of the output of a bottleneck, relative to its width
BATCH_NORM_EPSILON = 1e-5
# In a model from scratch these keep activations near unit variance, as batch statistics would.
PIXEL_VARIANCE = 60.0**2
BRANCH_GAIN = 0.3
WIDE = 128  # input channels from which a 3x3 convolution is Winograd's on a CPU


class ConvNorm(nnx.Module):
    """A convolution without bias, then batch norm with constant statistics.

    Both are linear, so the norm's scale is folded into the kernel: the activation is touched once.
    """

    def __init__(
        self, inputs: int, outputs: int, size: int, *, stride=1, dilation=1, gain=1.0, variance=1.0, dtype, rngs
    ):
        self.stride, self.dilation, self.dtype = stride, dilation, dtype
        self.padding = dilation * (size - 1) // 2  # symmetric, as in PyTorch
        deviation = math.sqrt(2 / (size * size * inputs))
        kernel = jax.random.normal(rngs.params(), (size, size, inputs, outputs)) * deviation
        self.kernel = nnx.Param(kernel, axes=(None, None, "conv_in", "conv_out"))
        self.gain = nnx.Param(jnp.full(outputs, gain, jnp.float32), axes=("conv_out",))
        self.offset = nnx.Param(jnp.zeros(outputs), axes=("conv_out",))
        self.mean = nnx.BatchStat(jnp.zeros(outputs), axes=("conv_out",))
        self.variance = nnx.BatchStat(jnp.full(outputs, variance, jnp.float32), axes=("conv_out",))

    def folded(self) -> Folded:
        """Return the kernel times the scale of the norm, and what the norm adds, in float32."""
        # XLA approximates rsqrt, and computes 1 / sqrt(x) as rsqrt; an error of the scale is the same in every pixel.
        scale = self.gain[...] * jnp.sqrt(1 / (self.variance[...] + BATCH_NORM_EPSILON))
        return self.kernel[...] * scale[None, None, None], self.offset[...] - self.mean[...] * scale

    def __call__(self, x: Float[Array, "b h w i"], folded: Folded | None = None) -> Float[Array, "b p q o"]:
        kernel, shift = folded or self.folded()
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        size, _, inputs, _ = kernel.shape
        if size == 1:  # a matrix product is several times faster in the backward pass on a CPU
            x = _product(x[:, :: self.stride, :: self.stride], kernel[0, 0])
        elif size == winograd.TAPS and self.stride == 1 and (self.dilation > 1 or inputs >= WIDE):
            x = tiled_convolution(x, kernel, self.dilation)
        else:
            x = _convolution(x, kernel, self.stride, self.padding, self.dilation)
        return x + shift.astype(self.dtype)[None, None, None]


@jax.custom_jvp
def relu(x: Float[Array, "b h w c"], never: Bool[Array, ""] | None = None) -> Float[Array, "b h w c"]:
    """Return max(x, 0), whose backward pass reads the output, as that of the next convolution does, and not the input.

    `never` is given for outputs that a later sum reads again. It is false, which the compiler does not know.
    """
    y = jnp.maximum(x, 0)
    return y if never is None else jax.lax.platform_dependent(y, never, cpu=_kept, default=lambda y, _: y)


@relu.defjvp
def _relu_jvp(primals, tangents):
    y = relu(*primals)
    return y, jnp.where(y > 0, tangents[0], 0)


def _kept(y: Float[Array, "b h w c"], never: Bool[Array, ""]) -> Float[Array, "b h w c"]:
    """Return y, which XLA's CPU backend then computes once and keeps.

    It would compute the output of every earlier block again for the sum of each block, and keep the products of all of
    them. It removes optimization barriers, but no conditional with a branch, which never runs, that is not elementwise.
    """
    return jax.lax.cond(never, lambda y: jax.lax.rev(y, (1,)), lambda y: y, y)


def _product(x: Float[Array, "b h w i"], kernel: Float[Array, "i o"]) -> Float[Array, "b h w o"]:
    """Return the product of two dimensions.

    With four dimensions, XLA's CPU backend computes the gradient of the kernel at 60 % of the speed.
    """
    return (x.reshape(-1, x.shape[-1]) @ kernel).reshape(*x.shape[:-1], -1)


def _convolution(x, kernel, stride: int, padding: int, dilation: int):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=[(padding, padding)] * 2,
        rhs_dilation=(dilation, dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def tiled_convolution(
    x: Float[Array, "b h w i"], kernel: Float[Array, "3 3 i o"], dilation: int
) -> Float[Array, "b h w o"]:
    """Return the 3x3 convolution with stride 1 and a padding of `dilation` zeros, on a CPU by tiles.

    The gradients of XLA's CPU backend are slower still: that of a kernel is a convolution whose window is the whole
    map, and in a loop (C5) it compiles a naive one, 200 times slower.
    """
    by_tiles, direct = (functools.partial(way, dilation=dilation) for way in (winograd.convolution, _dilated))
    return jax.lax.platform_dependent(x, kernel, cpu=by_tiles, default=direct)


def _dilated(x, kernel, dilation: int):
    return _convolution(x, kernel, 1, dilation, dilation)


def _forward(x, kernel, dilation: int):
    return tiled_convolution(x, kernel, dilation), (x, kernel)


def _backward(dilation: int, residuals, gradient):
    def by(way: Callable, x, kernel, gradient):
        # A transposed function does not compute the convolution itself again, as a vjp would until XLA removes it.
        of_x = jax.linear_transpose(lambda x: way(x, kernel, dilation), x)
        of_kernel = jax.linear_transpose(lambda kernel: way(x, kernel, dilation), kernel)
        return *of_x(gradient), *of_kernel(gradient)

    def by_tiles(x, kernel, gradient):
        never = jnp.isnan(kernel[0, 0, 0, 0])  # XLA would keep the tiles of the forward pass
        return by(winograd.convolution, _kept(x, never), _kept(kernel, never), gradient)

    return jax.lax.platform_dependent(*residuals, gradient, cpu=by_tiles, default=functools.partial(by, _dilated))


tiled_convolution.defvjp(_forward, _backward)


class Bottleneck(nnx.Module):
    """1x1, 3x3, 1x1 with a shortcut. The stride is in the first 1x1 (Caffe) or in the 3x3 (torchvision)."""

    def __init__(self, inputs: int, width: int, *, stride: int, dilation: int, stride_in_1x1: bool, dtype, rngs):
        outer, inner = (stride, 1) if stride_in_1x1 else (1, stride)
        outputs = width * EXPANSION
        self.conv1 = ConvNorm(inputs, width, 1, stride=outer, dtype=dtype, rngs=rngs)
        self.conv2 = ConvNorm(width, width, 3, stride=inner, dilation=dilation, dtype=dtype, rngs=rngs)
        self.conv3 = ConvNorm(width, outputs, 1, gain=BRANCH_GAIN, dtype=dtype, rngs=rngs)
        project = stride != 1 or inputs != outputs
        self.shortcut = ConvNorm(inputs, outputs, 1, stride=stride, dtype=dtype, rngs=rngs) if project else None

    def folded(self) -> dict[str, Folded]:
        """Return the folded convolutions by their names."""
        names = ("conv1", "conv2", "conv3", *(() if self.shortcut is None else ("shortcut",)))
        return {name: getattr(self, name).folded() for name in names}

    def __call__(
        self,
        x: Float[Array, "b h w i"],
        folded: Mapping[str, Folded],
        cells: Int[Array, "b 2"] | None = None,
    ) -> Float[Array, "b p q o"]:
        """Return the output; only `cells` (rows, columns) of x are of the image, others are zeros for the 3x3."""
        shortcut = x if self.shortcut is None else self.shortcut(x, folded["shortcut"])
        x = relu(self.conv1(x, folded["conv1"]))
        if cells is not None:
            x = zero_beyond(x, -(-cells // self.conv1.stride))
        x = relu(self.conv2(x, folded["conv2"]))
        return relu(self.conv3(x, folded["conv3"]) + shortcut, self.conv3.variance[...][0] < 0)


class Stage(nnx.Module):
    """Bottlenecks of one width; the first has the stride and, where shapes change, a projected shortcut."""

    def __init__(self, inputs: int, width: int, blocks: int, *, stride=1, dilation=1, stride_in_1x1, dtype, rngs):
        self.stride = stride
        self.blocks = nnx.List([])
        for i in range(blocks):
            self.blocks.append(
                Bottleneck(
                    inputs if i == 0 else width * EXPANSION,
                    width,
                    stride=stride if i == 0 else 1,
                    dilation=dilation,
                    stride_in_1x1=stride_in_1x1,
                    dtype=dtype,
                    rngs=rngs,
                )
            )

    def folded(self) -> list[dict[str, Folded]]:
        """Return the folded convolutions of each block, for a loop that reads them many times."""
        return [block.folded() for block in self.blocks]

    def __call__(
        self,
        x: Float[Array, "b h w i"],
        cells: Int[Array, "b 2"] | None = None,
        folded: Sequence[Mapping[str, Folded]] | None = None,
    ) -> Float[Array, "b p q o"]:
        for i, (block, of_block) in enumerate(zip(self.blocks, folded or self.folded(), strict=True)):
            x = block(x, of_block, cells)
            if cells is not None and i == 0:
                cells = -(-cells // self.stride)
        return x


def zero_beyond(x: Float[Array, "b h w c"], cells: Int[Array, "b 2"]) -> Float[Array, "b h w c"]:
    """Return x with zeros outside the first (rows, columns) of each map."""
    rows = jnp.arange(x.shape[1])[None] < cells[:, :1]
    columns = jnp.arange(x.shape[2])[None] < cells[:, 1:]
    return jnp.where((rows[:, :, None] & columns[:, None])[..., None], x, 0)


def max_pool(x: Float[Array, "b h w c"], caffe: bool = False) -> Float[Array, "b p q c"]:
    """Max-pool 3x3 with stride 2, padded by one (torchvision), or by none with a last window that overhangs (Caffe).

    It is computed as maxima of slices, rows then columns, because the CPU backend of XLA scatters the gradient of a
    window ten times slower.
    """
    before, after = (0, 1) if caffe else (1, 1)
    pad = [(0, 0), (before, after), (before, after), (0, 0)]
    x = jnp.pad(x, pad, constant_values=-jnp.inf)
    for axis in (1, 2):
        last = x.shape[axis] - 3  # the last window starts here or one before
        taps = [jax.lax.slice_in_dim(x, i, last + i + 1, 2, axis) for i in range(3)]
        x = functools.reduce(jnp.maximum, taps)
    return x


class Backbone(nnx.Module):
    """Stem and stages C2 to C4: an image to a feature map, stride 16 with the default strides.

    `caffe_max_pool` selects the pooling of the detector after the stem, whose map starts and may end elsewhere.
    """

    def __init__(
        self,
        *,
        stem_width: int,
        widths: tuple[int, ...],
        blocks: tuple[int, ...],
        strides: tuple[int, ...],
        stride_in_1x1: bool,
        frozen_stages: tuple[int, ...],
        caffe_max_pool: bool = False,
        dtype,
        rngs: nnx.Rngs,
    ):
        self.caffe_max_pool = caffe_max_pool
        self.frozen_stages = frozenset(frozen_stages)
        self.stem = ConvNorm(3, stem_width, 7, stride=2, variance=PIXEL_VARIANCE, dtype=dtype, rngs=rngs)
        self.stages = nnx.List([])
        inputs = stem_width
        for width, count, stride in zip(widths, blocks, strides, strict=True):
            self.stages.append(
                Stage(inputs, width, count, stride=stride, stride_in_1x1=stride_in_1x1, dtype=dtype, rngs=rngs)
            )
            inputs = width * EXPANSION
        self.stride = 4 * math.prod(strides)  # pixels per cell
        self.outputs = inputs

    def __call__(
        self, pixels: Float[Array, "b y x 3"], image_size: Int[Array, "b 2"] | None = None
    ) -> Float[Array, "b h w c"]:
        """Return the feature map of pixels that are BGR minus the pixel means.

        With `image_size` (width, height), the part of the map that belongs to an image is what the image alone would
        give: every convolution reads zeros beyond it. Without it, as in the official code, padding has any value.
        """
        x, cells = relu(self.stem(pixels)), None
        if image_size is not None:
            cells = self._stem_cells(image_size)
            x = zero_beyond(x, cells)
            cells = self._pooled(cells)
        x = self._freeze(max_pool(x, self.caffe_max_pool), stage=1)
        for number, stage in enumerate(self.stages, start=2):
            x = self._freeze(stage(x, cells), stage=number)
            cells = None if cells is None else -(-cells // stage.stride)
        return x

    def cells(self, image_size: Int[Array, "b 2"]) -> Int[Array, "b 2"]:
        """Return the (rows, columns) of the map that belong to images of (width, height) pixels."""
        cells = self._pooled(self._stem_cells(image_size))
        for stage in self.stages:
            cells = -(-cells // stage.stride)
        return cells

    def _stem_cells(self, image_size):
        return -(-image_size[:, ::-1] // 2)

    def _pooled(self, cells):
        return cells // 2 if self.caffe_max_pool else -(-cells // 2)

    def _freeze(self, x, stage: int):
        # After frozen stages alone no gradient is needed; after trained ones it passes a frozen stage.
        return jax.lax.stop_gradient(x) if self.frozen_stages.issuperset(range(1, stage + 1)) else x
