"""The models that VL-BERT's paper compares itself with, as values of a few switches.

In those of one stream an element is the sum of a token, a visual feature, a segment and a position. They
differ in which elements have which part, in where the norms are, and in how a region becomes a vector. In
those of two streams the regions are not elements of the sequence; `two_stream_config.py` has their sizes.
"""

from __future__ import annotations

import dataclasses
import difflib

ALLOWED = {
    "word_visual": ("before_norm", "after_norm", "none"),
    "geometry": ("joint", "separate", "tables", "none"),
    "activation": ("relu", "tanh", "none"),
    "visual_norm": ("after", "each", "none"),
    "region_position": ("shared", "running", "own", "none"),
    "region_segment": ("shared", "own", "none"),
    "region_norm": ("shared", "own", "none"),
    "hidden": ("vector", "zeros", "none"),
    "gelu": ("erf", "tanh"),
    "pool": ("text", "mul"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture:
    """How text and regions become elements; every field is a choice of the original code.

    Raises:
        ValueError: A field has a value that does not exist, or two fields contradict each other.
    """

    name: str
    streams: int = 1  # 2: words and regions are apart and read each other
    # Whether words carry the visual feature of a region: added before their norm, behind it, or not at all.
    word_visual: str = "none"
    # Box geometry: joined to the appearance before one projection, with a separate projection, rows of two learned
    # tables that are added to the appearance, or not used.
    geometry: str = "none"
    geometry_size: int = 0  # values per box; 2048 is the sine embedding, 4 to 7 are numbers (geometry.py)
    activation: str = "none"  # of the projected region
    # Norm of the projected region: of its sum, of appearance and geometry each, or none.
    visual_norm: str = "none"
    region_word: bool = False  # whether a region has the token [IMG]
    # Positions of regions: all one position or running positions of the table of words, a separate table, or none.
    region_position: str = "none"
    region_segment: str = "none"  # the table of words, a separate table, or none
    region_segment_id: int = 0  # row of that table
    region_norm: str = "shared"  # norm of the summed parts of a region: that of words, a separate norm, or none
    region_names: bool = False  # whether the names of the regions are the second part of the text
    end_token: bool = False  # whether a sequence ends with [END]
    whole_image: bool = False  # whether the whole image is an element, or the first region of two streams
    hidden: str = "none"  # what replaces the appearance of a hidden region; none: regions are never hidden
    projection_dropout: bool = False  # dropout of appearance and geometry before the projection
    region_class_norm: bool = False  # layer norm in the head of the classes of hidden regions
    gelu: str = "erf"  # exact, or the approximation by tanh
    # The pooled vector: tanh layer of [CLS], or the product of ReLU layers of [CLS] and the first region.
    pool: str = "text"

    def __post_init__(self):
        for field, values in ALLOWED.items():
            if getattr(self, field) not in values:
                raise ValueError(
                    f"The architecture {self.name!r} has {field}={getattr(self, field)!r}; "
                    f"it must be one of {', '.join(values)}."
                )
        if (self.geometry == "none") != (self.geometry_size == 0):
            raise ValueError(
                f"The architecture {self.name!r} has geometry={self.geometry!r} and "
                f"geometry_size={self.geometry_size}; a size is required if and only if there is geometry."
            )
        two_streams = self.geometry == "separate" and self.visual_norm != "none" and self.hidden != "vector"
        if self.streams == 2 and not two_streams:
            raise ValueError(
                f"The architecture {self.name!r} has two streams, which requires geometry='separate', a visual_norm "
                "and hidden='zeros' or 'none'."
            )
        if self.visual_norm == "each" and self.geometry != "separate":
            raise ValueError(
                f"The architecture {self.name!r} has visual_norm='each', which requires geometry='separate'."
            )


VLBERT = Architecture(
    name="vlbert",
    word_visual="before_norm",
    geometry="joint",
    geometry_size=2048,
    activation="relu",
    visual_norm="after",
    region_word=True,
    region_position="shared",
    region_segment="shared",
    region_segment_id=2,
    end_token=True,
    whole_image=True,
    hidden="vector",
    projection_dropout=True,
)
VISUALBERT = Architecture(name="visualbert", region_position="own", region_segment="own")
UNITER = Architecture(
    name="uniter",
    geometry="separate",
    geometry_size=7,
    visual_norm="each",
    region_segment="shared",
    region_segment_id=1,
    region_norm="own",
    hidden="vector",
    region_class_norm=True,
)
OSCAR = Architecture(name="oscar", geometry="joint", geometry_size=6, region_norm="none", region_names=True)
VINVL = dataclasses.replace(OSCAR, name="vinvl", region_norm="own")
# In the original code the elements with a feature are words of the vocabulary, [IMAGE] and [OBJ-k], so that they have
# all parts of a word. Questions with choices have them here, too; elsewhere they are the token [IMG], behind
# the text.
B2T2 = Architecture(
    name="b2t2",
    word_visual="after_norm",
    activation="tanh",
    region_word=True,
    region_position="running",
    region_segment="shared",
    region_segment_id=1,
    whole_image=True,
    gelu="tanh",
)
B2T2_POSITIONS = dataclasses.replace(B2T2, name="b2t2_positions", geometry="tables", geometry_size=4)
# After the paper (Li et al., 2020): no code is published. Where it is silent, the values are VL-BERT's.
UNICODER_VL = Architecture(
    name="unicoder_vl",
    geometry="separate",
    geometry_size=5,
    visual_norm="after",
    region_word=True,
    region_position="shared",
    region_segment="shared",
    region_segment_id=2,
    hidden="zeros",
)
LXMERT = Architecture(
    name="lxmert", streams=2, geometry="separate", geometry_size=4, visual_norm="each", hidden="zeros",
    region_class_norm=True,
)  # fmt: skip
# The first region is the whole image.
VILBERT = dataclasses.replace(
    LXMERT, name="vilbert", geometry_size=5, visual_norm="after", whole_image=True, pool="mul"
)
ONE_STREAM = (VLBERT, VISUALBERT, UNITER, OSCAR, VINVL, B2T2, B2T2_POSITIONS, UNICODER_VL)
ARCHITECTURES = {a.name: a for a in (*ONE_STREAM, LXMERT, VILBERT)}


def get_architecture(name: str) -> Architecture:
    """Return the architecture of that name; raise ValueError where there is none."""
    if name not in ARCHITECTURES:
        close = difflib.get_close_matches(name, ARCHITECTURES, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"config.model.architecture is {name!r}; there are: {', '.join(ARCHITECTURES)}.{hint}")
    return ARCHITECTURES[name]
