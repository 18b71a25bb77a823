"""Image-text retrieval: the score of a text with an image, by which images and texts are ranked.

In training the model chooses the pair that belongs together among pairs that do not. Evaluation scores
every text of a split with every image. `MatchTask.joint_scores` has the names of the recalls. A query may
also be an image with a text, `config.data.images_per_example=2`; then it is scored with every image of a gallery.
"""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from vlbert_jax.batch import Arrays, Batch, Example, padding
from vlbert_jax.data.examples import has_orientations, images_per_example, orientation_of
from vlbert_jax.data.tables import Split
from vlbert_jax.data.tokenizer import tokenizer_of
from vlbert_jax.files import atomic_write
from vlbert_jax.model.layers import split_keys
from vlbert_jax.tasks import report
from vlbert_jax.tasks.base import Task
from vlbert_jax.tasks.layouts import trunk_options
from vlbert_jax.tasks.losses import counted
from vlbert_jax.tasks.match import batches
from vlbert_jax.tasks.match.batches import candidates_of
from vlbert_jax.tasks.match.examples import PairLayout, choice_of_pairs
from vlbert_jax.tasks.match.model import MatchModel, match_losses, score_candidates, score_queries
from vlbert_jax.tasks.match.queries import queries_of, query_batches, query_scores, report_batch
from vlbert_jax.tasks.match.recall import AT, TIES, retrieval_scores
from vlbert_jax.tasks.match.weights import OWN_NAMES, fields_of_own, fields_of_sibling, sibling_head
from vlbert_jax.tasks.scorers import scorer_of
from vlbert_jax.visualization.cards import Card, RankedAnswer

SHOWN = 5  # texts of an image in the report
BEST = 10  # candidates of each text and image in the file of predictions


class Fit(NamedTuple):
    """How well a text fits an image."""

    score: float  # logit of "they belong together" minus that of "they do not", or of a head with one output
    probability: float  # sigmoid of the score: of the first; a head with one output is not trained to be calibrated


@dataclasses.dataclass(frozen=True, eq=False)
class MatchTargets(Arrays):
    """What a choice among pairs is trained on."""

    choice: Int[Array | np.ndarray, "b"] | None = padding(-1, default=None)  # the right pair; -1 = none
    text_cut: Bool[Array | np.ndarray, "b"] | None = padding(False, default=None)  # a text was cut


class MatchTask(Task):
    """Image-text retrieval."""

    name = "match"
    targets = MatchTargets

    # --- Training -----------------------------------------------------------------------------------

    def build_model(self, config, rngs: nnx.Rngs) -> MatchModel:
        """Return the model of a config."""
        kind, hidden = config.model.get("matching_head", "relationship"), config.model.get("matching_hidden", 0)
        return MatchModel(*trunk_options(config), config.model.relationship_classes, rngs, kind, hidden)

    def batch_shapes(self, config) -> Batch:
        """Return the global batch of an update as shapes alone."""
        return batches.batch_shapes(config, MatchTargets)

    def train_batches(
        self, config, start_step: int, process_index: int, process_count: int
    ) -> Iterator[Batch]:
        """Iterate without end over this process's part of choices among pairs (NumPy)."""
        return batches.train_batches(config, MatchTargets, start_step, process_index, process_count)

    def loss_weights(self, config) -> dict[str, float]:
        """Return the weight of the one loss."""
        return {"match": 1.0}

    def loss_counts(self, batch: Batch, config, names) -> dict[str, Float[Array, ""]]:
        """Return the number of choices."""
        return {"match": jnp.maximum((batch.targets.choice >= 0).sum().astype(jnp.float32), 1.0)}

    def loss_sums(self, model: MatchModel, batch: Batch, key, config, names):
        """Return the summed loss, and how often the right pair has the highest score."""
        key_states, key_head = split_keys(key, 2)
        states = model.pair_states(batch, key_states, config.blind)
        scores, choice = model.pair_scores(states, batch.token_ids, key_head), batch.targets.choice
        losses = match_losses(scores, choice, config.losses.match, config.losses.margin)
        metrics = dict(
            match_accuracy=counted(scores.argmax(-1) == choice, choice >= 0),
            text_cut=counted(batch.targets.text_cut, choice >= 0),
        )
        return {"match": counted(losses, choice >= 0)[0]}, metrics

    # --- Evaluation ---------------------------------------------------------------------------------

    pace = "candidates"

    def eval_batches(self, config, process_index: int, process_count: int) -> dict[str, Iterator[Batch]]:
        """Return this process's part of the images of the split, every image once over all processes.

        Of queries with an image it is the part of all blocks of queries and candidates.
        """
        if images_per_example(config) == 2:
            return {"queries": query_batches(config, MatchTargets, process_index, process_count)}
        parts = batches.eval_parts(config, MatchTargets, process_index, process_count)
        return {"images": (batch for part in parts for batch in part)}

    def score(self, model: MatchModel, batch: Batch, config) -> dict[str, tuple[Array, Array]]:
        """Return the number of texts that each image is scored with, as its mean, and the share of cut texts.

        Of queries with an image it is the number of images that each query is scored with.
        """
        if images_per_example(config) == 2:
            return self._score_of_queries(batch, config)
        candidates, images = candidates_of(config), batch.index >= 0
        number = len(candidates.lengths)
        return dict(
            candidates=counted(jnp.full(images.shape, number), images),
            text_cut=counted(jnp.full(images.shape, candidates.cut / number), images),
        )

    def _score_of_queries(self, batch: Batch, config) -> dict[str, tuple[Array, Array]]:
        queries, real = queries_of(config), batch.index >= 0
        block = jnp.where(real, batch.index % queries.blocks, 0)
        first = (real & (block == 0)).sum().astype(jnp.float32)  # each query counts once
        sizes = jnp.where(real, jnp.asarray(queries.sizes(), jnp.float32)[block], 0)
        return dict(
            candidates=(sizes.sum(), first),
            text_cut=counted(batch.targets.text_cut, real & (block == 0)),
        )

    def predict(self, model: MatchModel, batch: Batch, config) -> dict[str, Array]:
        """Return the score of each image with all texts, [b, t], or of each query with candidates, [b, b]."""
        if images_per_example(config) == 2:
            return dict(scores=score_queries(model, batch, PairLayout.of(config), config.blind))
        per_pass = config.data.texts_per_pass
        return dict(
            scores=score_candidates(
                model, batch, candidates_of(config), PairLayout.of(config), per_pass, config.blind
            )
        )

    def joint_scores(self, rows: dict, config) -> dict[str, float]:
        """Return the recalls of images and texts, and their mean; with folds, also those within folds.

        `image_recall_K` is how often the image of a text is among the best K, `text_recall_K` how often a
        text of an image is. `config.data.eval_folds` adds `*_of_folds`, the mean over parts of the images. Queries
        with an image have `image_recall_K`, how often one of the targets is among the best K.
        """
        ties = scorer_of(config, TIES, "scan")
        if images_per_example(config) == 2:
            return query_scores(queries_of(config), rows["scores"], ties)
        candidates, scores = candidates_of(config), rows["scores"].T
        found = retrieval_scores(scores, candidates.image_of_text, ties)
        if config.data.eval_folds > 1 and not config.data.eval_candidates:
            folds = retrieval_scores(scores, candidates.image_of_text, ties, config.data.eval_folds)
            found |= {f"{name}_of_folds": value for name, value in folds.items()}
        return found

    def conclude(self, directory: Path, predictions: dict, config) -> dict[str, float]:
        """Write SPLIT_images.jsonl, the best images of each text, and SPLIT_texts.jsonl, the best texts of each image.

        An image is named as in its table, by its path; a text is a line of the first file, from 0. There `id` is that
        of the example, and further fields of user-supplied data are kept. Queries with an image have the first file.
        """
        if images_per_example(config) == 2:
            self._conclude_queries(directory, predictions[""]["scores"], config)
            return {}
        candidates, split = candidates_of(config), Split(config, config.data.eval_split)
        scores = predictions[""]["scores"]
        names = [str(split.images[number]["image_id"]) for number in candidates.images]
        texts = [split.texts[number] for number in candidates.records]
        of_texts = [
            json.loads(text["extra"] or "{}")
            | dict(id=text["example_id"], text_id=int(text["text_id"]), text=text["text"],
                   image=names[int(candidates.image_of_text[t])], images=_best(names, scores[:, t]))
            for t, text in enumerate(texts)
        ]  # fmt: skip
        of_images = [
            dict(image=name, texts=[[t, texts[t]["text"], score] for t, score in _best(range(len(texts)), row)])
            for name, row in zip(names, scores, strict=True)
        ]
        for name, lines in dict(images=of_texts, texts=of_images).items():
            _write_lines(directory / f"{config.data.eval_split}_{name}.jsonl", lines)
        return {}

    def _conclude_queries(self, directory: Path, rows: Float[np.ndarray, "e b"], config) -> None:
        queries, split = queries_of(config), Split(config, config.data.eval_split)
        names = [str(split.images[number]["image_id"]) for number in queries.images]
        lines = []
        for number, right, scores in zip(queries.records, queries.right, queries.scores(rows), strict=True):
            text = split.texts[number]
            image = str(split.images[int(text["image_number"])]["image_id"])
            targets = [name for name, is_right in zip(names, right, strict=True) if is_right]
            known = dict(targets=targets) if targets else {}
            line = json.loads(text["extra"] or "{}") | dict(id=text["example_id"], image=image, text=text["text"])
            lines.append(line | known | dict(images=_best(names, scores)))
        _write_lines(directory / f"{config.data.eval_split}_images.jsonl", lines)

    metric_labels = {
        "match_accuracy": "choices of the pair that belongs together",
        "match_loss": "loss of the choice",
        "mean_recall": "mean of the recalls",
        "candidates": "texts that each image is scored with",
        "text_cut": "share of texts that were cut to the length of the sequence",
        **{f"image_recall_{k}": f"texts whose image is among the best {k}" for k in AT},
        **{f"text_recall_{k}": f"images with a text among the best {k}" for k in AT},
    }

    def report_title(self, config) -> str:
        """Return the heading of the report."""
        return "Image-text retrieval"

    prompt = '--text "a red ball on the left"'

    def report_batches(self, config) -> list[Batch]:
        """Return the first batch of images of each orientation; none where the images are not stored."""
        if config.data.features != "image":
            return []
        if images_per_example(config) == 2:
            return list(report_batch(config, MatchTargets))
        return [next(part) for part in batches.eval_parts(config, MatchTargets, 0, 1)]

    def report_examples(self, shown: list[tuple[Batch, dict]], config, scores) -> report.Examples:
        """Return images with the texts that fit best, of which as many are right as `text_recall_1` says."""
        if images_per_example(config) == 2:
            return self._examples_of_queries(shown, config)
        candidates, split = candidates_of(config), Split(config, config.data.eval_split)

        def card(place: int, fields: dict, row: dict, _) -> Card:
            best = np.argsort(-row["scores"], kind="stable")[:SHOWN]
            texts = [split.texts[candidates.records[int(t)]]["text"] for t in best]
            answers = [
                RankedAnswer(text, float(chance_of(row["scores"][t])), float(candidates.image_of_text[t] == place))
                for text, t in zip(texts, best, strict=True)
            ]
            return Card(question="Which text belongs to the image?", answers=answers, **fields)

        records = range(len(candidates.images))
        return report.answer_examples(shown, config, card, scores.get("text_recall_1"), records)

    def _examples_of_queries(self, shown: list[tuple[Batch, dict]], config) -> report.Examples:
        """Return queries, each next to its target, with those of the shown targets that fit best."""
        queries, split = queries_of(config), Split(config, config.data.eval_split)
        places = [int(index) for batch, _ in shown for index in batch.index if index >= 0]
        firsts = [int(queries.right[place].argmax()) for place in places]

        def card(place: int, fields: dict, row: dict, _) -> Card:
            scores, question = row["scores"][: len(places)], split.texts[queries.records[place]]["text"]
            answers = [
                RankedAnswer(
                    str(split.images[queries.images[firsts[i]]]["image_id"]), float(chance_of(scores[i])),
                    float(queries.right[place, firsts[i]]),
                )
                for i in np.argsort(-scores, kind="stable")[:SHOWN]
            ]  # fmt: skip
            title = f"{question} (left: the query; right: the image it asks for, among {len(places)} of such images)"
            return Card(question=title, answers=answers, **fields)

        return report.answer_examples(shown, config, card, None, range(len(queries.records)))

    # --- Weights ------------------------------------------------------------------------------------

    official_names = OWN_NAMES
    official_heads = ("matching_score.", "matching_mlp.")
    starts_from = {"vlbert.relationsip_head.": "vlbert.relationsip_head."}  # also where a run has several heads
    missing_remedy = (
        "Retrieval without fine-tuning reads the head of the relationship loss, which released VL-BERTs do not have: "
        "pre-train with config.losses.relationship=True and keep config.model.matching_head=relationship, or fine-tune "
        "(--mode=train)."
    )
    defaults = {
        "data.max_regions": 36,
        "data.sequence_length": 69,
        "data.text_length": 32,
        "model.relationship_classes": 2,
    }

    def owns(self, names: set[str]) -> bool:
        """Return whether these are weights with a head for retrieval alone."""
        return not names.isdisjoint({"matching_score.weight", "matching_mlp.2.weight"})

    def config_from_weights(self, shapes) -> dict:
        """Return the fields that the head needs; the pooler is initialized where the source has none."""
        return fields_of_own(shapes)

    def owns_family(self, architecture: str, shapes) -> bool:
        """Return whether a sibling has a head for retrieval, or one of pre-training that scores pairs."""
        return sibling_head(architecture, shapes)[0] != ""

    def config_from_family(self, architecture: str, shapes) -> dict:
        """Return the head, and the lengths of the published recipe."""
        return fields_of_sibling(architecture, shapes)

    # --- Answers to a user --------------------------------------------------------------------------

    method = "similarity"

    def example_from_text(self, record: dict, text: str, choices: Sequence[str], config) -> Example:
        """Return the example of an image with a text, and with further texts in `choices`.

        Of two images the first is that of the query, and the second the candidate. Sequences are filled up
        to 1, 2, 4, ..., so that few programs are compiled.
        """
        texts = [text, *choices]
        filled = texts + [""] * ((1 << (len(texts) - 1).bit_length()) - len(texts))
        images = record.get("images", [record])
        orientation = orientation_of(images[0]) if has_orientations(config) else "square"
        layout = dataclasses.replace(PairLayout.of(config, orientation), num_images=len(images))
        return choice_of_pairs(filled, images, False, tokenizer_of(config), layout)

    def predict_text(self, model: MatchModel, batch: Batch, config) -> dict[str, Array]:
        """Return the scores of the texts, [1, n]."""
        return dict(scores=model.pair_scores(model.pair_states(batch), batch.token_ids))

    def decode(self, rows, boxes, choices, batch: Batch, config) -> list[Fit]:
        """Return how well the text and each of `choices` fit the image."""
        scores = rows["scores"][0, : 1 + len(choices)].tolist()
        return [Fit(score, float(chance_of(score))) for score in scores]

    def describe(self, answers: list[Fit]) -> dict:
        """Return the first score as plain values."""
        return {"fit": dict(score=round(answers[0].score, 4), probability=round(answers[0].probability, 4))}

    def lines(self, described) -> list[str]:
        """Return the score in one line."""
        return ["score {score:.2f}; they belong together: {probability:.0%}".format(**described["fit"])]


def _write_lines(path: Path, lines: Sequence[dict]) -> None:
    with atomic_write(path) as partial:
        partial.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), "utf-8")


def chance_of(score: Any) -> Any:
    """Return the probability that a text and an image belong together, for their score."""
    return 1 / (1 + np.exp(-np.clip(score, -80, 80)))


def _best(names: Sequence[Any], scores: Float[np.ndarray, " n"]) -> list[list]:
    """Return [name, score] of the best candidates, the best first."""
    order = np.argsort(-scores, kind="stable")[:BEST]
    return [[names[int(i)], round(float(scores[i]), 4)] for i in order]
