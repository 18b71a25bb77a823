"""Measure the input pipeline: records per second, and milliseconds of CPU per record.

    python benchmarks/input_pipeline.py --height=600 --width=800

The script makes synthetic records (JPEG images of noise and gradients, 100 boxes with 1601 class scores, captions of
ten words), writes them with the real builders, and reads them with `train_batches` of the shipped recipe. CPU time is
that of the whole process with all threads. It limits a host; the wall clock of a shared machine does not.
"""

from __future__ import annotations

import argparse
import base64
import json
import logging
import os
import pathlib
import platform
import string
import sys
import tempfile
import time

import cv2
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))  # the script also runs without an installation

from configs.pretrain import get_config  # noqa: E402
from data_prep.build import run_builder  # noqa: E402
from data_prep.region_captions import RegionCaptions  # noqa: E402
from data_prep.text_corpus import TextCorpus  # noqa: E402
from vlbert_jax.tasks.pretrain.batches import train_batches  # noqa: E402

NUM_CLASSES, FEATURE_SIZE = 1601, 2048


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
    lines = []
    for i in range(args.records):
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
        caption = rng.choice(words, 10).tolist()
        name = f"{i:08d}"
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--features", choices=("image", "precomputed"), default="image")
    parser.add_argument("--height", type=int, default=600)
    parser.add_argument("--width", type=int, default=800)
    parser.add_argument("--boxes", type=int, default=100)
    parser.add_argument("--records", type=int, default=64, help="records to make (default: %(default)s)")
    parser.add_argument("--batch_size", type=int, default=16, help="records per batch, half of them captions")
    parser.add_argument("--batches", type=int, default=40, help="batches to time (default: %(default)s)")
    parser.add_argument("--num_threads", type=int, default=os.cpu_count())
    parser.add_argument("--geometry_on_device", action="store_true")
    args = parser.parse_args()
    logging.getLogger("absl").setLevel(logging.ERROR)

    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        write_source(root, args)
        features = args.features == "precomputed"
        run_builder(RegionCaptions("noise", root, root, splits=("train",), features=features))
        run_builder(TextCorpus("noise", root, [root / "text.doc"]))
        batches = train_batches(recipe(root, args), 0, 0, 1)
        for _ in range(6):  # fill the buffer and the caches
            next(batches)
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(args.batches):
            next(batches)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        batches.close()
    records = args.batches * args.batch_size // 2
    print(f"\nmachine        {platform.node()}, {os.cpu_count()} x {cpu_name()}")
    print(f"records        {args.features}, {args.width}x{args.height}, {args.boxes} boxes; one text per record")
    print(f"threads        {args.num_threads}")
    print(f"records/s      {records / wall:.0f}")
    print(f"CPU ms/record  {1000 * cpu / records:.2f}")


def cpu_name() -> str:
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":")[1].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
