"""A question about an image for `peers.py` and `roofline.py`: VL-BERT base with ResNet-101 and random weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_collections
import numpy as np

from benchmarks import shapes
from configs import vqa

if TYPE_CHECKING:
    from vlbert_jax.prediction.predictor import Predictor

IMAGE = (900, 600)  # width, height
REGIONS, WORDS = 36, 12
OF_ELEMENTS = ("token_ids", "region_ids", "segment_ids", "position_ids", "element_mask")
OF_REGIONS = ("region_mask", "region_hidden", "boxes", "box_geometry")


def recipe_of(small: bool, dtype: str = "float32") -> ml_collections.ConfigDict:
    """Return the config of the model, at a toy size if `small`."""
    config = vqa.base()
    config.model.train_region_head, config.data.features, config.compute_dtype = True, "image", dtype
    if small:
        shapes.shrink(config)
    return config


class Question:
    """A predictor of random weights, and what it is asked."""

    predictor: Predictor
    example: dict[str, np.ndarray]  # batch of one, as the task lays it out

    def __init__(self, folder: Path, config: ml_collections.ConfigDict):
        """Write the model into a folder and load it."""
        import vlbert_jax
        from benchmarks import predict

        predict.write_model(folder, config)
        self.predictor = predictor = vlbert_jax.load(folder / "model")
        rng, (width, height) = np.random.default_rng(0), IMAGE
        self.pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        corners = np.sort(rng.random((REGIONS, 2, 2)), axis=1) * IMAGE
        self.boxes, self.text = corners.reshape(REGIONS, 4).astype(np.float32), " ".join(["token"] * WORDS)
        record = dict(image=self.pixels, image_size=np.array(IMAGE, np.int32), boxes=self.boxes, image_feature=())
        example = predictor.task.example_from_text(record, self.text, (), predictor.config)
        self.example = {name: np.asarray(array)[None] for name, array in example.items()}

    def ask(self) -> list[Any]:
        """Return the five best answers; nothing of an earlier call is used again."""
        return self.predictor.answer(self.pixels, self.text, self.boxes)


def without_padding(batch: dict[str, Any]) -> dict[str, Any]:
    """Return a batch of one, of NumPy or PyTorch arrays, without padded elements, regions and margins of the canvas."""
    elements, regions = int(batch["element_mask"].sum()), int(batch["region_mask"].sum())
    width, height = IMAGE
    parts = {name: batch[name][:, :, :elements] for name in OF_ELEMENTS}
    parts |= {name: batch[name][:, :regions] for name in OF_REGIONS}
    return batch | parts | dict(pixels=batch["pixels"][:, :, :height, :width])
