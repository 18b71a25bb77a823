"""The detector with Hugging Face's rules against recordings of Hugging Face's code, stage by stage and as a whole.

Fixtures `frcnn_hf_*` are found in tests/golden/two_stream and, when it is set, in $VLBERT_GOLDEN/two_stream. A
recording states by how much the original differs from itself in float64; boxes, which are large numbers, get twice
that.
"""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.helpers.golden_folders import golden_folders
from tests.helpers.weights_case import official_shapes
from vlbert_jax.detector import huggingface
from vlbert_jax.detector.detect import Detector, PreparedImage
from vlbert_jax.detector.options import HuggingFaceSettings, NetworkSettings, Selection, Settings
from vlbert_jax.detector.proposals import base_anchors
from vlbert_jax.detector.weights import detector_summary, read_detector, write_detector
from vlbert_jax.weights import detector_names

FILES = [path for folder in golden_folders("two_stream") for path in sorted(folder.glob("frcnn_hf_*.npz"))]
TOLERANCE = 1e-4  # of pixels, features, probabilities


class Recorded:
    """A recording, and our detector with its weights."""

    def __init__(self, path: Path):
        with np.load(path) as arrays:
            self.arrays = dict(arrays)
        meta = json.loads(path.with_suffix(".json").read_text())
        self.noise, config = meta["fp32_vs_fp64_maxdiff"], meta["config"]
        tensors = {name[3:]: array for name, array in self.arrays.items() if name.startswith("sd/")}
        settings = HuggingFaceSettings(
            proposals_before=config["RPN"]["PRE_NMS_TOPK_TEST"],
            proposals_after=config["RPN"]["POST_NMS_TOPK_TEST"],
            proposal_overlap=config["RPN"]["NMS_THRESH"],
            region_overlaps=tuple(config["ROI_HEADS"]["NMS_THRESH_TEST"]),
        )
        selection = Selection(
            image_scale=(config["INPUT"]["MIN_SIZE_TEST"], config["INPUT"]["MAX_SIZE_TEST"]),
            threshold=0.0,
            fewest=config["MIN_DETECTIONS"],
            most=config["MAX_DETECTIONS"],
        )
        self.tensors = detector_names.to_milvlg(tensors, base_anchors())
        self.detector = Detector(self.tensors, settings=settings, selection=selection)
        self.network = nnx.merge(self.detector.graphdef, self.detector.state)
        self.image = self.arrays["in/image_rgb"]
        self.size = huggingface.resized_size(self.image.shape[1::-1], selection.image_scale)
        self.pixels = huggingface.resized_pixels(self.image, self.size)

    def out(self, name: str) -> np.ndarray:
        return self.arrays[f"out/{name}"]


@pytest.fixture(scope="module", params=FILES, ids=lambda path: path.stem)
def recorded(request):
    return Recorded(request.param)


def close(ours, official, tolerance=TOLERANCE):
    np.testing.assert_allclose(np.asarray(ours, np.float64), official, rtol=0, atol=tolerance)


def test_pixels(recorded):
    assert tuple(recorded.out("sizes")[0, ::-1]) == recorded.size
    close(recorded.pixels[None], recorded.out("images").transpose(0, 2, 3, 1))


def test_feature_map_with_padding(recorded):
    """The padding of a batch has no effect."""
    expected = recorded.out("res4").transpose(0, 2, 3, 1)
    padded = jnp.pad(recorded.pixels, ((0, 37), (0, 55), (0, 0)))[None]
    found = jax.jit(recorded.network.backbone)(padded, jnp.array([recorded.size]))
    close(found[:, : expected.shape[1], : expected.shape[2]], expected, TOLERANCE + recorded.noise["res4"])


def test_proposals(recorded):
    feature_map, size = jnp.asarray(recorded.out("res4").transpose(0, 2, 3, 1)), jnp.array([recorded.size])

    @jax.jit
    def run(feature_map):
        scores, deltas = recorded.network.propose_scores(feature_map, size)
        return scores, *recorded.network.proposals(scores, deltas, size, jnp.ones(1))

    scores, boxes, mask, order = run(feature_map)
    expected = recorded.out("proposals")
    assert mask.sum() == len(expected)
    close(boxes[0, : len(expected)], expected, 2 * recorded.noise["proposals"])
    logits = recorded.out("proposal_logits")
    close(scores.reshape(-1)[order[0, : len(expected)]], 1 / (1 + np.exp(-logits.astype(np.float64))))


def test_regions(recorded):
    """From the image to the regions: the same ones in the same order, with refined boxes in pixels of the image."""
    (regions,) = recorded.detector.detect([recorded.image])
    (count,) = recorded.out("preds_per_image")
    assert len(regions) == count
    noise = recorded.noise
    close(regions.boxes, recorded.out("boxes")[0, :count], 2 * noise["boxes"])
    close(regions.features, recorded.out("roi_features")[0, :count], TOLERANCE + noise["roi_features"])
    close(regions.scores, recorded.out("obj_probs")[0, :count], TOLERANCE)
    class_ids = 1 + recorded.out("obj_ids")[0, :count]
    assert regions.labels == tuple(recorded.detector.class_names[i] for i in class_ids)
    close(regions.attribute_probabilities.max(-1), recorded.out("attr_probs")[0, :count], TOLERANCE)
    np.testing.assert_array_equal(regions.attribute_probabilities.argmax(-1), 1 + recorded.out("attr_ids")[0, :count])
    assert not regions.attribute_probabilities[:, 0].any()


def test_a_batch_gives_what_each_image_gives_alone(recorded):
    d, image = recorded.detector, recorded.image
    whole, *crops = [
        PreparedImage(crop, d.selection.image_scale, d.rules) for crop in (image, *[image[k:] for k in range(1, 20)])
    ]
    rows = next(k for k, crop in enumerate(crops, 1) if crop.canvas == whole.canvas and crop.size != whole.size)
    other = image[rows:]
    pair = Detector(recorded.tensors, settings=d.settings, selection=d.selection, batch_size=2)
    together = pair.detect([recorded.image, other])
    for found, image in zip(together, (recorded.image, other), strict=True):
        (alone,) = d.detect([image])
        close(found.boxes, alone.boxes, 2 * recorded.noise["boxes"])
        close(found.features, alone.features)


@pytest.mark.parametrize("form", ["orbax", "safetensors", "pt"])
def test_the_weights_choose_the_rules_after_a_conversion(recorded, form, tmp_path):
    """Settings of a class overrule them; weights with the anchors of Caffe have Caffe's rules."""
    target = tmp_path / ("detector" if form == "orbax" else f"detector.{form}")
    write_detector(recorded.tensors, {}, target, form)
    found = Detector(read_detector(target), settings=NetworkSettings(proposals_after=7))
    assert (found.rules, found.settings.proposals_after, found.selection.fewest) == ("huggingface", 7, 36)
    assert Detector(recorded.tensors, settings=Settings()).rules == "caffe"
    assert Detector(recorded.tensors | {detector_names.ANCHORS: base_anchors()}).rules == "caffe"
    two_scores = {f"{detector_names.OBJECTNESS}.weight": recorded.tensors[f"{detector_names.OBJECTNESS}.weight"] + 1}
    assert Detector(recorded.tensors | two_scores).rules == "caffe"


# --- The rules by hand ----------------------------------------------------------------------------


def test_an_overlap_at_the_threshold_is_kept():
    box, others = jnp.array([[0.0, 0, 2, 1]]), jnp.array([[0.0, 0, 1, 1], [0, 0, 1.01, 1], [2, 0, 4, 1]])
    np.testing.assert_array_equal(huggingface.overlaps(box, others, 0.5), [False, True, False])


def test_a_threshold_that_float32_rounds_up():
    """0.1 is above 0.1 in float32, as in the comparison with a double."""
    box, tenth = jnp.array([[0.0, 0, 10, 1]]), jnp.array([[0.0, 0, 1, 1]])
    assert float(np.float32(0.1)) > 0.1 and huggingface.overlaps(box, tenth, 0.1).item()


def test_the_growth_of_a_box_is_limited():
    moved = huggingface.move_box(jnp.array([0.0, 0, 16, 32]), jnp.array([0.5, -0.25, 9, np.log(0.5)]))
    close(moved, [16 - 500, 8 - 8, 16 + 500, 8 + 8], 1e-3)


@pytest.mark.parametrize(
    ("fewest", "expected"),
    [(2, [1, 3]), (3, [1, 3, 0]), (9, [1, 3, 0])],  # at 0.5, at 0.7, and where no threshold leaves enough
)
def test_thresholds_are_tried_until_enough_regions_remain(fewest, expected):
    boxes = np.array([[0, 0, 10, 6], [0, 0, 10, 10], [0, 0, 10, 9], [50, 50, 60, 60], [0, 0, 1, 1]], np.float32)
    confidence, mask = np.array([0.5, 0.9, 0.8, 0.7, 0.6], np.float32), np.array([1, 1, 1, 1, 0], bool)
    kept = huggingface.select_regions(boxes, mask, confidence, (0.5, 0.7), fewest, 9)
    assert kept.tolist() == expected


@pytest.mark.parametrize(
    ("size", "expected"),
    [((640, 480), (1067, 800)), ((480, 640), (800, 1067)), ((1000, 400), (1333, 533)), ((300, 300), (800, 800))],
)
def test_sizes(size, expected):
    assert huggingface.resized_size(size, (800, 1333)) == expected


def test_an_image_without_a_proposal_has_one_region():
    nothing = jnp.zeros(4), jnp.zeros((4, 4)), jnp.ones(4, bool), jnp.array([30.0, 20.0])
    points = jnp.zeros((4, 4))
    boxes, mask, _ = huggingface.propose(*nothing, anchors=points, before=4, after=3, threshold=0.7)
    assert mask.tolist() == [True, False, False] and boxes[0].tolist() == [0, 0, 30, 20]


def test_every_tensor_of_the_published_detector_has_a_place():
    shapes = official_shapes("hf_frcnn_vg")
    zeros = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items() if "num_batches" not in name}
    tensors = detector_names.to_milvlg(zeros, base_anchors())
    # Another score of each anchor, and a box of "no object".
    added = sum(zeros[f"{detector_names.OBJECTNESS}.{leaf}"].size for leaf in ("weight", "bias"))
    added += sum(4 * zeros[f"{detector_names.BOXES}.{leaf}"][0].size for leaf in ("weight", "bias"))
    values = sum(array.size for array in zeros.values()) + added
    summary = detector_summary("published", tensors, {})
    assert "101 layers, 1,600 classes, 400 attributes" in summary and f"{values:,} values" in summary
