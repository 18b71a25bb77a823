"""The probes remove what they say, and count attention as by hand; without removal they are the evaluation."""

import json
import xml.etree.ElementTree

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs.pretrain import get_config as get_recipe
from data_prep.build import build_scenes
from data_prep.scenes.world import CLASS_NAMES
from tests.helpers.pretrain_case import FEATURES, PRETRAIN, build, shrunk
from vlbert_jax import main
from vlbert_jax.data.tokenizer import tokenizer_of
from vlbert_jax.tasks.pretrain import probe as probes
from vlbert_jax.tasks.pretrain.aligned import LEVELS, class_names_of, covers, names_in, probe_batches
from vlbert_jax.tasks.pretrain.batches import eval_batches
from vlbert_jax.tasks.pretrain.probe_results import results_of
from vlbert_jax.weights.stored_config import flat_config


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    build_scenes(folder, num_train=20, num_val=24, num_train_stories=8, num_val_stories=8, feature_width=FEATURES)
    return folder


def probed(name, data_dir, variant="base_prec", **fields):
    """Return a config without text, and the batches of its probes."""
    gains = {f"model.encoder.{kind}_visual_gain_init": 1.0 for kind in ("text", "region")}
    changes = {"opening.steps": 0, "losses.text_only": False, "model.architecture": name} | gains | fields
    if name in ("lxmert", "vilbert"):
        changes |= {"data.hide_pixels": False, "data.text_length": 17}
    config = shrunk(variant, data_dir, **changes)
    return config, list(probe_batches(config, 0, 1))


def strong_model(config):
    """Return a model with large parameters, without which all states are alike."""
    model = build(config)
    nnx.update(model, jax.tree.map(lambda x: 4 * x, nnx.state(model, nnx.Param)))
    return model


def added(results):
    return jax.tree.map(lambda *x: np.sum([np.asarray(y, np.float64) for y in x], axis=0), *results)


@pytest.mark.parametrize(
    ("name", "variant"),
    [
        ("vlbert", "base_prec"),
        ("lxmert", "base_prec"),
        pytest.param("vlbert", "demo", marks=pytest.mark.slow),
        pytest.param("visualbert", "demo", marks=pytest.mark.slow),
        pytest.param("vilbert", "demo", marks=pytest.mark.slow),
    ],
)
def test_the_ends_are_the_evaluation(name, variant, data_dir):
    """With nothing removed the scores are those of evaluation, with everything removed its blind ones."""
    config, batches = probed(name, data_dir, variant)
    model = strong_model(config)
    score, probe = (nnx.jit(lambda m, b, f=f: f(m, b, config)) for f in (PRETRAIN.score, PRETRAIN.probe))
    scores = added([score(model, batch) for batch in eval_batches(config, 0, 1)["captions"]])
    found = added([probe(model, batch)["sums"] for batch in batches])
    pairs = {
        "words.accuracy": "mlm_caption_accuracy",
        "words.loss": "mlm_caption_loss",
        "visual_words.accuracy": "visual_word_accuracy",
        "regions.accuracy": "mrc_accuracy",
        "regions.loss": "mrc_loss",
    }
    for own, metric in pairs.items():
        for level, suffix in (("none", ""), ("all", "_blind")):
            (total, count), (expected, number) = (x for x in (found[own], scores[metric + suffix]))
            assert count[LEVELS.index(level)] == number > 0
            np.testing.assert_allclose(total[LEVELS.index(level)], expected, rtol=2e-5, err_msg=f"{own} {level}")
    losses = found["words.loss"][0]
    assert len(set(np.round(losses, 3))) == len(LEVELS)  # every level removes something else


def test_words_name_their_regions(data_dir):
    """Every color and category of a scene's captions names the region of its thing alone, as the scene says."""
    config, batches = probed("vlbert", data_dir)
    backend, number = tokenizer_of(config).backend, 0
    for batch in batches:
        for row in range(len(batch.token_ids)):
            targets = batch.targets
            for k in np.flatnonzero(targets.mlm_mask[row, 0]):
                position = targets.mlm_positions[row, 0, k]
                word = backend.id_to_token(int(targets.mlm_labels[row, 0, k]))
                named = np.flatnonzero(targets.named[row, position])
                if word not in config.data.visual_words:
                    assert not len(named)
                    continue
                (region,) = named
                assert word in CLASS_NAMES[targets.region_classes[row, region]].split()
                if word in config.data.group_words:  # things of a scene differ in category
                    classes = [CLASS_NAMES[c] for c in targets.region_classes[row] if c > 0]
                    assert sum(word in name.split() for name in classes) == 1
                number += 1
    assert number > 10


def test_names_in_a_caption():
    """A name counts where the caption holds all of it as whole words."""
    red, ball, box, ing = 1, 2, 3, 4
    ids = np.array([9, red, ball, 9, red, box, 9, box, ing])
    names = [[], [(red, ball)], [(box,), (red, red)]]
    found = names_in(ids, np.array([0, 1, 2, 0, 1, -1]), names, np.arange(10) == ing)
    expected = np.zeros((9, 6), bool)
    expected[1:3, [1, 4]] = expected[5, 2] = True
    np.testing.assert_array_equal(found, expected)


def test_covers():
    """A region is removed with another one of which it covers more than half."""
    boxes = np.array([[0, 0, 9, 9], [0, 0, 99, 99], [0, 0, 4, 3], [50, 50, 59, 59]], np.float32)
    expected = np.eye(4, dtype=bool)
    expected[0, 1] = expected[2, 1] = expected[2, 0] = expected[3, 1] = True
    np.testing.assert_array_equal(covers(boxes), expected)


def test_what_the_levels_remove(data_dir):
    """Levels of shares grow; aligned and others divide the regions of captions with a masked word that names one."""
    _, batches = probed("vlbert", data_dir, batch_size=8)
    removed, words = (np.concatenate([getattr(b.targets, n) for b in batches]) for n in
                      ("removed_regions", "removed_words"))  # fmt: skip
    real = np.concatenate([b.region_mask for b in batches])
    real[:, 0] = False
    level = {name: removed[:, i] for i, name in enumerate(LEVELS)}
    assert not level["none"].any() and level["all"].all()
    assert 0.1 < level["25%"].sum() / real.sum() < 0.4 < level["75%"].sum() / real.sum() < 0.9
    assert not (level["25%"] & ~level["50%"]).any() and not (level["50%"] & ~level["75%"]).any()
    some = level["aligned"].any(1)
    np.testing.assert_array_equal((level["aligned"] ^ level["others"])[some], real[some])
    assert 0 < some.sum() < len(some) and not level["others"][~some].any()
    assert words[:, LEVELS.index("all")].sum(1).max() <= 16 and words[:, LEVELS.index("aligned")].any()
    # The same with batches of another size.
    _, batches = probed("vlbert", data_dir, batch_size=16)
    others = np.concatenate([b.targets.removed_regions for b in batches])
    real_rows = real.any(1)
    np.testing.assert_array_equal(removed[real_rows], others[np.concatenate([b.region_mask for b in batches]).any(1)])


@pytest.mark.parametrize("variant", ["base_prec", pytest.param("demo", marks=pytest.mark.slow)])
def test_a_removed_region_leaves_no_trace(variant, data_dir):
    """Another feature, or other pixels, of a removed region change no state of a word; those of another region do."""
    config, batches = probed("vlbert", data_dir, variant)
    batch, field = batches[0], "pixels" if variant == "demo" else "region_features"
    row = int(np.flatnonzero(batch.region_mask.sum(1) > 2)[0])
    removed = np.zeros(batch.region_mask.shape, bool)
    removed[row, 1] = True
    removed = jnp.asarray(removed)
    states = nnx.jit(lambda model, batch: probes.states_without(model, batch, removed)[row, 0, :4])
    model = strong_model(config)

    def changed(region):
        values = getattr(batch, field).copy()
        if variant == "demo":
            x1, y1, x2, y2 = batch.boxes[row, region].astype(int)
            values[row, 0, y1 : y2 + 1, x1 : x2 + 1] ^= 255
        else:
            values[row, [0, region]] += 1  # the whole image has the mean
        return states(model, batch.replace(**{field: values}))

    before = states(model, batch)
    np.testing.assert_allclose(changed(1), before, atol=1e-5)
    assert np.abs(changed(2) - before).max() > 1e-3


@pytest.mark.parametrize("name", ["vlbert", "lxmert"])
def test_attention_by_hand(name, data_dir):
    """Heads that read keys of regions in proportion to known numbers have the shares of these numbers."""
    config, batches = probed(name, data_dir)
    model = build(config)
    batch, r = batches[0], batches[0].region_mask.shape[1]
    weights = np.random.default_rng(0).uniform(0.1, 1, r)
    b, _, s = batch.token_ids.shape
    if name == "vlbert":
        ids, size = batch.token_ids[:, 0], config.model.encoder.vocab_size
        is_region = (ids == size) | (ids == size + 1)
        keys = np.where(is_region, weights[batch.region_ids[:, 0]], 0.3)
        keys = np.where(batch.element_mask[:, 0], keys, 0)
    else:
        keys = np.where(batch.region_mask, weights, 0)[:, 1:]
    keys = keys / np.maximum(keys.sum(1, keepdims=True), 1e-9)
    maps = jnp.asarray(np.broadcast_to(keys[None, :, None, None, None], (3, b, 1, 2, s, keys.shape[1])))
    model.attention = lambda _: (None, maps if name == "vlbert" else {"words to regions": maps})
    sums, shown = probes._attention_sums(model, jax.tree.map(jnp.asarray, batch), config)
    shares, chances, first = [], [], None
    for row in range(b):
        rows = np.flatnonzero(batch.region_mask[row])[1:]
        for k in np.flatnonzero(batch.targets.mlm_mask[row, 0]):
            position = batch.targets.mlm_positions[row, 0, k]
            right = np.flatnonzero(batch.targets.named[row, position])
            masked = batch.token_ids[row, 0, position] == tokenizer_of(config).mask_id
            if masked and len(right) and len(right) < len(rows) and not batch.region_hidden[row, right].any():
                first = first or (row, k)
                shares.append(weights[right].sum() / weights[rows].sum())
                chances.append(len(right) / len(rows))
    assert len(shares) > 3 and sums["attention.right"][1] == len(shares)
    np.testing.assert_allclose(sums["attention.right"][0], np.full((3, 2), sum(shares)), rtol=1e-5)
    np.testing.assert_allclose(sums["attention.chance"][0], sum(chances), rtol=1e-5)
    assert (int(shown["row"]), int(shown["word"])) == first and shown["found"]


@pytest.mark.slow
def test_objects_of_hidden_regions(data_dir):
    """A model with LXMERT's head alone is scored by the best object of the detector."""
    fields = {"losses.mrc": False, "losses.objects": True, "losses.features": True, "model.num_attributes": 3}
    config, batches = probed("lxmert", data_dir, **fields)
    model, targets = strong_model(config), batches[0].targets
    logits = nnx.jit(lambda m, b: m.visual_predictions(m.states(b))["objects"])(model, batches[0])
    asked = [(row, targets.mrc_regions[row, k]) for row, k in np.argwhere(targets.mrc_mask)]
    losses = [-jax.nn.log_softmax(logits[row, region - 1])[targets.objects[row, region]] for row, region in asked]
    total, count = nnx.jit(lambda m, b: PRETRAIN.probe(m, b, config))(model, batches[0])["sums"]["regions.loss"]
    assert count[0] == len(asked) > 0
    np.testing.assert_allclose(total[0], sum(losses), rtol=1e-5)


def test_the_classes_need_names(data_dir):
    config, _ = probed("vlbert", data_dir)
    config.data.class_names = "nowhere.txt"
    with pytest.raises(ValueError, match=r"nowhere.txt \(config.data.class_names\) is not a file"):
        class_names_of(config)
    (data_dir / "short.txt").write_text("red ball\n")
    config.data.class_names = "short.txt"
    with pytest.raises(ValueError, match=r"short.txt has 1 lines; .*num_region_classes=81 needs one less"):
        class_names_of(config)


def test_results_without_a_target():
    zeros = np.zeros(len(LEVELS))
    sums = {f"words.{name}": (zeros, zeros) for name in ("accuracy", "loss")}
    assert results_of(sums | {"attention.chance": (np.array(0.0), np.array(0.0))}) == {}


NO_TEXT = "--config.data.text=nowhere"


def flags_of(config):
    """Return a config as flags of its recipe."""
    given, base = (flat_config(c.to_dict()) for c in (config, get_recipe("base_prec")))
    return [f"--config.{name}={value}" for name, value in given.items() if value != base[name]]


@pytest.mark.slow
def test_the_command(data_dir, tmp_path, capsys):
    """A run is probed, and its weights from another workdir give the same results; the figure is an image."""
    fields = {"total_steps": 1, "warmup_steps": 0}
    flags = ["--config=pretrain:base_prec", *flags_of(shrunk("base_prec", data_dir, **fields))]
    for options in (
        [f"--workdir={tmp_path}/run"],
        [f"--workdir={tmp_path}/run", "--mode=probe"],
        # No text is read.
        [f"--workdir={tmp_path}/other", f"--config.init.checkpoint={tmp_path}/run", "--mode=probe", NO_TEXT],
    ):
        assert main.main(["main", *flags, *options]) == 0
    printed = capsys.readouterr().out
    assert printed.count("| aligned |") == 2 and f"Results: {tmp_path}/run/probes" in printed
    own, other = (json.loads((tmp_path / name / "probes/probes.json").read_text()) for name in ("run", "other"))
    assert own.pop("step") == 1 and other.pop("step") == 0 and own.pop("checkpoint") == ""
    assert other.pop("checkpoint") == f"{tmp_path}/run" and own == other
    assert own["words"]["number"] > own["visual_words"]["number"] > 0
    root = xml.etree.ElementTree.parse(tmp_path / "run/probes/probes.svg").getroot()
    titles = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert any("masked" in title for title in titles) and "others" in titles
    assert not (tmp_path / "run/scores.json").exists()
