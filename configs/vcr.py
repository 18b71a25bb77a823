"""Visual commonsense reasoning, VCR (paper, section 4.1; official yaml files).

    python -m vlbert_jax.main --config=configs/vcr.py:VARIANT --workdir=DIR \\
        --config.init.bert=BERT --config.init.checkpoint=PRETRAINED

Variants: demo (default) = demo_q2a, demo_qa2r, q2a_base, qa2r_base, q2a_large, qa2r_large; of VL-BERT's siblings
q2a_visualbert, q2a_vilbert, q2a_uniter, q2a_b2t2, and qa2r_* of each. Question to answer (q2a) and question with right
answer to rationale (qa2r) are two runs. PRETRAINED is the workdir of a pre-training
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

The recipes of the siblings have their published settings, heads, losses and order of the texts. In all of them the
features of the regions come from VL-BERT's region head (RESNET is its ResNet-101), which is trained along, where theirs
come from other networks; only the annotated regions are read; the texts of ViLBERT and UNITER are cut as in VL-BERT.
The docstrings say what else differs. Their cost is not published.
"""

import ml_collections

from vlbert_jax.configs import common

QUESTIONS = 212_923  # of training
EPOCH = 3_327  # updates of 64 questions


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
    # sigmoid: of each choice (official code) | softmax: over the four (paper) | classes: right or wrong (UNITER, B2T2)
    config.losses.choice = "sigmoid"
    config.losses.object = 1.0  # weight of classifying every region, from its last state; 0 = off
    config.model.encoder.pooler = True
    config.model.num_object_classes = 81  # those of COCO, and 0 for the whole image; 0 = no classes
    # Head over each choice: score = one output | classes = wrong and right (B2T2) | hidden = these two after a hidden
    # layer (UNITER).
    config.model.choice_head = "score"
    config.data.update(
        dict(
            # Which texts share a part; [SEP] ends each part. context: question and answer | context_tail: these, and a
            # response that is too long keeps its end (VisualBERT) | response: answer and rationale | inline: these, and
            # the whole image and objects are words of the text (B2T2) | apart: none (UNITER)
            arrangement="context",
            align_regions=False,  # whether a region has the positions of the words that name it (VisualBERT)
            image_scale=(600, 1200),
            even_regions=True,
            text_length=64,  # tokens of all texts of a sequence, without [CLS] and [SEP]
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
    common.enlarge(config)
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


def q2a_visualbert() -> ml_collections.ConfigDict:
    """VisualBERT, question to answer: regions are aligned with the words that name them.

        python -m vlbert_jax.main --config=configs/vcr.py:q2a_visualbert --workdir=DIR \\
            --config.init.checkpoint=VISUALBERT_BASE --config.init.resnet=RESNET

    Eight epochs of 32 questions. VISUALBERT_BASE is pre-trained by configs/pretrain.py:visualbert_base; the official
    run continues from a pre-training on the questions. The first region is the whole image. All annotated regions are
    read, there those that the texts name, or else all persons. Persons have the names of VL-BERT, and "and" joins
    several objects, which the official code does not write. The pooler stays that of the checkpoint. Reached by the
    paper: val 70.8, test 71.6; with qa2r_visualbert Q->AR 52.2, 52.4.
    """
    config = _sibling("visualbert", epochs=8, questions=32, words=125)
    config.learning_rate = 2e-5
    config.optimizer.update(common.OPTIMIZER_OF_VISUALBERT)
    config.model.switches.whole_image = True
    config.data.update(dict(align_regions=True, arrangement="context_tail"))
    return config


def qa2r_visualbert() -> ml_collections.ConfigDict:
    """VisualBERT, question and right answer to rationale: as q2a_visualbert, twelve epochs.

        python -m vlbert_jax.main --config=configs/vcr.py:qa2r_visualbert --workdir=DIR \\
            --config.init.checkpoint=VISUALBERT_BASE --config.init.resnet=RESNET

    Reached by the paper: val 73.2, test 73.2.
    """
    config = q2a_visualbert()
    config.subtask = "qa2r"
    _train(config, epochs=12, questions=32)
    return config


def q2a_vilbert() -> ml_collections.ConfigDict:
    """ViLBERT, question to answer.

        python -m vlbert_jax.main --config=configs/vcr.py:q2a_vilbert --workdir=DIR \\
            --config.init.checkpoint=VILBERT_BASE --config.init.resnet=RESNET

    Twenty epochs of 64 questions. VILBERT_BASE is pre-trained by configs/pretrain.py:vilbert_base. The official run
    learns answers and rationales together, and its feature of the whole image is the mean over the regions. What decays
    is as in vqa:vilbert_base. Reached by the paper on test: 73.3; with qa2r_vilbert Q->AR 54.8.
    """
    config = _sibling("vilbert", epochs=20, questions=64, words=57)
    config.learning_rate = 2e-5
    config.optimizer.update(common.OPTIMIZER_OF_VILBERT)
    return config


def qa2r_vilbert() -> ml_collections.ConfigDict:
    """ViLBERT, question and right answer to rationale: as q2a_vilbert.

        python -m vlbert_jax.main --config=configs/vcr.py:qa2r_vilbert --workdir=DIR \\
            --config.init.checkpoint=VILBERT_BASE --config.init.resnet=RESNET

    Reached by the paper on test: 74.6.
    """
    config = q2a_vilbert()
    config.subtask = "qa2r"
    _set_lengths(config, words=77)
    return config


def q2a_uniter() -> ml_collections.ConfigDict:
    """UNITER, question to answer.

        python -m vlbert_jax.main --config=configs/vcr.py:q2a_uniter --workdir=DIR \\
            --config.init.checkpoint=UNITER_BASE --config.init.resnet=RESNET

    8,000 updates. UNITER_BASE is pre-trained by configs/pretrain.py:uniter_base. The official batches have 80,000 words
    and regions, about 144 questions, of both subtasks. Segments 2 and 3 start as copies of segment 0. Texts are cut
    after 120 tokens; the official code leaves those above 220 out. UNITER_BASE may be uniter-base-vcr_2nd_stage.pt,
    which was pre-trained on the questions as well; that is not implemented here. Its segments are kept. Its 81 words
    for objects, whose order is not published, are left out, and objects are read by their names. Reached by the paper
    on test: 75.0; with qa2r_uniter Q->AR 58.2 (val 57.76, without the second pre-training 54.94).
    """
    config = _sibling("uniter", epochs=0, questions=144, words=120)
    config.total_steps = 8_000
    config.warmup_steps = 800
    config.eval_every_steps = 1_000
    config.learning_rate = 6e-5
    config.model.choice_head, config.losses.choice = "hidden", "classes"
    config.model.encoder.update(dict(vocab_size=28_996, num_segments=4))
    config.optimizer.update(common.OPTIMIZER_OF_UNITER | dict(name="adamw", schedule="triangle", clip_norm=2.0))
    config.data.update(dict(vocab="bert-base-cased", arrangement="apart"))
    return config


def qa2r_uniter() -> ml_collections.ConfigDict:
    """UNITER, question and right answer to rationale: as q2a_uniter.

        python -m vlbert_jax.main --config=configs/vcr.py:qa2r_uniter --workdir=DIR \\
            --config.init.checkpoint=UNITER_BASE --config.init.resnet=RESNET

    Reached by the paper on test: 77.2.
    """
    config = q2a_uniter()
    config.subtask = "qa2r"
    return config


def q2a_b2t2() -> ml_collections.ConfigDict:
    """B2T2 large, question to answer.

        python -m vlbert_jax.main --config=configs/vcr.py:q2a_b2t2 --workdir=DIR \\
            --config.init.checkpoint=B2T2_LARGE --config.init.resnet=RESNET

    Five epochs of 8 questions, 32 sequences. B2T2_LARGE is pre-trained by configs/pretrain.py:b2t2_large, whose [IMG]
    behind the text becomes [IMAGE] behind [CLS]. An object is the tokens of its class and [OBJ-k], the token [unused k]
    of BERT unless the vocabulary has it. A sequence has the boxes of the first four objects that it names, as in the
    official code; objects of an image beyond 59 have their name alone. Reached by the paper: val 71.9, test 72.6; with
    qa2r_b2t2 Q->AR 54.9, 55.0.
    """
    config = _sibling("b2t2", epochs=5, questions=8, words=59)
    config.grad_accumulation_steps = 1
    config.learning_rate = 2e-5
    common.enlarge(config)
    config.model.choice_head, config.losses.choice = "classes", "classes"
    config.optimizer.update(common.OPTIMIZER_OF_B2T2 | dict(schedule="triangle"))
    config.data.arrangement = "inline"
    return config


def qa2r_b2t2() -> ml_collections.ConfigDict:
    """B2T2 large, question and right answer to rationale: as q2a_b2t2.

        python -m vlbert_jax.main --config=configs/vcr.py:qa2r_b2t2 --workdir=DIR \\
            --config.init.checkpoint=B2T2_LARGE --config.init.resnet=RESNET

    Reached by the paper: val 76.0, test 75.7.
    """
    config = q2a_b2t2()
    config.subtask = "qa2r"
    return config


def _sibling(architecture: str, epochs: int, questions: int, words: int) -> ml_collections.ConfigDict:
    """Return the fields that the recipes of siblings share; a head with one output, and the softmax of four scores."""
    config = q2a_base()
    config.model.architecture = architecture
    config.model.num_object_classes, config.losses.object = 0, 0.0
    config.losses.choice = "softmax"
    config.optimizer.update(dict(schedule="triangle", drops=()))
    config.data.flip_probability = 0.0
    _train(config, epochs, questions)
    _set_lengths(config, words)
    return config


def _train(config: ml_collections.ConfigDict, epochs: int, questions: int) -> None:
    """Set batch, updates and warm-up, a tenth of the updates; an evaluation follows every epoch."""
    config.batch_size = questions
    config.eval_every_steps = QUESTIONS // questions
    config.total_steps = epochs * config.eval_every_steps
    config.warmup_steps = config.total_steps // 10


def _set_lengths(config: ml_collections.ConfigDict, words: int) -> None:
    """Set the lengths: tokens of the texts, up to four special ones, regions and the whole image."""
    config.data.update(dict(text_length=words, sequence_length=words + config.data.max_regions + 5))


VARIANTS = (
    demo, demo_q2a, demo_qa2r, q2a_base, qa2r_base, q2a_large, qa2r_large, q2a_visualbert, qa2r_visualbert, q2a_vilbert,
    qa2r_vilbert, q2a_uniter, qa2r_uniter, q2a_b2t2, qa2r_b2t2,
)  # fmt: skip


def get_config(variant: str = "demo") -> ml_collections.ConfigDict:
    """Return the config of a variant; raise ValueError for an unknown one."""
    return common.choose(variant, VARIANTS)
