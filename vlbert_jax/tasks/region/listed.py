"""Examples of tables that list the right regions: Flickr30k Entities, Visual7W, user-supplied data.

Besides the expression, the record of a text has

    context    the sentence that the expression is a phrase of; "" = none
    choices    int64 [k]: numbers of the boxes that may be chosen; empty = every box, and the whole image
    targets    int64 [m]: numbers of the right boxes
    gold       float64 [m, 4]: or right boxes, of which a region must share half of the union (IoU >= 0.5)
    boxes      float32 [n, 4]: boxes of the text, in place of those of its image; absent = those of its image

Row 0 of the regions is the whole image. `first_row`, of `RegionLayout`, is 1 where the model does not read it.
"""

import numpy as np
from jaxtyping import Bool

from vlbert_jax.batch import Example
from vlbert_jax.data.overlap import FOUND, continuous_iou
from vlbert_jax.data.packing import padded
from vlbert_jax.data.tokenizer import Tokenizer
from vlbert_jax.tasks.region.examples import ExpressionLayout, asked_example

FIELDS = ("context", "choices", "targets", "gold")


def check_listed(record: dict) -> None:
    """Raise ValueError where a table does not list the right regions."""
    if missing := [name for name in FIELDS if name not in record]:
        raise ValueError(
            f"the records have no {missing[0]}, so their table lists no right regions. Choose among detections or "
            "annotations: config.data.train_boxes and config.data.eval_boxes = gt, detected or both."
        )


def is_labeled(record: dict) -> bool:
    """Return whether the right regions of a record are known."""
    return len(record["targets"]) > 0 or len(record["gold"]) > 0


def choosable_rows(record: dict, first_row: int) -> Bool[np.ndarray, "r"]:
    """Return which rows may be chosen."""
    chosen = np.zeros(len(record["boxes"]) + 1, bool)
    chosen[1 + record["choices"] if len(record["choices"]) else slice(first_row, None)] = True
    return chosen


def right_rows(record: dict, first_row: int) -> Bool[np.ndarray, "r"]:
    """Return which rows are right, among those that may be chosen.

    Boxes are compared in pixels of the original image and in double precision.
    """
    width, height = record["image_size"]
    boxes = np.concatenate([[[0, 0, width - 1, height - 1]], record["boxes"]]).astype(np.float64)
    right = np.isin(np.arange(len(boxes)) - 1, record["targets"])
    if len(record["gold"]):
        right |= (continuous_iou(boxes, record["gold"]) >= FOUND).any(1)
    return right & choosable_rows(record, first_row)


def listed_example(record: dict, flip: bool, tokenizer: Tokenizer, layout: ExpressionLayout) -> Example:
    """Return `[CLS] expression [SEP]`, or `[CLS] context [SEP] expression [SEP]`, and the regions; n = 1.

    Regions beyond `max_regions` cannot be chosen.

    Args:
        record: As for `image_fields`, with the fields of a text; see the docstring of the module.
        flip: Whether to mirror the image; left and right are exchanged in the text.
        tokenizer: Tokenizer of the run.
        layout: Shapes and options.
    """
    rows, first = layout.max_regions + 1, layout.regions.first_row
    right = padded(right_rows(record, first)[:rows], rows)
    choosable = padded(choosable_rows(record, first)[:rows], rows)
    example = asked_example(record, record["boxes"], flip, tokenizer, layout)
    known = np.bool_(is_labeled(record))
    return example | dict(region_targets=right, region_hits=right.copy(), region_choices=choosable, region_known=known)
