"""Visual question answering, VQA v2 (paper, section 4.2; official yaml files).

    python -m vlbert_jax.main --config=configs/vqa.py:VARIANT --workdir=DIR --config.init.checkpoint=PRETRAINED

Variants: demo (default), controlled_demo, base, large, lxmert_base, vilbert_base, visualbert_base, uniter_base,
uniter_large, oscar_base, oscar_large; on other data gqa, lxmert_gqa, oscar_gqa, vizwiz, ok_vqa.
PRETRAINED is the workdir of a pre-training run, a step's folder in it, or what `python -m vlbert_jax.convert` made of a
released `.model`. With `--mode=evaluate` the newest checkpoint of the workdir, or a fine-tuned init.checkpoint, is
scored on `data.eval_split` (train, val, test_dev, test), and WORKDIR/predictions/SPLIT.json is written in the format of
EvalAI:

    python -m vlbert_jax.main --config=configs/vqa.py:base --workdir=DIR --mode=evaluate --config.data.eval_split=test

The paper describes a softmax over answers (losses.answer="softmax"), 20 epochs and 2,000 warm-up updates; this code
follows the official code, which has five epochs, 500 warm-up updates and a sigmoid for each answer.
"""

import ml_collections

from vlbert_jax.configs import common


def demo() -> ml_collections.ConfigDict:
    """Questions about synthetic scenes, from the demo's pre-training.

        make demo
        python -m vlbert_jax.main --config=configs/vqa.py --workdir=workdirs/vqa \\
            --config.init.checkpoint=workdirs/demo

    Reached in two minutes on two cores: 0.62; from scratch 0.40, without the image 0.36.
    """
    config = base()
    common.shrink_to_demo(config)
    common.train_briefly(config, total_steps=400, batch_size=32)
    config.model.num_answers = 36
    config.data.update(
        dict(
            embedded="scene_tasks",
            texts="vqa/scenes",
            images="vqa_images/scenes",
            answers="vqa/scenes_answers.txt",
            train_split="train",
            features="image",
            vocab="scenes_downstream/vocab.txt",
            sequence_length=31,
        )
    )
    return config


def controlled_demo() -> ml_collections.ConfigDict:
    """The same questions for a model of configs/pretrain.py:controlled_demo.

        python -m vlbert_jax.main --config=configs/vqa.py:controlled_demo --workdir=DIR \\
            --config.model.architecture=vilbert --config.init.checkpoint=PRETRAINED

    The head reads the state of [MASK], in every architecture; that of the study reads the pooled vector.
    """
    config = demo()
    common.control(config)
    config.data.text_length = 24  # and 7 rows of regions in a sequence of 31
    return config


def base() -> ml_collections.ConfigDict:
    """VL-BERT base on precomputed region features.

        python -m vlbert_jax.main --config=configs/vqa.py:base --workdir=DIR --config.init.checkpoint=BASE_PREC

    Corpus: train2014 and val2014 of VQA v2, 658,000 questions (data_prep/README.md), five epochs; `val` is then part of
    the training data and only shows that the run works: set data.train_split=train to tune. BASE_PREC is pre-trained by
    configs/pretrain.py:base_prec. Reached by the paper: test-dev 71.16. The authors used 4 V100 of 16 GB.
    """
    config = common.fine_tuning("answer", "vqa_v2")
    config.total_steps = 12_855  # 5 epochs of 2,571 batches: 658,111 questions
    config.batch_size = 256
    config.learning_rate = 1.6e-4
    config.warmup_steps = 500
    config.eval_every_steps = 2_571
    config.best_metric = "answer_accuracy"
    config.optimizer.clip_norm = 1.0
    config.losses.answer = (
        # sigmoid: of each answer against its score (official code) | softmax: the best (paper) | kl: of all scores
        # (VisualBERT)
        "sigmoid"
    )
    config.model.num_answers = 3129
    # What the head reads: mask (VL-BERT) | mask_linear (VisualBERT) | pooler (UNITER) | pooler_linear (Oscar, VinVL).
    # Those of the pooler require model.encoder.pooler.
    config.model.answer_head = "mask"
    config.model.train_region_head = False
    config.data.update(
        dict(
            train_split="train+val",
            features="precomputed",
            answers="vqa/vqa_v2_answers.txt",  # the answer vocabulary, one per line; in data_dir or elsewhere
            answers_have_unknown=True,  # whether <unk> is one of them
            scorer="",  # form of predictions/SPLIT.json and its official scores: "" = VQA v2 | gqa | vizwiz | own
            sequence_length=135,  # 100 regions, the whole image, and questions of at least 30 tokens
        )
    )
    return config


def large() -> ml_collections.ConfigDict:
    """VL-BERT large on precomputed region features, in four parts per update.

        python -m vlbert_jax.main --config=configs/vqa.py:large --workdir=DIR --config.init.checkpoint=LARGE_PREC

    Corpus and updates as base; LARGE_PREC is pre-trained by configs/pretrain.py:large_prec. Reached by the paper:
    test-dev 71.79, test-std 72.22. The authors used 4 V100 of 16 GB.
    """
    config = base()
    common.enlarge(config)
    config.grad_accumulation_steps = 4
    return config


def lxmert_base() -> ml_collections.ConfigDict:
    """LXMERT on 36 precomputed regions, four epochs of 32 questions.

        python -m vlbert_jax.main --config=configs/vqa.py:lxmert_base --workdir=DIR --config.init.checkpoint=LXMERT_BASE

    Corpus as base; LXMERT_BASE is pre-trained by configs/pretrain.py:lxmert_base. Reached by the official code:
    test-dev 72.42, test-std 72.54.
    """
    config = base()
    config.model.architecture = "lxmert"
    config.model.answer_head = "pooler"
    config.model.encoder.pooler = True  # for models of one stream in place of this one
    config.total_steps = 82_264
    config.batch_size = 32
    config.learning_rate = 5e-5
    config.warmup_steps = 8_226
    config.eval_every_steps = 20_566
    config.optimizer.update(dict(name="bertadam", counts_from=0, clip_norm=5.0, weight_decay=0.01))
    config.data.update(dict(text_length=20, max_regions=36, sequence_length=57, flip_probability=0.0))
    return config


def vilbert_base() -> ml_collections.ConfigDict:
    """ViLBERT on 100 precomputed regions, twenty epochs of 256 questions.

        python -m vlbert_jax.main --config=configs/vqa.py:vilbert_base --workdir=DIR \
            --config.init.checkpoint=VILBERT_BASE

    Corpus as base; VILBERT_BASE is pre-trained by configs/pretrain.py:vilbert_base. The head learns at a rate of 1e-4.
    As in the code of the paper, biases and gains of norms decay and nothing else does, which must have been meant the
    other way round: --config.optimizer.no_decay="('bias$', 'norm/scale$')". Reached by the paper: test-dev 70.55,
    test-std 70.92.
    """
    config = lxmert_base()
    config.model.architecture = "vilbert"
    config.total_steps = 51_420
    config.batch_size = 256
    config.learning_rate = 4e-5
    config.warmup_steps = 5_142
    config.eval_every_steps = 2_571
    config.optimizer.update(common.OPTIMIZER_OF_VILBERT | dict(rate_factors=("^answer_head/=2.5",)))
    config.data.update(dict(text_length=16, max_regions=100, sequence_length=117))
    return config


def visualbert_base() -> ml_collections.ConfigDict:
    """VisualBERT on 100 precomputed regions, ten epochs of 64 questions.

        python -m vlbert_jax.main --config=configs/vqa.py:visualbert_base --workdir=DIR \
            --config.init.checkpoint=VISUALBERT_BASE

    Corpus as base; VISUALBERT_BASE is pre-trained by configs/pretrain.py:visualbert_base. The official run continues
    from a pre-training on the questions. Reached by the paper: test-dev 70.80, test-std 71.00.
    """
    config = base()
    config.model.architecture = "visualbert"
    config.model.answer_head, config.losses.answer = "mask_linear", "kl"
    config.total_steps = 102_830
    config.batch_size = 64
    config.learning_rate = 2e-5
    config.warmup_steps = 10_283
    config.eval_every_steps = 10_283
    config.optimizer.update(common.OPTIMIZER_OF_VISUALBERT)
    config.data.update(dict(text_length=128, sequence_length=228, flip_probability=0.0))
    return config


def uniter_base() -> ml_collections.ConfigDict:
    """UNITER on 100 precomputed regions, 6,000 updates.

        python -m vlbert_jax.main --config=configs/vqa.py:uniter_base --workdir=DIR --config.init.checkpoint=UNITER_BASE

    Corpus as base, to which the official code adds questions of Visual Genome; UNITER_BASE is pre-trained by
    configs/pretrain.py:uniter_base. The official batches have 102,400 words and regions, about 1,700 questions. The
    head learns at ten times the rate. Regions of little confidence are left out where the images were built with
    --classes. Reached by the paper: test-dev 72.70, test-std 72.91.
    """
    config = base()
    config.model.architecture = "uniter"
    config.model.encoder.update(dict(vocab_size=28_996, pooler=True))
    config.model.answer_head = "pooler"
    config.total_steps = 6_000
    config.batch_size = 1_664
    config.grad_accumulation_steps = 4
    config.learning_rate = 8e-5
    config.warmup_steps = 600
    config.eval_every_steps = 500
    config.optimizer.update(common.OPTIMIZER_OF_UNITER | dict(clip_norm=2.0, rate_factors=("^answer_head/=10",)))
    config.data.update(dict(vocab="bert-base-cased", text_length=62, sequence_length=162, flip_probability=0.0))
    config.data.region_confidence = 0.2
    return config


def uniter_large() -> ml_collections.ConfigDict:
    """UNITER large: as uniter_base, 5,000 updates of 98,304 words and regions, about 1,600 questions.

        python -m vlbert_jax.main --config=configs/vqa.py:uniter_large --workdir=DIR \\
            --config.init.checkpoint=UNITER_LARGE

    UNITER_LARGE is pre-trained by configs/pretrain.py:uniter_large. Reached by the paper: test-dev 73.82, test-std
    74.02.
    """
    config = uniter_base()
    common.enlarge(config)
    config.total_steps = 5_000
    config.batch_size = 1_600
    config.learning_rate = 5e-5
    config.warmup_steps = 500
    return config


def oscar_base() -> ml_collections.ConfigDict:
    """Oscar on 50 precomputed regions and their names, 25 epochs of 128 questions.

        python -m vlbert_jax.main --config=configs/vqa.py:oscar_base --workdir=DIR --config.init.checkpoint=OSCAR_BASE

    Corpus as base, with images that were built with --classes; OSCAR_BASE is pre-trained by
    configs/pretrain.py:oscar_base. --config.model.architecture=vinvl is VinVL, with the same settings. The official
    batches have 32 questions on each GPU, of a number that is not stated; here it is four. The published command of the
    base model trains on train alone. Dropout is 0.3 everywhere; in the official code that of attention is 0.1. Reached
    by the papers: test-std 73.44, VinVL 76.12.
    """
    config = base()
    config.model.architecture = "oscar"
    config.model.encoder.update(dict(pooler=True, dropout_rate=0.3))
    config.model.answer_head = "pooler_linear"
    config.total_steps = 128_550
    config.batch_size = 128
    config.learning_rate = 5e-5
    config.warmup_steps = 0
    config.eval_every_steps = 5_142
    config.optimizer.update(common.OPTIMIZER_OF_OSCAR)
    config.data.update(dict(text_length=128, max_regions=50, sequence_length=178, flip_probability=0.0))
    return config


def oscar_large() -> ml_collections.ConfigDict:
    """Oscar large: as oscar_base, with 24 questions on each of four GPUs.

        python -m vlbert_jax.main --config=configs/vqa.py:oscar_large --workdir=DIR --config.init.checkpoint=OSCAR_LARGE

    OSCAR_LARGE is the released model. Reached by the papers: test-std 73.82, VinVL 76.62.
    """
    config = oscar_base()
    common.enlarge(config)
    config.total_steps = 171_400
    config.batch_size = 96
    config.learning_rate = 3e-5
    config.eval_every_steps = 6_856
    return config


def gqa() -> ml_collections.ConfigDict:
    """GQA on 36 precomputed regions, twenty epochs of 256 questions.

        python -m vlbert_jax.main --config=configs/vqa.py:gqa --workdir=DIR --config.init.checkpoint=BASE_PREC

    Corpus: the balanced questions of train and val, about 1,075,000. Rate, batch and lengths are those of volta; nobody
    published VL-BERT on GQA. The answers are the 1,842 of LXMERT. Others reached on test-std: LXMERT 60.33, Oscar base
    61.62. `data.eval_split=testdev` is scored locally; for consistency, validity and plausibility
    build val_all and evaluate it. `data.eval_split=submission` writes the file for EvalAI.
    """
    config = base()
    config.total_steps = 84_000
    config.learning_rate = 4e-5
    config.warmup_steps = 8_400
    config.eval_every_steps = 4_200
    _ask_gqa(config)
    config.data.update(
        dict(
            flip_probability=0.0,  # answers and programs say left and right
            max_regions=36,
            sequence_length=65,  # 36 regions, the whole image, and questions of 26 tokens
        )
    )
    return config


def lxmert_gqa() -> ml_collections.ConfigDict:
    """LXMERT on GQA, four epochs of 32 questions.

        python -m vlbert_jax.main --config=configs/vqa.py:lxmert_gqa --workdir=DIR --config.init.checkpoint=LXMERT_BASE

    Corpus as gqa. Reached by the official code: testdev 60.00, test-std 60.33.
    """
    config = lxmert_base()
    config.total_steps = 134_380
    config.learning_rate = 1e-5
    config.warmup_steps = 13_438
    config.eval_every_steps = 33_595
    _ask_gqa(config)
    return config


def oscar_gqa() -> ml_collections.ConfigDict:
    """Oscar base on GQA, five epochs of 192 questions.

        python -m vlbert_jax.main --config=configs/vqa.py:oscar_gqa --workdir=DIR --config.init.checkpoint=OSCAR_BASE

    Corpus: all 14.3 million questions of train, balanced or not, built with --splits=train_all,testdev, and images that
    were built with --classes. The official batches have 48 questions on each GPU, of a number that is not stated; here
    it is four. Its answers are 1,853; here they are LXMERT's 1,842. --config.model.architecture=vinvl is VinVL, with
    the same settings. Reached by the papers: test-std 61.62, VinVL 64.65.
    """
    config = oscar_base()
    config.total_steps = 372_535
    config.batch_size = 192
    config.eval_every_steps = 74_507
    config.losses.answer = "softmax"
    _ask_gqa(config)
    config.data.update(dict(train_split="train_all", text_length=165, max_regions=45, sequence_length=210))
    return config


def _ask_gqa(config: ml_collections.ConfigDict) -> None:
    """Read the questions of GQA, with LXMERT's list of answers."""
    config.model.num_answers = 1842
    config.data.update(
        dict(
            texts="gqa/gqa",
            images="gqa_images/gqa",
            eval_split="testdev",
            answers="lxmert_gqa.json",
            answers_have_unknown=False,
            scorer="gqa",
        )
    )


def vizwiz() -> ml_collections.ConfigDict:
    """VizWiz, five epochs of 64 questions.

        python -m vlbert_jax.main --config=configs/vqa.py:vizwiz --workdir=DIR --config.init.checkpoint=VQA_BASE

    Corpus: about 20,500 questions of train; the 3,000 answers of `build vizwiz --answers=3000`. Nobody published
    VL-BERT on VizWiz: this is the recipe of VQA v2 with fewer updates. VQA_BASE is pre-trained or fine-tuned on VQA.
    """
    config = base()
    config.total_steps = 1_600
    config.batch_size = 64
    config.learning_rate = 4e-5
    config.warmup_steps = 160
    config.eval_every_steps = 320
    config.model.num_answers = 3000
    fields = dict(texts="vizwiz/vizwiz", images="vizwiz_images/vizwiz", answers="vizwiz/vizwiz_answers.txt")
    config.data.update(fields | dict(train_split="train", scorer="vizwiz"))
    return config


def ok_vqa() -> ml_collections.ConfigDict:
    """OK-VQA, five epochs of 64 questions.

        python -m vlbert_jax.main --config=configs/vqa.py:ok_vqa --workdir=DIR --config.init.checkpoint=VQA_BASE

    Corpus: 9,009 questions of train; the 2,000 answers of `build ok_vqa --answers=2000`; val, with 5,046, is the test.
    As vizwiz: nobody published VL-BERT on OK-VQA.
    """
    config = vizwiz()
    config.total_steps = 700
    config.warmup_steps = 70
    config.eval_every_steps = 140
    config.model.num_answers = 2000
    fields = dict(texts="ok_vqa/ok_vqa", images="ok_vqa_images/ok_vqa", answers="ok_vqa/ok_vqa_answers.txt")
    config.data.update(fields | dict(scorer=""))
    return config


VARIANTS = (
    demo, controlled_demo, base, large, lxmert_base, vilbert_base, visualbert_base, uniter_base, uniter_large,
    oscar_base, oscar_large, gqa, lxmert_gqa, oscar_gqa, vizwiz, ok_vqa,
)  # fmt: skip


def get_config(variant: str = "demo") -> ml_collections.ConfigDict:
    """Return the config of a variant; raise ValueError for an unknown one."""
    return common.choose(variant, VARIANTS)
