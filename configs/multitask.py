"""Several tasks in one run: one trunk, a head for each kind, each update on one task (12-in-1's idea).

    python -m vlbert_jax.main --config=configs/multitask.py --workdir=DIR --config.init.checkpoint=PRETRAINED

Variants: demo (default), demo_retrieval. `config.parts` are recipes of single tasks by name, `config.ratios` their
shares of the updates; a part changes as `--config.parts.NAME.data.FIELD=VALUE`. Losses and metrics begin with the name
of the part. A checkpoint of the run is a model of each of its tasks: `predict` takes it for questions and for
expressions, and any recipe of these tasks may evaluate it or start from it:

    python -m vlbert_jax.main --config=configs/vqa.py --workdir=DIR2 --mode=evaluate --config.init.checkpoint=DIR
"""

import ml_collections

from vlbert_jax.configs import common, refcoco, retrieval, vqa


def mixture(parts: dict[str, ml_collections.ConfigDict], ratios: dict[str, float]) -> ml_collections.ConfigDict:
    """Return a run over some recipes, with the sizes and the vocabulary of the first of them."""
    first = next(iter(parts.values()))
    config = common.fine_tuning("mixture", "")
    config.model.update({name: first.model[name] for name in config.model})
    config.data.update(dict(vocab=first.data.vocab, texts="", images=""))  # the parts have tables
    config.data.sequence_length = max(part.data.sequence_length for part in parts.values())
    config.parts = ml_collections.ConfigDict(parts)
    config.ratios = ml_collections.ConfigDict(ratios)
    return config


def demo() -> ml_collections.ConfigDict:
    """Questions, expressions and phrases about synthetic scenes in one run; starts from the demo's pre-training.

        make demo
        python -m vlbert_jax.main --config=configs/multitask.py --workdir=workdirs/multitask \\
            --config.init.checkpoint=workdirs/demo

    Reached in 800 updates, one seed: questions 0.587, expressions 0.839, phrases 0.891; by runs of one task 0.62 (400
    updates), 0.84 and 0.87 (200 updates each). An update takes 0.3 to 0.4 s on two cores.
    """
    parts = dict(questions=vqa.demo(), expressions=refcoco.demo(), phrases=refcoco.entities_demo())
    for part in parts.values():
        part.data.one_orientation = False  # one program for each part, not two
    config = mixture(parts, dict(questions=2.0, expressions=1.0, phrases=1.0))
    small = vqa.demo()
    for name in ("seed", "compute_dtype", "batch_size", "learning_rate", "warmup_steps", "checkpoint_every_steps"):
        config[name] = small[name]
    config.optimizer = small.optimizer
    config.total_steps = 800
    config.best_metric = "questions_answer_accuracy"
    config.data.vocab = "scene_kinds/vocab.txt"  # it has the words of all parts
    return config


def demo_retrieval() -> ml_collections.ConfigDict:
    """Adds retrieval to the demo: one checkpoint answers, grounds and retrieves.

        python -m vlbert_jax.main --config=configs/multitask.py:demo_retrieval --workdir=workdirs/multitask4 \
            --config.init.checkpoint=workdirs/demo

    Its updates take longest: 32 choices among four pairs. Not run to its end; after 60 updates, of which 12 are of
    retrieval, the image of a text was the first among 20 in 0.77.
    """
    config = demo()
    part = retrieval.demo()
    part.data.one_orientation = False
    with config.unlocked():
        config.parts.captions, config.ratios.captions = part, 1.0
    config.model.encoder.pooler = True  # retrieval reads it
    config.total_steps = 1_000
    config.data.sequence_length = max(config.data.sequence_length, part.data.sequence_length)
    return config


VARIANTS = (demo, demo_retrieval)


def get_config(variant: str = "demo") -> ml_collections.ConfigDict:
    """Return the config of a variant; raise ValueError for an unknown one."""
    return common.choose(variant, VARIANTS)
