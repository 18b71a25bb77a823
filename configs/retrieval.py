"""Image-text retrieval on Flickr30k and COCO (Karpathy's splits).

    python -m vlbert_jax.main --config=configs/retrieval.py:VARIANT --workdir=DIR \\
        --config.init.bert=BERT --config.init.checkpoint=PRETRAINED

Variants: demo (default), flickr30k, coco, flickr30k_uniter, flickr30k_vilbert, coco_oscar, coco_oscar_large,
coco_vinvl. PRETRAINED is the workdir of a pre-training run, a step's folder in it, or what
`python -m vlbert_jax.convert` made of a released `.model`; the layer after [CLS], which VL-BERT's pre-training does not
have without the relationship loss, comes from BERT.

An example is a text with its image, compared with `data.negative_texts` other texts for the image and
`data.negative_images` other images for the text; the model chooses the pair that belongs together. Evaluation scores
every text of `data.eval_split` with every image, and reports the recall of images (`image_recall_1`, `_5`, `_10`: the
image of a text is among the best K) and of texts (`text_recall_K`: a text of an image is), and the pairs scored per
second. The image of each is read, and its regions are projected, once:

    python -m vlbert_jax.main --config=configs/retrieval.py:flickr30k --workdir=DIR --mode=evaluate \\
        --config.data.eval_split=test --config.data.eval_candidates=0

The best candidates go to WORKDIR/predictions. During training only the first `data.eval_candidates` images and their
texts are scored; such recalls are higher than those of the whole split.

A model that was pre-trained with the relationship loss (losses.relationship) retrieves without fine-tuning; released
VL-BERTs have no such head:

    python -m vlbert_jax.main --config=configs/retrieval.py:flickr30k --workdir=DIR --mode=evaluate \\
        --config.data.eval_split=test --config.data.eval_candidates=0 --config.init.checkpoint=PRETRAINED
"""

import ml_collections

from vlbert_jax.configs import common


def demo() -> ml_collections.ConfigDict:
    """Captions of synthetic scenes, from the demo's pre-training.

        make demo
        python -m vlbert_jax.main --config=configs/retrieval.py --workdir=workdirs/retrieval \\
            --config.init.checkpoint=workdirs/demo

    Reached in four minutes on two busy cores, among 100 images with 500 texts: mean recall 0.95, recall at 1 of images
    0.90 and of texts 0.83; from scratch a mean recall of 0.58. Random scores reach 0.05. Among all 500 images with
    2,500 texts (data.eval_candidates=0) the recalls at 1 are 0.54 and 0.50; random scores reach 0.002.
    """
    config = flickr30k()
    common.shrink_to_demo(config)
    common.train_briefly(config, total_steps=500, batch_size=16)
    config.data.update(
        dict(
            embedded="scene_kinds",
            texts="retrieval/scenes",
            images="retrieval_images/scenes",
            vocab="scene_kinds/vocab.txt",
            features="image",
            flip_probability=0.5,
            text_length=21,
            sequence_length=28,
            eval_candidates=100,
            texts_per_pass=20,
        )
    )
    return config


def flickr30k() -> ml_collections.ConfigDict:
    """VL-BERT base on 36 precomputed regions, twenty epochs of 64 texts.

        python -m vlbert_jax.main --config=configs/retrieval.py:flickr30k --workdir=DIR \\
            --config.init.bert=bert-base-uncased/ --config.init.checkpoint=BASE_PREC

    Corpus: 29,000 images with 145,000 texts, 1,014 images to validate and 1,000 to test (data_prep/README.md).
    Hyper-parameters are those of the controlled comparison of VL-BERT with its siblings (volta, `ctrl_vl-bert`), which
    reached a recall at 1 of 57.62 for images and 70.90 for texts on test; there one of the two other texts is that of
    an image that is hard to tell apart (`data.hard_negatives`). ViLBERT reached 58.2 / 84.9 / 91.5 for images.
    """
    config = common.fine_tuning("match", "flickr30k")
    config.total_steps = 45_312  # 20 epochs of 2,266 batches
    config.batch_size = 64  # texts, of 1 + negative_texts + negative_images sequences each
    config.learning_rate = 2e-5
    config.warmup_steps = 4_531
    config.eval_every_steps = 2_266
    config.best_metric = "mean_recall"
    config.optimizer.clip_norm = 1.0
    # softmax: the right pair among all (ViLBERT) | hinge: of the sigmoids of right and wrong pairs (UNITER) | sigmoid:
    # the binary cross-entropy of each pair (Oscar)
    config.losses.match = "softmax"
    config.losses.margin = 0.2  # of hinge
    config.model.train_region_head = False
    config.model.encoder.pooler = True
    # relationship = the head of pre-training: the text does not belong, or belongs, to the image | score = a head with
    # one output (UNITER, where it starts from the class "belongs" of the former; ViLBERT) | classes = a linear
    # head with two outputs, does not belong and belongs (Oscar, VinVL) | hidden = the two outputs after a hidden layer
    # with ReLU (Oscar and VinVL with "classifier": "mlp" in config.json)
    config.model.matching_head = "relationship"
    config.model.matching_hidden = 0  # width of the hidden layer; 0 = twice the width of the pooled vector
    config.model.relationship_classes = 2
    config.data.update(
        dict(
            texts="retrieval/flickr30k",
            images="retrieval_images/flickr30k",
            features="precomputed",
            flip_probability=0.0,  # stored features are not mirrored
            images_per_example=1,  # 2: queries of an image and a text, for which an image of a gallery is sought
            max_regions=36,
            text_length=30,  # with [CLS] and [SEP]; longer texts are cut
            sequence_length=67,  # no pair is cut: 30 elements of text, 36 regions and the whole image
            negative_texts=2,  # texts of other images for each image
            negative_images=1,  # other images for each text
            # A JSON object in data_dir or elsewhere: number of an image -> numbers of images like it. Then the last of
            # the negative texts is one of such an image.
            hard_negatives="",
            eval_candidates=250,  # images that are scored, with their texts; 0 = all of the split
            eval_folds=0,  # also score this many parts of the images for themselves: 5 is the 1K protocol of COCO
            texts_per_pass=4,  # texts that are paired with each image of a batch at once
            scorer="",  # rule for equal scores: scan (as with ""), volta, against or for (tasks/match/recall.py)
        )
    )
    return config


def coco() -> ml_collections.ConfigDict:
    """VL-BERT base on 36 precomputed regions, twenty epochs of 128 texts.

        python -m vlbert_jax.main --config=configs/retrieval.py:coco --workdir=DIR \\
            --config.init.bert=bert-base-uncased/ --config.init.checkpoint=BASE_PREC

    Corpus: 113,287 images with 566,747 texts, 5,000 images to validate and 5,000 to test. Hyper-parameters are those of
    12-in-1; no number of a VL-BERT is published. UNITER base reached a recall at 1 of 50.3 for images and 64.4 for
    texts among the 5,000 images of test. `*_of_folds` are the means over five parts of 1,000 images.
    """
    config = flickr30k()
    config.batch_size = 128
    config.total_steps = 88_560  # 20 epochs of 4,428 batches
    config.warmup_steps = 8_856
    config.eval_every_steps = 4_428
    config.data.update(
        dict(
            texts="retrieval/coco",
            images="retrieval_images/coco",
            train_split="train+restval",
            eval_folds=5,
        )
    )
    return config


def flickr30k_uniter() -> ml_collections.ConfigDict:
    """UNITER on 100 precomputed regions, 20,000 updates.

        python -m vlbert_jax.main --config=configs/retrieval.py:flickr30k_uniter --workdir=DIR \\
            --config.init.checkpoint=UNITER_BASE

    Corpus as flickr30k; UNITER_BASE is pre-trained by configs/pretrain.py:uniter_base. These are the settings without
    hard negatives: four batches of 40 texts on each of 8 GPUs are accumulated; a text has one wrong image, and an image
    one wrong text. Regions are chosen by their confidence, as in configs/vqa.py:uniter_base. Reached by the paper, with
    hard negatives, on test: 72.52 for images, 85.90 for texts.
    """
    config = flickr30k()
    config.model.architecture = "uniter"
    config.model.matching_head, config.losses.match = "score", "hinge"
    config.model.encoder.vocab_size = 28_996
    config.total_steps = 20_000
    config.batch_size = 1_280
    config.grad_accumulation_steps = 4
    config.learning_rate = 5e-5
    config.warmup_steps = 2_000
    config.eval_every_steps = 1_000
    config.optimizer.update(common.OPTIMIZER_OF_UNITER | dict(clip_norm=2.0))
    config.data.update(dict(vocab="bert-base-cased", max_regions=100, text_length=62, sequence_length=162))
    config.data.update(dict(negative_texts=1, region_confidence=0.2))
    return config


def flickr30k_vilbert() -> ml_collections.ConfigDict:
    """ViLBERT on 100 precomputed regions, twenty epochs of 64 texts.

        python -m vlbert_jax.main --config=configs/retrieval.py:flickr30k_vilbert --workdir=DIR \\
            --config.init.checkpoint=VILBERT_BASE

    Corpus as flickr30k; VILBERT_BASE is pre-trained by configs/pretrain.py:vilbert_base. Both wrong texts of an image
    are random; the official code takes one of a similar image, as --config.data.hard_negatives=FILE does. The authors
    name two rates, 2e-5 and 4e-5. Reached by the paper on test: 58.20 / 84.90 / 91.52 for images.
    """
    config = flickr30k()
    config.model.architecture, config.model.matching_head = "vilbert", "score"
    config.learning_rate = 4e-5
    config.optimizer.update(common.OPTIMIZER_OF_VILBERT)
    config.data.update(dict(max_regions=100, sequence_length=131))
    return config


def coco_oscar() -> ml_collections.ConfigDict:
    """Oscar on 50 precomputed regions and their names, twenty epochs of 256 texts.

        python -m vlbert_jax.main --config=configs/retrieval.py:coco_oscar --workdir=DIR \\
            --config.init.checkpoint=OSCAR_BASE

    Corpus as coco, with images that were built with --classes; OSCAR_BASE is pre-trained by
    configs/pretrain.py:oscar_base. A text has a wrong image and an image a wrong text; the official code samples one of
    both, which counts as much as the right pair. Reached by the paper among the 5,000 images of test: 54.0 for images,
    70.0 for texts.
    """
    config = coco()
    config.model.architecture = "oscar"
    config.model.matching_head, config.losses.match = "classes", "sigmoid"
    config.total_steps = 44_280
    config.batch_size = 256
    config.warmup_steps = 0
    config.eval_every_steps = 2_214
    config.optimizer.update(common.OPTIMIZER_OF_OSCAR)
    config.data.update(dict(text_length=70, max_regions=50, sequence_length=120, negative_texts=1))
    return config


def coco_oscar_large() -> ml_collections.ConfigDict:
    """Oscar large: as coco_oscar, thirty epochs of 128 texts.

        python -m vlbert_jax.main --config=configs/retrieval.py:coco_oscar_large --workdir=DIR \\
            --config.init.checkpoint=OSCAR_LARGE

    OSCAR_LARGE is the released model. Reached by the paper among the 5,000 images of test: 57.5 for images, 73.5 for
    texts.
    """
    config = coco_oscar()
    common.enlarge(config)
    config.total_steps = 132_840
    config.batch_size = 128
    config.learning_rate = 1e-5
    config.eval_every_steps = 4_428
    return config


def coco_vinvl() -> ml_collections.ConfigDict:
    """VinVL on 70 precomputed regions and their names, thirty epochs of 128 texts.

        python -m vlbert_jax.main --config=configs/retrieval.py:coco_vinvl --workdir=DIR \\
            --config.init.checkpoint=VINVL_BASE

    Otherwise as coco_oscar; VINVL_BASE is pre-trained with --config.model.architecture=vinvl. Reached by the paper
    among the 5,000 images of test: 58.1 for images, 74.6 for texts.
    """
    config = coco_oscar()
    config.model.architecture = "vinvl"
    config.total_steps = 132_840
    config.batch_size = 128
    config.eval_every_steps = 4_428
    config.data.update(dict(max_regions=70, sequence_length=140))
    return config


VARIANTS = (
    demo, flickr30k, coco, flickr30k_uniter, flickr30k_vilbert, coco_oscar, coco_oscar_large, coco_vinvl,
)  # fmt: skip


def get_config(variant: str = "demo") -> ml_collections.ConfigDict:
    """Return the config of a variant; raise ValueError for an unknown one."""
    return common.choose(variant, VARIANTS)
