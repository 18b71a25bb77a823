"""The readers of the files of tasks and of runs; see readers.py."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.faults import seeds
from tests.faults.readers import BUILD, BY_NAME, Reader, files, reader

# --- Data of tasks -----------------------------------------------------------------------------------------


def exhaust(corpus) -> None:
    """Read all examples of a public task. Raises TypeError where a record could not store a field."""
    corpus.images()
    for split in corpus.splits:
        for example in corpus.examples(split):
            for name, value in example.fields.items():
                is_list = isinstance(value, list | np.ndarray)
                if not is_list and not isinstance(value, dict(question_id=int, text_id=int, known=bool).get(name, str)):
                    raise TypeError(f"{name} is {value!r}")
                if isinstance(value, int) and not -(2**63) <= value < 2**63:
                    raise OverflowError(f"{name} is {value}")


def public(module: str, kind: str, root: str, *names: str, **options) -> None:
    """Register the reader of files of a public task, each as a reader of its own."""

    def read(path: Path, depth: int) -> None:
        from importlib import import_module

        exhaust(getattr(import_module(f"data_prep.{module}"), kind)(path.parents[depth], **options))

    for name in names:
        label = module if name == names[0] else f"{module}_{Path(name).stem}"
        function = functools.partial(read, depth=name.count("/"))
        BY_NAME[label] = Reader(label, name, files(name, root=root), function, BUILD, place=label)


public("gqa", "GQA", "gqa_a", "testdev_balanced_questions.json", splits=["testdev"])
public("nlvr2", "NLVR2", "nlvr2_a", "data/dev.json", "data/balanced/balanced_dev.json", splits=["dev"])
public("snli_ve", "SNLIVE", "snli_ve_a", "data/snli_ve_dev.jsonl", splits=["dev"])
public("hateful_memes", "HatefulMemes", "hateful_memes_a", "dev.jsonl", splits=["dev"])
public("retrieval", "Retrieval", "retrieval_flickr30k_a", "dataset_flickr30k.json")
public("visual7w", "Visual7W", "visual7w_pointing_a", "dataset_v7w_pointing.json")
ENTITY = "2110403237"
public("entities", "Entities", "flickr30k_entities_a", f"Annotations/{ENTITY}.xml", f"Sentences/{ENTITY}.txt",
       "test.txt", "UNRELATED_CAPTIONS", splits=["train", "val", "test"])  # fmt: skip


@reader("gqa_choices", "val_choices.json", files("val_choices.json", root="gqa_a"), errors=BUILD)
def gqa_choices(path: Path) -> None:
    from data_prep.gqa import GQA

    exhaust(GQA(path.parent, ["val"]))


@reader("vizwiz", "train.json", lambda _: [seeds.vizwiz()], errors=BUILD)
def vizwiz(path: Path) -> None:
    from data_prep.vizwiz import VizWiz

    exhaust(VizWiz(path.parent, ["train"]))


QUESTIONS = "coco/vqa/v2_OpenEnded_mscoco_train2014_questions.json"
ANNOTATIONS = "coco/vqa/v2_mscoco_train2014_annotations.json"
INSTANCES = "coco/refcoco+/instances.json"
METADATA = "vcr/vcr1images/scenes_train/000000@0.json"


@reader("own", "train.jsonl", seeds.own_lines, errors=BUILD)
@reader("own_csv", "train.csv", seeds.own_tables(","), errors=BUILD)
@reader("own_tsv", "train.tsv", seeds.own_tables("\t"), errors=BUILD)
def own(path: Path) -> None:
    from data_prep.own_files import OwnFolder

    shutil.copyfile(path, path.with_name(f"val{path.suffix}"))  # the same fields
    OwnFolder(path.parent)


@reader("vqa_questions", QUESTIONS, seeds.downstream(QUESTIONS), errors=BUILD)
@reader("vqa_annotations", ANNOTATIONS, seeds.downstream(ANNOTATIONS), errors=BUILD)
def vqa(path: Path) -> None:
    from data_prep.vqa_files import VQADownload, frequent_answers

    download = VQADownload(path.parents[1], ("train",))
    download.images()
    frequent_answers(download.questions["train"], 5)


@reader("refcoco_references", seeds.REFERENCES, seeds.references, errors=BUILD)
@reader("refcoco_instances", INSTANCES, seeds.downstream(INSTANCES), errors=BUILD)
def refcoco(path: Path) -> None:
    from data_prep.refcoco_files import ReferDownload

    download = ReferDownload(path.parents[1], splits=("train",))
    assert download.image_ids and download.sizes and download.reference_boxes


@reader("vcr_questions", "vcr/train.jsonl", seeds.downstream("vcr/train.jsonl"), errors=BUILD)
@reader("vcr_metadata", METADATA, seeds.downstream(METADATA), errors=BUILD)
def vcr(path: Path) -> None:
    from data_prep.scenes.glyphs import CATEGORIES
    from data_prep.vcr import VCRImages

    root = path.parents[0 if path.name == "train.jsonl" else 2]
    builder = VCRImages("c", root / "data", root, CATEGORIES, ("train",))
    for item in builder.items():
        builder.make(item)


@reader("caption_index", "train_frcnn.json", seeds.caption_corpus("train_frcnn.json"), errors=BUILD,
        place="caption_index")  # fmt: skip
@reader("caption_regions", "train_frcnn/00000000.json", seeds.caption_corpus("train_frcnn/00000000.json"), errors=BUILD)
def caption_index(path: Path) -> None:
    from data_prep.region_captions import RegionCaptions

    root = path.parents[path.parent.name == "train_frcnn"]
    builder = RegionCaptions("c", root / "data", root, ("train",))
    _ = builder.number_of_items()
    for item in builder.items():
        builder.make(item)


# --- Files that are scored ---------------------------------------------------------------------------------


@reader("vqa_scores", "results.json", seeds.vqa_results)
def vqa_scores(path: Path) -> None:
    from vlbert_jax.tasks.answer.accuracy import evaluate_files

    evaluate_files(path.parent / "questions.json", path.parent / "annotations.json", path)


@reader("vqa_scored_annotations", "annotations.json", seeds.vqa_annotations)
def vqa_annotations(path: Path) -> None:
    from vlbert_jax.tasks.answer.accuracy import evaluate_files

    evaluate_files(path.parent / "questions.json", path, path.parent / "results.json")


GQA_FILES = ("testdev_balanced_questions.json", "predictions/testdev_usual.json")


def gqa_scored(name: str) -> Callable[[Path], None]:
    """Return the function that scores predictions, of which one of the files is changed."""

    def read(path: Path) -> None:
        from vlbert_jax.tasks.answer.gqa import evaluate_files

        root = path.parents[name.count("/")]
        evaluate_files(root / GQA_FILES[0], root / GQA_FILES[1])

    return read


for _name, _file in zip(("gqa_scored_questions", "gqa_scores"), GQA_FILES, strict=True):
    reader(_name, _file, files(_file, root="gqa_a"))(gqa_scored(_file))


@reader("caption_scores", "results.json", files("results/usual.json", root="coco_captions_a"))
def caption_results(path: Path) -> None:
    from vlbert_jax.tasks.caption.scores import read_results

    read_results(path)


@reader("caption_references", "captions.json", files("annotations/captions_val2014.json", root="coco_captions_a"))
def caption_references(path: Path) -> None:
    from vlbert_jax.tasks.caption.scores import read_references

    read_references(path)


@reader("nlvr2_scores", "predictions/usual.csv", files("predictions/usual.csv", root="nlvr2_a"))
@reader("nlvr2_examples", "data/dev.json", files("data/dev.json", root="nlvr2_a"))
def nlvr2_scores(path: Path) -> None:
    from vlbert_jax.tasks.classify import nlvr2

    nlvr2.read_predictions(path) if path.suffix == ".csv" else nlvr2.read_examples(path)


# --- Files of a run ----------------------------------------------------------------------------------------


@reader("metrics", "metrics.jsonl", seeds.runs("metrics.jsonl"))
@reader("versions", "versions.json", seeds.runs("versions.json"))
@reader("run_config", "config.json", seeds.runs("config.json"))
def compared_run(path: Path) -> None:
    from vlbert_jax.report import read_run

    read_run(path.parent, "a")


