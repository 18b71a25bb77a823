"""The options of the detector.

Commands print the defaults with --help, so this module imports no JAX.
"""

import argparse
import dataclasses

from vlbert_jax.files import user_path


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkSettings:
    """Options of the network that every set of rules has; the defaults are those of the published extraction."""

    proposals_before: int = 6000  # most probable anchors that go into suppression
    proposals_after: int = 300  # proposals that remain after suppression
    proposal_overlap: float = 0.7  # IoU by which a proposal is suppressed
    roi_operation: str = "pool"  # "pool" or "align" (one sample per bin, as in VL-BERT's region head)
    roi_chunk: int = 30  # regions that pass C5 together


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(NetworkSettings):
    """Options of the network with Caffe's rules, those of the published extraction."""

    min_side: int = 16  # smallest side of a proposal, pixels of an image of scale 1
    class_overlap: float = 0.3  # IoU from which a region is suppressed within a class


@dataclasses.dataclass(frozen=True, kw_only=True)
class HuggingFaceSettings(NetworkSettings):
    """Options of the network with the rules of Hugging Face's `frcnn`, which `huggingface.py` describes."""

    region_overlaps: tuple[float, ...] = (0.5, 0.6, 0.7)  # IoU above which a region is suppressed, tried in this order


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
    """Options that decide which proposals become regions.

    The defaults are those of VL-BERT (`generate_tsv_v2`).

    Anderson et al. use a threshold of 0.2. For 36 regions in every image set `fewest` = `most` =
    36.
    """

    image_scale: tuple[int, int] = (600, 1000)  # shorter side, longest side of the network's input in pixels
    threshold: float = 0.5  # smallest confidence of a region, see `class_confidence`
    fewest: int = 10  # regions per image
    most: int = 100


RULES = {"": NetworkSettings, "caffe": Settings, "huggingface": HuggingFaceSettings}  # "" = those of the weights
SELECTIONS = {  # the selection of each set of rules
    "caffe": Selection(),
    "huggingface": Selection(image_scale=(800, 1333), threshold=0.0, fewest=36, most=36),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the commands that find regions in images of a user."""
    parser.add_argument(
        "--detector", type=user_path, metavar="PATH", help="weights of the detector that finds the regions"
    )
    parser.add_argument(
        "--rules", choices=tuple(SELECTIONS), default="",
        help="of the detector; huggingface: those of its frcnn (default: those that the weights were made for)",
    )  # fmt: skip
    usual = Settings().proposals_after
    parser.add_argument("--proposals", type=int, default=usual, metavar="N", help="proposals used (%(default)s)")
