"""Examples of RefCOCO+ equal examples that were built by hand."""

import io

import numpy as np
import pytest
from PIL import Image

from tests.helpers import GOLDEN
from vlbert_jax.batch import END, IMG, NO_IMAGE
from vlbert_jax.data.tokenizer import load_tokenizer
from vlbert_jax.tasks.region import examples
from vlbert_jax.tasks.region.examples import (
    KINDS,
    ExpressionLayout,
    candidates,
    expression_example,
    meant_row,
)


@pytest.fixture(scope="module")
def tokenizer():
    """Return a tokenizer whose vocabulary contains left and right."""
    vocab = GOLDEN / "data/common/vocab.txt"
    return load_tokenizer(str(vocab), len(vocab.read_text("utf-8").splitlines()))


def record_by_hand(expression="the man left in the hat"):
    """Return an image of 40x20 pixels (left half black), with two annotations and one detection."""
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:, 20:] = 255
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return dict(
        image=file.getvalue(), image_size=np.array([40, 20], np.int32), image_id="7", expression=expression,
        boxes=np.array([[0, 0, 9, 9], [20, 10, 39, 19]], np.float32), ann_ids=np.array([70, 71]),
        proposals=np.array([[22, 10, 41, 19]], np.float32), ann_id=71, sent_id=3,
        box=np.array([20, 10, 39, 19], np.float64),
    )  # fmt: skip


def layout_by_hand(**fields):
    options = dict(
        precomputed=False, image_scale=(40, 80), orientation="landscape", max_regions=4,
        feature_size=0, geometry_dtype=None, kind="both", sequence_length=14,
    )  # fmt: skip
    return ExpressionLayout(**options | fields)


def test_an_example_by_hand(tokenizer):
    ids = {word: tokenizer.backend.token_to_id(word) for word in ("the", "man", "left", "right", "in", "hat")}
    assert None not in ids.values()
    img, end = tokenizer.vocab_size + IMG, tokenizer.vocab_size + END
    for flip in (False, True):
        example = expression_example(record_by_hand(), flip, tokenizer, layout_by_hand())
        words = [ids[word] for word in ("the", "man", "right" if flip else "left", "in", "the", "hat")]
        text = [tokenizer.cls_id, *words, tokenizer.sep_id]
        expected = dict(
            token_ids=[[*text, img, img, img, img, end, 0, 0]],
            region_ids=[[0] * 8 + [0, 1, 2, 3] + [NO_IMAGE] * 3],
            segment_ids=[[0] * 8 + [2] * 5 + [0] * 2],
            position_ids=[[*range(8), 8, 8, 8, 8, 9, 0, 0]],
            element_mask=[[True] * 13 + [False] * 2],
            region_positions=[[8, 9, 10, 11, 0]],
            region_mask=[True, True, True, True, False],
            region_hidden=[False] * 5,
            # Boxes are scaled by 2: the whole image, the detection (clipped), both annotations.
            boxes=[[0, 0, 78, 38], [44, 20, 79, 38], [0, 0, 18, 18], [40, 20, 78, 38], [0] * 4]
            if not flip
            else [[1, 0, 79, 38], [0, 20, 35, 38], [61, 0, 79, 18], [1, 20, 39, 38], [0] * 4],
            image_size=[[80, 40]],
            region_targets=[False, True, False, True, False],
            region_hits=[False, True, False, True, False],
            text_cut=False,
        )
        assert example.keys() == expected.keys() | {"pixels"}
        for name, value in expected.items():
            np.testing.assert_array_equal(example[name], value, err_msg=name)
        assert example["pixels"].shape == (1, 64, 96, 3)
        assert (example["pixels"][0, :40, :38].mean() > 200) == flip and not example["pixels"][0, 40:].any()


def test_kinds_of_regions_and_the_target_row():
    record = record_by_hand()
    rows = {kind: candidates(record, kind).tolist() for kind in KINDS}
    assert rows["gt"] == record["boxes"].tolist() and rows["detected"] == record["proposals"].tolist()
    assert rows["both"] == rows["detected"] + rows["gt"]
    assert [meant_row(record, kind) for kind in KINDS] == [2, -1, 3]
    with pytest.raises(ValueError, match="annotation 72, which is not one of image 7: .* different builds"):
        meant_row(record | dict(ann_id=72), "detected")


def test_long_expressions_are_truncated_and_regions_beyond_the_limit_are_dropped(tokenizer):
    layout = layout_by_hand(max_regions=2, sequence_length=8)
    example = expression_example(record_by_hand(), False, tokenizer, layout)
    assert example["text_cut"] and example["element_mask"].all()
    first = [tokenizer.backend.token_to_id(word) for word in ("the", "man", "left")]
    assert example["token_ids"][0, :5].tolist() == [tokenizer.cls_id, *first, tokenizer.sep_id]
    assert example["region_mask"].tolist() == [True] * 3
    assert example["region_targets"].tolist() == example["region_hits"].tolist() == [False, True, False]


def test_an_iou_of_one_half_is_a_hit_but_not_a_target(tokenizer):
    """The official IoU threshold is > 0.5 for training and >= 0.5 for testing."""
    record = record_by_hand() | dict(
        boxes=np.array([[0, 0, 9, 9], [0, 0, 9, 4]], np.float32), ann_id=70, box=np.array([0, 0, 9, 9], np.float64)
    )
    layout = layout_by_hand(kind="gt", image_scale=(20, 40))
    example = expression_example(record, False, tokenizer, layout)
    assert example["region_targets"][:3].tolist() == [False, True, False]
    assert example["region_hits"][:3].tolist() == [False, True, True]


def test_targets_are_compared_at_the_input_size(tokenizer, monkeypatch):
    """The target box is bit-identical to the box of its region, also with the detector's resize."""
    record = record_by_hand() | dict(
        image=b"", image_size=np.array([501, 333], np.int32), boxes=np.array([[470, 11, 499, 40]], np.float32),
        proposals=np.zeros((0, 4), np.float32), ann_ids=np.array([71]), box=np.array([470, 11, 499, 40], np.float64),
    )  # fmt: skip
    compared = []
    monkeypatch.setattr(examples, "box_iou", lambda boxes, box: compared.append((boxes, box)) or np.ones(len(boxes)))
    for caffe_resize in (False, True):
        layout = layout_by_hand(kind="gt", image_scale=(600, 1000), caffe_resize=caffe_resize)
        compared.clear()
        example = expression_example(record, False, tokenizer, layout)
        resized, meant = min(compared, key=lambda pair: pair[0].dtype.itemsize)  # targets of training use float32
        np.testing.assert_array_equal(resized[1], example["boxes"][1])
        np.testing.assert_array_equal(meant, example["boxes"][1])
        (original, box) = max(compared, key=lambda pair: pair[0].dtype.itemsize)
        np.testing.assert_allclose(original[1], box, atol=1e-3)
