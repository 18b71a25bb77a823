"""UNITER leaves out regions of little confidence; a table without confidences keeps all."""

import ml_collections
import numpy as np
import pytest

from configs import vqa
from tests.helpers.vqa_case import jpeg
from vlbert_jax.data import tables
from vlbert_jax.data.tables import Split, confident_regions
from vlbert_jax.training.config import check_config

SCORES = np.array([0.9, 0.1, 0.8, 0.3, 0.15, 0.7, 0.2, 0.6, 0.5, 0.4, 0.35, 0.25, 0.22, 0.21], np.float32)


def record_of(scores, features=True):
    """Return regions; the box, the features and the class of each contain its number."""
    numbers = np.arange(len(scores))
    record = dict(boxes=np.tile(numbers[:, None], 4), best_score=scores, best_class=numbers, image_size=(9, 9))
    return record | dict(features=numbers[:, None] if features else np.zeros((0, 0)))


def kept(scores, threshold=0.2, most=100, **options):
    """Return the numbers of the kept regions, which all fields must agree on."""
    data = dict(region_confidence=threshold, max_regions=most)
    found = confident_regions(ml_collections.ConfigDict(dict(data=data)))(record_of(scores, **options))
    numbers = found["best_class"].tolist()
    assert found["boxes"].tolist() == [[number] * 4 for number in numbers]
    assert found["features"].tolist() == ([[number] for number in numbers] if options.get("features", True) else [])
    np.testing.assert_array_equal(found["best_score"], scores[numbers])
    return numbers


@pytest.mark.parametrize("features", [True, False])
def test_regions_keep_their_order(features):
    assert kept(SCORES, features=features) == [0, 2, 3, 5, 7, 8, 9, 10, 11, 12, 13]  # 0.2 is not more than 0.2


def test_at_least_ten_and_at_most_as_many_as_are_read():
    assert kept(SCORES, threshold=0.6) == [0, 2, 3, 5, 7, 8, 9, 10, 11, 12]
    assert kept(SCORES, most=3) == [0, 2, 5]
    assert kept(SCORES[:4]) == [0, 1, 2, 3]


def test_a_table_without_confidences_keeps_all(caplog):
    config = ml_collections.ConfigDict(dict(data=dict(region_confidence=0.2, max_regions=2)))
    old = dict(boxes=np.zeros((3, 4)))
    tables._warn_of_no_scores.cache_clear()
    for _ in range(2):
        assert confident_regions(config)(old) is old
    (message,) = caplog.messages
    assert "has no confidences: all are read; build the table with --classes, or set it to 0" in message


@pytest.mark.parametrize("remembered", [0, 4])
def test_tables_are_read_with_it(monkeypatch, remembered):
    def open_split(data_dir, name, split, optional=False):
        return [dict(image=jpeg()) | record_of(SCORES)] if split == "images" else [dict(image_number=0)]

    monkeypatch.setattr(tables, "open_split", open_split)
    data = dict(data_dir="", texts="", images="", remember_records=remembered, features="image", image_scale=(30, 40))
    for confidence, number in ((0.2, 11), (0.0, 14)):
        config = ml_collections.ConfigDict(dict(data=data | dict(region_confidence=confidence, max_regions=20)))
        record = Split(config, "train")[0]
        assert len(record["boxes"]) == len(record["best_class"]) == number
        assert isinstance(record["image"], np.ndarray if remembered else bytes)  # decoded to be remembered


def test_the_setting_is_a_probability():
    config = vqa.uniter_base()
    config.data.region_confidence = 20.0
    with pytest.raises(ValueError, match="config.data.region_confidence is 20.0; it can be 0 to 1"):
        check_config(config)
