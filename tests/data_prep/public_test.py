"""Test the builders of public tasks: records of the recorded files, one by one, and what is refused."""

import json
import shutil

import pytest

from tests.helpers.golden_folders import task_folders
from tests.helpers.public_case import built, each


def json_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_regions_of_images_without_a_detector_are_a_grid(tmp_path):
    images, _ = built(tmp_path, "hateful_memes", task_folders("hateful_memes")[0], "--splits=dev")
    assert {image["boxes"].shape for image in images} == {(9, 4)}


@each("nlvr2")
def test_nlvr2_has_two_images_labels_subsets_and_categories(tmp_path, folder):
    images, records = built(tmp_path, "nlvr2", folder)
    official = {split: json_lines(folder / f"data/{split}.json") for split in ("train", "dev", "test1", "test2")}
    assert (tmp_path / "nlvr2/x_labels.txt").read_text() == "False\nTrue\n"
    assert len({image["image_id"] for image in images}) == len(images)
    subsets = {
        item["identifier"]: name for name in ("balanced", "unbalanced") for split in ("dev", "test1")
        for item in json_lines(folder / f"data/{name}/{name}_{split}.json")
    }  # fmt: skip
    for split, items in official.items():
        assert len(records[split]) == len(items)
        for record, item in zip(records[split], items, strict=True):
            assert (record["example_id"], record["text"]) == (item["identifier"], item["sentence"])
            assert record["labels"] == [item["label"]] and record["known"] and record["text2"] == ""
            pair = item["identifier"].rpartition("-")[0]
            inside = f"images/{split}/" + (f"{item['directory']}/" if split == "train" else "")
            names = [images[number]["image_id"] for number in record["image_numbers"]]
            assert names == [f"{inside}{pair}-img{side}.png" for side in range(2)]
            extra = json.loads(record["extra"] or "{}")
            assert extra.get("subset") == subsets.get(item["identifier"])
            assert ("categories" in extra) <= (split == "dev")
    categories = [json.loads(record["extra"] or "{}").get("categories", ()) for record in records["dev"]]
    printed = json.loads((folder / "expected.json").read_text())["compute_category_accuracy.py"]["perfect.csv"]
    counts = {line.split(":")[0]: int(line.split()[-2]) for line in printed[3:]}
    assert {name: sum(name in found for found in categories) for name in counts} == counts


@each("snli_ve")
def test_snli_ve_has_what_the_public_generator_wrote(tmp_path, folder):
    images, records = built(tmp_path, "snli_ve", folder)
    expected = json.loads((folder / "expected.json").read_text())["written by the public generator"]
    for split, about in expected.items():
        items = json_lines(folder / f"data/snli_ve_{split}.jsonl")
        found = records[split]
        assert len(found) == about["examples"]
        assert {label: sum(r["labels"] == [label] for r in found) for label in about["labels"]} == about["labels"]
        assert len({record["image_number"] for record in found}) == about["images"]
        for record, item in zip(found, items, strict=True):
            assert (record["example_id"], record["text"]) == (item["pairID"], item["sentence2"])
            name = f"flickr30k_images/{item['Flickr30K_ID']}.jpg"
            assert images[record["image_number"]]["image_id"] == name
    assert (tmp_path / "snli_ve/x_labels.txt").read_text().split() == ["contradiction", "entailment", "neutral"]


@each("snli_ve")
def test_the_older_name_of_the_image_and_undecided_lines(tmp_path, folder):
    source = tmp_path / "source"
    shutil.copytree(folder / "flickr30k_images", source / "flickr30k-images")
    items = json_lines(folder / "data/snli_ve_dev_older_field_name.jsonl")
    items[0]["Flikr30kID"] += ".jpg"
    items[1]["gold_label"] = "-"
    (source / "snli_ve_dev.jsonl").write_text("\n".join(map(json.dumps, items)))
    images, records = built(tmp_path, "snli_ve", source)
    assert [record["example_id"] for record in records["dev"]] == [item["pairID"] for item in [items[0], *items[2:]]]
    assert {image["image_id"] for image in images} == {
        f"flickr30k-images/{item['Flikr30kID'].removesuffix('.jpg')}.jpg" for item in items
    }


@each("hateful_memes")
def test_hateful_memes_has_images_of_all_modes_and_tests_without_labels(tmp_path, folder):
    images, records = built(tmp_path, "hateful_memes", folder)
    assert all(image["image"][:2] == b"\xff\xd8" for image in images)
    for split in ("train", "dev", "test"):
        for record, item in zip(records[split], json_lines(folder / f"{split}.jsonl"), strict=True):
            assert (record["example_id"], record["text"]) == (str(item["id"]), item["text"])
            assert record["labels"] == ([str(item["label"])] if "label" in item else [])
            assert record["known"] == ("label" in item)
            assert images[record["image_number"]]["image_id"] == item["img"]


@pytest.mark.parametrize("dataset", ["flickr30k", "coco"])
def test_retrieval_keeps_all_sentences_of_all_splits(tmp_path, dataset):
    for number, folder in enumerate(task_folders(f"retrieval_{dataset}")):
        images, records = built(tmp_path / str(number), "retrieval", folder, f"--dataset={dataset}")
        content = json.loads((folder / f"dataset_{dataset}.json").read_text())["images"]
        expected = json.loads((folder / "expected.json").read_text())["split sizes"]
        assert records.keys() == expected.keys()
        for split, about in expected.items():
            assert len(records[split]) == about["sentences"]
            assert len({record["image_number"] for record in records[split]}) == about["images"]
            pairs = [(image, one) for image in content if image["split"] == split for one in image["sentences"]]
            for record, (image, sentence) in zip(records[split], pairs, strict=True):
                assert (record["text_id"], record["text"]) == (sentence["sentid"], sentence["raw"].strip())
                name = images[record["image_number"]]["image_id"]
                assert name == f"{image.get('filepath', 'flickr30k-images')}/{image['filename']}"
                assert record["example_id"] == str(image.get("cocoid", image["filename"].removesuffix(".jpg")))


@each("gqa")
def test_gqa_has_ten_times_the_answer_and_what_the_scores_read(tmp_path, folder):
    splits = ("train", "train_all", "val_all", "testdev", "test", "submission")
    images, records = built(tmp_path, "gqa", folder, f"--splits={','.join(splits)}")
    names = dict(val_all="val_all", submission="submission_all")
    choices = json.loads((folder / "val_choices.json").read_text())
    train: list[str] = []
    for split in splits:
        path = folder / f"{names.get(split, split if split == 'train_all' else f'{split}_balanced')}_questions"
        parts = sorted(path.glob("*.json")) if path.is_dir() else [path.with_suffix(".json")]
        items = [pair for part in parts for pair in json.loads(part.read_text()).items()]
        for record, (name, item) in zip(records[split], items, strict=True):
            assert (record["example_id"], record["question"]) == (name, item["question"])
            assert record["answers"] == ([item["answer"]] * 10 if "answer" in item else [])
            assert images[record["image_number"]]["image_id"] == f"images/{item['imageId']}.jpg"
            assert bool(record["extra"]) == (split in ("val_all", "testdev"))
            if record["extra"]:
                extra = json.loads(record["extra"])
                assert extra.get("choices") == (choices[name] if split == "val_all" else None)
                assert extra["types"] == item["types"] and extra["entailed"] == item["entailed"]
        train += [item["answer"] for _, item in items if split.startswith(("train", "val"))]
    answers = json.loads((tmp_path / "gqa/x_answers.json").read_text())
    assert sorted(answers) == sorted(set(train))
    assert [train.count(answer) for answer in answers] == sorted(map(train.count, answers), reverse=True)


def test_gqa_builds_the_balanced_splits_that_exist(tmp_path):
    _, records = built(tmp_path, "gqa", task_folders("gqa")[0], "--answers=3")
    assert list(records) == ["train", "val", "testdev", "test"]
    assert len(json.loads((tmp_path / "gqa/x_answers.json").read_text())) == 3


# --- VQA's siblings -------------------------------------------------------------------------------


def save_image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(next((task_folders("gqa")[0] / "images").glob("*.jpg")), path)


def test_vizwiz_has_ten_answers_and_a_vocabulary(tmp_path):
    source = tmp_path / "source"
    items = [
        dict(image=f"VizWiz_train_{k}.jpg", question=f"What is {k}?", answer_type="other", answerable=1,
             answers=[dict(answer="unanswerable" if n < 4 else f"can {k}", answer_confidence="yes") for n in range(10)])
        for k in range(2)
    ]  # fmt: skip
    for name, split in ((f"VizWiz_{split}_{k}.jpg", split) for split in ("train", "test") for k in range(2)):
        save_image(source / split / name)
    (source / "train.json").write_text(json.dumps(items))
    tests = [dict(image=f"VizWiz_test_{k}.jpg", question="Which?") for k in range(2)]
    (source / "test.json").write_text(json.dumps(tests))
    images, records = built(tmp_path, "vizwiz", source, "--answers=3")
    assert [image["image_id"] for image in images][::2] == ["train/VizWiz_train_0.jpg", "test/VizWiz_test_0.jpg"]
    assert [record["example_id"] for record in records["train"]] == [item["image"] for item in items]
    assert records["train"][1]["answers"] == ["unanswerable"] * 4 + ["can 1"] * 6
    assert records["test"][0]["answers"] == [] and records["test"][0]["answer_type"] == ""
    assert (tmp_path / "vizwiz/x_answers.txt").read_text() == "<unk>\nunanswerable\ncan 0\n"


def write_ok_vqa(source):
    questions = [dict(question_id=10 + k, image_id=42, question=f"Why {k}?") for k in range(2)]
    notes = [
        dict(question_id=one["question_id"], image_id=42, answer_type="other", question_type="one",
             answers=[dict(answer_id=n, answer="play", raw_answer="playing") for n in range(10)])
        for one in questions
    ]  # fmt: skip
    save_image(source / "val2014/COCO_val2014_000000000042.jpg")
    (source / "OpenEnded_mscoco_val2014_questions.json").write_text(json.dumps(dict(questions=questions)))
    (source / "mscoco_val2014_annotations.json").write_text(json.dumps(dict(annotations=notes)))


def test_ok_vqa_is_read_as_vqa(tmp_path):
    write_ok_vqa(tmp_path / "source")
    images, records = built(tmp_path, "ok_vqa", tmp_path / "source")
    assert [image["image_id"] for image in images] == ["val2014/COCO_val2014_000000000042.jpg"]
    assert [(r["question_id"], r["example_id"], r["answers"]) for r in records["val"]] == [
        (10 + k, str(10 + k), ["play"] * 10) for k in range(2)
    ]
    assert not (tmp_path / "ok_vqa/x_answers.txt").exists()
