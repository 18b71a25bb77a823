"""Visual question answering: the answer is read at a [MASK] after the question (paper, section 4.2)."""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from vlbert_jax.batch import Arrays, Batch, Example, Shapes, padding
from vlbert_jax.data.examples import image_shapes, orientation_of, usual_orientation
from vlbert_jax.data.packing import sequence_shapes
from vlbert_jax.data.tokenizer import tokenizer_of
from vlbert_jax.model.config import RegionHeadConfig
from vlbert_jax.model.layers import LinearHead, PredictionHead, split_keys
from vlbert_jax.model.two_stream_config import TwoStreamConfig
from vlbert_jax.model.visual_linguistic import VisualLinguisticModel
from vlbert_jax.tasks.answer.accuracy import soft_targets
from vlbert_jax.tasks.answer.examples import QuestionLayout, question_example
from vlbert_jax.tasks.answer.results import conclude_split
from vlbert_jax.tasks.answer_lists import (
    LXMERT_ANSWERS,
    LXMERT_PRETRAINING,
    SHIPPED_ANSWERS,
    answers_of,
    check_replaced,
    load_answers,
    lxmert_spelling,
)
from vlbert_jax.tasks.answers import Answer, answer_fields, answer_line
from vlbert_jax.tasks.base import TextImageTask
from vlbert_jax.tasks.layouts import lengths_of_family, trunk_options
from vlbert_jax.tasks.losses import binary_cross_entropy, counted, cross_entropy, divergence, soft_cross_entropy
from vlbert_jax.visualization.cards import Card, RankedAnswer

log = logging.getLogger(__name__)
TOP = 5  # answers of a prediction
ANSWER_HEADS = ("mask", "mask_linear", "pooler", "pooler_linear")
# Head of the published models of an architecture.
FAMILY_HEADS = {"uniter": "pooler", "visualbert": "mask_linear", "oscar": "pooler_linear", "vinvl": "pooler_linear",
                "lxmert": "pooler", "vilbert": "pooler"}  # fmt: skip
FAMILY_CLASSES = {"uniter": "vqa_output.3", "visualbert": "cls", "oscar": "classifier", "vinvl": "classifier",
                  "lxmert": "answer_head.logit_fc.3", "vilbert": "vil_prediction.logit_fc.3"}  # fmt: skip
OWN_ANSWERS = ("uniter", "oscar", "vinvl", "lxmert", "vilbert")  # the others have the list of VL-BERT
# Regions, and words; those of Oscar and VinVL with the names of the regions.
FAMILY_LENGTHS = {"oscar": (50, 128), "vinvl": (50, 128), "lxmert": (36, 20), "vilbert": (100, 23)}
OTHER_CLASSES = 3  # visual entailment has so many, in a head of the same names; reasoning and retrieval have fewer


@dataclasses.dataclass(frozen=True, eq=False)
class AnswerTargets(Arrays):
    """What a question is trained and scored on."""

    answer_positions: Int[Array | np.ndarray, "b"] | None = padding(0, default=None)  # element of [MASK]
    answer_targets: Float[Array | np.ndarray, "b a"] | None = padding(-1, default=None)  # scores; -1 = unknown
    text_cut: Bool[Array | np.ndarray, "b"] | None = padding(False, default=None)  # the question was cut


class AnswerModel(VisualLinguisticModel):
    """VL-BERT or a sibling, and the head over the answer vocabulary.

    The head reads the state of [MASK] or the pooler, with a hidden layer or without one: "mask" (VL-BERT),
    "mask_linear" (VisualBERT), "pooler" (UNITER, LXMERT, ViLBERT; twice as wide), "pooler_linear" (Oscar, VinVL).
    The hidden layer of "mask" starts from that of the head for masked words.
    """

    def __init__(self, encoder, region_head: RegionHeadConfig, num_answers: int, rngs: nnx.Rngs, kind: str = "mask"):
        if kind not in ANSWER_HEADS:
            raise ValueError(f"config.model.answer_head is {kind!r}; it must be one of {', '.join(ANSWER_HEADS)}.")
        self.reads_pooler = kind.startswith("pooler")
        if self.reads_pooler and not encoder.pooler:
            raise ValueError(f"config.model.answer_head={kind!r} requires config.model.encoder.pooler=True.")
        super().__init__(encoder, region_head, rngs)
        text, width = encoder.encoder_config("text"), encoder.pool_size
        if kind.endswith("linear"):
            self.answer_head = LinearHead(text, num_answers, rngs, inputs=width if self.reads_pooler else None)
        else:
            options = dict(inputs=width, hidden=2 * width, dropout_rate=0.0) if self.reads_pooler else {}
            options = dict(dropout_rate=encoder.dropout_rate) | options
            self.answer_head = PredictionHead(text, num_answers, rngs, norm=True, **options)
        if isinstance(encoder, TwoStreamConfig):
            self.wanted = encoder.pooled_streams if self.reads_pooler else ("text",)

    def answer_logits(
        self, states, positions: Int[Array, " b"], key=None, token_ids: Int[Array, "b n s"] | None = None
    ) -> Float[Array, "b answers"]:
        """Return a logit per answer; `positions` are those of [MASK]."""
        if self.reads_pooler:
            key_pool = None if key is None else jax.random.fold_in(key, 1)
            return self.answer_head(self.pooled(states, key_pool, token_ids), key)
        return self.answer_head(self.first_words_at(states, positions[:, None])[:, 0], key)


class AnswerTask(TextImageTask):
    """Visual question answering over a vocabulary of answers."""

    name = "answer"
    targets = AnswerTargets
    subset = "questions"

    # --- Training -----------------------------------------------------------------------------------

    def build_model(self, config, rngs: nnx.Rngs) -> AnswerModel:
        """Return the model of a config; config.model.num_answers is the size of the answer vocabulary."""
        kind = config.model.get("answer_head", "mask")
        return AnswerModel(*trunk_options(config), config.model.num_answers, rngs, kind)

    def initialize_heads(self, model: AnswerModel, config, loaded: set[tuple]) -> None:
        """Start the last layer from the mean token embedding of each answer (official code), where it reads [MASK]."""
        if ("answer_head", "classes", "kernel") in loaded or model.reads_pooler:
            return
        tokenizer = tokenizer_of(config)
        tokens = [sum(tokenizer.words(answer), []) for answer in answers_of(config).entries]
        owner = np.repeat(np.arange(len(tokens)), [len(ids) for ids in tokens])
        words = model.token_embeddings[...][np.concatenate(tokens).astype(np.int32)]
        means = jax.ops.segment_sum(words, owner, len(tokens)) / np.maximum([[len(ids)] for ids in tokens], 1)
        model.answer_head.classes.kernel.set_value(means.T)
        model.answer_head.classes.bias.set_value(jnp.zeros(len(tokens)))

    def answer_rows(self, config, count: int) -> Int[np.ndarray, "a"] | None:
        """Return the rows of the run's answers in LXMERT's head of pre-training, as its code writes answers there."""
        if count != LXMERT_PRETRAINING:
            return None
        known = load_answers(SHIPPED_ANSWERS / LXMERT_ANSWERS[count])
        return np.array([known.number(lxmert_spelling(answer)) for answer in answers_of(config).entries])

    def example_maker(self, config, orientation: str, train: bool) -> Callable[[dict, bool], Example]:
        """Return the function that makes the example of a question."""
        tokenizer, answers = tokenizer_of(config), answers_of(config)
        layout = QuestionLayout.of(config, orientation, train)

        def make(record: dict, flip: bool) -> Example:
            if train and not record["answers"]:
                raise ValueError(
                    f"Question {record['question_id']} of {config.data.train_split} has no answers to learn from: "
                    "choose another config.data.train_split."
                )
            return question_example(record, flip, tokenizer, layout, answers)

        return make

    target_remedy = "Check config.data.answers, the vocabulary of answers."

    def target_checker(self, config, train: bool) -> Callable[[dict], bool]:
        """Return the function that finds one of a question's answers in the vocabulary, or that none is known."""
        answers = answers_of(config)
        return lambda record: not record["answers"] or soft_targets(record["answers"], answers).max() > 0

    def example_shapes(self, config) -> Shapes:
        """Return shapes and dtypes of an example of most batches."""
        layout = QuestionLayout.of(config, usual_orientation(config))
        shapes = sequence_shapes(1, layout.sequence_length, layout.regions) | image_shapes(layout)
        shapes |= dict(answer_positions=((), np.int32), text_cut=((), bool))
        return shapes | dict(answer_targets=((config.model.num_answers,), np.float32))

    def loss_weights(self, config) -> dict[str, float]:
        """Return the weight of the one loss."""
        return {"answer": 1.0}

    def loss_counts(self, batch: Batch, config, names) -> dict[str, Float[Array, ""]]:
        """Return the number of questions that count."""
        return {"answer": jnp.maximum(_counted_questions(batch, config).sum().astype(jnp.float32), 1.0)}

    def loss_sums(self, model: AnswerModel, batch: Batch, key, config, names):
        """Return the summed loss and the training accuracy."""
        logits, known = _logits(model, batch, config, key), _known(batch)
        hits = counted(accuracy(logits, batch), known)
        losses = counted(_losses(logits, batch, config), _counted_questions(batch, config))
        return {"answer": losses[0]}, {"answer_accuracy": hits}

    def score(self, model: AnswerModel, batch: Batch, config) -> dict[str, tuple[Array, Array]]:
        """Return accuracy, loss, and the share of questions that were cut."""
        logits, known = _logits(model, batch, config), _known(batch)
        return dict(
            answer_accuracy=counted(accuracy(logits, batch), known),
            answer_loss=counted(_losses(logits, batch, config), _counted_questions(batch, config)),
            text_cut=counted(batch.targets.text_cut, batch.element_mask.any((1, 2))),
        )

    # --- Evaluation ---------------------------------------------------------------------------------

    def predict(self, model: AnswerModel, batch: Batch, config) -> dict[str, Array]:
        """Return the best answers and their probabilities, [b, 5]."""
        logits = _logits(model, batch, config)
        probabilities = jax.nn.sigmoid(logits) if config.losses.answer == "sigmoid" else jax.nn.softmax(logits)
        probability, answer = jax.lax.top_k(probabilities, min(TOP, logits.shape[-1]))
        return dict(answer=answer, probability=probability)

    def conclude(self, directory: Path, predictions: dict, config) -> dict[str, float]:
        """Write SPLIT.json as `config.data.scorer` says, by default for EvalAI; return the official scores."""
        return conclude_split(directory, predictions[""], config)

    metric_labels = {
        "answer_accuracy": "questions answered right",
        "vqa_official_accuracy": "questions answered right, official score",
        "gqa_accuracy": "questions answered right, official score of GQA",
        "gqa_binary": "right answers to binary questions",
        "gqa_open": "right answers to open questions",
        "gqa_consistency": "right answers to questions that a right answer entails",
        "gqa_validity": "answers of the kind that is asked for",
        "gqa_plausibility": "answers that occur with the object",
        "gqa_distribution": "distance of the distributions of answers, 0 is best",
        "answer_loss": "loss of the answer",
        "text_cut": "share of texts that were cut to the length of the sequence",
    }
    prompt = '--question "what is on the left?"'

    def report_title(self, config) -> str:
        """Return the heading of the report."""
        return "Visual question answering"

    def card(self, record: dict, shown: dict, row: dict, config) -> Card:
        """Return the card of a question with the best answers and their official scores."""
        vocabulary = answers_of(config)
        scores = soft_targets(record["answers"], vocabulary)
        answers = [
            RankedAnswer(vocabulary.entries[i], float(p), float(scores[i]))
            for i, p in zip(row["answer"], row["probability"], strict=True)
        ]
        return Card(question=record["question"], answers=answers, **shown)

    # --- Weights ------------------------------------------------------------------------------------

    official_names = {
        "answer_head/transform": "final_mlp.0.dense",
        "answer_head/norm": "final_mlp.0.LayerNorm",
        "answer_head/classes": "final_mlp.2",
    }
    family_names = {
        "uniter": {
            "answer_head/transform": "vqa_output.0",
            "answer_head/norm": "vqa_output.2",
            "answer_head/classes": FAMILY_CLASSES["uniter"],
        },
        **{name: {"answer_head/classes": FAMILY_CLASSES[name]} for name in ("visualbert", "oscar", "vinvl")},
    }
    hugging_face = {"visualbert": "VisualBertForQuestionAnswering", "lxmert": "LxmertForQuestionAnswering"}
    official_heads = ("final_mlp.",)
    starts_from = {"vlbert.mlm_head.predictions.transform.": "final_mlp.0."}
    defaults = {
        "data.max_regions": 100,
        "data.sequence_length": 135,
        "data.answers": "answers_vqa.txt",
        "losses.answer": "sigmoid",
    }

    def owns(self, names: set[str]) -> bool:
        """Return whether these are weights for VQA: the head has a norm."""
        return "final_mlp.2.weight" in names and "final_mlp.0.LayerNorm.weight" in names

    def config_from_weights(self, shapes) -> dict:
        """Return the size of the answer vocabulary; that of the official recipe where the head is new."""
        return {"model.num_answers": shapes.get("final_mlp.2.weight", (3129,))[0]}

    def owns_family(self, architecture: str, shapes) -> bool:
        """Return whether a sibling has a head for answers; one of three classes or fewer is of another task."""
        return shapes.get(f"{FAMILY_CLASSES.get(architecture)}.weight", (0,))[0] > OTHER_CLASSES

    def config_from_family(self, architecture: str, shapes) -> dict:
        """Return the kind of the head and the size of the answer vocabulary."""
        kind, answers = FAMILY_HEADS.get(architecture, "mask"), 3129
        if self.owns_family(architecture, shapes):
            answers = shapes[f"{FAMILY_CLASSES[architecture]}.weight"][0]
        losses = {"losses.answer": "kl"} if architecture == "visualbert" else {}
        fields = {"model.num_answers": answers, "model.answer_head": kind} | losses
        regions, words = FAMILY_LENGTHS.get(architecture, (100, 60))
        fields |= lengths_of_family(architecture, shapes, regions, words, 1)  # VQA in 12-in-1
        if architecture in OWN_ANSWERS:
            fields |= {"data.answers": "", "data.answers_have_unknown": False}
        if architecture == "lxmert":
            fields |= {"data.answers": LXMERT_ANSWERS.get(answers, "")}
        return fields | ({"model.encoder.pooler": True} if kind.startswith("pooler") else {})

    # --- Answers to a user --------------------------------------------------------------------------

    method = "answer"

    def load_vocabularies(self, config) -> None:
        """Load the answer vocabulary."""
        answers_of(config)

    def warn_of_lists(self, config, stored) -> None:
        """Log a warning where the answers are not those of the weights."""
        if config.data.answers != stored.answers and (wrong := check_replaced(config, stored.answers, stored.data_dir)):
            log.warning("%s Answers are wrong unless the model was trained with the given list.", wrong)

    def example_from_text(self, record: dict, text: str, choices: Sequence[str], config) -> Example:
        """Return the example of a question without known answers."""
        layout = QuestionLayout.of(config, orientation_of(record))
        asked = record | dict(question=text, answers=[])
        return question_example(asked, False, tokenizer_of(config), layout, answers_of(config))

    def decode(self, rows, boxes, choices, batch: Batch, config) -> list[Answer]:
        """Return the best answers; with a sigmoid per answer their probabilities do not sum to 1."""
        entries = answers_of(config).entries
        return [Answer(entries[i], float(p)) for i, p in zip(rows["answer"][0], rows["probability"][0], strict=True)]

    def describe(self, answers: list[Answer]) -> dict:
        """Return the answers as plain values."""
        return {"answers": [answer_fields(answer) for answer in answers]}

    def lines(self, described) -> list[str]:
        """Return the answers in one line."""
        return [answer_line(described["answers"])]


def _known(batch: Batch) -> Bool[Array, " b"]:
    """Return which examples have answers to compare with."""
    return batch.element_mask.any((1, 2)) & (batch.targets.answer_targets[:, 0] >= 0)


def _logits(model: AnswerModel, batch: Batch, config, key=None) -> Float[Array, "b answers"]:
    key_project, key_encode, key_head = split_keys(key, 3)
    states = model.states(batch, key_project, key_encode, config.blind)
    return model.answer_logits(states, batch.targets.answer_positions, key_head, batch.token_ids)


def _counted_questions(batch: Batch, config) -> Bool[Array, " b"]:
    """Return which examples count in the loss; a softmax requires that one of the answers is in the vocabulary."""
    known = _known(batch)
    return known & (batch.targets.answer_targets.max(-1) > 0) if config.losses.answer == "softmax" else known


def _losses(logits: Float[Array, "b answers"], batch: Batch, config) -> Float[Array, " b"]:
    """Return the loss of each example.

    It is summed over the vocabulary (sigmoid; official code), the cross-entropy of the best answer (softmax;
    paper), or the Kullback-Leibler divergence of scores that need not sum to 1 (kl; VisualBERT).
    """
    scores = batch.targets.answer_targets
    if config.losses.answer == "sigmoid":
        # A NaN in padding would reach the gradient as 0 * NaN.
        return binary_cross_entropy(logits, jnp.where(_known(batch)[:, None], scores, 0)).sum(-1)
    if config.losses.answer == "softmax":
        return cross_entropy(logits, scores.argmax(-1))
    if config.losses.answer == "kl":
        scores = jnp.where(_known(batch)[:, None], scores, 0)
        return divergence(soft_cross_entropy(logits, scores), scores)
    raise ValueError(f"config.losses.answer is {config.losses.answer!r}; it must be sigmoid, softmax or kl.")


def accuracy(logits: Float[Array, "b answers"], batch: Batch) -> Float[Array, " b"]:
    """Return the score of the best answer (`SoftAcc` of the official code)."""
    return jnp.take_along_axis(batch.targets.answer_targets, logits.argmax(-1)[:, None], axis=1)[:, 0]
