"""Hugging Face's own LXMERT: its files are read here, and the files written here are read there."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.helpers.golden_case import close, flat
from tests.helpers.two_stream_case import text_and_regions
from vlbert_jax.weights import two_stream_names
from vlbert_jax.weights.export import write_safetensors
from vlbert_jax.weights.two_stream_read import read_two_stream, two_stream_model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

B, T, R = 2, 7, 5
SETTINGS = dict(
    vocab_size=61, hidden_size=24, num_attention_heads=3, intermediate_size=40, max_position_embeddings=12, l_layers=3,
    r_layers=1, x_layers=2, visual_feat_dim=20, num_qa_labels=13, num_object_labels=9, num_attr_labels=5,
)  # fmt: skip
CLASSES = ("LxmertModel", "LxmertForQuestionAnswering", "LxmertForPreTraining")


@pytest.fixture(params=CLASSES)
def theirs(request):
    """Return a model of Hugging Face with random weights, which are larger than its initial ones."""
    torch.manual_seed(0)
    model = getattr(transformers, request.param)(transformers.LxmertConfig(**SETTINGS)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


def inputs_of_theirs():
    rng = np.random.default_rng(0)
    return dict(
        input_ids=rng.integers(0, SETTINGS["vocab_size"], (B, T)),
        token_type_ids=rng.integers(0, 2, (B, T)),
        attention_mask=(np.arange(T) < [[T], [4]]).astype(np.float32),
        visual_feats=rng.normal(size=(B, R, SETTINGS["visual_feat_dim"])).astype(np.float32),
        visual_pos=rng.uniform(size=(B, R, 4)).astype(np.float32),
        visual_attention_mask=(np.arange(R) < [[3], [R]]).astype(np.float32),
    )


def test_their_model_gives_the_same_outputs_here(theirs, tmp_path):
    theirs.save_pretrained(tmp_path)
    model = two_stream_model(read_two_stream(tmp_path))
    given = inputs_of_theirs()
    with torch.no_grad():
        expected = theirs(**{name: torch.from_numpy(x) for name, x in given.items()})

    @nnx.jit
    def run(model, inputs):
        states = model.two_stream(**inputs)
        pooled = model.two_stream.pool(states)
        found = dict(language_output=states.text, vision_output=states.visual, pooled_output=pooled)
        if model.answer_head is not None:
            found["question_answering_score"] = model.answer_logits(pooled)
        if model.mlm_head is not None:
            everywhere = jnp.broadcast_to(jnp.arange(T), (B, 1, T))
            found["prediction_logits"] = model.mlm_logits(states, everywhere)[..., : SETTINGS["vocab_size"]]
            found["cross_relationship_score"] = model.relationship_logits(pooled)
        return {name: x[:, 0] for name, x in found.items()}

    compared = 0
    for name, ours in run(model, text_and_regions(given)).items():
        if (official := getattr(expected, name, None)) is not None:
            mask = given["attention_mask"] if name in ("language_output", "prediction_logits") else np.ones(len(ours))
            mask = given["visual_attention_mask"] if name == "vision_output" else mask
            close(np.asarray(ours)[mask > 0], official.numpy()[mask > 0])
            compared += 1
    assert compared == {"LxmertModel": 3, "LxmertForQuestionAnswering": 1, "LxmertForPreTraining": 3}[
        type(theirs).__name__
    ]


@pytest.mark.parametrize("name", CLASSES[1:])
def test_their_loader_reads_what_is_written_here(name, tmp_path):
    """No key is missing or unexpected, and the outputs are the same."""
    kind = getattr(transformers, name)
    torch.manual_seed(0)
    original = kind(transformers.LxmertConfig(**SETTINGS)).eval()
    original.save_pretrained(tmp_path / "original")
    model = two_stream_model(read_two_stream(tmp_path / "original"))
    ours = {path: np.asarray(array) for path, array in flat(nnx.state(model)).items()}
    tensors = two_stream_names.official_two_stream(ours, model.two_stream.config)
    (tmp_path / "back").mkdir()
    state = two_stream_names.official_state_dict(tensors, model.two_stream.config)
    write_safetensors(tmp_path / "back/model.safetensors", state)
    original.config.save_pretrained(tmp_path / "back")
    back, report = kind.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(report[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    for key, tensor in original.state_dict().items():
        np.testing.assert_array_equal(back.state_dict()[key].numpy(), tensor.numpy(), err_msg=key)
