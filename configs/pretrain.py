"""Pre-training on captions with images, mixed 1:1 with text (paper, section 3.3; official yaml files).

    python -m vlbert_jax.main --config=configs/pretrain.py:VARIANT --workdir=DIR [--config.field=value ...]

Variants: demo (default), base_e2e, base_prec, base_prec_no_text, large_e2e, large_prec. Learning rates are those that
are applied: the official yaml files hold them per sample (1e-7) and multiply by the batch of 256.

The paper's ablation (table 4; downstream scores after half the fine-tuning: VCR Q->A and QA->R, VQA test-dev,
RefCOCO+ detected val), its five settings as command lines, `main` being the line above without its config:

    (a) words only             --config=configs/pretrain.py:base_prec_no_text --config.losses.mrc=False
    (b) and regions            --config=configs/pretrain.py:base_prec_no_text
    (c) and sentence-image     --config=configs/pretrain.py:base_prec_no_text --config.losses.relationship=True
                               --config.model.encoder.pooler=True
    (d) (b) and text           --config=configs/pretrain.py:base_prec
    VL-BERT: (d), region head trained along      --config=configs/pretrain.py:base_e2e

          Q->A  QA->R   VQA   RefCOCO+
    (a)   72.9   73.1   71.0   69.1
    (b)   73.0   73.1   71.1   70.7
    (c)   72.2   72.4   70.3   69.5
    (d)   73.4   73.8   71.1   70.7
    full  73.8   73.9   71.2   71.1
"""

import ml_collections

from vlbert_jax.configs import common

# Of the embedded corpus (data_prep/scenes.py): words that only the image tells.
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "black")
CATEGORIES = ("ball", "box", "tree", "house", "star", "car", "fish", "cup", "flower", "moon")


def demo() -> ml_collections.ConfigDict:
    """A small VL-BERT learns to read masked words with the help of drawn images.

        python -m vlbert_jax.main --config=configs/pretrain.py --workdir=workdirs/demo

    Corpus: `scenes`, drawn on first use (under a minute). The code is that of the large recipes, the sizes are not: the
    region head starts from nothing, so the opening teaches it alone to tell the regions' classes, as the detector's
    pre-training does in the real recipe; then the encoder learns to read it, and at the end everything is trained.
    Reached in nine minutes on two cores: val/visual_word_accuracy 0.72 (blind 0.18), mrc_accuracy 0.69 (blind 0.18).
    """
    config = base_e2e()
    common.shrink_to_demo(config)
    config.total_steps = 4400
    config.batch_size = 64
    config.learning_rate = 1.3e-3
    config.warmup_steps = 150
    config.opening.update(dict(steps=600, learning_rate=4e-3))
    config.log_every_steps = 50
    config.eval_every_steps = 2200
    config.checkpoint_every_steps = 1000
    config.best_metric = "visual_word_accuracy"
    config.optimizer.update(dict(schedule="cosine", b2=0.98))  # b2: soon forgets the encoder's zero gradients
    config.model.num_region_classes = 81
    config.losses.region = 1.0
    config.losses.region_fixed_until = 4350
    config.data.update(
        dict(
            embedded="scenes",
            captions="region_captions/scenes",
            text="text_corpus/scenes",
            vocab="scenes/vocab.txt",
            class_names="scenes/objects_vocab.txt",
            sequence_length=24,
            text_min_words=22,
            mask_words=0.3,  # twice as many words to learn from per update
            max_mlm_targets=14,
            max_mrc_targets=4,
            visual_words=COLOURS + CATEGORIES,
            group_words=CATEGORIES,
        )
    )
    return config


def base_e2e() -> ml_collections.ConfigDict:
    """VL-BERT base, its ResNet-101 region head trained along.

        python -m vlbert_jax.main --config=configs/pretrain.py:base_e2e --workdir=DIR \\
            --config.init.bert=bert-base-uncased/ --config.init.resnet=resnet101-pt-vgbua-0000.model

    Corpus: Conceptual Captions with images and detector boxes, BooksCorpus and Wikipedia (data_prep/README.md). Ten
    epochs of captions: 250,000 updates of 128 captions + 128 texts. Reached by others after ten epochs with three times
    the batch: mlm_caption_accuracy 0.60, mlm_text_accuracy 0.48, mrc_accuracy 0.70. Then VCR val Q->A 73.8, QA->R 74.4,
    VQA test-dev 71.16, RefCOCO+ detected val 71.60. The authors paid 2 days on 16 V100 of 16 GB.
    """
    config = common.trainer()
    config.task = "pretrain"
    config.total_steps = 250_000
    config.learning_rate = 2.56e-5
    config.warmup_steps = 16_000
    config.model = ml_collections.ConfigDict(
        dict(
            encoder=common.encoder("base"),
            region_head=common.region_head(),
            train_region_head=True,  # False = its convolutions are constants, like the paper's ablation (a)-(d)
            feature_size=2048,  # columns of precomputed features
            num_region_classes=1601,  # 1600 + background
        )
    )
    config.losses = ml_collections.ConfigDict(
        dict(
            mlm=True,
            mrc=True,  # masked RoI classification
            relationship=False,  # does the caption belong to the image; switch on model.encoder.pooler with it
            text_only=True,  # mix text-only sequences 1:1
            region=0.0,  # weight of classifying each region from its pooled feature (official CNN loss "at the bottom")
            region_fixed_until=0,  # from the opening, which trains the region head on that loss alone, to this step
            # the region head is not trained
            mrc_targets="soft",  # the detector's distribution (official code) | hard: its best class (paper)
            normalize="targets",  # mean over all targets of the batch | examples: over examples first
        )
    )
    config.data = common.image_pipeline()
    config.data.update(
        dict(
            embedded="",  # scenes = the drawn corpus, made on first use
            captions="region_captions/conceptual_captions",  # under data_dir
            text="text_corpus/books_wikipedia",
            train_split="train",
            eval_split="val",
            features="image",  # image | precomputed
            even_regions=True,
            vocab="bert-base-uncased",
            class_names="objects_vocab.txt",  # under data_dir; names of the detector's classes, for reports
            text_min_words=64,  # lines are joined until they have as many
            mask_words=0.15,  # share of words, in captions and text; evaluation always masks 0.15
            mask_regions=0.15,  # share of regions
            hide_pixels=True,  # blank hidden regions in the image; False = a learned vector replaces the feature
            max_mlm_targets=24,  # per sequence; what is masked beyond is not scored
            max_mrc_targets=20,  # per image
            visual_words=(),  # words that only an image can tell, scored apart
            group_words=(),  # scores by how many of these a caption has
        )
    )
    return config


def base_prec() -> ml_collections.ConfigDict:
    """VL-BERT base on precomputed region features, the ablation's setting (d).

        python -m vlbert_jax.main --config=configs/pretrain.py:base_prec --workdir=DIR \\
            --config.init.bert=bert-base-uncased/

    Corpus: as base_e2e, the captions built with `--features`; no image is read. What VQA starts from. The authors paid
    about 30 hours on 4 V100 of 16 GB.
    """
    config = base_e2e()
    config.data.features = "precomputed"
    config.model.train_region_head = False
    config.data.hide_pixels = False
    config.data.max_regions = 62  # what a sequence holds beside [CLS] and [SEP]
    return config


def base_prec_no_text() -> ml_collections.ConfigDict:
    """VL-BERT base on precomputed features without text-only sequences: the ablation's (a) to (c).

        python -m vlbert_jax.main --config=configs/pretrain.py:base_prec_no_text --workdir=DIR \\
            --config.init.bert=bert-base-uncased/

    256 captions per update, so half the updates for the same ten epochs.
    """
    config = base_prec()
    config.losses.text_only = False
    config.total_steps = 125_000
    config.warmup_steps = 8_000
    return config


def large_e2e() -> ml_collections.ConfigDict:
    """VL-BERT large, its ResNet-101 region head trained along.

        python -m vlbert_jax.main --config=configs/pretrain.py:large_e2e --workdir=DIR \\
            --config.init.bert=bert-large-uncased/ --config.init.resnet=resnet101-pt-vgbua-0000.model

    Corpus and updates as base_e2e, in two parts each. The authors' training accuracies: captions 0.670, text 0.652,
    regions 0.701. Then VCR val Q->A 75.5, QA->R 77.9, VQA test-dev 71.79, RefCOCO+ detected val 72.59. They paid 5.5
    days on 16 V100 of 16 GB.
    """
    config = base_e2e()
    config.model.encoder = common.encoder("large")
    config.grad_accumulation_steps = 2
    return config


def large_prec() -> ml_collections.ConfigDict:
    """VL-BERT large on precomputed region features; what VQA large starts from (test-dev 71.79).

        python -m vlbert_jax.main --config=configs/pretrain.py:large_prec --workdir=DIR \\
            --config.init.bert=bert-large-uncased/

    The authors used 4 V100 of 16 GB; their time is not published.
    """
    config = base_prec()
    config.model.encoder = common.encoder("large")
    return config


VARIANTS = (demo, base_e2e, base_prec, base_prec_no_text, large_e2e, large_prec)


def get_config(variant: str = "demo") -> ml_collections.ConfigDict:
    """The config of a variant; raises ValueError for an unknown one."""
    return common.choose(variant, VARIANTS)
