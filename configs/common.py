"""Blocks that the recipes share. Every field is read by the code; units are in the comments."""

import difflib

import ml_collections

NORMS_AND_BIASES = ("bias$", "norm/scale$")  # patterns of the parameters that do not decay in BERT's recipes
# Fields of config.optimizer that siblings have in pre-training and in fine-tuning. VisualBERT's pooler stays that of
# BERT. UNITER's norms of appearance and box, and those of its heads but for masked words, decay.
OPTIMIZER_OF_VISUALBERT = dict(
    name="bertadam", counts_from=0, clip="array", clip_norm=1.0, weight_decay=0.01, no_decay=NORMS_AND_BIASES,
    rate_factors=("^vlbert/pooler/=0",),
)  # fmt: skip
OPTIMIZER_OF_VILBERT = dict(  # of fine-tuning; biases and gains of norms decay, as in its code, and nothing else does
    name="bertadam", counts_from=0, clip="array", clip_norm=1.0, weight_decay=0.01, schedule="steps", drops=(0.6, 0.8),
    no_decay=(r"(?<!bias)(?<!norm/scale)$",),
)  # fmt: skip
OPTIMIZER_OF_B2T2 = dict(name="bertadam", counts_from=0, weight_decay=0.01, no_decay=NORMS_AND_BIASES, clip_norm=1.0)
OPTIMIZER_OF_UNITER = dict(
    b2=0.98, weight_decay=0.01, no_decay=("bias$", "^(vlbert|mlm_head)/.*norm/scale$"), least_rate=1e-8
)
OPTIMIZER_OF_OSCAR = dict(eps=1e-8, weight_decay=0.05, no_decay=NORMS_AND_BIASES, clip_norm=1.0)  # of fine-tuning


def trainer() -> ml_collections.ConfigDict:
    """Return the fields of every run, at the top level of its config."""
    config = ml_collections.ConfigDict()
    config.seed = 12345  # of parameters, data order, masking and dropout
    config.total_steps = 0  # optimizer updates
    config.batch_size = 256  # sequences per update over all devices: half captions, half text where mixed
    config.grad_accumulation_steps = 1  # parts into which a batch is cut; the result is the same
    config.learning_rate = 0.0  # peak of the applied rate; it is not scaled by the batch size
    config.warmup_steps = 0
    # A first phase of this many of the total_steps, with a separate rate; the task determines what it trains.
    config.opening = ml_collections.ConfigDict(dict(steps=0, learning_rate=0.0))
    config.compute_dtype = "bfloat16"  # of activations; parameters and losses are float32
    # Of matrix products and convolutions in training: default | high | highest. "default" is the platform's choice: it
    # computes float32 in TF32 (GPU) or bfloat16 (TPU). Evaluation of float32 runs always has "highest".
    config.matmul_precision = "default"
    config.prng_impl = "rbg"  # with threefry2x32 dropout does not depend on the mesh, but is slower

    config.log_every_steps = 100
    config.eval_every_steps = 5000  # 0 = only at the end
    config.checkpoint_every_steps = 1000  # 0 = only at the end
    config.keep_checkpoints = 3  # the newest ones; the best by `best_metric` is kept in addition
    config.best_metric = "mlm_caption_accuracy"
    config.early_stopping = 0  # end after so many evaluations in a row without a better `best_metric`; 0 = never
    config.report = True  # write report/index.html at every evaluation
    config.tracker = ""  # wandb = log to Weights & Biases as well (pip install wandb); TensorBoard needs no setting
    config.profile_steps = ()  # (first, last) update of a JAX profiler trace in WORKDIR/profile; empty = none
    config.allow_other_data = False  # continue a run although the content of its data has changed

    config.optimizer = ml_collections.ConfigDict(
        dict(
            name="adamw",  # adamw | bertadam (VisualBERT, LXMERT, ViLBERT) | sgd
            b1=0.9,
            b2=0.999,
            eps=1e-6,
            momentum=0.9,  # of sgd
            weight_decay=1e-4,
            no_decay=(),  # patterns of parameters that do not decay, such as NORMS_AND_BIASES
            rate_factors=(),  # PATTERN=FACTOR, as "^answer_head/=10": these parameters have another rate
            clip_norm=10.0,
            clip="global",  # the norm of all gradients | array: that of each array (VisualBERT, ViLBERT)
            schedule="triangle",  # triangle | cosine | constant | steps
            counts_from=1,  # 0: the first update has rate 0 (BertAdam)
            least_rate=0.0,  # instead of lower rates (UNITER: 1e-8)
            drops=(),  # where `steps` divides the rate by ten, as parts of total_steps
        )
    )
    # Sizes of the device mesh; -1 = all remaining devices.
    config.mesh = ml_collections.ConfigDict(dict(data=-1, fsdp=1, tensor=1))
    config.topology = ""  # for --mode=compile: v4, v5e, v5p or v6e and chips along each side, v5e:16x16; empty = local
    config.num_slices = 1  # number of slices of that topology, connected by the network of the data center
    # Paths; empty = not used. Order: own run in workdir, then checkpoint, then bert + resnet, then scratch.
    config.init = ml_collections.ConfigDict(
        dict(bert="", resnet="", checkpoint="", scratch=True)  # scratch: whether all may be empty
    )
    return config


def encoder() -> ml_collections.ConfigDict:
    """Return the BERT-style encoder in the sizes of `base` (paper, section 3)."""
    return ml_collections.ConfigDict(
        dict(
            vocab_size=30522,
            hidden_size=768,
            num_layers=12,
            num_heads=12,
            mlp_size=3072,
            max_positions=512,
            num_segments=3,
            dropout_rate=0.1,
            init_deviation=0.02,  # standard deviation of embeddings and kernels
            text_visual_gain_init=0.0,  # gain of the layer norm of the visual feature of words
            region_visual_gain_init=0.0,  # the same for regions; with 0 the network is BERT at step 0
            pooler=False,  # tanh layer on [CLS]; the relationship loss and VCR require it
            scan_layers=True,  # False takes longer to compile and runs a little faster
            remat="none",  # recompute in the backward pass: none | dots | full
        )
    )


def enlarge(config: ml_collections.ConfigDict) -> None:
    """Give the encoder of a recipe the sizes of `large` (paper, section 3); its other fields stay."""
    config.model.encoder.update(dict(hidden_size=1024, num_layers=24, num_heads=16, mlp_size=4096))


def two_stream() -> ml_collections.ConfigDict:
    """Return the sizes of two-stream architectures (lxmert, vilbert); empty values and zeros are the published ones.

    The words' stream has the sizes of the encoder; its number of layers is here.
    """
    return ml_collections.ConfigDict(
        dict(
            # lxmert: layers of words, of regions, and of both together (9, 5, 5). vilbert: layers of words, of regions,
            # and connections (12, 6, 6); also published are (12, 2, 2), (12, 4, 4) and (12, 8, 8).
            layers=(),
            visual=(),  # width, heads and MLP width of the regions' stream
            cross=(),  # width and heads of cross-attention
            task_tokens=0,  # rows of the table of tasks: 20 in 12-in-1
            task_number=0,  # the row of this run: 1 = VQA
        )
    )


def switches() -> ml_collections.ConfigDict:
    """Return values that replace those of the architecture, to compare systems under control; empty = its own."""
    return ml_collections.ConfigDict(
        dict(
            whole_image=False,  # True = the whole image is an element, the first one, in every architecture
            box_numbers=0,  # numbers of a box, 4 to 7, where the architecture has such numbers
            hidden="",  # what replaces the feature of a hidden region: vector | zeros
            pool="",  # text: tanh layer of [CLS] | mul: product of ReLU layers of [CLS] and of the first region
            product_size=0,  # width of that product; 0 = 1024
        )
    )


def control(config: ml_collections.ConfigDict) -> None:
    """Set the switches of VOLTA's controlled study: what every architecture reads, hides and pools."""
    config.model.switches.update(dict(whole_image=True, box_numbers=5, hidden="zeros", pool="mul"))


def region_head() -> ml_collections.ConfigDict:
    """Return ResNet-101 with RoIAlign and a dilated C5 (`base_e2e` of the official code)."""
    return ml_collections.ConfigDict(
        dict(
            stem_width=64,
            widths=(64, 128, 256, 512),  # of the 3x3 convolutions of C2..C5; a stage outputs four times that
            blocks=(3, 4, 23, 3),
            strides=(1, 2, 2),  # of C2..C4; with the 4 of the stem the feature map has stride 16
            stride_in_1x1=True,
            dilated_c5=True,
            frozen_stages=(1, 2),  # 1 = stem, 2..4 = C2..C4, 5 = C5
            frozen_batch_norm=True,  # gains and offsets; the statistics are constants in any case
            roi_size=14,
            roi_samples=1,  # sampling points per bin and axis; 0 = adaptive
            # The detector differs from VL-BERT in these; with data.caffe_resize as well, features equal those of the
            # detector.
            roi_operation="align",  # align | pool
            caffe_max_pool=False,  # max-pooling after the stem without padding; the last window may overhang
            mask_padding=False,  # every convolution reads zeros around the image, as if it were alone
            roi_chunk=16,  # regions that pass C5 at once; padding is skipped chunk-wise
            remat=False,  # recompute C5 in the backward pass
            dropout_rate=0.1,  # before the projection to hidden_size
            projection_gain_init=1.0,  # of the weights of the projection, relative to the default of PyTorch
            geometry_gain_init=1.0,  # of its rows for box geometry, relative to those for appearance
        )
    )


def image_pipeline() -> ml_collections.ConfigDict:
    """Return where the records are and how they become examples; sizes are in pixels."""
    return ml_collections.ConfigDict(
        dict(
            data_dir="data",
            vocab="",  # a vocab.txt, in data_dir or elsewhere, or the name of a Hugging Face tokenizer
            image_scale=(600, 1000),  # short side, unless the long side would exceed the second
            caffe_resize=False,  # resize as the detector does: float images, without antialiasing
            extractor="",  # extractor of precomputed features; a run sets it from its corpora
            one_orientation=True,  # a batch is all landscape or all portrait; False pads to a square
            flip_probability=0.5,
            even_regions=False,  # order images so that all devices of a process compute about as many regions
            max_regions=100,  # without the whole image; hidden ones are zeroed even where the sequence has no room
            # Text tokens and regions; [END] is not counted. In two-stream models, text tokens alone.
            sequence_length=64,
            text_length=0,  # most text tokens; 0 = as many as the sequence holds
            geometry_on_device=False,
            num_threads=16,  # per process; each makes a whole batch, within a bound of bytes (data/streams.py)
            prefetch=4,  # batches made ahead, at least
            remember_records=0,  # records per stream kept in memory, images as resized pixels (600 x 1000: 1.8 MB each)
        )
    )


def pretraining() -> ml_collections.ConfigDict:
    """Return the fields of every pre-training run, at the values of VL-BERT base with its region head trained."""
    config = trainer()
    config.task = "pretrain"
    config.total_steps = 250_000
    config.learning_rate = 2.56e-5
    config.warmup_steps = 16_000
    config.init.scratch = False  # True = the run may start without BERT and ResNet
    config.model = ml_collections.ConfigDict(
        dict(
            # vlbert, or with the same data and losses a sibling: visualbert, uniter, oscar, vinvl, b2t2,
            # b2t2_positions, unicoder_vl, lxmert, vilbert (vlbert_jax/model/architectures.py).
            architecture="vlbert",
            encoder=encoder(),
            two_stream=two_stream(),
            switches=switches(),
            region_head=region_head(),
            train_region_head=True,  # False = its convolutions are constants, as in ablations (a)-(d) of the paper
            feature_size=2048,  # columns of precomputed features
            num_region_classes=1601,  # 1600 + background
            num_attributes=400,  # of the detector, without "no attribute"
            num_answers=9_500,  # to questions among the captions
            # Of the relationship: another image's caption, its own; 3 = also another image's names of regions, where
            # the architecture reads names (Oscar).
            relationship_classes=2,
        )
    )
    config.losses = ml_collections.ConfigDict(
        dict(
            mlm=True,
            mrc=True,  # masked RoI classification; architectures that never hide a region require False
            relationship=False,  # whether the caption belongs to the image; requires model.encoder.pooler
            text_only=True,  # mix text-only sequences 1:1
            # Weight of classifying each region from its pooled feature ("CNN loss at the bottom" of the official code).
            region=0.0,
            # The opening trains the region head on that loss alone; from its end to this step the head is not trained.
            region_fixed_until=0,
            # soft: the detector's distribution (official code) | hard: its best class (paper) | object: its best class
            # without the background (UNITER) | kl: divergence, mean over the classes (UNITER) | kl_sum: divergence
            # (ViLBERT)
            mrc_targets="soft",
            # Regression of the features of hidden regions (UNITER, ViLBERT); requires hide_pixels=False.
            regression=False,
            # LXMERT's losses of regions, in two-stream models: the detector's object and attribute of every region,
            # weighted by its confidence, and the features of the hidden ones.
            objects=False,
            attributes=False,
            features=False,
            # LXMERT: the answer to a caption that is a question, in any architecture; requires model.encoder.pooler.
            answers=False,
            only_matched=False,  # leave out words and regions of an image with another caption (ViLBERT, Unicoder-VL)
            transport=0.0,  # weight of optimal transport of words to regions (UNITER: 0.1); requires relationship
            # Shares of the updates that train one objective each, on captions that are masked for it alone (UNITER).
            # All 0: every update trains all losses. `relationship` includes the transport.
            ratios=dict(mlm=0.0, mrc=0.0, regression=0.0, relationship=0.0),
            normalize="targets",  # mean over all targets of a batch | examples: over those of each example first
        )
    )
    config.data = image_pipeline()
    config.data.update(
        dict(
            embedded="",  # scenes = the synthetic corpus, made on first use
            captions="region_captions/conceptual_captions",  # under data_dir
            text="text_corpus/books_wikipedia",
            train_split="train",
            eval_split="val",
            features="image",  # image | precomputed
            even_regions=True,
            vocab="bert-base-uncased",
            class_names="objects_vocab.txt",  # under data_dir; names of the detector's classes, for reports and Oscar
            text_min_words=64,  # lines are joined until they have this many words
            second_caption=False,  # read another caption too, of the image or, as a wrong pair, of another (VisualBERT)
            mask_words=0.15,  # share of words, in captions and text; evaluation always masks 0.15
            mask_regions=0.15,  # share of regions
            mask_tokens=False,  # True: each token for itself, not whole words (VL-BERT's siblings)
            mask_least_one=False,  # at least the first word and one region of each caption (UNITER)
            hidden_share=0.9,  # of the regions that are predicted, share that is hidden (UNITER: 1)
            # Of the regions that are predicted, share that the model sees with the feature of another image's region
            # (LXMERT: 0.1, with a hidden_share of 0.8).
            swapped_share=0.0,
            hide_pixels=True,  # zero hidden regions in the image; False = a learned vector replaces the feature
            max_mlm_targets=24,  # per sequence; further masked words are not scored
            max_mrc_targets=20,  # per image
            answers="lxmert_all.json",  # the list of answers: shipped, in data_dir or elsewhere
            answers_have_unknown=False,  # whether <unk> is one of them
            visual_words=(),  # words that only an image determines; they are scored separately
            group_words=(),  # scores are also reported by the number of these in a caption
        )
    )
    return config


def fine_tuning(task: str, corpus: str) -> ml_collections.ConfigDict:
    """Return the fields of every fine-tuning run: those of `trainer`, the tables, and the origin of the weights."""
    config = trainer()
    config.task = task
    config.log_every_steps = 50
    config.eval_every_steps = 0
    config.init.scratch = False  # True = the run may start without any weights
    config.blind = False  # train and score without the image
    config.model = ml_collections.ConfigDict(
        dict(
            architecture="vlbert",  # of vlbert_jax/model/architectures.py
            encoder=encoder(),
            two_stream=two_stream(),
            switches=switches(),
            region_head=region_head(),
            train_region_head=True,  # False = its convolutions are constants
            feature_size=2048,  # columns of precomputed features
        )
    )
    config.losses = ml_collections.ConfigDict()
    config.data = image_pipeline()
    config.data.update(
        dict(
            embedded="",  # scene_tasks = the synthetic corpus, made on first use
            texts=f"{task}/{corpus}",  # tables, under data_dir
            images=f"{task}_images/{corpus}",
            train_split="train",  # train+val = both; train[:10%] = a tenth, the same one for every seed
            eval_split="val",
            features="image",  # image | precomputed
            vocab="bert-base-uncased",
            # Under data_dir: names of the detector's classes, which Oscar and VinVL read; "" = they read no names.
            class_names="objects_vocab.txt",
            # Regions of more confidence are read, at least ten (UNITER: 0.2); 0, or a table without confidences = all.
            region_confidence=0.0,
        )
    )
    return config


def train_briefly(config: ml_collections.ConfigDict, total_steps: int, batch_size: int) -> None:
    """Set the schedule of a demo that trains a task and the region head in minutes, and scores it at the end."""
    config.total_steps, config.batch_size = total_steps, batch_size
    config.learning_rate, config.warmup_steps = 1e-3, 50
    config.eval_every_steps = config.checkpoint_every_steps = 0
    config.optimizer.update(dict(schedule="cosine", b2=0.98, clip_norm=10.0))
    config.model.train_region_head = True


def shrink_to_demo(config: ml_collections.ConfigDict) -> None:
    """Set the sizes of the demos, which take minutes on two cores.

    All demos have the same model sizes, so that weights can be transferred.
    """
    config.seed = 0
    config.compute_dtype = "float32"
    config.model.encoder.update(
        dict(
            vocab_size=256,
            hidden_size=128,
            num_layers=2,
            num_heads=4,
            mlp_size=256,
            max_positions=64,
            dropout_rate=0.0,
            init_deviation=0.07,  # 0.02 is for width 768; here attention would be nearly uniform and small
            text_visual_gain_init=0.05,  # every word carries the whole image; a larger value dominates the word
            region_visual_gain_init=1.0,
            scan_layers=False,
        )
    )
    config.model.two_stream.update(dict(layers=(1, 1, 1), visual=(128, 4, 256), cross=(128, 4)))
    config.model.switches.product_size = 128
    config.model.region_head.update(
        dict(
            stem_width=16,
            widths=(32, 32, 32, 64),
            blocks=(1, 1, 1, 1),
            strides=(1, 2, 1),
            frozen_stages=(),
            frozen_batch_norm=False,
            roi_size=4,
            roi_chunk=32,
            dropout_rate=0.0,
            projection_gain_init=60.0,  # a norm follows, so the scale is free, but Adam changes small weights too much
            geometry_gain_init=0.1,  # otherwise 2048 waves would dominate the 256 features of this narrow head
        )
    )
    config.data.update(
        dict(
            image_scale=(64, 96),
            even_regions=False,  # one device
            max_regions=6,
            remember_records=60_000,  # all
            num_threads=1,  # decoding such small images takes less time than switching threads
        )
    )


def choose(variant: str, variants) -> ml_collections.ConfigDict:
    """Return the variant of that name.

    Raises:
        ValueError: There is no such variant; the message has the names.
    """
    by_name = {v.__name__: v for v in variants}
    if variant not in by_name:
        close = difflib.get_close_matches(variant, by_name, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown config variant {variant!r}; there are: {', '.join(by_name)}.{hint}")
    return by_name[variant]()
