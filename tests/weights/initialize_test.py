"""Test the start of a run from weights: the parameters that are loaded or kept, and the log."""

import logging

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import save_file

from configs import pretrain as recipes
from vlbert_jax.convert import main
from vlbert_jax.tasks.choice import task as choice_task
from vlbert_jax.tasks.pretrain import task as pretrain
from vlbert_jax.weights import export, vlbert_names
from vlbert_jax.weights.bert_names import official_to_bert
from vlbert_jax.weights.initialize import load_into
from vlbert_jax.weights.resnet_names import official_to_resnet

PRETRAIN = pretrain.PretrainTask()

CHOICE = choice_task.ChoiceTask()

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def small():
    """Return random parameters and constants of a small model, and its vocabulary size."""
    config = recipes.demo()
    config.data.hide_pixels = False
    config.model.region_head.blocks = (1, 2, 1, 2)
    config.losses.region = config.opening.steps = 0
    state = nnx.state(nnx.eval_shape(lambda: PRETRAIN.build_model(config, nnx.Rngs(0))))
    for path, array in random_like(state, seed=2).items():
        {tuple(map(str, p)): v for p, v in nnx.to_flat_state(state)}[path].set_value(jax.numpy.asarray(array))
    return *nnx.split_state(state, nnx.Param, ...), config.model.encoder.vocab_size


def random_like(state, seed=0):
    rng = np.random.default_rng(seed)
    return {tuple(map(str, path)): rng.normal(size=v.shape).astype(np.float32) for path, v in nnx.to_flat_state(state)}


def other_weights(params, constants, vocab_size, seed=0) -> dict[str, np.ndarray]:
    arrays = random_like(params, seed) | random_like(constants, seed)
    return {name: np.ascontiguousarray(a) for name, a in vlbert_names.to_official(arrays, vocab_size).items()}


def official_of(params, constants, vocab_size) -> dict[str, np.ndarray]:
    flat = {tuple(map(str, p)): np.asarray(v[...]) for s in (params, constants) for p, v in nnx.to_flat_state(s)}
    return vlbert_names.to_official(flat, vocab_size)


def load(small, task="pretrain", **init):
    params, constants, vocab_size = small
    encoder, init = dict(vocab_size=vocab_size, num_heads=4), {field: str(path) for field, path in init.items()}
    return load_into(params, constants, encoder, task, init)[:2]


def test_bert_and_resnet(small, tmp_path, caplog):
    given, before = other_weights(*small), official_of(*small)
    save_file(official_to_bert(given), tmp_path / "bert.safetensors")
    save_file(official_to_resnet(given, {}), tmp_path / "resnet.safetensors")
    caplog.set_level(logging.INFO)
    loaded = official_of(
        *load(small, bert=tmp_path / "bert.safetensors", resnet=tmp_path / "resnet.safetensors"), small[2]
    )
    for name in given:
        from_source = vlbert_names.REQUIRED["resnet"].match(name) or official_to_bert({name: given[name]})
        if name == vlbert_names.SEGMENTS:
            np.testing.assert_array_equal(loaded[name], np.concatenate([given[name][:2], before[name][2:]]))
        else:
            np.testing.assert_array_equal(loaded[name], given[name] if from_source else before[name], err_msg=name)
    messages = [record.getMessage() for record in caplog.records]
    assert "parameters of fast_rcnn/c5: 35 from init.resnet" in messages
    assert "parameters of vlbert/token_embeddings: 1 from init.bert, 3 from scratch" in messages
    assert "parameters of mrc_head: 4 from scratch" in messages
    assert "parameters of vlbert/encoder: 32 from init.bert" in messages


def test_a_checkpoint_precedes_bert(small, tmp_path):
    """BERT gives only the parameter that the half-precision checkpoint lacks, the pooler of VCR."""
    bert, checkpoint = other_weights(*small, seed=3), other_weights(*small, seed=4)
    vocab_size = small[2]
    config = recipes.demo()
    config.model.region_head.blocks = (1, 2, 1, 2)
    with config.unlocked():
        config.model.num_object_classes, config.model.encoder.pooler = 81, True
    model = CHOICE.build_model(config, nnx.Rngs(0))
    params, constants = nnx.split_state(nnx.state(model), nnx.Param, ...)
    bert |= {
        f"vlbert.pooler.dense.{leaf}": np.full_like(bert[f"vlbert.mvrc_head.transform.dense.{leaf}"], 7)
        for leaf in ("weight", "bias")
    }
    save_file(official_to_bert(bert), tmp_path / "bert.safetensors")
    state = {f"module.{name}": torch.from_numpy(array).half() for name, array in checkpoint.items()}
    torch.save({"state_dict": state}, tmp_path / "vl-bert.model")
    sources = dict(bert=tmp_path / "bert.safetensors", checkpoint=tmp_path / "vl-bert.model")
    loaded = official_of(*load((params, constants, vocab_size), task="choice", **sources), vocab_size)
    halves = {name: array.astype(np.float16).astype(np.float32) for name, array in checkpoint.items()}
    np.testing.assert_array_equal(loaded[vlbert_names.WORDS], halves[vlbert_names.WORDS])
    np.testing.assert_array_equal(loaded[vlbert_names.SEGMENTS], halves[vlbert_names.SEGMENTS][[0, 0, 2]])
    hidden = "transform.dense.weight"
    np.testing.assert_array_equal(loaded[f"cnn_loss_reg.0.dense.{hidden[16:]}"], halves[f"vlbert.mvrc_head.{hidden}"])
    assert (loaded["vlbert.pooler.dense.weight"] == 7).all()
    np.testing.assert_array_equal(loaded["final_mlp.1.weight"].T, model.choice_head.kernel[...])  # unchanged


def test_unsuitable_weights_are_refused(small, tmp_path):
    given = other_weights(*small)
    with pytest.raises(FileNotFoundError, match="no weights at"):
        load(small, bert=tmp_path / "absent.safetensors")
    save_file(official_to_resnet(given, {}), tmp_path / "resnet.safetensors")
    with pytest.raises(ValueError, match=r"init.bert: .* holds ResNet in safetensors; set it as config.init.resnet"):
        load(small, bert=tmp_path / "resnet.safetensors")
    bert = official_to_bert(given)
    name = "bert.encoder.layer.1.output.dense.weight"
    save_file({n: a for n, a in bert.items() if n != name}, tmp_path / "bert.safetensors")
    with pytest.raises(ValueError, match=r"lacks vlbert.encoder.layer.1.output.dense.weight \(1 tensors\)"):
        load(small, bert=tmp_path / "bert.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "bert", "num_attention_heads": 2}')
    with pytest.raises(ValueError, match="has 2 attention heads, but config.model.encoder.num_heads is 4"):
        load(small, bert=tmp_path / "bert.safetensors")
    (tmp_path / "config.json").unlink()
    save_file(bert | {name: np.zeros((2, 2), np.float32)}, tmp_path / "bert.safetensors")
    with pytest.raises(ValueError, match=r"init.bert: .*output.dense.weight has shape \(2, 2\), the model wants"):
        load(small, bert=tmp_path / "bert.safetensors")


def test_parameters_initialized_by_a_conversion_are_not_loaded(small, tmp_path, caplog):
    """A converted BERT has an untrained head, so a VCR run initializes its own head."""
    given = other_weights(*small)
    folder = tmp_path / "bert"
    folder.mkdir()
    save_file(official_to_bert(given), folder / "model.safetensors")
    assert main([str(folder), str(tmp_path / "converted"), "--num_heads=4"]) == 0
    config = recipes.demo()
    config.model.region_head.blocks = (1, 2, 1, 2)
    with config.unlocked():
        config.model.num_object_classes, config.model.encoder.pooler = 81, True
    state = nnx.state(CHOICE.build_model(config, nnx.Rngs(0)))
    caplog.set_level(logging.INFO)
    load((*nnx.split_state(state, nnx.Param, ...), small[2]), task="choice", checkpoint=tmp_path / "converted")
    assert "parameters of object_head: 4 from scratch" in caplog.text
    assert "parameters of vlbert/encoder: 32 from init.checkpoint" in caplog.text


def test_values_that_are_not_finite_are_reported(small, tmp_path, caplog):
    bert = official_to_bert(other_weights(*small))
    bert["bert.embeddings.LayerNorm.bias"] = np.full_like(bert["bert.embeddings.LayerNorm.bias"], np.inf)
    save_file(bert, tmp_path / "bert.safetensors")
    load(small, bert=tmp_path / "bert.safetensors")
    assert "init.bert: NaN or infinite values in vlbert.embedding_LayerNorm.bias" in caplog.text


def test_every_array_keeps_its_sharding(small, tmp_path):
    params, constants, vocab_size = small
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.sharding.NamedSharding(mesh, jax.P("data"))
    params = jax.tree.map(lambda x: x, params)
    table = params["vlbert"]["token_embeddings"]
    params["vlbert"]["token_embeddings"] = table.replace(jax.device_put(table[...], spread))
    save_file(official_to_bert(other_weights(*small)), tmp_path / "bert.safetensors")
    loaded, _ = load((params, constants, vocab_size), bert=tmp_path / "bert.safetensors")
    assert loaded["vlbert"]["token_embeddings"][...].sharding == spread


def test_features_of_another_extractor_are_refused(small, tmp_path):
    """A stored run names the extractor of its features; an unknown extractor is accepted."""
    arrays = [{"/".join(p): v for p, v in random_like(state).items()} for state in small[:2]]

    def nested(flat: dict) -> dict:
        tree: dict = {}
        for path, array in flat.items():
            *folders, leaf = path.split("/")
            node = tree
            for name in folders:
                node = node.setdefault(name, {})
            node[leaf] = array
        return tree

    config = recipes.demo().to_dict()
    config["data"]["extractor"] = "one"
    export.write_orbax(tmp_path / "run", *map(nested, arrays), config)
    params, constants, vocab_size = small
    encoder, init = dict(vocab_size=vocab_size, num_heads=4), dict(checkpoint=str(tmp_path / "run"))
    with pytest.raises(ValueError, match="trained on features of extractor one, but the corpus has those of two"):
        load_into(params, constants, encoder, "pretrain", init, extractor="two")
    for same in ("one", ""):
        load_into(params, constants, encoder, "pretrain", init, extractor=same)
