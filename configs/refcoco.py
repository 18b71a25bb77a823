"""Referring expressions, RefCOCO+ (paper, section 4.3; official yaml files); Flickr30k Entities; Visual7W.

    python -m vlbert_jax.main --config=configs/refcoco.py:VARIANT --workdir=DIR --config.init.checkpoint=PRETRAINED

Variants: demo (default), base_detected, base_gt, large_detected, large_gt, uniter_detected, vilbert_detected, entities,
entities_demo, visual7w, visual7w_demo. PRETRAINED is the workdir of a pre-training run, a step's folder in it, or what
`python -m vlbert_jax.convert` made of a released `.model`. Learning rates are those that are applied: the official yaml
files hold them per example (8e-7) and multiply by the batch of 32.

Accuracy is the share of expressions for which the IoU of the chosen region and the annotation is at least 0.5. With
`--mode=evaluate` the newest checkpoint of the workdir is scored on `data.eval_split`, its choices are written to
WORKDIR/predictions/SPLIT.json, and where annotations are among the regions, grounding_identity_accuracy is the share of
expressions for which the annotation itself is chosen:

    python -m vlbert_jax.main --config=configs/refcoco.py:base_detected --workdir=DIR --mode=evaluate \\
        --config.data.eval_split=testA

The accuracy is reported together with that of the same weights without visual features and without words
(vlbert_jax/tasks/region/task.py), of a random region and of the best region. `--config.blind` trains without the
visual features of regions: words, positions and sizes remain.

The paper does not cover RefCOCO and RefCOCOg. To use them, build them (data_prep/README.md) and set data.texts and
data.images.
"""

import ml_collections

from vlbert_jax.configs import common


def demo() -> ml_collections.ConfigDict:
    """Objects in synthetic scenes, described by their appearance; starts from the demo's pre-training.

        make demo
        python -m vlbert_jax.main --config=configs/refcoco.py --workdir=workdirs/refcoco \\
            --config.init.checkpoint=workdirs/demo

    Corpus: generated on first use. Trained and scored as base_detected: among detections. One object in twenty has no
    detection, so the accuracy is at most about 0.95. Reached in two minutes on two cores: 0.84; from scratch 0.68.
    """
    config = base_detected()
    common.shrink_to_demo(config)
    common.train_briefly(config, total_steps=200, batch_size=32)
    config.grad_accumulation_steps = 1
    config.data.update(
        dict(
            embedded="scene_tasks",
            texts="refcoco/scenes",
            images="refcoco_images/scenes",
            vocab="scenes_downstream/vocab.txt",
            max_regions=12,  # up to four objects and eight detections
            sequence_length=27,  # and 14 tokens of text
        )
    )
    return config


def base_detected() -> ml_collections.ConfigDict:
    """VL-BERT base chooses among the regions of MAttNet's detector; trained among those and the annotations.

        python -m vlbert_jax.main --config=configs/refcoco.py:base_detected --workdir=DIR \\
            --config.init.checkpoint=BASE_E2E

    Corpus: RefCOCO+ with detections (data_prep/README.md), 120,191 training expressions, twenty epochs. BASE_E2E is
    pre-trained by configs/pretrain.py:base_e2e. Reached by the paper: val 71.60, testA 77.72, testB 60.99, and 66.03,
    71.87, 56.13 without pre-training; by others with six epochs in a day on one machine: 70.33, 76.02, 60.52. MAttNet:
    65.33, 71.62, 56.02. The authors used 4 V100 of 16 GB; one GPU processed 4.5 expressions per second: 6 days.
    """
    config = common.fine_tuning("region", "refcoco+_unc")
    config.total_steps = 75_120  # 20 * 120,191 / 32
    config.batch_size = 32
    config.learning_rate = 2.56e-5
    config.warmup_steps = 3_750
    config.eval_every_steps = 3_756  # an epoch
    config.best_metric = "grounding_accuracy"
    config.grad_accumulation_steps = 2
    config.optimizer.clip_norm = 1.0
    # sigmoid = each region for itself | softmax = the right regions of an example share its probability (VisualBERT)
    config.losses.grounding = "sigmoid"
    # Head over the regions: hidden = a hidden layer with GELU (VL-BERT) | norm = with GELU and a layer norm (UNITER) |
    # linear = without a hidden layer (ViLBERT).
    config.model.grounding_head = "hidden"
    config.data.update(
        dict(
            # Regions to choose from: gt = annotations | detected | both | listed = of a table that lists the right ones
            # (vlbert_jax/tasks/region/listed.py).
            train_boxes="both",
            eval_boxes="detected",
            even_regions=True,
            max_regions=120,  # detections come before annotations; an image of COCO has up to 93 of these
            sequence_length=160,  # regions, the whole image, and 39 tokens of text
            scorer="",  # official file and scores of a public task: entities | visual7w
        )
    )
    return config


def base_gt() -> ml_collections.ConfigDict:
    """VL-BERT base chooses among the annotated boxes.

        python -m vlbert_jax.main --config=configs/refcoco.py:base_gt --workdir=DIR --config.init.checkpoint=BASE_E2E

    Corpus, updates and cost as base_detected; detections are not needed. Reached by the paper: val 79.88, testA 82.40,
    testB 75.01, and 74.41, 77.28, 67.52 without pre-training. MAttNet: 71.01, 75.13, 66.17, where only the annotation
    itself counts: grounding_identity_accuracy here.
    """
    config = base_detected()
    config.data.train_boxes = config.data.eval_boxes = "gt"
    return config


def large_detected() -> ml_collections.ConfigDict:
    """VL-BERT large chooses among the regions of MAttNet's detector, in four parts per update.

        python -m vlbert_jax.main --config=configs/refcoco.py:large_detected --workdir=DIR \\
            --config.init.checkpoint=LARGE_E2E

    Corpus and updates as base_detected; LARGE_E2E is pre-trained by configs/pretrain.py:large_e2e. Reached by the
    paper: val 72.59, testA 78.57, testB 62.30. The authors used 4 V100 of 16 GB; their time is not published.
    """
    config = base_detected()
    common.enlarge(config)
    config.grad_accumulation_steps = 4
    return config


def large_gt() -> ml_collections.ConfigDict:
    """VL-BERT large chooses among the annotated boxes, in four parts per update.

        python -m vlbert_jax.main --config=configs/refcoco.py:large_gt --workdir=DIR --config.init.checkpoint=LARGE_E2E

    Corpus and updates as base_gt. Reached by the paper: val 80.31, testA 83.62, testB 75.45.
    """
    config = large_detected()
    config.data.train_boxes = config.data.eval_boxes = "gt"
    return config


def uniter_detected() -> ml_collections.ConfigDict:
    """UNITER chooses among the regions of MAttNet's detector, 10,000 updates of 128 expressions.

        python -m vlbert_jax.main --config=configs/refcoco.py:uniter_detected --workdir=DIR \\
            --config.init.checkpoint=UNITER_BASE --config.init.resnet=RESNET

    Corpus as base_detected, but training is among the annotations alone; UNITER_BASE is pre-trained by
    configs/pretrain.py:uniter_base. The official code reads stored features; here the region head is trained along. It
    counts an overlap above 0.5, by boxes that are one pixel wider. Reached by the paper: val 75.31, testA 81.30, testB
    65.58.
    """
    config = base_detected()
    config.model.architecture = "uniter"
    config.model.grounding_head, config.losses.grounding = "norm", "softmax"
    config.model.encoder.vocab_size = 28_996
    config.total_steps = 10_000
    config.batch_size = 128
    config.learning_rate = 6e-5
    config.warmup_steps = 1_000
    config.eval_every_steps = 1_000
    config.optimizer.update(common.OPTIMIZER_OF_UNITER | dict(clip_norm=2.0))
    config.data.update(dict(vocab="bert-base-cased", train_boxes="gt", flip_probability=0.0))
    return config


def vilbert_detected() -> ml_collections.ConfigDict:
    """ViLBERT chooses among the regions of MAttNet's detector, twenty epochs of 256 expressions.

        python -m vlbert_jax.main --config=configs/refcoco.py:vilbert_detected --workdir=DIR \\
            --config.init.checkpoint=VILBERT_BASE --config.init.resnet=RESNET

    Corpus as base_detected; VILBERT_BASE is pre-trained by configs/pretrain.py:vilbert_base. The official code reads
    stored features of up to 100 regions, and learns the overlap of each region where this is 0.5 or more, in the sum
    over the regions of an expression. Here a region is right or wrong, the loss is the mean over regions, and the
    region head is trained along. What decays is as in vqa:vilbert_base. Reached by the paper: val 72.34, testA 78.52,
    testB 62.61.
    """
    config = base_detected()
    config.model.architecture, config.model.grounding_head = "vilbert", "linear"
    config.total_steps = 9_390
    config.batch_size = 256
    config.grad_accumulation_steps = 16
    config.learning_rate = 4e-5
    config.warmup_steps = 939
    config.eval_every_steps = 470
    config.optimizer.update(common.OPTIMIZER_OF_VILBERT)
    config.data.update(dict(text_length=20, flip_probability=0.0))
    return config


def entities() -> ml_collections.ConfigDict:
    """VL-BERT base finds the phrases of a sentence, Flickr30k Entities.

        python -m vlbert_jax.main --config=configs/refcoco.py:entities --workdir=DIR --config.init.checkpoint=BASE_E2E

    Corpus: data_prep/README.md. The sequence is the sentence, [SEP] and a phrase of it; a region is right if it shares
    half of the union with a box of the phrase. Nobody published VL-BERT on this task: rate, batch (there of sentences)
    and five epochs are VisualBERT's, and so is the loss; about 430,000 phrases have boxes. Evaluation writes ten boxes
    for each phrase as MDETR's evaluator reads them, and reports R@1 (grounding_accuracy), R@5 and R@10 by type, for any
    box of a phrase and for the merged box. Published for any box, R@1 / 5 / 10 on test: VisualBERT 71.33 / 84.98 /
    86.51, BAN 69.69 / 84.22 / 86.35, MDETR 83.4 / 93.5 / 95.3; MDETR for the merged box: 83.8 / 92.7 / 94.4.
    """
    config = base_detected()
    config.total_steps = 67_000  # five epochs
    config.learning_rate = 2e-5
    config.warmup_steps = 6_700
    config.eval_every_steps = 13_400
    config.best_metric = "grounding_accuracy"
    config.losses.grounding = "softmax"
    config.data.update(
        dict(
            texts="entities/entities",
            images="entities_images/entities",
            train_boxes="listed",
            eval_boxes="listed",
            scorer="entities",
            max_regions=100,
            sequence_length=160,  # 100 regions, the whole image, and 59 tokens of sentence and phrase
        )
    )
    return config


def entities_demo() -> ml_collections.ConfigDict:
    """Phrases of sentences about synthetic scenes; starts from the demo's pre-training.

        python -m vlbert_jax.main --config=configs/refcoco.py:entities_demo --workdir=workdirs/entities \
            --config.init.checkpoint=workdirs/demo

    Corpus: generated on first use, in the files of Flickr30k Entities. Reached in two minutes on two cores, one seed:
    0.874; from scratch 0.691, blind 0.450, chance 0.262.
    """
    config = _listed_demo(entities(), "entities")
    config.data.update(dict(max_regions=6, sequence_length=40))  # up to five detections; 32 tokens of text
    return config


def visual7w() -> ml_collections.ConfigDict:
    """VL-BERT base points at one of four boxes, Visual7W.

        python -m vlbert_jax.main --config=configs/refcoco.py:visual7w --workdir=DIR --config.init.checkpoint=BASE_E2E

    Corpus: data_prep/README.md; 93,813 training questions. The four boxes are to choose from; the other boxes of the
    image are read, too. Nobody published VL-BERT on this task: rate, batch and loss are those of 12-in-1, the number of
    epochs, twenty, is not published for this task alone. Evaluation writes the chosen boxes as the script of Visual7W
    reads them. Published by 12-in-1: 83.35 at best.
    """
    config = base_detected()
    config.total_steps = 7_340  # 20 * 93,813 / 256
    config.batch_size = 256
    config.learning_rate = 2e-5
    config.warmup_steps = 734
    config.eval_every_steps = 367
    config.grad_accumulation_steps = 16
    config.best_metric = "grounding_accuracy"
    config.data.update(
        dict(
            texts="visual7w/visual7w",
            images="visual7w_images/visual7w",
            train_boxes="listed",
            eval_boxes="listed",
            scorer="visual7w",
            max_regions=100,
            sequence_length=125,  # 100 boxes, the whole image, and 24 tokens of text
        )
    )
    return config


def visual7w_demo() -> ml_collections.ConfigDict:
    """Pointing questions about synthetic scenes; starts from the demo's pre-training.

        python -m vlbert_jax.main --config=configs/refcoco.py:visual7w_demo --workdir=workdirs/visual7w \
            --config.init.checkpoint=workdirs/demo

    Corpus: generated on first use, in the file of Visual7W. Reached in two minutes on two cores, one seed: 0.854; from
    scratch 0.658, blind 0.342, chance 0.25.
    """
    config = _listed_demo(visual7w(), "visual7w")
    config.data.update(dict(max_regions=4, sequence_length=20))  # four boxes; 15 tokens of text
    return config


def _listed_demo(config: ml_collections.ConfigDict, builder: str) -> ml_collections.ConfigDict:
    """Return a recipe with the sizes and updates of the demo, for the synthetic corpus."""
    common.shrink_to_demo(config)
    common.train_briefly(config, total_steps=200, batch_size=32)
    config.grad_accumulation_steps = 1
    tables = dict(texts=f"{builder}/scenes", images=f"{builder}_images/scenes", vocab="scene_kinds/vocab.txt")
    config.data.update(dict(embedded="scene_kinds", **tables))
    return config


VARIANTS = (
    demo, base_detected, base_gt, large_detected, large_gt, uniter_detected, vilbert_detected, entities, entities_demo,
    visual7w, visual7w_demo,
)  # fmt: skip


def get_config(variant: str = "demo") -> ml_collections.ConfigDict:
    """Return the config of a variant; raise ValueError for an unknown one."""
    return common.choose(variant, VARIANTS)
