"""Measure the time of the detector, and of its suppression over all classes, on the local device.

    python benchmarks/detector.py                      # 600x800, 300 regions, 1,600 classes, one image at a time
    python benchmarks/detector.py --batch_size=8 --dtype=bfloat16

The weights are random and of the published sizes; the pixels of the image are noise. FLOP count the matrix products and
convolutions of the traced program. They are compared with the rates of one 3x3 convolution over 512 channels of 30
regions, and of the same as a matrix product, outside any loop, on the same machine before and after.
"""

import argparse
import functools
import json
import pathlib
import platform
import resource
import statistics
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from vlbert_jax.detector.detect import Detector, PreparedImage  # noqa: E402
from vlbert_jax.detector.network import FasterRCNN, Sizes  # noqa: E402
from vlbert_jax.detector.options import Settings  # noqa: E402
from vlbert_jax.detector.proposals import class_confidence  # noqa: E402
from vlbert_jax.training import compile_ahead  # noqa: E402
from vlbert_jax.weights import detector_names  # noqa: E402

SMALL = Sizes(
    stem_width=8, widths=(8, 8, 16, 16), blocks=(1, 1, 1, 1), rpn_width=16, num_classes=17, num_attributes=9,
    embedding_size=8, attribute_width=16,
)  # fmt: skip


def seconds(function, *arguments, repeats: int) -> list[float]:
    """Return the seconds of each of `repeats` calls, after a first call that compiles."""
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - began)
    return times


def suppression(num_boxes: int, num_classes: int, repeats: int) -> dict:
    """Measure suppression of boxes of all sizes in an image of 600x800, with softmax scores of moderate contrast."""
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 1, (num_boxes, 2)) * [600, 400]
    boxes = np.concatenate([corner, corner + rng.uniform(20, 400, (num_boxes, 2))], 1).clip(0, [799, 599] * 2)
    scores = jax.nn.softmax(jnp.asarray(rng.normal(0, 3, (num_boxes, num_classes)), jnp.float32), axis=-1)
    run = jax.jit(functools.partial(class_confidence, threshold=0.3))
    times = seconds(run, jnp.asarray(boxes, jnp.float32), jnp.ones(num_boxes, bool), scores, repeats=repeats)
    return dict(ms=round(1e3 * statistics.median(times), 1), fastest_ms=round(1e3 * min(times), 1))


def rates(dtype, channels: int, repeats: int) -> tuple[float, float]:
    """Return the FLOP per second of a 3x3 convolution, and of the same as a matrix product."""
    x, kernel = jnp.ones((30, 14, 14, channels), dtype), jnp.ones((3, 3, channels, channels), dtype)
    convolve = jax.jit(functools.partial(
        jax.lax.conv_general_dilated, window_strides=(1, 1), padding="SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    ))  # fmt: skip
    taps = jnp.ones((30 * 14 * 14, 9 * channels), dtype)
    product = seconds(jax.jit(jnp.matmul), taps, kernel.reshape(-1, channels), repeats=repeats)
    flops = 2 * x.size * kernel.size / channels
    return flops / statistics.median(seconds(convolve, x, kernel, repeats=repeats)), flops / statistics.median(product)


def random_detector(sizes: Sizes, batch_size: int, chunk: int, dtype) -> Detector:
    """Return a detector; one program samples all weights, so that none is in memory twice."""
    network = jax.jit(lambda: nnx.state(FasterRCNN(sizes, Settings(), rngs=nnx.Rngs(0))))()
    arrays = {tuple(map(str, path)): np.asarray(v[...]) for path, v in nnx.to_flat_state(network)}
    del network
    # Random proposals overlap, so suppression is off to keep 300 of them.
    settings = Settings(proposal_overlap=1.01, roi_chunk=chunk)
    return Detector(detector_names.parameters_to_milvlg(arrays), settings=settings, batch_size=batch_size, dtype=dtype)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="dtype of the convolutions")
    parser.add_argument("--chunk", type=int, default=Settings().roi_chunk, help="regions in one pass of C5")
    parser.add_argument("--repeats", type=int, default=3, help="timed calls; the median is reported")
    parser.add_argument("--small", action="store_true", help="a toy size, to see that everything runs")
    args = parser.parse_args()
    dtype = jnp.dtype(args.dtype)
    print(f"{jax.device_count()} x {jax.devices()[0].device_kind} ({platform.machine()}), jax {jax.__version__}")
    nms = suppression(300, 16 if args.small else 1600, repeats=20)
    if not args.small:
        print(json.dumps(dict(what="suppression, 300 boxes x 1,600 classes") | nms), flush=True)
    sizes, (height, width) = (SMALL, (96, 128)) if args.small else (Sizes(), (600, 800))
    before = rates(dtype, sizes.widths[-1], 10)
    detector = random_detector(sizes, args.batch_size, args.chunk, dtype)
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    prepared = [PreparedImage(image, (height, width))] * args.batch_size
    began = time.perf_counter()
    found = jax.device_get(detector.propose(prepared))
    first = time.perf_counter() - began
    times = seconds(lambda: detector.propose(prepared), repeats=args.repeats)
    convolution, product = map(statistics.mean, zip(before, rates(dtype, sizes.widths[-1], 10), strict=True))
    taken = statistics.median(times)

    def whole(state, pixels, size, scale):
        return nnx.merge(detector.graphdef, state)(pixels, size, scale)

    b = args.batch_size
    shapes = [((b, height, width, 3), jnp.float32), ((b, 2), jnp.int32), ((b,), jnp.float32)]
    batch = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
    flops = compile_ahead.matmul_flops(jax.make_jaxpr(whole)(detector.state, *batch).jaxpr)
    result = dict(
        what=f"detector, {height}x{width}",
        batch_size=args.batch_size,
        dtype=args.dtype,
        regions=int(found.mask.sum()),
        seconds=round(taken, 4),
        fastest=round(min(times), 4),
        images_per_second=round(args.batch_size / taken, 3),
        first_call_seconds=round(first, 1),
        tflop=round(flops / 1e12, 3),
        gflops=round(flops / taken / 1e9, 1),
        convolution_gflops=round(convolution / 1e9, 1),
        product_gflops=round(product / 1e9, 1),
        of_convolution_time=round(taken / (flops / convolution), 2),
        of_product_time=round(taken / (flops / product), 2),
        suppression_share=round(args.batch_size * nms["ms"] / 1e3 / taken, 4),
    )
    print(json.dumps(result))
    print(f"peak memory of the process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")


if __name__ == "__main__":
    main()
