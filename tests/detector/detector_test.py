"""Test the detector: sources of weights, batches, unusual images and features."""

import dataclasses
import io
import json
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from PIL import Image

from tests.helpers import detector_case
from tests.helpers.weights_case import caffe_file
from vlbert_jax.convert import main
from vlbert_jax.data.examples import ImageLayout, image_fields
from vlbert_jax.detector.detect import PreparedImage, load_detector
from vlbert_jax.detector.proposals import argsort_descending
from vlbert_jax.detector.weights import read_detector, write_detector
from vlbert_jax.model.config import BackboneConfig, RegionHeadConfig, RoIOptions
from vlbert_jax.model.region_head import RegionHead, prepare_pixels
from vlbert_jax.weights import detector_names
from vlbert_jax.weights.read import read_weights


@pytest.fixture(scope="module")
def detector():
    return detector_case.shared_detector()


def assert_same_regions(ours, others):
    assert len(ours) == len(others)
    for a, b in zip(ours, others, strict=True):
        for field in dataclasses.fields(a):
            one, other = getattr(a, field.name), getattr(b, field.name)
            if isinstance(one, np.ndarray) or field.name == "scores":
                np.testing.assert_allclose(one, other, atol=1e-4, err_msg=field.name)
            else:
                assert one == other, field.name


# --- Regions --------------------------------------------------------------------------------------


def test_a_batch_gives_the_regions_of_single_images(detector):
    """Images of different canvases in partly filled batches give the regions of single images."""
    images = [detector_case.image(0), detector_case.image(1, 64, 48), detector_case.image(2, 46, 60)]
    alone = [regions for image in images for regions in detector.detect([image])]
    assert_same_regions(detector_case.detector(batch_size=2).detect(images), alone)
    for image, regions in zip(images, alone, strict=True):
        height, width = image.shape[:2]
        assert 3 <= len(regions.boxes) <= 8
        assert (regions.boxes >= 0).all() and (regions.boxes <= [width, height, width, height]).all()
        assert set(regions.labels) <= set(detector_case.shared_detector().class_names[1:])
        assert len(regions.labels) == len(regions.scores) == len(regions.attributes) == len(regions)
        np.testing.assert_allclose(regions.class_probabilities.sum(1), 1, atol=1e-5)
        assert len(np.unique(regions.features.round(3), axis=0)) > 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 20_000)])
def test_images_on_which_the_official_code_fails(detector, shape):
    """An image without proposals, or without rows after the stem, gives the whole image."""
    (regions,) = detector.detect([detector_case.image(0, *shape)])
    assert len(regions.boxes) >= 1 and np.isfinite(regions.features).all()
    assert (regions.boxes[:, 2:] <= [shape[1], shape[0]]).all()


def test_images_of_many_sizes_share_a_program():
    canvases = {
        PreparedImage(np.zeros((height, width, 3), np.uint8), (600, 1000)).canvas
        for height in range(300, 620, 20)
        for width in range(400, 820, 20)
    }
    assert len(canvases) <= 15 and (600, 800) in canvases


@pytest.mark.parametrize("rows", [1, 2, 5, 300])
def test_argsort_descending_is_stable(rows):
    """The order is stable for equal values, values that differ in the last bit, and 0 and 1."""
    rng = np.random.default_rng(rows)
    spread = jax.nn.softmax(jnp.asarray(rng.normal(0, 4, (rows, 7)), jnp.float32), axis=0)
    few = np.nextafter(np.float32(0.3), rng.integers(0, 2, (rows, 7)).astype(np.float32))
    ends = rng.integers(0, 2, (rows, 7)).astype(np.float32)
    for values in map(jnp.asarray, (spread, few, ends)):
        expected = np.argsort(-np.asarray(values), axis=0, kind="stable")
        np.testing.assert_array_equal(jax.jit(argsort_descending)(values), expected)


def test_low_confidence_gives_the_fewest_regions(detector):
    detector_of_few = detector_case.detector(selection=dict(threshold=2.0, fewest=5))
    (regions,) = detector_of_few.detect([detector_case.image(0)])
    assert len(regions.boxes) == 5
    confidence = regions.class_probabilities[:, 1:].max(1)
    assert confidence[0] == pytest.approx(confidence.max())


def layout_of(**options) -> ImageLayout:
    return ImageLayout(
        precomputed=False, image_scale=detector_case.SCALE, orientation="landscape", max_regions=8, feature_size=0,
        geometry_dtype=None, **options,
    )  # fmt: skip


def test_hidden_regions_are_blank_in_prepared_images():
    record = dict(image=b"", image_size=np.array([64, 48]))
    boxes, hidden = np.array([[8.0, 8, 20, 16], [30, 4, 40, 40]], np.float32), np.array([True, False])
    fields = image_fields(record, boxes, layout_of(caffe_resize=True, hide_pixels=True), flip=False, hidden=hidden)
    x1, y1, x2, y2 = fields["boxes"][1].astype(int)
    blank = (fields["pixels"][0] == 0).all(-1)
    np.testing.assert_array_equal(fields["boxes"][1], boxes[0] * 2)
    assert blank[y1 : y2 + 1, x1 : x2 + 1].all()
    assert not blank[y1 - 1, x1] and not blank[y2 + 1, x2] and not blank[y1, x1 - 1] and not blank[y2, x2 + 1]


def test_training_computes_the_stored_features(detector):
    """The features equal those of the detector only with the operations of the detector."""
    pixels = detector_case.image(3, 50, 67)  # one factor cannot give both resized sides exactly
    (regions,) = detector.detect([pixels])
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    record = dict(image=file.getvalue(), image_size=np.array([67, 50]))
    network = nnx.merge(detector.graphdef, detector.state)

    def features(caffe: bool):
        layout = layout_of(caffe_resize=caffe)
        fields = image_fields(record, regions.boxes, layout, flip=False)
        if caffe:
            np.testing.assert_allclose(fields["boxes"][1 : len(regions.boxes) + 1], regions.boxes * 96 / 50, atol=1e-3)
        sizes = detector_case.SIZES
        backbone = BackboneConfig(
            stem_width=sizes.stem_width, widths=sizes.widths, blocks=sizes.blocks, strides=(1, 2, 2),
            stride_in_1x1=True, frozen_stages=(), caffe_max_pool=caffe,
        )  # fmt: skip
        roi = RoIOptions(operation="pool" if caffe else "align")
        options = RegionHeadConfig(hidden_size=4, backbone=backbone, roi=roi, mask_padding=caffe)
        graphdef, state = nnx.split(nnx.eval_shape(lambda: RegionHead(options, nnx.Rngs(0))))
        fast_rcnn = nnx.merge(graphdef, jax.tree.map(lambda array: jnp.zeros(array.shape, array.dtype), state))
        for name in ("backbone", "c5"):
            nnx.update(getattr(fast_rcnn, name), nnx.state(getattr(network, name)))

        @jax.jit
        def run(image, image_size, boxes, region_mask):
            prepared = prepare_pixels(image, image_size)
            return fast_rcnn.appearance(prepared, boxes, region_mask, image_size=image_size)

        # The axis of the images of an example is used as the batch axis.
        inputs = fields["pixels"], fields["image_size"], fields["boxes"][None], fields["region_mask"][None]
        return np.asarray(run(*map(jnp.asarray, inputs)))[0, 1 : len(regions.boxes) + 1]

    np.testing.assert_allclose(features(caffe=True), regions.features, atol=1e-4)
    assert np.abs(features(caffe=False) - regions.features).max() > 1e-2


# --- Weights --------------------------------------------------------------------------------------


def as_detectron(tensors: dict) -> dict:
    """Return MILVLG's tensors in the conventions of detectron2."""
    other = dict(tensors)
    for leaf in ("weight", "bias"):
        name = f"{detector_names.OBJECTNESS}.{leaf}"
        background, object_ = np.split(other[name], 2)
        other[name] = object_ - background  # detectron2 has one logit and a sigmoid
        other[f"{detector_names.BOXES}.{leaf}"] = other[f"{detector_names.BOXES}.{leaf}"][4:]
        for module in (detector_names.CLASSES, detector_names.ATTRIBUTES):
            other[f"{module}.{leaf}"] = np.roll(other[f"{module}.{leaf}"], -1, axis=0)
    other[f"{detector_names.EMBEDDING}.weight"] = np.roll(other[f"{detector_names.EMBEDDING}.weight"], -1, axis=0)
    new = {module: name for name, module in detector_names.DETECTRON.items()}
    return {
        f"{detector_names.PREDICTOR}.{new[module]}.{leaf}" if module in new else name: array
        for name, array in other.items()
        for module, _, leaf in [name.rpartition(".")]
    }


def as_caffe(tensors: dict) -> dict[str, list[np.ndarray]]:
    caffe = {module: layer for layer, module in detector_names.CAFFE.items()}
    layers: dict[str, list] = {}
    for name, array in tensors.items():
        module, _, leaf = name.rpartition(".")
        if module in caffe:
            layers.setdefault(caffe[module], []).insert(0 if leaf == "weight" else 1, array)
    return layers


def write(kind: str, folder):
    """Write the weights of the tiny detector in the format `kind`; return the path."""
    tensors = detector_case.tensors()
    counted = tensors | {"backbone.stem.conv1.norm.num_batches_tracked": np.array(7)}
    if kind == "milvlg.pth":
        torch.save({"model": {n: torch.tensor(a) for n, a in counted.items()}, "iteration": 3}, folder / kind)
    elif kind == "hugging_face":
        (folder / kind).mkdir()
        state = {name: torch.tensor(array) for name, array in as_detectron(tensors).items()}
        torch.save(state, folder / kind / "pytorch_model.bin")
        (folder / kind / "config.yaml").write_text("model: {}\n")
    elif kind == "detectron.pkl":
        content = {"model": as_detectron(tensors), "__author__": "someone", "matching_heuristics": True}
        (folder / kind).write_bytes(pickle.dumps(content, protocol=2))
    else:
        write_detector(tensors, {}, folder / kind, "orbax" if kind == "vlbert_jax" else "safetensors")
    return folder / kind


KINDS = ("milvlg.pth", "hugging_face", "detectron.pkl", "vlbert_jax", "vlbert_jax.safetensors")


@pytest.mark.parametrize("kind", KINDS)
def test_every_source_gives_the_same_detector(kind, tmp_path):
    found, expected = read_detector(write(kind, tmp_path)), detector_case.tensors()
    assert found.keys() == expected.keys()
    detectron = kind in ("hugging_face", "detectron.pkl")
    for name, array in expected.items():
        if detectron and name.startswith(detector_names.OBJECTNESS):  # the softmax depends only on the difference
            found[name], array = (np.subtract(*np.split(x, 2)) for x in (found[name], array))
        if detectron and name.startswith(detector_names.BOXES):  # detectron2 has no box for the background
            found[name], array = found[name][4:], array[4:]
        np.testing.assert_allclose(found[name], array, rtol=1e-6, atol=1e-7, err_msg=name)


def test_a_name_at_hugging_face(tmp_path, monkeypatch):
    """A downloaded detector is found without a network; a missing one is an error."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="someone/frcnn, and as a name of the Hugging Face hub"):
        read_detector("someone/frcnn")
    cache = tmp_path / "models--someone--frcnn"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("1234")
    (cache / "snapshots").mkdir()
    write("hugging_face", cache / "snapshots").rename(cache / "snapshots" / "1234")
    found = read_detector("someone/frcnn")
    name = "roi_heads.res5.0.conv1.weight"
    np.testing.assert_array_equal(found[name], detector_case.tensors()[name])


def run(*arguments, capsys, code: int = 0) -> str:
    assert main([str(argument) for argument in arguments]) == code
    output = capsys.readouterr()
    return output.err if code else output.out


def test_convert_keeps_class_names_and_fingerprint(tmp_path, capsys, detector):
    source = write("milvlg.pth", tmp_path)
    (tmp_path / "objects_vocab.txt").write_text("".join(f"thing {i},object {i}\n" for i in range(8)))
    (tmp_path / "attributes_vocab.txt").write_text("red\nblue\nlarge\nold\n")
    output = run(source, tmp_path / "detector", "--task=detector", capsys=capsys)
    assert "8 classes, 4 attributes" in output and "objects_vocab.txt" in output
    loaded = load_detector(tmp_path / "detector", detector_case.SETTINGS, detector.selection)
    assert loaded.class_names[:3] == ("__background__", "thing 0", "thing 1")
    assert loaded.attribute_names == ("__no_attribute__", "red", "blue", "large", "old")
    assert loaded.fingerprint == detector.fingerprint == json.loads(json.dumps(detector.fingerprint))
    assert detector.class_names[2] == "class 2"
    # The detector converts back to PyTorch with MILVLG's names, and its ResNet can be read alone.
    run(tmp_path / "detector", tmp_path / "back.pth", "--task=detector", capsys=capsys)
    for name, array in torch.load(tmp_path / "back.pth", weights_only=True).items():
        np.testing.assert_array_equal(array, detector_case.tensors()[name])
    resnet = read_weights(tmp_path / "detector")
    assert resnet.kind == "resnet" and "detector's own layer" in resnet.dropped
    assert "image_feature_extractor.backbone.layer1.0.conv1.weight" in resnet.tensors
    other = detector_case.detector(selection=dict(threshold=0.2))
    assert other.fingerprint != detector.fingerprint != detector_case.detector(1).fingerprint


class Trap:
    def __reduce__(self):
        return open, ("/nowhere", "w")


def test_files_without_a_detector(tmp_path, capsys):
    good = detector_case.tensors()

    def refused(name: str, content: bytes, reason: str):
        (tmp_path / name).write_bytes(content)
        output = run(tmp_path / name, tmp_path / "out", "--task=detector", capsys=capsys, code=2)
        assert name in output and reason in output and output.count("\n") == 1
        assert not (tmp_path / "out").exists()

    refused("other.caffemodel", caffe_file({"fc8": [np.zeros((4, 3), np.float32)]}), "not the bottom-up-attention")
    refused("empty.caffemodel", caffe_file({"conv1": []}), "layer conv1 has 0 arrays")
    refused("half.caffemodel", caffe_file(as_caffe(good)), "it lacks backbone.stem.conv1")
    refused("trap.pkl", pickle.dumps({"model": good, "more": Trap()}), "run code")
    refused("truncated.pkl", pickle.dumps({"model": good})[:-4000], "cut short")
    lacking = {name: array for name, array in good.items() if "res3.0.conv2" not in name}
    refused("lacking.pkl", pickle.dumps(lacking), "it lacks backbone.res3.0.conv2.norm.weight")
    wide = good | {"roi_heads.res5.0.conv2.weight": np.zeros((8, 9, 3, 3), np.float32)}
    refused("wide.pkl", pickle.dumps(wide), "roi_heads.res5.0.conv2.weight has shape (8, 9, 3, 3)")
    with pytest.raises(FileNotFoundError, match="no weights at"):
        read_detector(tmp_path / "absent")
    (tmp_path / "objects_vocab.txt").write_text("one\ntwo\n")
    with pytest.raises(ValueError, match="class names has 2 lines, but the weights have 8"):
        load_detector(write("vlbert_jax.safetensors", tmp_path))


def test_roi_align_is_an_option():
    pooled = detector_case.shared_detector().detect([detector_case.image(0)])[0]
    aligned = detector_case.detector(settings=dataclasses.replace(detector_case.SETTINGS, roi_operation="align"))
    (regions,) = aligned.detect([detector_case.image(0)])
    assert np.isfinite(regions.features).all()
    assert not np.allclose(regions.features[:1], pooled.features[:1])
    with pytest.raises(ValueError, match="roi_operation is 'max'"):
        detector_case.detector(settings=dataclasses.replace(detector_case.SETTINGS, roi_operation="max"))


