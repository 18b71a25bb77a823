"""Pre-training of the systems that VL-BERT's paper compares itself with; variants of configs/pretrain.py.

All of them run on precomputed features of a caption corpus. `config.model.architecture` exchanges the model of any
of them, with the data and the losses of the recipe. What the original code does and these recipes do not: questions as
captions (Oscar), batches by number of tokens (UNITER).
"""

import ml_collections

from vlbert_jax.configs import common


def _from_captions(architecture: str, captions: str, text_length: int, max_regions: int) -> ml_collections.ConfigDict:
    """Return the fields that the siblings share: captions alone, as many words and regions as the model takes."""
    config = common.pretraining()
    config.model.architecture = architecture
    config.model.train_region_head = False
    config.model.encoder.pooler = True
    config.losses.update(dict(text_only=False, mrc=False, relationship=True))
    config.optimizer.weight_decay = 0.01
    config.data.update(
        dict(
            captions=f"region_captions/{captions}",
            features="precomputed",
            hide_pixels=False,
            flip_probability=0.0,
            text_length=text_length,
            max_regions=max_regions,
            sequence_length=text_length + max_regions + 1,
            max_mlm_targets=min(text_length, 24),
            max_mrc_targets=max(max_regions, 1),
        )
    )
    return config


def lxmert_base() -> ml_collections.ConfigDict:
    """LXMERT: two streams, from scratch, on captions of COCO and Visual Genome.

        python -m vlbert_jax.main --config=configs/pretrain.py:lxmert_base --workdir=DIR

    Words, matching, for every region the detector's object and attribute, the features of hidden ones, and the answers
    to the questions among the captions, all from the first update, as in the released code; the paper's own run answers
    in the second half alone. The corpus is built with --attributes and --answers; one of captions alone takes
    --config.losses.answers=False, and one without attributes --config.losses.attributes=False. 670,000 updates of 256
    pairs, about 20 epochs with the questions of the official corpus. Reached by the official code after fine-tuning:
    VQA test-std 72.54, GQA test-std 60.33, NLVR2 test-P 74.45.
    """
    config = _from_captions("lxmert", "coco_visual_genome", text_length=20, max_regions=36)
    config.init.scratch = True
    config.total_steps = 670_000
    config.learning_rate = 1e-4
    config.warmup_steps = 33_500
    config.optimizer.update(dict(name="bertadam", counts_from=0, clip_norm=1.0))
    config.losses.update(dict(objects=True, attributes=True, features=True, answers=True))
    config.data.update(dict(mask_tokens=True, hidden_share=0.8, swapped_share=0.1))
    return config


def vilbert_base() -> ml_collections.ConfigDict:
    """ViLBERT with six connections: two streams, the words' stream from BERT, on Conceptual Captions.

        python -m vlbert_jax.main --config=configs/pretrain.py:vilbert_base --workdir=DIR \\
            --config.init.bert=bert-base-uncased/

    Ten epochs of 512 pairs. As in the code of 12-in-1, words and regions count in matching pairs alone; the first code
    counts all: --config.losses.only_matched=False. What BERT has learns at a tenth of the rate; a run from scratch
    takes --config.optimizer.rate_factors="()". Layers of 2, 4 and 8 connections are in configs/common.py. Reached by
    the paper after fine-tuning: VQA test-std 70.92, VCR test Q->AR 54.8, RefCOCO+ val 72.34.
    """
    config = _from_captions("vilbert", "conceptual_captions", text_length=36, max_regions=36)
    config.total_steps = 60_930
    config.batch_size = 512
    config.learning_rate = 1e-4
    config.warmup_steps = 6_093
    config.optimizer.update(dict(b2=0.98, eps=1e-8, clip_norm=1.0, no_decay=common.NORMS_AND_BIASES))
    config.optimizer.rate_factors = (r"^two_stream/(\w+_embeddings$|embedding_norm/|encoder/groups/\d+/t/)=0.1",)
    config.losses.update(dict(mrc=True, mrc_targets="kl_sum", only_matched=True))
    config.data.mask_tokens = True
    return config


def visualbert_base() -> ml_collections.ConfigDict:
    """VisualBERT on pairs of captions of COCO: words and matching, no region is hidden.

        python -m vlbert_jax.main --config=configs/pretrain.py:visualbert_base --workdir=DIR \\
            --config.init.bert=bert-base-uncased/

    The corpus is built with --other_captions. Behind a caption follows another one of the image, or one of another
    image, and the relationship loss learns which of both it is. With --config.data.second_caption=False the model reads
    one caption. The run has ten epochs of 48 captions. The pooler stays that of BERT, as in the official code; a run
    from scratch takes --config.optimizer.rate_factors="()". Reached by the paper after fine-tuning: VQA test-std 71.00,
    VCR test Q->AR 52.4, NLVR2 test-P 67.0.
    """
    config = _from_captions("visualbert", "coco", text_length=128, max_regions=100)
    config.total_steps = 123_000
    config.batch_size = 48
    config.learning_rate = 5e-5
    config.warmup_steps = 12_300
    config.optimizer.update(common.OPTIMIZER_OF_VISUALBERT)
    config.data.update(dict(mask_tokens=True, second_caption=True))
    return config


def uniter_base() -> ml_collections.ConfigDict:
    """UNITER base: words, matching with optimal transport, classes and features of regions.

        python -m vlbert_jax.main --config=configs/pretrain.py:uniter_base --workdir=DIR \\
            --config.init.bert=bert-base-cased/

    An update trains one of the losses. The official batches have 491,520 words and regions, about 8,192 pairs, of one
    of the four data sets; here they are mixed. Reached by the paper after fine-tuning: VQA test-std 72.91, VCR test
    Q->AR 58.2, NLVR2 test-P 77.85, RefCOCO+ detected val 75.31.
    """
    config = _from_captions("uniter", "coco_visual_genome_conceptual_sbu", text_length=62, max_regions=100)
    config.model.encoder.vocab_size = 28_996
    config.total_steps = 200_000
    config.batch_size = 8_192
    config.learning_rate = 5e-5
    config.warmup_steps = 10_000
    config.optimizer.update(common.OPTIMIZER_OF_UNITER | dict(clip_norm=5.0))
    config.losses.update(dict(mrc=True, mrc_targets="kl", regression=True, transport=0.1))
    config.losses.ratios.update(dict(mlm=4.0, relationship=3.0, mrc=2.0, regression=2.0))
    config.data.update(dict(vocab="bert-base-cased", mask_tokens=True, mask_least_one=True, hidden_share=1.0))
    return config


def uniter_large() -> ml_collections.ConfigDict:
    """UNITER large: as uniter_base, with 500,000 updates.

        python -m vlbert_jax.main --config=configs/pretrain.py:uniter_large --workdir=DIR \\
            --config.init.bert=bert-large-cased/

    Reached by the paper after fine-tuning: VQA test-std 74.02, VCR test Q->AR 62.8, NLVR2 test-P 79.98, RefCOCO+
    detected val 75.90.
    """
    config = uniter_base()
    common.enlarge(config)
    config.total_steps = 500_000
    config.batch_size = 6_144
    config.grad_accumulation_steps = 4
    return config


def unicoder_vl_base() -> ml_collections.ConfigDict:
    """Unicoder-VL, after its paper: no code and no weights exist.

        python -m vlbert_jax.main --config=configs/pretrain.py:unicoder_vl_base --workdir=DIR \\
            --config.init.bert=bert-base-uncased/

    Words, matching, and the best class of hidden regions, which count in matching pairs alone. The number of epochs
    is not known; here it is ten of 3.8 million pairs. Reached by the paper after fine-tuning: VCR test Q->AR 54.9.
    """
    config = _from_captions("unicoder_vl", "conceptual_sbu", text_length=144, max_regions=100)
    config.total_steps = 198_000
    config.batch_size = 192
    config.learning_rate = 1e-4
    config.warmup_steps = 19_800
    config.losses.update(dict(mrc=True, mrc_targets="hard", only_matched=True))
    return config


def b2t2_large() -> ml_collections.ConfigDict:
    """B2T2 large: words that see the whole image, and matching, on Conceptual Captions.

        python -m vlbert_jax.main --config=configs/pretrain.py:b2t2_large --workdir=DIR \\
            --config.init.bert=bert-large-uncased/

    Words count in matching pairs alone. The rates of its pre-training are not published; here they are those of its
    fine-tuning, and the updates are one epoch. Reached by the paper after fine-tuning: VCR test Q->AR 55.0.
    """
    config = _from_captions("b2t2", "conceptual_captions", text_length=64, max_regions=0)
    common.enlarge(config)
    config.total_steps = 97_500
    config.batch_size = 32
    config.learning_rate = 2e-5
    config.warmup_steps = 9_750
    config.optimizer.update(common.OPTIMIZER_OF_B2T2)
    config.losses.only_matched = True
    config.data.mask_tokens = True
    return config


def oscar_base() -> ml_collections.ConfigDict:
    """Oscar base: words, names of regions and matching, with the recipe of Oscar+, the one that is published.

        python -m vlbert_jax.main --config=configs/pretrain.py:oscar_base --workdir=DIR \\
            --config.init.bert=bert-base-uncased/

    Behind a caption are the names of the best classes of its regions (--config.data.class_names), 35 tokens together. A
    quarter of the pairs have another image's names, a quarter another caption; questions with their answers, which the
    authors also used, are not read. --config.model.architecture=vinvl adds the norm of regions. Reached by the paper
    after fine-tuning: VQA test-std 73.44 (VinVL 76.12), NLVR2 test-P 78.36 (VinVL 83.08).
    """
    config = _from_captions("oscar", "coco_visual_genome_conceptual_sbu", text_length=35, max_regions=50)
    config.total_steps = 2_000_000
    config.batch_size = 1_024
    config.learning_rate = 5e-5
    config.warmup_steps = 0
    config.optimizer.eps = 1e-8
    config.model.relationship_classes = 3
    config.data.mask_tokens = True
    return config


def controlled() -> ml_collections.ConfigDict:
    """Five architectures under one recipe: the controlled study of Bugliarello et al. (2021).

        python -m vlbert_jax.main --config=configs/pretrain.py:controlled --workdir=DIR \\
            --config.init.bert=bert-base-uncased/ --config.model.architecture=vilbert

    The architecture is vlbert, uniter, visualbert, vilbert or lxmert. All read 36 regions behind the whole image,
    hide regions by zeros, pool words and image to one product, and learn words, the divergence of region classes,
    and matching, on Conceptual Captions, in ten epochs of 256 pairs. Published after fine-tuning (VOLTA, best of
    several seeds; VQA test-dev, RefCOCO+, NLVR2, and Flickr30k R@1 of images and of texts):

                     VQA  RefCOCO+  NLVR2   IR     TR
        vlbert      68.23   71.23   73.22  57.62  70.90
        uniter      68.67   71.45   73.73  60.54  76.40
        visualbert  69.03   70.02   72.70  61.48  75.20
        vilbert     68.97   70.53   72.24  60.34  78.80
        lxmert      67.52   70.49   71.09  58.62  74.90

    The code of VOLTA differs in details: its VL-BERT has no [END], and dropout precedes its head of matching. The demo
    of the study is configs/pretrain.py:controlled_demo.
    """
    config = _from_captions("vlbert", "conceptual_captions", text_length=38, max_regions=36)
    config.model.two_stream.update(dict(visual=(768, 12, 3072), cross=(768, 12)))
    common.control(config)
    config.total_steps = 121_850
    config.learning_rate = 1e-4
    config.warmup_steps = 12_185
    config.optimizer.clip_norm = 5.0
    config.losses.update(dict(mrc=True, mrc_targets="kl_sum", only_matched=True))
    return config


VARIANTS = (
    lxmert_base, vilbert_base, visualbert_base, uniter_base, uniter_large, unicoder_vl_base, b2t2_large, oscar_base,
    controlled,
)  # fmt: skip
