"""Names: the one table official PyTorch VL-BERT <-> ours, and reading weights of BERT, ResNet and VL-BERT.

Paths are ours, as tuples of an NNX state; official names are those of a `state_dict` without "module.".
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax.experimental.multihost_utils import process_allgather
from jaxtyping import Shaped

from vlbert_jax.batch import END, IMG, IMG_MASK
from vlbert_jax.checkpoint import read_weights

log = logging.getLogger(__name__)

# --- The table ------------------------------------------------------------------------------------------------------

MODULES = {
    "vlbert/embedding_norm": "vlbert.embedding_LayerNorm",
    "vlbert/text_visual_norm": "vlbert.visual_ln_text",
    "vlbert/region_visual_norm": "vlbert.visual_ln_object",
    "vlbert/text_resize": "vlbert.visual_1x1_text",
    "vlbert/region_resize": "vlbert.visual_1x1_object",
    "vlbert/encoder/layers/attention/query": "vlbert.encoder.layer.{layer}.attention.self.query",
    "vlbert/encoder/layers/attention/key": "vlbert.encoder.layer.{layer}.attention.self.key",
    "vlbert/encoder/layers/attention/value": "vlbert.encoder.layer.{layer}.attention.self.value",
    "vlbert/encoder/layers/attention/output": "vlbert.encoder.layer.{layer}.attention.output.dense",
    "vlbert/encoder/layers/attention_norm": "vlbert.encoder.layer.{layer}.attention.output.LayerNorm",
    "vlbert/encoder/layers/intermediate": "vlbert.encoder.layer.{layer}.intermediate.dense",
    "vlbert/encoder/layers/output": "vlbert.encoder.layer.{layer}.output.dense",
    "vlbert/encoder/layers/output_norm": "vlbert.encoder.layer.{layer}.output.LayerNorm",
    "vlbert/pooler": "vlbert.pooler.dense",
    "mlm_head/transform": "vlbert.mlm_head.predictions.transform.dense",
    "mlm_head/norm": "vlbert.mlm_head.predictions.transform.LayerNorm",
    "mrc_head/transform": "vlbert.mvrc_head.transform.dense",
    "mrc_head/classes": "vlbert.mvrc_head.region_cls_pred",
    "relationship_head": "vlbert.relationsip_head.caption_image_relationship",  # spelt so officially
    "region_classifier": "image_feature_extractor.regularizing_predictor",
    "fast_rcnn/projection": "image_feature_extractor.obj_downsample.1",
}
SINGLE = {  # our vectors and scalars that are whole official tensors
    "vlbert/position_embeddings": "vlbert.position_embeddings.weight",
    "vlbert/segment_embeddings": "vlbert.token_type_embeddings.weight",
    "vlbert/text_only_visual": "aux_text_visual_embedding.weight",
    "fast_rcnn/hidden_appearance": "object_mask_visual_embedding.weight",
    "mlm_head/bias": "vlbert.mlm_head.predictions.bias",
}
SCALARS = {
    "vlbert/text_visual_norm/scale": "vlbert.visual_scale_text",
    "vlbert/region_visual_norm/scale": "vlbert.visual_scale_object",
}
TOKEN_TABLE = "vlbert/token_embeddings"
EXTRA_TOKENS = {
    IMG: "object_linguistic_embeddings.weight",
    IMG_MASK: "object_mask_word_embedding.weight",
    END: "vlbert.end_embedding.weight",
}
C5_NAME = "image_feature_extractor.roi_head_feature_extractor"
BLOCK = re.compile(r"fast_rcnn/(?:backbone/stages/(\d+)|c5)/blocks/(\d+)/(conv\d|shortcut)")
NORM_LEAVES = {"gain": "weight", "offset": "bias", "mean": "running_mean", "variance": "running_var"}
# Official tensors that carry nothing of their own: C5 registered twice, the tied decoder, batch counters.
DUPLICATE = re.compile(
    r"image_feature_extractor\.head\.0\.|vlbert\.mlm_head\.predictions\.decoder\.weight$|.*\.num_batches_tracked$"
)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One official tensor and where it lies in ours: of `path`, the layer, then the rows, in another layout."""

    official: str
    path: tuple
    layout: str = "same"  # same | linear (transposed) | conv (OIHW <-> HWIO) | row ([1, d] <-> [d])
    layer: int | None = None
    rows: tuple[int, int] | None = None

    def to_ours(self, array: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
        transpose = {"linear": (1, 0), "conv": (2, 3, 1, 0)}.get(self.layout)
        return (
            array[0] if self.layout == "row" else array if transpose is None else array.transpose(transpose)
        )

    def to_official(self, array: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
        transpose = {"linear": (1, 0), "conv": (3, 2, 0, 1)}.get(self.layout)
        return (
            array[None]
            if self.layout == "row"
            else array
            if transpose is None
            else array.transpose(transpose)
        )

    def part(self, ours: Shaped[np.ndarray, "..."]) -> Shaped[np.ndarray, "..."]:
        """The view of our array at `path` that this tensor fills."""
        ours = ours if self.layer is None else ours[self.layer]
        return ours if self.rows is None else ours[slice(*self.rows)]


def name_table(shapes: Mapping[tuple, tuple[int, ...]], vocab_size: int) -> Iterator[Entry]:
    """Every official tensor that a model with these parameters has; `shapes` maps our paths to shapes."""
    for path, shape in shapes.items():
        name = "/".join(map(str, path))
        module, _, leaf = name.rpartition("/")
        if name == TOKEN_TABLE:
            yield Entry("vlbert.word_embeddings.weight", path, rows=(0, vocab_size))
            for offset, official in EXTRA_TOKENS.items():
                yield Entry(official, path, rows=(vocab_size + offset, vocab_size + offset + 1))
        elif name == "mlm_head/bias":
            yield Entry(SINGLE[name], path, rows=(0, vocab_size))
        elif name in SCALARS and shape == ():
            yield Entry(SCALARS[name], path)
        elif name in SINGLE:
            yield Entry(SINGLE[name], path, layout="row" if len(shape) == 1 else "same")
        elif name.startswith(("fast_rcnn/backbone/", "fast_rcnn/c5/")):
            yield _convolution_entry(module, leaf, path)
        elif module in MODULES:
            official = MODULES[module] + (".bias" if leaf == "bias" else ".weight")
            layout = "linear" if leaf == "kernel" else "same"
            for layer in range(shape[0]) if "{layer}" in official else (None,):
                yield Entry(official.format(layer=layer), path, layout, layer)
        else:
            raise KeyError(f"parameter {name} has no official name; add it to MODULES or SINGLE")


def _convolution_entry(module: str, leaf: str, path: tuple) -> Entry:
    if module == "fast_rcnn/backbone/stem":
        prefix, convolution, norm = "image_feature_extractor.backbone", "conv1", "bn1"
    else:
        stage, block, part = BLOCK.fullmatch(module).groups()
        prefix = (
            f"{C5_NAME}.{block}"
            if stage is None
            else f"image_feature_extractor.backbone.layer{int(stage) + 1}.{block}"
        )
        convolution, norm = (
            ("downsample.0", "downsample.1") if part == "shortcut" else (part, part.replace("conv", "bn"))
        )
    if leaf == "kernel":
        return Entry(f"{prefix}.{convolution}.weight", path, "conv")
    return Entry(f"{prefix}.{norm}.{NORM_LEAVES[leaf]}", path)


# --- Both directions ------------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Report:
    """What became of the official tensors: filled in, absent from the source, present but not wanted."""

    matched: list[str] = dataclasses.field(default_factory=list)
    missing: list[str] = dataclasses.field(default_factory=list)
    unused: list[str] = dataclasses.field(default_factory=list)


def from_official(tensors: Mapping[str, np.ndarray], ours: Mapping[tuple, np.ndarray], vocab_size: int):
    """Copies of our arrays with every tensor of the source filled in, and a `Report`.

    Raises ValueError where a tensor has another shape than the model.
    """
    tensors = {name.removeprefix("module."): array for name, array in tensors.items()}
    filled = {path: np.array(array) for path, array in ours.items()}
    report, wanted = Report(), set()
    for entry in name_table({path: array.shape for path, array in ours.items()}, vocab_size):
        wanted.add(entry.official)
        if entry.official not in tensors:
            report.missing.append(entry.official)
            continue
        source, target = entry.to_ours(tensors[entry.official]), entry.part(filled[entry.path])
        if entry.official == "vlbert.token_type_embeddings.weight" and len(source) < len(target):
            target = target[: len(source)]  # BERT has two segments; the third keeps its initial value
        if source.shape != target.shape:
            raise ValueError(
                f"{entry.official} has shape {source.shape}, the model wants {target.shape}: sizes differ"
            )
        target[...] = source
        report.matched.append(entry.official)
    special = tensors.get("vlbert.special_word_embeddings.weight")
    if special is not None:  # `word_embedding_frozen`: a trained copy of the first rows stands in for them
        filled[tuple(TOKEN_TABLE.split("/"))][: len(special)] = special
        wanted.add("vlbert.special_word_embeddings.weight")
    report.unused = [name for name in tensors if name not in wanted and not DUPLICATE.match(name)]
    return filled, report


def to_official(ours: Mapping[tuple, np.ndarray], vocab_size: int) -> dict[str, np.ndarray]:
    """The official `state_dict`, its duplicates and zeroed batch counters included."""
    tensors = {}
    for entry in name_table({path: array.shape for path, array in ours.items()}, vocab_size):
        tensors[entry.official] = entry.to_official(entry.part(np.asarray(ours[entry.path])))
        if entry.official.endswith("running_var"):
            tensors[entry.official.replace("running_var", "num_batches_tracked")] = np.zeros((), np.int64)
    tensors["vlbert.mlm_head.predictions.decoder.weight"] = tensors["vlbert.word_embeddings.weight"]
    for name in [name for name in tensors if name.startswith(C5_NAME)]:
        tensors[name.replace("roi_head_feature_extractor", "head.0")] = tensors[name]
    return tensors


# --- Files ----------------------------------------------------------------------------------------------------------


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """Tensors of a `.safetensors` or PyTorch file, half precision widened to float32. Runs no code from the file."""
    path = Path(path).expanduser()
    if path.is_dir():
        found = [path / name for name in ("model.safetensors", "pytorch_model.bin") if (path / name).exists()]
        if not found:
            raise FileNotFoundError(f"{path} holds neither model.safetensors nor pytorch_model.bin")
        path = found[0]
    if not path.exists():
        raise FileNotFoundError(f"no weights at {path}")
    if path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        tensors = load_file(path)
    else:
        try:
            import torch
        except ImportError as error:
            raise ImportError(
                f"{path} is a PyTorch file: pip install 'vlbert_jax[convert]' to read it"
            ) from error
        loaded = torch.load(path, map_location="cpu", weights_only=True)
        loaded = loaded.get("state_dict", loaded)
        tensors = {
            name: tensor.float().numpy() for name, tensor in loaded.items() if hasattr(tensor, "numpy")
        }
    return {name: a.astype(np.float32) if a.dtype == np.float16 else a for name, a in tensors.items()}


def bert_to_official(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """BERT's names (with or without `bert.`, old `gamma`/`beta`) to VL-BERT's (spec of the official loader)."""
    renamed = {}
    for name, array in tensors.items():
        name = name.removeprefix("bert.").replace(".gamma", ".weight").replace(".beta", ".bias")
        name = name.replace("embeddings.LayerNorm", "embedding_LayerNorm").removeprefix("embeddings.")
        name = name.replace("cls.predictions", "mlm_head.predictions")
        name = name.replace("cls.seq_relationship", "relationsip_head.caption_image_relationship")
        renamed[f"vlbert.{name}"] = array
    return renamed


def resnet_to_official(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """torchvision's ResNet names to those of the region head: layer4 is its C5."""
    return {
        name.replace("layer4", C5_NAME)
        if name.startswith("layer4.")
        else f"image_feature_extractor.backbone.{name}": array
        for name, array in tensors.items()
    }


# --- Starting a run from weights ------------------------------------------------------------------------------------


def load_into(params: nnx.State, constants: nnx.State, vocab_size: int, *, bert="", resnet="", checkpoint=""):
    """The two states with the weights of the named files in them, on the devices they were on.

    `checkpoint` is a workdir of ours or an official VL-BERT file and stands alone; `bert` and `resnet` fill their parts
    and leave the rest as initialised. What came from where is logged. Raises FileNotFoundError, or ValueError where
    sizes differ.
    """
    sources = dict(checkpoint=checkpoint) if checkpoint else dict(bert=bert, resnet=resnet)
    renaming = dict(checkpoint=dict, bert=bert_to_official, resnet=resnet_to_official)
    variables = {path: v for state in (params, constants) for path, v in nnx.to_flat_state(state)}
    arrays = {path: _on_host(v[...]) for path, v in variables.items()}
    origin = dict.fromkeys(("vlbert", "fast_rcnn", "mlm_head"), "scratch")
    for kind, path in sources.items():
        if not path:
            continue
        if kind == "checkpoint" and Path(path).expanduser().is_dir():
            tensors = to_official(_flatten(read_weights(path)), vocab_size)
        else:
            tensors = renaming[kind](read_tensors(path))
        arrays, report = from_official(tensors, arrays, vocab_size)
        if not report.matched:
            raise ValueError(f"init.{kind}: nothing in {path} belongs to this model; is it a {kind} file?")
        log.info(
            "init.%s %s: %d tensors taken, %d of the model not in it, %d not needed%s",
            *(kind, path, len(report.matched), len(report.missing), len(report.unused)),
            f" ({', '.join(report.unused[:3])} …)" if report.unused else "",
        )
        for name in origin:
            if any(_group(official) == name for official in report.matched):
                origin[name] = f"init.{kind}"
    for name, source in origin.items():
        log.info("parameters of %s: from %s", name, source)

    def place(state: nnx.State) -> nnx.State:
        placed = []
        for path, v in nnx.to_flat_state(state):
            array = arrays[path].astype(v[...].dtype)
            whole = jax.make_array_from_callback(array.shape, v[...].sharding, lambda index, array=array: array[index])
            placed.append((path, v.replace(whole)))
        return nnx.from_flat_state(placed)

    return place(params), place(constants)


def _on_host(array: jax.Array) -> np.ndarray:
    """The whole array; with several hosts each holds a part of it."""
    return np.asarray(array if array.is_fully_addressable else process_allgather(array, tiled=True))


def _flatten(weights: Mapping) -> dict[tuple, np.ndarray]:
    """Paths to arrays, of the nested dicts that a checkpoint holds; list indices are strings there."""
    flat = jax.tree_util.tree_flatten_with_path((weights["params"], weights.get("constants", {})))[0]
    return {tuple(str(key.key) for key in path[1:]): np.asarray(array) for path, array in flat}


def _group(official: str) -> str:
    if official.startswith("image_feature_extractor"):
        return "fast_rcnn"
    return "mlm_head" if "mlm_head" in official else "vlbert"
