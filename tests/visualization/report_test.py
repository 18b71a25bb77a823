"""Test that the report page is one complete file that shows the data correctly."""

import base64
import html.parser
import io
import math
import re
import subprocess
import sys

import numpy as np
import PIL.Image
import pytest

from tests.helpers.browser import CHROMIUM, open_browser
from vlbert_jax.visualization import cards, report
from vlbert_jax.visualization.charts import log_ticks, nice_ticks

VOID = {"meta", "br", "img"}


class Balanced(html.parser.HTMLParser):
    """A parser that raises on tags closed out of order; it collects text and loaded addresses."""

    def __init__(self):
        super().__init__()
        self.open, self.links, self.seen = [], [], ""

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        self.links += [value for name, value in attrs if name in ("href", "src", "xlink:href")]

    def handle_startendtag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("href", "src", "xlink:href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.seen += data


def parse(page):
    parser = Balanced()
    parser.feed(page)
    parser.close()
    assert not parser.open
    return parser


def history():
    rng = np.random.default_rng(0)
    rows = []
    for step in range(50, 2001, 50):
        noise = rng.normal(0, 0.03, 4)
        t = step / 2000
        for split in ("train", "val") if step % 500 == 0 else ("train",):
            share = 0.1 + 0.75 / (1 + math.exp(6 - 14 * t))
            rows.append({
                "step": step, "split": split, "loss": 5 * math.exp(-3 * t) + 0.6 + noise[0],
                "mlm_caption_loss": 3 * math.exp(-3 * t) + 0.3 + noise[1], "samples_per_sec": 340 + 100 * noise[0],
                "mlm_caption_accuracy": share + noise[2] * (split == "train"), "learning_rate": 7e-4 * min(1, t * 20),
            })
            if split == "val":
                rows[-1] |= {"mlm_caption_accuracy_blind": 0.35 + 0.1 * t, "visual_word_accuracy": share,
                             "visual_word_accuracy_blind": 0.13, "mrc_accuracy": 0.3 + 0.5 * t,
                             "mrc_accuracy_blind": 0.3 + 0.2 * t}
                rows[-1] |= {f"visual_word_accuracy_objects_{n}": share ** n for n in (1, 2, 3, 10)}
                rows[-1] |= {f"visual_word_accuracy_objects_{n}_blind": 0.13 for n in (1, 2, 3, 10)}
    return rows


def scene(seed, predicted=True, size=(96, 128)):
    rng = np.random.default_rng(seed)
    height, width = size
    image = np.full((height, width, 3), rng.integers(150, 230, 3), np.uint8)
    image[height // 2 :] = image[height // 2 :] // 2
    boxes = [(0, 0, width, height)]
    for _ in range(3):
        x, y, w, h = rng.integers(0, width * 0.7), rng.integers(0, height * 0.6), width * 0.28, height * 0.35
        image[y : int(y + h), x : int(x + w)] = rng.integers(0, 255, 3)
        boxes.append((x, y, x + w, y + h))
    words = "a red ball lies left of a strip ##ed cup and a green box".split()
    top = lambda *pairs: tuple(pairs)  # noqa: E731
    masked = (
        cards.Guess(1, "red", top(("red", 0.83), ("blue", 0.1), ("pink", 0.04), ("green", 0.02), ("box", 0.01)),
                     top(("blue", 0.15), ("red", 0.14), ("green", 0.14), ("gray", 0.13), ("black", 0.12))),
        cards.Guess(9, "cup", top(("box", 0.5), ("cup", 0.44), ("ball", 0.03), ("star", 0.02), ("ring", 0.01)),
                     top(("cup", 0.3), ("box", 0.28), ("ball", 0.2), ("star", 0.1), ("ring", 0.05))),
    )
    hidden = (cards.HiddenRegion(2, "cup", top(("cup", 0.71), ("box", 0.2), ("ball", 0.09))),)
    return cards.Card(
        image, np.array(boxes, np.float32), ("", "red ball", "cup", "green box"), words,
        masked if predicted else (), hidden if predicted else (), f"scene {seed}",
    )


def whole_page(directory):
    rows = history()
    sections = [
        ("", report.paragraph("2000 steps on 8,000 synthetic scenes; scores on 512 held-out scenes.")),
        ("Scores", report.scores(rows[-1])),
        ("Training", report.curves(rows)),
        ("Predictions", cards.prediction_cards([scene(i) for i in range(8)] + [scene(9, size=(128, 96))])),
        ("Data", cards.record_cards([scene(i, predicted=False) for i in range(12)])),
    ]
    return report.write_page(directory, "vlbert_jax: demo", sections)


def test_one_complete_file_that_loads_nothing(tmp_path):
    path = whole_page(tmp_path / "new" / "report")
    assert path == tmp_path / "new" / "report" / "index.html"
    assert [p.name for p in path.parent.iterdir()] == ["index.html"]
    page = path.read_text()
    parser = parse(page)
    assert parser.links and all(link.startswith("data:image/") for link in parser.links)
    assert not re.search(r"https?://|@import|<script[^>]|<link|url\((?!#)", page)
    assert path.stat().st_size < 3e6


def test_large_images_are_shrunk(tmp_path):
    rng = np.random.default_rng(0)
    photo = np.kron(rng.integers(0, 255, (60, 80, 3)), np.ones((10, 10, 1))) + rng.normal(0, 10, (600, 800, 3))
    card = cards.Card(photo.clip(0, 255).astype(np.uint8), np.array([[0, 0, 800, 600], [80, 60, 400, 300]]))
    path = report.write_page(tmp_path, "photos", [("", cards.prediction_cards([card] * 12))])
    assert path.stat().st_size < 3e6


def test_a_card_shows_the_image_and_its_boxes():
    image = np.zeros((100, 200, 3), np.uint8)
    image[:, 100:] = (250, 10, 10)
    page = cards.record_cards([cards.Card(image, np.array([[0, 0, 200, 100], [20, 10, 120, 60]]), ("", "red thing"))])
    parse(page)
    data = re.search(r"base64,([^\"]+)", page)[1]
    shown = np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(data))))
    np.testing.assert_array_equal(shown, image)
    assert 'viewBox="0 0 280 140.0"' in page
    assert '<rect x="28.0" y="14.0" width="140.0" height="70.0"' in page  # 1.4 units per pixel
    assert page.count('stroke-width="3"') == 1  # the box of the whole image is not shown
    assert ">1</i>red thing" in page


def test_predictions_mark_correct_guesses():
    page = cards.prediction_cards([scene(0)])
    parser = parse(page)
    assert '<mark class="right">red</mark>' in page and '<mark class="wrong">cup</mark>' in page
    assert "striped" in parser.seen and "##" not in parser.seen  # WordPieces are joined
    assert page.count('class="bar sighted hit"') == 3 and page.count('class="bar blind hit"') == 2
    assert "--p:83.0%" in page and ">83 %<" in page
    assert page.count("url(#hatch)") == 1 and "cup (hidden)" in parser.seen


def test_answers_show_their_score():
    def page(*scores):
        answers = [cards.RankedAnswer(f"a{i}", 0.6 - i / 10, score) for i, score in enumerate(scores)]
        card = cards.Card(np.zeros((4, 4, 3), np.uint8), np.zeros((1, 4)), question="which?", answers=answers)
        return parse(cards.answer_cards([card])).seen

    assert "which? ✓a0 ✓60 %a1 50 %" in page(1.0, 0.0) and "brackets" not in page(1.0, 0.0)
    assert "which? ✗a0 60 %a1 (0.3)50 %" in page(0.0, 0.3) and "brackets" in page(0.0, 0.3)
    assert "which? (0.6)a0 (0.6)60 %" in page(0.6)
    assert "which? ✗" in page()


def test_everything_is_escaped(tmp_path):
    tags = "<b>&\"'"
    card = cards.Card(np.zeros((8, 8, 3), np.uint8), np.zeros((2, 4)), (tags, tags), (tags,),
                       (cards.Guess(0, tags, ((tags, 1.0),)),), (cards.HiddenRegion(1, tags, ((tags, 1.0),)),), tags)
    rows = [{"step": 1, "split": tags, f"loss{tags}": 1.0}]
    path = report.write_page(tmp_path, tags, [(tags, cards.prediction_cards([card]) + report.paragraph(tags)),
                                         ("", report.curves(rows) + report.scores(rows[0]))])
    parse(path.read_text())
    assert tags not in path.read_text()


def test_scores_are_paired_and_grouped():
    page = report.scores(history()[-1], {"visual_word_accuracy": "masked words", "objects": "number of objects:"})
    text = re.sub(r"<[^>]+>", "|", page)
    rows = [[cell for cell in line.split("|") if cell] for line in text.split("||||")]
    flat = re.sub(" +", " ", " ".join(" ".join(row) for row in rows))
    number = r"85\.\d % no image 13\.0 % \+72\.\d"
    assert re.search(f"masked words {number} number of objects: 1 {number}", flat)
    assert re.search(r"mrc accuracy 80\.0 % no caption 50\.0 % \+30\.0", flat)
    assert flat.index("objects: 3") < flat.index("objects: 10")
    assert flat.index("mrc accuracy") < flat.index("sequences per second")
    assert text.count("blind") == 1 and "step" not in text  # only in the heading


def test_scores_without_baselines_and_with_missing_values():
    page = report.scores({"step": 1, "split": "val", "loss": 1.5, "accuracy": None, "mrc_accuracy": 0.5})
    assert "blind" not in page and "50.0 %" in page and "1.5" in page
    parse(report.scores({"x_accuracy": math.nan, "x_accuracy_blind": 0.5}))


def test_curves_show_the_values():
    page = report.curves([{"step": s, "split": "val", "x_accuracy": s / 100, "loss": 2.0} for s in (0, 50, 100)])
    line = re.search(r"x accuracy *</h3>.*?points=\"([^\"]+)\"", page)[1]
    points = np.array([pair.split(",") for pair in line.split()], float)
    np.testing.assert_allclose(np.diff(points[:, 0]), (points[2, 0] - points[0, 0]) / 2, atol=0.1)
    np.testing.assert_allclose(np.diff(points[:, 1]), (points[2, 1] - points[0, 1]) / 2, atol=0.1)
    assert points[2, 1] < points[0, 1]  # larger values are higher
    assert "<b>100.0 %</b>" in page
    assert page.index("total loss") < page.index("x accuracy")


def test_curves_of_incomplete_rows():
    assert "No rows" in report.curves([])
    rows = [{"step": 1, "split": "train", "loss": None}, {"step": 2, "split": "train", "loss": math.inf},
            {"step": 3, "split": "train", "loss": -1.0, "note": "text"}]
    page = report.curves(rows)
    parse(page)
    assert "nan" not in page and "<b>-1</b>" in page
    huge = [{"step": s, "split": "val", "loss": loss} for s, loss in ((1, 1e308), (2, 3.0), (3, -1e308), (4, 2.0))]
    assert "<b>2</b>" in report.curves(huge)  # points that no axis can hold are left out
    chosen = report.curves(history(), names=["mrc_accuracy", "absent"])
    assert chosen.count("<svg") == 1
    long = [{"step": s, "split": "train", "loss": 1.0 + s % 7} for s in range(1, 100_001)]
    assert len(report.curves(long)) < 50_000


@pytest.mark.parametrize("low, high", [(0, 1), (0.2, 0.21), (-3, 5), (0, 123_456), (1, 1), (0.0, 7e-4)])
def test_ticks_cover_the_range_and_are_few(low, high):
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low + 1e-9 and ticks[-1] >= high - 1e-9
    assert 2 <= len(ticks) <= 8 and np.allclose(np.diff(ticks), ticks[1] - ticks[0])


def test_the_report_needs_neither_jax_nor_a_plotting_library():
    code = ("import sys, vlbert_jax.visualization.report; "
            "print([m for m in ('jax', 'flax', 'matplotlib', 'vlbert_jax.tasks') if m in sys.modules])")
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_a_change_of_the_losses_is_explained():
    rows = [{"step": s, "split": "train", "loss": 1.0, "a_loss" if s < 30 else "b_loss": 1.0} for s in (10, 20, 30, 40)]
    page = report.curves(rows, labels={"b_loss": "loss of words"})
    assert page.count("From step 20 on the total loss is another sum") > 1  # a sentence, and in each chart
    assert "sum of: loss of words. Before: a loss." in page
    assert "another sum" not in report.curves(rows[:2])


def test_a_logarithmic_scale_leaves_out_what_is_not_positive():
    rows = [{"step": s, "split": "train", "loss": v, "x_accuracy": 0.5} for s, v in ((1, 100.0), (2, 1.0), (3, 0.0))]
    page = report.curves(rows, names=["loss", "x_accuracy"])
    scales = re.findall(r'<g class="(\w+)">(.*?)</g>', page)
    assert [kind for kind, _ in scales] == ["linear", "log", "linear"]  # shares have one scale
    linear, log = (re.search(r'points="([^"]*)".*data-steps="([^"]*)" data-values="([^"]*)"', s).groups()
                   for _, s in scales[:2])
    assert linear[1:] == ("1 2 3", "100|1|0") and log[1:] == ("1 2", "100|1")
    heights = [float(pair.split(",")[1]) for pair in log[0].split()]
    assert heights == [8.0, 204.0]  # the whole height of the chart, from 100 to 1


@pytest.mark.parametrize("low, high, expected", [
    (1, 100, [1, 2, 5, 10, 20, 50, 100]), (0.3, 13, [0.2, 0.5, 1, 2, 5, 10, 20]), (3, 3, [2, 5]), (10, 10, [10, 20]),
    (1e-6, 1, [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1]),
])  # fmt: skip
def test_logarithmic_ticks(low, high, expected):
    np.testing.assert_allclose(log_ticks(low, high), expected)


def test_logarithmic_ticks_of_many_decades_are_few():
    ticks = log_ticks(3e-19, 5e7)
    assert ticks[0] <= 3e-19 and ticks[-1] >= 5e7 and len(ticks) <= 9


@pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed")
def test_values_under_the_pointer_and_the_button_of_the_scale(tmp_path):
    rows = [{"step": s, "split": split, "loss": 2.0 * s} for s in (100, 200, 300) for split in ("train", "val")]
    path = report.write_page(tmp_path, "page", [("", report.curves(rows))])
    with open_browser(tmp_path / "profile") as page:
        page.open(path.as_uri())
        shown = "getComputedStyle(document.querySelector('.log')).display"
        assert page.run("document.querySelector('.values').hidden") and page.run(shown) == "none"
        page.mouse(".chart svg", press=False)  # the middle of the chart is between steps 100 and 200
        assert page.run("document.querySelector('.values').textContent") == "step 100train 200val 200"
        # The box is in the chart, next to the step.
        places = "['.values', '.chart svg'].map(x => document.querySelector(x).getBoundingClientRect().toJSON())"
        box, chart = page.run(places)
        assert box["height"] > 0 and chart["top"] <= box["top"] and box["bottom"] <= chart["bottom"]
        page.mouse(".chart button", press=True)
        assert page.run(shown) == "inline" and page.run("document.querySelector('.values').hidden")
        page.mouse(".chart svg", press=False)
        assert page.run("document.querySelector('.values').textContent") == "step 100train 200val 200"
