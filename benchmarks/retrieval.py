"""Measure how many pairs of a text and an image a retrieval model scores per second, and compute an accelerator's time.

    python benchmarks/retrieval.py [--images=8] [--texts=256] [--per_pass=16] [--dtype=bfloat16] [--chip=v5e]

The model is VL-BERT base with random weights on 36 precomputed regions, with sequences of 67 elements, as in
configs/retrieval.py:flickr30k. One batch of images is scored with all texts by `score_candidates`, the program of an
evaluation; the first run, which compiles, is not timed. FLOP are those of the
matrix products of the program, the image side included.

The time on an accelerator is computed, not measured: pairs x FLOP / (peak of the chip x utilization), for 1,000 images
x 5,000 texts (Flickr30k, and one fold of COCO) and 5,000 x 25,010 (COCO). The utilization is an assumption.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from flax import nnx  # noqa: E402

from configs import retrieval  # noqa: E402
from vlbert_jax.batch import make_batch  # noqa: E402
from vlbert_jax.tasks import get_task  # noqa: E402
from vlbert_jax.tasks.match.batches import Candidates  # noqa: E402
from vlbert_jax.tasks.match.examples import PairLayout  # noqa: E402
from vlbert_jax.tasks.match.model import score_candidates  # noqa: E402
from vlbert_jax.training.compile_ahead import CHIPS, UTILIZATION, matmul_flops  # noqa: E402

PROTOCOLS = {"1,000 images x 5,000 texts": 1_000 * 5_000, "5,000 images x 25,010 texts": 5_000 * 25_010}


def images_of(config, number: int):
    """Return a batch of images with random features, all of them with as many regions as fit."""
    rng, rows = np.random.default_rng(0), config.data.max_regions + 1
    corner = rng.uniform(0, 300, (number, rows, 2))
    names, nothing = ("token_ids", "region_ids", "segment_ids", "position_ids"), np.zeros((number, 1, 2), np.int32)
    return make_batch(
        dict.fromkeys(names, nothing)
        | dict(
            element_mask=np.zeros((number, 1, 2), bool),
            boxes=np.concatenate([corner, corner + 90], axis=-1).astype(np.float32),
            region_mask=np.ones((number, rows), bool),
            region_hidden=np.zeros((number, rows), bool),
            image_size=np.full((number, 1, 2), 400, np.float32),
            region_features=rng.normal(size=(number, rows, config.model.feature_size)).astype(np.float32),
        )
    )


def texts_of(config, number: int) -> Candidates:
    """Return random texts of 8 to 18 words, about as long as captions."""
    rng, length = np.random.default_rng(1), config.data.text_length
    lengths = rng.integers(10, 21, number).astype(np.int32)
    ids = rng.integers(1000, config.model.encoder.vocab_size, (number, length)).astype(np.int32)
    ids = np.where(np.arange(length) < lengths[:, None], ids, 0)
    return Candidates((), {}, tuple(range(number)), np.zeros(number, np.int32), ids, lengths, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8, help="images of a batch")
    parser.add_argument("--texts", type=int, default=256, help="texts that each image is scored with")
    parser.add_argument("--per_pass", type=int, default=16, help="texts that are paired with each image at once")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="of activations")
    parser.add_argument("--chip", default="v5e", choices=CHIPS, help="accelerator of the computed time")
    parser.add_argument("--utilization", type=float, default=UTILIZATION, help="assumed share of its peak")
    args = parser.parse_args()
    config = retrieval.flickr30k()
    config.compute_dtype = args.dtype
    task, layout = get_task("match"), PairLayout.of(config)
    graphdef, state = nnx.split(nnx.jit(lambda: task.build_model(config, nnx.Rngs(0)))())
    batch, texts = jax.tree.map(jnp.asarray, images_of(config, args.images)), texts_of(config, args.texts)

    @jax.jit
    def score(state, batch):
        return score_candidates(nnx.merge(graphdef, state), batch, texts, layout, args.per_pass)

    pairs, device = args.images * args.texts, jax.devices()[0].device_kind
    flops = matmul_flops(score.trace(state, batch).jaxpr.jaxpr) / pairs
    program = score.lower(state, batch).compile()
    jax.block_until_ready(program(state, batch))
    began = time.perf_counter()
    jax.block_until_ready(program(state, batch))
    rate = pairs / (time.perf_counter() - began)
    print(f"measured on {device}, {args.dtype}: {rate:,.1f} pairs per second ({pairs:,} pairs)")
    print(f"a pair takes {flops / 1e9:.2f} GFLOP: {flops * rate / 1e9:,.0f} GFLOP/s")
    chip = CHIPS[args.chip]
    computed = chip.tflops * 1e12 * args.utilization / flops
    for name, count in PROTOCOLS.items():
        print(
            f"{name}: {count / rate / 3600:,.1f} h at the measured rate; computed for one {chip.kind}, "
            f"{chip.tflops} TFLOP/s bfloat16 at an assumed utilization of {args.utilization:.0%}: "
            f"{count / computed / 60:,.1f} min"
        )


if __name__ == "__main__":
    main()
