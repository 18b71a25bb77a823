"""The synthetic corpus `scene_kinds`, in the files of further public data sets.

Source: generated here from a seed; no download, no license. Its scenes (crowded.py) are neither those
of pre-training nor those of `scenes_downstream`, and no scene is in two splits, of any task:

    flickr30k/  flickr30k-images/  dataset_flickr30k.json  captions (flickr30k.py)
                Sentences/  Annotations/  {train,val,test}.txt  UNRELATED_CAPTIONS   phrases with boxes
                regions/                           a file per image of a simulated detector
    nlvr2/      data/  images/  regions/           statements about pairs (statements.py)
    snli_ve/    data/  flickr30k_images            hypotheses (hypotheses.py)
    visual7w/   dataset_v7w_pointing.json  images  pointing questions (visual7w.py)
    own/        label/, pair/, region/, ...        user-supplied data of each kind (own.py)
    vocab.txt                                      that of `scenes_downstream`, new words in free rows
    scene_kinds.json                              the settings

The folders of images without a slash are links. tests/data_prep/scenes/task_corpus_test.py measures
the best scores without the images, which the docstrings of the modules state."""

from __future__ import annotations

import json
import pathlib

import numpy as np
from tqdm import tqdm

from data_prep.scenes import downstream, statements, world
from data_prep.scenes.crowded import CorpusScene, draw_crowded
from data_prep.scenes.flickr30k import IMAGES, write_flickr30k
from data_prep.scenes.hypotheses import write_snli_ve
from data_prep.scenes.own import write_own
from data_prep.scenes.visual7w import write_visual7w

VERSION = 1  # version of the generator; it changes with the scenes
STREAM = 20  # the seeds are [seed, 20 to 22, ...]; those of the other corpora are below
SPLITS = ("train", "val", "test")
FIRST_ID = 1_000_000_001  # the files of Flickr30k have names of about ten digits
NEW_WORDS = (*statements.WORDS, "which")


def vocabulary() -> list[str]:
    """Return the lines of vocab.txt: those of `scenes_downstream`, with new words in unused rows."""
    return downstream.with_words(downstream.vocabulary(), NEW_WORDS)


def draw_scenes(settings: dict) -> list[CorpusScene]:
    """Sample the scenes of all splits."""
    scenes: list[CorpusScene] = []
    for k, split in enumerate(SPLITS):
        numbers = tqdm(range(settings[f"num_{split}"]), f"generating {split}", unit=" scenes", mininterval=1)
        for i in numbers:
            seed = (settings["seed"], STREAM + k, i)
            scene, outlines = draw_crowded(np.random.default_rng(seed))
            scenes.append(CorpusScene(split, i, FIRST_ID + len(scenes), scene, outlines, seed))
    return scenes


def write_task_corpus(folder: pathlib.Path, settings: dict) -> None:
    """Write the corpus; the same settings give the same bytes.

    Args:
      folder: an existing empty folder; `scene_kinds.json` is written last.
      settings: seed, num_train, num_val, num_test (scenes), and feature_width, the width of
        synthetic region features (0 = no features).
    """
    width, directions = settings["feature_width"], None
    if width:
        directions = np.random.default_rng([settings["seed"], 4]).normal(0, 1, (len(world.CLASS_NAMES), width))
    scenes = draw_scenes(settings)
    write_flickr30k(folder / "flickr30k", scenes, directions)
    statements.write_nlvr2(folder / "nlvr2", scenes, settings["seed"], directions)
    write_snli_ve(folder / "snli_ve", scenes)
    write_visual7w(folder / "visual7w", scenes)
    for link in ("snli_ve/flickr30k_images", "visual7w/images"):
        (folder / link).symlink_to(f"../flickr30k/{IMAGES}", target_is_directory=True)
    write_own(folder / "own", scenes, folder / "flickr30k" / IMAGES, folder / "nlvr2")
    (folder / "vocab.txt").write_text("\n".join(vocabulary()) + "\n", encoding="utf-8")
    (folder / "scene_kinds.json").write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")
