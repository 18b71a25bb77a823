"""The fingerprint of a detector, which identifies the features that it computes.

This module imports no JAX, because `data_prep` uses it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

VERSION = 1  # increase it with every change of the code that changes the features for the same weights and settings


def extractor_fingerprint(tensors: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the weights' digest, the settings and the version of the code, as JSON values.

    Together they determine the features.

    The same detector has the same fingerprint whichever file it was read from.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].shape} ".encode())
        digest.update(np.ascontiguousarray(tensors[name], np.float32))
    return dict(weights=digest.hexdigest()[:16], settings=json.loads(json.dumps(settings)), version=VERSION)


def extractor_id(fingerprint: Mapping[str, Any]) -> str:
    """Return a short id of an extractor, by which mixed extractors are detected."""
    return hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()[:16]
