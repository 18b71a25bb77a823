"""Files of predictions of user-supplied data without labels: one form for every kind, in the order of the file."""

import csv
import json

import numpy as np
import pytest

from configs import own
from data_prep.own import build_own
from tests.helpers.vqa_case import jpeg
from vlbert_jax.data.tables import Split
from vlbert_jax.tasks import get_task
from vlbert_jax.weights.shipped import ASSETS

BOXES = [[1, 2, 10, 20], [5, 5, 20, 20]]
WORDS = (ASSETS / "demo-pretrain/vocabularies/vocab/vocab.txt").read_text().split("\n")[150:152]
LINES = {  # kind -> fields of a line without a label, its label, rows of `Task.predict` for three lines
    "answer": (dict(question="what is it?"), dict(answer="box"), dict(answer=np.array([[1], [2], [1]]))),
    "choice": (
        dict(text="it is", choices=["red", "blue"]),
        dict(label=0),
        dict(logits=np.array([[0.0, 9], [9, 0], [0, 9]], np.float32)),
    ),
    "caption": (dict(texts=["a red ball"]), {}, dict(tokens=np.array([[0, 150], [0, 151], [0, 150]]))),
    "region": (
        dict(text="the ball", boxes=BOXES),
        dict(label=[0]),
        dict(region=np.array([[2, 1, 0], [1, 2, 0], [2, 1, 0]]), probability=np.array([[0.75, 0.25, 0]] * 3)),
    ),
}
EXPECTED = {  # answers to the lines 1, 2 and 3; the second is an upright image, and the last of the table
    "answer": [dict(answer="box"), dict(answer="box"), dict(answer="cup")],
    "choice": [dict(label=1, choice="blue"), dict(label=1, choice="blue"), dict(label=0, choice="red")],
    "caption": [dict(caption=WORDS[0]), dict(caption=WORDS[0]), dict(caption=WORDS[1])],
    "region": [dict(boxes=[1, 0]), dict(boxes=[1, 0]), dict(boxes=[0, 1])],
}


@pytest.mark.parametrize("kind", LINES)
def test_a_split_without_labels_is_predicted(kind, tmp_path):
    fields, label, rows = LINES[kind]
    for name, size in (("wide.jpg", (60, 40)), ("tall.jpg", (40, 60))):
        (tmp_path / name).write_bytes(jpeg(size))
    labeled = [dict(image="wide.jpg") | fields | label] * 2
    if kind == "answer":
        labeled[1] = labeled[1] | dict(answer="cup")
    test = [
        dict(image=name, id=f"case {k}", shop=k) | fields for k, name in enumerate(("wide.jpg", "tall.jpg", "wide.jpg"))
    ]
    for split, lines in dict(train=labeled, val=labeled, test=test).items():
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    build_own(tmp_path, tmp_path / "data", "photos")
    config = own.get_config(f"{'caption' if kind == 'caption' else ''}@{tmp_path / 'data/own/photos'}@demo-pretrain")
    config.data.eval_split = "test"
    task, split = get_task(config.task), Split(config, "test")
    if kind != "caption":  # captions need no label
        is_usable = task.target_checker(config, train=False)
        assert all(is_usable(split[number]) for number in range(3))
    assert task.conclude(tmp_path, {"": rows | dict(index=np.arange(3))}, config) == {}
    found = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    for number, (row, answer) in enumerate(zip(found, EXPECTED[kind], strict=True)):
        assert (row["id"], row["shop"]) == (f"case {number}", number)
        assert {name: row[name] for name in answer} == answer
    with (tmp_path / "test.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["id"] for row in table] == [row["id"] for row in found]
    if kind == "choice":
        assert found[0]["probabilities"] == pytest.approx([0, 1], abs=1e-3)
        assert float(table[2]["probability of 0"]) == found[2]["probabilities"][0]
    if kind == "region":
        assert table[0]["boxes"] == "1|0" and table[0]["probability of the first box"] == "0.75"
