"""Generate the synthetic corpora `scene_kinds`, `scene_questions` and `scene_explanations`, and build their records."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

from data_prep.parts import ONE, Workers
from data_prep.tables import draw_once, only_builder

TASKS = ("nlvr2", "snli_ve", "retrieval", "entities", "visual7w")


def build_scene_kinds(
    data_dir: str | pathlib.Path,
    seed: int = 0,
    num_train: int = 3_000,
    num_val: int = 500,
    num_test: int = 500,
    feature_width: int = 0,
    tasks: Sequence[str] = TASKS,
    workers: Workers = ONE,
) -> dict[str, pathlib.Path]:
    """Generate the corpus in `{data_dir}/scene_kinds` and build the records of its tasks.

    data_prep/scenes/task_corpus.py describes the corpus. Nothing happens if it exists; the next call completes an
    interrupted one.

    Args:
      data_dir: folder of all corpora.
      seed: random seed.
      num_train: scenes of train.
      num_val: scenes of val.
      num_test: scenes of test.
      feature_width: width of synthetic region features; 0 = no features.
      tasks: those of `TASKS` whose records are built.
      workers: the processes that make the records.

    Returns:
      The paths `source` (folder) and `vocab` (file).

    Raises:
      SourceError: the corpus exists with other settings.
    """
    from data_prep.entities import Entities
    from data_prep.nlvr2 import NLVR2
    from data_prep.public_texts import run_public
    from data_prep.retrieval import Retrieval
    from data_prep.scenes import task_corpus
    from data_prep.snli_ve import SNLIVE
    from data_prep.visual7w import Visual7W

    data_dir = pathlib.Path(data_dir)
    settings = dict(
        version=task_corpus.VERSION, seed=seed, num_train=num_train, num_val=num_val, num_test=num_test,
        feature_width=feature_width,
    )  # fmt: skip
    source = data_dir / "scene_kinds"
    readers = dict(nlvr2=NLVR2, snli_ve=SNLIVE, retrieval=Retrieval, entities=Entities, visual7w=Visual7W)
    folders = dict(nlvr2="nlvr2", snli_ve="snli_ve", visual7w="visual7w")  # the others are in flickr30k
    with only_builder(data_dir):
        tables = [f"{task}{suffix}/scenes" for task in TASKS for suffix in ("", "_images")]
        draw_once(source, settings, task_corpus.write_task_corpus, tables)
        for task in tasks:
            reader = readers[task](source / folders.get(task, "flickr30k"))
            regions = source / ("nlvr2" if task == "nlvr2" else "flickr30k") / "regions"
            found = dict(regions=regions, features=bool(feature_width)) if not reader.has_boxes else {}
            run_public(reader, "scenes", data_dir, **found, workers=workers)
        return dict(source=source, vocab=source / "vocab.txt")


def build_scene_questions(
    data_dir: str | pathlib.Path,
    seed: int = 0,
    num_train: int = 6_000,
    num_val: int = 500,
    feature_width: int = 64,
    workers: Workers = ONE,
) -> dict[str, pathlib.Path]:
    """Generate captions and questions in `{data_dir}/scene_questions` and build their records.

    data_prep/scenes/questions.py describes the corpus. Nothing happens if it exists; the next call completes an
    interrupted one.

    Args:
      data_dir: folder of all corpora.
      seed: random seed.
      num_train: scenes of train.
      num_val: scenes of val.
      feature_width: width of synthetic region features; 0 = no features.
      workers: the processes that make the records.

    Returns:
      The paths `source` (folder), `vocab`, `answers` (files) and `captions` (directory of records).

    Raises:
      SourceError: the corpus exists with other settings.
    """
    from data_prep.region_captions import RegionCaptions
    from data_prep.scenes import questions
    from data_prep.tables import run_builder

    data_dir = pathlib.Path(data_dir)
    settings = dict(
        version=questions.VERSION, seed=seed, num_train=num_train, num_val=num_val, feature_width=feature_width
    )
    source = data_dir / "scene_questions"
    with only_builder(data_dir):
        draw_once(source, settings, questions.write_question_corpus, ["region_captions/scene_questions"])
        builder = RegionCaptions(
            "scene_questions", data_dir, source, features=bool(feature_width), attributes=True, answers=True
        )
        captions = run_builder(builder, workers)
        return dict(
            source=source, vocab=source / "vocab.txt", answers=source / "answers.json", captions=pathlib.Path(captions)
        )


def build_scene_explanations(
    data_dir: str | pathlib.Path, seed: int = 0, num_train: int = 6_000, num_val: int = 300, workers: Workers = ONE
) -> dict[str, pathlib.Path]:
    """Generate long texts about scenes in `{data_dir}/scene_explanations` and build their records.

    data_prep/scenes/explanations.py describes the corpus. Nothing happens if it exists; the next call completes an
    interrupted one.

    Args:
      data_dir: folder of all corpora.
      seed: random seed.
      num_train: documents of train.
      num_val: documents of val.
      workers: the processes that make the records.

    Returns:
      The paths `source` (folder), `vocab` (file) and `text` (directory of records).

    Raises:
      SourceError: the corpus exists with other settings.
    """
    from data_prep.scenes import explanations
    from data_prep.tables import run_builder
    from data_prep.text_corpus import TextCorpus

    data_dir = pathlib.Path(data_dir)
    settings = dict(version=explanations.VERSION, seed=seed, num_train=num_train, num_val=num_val)
    source = data_dir / "scene_explanations"
    with only_builder(data_dir):
        draw_once(source, settings, explanations.write_explanations, ["text_corpus/scene_explanations"])
        builder = TextCorpus("scene_explanations", data_dir, [source / "train.doc"], [source / "val.doc"])
        return dict(source=source, vocab=source / "vocab.txt", text=pathlib.Path(run_builder(builder, workers)))
