"""RefCOCO+ items, inputs of the transformer, scores and metrics equal those of the official code.

The builders of data_prep read every `refcoco_*` folder in tests/golden/data and
$VLBERT_GOLDEN/data. The results of the official code are in dataset.json and iou.json of each
folder.
"""

import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from data_prep.build import run_builder
from data_prep.refcoco import RefCOCOExpressions, RefCOCOImages
from data_prep.refcoco_files import ReferDownload
from tests.helpers.golden_data_case import FOLDERS, load_tokenizer
from vlbert_jax.batch import END, IMG, Batch, make_batch
from vlbert_jax.data.records import open_split
from vlbert_jax.geometry import box_iou
from vlbert_jax.model.region_head import prepare_pixels
from vlbert_jax.tasks.region import model as region_model
from vlbert_jax.tasks.region import task as region_task
from vlbert_jax.tasks.region.examples import POSITIVE, ExpressionLayout, expression_example, original_boxes

VARIANTS = sorted(name for name in FOLDERS if name.startswith("refcoco_"))
KINDS = {"gt": "gt", "proposal": "detected", "proposal+gt": "both"}
GRAY_LEVELS = 2.0  # decoders and resizers differ by up to two levels


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer()


class Variant:
    """A folder of fixtures and its records, which are built once."""

    def __init__(self, folder: pathlib.Path, out: pathlib.Path):
        self.folder, self.golden = folder, json.loads((folder / "dataset.json").read_text())
        self.runs = self.golden["examples"]
        (proposals,) = (folder / "data/coco").glob("refcoco+/proposal/*_dets.json")
        source, self.out = folder / "data/coco", out
        where = ("c", out, ReferDownload(source))
        run_builder(RefCOCOImages(*where, proposals=str(proposals.relative_to(source))))
        run_builder(RefCOCOExpressions(*where))
        self.images = open_split(out, "refcoco_images/c", "images")

    def records(self, split: str) -> list[dict]:
        """Return the records of a split in the official order."""
        parts = [open_split(self.out, "refcoco/c", f"{split}_{o}", True) for o in ("landscape", "portrait")]
        texts = sorted((part[i] for part in parts for i in range(len(part))), key=lambda record: record["index"])
        return [self.images[int(text["image_number"])] | text for text in texts]


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request, tmp_path_factory):
    return Variant(FOLDERS[request.param], tmp_path_factory.mktemp(request.param))


def layout_of(run, record) -> ExpressionLayout:
    width, height = record["image_size"]
    return ExpressionLayout(
        precomputed=False,
        image_scale=tuple(run["scales"]),
        orientation="landscape" if width >= height else "portrait",
        max_regions=64,
        feature_size=0,
        geometry_dtype=None,
        kind=KINDS[run["boxes"]],
        sequence_length=160,
    )


def examples_of(variant, run, tokenizer) -> list[dict]:
    return [
        expression_example(record, run["flip_prob"] == 1, tokenizer, layout_of(run, record))
        for record in variant.records(run["image_set"])
    ]


# --- Examples -------------------------------------------------------------------------------------


def test_examples(variant, tokenizer):
    assert {run["boxes"] for run in variant.runs} == set(KINDS) and any(run["flip_prob"] for run in variant.runs)
    for run in variant.runs:
        records, examples = variant.records(run["image_set"]), examples_of(variant, run, tokenizer)
        for number, (item, record, example) in enumerate(zip(run["items"], records, examples, strict=True)):
            where = f"{run['name']} item {number}"
            assert [record[name] for name in ("ref_id", "sent_id", "ann_id")] == [
                item[name] for name in ("ref_id", "sent_id", "ann_id")
            ], where
            assert int(record["image_id"]) == item["image_id"]
            if "gt_box_original_xyxy" in item:
                np.testing.assert_allclose(record["box"], item["gt_box_original_xyxy"], rtol=1e-6)
            check_elements(item, example, tokenizer, where)
            check_regions(item, example, where)
            if "image" in item:
                check_image(variant, run, number, item["image"], example, where)


def check_elements(item, example, tokenizer, where):
    text = [tokenizer.cls_id, *item["expression_ids"], tokenizer.sep_id]
    t, k = len(text), len(item["boxes"])
    ids = example["token_ids"][0]
    regions = [tokenizer.vocab_size + IMG] * k
    assert ids[: t + k + 1].tolist() == [*text, *regions, tokenizer.vocab_size + END], where
    assert example["element_mask"][0].sum() == t + k + 1 and not example["text_cut"]
    assert example["region_positions"][0, :k].tolist() == list(range(t, t + k)), where


def check_regions(item, example, where):
    k = len(item["boxes"])
    assert example["region_mask"].sum() == k == example["region_mask"][:k].sum()
    assert not example["region_hidden"].any()
    np.testing.assert_allclose(example["image_size"][0], item["im_info"][:2], rtol=0)
    np.testing.assert_allclose(example["boxes"][:k], item["boxes"], rtol=1e-5, atol=1e-5, err_msg=where)
    if "label" in item:
        assert example["region_targets"][:k].tolist() == [label == 1 for label in item["label"]], where
    assert not example["region_targets"][k:].any() and not example["region_hits"][k:].any()


def check_image(variant, run, number, probes, example, where):
    width, height = example["image_size"][0].astype(int)
    pixels = prepare_pixels(jnp.asarray(example["pixels"]), jnp.asarray(example["image_size"]))
    pixels = np.asarray(pixels)[0, :height, :width].transpose(2, 0, 1)
    assert list(pixels.shape) == probes["shape"], where
    at = np.ix_(range(3), probes["grid_y"], probes["grid_x"])
    np.testing.assert_allclose(pixels[at], probes["grid"], atol=GRAY_LEVELS, err_msg=where)
    np.testing.assert_allclose(pixels.mean((1, 2)), probes["channel_mean"], atol=0.5, err_msg=where)
    whole = variant.folder / f"{run['name']}_item{number}_image.npz"
    if whole.exists():
        with np.load(whole) as file:
            np.testing.assert_allclose(pixels, file["image"], atol=GRAY_LEVELS, err_msg=where)


def test_inputs_of_the_transformer(variant, tokenizer):
    for run in variant.runs:
        official = run["batch"]["to_transformer"]
        examples = examples_of(variant, run, tokenizer)
        for row, index in enumerate(run["batch"]["indices"]):
            example = examples[index]
            t, k = sum(official["text_mask"][row]), sum(official["box_mask"][row])
            ids, regions = example["token_ids"][0], example["region_ids"][0]
            assert ids[:t].tolist() == official["text_input_ids"][row][:t]
            assert example["segment_ids"][0, :t].tolist() == official["text_token_type_ids"][row][:t]
            assert example["segment_ids"][0, t : t + k + 1].tolist() == [2] * (k + 1)
            assert regions[:t].tolist() == official["text_visual_box_index"][row][:t] == [0] * t
            assert regions[t : t + k].tolist() == list(range(k))
            assert example["position_ids"][0, : t + k + 1].tolist() == [*range(t), *[t] * k, t + 1]
            assert example["element_mask"][0].tolist() == [i <= t + k for i in range(len(ids))]


def test_orientations_equal_the_official_groups(variant):
    groups = variant.golden["aspect_grouping"]["group_ids"]
    found = [int(record["image_size"][0] < record["image_size"][1]) for record in variant.records("train")]
    assert found == groups


# --- Scores ---------------------------------------------------------------------------------------


def test_iou_and_thresholds():
    for name in VARIANTS:
        golden = json.loads((FOLDERS[name] / "iou.json").read_text())
        for first, second, single, double, target, hit, _ in golden["rows"]:
            for dtype, expected, tolerance in ((np.float32, single, 1e-7), (np.float64, double, 1e-15)):
                boxes, box = np.array([first], np.float32), np.array(second, np.float32)  # the recorded dtype
                found = box_iou(boxes.astype(dtype), box.astype(dtype))
                assert found.dtype == dtype
                np.testing.assert_allclose(found[0], expected, rtol=0, atol=tolerance)
                if dtype == np.float32:
                    assert (found[0] > POSITIVE) == target, (first, second)
                else:
                    assert (found[0] >= POSITIVE) == hit, (first, second)


def test_scoring(variant, tokenizer):
    """Choices, original boxes and scores equal the official ones; padding is never chosen."""
    for run in (run for run in variant.runs if "scoring" in run):
        scoring, records = run["scoring"], variant.records(run["image_set"])
        examples = examples_of(variant, run, tokenizer)
        right = []
        rows = zip(scoring["logits"], scoring["pred_index"], scoring["pred_boxes"], scoring["correct"], strict=True)
        for record, example, (logits, chosen, box, correct) in zip(records, examples, rows, strict=True):
            if not example["region_mask"][chosen]:  # the official code can choose padding
                chosen = int(np.argmax(np.where(example["region_mask"][: len(logits)], logits, -np.inf)))
                right.append(bool(example["region_hits"][chosen]))
                continue
            kind, scale = KINDS[run["boxes"]], tuple(run["scales"])
            np.testing.assert_array_equal(original_boxes(record, kind, scale)[chosen], np.float32(box))
            assert example["region_hits"][chosen] == correct
            right.append(correct)
        batch = batch_of(examples)
        logits = np.full(batch.region_mask.shape, 99.0, np.float32)  # padding has the largest logits
        logits[:, : len(scoring["logits"][0])] = scoring["logits"]
        logits = jnp.where(batch.region_mask, logits, -jnp.inf)
        hits, count = region_model.choice_accuracy(logits, batch)
        assert (float(hits), float(count)) == (sum(right), len(records))
        if right == scoring["correct"]:
            assert np.isclose(float(hits) / float(count), scoring["accuracy"])


def batch_of(examples) -> Batch:
    names = ("token_ids", "region_ids", "segment_ids", "position_ids", "element_mask", "region_mask", "region_hits")
    fields = {name: jnp.asarray(np.stack([example[name] for example in examples])) for name in names}
    return make_batch(fields, region_task.RegionTargets)


def test_metrics(variant):
    golden = variant.golden["metrics"]
    logits, labels = np.array(golden["label_logits"], np.float32), np.array(golden["label"])
    real = labels >= 0
    none = jnp.zeros((len(labels), 1, 1), jnp.int32)
    batch = Batch(
        *[none] * 4,
        jnp.ones(none.shape, bool),
        region_mask=jnp.asarray(real),
        targets=region_task.RegionTargets(
            region_targets=jnp.asarray(labels == 1), region_hits=jnp.asarray(labels == 1)
        ),
    )
    logits = jnp.where(real, logits, -jnp.inf)
    ours = region_model.accuracies(logits, batch)
    official = dict(
        grounding_accuracy="RefAcc",
        region_accuracy="ClsAcc",
        positive_region_accuracy="ClsPosAcc",
        positive_region_fraction="ClsPosFrac",
    )
    assert ours.keys() == official.keys()
    for name, (total, count) in ours.items():
        np.testing.assert_allclose(float(total) / float(count), golden[official[name]], rtol=1e-6, err_msg=name)
