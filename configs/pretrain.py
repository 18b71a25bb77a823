"""Pre-training on captions with images, mixed 1:1 with text (paper, section 3.3; official yaml files).

    python -m vlbert_jax.main --config=configs/pretrain.py:VARIANT --workdir=DIR [--config.field=value ...]

Variants: demo (default), controlled_demo, lxmert_demo, base_e2e, base_prec, base_prec_no_text, large_e2e, large_prec,
and those of other systems (configs/siblings.py): lxmert_base, vilbert_base, visualbert_base, uniter_base, uniter_large,
unicoder_vl_base, b2t2_large, oscar_base, controlled. Learning rates are those that are applied: the official yaml files
hold them per sample (1e-7) and multiply by the batch of 256.

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

from vlbert_jax.configs import common, siblings

# Words of the synthetic corpus (data_prep/scenes) that only the image determines.
COLORS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "black")
CATEGORIES = ("ball", "box", "tree", "house", "star", "car", "fish", "cup", "flower", "moon")
CONTROLLED_LOSSES = ("text_only", "mrc", "mrc_targets", "relationship", "only_matched")  # what the study determines


def demo() -> ml_collections.ConfigDict:
    """A small VL-BERT learns to read masked words with the help of synthetic images.

        python -m vlbert_jax.main --config=configs/pretrain.py --workdir=workdirs/demo

    Corpus: `scenes`, generated on first use (under a minute). The code is that of the large recipes; only the sizes
    differ. The region head has random weights, so the opening trains only the head to classify regions, as the
    pre-training of the detector does in the large recipes. Then the encoder is trained, and at the end everything is.
    Reached in 9 to 11 minutes on two cores: val/visual_word_accuracy 0.72 (blind 0.18), mrc_accuracy 0.69 (blind 0.18).
    """
    config = base_e2e()
    common.shrink_to_demo(config)
    config.init.scratch = True
    config.total_steps = 4400
    config.batch_size = 64
    config.learning_rate = 1.3e-3
    config.warmup_steps = 150
    config.opening.update(dict(steps=600, learning_rate=4e-3))
    config.log_every_steps = 50
    config.eval_every_steps = 2200
    config.checkpoint_every_steps = 1000
    config.best_metric = "visual_word_accuracy"
    config.optimizer.update(dict(schedule="cosine", b2=0.98))  # b2: short memory of zero gradients in the opening
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
            mask_words=0.3,  # twice the number of words per update
            max_mlm_targets=14,
            max_mrc_targets=4,
            visual_words=COLORS + CATEGORIES,
            group_words=CATEGORIES,
        )
    )
    return config


def controlled_demo() -> ml_collections.ConfigDict:
    """The controlled study on synthetic scenes: five architectures under the recipe of the demo.

        python -m vlbert_jax.main --config=configs/pretrain.py:controlled_demo --workdir=DIR \\
            --config.model.architecture=vilbert

    The switches and losses are those of `controlled`, the sizes, corpus and rates those of `demo`. An update has 32
    captions, as in the demo, and no text. Regions are hidden by zeros in place of their features, not of their pixels.
    `configs/vqa.py:controlled_demo` continues from it, and `benchmarks/controlled.py` runs both for every architecture.
    """
    config, study = demo(), siblings.controlled()
    common.control(config)
    config.model.encoder.pooler = True
    config.losses.update({name: study.losses[name] for name in CONTROLLED_LOSSES})
    config.data.update(dict(hide_pixels=False, text_length=17))  # and 7 rows of regions in a sequence of 24
    config.optimizer.update(dict(clip_norm=study.optimizer.clip_norm, weight_decay=study.optimizer.weight_decay))
    config.total_steps = 2400
    config.batch_size = 32
    config.eval_every_steps = config.checkpoint_every_steps = 0
    config.losses.region_fixed_until = 2350
    return config


def lxmert_demo() -> ml_collections.ConfigDict:
    """LXMERT on synthetic scenes with all of its losses: words, matching, objects, attributes, features and answers.

        python -m vlbert_jax.main --config=configs/pretrain.py:lxmert_demo --workdir=DIR

    Corpus: `scene_questions`, generated on first use: captions and questions, with the regions, features and attributes
    of a simulated detector. The losses are those of `lxmert_base`, the sizes, the optimizer and the masking those
    of `demo`. Reached after 16 minutes of updates on two cores of an Intel Xeon that did other work as well
    (0.2 to 0.4 s an update): val/answers_accuracy 0.45 (0.32 by the most frequent answer to each question),
    visual_word_accuracy 0.34 (blind 0.23), relationship_accuracy 0.64 (chance 0.5), objects_accuracy 0.83.
    """
    config = siblings.lxmert_base()
    common.shrink_to_demo(config)
    config.total_steps = 3000
    config.batch_size = 64
    config.learning_rate = 1e-3
    config.warmup_steps = 150
    config.log_every_steps = 50
    config.eval_every_steps = config.checkpoint_every_steps = 1000
    config.optimizer.update(dict(name="adamw", counts_from=1, schedule="cosine", b2=0.98))
    config.model.feature_size = 64
    config.model.num_region_classes, config.model.num_attributes, config.model.num_answers = 81, 3, 41
    config.data.update(
        dict(
            embedded="scene_questions",
            captions="region_captions/scene_questions",
            vocab="scene_questions/vocab.txt",
            class_names="scene_questions/objects_vocab.txt",
            answers="scene_questions/answers.json",
            text_length=20,
            mask_tokens=False,
            hidden_share=0.9,
            swapped_share=0.0,
            max_mlm_targets=14,
            visual_words=COLORS + CATEGORIES,
            group_words=CATEGORIES,
        )
    )
    return config


def base_e2e() -> ml_collections.ConfigDict:
    """VL-BERT base, with its ResNet-101 region head trained.

        python -m vlbert_jax.main --config=configs/pretrain.py:base_e2e --workdir=DIR \\
            --config.init.bert=bert-base-uncased/ --config.init.resnet=resnet101-pt-vgbua-0000.model

    Corpus: Conceptual Captions with images and detector boxes, BooksCorpus and Wikipedia (data_prep/README.md). Ten
    epochs of captions: 250,000 updates of 128 captions + 128 texts. Reached by others after ten epochs with three times
    the batch: mlm_caption_accuracy 0.60, mlm_text_accuracy 0.48, mrc_accuracy 0.70. Then VCR val Q->A 73.8, QA->R 74.4,
    VQA test-dev 71.16, RefCOCO+ detected val 71.60. The authors paid 2 days on 16 V100 of 16 GB.
    """
    return common.pretraining()


def base_prec() -> ml_collections.ConfigDict:
    """VL-BERT base on precomputed region features, setting (d) of the ablation.

        python -m vlbert_jax.main --config=configs/pretrain.py:base_prec --workdir=DIR \\
            --config.init.bert=bert-base-uncased/

    Corpus: as base_e2e, the captions built with `--features`; no image is read. What VQA starts from. The authors paid
    about 30 hours on 4 V100 of 16 GB.
    """
    config = base_e2e()
    config.data.features = "precomputed"
    config.model.train_region_head = False
    config.data.hide_pixels = False
    config.data.max_regions = 62  # all that a sequence holds in addition to [CLS] and [SEP]
    return config


def base_prec_no_text() -> ml_collections.ConfigDict:
    """VL-BERT base on precomputed features without text-only sequences: settings (a) to (c) of the ablation.

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
    """VL-BERT large, with its ResNet-101 region head trained.

        python -m vlbert_jax.main --config=configs/pretrain.py:large_e2e --workdir=DIR \\
            --config.init.bert=bert-large-uncased/ --config.init.resnet=resnet101-pt-vgbua-0000.model

    Corpus and updates as base_e2e, in two parts each. The authors' training accuracies: captions 0.670, text 0.652,
    regions 0.701. Then VCR val Q->A 75.5, QA->R 77.9, VQA test-dev 71.79, RefCOCO+ detected val 72.59. They paid 5.5
    days on 16 V100 of 16 GB.
    """
    config = base_e2e()
    common.enlarge(config)
    config.grad_accumulation_steps = 2
    return config


def large_prec() -> ml_collections.ConfigDict:
    """VL-BERT large on precomputed region features; VQA large starts from it (test-dev 71.79).

        python -m vlbert_jax.main --config=configs/pretrain.py:large_prec --workdir=DIR \\
            --config.init.bert=bert-large-uncased/

    The authors used 4 V100 of 16 GB; their time is not published.
    """
    config = base_prec()
    common.enlarge(config)
    return config


VARIANTS = (
    demo, controlled_demo, lxmert_demo, base_e2e, base_prec, base_prec_no_text, large_e2e, large_prec,
    *siblings.VARIANTS,
)  # fmt: skip


def get_config(variant: str = "demo") -> ml_collections.ConfigDict:
    """Return the config of a variant; raise ValueError for an unknown one."""
    return common.choose(variant, VARIANTS)
