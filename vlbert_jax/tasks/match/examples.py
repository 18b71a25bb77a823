"""Examples of retrieval: pairs of a text and an image, for training on the host, for evaluation on the device.

A pair is `[CLS] text [SEP]`, the regions of the image, and [END] where the architecture has it. In training
an example is a text with its image, the image with texts of other images, and the text with other images.
In evaluation every text is paired with every image, so the device joins them: each image is sent once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from vlbert_jax.batch import END, IMG, NO_IMAGE, Example
from vlbert_jax.data.examples import ImageLayout, image_fields
from vlbert_jax.data.packing import RegionLayout, pack
from vlbert_jax.data.tokenizer import Tokenizer, mirrored
from vlbert_jax.tasks.layouts import region_layout, sequence_length, text_length


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairLayout(ImageLayout):
    """Fields of a config that determine pairs of a text and an image."""

    sequence_length: int
    text_length: int  # of a text with [CLS] and [SEP]

    @classmethod
    def of(cls, config, orientation: str = "landscape") -> PairLayout:
        """Return the layout of a config; raise ValueError where a sequence has no room for a text and all regions."""
        d, regions, length, words = config.data, region_layout(config), sequence_length(config), text_length(config)
        if words < 3:
            raise ValueError(f"config.data.text_length is {words}; [CLS], a word and [SEP] need 3.")
        rows = 0 if regions.apart else d.max_regions + 1 - regions.first_row
        if words + rows > length:
            raise ValueError(
                f"config.data.sequence_length is {length}, but {words} elements of text (config.data.text_length) and "
                f"{rows} regions need {words + rows}: no pair is cut, so that each image is read alike with every text."
            )
        return cls(
            **cls.options(config, orientation, regions), sequence_length=length, text_length=words
        )


def text_ids(text: str, tokenizer: Tokenizer, length: int) -> tuple[list[int], bool]:
    """Return `[CLS] text [SEP]` with at most `length` ids, and whether the text was cut."""
    ids = sum(tokenizer.words(text, length), [])
    return [tokenizer.cls_id, *ids[: length - 2], tokenizer.sep_id], len(ids) > length - 2


def choice_of_pairs(
    texts: Sequence[str],
    images: Sequence[dict],
    flip: bool,
    tokenizer: Tokenizer,
    layout: PairLayout,
) -> Example:
    """Return the example of a text with its image, and of pairs that do not belong together.

    The sequences are: every text with the first image, then the first text with every further image. The
    first pair is the right one. In a mirrored example all images are mirrored, and left and right are
    exchanged in all texts.

    Args:
        texts: The text of the example and texts of other images.
        images: Record of its image and of other images, as for `image_fields`, with `boxes`.
        flip: Whether to mirror the images.
        tokenizer: Tokenizer of the run.
        layout: Shapes and options.
    """
    fields = [image_fields(record, record["boxes"], layout, flip) for record in images]
    rows = layout.max_regions + 1
    written = [text_ids(text, tokenizer, layout.text_length) for text in texts]
    if flip:
        written = [(mirrored(ids, tokenizer), cut) for ids, cut in written]
    pairs = [(ids, 0) for ids, _ in written] + [(written[0][0], image) for image in range(1, len(images))]
    sequences = []
    for ids, image in pairs:
        kept, zeros = int(fields[image]["region_mask"].sum()), np.zeros(len(ids), np.int32)
        packed = pack(
            ids, zeros, kept, np.zeros(kept, bool), zeros, layout.sequence_length, tokenizer.vocab_size,
            layout=layout.regions,
        )  # fmt: skip
        carried = packed["region_ids"]
        packed["region_ids"] = np.where(carried == NO_IMAGE, NO_IMAGE, carried + image * rows).astype(np.int32)
        sequences.append(packed)
    return (
        {name: np.stack([sequence[name] for sequence in sequences]) for name in sequences[0]}
        | {name: np.concatenate([image[name] for image in fields]) for name in fields[0]}
        | dict(choice=np.int32(0), text_cut=np.bool_(any(cut for _, cut in written)))
    )


def pair_on_device(
    ids: Int[Array, "n t"],
    lengths: Int[Array, " n"],
    num_rows: Int[Array, " b"],
    length: int,
    vocab_size: int,
    layout: RegionLayout,
) -> dict[str, Array]:
    """Return the sequences of every text with every image, [b, n, s] each, as `pack` makes them.

    Args:
        ids: Texts with [CLS] and [SEP].
        lengths: Number of real ids of each text.
        num_rows: Number of real regions of each image, with the whole image.
        length: Largest number of text elements and regions of a sequence.
        vocab_size: Size of the vocabulary.
        layout: How regions enter a sequence.
    """
    s = length + layout.end_token
    place, words = jnp.arange(s)[None, None], lengths[None, :, None]
    regions = 0 * num_rows if layout.apart else jnp.maximum(num_rows - layout.first_row, 0)
    end = words + regions[:, None, None]
    shape = len(num_rows), len(lengths), s
    is_text, is_region = place < words, (place >= words) & (place < end)
    is_end = (place == end) & layout.end_token
    texts = jnp.pad(ids, ((0, 0), (0, max(s - ids.shape[1], 0))))[None, :, :s]
    tokens = jnp.where(is_region, vocab_size + IMG, jnp.where(is_end, vocab_size + END, 0))
    carried = 0 if layout.words_carry == "all" else NO_IMAGE
    row = layout.first_row + place - words
    of_region = {"shared": words, "running": place, "zero": 0}[layout.positions]
    positions = jnp.where(is_region, of_region, jnp.where(is_end, words + 1, 0))
    fields = dict(
        token_ids=jnp.where(is_text, texts, tokens),
        region_ids=jnp.where(is_region, row, jnp.where(is_text, carried, NO_IMAGE)),
        segment_ids=jnp.where(is_region | is_end, layout.segment, 0),
        position_ids=jnp.where(is_text, place, positions),
    )
    fields = {name: jnp.broadcast_to(value, shape).astype(jnp.int32) for name, value in fields.items()}
    return fields | dict(element_mask=jnp.broadcast_to(is_text | is_region | is_end, shape))
