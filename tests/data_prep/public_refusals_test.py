"""Test what the builders of public tasks refuse, each with one line that names file, place and remedy."""

import json
import shutil

import pytest

from data_prep import build
from tests.helpers.golden_folders import task_folders


@pytest.fixture
def refused(tmp_path, capsys):
    """Return a function that builds a task, expects one line with some texts, and that nothing was built."""

    def run(command, *texts, options=()):
        assert build.main([command, f"--source={tmp_path / 'source'}", f"--data_dir={tmp_path}", *options]) == 2
        error = capsys.readouterr().err.rpartition("\r")[2].strip()
        assert error.startswith("error: ") and "\n" not in error
        for text in texts:
            assert text in error
        assert not [*tmp_path.rglob("dataset_info.json")]

    return run


def write(tmp_path, name, items):
    path = tmp_path / "source" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = name.endswith("jsonl") or name.startswith("data/")
    path.write_text("\n".join(map(json.dumps, items)) if lines else json.dumps(items))


MEME = dict(id=7, img="img/7.png", label=0, text="a cup")
ENTAILED = dict(Flickr30K_ID="7", gold_label="neutral", pairID="7.jpg#0", sentence2="A cup.")
PAIR = dict(identifier="dev-1-0-0", sentence="Both.", label="True")
QUESTION = dict(question="Which?", imageId="7", isBalanced=True, answer="red", groups={}, entailed=[], semantic=[])
QUESTION |= dict(types=dict(detailed="a", semantic="b", structural="query"))
SENTENCE = dict(raw="A cup.", sentid=1)
IMAGE = dict(filename="7.jpg", split="train", sentences=[SENTENCE])


@pytest.mark.parametrize(
    "command, name, items, texts",
    [
        ("hateful_memes", "dev.jsonl", [MEME | dict(label=2)], ["line 1: label is the number 2, not 0 or 1"]),
        ("hateful_memes", "dev.jsonl", [MEME, MEME], ["line 2: the identifier 7 is that of", "line 1, too; keep one"]),
        ("hateful_memes", "dev.jsonl", [dict(id=7, img="img/7.png", txt="a")], ["'text' is missing; 'txt' is there"]),
        ("hateful_memes", "dev.jsonl", [MEME | dict(text=3)], ["the field 'text' is the number 3, not a text"]),
        ("hateful_memes", "dev.jsonl", [MEME], ["dev.jsonl, line 1: the image img/7.png is missing"]),
        ("hateful_memes", "dev.jsonl", [], ["there is no example in the split dev; download"]),
        ("hateful_memes", "dev.jsonl", ["text"], ["line 1: the line is the text 'text', not an object"]),
        ("snli_ve", "snli_ve_dev.jsonl", [ENTAILED | dict(gold_label="no")], ["gold_label is the text 'no', not"]),
        ("snli_ve", "snli_ve_dev.jsonl", [dict(gold_label="neutral")], ["the field 'Flickr30K_ID' is missing"]),
        ("nlvr2", "data/dev.json", [PAIR | dict(label="true")], ["label is the text 'true', not 'True' or 'False'"]),
        ("nlvr2", "data/dev.json", [PAIR | dict(identifier="x")], ["the identifier is 'x', not such as 'dev-850-0-0'"]),
        ("nlvr2", "data/train.json", [PAIR], ["line 1: the image images/train/dev-1-0-img0.png and 1"]),
        ("gqa", "val_balanced_questions.json", [], ["the file is a list of 0, not an object"]),
        ("gqa", "val_balanced_questions.json", {"01": 3}, ["question 01 is the number 3, not an object"]),
        ("gqa", "val_balanced_questions.json", {"01": dict(imageID="7")}, ["'imageId' is missing; 'imageID' is there"]),
        ("retrieval", "dataset_flickr30k.json", dict(images=[IMAGE | dict(split="restval")]), ["another --dataset"]),
        ("retrieval", "dataset_flickr30k.json", dict(images=[IMAGE | dict(sentences=[])]), ["7.jpg has no sentence"]),
        ("retrieval", "dataset_flickr30k.json", dict(image=[]), ["'images' is missing; 'image' is there"]),
        ("vizwiz", "val.json", [dict(image="7.jpg", question="?", answers=[])], ["has 0 of at least 4 answers"]),
    ],
)  # fmt: skip
def test_a_wrong_file_ends_with_one_line(tmp_path, refused, command, name, items, texts):
    write(tmp_path, name, items)
    refused(command, *texts)


def test_a_pair_with_one_image_is_refused(tmp_path, refused):
    folder = task_folders("nlvr2")[0]
    first = json.loads((folder / "data/dev.json").read_text().splitlines()[0])
    write(tmp_path, "data/dev.json", [first])
    name = f"{first['identifier'].rpartition('-')[0]}-img0.png"
    (tmp_path / "source/images/dev").mkdir(parents=True)
    shutil.copy(folder / "images/dev" / name, tmp_path / "source/images/dev")
    refused("nlvr2", f"the image images/dev/{name.replace('img0', 'img1')} is missing")


@pytest.mark.parametrize("command", ["nlvr2", "snli_ve", "hateful_memes", "gqa", "retrieval", "vizwiz", "ok_vqa"])
def test_a_folder_without_the_files_is_refused(tmp_path, refused, command):
    (tmp_path / "source").mkdir()
    refused(command, "file", "--source")


@pytest.mark.parametrize("command", ["nlvr2", "gqa", "ok_vqa", "retrieval"])
def test_another_split_is_refused(refused, command):
    refused(command, "--splits: there is no split 'other'; choose from train, ", options=["--splits=other"])


def test_options_that_leave_nothing_are_refused(tmp_path, refused):
    write(tmp_path, "dev.jsonl", [MEME])
    refused("hateful_memes", "--features requires the regions of a detector", options=["--features"])
    refused("hateful_memes", "without images and features a model sees nothing", options=["--no_images"])
    write(tmp_path, "val.json", [])
    refused("vizwiz", "--answers counts the answers of the train split", options=["--answers=9"])
    refused("vizwiz", "--answers=1 leaves no answer except <unk>", options=["--answers=1"])


def test_parts_of_a_file_that_repeat_a_question_are_refused(tmp_path, refused):
    for part in range(2):
        write(tmp_path, f"val_all_questions/val_all_questions_{part}.json", {"01": QUESTION})
    refused("gqa", "val_all_questions_1.json, question 01: the identifier 01", options=["--splits=val_all"])


def test_labels_and_answers_of_another_build_are_kept(tmp_path, capsys):
    folder = task_folders("hateful_memes")[0]
    (tmp_path / "hateful_memes").mkdir()
    (tmp_path / "hateful_memes/hateful_memes_labels.txt").write_text("no\nyes\n")
    assert build.main(["hateful_memes", f"--source={folder}", f"--data_dir={tmp_path}", "--splits=dev"]) == 2
    assert "has other content than this command would write" in capsys.readouterr().err
    assert (tmp_path / "hateful_memes/hateful_memes_labels.txt").read_text() == "no\nyes\n"
