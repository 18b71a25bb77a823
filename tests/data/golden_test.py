"""Compare each example with the official datasets, which use the same random values.

The vlbert_jax builders build every `cc_*` folder in tests/golden/data and in $VLBERT_GOLDEN/data.
The examples are compared with captions.json and general_corpus.json there, which the official code
wrote. Other tests cover other prefixes.
"""

import dataclasses
import itertools
import json
import pathlib

import numpy as np
import pytest

from data_prep.build import run_builder
from data_prep.region_captions import RegionCaptions
from data_prep.text_corpus import TextCorpus
from tests.helpers.golden_data_case import FOLDERS, check_features, check_pixels, load_tokenizer
from vlbert_jax.batch import END, IMG, NO_IMAGE
from vlbert_jax.data.masking import Samples
from vlbert_jax.data.records import Records, open_split
from vlbert_jax.tasks.pretrain.examples import CaptionLayout, caption_example, text_example, text_words

OTHERS = ("vqa_", "refcoco_", "vcr_")
VARIANTS = sorted(name for name in FOLDERS if name.startswith("cc_"))

MASK_PROBABILITY = 0.15


def test_every_folder_is_known():
    unknown = [n for n in FOLDERS if n != "common" and not n.startswith(("cc_", *OTHERS))]
    assert not unknown and VARIANTS


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer()


class Variant:
    """A folder of recordings with its records, which are built once."""

    def __init__(self, folder: pathlib.Path, out: pathlib.Path):
        self.folder = folder
        captions = json.loads((folder / "captions.json").read_text())
        self.runs, self.batches = captions["examples"], captions["batches"]
        self.text_runs = json.loads((folder / "general_corpus.json").read_text())["runs"]
        self.out, self._built = out, {}

    def records(self, which: str) -> dict[int, dict]:
        """Return the records by official index; `which` is data_full, data_small, ..."""
        if which not in self._built:
            source = self.folder / which / "conceptual-captions"
            run_builder(
                RegionCaptions(which, self.out, source, splits=("train",), dtype="float32", features=True)
            )
            names = ("train_landscape", "train_portrait")
            splits = (
                open_split(self.out, f"region_captions/{which}", name, optional=True) for name in names
            )
            records = Records(*splits)
            self._built[which] = {int(r["index"]): r for r in map(records.__getitem__, range(len(records)))}
        return self._built[which]

    def lines(self):
        if "lines" not in self._built:
            (docs,) = self.folder.glob("*/en_corpus")
            run_builder(TextCorpus("docs", self.out, [docs / "bc1g.doc", docs / "wiki.doc"]))
            self._built["lines"] = open_split(self.out, "text_corpus/docs", "train")
        return self._built["lines"]


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request, tmp_path_factory):
    return Variant(FOLDERS[request.param], tmp_path_factory.mktemp(request.param))


# --- From the official log of random values to samples --------------------------------------------


def read_words(log, words) -> tuple[list, list]:
    """Return the uniform value of each word and the replacement of each token.

    The log has a `choice` for each token of a replaced word.
    """
    uniforms, replacements = [], []
    for word in words:
        kind, value = next(log)
        assert kind == "random"
        uniforms.append(value)
        chosen = value < MASK_PROBABILITY and 0.8 <= value / MASK_PROBABILITY < 0.9
        for _ in word:
            replacements.append(next(log)[1] if chosen else 0)
    return uniforms, replacements


def replay(item, records, with_relationship, tokenizer) -> tuple[Samples, list[str] | None]:
    """Return the samples of an item, and the caption of the other record if one was sampled."""
    log = iter(item["random_log"])
    flip, relationship = next(log)[1], next(log)[1]
    other = None
    caption = records[item["index"]]["caption"]
    if with_relationship and relationship >= 0.5:
        sampled = item["index"]
        while sampled == item["index"]:
            kind, sampled = next(log)
            assert kind == "randrange"
        other = caption = records[sampled]["caption"]
    uniforms, replacements = read_words(log, tokenizer.words(" ".join(caption)))
    regions = [value for _, value in log]
    samples = Samples(flip, relationship, 0.0, np.array(uniforms), np.array(replacements, int), np.array(regions))
    assert len(regions) == len(records[item["index"]]["boxes"])
    return samples, other


def layout_of(run, record) -> CaptionLayout:
    width, height = record["image_size"]
    return CaptionLayout(
        text_length=1000,
        num_draws=64,
        precomputed=run["precomputed"],
        image_scale=tuple(run["scales"]),
        orientation="landscape" if width >= height else "portrait",
        flip_probability=run["flip_prob"],
        max_regions=128,
        sequence_length=64,
        num_classes=record["class_scores"].shape[1],
        feature_size=record["features"].shape[1],
        mlm=True,
        mrc=True,
        relationship=run["with_rel_task"],
        region_classes=True,
        mask_words=MASK_PROBABILITY,
        mask_regions=MASK_PROBABILITY,
        max_mlm_targets=64,
        max_mrc_targets=64,
        text_min_words=64,
        group_words=frozenset(),
        geometry_dtype=None,
    )


def our_example(variant, run, item, tokenizer):
    records = variant.records(f"data_{run['set']}")
    record = records[item["index"]]
    samples, other = replay(item, records, run["with_rel_task"], tokenizer)
    return caption_example(record, samples, tokenizer, layout_of(run, record), other)


def dense_labels(example, length):
    labels = np.full(length, -1)
    mask = example["mlm_mask"][0]
    labels[example["mlm_positions"][0][mask]] = example["mlm_labels"][0][mask]
    return labels.tolist()


def dense_targets(example, num_regions):
    targets = np.zeros((num_regions, example["mrc_targets"].shape[1]), np.float32)
    mask = example["mrc_mask"]
    targets[example["mrc_regions"][mask]] = example["mrc_targets"][mask]
    return targets


# --- Captions -------------------------------------------------------------------------------------


def test_captions(variant, tokenizer):
    for run in variant.runs:
        for item in run["items"]:
            where = f"{run['set']} {run['run']} item {item['index']}"
            example = our_example(variant, run, item, tokenizer)
            check_elements(item, example, tokenizer.vocab_size, where)
            check_regions(item, example, where)
            if run["precomputed"]:
                check_features(item, example, where)
            else:
                check_image(variant, run, item, example, where)


def check_elements(item, example, vocab_size, where):
    t, k = len(item["text_ids"]), len(item["boxes"])
    ids = example["token_ids"][0]
    regions = [vocab_size + IMG + op for op in item["mvrc_ops"]]  # IMG_MASK = IMG + 1
    assert ids[: t + k + 1].tolist() == [*item["text_ids"], *regions, vocab_size + END], where
    assert example["element_mask"][0].sum() == t + k + 1
    assert example["region_ids"][0, : t + k + 1].tolist() == [0] * t + list(range(k)) + [NO_IMAGE], where
    assert dense_labels(example, t) == item["mlm_labels"], where
    assert example["relationship"] == item["relationship_label"], where


def check_regions(item, example, where):
    k = len(item["boxes"])
    assert example["region_mask"].sum() == k == example["region_mask"][:k].sum()
    assert example["region_hidden"][:k].tolist() == [bool(op) for op in item["mvrc_ops"]], where
    np.testing.assert_allclose(example["image_size"][0], item["im_info"][:2], rtol=0)
    np.testing.assert_allclose(example["boxes"][:k], item["boxes"], rtol=1e-5, atol=1e-5, err_msg=where)
    targets = dense_targets(example, k)
    scored = np.abs(np.array(item["mvrc_label_row_sum"]) - 1) < 0.1  # the official criterion for a target
    np.testing.assert_allclose(targets.sum(1), np.where(scored, item["mvrc_label_row_sum"], 0), rtol=1e-5)
    np.testing.assert_allclose(targets.max(1), np.where(scored, item["mvrc_label_max"], 0), rtol=1e-6)
    assert targets.argmax(1).tolist() == np.where(scored, item["mvrc_label_argmax"], 0).tolist(), where
    mask = example["mrc_mask"]
    positions = example["mrc_regions"][mask] + len(item["text_ids"])
    assert example["mrc_positions"][mask].tolist() == positions.tolist(), where
    if "mvrc_labels" in item:
        np.testing.assert_allclose(targets[scored], np.array(item["mvrc_labels"])[scored], rtol=1e-6)


def check_image(variant, run, item, example, where):
    name = f"{run['set']}_{run['run']}_item{item['index']}_image.npz"
    check_pixels(item["image"], example, variant.folder / name, run["mask_raw_pixels"], where)


# --- Text -----------------------------------------------------------------------------------------


def our_text(variant, run, item, tokenizer):
    first = variant.runs[0]
    layout = layout_of(first, variant.records(f"data_{first['set']}")[first["items"][0]["index"]])
    layout = dataclasses.replace(layout, sequence_length=run["seq_len"], text_min_words=run["min_seq_len"])
    words = text_words(variant.lines(), item["index"], tokenizer, layout)
    log = iter(item["random_log"])
    uniforms, replacements = read_words(log, words)
    # A long line is read up to the limit; the remaining log belongs to the remaining words.
    samples = Samples(0.0, 0.0, 0.0, np.array(uniforms), np.array(replacements, int), np.zeros(0))
    return text_example(words, samples, tokenizer, layout)


def test_text(variant, tokenizer):
    for run in variant.text_runs:
        assert [variant.lines()[i]["text"] for i in range(len(variant.lines()))] == run["corpus"]
        for item in run["items"]:
            where = f"{run['seq_len']}/{run['min_seq_len']} item {item['index']}"
            example = our_text(variant, run, item, tokenizer)
            t = len(item["ids"])
            expected = [*item["ids"], tokenizer.vocab_size + END]
            assert example["token_ids"][0, : t + 1].tolist() == expected, where
            assert example["element_mask"][0].sum() == t + 1, where
            assert dense_labels(example, t) == item["mlm_labels"], where


# --- Inputs of the transformer --------------------------------------------------------------------


def test_batches(variant, tokenizer):
    text_run = next(r for r in variant.text_runs if (r["seq_len"], r["min_seq_len"]) == (64, 64))
    for batch in variant.batches:
        run = next(r for r in variant.runs if r["set"] == "small" and r["run"] == batch["run"])
        items = {item["index"]: item for item in run["items"]}
        captions = [our_example(variant, run, items[i], tokenizer) for i in batch["item_indices"]]
        texts = []
        for ids in batch["aux_text"]:
            item = next(i for i in text_run["items"] if i["ids"] == [x for x in ids if x])
            texts.append(our_text(variant, text_run, item, tokenizer))
        check_transformer_input(batch["to_transformer"], captions, texts, tokenizer.vocab_size)
        if "frcnn_features_with_mask_vector_7" in batch:
            for expected, example in zip(batch["frcnn_features_with_mask_vector_7"], captions, strict=True):
                hidden = example["region_hidden"][:, None]
                ours = np.where(hidden, 7.0, example["region_features"])[example["region_mask"]]
                np.testing.assert_allclose(ours, np.array(expected)[: len(ours)], rtol=1e-4, atol=1e-5)


def check_transformer_input(official, captions, texts, vocab_size):
    rows = zip(
        itertools.chain(captions, texts),
        *(
            official[name]
            for name in ("text_input_ids", "text_token_type_ids", "text_mask", "text_visual_box_index")
        ),
        *(official[name] for name in ("box_mask", "object_linguistic_is_mask_vector")),
        strict=True,
    )
    for example, text, types, text_mask, visual, box_mask, hidden in rows:
        t, k = sum(text_mask), sum(box_mask)
        assert text_mask == [1] * t + [0] * (len(text_mask) - t)
        ids, regions = example["token_ids"][0], example["region_ids"][0]
        assert ids[:t].tolist() == text[:t]
        assert example["segment_ids"][0, : t + k + 1].tolist() == types[:t] + [2] * (k + 1)
        assert example["position_ids"][0, : t + k + 1].tolist() == [*range(t), *[t] * k, t + 1]
        assert regions[:t].tolist() == visual[:t]  # -1 = the learned vector of text-only samples
        assert regions[t : t + k].tolist() == list(range(k))
        assert (ids[t : t + k] - vocab_size - IMG).tolist() == hidden[:k]
        assert ids[t + k] == vocab_size + END
        assert example["element_mask"][0].tolist() == [i <= t + k for i in range(len(ids))]
