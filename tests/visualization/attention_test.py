"""Test the attention page in a browser without network access: clicks change the drawing."""

import numpy as np
import pytest
import skimage
from PIL import Image

from tests.helpers.browser import CHROMIUM, open_browser
from vlbert_jax.visualization.attention import write_attention

TOKENS = ("[CLS]", "a", "cat", "</script><b>", "[SEP]")
REGIONS = ("whole image", "region 1", "brown cat")
LAYERS, HEADS, SIZE = 3, 4, 9


@pytest.fixture(scope="module")
def attention():
    rng = np.random.default_rng(0)
    sampled = rng.gamma(0.3, size=(LAYERS, HEADS, SIZE, SIZE)).astype(np.float32)
    return sampled / sampled.sum(-1, keepdims=True)


@pytest.fixture(scope="module")
def path(attention, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "out.html"
    pixels = np.asarray(Image.open(f"{skimage.data_dir}/chelsea.png"))
    boxes = np.array([[20, 30, 200, 250], [250, 40, 440, 280]], np.float32)
    write_attention(path, pixels, boxes, TOKENS, REGIONS, attention, "a cat? <i>", "yes 90%")
    return path


def test_page_loads_no_other_file(path):
    text = path.read_text()
    assert "<i>" not in text and text.count("</script>") == 2 and "</script><b>" not in text
    assert text.count("http") == text.count("http://www.w3.org/2000/svg") == 1  # the SVG namespace, not a link
    assert not [word for word in ("src=", "@import", "url(", "fetch(", "XMLHttp") if word in text]


def test_sizes_that_do_not_fit(path, attention, tmp_path):
    pixels, boxes = np.zeros((5, 5, 3), np.uint8), np.zeros((2, 4), np.float32)
    with pytest.raises(ValueError, match="do not fit 5 tokens and 2 regions"):
        write_attention(tmp_path / "x.html", pixels, boxes, TOKENS, REGIONS[:2], attention, "")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed")
def test_in_a_browser(path, attention, tmp_path):
    drawing = "document.getElementById('lines').toDataURL()"
    shown = "document.body.dataset.shown"
    with open_browser(tmp_path) as page:
        page.open(f"{path.as_uri()}#layer=2")
        assert page.run(shown) == "2/0/"
        first = page.run(drawing)
        page.mouse("#heads button[data-head='3']", press=True)
        assert page.run(shown) == "2/3/" and "head=3" in page.run("location.hash")
        second = page.run(drawing)
        assert second != first
        page.mouse("#layers button[data-layer='1']", press=True)
        assert page.run(shown) == "1/3/" and page.run(drawing) not in (first, second)
        thumbnails = page.run("[...document.querySelectorAll('#heads canvas')].map(c => c.toDataURL())")
        assert len(set(thumbnails)) == HEADS + 1

        # Hovering over a word shows its attention to each element, in 8-bit precision.
        page.mouse("#words button[data-i='2']", press=False)
        assert page.run(shown) == "1/3/2"
        percents = page.run("[...document.querySelectorAll('#words button, #regions button')].map(b =>"
                            "[+b.dataset.i, parseFloat(b.lastChild.textContent)])")
        assert len(percents) == SIZE
        for i, percent in percents:
            assert percent == pytest.approx(100 * attention[0, 2, 2, i], abs=0.9)
        fills = page.run("[...document.querySelectorAll('#image rect')].map(r =>"
                         "[+r.dataset.i, parseFloat(r.style.fill.split(',')[3])])")
        strongest = attention[0, 2, 2].max()
        for i, opacity in fills:
            expected = 0 if i == len(TOKENS) else 0.75 * attention[0, 2, 2, i] / strongest
            assert opacity == pytest.approx(expected, abs=0.03)

        # A click selects a region, and the address stores the selection.
        page.mouse("#image rect[data-i='7']", press=True)
        assert page.run(shown) == "1/3/7" and "at=7" in page.run("location.hash")
        assert "brown cat" in page.run("document.getElementById('selected').textContent")
        page.run("document.getElementById('reverse').click()")
        back = page.run("parseFloat(document.querySelector('#words button[data-i=\"1\"]').lastChild.textContent)")
        assert back == pytest.approx(100 * attention[0, 2, 1, 7], abs=0.9)
        assert page.run("document.querySelector('#words button[data-i=\"3\"] span').textContent") == TOKENS[3]
        screenshot = page.screenshot()
        assert page.run("performance.getEntriesByType('resource').filter(r => !r.name.startsWith('data:')).length") == 0
    assert screenshot.startswith(b"\x89PNG") and len(screenshot) > 50_000
