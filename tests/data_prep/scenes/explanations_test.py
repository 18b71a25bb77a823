"""Test the texts of `scene_explanations`: they are true, their words are known, and they are the same every time."""

import hashlib

import numpy as np
import pytest

from data_prep import build
from data_prep.scenes import explanations, vcr
from data_prep.scenes.crowded import draw_crowded, fits
from data_prep.scenes.downstream import vocabulary
from data_prep.scenes.world import relation
from tests.helpers.built_case import read_all
from vlbert_jax.data.records import open_split

WRONG = {right: wrong for pair in vcr.OPPOSITES for right, wrong in (pair, pair[::-1])}


def is_true(statement, things):
    """Return whether words such as "the red ball is above the box" are true, each description fitting one thing."""

    def named(words):
        assert words[0] == "the"
        (thing,) = (t for t in things if fits(tuple(words[1:]), t))
        return thing

    subject, _, predicate = statement.partition(" is ")
    word, *other = predicate.split()
    if other:
        return relation(named(subject.split()), named(other)) == word
    return fits((word, "thing"), named(subject.split()))


def statements(line):
    """Return the statements of a line; a question is one of them after its answer."""
    question, _, rest = line.rpartition(" ? ")
    facts = [text for part in rest.removesuffix(" .").split(" because ") for text in part.split(" and ")]
    asked = facts[0].partition(" is ")[0]
    assert question in ("", f"what color is {asked}", f"where is {asked}")
    return facts


def test_every_statement_is_true_and_of_known_words():
    questions, known = set(), set(vocabulary())
    for number in range(40):
        rng = np.random.default_rng([0, explanations.STREAM, number])
        scene, _ = draw_crowded(rng)
        for line in filter(None, (explanations.write_line(scene, rng) for _ in range(4))):
            found = statements(line)
            assert len(set(found)) == explanations.FACTS and 20 <= len(line.split()) <= 43, line
            assert all(is_true(statement, scene.things) for statement in found), line
            assert set(line.split()) <= known
            questions.add(line.partition(" is ")[0])
            for statement in found:
                subject, _, predicate = statement.partition(" is ")
                word, *other = predicate.split()
                assert word not in subject.split()  # the answer is not in the question
                if wrong := WRONG.get(word):
                    assert not is_true(" ".join([subject, "is", wrong, *other]), scene.things)
    assert {"what color", "where"} <= questions


def test_the_corpus_is_built_with_the_captions_it_goes_with(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(build, "build_scenes", made.append)
    texts = build.build_scene_explanations
    monkeypatch.setattr(build, "build_scene_explanations", lambda folder: texts(folder, num_train=4, num_val=2))
    fields = dict(
        data_dir=str(tmp_path), vocab="scene_explanations/vocab.txt", captions="", text="text_corpus/scene_explanations"
    )
    for _ in range(2):
        build.draw_missing("scene_explanations", fields)
    assert made == [tmp_path]
    lines = [record["text"].decode() for record in read_all(tmp_path / "text_corpus/scene_explanations/1.0.0", "train")]
    assert "".join(f"{line}\n" for line in lines) == (tmp_path / "scene_explanations/train.doc").read_text()
    assert len(lines) == 4 * explanations.LINES
    assert (tmp_path / "scene_explanations/vocab.txt").read_text().split("\n")[:-1] == vocabulary()


def test_the_same_settings_give_the_same_bytes(tmp_path):
    command = ["scene_explanations", f"--data_dir={tmp_path}", "--num_train=3", "--num_val=1", "--seed=2"]
    assert build.main(command) == 0
    folder = tmp_path / "scene_explanations"
    texts = b"".join((folder / f"{split}.doc").read_bytes() for split in explanations.SPLITS)
    assert hashlib.sha256(texts).hexdigest()[:16] == "1b24d65b9bd533d4"


@pytest.mark.parametrize("table", ["text_corpus/scene_explanations", "region_captions/scene_questions"])
def test_a_missing_table_names_the_command_that_generates_it(table, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"python -m data_prep.build {table.partition('/')[2]} --data_dir"):
        open_split(tmp_path, table, "train")
