"""The text of B2T2's sequences, in which the whole image and the objects that are named are words.

It is `[CLS] [IMAGE] question [SEP] answer rationale [SEP]`. [IMAGE] carries the whole image. An object is the tokens of
its class and [OBJ-k], which carries its box; further tokens carry nothing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from vlbert_jax.batch import IMG, NO_IMAGE
from vlbert_jax.data.sibling_rules import IMAGE, OBJECT, b2t2_cut, b2t2_sequence, b2t2_tokens, box_slots
from vlbert_jax.data.tokenizer import Tokenizer

SPECIAL = 4  # [CLS], [IMAGE] and two [SEP]


def object_token(number: int, tokenizer: Tokenizer) -> int | None:
    """Return the id of [OBJ-k] of object k: its own token, or else [unused k]; None where there is neither."""
    backend = tokenizer.backend
    found = backend.token_to_id(f"[OBJ-{number}]")
    return backend.token_to_id(f"[unused{number}]") if found is None else found


def require_objects(number: int, tokenizer: Tokenizer) -> None:
    """Raise ValueError where the vocabulary has no token for each of the first `number` objects."""
    known = next((k for k in range(number) if object_token(k, tokenizer) is None), number)
    if known < number:
        raise ValueError(
            f"config.data.max_regions is {number}, but the vocabulary (config.data.vocab) has tokens for {known} "
            f"objects, [OBJ-0] or [unused0] and so on: set config.data.max_regions={known}, or choose another one."
        )


def inline_texts(
    record: dict, tokenizer: Tokenizer, subtask: str, limit: int, max_regions: int
) -> tuple[list[tuple[list[int], list[int], list[int]]], bool]:
    """Return the text of each sequence, in the order of `texts_of`, and whether any was cut.

    Objects beyond the first `max_regions` have their name alone. A question that lost tokens with one answer has lost
    them with the next ones, and an answer with its next rationales, as in the original code.

    Args:
        record: Record of the question.
        tokenizer: Tokenizer of the run.
        subtask: q2a or qa2r.
        limit: Largest number of tokens of all texts of a sequence.
        max_regions: Number of objects that have a token.

    Returns:
        Token ids, segments, and the region that each token carries, NO_IMAGE = none.

    Raises:
        ValueError: The vocabulary has too few tokens for objects.
    """
    require_objects(max_regions, tokenizer)

    def tokens(text: str) -> list[str]:
        parts = b2t2_tokens(json.loads(text), record["objects"], lambda word: tokenizer.encode(word).tokens)
        return [token for token in parts if not (match := OBJECT.fullmatch(token)) or int(match[1]) < max_regions]

    question, answers, label = tokens(record["question"]), list(record["answers"]), int(record["answer_label"])
    if subtask == "qa2r" and label >= 0:
        answers = [answers[label]]
    responses = [[]] if subtask == "q2a" else [[tokens(text)] for text in record["rationales"]]
    found, was_cut = [], False
    for answer in map(tokens, answers):
        for response in responses:
            whole = [question, answer, *response]
            question, answer, *rationale = b2t2_cut(whole, limit)
            was_cut |= [question, answer, *rationale] != whole
            found.append(_sequence([question, answer, *rationale], tokenizer))
    return found, was_cut


def _sequence(parts: Sequence[list[str]], tokenizer: Tokenizer) -> tuple[list[int], list[int], list[int]]:
    tokens, segments = b2t2_sequence(parts)
    objects, slots = box_slots(tokens)
    regions = [NO_IMAGE if slot < 0 else objects[slot] + 1 for slot in slots]
    regions[tokens.index(IMAGE)] = 0
    return [_id_of(token, tokenizer) for token in tokens], segments, regions


def _id_of(token: str, tokenizer: Tokenizer) -> int:
    """Return the id of a token; [IMAGE] is [IMG], which pre-training has trained as the whole image."""
    if match := OBJECT.fullmatch(token):
        found = object_token(int(match[1]), tokenizer)
    else:
        found = tokenizer.vocab_size + IMG if token == IMAGE else tokenizer.backend.token_to_id(token)
    assert found is not None, token
    return found
