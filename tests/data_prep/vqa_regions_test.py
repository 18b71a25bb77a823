"""Test tables of regions with the damages that published tables have."""

import numpy as np
import pytest

from data_prep.manifest import Manifest, SourceError
from data_prep.vqa_regions import RegionTable
from tests.helpers.vqa_case import COLUMNS, encode, regions
from vlbert_jax.data.region_files import decode_regions, table_row

ROWS = {i: table_row(regions(i)).encode() for i in (1, 2, 3, 4)}
HEADING = "\t".join(COLUMNS).encode() + b"\n"
WHOLE = b"".join(ROWS.values())
CUT = ROWS[2][:-21]  # within the array of features


def read(tmp_path, *contents, image_ids=(1, 2, 3, 4)):
    """Return the table over files of some contents, and the notes (action, file, line, reason) about them."""
    paths = [tmp_path / f"{i}.tsv" for i in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    manifest = Manifest("", {})
    table = RegionTable(paths, set(image_ids), manifest)
    return table, [(p["action"], p["file"].rpartition("/")[2], p["line"], p["reason"]) for p in manifest.problems]


def check_all(table, image_ids=(1, 2, 3, 4)):
    for image_id in image_ids:
        found = decode_regions(table.read("test2015", image_id)[1], with_features=True)
        np.testing.assert_array_equal(found.features, np.arange(12, dtype="f4").reshape(2, 6) + image_id)


USED = "image 2: its line before this one is cut, so this one is used"
STARTS = "image 3: its line starts within a line that was cut"
NOT_A_ROW = "the line does not have the 6 columns of a table: it was cut"
CASES = dict(
    plain=([WHOLE], []),
    heading=([HEADING + WHOLE], []),
    blank_end=([WHOLE + b"\n"], []),
    crlf=([WHOLE.replace(b"\n", b"\r\n") + b"\r\n"], []),
    cut_then_whole=([ROWS[1] + CUT + b"\n" + ROWS[3] + ROWS[2] + ROWS[4]], [("repaired", "0.tsv", 3, USED)]),
    # A cut after whole triples of bytes leaves valid base64.
    cut_elsewhere=([ROWS[2][:-5] + b"\n" + WHOLE], [("repaired", "0.tsv", 2, USED)]),
    whole_then_cut=([WHOLE + CUT], [("skipped", "0.tsv", 4, "image 2: the line is cut")]),
    whole_elsewhere=([ROWS[1] + CUT, ROWS[3] + ROWS[2] + ROWS[4]], [("repaired", "1.tsv", 1, USED)]),
    cut_early=([WHOLE + b"2\t60\n"], [("skipped", "0.tsv", 4, NOT_A_ROW)]),
    twice=([WHOLE + ROWS[2]], [("skipped", "0.tsv", 4, "image 2 occurs again; its first line is used")]),
    glued=(
        [ROWS[1] + CUT + ROWS[3] + ROWS[2] + ROWS[4]],
        [("repaired", "0.tsv", 2, USED), ("repaired", "0.tsv", 1, STARTS)],
    ),
    glued_crlf=(
        [ROWS[1] + CUT + ROWS[3][:-1] + b"\r\n" + ROWS[2] + ROWS[4]],
        [("repaired", "0.tsv", 2, USED), ("repaired", "0.tsv", 1, STARTS)],
    ),
    # The image of the inner line has a whole line of its own.
    glued_and_whole=([CUT + ROWS[3] + WHOLE], [("repaired", "0.tsv", 2, USED)]),
    # An inner line in the array of boxes.
    glued_in_boxes=(
        [ROWS[1] + ROWS[2][:40] + ROWS[3] + ROWS[2] + ROWS[4]],
        [("repaired", "0.tsv", 2, USED), ("repaired", "0.tsv", 1, STARTS)],
    ),
)


@pytest.mark.parametrize("name", CASES)
def test_the_whole_line_of_an_image_is_found(name, tmp_path):
    contents, notes = CASES[name]
    table, found = read(tmp_path, *contents)
    assert found == notes
    check_all(table)


def test_an_inner_line_of_two_possible_images_is_not_used(tmp_path):
    """The cut array may end with digits, so 13 may be the end of an array and image 3, or image 13."""
    content = ROWS[1] + CUT[:-1] + b"1" + ROWS[3] + ROWS[2] + ROWS[4]
    table, notes = read(tmp_path, content, image_ids=(1, 2, 3, 4, 13))
    assert notes[-1] == ("skipped", "0.tsv", 1, "a line starts within a line that was cut: it may be of image 13 or 3")
    with pytest.raises(SourceError, match="there are no regions of image 3"):
        table.read("test2015", 3)
    check_all(table, (1, 2, 4))
    table, _ = read(tmp_path, content)
    check_all(table)


def test_two_images_of_one_number(tmp_path):
    """A program that numbers photos by the digits of their names gives DSC_0001 and IMG_0001 one number."""
    other = table_row(regions(2, size=(60, 41))).encode()
    with pytest.raises(SourceError, match="1.tsv: line 2 is of image 2 with 60x41 .*0.tsv has an image 2 with 60x40"):
        read(tmp_path, WHOLE, ROWS[1] + other)
    moved = table_row(regions(2, boxes=encode([[1, 2, 30, 31]] * 2))).encode()
    _, notes = read(tmp_path, WHOLE + moved)
    assert notes[0][3].endswith("although the boxes differ: if these are two images, rename one")


def test_a_line_that_is_only_there_cut_says_so(tmp_path):
    table, _ = read(tmp_path, ROWS[1] + CUT + ROWS[3] + ROWS[4])
    with pytest.raises(SourceError, match="0.tsv: the only line of image 2 was cut, and another line starts in it"):
        table.read("test2015", 2)
