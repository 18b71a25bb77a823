"""The options of the detector. Commands read their defaults for --help, so this module imports no JAX."""

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How the network is run; defaults are those of the published extraction."""

    proposals_before: int = 6000  # most likely anchors that go into suppression,
    proposals_after: int = 300  # and regions that come out
    proposal_overlap: float = 0.7
    min_side: int = 16  # of a proposal, in pixels of an image of scale 1
    class_overlap: float = 0.3  # of suppression within a class
    roi_operation: str = "pool"  # or "align", one sample per bin, as VL-BERT's region head does
    roi_chunk: int = 30  # regions that pass C5 at once


@dataclasses.dataclass(frozen=True, kw_only=True)
class Selection:
    """What an image is made of the network's proposals; defaults are VL-BERT's (`generate_tsv_v2`).

    Anderson et al. took a threshold of 0.2; 36 regions of every image are `fewest` = `most` = 36.
    """

    image_scale: tuple[int, int] = (600, 1000)  # short side, unless the long side would pass the second
    threshold: float = 0.5  # of the highest class probability with which a region survives suppression
    fewest: int = 10
    most: int = 100
