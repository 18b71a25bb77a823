"""Write weight files with random values in the formats of other programs."""

import struct
from pathlib import Path

import numpy as np

from tests.helpers import GOLDEN
from vlbert_jax.convert import main

NAMES = GOLDEN / "names"


def official_shapes(variant: str) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of a released model."""
    lines = (NAMES / f"names_{variant}.tsv").read_text().splitlines()
    pairs = (line.split("\t") for line in lines)
    return {name: tuple(int(n) for n in shape.strip("[]").split(",") if n.strip()) for name, shape in pairs}


def fill(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """Return random tensors; those shared in the official code share one array."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in shapes.items():
        counter = name.endswith("num_batches_tracked")
        tensors[name] = rng.integers(0, 9, shape) if counter else rng.standard_normal(shape, dtype=np.float32)
    for name in tensors:
        if ".head.0." in name:
            tensors[name] = tensors[name.replace(".head.0.", ".roi_head_feature_extractor.")]
        if name.endswith("predictions.decoder.weight"):
            tensors[name] = tensors[name.replace("mlm_head.predictions.decoder", "word_embeddings")]
    return tensors


def shrunk(shapes: dict[str, tuple[int, ...]], layers: int = 2, blocks: int = 2) -> dict[str, tuple[int, ...]]:
    """Return the shapes with fewer layers and blocks and with smaller widths.

    Every width is divided by 16, and by 64 if it is over 10,000.
    """

    def small(n):
        return n if n < 16 else n // 64 if n > 10_000 else n // 16

    kept = {}
    for name, shape in shapes.items():
        parts = name.split(".")
        index = {"layer": layers, "layer1": blocks, "layer2": blocks, "layer3": blocks}
        if any(a in index and b.isdigit() and int(b) >= index[a] for a, b in zip(parts, parts[1:], strict=False)):
            continue
        geometry = name.endswith("obj_downsample.1.weight")
        kept[name] = (small(shape[0]), 2048 + small(shape[1] - 2048)) if geometry else tuple(map(small, shape))
    return kept


def hidden(shapes: dict[str, tuple[int, ...]]) -> int:
    return next(shape[1] for name, shape in shapes.items() if name.endswith("word_embeddings.weight"))


def fine_tuned(task: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Return a small model of a task as the official code saves it, with its heads."""
    shapes = shrunk(official_shapes("base_prec" if task == "answer" else "base_e2e"))
    size = hidden(shapes)
    dropped = ("mlm_head", "mvrc_head", "aux_text", "object_mask_")
    shapes = {name: shape for name, shape in shapes.items() if not any(part in name for part in dropped)}
    transform = {"dense.weight": (size, size), "dense.bias": (size,)}
    norm = {"LayerNorm.weight": (size,), "LayerNorm.bias": (size,)}

    def layers(prefix, named):
        return {f"module.{prefix}{name}": shape for name, shape in named.items()}

    if task == "answer":
        shapes |= layers("final_mlp.0.", transform | norm) | layers("final_mlp.2.", dict(weight=(53, size), bias=(53,)))
    elif task == "region":
        shapes |= layers("final_mlp.0.", transform) | layers("final_mlp.2.", dict(weight=(1, size), bias=(1,)))
    else:
        shapes |= layers("final_mlp.1.", dict(weight=(1, size), bias=(1,))) | layers("cnn_loss_reg.0.", transform)
        shapes |= layers("cnn_loss_reg.2.", dict(weight=(81, size), bias=(81,)))
        shapes |= layers("vlbert.pooler.", transform)
        shapes = {name.replace("vlbert.", "vlbert._module."): shape for name, shape in shapes.items()}
    return fill(shapes, seed)


def run(*args, capsys=None, code: int = 0) -> str:
    """Run the tool, check that its status is `code`, and return its output."""
    status = main([str(arg) for arg in args])
    out = capsys.readouterr() if capsys else None
    assert status == code, out
    return out.out + out.err if out else ""


def save_model(path: Path, tensors: dict, legacy: bool = False, **others) -> Path:
    """Write a file as the official trainer does; shared tensors share their storage."""
    import torch

    shared = {id(array): torch.from_numpy(np.asarray(array)) for array in tensors.values()}
    state = {name: shared[id(array)] for name, array in tensors.items()}
    torch.save({"state_dict": state, **others}, path, _use_new_zipfile_serialization=not legacy)
    return path


# --- Caffe files in the wire format of protobuf ---------------------------------------------------


def varint(n: int) -> bytes:
    out = bytearray()
    while n > 0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    return bytes([*out, n])


def field(number: int, payload: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def caffe_file(layers: dict[str, list[np.ndarray]], legacy: bool = False, old_layers: bool = False) -> bytes:
    """Return a serialized NetParameter with these layers and blobs.

    Args:
        layers: blobs of each layer.
        legacy: write shapes as num, channels, height and width.
        old_layers: use the field of the old layer format.
    """
    out = field(1, b"net")
    for name, blobs in layers.items():
        kind = field(4, name.encode()) + varint(5 << 3) + varint(4)
        body = kind if old_layers else field(1, name.encode()) + field(2, b"Convolution")
        for blob in blobs:
            if legacy:
                four = (1,) * (4 - blob.ndim) + blob.shape
                shape = b"".join(varint(i << 3) + varint(n) for i, n in enumerate(four, 1))
            else:
                shape = field(7, field(1, b"".join(map(varint, blob.shape))))
            body += field(6 if old_layers else 7, shape + field(5, struct.pack(f"<{blob.size}f", *blob.reshape(-1))))
        out += field(2 if old_layers else 100, body)
    return out
