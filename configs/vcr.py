"""Visual commonsense reasoning, VCR (paper, section 4.1; official yaml files).

    python -m vlbert_jax.main --config=configs/vcr.py:VARIANT --workdir=DIR \\
        --config.init.bert=BERT --config.init.checkpoint=PRETRAINED

Variants: demo (default) = demo_q2a, demo_qa2r, q2a_base, qa2r_base, q2a_large, qa2r_large. Question to answer (q2a)
and question with right answer to rationale (qa2r) are two runs. PRETRAINED is the workdir of a pre-training
run, a step's folder in it, or what `python -m vlbert_jax.convert` made of a released `.model`; the layer after [CLS],
which pre-training does not have, comes from BERT.

With `--mode=evaluate` the newest checkpoint of the workdir is scored on `data.eval_split` and its probabilities go to
WORKDIR/predictions/SPLIT_SUBTASK.csv. `config.companion` names the other run and joins both: on val it adds
`vcr_q2ar_accuracy`, the share of questions for which answer and rationale are right (the rationale is chosen with the
right answer given); on test it writes SPLIT.csv for the leaderboard, with the rationales of each of the four answers:

    python -m vlbert_jax.main --config=configs/vcr.py:q2a_base --workdir=Q2A --mode=evaluate --config.companion=QA2R
    python -m vlbert_jax.main --config=configs/vcr.py:q2a_base --workdir=Q2A --mode=evaluate --config.companion=QA2R \\
        --config.data.eval_split=test

The paper describes a softmax over the choices (losses.choice="softmax"); this code follows the official code, which
has a sigmoid for each.
"""

import ml_collections

from vlbert_jax.configs import common

EPOCH = 3_327  # updates: 212,923 questions / 64


def demo() -> ml_collections.ConfigDict:
    """The same as demo_q2a."""
    return demo_q2a()


def demo_q2a() -> ml_collections.ConfigDict:
    """Answers about synthetic scenes, from the demo's pre-training; without the image the accuracy is 0.25.

        make demo
        python -m vlbert_jax.main --config=configs/vcr.py --workdir=workdirs/vcr_q2a \\
            --config.init.checkpoint=workdirs/demo

    Reached in two minutes on two cores: 0.53; from scratch 0.25.
    """
    config = q2a_base()
    common.shrink_to_demo(config)
    config.total_steps = 300
    config.batch_size = 32
    config.learning_rate = 1e-3
    config.warmup_steps = 50
    config.grad_accumulation_steps = 1
    config.eval_every_steps = 0
    config.checkpoint_every_steps = 0
    config.optimizer.update(dict(name="adamw", schedule="cosine", b2=0.98, drops=()))
    config.model.num_object_classes = 11
    config.data.update(
        dict(
            embedded="scene_tasks",
            texts="vcr/scenes",
            images="vcr_images/scenes",
            vocab="scenes_downstream/vocab.txt",
            text_length=28,
            sequence_length=38,
        )
    )
    return config


def demo_qa2r() -> ml_collections.ConfigDict:
    """Rationales about synthetic scenes, from the demo's pre-training; then both runs together.

        python -m vlbert_jax.main --config=configs/vcr.py:demo_qa2r --workdir=workdirs/vcr_qa2r \\
            --config.init.checkpoint=workdirs/demo
        python -m vlbert_jax.main --config=configs/vcr.py --workdir=workdirs/vcr_q2a --mode=evaluate \\
            --config.companion=workdirs/vcr_qa2r

    Reached in three minutes on two cores: 0.47 with two of three seeds, 0.32 with the third; from scratch 0.25.
    """
    config = demo_q2a()
    config.total_steps = 600
    config.subtask = "qa2r"
    return config


def q2a_base() -> ml_collections.ConfigDict:
    """VL-BERT base, question to answer.

        python -m vlbert_jax.main --config=configs/vcr.py:q2a_base --workdir=DIR \\
            --config.init.bert=bert-base-uncased/ --config.init.checkpoint=BASE_E2E

    Corpus: VCR, 213,000 questions (data_prep/README.md), 20 epochs of SGD; the rate falls to a tenth after 14 and 18.
    BASE_E2E is pre-trained by configs/pretrain.py:base_e2e. Reached by the paper on val: Q->A 73.8; with qa2r_base
    Q->AR 55.2. The authors used 4 V100 of 16 GB, or 16.
    """
    config = common.fine_tuning("choice", "vcr")
    config.subtask = "q2a"  # q2a: choose the answer | qa2r: choose the rationale, with the right answer given
    config.companion = ""  # evaluation only: weights of the other subtask, as in init.checkpoint
    config.total_steps = 20 * EPOCH
    config.batch_size = 64  # questions, of four sequences each
    config.grad_accumulation_steps = 4
    config.learning_rate = 4.48e-3
    config.warmup_steps = 1_000
    config.eval_every_steps = EPOCH
    config.best_metric = "choice_accuracy"
    config.optimizer.update(dict(name="sgd", schedule="steps", drops=(0.7, 0.9)))
    config.losses.choice = "sigmoid"  # sigmoid: of each choice (official code) | softmax: over the four (paper)
    config.losses.object = 1.0  # weight of classifying every region, from its last state; 0 = off
    config.model.encoder.pooler = True
    config.model.num_object_classes = 81  # those of COCO, and 0 for the whole image
    config.data.update(
        dict(
            image_scale=(600, 1200),
            even_regions=True,
            text_length=64,  # tokens of question and response, without [CLS] and two [SEP]
            max_regions=59,  # then a sequence with [END] has 128 elements
            sequence_length=127,
        )
    )
    return config


def qa2r_base() -> ml_collections.ConfigDict:
    """VL-BERT base, question and right answer to rationale.

        python -m vlbert_jax.main --config=configs/vcr.py:qa2r_base --workdir=DIR \\
            --config.init.bert=bert-base-uncased/ --config.init.checkpoint=BASE_E2E

    Corpus, updates and cost as q2a_base. Reached by the paper on val: QA->R 74.4.
    """
    config = q2a_base()
    config.subtask = "qa2r"
    return config


def q2a_large() -> ml_collections.ConfigDict:
    """VL-BERT large, question to answer.

        python -m vlbert_jax.main --config=configs/vcr.py:q2a_large --workdir=DIR \\
            --config.init.bert=bert-large-uncased/ --config.init.checkpoint=LARGE_E2E

    Corpus and updates as q2a_base; LARGE_E2E is pre-trained by configs/pretrain.py:large_e2e. Reached by the paper on
    val and test: Q->A 75.5, 75.8; with qa2r_large Q->AR 58.9, 59.7. The authors used 4 or 16 V100 of 16 GB, in half
    precision.
    """
    config = q2a_base()
    config.model.encoder = common.encoder("large")
    config.model.encoder.pooler = True
    return config


def qa2r_large() -> ml_collections.ConfigDict:
    """VL-BERT large, question and right answer to rationale.

        python -m vlbert_jax.main --config=configs/vcr.py:qa2r_large --workdir=DIR \\
            --config.init.bert=bert-large-uncased/ --config.init.checkpoint=LARGE_E2E

    Corpus, updates and cost as q2a_large. Reached by the paper on val and test: QA->R 77.9, 78.4.
    """
    config = q2a_large()
    config.subtask = "qa2r"
    return config


VARIANTS = (demo, demo_q2a, demo_qa2r, q2a_base, qa2r_base, q2a_large, qa2r_large)


def get_config(variant: str = "demo") -> ml_collections.ConfigDict:
    """Return the config of a variant; raise ValueError for an unknown one."""
    return common.choose(variant, VARIANTS)
