"""The recorded data rules of UNITER and VisualBERT: masking with their random numbers, sequences, regions."""

import numpy as np

from tests.helpers.sibling_rules_case import MASK, recordings, samples_of
from vlbert_jax.data import sibling_rules as rules
from vlbert_jax.data.masking import mask_regions, mask_words
from vlbert_jax.data.packing import RegionLayout, pack

NO_END = RegionLayout(whole_image=True, words_carry="none", segment=1, positions="zero", end_token=False)


def single(tokens):
    return [[int(token)] for token in tokens]


@recordings("uniter")
def test_masking_of_uniter(case):
    for item in case["masked_words"]:
        low, _ = item["v_range"]
        draws = samples_of(item["draws"], lambda index, low=low: low + index)
        ids, labels = mask_words(single(item["tokens"]), draws, 0.15, item["mask"], least_one=True)
        assert (ids.tolist(), labels.tolist()) == (item["masked"], item["labels"])
    assert any(min(x for kind, x in item["draws"] if kind == "random") >= 0.15 for item in case["masked_words"])
    for item in case["masked_regions"]:
        draws = samples_of(item["draws"], regions=item["num_bb"])
        asked, hidden = mask_regions(draws, item["mask_prob"], hidden_share=1.0, least_one=True)
        assert asked.tolist() == hidden.tolist() == item["hidden"]
    assert any(kind == "choice_index" for item in case["masked_regions"] for kind, _ in item["draws"])


@recordings("uniter")
def test_regions_and_sequences_of_uniter(case):
    for item in case["kept_boxes"]:
        limits = (item[name] for name in ("conf_th", "min_bb", "max_bb"))
        assert rules.kept_regions(np.array(item["confs"]), *limits) == item["num_bb"]
    lengths = case["packing"]
    for t, k, index in zip(*(lengths[name] for name in ("txt_lens", "num_bbs", "gather_index")), strict=True):
        packed = pack(range(1, t + 1), [0] * t, k, [False] * k, [0] * t, lengths["out_size"], 1000, layout=NO_END)
        # The original gathers from the padded text with the regions behind it.
        rows = np.where(packed["region_ids"] < 0, np.arange(lengths["out_size"]),
                        lengths["max_txt_len"] + packed["region_ids"])  # fmt: skip
        assert rows[: t + k].tolist() == index[: t + k]
        assert packed["element_mask"].sum() == t + k


@recordings("visualbert")
def test_sequences_and_masking_of_visualbert(case):
    for item in case["examples"]:
        first, second = rules.cut_for_visualbert(item["text_a"], item["text_b"], item["max_seq_length"])
        assert (first, second) == (item["kept_a"], item["kept_b"])
        words = [token for part in (first, second or []) for token in part]
        ids, labels = mask_words(single(5 + int(word[1:]) for word in words), samples_of(item["draws"]), 0.15, MASK)
        parts = [len(first)] + ([len(second)] if second else [])
        expected, at = [2], 0
        targets, segments = [-1], [0]
        for segment, size in enumerate(parts):
            expected += [*ids[at : at + size].tolist(), 3]
            targets += [*labels[at : at + size].tolist(), -1]
            segments += [segment] * (size + 1)
            at += size
        assert (expected, targets, segments) == (item["input_ids"], item["lm_label_ids"], item["input_type_ids"])


@recordings("visualbert")
def test_alignment_of_visualbert(case):
    for item in case["vcr_alignment"]:
        found = rules.words_of_regions(item["raw"], item["offset"])
        rows = item["old_det_to_new_ind"]
        assert {str(rows[obj]): places for obj, places in found.items()} == item["positions_by_box"]
