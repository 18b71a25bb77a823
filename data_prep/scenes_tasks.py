"""Generate the synthetic corpus `scenes_tasks` and build its records."""

from __future__ import annotations

import pathlib

from data_prep.tables import draw_once, only_builder


def build_scenes_tasks(
    data_dir: str | pathlib.Path,
    seed: int = 0,
    num_train: int = 3_000,
    num_val: int = 500,
    num_test: int = 500,
    feature_width: int = 0,
) -> dict[str, pathlib.Path]:
    """Generate the corpus in `{data_dir}/scenes_tasks`; data_prep/scenes/task_corpus.py describes it.

    Nothing happens if it exists.

    Args:
      data_dir: folder of all corpora.
      seed: random seed.
      num_train: scenes of train.
      num_val: scenes of val.
      num_test: scenes of test.
      feature_width: width of synthetic region features; 0 = no features.

    Returns:
      The paths `source` (folder) and `vocab` (file).

    Raises:
      SourceError: the corpus exists with other settings.
    """
    from data_prep.scenes import task_corpus

    data_dir = pathlib.Path(data_dir)
    settings = dict(
        version=task_corpus.VERSION, seed=seed, num_train=num_train, num_val=num_val, num_test=num_test,
        feature_width=feature_width,
    )  # fmt: skip
    source = data_dir / "scenes_tasks"
    with only_builder(data_dir):
        draw_once(source, settings, task_corpus.write_task_corpus, ())
        return dict(source=source, vocab=source / "vocab.txt")
