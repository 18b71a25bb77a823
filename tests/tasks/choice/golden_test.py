"""VCR items, inputs of the transformer, accuracies and files equal those of the official code.

The builders of data_prep read every `vcr_*` folder in tests/golden/data and
$VLBERT_GOLDEN/data. The results of the official code are in dataset.json of each folder.
tests/tasks/golden_test.py compares logits, losses and gradients.
"""

import csv
import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from data_prep.build import run_builder
from data_prep.vcr import VCRImages, VCRQuestions
from tests.helpers.golden_data_case import FOLDERS, GRAY_LEVELS, check_boxes, load_tokenizer
from vlbert_jax.batch import END, IMG, NO_IMAGE
from vlbert_jax.data.records import open_split
from vlbert_jax.model.region_head import prepare_pixels
from vlbert_jax.tasks.choice import task as choice_task
from vlbert_jax.tasks.choice.examples import ChoiceLayout, choice_example
from vlbert_jax.tasks.choice.texts import PERSON_NAMES, object_names, tagged_tokens

CHOICE = choice_task.ChoiceTask()

VARIANTS = sorted(name for name in FOLDERS if name.startswith("vcr_"))
WHOLE = 1000  # tokens, more than any text has


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer()


class Variant:
    """A folder of fixtures and its records, which are built once."""

    def __init__(self, folder: pathlib.Path, out: pathlib.Path):
        self.folder = folder
        content = json.loads((folder / "dataset.json").read_text())
        self.runs, self.names = content["examples"], content["person_names"]
        for builder in (VCRImages, VCRQuestions):
            run_builder(builder("sample", out, folder / "data/vcr"))
        images = open_split(out, "vcr_images/sample", "images")
        self.records = {}
        for split in ("train", "val", "test"):
            for orientation in ("landscape", "portrait"):
                texts = open_split(out, "vcr/sample", f"{split}_{orientation}", optional=True)
                for text in map(texts.__getitem__, range(len(texts))):
                    self.records[text["annot_id"]] = images[int(text["image_number"])] | text


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request, tmp_path_factory):
    return Variant(FOLDERS[request.param], tmp_path_factory.mktemp(request.param))


def layout_of(run, record, text_length=64) -> ChoiceLayout:
    width, height = record["image_size"]
    return ChoiceLayout(
        precomputed=False,
        image_scale=tuple(run["scales"]),
        orientation="landscape" if width >= height else "portrait",
        max_regions=len(record["boxes"]) + 2,
        feature_size=0,
        geometry_dtype=None,
        subtask=run["task"].lower(),
        sequence_length=text_length + len(record["boxes"]) + 6,
        text_length=text_length,
        roi_size=14,
        num_classes=81,
    )


def example_of(variant, run, item, tokenizer, text_length=64):
    record = variant.records[item["annot_id"]]
    layout = layout_of(run, record, text_length)
    return choice_example(record, run["flip_prob"] == 1, tokenizer, layout, item["person_name_id_before"])


def expected_texts(item) -> list[tuple[dict, dict]]:
    """Return the (first, second) text of each sequence of an official item."""
    responses = item.get("rationale_choices") or item["answer_choices"]
    return [(q, r) for q in item.get("question_per_answer", [item.get("question")]) for r in responses]


# --- Items ----------------------------------------------------------------------------------------


def test_items(variant, tokenizer):
    assert list(PERSON_NAMES) == variant.names
    for run in variant.runs:
        for item in run["items"]:
            # The official code does not truncate test sequences, so the limit exceeds all lengths.
            room = 64 if "question_per_answer" not in item else WHOLE
            example = example_of(variant, run, item, tokenizer, room)
            where = f"{run['split']} {run['task']} {item['annot_id']}"
            check_sequences(expected_texts(item), example, tokenizer, where)
            check_regions(item, example, where)
            check_image(variant, run, item, example, where)
            label = item.get("answer_label" if run["task"] == "Q2A" else "rationale_label", -1)
            assert example["choice"] == label, where


def check_sequences(texts, example, tokenizer, where):
    count = int(example["region_mask"].sum())
    assert len(example["token_ids"]) == len(texts), where
    for n, (first, second) in enumerate(texts):
        ids = [tokenizer.cls_id, *first["ids"], tokenizer.sep_id, *second["ids"], tokenizer.sep_id]
        t = len(ids)
        row = {name: example[name][n] for name in ("token_ids", "region_ids", "segment_ids", "position_ids")}
        row = {name: values[: t + count + 1].tolist() for name, values in row.items()}
        vocab_size = tokenizer.vocab_size
        assert row["token_ids"] == ids + [vocab_size + IMG] * count + [vocab_size + END], where
        tags = [0, *first["tags"], 0, *second["tags"], 0]
        assert row["region_ids"] == tags + list(range(count)) + [NO_IMAGE], where
        assert row["segment_ids"] == [0] * (len(first["ids"]) + 2) + [1] * (len(second["ids"]) + 1) + [2] * (count + 1)
        assert row["position_ids"] == [*range(t), *[t] * count, t + 1], where
        assert example["element_mask"][n].sum() == t + count + 1, where
        assert example["region_positions"][n, :count].tolist() == list(range(t, t + count)), where


def check_regions(item, example, where):
    check_boxes(item, example, where)
    k, official = len(item["boxes"]), np.array(item["boxes"])
    assert example["region_classes"][:k].tolist() == official[:, 5].astype(int).tolist(), where
    assert (example["region_classes"][k:] == -1).all()
    if "masks_skimage_0.16.2" in item:
        masks = np.array([[int(bit) for bit in mask] for mask in item["masks_skimage_0.16.2"]]).reshape(-1, 14, 14)
        np.testing.assert_array_equal(example["region_shapes"][:k], masks, err_msg=where)


def check_image(variant, run, item, example, where):
    """Compare pixels; the padding with zeros may have up to 31 more rows and columns."""
    if "image" not in item:
        return
    probes = item["image"]
    _, height, width = probes["shape"]
    pixels = prepare_pixels(jnp.asarray(example["pixels"]), jnp.asarray(example["image_size"]))
    pixels = np.asarray(pixels)[0].transpose(2, 0, 1)
    assert pixels.shape[1] - height in range(32) and pixels.shape[2] - width in range(32), where
    assert not pixels[:, height:].any() and not pixels[:, :, width:].any(), where
    pixels = pixels[:, :height, :width]
    at = np.ix_(range(3), probes["grid_y"], probes["grid_x"])
    np.testing.assert_allclose(pixels[at], probes["grid"], atol=GRAY_LEVELS, err_msg=where)
    np.testing.assert_allclose(pixels.mean((1, 2)), probes["channel_mean"], atol=0.5, err_msg=where)
    np.testing.assert_allclose((pixels == 0).all(0).mean(), probes["zero_fraction"], atol=1e-5, err_msg=where)
    small, flip = "_small" * (max(run["scales"]) < 600), "_flip" * (run["flip_prob"] > 0)
    name = f"{run['split']}_{run['task']}{small}{flip}_item{run['items'].index(item)}_image.npz"
    if (variant.folder / name).exists():
        with np.load(variant.folder / name) as file:
            np.testing.assert_allclose(pixels, file["image"], atol=GRAY_LEVELS, err_msg=where)
            np.testing.assert_array_equal((pixels == 0).all(0), (file["image"] == 0).all(0), err_msg=where)


def test_test_rationales_are_truncated_as_in_training(variant, tokenizer):
    """Context and rationale of test items lose only their ends in the limit of 64 tokens.

    The official code does not truncate test items.
    """
    for run in variant.runs:
        for item in run["items"]:
            if "question_per_answer" not in item:
                continue
            example, texts = example_of(variant, run, item, tokenizer), expected_texts(item)
            whole = [len(first["ids"]) + len(second["ids"]) for first, second in texts]
            kept = example["element_mask"].sum(1) - int(example["region_mask"].sum()) - 4  # [CLS], two [SEP], [END]
            assert len(kept) == 16 and (kept <= 64).all() and (kept <= whole).all()
            assert bool(example["text_cut"]) == (max(whole) > 64)
            for n, (first, second) in enumerate(texts):
                segments, ids = example["segment_ids"][n], example["token_ids"][n]
                words = example["element_mask"][n] & (ids < tokenizer.vocab_size)
                response = ids[words & (segments == 1)][:-1].tolist()
                assert response == second["ids"][: len(response)]
                context = ids[words & (segments == 0)][1:-1].tolist()
                if max(whole[n - n % 4 : n - n % 4 + 4]) <= 64:
                    assert (context, response) == (first["ids"], second["ids"])
                assert len(context) + len(response) == kept[n]


def test_texts_are_tokenized_word_by_word(variant, tokenizer):
    """Tokens and tags of each text start with those of the official item."""
    for run in variant.runs:
        for item in run["items"]:
            record = variant.records[item["annot_id"]]
            called = object_names(record["objects"], item["person_name_id_before"])
            for text, field in ((record["question"], "question"), (record["rationales"][0], "rationale_choices")):
                official = item.get(field)
                official = official[0] if isinstance(official, list) else official
                if official is None or (field == "question" and run["task"] == "QA2R"):
                    continue
                tokens = tagged_tokens(text, called, tokenizer)[: len(official["ids"])]
                assert [token for token, _ in tokens] == official["ids"]
                assert [region for _, region in tokens] == official["tags"]


# --- Batches --------------------------------------------------------------------------------------


TRANSFORMER = ("text_input_ids", "text_token_type_ids", "text_mask", "text_visual_box_index", "box_mask")


def test_inputs_of_the_transformer(variant, tokenizer):
    for run in (run for run in variant.runs if "batch" in run):
        # In the official code, QA2R on test is one pass per answer without truncation.
        per_answer = run["batch"].get("to_transformer_per_answer")
        passes, room = (per_answer, WHOLE) if per_answer else ([run["batch"]["to_transformer"]], 64)
        for row, item in enumerate(run["items"]):
            example = example_of(variant, run, item, tokenizer, room)
            expected = [{name: fields[name][row][n] for name in TRANSFORMER} for fields in passes for n in range(4)]
            assert len(example["token_ids"]) == len(expected)
            for n, fields in enumerate(expected):
                check_row(fields, example, n, tokenizer)


def check_row(official, example, n, tokenizer):
    t, k = sum(official["text_mask"]), sum(official["box_mask"])
    assert official["text_mask"] == [1] * t + [0] * (len(official["text_mask"]) - t)
    ids, regions = example["token_ids"][n], example["region_ids"][n]
    assert ids[:t].tolist() == official["text_input_ids"][:t]
    assert example["segment_ids"][n, : t + k + 1].tolist() == official["text_token_type_ids"][:t] + [2] * (k + 1)
    assert regions[:t].tolist() == official["text_visual_box_index"][:t]
    assert regions[t : t + k].tolist() == list(range(k)) and ids[t + k] == tokenizer.vocab_size + END
    assert example["element_mask"][n].tolist() == [i <= t + k for i in range(len(ids))]


# --- Scores and files -----------------------------------------------------------------------------


def table(path) -> tuple[list[str], list[str], np.ndarray]:
    with open(path, newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    return header, [row[0] for row in rows], np.array([row[1:] for row in rows], float)


def scoring(variant):
    folder = variant.folder / "scoring"
    return folder, json.loads((folder / "scoring.json").read_text())


def test_accuracies(variant):
    _, official = scoring(variant)
    fields = {"q2a": "answer", "qa2r": "rationale"}
    logits = {name: np.array(official[f"{field}_logits"], np.float32) for name, field in fields.items()}
    labels = {name: np.array(official[f"{field}_label"]) for name, field in fields.items()}
    ours = choice_task.accuracies(logits, labels)
    expected = {"vcr_q2a_accuracy": "Q->A", "vcr_qa2r_accuracy": "QA->R", "vcr_q2ar_accuracy": "Q->AR"}
    assert ours == pytest.approx({name: official[theirs] for name, theirs in expected.items()}, abs=1e-12)


def test_leaderboard_files(variant, tmp_path):
    folder, official = scoring(variant)
    per_answer = np.array(official["test_rationale_logits_per_answer"], np.float32)  # [answer, question, rationale]
    logits = {
        "q2a": np.array(official["test_answer_logits"], np.float32),
        "qa2r": per_answer.transpose(1, 0, 2).reshape(per_answer.shape[1], 16),
    }
    tables = {name: choice_task.probabilities(scores) for name, scores in logits.items()}
    for file, parts in (("Q2A", ["q2a"]), ("QA2R", ["qa2r"]), ("Q2AR", ["qa2r", "q2a"])):
        choice_task.write_table(tmp_path / "ours.csv", official["test_ids"], {name: tables[name] for name in parts})
        ours, theirs = table(tmp_path / "ours.csv"), table(folder / f"test_result_{file}.csv")
        assert ours[:2] == theirs[:2]
        np.testing.assert_allclose(ours[2], theirs[2], rtol=0, atol=1e-6)
