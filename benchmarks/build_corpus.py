"""Measure how much faster several processes build the records of a corpus than one.

    python benchmarks/build_corpus.py --processes=2 --rounds=3

The source is that of `benchmarks/input_pipeline.py`: synthetic JPEG images and regions in the layout of Conceptual
Captions. Few different files are read again and again, so the disk does not count. Each round builds the table with one
process and with several, in turn, and compares the files byte for byte. The load of the machine is printed with each
round: processes that have no core of their own are no faster.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import pathlib
import platform
import shutil
import statistics
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))  # the script also runs without an installation

from benchmarks.input_pipeline import cpu_name, write_source  # noqa: E402
from data_prep.build import run_builder  # noqa: E402
from data_prep.parts import Workers  # noqa: E402
from data_prep.region_captions import RegionCaptions  # noqa: E402


def build(root: pathlib.Path, processes: int) -> tuple[float, dict[str, bytes]]:
    """Build the table, and return the seconds that this took and the content of its files; the table is removed."""
    began = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        table = run_builder(RegionCaptions("noise", root, root, splits=("train",)), Workers(processes))
    seconds = time.perf_counter() - began
    files = {path.name: path.read_bytes() for path in table.iterdir()}
    shutil.rmtree(table)
    return seconds, files


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--height", type=int, default=600)
    parser.add_argument("--width", type=int, default=800)
    parser.add_argument("--boxes", type=int, default=100)
    parser.add_argument("--records", type=int, default=32, help="different images (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=64, help="captions of each image (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=2, help="compared with one (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    args.features = "image"

    records = args.records * args.repeats
    print(f"machine   {platform.node()}, {os.cpu_count()} x {cpu_name()}")
    print(f"records   {records:,}, {args.width}x{args.height}, {args.boxes} boxes")
    ratios = []
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        write_source(root, args)
        index = root / "train_frcnn.json"
        index.write_text(index.read_text() * args.repeats)
        for _ in range(args.rounds):
            alone, expected = build(root, 1)
            together, files = build(root, args.processes)
            if files != expected:
                raise SystemExit("error: the files of several processes differ from those of one")
            ratios.append(alone / together)
            print(
                f"1 process {alone:.1f} s ({records / alone:.0f} records/s), {args.processes} processes "
                f"{together:.1f} s ({records / together:.0f} records/s), ratio {ratios[-1]:.2f}; "
                f"load {os.getloadavg()[0]:.1f}"
            )
    print(f"ratio     {statistics.median(ratios):.2f} (median)")


if __name__ == "__main__":
    main()
