"""The attention maps of any architecture as squares over words, all regions and [END], so that one page draws them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

# Name of a map -> whether regions read, and whether regions are read.
SIDES = {
    "words": (False, False),
    "regions": (True, True),
    "words to regions": (False, True),
    "regions to words": (True, False),
}


def squares(
    maps: np.ndarray | Mapping[str, np.ndarray], num_words: int, num_regions: int, num_read: int, has_end: bool
) -> tuple[Float[np.ndarray, "all heads z z"], tuple[str, ...]]:
    """Return maps of one sequence as squares over words, all regions and [END], and the names of the layers.

    What the model does not read has zeros. The layers of one stream have numbers, thus no names.

    Args:
        maps: Of one stream [layers, heads, s, s] over words, regions, perhaps [END], then padding; of two streams by
            the name of the map.
        num_words: Number of words.
        num_regions: Number of regions, with the whole image.
        num_read: How many of them the model reads, the last ones.
        has_end: Whether [END] follows in the sequence.
    """
    if isinstance(maps, Mapping):
        return one_square_each(maps, num_words, num_regions, num_read)
    size = num_words + num_regions + 1
    places = np.r_[0:num_words, size - 1 - num_read : size - 1 + has_end]
    found = np.zeros((*maps.shape[:2], size, size), np.float32)
    found[:, :, places[:, None], places] = maps[:, :, : len(places), : len(places)]
    return found, ()


def one_square_each(
    maps: Mapping[str, Float[np.ndarray, "layers heads q k"]], num_words: int, num_regions: int, num_read: int
) -> tuple[Float[np.ndarray, "all heads s s"], tuple[str, ...]]:
    """Return the maps as squares over words, regions and [END], each with zeros outside its part, and their names.

    Maps of streams with fewer heads have zeros in the others.

    Args:
        maps: Of `two_stream_batch.attention`, of one sequence; words and regions of padding are left out.
        num_words: Number of words.
        num_regions: Number of regions, with the whole image.
        num_read: How many of them the model reads, the last ones.
    """
    heads, size = max(array.shape[1] for array in maps.values()), num_words + num_regions + 1
    unread = num_words + num_regions - num_read
    squares, names = [], []
    for name, array in maps.items():
        sides = [slice(unread, unread + num_read) if regions else slice(0, num_words) for regions in SIDES[name]]
        rows, columns = (num_read if regions else num_words for regions in SIDES[name])
        for number, layer in enumerate(array, 1):
            square = np.zeros((heads, size, size), np.float32)
            square[: len(layer), sides[0], sides[1]] = layer[:, :rows, :columns]
            squares.append(square)
            names.append(f"{name} {number}")
    return np.stack(squares), tuple(names)
