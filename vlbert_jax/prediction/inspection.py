"""What a model computes of an image and a text besides answers: the states and the attention of their elements."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from vlbert_jax.batch import IMG, Batch
from vlbert_jax.model.config import architecture_of
from vlbert_jax.model.two_stream import TwoStreamStates
from vlbert_jax.prediction.attention_maps import squares
from vlbert_jax.prediction.requests import requests_of
from vlbert_jax.prediction.seen import Attention, Encoded


class Inspecting:
    """The methods of `Predictor` that return states and attention."""

    def encode(self: Any, image: Any, text: Any, boxes: Any = None, choice: str = "") -> Any:
        """Return the last states of the sequence of a text as `Encoded`.

        `choice` is the choice of a task that takes choices. For lists the result is a list.
        """
        requests, several = requests_of(image, text, (choice,), boxes)
        found = []
        for _, batch, states in self._results(self._states, requests):
            tokens, (first, end) = self._elements(batch)
            if isinstance(states, TwoStreamStates):
                found.append(Encoded(tokens, states.text[0, 0, :first], states.visual[0, 0, : end - first]))
            else:
                found.append(Encoded(tokens, states[0, 0, :first], states[0, 0, first:end]))
        return found if several else found[0]

    def attention(self: Any, image: Any, text: Any, boxes: Any = None, choice: str = "") -> Any:
        """Return the attention of every element of the sequence of a text to every other as `Attention`.

        In two streams each layer is four maps: of words, of regions, and from one to the other. For lists the result
        is a list.
        """
        requests, several = requests_of(image, text, (choice,), boxes)
        found = []
        for picture, batch, maps in self._results(self._attention, requests):
            tokens, (first, end) = self._elements(batch)
            names = tuple(map(picture.regions.name, range(len(picture.regions) + 1)))
            maps = jax.tree.map(lambda rows: rows[0, :, 0], maps)
            has_end = architecture_of(self.config).end_token
            found.append(Attention(tokens, names, *squares(maps, len(tokens), len(names), end - first, has_end)))
        return found if several else found[0]

    def _elements(self: Any, batch: Batch) -> tuple[tuple[str, ...], tuple[int, int]]:
        """Return the tokens of the text, and where regions begin and end in the (first) sequence.

        In two streams they end where a sequence with all of them would. [IMG] in a text is the whole image (B2T2),
        whose sequences end with words.
        """
        ids, real = batch.token_ids[0, 0], int(batch.element_mask[0, 0].sum())
        architecture = architecture_of(self.config)
        if architecture.streams == 2:
            rows = int(batch.region_mask[0].sum()) - (not architecture.whole_image)
            first, end = real, real + rows
        else:
            end = real - architecture.end_token
            words = np.flatnonzero(ids[:end] != self.tokenizer.vocab_size + IMG)
            first = int(words[-1]) + 1
        return tuple(self.tokenizer.backend.id_to_token(int(i)) or "[IMAGE]" for i in ids[:first]), (first, end)
