"""Search by a model of retrieval: the scores are those of single pairs, and regions of a gallery are kept."""

import json

import numpy as np
import PIL.Image
import pytest

import vlbert_jax
from configs import retrieval
from tests.helpers.predict_case import write_model
from tests.helpers.retrieval_case import SPECIAL, WORDS, shrunk
from vlbert_jax import predict
from vlbert_jax.detector.detect import Detector
from vlbert_jax.detector.regions import Regions
from vlbert_jax.prediction import gallery, output, search

TEXTS = ["a red square", "white on the left", "blue"]


class Finder(Detector):
    """A detector that finds one region, of which the feature is the color of the image, and counts its images."""

    fingerprint = dict(weights="0", settings={}, version=1)

    def __init__(self):
        self.seen = 0

    def detect(self, images):
        self.seen += len(images)
        features = [np.array([image[0, 0]], np.float32) / 100 - 1 for image in images]
        box = np.array([[2, 2, 9, 9]], np.float32)
        return [Regions(boxes=box, source="a test", labels=("",), features=row) for row in features]


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in (*SPECIAL, *WORDS)))
    config = shrunk(retrieval.flickr30k(), folder)
    write_model(folder / "model", config)
    return vlbert_jax.load(folder / "model")


@pytest.fixture
def photos(tmp_path, monkeypatch, predictor):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(predictor, "detector", Finder())
    (tmp_path / "photos").mkdir()
    for name, color in dict(a="red", b="white", c="blue").items():
        PIL.Image.new("RGB", (24, 16), color).save(tmp_path / f"photos/{name}.png")
    return tmp_path / "photos"


def test_scores_are_those_of_single_pairs(predictor, photos):
    images, texts = [str(photos / f"{name}.png") for name in "abc"], TEXTS * 6  # two parts
    scores = predictor.similarity(images, texts)
    assert scores.shape == (3, 18) and np.ptp(scores, axis=0).min() > 1e-3
    np.testing.assert_allclose(scores[:, :3], scores[:, 15:], atol=1e-5)
    for image in (0, 2):
        (fit,) = predictor.ask(images[image], TEXTS[1])
        assert fit.score == pytest.approx(scores[image, 1], abs=1e-5)
        assert fit.probability == pytest.approx(1 / (1 + np.exp(-fit.score)))


def test_the_text_that_is_cut_is_named(predictor, photos, caplog):
    predictor.similarity(str(photos / "a.png"), [TEXTS[0], "blue " * 99, TEXTS[1], "white " * 99])
    assert [record.getMessage()[:8] for record in caplog.records] == ["'blue bl", "'white w"]
    assert all("is longer than the sequence" in record.getMessage() for record in caplog.records)
    assert max(len(record.getMessage()) for record in caplog.records) < 200


def test_searches_in_both_directions(predictor, photos):
    scores = predictor.similarity([str(photos / f"{name}.png") for name in "abc"], TEXTS)
    found = predictor.search(TEXTS[0], photos, top=2)
    assert [one.number for one in found] == np.argsort(-scores[:, 0])[:2].tolist()
    assert [one.name for one in found] == [str(photos / f"{'abc'[one.number]}.png") for one in found]
    texts = predictor.search(str(photos / "b.png"), TEXTS)
    assert [one.number for one in texts] == np.argsort(-scores[1]).tolist()
    assert [one.name for one in texts] == [TEXTS[one.number] for one in texts]
    (photos.parent / "nothing").mkdir()
    with pytest.raises(ValueError, match="nothing: no image is there"):
        predictor.search(TEXTS[0], photos.parent / "nothing")
    with pytest.raises(ValueError, match="There is nothing to search"):
        predictor.search(TEXTS[0], [])


def test_regions_of_a_gallery_are_kept(predictor, photos):
    finder = predictor.detector
    first = predictor.search(TEXTS[0], photos)
    assert finder.seen == 3
    assert predictor.search(TEXTS[0], photos) == first and finder.seen == 3
    PIL.Image.new("RGB", (24, 16), "green").save(photos / "b.png", compress_level=0)
    assert predictor.search(TEXTS[0], photos) != first and finder.seen == 4
    finder.fingerprint = dict(weights="1", settings={}, version=1)
    predictor.search(TEXTS[0], photos)
    assert finder.seen == 7
    (cache, *_) = (photos.parent / "cache/vlbert_jax/galleries").iterdir()
    cache.write_bytes(b"damaged")
    assert search._read_cache(cache) == {}


@pytest.fixture
def boxes(photos):
    """Write a file of boxes for each photo and return their folder."""
    folder = photos.parent / "boxes"
    folder.mkdir()
    for name, feature in dict(a=1.5, b=-0.5, c=0.5).items():
        content = dict(boxes=[[1, 1, 20, 12]], features=[[feature, 1.0, -feature]])
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_given_boxes_are_read_in_place_of_a_detector(predictor, photos, boxes):
    images, files = ([str(folder / f"{name}.{suffix}") for name in "abc"]
                     for folder, suffix in ((photos, "png"), (boxes, "json")))  # fmt: skip
    scores = predictor.similarity(images, TEXTS, files)
    assert predictor.detector.seen == 0
    np.testing.assert_allclose(scores, predictor.similarity(predictor.look(images, files), TEXTS), atol=1e-5)
    assert np.abs(scores - predictor.similarity(images, TEXTS)).max() > 1e-3
    found = predictor.search(TEXTS[0], photos, boxes=files)
    assert [one.number for one in found] == np.argsort(-scores[:, 0]).tolist()
    found = predictor.search(images[1], TEXTS, boxes=files[1])
    np.testing.assert_allclose([one.score for one in found], np.sort(scores[1])[::-1], atol=1e-5)
    with pytest.raises(ValueError, match="different lengths: images 3, boxes 2"):
        predictor.search(TEXTS[0], photos, boxes=files[:2])
    with pytest.raises(ValueError, match="takes a list of boxes"):
        predictor.similarity(images, TEXTS, files[0])


def run(predictor, monkeypatch, *argv):
    monkeypatch.setattr(gallery, "load_models", lambda args: (predictor, None))
    return predict.main(["--checkpoint=model", *map(str, argv)])


def test_the_command(predictor, photos, monkeypatch, capsys):
    assert run(predictor, monkeypatch, "--gallery", photos, "--text", *TEXTS[:2], "--top=1", "--json") == 0
    first, second = json.loads(capsys.readouterr().out)
    (best,) = predictor.search(TEXTS[0], photos, top=1)
    assert first["text"] == TEXTS[0] and second["text"] == TEXTS[1]
    assert [row["image"] for row in first["images"]] == [best.name]
    (photos.parent / "texts.txt").write_text("\n".join(TEXTS) + "\n\n")
    image = photos / "c.png"
    assert run(predictor, monkeypatch, "--image", image, "--texts", photos.parent / "texts.txt") == 0
    heading, *lines = capsys.readouterr().out.splitlines()
    ranked = predictor.search(str(image), TEXTS)
    assert heading == str(image) and [line.split("  ")[-1] for line in lines] == [one.name for one in ranked]
    assert run(predictor, monkeypatch, "--gallery", photos, "--text", *(f"{text} €" for text in TEXTS), "--json") == 0
    assert capsys.readouterr().err == "warning: '€' is not in the model's vocabulary\n"


def test_the_command_reads_boxes(predictor, photos, boxes, monkeypatch, capsys):
    (photos.parent / "texts.txt").write_text("\n".join(TEXTS))
    for argv in (["--gallery", photos, "--text", TEXTS[0]], ["--image", photos / "b.png", "--texts", "texts.txt"]):
        monkeypatch.chdir(photos.parent)
        assert run(predictor, monkeypatch, *argv, "--boxes", boxes, "--json") == 0
        (found,) = json.loads(capsys.readouterr().out)
        of_images = "images" in found
        expected = (
            predictor.search(TEXTS[0], photos, boxes=[boxes / f"{name}.json" for name in "abc"])
            if of_images
            else predictor.search(str(photos / "b.png"), TEXTS, boxes=boxes / "b.json")
        )
        rows = found["images" if of_images else "texts"]
        assert [row["score"] for row in rows] == pytest.approx([one.score for one in expected], abs=1e-4)
    assert predictor.detector.seen == 0
    with pytest.raises(ValueError, match=r"a.json would be of x/a.png and of y/a.jpg; rename one"):
        predict.boxes_of(["x/a.png", "y/a.jpg"], str(boxes))


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--gallery", "photos", "--text", "a", "--boxes", "photos"], "there is no file photos/a.json"),
        (["--gallery", "photos", "--text", "a", "--boxes", "a.json"], "3 images but 1 files in --boxes"),
        (["--gallery", "."], "--gallery needs the --text to search for"),
        ([], "Give --image=FILE, or --gallery=FOLDER with --text"),
        (["--gallery", "empty", "--text", "a"], "empty: no image is there"),
        (["--gallery", "photos", "--text", "a", "--image", "photos/a.png"], "to find texts for an image, give --texts"),
        (["--image", "photos/a.png", "--texts", "none.txt"], "--texts=none.txt: the file cannot be read"),
        (["--image", "photos/a.png", "--top=0"], "--top is 0"),
    ],
    ids=str,
)
def test_what_cannot_be_searched_is_one_line(argv, message, predictor, photos, monkeypatch, capsys):
    monkeypatch.chdir(photos.parent)
    (photos.parent / "empty").mkdir()
    (photos.parent / "a.json").write_text("[]")
    assert run(predictor, monkeypatch, *argv) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_search_reads_the_head_of_retrieval(monkeypatch, photos):
    """Weights of a run of several tasks have heads of others, too."""
    seen = []

    def load(path, **options):
        seen.append(options["task"])
        raise ValueError("no weights")

    monkeypatch.setattr(output, "load", load)
    (photos.parent / "texts.txt").write_text("a red ball\n")
    command = ["--checkpoint=model", f"--image={photos / 'a.png'}"]
    assert predict.main([*command, f"--texts={photos.parent / 'texts.txt'}"]) == 2
    assert predict.main(["--checkpoint=model", f"--gallery={photos}", "--text", "a red ball"]) == 2
    assert predict.main([*command, "--question", "what?"]) == 2
    assert seen == ["match", "match", "answer"]
