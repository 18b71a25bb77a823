"""Questions among the captions of pre-training: which answer is asked, the loss, and attributes of regions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import pretrain as recipes
from data_prep.scene_kinds import build_scene_questions
from data_prep.scenes import questions as corpus
from data_prep.scenes.world import CLASS_NAMES
from tests.helpers.pretrain_case import (
    FEATURES,
    PRETRAIN,
    build,
    first_batch,
    losses_and_gradients,
    records_of_train,
    shrunk,
)
from vlbert_jax.tasks.answer_lists import AnswerVocabulary, answers_of, lxmert_spelling
from vlbert_jax.tasks.pretrain.batches import train_batches
from vlbert_jax.tasks.pretrain.examples import answers_of_record
from vlbert_jax.tasks.pretrain.questions import sampled_answer


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    build_scene_questions(folder, num_train=16, num_val=6, feature_width=FEATURES)
    return folder


def asking(data_dir, variant="lxmert_base", **fields):
    config = shrunk(variant, data_dir, **{"model.encoder.num_layers": 1, "losses.answers": True})
    config.model.num_attributes, config.model.num_answers = len(corpus.ATTRIBUTES), len(corpus.answers())
    config.data.update(
        dict(
            captions="region_captions/scene_questions", vocab="scene_questions/vocab.txt", text_length=17,
            class_names="scene_questions/objects_vocab.txt", answers="scene_questions/answers.json",
        )
    )  # fmt: skip
    config.update_from_flattened_dict(fields)
    return config


@pytest.mark.parametrize("given, expected", [
    ("A Man.", "man"), ("the woman", "woman"), ("Two", "2"), ("ten", "10"), ("grey", "gray"), ("none", "none"),
    ("an apple .", "apple"), ("a the dog", "dog"), ("at night", "at night"), ("zero", "zero"),
])  # fmt: skip
def test_answers_are_written_as_in_the_list(given, expected):
    assert lxmert_spelling(given) == expected


def test_an_answer_is_sampled_by_its_score():
    known = AnswerVocabulary(["red", "pink", "2", "<unk>"])
    given = ["Pink", "crimson", "the red", "two"], [0.5, 9.0, 1.0, 0.5]  # crimson is not in the list
    found = [sampled_answer(*given, known, uniform) for uniform in (np.arange(400) + 0.5) / 400]
    assert [found.count(number) for number in range(3)] == [200, 100, 100]
    assert sampled_answer([], [], known, 0.5) == sampled_answer(["crimson"], [1.0], known, 0.5) == -1
    assert sampled_answer(["red"], [0.0], known, 0.5) == -1


def test_records_without_answers_name_the_remedies():
    with pytest.raises(ValueError, match="with --answers, or set --config.losses.answers=False to train on captions"):
        answers_of_record({})


def test_targets_are_answers_of_matching_questions_and_attributes_of_regions(data_dir):
    config = asking(data_dir)
    known, patterns = answers_of(config), set()
    records = {}
    for record in records_of_train(data_dir, config.data.captions):
        records.setdefault(np.float32(record["features"]).tobytes(), []).append(record)
    asked = matched = 0
    batches = train_batches(config, 0, 0, 1)
    for _ in range(4):
        batch = next(batches)
        for row, answer in enumerate(batch.targets.answer.tolist()):
            count = int(batch.region_mask[row].sum()) - 1
            features = batch.region_features[row, 1 : 1 + count]
            same = next(x for key, x in records.items() if key[: features.nbytes] == features.tobytes())
            given = {lxmert_spelling(text) for record in same for text in record["answers"]}
            asked += answer >= 0
            matched += int(batch.targets.relationship[row])
            assert answer < 0 or (batch.targets.relationship[row] == 1 and known.entries[answer] in given)
            best = same[0]["attribute_scores"].argmax(1)[:count]
            np.testing.assert_array_equal(batch.targets.attributes[row, 1 : 1 + count], best)
            scores = same[0]["attribute_scores"].max(1)[:count].astype(np.float32)
            np.testing.assert_array_equal(batch.targets.attribute_scores[row, 1 : 1 + count], scores)
            patterns.update(best.tolist())
    assert 0.5 * matched < asked < matched and patterns == {0, 1, 2}  # three captions in four are questions


def test_the_demo_has_the_sizes_of_the_corpus(data_dir):
    config = recipes.lxmert_demo()
    sizes = config.model.num_attributes, config.model.num_answers, config.model.num_region_classes
    assert sizes == (len(corpus.ATTRIBUTES), len(corpus.answers()), len(CLASS_NAMES))
    config.data.data_dir, config.model.feature_size = str(data_dir), FEATURES
    batch = next(train_batches(config, 0, 0, 1))
    assert (batch.targets.answer >= 0).any() and batch.targets.attributes.any()
    assert not batch.element_mask[..., -1].any()  # no text is cut


@pytest.mark.parametrize("variant", ["lxmert_base", "uniter_base"])
def test_the_loss_is_the_mean_over_questions(variant, data_dir):
    """It begins near that of a uniform guess and trains its head through the pooler."""
    config = asking(data_dir, variant, **{f"losses.ratios.{name}": 0.0 for name in ("mlm", "mrc", "regression")})
    config.losses.ratios.relationship = 0.0
    batch, model = first_batch(config), build(config)
    losses, reached = losses_and_gradients(config, batch, model, ("answers",))
    assert abs(losses["answers"] - np.log(len(corpus.answers()))) < 0.5
    pooler = "two_stream/text_pooler/kernel" if variant == "lxmert_base" else "vlbert/pooler/kernel"
    assert {"question_head/classes/kernel", "question_head/transform/bias", pooler} <= reached["answers"]
    graphdef, state = nnx.split(model)
    found = jax.jit(lambda state: PRETRAIN.score(nnx.merge(graphdef, state), batch, config))(state)
    asked = int((batch.targets.answer >= 0).sum())
    assert 0 < asked < len(batch.targets.answer)
    np.testing.assert_allclose(found["answers_loss"][0] / asked, losses["answers"], rtol=1e-5)
    assert int(found["answers_loss"][1]) == int(found["answers_accuracy"][1]) == asked
    none = batch.replace(targets=batch.targets.replace(answer=jnp.full_like(batch.targets.answer, -1)))
    assert float(PRETRAIN.loss_counts(none, config, ("answers",))["answers"]) == 1.0


@pytest.mark.parametrize("fields, message", [
    ({"data.answers": "lxmert_gqa.json"}, "lxmert_gqa.json has 1842 answers, but config.model.num_answers is"),
    ({"data.captions": "none"}, "none"),
])  # fmt: skip
def test_other_lists_are_refused(fields, message, data_dir):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        next(train_batches(asking(data_dir, **fields), 0, 0, 1))
