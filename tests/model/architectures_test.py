"""The table of architectures: names, values, and what is refused."""

import dataclasses

import ml_collections
import pytest

from configs import pretrain as recipes
from vlbert_jax.model.architectures import ARCHITECTURES, UNITER, VLBERT, get_architecture
from vlbert_jax.model.config import architecture_of, model_options


def test_names_are_keys():
    assert all(name == architecture.name for name, architecture in ARCHITECTURES.items())
    assert len({dataclasses.replace(a, name="") for a in ARCHITECTURES.values()}) == len(ARCHITECTURES)


def test_a_config_without_the_field_is_of_vlbert():
    assert architecture_of(ml_collections.ConfigDict(dict(model=dict()))) is VLBERT


def test_the_config_chooses_the_architecture_of_both_parts():
    config = recipes.base_prec()
    with config.unlocked():
        config.model.architecture = "uniter"
    encoder, head = model_options(config)
    assert encoder.architecture is head.architecture is UNITER
    assert head.dropout_rate == 0.0 and config.model.region_head.dropout_rate == 0.1  # UNITER has no dropout there


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="architecture is 'unitre'; there are: vlbert, .* Did you mean 'uniter'"):
        get_architecture("unitre")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(gelu="exact"), "gelu='exact'; it must be one of erf, tanh"),
        (dict(geometry="none"), "a size is required if and only if"),
        (dict(geometry_size=0), "a size is required if and only if"),
        (dict(geometry="joint"), "which requires geometry='separate'"),
    ],
)
def test_values_that_do_not_exist_or_contradict_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(UNITER, **change)
