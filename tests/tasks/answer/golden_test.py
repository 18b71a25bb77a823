"""VQA examples, batches and scores equal those of the official dataset, collator and metric.

The builders of data_prep read every `vqa_*` folder in tests/golden/data and
$VLBERT_GOLDEN/data. The results of the official code are in dataset.json of each folder.
accuracy_test.py compares the official evaluation.
"""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from data_prep.build import run_vqa
from tests.helpers.golden_data_case import FOLDERS, check_boxes, check_features, check_pixels, load_tokenizer
from vlbert_jax.batch import END, IMG, Batch
from vlbert_jax.data.records import Records, open_split
from vlbert_jax.tasks import answer_lists
from vlbert_jax.tasks.answer import accuracy
from vlbert_jax.tasks.answer import task as answer_task
from vlbert_jax.tasks.answer.examples import QuestionLayout, question_example

ANSWER = answer_task.AnswerTask()

VARIANTS = sorted(name for name in FOLDERS if name.startswith("vqa_"))
SPLITS = {"train2014": "train", "val2014": "val", "test2015": "test", "test-dev2015": "test_dev"}
LENGTH = 140


class Variant:
    """A folder of fixtures and its two tables, which are joined by question id."""

    def __init__(self, folder, out):
        self.folder, self.recorded = folder, json.loads((folder / "dataset.json").read_text())
        coco = folder / "data/coco"
        run_vqa(coco, out, "golden", features=True, images=True)
        self.answers = answer_lists.load_answers(coco / "vqa/answers_vqa.txt")
        images = Records(open_split(out, "vqa_images/golden", "images"))
        self.order, self.records = {}, {}
        for split in SPLITS.values():
            names = (f"{split}_{orientation}" for orientation in ("landscape", "portrait"))
            texts = Records(*(open_split(out, "vqa/golden", name, optional=True) for name in names))
            texts = sorted((texts[i] for i in range(len(texts))), key=lambda text: text["index"])
            self.order[split] = [int(text["question_id"]) for text in texts]
            self.records |= {(split, int(t["question_id"])): images[int(t["image_number"])] | t for t in texts}

    def example(self, run, split, question_id, tokenizer):
        record = self.records[split, question_id]
        layout = QuestionLayout(
            text_length=1000, answer_head="mask",
            precomputed=run["precomputed"],
            image_scale=tuple(run["scales"]),
            orientation="square",
            max_regions=100,
            feature_size=record["features"].shape[1],
            geometry_dtype=None,
            sequence_length=LENGTH,
        )
        return question_example(record, bool(run["flip_prob"]), tokenizer, layout, self.answers)


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request, tmp_path_factory):
    return Variant(FOLDERS[request.param], tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer()


def text_of(example):
    """Return ids, segments, regions and length of the text (all elements before the regions)."""
    t = int(example["answer_positions"]) + 2
    return *(example[name][0, :t].tolist() for name in ("token_ids", "segment_ids", "region_ids")), t


def test_examples(variant, tokenizer):
    for run in variant.recorded["examples"]:
        splits = [SPLITS[name] for name in run["image_set"].split("+")]
        order = [(split, number) for split in splits for number in variant.order[split]]
        assert [number for _, number in order] == [item["question_id"] for item in run["items"]]
        for place, (item, (split, number)) in enumerate(zip(run["items"], order, strict=True)):
            where = f"{run['name']} question {number}"
            example = variant.example(run, split, number, tokenizer)
            ids, segments, regions, t = text_of(example)
            special = [tokenizer.sep_id, tokenizer.mask_id, tokenizer.sep_id]
            assert ids == [tokenizer.cls_id, *item["question_ids"], *special], where
            assert segments == [0] * (t - 2) + [1, 1] and regions == [0] * t, where
            assert not example["text_cut"]
            check_boxes(item, example, where)
            k = len(item["boxes"])
            tail = example["token_ids"][0, t : t + k + 1] - tokenizer.vocab_size
            assert tail.tolist() == [IMG] * k + [END] and example["element_mask"].sum() == t + k + 1, where
            if run["precomputed"]:
                check_features(item, example, where)
            else:
                name = f"{run['name']}_item{place}_image.npz"
                check_pixels(item["image"], example, variant.folder / name, False, where)
            if "label" in item:
                targets = np.zeros(len(variant.answers))
                for answer, score in item["label"].items():
                    targets[int(answer)] = score
                np.testing.assert_allclose(example["answer_targets"], targets, rtol=1e-6, err_msg=where)
            else:
                assert (example["answer_targets"] == -1).all(), where


def test_batches(variant, tokenizer):
    """The inputs of the transformer equal the official ones."""
    found = 0
    for run in variant.recorded["examples"]:
        if "batch3" not in run:
            continue
        splits = [SPLITS[name] for name in run["image_set"].split("+")]
        order = [(split, number) for split in splits for number in variant.order[split]]
        official = run["batch3"]["to_transformer"]
        for row, (split, number) in enumerate(order[: len(official["text_input_ids"])]):
            example = variant.example(run, split, number, tokenizer)
            ids, segments, regions, t = text_of(example)
            assert sum(official["text_mask"][row]) == t
            assert ids == official["text_input_ids"][row][:t]
            assert segments == official["text_token_type_ids"][row][:t]
            assert regions == official["text_visual_box_index"][row][:t]
            assert example["region_mask"].sum() == sum(official["box_mask"][row])
            found += 1
    assert found


def test_score_is_the_official_soft_accuracy(variant):
    recorded = variant.recorded["soft_accuracy"]
    targets = np.stack([accuracy.soft_targets(answers, variant.answers) for answers in recorded["answers"]])
    logits = jnp.eye(len(variant.answers))[np.array(recorded["pred_index"])]
    none = np.zeros((len(targets), 1, 1), np.int32)
    batch = Batch(none, none, none, none, none == 0, targets=answer_task.AnswerTargets(answer_targets=targets))
    np.testing.assert_allclose(answer_task.accuracy(logits, batch).mean(), recorded["SoftAcc"], atol=1e-6)


def test_variants_are_found():
    assert VARIANTS
