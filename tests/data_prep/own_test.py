"""Test the builder of user-supplied data: records of each kind, and one line for each fault."""

import collections
import gzip
import json

import numpy as np
import pytest

from data_prep import build
from data_prep.manifest import SourceError
from data_prep.own import build_own
from data_prep.own_files import OwnFolder
from data_prep.own_targets import describe_task
from tests.helpers.golden_folders import golden_folders
from tests.helpers.vqa_case import jpeg, read_all
from vlbert_jax.data.region_files import encode_floats

GOLDEN_OWN = [path for root in golden_folders("tasks") for path in sorted(root.glob("own_data*"))]
SIZES = {"a.jpg": (60, 40), "b.jpg": (40, 60), "c.jpg": (60, 40), "line.jpg": (60, 1)}


def lines_of(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def stored(paths, split):
    """Return the records of a split in the order of the file, each with the paths of its images."""
    images = read_all(paths["images"], "images")
    records = [r for part in ("landscape", "portrait") for r in read_all(paths["texts"], f"{split}_{part}")]
    for record in records:
        numbers = record["image_numbers"] if "image_numbers" in record else [record["image_number"]]
        record["paths"] = [images[int(number)]["image_id"] for number in numbers]
    return sorted(records, key=lambda record: record["index"])


# --- The recordings -------------------------------------------------------------------------------


def in_record(line):
    """Return the fields of a record that a line of the recordings must give, besides image numbers."""
    text = dict(text=line.get("text", ""), text2=line.get("text2", ""))
    if "boxes" in line:
        choices = list(range(len(line["boxes"])))
        return dict(expression=line["text"], boxes=line["boxes"], targets=[line["label"]], choices=choices, gold=[])
    if "label" in line:
        return text | dict(labels=[line["label"]], known=True)
    if "labels" in line:
        return text | dict(labels=line["labels"], known=True)
    if "value" in line:
        return text | dict(values=[pytest.approx(line["value"])], known=True)
    return dict(text=line["text"])


def as_lists(record):
    return {name: value.tolist() if hasattr(value, "tolist") else value for name, value in record.items()}


@pytest.mark.parametrize("name", ["multi_label", "pair_of_images", "pair_of_texts", "regression", "region_choice",
                                  "composed_retrieval", "single_label"])  # fmt: skip
@pytest.mark.parametrize("root", GOLDEN_OWN, ids=lambda path: path.name)
def test_recordings(tmp_path, root, name):
    paths = build_own(root / name, tmp_path, images=root)
    numbers = {image["image_id"]: image["index"] for image in read_all(paths["images"], "images")}
    for split in ("train", "val"):
        lines, records = lines_of(root / name / f"{split}.jsonl"), stored(paths, split)
        assert len(records) == len(lines)
        for line, record in zip(lines, records, strict=True):
            assert record["example_id"] == line["id"] and record["extra"] == ""
            assert record["paths"] == line.get("images", [line.get("image")])
            found = as_lists(record)
            assert {field: found[field] for field in in_record(line)} == in_record(line)
            if "targets" in line:
                assert found["targets"] == [numbers[path] for path in line["targets"]]
        if name == "composed_retrieval":
            gallery = json.loads((tmp_path / f"own/{name}_{split}_gallery.json").read_text())
            assert gallery == [numbers[one["image"]] for one in lines_of(root / name / f"{split}_gallery.jsonl")]
    if name in ("multi_label", "single_label", "pair_of_images"):
        expected = json.loads((root / "expected.json").read_text())
        labels = (tmp_path / f"own/{name}_labels.txt").read_text().split("\n")[:-1]
        assert labels == expected.get(name, {}).get("classes", ["False", "True"])
        trained = collections.Counter(
            label for line in lines_of(root / name / "train.jsonl") for label in line.get("labels", [line.get("label")])
        )
        assert paths["task"]["label_counts"] == [trained[label] for label in labels]
    table = json.loads((paths["texts"] / "manifest.json").read_text())["task"]
    assert table["max_regions"] == (4 if name == "region_choice" else 9)


@pytest.mark.parametrize("root", GOLDEN_OWN, ids=lambda path: path.name)
def test_retrieval_has_a_record_for_each_text(tmp_path, root):
    paths = build_own(root / "retrieval", tmp_path, images=root)
    lines = lines_of(root / "retrieval/val.jsonl")
    expected = [(line["id"], [line["image"]], text) for line in lines for text in line["texts"]]
    records = stored(paths, "val")
    assert [(record["example_id"], record["paths"], record["text"]) for record in records] == expected
    identifiers = [record["text_id"] for split in ("train", "val") for record in stored(paths, split)]
    assert identifiers == list(range(len(identifiers)))


@pytest.mark.parametrize("root", GOLDEN_OWN, ids=lambda path: path.name)
@pytest.mark.parametrize("name", ["single_label", "multi_label"])
def test_tables_give_the_examples_of_json_lines(root, name):
    lines, table = OwnFolder(root / name), OwnFolder(root / f"{name}_csv")
    for split in ("train", "val"):
        for one, other in zip(lines.examples[split], table.examples[split], strict=True):
            assert (one.name, one.images, one.fields) == (other.name, other.images, other.fields)
    notes = [example.extra.get("note") for example in table.examples["train"]]
    assert 'a "quoted", note\nof two lines' in notes
    place = next(example.place for example in table.examples["train"] if example.name == "train2")
    assert place.endswith("train.csv, line 5")  # the note before it takes two


# --- Data of all kinds ----------------------------------------------------------------------------

RED = dict(image="a.jpg", text="what color?", label="red")
BLUE = dict(image="b.jpg", text="what color?", label="blue")


def write(folder, **splits):
    """Write the lines of splits, and three images."""
    folder.mkdir(exist_ok=True)
    for split, lines in splits.items():
        lines = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        (folder / f"{split}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    for path, size in SIZES.items():
        if not (folder / path).exists():
            (folder / path).write_bytes(jpeg(size))
    return folder


def built(tmp_path, capsys, *arguments, **splits):
    """Build a folder with the command; return its status, the lines it printed, and its error."""
    folder = write(tmp_path / "photos", **splits)
    status = build.main(["own", f"--source={folder}", f"--data_dir={tmp_path / 'data'}", *arguments])
    printed = capsys.readouterr()
    errors = [line for line in printed.err.splitlines() if "error" in line]
    return status, printed.out, "\n".join(errors)


def tables(tmp_path):
    return dict(texts=tmp_path / "data/own/photos/1.0.0", images=tmp_path / "data/own_images/photos/1.0.0")


def test_command_prints_what_it_found(tmp_path, capsys):
    test = [dict(image="c.jpg", text="what color?", id=7, shop="north", price=None, label=None)]
    status, out, error = built(tmp_path, capsys, train=[RED, BLUE, RED | dict(image="c.jpg")], val=[BLUE], test=test)
    assert (status, error) == (0, "")
    for part in (
        "the kind is classify, one of 2 labels", "train: 3 examples", "1 of them without label",
        "labels of train: red 2, blue 1", "words of the texts of an example: 3 to 3", "grid of 3 x 3",
        "warning: 1 of 1 examples of val have the image and text of one in train",
        "next: python -m vlbert_jax.main --config=configs/own.py --config.data.texts=own/photos",
    ):  # fmt: skip
        assert part in out
    (record,) = stored(tables(tmp_path), "test")
    assert record["example_id"] == "7" and json.loads(record["extra"]) == {"shop": "north", "price": None}
    assert record["labels"] == [] and not record["known"]
    assert stored(tables(tmp_path), "train")[1]["example_id"] == "2"  # the number of the line
    status, out, _ = built(tmp_path, capsys, train=[RED, BLUE, RED | dict(image="c.jpg")], val=[BLUE], test=test)
    assert status == 0 and "already built" in out
    status, _, error = built(tmp_path, capsys, train=[RED, BLUE], val=[BLUE], test=test)
    assert status == 2 and "remove it, or change --corpus" in error


def test_answers_are_plain_and_score_one(tmp_path, capsys):
    train = [
        dict(image="a.jpg", question="what is it?", answer="T-Shirt"),
        dict(image="b.jpg", question="what is it?", answers=["a box", "a  box", "crate", "a box", "box"]),
        dict(image="c.jpg", question="what is it?", answers=["t shirt", "shirt"]),
    ]
    status, out, error = built(tmp_path, capsys, "--answers=4", train=train, val=train[:1])
    assert (status, error) == (0, "")
    assert "'T-Shirt' and 't shirt' are both read as 't shirt'" in out and "100.0% of val" in out
    assert (tmp_path / "data/own/photos_answers.txt").read_text() == "<unk>\nt shirt\na box\nbox\n"
    answers = [record["answers"] for record in stored(tables(tmp_path), "train")]
    assert answers == [["t shirt"] * 4, ["a box", "a box", "crate", "a box", "box"], ["t shirt"] * 4 + ["shirt"] * 4]


def test_choices_and_boxes_from_tables(tmp_path):
    folder = write(tmp_path / "photos")
    rows = 'image,text,choices,label\na.jpg,what?,a box|"a ""red"" ball",1\n'
    for split in ("train", "val"):
        (folder / f"{split}.csv").write_text(rows.replace('a box|"a ""red"" ball"', '"a box|a ""red"" ball"'))
    (record,) = stored(build_own(folder, tmp_path / "data"), "train")
    assert record["choices"] == ["a box", 'a "red" ball'] and record["label"] == 1
    for split in ("train", "val"):
        (folder / f"{split}.csv").unlink()
        (folder / f"{split}.tsv").write_text("image\ttext\tboxes\tlabel\na.jpg\tthe ball\t1 2 10 20|5 5 9 9.5\t0|1\n")
    (record,) = stored(build_own(folder, tmp_path / "data", "boxes"), "val")
    assert record["boxes"].tolist() == [[1, 2, 10, 20], [5, 5, 9, 9.5]]
    assert record["targets"].tolist() == [0, 1] and record["choices"].tolist() == [0, 1]
    assert record["context"] == "" and record["gold"].shape == (0, 4)


def test_a_right_box_is_sought_among_detected_ones(tmp_path, capsys):
    lines = [dict(image="a.jpg", text="x", box=[1, 2, 9, 9])]
    elsewhere = [dict(image="a.jpg", text="x", box=[0, 0, 9, 4])]  # 36 of 81 are common
    folder = write(tmp_path / "photos", train=lines, val=elsewhere)
    regions = dict(image_id=0, image_w=60, image_h=40, num_boxes=1, boxes=encode_floats(np.array([[0, 0, 9, 9]], "f4")))
    (tmp_path / "regions").mkdir()
    (tmp_path / "regions/a.json").write_text(json.dumps(regions))
    (record,) = stored(build_own(folder, tmp_path / "data", regions=tmp_path / "regions"), "train")
    assert record["gold"].tolist() == [[1, 2, 9, 9]] and "boxes" not in record
    assert len(record["choices"]) == len(record["targets"]) == 0
    output = capsys.readouterr().out
    assert "50.0% of 2 targets usable" in output and "val.jsonl: no detected region shares half" in output
    assert "train.jsonl: no detected region" not in output


def test_many_labels_and_few_examples(tmp_path, capsys):
    train = [RED | dict(labels=[f"label {i * 100 + k}" for k in range(100)]) for i in range(20)]
    for line in train:
        del line["label"]
    status, out, _ = built(tmp_path, capsys, train=train, val=train[:1])
    assert status == 0 and "any of 2,000 labels" in out and "and 1,980 more" in out
    assert "warning: there are more labels (2,000) than examples of train (20)" in out


def test_integers_are_sorted_by_value(tmp_path):
    lines = [RED | dict(label=label) for label in ("10", "9", "2", "--5", "1" * 5000)]
    folder = OwnFolder(write(tmp_path / "photos", train=lines, val=lines))
    assert describe_task(folder, "photos", 0, "")[1] == ["2", "9", "10", "--5", "1" * 5000]
    assert describe_task(folder, "photos", 0, "9")[0]["positive"] == "9"


# --- Faults ---------------------------------------------------------------------------------------

PAIR = dict(images=["a.jpg", "b.jpg"], text="the same", label="yes")
BOXES = dict(image="a.jpg", text="the ball", boxes=[[1, 2, 10, 20], [5, 5, 20, 20]], label=0)
SEARCH = dict(image="a.jpg", text="but blue", targets=["b.jpg"])
CHOICE = dict(image="a.jpg", text="what?", choices=["a", "b"], label=0)
ASK = dict(image="a.jpg", question="what?", answer="box")
FAULTS = dict(
    missing_image=([RED, RED | dict(image="z.jpg"), BLUE], "train.jsonl, line 2: the image z.jpg is missing"),
    misspelt=([RED, dict(image="a.jpg", lable="red")], "line 2: the field 'lable' is not known; rename it 'label'"),
    misspelt_first=([dict(imagee="a.jpg", label="red")], "line 1: the field 'imagee' is not known; rename it 'image'"),
    misspelt_text=([dict(image="a.jpg", Text="x", label="red")], "the field 'Text' is not known; rename it 'text'"),
    capitals=([dict(Text="x", Label="red", Image="a.jpg")], "the field 'Text' is not known; rename it 'text'"),
    backslash=([BLUE, RED | dict(image=r".\b.jpg")], r"line 2: the image .\b.jpg is missing in", "write ./b.jpg"),
    line=([RED | dict(image="line.jpg"), BLUE], "line 1: the image line.jpg cannot be used: it has 60 x 1 pixels"),
    image_twice=([PAIR | dict(image="a.jpg")], "line 1: there are both 'image' and 'images'; give one"),
    answer_twice=([ASK | dict(answers=["a"])], "line 1: there are both 'answer' and 'answers'; give one"),
    answer_as_label=([dict(image="a.jpg", question="x?", label="a")], "line 1: the field 'answer' is missing"),
    too_large=([dict(image="a.jpg", value=1e39)], "the field 'value' is the number 1e+39, not", "at most 3e+38"),
    digits=([dict(image="a.jpg", value=10**400)], "the field 'value' is the number 1" + 39 * "0" + "..., not a number"),
    corner=([BOXES | dict(boxes=[[0, 0, 10**400, 9]])], "line 1: 'boxes' has [0, 0, 1000", "not four numbers"),
    one_box=([BOXES | dict(boxes=[[1, 2, 10, 20]])], "train.jsonl: each example has one box, so there is nothing"),
    no_target=([dict(image="a.jpg", text="x")], "to say what is to be learned, one of choices"),
    two_types=([RED, RED | dict(label=3)], "line 2: the label is the number 3, but", "has a text"),
    fraction=([RED, RED | dict(label=0.5)], "line 2: the label is the number 0.5; name numbers to predict 'value'"),
    mixed=([RED, dict(image="a.jpg", text="x", labels=["red"])], "line 2: the field 'label' is missing"),
    mixed_too=([RED, RED | dict(answers=["x"])], "line 2: the field 'answers' does not go with 'label'"),
    identifier=([RED | dict(id=1), BLUE | dict(id="1")], "line 2: the id '1' is that of", "line 1, too"),
    one_of_a_pair=([PAIR, PAIR | dict(images=["a.jpg"])], "line 2: there are 1 in 'images', but a pair has 2"),
    single_among_pairs=([PAIR, RED], "line 2: there is one image, but", "line 1 has a pair"),
    one_class=([RED, RED], "the only label is 'red', so there is nothing to learn"),
    no_label=([RED | dict(label=" "), BLUE], "line 1: the label is empty"),
    constant=([dict(image="a.jpg", value=3)] * 2, "'value' is 3 in all examples"),
    no_number=([dict(image="a.jpg", value="3")], "line 1: the field 'value' is the text '3', not a number"),
    widths=([dict(image="a.jpg", value=v) for v in (1, [1, 2])], "line 2: 'value' has 2, but", "line 1 has 1"),
    outside=([BOXES, BOXES | dict(boxes=[[1, 2, 70, 20]])], "line 2: the box [1.0, 2.0, 70.0, 20.0] is not inside"),
    negative=([BOXES | dict(boxes=[[-9, 2, 10, 20]] * 2)], "line 1: the box [-9.0, 2.0, 10.0, 20.0] is not inside"),
    width_height=([BOXES | dict(boxes=[[30, 20, 10, 10]] * 2)], "line 1: the box [30.0, 20.0, 10.0, 10.0] is not in"),
    fractions=([BOXES | dict(boxes=[[0.1, 0.2, 0.5, 0.6]] * 2)], "line 1: all corners are within 0 and 1"),
    three_corners=([BOXES | dict(boxes=[[1, 2, 3]])], "line 1: 'boxes' has [1, 2, 3], not four numbers"),
    index=([BOXES | dict(label=2)], "line 1: the label 2 is not an index among 2 boxes, 0 to 1"),
    choices=([CHOICE, CHOICE | dict(choices=["a", "b", "c"])], "line 2: 'choices' has 3, but", "line 1 has 2"),
    one_answer=([ASK], "the only answer is 'box'"),
    marks=([ASK | dict(answer="?!")], "line 1: the answer '?!' has no letter"),
    no_detector=([dict(image="a.jpg", text="x", box=[1, 2, 3, 4])], "line 1: a right 'box' is sought among detected"),
    twice=([RED, '{"image": "a.jpg", "label": "red", "label": "blue"}'], "line 2: the field 'label' is there twice"),
    not_json=([RED, "{'image': 'a.jpg'}"], "line 2: the line is not JSON"),
    not_an_object=([RED, "[1]"], "line 2: the line is a list of 1, not an object"),
    no_gallery=([SEARCH], "train_gallery.jsonl is missing: list the images"),
    nan=([RED | dict(price=[float("nan")]), BLUE], "line 1: a field is NaN or infinite, which JSON lacks; write null"),
    empty=([""], "train.jsonl: there is no example"),
)  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_faults_are_one_line(tmp_path, capsys, name):
    lines, *parts = FAULTS[name]
    status, _, error = built(tmp_path, capsys, train=lines, val=lines)
    assert status == 2 and error.count("\n") == 0
    for part in parts:
        assert part in error
    assert not (tmp_path / "data/own/photos/1.0.0").exists()


def test_all_splits_have_the_same_number_of_values_and_choices(tmp_path, capsys):
    value = dict(image="a.jpg", value=[1, 2])
    for train, val in ((value, dict(value=1)), (CHOICE, dict(choices=["a", "b", "c"]))):
        _, _, error = built(tmp_path, capsys, train=[train], val=[train | val])
        assert "val.jsonl, line 1: " in error and "train.jsonl, line 1 has 2" in error


def test_what_is_not_used_is_reported(tmp_path, capsys):
    train = [RED, BLUE, dict(image="c.jpg", sentence="what color?", label="red")]
    status, out, _ = built(tmp_path, capsys, "--corpus=my photos", train=train, val=[BLUE])
    assert status == 0 and "come back in the predictions: sentence" in out
    assert "train.jsonl, line 3: there is no text (1 of 3 examples of train)" in out
    assert "'--config.data.texts=own/my photos'" in out and "'--workdir=workdirs/my photos'" in out
    train = [CHOICE | dict(probabilities=1), CHOICE | dict(choices=["a", "a"])]
    status, out, _ = built(tmp_path, capsys, "--corpus=b", train=train, val=[CHOICE])
    assert "train.jsonl, line 1: the field 'probabilities' does not come back: predictions have one of this name" in out
    assert status == 0 and "train.jsonl, line 2: two choices are the same" in out


def test_boxes_of_the_lines_are_the_regions(tmp_path, capsys):
    status, out, _ = built(tmp_path, capsys, train=[BOXES], val=[BOXES])
    assert status == 0 and "regions: of the texts" in out and "detector" not in out
    assert [len(image["boxes"]) for image in read_all(tables(tmp_path)["images"], "images")] == [0]
    status, _, error = built(tmp_path, capsys, "--features", "--regions=r", train=[BOXES], val=[BOXES])
    assert status == 2 and "the regions are the 'boxes' of each line; give none of --detector" in error


def test_galleries(tmp_path, capsys):
    splits = dict(train=[SEARCH], val=[SEARCH], val_gallery=[dict(image="b.jpg")])
    _, _, error = built(tmp_path, capsys, train_gallery=[""], **splits)
    assert "train_gallery.jsonl: the gallery has no image" in error
    _, _, error = built(tmp_path, capsys, train_gallery=[dict(image="c.jpg")], **splits)
    assert "train.jsonl, line 1: the target b.jpg is not in" in error
    _, _, error = built(tmp_path, capsys, train_gallery=[dict(image="b.jpg")] * 2, **splits)
    assert "train_gallery.jsonl, line 2: the image b.jpg is on" in error
    status, out, _ = built(tmp_path, capsys, train_gallery=[dict(image="b.jpg"), dict(image="c.jpg")], **splits)
    assert status == 0 and "an image and a text to images of a gallery" in out and "next:" in out
    assert json.loads((tmp_path / "data/own/photos_train_gallery.json").read_text()) == [1, 2]


def test_labels_that_train_lacks_are_named(tmp_path, capsys):
    status, out, _ = built(tmp_path, capsys, train=[RED, BLUE], val=[BLUE, RED | dict(label="green")])
    assert status == 0 and "val.jsonl, line 2: no example of train has the label 'green'" in out
    assert "red 1, blue 1" not in out and "blue 1, red 1, green 0" in out


def test_splits_and_options(tmp_path):
    folder = write(tmp_path / "photos", train=[RED, BLUE])
    (folder / "dev.csv").write_text("")
    with pytest.raises(SourceError, match=r"val.jsonl \(or .csv, .tsv\) is missing; .*\(there: dev.csv, train.jsonl\)"):
        OwnFolder(folder)
    with pytest.raises(SourceError, match="there is no such folder"):
        OwnFolder(tmp_path / "nothing")
    write(folder, val=[RED])
    (folder / "val.csv").write_text("image,label\na.jpg,red\n")
    with pytest.raises(SourceError, match="both exist; remove or rename one"):
        OwnFolder(folder)
    (folder / "val.csv").unlink()
    for answers, positive, message in ((5, "", "no questions, but 'label'"), (0, "green", "there is no such label")):
        with pytest.raises(SourceError, match=message):
            build_own(folder, tmp_path / "data", answers=answers, positive=positive)


@pytest.mark.parametrize(("content", "message"), [
    ("image;label\na.jpg;red\n", "the columns must be separated by ','"),
    ("image,label\na.jpg,red,blue\n", "line 2: the row has 3 cells, the heading 2"),
    ("image,image\na.jpg,red\n", "two columns 'image'"),
    ('image,label\na.jpg,"red\n', "line 2: the table cannot be read"),
    ("image,text,boxes,label\na.jpg,x,1 2 3 4|a b c d,1\n", "line 2: the field 'boxes' is .*, not numbers"),
    ("image,text,choices,label\na.jpg,x,a|b,first\n", "line 2: the label 'first' is not an index"),
])  # fmt: skip
def test_faults_of_tables(tmp_path, content, message):
    folder = write(tmp_path / "photos", val=[RED])
    (folder / "train.csv").write_text(content)
    with pytest.raises(SourceError, match=message):
        OwnFolder(folder)
    (folder / "train.csv").write_bytes("image,label\n".encode("utf-16"))
    with pytest.raises(SourceError, match="save it as UTF-8"):
        OwnFolder(folder)
    (folder / "train.csv").write_bytes(gzip.compress(b"image,label\n"))
    with pytest.raises(SourceError, match="train.csv: the file is compressed by gzip; unpack it"):
        OwnFolder(folder)
    (folder / "train.csv").rename(folder / "train.csv.gz")
    with pytest.raises(SourceError, match=r"train.jsonl .* is missing; .*\(there: train.csv.gz, val.jsonl\)"):
        OwnFolder(folder)
