"""Test the summaries of builds, and builds whose texts are none."""

import json

import numpy as np
import pytest

from data_prep import build
from data_prep.manifest import Manifest, SourceError, is_text
from data_prep.refcoco import RefCOCOImages
from data_prep.refcoco_files import ReferDownload
from data_prep.text_corpus import TextCorpus
from data_prep.vcr import VCRImages, VCRQuestions
from data_prep.vcr_files import read_categories


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return build.build_scene_tasks(folder, num_train=6, num_val=3, num_test=2, tasks=())["source"]


def test_texts():
    assert all(map(is_text, ("a", "7 b", "\u72ac", "caf\ufffd", "\u0434\u043e\u043c")))
    assert not any(map(is_text, ("", " ", "12.5", "???", "a\ufffd\ufffd", "\ufffd")))


def test_the_summary_states_images_regions_texts_and_targets():
    manifest = Manifest("source", {})
    for caption, boxes, image in ((["a", "fish"], 3, b"x"), (["12"], 1, b""), (["b"], 0, b"x")):
        record = dict(image=image, boxes=np.ones((boxes, 4)), caption=caption)
        manifest.tally(record)
        manifest.count_targets([True] * boxes + [False] * (boxes == 0))
    assert manifest.summary() == (
        "33.3% of 3 records without an image; 1.3 regions per record, 0 at least; 33.3% of 3 texts without a letter; "
        "80.0% of 5 targets usable"
    )
    assert Manifest("source", {}).summary() == ""


@pytest.mark.parametrize("content", [b"1\n22\n3.5\nword\n", b"a\xff\xfe\xfd\nword\n12\n"], ids=["numbers", "bytes"])
def test_a_table_of_numbers_or_rubbish_is_refused(content, tmp_path):
    (tmp_path / "a.doc").write_bytes(content)
    with pytest.raises(SourceError, match="a.doc: . of . texts have no letter.*the first is .*Give the column"):
        build.run_builder(TextCorpus("t", tmp_path, [tmp_path / "a.doc"]))
    assert not list(tmp_path.glob("text_corpus/t/1.0.0"))
    (tmp_path / "a.doc").write_text("two words\none\n12\n")
    build.run_builder(TextCorpus("t", tmp_path, [tmp_path / "a.doc"]))


def test_detections_that_overlap_what_is_meant(source, tmp_path, capsys):
    path = "refcoco+/proposal/res101_coco_minus_refer_notime_dets.json"
    shares = []
    for name, change in (("all", lambda box: box), ("none", lambda box: [0, 0, 2, 2])):
        items = json.loads((source / "coco" / path).read_text())
        file = f"refcoco+/proposal/{name}.json"
        (source / "coco" / file).write_text(json.dumps([item | dict(box=change(item["box"])) for item in items]))
        build.run_builder(RefCOCOImages(name, tmp_path, ReferDownload(source / "coco"), proposals=file))
        shares.append(float(capsys.readouterr().out.partition(" targets usable")[0].rpartition("; ")[2].split("%")[0]))
    assert shares[0] > 50 and shares[1] == 0


def test_choices_that_are_equal(source, tmp_path, capsys):
    path = source / "vcr/val.jsonl"
    items = [json.loads(line) for line in path.read_text().splitlines()]
    items[0]["answer_choices"] = items[0]["answer_choices"][:1] * 4
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    where, splits = ("same", tmp_path, source / "vcr"), ("val", "test")
    build.run_builder(VCRImages(*where, read_categories(source / "categories.txt"), splits))
    build.run_builder(VCRQuestions(*where, splits))
    targets = 2 * len(items)  # those of test have no label
    assert f"{(targets - 1) / targets:.1%} of {targets} targets usable" in capsys.readouterr().out
