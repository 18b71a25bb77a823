"""Test the synthetic corpus of the further tasks: public formats, reproducible bytes, true texts, no prior."""

import collections
import functools
import itertools
import json
import re
import xml.etree.ElementTree as ElementTree

import pytest

from data_prep import build
from data_prep.manifest import SourceError
from data_prep.scene_kinds import TASKS
from data_prep.scenes import downstream, own, task_corpus
from data_prep.scenes.hypotheses import LABELS, suppose
from tests.helpers.scene_truth import draw_many, matching
from vlbert_jax.data.records import open_split

SETTINGS = dict(version=task_corpus.VERSION, seed=3, num_train=24, num_val=10, num_test=9, feature_width=0)
NUMBERS = dict(one=1, two=2, three=3, four=4)


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus")
    task_corpus.write_task_corpus(path, SETTINGS)
    return path


@pytest.fixture(scope="module")
def scenes():
    """Return the scenes of the corpus by image id."""
    return {one.image_id: one for one in task_corpus.draw_scenes(SETTINGS)}


@pytest.fixture(scope="module")
def by_bytes(scenes):
    return {one.scene.jpeg: one for one in scenes.values()}


def test_equal_settings_give_equal_bytes(folder, tmp_path):
    contents = []
    for name, settings in dict(again=SETTINGS, other=SETTINGS | dict(seed=4)).items():
        (tmp_path / name).mkdir()
        task_corpus.write_task_corpus(tmp_path / name, settings)
        contents.append({str(p.relative_to(tmp_path / name)): p for p in (tmp_path / name).rglob("*") if p.is_file()})
    first = {str(p.relative_to(folder)): p for p in folder.rglob("*") if p.is_file()}
    assert set(first) == set(contents[0])
    assert all(path.read_bytes() == contents[0][name].read_bytes() for name, path in first.items())
    for name in ("flickr30k/dataset_flickr30k.json", "nlvr2/data/dev.json", "snli_ve/data/snli_ve_dev.jsonl"):
        assert first[name].read_bytes() != contents[1][name].read_bytes()


def test_no_scene_is_in_two_splits_or_in_another_corpus(folder, scenes, by_bytes):
    assert len(by_bytes) == len(scenes)
    split_of = {one.image_id: one.split for one in scenes.values()}
    for split in task_corpus.SPLITS:
        names = (folder / f"flickr30k/{split}.txt").read_text().split()
        assert {split_of[int(name)] for name in names} == {split} and len(names) == SETTINGS[f"num_{split}"]
    for path in (folder / "nlvr2/images").rglob("*.png"):
        public = path.name.partition("-")[0]
        assert by_bytes[path.read_bytes()].split == dict(train="train", dev="val", test1="test")[public]
    settings = SETTINGS | dict(num_test=10)
    others = [one for split in downstream.SPLITS for one in downstream.draw_split(split, settings, 1)]
    assert not {one.scene.jpeg for one in others} & set(by_bytes)


def test_regions_have_the_names_of_extracted_ones(folder, scenes):
    """Regions are stored where `extract_regions` writes those of the folder of images."""
    for corpus, images in (("flickr30k", "flickr30k-images"), ("nlvr2", "images")):
        names, regions = (
            {path.relative_to(root).with_suffix("") for path in root.rglob("*") if path.is_file()}
            for root in (folder / corpus / images, folder / corpus / "regions")
        )
        assert names and names == regions


# --- Statements and hypotheses --------------------------------------------------------------------


def is_true(sentence, pair):
    """Evaluate a statement about two scenes."""
    words = sentence.lower().rstrip(".").split()
    things = [scene.things for scene in pair]

    def has(name, side):
        return bool(matching(name, things[side]))

    sides = dict(left=0, right=1)
    match words:
        case ["the", side, "image", "shows", "a", *name]:
            return has(" ".join(name), sides[side])
        case ["both", "images", "show", "a", *name]:
            return has(" ".join(name), 0) and has(" ".join(name), 1)
        case ["at", "least", "one", "image", "shows", "a", *name]:
            return has(" ".join(name), 0) or has(" ".join(name), 1)
        case ["no", "image", "shows", "a", *name]:
            return not has(" ".join(name), 0) and not has(" ".join(name), 1)
        case ["only", "the", side, "image", "shows", "a", *name]:
            return has(" ".join(name), sides[side]) and not has(" ".join(name), 1 - sides[side])
        case ["there", "are", "exactly", number, "things", "in", "the", side, "image"]:
            return len(things[sides[side]]) == NUMBERS[number]
        case ["there", "are", "more", "things", "in", "the", side, "image", "than", *_]:
            return len(things[sides[side]]) > len(things[1 - sides[side]])
        case ["exactly", number, _, "is" | "are", color]:
            return len(matching(color, things[0] + things[1])) == NUMBERS[number]
    raise AssertionError(sentence)


def test_statements_are_true_of_half_of_their_pairs(folder, by_bytes):
    fields = {"validation", "sentence", "left_url", "right_url", "writer", "label", "synset", "query", "identifier"}
    seen = collections.Counter()
    for name, more in (("train", "directory"), ("dev", "extra_validations"), ("test1", "extra_validations")):
        groups = collections.defaultdict(list)
        for line in lines_of(folder / f"nlvr2/data/{name}.json"):
            assert set(line) == fields | {more}
            split, number, pair, statement = line["identifier"].split("-")
            where = folder / "nlvr2/images" / (f"train/{line['directory']}" if split == "train" else split)
            files = [where / f"{split}-{number}-{pair}-img{side}.png" for side in range(2)]
            scenes = [by_bytes[path.read_bytes()].scene for path in files]
            assert line["label"] == str(is_true(line["sentence"], scenes)), line["sentence"]
            groups[number, statement].append((pair, line["sentence"], line["label"]))
            seen[line["sentence"].split()[0]] += 1
        for group in groups.values():
            assert len({pair for pair, _, _ in group}) == 4 and len({sentence for _, sentence, _ in group}) == 1
            assert sorted(label for _, _, label in group) == ["False", "False", "True", "True"]
    assert set(seen) == {"The", "Both", "At", "No", "Only", "There", "Exactly"}


def label_of(hypothesis, things):
    """Return the label of a hypothesis."""
    words = hypothesis.lower().rstrip(".").split()
    at = words.index("is")
    subject = matching(" ".join(words[:at]), things)
    if {"above", "below"} & set(words):
        below = matching(" ".join(words[at + 2 :]), things)
        if not subject or not below:
            return "neutral"
        down = below[0].center[1] - subject[0].center[1]
        return "entailment" if (down > 0) == (words[at + 1] == "above") else "contradiction"
    if not subject:
        return "neutral"
    assert len(subject) == 1
    return "entailment" if matching(words[-1], subject) else "contradiction"


def test_hypotheses_have_their_labels(folder, scenes):
    fields = {"Flickr30K_ID", "annotator_labels", "captionID", "gold_label", "pairID"}
    fields |= {f"sentence{k}{part}" for k in (1, 2) for part in ("", "_parse", "_binary_parse")}
    ids = []
    for name in ("train", "dev", "test"):
        for line in lines_of(folder / f"snli_ve/data/snli_ve_{name}.jsonl"):
            assert set(line) == fields and list(line) == sorted(line)
            assert line["gold_label"] == label_of(line["sentence2"], scenes[int(line["Flickr30K_ID"])].scene.things)
            assert (folder / f"snli_ve/flickr30k_images/{line['Flickr30K_ID']}.jpg").is_file()
            ids.append(line["pairID"])
    assert len(set(ids)) == len(ids) > 3 * len(scenes)


def test_a_hypothesis_does_not_reveal_its_label():
    found = [h for one in draw_many(31, 300) for h in suppose(one.scene, one.rng(6))]
    counts = collections.defaultdict(collections.Counter)
    for text, label in found:
        words = text.rstrip(".").split()
        counts[tuple(word for word in words if word in ("thing", "above", "below", "striped", "dotted"))][label] += 1
    total = sum(counts.values(), collections.Counter())
    assert all(total[label] == pytest.approx(len(found) / 3, rel=0.1) for label in LABELS)
    assert sum(max(count.values()) for count in counts.values()) < 0.38 * len(found)


# --- Captions, phrases, questions -----------------------------------------------------------------


def test_captions_name_all_things(folder, scenes):
    content = json.loads((folder / "flickr30k/dataset_flickr30k.json").read_text())
    assert content["dataset"] == "flickr30k" and len(content["images"]) == len(scenes)
    sentids = []
    for image in content["images"]:
        assert set(image) == {"sentids", "imgid", "sentences", "split", "filename"}
        one = scenes[int(image["filename"].removesuffix(".jpg"))]
        assert image["split"] == one.split and len(image["sentences"]) == 5
        for sentence in image["sentences"]:
            assert set(sentence) == {"tokens", "raw", "imgid", "sentid"}
            pairs = set(itertools.pairwise(sentence["tokens"]))
            assert pairs >= {(thing.color, thing.category) for thing in one.scene.things}
        sentids += image["sentids"]
    assert sentids == list(range(len(sentids)))


def test_phrases_name_their_boxes(folder, scenes):
    """A phrase is true of its things, and of no other unless the words around it state which one."""
    plural = 0
    for one in scenes.values():
        root = ElementTree.parse(folder / f"flickr30k/Annotations/{one.image_id}.xml").getroot()
        boxes = collections.defaultdict(list)
        for item in root.iter("object"):
            for name in item.iter("name"):
                box = [int(item.findtext(f"bndbox/{corner}", "0")) for corner in ("xmin", "ymin", "xmax", "ymax")]
                boxes[name.text].append((box[0] - 1, box[1] - 1, *box[2:]) if any(box) else None)
        lines = (folder / f"flickr30k/Sentences/{one.image_id}.txt").read_text().splitlines()
        assert len(lines) == 5
        for line in lines:
            phrases = re.findall(r"\[/EN#(\d+)/([a-z/]+) ([^\]]+)\]", line)
            assert phrases and line[0] == "["
            for i, (chain, kinds, words) in enumerate(phrases):
                if chain == "0" or boxes[chain] == [None]:
                    assert kinds in ("notvisual", "scene")
                    continue
                words = words.lower()
                things = [thing for thing in one.scene.things if thing.box in boxes[chain]]
                assert len(things) == len(boxes[chain])
                if len(things) > 1:
                    plural += 1
                    name = words.removesuffix(" things").removesuffix("s").replace("boxe", "box")
                    assert matching(name, one.scene.things) == things
                else:
                    is_alone = matching(words, one.scene.things) == things
                    assert things[0] in matching(words, one.scene.things)
                    assert is_alone or (i == 0 and re.search(r"\] (above|below|beside) \[.*\] is \[", line))
    assert plural > 10


def test_pointing_questions_have_one_answer(folder, scenes):
    content = json.loads((folder / "visual7w/dataset_v7w_pointing.json").read_text())
    boxes = {box["box_id"]: box for box in content["boxes"]}
    assert len(boxes) == len(content["boxes"])
    number = 0
    for image in content["images"]:
        things = scenes[image["image_id"]].scene.things
        assert (folder / "visual7w/images" / image["filename"]).is_file()
        for qa in image["qa_pairs"]:
            words = qa["question"].removesuffix("?").replace(" is a ", " is ").split()
            name = [word for word in words[1:] if word != "is"]
            if name[-1] in {thing.category for thing in things} and "thing" in name:
                name.remove("thing")
            (right,) = matching(" ".join(name), things)
            box = boxes[qa["answer"]]
            assert (box["x"], box["y"], box["x"] + box["width"], box["y"] + box["height"]) == right.box
            choices = {qa["answer"], *qa["multiple_choices"]}
            assert len(choices) == 4 and all(boxes[i]["image_id"] == image["image_id"] for i in choices)
            number += 1
    assert number > len(scenes)


def test_own_data_are_lines_with_images(folder, scenes):
    fields = {"answer": {"question", "answers"}, "texts": {"texts"}, "region": {"text", "boxes", "label"}}
    for kind in (*own.KINDS, "pair"):
        for split in own.SPLITS:
            lines = lines_of(folder / f"own/{kind}/{split}.jsonl")
            assert len({line["id"] for line in lines}) == len(lines) > 0
            for line in lines:
                images = line.get("images") or [line["image"]]
                assert all((folder / "own" / kind / image).is_file() for image in images)
                assert kind not in fields or set(line) == {"id", "image"} | fields[kind]
    for line in lines_of(folder / "own/region/train.jsonl"):
        things = scenes[int(line["image"][7:-4])].scene.things
        assert [line["boxes"][line["label"]]] == [list(thing.box) for thing in matching(line["text"], things)]


def test_the_vocabulary_has_all_words(folder):
    vocabulary = (folder / "vocab.txt").read_text().splitlines()
    assert len(vocabulary) == len(downstream.vocabulary())
    texts = [line["sentence"] for line in lines_of(folder / "nlvr2/data/train.json")]
    texts += [line["sentence2"] for line in lines_of(folder / "snli_ve/data/snli_ve_train.jsonl")]
    pointing = json.loads((folder / "visual7w/dataset_v7w_pointing.json").read_text())
    texts += [qa["question"] for image in pointing["images"] for qa in image["qa_pairs"]]
    words = set(re.findall(r"\w+", " ".join(texts).lower()))
    assert words <= set(vocabulary)


def test_the_corpus_is_drawn_once_and_a_recipe_builds_only_its_tables(tmp_path, monkeypatch):
    settings = dict(num_train=8, num_val=8, num_test=8)
    monkeypatch.setattr(build, "build_scene_kinds", functools.partial(build.build_scene_kinds, **settings))
    built, vocab, made = set(), tmp_path / "scene_kinds/vocab.txt", None
    for task in TASKS:
        fields = dict(data_dir=str(tmp_path), texts=f"{task}/scenes", images=f"{task}_images/scenes")
        build.draw_missing("scene_kinds", fields | dict(vocab="scene_kinds/vocab.txt"))
        built |= {task, f"{task}_images"}
        assert {path.name for path in tmp_path.iterdir()} - {".build_lock", "scene_kinds"} == built
        made = made or vocab.stat().st_mtime_ns
        image = open_split(tmp_path, f"{task}_images/scenes", "images")[0]
        assert image["image"] and (0 < len(image["boxes"]) < 9) != (task == "visual7w")
    monkeypatch.undo()
    command = ["scene_kinds", f"--data_dir={tmp_path}", *(f"--{name}={value}" for name, value in settings.items())]
    assert build.main(command) == 0 and vocab.stat().st_mtime_ns == made
    with pytest.raises(SourceError, match="remove it"):
        build.build_scene_kinds(tmp_path, seed=7)
