"""Classes of one or two images with a text: NLVR2, SNLI-VE, Hateful Memes, and demos on synthetic scenes.

    python -m vlbert_jax.main --config=configs/classify.py:VARIANT --workdir=DIR --config.init.checkpoint=PRETRAINED

Variants: demo (default), demo_pairs, nlvr2, nlvr2_controlled, nlvr2_uniter, nlvr2_uniter_large, nlvr2_lxmert,
nlvr2_visualbert, nlvr2_oscar, nlvr2_oscar_large, snli_ve, snli_ve_uniter, snli_ve_uniter_large, hateful_memes.
PRETRAINED is the workdir of a pre-training run, or what `python -m vlbert_jax.convert` made of released weights; other
architectures than VL-BERT need their own (`config.model.architecture`). With `--mode=evaluate` the newest checkpoint is
scored on `data.eval_split`, and WORKDIR/predictions/SPLIT.jsonl and SPLIT.csv are written.

Nobody published VL-BERT on these tasks but for its controlled version in volta on NLVR2, which is another model: a
pooled product of [CLS] and the whole image (`nlvr2_controlled`).
"""

import ml_collections

from vlbert_jax.configs import common


def fields(images: int = 1) -> ml_collections.ConfigDict:
    """Return the fields of every run of this task; `images` is the number of images of an example."""
    config = common.fine_tuning("classify", "nlvr2")
    config.best_metric = "classify_accuracy"
    config.model.train_region_head = False
    config.model.encoder.pooler = True
    config.model.num_labels = 2  # outputs: classes, labels or numbers
    # What the head reads: cls = the pooled [CLS], which is new or BERT's (init.bert) where pre-training had none |
    # mask = a [MASK] behind the text, whose hidden layer is that of the head for masked words.
    config.model.read = "cls"
    # Of cls: linear | hidden = a hidden layer with GELU and norm | relu = with ReLU (Oscar) | relu_norm = with ReLU and
    # norm (VinVL).
    config.model.label_head = "hidden"
    config.model.label_hidden = 0  # columns of the hidden layer; 0 = twice those of the pooler (Oscar base: 2304)
    # How two images are read: each = a sequence for each, whose vectors are joined | both = one sequence over both |
    # attention = a sequence for each, which read each other (UNITER).
    config.model.pair = "each"
    # softmax = one label | sigmoid = any number of labels | squared = numbers, standardized
    config.losses.classify = "softmax"
    # "" = equal | balanced = by the training split | numbers with commas, in the order of the labels
    config.losses.class_weights = ""
    config.data.update(
        dict(
            features="precomputed",
            images_per_example=images,
            labels="",  # list of labels, one on each line; in data_dir, elsewhere, or a shipped one
            positive="",  # label that AUROC and average precision are of; "" = the second of two
            value_means=(),  # of each number in the training split
            value_deviations=(),
            scorer="",  # files and scores of a public task: nlvr2 | snli_ve | hateful_memes; "" = none
            flip_probability=0.0,  # texts say left and right, and two images have an order
            max_regions=36,
            sequence_length=77,  # 36 regions, the whole image, and texts of 40 tokens
        )
    )
    return config


def nlvr2() -> ml_collections.ConfigDict:
    """Natural language for visual reasoning, on pairs of images.

        python -m vlbert_jax.main --config=configs/classify.py:nlvr2 --workdir=DIR --config.init.checkpoint=BASE_PREC \\
            --config.init.bert=bert-base-uncased/

    86,373 training examples, 20 epochs of 64, with the rate of volta's controlled comparison. Chance is 51 %. Published
    on test-P: LXMERT 74.45, UNITER base 77.85, VisualBERT 67.0, ViLBERT (12-in-1) 78.87.
    """
    config = fields(images=2)
    config.total_steps = 26_980
    config.batch_size = 64
    config.learning_rate = 1e-5
    config.warmup_steps = 2_698
    config.eval_every_steps = 1_349
    config.optimizer.clip_norm = 1.0
    config.data.update(
        dict(
            labels="nlvr2.txt", scorer="nlvr2", texts="nlvr2/nlvr2", images="nlvr2_images/nlvr2", eval_split="dev"
        )
    )  # fmt: skip
    return config


def nlvr2_controlled() -> ml_collections.ConfigDict:
    """NLVR2 with the head of volta's controlled VL-BERT: pooled products of 1,024, a hidden layer, cross-entropy.

        python -m vlbert_jax.main --config=configs/classify.py:nlvr2_controlled --workdir=DIR \\
            --config.init.checkpoint=PRETRAINED

    PRETRAINED has `--config.model.switches.pool=mul`. Reached there, in a pre-training on Conceptual Captions: 73.22.
    The official head has a hidden layer of 1,536 and a binary loss for each of the two classes.
    """
    config = nlvr2()
    config.model.switches.pool = "mul"
    config.optimizer.eps = 1e-6
    return config


def nlvr2_uniter() -> ml_collections.ConfigDict:
    """NLVR2 with UNITER's attention between two sequences.

        python -m vlbert_jax.main --config=configs/classify.py:nlvr2_uniter --workdir=DIR \\
            --config.init.checkpoint=UNITER_BASE

    The official code has 8,000 updates of 10,240 words and regions, about 150 examples. Regions are chosen by their
    confidence, as in configs/vqa.py:uniter_base. Reached by the paper: dev 77.18, test-P 77.85.
    """
    config = nlvr2()
    config.model.architecture = "uniter"
    config.model.encoder.vocab_size = 28_996
    config.model.pair, config.model.label_head = "attention", "linear"
    config.total_steps = 8_000
    config.batch_size = 150
    config.learning_rate = 3e-5
    config.warmup_steps = 800
    config.eval_every_steps = 500
    config.optimizer.update(common.OPTIMIZER_OF_UNITER | dict(clip_norm=2.0))
    config.data.update(dict(vocab="bert-base-cased", max_regions=100, sequence_length=161, region_confidence=0.2))
    return config


def nlvr2_uniter_large() -> ml_collections.ConfigDict:
    """NLVR2 with UNITER large: as nlvr2_uniter, 5,000 updates of 20,480 words and regions, about 300 examples.

        python -m vlbert_jax.main --config=configs/classify.py:nlvr2_uniter_large --workdir=DIR \\
            --config.init.checkpoint=UNITER_LARGE

    Reached by the paper: dev 79.12, test-P 79.98.
    """
    config = nlvr2_uniter()
    common.enlarge(config)
    config.total_steps = 5_000
    config.batch_size = 304
    config.grad_accumulation_steps = 2
    config.learning_rate = 2e-5
    config.warmup_steps = 500
    return config


def nlvr2_lxmert() -> ml_collections.ConfigDict:
    """NLVR2 with LXMERT, four epochs of 32.

        python -m vlbert_jax.main --config=configs/classify.py:nlvr2_lxmert --workdir=DIR \\
            --config.init.checkpoint=LXMERT_BASE

    The official code cuts texts at 20 tokens. Reached by it: dev 74.95, test-P 74.45.
    """
    config = nlvr2()
    config.model.architecture = "lxmert"
    config.total_steps = 10_796
    config.batch_size = 32
    config.learning_rate = 5e-5
    config.warmup_steps = 1_079
    config.eval_every_steps = 2_699
    config.optimizer.update(dict(name="bertadam", counts_from=0, clip_norm=5.0, weight_decay=0.01))
    config.data.update(dict(text_length=20, sequence_length=57))
    return config


def nlvr2_visualbert() -> ml_collections.ConfigDict:
    """NLVR2 with VisualBERT: one sequence over both images, ten epochs of 64.

        python -m vlbert_jax.main --config=configs/classify.py:nlvr2_visualbert --workdir=DIR \\
            --config.init.checkpoint=VISUALBERT_BASE

    The pooler stays that of the checkpoint. Reached by the paper: dev 67.4, test-P 67.0.
    """
    config = nlvr2()
    config.model.architecture = "visualbert"
    config.model.pair, config.model.label_head = "both", "linear"
    config.total_steps = 13_490
    config.learning_rate = 2e-5
    config.warmup_steps = 1_349
    config.optimizer.update(common.OPTIMIZER_OF_VISUALBERT)
    config.data.update(dict(max_regions=144, sequence_length=418))
    return config


def nlvr2_oscar() -> ml_collections.ConfigDict:
    """NLVR2 with Oscar: a sequence for each image, with the names of its regions; 20 epochs of 72.

        python -m vlbert_jax.main --config=configs/classify.py:nlvr2_oscar --workdir=DIR \\
            --config.init.checkpoint=OSCAR_BASE

    Images are built with --classes. VinVL has --config.model.architecture=vinvl --config.model.label_head=relu_norm and
    the same settings. Where sentence and names do not fit, the names lose their end; the official code cuts the longer
    of both. Dropout is 0.3 everywhere; there that of attention is 0.1. Reached by the papers: test-P 78.36, VinVL
    83.08.
    """
    config = nlvr2()
    config.model.architecture = "oscar"
    config.model.encoder.dropout_rate = 0.3
    config.model.label_head, config.model.label_hidden = "relu", 2_304
    config.total_steps = 24_000
    config.batch_size = 72
    config.learning_rate = 3e-5
    config.warmup_steps = 10_000
    config.eval_every_steps = 1_200
    config.optimizer.update(common.OPTIMIZER_OF_OSCAR)
    config.data.update(dict(text_length=55, max_regions=40, sequence_length=95))
    return config


def nlvr2_oscar_large() -> ml_collections.ConfigDict:
    """NLVR2 with Oscar large: as nlvr2_oscar, 20 epochs of 24.

        python -m vlbert_jax.main --config=configs/classify.py:nlvr2_oscar_large --workdir=DIR \\
            --config.init.checkpoint=OSCAR_LARGE

    OSCAR_LARGE is the released model. Reached by the papers: test-P 80.05, VinVL 83.98.
    """
    config = nlvr2_oscar()
    common.enlarge(config)
    config.model.label_hidden = 2_048
    config.total_steps = 71_980
    config.batch_size = 24
    config.warmup_steps = 5_000
    config.eval_every_steps = 3_599
    return config


def snli_ve() -> ml_collections.ConfigDict:
    """Visual entailment: a hypothesis about an image, in three classes.

        python -m vlbert_jax.main --config=configs/classify.py:snli_ve --workdir=DIR \\
            --config.init.checkpoint=BASE_PREC --config.init.bert=bert-base-uncased/

    529,527 training examples, five epochs of 256 with the rate of 12-in-1. Chance is 34 %. Published on test: 12-in-1
    76.95. The lists of 12-in-1 and UNITER order the classes in two ways; this is that of 12-in-1.
    """
    config = fields()
    config.total_steps = 10_345
    config.batch_size = 256
    config.learning_rate = 2e-5
    config.warmup_steps = 1_034
    config.eval_every_steps = 2_069
    config.optimizer.clip_norm = 1.0
    config.model.num_labels = 3
    config.data.update(
        dict(
            labels="snli_ve.txt",
            scorer="snli_ve",
            texts="snli_ve/snli_ve",
            images="snli_ve_images/snli_ve",
            eval_split="dev",
            max_regions=100,
            sequence_length=157,
        )
    )
    return config


def snli_ve_uniter() -> ml_collections.ConfigDict:
    """Visual entailment with UNITER, 4,000 updates.

        python -m vlbert_jax.main --config=configs/classify.py:snli_ve_uniter --workdir=DIR \
            --config.init.checkpoint=UNITER_BASE

    The official batches have 32,768 words and regions, about 550 examples; its loss is binary for each of the classes,
    here it is cross-entropy. Regions are chosen by their confidence, as in configs/vqa.py:uniter_base. Reached by the
    paper: val 78.59, test 78.28.
    """
    config = snli_ve()
    config.model.architecture = "uniter"
    config.model.encoder.vocab_size = 28_996
    config.total_steps = 4_000
    config.batch_size = 512
    config.learning_rate = 8e-5
    config.warmup_steps = 400
    config.eval_every_steps = 500
    config.optimizer.update(common.OPTIMIZER_OF_UNITER | dict(clip_norm=2.0))
    config.data.update(dict(labels="snli_ve_uniter.txt", vocab="bert-base-cased", sequence_length=162))
    config.data.region_confidence = 0.2
    return config


def snli_ve_uniter_large() -> ml_collections.ConfigDict:
    """Visual entailment with UNITER large: as snli_ve_uniter, with a rate of 3e-5.

        python -m vlbert_jax.main --config=configs/classify.py:snli_ve_uniter_large --workdir=DIR \\
            --config.init.checkpoint=UNITER_LARGE

    Reached by the paper: val 79.39, test 79.38.
    """
    config = snli_ve_uniter()
    common.enlarge(config)
    config.learning_rate = 3e-5
    return config


def hateful_memes() -> ml_collections.ConfigDict:
    """Hateful Memes: an image with the text in it, two classes, scored by AUROC.

        python -m vlbert_jax.main --config=configs/classify.py:hateful_memes --workdir=DIR \\
            --config.init.checkpoint=BASE_PREC --config.init.bert=bert-base-uncased/

    8,500 training examples; rate, updates and lengths of VisualBERT's recipe in mmf. AUROC chooses the best checkpoint;
    chance is 0.5. predictions/SPLIT.csv has the columns id, proba, label.
    """
    config = fields()
    config.best_metric = "classify_auroc"
    config.total_steps = 22_000
    config.batch_size = 64
    config.learning_rate = 5e-5
    config.warmup_steps = 2_000
    config.eval_every_steps = 1_000
    config.optimizer.clip_norm = 1.0
    config.data.update(
        dict(
            labels="hateful_memes.txt",
            positive="1",
            scorer="hateful_memes",
            texts="hateful_memes/hateful_memes",
            images="hateful_memes_images/hateful_memes",
            eval_split="dev",
            max_regions=100,
            sequence_length=229,
        )
    )
    return config


def demo() -> ml_collections.ConfigDict:
    """Hypotheses about a synthetic scene, in three classes, from the demo's pre-training.

        make demo
        python -m vlbert_jax.main --config=configs/classify.py --workdir=workdirs/classify \\
            --config.init.checkpoint=workdirs/demo

    Reached in two and a half minutes of updates on two busy cores: 0.72; without the image 0.34, chance
    0.33.
    """
    config = snli_ve()
    _shrink(config)
    config.data.update(dict(texts="snli_ve/scenes", images="snli_ve_images/scenes"))
    return config


def demo_pairs() -> ml_collections.ConfigDict:
    """Statements about two synthetic scenes, from the demo's pre-training.

        make demo
        python -m vlbert_jax.main --config=configs/classify.py:demo_pairs --workdir=workdirs/pairs \\
            --config.init.checkpoint=workdirs/demo

    Reached in 1,200 updates: 0.79; chance and the best guess without the images are 0.50.
    """
    config = nlvr2()
    _shrink(config)
    config.total_steps = 1_200
    config.learning_rate = 5e-4
    config.model.train_region_head = False  # its features suffice, and two images take twice the time
    config.data.update(dict(texts="nlvr2/scenes", images="nlvr2_images/scenes"))
    return config


def _shrink(config: ml_collections.ConfigDict) -> None:
    """Set the sizes of the demos, and what is read of their synthetic corpus."""
    common.shrink_to_demo(config)
    common.train_briefly(config, total_steps=400, batch_size=32)
    config.model.read = "mask"  # no pooler is pre-trained
    config.model.encoder.pooler = False
    config.data.update(
        dict(embedded="scene_kinds", features="image", vocab="scene_kinds/vocab.txt", sequence_length=31)
    )


VARIANTS = (
    demo, demo_pairs, nlvr2, nlvr2_controlled, nlvr2_uniter, nlvr2_uniter_large, nlvr2_lxmert, nlvr2_visualbert,
    nlvr2_oscar, nlvr2_oscar_large, snli_ve, snli_ve_uniter, snli_ve_uniter_large, hateful_memes,
)  # fmt: skip


def get_config(variant: str = "demo") -> ml_collections.ConfigDict:
    """Return the config of a variant; raise ValueError for an unknown one."""
    return common.choose(variant, VARIANTS)
