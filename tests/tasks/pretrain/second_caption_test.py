"""VisualBERT's pre-training reads two captions: of one image, or the second one of another image."""

import itertools
import json
import re

import numpy as np
import pytest

from data_prep import build
from tests.helpers.pretrain_case import FEATURES, first_batch, records_of_train, shrunk
from tests.helpers.sibling_rules_case import recordings, samples_of
from vlbert_jax.data.tokenizer import load_tokenizer
from vlbert_jax.tasks.pretrain.batches import eval_batches, train_batches
from vlbert_jax.tasks.pretrain.examples import CaptionLayout, caption_example

CAPTIONS = "region_captions/paired"
ENDINGS = (["the"], ["the"] * 2, ["the"] * 3)  # no caption of the corpus ends with it


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Return a folder with the synthetic corpus, of which every image but the last has three captions."""
    folder = tmp_path_factory.mktemp("data")
    source = build.build_scenes(
        folder, num_train=8, num_val=4, num_train_stories=4, num_val_stories=2, feature_width=FEATURES
    )["source"]
    for split in ("train", "val"):
        index = source / f"{split}_frcnn.json"
        lines = [json.loads(line) for line in index.read_text().splitlines()]
        more = [line | dict(caption=[*line["caption"], *ending]) for line in lines[:-1] for ending in ENDINGS]
        index.write_text("".join(json.dumps(line) + "\n" for line in [*more, lines[-1]]))
    options = ["--features", "--other_captions", "--num_processes=1"]
    assert build.main(["captions", f"--source={source}", f"--data_dir={folder}", "--corpus=paired", *options]) == 0
    return folder


def paired(data_dir, **fields):
    chosen = {"data.captions": CAPTIONS, "data.second_caption": True, "data.text_length": 40}
    return shrunk("visualbert_base", data_dir, **chosen | {"data.sequence_length": 47} | fields)


def test_a_record_has_the_other_captions_of_its_image(data_dir):
    records = records_of_train(data_dir, CAPTIONS)
    assert len(records) == 7 * 3 + 1 and sorted(len(record["other_captions"]) for record in records) == [0] + [2] * 21
    for record in records:
        same = [other for other in records if other["image_id"] == record["image_id"]]
        texts = [" ".join(other["caption"]) for other in same if other["index"] != record["index"]]
        assert sorted(record["other_captions"]) == sorted(texts)


def sequences(batch, vocab):
    """Yield (words of the first caption, words of the second one, whether they belong together)."""
    for ids, segments, mask, labels, places, known, own in zip(
        batch.token_ids[:, 0], batch.segment_ids[:, 0], batch.element_mask[:, 0], batch.targets.mlm_labels[:, 0],
        batch.targets.mlm_positions[:, 0], batch.targets.mlm_mask[:, 0], batch.targets.relationship, strict=True,
    ):  # fmt: skip
        ids = np.array(ids)
        ids[np.array(places)[np.array(known)]] = np.array(labels)[np.array(known)]
        is_text = np.array(mask) & (ids < len(vocab))
        parts = [[vocab[i] for i in ids[is_text & (segments == part)]] for part in (0, 1)]
        yield (*parts, int(own))


@pytest.mark.parametrize("train", [True, False])
def test_the_second_caption_belongs_to_the_image_or_to_another_one(data_dir, train):
    config = paired(data_dir, **{"data.mask_words": 0.1})
    vocab = (data_dir / config.data.vocab).read_text().split("\n")[:-1]
    batches = train_batches(config, 0, 0, 1) if train else eval_batches(config, 0, 1)["captions"]
    seen = set()
    for batch in itertools.islice(batches, 6):
        real = np.array(batch.element_mask).any((1, 2))  # evaluation fills the last batch with padding
        for (first, second, own), is_real in zip(sequences(batch, vocab), real, strict=True):
            if not is_real:
                continue
            assert first[0] == "[CLS]" and first[-1] == "[SEP]" and first.count("[SEP]") == 1
            if not second:  # the image with one caption
                seen.add(("one", own))
                continue
            assert second[-1] == "[SEP]" and second.count("[SEP]") == 1
            scene = _scene(first), _scene(second)
            assert own == (scene[0] == scene[1]) and (own == 0 or first != second)
            seen.add(("two", own))
    assert {("two", 0), ("two", 1)} <= seen


def _scene(words):
    """Return the caption of a scene without its ending."""
    text = " ".join(word for word in words if word not in ("[CLS]", "[SEP]"))
    return re.sub(r"( the)+$", "", text)


@recordings("visualbert")
def test_recorded_examples(case, data_dir, tmp_path):
    known = max(int(word[1:]) for item in case["examples"] for word in [*item["text_a"], *(item["text_b"] or [])])
    vocab = tmp_path / "vocab.txt"
    vocab.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(known + 1))]))
    tokenizer = load_tokenizer(str(vocab), known + 6)
    record = records_of_train(data_dir, CAPTIONS)[0]
    for item in case["examples"]:
        length = item["max_seq_length"]
        config = paired(data_dir, **{"data.text_length": length, "data.sequence_length": length + 7})
        config.data.max_mlm_targets = length
        second = [] if item["text_b"] is None else [" ".join(item["text_b"])]
        given = record | dict(caption=item["text_a"], other_captions=second)
        example = caption_example(given, samples_of(item["draws"]), tokenizer, CaptionLayout.of(config))
        text = len(item["input_ids"])
        assert example["token_ids"][0, :text].tolist() == item["input_ids"]
        assert example["segment_ids"][0, :text].tolist() == item["input_type_ids"]
        regions = example["region_ids"][0, text : text + len(record["boxes"])]  # they follow without a gap
        assert regions.tolist() == list(range(1, len(regions) + 1))
        labels = np.full(text, -1)
        masked = example["mlm_mask"][0]
        labels[example["mlm_positions"][0, masked]] = example["mlm_labels"][0, masked]
        assert labels.tolist() == item["lm_label_ids"]


def test_what_is_missing_is_named(data_dir):
    config = paired(data_dir, **{"data.captions": "region_captions/scenes"})
    with pytest.raises(ValueError, match="no other_captions: build them with --other_captions, or set"):
        first_batch(config)
    config = paired(data_dir, **{"model.architecture": "oscar"})
    with pytest.raises(ValueError, match="architecture=oscar reads names of regions as its second text"):
        CaptionLayout.of(config)
