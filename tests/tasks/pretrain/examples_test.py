"""Examples and batches of pre-training on a small synthetic corpus.

tests/data/golden_test.py compares examples with the official code.
"""

import dataclasses
import io
import itertools

import numpy as np
import PIL.Image
import pytest

from configs.pretrain import get_config
from data_prep.build import build_scenes
from data_prep.scenes import world
from tests.helpers.batch_case import fields_of
from vlbert_jax.batch import END, IMG, IMG_MASK, NO_IMAGE
from vlbert_jax.data import examples
from vlbert_jax.data.class_scores import class_scores, largest_scores
from vlbert_jax.data.masking import Samples
from vlbert_jax.data.records import Records, open_split
from vlbert_jax.data.tokenizer import tokenizer_of
from vlbert_jax.tasks.pretrain.batches import _captions, eval_batches, train_batches
from vlbert_jax.tasks.pretrain.examples import CaptionLayout, caption_example, text_example, text_words, word_ids

WIDTH = 2048  # values per precomputed feature


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    build_scenes(
        folder, num_train=30, num_val=11, num_train_stories=12, num_val_stories=6, feature_width=WIDTH
    )
    return folder


@pytest.fixture
def config(corpus):
    config = get_config("demo")
    config.batch_size = 8
    vocab = corpus / "scenes" / "vocab.txt"
    config.model.encoder.vocab_size = len(vocab.read_text().splitlines())
    config.model.num_region_classes = len(world.CLASS_NAMES)
    config.model.feature_size = WIDTH
    config.data.update(dict(data_dir=str(corpus), vocab=str(vocab), max_regions=6, sequence_length=32))
    config.data.update(dict(max_mlm_targets=24, max_mrc_targets=6, num_threads=2, prefetch=2))
    config.data.update(dict(image_scale=(96, 128), mask_words=0.15))
    return config


def rows(batches) -> list[tuple]:
    """Return every example of `batches` as bytes, in an order that does not depend on hosts."""
    found = []
    for batch in batches:
        fields = fields_of(batch)
        found += [tuple(value[i].tobytes() for value in fields.values()) for i in range(len(batch.token_ids))]
    return sorted(found)


# --- Streams --------------------------------------------------------------------------------------


def test_a_remembered_image_of_another_size_than_its_boxes(config):
    """The regions of such an image were found at another resolution; the boxes are placed by the size of the pixels."""
    file = io.BytesIO()
    PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 120, 3), np.uint8)).save(file, "PNG")
    boxes = np.array([[5, 5, 40, 30]], np.float32)
    record = dict(image=file.getvalue(), image_size=np.array([60, 30], np.int32), boxes=boxes)
    config.data.remember_records = 1
    prepared, layout = examples.remembered_images(config), CaptionLayout.of(config)
    assert prepared is not None
    found, expected = (examples.image_fields(r, boxes, layout, True) for r in (prepared(record), record))
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_remembered_images_are_decoded_once(config, monkeypatch):
    """Three epochs of captions have the same bytes as without memory."""
    config.data.num_threads, decoded, found, decode = 0, [], [], examples.decode_image
    monkeypatch.setattr(examples, "decode_image", lambda data: decoded.append(data) or decode(data))
    for remembered in (0, 100):
        config.data.remember_records = remembered
        decoded.clear()
        found.append(rows(itertools.islice(train_batches(config, 0, 0, 1), 24)))
        assert (len(decoded) > 90) == (remembered == 0)
    assert found[0] == found[1] and len(decoded) == len(set(decoded))


@pytest.mark.parametrize("process_count", [2, 4])
def test_training_does_not_depend_on_hosts(config, process_count):
    whole = train_batches(config, 0, 0, 1)
    hosts = [train_batches(config, 0, p, process_count) for p in range(process_count)]
    for _ in range(4):
        assert rows([next(whole)]) == rows([next(host) for host in hosts])


def test_training_resumes_at_any_step(config):
    whole = list(itertools.islice(train_batches(config, 0, 0, 1), 6))
    for start in (1, 4):
        resumed = itertools.islice(train_batches(config, start, 0, 1), 6 - start)
        assert [rows([b]) for b in resumed] == [rows([b]) for b in whole[start:]]
    assert len({tuple(rows([b])) for b in whole}) == 6
    config.seed += 1
    assert rows([next(train_batches(config, 0, 0, 1))]) != rows(whole[:1])


def test_a_training_batch(config):
    batches = list(itertools.islice(train_batches(config, 0, 0, 1), 12))
    assert {batch.pixels.shape for batch in batches} == {(4, 1, 96, 128, 3), (4, 1, 128, 96, 3)}
    for batch in batches:
        wide = batch.image_size[:, 0, 0] >= batch.image_size[:, 0, 1]
        assert wide.all() or not wide.any()
        assert batch.token_ids.shape == (4, 2, 33)  # sequence 0 is a caption, sequence 1 is text alone
        assert (batch.region_ids[:, 1] == NO_IMAGE).all() and (batch.region_ids[:, 0, 0] == 0).all()
        assert batch.box_geometry.shape == (4, 7, 2048) and np.isfinite(batch.box_geometry).all()
        labels = np.take_along_axis(batch.token_ids, batch.targets.mlm_positions, axis=2)
        assert (batch.targets.mlm_labels[~batch.targets.mlm_mask] == 0).all() and labels[batch.targets.mlm_mask].size
        is_region = batch.token_ids[:, 0] >= config.model.encoder.vocab_size
        ids = np.where(is_region, batch.region_ids[:, 0], 0)
        target_ids = np.take_along_axis(ids, batch.targets.mrc_positions, axis=1)
        mask = batch.targets.mrc_mask
        np.testing.assert_array_equal(target_ids[mask], batch.targets.mrc_regions[mask])


def test_without_the_text_corpus(config):
    config.losses.text_only = False
    batch = next(train_batches(config, 0, 0, 1))
    assert batch.token_ids.shape == (8, 1, 33)
    assert set(eval_batches(config, 0, 1)) == {"captions"}


def test_square_canvases(config):
    config.data.one_orientation = False
    batches = itertools.islice(train_batches(config, 0, 0, 1), 4)
    assert {batch.pixels.shape for batch in batches} == {(4, 1, 128, 128, 3)}


def test_precomputed_features(config):
    config.data.features = "precomputed"
    config.data.hide_pixels = False
    batch = next(train_batches(config, 0, 0, 1))
    assert batch.pixels is None and batch.region_features.shape == (4, 7, WIDTH)
    config.model.feature_size = 12
    with pytest.raises(ValueError, match="2048 features per box, but config.model.feature_size is 12"):
        next(train_batches(config, 0, 0, 1))
    config.data.features = "guessed"
    with pytest.raises(ValueError, match="'guessed'; it must be one of image, precomputed"):
        train_batches(config, 0, 0, 1)


def test_geometry_on_the_device_and_in_bfloat16(config):
    config.compute_dtype = "bfloat16"
    batch = next(train_batches(config, 0, 0, 1))
    assert batch.box_geometry.dtype.name == "bfloat16"
    config.data.geometry_on_device = True
    assert next(train_batches(config, 0, 0, 1)).box_geometry is None


def test_errors_of_configs(config):
    config.model.num_region_classes += 1
    with pytest.raises(ValueError, match="config.model.num_region_classes is"):
        next(train_batches(config, 0, 0, 1))
    config.batch_size = 7
    with pytest.raises(ValueError, match="batch_size 7 is odd"):
        train_batches(config, 0, 0, 1)


def test_a_missing_split_is_an_error(config):
    config.data.eval_split = "test"
    with pytest.raises(ValueError, match="neither test_landscape nor test_portrait"):
        eval_batches(config, 0, 1)


def test_evaluation_reads_every_record_once_on_any_number_of_hosts(config):
    expected = {name: list(batches) for name, batches in eval_batches(config, 0, 1).items()}
    real = {name: sum(int(b.element_mask.any((1, 2)).sum()) for b in bs) for name, bs in expected.items()}
    lines = len(open_split(config.data.data_dir, config.data.text, "val"))
    assert real == {"captions": 11, "text": lines}
    assert {batch.token_ids.shape for bs in expected.values() for batch in bs} == {(4, 1, 33)}
    assert all(batch.boxes is None for batch in expected["text"])
    for process_count in (2, 4):
        hosts = [eval_batches(config, p, process_count) for p in range(process_count)]
        for name, whole in expected.items():
            parts = [list(host[name]) for host in hosts]
            assert {len(part) for part in parts} == {len(whole)}
            assert rows(itertools.chain(*parts)) == rows(whole)


def test_evaluation_does_not_depend_on_the_seed_and_never_flips(config):
    expected = rows(eval_batches(config, 0, 1)["captions"])
    config.seed += 1
    config.data.flip_probability = 1.0
    assert rows(eval_batches(config, 0, 1)["captions"]) == expected


def test_padding_examples_are_empty(config):
    batches = list(eval_batches(config, 0, 1)["captions"])
    empty = ~np.concatenate([b.element_mask.any((1, 2)) for b in batches])
    assert empty.any()
    for name in ("region_mask", "region_hidden", "mlm_mask", "mrc_mask", "boxes", "pixels", "mrc_targets"):
        values = [fields_of(b)[name].reshape(len(b.token_ids), -1).any(1) for b in batches]
        assert not np.concatenate(values)[empty].any(), name
    assert (np.concatenate([b.region_ids for b in batches])[empty] == NO_IMAGE).all()
    assert (np.concatenate([b.targets.region_classes for b in batches])[empty] == -1).all()


# --- One example ----------------------------------------------------------------------------------


@pytest.fixture
def tokenizer(config):
    return tokenizer_of(config)


@pytest.fixture
def layout(config):
    return CaptionLayout.of(config)


def record(num_boxes=6, **fields):
    num_classes = len(world.CLASS_NAMES)
    boxes = np.array([[i, i, i + 20, i + 10] for i in range(num_boxes)], np.float32)
    scores = np.full((num_boxes, num_classes), 0.5 / (num_classes - 1), np.float32)
    scores[np.arange(num_boxes), np.arange(num_boxes) % num_classes] = 0.5
    features = np.linspace(0, 9, num_boxes * WIDTH, dtype=np.float32).reshape(num_boxes, WIDTH)
    made = dict(
        index=0, image=b"", image_size=np.array([128, 96], np.int32), caption="the red ball .".split()
    )
    return made | dict(boxes=boxes, class_scores=scores.astype(np.float16), features=features) | fields


def samples(num_boxes=6, words=0.9, regions=0.9, **fields):
    made = dict(
        flip=0.9, relationship=0.9, other=0.0, words=np.resize(words, 32), replacements=np.full(32, 7)
    )
    made["regions"] = np.broadcast_to(regions, num_boxes)
    return Samples(**(made | fields))


def test_a_caption_by_hand(tokenizer, layout):
    layout = dataclasses.replace(layout, mask_words=0.2, mask_regions=0.2, group_words=frozenset({"ball", "cup"}))
    sampled = samples(3, words=np.array([0.9, 0.1, 0.9, 0.9]), regions=np.array([0.5, 0.1, 0.19]))
    example = caption_example(record(3), sampled, tokenizer, layout)
    (the,), (red,), (ball,), (stop,) = tokenizer.words("the red ball .")
    v = tokenizer.vocab_size
    regions = [v + IMG, v + IMG, v + IMG_MASK, v + IMG]  # the last one is a target but not hidden
    text = [tokenizer.cls_id, the, tokenizer.mask_id, ball, stop, tokenizer.sep_id]
    assert example["token_ids"][0, :11].tolist() == [*text, *regions, v + END]
    assert example["mlm_positions"][0, 0] == 2 and example["mlm_labels"][0, 0] == red
    assert example["mlm_mask"].sum() == 1
    assert example["mrc_regions"][:2].tolist() == [2, 3] and example["mrc_positions"][:2].tolist() == [8, 9]
    assert example["mrc_mask"].sum() == 2
    np.testing.assert_allclose(example["mrc_targets"][:2].argmax(1), [1, 2])
    assert example["region_classes"].tolist() == [-1, 0, 1, 2, -1, -1, -1]  # class 0 is the background
    assert example["region_mask"].tolist() == [True] * 4 + [False] * 3
    assert example["group"] == 1 and example["relationship"] == 1


def test_the_masking_rules_of_the_siblings(tokenizer, layout, config):
    """Every token for itself; at least the first word and one region; all selected regions are hidden."""
    config.data.update(dict(mask_tokens=True, mask_least_one=True, hidden_share=1.0))
    rules = ("mask_tokens", "mask_least_one", "hidden_share")
    train, evaluation = (CaptionLayout.of(config, train=train) for train in (True, False))
    assert [getattr(evaluation, rule) for rule in rules] == [False, False, 0.9]  # scores stay comparable
    layout = dataclasses.replace(layout, **{rule: getattr(train, rule) for rule in rules})
    layout = dataclasses.replace(layout, mask_words=0.2, mask_regions=0.2)
    (tokens,) = tokenizer.words("unmistakably")
    assert len(tokens) > 1
    sampled = samples(3, words=np.array([0.9, 0.1, *[0.9] * 30]), regions=np.array([0.9, 0.19, 0.9]))
    example = caption_example(record(3, caption=["unmistakably"]), sampled, tokenizer, layout)
    assert example["token_ids"][0, 1:3].tolist() == [tokens[0], tokenizer.mask_id]
    assert example["mlm_labels"][0, 0] == tokens[1] and example["mlm_mask"].sum() == 1
    assert example["region_hidden"].tolist() == [False, False, True, False, False, False, False]
    none = caption_example(record(3), samples(3, region=0.99), tokenizer, layout)
    assert none["mlm_positions"][0, 0] == 1 and none["mlm_mask"].sum() == 1
    assert none["mrc_regions"][none["mrc_mask"]].tolist() == [3] and none["region_hidden"].sum() == 1


def test_hidden_regions_beyond_the_sequence_keep_their_boxes(tokenizer, layout):
    """The boxes are kept because their pixels are blanked, as in the official code."""
    layout = dataclasses.replace(layout, sequence_length=10)
    example = caption_example(record(), samples(regions=0.1), tokenizer, layout)
    kept = example["region_mask"].sum()
    assert kept == 5  # the sequence also has 5 of the 6 text elements
    assert example["token_ids"][0, 4] == tokenizer.sep_id
    assert example["region_hidden"].tolist() == [False] + [True] * 6
    assert example["boxes"][kept:].any(axis=1).all()
    assert example["mrc_regions"][example["mrc_mask"]].tolist() == [1, 2, 3, 4]
    assert (example["region_classes"][kept:] == -1).all() and not example["box_geometry"][kept:].any()


def test_more_boxes_than_rows(tokenizer, layout):
    """The last boxes (lowest scores) are dropped; the mean feature of the image includes them."""
    layout = dataclasses.replace(layout, max_regions=2, precomputed=True, mrc=False)
    example = caption_example(record(6), samples(6), tokenizer, layout)
    assert example["boxes"].shape == (3, 4) and example["region_mask"].all()
    np.testing.assert_allclose(example["region_features"][0], record(6)["features"].mean(0))
    np.testing.assert_array_equal(example["region_features"][1:], record(6)["features"][:2])


def test_the_image_feature_excludes_hidden_regions(tokenizer, layout):
    layout = dataclasses.replace(layout, precomputed=True)
    # Region 0 is hidden, region 3 is only a target.
    sampled = samples(6, regions=np.array([0.01, 0.9, 0.9, 0.149, 0.9, 0.9]))
    example = caption_example(record(6), sampled, tokenizer, layout)
    features = record(6)["features"]
    np.testing.assert_allclose(example["region_features"][0], features[1:].sum(0) / (5 + 1e-5), rtol=1e-6)
    np.testing.assert_array_equal(example["region_features"][1:], features)  # the device replaces hidden features
    everything = caption_example(record(6), samples(regions=0.01), tokenizer, layout)
    assert not everything["region_features"][0].any()


def test_scores_that_do_not_sum_to_one_are_not_targets(tokenizer, layout):
    broken = record(3)
    broken["class_scores"][1] *= 0.5
    example = caption_example(broken, samples(3, regions=0.1), tokenizer, layout)
    assert example["mrc_regions"][example["mrc_mask"]].tolist() == [1, 3]
    assert example["region_classes"][:4].tolist() == [-1, 0, -1, 2]
    assert example["region_hidden"][:4].tolist() == [False, True, True, True]


def test_records_with_the_largest_scores_make_the_same_example(tokenizer, layout):
    """Only the targets of regions differ, which are the expanded scores."""
    layout = dataclasses.replace(layout, objects=True)
    exact = record(4)
    exact["class_scores"] *= np.linspace(0.5, 1.5, exact["class_scores"].shape[1], dtype=np.float16)
    exact["class_scores"] /= exact["class_scores"].sum(1, keepdims=True)
    exact["class_scores"][2] *= 3  # not a distribution
    short = exact | largest_scores(exact["class_scores"], 3)
    first, second = (caption_example(given, samples(4, regions=0.1), tokenizer, layout) for given in (exact, short))
    regions = first["mrc_regions"][first["mrc_mask"]] - 1
    assert regions.tolist() == [0, 1, 3]
    np.testing.assert_array_equal(second["mrc_targets"][:3], class_scores(short, regions))
    assert (first.pop("mrc_targets") != second.pop("mrc_targets")).any()
    for name, value in first.items():
        np.testing.assert_array_equal(second[name], value, err_msg=name)


def test_targets_beyond_the_limits_are_masked_but_not_scored(tokenizer, layout):
    layout = dataclasses.replace(layout, max_mlm_targets=2, max_mrc_targets=1)
    example = caption_example(record(3), samples(3, words=0.1, regions=0.1), tokenizer, layout)
    assert (example["token_ids"][0, 1:5] == tokenizer.mask_id).all()
    assert example["mlm_positions"].tolist() == [[1, 2]] and example["mrc_regions"].tolist() == [1]


def test_relationship(tokenizer, layout):
    other = "a cup .".split()
    plain = caption_example(record(), samples(relationship=0.9), tokenizer, layout, other)
    assert plain["relationship"] == 1  # the loss is disabled
    layout = dataclasses.replace(layout, relationship=True)
    own = caption_example(record(), samples(relationship=0.49), tokenizer, layout, other)
    foreign = caption_example(record(), samples(relationship=0.5), tokenizer, layout, other)
    assert (own["relationship"], foreign["relationship"]) == (1, 0)
    assert foreign["element_mask"].sum() == own["element_mask"].sum() - 1
    np.testing.assert_array_equal(own["token_ids"], plain["token_ids"])


def test_other_captions_are_of_other_records(config):
    config.losses.relationship = True
    source, *_ = _captions(config, "val", train=True)
    read = []

    class Spy(Records):
        def __getitem__(self, number):
            read.append(number)
            return super().__getitem__(number)

    spied = dataclasses.replace(source, records=Spy(source.records))
    for seed, number in enumerate(list(source.numbers) * 20):
        read.clear()
        example = spied.example(number, np.random.default_rng(seed))
        assert read[0] == number and len(set(read)) == len(read) == 2 - example["relationship"]


def test_disabled_losses_mask_nothing(tokenizer, layout):
    layout = dataclasses.replace(layout, mlm=False, mrc=False)
    example = caption_example(record(), samples(words=0.1, regions=0.1), tokenizer, layout)
    assert not example["mlm_mask"].any() and not example["region_hidden"].any()
    assert tokenizer.mask_id not in example["token_ids"] and "mrc_mask" not in example


def test_an_unreadable_image_is_the_mean_color(tokenizer, layout, caplog):
    for image in (b"", b"no jpg"):
        example = caption_example(record(image=image), samples(), tokenizer, layout)
        assert (example["pixels"] == (123, 116, 103)).all()
    assert "taken as an empty image" in caplog.text


def test_text_alone_has_no_special_tokens(tokenizer, layout):
    words = tokenizer.words("the red ball . " * 20)
    example = text_example(words, samples(0), tokenizer, layout)
    assert example["token_ids"][0].tolist() == sum(words, [])[:32] + [tokenizer.vocab_size + END]
    short = text_example(words[:3], samples(0), tokenizer, layout)
    assert short["element_mask"].sum() == 4 and short["position_ids"][0, :4].tolist() == [0, 1, 2, 4]


def test_short_lines_are_joined_cyclically(tokenizer, layout):
    layout = dataclasses.replace(layout, text_min_words=5, sequence_length=6)
    lines = [{"text": text} for text in ("the red ball", "a cup .", "the the the the the the the the the")]
    words = text_words
    assert words(lines, 0, tokenizer, layout) == tokenizer.words("the red ball a cup .")
    assert words(lines, 1, tokenizer, layout)[:6] == tokenizer.words("a cup . the the the")
    assert words(lines[:2], 1, tokenizer, layout) == tokenizer.words("a cup . the red ball")
    assert words([lines[0]], 0, tokenizer, layout) == tokenizer.words("the red ball the red ball")


def test_ids_of_words(config, tokenizer):
    assert word_ids(config, ("red", "[MASK]")) == (
        tokenizer.words("red")[0][0],
        tokenizer.mask_id,
    )
    with pytest.raises(ValueError, match="not one piece of .*: redred, \u2603"):
        word_ids(config, ("red", "redred", "\u2603"))
