"""Run the cells of the notebook as Jupyter does, which the tests do not install: in order, in one namespace."""

import ast
import json

import pytest
from PIL import Image

from tests.helpers import ROOT

NOTEBOOK = ROOT / "docs/notebooks/start.ipynb"


def run_cell(source, names):
    """Run a cell; return the value of its last expression, None where it ends otherwise."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names) if last else None


@pytest.mark.slow
def test_the_cells_run_and_show_what_the_text_says(monkeypatch):
    notebook, names, shown = json.loads(NOTEBOOK.read_text()), {}, []
    monkeypatch.chdir(NOTEBOOK.parent)
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None  # stored outputs would become stale
            shown.append(run_cell("".join(cell["source"]), names))
    predictor, picture, answers, best, drawing, grounded, regions, (tokens, text, rows), tuned = shown
    assert "demo-vqa" in repr(predictor) and picture._repr_png_()[:4] == b"\x89PNG"
    assert answers[0].text == "orange" and best == ["fish", "3"]
    assert all(isinstance(image, Image.Image) and image.width == 640 for image in (drawing, grounded))
    assert names["places"][0].region == 2
    assert list(regions)[:2] == ["whole image", "region 1"] and 0 < sum(regions.values()) < 1
    assert len(tokens) == text[0] and rows == (4, 128)
    accuracy, found = tuned
    assert accuracy == 1.0 and found[0].text == "blue"
