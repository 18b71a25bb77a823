"""Test the batches of the benchmark of training steps, and its table of architectures, at a toy size."""

import argparse
import json

import jax
import numpy as np
import pytest

from benchmarks import train_step
from benchmarks.shapes import fit_to_shape, shape_of
from configs import pretrain
from vlbert_jax.batch import IMG, NO_IMAGE
from vlbert_jax.model.architectures import ARCHITECTURES

SHAPE = shape_of("base_prec", small=True)
WORDS, REGIONS = SHAPE["tokens"], SHAPE["boxes"]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_batch_has_the_layout_of_its_architecture(name):
    """It has the shapes of a run, and every word and region of the shape, each once."""
    config, architecture = train_step.architecture_config(name, small=True), ARCHITECTURES[name]
    fit_to_shape(config, SHAPE)
    batch = train_step.synthetic_batch(config, SHAPE)
    like = train_step.PRETRAIN.batch_shapes(config)
    same = jax.tree.map(lambda x, shape: (x.shape, x.dtype) == (shape.shape, shape.dtype), batch, like)
    assert all(jax.tree.leaves(same)) and jax.tree.structure(batch) == jax.tree.structure(like)
    caption = batch.token_ids[:, 0], batch.element_mask[:, 0]
    is_region = (caption[0] >= config.model.encoder.vocab_size + IMG) & caption[1]
    regions = 0 if architecture.streams == 2 else REGIONS - (not architecture.whole_image)
    assert (is_region.sum(-1) == regions + architecture.end_token).all()
    assert (caption[1].sum(-1) == WORDS + regions + architecture.end_token).all()
    assert (batch.element_mask[:, 1].sum(-1) == WORDS + architecture.end_token).all()
    assert batch.region_mask.all() and (batch.region_ids[:, 1] == NO_IMAGE).all()
    assert batch.targets.mlm_mask.any() and (not config.losses.mrc or batch.targets.mrc_mask.any())
    expected = (4, REGIONS, architecture.geometry_size) if architecture.geometry_size else None
    assert getattr(batch.box_geometry, "shape", None) == expected


def test_an_image_fills_its_canvas():
    config, shape = pretrain.base_e2e(), shape_of("base_e2e")
    fit_to_shape(config, shape)
    batch = train_step.synthetic_batch(config, shape)
    assert batch.pixels.shape == (1, 1, 608, 800, 3) and batch.pixels[:, :, :600].any((0, 1, 4)).all()
    np.testing.assert_array_equal(batch.image_size, [[[800, 600]]])
    assert batch.region_mask.all() and batch.element_mask[0, 0].sum() == 20 + 20 + 1


def test_the_ratio_is_that_of_a_turn(monkeypatch):
    """Seconds per FLOP of both models are compared within a turn, so a slower machine changes nothing."""
    config, args = train_step.architecture_config("vlbert"), argparse.Namespace(steps=3, small=True, captions=[None])
    of_vlbert = train_step.Opened(Compiled(), None, None, config, None, None, 1e12, 0.0)
    monkeypatch.setattr(train_step, "open_recipe", lambda *_: of_vlbert._replace(flops=2e12))
    monkeypatch.setattr(train_step, "timed_step", lambda _: iter([4.0, 10.0, 44.0]).__next__)
    row = train_step.compare("lxmert", of_vlbert, iter([2.0, 4.0, 20.0]).__next__, args)
    assert row["ratio"] == 1.1 and row["ratios"] == [1.0, 1.25]
    assert row["step_ms"] == 10_000 and row["vlbert_ms"] == 4_000 and row["tflop_per_step"] == 2
    row = train_step.compare("vlbert", of_vlbert, iter([1.0, 2.0, 2.0, 2.0, 2.0, 2.0]).__next__, args)
    assert row["ratio"] == 1.0 and row["ratios"] == [1.0, 2.0]  # it takes turns with itself


class Compiled:
    """A program without a need of memory."""

    def memory_analysis(self):
        return argparse.Namespace(temp_size_in_bytes=0, argument_size_in_bytes=0)


def test_architectures_of_the_command_line(capsys):
    """Steps run, here of VL-BERT with itself; a wrong name or recipe ends the program before that."""
    train_step.main(["--architectures=vlbert", "--small", "--captions=8", "--steps=1"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()[1:-1]]
    assert [row["architecture"] for row in rows] == ["vlbert"]
    assert all(row["tflop_per_step"] > 0 and row["step_ms"] > 0 and row["ratio"] > 0 for row in rows)
    for wrong, message in {
        "--architectures=vlbert,lxmrt": "--architectures has 'lxmrt'",
        "--architectures=": "--architectures has ''",
        "--architectures=all --config=base_e2e": "leave out --config=base_e2e",
        "--architectures=all --captions=4,8": "give --captions one number",
    }.items():
        with pytest.raises(SystemExit):
            train_step.main(wrong.split())
        assert message in capsys.readouterr().err
