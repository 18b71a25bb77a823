"""Test the VQA builders: exact records in the official order, and vocabularies of answers."""

import base64
import collections
import io
import json

import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data_prep import build
from data_prep.manifest import SourceError
from data_prep.vqa_files import SPLITS, Question, VQADownload, covered_answers, frequent_answers, write_answers
from tests.helpers.golden_folders import golden_folders
from tests.helpers.vqa_case import FOLDER, Download, annotation, encode, jpeg, put, read_all, zip_folder
from vlbert_jax.tasks import answer_lists

VARIANTS = {path.name: path / "data/coco" for folder in golden_folders("data") for path in sorted(folder.glob("vqa_*"))}


def floats(text, number):
    return np.frombuffer(base64.b64decode(text), "<f4").reshape(number, -1)


# --- The official sample --------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["folder", "zip"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_official_sample_is_stored_exactly(tmp_path, variant, form):
    source = tmp_path / "coco"
    for path in VARIANTS[variant].rglob("*"):
        if path.is_file():
            copy = source / path.relative_to(VARIANTS[variant])
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    if form == "zip":
        for folder in (*source.glob("vgbua_res101_precomputed/*"), *source.glob("*2014"), *source.glob("*2015")):
            zip_folder(folder)
    paths = build.run_vqa(source, tmp_path, "sample", features=True, images=True)
    assert paths["answers"].read_bytes() == (source / "vqa/answers_vqa.txt").read_bytes()
    images = read_all(paths["images"], "images")
    expected = []
    for split, (name, image_set) in SPLITS.items():
        path = VARIANTS[variant] / f"vqa/v2_OpenEnded_mscoco_{name}_questions.json"
        questions = json.loads(path.read_text("utf-8"))["questions"] if path.exists() else []
        notes = VARIANTS[variant] / f"vqa/v2_mscoco_{name}_annotations.json"
        notes = json.loads(notes.read_text("utf-8"))["annotations"] if notes.exists() else []
        notes = {note["question_id"]: note for note in notes}
        for orientation in ("landscape", "portrait"):
            records = read_all(paths["questions"], f"{split}_{orientation}")
            assert [record["index"] for record in records] == sorted(record["index"] for record in records)
            for record in records:
                official = questions[record["index"]]
                questions[record["index"]] = None
                image = images[record["image_number"]]
                assert (image["image_size"][0] >= image["image_size"][1]) == (orientation == "landscape")
                assert record["question_id"] == official["question_id"] and record["question"] == official["question"]
                assert int(image["image_id"]) == official["image_id"]
                note = notes.get(official["question_id"], dict(answers=[], answer_type=""))
                assert record["answers"] == [answer["answer"] for answer in note["answers"]]
                assert record["answer_type"] == note["answer_type"]
                expected.append((list(SPLITS).index(split), record["index"], official["image_id"], image_set))
        assert not any(questions)
    order = list(dict.fromkeys(image for *_, image, _ in sorted(expected)))
    assert [int(image["image_id"]) for image in images] == order
    sets = {image: image_set for *_, image, image_set in expected}
    for number, image in enumerate(images):
        image_id = int(image["image_id"])
        folder = FOLDER.format("test2015" if sets[image_id] == "test2015" else "trainval2014")
        official = json.loads((VARIANTS[variant] / folder / f"{image_id}.json").read_text())
        assert image["index"] == number
        assert image["image_size"].tolist() == [official["image_w"], official["image_h"]]
        for field in ("boxes", "features"):
            np.testing.assert_array_equal(image[field], floats(official[field], official["num_boxes"]))
        whole = floats(official["image_box_feature"], 1)[0] if "image_box_feature" in official else []
        np.testing.assert_array_equal(image["image_feature"], whole)
        jpeg = VARIANTS[variant] / f"{sets[image_id]}/COCO_{sets[image_id]}_{image_id:012d}.jpg"
        assert image["image"] == jpeg.read_bytes()


# --- Small downloads ------------------------------------------------------------------------------


def test_joined_by_number_and_in_order(tmp_path, capsys):
    paths = build.run_vqa(Download().write(tmp_path), tmp_path / "out", features=True)
    assert "not written" in capsys.readouterr().out and not paths["answers"].exists()
    images = read_all(paths["images"], "images")
    assert [image["image_id"] for image in images] == ["9", "7", "8"]
    assert [len(image["image_feature"]) for image in images] == [6, 0, 0]
    assert all(image["image"] == b"" for image in images)
    landscape, portrait = (read_all(paths["questions"], f"train_{o}") for o in ("landscape", "portrait"))
    assert [(r["index"], r["question_id"], r["image_number"]) for r in landscape] == [(0, 2, 0), (2, 3, 0)]
    assert [(r["index"], r["question_id"], r["image_number"]) for r in portrait] == [(1, 1, 1)]
    assert portrait[0]["answers"] == ["red"] * 10 and landscape[0]["answers"][5:7] == ["yes", "no"]
    (test,) = read_all(paths["questions"], "test_landscape")
    assert test["answers"] == [] and test["answer_type"] == "" and test["question"] == "what is 5?"


def test_annotations_may_have_an_answer_of_their_own(tmp_path):
    """Many converters write the most frequent answer into `answer`, where the official name is another."""
    download = Download()
    download.annotations["train"] = [annotation(*numbers, answer="yes") for numbers in ((3, 9), (1, 7), (2, 9))]
    built = build.run_vqa(download.write(tmp_path), tmp_path / "out", splits=("train",), features=True)
    (record, *_) = read_all(built["questions"], "train_landscape")
    assert record["answers"] == ["yes"] * 6 + ["no"] * 4


def test_images_without_features(tmp_path):
    download = Download()
    download.images |= {7: jpeg((40, 60), "L"), 8: jpeg((30, 44))}
    paths = build.run_vqa(download.write(tmp_path), tmp_path / "out", images=True)
    images = read_all(paths["images"], "images")
    assert [image["features"].shape for image in images] == [(0, 0)] * 3
    assert [image["boxes"].shape for image in images] == [(2, 4)] * 3
    assert Image.open(io.BytesIO(images[1]["image"])).mode == "RGB" and images[0]["image"] == download.images[9]
    assert images[2]["image_size"].tolist() == [30, 44]
    assert [record["question_id"] for record in read_all(paths["questions"], "test_portrait")] == [5]
    manifest = json.loads((paths["images"] / "manifest.json").read_text())
    (problem,) = manifest["problems"]
    assert (problem["action"], problem["line"]) == ("kept", 2) and "the detector saw (60, 40)" in problem["reason"]
    assert manifest["converted"] == {"JPEG in mode L encoded as an RGB JPEG": 1}


def test_the_best_class_of_each_region(tmp_path):
    download = Download()
    scores = encode([(0.6, 0.1, 0.3), (0.2, 0.7, 0.1)])
    download.regions = {number: record | dict(classes=scores) for number, record in download.regions.items()}
    built = build.run_vqa(download.write(tmp_path), tmp_path / "out", features=True, classes=True)
    for record in read_all(built["images"], "images"):
        assert record["best_class"].tolist() == [2, 1] and record["best_score"] == pytest.approx([0.3, 0.7])
    tables = download.write_tables(tmp_path)
    with pytest.raises(SourceError, match="a.tsv: tables of regions have no class scores; give .* or omit --classes"):
        build.run_vqa(tmp_path, tmp_path / "out", "tables", features=True, features_tsv=tables, classes=True)
    del download.regions[9]["classes"]
    with pytest.raises(SourceError, match="9.json: image 9: .* no class scores .* or omit --classes$"):
        build.run_vqa(download.write(tmp_path), tmp_path / "out", "other", features=True, classes=True)


def test_tables_and_files_give_the_same_records(tmp_path):
    download = Download()
    root = download.write(tmp_path)
    tables = download.write_tables(tmp_path)
    files = build.run_vqa(root, tmp_path / "out", "files", features=True)
    other = build.run_vqa(root, tmp_path / "out", "tables", features=True, features_tsv=tables)
    pairs = zip(read_all(files["images"], "images"), read_all(other["images"], "images"), strict=True)
    for one, another in pairs:
        for field in ("image_id", "image_size", "boxes", "features"):
            np.testing.assert_array_equal(one[field], another[field])
        assert len(another["image_feature"]) == 0
    (problem,) = json.loads((other["images"] / "manifest.json").read_text())["problems"]
    assert problem["action"] == "skipped" and problem["line"] == 2 and "image 9 occurs again" in problem["reason"]


@pytest.mark.parametrize(
    ("regions", "trainval", "test"),
    [
        ("36", "trainval_resnet101_faster_rcnn_genome_36", "test2015_resnet101_faster_rcnn_genome_36"),
        ("folder_a,folder_b", "folder_a", "folder_b"),
    ],
)
def test_selected_folders_of_regions(tmp_path, regions, trainval, test):
    root = Download().write(tmp_path)
    for old, new in (("trainval2014", trainval), ("test2015", test)):
        (root / FOLDER.format(old)).rename(root / "vgbua_res101_precomputed" / new)
    zip_folder(root / "vgbua_res101_precomputed" / test)
    paths = build.run_vqa(root, tmp_path / "out", features=True, regions=regions)
    assert len(read_all(paths["images"], "images")) == 3


def test_selected_splits(tmp_path):
    root = Download().write(tmp_path)
    paths = build.run_vqa(root, tmp_path / "out", splits=("test",), features=True)
    assert [image["image_id"] for image in read_all(paths["images"], "images")] == ["8"]
    assert list(tfds.builder_from_directory(paths["questions"]).info.splits) == ["test_landscape"]


# --- Vocabularies of answers ----------------------------------------------------------------------


def test_frequent_answers():
    answers = collections.Counter(
        {"yes": 5, "no": 5, "t-shirt": 4, "2.5": 3, "Red": 3, "a.": 3, "don't": 2, "": 2, "<unk>": 2, " x": 2, "1:2": 1}
    )
    questions = [Question(1, 1, "", tuple(answers.elements())), Question(2, 1, "", ("2.5",) * 2)]
    assert frequent_answers(questions, 4) == ["<unk>", "2.5", "no", "yes"]
    assert covered_answers(questions, ["<unk>", "2.5", "no", "yes"]) == (15 / 34, 1)
    assert covered_answers(questions, ["<unk>", "no"]) == (5 / 34, 1 / 2)
    assert frequent_answers(questions, 99) == ["<unk>", "2.5", "no", "yes", "don't", "1:2"]


@given(st.lists(st.text(alphabet="aB.,-?'15: \r\n\u0663\u00e9<>unk", max_size=6), max_size=30), st.integers(2, 20))
def test_every_frequent_answer_is_found_by_the_official_parser(answers, size):
    questions = [Question(1, 1, "", tuple(answers))]
    entries = frequent_answers(questions, size)
    share, _ = covered_answers(questions, entries)
    read = [answer_lists.vocabulary_entry(line.lower().strip()) for line in io.StringIO("\n".join(entries))]
    assert read == entries and len(set(entries)) == len(entries) <= size
    vocabulary = answer_lists.AnswerVocabulary(read)
    found = sum(vocabulary.number(answer) != vocabulary.unknown for answer in answers)
    assert share * max(1, len(answers)) == pytest.approx(found)


def test_answer_files(tmp_path, capsys):
    download = Download()
    download.other["vqa/answers_vqa.txt"] = "Yes\n<UNK>\nt-shirt"
    root = download.write(tmp_path)
    paths = build.run_vqa(root, tmp_path / "out", features=True)
    assert paths["answers"].read_text() == "Yes\n<UNK>\nt-shirt"
    with pytest.raises(SourceError, match="vqa_v2_answers.txt has other answers"):
        build.run_vqa(root, tmp_path / "out", features=True, answers=3)
    made = build.run_vqa(root, tmp_path / "out", "made", features=True, answers=3)
    assert made["answers"].read_text() == "<unk>\nyes\nred\n"
    printed = capsys.readouterr().out
    assert "3 answers, which cover 73.3% of the annotators' answers of train (100.0% of the questions" in printed
    assert "answers_vqa.txt, which cover 40.0% of the annotators' answers of train (66.7% of the questions" in printed
    assert answer_lists.load_answers(made["answers"]).entries == ("<unk>", "yes", "red")
    assert build.run_vqa(root, tmp_path / "out", "made", features=True, answers=3) == made
    put(root / "vqa/answers_vqa.txt", "yes\nno\n")
    with pytest.raises(SourceError, match="answers_vqa.txt: the file lacks the line <unk>"):
        write_answers(VQADownload(root), tmp_path / "new.txt")
    with pytest.raises(SourceError, match="add it to --splits"):
        write_answers(VQADownload(root, ["test"]), tmp_path / "new.txt", 3)
    put(root / "vqa/answers_vqa.txt", "<unk>\nblue\nt-shirt\n")
    with pytest.raises(SourceError, match="no question of train has an answer in the vocabulary.*such as 'yes'"):
        write_answers(VQADownload(root), tmp_path / "new.txt")
    assert not list(tmp_path.glob("*new.txt"))


@pytest.mark.parametrize("size", [0, 5])
def test_answers_in_capitals_are_refused(tmp_path, size):
    """They are looked up as they are among entries in lower case, so that every target would be 0."""
    download = Download()
    download.annotations = dict(train=[annotation(n, i, ["Red"] * 10) for n, i in ((3, 9), (1, 7), (2, 9))])
    download.other["vqa/answers_vqa.txt"] = "Red\nBlue\n<unk>\n"
    with pytest.raises(SourceError, match="no question of train has an answer .* such as 'Red'"):
        build.run_vqa(download.write(tmp_path), tmp_path / "out", features=True, answers=size)
    assert not list((tmp_path / "out").rglob("*.array_record*"))
