"""Time the loader of a checkout of the official VL-BERT: a process of its own, for `input_pipeline.py --official`.

    python benchmarks/official_loader.py FOLDER DATA image|precomputed WORKERS BATCH_SIZE BATCHES

The options of the loader are those of cfgs/pretrain/base_e2e_16x16G_fp16.yaml and base_prec_4x16G_fp32.yaml. It reads
with worker processes, as its configs do; the time is that of this process and of the workers. It prints two numbers:
seconds by the clock, and of CPU. It requires Linux, PyTorch and torchvision.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import pathlib
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any
from unittest import mock

WARM_UP = 6  # batches that fill the buffers
# What the official code imports at its top, but does not call here: downloads of weights, and annotations of COCO.
UNUSED = ("boto3", "botocore.exceptions", "requests", "pycocotools.coco")


def batches(checkout: str, root: pathlib.Path, features: bool, workers: int, size: int) -> Iterator[Any]:
    """Return pairs of `size` captions and `size` texts, collated by the official code.

    Args:
      checkout: folder of the official code.
      root: files in the layout of the official download, as `input_pipeline.write_source` writes them.
      features: read precomputed features instead of images.
      workers: processes that read captions, and as many that read texts.
      size: captions, and texts, of a batch.
    """
    for name in UNUSED:
        package = name.partition(".")[0]
        if find_spec(package) is None:
            sys.modules[package] = sys.modules[name] = mock.MagicMock()
    sys.modules["jsonlines"] = mock.MagicMock(open=lambda path: map(json.loads, pathlib.Path(path).open()))
    sys.path.insert(0, checkout)
    import torch.utils.data
    from pretrain.data import build  # pyright: ignore[reportMissingImports]
    from pretrain.data.datasets.general_corpus import BertTokenizer  # pyright: ignore[reportMissingImports]

    network = SimpleNamespace(PIXEL_MEANS=(102.9801, 115.9465, 122.7717), PIXEL_STDS=(1.0, 1.0, 1.0))
    settings = SimpleNamespace(SCALES=(600, 1000), TRAIN=SimpleNamespace(FLIP_PROB=0.5), NETWORK=network)
    tokenizer = BertTokenizer(str(root / "vocab.txt"))
    captions = build.ConceptualCaptionsDataset(
        "", "train", str(root), str(root), seq_len=64, with_precomputed_visual_feat=features, with_rel_task=False,
        transform=build.build_transforms(settings), tokenizer=tokenizer, add_image_as_a_box=True,
    )  # fmt: skip
    texts = build.GeneralCorpus(str(root / "text.doc"), None, tokenizer, seq_len=64, min_seq_len=64)
    loaders = [
        torch.utils.data.DataLoader(
            data, size, num_workers=workers, collate_fn=build.BatchCollator(data),
            sampler=torch.utils.data.RandomSampler(data, replacement=True, num_samples=10**6),
        )
        for data in (captions, texts)
    ]  # fmt: skip
    return zip(*loaders, strict=True)


def cpu_seconds() -> float:
    """Return the CPU time of this process and its children, which run on."""
    children = multiprocessing.active_children()
    fields = [pathlib.Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split() for child in children]
    return time.process_time() + sum(int(ticks) for line in fields for ticks in line[11:13]) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    checkout, root, kind, *numbers = sys.argv[1:]
    workers, size, count = map(int, numbers)
    made = batches(checkout, pathlib.Path(root), kind == "precomputed", workers, size)
    for _ in range(WARM_UP):
        next(made)
    wall, cpu = time.perf_counter(), cpu_seconds()
    for _ in range(count):
        next(made)
    print(time.perf_counter() - wall, cpu_seconds() - cpu)


if __name__ == "__main__":
    main()
