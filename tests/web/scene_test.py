"""Test the image of the page with its regions: opening, drawing and deleting boxes."""

import base64

import numpy as np
import pytest

from tests.helpers import ROOT
from vlbert_jax.detector.detect import Detector
from vlbert_jax.detector.regions import Regions
from vlbert_jax.visualization.drawing import PALE, STRONG
from vlbert_jax.web import scene as scenes

IMAGE = ROOT / "examples/scene.jpg"
WIDTH, HEIGHT = 118, 124


@pytest.fixture(scope="module")
def example():
    return scenes.example_scene(None)[0]


def test_the_example_has_its_boxes_and_texts(example):
    texts = scenes.example_scene(None)[1]
    assert example.pixels.shape == (HEIGHT, WIDTH, 3) and len(example.regions) == 3
    assert {"answer", "region", "pretrain", "classify", "classify_pair", "match"} == set(texts)
    assert scenes.board_value(example)["about"] == "scene.jpg: 118 × 124 pixels, 3 regions from scene.json"


def test_the_gallery_has_its_boxes_and_is_shown_in_any_order():
    gallery = scenes.example_gallery(None)
    assert [scene.name for scene in gallery] == [f"{number}.jpg" for number in range(1, 9)]
    assert all(scene.regions.source == f"{number}.json" for number, scene in enumerate(gallery, 1))
    shown = scenes.shelf_value(gallery[:3], True)
    assert [image["name"] for image in shown["images"]] == ["1.jpg", "2.jpg", "3.jpg"] and shown["several"]
    shown = scenes.shelf_value(gallery, True, {2: "90%", 0: "4%"})["images"]
    assert [(image["name"], image["line"], image["best"]) for image in shown] == [
        ("3.jpg", "90%", True), ("1.jpg", "4%", False),
    ]  # fmt: skip


def test_a_gallery_is_opened_from_the_browser():
    address = "data:image/jpeg;base64," + base64.b64encode(IMAGE.read_bytes()).decode()
    files = [dict(name=name, data=address) for name in ("a.jpg", "b.jpg")]
    opened = scenes.open_gallery(files, None)
    assert [(scene.name, len(scene.regions)) for scene in opened] == [("a.jpg", 9), ("b.jpg", 9)]
    with pytest.raises(ValueError, match="there are 101 images; the page takes 100 at once"):
        scenes.open_gallery(files[:1] * 101, None)
    with pytest.raises(ValueError, match="^b.txt: "):
        scenes.open_gallery([files[0], dict(name="b.txt", data="data:text/plain;base64,aGVsbG8=")], None)


def test_without_a_detector_a_dropped_image_has_a_grid():
    address = "data:image/jpeg;base64," + base64.b64encode(IMAGE.read_bytes()).decode()
    scene = scenes.open_dropped("mine.jpg", address, None)
    assert scene.name == "mine.jpg" and len(scene.regions) == 9 and scene.regions.source.startswith("a 3 x 3 grid")
    assert scene.pixels.shape == (HEIGHT, WIDTH, 3)


@pytest.mark.parametrize("address", ["data:text/plain;base64,aGVsbG8=", "data:image/png;base64,", "data:,%%%"])
def test_what_is_no_image_is_an_error_that_names_the_file(address):
    with pytest.raises(ValueError, match="^letter.txt: "):
        scenes.open_dropped("letter.txt", address, None)


def test_a_detector_finds_the_regions_of_the_example():
    class Finder(Detector):
        def __init__(self):
            pass  # without weights

        def detect(self, images):
            boxes = np.array([[1, 2, 30, 40]], np.float32)
            return [Regions(boxes=boxes, source="the detector", labels=("fish",)) for _ in images]

    scene, _ = scenes.example_scene(Finder())
    assert scene.regions.labels == ("fish",) and scenes.board_value(scene)["boxes"][0]["name"] == "fish"


@pytest.mark.parametrize(
    "corners, box",
    [((80.0, 90.0, 20.0, 30.0), (20, 30, 80, 90)), ((-5.0, 10.0, 500.0, 900.0), (0, 10, WIDTH - 1, HEIGHT - 1))],
)
def test_a_box_is_drawn_between_any_two_corners(example, corners, box):
    drawn = scenes.draw_box(example, corners)
    assert len(example.regions) == 3, "a change makes a new scene"
    assert drawn.regions.boxes[3].tolist() == list(box) and drawn.regions.name(4) == "region 4"
    np.testing.assert_array_equal(drawn.regions.boxes[:3], example.regions.boxes)
    assert scenes.board_value(drawn)["about"].endswith("4 regions from scene.json, changed by hand")


BAD_CORNERS = [(10.0, 10.0, 10.2, 90.0), (200.0, 0.0, 300.0, 50.0), (float("nan"),) * 4, (1.0, 2.0)]


@pytest.mark.parametrize("corners", BAD_CORNERS)
def test_a_box_that_cannot_be_is_refused(example, corners):
    with pytest.raises(ValueError, match="too small|four numbers"):
        scenes.draw_box(example, corners)


def test_boxes_are_deleted_and_come_back(example):
    less = scenes.delete_box(scenes.delete_box(example, 1), 0)
    assert less.regions.boxes.tolist() == example.regions.boxes[2:].tolist()
    assert less.regions.source == "scene.json, changed by hand"
    assert len(scenes.delete_box(less, 0).regions) == 0
    for row in (-1, 1):
        with pytest.raises(ValueError, match=f"there is no box {row + 1} to delete; the image has 1"):
            scenes.delete_box(less, row)
    assert scenes.reset_boxes(less).regions is example.found


def test_the_fields_of_regions_follow_their_boxes():
    boxes = np.arange(12, dtype=np.float32).reshape(3, 4)
    regions = Regions(
        boxes=boxes,
        source="a detector",
        labels=("fish", "car", "house"),
        scores=(0.9, 0.8, 0.7),
        attributes=("red", "", "blue"),
        features=boxes[:, :2],
    )
    less = regions.without(1)
    assert (less.labels, less.scores, less.attributes) == (("fish", "house"), (0.9, 0.7), ("red", "blue"))
    assert less.features.tolist() == [[0, 1], [8, 9]] and less.boxes.tolist() == boxes[[0, 2]].tolist()
    more = regions.with_box((1.0, 2.0, 3.0, 4.0))
    assert [more.name(row) for row in range(1, 5)] == ["red fish", "car", "blue house", "region 4"]
    assert more.features is None and more.scores is None


def test_the_board_marks_the_boxes_of_an_answer(example):
    first, second, third = scenes.board_value(example, {2: "the car 89%", 0: "the fish 80%"})["boxes"]
    assert (first["mark"], second["mark"], third["mark"]) == ("the fish 80%", "", "the car 89%")
    assert (first["color"], second["color"], third["color"]) == (STRONG[1], PALE, STRONG[0])
