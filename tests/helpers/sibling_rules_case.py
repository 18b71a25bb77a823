"""Provide the recorded data rules of the siblings, and their random numbers."""

import json

import numpy as np
import pytest

from tests.helpers.golden_folders import golden_folders
from vlbert_jax.data.masking import Samples

MASK = 4  # of VisualBERT's recorded vocabulary: [PAD] [UNK] [CLS] [SEP] [MASK] w0 w1 ...


def recordings(name):
    found = [path for folder in golden_folders("one_stream") for path in sorted(folder.glob(f"data_{name}_*.json"))]
    assert found
    cases = [json.loads(path.read_text()) for path in found]
    return pytest.mark.parametrize("case", cases, ids=[path.stem for path in found])


def samples_of(draws, replacement=lambda index: index, regions=0) -> Samples:
    """Return the recorded random numbers as samples: a replacement follows the number of its token."""
    uniforms, replacements, forced = [], [], 0.0
    for kind, value in draws:
        if kind == "random":
            uniforms.append(value)
            replacements.append(0)
        elif regions:
            forced = (value + 0.5) / regions
        else:
            replacements[-1] = replacement(value)
    of_regions = np.array(uniforms if regions else [])
    return Samples(0.0, 0.0, 0.0, np.array(uniforms), np.array(replacements, int), of_regions, forced)
