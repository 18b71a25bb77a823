"""Examples of retrieval: pairs of a text and an image, for training on the host, for evaluation on the device.

A pair is `[CLS] text [SEP]`, the regions of the image, and [END] where the architecture has it. Names of the regions
are with [SEP] the second text of an architecture that reads them. In training an example is a text with its image, the
image with texts of other images, and the text with other images. In evaluation every text is paired with
every image, so the device joins them: each image is sent once.

A query of an image and a text has one more image, the first of the example: a pair is then the text, the
regions of the image of the query, and those of the image that it is compared with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from vlbert_jax.batch import END, IMG, NO_IMAGE, Example
from vlbert_jax.data.examples import ImageLayout, image_fields, images_per_example
from vlbert_jax.data.packing import RegionLayout, further_segment, pack_images
from vlbert_jax.data.tokenizer import Tokenizer, mirrored
from vlbert_jax.tasks.layouts import closed, names_of_regions, region_layout, sequence_length, text_length


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairLayout(ImageLayout):
    """Fields of a config that determine pairs of a text and an image."""

    sequence_length: int
    text_length: int  # of a text with [CLS] and [SEP]
    num_segments: int  # rows of the table of segments

    @property
    def asked(self) -> int:
        """The number of images of a query: 1 where it is an image with a text, 0 where it is a text."""
        return self.num_images - 1

    @classmethod
    def of(cls, config, orientation: str = "landscape") -> PairLayout:
        """Return the layout of a config; raise ValueError where a sequence has no room for a text and all regions."""
        d, regions, length, words = config.data, region_layout(config), sequence_length(config), text_length(config)
        images = images_per_example(config)
        if images not in (1, 2):
            raise ValueError(f"config.data.images_per_example is {images}; it must be 1 or 2.")
        if images == 2 and regions.apart:
            raise ValueError(
                f"config.model.architecture is {config.model.architecture!r}, but queries of an image and a text are "
                "read with a candidate in one sequence: choose an architecture of one stream."
            )
        if words < 3:
            raise ValueError(f"config.data.text_length is {words}; [CLS], a word and [SEP] need 3.")
        rows = 0 if regions.apart else images * (d.max_regions + 1 - regions.first_row)
        if words + rows > length:
            raise ValueError(
                f"config.data.sequence_length is {length}, but {words} elements of text (config.data.text_length) and "
                f"{rows} regions need {words + rows}: no pair is cut, so that each image is read alike with every text."
            )
        return cls(
            **cls.options(config, orientation, regions), sequence_length=length, text_length=words,
            num_segments=config.model.encoder.num_segments,
        )  # fmt: skip


def text_ids(text: str, tokenizer: Tokenizer, length: int) -> tuple[list[int], bool]:
    """Return `[CLS] text [SEP]` with at most `length` ids, and whether the text was cut."""
    ids = sum(tokenizer.words(text, length), [])
    return [tokenizer.cls_id, *ids[: length - 2], tokenizer.sep_id], len(ids) > length - 2


def with_names(
    ids: list[int], names: list[int], tokenizer: Tokenizer, length: int
) -> tuple[list[int], Int[np.ndarray, " t"]]:
    """Return `ids`, as many of `names` as there is room for and [SEP], at most `length` ids; and their segments."""
    behind = closed(names, length - len(ids), tokenizer)
    return ids + behind, np.repeat(np.array([0, 1], np.int32), [len(ids), len(behind)])


def with_names_on_device(
    ids: Int[Array, "n t"],
    lengths: Int[Array, " n"],
    names: Int[Array, "b k"],
    counts: Int[Array, " b"],
    length: int,
) -> tuple[Int[Array, "b n l"], Int[Array, "b n"]]:
    """Return every text with the names of the regions of every image, as `with_names` joins them, and their lengths.

    Args:
        ids: Texts with [CLS] and [SEP].
        lengths: Number of real ids of each text.
        names: Ids of the names of each image.
        counts: Number of real ids of these.
        length: Largest number of ids of both, at least t.
    """
    starts = lengths[None, :, None]
    kept = jnp.minimum(counts[:, None, None], jnp.maximum(length - 1 - starts, 0))  # b n 1
    place = jnp.arange(length)[None, None] - starts  # among the names
    texts = jnp.pad(ids, ((0, 0), (0, length - ids.shape[1])))
    named = jnp.take_along_axis(names[:, None], jnp.clip(place, 0, names.shape[1] - 1), axis=2)
    behind = jnp.where(place < kept, named, jnp.where((place == kept) & (kept > 0), ids[0, lengths[0] - 1], 0))
    return jnp.where(place < 0, texts[None], behind), (starts + kept + (kept > 0))[..., 0]


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
    exchanged in all texts. Of a query with an image, this image comes before the others, in every sequence.

    Args:
        texts: The text of the example and texts of other images.
        images: The image of the query if it has one, then the right image and other images: records as for
            `image_fields`, with `boxes`.
        flip: Whether to mirror the images.
        tokenizer: Tokenizer of the run.
        layout: Shapes and options.
    """
    fields = [image_fields(record, record["boxes"], layout, flip) for record in images]
    rows = layout.max_regions + 1
    written = [text_ids(text, tokenizer, layout.text_length) for text in texts]
    if flip:
        written = [(mirrored(ids, tokenizer), cut) for ids, cut in written]
    right, asked = layout.asked, range(layout.asked)
    pairs = [(ids, right) for ids, _ in written] + [(written[0][0], image) for image in range(right + 1, len(images))]
    names = [[] if layout.asked else names_of_regions(record, tokenizer, layout) for record in images]
    rows_of = [image * rows + np.flatnonzero(one["region_mask"]) for image, one in enumerate(fields)]
    sequences = [
        pack_images(
            *with_names(ids, names[image], tokenizer, layout.text_length), [rows_of[k] for k in (*asked, image)],
            layout.sequence_length, tokenizer.vocab_size, layout.num_segments, layout.regions,
        )
        for ids, image in pairs
    ]  # fmt: skip
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
    names: tuple[Int[Array, "b k"], Int[Array, " b"], int] | None = None,
) -> dict[str, Array]:
    """Return the sequences of every text with every image, [b, n, s] each, as `pack` makes them.

    Args:
        ids: Texts with [CLS] and [SEP].
        lengths: Number of real ids of each text.
        num_rows: Number of real regions of each image, with the whole image.
        length: Largest number of text elements and regions of a sequence.
        vocab_size: Size of the vocabulary.
        layout: How regions enter a sequence.
        names: Where the text has the names of the regions, the last arguments of `with_names_on_device`.
    """
    firsts = lengths[None, :, None]
    words, texts = firsts, ids[None]
    if names is not None:
        texts, words = with_names_on_device(ids, lengths, *names)
        words = words[..., None]
    number = 0 * num_rows if layout.apart else jnp.maximum(num_rows - layout.first_row, 0)
    return _on_device(texts, firsts, words, [number[:, None, None]], [0], [layout.segment], length, vocab_size, layout)


def query_on_device(
    ids: Int[Array, "b t"],
    lengths: Int[Array, " b"],
    num_rows: Int[Array, "b 2"],
    rows: int,
    num_segments: int,
    length: int,
    vocab_size: int,
    layout: RegionLayout,
) -> dict[str, Array]:
    """Return the sequence of each query and its candidate, [b, 1, s] each, as `pack_images` makes them.

    Args:
        ids: As in `pair_on_device`, the text of each query.
        lengths: As in `pair_on_device`.
        num_rows: As in `pair_on_device`, of the image of each query and of its candidate.
        rows: Rows of an image.
        num_segments: Rows of the table of segments.
        length: As in `pair_on_device`.
        vocab_size: As in `pair_on_device`.
        layout: As in `pair_on_device`.
    """
    number = jnp.maximum(num_rows - layout.first_row, 0)[:, None, :, None]
    segments = [layout.segment, further_segment(1, num_segments, layout)]
    words = lengths[:, None, None]
    return _on_device(ids[:, None], words, words, [number[:, :, 0], number[:, :, 1]], [0, rows], segments, length,
                      vocab_size, layout)  # fmt: skip


def _on_device(
    ids: Int[Array, "#b n t"], firsts: Int[Array, "#b n 1"], words: Int[Array, "#b n 1"],
    numbers: Sequence[Int[Array, "b #n 1"]], first_rows: Sequence[int], segments: Sequence[int], length: int,
    vocab_size: int, layout: RegionLayout,
) -> dict[str, Array]:  # fmt: skip
    """Return sequences of texts of `words` ids, over images with `numbers` of elements; axes b and n broadcast.

    The first `firsts` ids of a text have segment 0, further ones segment 1.
    """
    s = length + layout.end_token
    place = jnp.arange(s)[None, None]
    texts = jnp.pad(ids, ((0, 0), (0, 0), (0, max(s - ids.shape[2], 0))))[..., :s]
    is_text, start = place < words, words
    tokens, positions = jnp.where(is_text, texts, 0), jnp.where(is_text, place, 0)
    region_ids = jnp.where(is_text & (layout.words_carry == "all"), 0, NO_IMAGE)
    segment_ids = jnp.where(is_text & (place >= firsts), 1, 0 * tokens)
    behind = words  # the position behind the text, from which those of regions are counted
    for image, (number, first_row, segment) in enumerate(zip(numbers, first_rows, segments, strict=True)):
        here = (place >= start) & (place < start + number)
        tokens = jnp.where(here, vocab_size + IMG, tokens)
        region_ids = jnp.where(here, first_row + layout.first_row + place - start, region_ids)
        segment_ids = jnp.where(here, segment, segment_ids)
        behind = words + image
        position = {"shared": behind, "running": place, "zero": 0}[layout.positions]
        positions, start = jnp.where(here, position, positions), start + number
    if layout.end_token:
        is_end = place == start
        tokens = jnp.where(is_end, vocab_size + END, tokens)
        segment_ids = jnp.where(is_end, layout.segment, segment_ids)
        positions = jnp.where(is_end, (behind if layout.positions == "shared" else words) + 1, positions)
    fields = dict(token_ids=tokens, region_ids=region_ids, segment_ids=segment_ids, position_ids=positions)
    shape = jnp.broadcast_shapes(tokens.shape, place.shape, start.shape)
    fields = {name: jnp.broadcast_to(value, shape).astype(jnp.int32) for name, value in fields.items()}
    return fields | dict(element_mask=jnp.broadcast_to(place < start + layout.end_token, shape))
