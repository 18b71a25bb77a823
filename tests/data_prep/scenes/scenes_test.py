"""Test the synthetic corpus: true captions, words that need the image, and reproducible bytes."""

import io
import itertools
import json
import zipfile

import numpy as np
from PIL import Image

from data_prep.scenes import glyphs, world
from data_prep.scenes.captions import MAX_CAPTION_WORDS, VOCAB_SIZE, write_story
from data_prep.scenes.captions import vocabulary as vocabulary_
from data_prep.scenes.corpus import detect, write_corpus
from data_prep.scenes.painting import draw_scene

SETTINGS = dict(version=1, seed=0, num_train=40, num_val=10, num_train_stories=30, num_val_stories=8, feature_width=0)


def open_lines(path):
    return path.read_text().splitlines()


def draw(seed, index=0):
    rng = np.random.default_rng([seed, index])
    return draw_scene(rng), rng


def test_equal_seeds_give_equal_bytes_and_splits_share_no_scene(tmp_path):
    for name, settings in dict(a=SETTINGS, b=SETTINGS, other=SETTINGS | dict(seed=1)).items():
        (tmp_path / name).mkdir()
        write_corpus(tmp_path / name, settings)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    content = {c: {name: (tmp_path / c / name).read_bytes() for name in names} for c in ("a", "b", "other")}
    assert content["a"] == content["b"]
    assert all(content["a"][name] != content["other"][name] for name in names if not name.endswith("vocab.txt"))
    images = [read_stored(tmp_path / "a" / f"{split}_image.zip") for split in ("train", "val")]
    assert len(set(images[0] + images[1])) == SETTINGS["num_train"] + SETTINGS["num_val"]


def read_stored(archive):
    with zipfile.ZipFile(archive) as opened:
        assert all(info.compress_type == zipfile.ZIP_STORED for info in opened.infolist())
        return [opened.read(name) for name in opened.namelist()]


def test_captions_name_all_things_and_are_true():
    relations = set()
    for index in range(300):
        scene, _ = draw(3, index)
        words = scene.caption
        by_name = {f"{thing.color} {thing.category}": thing for thing in scene.things}
        found = [
            (i, by_name[" ".join(words[i : i + 2])]) for i in range(len(words)) if " ".join(words[i : i + 2]) in by_name
        ]
        assert sorted(t.category for _, t in found) == sorted(t.category for t in scene.things)
        assert len({t.category for t in scene.things}) == len(scene.things)
        assert len(words) <= MAX_CAPTION_WORDS
        for (i, a), (j, b) in itertools.pairwise(found):
            (relation,) = set(words[i:j]) & {"and", "above", "below", "beside"}
            relations.add(relation)
            down = b.center[1] - a.center[1]
            assert dict(above=down > 10, below=down < -10).get(relation, True)
        for start, (i, thing) in zip([0] + [i for i, _ in found], found, strict=False):
            adjectives = set(words[start:i])
            assert "small" not in adjectives or thing.extent < world.SMALL
            assert "large" not in adjectives or thing.extent > world.LARGE
            assert not adjectives & {"striped", "dotted"} - {thing.pattern}
        assert not set(words) & {"left", "right"}
    assert relations == {"and", "above", "below", "beside"}


def test_distributions_of_scenes():
    scenes = [draw(4, index)[0] for index in range(600)]
    for scene in scenes:
        assert Image.open(io.BytesIO(scene.jpeg)).size == (scene.width, scene.height)
        short, long = sorted((scene.width, scene.height))
        assert 96 <= short and long <= 144 and 3 * long <= 4 * short
        for thing in scene.things:
            x1, y1, x2, y2 = thing.box
            assert 0 < x1 < x2 < scene.width and 0 < y1 < y2 < scene.height and 26 <= thing.extent <= 52
    assert 0.54 < np.mean([scene.width >= scene.height for scene in scenes]) < 0.66
    colors = [thing.color for scene in scenes for thing in scene.things]
    shares = [colors.count(color) / len(colors) for color in world.COLORS]
    assert len(shares) == 8 and max(shares) < 0.16 and min(shares) > 0.09
    counts = [len(scene.things) for scene in scenes]
    assert min(counts.count(n) for n in (1, 2, 3)) > 150


def test_things_have_their_color_in_the_image():
    rows = np.array([glyphs.COLORS[name] for name in world.COLORS], np.float32)
    correct = []
    for index in range(100):
        scene, _ = draw(5, index)
        pixels = np.asarray(Image.open(io.BytesIO(scene.jpeg)), np.float32)
        for thing in scene.things:
            if thing.pattern == "plain" and thing.category in ("box", "ball", "house"):
                x1, y1, x2, y2 = thing.box
                patch = pixels[y1 + 4 : y2 - 4, x1 + 4 : x2 - 4].reshape(-1, 1, 3)
                nearest = np.abs(patch - rows).sum(-1).argmin(1)
                correct.append(world.COLORS[np.bincount(nearest).argmax()] == thing.color)
    assert len(correct) > 20 and np.mean(correct) > 0.95


def test_detections_match_the_things():
    extra = 0
    for index in range(200):
        scene, rng = draw(6, index)
        boxes, scores = detect(scene, rng)
        assert boxes.dtype == scores.dtype == np.float32 and scores.shape == (len(boxes), len(world.CLASS_NAMES))
        np.testing.assert_allclose(scores.sum(1), 1, atol=1e-5)
        for thing, box, row in zip(scene.things, boxes, scores, strict=False):
            assert world.CLASS_NAMES[row.argmax()] == f"{thing.color} {thing.category}"
            low, high = np.maximum(box[:2], thing.box[:2]), np.minimum(box[2:], thing.box[2:])
            inter = np.prod(high - low)
            union = np.prod(box[2:] - box[:2]) + np.prod(np.subtract(thing.box[2:], thing.box[:2])) - inter
            assert 0.74 < inter / union < 0.96
        for row in scores[len(scene.things) :]:
            assert row.argmax() == 0
            extra += 1
    assert 20 < extra < 60


def blind_category_accuracy(place_named: bool, number: int) -> float:
    """Return the exact accuracy of the best guess of a masked category from the other words."""
    weights = np.array([world.category_weights(place) for place in world.PLACES])
    joint = np.zeros((len(world.PLACES), *[len(glyphs.CATEGORIES)] * number))
    for place, p in enumerate(weights):
        for chosen in itertools.permutations(range(len(glyphs.CATEGORIES)), number):
            left, probability = 1.0, 1 / len(world.PLACES)
            for category in chosen:
                probability *= p[category] / left
                left -= p[category]
            joint[(place, *chosen)] = probability
    joint = joint if place_named else joint.sum(0, keepdims=True)
    orders = itertools.permutations(range(1, number + 1))  # a caption lists its things in random order
    joint = np.mean([joint.transpose(0, *order) for order in orders], axis=0)
    return joint.max(1).sum()


def test_text_alone_does_not_determine_the_category():
    named = np.array([[blind_category_accuracy(flag, n) for n in (1, 2, 3)] for flag in (False, True)])
    share = np.array([1, 2, 3]) / 6  # share of the masked category words in scenes of 1, 2 and 3 things
    best = (1 - world.PLACE_NAMED) * named[0] @ share + world.PLACE_NAMED * named[1] @ share
    print(f"best blind guess of a category: {best:.3f}", named)
    assert 0.15 < best < 0.2
    assert "an" not in vocabulary_()  # "an" precedes only "orange"


def test_vocabulary_has_every_word(tmp_path):
    write_corpus(tmp_path, SETTINGS)
    vocabulary = (tmp_path / "vocab.txt").read_text().splitlines()
    assert len(vocabulary) == len(set(vocabulary)) == VOCAB_SIZE == 256
    special = dict(zip(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], [0, 100, 101, 102, 103], strict=True))
    assert {name: vocabulary.index(name) for name in special} == special
    lines = (tmp_path / "train.doc").read_text().splitlines()
    captions = [json.loads(line)["caption"] for line in open_lines(tmp_path / "train_frcnn.json")]
    assert set(" ".join(lines).split()) | set(itertools.chain(*captions)) <= set(vocabulary)
    assert all(8 <= len(line.split()) <= 30 for line in lines)
    assert len(world.CLASS_NAMES) == 81 and world.CLASS_NAMES[0] == "background"


def test_stories_keep_their_colors():
    for seed in range(50):
        text = " ".join(write_story(np.random.default_rng(seed))).split()
        seen = {}
        for color, category in itertools.pairwise(text):
            if color in world.COLORS:
                assert category in glyphs.CATEGORIES and seen.setdefault(category, color) == color
