"""What made a region's features: the detector's fingerprint. Needs no JAX: `data_prep` uses it too."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

VERSION = 1  # of what comes out for the same weights and settings: raise it with every change of numbers


def extractor_fingerprint(tensors: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the numbers that come out: weights, settings, this code's version. JSON keeps it as it is.

    The same detector has the same fingerprint whichever file it was read from.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].shape} ".encode())
        digest.update(np.ascontiguousarray(tensors[name], np.float32))
    return dict(weights=digest.hexdigest()[:16], settings=json.loads(json.dumps(settings)), version=VERSION)


def extractor_id(fingerprint: Mapping[str, Any]) -> str:
    """A short name of an extractor, by which mixed ones are found."""
    return hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()[:16]
