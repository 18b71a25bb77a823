"""Examples with several images: records are joined, rows follow one another, canvases are square."""

import io

import ml_collections
import numpy as np
import PIL.Image
import pytest

from vlbert_jax.batch import NoTargets, make_batch
from vlbert_jax.data import tables
from vlbert_jax.data.examples import ImageLayout, fields_of_images, image_fields, image_shapes, usual_orientation
from vlbert_jax.tasks.report import GAP, shown_images

COLORS = (30, 90, 160, 220)
WORDS = ("token_ids", "region_ids", "segment_ids", "position_ids")


def image_record(number: int) -> dict:
    """Return a record of an image of one gray, landscape or portrait, with two boxes."""
    size = (40, 30) if number % 2 else (30, 40)
    file = io.BytesIO()
    PIL.Image.new("RGB", size, (COLORS[number],) * 3).save(file, "PNG")
    boxes = np.array([[2, 3, 12, 14], [5, 6, 20, 22]], np.float32)[: 1 + number % 2]
    return dict(image=file.getvalue(), image_size=np.array(size, np.int32), boxes=boxes)


def config_of(images: int, **fields) -> ml_collections.ConfigDict:
    data = dict(
        data_dir="", texts="texts", images="images", remember_records=0, one_orientation=True, features="image",
        image_scale=(30, 40), max_regions=3, geometry_on_device=True, train_split="train", eval_split="val",
        flip_probability=1.0, even_regions=False, num_threads=1, prefetch=1, images_per_example=images,
    )  # fmt: skip
    config = dict(seed=0, batch_size=2, compute_dtype="float32", model=dict(feature_size=4), data=data | fields)
    return ml_collections.ConfigDict(config)


@pytest.fixture
def corpus(monkeypatch):
    """Let tables be lists: texts over two images each, the first of which is portrait or landscape."""
    pairs = dict(landscape=[(1, 0), (3, 2), (1, 2)], portrait=[(2, 2), (0, 3)])

    def open_split(data_dir, name, split, optional=False):
        if name == "images":
            return [image_record(number) for number in range(len(COLORS))]
        return [dict(image_numbers=np.array(numbers)) for numbers in pairs[split.partition("_")[2]]]

    monkeypatch.setattr(tables, "open_split", open_split)
    return [numbers for part in pairs.values() for numbers in part]


def maker(config, orientation: str, train: bool):
    layout = ImageLayout(**ImageLayout.options(config, orientation))
    words = dict.fromkeys(WORDS, np.zeros((1, 1), np.int32))

    def make(record: dict, flip: bool):
        assert not flip
        return fields_of_images(record["images"], layout, flip) | words | dict(element_mask=np.ones((1, 1), bool))

    return make


def test_the_rows_of_images_follow_one_another():
    layout = ImageLayout(**ImageLayout.options(config_of(2), "square"))
    records = [image_record(0), image_record(1)]
    fields = fields_of_images(records, layout)
    for number, record in enumerate(records):
        alone = image_fields(record, record["boxes"], layout, False)
        for name, values in alone.items():
            assert np.array_equal(np.split(fields[name], 2)[number], values), name
    shapes = image_shapes(layout)
    assert {name: (value.shape, value.dtype) for name, value in fields.items()} == shapes
    assert fields["pixels"].shape == (2, 64, 64, 3) and fields["boxes"].shape == (8, 4)
    with pytest.raises(ValueError, match="a record has 1 images, but config.data.images_per_example is 2"):
        fields_of_images(records[:1], layout)


def test_every_example_comes_once_with_its_images_in_order(corpus):
    config = config_of(2)
    assert usual_orientation(config) == "square"
    shapes = image_shapes(ImageLayout(**ImageLayout.options(config, "square")))
    parts = tables.eval_parts(config, maker, shapes, NoTargets, 0, 1)
    assert len(parts) == 1  # the orientations of two images may differ
    seen = {}
    for batch in parts[0]:
        for row, index in enumerate(batch.index):
            if index >= 0:
                seen[int(index)] = tuple(int(image[0, 0, 0]) for image in batch.pixels[row])
    assert [seen[number] for number in range(5)] == [tuple(COLORS[k] for k in numbers) for numbers in corpus]
    trained = next(tables.train_batches(config, maker, shapes, NoTargets, 0, 0, 1))  # `maker` refuses mirrored images
    assert trained.pixels.shape == (2, 2, 64, 64, 3)


def test_images_are_shown_side_by_side():
    records = [image_record(0), image_record(1)]
    fields = fields_of_images(records, ImageLayout(**ImageLayout.options(config_of(2), "square")))
    words = dict.fromkeys(WORDS, np.zeros((1, 1, 1), np.int32)) | dict(element_mask=np.ones((1, 1, 1), bool))
    batch = make_batch({name: value[None] for name, value in fields.items()} | words)
    shown, boxes = shown_images(batch, 0)
    assert shown.shape == (40, 30 + GAP + 40, 3)
    assert shown[20, 10, 0] == COLORS[0] and shown[20, 33, 0] == 255 and shown[10, 50, 0] == COLORS[1]
    left = 30 + GAP
    expected = [[0, 0, left + 39, 39], [2, 3, 12, 14], [left + 2, 3, left + 12, 14], [left + 5, 6, left + 20, 22]]
    assert boxes.tolist() == expected
