"""Compare the detector with recordings of the official Caffe code, stage by stage and as a whole.

Fixtures are in tests/golden/detector and, if that is set, in $VLBERT_GOLDEN/detector. Their kinds
are: d1 boxes, d2 proposals, d3 suppression, d4 RoIPool, d5 selection, d6 a tiny detector with its
weights in several formats, d7 images. Every variant of a kind (_a, _b, ...) is tested; a fixture
of another kind is an error.
"""

import base64
import functools
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.helpers.golden_folders import golden_folders
from tests.helpers.weights_case import caffe_file
from vlbert_jax.data.images import caffe_pixels, caffe_scale, caffe_size
from vlbert_jax.detector.detect import MIN_ATTRIBUTE_SCORE, Detector
from vlbert_jax.detector.network import Proposals, class_boxes
from vlbert_jax.detector.options import Selection, Settings
from vlbert_jax.detector.proposals import (
    base_anchors,
    class_confidence,
    clip_boxes,
    decode_boxes,
    encode_boxes,
    greedy_nms,
    propose,
    select_regions,
    shifted_anchors,
)
from vlbert_jax.detector.weights import read_detector
from vlbert_jax.model.resnet import max_pool
from vlbert_jax.model.roi import roi_pool
from vlbert_jax.weights import detector_names
from vlbert_jax.weights.containers import read_files

FOLDERS = golden_folders("detector")
KINDS = (
    "d1_boxes", "d2_proposals", "d3_nms", "d4_roipool", "d5_select", "d6_detector", "d6_generate_tsv_v2", "d6_tiny",
    "d6_weights_caffe", "d6_weights_milvlg", "d7_image_blob", "d7_image_scale",
)  # fmt: skip
FILES = {path.name: path for folder in FOLDERS for path in sorted(folder.iterdir()) if path.name != "README.md"}
# Scores, features and pixels have this absolute tolerance, and a relative tolerance of 1e-5. The
# input of each stage is the recorded output of the previous stage.
STAGE = 1e-4
COORDINATES = 1e-3  # pixels; single precision resolves 6e-5 at 1,000 pixels


def cases(kind: str, suffix: str = ".npz") -> list:
    found = [name for name in FILES if re.fullmatch(rf"{kind}_[a-z]{re.escape(suffix)}", name)]
    return [pytest.param(FILES[name], id=name.removesuffix(suffix)) for name in found]


def close(ours, recorded, tolerance: float = STAGE):
    np.testing.assert_allclose(ours, recorded, atol=tolerance, rtol=1e-5)


def read(path: Path) -> tuple[dict, dict]:
    """Return the arrays and the settings of a fixture."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    return arrays, json.loads(path.with_suffix(".json").read_text())


def test_every_fixture_is_known():
    for name in FILES:
        assert re.fullmatch(rf"({'|'.join(KINDS)})_[a-z](_legacy)?\.(npz|json|caffemodel)", name), name
    assert all(cases(kind) for kind in KINDS if kind not in ("d6_generate_tsv_v2", "d6_tiny", "d7_image_scale",
                                                             "d6_weights_caffe"))  # fmt: skip


@pytest.mark.parametrize("path", cases("d1_boxes"))
def test_boxes(path):
    arrays, meta = read(path)
    anchors = jnp.asarray(base_anchors())
    np.testing.assert_array_equal(anchors, arrays["out/anchors"])
    for name, expected in arrays.items():
        if found := re.fullmatch(r"out/anchors_grid_(\d+)x(\d+)", name):
            stride = meta["anchor"]["stride"]
            np.testing.assert_array_equal(shifted_anchors(anchors, *map(int, found.groups()), stride), expected)
    arrays = {name: jnp.asarray(array) for name, array in arrays.items()}
    decoded = decode_boxes(arrays["in/boxes"], arrays["in/deltas"])
    np.testing.assert_allclose(decoded, arrays["out/decoded"], rtol=1e-5, atol=1e-4)
    height, width = arrays["in/im_shape"]
    clipped = clip_boxes(arrays["out/decoded"], jnp.array([width, height]))
    np.testing.assert_array_equal(clipped, arrays["out/clipped"])
    np.testing.assert_allclose(
        encode_boxes(arrays["in/ex_rois"], arrays["in/gt_rois"]), arrays["out/targets"], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("path", cases("d2_proposals"))
def test_proposals(path):
    arrays, meta = read(path)
    scores, deltas = arrays["in/rpn_cls_prob_reshape"][0], arrays["in/rpn_bbox_pred"][0]
    anchors = shifted_anchors(jnp.asarray(base_anchors()), *scores.shape[1:], 16)
    count = len(anchors)
    height, width, scale = arrays["in/im_info"]
    options = dict(before=meta["pre_nms_top_n"], after=meta["post_nms_top_n"], threshold=meta["nms_thresh"])
    boxes, mask, order = jax.jit(functools.partial(propose, **options))(
        scores[len(scores) // 2 :].transpose(1, 2, 0).reshape(count),
        deltas.transpose(1, 2, 0).reshape(count, 4),
        anchors,
        np.ones(count, bool),
        np.array([width, height]),
        np.float32(meta["min_size"] * scale),
    )
    expected = arrays["out/final_index"]
    np.testing.assert_array_equal(mask, np.arange(len(mask)) < len(expected))
    np.testing.assert_array_equal(order[: len(expected)], expected)
    np.testing.assert_allclose(boxes[: len(expected)], arrays["out/rois"][:, 1:], atol=COORDINATES)


@pytest.mark.parametrize("path", cases("d3_nms"))
def test_suppression(path):
    arrays, _ = read(path)
    checked = 0
    for name, expected in arrays.items():
        if found := re.fullmatch(r"(out|tie)/keep_cython_([\d.]+)", name):
            detections = arrays["tie/dets" if found[1] == "tie" else "in/dets"]
            order = np.argsort(-detections[:, 4], kind="stable")
            all_boxes = jnp.ones(len(order), bool)
            run = jax.jit(functools.partial(greedy_nms, threshold=float(found[2]), most=len(order)))
            kept, mask = run(jnp.asarray(detections[order, :4]), all_boxes)
            np.testing.assert_array_equal(order[np.asarray(kept)[np.asarray(mask)]], expected, err_msg=name)
            # The confidence of one class among others has the same survivors.
            own = detections[:, 4] / np.exp2(max(0, np.ceil(np.log2(detections[:, 4].max()))))  # exact
            probabilities = jnp.asarray(np.stack([own, own * 0], axis=1), jnp.float32)
            run = jax.jit(functools.partial(class_confidence, threshold=float(found[2])))
            confidence = run(jnp.asarray(detections[:, :4]), all_boxes, probabilities)
            survivors = np.zeros(len(own), np.float32)
            survivors[expected] = own[expected]
            np.testing.assert_array_equal(confidence, survivors, err_msg=name)
            checked += 1
    assert checked


@pytest.mark.parametrize("path", cases("d4_roipool"))
def test_roi_pool(path):
    arrays, meta = read(path)
    features = arrays["in/features"].transpose(0, 2, 3, 1)
    size = (meta["pooled"], meta["pooled"])

    @functools.partial(jax.jit, static_argnums=2)
    def pool(features, rois, inside):
        return roi_pool(features, size, meta["spatial_scale"], inside=inside)(rois[:, 1:], rois[:, 0].astype(int))

    expected = arrays["out/roipool5"].transpose(0, 2, 3, 1)
    np.testing.assert_array_equal(pool(features, arrays["in/rois"], False), expected)
    ends = np.array([features.shape[2], features.shape[1]] * 2) / meta["spatial_scale"]
    boxes = arrays["in/rois"][:, 1:]
    inside = ((boxes >= 0) & (boxes < ends)).all(1)
    assert inside.any()
    np.testing.assert_array_equal(pool(features, arrays["in/rois"][inside], True), expected[inside])


@pytest.mark.parametrize("path", cases("d5_select"))
def test_selection(path):
    arrays, meta = read(path)
    boxes = arrays["in/rois"][:, 1:] / np.float32(arrays["in/scale"])
    np.testing.assert_array_equal(boxes, arrays["out/cls_boxes"])
    mask = np.ones(len(boxes), bool)
    run = jax.jit(functools.partial(class_confidence, threshold=meta["nms_thresh"]))
    confidence = np.asarray(run(boxes, mask, arrays["in/cls_prob"][:, 1:]))
    np.testing.assert_array_equal(confidence, arrays["out/max_conf"])
    rules = [name for name in arrays if name.startswith("out/keep_")]
    assert rules
    for name in rules:
        threshold, fewest, most = name.removeprefix("out/keep_").split("_")
        kept = select_regions(confidence, float(threshold), int(fewest), int(most))
        np.testing.assert_array_equal(kept, arrays[name], err_msg=name)


@pytest.mark.parametrize("path", cases("d7_image_scale", ".json"))
def test_image_scale(path):
    table = json.loads(path.read_text())
    assert table["columns"] == ["im_h", "im_w", "im_scale", "blob_h", "blob_w", "feat_h", "feat_w"]
    backbone = tiny_backbone()
    sizes = []
    for height, width, scale, *_ in table["rows"]:
        assert caffe_scale((width, height), (600, 1000)) == scale
        sizes.append(caffe_size((width, height), scale))
    np.testing.assert_array_equal([size[::-1] for size in sizes], [row[3:5] for row in table["rows"]])
    np.testing.assert_array_equal(backbone.cells(jnp.array(sizes)), [row[5:7] for row in table["rows"]])


def tiny_backbone():
    from vlbert_jax.model.resnet import Backbone

    options = dict(stem_width=2, widths=(1, 1, 1), blocks=(1, 1, 1), strides=(1, 2, 2), stride_in_1x1=True)
    return Backbone(**options, frozen_stages=(), caffe_max_pool=True, dtype=jnp.float32, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("path", cases("d7_image_blob"))
def test_image_pixels(path):
    arrays, meta = read(path)
    image = arrays["in/image_rgb"]
    scale = caffe_scale(image.shape[1::-1], (meta["SCALES"], meta["MAX_SIZE"]))
    assert scale == arrays["out/im_scale"].item()
    pixels = caffe_pixels(image, scale).transpose(2, 0, 1)
    close(pixels, arrays["out/data"][0])


# --- The tiny detector ----------------------------------------------------------------------------


class Tiny:
    """A d6 fixture: its arrays, its settings, and a vlbert_jax detector with its weights."""

    def __init__(self, path: Path):
        self.path, self.variant = path, path.stem[-1]
        self.arrays, self.meta = read(path)
        self.tensors = detector_names.to_milvlg(
            dict(np.load(path.with_name(self.meta["weights_milvlg"]))), base_anchors()
        )
        test = self.meta["test"]
        settings = Settings(
            proposals_before=test["RPN_PRE_NMS_TOP_N"],
            proposals_after=test["RPN_POST_NMS_TOP_N"],
            proposal_overlap=test["RPN_NMS_THRESH"],
            min_side=test["RPN_MIN_SIZE"],
            class_overlap=test["NMS"],
        )
        self.image_scale = (test["SCALES"], test["MAX_SIZE"])
        self.detector = Detector(self.tensors, settings=settings, selection=Selection(image_scale=self.image_scale))
        self.network = nnx.merge(self.detector.graphdef, self.detector.state)
        self.image = self.arrays["in/image_rgb"]
        self.scale = caffe_scale(self.image.shape[1::-1], self.image_scale)
        self.size = jnp.array([caffe_size(self.image.shape[1::-1], self.scale)])

    def out(self, name: str) -> jax.Array:
        """Return a recorded array with channels last."""
        array = jnp.asarray(self.arrays[f"out/{name}"])
        return array.transpose(0, 2, 3, 1) if array.ndim == 4 else array


@pytest.fixture(scope="module", params=cases("d6_detector"))
def tiny(request):
    return Tiny(request.param)


def test_weights_of_every_form(tiny, tmp_path):
    """Both layouts of Caffe files give the tensors of the MILVLG file."""
    folder = tiny.path.parent
    sources = list(folder.glob(f"d6_tiny_{tiny.variant}*.caffemodel"))
    assert sources
    layers: dict = {}
    for name, array in read_files(sources[0])[0].items():
        if found := re.fullmatch(r"(.*)\[\d\]", name):
            layers.setdefault(found[1], []).append(array)
    assert "rpn_conv/3x3" in layers
    for source in sources:
        tensors = read_detector(source)
        assert tensors.keys() == tiny.tensors.keys()
        for name, array in tensors.items():
            np.testing.assert_allclose(array, tiny.tensors[name], rtol=1e-6, err_msg=f"{source.name} {name}")
    (tmp_path / "other.caffemodel").write_bytes(caffe_file({"conv1": [np.zeros((4, 3, 7, 7), np.float32)]}))
    with pytest.raises(ValueError, match="not the bottom-up-attention detector"):
        read_detector(tmp_path / "other.caffemodel")


def test_image(tiny):
    pixels = caffe_pixels(tiny.image, tiny.scale)
    assert pixels.shape[:2] == (tiny.size[0, 1], tiny.size[0, 0])
    stride = tiny.meta["data_stride_stored"]
    close(pixels[None, ::stride, ::stride], tiny.out("data"))


def test_backbone_with_padding(tiny):
    """Padding around the image does not change the features."""
    pixels = jnp.asarray(caffe_pixels(tiny.image, tiny.scale))[None]

    @jax.jit
    def run(pixels):
        pooled = max_pool(jax.nn.relu(tiny.network.backbone.stem(pixels)), caffe=True)
        return pooled, tiny.network.backbone(pixels, tiny.size)

    pooled, _ = run(pixels)
    close(pooled[..., :2], tiny.out("pool1"))
    padded = jnp.pad(pixels, ((0, 0), (0, 45), (0, 70), (0, 0)))
    expected = tiny.out("res4")
    _, height, width, _ = expected.shape
    _, feature_map = run(padded)
    # The values are sums over all blocks, so the tolerance is 1e-5 of the largest value plus the
    # difference of the official code in single and double precision.
    noise = tiny.meta["fp32_vs_fp64_maxdiff"]["res4"]
    close(feature_map[:, :height, :width], expected, 1e-5 * np.abs(expected).max() + noise)


def test_proposal_scores(tiny):
    objectness, deltas = jax.jit(tiny.network.propose_scores)(tiny.out("res4"), tiny.size)
    close(objectness, tiny.out("rpn_cls_prob_reshape")[..., 12:])
    close(deltas, tiny.out("rpn_bbox_pred"))


def test_proposals_of_the_network(tiny):
    scores, deltas = tiny.out("rpn_cls_prob_reshape")[..., 12:], tiny.out("rpn_bbox_pred")
    scale = jnp.array([tiny.scale], jnp.float32)
    boxes, mask, order = jax.jit(tiny.network.proposals)(scores, deltas, tiny.size, scale)
    expected = tiny.out("rois")
    assert mask.sum() == len(expected)
    np.testing.assert_allclose(boxes[0, : len(expected)], expected[:, 1:], atol=COORDINATES)
    np.testing.assert_array_equal(scores.reshape(-1)[order[0, : len(expected)]], tiny.out("rois_score").reshape(-1))


def test_region_features(tiny):
    rois, feature_map = tiny.out("rois"), tiny.out("res4")
    first = jnp.zeros(4, int)
    pooled = jax.jit(lambda x, boxes: roi_pool(x, inside=True)(boxes, first))(feature_map, rois[:4, 1:])
    np.testing.assert_array_equal(pooled, tiny.out("roipool5_first4"))
    close(jax.jit(tiny.network.c5)(pooled[:2]), tiny.out("res5_first2"))
    all_boxes = jnp.ones((1, len(rois)), bool)
    features = jax.jit(tiny.network.region_features)(feature_map, tiny.size, rois[None, :, 1:], all_boxes)
    close(features[0], tiny.out("pool5_flat"))


def test_description(tiny):
    """Classes, attributes, decoded boxes and selected regions equal the recordings."""
    boxes, mask = tiny.out("rois")[None, :, 1:], jnp.ones((1, len(tiny.out("rois"))), bool)
    features, scale = tiny.out("pool5_flat")[None], jnp.array([tiny.scale], jnp.float32)
    close(tiny.network.classes(features)[0], tiny.out("cls_score"))
    found = jax.jit(tiny.network.describe)(boxes, mask, features, tiny.size, scale)
    close(found.classes[0], tiny.out("cls_prob"))
    np.testing.assert_array_equal(found.class_ids[0], tiny.out("predicted_cls").reshape(-1))
    close(found.attributes[0], tiny.out("attr_prob"))
    close(found.deltas[0], tiny.out("bbox_pred"))
    exact = Proposals(boxes, mask, features, tiny.out("cls_prob")[None], found.class_ids, tiny.out("bbox_pred")[None],
                      found.confidence, None, boxes)  # fmt: skip
    moved = class_boxes(exact, jnp.array([tiny.image.shape[1::-1]], jnp.float32), scale)
    np.testing.assert_allclose(moved[0], tiny.out("pred_boxes"), atol=COORDINATES)
    for name in [name for name in tiny.arrays if name.startswith("out/keep_")]:
        threshold, fewest, most = name.removeprefix("out/keep_").split("_")
        kept = select_regions(np.asarray(found.confidence[0]), float(threshold), int(fewest), int(most))
        np.testing.assert_array_equal(kept, tiny.arrays[name], err_msg=name)


def test_detector(tiny):
    """The detector gives the regions of the official script, in the same order."""
    (regions,) = tiny.detector.detect([tiny.image])
    written = json.loads((tiny.path.parent / f"d6_generate_tsv_v2_{tiny.variant}.json").read_text())
    expected = {
        name: np.frombuffer(base64.b64decode(written[name]), "<f4").reshape(written["num_boxes"], -1)
        for name in ("boxes", "classes", "attrs", "features")
    }
    assert len(regions.boxes) == written["num_boxes"]
    noise = tiny.meta["fp32_vs_fp64_maxdiff"]  # of the official code in single and double precision
    close(regions.boxes, expected["boxes"], 2 * noise["rois"])
    close(regions.class_probabilities, expected["classes"], STAGE + noise["cls_prob"])
    close(regions.attribute_probabilities, expected["attrs"], STAGE + noise["attr_prob"])
    close(regions.features, expected["features"], STAGE + noise["pool5_flat"])
    assert regions.labels == tuple(tiny.detector.class_names[i] for i in 1 + expected["classes"][:, 1:].argmax(1))
    attributes = [tiny.detector.attribute_names[i] for i in 1 + expected["attrs"][:, 1:].argmax(1)]
    likely = expected["attrs"][:, 1:].max(1) >= MIN_ATTRIBUTE_SCORE
    assert regions.attributes == tuple(name if yes else "" for name, yes in zip(attributes, likely, strict=True))
