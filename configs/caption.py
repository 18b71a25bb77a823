"""Captions of images, COCO (Karpathy's split).

    python -m vlbert_jax.main --config=configs/caption.py:VARIANT --workdir=DIR --config.init.checkpoint=PRETRAINED

Variants: demo (default), coco, coco_oscar. PRETRAINED is the workdir of a pre-training run, a step's folder in it, or
what `python -m vlbert_jax.convert` made of a released `.model`.

Some tokens of a caption are masked; each word reads only the words before it and the image. A caption is then written
word by word, by beam search. Evaluation reports the loss and the accuracy of masked tokens of one caption per image;
with `--mode=evaluate` the captions of all images of `data.eval_split` are written to WORKDIR/predictions/SPLIT.json (a
list of image_id and caption, as the COCO server takes it) and scored by pycocoevalcap (BLEU, METEOR, ROUGE-L, CIDEr),
which needs the extra `captions` and Java:

    python -m vlbert_jax.main --config=configs/caption.py:coco --workdir=DIR --mode=evaluate \\
        --config.data.eval_split=test

Oscar and VinVL also read the names of the regions, as many as `data.sequence_length` leaves room for behind
`data.text_length` tokens and the regions (official: 30), from images that were built with --classes.

Optimization of CIDEr after this training, which the best published numbers include, is not a part of this recipe.
"""

import ml_collections

from vlbert_jax.configs import common


def demo() -> ml_collections.ConfigDict:
    """Captions of synthetic scenes, from the demo's pre-training.

        make demo
        python -m vlbert_jax.main --config=configs/caption.py --workdir=workdirs/caption \\
            --config.init.checkpoint=workdirs/demo

    Reached in two minutes on two busy cores: 0.72 of the masked words; from scratch 0.64, without the image 0.51. The
    captions have BLEU-4 0.67 and CIDEr 4.04 on val.
    """
    config = coco()
    common.shrink_to_demo(config)
    common.train_briefly(config, total_steps=600, batch_size=32)
    config.optimizer.weight_decay = 1e-4
    config.data.update(
        dict(
            embedded="scene_kinds",
            texts="retrieval/scenes",
            images="retrieval_images/scenes",
            vocab="scene_kinds/vocab.txt",
            train_split="train",
            features="image",
            text_length=21,
            sequence_length=28,
            mask_words=0.3,
            max_mlm_targets=8,
        )
    )
    return config


def coco() -> ml_collections.ConfigDict:
    """VL-BERT base on 50 precomputed regions, thirty epochs of 256 captions.

        python -m vlbert_jax.main --config=configs/caption.py:coco --workdir=DIR --config.init.checkpoint=BASE_PREC

    Corpus: 113,287 images with 566,747 captions, 5,000 images to validate and 5,000 to test (data_prep/README.md), the
    tables of retrieval. Hyper-parameters are those of Oscar base before the optimization of CIDEr; no number of a
    VL-BERT is published. VLP reached BLEU-4 36.5, METEOR 28.4 and CIDEr 116.9 on test in this way.
    """
    config = common.fine_tuning("caption", "coco")
    config.total_steps = 66_420  # 30 epochs of 2,214 batches
    config.batch_size = 256
    config.learning_rate = 3e-5
    config.warmup_steps = 0
    config.eval_every_steps = 2_214
    config.best_metric = "caption_accuracy"
    config.optimizer.update(dict(weight_decay=0.05, clip_norm=1.0))
    config.model.train_region_head = False
    config.data.update(
        dict(
            texts="retrieval/coco",
            images="retrieval_images/coco",
            train_split="train+restval",
            features="precomputed",
            max_regions=50,
            text_length=22,  # tokens of a caption with [CLS] and [SEP]; longer ones are cut, also while writing
            sequence_length=73,  # 22 places for tokens, 50 regions and the whole image
            mask_words=0.15,  # share of the tokens of a caption that are predicted, at least one
            max_mlm_targets=3,  # and at most so many
            beams=5,  # captions that are kept for each image while one is written; 1 = the most probable word each time
        )
    )
    return config


def coco_oscar() -> ml_collections.ConfigDict:
    """Oscar base on 50 precomputed regions and 30 tokens of their names, with the updates of coco.

        python -m vlbert_jax.main --config=configs/caption.py:coco_oscar --workdir=DIR \\
            --config.init.checkpoint=OSCAR_BASE

    Images are built with --classes; OSCAR_BASE is pre-trained by configs/pretrain.py:oscar_base. Reached by the paper
    with the optimization of CIDEr: BLEU-4 40.5, METEOR 29.7, CIDEr 137.6 on test.
    """
    config = coco()
    config.model.architecture = "oscar"
    config.optimizer.update(common.OPTIMIZER_OF_OSCAR)
    config.data.update(dict(text_length=40, sequence_length=120, flip_probability=0.0))
    return config


VARIANTS = (demo, coco, coco_oscar)


def get_config(variant: str = "demo") -> ml_collections.ConfigDict:
    """Return the config of a variant; raise ValueError for an unknown one."""
    return common.choose(variant, VARIANTS)
