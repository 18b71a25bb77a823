"""Captions: no word reads a later one, regions read no word, beam search equals its definition, runs write files."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import caption as recipes
from tests.helpers.predict_case import write_model
from tests.helpers.retrieval_case import VOCAB_SIZE, build_tables, shrunk
from vlbert_jax.data.tables import Split
from vlbert_jax.data.tokenizer import tokenizer_of
from vlbert_jax.detector.regions import Regions
from vlbert_jax.predict import parse_arguments
from vlbert_jax.prediction.predictor import load
from vlbert_jax.tasks import get_task
from vlbert_jax.tasks.caption import task as captions
from vlbert_jax.tasks.caption.examples import DescriptionLayout, caption_ids, masked_caption
from vlbert_jax.tasks.caption.model import write_captions
from vlbert_jax.training import sharding
from vlbert_jax.training.evaluate import evaluate_run
from vlbert_jax.training.loop import train

CAPTION = get_task("caption")
T = 10  # places of a caption
CLS, SEP, MASK = 2, 3, 4  # in the vocabulary of the tables


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return build_tables(tmp_path_factory.mktemp("data"))


def tiny(data_dir, **fields):
    strong = {"model.encoder.region_visual_gain_init": 4.0, "model.encoder.text_visual_gain_init": 4.0}
    return shrunk(recipes.coco(), data_dir, **strong | {"model.encoder.init_deviation": 0.5} | fields)


# --- Examples -------------------------------------------------------------------------------------


def test_tokens_are_masked_with_the_stated_shares(data_dir):
    tokenizer = tokenizer_of(tiny(data_dir))
    ids = caption_ids("a red square on the left", False, tokenizer, T)
    rng, counts, kept, masked_share = np.random.default_rng(0), [], 0, 0
    for _ in range(2000):
        masked, labels = masked_caption(ids, 0.3, 3, rng, tokenizer)
        places = np.flatnonzero(labels >= 0)
        assert masked[0] == CLS and labels[0] == -1 and 1 <= len(places) <= 3
        assert (labels[places] == ids[places]).all() and (masked[labels < 0] == ids[labels < 0]).all()
        counts.append(places)
        kept += (masked[places] == ids[places]).sum()
        masked_share += (masked[places] == MASK).sum()
    total = sum(map(len, counts))
    assert masked_share / total == pytest.approx(0.8, abs=0.03) and kept / total == pytest.approx(0.11, abs=0.03)
    chosen = np.bincount(np.concatenate(counts), minlength=len(ids))[1:]
    assert chosen.min() > 0.8 * chosen.mean()  # every place alike, [SEP] too


def test_regions_have_one_position_whatever_the_length_of_the_caption(data_dir):
    config = tiny(data_dir)
    split, batch = Split(config, "train"), next(CAPTION.train_batches(config, 0, 0, 1))
    assert len(set(batch.element_mask[:, 0, :T].sum(1))) > 1
    regions = batch.token_ids == VOCAB_SIZE
    assert (batch.position_ids[regions] == T).all() and regions[:, 0, T].all() and not regions[:, 0, :T].any()
    assert (batch.position_ids[batch.token_ids == VOCAB_SIZE + 2] == T + 1).all()
    record = split[int(batch.index[0])] | dict(image=np.zeros((4, 4, 3), np.uint8), labels=())
    asked = CAPTION.example_from_text(record, "", (), config)
    for name in ("token_ids", "region_ids", "position_ids", "segment_ids", "element_mask"):
        np.testing.assert_array_equal(asked[name][0, T:], getattr(batch, name)[0, 0, T:], err_msg=name)


def test_evaluation_reads_every_image_once(data_dir):
    config, seen = tiny(data_dir), []
    split = Split(config, "val")
    for host in range(2):
        for batch in CAPTION.eval_batches(config, host, 2)["images"]:
            seen += [int(split.texts[int(i)]["image_number"]) for i in batch.index if i >= 0]
    assert sorted(seen) == list(range(8, 16))


# --- The model ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def built(data_dir):
    """Return the config, a model, a batch, and the logits of every place of sequences of the batch."""
    config = tiny(data_dir)
    model = CAPTION.build_model(config, nnx.Rngs(0))
    model.mlm_head.bias.set_value(model.mlm_head.bias[...].at[SEP].set(1.5))  # captions of different lengths
    graphdef, state = nnx.split(model)
    batch = jax.tree.map(jnp.asarray, next(CAPTION.eval_batches(config, 0, 1)["images"]))

    @jax.jit
    def states_and_logits(token_ids, element_mask):
        model = nnx.merge(graphdef, state)
        states = model.states(batch.replace(token_ids=token_ids, element_mask=element_mask))
        logits = model.word_logits(states, jnp.broadcast_to(jnp.arange(T), (4, 1, T)))
        return states, logits[..., :VOCAB_SIZE]  # the rows behind are not tokens

    return config, graphdef, state, batch, states_and_logits


def test_a_later_word_changes_no_earlier_logit(built):
    _, _, _, batch, states_and_logits = built
    mask = batch.element_mask.at[:, :, :T].set(True)
    ids = batch.token_ids.at[:, :, 1:T].set(7)
    states, logits = states_and_logits(ids, mask)
    other, changed = states_and_logits(ids.at[:, :, 6].set(9), mask)
    np.testing.assert_array_equal(changed[:, :, :6], logits[:, :, :6])
    assert all(np.abs(changed[:, :, place] - logits[:, :, place]).max() > 1e-4 for place in range(6, T))
    image = np.array(mask[:, :, T:])
    np.testing.assert_array_equal(other[:, :, T:][image], states[:, :, T:][image])  # regions and [END] read no word


def test_words_read_the_image(built):
    config, graphdef, state, batch, states_and_logits = built
    mask = batch.element_mask.at[:, :, T : T + 2].set(False)
    logits, without = (states_and_logits(batch.token_ids, m)[1] for m in (batch.element_mask, mask))
    assert np.abs(logits - without)[:, :, 1].max() > 1e-4


def step_by_step(built, beams):
    """Return the best captions and their mean log probabilities by a search on the host, for every image."""
    config, _, _, batch, states_and_logits = built
    allowed = np.isin(np.arange(VOCAB_SIZE), [SEP, *tokenizer_of(config).ordinary_ids])
    found = []
    for image in range(4):
        alive = [([CLS], 0.0)]
        for step in range(1, T):
            grown = []
            for words, total in alive:
                if words[-1] == SEP:
                    grown.append((words, total))
                    continue
                ids = batch.token_ids.at[image, 0, :T].set(jnp.array(words + [MASK] + [0] * (T - step - 1)))
                real = batch.element_mask.at[image, 0, :T].set(jnp.arange(T) <= step)
                logits = np.array(states_and_logits(ids, real)[1])[image, 0, step].astype(np.float64)
                logits = np.where(allowed, logits, -np.inf)
                chances = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
                grown += [(words + [token], total + chances[token]) for token in np.flatnonzero(allowed)]
            alive = sorted(grown, key=lambda one: -one[1])[:beams]
        scored = [(words + [0] * (T - len(words)), total / (len(words) - 1)) for words, total in alive]
        found.append(sorted(scored, key=lambda one: -one[1]))
    return found


@pytest.fixture(scope="module")
def written(built):
    config, graphdef, state, batch, _ = built
    writable = jnp.asarray(np.isin(np.arange(VOCAB_SIZE), [SEP, *tokenizer_of(config).ordinary_ids]))

    def run(beams):
        def program(state, batch):
            return write_captions(nnx.merge(graphdef, state), batch, beams, T, (CLS, SEP, MASK), writable)

        return jax.device_get(jax.jit(program)(state, batch))

    return {beams: run(beams) for beams in (1, 3)}


@pytest.mark.parametrize("beams", [1, 3])
def test_beam_search_equals_a_search_on_the_host(built, written, beams):
    """With one beam this is the greedy caption: the most probable word each time."""
    tokens, scores = written[beams]
    for image, expected in enumerate(step_by_step(built, beams)):
        assert tokens[image].tolist() == [words for words, _ in expected]
        np.testing.assert_allclose(scores[image], [score for _, score in expected], atol=1e-4)
    assert {len(np.flatnonzero(row)) for rows in written[3][0] for row in rows} != {T}  # some end before the last place
    assert np.ptp(written[1][1]) > 1e-3  # images differ


# --- Runs and answers -----------------------------------------------------------------------------


def test_runs_and_the_file_of_captions(data_dir, tmp_path, monkeypatch, caplog):
    config = tiny(data_dir, total_steps=2, **{"data.beams": 1})
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    train(config, CAPTION, tmp_path, mesh)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {"caption_loss", "caption_accuracy"} <= rows[0].keys() & rows[-1].keys()
    given = []
    monkeypatch.setattr(captions, "missing_programs", lambda: "")
    monkeypatch.setattr(captions, "caption_scores", lambda *args: given.append(args) or dict(cider=0.5))
    assert evaluate_run(config, CAPTION, tmp_path, mesh)["cider"] == 0.5
    written = json.loads((tmp_path / "predictions/val.json").read_text())
    assert sorted(line["image_id"] for line in written) == list(range(1008, 1016))
    ((found, references),) = given
    assert {1000 + image: text for image, text in found.items()} == {x["image_id"]: x["caption"] for x in written}
    assert sorted(map(len, references.values())) == sorted(1 + image % 3 for image in range(8, 16))
    monkeypatch.setattr(captions, "missing_programs", lambda: "The program java cannot be found.")
    with caplog.at_level("WARNING"):
        row = dict(index=np.array([0]), tokens=np.array([[CLS, 7, SEP]]))
        assert CAPTION.conclude(tmp_path, {"": row}, config) == {}
    assert "not scored: The program java cannot be found" in caplog.text
    config.data.scorer = "coco"
    with pytest.raises(ValueError, match="config.data.scorer is 'coco'; it must be empty or one of own"):
        CAPTION.conclude(tmp_path, {"": row}, config)


def test_a_user_gets_captions(data_dir, tmp_path):
    config = tiny(data_dir, **{"data.beams": 3})
    predictor = load(write_model(tmp_path / "model", config))
    regions = Regions(
        boxes=np.array([[2, 2, 9, 9]], np.float32), source="a test", labels=("",), features=np.ones((1, 3), np.float32)
    )
    picture = predictor.look(np.zeros((16, 24, 3), np.uint8), regions)
    best = predictor.describe(picture, beams=3)
    assert len(best) == 3 and best[0].probability >= best[1].probability >= best[2].probability > 0
    assert not any("[" in answer.text for answer in best)
    for again in predictor.describe([picture, picture], beams=3):
        assert [answer.text for answer in again] == [answer.text for answer in best]
    assert parse_arguments(["--image=a.jpg", "--describe"]).describe == ["captions"]
    assert [answer.text for answer in predictor.ask(picture, "captions")] == [answer.text for answer in best]
    described = CAPTION.describe(best)
    assert described["captions"][0]["text"] == best[0].text and best[0].text in CAPTION.lines(described)[0]
    with pytest.raises(ValueError, match="beams is 0"):
        predictor.describe(picture, 0)
    with pytest.raises(ValueError, match=r"is a model for captions of images: call describe\(image, beams\) or ask"):
        predictor.answer(picture, "what?")


def test_what_cannot_caption_is_reported(data_dir):
    with pytest.raises(ValueError, match="'lxmert', which has two streams"):
        DescriptionLayout.of(tiny(data_dir, **{"model.architecture": "lxmert"}))
    with pytest.raises(ValueError, match="10 tokens of a caption .* and 3 regions need 13"):
        DescriptionLayout.of(tiny(data_dir, **{"data.sequence_length": 12}))
    config = tiny(data_dir)
    model = nnx.eval_shape(lambda: CAPTION.build_model(config, nnx.Rngs(0)))
    CAPTION.initialize_heads(model, config, {("mlm_head", "transform", "kernel")})
    with pytest.raises(ValueError, match="weights without a head for masked words"):
        CAPTION.initialize_heads(model, config, {("vlbert", "pooler", "kernel")})
