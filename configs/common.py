"""Blocks that the recipes share. Every field is read by the code; units are in the comments."""

import difflib

import ml_collections


def trainer() -> ml_collections.ConfigDict:
    """Fields of every run, at the top level of its config."""
    config = ml_collections.ConfigDict()
    config.seed = 12345  # of parameters, data order, masking and dropout
    config.total_steps = 0  # optimizer updates
    config.batch_size = 256  # sequences per update over all devices: half captions, half text where mixed
    config.grad_accumulation_steps = 1  # parts into which a batch is cut; the result is the same
    config.learning_rate = 0.0  # the peak, as it is applied: no scaling by batch size
    config.warmup_steps = 0
    # A first phase of so many updates (of total_steps), with a rate of its own; what it trains is the task's.
    config.opening = ml_collections.ConfigDict(dict(steps=0, learning_rate=0.0))
    config.compute_dtype = "bfloat16"  # of activations; parameters and losses are float32
    # Of matrix products and convolutions in training: default | high | highest. "default" is the platform's choice: it
    # computes float32 in TF32 (GPU) or bfloat16 (TPU). Evaluation of float32 runs always has "highest".
    config.matmul_precision = "default"
    config.prng_impl = "rbg"  # threefry2x32: dropout does not depend on the mesh, slower

    config.log_every_steps = 100
    config.eval_every_steps = 5000  # 0 = only at the end
    config.checkpoint_every_steps = 1000  # 0 = only at the end
    config.keep_checkpoints = 3  # the newest; the best by `best_metric` is kept besides
    config.best_metric = "mlm_caption_accuracy"
    config.report = True  # write report/index.html at the end
    config.profile_steps = ()  # (first, last) update of a JAX profiler trace in WORKDIR/profile; empty = none
    config.allow_other_data = False  # continue a run although the content of its data has changed

    config.optimizer = ml_collections.ConfigDict(
        dict(
            name="adamw",  # adamw | sgd
            b1=0.9,
            b2=0.999,
            eps=1e-6,
            momentum=0.9,  # of sgd
            weight_decay=1e-4,
            clip_norm=10.0,
            schedule="triangle",  # triangle | cosine | constant | steps
            drops=(),  # where `steps` divides the rate by ten, as parts of total_steps
        )
    )
    # Sizes of the device mesh; -1 = all remaining devices.
    config.mesh = ml_collections.ConfigDict(dict(data=-1, fsdp=1, tensor=1))
    config.topology = ""  # for --mode=compile: v4, v5e, v5p or v6e and chips along each side, v5e:16x16; empty = local
    config.num_slices = 1  # of that topology, joined by the data centre's network
    # Paths; empty = not used. Order: own run in workdir, then checkpoint, then bert + resnet, then scratch.
    config.init = ml_collections.ConfigDict(
        dict(bert="", resnet="", checkpoint="", scratch=True)  # scratch: whether all may be empty
    )
    return config


def encoder(size: str) -> ml_collections.ConfigDict:
    """The BERT-style encoder: `base` or `large` (paper, section 3)."""
    hidden, layers, heads, mlp = {"base": (768, 12, 12, 3072), "large": (1024, 24, 16, 4096)}[size]
    return ml_collections.ConfigDict(
        dict(
            vocab_size=30522,
            hidden_size=hidden,
            num_layers=layers,
            num_heads=heads,
            mlp_size=mlp,
            max_positions=512,
            num_segments=3,
            dropout_rate=0.1,
            init_deviation=0.02,  # of embeddings and kernels
            text_visual_gain_init=0.0,  # of the layer norm of what words carry of the image, and
            region_visual_gain_init=0.0,  # of what regions carry: with 0, at step 0 the network is BERT
            pooler=False,  # tanh layer on [CLS]; needed by the relationship loss and VCR
            scan_layers=True,  # False compiles longer and is a little faster
            remat="none",  # recompute in the backward pass: none | dots | full
        )
    )


def region_head() -> ml_collections.ConfigDict:
    """ResNet-101 with RoIAlign and a dilated C5 (official `base_e2e`)."""
    return ml_collections.ConfigDict(
        dict(
            stem_width=64,
            widths=(64, 128, 256, 512),  # of the 3x3 convolutions of stages C2..C5; a stage puts out four times that
            blocks=(3, 4, 23, 3),
            strides=(1, 2, 2),  # of C2..C4; with the stem's 4 the feature map has stride 16
            stride_in_1x1=True,
            dilated_c5=True,
            frozen_stages=(1, 2),  # 1 = stem, 2..4 = C2..C4, 5 = C5
            frozen_batch_norm=True,  # gains and offsets; the statistics are constants in any case
            roi_size=14,
            roi_samples=1,  # sampling points per bin and axis; 0 = adaptive
            # What the detector does otherwise than VL-BERT; with data.caffe_resize too, the features are its own.
            roi_operation="align",  # align | pool
            caffe_max_pool=False,  # behind the stem: not padded, the last window may overhang
            mask_padding=False,  # every convolution sees zeros around the image, as if it were alone
            roi_chunk=16,  # regions that pass C5 at once; padding is skipped chunk-wise
            remat=False,  # recompute C5 in the backward pass
            dropout_rate=0.1,  # before the projection to hidden_size
            projection_gain_init=1.0,  # of the projection's weights, against PyTorch's default
            geometry_gain_init=1.0,  # of its rows for box geometry, against those for appearance
        )
    )


def image_pipeline() -> ml_collections.ConfigDict:
    """Where the records are and how they become examples. Sizes in pixels."""
    return ml_collections.ConfigDict(
        dict(
            data_dir="data",
            vocab="",  # a vocab.txt, under data_dir or anywhere, or a Hugging Face tokenizer name
            image_scale=(600, 1000),  # short side, unless the long side would pass the second
            caffe_resize=False,  # the detector's: of float images, not antialiased
            extractor="",  # name of what made precomputed features, filled in from the corpora when a run starts
            one_orientation=True,  # a batch is all landscape or all portrait; False pads to a square
            flip_probability=0.5,
            even_regions=False,  # images are ordered so that the devices of a host have as many regions to compute
            max_regions=100,  # besides the whole image; hidden ones are blanked even where the sequence has no room
            sequence_length=64,  # text tokens + regions; [END] is not counted
            geometry_on_device=False,
            num_threads=16,  # of the input pipeline, per host
            prefetch=4,  # batches
            remember_records=0,  # per stream, kept in memory once read: for a corpus that fits
        )
    )


def fine_tuning(task: str, corpus: str) -> ml_collections.ConfigDict:
    """Fields of every run that fine-tunes: those of `trainer`, the tables, and where the weights come from."""
    config = trainer()
    config.task = task
    config.log_every_steps = 50
    config.eval_every_steps = 0
    config.init.scratch = False  # True says that starting from nothing is meant
    config.blind = False  # train and score without the image: what the text alone tells
    config.model = ml_collections.ConfigDict(
        dict(
            encoder=encoder("base"),
            region_head=region_head(),
            train_region_head=True,  # False = its convolutions are constants
            feature_size=2048,  # columns of precomputed features
        )
    )
    config.losses = ml_collections.ConfigDict()
    config.data = image_pipeline()
    config.data.update(
        dict(
            embedded="",  # scene_tasks = the drawn corpus, made on first use
            texts=f"{task}/{corpus}",  # tables, under data_dir
            images=f"{task}_images/{corpus}",
            train_split="train",  # train+val = both
            eval_split="val",
            features="image",  # image | precomputed
            vocab="bert-base-uncased",
        )
    )
    return config


def shrink_to_demo(config: ml_collections.ConfigDict) -> None:
    """The sizes of the demos: minutes on two cores. Those of the model are one for all, so that weights carry over."""
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
            init_deviation=0.07,  # 0.02 is for width 768: attention would pass on next to nothing
            text_visual_gain_init=0.05,  # every word carries the whole image: larger drowns the word
            region_visual_gain_init=1.0,
            scan_layers=False,
        )
    )
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
            projection_gain_init=60.0,  # a norm follows: the size is free, but small weights are tossed about by Adam
            geometry_gain_init=0.1,  # 2048 waves would drown the 256 features of so narrow a head
        )
    )
    config.data.update(
        dict(
            image_scale=(64, 96),
            even_regions=False,  # one device
            max_regions=6,
            remember_records=60_000,  # all
            num_threads=1,  # images this small are decoded sooner than threads take turns
        )
    )


def choose(variant: str, variants) -> ml_collections.ConfigDict:
    """Calls the variant of that name. Raises ValueError with the names there are."""
    by_name = {v.__name__: v for v in variants}
    if variant not in by_name:
        close = difflib.get_close_matches(variant, by_name, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown config variant {variant!r}; there are: {', '.join(by_name)}.{hint}")
    return by_name[variant]()
