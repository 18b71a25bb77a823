"""Test that errors in a VQA download are one line with the file, the item and the remedy."""

import pytest

from data_prep import build
from data_prep.manifest import SourceError
from tests.helpers.vqa_case import (
    COLUMNS,
    FOLDER,
    Download,
    annotation,
    encode,
    jpeg,
    put,
    question,
    read_all,
    regions,
    zip_folder,
)


def change(**attributes):
    """Return a function that changes a `Download`.

    `questions__train=items` replaces download.questions["train"]; None removes it.
    """

    def apply(download):
        for name, value in attributes.items():
            attribute, _, key = name.partition("__")
            mapping = getattr(download, attribute)
            key = int(key) if key.isdigit() else key
            if value is None:
                del mapping[key]
            else:
                mapping[key] = value

    return apply


NAN = float("nan")
REGIONS = FOLDER.format("trainval2014")
TEST_FILE = "vqa/v2_OpenEnded_mscoco_test2015_questions.json"
BAD = dict(
    no_annotation=(
        change(annotations__train=[annotation(3, 9), annotation(2, 9)]),
        "v2_mscoco_train2014_annotations.json: the file lacks question_id 1 of",
    ),
    no_question=(
        change(questions__train=[question(2, 9), question(1, 7)]),
        "v2_OpenEnded_mscoco_train2014_questions.json: the file lacks question_id 3 of",
    ),
    no_annotations=(change(annotations__train=None), "omit train from --splits"),
    question_twice=(change(questions__test=[question(5, 8)] * 2), "questions.json: question_id 5 occurs twice"),
    annotation_twice=(
        change(annotations__train=[annotation(3, 9)] * 2),
        "annotations.json: question_id 3 occurs twice",
    ),
    other_image=(
        change(annotations__train=[annotation(3, 7), annotation(1, 7), annotation(2, 9)]),
        "annotations.json: question_id 3 is about image 7",
    ),
    no_text=(change(questions__test=[question(5, 8, question=None)]), "of question_id 5 is null, not a text; "),
    text_id=(
        change(questions__test=[question("5", 8)]),
        "item 0 (from 0) of 'questions': question_id is the text '5', not an integer from 0; data_prep/README.md",
    ),
    no_image_id=(change(questions__test=[question(5, None)]), "of 'questions': image_id is null, not an integer"),
    other_fields=(
        change(questions__test=[dict(id=5, image="a.jpg", text="what?")]),
        "item 0 (from 0) of 'questions' is an object with id, image, text, without question_id",
    ),
    no_items=(change(questions__test=["what?"]), "item 0 (from 0) of 'questions' is the text 'what?', not an object"),
    no_list=(change(questions__test="none"), "'questions' is the text 'none', not a list"),
    null=(change(**{f"other__{TEST_FILE}": dict(questions=None)}), "'questions' is null, not a list"),
    a_list=(change(**{f"other__{TEST_FILE}": [1, 2]}), "the file is a list of 2, not an object with 'questions'"),
    other_name=(
        change(**{f"other__{TEST_FILE}": dict(info={}, items=[])}),
        "the file is an object with info, items, not an object with 'questions'",
    ),
    annotation_of_one_answer=(
        change(annotations__train=[dict(question_id=n, image_id=i, answer="yes") for n, i in ((1, 7), (2, 9), (3, 9))]),
        "answers is missing (question_id, image_id, answer are there), not a list with the answer of each annotator",
    ),
    no_answers=(
        change(annotations__train=[annotation(3, 9, []), annotation(1, 7), annotation(2, 9)]),
        "annotations.json: question_id 3: answers is a list of 0, not a list with the answer of each annotator",
    ),
    no_answer_text=(
        change(annotations__train=[annotation(3, 9, [None] * 10), annotation(1, 7), annotation(2, 9)]),
        "annotations.json: question_id 3: an item of answers is an object with answer, answer_id, answer_confidence",
    ),
    no_type=(
        change(annotations__train=[annotation(n, i, answer_type=1) for n, i in ((1, 7), (2, 9), (3, 9))]),
        "annotations.json: question_id 2: answer_type is the number 1, not a text such as 'yes/no'",
    ),
    no_json=(
        change(**{"other__vqa/v2_mscoco_train2014_annotations.json": "{"}),
        "v2_mscoco_train2014_annotations.json: the file is not JSON (Expecting",
    ),
    two_sets=(change(questions__test=[question(5, 9)]), "image 9 of question_id 5 is in both train2014 and test2015"),
    no_regions=(change(regions__7=None), "7.json: there are no regions of image 7"),
    broken_regions=(change(regions__7="{"), "7.json: image 7: the region file is not JSON"),
    list_of_regions=(change(regions__7=[1]), "7.json: image 7: the region file does not contain a JSON object"),
    short_boxes=(change(regions__9=regions(9, num_boxes=3)), "9.json: image 9: boxes: 8 values do not fit 3 boxes"),
    short_features=(
        change(regions__9=regions(9, features=encode([1] * 7))),
        "9.json: image 9: features: 7 values do not fit 2",
    ),
    bad_base64=(
        change(regions__9=regions(9, boxes="?!")),
        "9.json: image 9: boxes: the content is not float32 in base64",
    ),
    cut_base64=(
        change(regions__9=regions(9, features="AAAAAAA=")),
        "9.json: image 9: features: the content is not float32 in base64",
    ),
    no_features=(
        change(regions__9=regions(9, features=None)),
        "9.json: image 9: the region file has no field 'features'",
    ),
    one_annotator=(
        change(annotations__train=[annotation(n, i, ["yes"]) for n, i in ((3, 9), (1, 7), (2, 9))]),
        "question_id 2 has 1 of at least 4 answers",
    ),
    empty_features=(change(regions__9=regions(9, features="")), "9.json: image 9: features: the array is empty"),
    nan_box=(change(regions__9=regions(9, boxes=encode([NAN] * 8))), "image 9: boxes: some values are not finite"),
    fractions=(
        change(regions__9=regions(9, boxes=encode([0.1, 0.1, 0.5, 1, 0, 0, 1, 1]))),
        "9.json: image 9: all corners are within 0 and 1, but boxes are in pixels of the image of 60 x 40; multiply x",
    ),
    no_box=(change(regions__9=regions(9, number=0)), "9.json: image 9: the file lists 0 regions"),
    no_size=(change(regions__9=regions(9, image_w=None)), "9.json: image 9: image_w"),
    other_width=(
        change(regions__7=regions(7, width=5)),
        "7.json: features of image 7 is 5 wide, earlier features are 6 wide",
    ),
    other_image_width=(
        change(regions__9=regions(9, image_box_feature=encode([1] * 4))),
        "image_feature of image 9 is 4 wide",
    ),
    no_image=(change(images__7=None), "COCO_train2014_000000000007.jpg: image 7 cannot be read"),
    cut_image=(change(images__7=jpeg()[:-200]), "COCO_train2014_000000000007.jpg: image 7 cannot be read"),
    no_images=(change(images__8=None), "test2015: neither this folder nor test2015.zip exists"),
)


@pytest.mark.parametrize("name", BAD)
def test_bad_downloads_are_reported_in_one_line(tmp_path, capsys, name):
    apply, expected = BAD[name]
    download = Download()
    apply(download)
    root = download.write(tmp_path / "coco")
    arguments = ["vqa", f"--source={root}", f"--data_dir={tmp_path}/out", "--features", "--images"]
    assert build.main(arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and expected in error, error
    assert not list((tmp_path / "out").rglob("1.0.0")) and not list((tmp_path / "out").rglob("*.txt"))
    Download().write(root)  # the download is valid now
    (root / "vqa/answers_vqa.txt").write_text("<unk>\nyes\n")
    assert build.main(arguments) == 0


ZIP = b"PK\x05\x06" + bytes(18)  # an archive without files
TABLES = dict(
    no_table=("", ["c.tsv"], "c.tsv: there is no such file"),
    no_columns=("12\t3\n", ["a.tsv", "b.tsv"], "boxes, features, separated by tabs (line 1 has 2 and starts"),
    a_heading=("\t".join(COLUMNS) + "\n", ["a.tsv", "b.tsv"], "b.tsv: no line has the 6 columns of a table"),
    commas=("7,60,40,2,AAAA,AAAA\n", ["b.tsv"], "b.tsv: no line has the 6 columns of a table"),
    empty=("\n\n", ["a.tsv", "b.tsv"], "(the file is empty); give a table in this form"),
    a_zip=(ZIP, ["a.tsv", "b.tsv"], "b.tsv: this is a zip archive; unpack it"),
    no_image=("", ["a.tsv"], "a.tsv: there are no regions of image 7 (train2014); add its table"),
    cut_line=("7\t60\t40\t2\tAAAA\tAAAA\n", ["a.tsv", "b.tsv"], "b.tsv: image 7: boxes: the content is not float32"),
    no_number=("7\tx\t40\t2\tAAAA\tAAAA\n", ["a.tsv", "b.tsv"], "b.tsv: image 7: image_w"),
)


@pytest.mark.parametrize("name", TABLES)
def test_bad_tables_are_reported_in_one_line(tmp_path, capsys, name):
    content, tables, expected = TABLES[name]
    download = Download()
    root = download.write(tmp_path)
    download.write_tables(tmp_path)
    if content:
        put(tmp_path / "b.tsv", content)
    tables = ",".join(str(tmp_path / table) for table in tables)
    arguments = [f"--source={root}", f"--data_dir={tmp_path}/out", "--features", f"--features_tsv={tables}"]
    assert build.main(["vqa", *arguments]) == 2
    assert expected in capsys.readouterr().err.strip().splitlines()[-1]


def test_bad_options_are_reported_in_one_line(tmp_path, capsys):
    root = Download().write(tmp_path)
    base = ["vqa", f"--data_dir={tmp_path}/out", "--features"]
    for arguments, expected in (
        (
            [*base, f"--source={tmp_path}/nowhere"],
            "v2_OpenEnded_mscoco_train2014_questions.json: the file does not exist",
        ),
        (
            [*base, f"--source={root}", "--splits=val"],
            "v2_OpenEnded_mscoco_val2014_questions.json: the file does not exist",
        ),
        ([*base, f"--source={root}", "--splits=trian"], "there is no split 'trian'"),
        ([*base, f"--source={root}", "--regions=folder"], "--regions=folder must be one of 10-100ada, 36 or"),
        ([*base, f"--source={root}", "--regions=folder_a,folder_b"], "neither this folder nor"),
        ([*base, f"--source={root}", "--answers=1"], "--answers=1"),
        ([*base[:2], f"--source={root}"], "without --features and --images"),
    ):
        assert build.main(arguments) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ") and expected in error, error
    assert not list((tmp_path / "out").rglob("1.0.0"))


def test_broken_archive(tmp_path):
    root = Download().write(tmp_path)
    zip_folder(root / REGIONS)
    archive = root / f"{REGIONS}.zip"
    archive.write_bytes(archive.read_bytes()[:-30])
    with pytest.raises(SourceError, match="the zip archive is not complete"):
        build.run_vqa(root, tmp_path / "out", features=True)


def test_another_build_under_the_same_name_is_refused(tmp_path):
    root = Download().write(tmp_path)
    build.run_vqa(root, tmp_path / "out", splits=("train",), features=True)
    for other in (dict(features=True), dict(splits=("train",), features=True, images=True)):
        with pytest.raises(SourceError, match="was built with"):
            build.run_vqa(root, tmp_path / "out", **other)


def test_a_second_build_completes_an_interrupted_one(tmp_path):
    root = Download().write(tmp_path)
    first = build.run_vqa(root, tmp_path / "out", features=True)
    (tmp_path / "out/vqa").rename(tmp_path / "elsewhere")
    second = build.run_vqa(root, tmp_path / "out", features=True)
    assert second == first and len(read_all(second["questions"], "train_landscape")) == 2
    put(second["images"] / "sizes.json", [[9, 60, 40]])
    (tmp_path / "out/vqa").rename(tmp_path / "elsewhere2")
    with pytest.raises(SourceError, match="image 7 of question_id 1 in train is missing"):
        build.run_vqa(root, tmp_path / "out", features=True)
