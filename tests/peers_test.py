"""Test that the PyTorch baseline of the benchmark does the work of vlbert_jax, at a toy size."""

import importlib.util

import numpy as np
import pytest

from benchmarks import peers


@pytest.mark.parametrize("recipe", peers.RECIPES)
def test_both_sides_do_the_same_work(recipe, tmp_path, monkeypatch):
    """Parameters are as many, results without dropout agree, and a step runs."""
    if recipe in ("base_e2e", "vqa") and not importlib.util.find_spec("torchvision"):
        pytest.skip("torchvision is not installed")
    served = []
    monkeypatch.setattr(peers, "serve", lambda about, step, _=None: served.append((about, step)))
    for side in ("ours", "pytorch"):
        peers.main([f"--side={side}", f"--recipes={recipe}", f"--folder={tmp_path}", "--small"])
        served[-1][1]()
    (ours, _), (theirs, _) = served
    peers.check(recipe, ours, theirs)
    assert ours["flops"] > 0 or recipe == "vqa"
    with pytest.raises(SystemExit, match="differ by"):
        peers.check(recipe, ours, theirs | dict(result=np.add(theirs["result"], 0.01)))


def test_wrong_options_are_named(capsys):
    for wrong, message in {
        "--recipes=base_prec,large": "--recipes has large",
        "--recipes=base_prec,vqa --dtype=bfloat16": "--dtype=bfloat16 is not for vqa",
        "--recipes=lxmert,vqa --compile": "--device and --compile are not for lxmert",
        "--recipes=visualbert --device=cuda": "--device and --compile are not for visualbert",
    }.items():
        with pytest.raises(SystemExit):
            peers.main(wrong.split())
        assert message in capsys.readouterr().err
