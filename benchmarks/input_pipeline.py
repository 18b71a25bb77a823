"""Measure the input pipeline: records per second, and milliseconds of CPU per record.

    python benchmarks/input_pipeline.py --height=600 --width=800

The script makes synthetic records (JPEG images of noise and gradients, 100 boxes with 1601 class scores, captions of
ten words), writes them with the real builders, and reads them with `train_batches` of the shipped recipe. CPU time is
that of the whole process with all threads. It limits a host; the wall clock of a shared machine does not.

`--official=FOLDER` also times the loader of the official code, of which FOLDER is a checkout, in turn with this one. It
requires Linux, PyTorch and torchvision (the extra `bench`).
"""

from __future__ import annotations

import argparse
import base64
import importlib.util
import json
import logging
import os
import pathlib
import platform
import statistics
import string
import subprocess
import sys
import tempfile
import time

import cv2
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))  # the script also runs without an installation

from configs.pretrain import get_config  # noqa: E402
from data_prep.build import run_builder  # noqa: E402
from data_prep.build_options import kept_scores  # noqa: E402
from data_prep.region_captions import RegionCaptions  # noqa: E402
from data_prep.text_corpus import TextCorpus  # noqa: E402
from vlbert_jax.memory import keep_freed_memory  # noqa: E402
from vlbert_jax.tasks.pretrain.batches import train_batches  # noqa: E402

NUM_CLASSES, FEATURE_SIZE = 1601, 2048
NUM_IMAGES = 64  # images on disk; further records repeat them
WARM_UP = 6  # batches that fill the buffer and the caches


def write_source(root: pathlib.Path, args) -> None:
    """Write synthetic content in the layout of the official download."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list(string.ascii_lowercase), rng.integers(2, 8))) for _ in range(400)]
    for split in ("train", "val"):
        (root / f"{split}_image").mkdir(parents=True)
        (root / f"{split}_frcnn").mkdir()
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *string.ascii_lowercase]
    tokens += [f"##{letter}" for letter in string.ascii_lowercase] + sorted(set(words[:300]) - set(tokens))
    (root / "vocab.txt").write_text("\n".join(tokens) + "\n")
    for i in range(min(args.records, NUM_IMAGES)):
        coarse = rng.integers(0, 255, (args.height // 20, args.width // 20, 3), dtype=np.uint8)
        image = cv2.resize(coarse, (args.width, args.height), interpolation=cv2.INTER_CUBIC)
        image = np.clip(image + rng.normal(0, 8, image.shape), 0, 255).astype(np.uint8)
        cv2.imwrite(str(root / "train_image" / f"{i:08d}.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 90])
        corners = np.sort(rng.uniform(0, 1, (args.boxes, 2, 2)), axis=1) * (args.width - 1, args.height - 1)
        scores = rng.exponential(size=(args.boxes, NUM_CLASSES)) ** 4
        arrays = dict(boxes=corners.reshape(-1, 4), classes=scores / scores.sum(1, keepdims=True))
        if args.features == "precomputed":
            arrays["features"] = rng.exponential(size=(args.boxes, FEATURE_SIZE))
        encoded = {k: base64.b64encode(v.astype("<f4").tobytes()).decode() for k, v in arrays.items()}
        detections = dict(image_w=args.width, image_h=args.height, num_boxes=args.boxes, **encoded)
        (root / "train_frcnn" / f"{i:08d}.json").write_text(json.dumps(detections))
    lines = []
    for i in range(args.records):
        name, caption = f"{i % NUM_IMAGES:08d}", rng.choice(words, 10).tolist()
        lines.append(
            dict(image=f"train_image.zip@/{name}.jpg", caption=caption, frcnn=f"train_frcnn.zip@/{name}.json")
        )
    (root / "train_frcnn.json").write_text("\n".join(map(json.dumps, lines)) + "\n")
    (root / "text.doc").write_text("\n".join(" ".join(rng.choice(words, 20)) for _ in range(1000)) + "\n")


def recipe(root: pathlib.Path, args):
    config = get_config("base_prec" if args.features == "precomputed" else "base_e2e")
    config.batch_size = args.batch_size
    config.model.encoder.vocab_size = len((root / "vocab.txt").read_text().split())
    config.data.update(
        dict(data_dir=str(root), captions="region_captions/noise", text="text_corpus/noise", prefetch=4)
    )
    config.data.update(dict(vocab=str(root / "vocab.txt"), num_threads=args.num_threads))
    config.data.geometry_on_device = args.geometry_on_device
    return config


def seconds(config, number: int) -> tuple[float, float]:
    """Return the time by the clock and the CPU time of `number` batches, after some that are not timed."""
    batches = train_batches(config, 0, 0, 1)
    for _ in range(WARM_UP):
        next(batches)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(number):
        next(batches)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    batches.close()  # pyright: ignore[reportAttributeAccessIssue]  # it is a generator
    return wall, cpu


def official_seconds(root: pathlib.Path, args) -> tuple[float, float]:
    """Return the same of the official loader."""
    script = pathlib.Path(__file__).with_name("official_loader.py")
    command = [sys.executable, script, args.official, root, args.features, max(args.num_threads, 1)]
    command = [*map(str, command), str(args.batch_size // 2), str(args.batches)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"the official loader failed: {' '.join(command)}")
    wall, cpu = map(float, done.stdout.split()[-2:])
    return wall, cpu


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--features", choices=("image", "precomputed"), default="image")
    parser.add_argument("--scores", type=kept_scores, default="exact", help="as in `build captions`, such as top64")
    parser.add_argument("--height", type=int, default=600)
    parser.add_argument("--width", type=int, default=800)
    parser.add_argument("--boxes", type=int, default=100)
    parser.add_argument("--records", type=int, default=512, help="records to make (default: %(default)s)")
    parser.add_argument("--batch_size", type=int, default=16, help="records per batch, half of them captions")
    parser.add_argument("--batches", type=int, default=40, help="batches to time in a round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="the median of these is printed (default: %(default)s)")
    parser.add_argument("--num_threads", type=int, default=os.cpu_count())
    parser.add_argument("--geometry_on_device", action="store_true")
    parser.add_argument("--official", type=pathlib.Path, metavar="FOLDER", help="checkout of the official code")
    args = parser.parse_args()
    if args.official and not (args.official / "pretrain/data/datasets/conceptual_captions.py").is_file():
        parser.error(f"--official={args.official} is not a checkout of the official code: it has no pretrain/data")
    missing = [name for name in ("torch", "torchvision") if args.official and importlib.util.find_spec(name) is None]
    if missing:
        parser.error(f"--official requires {' and '.join(missing)}: pip install -e '.[bench]'")
    return args


def main() -> None:
    args = options()
    keep_freed_memory()  # as the commands do
    logging.getLogger("absl").setLevel(logging.ERROR)

    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        write_source(root, args)
        features = args.features == "precomputed"
        captions = RegionCaptions(
            "noise", root, root, splits=("train",), features=features, top_scores=args.scores
        )
        table = run_builder(captions)
        run_builder(TextCorpus("noise", root, [root / "text.doc"]))
        size = sum(file.stat().st_size for file in table.iterdir()) / args.records
        loaders = {"vlbert_jax": lambda: seconds(recipe(root, args), args.batches)}
        if args.official:
            loaders["official"] = lambda: official_seconds(root, args)
        times = [{name: timed() for name, timed in loaders.items()} for _ in range(args.rounds)]

    records = args.batches * args.batch_size // 2
    print(f"\nmachine        {platform.node()}, {os.cpu_count()} x {cpu_name()}")
    print(f"records        {args.features}, {args.width}x{args.height}, {args.boxes} boxes; one text per record")
    print(f"scores         {f'top{args.scores}' if args.scores else 'exact'}, {size / 1000:.0f} KB per record on disk")
    print(f"threads        {args.num_threads}")
    for name in loaders:
        cpu = sorted(1000 * found[name][1] / records for found in times)
        speed = statistics.median(records / found[name][0] for found in times)
        line = f"{speed:.0f} records/s, {statistics.median(cpu):.2f} ms of CPU per record"
        print(f"{name:14} {line} ({cpu[0]:.2f} to {cpu[-1]:.2f})")
    if args.official:
        ratios = sorted(found["official"][1] / found["vlbert_jax"][1] for found in times)
        print(f"ratio of CPU   {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")


def cpu_name() -> str:
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
