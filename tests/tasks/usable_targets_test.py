"""Test that training and evaluation end where nothing in a split can be learned or scored."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from configs import refcoco as refcoco_recipes
from data_prep.build import build_scene_tasks, build_scenes, run_builder
from data_prep.refcoco import RefCOCOExpressions, RefCOCOImages
from data_prep.refcoco_files import ReferDownload
from data_prep.vcr import VCRImages, VCRQuestions
from data_prep.vcr_files import read_categories
from tests.helpers import pretrain_case, vcr_case
from tests.helpers.tiny_recipes import shrink
from vlbert_jax.data.masking import draw_samples
from vlbert_jax.tasks import get_task
from vlbert_jax.tasks.pretrain import batches
from vlbert_jax.tasks.pretrain.examples import caption_example


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    sizes = dict(num_train=8, num_val=4)
    source = build_scene_tasks(folder, **sizes, num_test=2, tasks=("refcoco", "vcr"))["source"]
    build_scenes(folder, **sizes, num_train_stories=8, num_val_stories=4)

    detections = source / "coco/refcoco+/proposal/res101_coco_minus_refer_notime_dets.json"
    tiny = [item | dict(box=[0, 0, 2, 2]) for item in json.loads(detections.read_text())]
    (detections.parent / "tiny.json").write_text(json.dumps(tiny))
    where = "tiny", folder, ReferDownload(source / "coco")
    run_builder(RefCOCOImages(*where, proposals="refcoco+/proposal/tiny.json"))
    run_builder(RefCOCOExpressions(*where))

    for split in ("train", "val"):
        path = source / f"vcr/{split}.jsonl"
        items = [json.loads(line) for line in path.read_text().splitlines()]
        same = [item | dict(answer_choices=item["answer_choices"][:1] * 4) for item in items]
        path.write_text("".join(json.dumps(item) + "\n" for item in same))
    where, splits = ("same", folder, source / "vcr"), ("train", "val")
    run_builder(VCRImages(*where, read_categories(source / "categories.txt"), splits))
    run_builder(VCRQuestions(*where, splits))
    return folder


def test_expressions_that_no_region_overlaps(data_dir):
    config, demo = refcoco_recipes.get_config("base_gt"), refcoco_recipes.demo()
    names = ("embedded", "texts", "images", "vocab", "max_regions", "sequence_length")
    shrink(config, demo, data_dir, num_layers=1, names=names)
    config.batch_size, config.data.embedded, task = 4, "", get_task("region")
    config.data.texts, config.data.images = "refcoco/tiny", "refcoco_images/tiny"
    config.data.train_boxes, config.data.eval_boxes = "both", "detected"
    assert next(task.train_batches(config, 0, 0, 1)).targets.region_hits.any()  # of an annotation
    with pytest.raises(ValueError, match=r"None of .* of val in refcoco/tiny .* the first is .*sent_id.*half"):
        task.eval_batches(config, 0, 1)
    config.data.train_boxes = "detected"
    with pytest.raises(ValueError, match="records of train in refcoco/tiny .* usable target.*config.data.train_boxes"):
        next(task.train_batches(config, 0, 0, 1))


def test_questions_whose_choices_are_equal(data_dir):
    config, task = vcr_case.shrunk("demo_q2a", data_dir), get_task("choice")
    assert task.eval_batches(config, 0, 1)
    config.data.embedded, config.data.texts, config.data.images = "", "vcr/same", "vcr_images/same"
    with pytest.raises(ValueError, match="records of val in vcr/same has a usable target.* The right choice must"):
        task.eval_batches(config, 0, 1)
    with pytest.raises(ValueError, match="records of train in vcr/same has a usable target"):
        next(task.train_batches(config, 0, 0, 1))
    config.subtask = "qa2r"
    assert task.eval_batches(config, 0, 1)  # the rationales differ


def test_captions_and_lines_without_a_known_word(data_dir, tmp_path):
    config, task = pretrain_case.shrunk("demo", data_dir), get_task("pretrain")
    assert task.eval_batches(config, 0, 1)
    words = tmp_path / "vocab.txt"
    words.write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n" + "".join(f"zebra{i}\n" for i in range(251)))
    config.data.vocab = str(words)
    with pytest.raises(ValueError, match="None of .* captions of val .* a word of the vocabulary.*Check .*vocab.txt"):
        task.eval_batches(config, 0, 1)
    with pytest.raises(ValueError, match="captions of train in .* has a word of the vocabulary"):
        next(task.train_batches(config, 0, 0, 1))
    with pytest.raises(ValueError, match="lines of train in .* has a word of the vocabulary"):
        batches._text(config, "train", True)


def test_records_without_targets_of_regions(data_dir):
    config = pretrain_case.shrunk("demo", data_dir)
    record = dict(caption=["a", "fish"], boxes=np.ones((2, 4)), class_scores=np.full((2, 5), 0.2, np.float16))
    batches._check_captions(config, [record], "train")
    nothing = record | dict(boxes=np.ones((0, 4)), class_scores=np.ones((0, 5)))
    batches._check_captions(config, [nothing, record], "train")
    with pytest.raises(ValueError, match="None of 2 records of train in .* has a region,.* Build it again"):
        batches._check_captions(config, [nothing, nothing], "train")
    unscored = record | dict(class_scores=np.zeros((2, 5)))
    with pytest.raises(ValueError, match="has class scores that sum to 1.*config.losses.mrc=False"):
        batches._check_captions(config, [unscored], "train")
    config.losses.mrc, config.losses.region = False, 0.0
    batches._check_captions(config, [nothing, unscored], "train")


def test_a_grid_has_no_classes_to_learn(data_dir):
    config = pretrain_case.shrunk("demo", data_dir)
    grid = dict(caption=["a", "fish"], boxes=np.ones((9, 4)), class_scores=np.zeros((0, 0), np.float16))
    for name in ("mrc", "region"):
        config.losses.mrc, config.losses.region = name == "mrc", float(name == "region")
        with pytest.raises(ValueError, match="has class scores that sum to 1.*config.losses.mrc=False"):
            batches._check_captions(config, [grid], "train")
    config.losses.mrc, config.losses.region = False, 0.0
    batches._check_captions(config, [grid], "train")
    config.losses.region = 1.0  # records of a grid among others
    layout, image = batches.CaptionLayout.of(config), np.zeros((48, 64, 3), np.uint8)
    content = io.BytesIO()
    Image.fromarray(image).save(content, "JPEG")
    record = grid | dict(image=content.getvalue(), image_size=np.array([64, 48]), features=np.zeros((0, 0)))
    draws = draw_samples(np.random.default_rng(0), layout.num_draws, 9, batches.tokenizer_of(config).ordinary_ids)
    example = caption_example(record, draws, batches.tokenizer_of(config), layout)
    assert example["region_mask"].all() and (example["region_classes"] == -1).all()
