"""Captioning: a caption is written word by word, each predicted at a [MASK] from the image and the words before it.

Training masks some tokens of a caption; a word reads only what is before it (masked sequence-to-sequence
training, as in VLP and Oscar). `CaptionTask.conclude` writes the captions of a split and scores them.
"""

import dataclasses
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from vlbert_jax.batch import Arrays, Batch, Example, abstract_batch, padding
from vlbert_jax.data.examples import image_fields, orientation_of
from vlbert_jax.data.tables import Split
from vlbert_jax.data.tokenizer import Tokenizer, tokenizer_of
from vlbert_jax.files import atomic_write
from vlbert_jax.model.config import model_options
from vlbert_jax.model.layers import split_keys
from vlbert_jax.model.visual_linguistic import without_image
from vlbert_jax.tasks import report
from vlbert_jax.tasks.answers import Answer, answer_fields
from vlbert_jax.tasks.base import Task
from vlbert_jax.tasks.caption import batches
from vlbert_jax.tasks.caption.examples import DescriptionLayout, check_architecture, description_sequence
from vlbert_jax.tasks.caption.model import CaptionModel, write_captions
from vlbert_jax.tasks.caption.scores import caption_scores, missing_programs
from vlbert_jax.tasks.losses import counted, cross_entropy
from vlbert_jax.tasks.own_predictions import file_order, own_row, write_own
from vlbert_jax.tasks.scorers import scorer_of
from vlbert_jax.visualization.cards import Card, RankedAnswer

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class CaptionTargets(Arrays):
    """The tokens of a caption that are predicted."""

    mlm_positions: Int[Array | np.ndarray, "b n k"] | None = padding(0, default=None)  # elements of the tokens
    mlm_labels: Int[Array | np.ndarray, "b n k"] | None = padding(0, default=None)  # ids of the tokens
    mlm_mask: Bool[Array | np.ndarray, "b n k"] | None = padding(False, default=None)  # True = a token is predicted


class CaptionTask(Task):
    """Captions of images."""

    name = "caption"
    targets = CaptionTargets

    # --- Training -----------------------------------------------------------------------------------

    def build_model(self, config, rngs: nnx.Rngs) -> CaptionModel:
        """Return the model of a config."""
        check_architecture(config)
        return CaptionModel(*model_options(config), rngs)

    def initialize_heads(self, model: CaptionModel, config, loaded: set[tuple]) -> None:
        """Raise ValueError where a run starts from weights that have no head for masked words."""
        if loaded and ("mlm_head", "transform", "kernel") not in loaded:
            raise ValueError(
                "config.init names weights without a head for masked words, by which captions are written: choose "
                "weights of pre-training, or of a model for captions."
            )

    def batch_shapes(self, config) -> Batch:
        """Return the global batch of an update as shapes alone."""
        return abstract_batch(config.batch_size, batches.example_shapes(config), CaptionTargets)

    def train_batches(
        self, config, start_step: int, process_index: int, process_count: int
    ) -> Iterator[Batch]:
        """Iterate without end over this process's part of the batches (NumPy)."""
        return batches.train_batches(config, CaptionTargets, start_step, process_index, process_count)

    def eval_batches(self, config, process_index: int, process_count: int) -> dict[str, Iterator[Batch]]:
        """Return this process's part of the images of the split, every image once over all processes."""
        parts = batches.eval_parts(config, CaptionTargets, process_index, process_count)
        return {"images": (batch for part in parts for batch in part)}

    def loss_weights(self, config) -> dict[str, float]:
        """Return the weight of the one loss."""
        return {"caption": 1.0}

    def loss_counts(self, batch: Batch, config, names) -> dict[str, Float[Array, ""]]:
        """Return the number of predicted tokens."""
        return {"caption": jnp.maximum(batch.targets.mlm_mask.sum().astype(jnp.float32), 1.0)}

    def loss_sums(self, model: CaptionModel, batch: Batch, key, config, names):
        """Return the summed loss, and how often the most probable token is the right one."""
        losses, hits = _predicted(model, batch, config, key)
        mask = batch.targets.mlm_mask
        return {"caption": counted(losses, mask)[0]}, {"caption_accuracy": counted(hits, mask)}

    def score(self, model: CaptionModel, batch: Batch, config) -> dict[str, tuple[Array, Array]]:
        """Return loss and accuracy of the masked tokens of one caption of each image."""
        losses, hits = _predicted(model, batch, config)
        mask = batch.targets.mlm_mask
        return dict(caption_loss=counted(losses, mask), caption_accuracy=counted(hits, mask))

    # --- Evaluation ---------------------------------------------------------------------------------

    def predict(self, model: CaptionModel, batch: Batch, config) -> dict[str, Array]:
        """Return the best caption of each image, [b, t] tokens, and its score, [b]."""
        tokens, scores = _written(model, batch, config, config.data.beams)
        return dict(tokens=tokens[:, 0], scores=scores[:, 0])

    def conclude(self, directory: Path, predictions: dict, config) -> dict[str, float]:
        """Write SPLIT.json, a list of image_id and caption, and return the scores of pycocoevalcap.

        Captions of user-supplied data are in SPLIT.jsonl and SPLIT.csv, too. References are the captions of each image
        in the split. Without the library or Java a warning says what is missing, and there are no scores.
        """
        rows, split, tokenizer = predictions[""], Split(config, config.data.eval_split), tokenizer_of(config)
        texts = [split.texts[number] for number in range(len(split))]
        references: dict[int, list[str]] = {}
        for text in texts:
            references.setdefault(int(text["image_number"]), []).append(text["text"])
        captions, results, described = {}, [], []
        for index, tokens in zip(rows["index"], rows["tokens"], strict=True):
            text, caption = texts[int(index)], caption_of(tokens, tokenizer)
            name = text["example_id"]
            captions[int(text["image_number"])] = caption
            described.append((text, dict(caption=caption)))
            results.append(dict(image_id=int(name) if name.isdecimal() else name, caption=caption))
        path = directory / f"{config.data.eval_split}.json"
        with atomic_write(path) as partial:
            partial.write_text(json.dumps(results) + "\n")
        if scorer_of(config, ("own",)):
            order = file_order([text for text, _ in described])
            write_own(directory, config.data.eval_split, [own_row(*described[place]) for place in order], {})
        if reason := missing_programs():
            log.warning("%s has the captions, but they are not scored: %s", path, reason)
            return {}
        return caption_scores(captions, references)

    metric_labels = {
        "caption_accuracy": "masked words of captions, from the image and the words before",
        "caption_loss": "loss of masked words of captions",
    }

    def report_title(self, config) -> str:
        """Return the heading of the report."""
        return "Captions"

    def report_batches(self, config) -> list[Batch]:
        """Return the first batch of images of each orientation; none where the images are not stored."""
        if config.data.features != "image":
            return []
        return [next(part) for part in batches.eval_parts(config, CaptionTargets, 0, 1)]

    def report_examples(self, shown: list[tuple[Batch, dict]], config, scores) -> report.Examples:
        """Return images with the captions that the model writes; right is what a person wrote, word by word."""
        tokenizer, split = tokenizer_of(config), Split(config, config.data.eval_split)
        written: dict[int, set[str]] = {}
        for text in (split.texts[number] for number in range(len(split))):
            written.setdefault(int(text["image_number"]), set()).add(_normal(text["text"], tokenizer))

        def card(record: dict, fields: dict, row: dict, _) -> Card:
            caption = caption_of(row["tokens"], tokenizer)
            right = _normal(caption, tokenizer) in written[int(record["image_number"])]
            answer = RankedAnswer(caption, float(np.exp(row["scores"])), float(right))
            return Card(question="What is in the image?", answers=[answer], **fields)

        return report.answer_examples(shown, config, card, None)

    # --- Weights ------------------------------------------------------------------------------------

    official_names = {
        "mlm_head/transform": "vlbert.mlm_head.predictions.transform.dense",
        "mlm_head/norm": "vlbert.mlm_head.predictions.transform.LayerNorm",
    }
    # Also where a run has several heads.
    starts_from = {f"vlbert.mlm_head.predictions.{name}": f"vlbert.mlm_head.predictions.{name}"
                   for name in ("transform.", "bias")}  # fmt: skip
    missing_remedy = "Captions are written by a head for masked words: choose the weights of a model for captions."
    defaults = {
        "data.max_regions": 50,
        "data.sequence_length": 73,
        "data.text_length": 22,
        "data.mask_words": 0.15,
        "data.max_mlm_targets": 3,
        "data.beams": 5,
    }

    # --- Answers to a user --------------------------------------------------------------------------

    method = "describe"

    def example_from_text(self, record: dict, text: str, choices: Sequence[str], config) -> Example:
        """Return the example of an image that is described; `text` is not read.

        The number of `choices` is the number of beams, and of sequences; without choices it is config.data.beams.
        """
        tokenizer, layout = tokenizer_of(config), DescriptionLayout.of(config, orientation_of(record))
        image = image_fields(record, record["boxes"], layout, False)
        first = np.array([tokenizer.cls_id], np.int32)
        sequence = description_sequence(first, record, int(image["region_mask"].sum()), tokenizer, layout)
        beams = len(choices) or config.data.beams
        return {name: np.repeat(value[None], beams, axis=0) for name, value in sequence.items()} | image

    def predict_text(self, model: CaptionModel, batch: Batch, config) -> dict[str, Array]:
        """Return the captions of each image, as many as the batch has sequences, and their scores."""
        names = ("token_ids", "region_ids", "segment_ids", "position_ids", "element_mask")
        first = batch.replace(**{name: getattr(batch, name)[:, :1] for name in names})
        tokens, scores = _written(model, first, config, batch.token_ids.shape[1])
        return dict(tokens=tokens, scores=scores)

    def decode(self, rows, boxes, choices, batch: Batch, config) -> list[Answer]:
        """Return the captions, the best first; a probability is the geometric mean of those of the tokens."""
        tokenizer = tokenizer_of(config)
        pairs = zip(rows["tokens"][0], np.exp(rows["scores"][0]), strict=True)
        return [Answer(caption_of(tokens, tokenizer), float(chance)) for tokens, chance in pairs]

    def describe(self, answers: list[Answer]) -> dict:
        """Return the captions as plain values."""
        return {"captions": [answer_fields(answer) for answer in answers]}

    def lines(self, described) -> list[str]:
        """Return one line per caption."""
        return [f"{row['probability']:4.0%}  {row['text']}" for row in described["captions"]]


def caption_of(tokens: Int[np.ndarray, " t"], tokenizer: Tokenizer) -> str:
    """Return the words of a caption between [CLS] and [SEP]; WordPieces are joined."""
    ids = [int(token) for token in tokens]
    ids = ids[1 : ids.index(tokenizer.sep_id)] if tokenizer.sep_id in ids else ids[1:]
    return tokenizer.backend.decode(ids)


def _normal(text: str, tokenizer: Tokenizer) -> str:
    """Return a text as `caption_of` would return it."""
    return tokenizer.backend.decode(sum(tokenizer.words(text), []))


def _predicted(model: CaptionModel, batch: Batch, config, key=None):
    """Return loss and hit of every predicted token, [b n k] each."""
    key_project, key_encode = split_keys(key, 2)
    if config.blind:
        states = model.encode(without_image(batch, model.vocab_size), None, key_encode)
    else:
        states = model.states(batch, key_project, key_encode)
    logits, labels = model.word_logits(states, batch.targets.mlm_positions), batch.targets.mlm_labels
    return cross_entropy(logits, labels), logits.argmax(-1) == labels


def _written(model: CaptionModel, batch: Batch, config, beams: int):
    tokenizer = tokenizer_of(config)
    writable = np.zeros(tokenizer.vocab_size, bool)
    writable[[*tokenizer.ordinary_ids, tokenizer.sep_id]] = True
    ids = tokenizer.cls_id, tokenizer.sep_id, tokenizer.mask_id
    return write_captions(model, batch, beams, config.data.text_length, ids, jnp.asarray(writable), config.blind)
