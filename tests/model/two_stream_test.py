"""The two-stream model: its pattern of blocks, what it leaves out, sequences and images, dropout, meshes."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest
from flax import nnx

from vlbert_jax.model.two_stream import TwoStream, planned_runs
from vlbert_jax.model.two_stream_config import (
    STREAMS,
    TWO_STREAM_MODELS,
    StreamConfig,
    TwoStreamConfig,
    connected_layers,
)
from vlbert_jax.training import sharding

COMMON = dict(vocab_size=50, max_positions=12, feature_size=10, dropout_rate=0.3)
SMALL = {
    "lxmert": TwoStreamConfig(
        layers=(("t", 2), ("v", 2), ("xtv", 3)), text=StreamConfig(16, 2, 24), visual=StreamConfig(16, 2, 24),
        cross_size=16, cross_heads=2, pool_size=16, **COMMON,
    ),
    "vilbert": TwoStreamConfig(
        layers=connected_layers(5, 3, (2, 3, 4), (0, 1, 2)), text=StreamConfig(16, 2, 24),
        visual=StreamConfig(24, 3, 32), cross_size=32, cross_heads=4, shared_cross=False, visual_norm="sum",
        geometry_size=5, pool="mul", pool_size=8, task_tokens=4, **COMMON,
    ),
}  # fmt: skip
B, N, T, R = 2, 3, 7, 5


def make(name, **changes):
    config = dataclasses.replace(SMALL[name], **changes)
    return TwoStream(config, nnx.Rngs(0))


@nnx.jit(static_argnames="wanted")
def forward(model, inputs, key=None, wanted=STREAMS):
    return model(**inputs, key=key, wanted=wanted)


def measure(states):
    """Return a number that depends on the states; the sum of squares after a layer norm would not."""
    return jnp.sum(jnp.sin(3 * states))


def arguments(config, examples=B, images=1):
    rng = np.random.default_rng(0)
    fields = dict(
        token_ids=rng.integers(0, config.vocab_size, (examples, N, T)),
        segment_ids=rng.integers(0, 2, (examples, N, T)),
        position_ids=np.broadcast_to(np.arange(T), (examples, N, T)),
        word_mask=np.arange(T) < rng.integers(2, T + 1, (examples, N, 1)),
        features=rng.normal(size=(examples, images, R, config.feature_size)).astype(np.float32),
        geometry=rng.uniform(size=(examples, images, R, config.geometry_size)).astype(np.float32),
        region_mask=np.arange(R) < rng.integers(1, R, (examples, images, 1)),
    )
    if config.task_tokens:
        fields["task"] = rng.integers(0, config.task_tokens, (examples, N))
    return {name: jnp.asarray(x, jnp.int32 if x.dtype.kind == "i" else x.dtype) for name, x in fields.items()}


@pytest.fixture(params=list(SMALL))
def name(request):
    return request.param


def close(ours, other, tolerance=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), ours, other)


def test_patterns_of_the_published_models():
    layers = {name: config.layers for name, config in TWO_STREAM_MODELS.items()}
    assert layers["lxmert"] == (("t", 9), ("v", 5), ("xtv", 5))
    assert layers["vilbert"] == (("t", 6), ("xf", 1), ("tvxf", 5), ("v", 1), ("t", 1))
    for connections in (2, 4, 8):
        regular = ("tvxf", connections - 1)
        expected = (("t", 12 - connections), ("xf", 1), regular, ("v", 1), ("t", 1))
        assert layers[f"vilbert_{connections}layer"] == expected


def test_irregular_connections():
    """Two text layers between the first connections; a text layer, but no visual layer, between the others."""
    word = "".join(kinds * times for kinds, times in connected_layers(5, 3, (1, 3, 4), (0, 1, 1)))
    assert word == "t" + "xf" + "tt" + "v" + "xf" + "t" + "xf" + "vv" + "t"


def test_blocks_that_nothing_reads_are_left_out():
    lxmert, vilbert = SMALL["lxmert"].layers, SMALL["vilbert"].layers
    assert planned_runs(lxmert, STREAMS) == [(0, 0, 2), (1, 0, 2), (2, 0, 3)]
    assert planned_runs(lxmert, ("text",)) == [(0, 0, 2), (1, 0, 2), (2, 0, 2), (2, 2, 3)]
    assert planned_runs(vilbert, ("text",)) == [(0, 0, 2), (1, 0, 1), (2, 0, 1), (2, 1, 2), (4, 0, 1)]
    assert [group for group, *_ in planned_runs(vilbert, ("visual",))] == [0, 1, 2, 2, 3]
    assert planned_runs((("t", 2), ("v", 1)), ("text",)) == [(0, 0, 2)]


@pytest.mark.slow
@pytest.mark.parametrize("wanted", [("text",), ("visual",)])
def test_leaving_out_changes_no_state(name, wanted):
    model = make(name)
    inputs = arguments(model.config)
    ours, both = forward(model, inputs, wanted=wanted), forward(model, inputs)
    (stream,) = wanted
    close(getattr(ours, stream), getattr(both, stream))
    assert (ours.text is None) != (ours.visual is None)


def test_leaving_out_saves_work():
    model = make("lxmert", scan_layers=False)  # the body of a loop is counted once
    inputs = arguments(model.config)
    graphdef, state = nnx.split(model)

    def flops(wanted):
        run = jax.jit(lambda state: nnx.merge(graphdef, state)(**inputs, wanted=wanted))
        return run.lower(state).cost_analysis()["flops"]

    both, block = flops(STREAMS), flops(("text",))
    assert 0.03 < (both - block) / both < 0.2  # a twentieth of the blocks, and half of a cross-attention


@pytest.mark.slow
def test_text_alone_passes_the_layers_of_words(name):
    """In a new model a norm of zeros, as of a region without content, would multiply the gradient by a million."""
    model = make(name)
    inputs = arguments(model.config)
    task, mask = inputs.get("task"), inputs["word_mask"]

    def text(model):
        return model.embed_words(*(inputs[name] for name in ("token_ids", "segment_ids", "position_ids")), task)

    def alone(model):
        return model.encode(text(model), mask, None, None, wanted=("text",))[0].text

    @nnx.jit
    def by_hand(model):
        words = text(model)
        seen = mask if task is None else jnp.concatenate([mask[..., :1], mask], axis=-1)
        x, bias = words.reshape(B * N, *words.shape[2:]), jnp.where(seen.reshape(B * N, -1), 0, -1e9)[:, None, None]
        for (kinds, times), group in zip(model.config.layers, model.encoder.groups, strict=True):
            for number in range(times if "t" in kinds else 0):
                graphdef, stacked = nnx.split(group.t)
                x, _ = nnx.merge(graphdef, jax.tree.map(lambda leaf, number=number: leaf[number], stacked))(x, bias)
        x = x.reshape(words.shape)
        return x if task is None else jnp.concatenate([x[:, :, :1], x[:, :, 2:]], axis=2)

    real = mask[..., None]
    close(*(jnp.where(real, states, 0) for states in (nnx.jit(alone)(model), by_hand(model))))
    gradients = nnx.jit(nnx.grad(lambda model: measure(alone(model))))(model)
    assert 1 < optax.tree.norm(gradients) < 10_000


@pytest.mark.slow
def test_what_is_left_out_gets_no_gradient():
    model = make("lxmert")
    inputs = arguments(model.config)
    gradients = nnx.jit(nnx.grad(lambda m: measure(m(**inputs, wanted=("text",)).text)))(model)
    for leaf in jax.tree.leaves(gradients["encoder"]["groups"][2]["v"]["intermediate"]):
        assert np.any(leaf[1]) and not np.any(leaf[2])


@pytest.mark.slow
def test_how_it_runs_changes_no_number(name):
    """Values and gradients are equal with dropout on, in as few blocks as have loops and a text layer between.

    One of the two also computes its activations again in the backward pass, which takes twice as long to compile.
    """
    few = dict(lxmert=(("t", 2), ("xtv", 2)), vilbert=connected_layers(3, 2, (1, 2), (0, 1)))
    remat = dict(lxmert="full", vilbert="none")

    def value_and_gradient(model):
        inputs = arguments(model.config)

        def loss(model):
            states = model(**inputs, key=jax.random.key(3))
            return measure(states.text) + measure(states.visual) + measure(model.pool(states))

        return nnx.jit(nnx.value_and_grad(loss))(model)

    value, gradient = value_and_gradient(make(name, layers=few[name], scan_layers=False))
    other, other_gradient = value_and_gradient(make(name, layers=few[name], remat=remat[name]))
    np.testing.assert_allclose(value, other, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3), gradient, other_gradient)


def test_dropout_follows_the_key(name):
    model = make(name)
    inputs = arguments(model.config)
    first, second = (forward(model, inputs, jax.random.key(seed)).text for seed in (0, 1))
    assert not np.allclose(first, second)
    np.testing.assert_array_equal(first, forward(model, inputs, jax.random.key(0)).text)
    assert not np.allclose(first, forward(model, inputs).text)


@pytest.mark.parametrize("images", [1, N])
def test_sequences_of_an_example(name, images):
    """Each sequence has the states that it has alone, with the image of all or its own."""
    model = make(name)
    inputs = arguments(model.config, images=images)
    together = forward(model, inputs)
    assert together.visual.shape[:2] == (B, N)
    for k in range(N):
        own = {
            field: x if field in ("features", "geometry", "region_mask") and images == 1 else x[:, k : k + 1]
            for field, x in inputs.items()
        }
        alone = forward(model, own)
        close((together.text[:, k], together.visual[:, k]), (alone.text[:, 0], alone.visual[:, 0]))
        close(model.pool(together)[:, k], model.pool(alone)[:, 0])


def test_padding_does_not_matter(name):
    model = make(name)
    inputs = arguments(model.config)
    other = inputs | dict(
        token_ids=jnp.where(inputs["word_mask"], inputs["token_ids"], 7),
        features=jnp.where(inputs["region_mask"][..., None], inputs["features"], 100.0),
        geometry=jnp.where(inputs["region_mask"][..., None], inputs["geometry"], 100.0),
    )
    ours, theirs = forward(model, inputs), forward(model, other)
    mask = np.asarray(inputs["word_mask"])
    close(np.asarray(ours.text)[mask], np.asarray(theirs.text)[mask])
    mask = np.broadcast_to(inputs["region_mask"], (B, N, R))
    close(np.asarray(ours.visual)[mask], np.asarray(theirs.visual)[mask])
    longer = {
        field: jnp.pad(x, [(0, 0), (0, 0), (0, 2)]) for field, x in inputs.items() if x.shape[-1] == T
    }
    close(forward(model, inputs | longer).text[:, :, :T], ours.text)


def test_states_are_read_by_position(name):
    """Words are at 0 to T - 1, also where the model inserts a task token; regions are at T to T + R - 1."""
    model = make(name)
    states = forward(model, arguments(model.config))
    assert states.text.shape[2] == T and states.visual.shape[2] == R
    positions = jnp.broadcast_to(jnp.array([0, 4]), (B, N, 2))
    np.testing.assert_array_equal(states.words(positions), states.text[:, :, [0, 4]])
    np.testing.assert_array_equal(states.regions(positions + T), states.visual[:, :, [0, 4]])


def test_the_task_changes_the_states():
    model = make("vilbert")
    inputs = arguments(model.config)
    other = forward(model, inputs | dict(task=(inputs["task"] + 1) % 4))
    assert not np.allclose(forward(model, inputs).text, other.text)


def test_still_rows_get_no_gradient():
    for tables in ((), ("token", "segment")):
        model = make("lxmert", still_rows=tables, layers=(("t", 1),))
        inputs = arguments(model.config) | dict(token_ids=jnp.zeros((B, N, T), jnp.int32))
        gradients = nnx.jit(nnx.grad(lambda m, inputs=inputs: measure(m(**inputs, wanted=("text",)).text)))(model)
        for table in ("token", "position", "segment"):
            assert np.any(gradients[f"{table}_embeddings"][...][0]) == (table not in tables)


@pytest.mark.slow
@pytest.mark.parametrize("name, sizes", [("lxmert", (1, 8, 1)), ("vilbert", (2, 2, 2))], ids=str)
def test_the_mesh_changes_neither_states_nor_gradients(name, sizes):
    model = make(name)
    inputs = jax.device_get(arguments(model.config, examples=8))
    graphdef, state = nnx.split(model)

    def loss(state, inputs):
        model = nnx.merge(graphdef, state)
        states = model(**inputs, key=jax.random.key(1))
        return measure(states.text) + measure(states.visual) + measure(model.pool(states)), states

    def run(mesh_sizes):
        axes = ml_collections.ConfigDict(dict(zip(("data", "fsdp", "tensor"), mesh_sizes, strict=True)))
        mesh = sharding.make_mesh(axes, jax.devices()[: math.prod(mesh_sizes)])
        places = sharding.tree_shardings(state, mesh)
        placed = jax.device_put(state, places)
        with jax.set_mesh(mesh):
            outputs = jax.jit(jax.value_and_grad(loss, has_aux=True))(placed, sharding.global_batch(inputs, mesh))
        return jax.device_get(outputs), placed

    ((value, states), gradients), _ = run((1, 1, 1))
    ((ours, our_states), mine), placed = run(sizes)
    np.testing.assert_allclose(ours, value, rtol=1e-5)
    close(our_states, states, 1e-4)
    largest = max(np.abs(gradient).max() for gradient in jax.tree.leaves(gradients))
    assert largest > 1
    for other, gradient in zip(jax.tree.leaves(mine), jax.tree.leaves(gradients), strict=True):
        # The gradient of the keys' bias is zero but for rounding, so the largest of all sets the least scale.
        scale = max(np.abs(gradient).max(), 1e-2 * largest)
        np.testing.assert_allclose(other, gradient, rtol=0, atol=2e-5 * scale)
    if sizes == (1, 8, 1):
        kernel = placed["encoder"]["groups"][0]["t"]["intermediate"]["kernel"][...]
        assert kernel.sharding.shard_shape(kernel.shape)[1] == kernel.shape[1] // 8


def test_bfloat16_is_close_to_float32(name):
    inputs = arguments(SMALL[name])
    exact, rounded = (forward(make(name, dtype=dtype), inputs) for dtype in (jnp.float32, jnp.bfloat16))
    assert rounded.text.dtype == rounded.visual.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(rounded.text, np.float32), exact.text, atol=0.15)
    np.testing.assert_allclose(np.asarray(rounded.visual, np.float32), exact.visual, atol=0.15)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(layers=(("tt", 1),)), "letters of t, v, x, f"),
        (dict(layers=(("tq", 1),)), "letters of t, v, x, f"),
        (dict(layers=(("t", 0),)), "at least 1"),
        (dict(visual=StreamConfig(24, 3, 32)), "shared_cross=True needs streams of one width"),
        (dict(visual_norm="both"), "each, sum"),
        (dict(pool="max"), "text, mul, sum"),
        (dict(remat="all"), "none, dots, full"),
        (dict(still_rows=("tokens",)), "still_rows has tokens"),
    ],
)
def test_options_that_do_not_exist_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL["lxmert"], **changes)
