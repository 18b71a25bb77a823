"""Updates equal recordings of the official optimizer; schedules equal values computed by hand."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from tests.helpers.golden_folders import golden_folders
from tests.helpers.optimizer_case import check_official_updates, check_updates_of_sibling, make_config
from vlbert_jax.training import optimizer

RECORDINGS = [path for folder in golden_folders("model") for path in sorted(folder.glob("x_*.json"))]
SIBLINGS = [
    path
    for kind, names in (("one_stream", "uniter_adamw_*"), ("one_stream", "*_bertadam_*"), ("two_stream", "optim_*"))
    for folder in golden_folders(kind)
    for path in sorted(folder.glob(f"{names}.json"))
]


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
def test_official_updates(path):
    check_official_updates(path)


@pytest.mark.parametrize("path", SIBLINGS, ids=lambda path: path.stem)
def test_updates_of_siblings(path):
    check_updates_of_sibling(path)


def test_optimizers_of_all_siblings_are_recorded():
    systems = {path.stem.removeprefix("optim_").split("_")[0] for path in SIBLINGS}
    assert systems == {"uniter", "visualbert", "lxmert", "vilbert"}


def test_each_layer_is_clipped_for_itself():
    """The first axis of arrays of the encoder is the layer; other arrays are clipped as a whole."""
    tx = optimizer.clip_each_array(5.0)
    gradients = {"encoder": {"layers": {"kernel": jnp.array([[3.0, 4.0], [6.0, 8.0]])}}, "bias": jnp.array([0.0, 20.0])}
    clipped, _ = tx.update(gradients, tx.init(gradients))
    np.testing.assert_allclose(clipped["encoder"]["layers"]["kernel"], [[3, 4], [3, 4]], rtol=1e-6)
    np.testing.assert_allclose(clipped["bias"], [0, 5], rtol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"optimizer.clip": "each"}, "optimizer.clip is 'each'; it can be global, array"),
        ({"optimizer.rate_factors": ("head",)}, "rate_factors has '=head'; write PATTERN=FACTOR"),
        ({"optimizer.rate_factors": ("head=ten",)}, "rate_factors has 'head=ten'; write PATTERN=FACTOR"),
        ({"optimizer.name": "sgd", "optimizer.no_decay": ("bias",)}, "not of sgd"),
    ],
)
def test_wrong_settings(fields, message):
    config = make_config(**fields).optimizer
    with pytest.raises(ValueError, match=message):
        tx = optimizer.make_optimizer(config, lambda k: 1.0)
        tx.update({"x": jnp.ones(2)}, tx.init({"x": jnp.ones(2)}), {"x": jnp.ones(2)})


def test_recordings_clip_and_do_not_clip():
    """Norms in the recordings are above and below the limit, so the comparison covers clipping."""
    case = np.load(RECORDINGS[0].with_suffix(".npz"))
    limit = json.loads(RECORDINGS[0].read_text())["clip_grad_norm"]
    assert (case["out/total_norm"] > limit).any() and (case["out/total_norm"] < limit).any()


@pytest.mark.parametrize(
    "name, expected",
    [
        ("triangle", [0.25, 0.5, 0.75, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125, 0.0, 0.0]),
        ("constant", [0.25, 0.5, 0.75] + 10 * [1.0]),
        ("cosine", [0.25, 0.5, 0.75] + [0.5 + 0.5 * np.cos(np.pi * k / 8) for k in range(9)] + [0.0]),
    ],
)
def test_schedules(name, expected):
    schedule = optimizer.learning_rate_schedule(make_config(**{"optimizer.schedule": name}))
    rates = [schedule(k) for k in range(1, 14)]  # one step after the end
    np.testing.assert_allclose(rates, 1e-3 * np.array(expected), rtol=1e-6, atol=1e-10)
    assert name == "constant" or rates[11] == 0  # without a tolerance


def test_the_opening_has_a_separate_schedule():
    """The opening has its own peak; the main schedule after it equals one without an opening."""
    plain = optimizer.learning_rate_schedule(make_config())
    config = make_config(total_steps=18, **{"opening.steps": 6, "opening.learning_rate": 5e-3})
    schedule = optimizer.learning_rate_schedule(config)
    opening = 5e-3 * np.array([0.25, 0.5, 0.75, 1.0, 0.5, 0.0])
    np.testing.assert_allclose([schedule(k) for k in range(1, 7)], opening, rtol=1e-6, atol=1e-10)
    np.testing.assert_allclose([schedule(6 + k) for k in range(13)], [plain(k) for k in range(13)], rtol=1e-6)


def test_without_warmup_the_schedule_starts_at_the_peak():
    schedule = optimizer.learning_rate_schedule(
        make_config(warmup_steps=0, **{"optimizer.schedule": "constant"})
    )
    np.testing.assert_allclose(schedule(1), 1e-3, rtol=1e-6)


def test_norms_and_biases_decay_too():
    """Without a gradient, the update is only the decay at the scheduled rate."""
    config = make_config()
    tx = optimizer.make_optimizer(config.optimizer, lambda k: 0.5)
    params = {"bias": jnp.ones(3)}
    updates, _ = tx.update({"bias": jnp.zeros(3)}, tx.init(params), params)
    np.testing.assert_allclose(params["bias"] + updates["bias"], 1 - 0.5 * 1e-4, rtol=1e-6)


def test_decay_applies_to_the_updated_parameter():
    """The update is p <- (p + u) (1 - rate * decay); large values show this order."""
    tx = optimizer.adam(lambda k: 0.5, b1=0.9, b2=0.999, eps=0.0, groups=optimizer.Groups(0.1))
    params = {"x": jnp.array([1.0, -2.0])}
    updates, _ = tx.update({"x": jnp.array([3.0, 4.0])}, tx.init(params), params)
    # The first step of Adam is the sign of the gradient. It is exact if 1 - b2 is.
    np.testing.assert_allclose(updates["x"], np.array([0.5, -2.5]) * 0.95 - params["x"], rtol=1e-6)


@pytest.mark.parametrize("max_norm, scale", [(1.0, 1 / 5.000001), (5.0, 5 / 5.000001), (6.0, 1.0)])
def test_clipping(max_norm, scale):
    tx = optimizer.clip_by_global_norm(max_norm)
    clipped, _ = tx.update({"a": jnp.array([3.0]), "b": jnp.array([4.0])}, tx.init({}))
    np.testing.assert_allclose([clipped["a"][0], clipped["b"][0]], np.array([3, 4]) * scale, rtol=1e-7)


def test_clip_norm_zero_does_not_clip():
    config = make_config(**{"optimizer.clip_norm": 0.0, "optimizer.b1": 0.0})
    tx = optimizer.make_optimizer(config.optimizer, lambda k: 1.0)
    params = {"x": jnp.zeros(2)}
    _, state = tx.update({"x": jnp.full(2, 1e4)}, tx.init(params), params)
    np.testing.assert_allclose(state[1].mu["x"], 1e4)


@pytest.mark.parametrize("field", ["name", "schedule"])
def test_unknown_names(field):
    config = make_config(**{f"optimizer.{field}": "adam"})
    with pytest.raises(ValueError, match=f"optimizer.{field} is 'adam'; it can be "):
        optimizer.make_optimizer(config.optimizer, optimizer.learning_rate_schedule(config))
