"""The name table: every official tensor has one place in ours, and comes back from it bit for bit."""

import logging
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from configs import pretrain as recipes
from vlbert_jax import convert
from vlbert_jax.tasks import pretrain

NAMES = Path(__file__).parent / "golden/names"


def official_shapes(variant: str) -> dict[str, tuple[int, ...]]:
    lines = (NAMES / f"names_{variant}.tsv").read_text().splitlines()
    pairs = (line.removeprefix("module.").split("\t") for line in lines)
    return {name: tuple(int(n) for n in shape.strip("[]").split(",") if n.strip()) for name, shape in pairs}


def abstract(config):
    return nnx.state(nnx.eval_shape(lambda: pretrain.build_model(config, nnx.Rngs(0))))


def shapes(state) -> dict[tuple, tuple[int, ...]]:
    return {path: v.shape for path, v in nnx.to_flat_state(state)}


@pytest.mark.parametrize("variant", ["base_e2e", "base_prec", "large_e2e", "large_prec"])
def test_every_official_name_has_one_place(variant):
    config = getattr(recipes, variant)()
    entries = list(convert.name_table(shapes(abstract(config)), config.model.encoder.vocab_size))
    ours = {entry.official for entry in entries}
    assert len(ours) == len(entries)
    assert ours == {name for name in official_shapes(variant) if not convert.DUPLICATE.match(name)}


@pytest.mark.parametrize("variant", ["base_e2e", "base_prec", "large_e2e", "large_prec"])
def test_parameter_counts_are_the_official_ones(variant):
    """Trained and frozen parameters, without the statistics of batch norm and the rows that pad the token table."""
    config = getattr(recipes, variant)()
    official = sum(
        int(np.prod(shape))
        for name, shape in official_shapes(variant).items()
        if not convert.DUPLICATE.match(name) and "running_" not in name
    )
    params = nnx.filter_state(abstract(config), nnx.Param)
    rows = params["vlbert"]["token_embeddings"].shape[0]
    padding = rows - config.model.encoder.vocab_size - convert.END - 1
    padding = padding * config.model.encoder.hidden_size + rows - config.model.encoder.vocab_size  # table, MLM bias
    assert sum(int(np.prod(shape)) for shape in shapes(params).values()) - padding == official


@pytest.fixture(scope="module")
def small():
    """A small model of both kinds of weights, and its vocabulary size."""
    config = recipes.demo()
    config.data.hide_pixels = False
    config.model.region_head.blocks = (1, 2, 1, 2)
    config.losses.region = config.opening.steps = 0
    state = abstract(config)
    for path, array in random_like(state, seed=2).items():
        dict(nnx.to_flat_state(state))[path].set_value(jnp.asarray(array))
    return config, state, config.model.encoder.vocab_size


def random_like(state, seed=0):
    rng = np.random.default_rng(seed)
    return {path: rng.normal(size=v.shape).astype(np.float32) for path, v in nnx.to_flat_state(state)}


def test_round_trips_bit_for_bit(small):
    _, state, vocab_size = small
    official = convert.to_official(random_like(state), vocab_size)
    rng = np.random.default_rng(1)
    for name, array in official.items():
        if not convert.DUPLICATE.match(name):
            official[name] = rng.normal(size=array.shape).astype(np.float32)
    ours, report = convert.from_official(
        {f"module.{k}": v for k, v in official.items()}, random_like(state), vocab_size
    )
    assert report.missing == report.unused == []
    back = convert.to_official(ours, vocab_size)
    assert back.keys() == official.keys()
    for name, array in back.items():
        if not convert.DUPLICATE.match(name):
            np.testing.assert_array_equal(array, official[name], err_msg=name)


def test_another_size_is_refused(small):
    _, state, vocab_size = small
    official = convert.to_official(random_like(state), vocab_size)
    official["vlbert.encoder.layer.1.attention.self.query.weight"] = np.zeros((3, 3), np.float32)
    with pytest.raises(ValueError, match="layer.1.attention.self.query.weight has shape .3, 3."):
        convert.from_official(official, random_like(state), vocab_size)


def to_bert(official: dict) -> dict:
    """Official names back to those of an old BERT file, with two segments."""
    bert = {}
    for name, array in official.items():
        name = name.removeprefix("vlbert.")
        if name.startswith(("encoder.", "mlm_head.")):
            new = f"bert.{name}" if name.startswith("encoder.") else name.replace("mlm_head", "cls")
        elif name.endswith("_embeddings.weight") and "object" not in name:
            new, array = f"bert.embeddings.{name}", array[:2] if name.startswith("token_type") else array
        elif name.startswith("embedding_LayerNorm"):
            new = f"bert.embeddings.{name.removeprefix('embedding_')}"
        else:
            continue
        old = new.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        bert[old] = np.ascontiguousarray(array)
    return bert


def to_resnet(official: dict) -> dict:
    renamed = {
        name.replace(convert.C5_NAME, "layer4").replace("image_feature_extractor.backbone.", ""): np.ascontiguousarray(
            a
        )
        for name, a in official.items()
        if name.startswith((convert.C5_NAME, "image_feature_extractor.backbone."))
    }
    return {name: array for name, array in renamed.items() if "num_batches" not in name}


def test_a_run_starts_from_bert_and_resnet(small, tmp_path, caplog):
    _, state, vocab_size = small
    params, constants = nnx.split_state(state, nnx.Param, ...)
    official = convert.to_official(random_like(state), vocab_size)
    save_file(to_bert(official), tmp_path / "bert.safetensors")
    save_file(to_resnet(official), tmp_path / "resnet.safetensors")
    caplog.set_level(logging.INFO)
    loaded, constants = convert.load_into(
        params, constants, vocab_size, bert=tmp_path / "bert.safetensors", resnet=tmp_path / "resnet.safetensors"
    )
    arrays = {path: np.asarray(v[...]) for s in (loaded, constants) for path, v in nnx.to_flat_state(s)}
    ours = convert.to_official(arrays, vocab_size)
    for name in ("vlbert.encoder.layer.1.output.LayerNorm.weight", "vlbert.word_embeddings.weight"):
        np.testing.assert_array_equal(ours[name], official[name])
    segments = "vlbert.token_type_embeddings.weight"
    np.testing.assert_array_equal(ours[segments][:2], official[segments][:2])
    np.testing.assert_array_equal(ours[segments][2], params["vlbert"]["segment_embeddings"][...][2])
    for name in ("image_feature_extractor.backbone.layer1.0.bn2.running_var", f"{convert.C5_NAME}.1.conv2.weight"):
        np.testing.assert_array_equal(ours[name], official[name])
    assert "fast_rcnn: from init.resnet" in caplog.text
    assert "vlbert: from init.bert" in caplog.text


def test_a_run_starts_from_an_official_file(small, tmp_path):
    torch = pytest.importorskip("torch")
    _, state, vocab_size = small
    params, constants = nnx.split_state(state, nnx.Param, ...)
    official = convert.to_official(random_like(state), vocab_size)
    halves = {f"module.{k}": torch.from_numpy(np.ascontiguousarray(a)).half() for k, a in official.items()}
    torch.save({"state_dict": halves, "optimizer": {"state": {}}}, tmp_path / "vl-bert.model")
    loaded, _ = convert.load_into(params, constants, vocab_size, checkpoint=tmp_path / "vl-bert.model")
    kernel = np.asarray(loaded["mrc_head"]["transform"]["kernel"][...])
    name = "vlbert.mvrc_head.transform.dense.weight"
    np.testing.assert_array_equal(kernel, official[name].T.astype(np.float16).astype(np.float32))


def test_files_that_are_no_weights(small, tmp_path):
    _, state, vocab_size = small
    params, constants = nnx.split_state(state, nnx.Param, ...)
    with pytest.raises(FileNotFoundError, match="no weights at"):
        convert.load_into(params, constants, vocab_size, bert=tmp_path / "absent.safetensors")
    save_file({"foreign": np.zeros(3, np.float32)}, tmp_path / "foreign.safetensors")
    with pytest.raises(ValueError, match="nothing in .* belongs to this model"):
        convert.load_into(params, constants, vocab_size, resnet=tmp_path / "foreign.safetensors")


def test_loading_keeps_every_array_on_its_devices(small, tmp_path):
    _, state, vocab_size = small
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.sharding.NamedSharding(mesh, jax.P("data"))
    params, constants = nnx.split_state(state, nnx.Param, ...)
    table = params["vlbert"]["token_embeddings"]
    params["vlbert"]["token_embeddings"] = table.replace(jax.device_put(table[...], spread))
    save_file(to_bert(convert.to_official(random_like(state), vocab_size)), tmp_path / "bert.safetensors")
    loaded, _ = convert.load_into(params, constants, vocab_size, bert=tmp_path / "bert.safetensors")
    assert loaded["vlbert"]["token_embeddings"][...].sharding == spread
