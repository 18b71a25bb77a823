"""Test the region head: packing of regions, blanking of pixels, frozen stages and devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vlbert_jax.batch import PIXEL_MEANS
from vlbert_jax.model.config import BackboneConfig, RegionHeadConfig, RoIOptions
from vlbert_jax.model.region_head import RegionHead, prepare_pixels
from vlbert_jax.model.resnet import WIDE, ConvNorm, Stage, max_pool, relu, tiled_convolution
from vlbert_jax.model.roi import pool_regions, roi_align
from vlbert_jax.training.step import LEAST_MEMORY

B, R = 8, 5


@functools.cache
def region_head(frozen_stages=(), **roi):
    """Return the graph and state of a tiny region head; `roi` are fields of RoIOptions."""
    backbone = BackboneConfig(
        stem_width=4,
        widths=(2, 3, 4, 4),
        blocks=(1, 1, 1, 1),
        strides=(1, 2, 2),
        stride_in_1x1=True,
        frozen_stages=frozen_stages,
    )
    options = RegionHeadConfig(hidden_size=8, backbone=backbone, roi=RoIOptions(**dict(size=4, chunk=3) | roi))
    return nnx.split(RegionHead(options, nnx.Rngs(0)))


@pytest.fixture
def inputs():
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 30, (B, R, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(4, 30, (B, R, 2))], -1).astype(np.float32)
    mask = np.arange(R) < rng.integers(1, R + 1, (B, 1))
    pixels = rng.normal(size=(B, 64, 64, 3)).astype(np.float32) * 50
    return jnp.asarray(pixels), jnp.asarray(boxes), jnp.asarray(mask)


@functools.partial(jax.jit, static_argnames="graphdef")
def pooled(graphdef, state, pixels, boxes, mask):
    return nnx.merge(graphdef, state).appearance(pixels, boxes, mask)


def test_chunks_and_recomputation_do_not_change_results(inputs):
    """Chunks of three regions with recomputation of C5 give the same features and gradients."""
    results = []
    for options in (dict(chunk=100), dict(chunk=3, remat=True)):
        graphdef, state = region_head(**options)

        def loss(state, graphdef=graphdef):
            return jnp.sum(pooled(graphdef, state, *inputs) ** 2)

        gradient = jax.jit(jax.grad(loss))(state)
        results.append((pooled(graphdef, state, *inputs), gradient["backbone"]["stem"]["kernel"][...]))
    (whole, kernel), (chunked, other_kernel) = results
    np.testing.assert_allclose(chunked, whole, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(other_kernel, kernel, rtol=1e-4, atol=1e-4 * np.abs(kernel).max())


@pytest.mark.parametrize("shape", [(2, 7, 6, 3), (1, 14, 14, 8), (3, 1, 5, 2), (1, 9, 17, 4)])
@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_a_convolution_by_tiles(shape, dilation):
    """It and its gradients are those of XLA's convolution, in float64 to 1e-12, with maps of any size."""
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x, kernel, gradient = (
            jnp.asarray(rng.standard_normal(sides)) for sides in (shape, (3, 3, shape[-1], 5), (*shape[:-1], 5))
        )

        def convolution(x, kernel):
            pad = [(dilation, dilation)] * 2
            names = ("NHWC", "HWIO", "NHWC")
            return jax.lax.conv_general_dilated(
                x, kernel, (1, 1), pad, rhs_dilation=(dilation, dilation), dimension_numbers=names
            )

        results = []
        for way in (functools.partial(tiled_convolution, dilation=dilation), convolution):
            y, pullback = jax.vjp(way, x, kernel)
            results.append((y, *pullback(gradient)))
    for name, a, b in zip(("output", "input", "kernel"), *results, strict=True):
        assert a.dtype == jnp.float64
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-12 * np.abs(b).max(), err_msg=name)
    assert not np.array_equal(results[0][0], results[1][0])  # another order of sums


def test_tiles_lose_few_digits():
    """In float32 the error is some times that of a convolution; bfloat16 is computed in float32."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(np.maximum(rng.standard_normal((1, 16, 16, WIDE)), 0), jnp.float32)
    kernel = jnp.asarray(rng.standard_normal((3, 3, WIDE, WIDE)) / (3 * WIDE**0.5), jnp.float32)
    with jax.enable_x64(True):
        exact = np.asarray(tiled_convolution(x.astype(jnp.float64), kernel.astype(jnp.float64), 1))
    np.testing.assert_allclose(tiled_convolution(x, kernel, 1), exact, rtol=0, atol=3e-5 * exact.std())
    coarse = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    found = tiled_convolution(*coarse, 1)
    assert found.dtype == jnp.bfloat16
    expected = tiled_convolution(*(part.astype(jnp.float32) for part in coarse), 1)
    np.testing.assert_array_equal(found, expected.astype(jnp.bfloat16))


@pytest.mark.parametrize("stride, dilation, inputs", [(1, 1, WIDE), (1, 2, 3), (1, 1, WIDE - 1), (2, 1, WIDE)])
def test_convolutions_that_are_computed_by_tiles(stride, dilation, inputs):
    """They have stride 1, and are wide or dilated."""
    layer = ConvNorm(inputs, 5, 3, stride=stride, dilation=dilation, dtype=jnp.float32, rngs=nnx.Rngs(0))
    program = jax.jit(layer.__call__).lower(jnp.ones((1, 8, 8, inputs))).as_text()
    assert ("convolution" not in program) == (stride == 1 and (dilation > 1 or inputs >= WIDE))


def test_kernels_are_not_stored_for_each_chunk():
    """With four more chunks of regions, the backward pass needs less memory than four copies of C5."""
    graphdef, state = nnx.split(Stage(32, 32, 1, dilation=2, stride_in_1x1=True, dtype=jnp.float32, rngs=nnx.Rngs(0)))
    kernels = sum(array.nbytes for array in jax.tree.leaves(state))

    def memory(regions: int) -> int:
        boxes, mask = jnp.tile(jnp.array([0.0, 0, 32, 32]), (1, regions, 1)), jnp.ones((1, regions), bool)

        def loss(state, feature_map):
            options = RoIOptions(size=2, chunk=1)
            return pool_regions(graphdef, options, 1 / 16, state, feature_map, None, boxes, mask, None).sum()

        program = jax.jit(jax.grad(loss)).lower(state, jnp.ones((1, 4, 4, 32))).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert memory(9) - memory(5) < 2 * kernels


def test_a_stage_keeps_two_arrays_of_each_convolution_at_most():
    """The backward pass of 12 blocks, as an update orders it, needs 22 maps of their size.

    With the products of earlier blocks or the tiles of the forward pass there would be 45 or more.
    """
    graphdef, state = nnx.split(
        Stage(4 * WIDE, WIDE, 12, stride_in_1x1=True, dtype=jnp.float32, rngs=nnx.Rngs(0))
    )
    x = jnp.ones((1, 24, 24, 4 * WIDE))
    gradient = jax.jit(jax.grad(lambda state, x: nnx.merge(graphdef, state)(x).sum()))
    program = gradient.lower(state, x).compile(LEAST_MEMORY)
    assert program.memory_analysis().temp_size_in_bytes < 30 * x.nbytes


@pytest.mark.parametrize("never", [None, jnp.array(False)])
def test_relu(never):
    """Outputs and gradients are those of jax.nn.relu, at zero and for NaN, too."""
    x = jnp.array([-1.0, 0.0, 2.0, jnp.nan, 3.0, -jnp.inf, jnp.inf, 1.0]).reshape(1, 2, 2, 2)
    for start in (x, x[:, ::-1], -x):
        np.testing.assert_array_equal(relu(start, never), jax.nn.relu(start))
        ours, theirs = (jax.vjp(f, start)[1](3 * jnp.ones_like(x))[0] for f in (lambda x: relu(x, never), jax.nn.relu))
        np.testing.assert_array_equal(ours, theirs)


def test_regions_of_one_image_and_of_several():
    """One map is multiplied without a copy for each region; values and gradients are those among several maps."""
    rng = np.random.default_rng(0)
    maps, boxes = rng.normal(size=(2, 9, 12, 8)).astype(np.float32), jnp.array([[3.0, 5, 90, 70], [40, 0, 180, 140]])

    def pooled(maps):
        return roi_align(maps, boxes, jnp.zeros(2, jnp.int32), (4, 4))

    (alone, of_one), (among, of_two) = (jax.vjp(pooled, x) for x in (maps[:1], maps))
    np.testing.assert_allclose(alone, among, atol=1e-6)
    np.testing.assert_allclose(of_one(alone)[0][0], of_two(alone)[0][0], atol=1e-5)


@pytest.mark.parametrize("sides", [(8, 6), (7, 6), (8, 5), (1, 3)], ids=str)
def test_max_pool(sides):
    """The result is the maximum of each window, and the largest entry gets the gradient."""
    x = np.random.default_rng(0).permutation(2 * sides[0] * sides[1]).reshape(1, *sides, 2) - 5.0
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    starts = [range(0, side, 2) for side in sides]
    windows = [[padded[:, i : i + 3, j : j + 3] for j in starts[1]] for i in starts[0]]
    expected = np.stack([np.stack([w.max((1, 2)) for w in row], 1) for row in windows], 1)
    np.testing.assert_array_equal(max_pool(jnp.asarray(x)), expected)
    gradient = jax.grad(lambda x: max_pool(x).sum())(jnp.asarray(x))
    counts = [(x == top).astype(int) for top in expected.reshape(-1, 2)]
    np.testing.assert_array_equal(gradient, sum(counts))


def test_a_region_does_not_depend_on_others(inputs):
    pixels, boxes, mask = inputs
    graphdef, state = region_head()
    together = pooled(graphdef, state, pixels, boxes, mask)
    for i in range(R):
        alone = pooled(graphdef, state, pixels, boxes[:, i : i + 1], mask[:, i : i + 1])
        np.testing.assert_allclose(together[:, i], alone[:, 0], rtol=1e-5, atol=1e-5)
    assert not np.any(together[~np.asarray(mask)])


def test_eight_devices_agree_with_one(inputs):
    graphdef, state = region_head()
    alone = pooled(graphdef, state, *inputs)
    mesh = jax.make_mesh((4, 2, 1), ("data", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3)
    spread = jax.sharding.NamedSharding(mesh, jax.P(("data", "fsdp")))
    with jax.set_mesh(mesh):
        run = jax.jit(lambda state, *inputs: nnx.merge(graphdef, state).appearance(*inputs))
        lowered = run.lower(state, *jax.device_put(inputs, spread))
        together = run(state, *jax.device_put(inputs, spread))
    np.testing.assert_allclose(together, alone, rtol=1e-5, atol=1e-5)
    text = lowered.compile().as_text()
    assert "all-gather" not in text and "all-to-all" not in text  # each device packs only its own regions


@pytest.mark.parametrize("frozen, first", [((1, 2), 3), ((2, 5), 1), ((1, 2, 3, 4, 5), 6)])
def test_gradients_end_at_the_first_trained_stage(frozen, first, inputs):
    """Frozen stages after the first trained stage have gradients; stages before it have none."""
    graphdef, state = region_head(frozen_stages=frozen, frozen=first == 6)
    gradient = jax.jit(jax.grad(lambda state: jnp.sum(pooled(graphdef, state, *inputs) ** 2)))(state)
    reached = dict.fromkeys(range(1, 6), False)
    for path, kernel in nnx.to_flat_state(gradient):
        if path[-1] == "kernel" and path[0] in ("c5", "backbone"):
            stage = 5 if path[0] == "c5" else 1 if path[1] == "stem" else 2 + path[2]
            reached[stage] |= bool(np.asarray(kernel[...]).any())
    assert reached == {stage: stage >= first for stage in range(1, 6)}


def test_blanked_pixels_and_padding():
    """Pixels of padding and of hidden boxes are 0; boxes are truncated and include both ends."""
    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (2, 20, 24, 3), np.uint8)
    size = np.array([[24, 18], [20, 20]], np.float32)
    boxes = np.array([[[0, 0, 23, 17], [3.9, 2.2, 7.0, 5.99], [6, 4, 10.5, 9]]] * 2, np.float32)
    hidden = np.array([[False, True, True], [False, False, True]])
    expected = image[..., ::-1].astype(np.float32) - np.asarray(PIXEL_MEANS, np.float32)
    for i, (width, height) in enumerate(size.astype(int)):
        expected[i, height:], expected[i, :, width:] = 0, 0
        for (x1, y1, x2, y2), gone in zip(boxes[i].astype(int), hidden[i], strict=True):
            if gone:
                expected[i, y1 : y2 + 1, x1 : x2 + 1] = 0
    found = prepare_pixels(jnp.asarray(image), jnp.asarray(size), jnp.asarray(boxes), jnp.asarray(hidden))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    prepared = jnp.asarray(expected)
    assert prepare_pixels(prepared, jnp.asarray(size), jnp.asarray(boxes), jnp.asarray(hidden)) is prepared


def test_an_unknown_operation_is_refused():
    with pytest.raises(ValueError, match="'align' or 'pool'"):
        RoIOptions(operation="crop")
