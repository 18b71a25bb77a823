"""Test the predict command: its output, its images and its error messages of one line."""

import base64
import dataclasses
import json
import resource
import subprocess
import sys

import jax
import numpy as np
import pytest
import skimage
from PIL import Image

from tests.helpers import GOLDEN
from tests.helpers.predict_case import WIDTH, shrunk, write_model, write_words
from vlbert_jax.detector.regions import Regions
from vlbert_jax.predict import main
from vlbert_jax.prediction.output import described, show
from vlbert_jax.prediction.regions import given_regions, grid_regions
from vlbert_jax.tasks import get_task
from vlbert_jax.visualization.drawing import draw_regions

CAT, COFFEE = (f"{skimage.data_dir}/{name}.png" for name in ("chelsea", "coffee"))  # 451 x 300, 600 x 400


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder with one model for each task."""
    folder = tmp_path_factory.mktemp("models")
    write_words(folder)
    for task in ("vqa", "refcoco", "pretrain", "vcr"):
        write_model(folder / f"model_{task}", shrunk(task, folder))
    return folder


def run(capsys, *argv):
    """Run the command; return its exit status, standard output and standard error."""
    status = main([str(arg) for arg in argv])
    return status, *capsys.readouterr()


def test_several_images_and_questions(folder, capsys, tmp_path):
    file = tmp_path / "boxes.json"
    file.write_text(json.dumps(dict(boxes=[[10, 20, 200, 280], [250, 30, 440, 250]], labels=["cat", ""])))
    (tmp_path / "rows.json").write_text("[[1, 2, 30, 40]]")
    questions = ("what color is the ball?", "how many things are there?")
    argv = [f"--checkpoint={folder / 'model_vqa'}", f"--image={CAT}", COFFEE, "--question", *questions,
            "--boxes", file, tmp_path / "rows.json", f"--out={tmp_path / 'out.png'}"]  # fmt: skip
    status, out, err = run(capsys, *argv)
    assert status == 0 and not err
    for text in (f"{CAT}: 451 x 300; 2 regions from {file}", f"{COFFEE}: 600 x 400; 1 regions", *questions):
        assert text in out
    assert out.count("%") == 20  # five answers each
    for number in (1, 2):
        with Image.open(tmp_path / f"out-{number}.png") as drawn:
            assert drawn.width == 640 and drawn.height > 640 * 2 / 3 - 2 + 50  # the answers are below the image


def test_folders_patterns_and_files_of_questions(folder, capsys, tmp_path, monkeypatch):
    """A pattern may be quoted or expanded by the shell; every image comes once."""
    (tmp_path / "photos/more").mkdir(parents=True)
    for name in ("photos/b.png", "photos/a.PNG", "photos/more/c.png"):
        (tmp_path / name).symlink_to(CAT)
    (tmp_path / "photos/notes.txt").write_text("not an image")
    questions = ["what color is the ball?", "@ what is red ?"]
    (tmp_path / "questions.txt").write_text(f"\ufeff{questions[0]}\r\n\n  {questions[1]}\n", "utf-8")
    monkeypatch.chdir(tmp_path)
    argv = [f"--checkpoint={folder / 'model_vqa'}", "--json", "--question", "@questions.txt", "@@ where ?"]
    for images, names in (
        (["--image=photos"], ["photos/a.PNG", "photos/b.png"]),
        (["--image", "photos/*.png", "--image=photos/more"], ["photos/b.png", "photos/more/c.png"]),
        (["--image=photos/more/c.png", "photos/**/*.png"], ["photos/more/c.png", "photos/b.png"]),
        (["--image", "photos/b.png", "photos/b.png"], ["photos/b.png", "photos/b.png"]),
    ):
        status, out, err = run(capsys, *argv, *images)
        assert status == 0, err
        results = json.loads(out)
        assert [about["image"] for about in results] == names
        for about in results:
            assert [asked["question"] for asked in about["asked"]] == [*questions, "@ where ?"]


def test_expressions_are_drawn(folder, capsys, tmp_path):
    out = tmp_path / "out.jpg"
    argv = [f"--checkpoint={folder / 'model_refcoco'}", "--image", CAT, "--expression", "the red thing", f"--out={out}"]
    status, printed, _ = run(capsys, *argv, "--json")
    (about,) = json.loads(printed)
    places = about["asked"][0]["places"]
    assert status == 0 and len(places) == 5 and len(about["regions"]) == 9 and "grid" in about["source"]
    best = next(place for place in places if place["region"])
    refcoco = get_task("region")
    (mark,) = refcoco.marks("a", dict(places=[best])).items()
    assert mark[0] == best["region"] - 1 and mark[1].count("%") == 1 and mark[1].startswith("a ")
    assert refcoco.marks("c", dict(places=[dict(region=0)])) == {}
    with Image.open(out) as drawn:
        assert drawn.format == "JPEG"


def test_phrases_of_a_sentence(folder, capsys):
    sentence = "the red thing is above the ball"
    argv = [f"--checkpoint={folder / 'model_refcoco'}", "--image", CAT, "--expression", sentence]
    status, out, _ = run(capsys, *argv, "--phrases", "the red thing", "the ball", "--json")
    asked = json.loads(out)[0]["asked"]
    assert status == 0 and [one["phrase"] for one in asked] == ["the red thing", "the ball"]
    assert {one["expression"] for one in asked} == {sentence}
    assert all(len(one["places"]) == 5 for one in asked) and asked[0]["places"] != asked[1]["places"]
    status, out, _ = run(capsys, *argv, "--phrases", "the ball")
    assert status == 0 and "  the ball\n" in out and "%" in out


def test_masked_words_with_and_without_the_image(folder, capsys):
    argv = [f"--checkpoint={folder / 'model_pretrain'}", "--image", COFFEE, "--caption", "a [MASK] cup on a [MASK]"]
    status, out, _ = run(capsys, *argv)
    assert status == 0 and out.count("with the image:") == 2 and out.count("without it:") == 2
    assert out.count("%") == 2 * 2 * 5


def test_choices(folder, capsys, tmp_path):
    argv = [f"--checkpoint={folder / 'model_vcr'}", "--image", CAT, "--question", "what is [1] ?", "--choices", "red"]
    status, out, _ = run(capsys, *argv, "[1] is blue", "no", f"--attention={tmp_path / 'a.html'}", "--json")
    answers = json.loads(out)[0]["asked"][0]["answers"]
    assert status == 0 and {answer["text"] for answer in answers} == {"red", "[1] is blue", "no"}
    assert sum(answer["probability"] for answer in answers) == pytest.approx(1, abs=1e-3)
    assert "what is [1] ? (chelsea.png)" in (tmp_path / "a.html").read_text()


def test_regions_of_a_detector(folder, capsys, tmp_path):
    """The command reads a tiny detector with random weights in the Caffe format."""
    path = GOLDEN / "detector/d6_tiny_a_legacy.caffemodel"
    argv = [f"--checkpoint={folder / 'model_vqa'}", "--image", CAT, f"--detector={path}", "--question", "what is red ?"]
    status, out, err = run(capsys, *argv, f"--out={tmp_path / 'o.png'}", "--json")
    (about,) = json.loads(out)
    assert status == 0 and about["source"] == "the detector with Caffe's rules" and len(about["regions"]) == 9
    assert "the model reads the best 9 of" in err  # the detector finds at least ten
    for row in about["regions"]:
        assert row["label"].startswith("class ") and 0 < row["score"] <= 1
        assert 0 <= row["box"][0] <= row["box"][2] <= 451 and 0 <= row["box"][1] <= row["box"][3] <= 300
    status, out, _ = run(capsys, "--image", CAT, f"--detector={path}", "--proposals=4")
    assert status == 0 and "4 regions from the detector with Caffe's rules" in out


def test_json_and_pages_of_attention(folder, capsys, tmp_path):
    file = tmp_path / "boxes.json"
    file.write_text(json.dumps(dict(boxes=[[10, 20, 200, 280]], labels=["cat"])))
    argv = [f"--checkpoint={folder / 'model_vqa'}", "--image", CAT, "--question", "what is red ?", "where ?"]
    argv += [f"--attention={tmp_path / 'a.html'}", f"--out={tmp_path / 'a.png'}", f"--boxes={file}"]
    status, out, _ = run(capsys, *argv, "--json")
    (about,) = json.loads(out)
    assert about["regions"] == [dict(region=1, box=[10, 20, 200, 280], label="cat")] and about["width"] == 451
    answers = about["asked"][0]["answers"]
    assert len(answers) == 5 and answers == sorted(answers, key=lambda a: -a["probability"])
    assert about["picture"] == str(tmp_path / "a.png") and (tmp_path / "a.png").exists()
    assert status == 0 and [asked["attention"] for asked in about["asked"]] == [
        str(tmp_path / f"a-{number}.html") for number in (1, 2)
    ]
    page = (tmp_path / "a-2.html").read_text()
    assert "where ? (chelsea.png)" in page and about["asked"][1]["answers"][0]["text"] in page


def test_boxes_are_drawn_where_they_are():
    pixels = np.zeros((320, 640, 3), np.uint8)
    some = np.array([[100, 50, 300, 200], [400, 100, 500, 300]], np.float32)
    drawn = np.asarray(draw_regions(pixels, some, ("", "cat"), {0: "this one"}, ["what?", "   this"]))
    red, yellow = (229, 36, 42), (255, 210, 63)
    assert (drawn[150, 102] == red).all() and (drawn[200, 401] == yellow).all() and (drawn[100, 350] == 0).all()
    assert (drawn[110:120, 404:420] == yellow).all(-1).mean() > 0.3  # the background of the label
    assert drawn.shape[0] > 320 + 2 * 20 and (drawn[-2:] == 255).all()
    many = np.array([[30 * i, 50, 30 * i + 25, 80] for i in range(21)], np.float32)
    shown = [np.asarray(draw_regions(pixels, many[:n], ["l"] * n, {}, [])) for n in (19, 20, 21)]
    label = [(image == (29, 33, 38)).all(-1).sum() for image in shown]
    assert label[0] < label[1] == label[2]  # the 21st region has no label


def test_regions_by_name(capsys):
    regions = Regions(
        boxes=np.array([[1, 2, 300, 200], [5, 5, 60, 70]], np.float32), source="the detector", labels=("cat", "dog"),
        scores=(0.9, 0.4), attributes=("brown", ""), features=np.arange(2 * WIDTH, dtype=np.float32).reshape(2, WIDTH),
    )  # fmt: skip
    assert regions.name(1) == "brown cat" and regions.name(2) == "dog"
    best = regions.first(1)
    assert best.labels == ("cat",) and best.scores == (0.9,) and best.features.shape == (1, WIDTH) and len(best) == 1
    assert best.source == "the detector" and best.class_probabilities is None
    show(dict(image="a.jpg", width=451, height=300, **described(regions)), [])
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        "a.jpg: 451 x 300; 2 regions from the detector".split(),
        ["1", "brown", "cat", "0.90", "[1.0,", "2.0,", "300.0,", "200.0]"],
        ["2", "dog", "0.40", "[5.0,", "5.0,", "60.0,", "70.0]"],
    ]
    without = dataclasses.replace(regions, attributes=())
    assert without.name(1) == "cat" and without.name(0) == "whole image"


def test_boxes_of_an_official_file(tmp_path):
    def coded(values):
        return base64.b64encode(np.asarray(values, "<f4").tobytes()).decode()

    record = dict(image_w=451, image_h=300, num_boxes=2, boxes=coded([[1, 2, 3, 4], [5, 6, 7, 8]]))
    path = tmp_path / "1.json"
    path.write_text(json.dumps(record | dict(features=coded(np.arange(10)), image_box_feature=coded(np.ones(5)))))
    found = given_regions(path, (451, 300))
    np.testing.assert_array_equal(found.boxes, [[1, 2, 3, 4], [5, 6, 7, 8]])
    np.testing.assert_array_equal(found.features, np.arange(10).reshape(2, 5))
    assert found.image_feature.shape == (5,)
    with pytest.raises(ValueError, match="boxes are of an image of 451 x 300 pixels, but this image has 300 x 451"):
        given_regions(path, (300, 451))
    path.write_text(json.dumps(record | dict(num_boxes=3)))
    with pytest.raises(ValueError, match="1.json: boxes: 8 values do not fit 3 boxes"):
        given_regions(path, (451, 300))


@pytest.mark.parametrize("content, message", [
    ("{", "not valid JSON"), ('"boxes"', "must be rows of numbers"), ("[[1, 2, 3]]", "rows of 4 finite numbers"),
    ("[[1, 2, 3, 1e39]]", "rows of 4 finite numbers"),
    ('[["a", 1, 2, 3]]', "must be rows of numbers"), ("[[1, 2, NaN, 4]]", "finite"), ("{}", "the fields are none"),
    ("[[1, 2, 3, 4], [5, 5, 4, 9]]", "box 1 is .5, 5, 4, 9."), ("[[500, 2, 600, 4]]", "box 0 is .*outside the image"),
    ("[[1, 2, 3, 4], [0, 0, 999, 999]]", "box 1 is .*far beyond the image of 451 x 300"),
    ("[[-100, 0, 3, 4]]", "box 0 is .*far beyond the image"),
    ('{"boxes": [[1, 2, 3, 4]], "labels": ["a", "b"]}', "1 boxes but 2 labels"),
    ("[[0.1, 0.1, 0.5, 0.9], [0, 0, 1, 1]]", "within 0 and 1, but boxes are in pixels of the image of 451 x 300"),
    ('{"boxes": [[1, 2, 3, 4]], "labels": 5}', "must be lists"),
    ('{"boxes": [[1, 2, 3, 4]], "scores": ["x"]}', "scores must be numbers"),
    ('{"boxes": [[1, 2, 3, 4]], "scores": [NaN]}', "scores must be finite numbers"),
    ('{"boxs": [[1, 2, 3, 4]]}', "the field 'boxes' is missing; the fields are boxs"),
    ('{"boxes": [[1, 2, 3, 4]], "boxes": []}', "the field 'boxes' is there twice"),
])  # fmt: skip
def test_invalid_files_of_boxes_are_refused(content, message, tmp_path):
    path = tmp_path / "b.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"b\.json: .*{message}"):
        given_regions(path, (451, 300))
    assert len(given_regions([], (451, 300))) == 0
    path.write_text('{"boxes": [[1, 2, 3, 4]], "labels": [null]}')
    assert given_regions(path, (451, 300)).labels == ("",)


def test_a_grid_covers_the_image():
    found = grid_regions((90, 60)).boxes
    np.testing.assert_array_equal(found[[0, 1, 8]], [[0, 0, 30, 20], [30, 0, 60, 20], [60, 40, 90, 60]])


@pytest.mark.parametrize("argv, message", [
    (["--image", CAT, "--question", "x"], "A text needs --checkpoint"),
    (["--image", CAT, COFFEE, "--boxes", "a.json"], "2 images but 1 files in --boxes"),
    (["--image", "nowhere.jpg"], "nowhere.jpg: there is no such file"),
    (["--image", "*.jpg"], "*.jpg: no image is there; the suffix of an image is .jpg"),
    (["--image", "."], ".: no image is there"),
    (["--image", CAT, "--checkpoint", "x", "--question", "@q.txt"], "--question @q.txt: the file q.txt cannot be read"),
    (["--image", CAT, "--checkpoint", "x", "--question", "@/dev/null"], "the file /dev/null has no text"),
    (["--image", __file__], "predict_test.py: the file is not an image"),
    (["--image", CAT, "--out", "x.docx"], "its suffix must be one of .png"),
    (["--image", CAT, "--out", "nowhere/x.png"], "there is no folder nowhere"),
    (["--image", CAT, "--checkpoint", "x", "--caption", "a", "--attention", "."], "it is a folder"),
    (["--image", CAT, "--boxes", "nowhere.json"], "nowhere.json"),
    (["--image", CAT, "--attention", "x.html"], "needs a text"),
    (["--image", CAT, "--choices", "a", "b"], "needs the --question"),
    (["--image", CAT, "--checkpoint", "x", "--phrases", "a"], "--phrases needs the --expression"),
    (["--image", CAT, "--checkpoint", "nowhere", "--question", "x"], "nowhere"),
    (["--image", CAT, "--detector", "x", "--proposals", "0"], "--proposals is 0; it must be at least 1"),
    (["--image", CAT, "--checkpoint", "{}/model_vqa", "--expression", "x"], "vqa is a model for visual question"),
    (["--image", CAT, "--checkpoint", "{}/model_refcoco", "--caption", "x"], "it takes --expression"),
    (["--image", CAT, "--checkpoint", "{}/model_pretrain", "--question", "x"], "it takes --caption"),
    (["--image", CAT, "--checkpoint", "{}/model_pretrain", "--caption", "no mask"], "has no [MASK] to fill"),
    (["--image", CAT, "--checkpoint", "{}/model_vqa", "--vocab", "no.txt", "--question", "x"], "it as --vocab=FILE"),
    (["--image", CAT, "--checkpoint", "{}/model_vqa", "--question", " "], "the text is empty"),
])  # fmt: skip
def test_errors_are_one_line(argv, message, folder, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = run(capsys, *(arg.format(folder) if arg.startswith("{}") else arg for arg in argv))
    assert status == 2 and not out and err.startswith("error: ") and err.count("\n") == 1 and message in err
    assert not list(tmp_path.iterdir())


@pytest.fixture
def no_compilation_cache():
    before = jax.config.jax_persistent_cache_min_compile_time_secs
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1e9)
    yield
    jax.config.update("jax_persistent_cache_min_compile_time_secs", before)


@pytest.mark.parametrize("name", ["out.png", "out.JPG", "page.html"])
def test_a_full_disk_keeps_the_old_file(name, folder, capsys, tmp_path, no_compilation_cache):
    """The error is one line; the old file is unchanged, and no partial file remains."""
    path = tmp_path / name
    argv = [f"--checkpoint={folder / 'model_vqa'}", "--image", COFFEE, "--question", "what is red ?"]
    argv += [f"--attention={path}" if name == "page.html" else f"--out={path}"]
    assert run(capsys, *argv)[0] == 0
    before = path.read_bytes(), path.stat().st_mtime_ns
    if name != "page.html":
        with Image.open(path) as drawn:
            assert drawn.format == dict(png="PNG", JPG="JPEG")[name[-3:]]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))
    try:
        status, _, err = run(capsys, *argv)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert status == 2 and err == f"error: [Errno 27] File too large: '{path}'\n"
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before and list(tmp_path.iterdir()) == [path]


def test_a_full_standard_output_is_reported():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "vlbert_jax.predict", "--image", CAT, "--json"]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2 and done.stderr == "error: [Errno 28] No space left on device: 'standard output'\n"


def test_unknown_words_are_reported(folder, capsys):
    argv = [f"--checkpoint={folder / 'model_vqa'}", "--image", CAT, "--question", "what color is the € ?"]
    _, _, err = run(capsys, *argv)
    assert "'€' is not in the model's vocabulary" in err
