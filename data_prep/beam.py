"""Share a build of records or an extraction of regions among the workers of an Apache Beam runner.

    python -m data_prep.beam [--shares=N] [options of Beam] -- build NAME OPTIONS...
    python -m data_prep.beam [--shares=N] [options of Beam] -- extract_regions IMAGES OPTIONS...

After -- comes a command of data_prep without --shard. Every share is an element of the pipeline. A worker runs the
command for it with --shard=i/N, and reads and writes the same files as launch/slurm_array.sbatch. Workers need this
package, and files and folders in the command must be at addresses (gs://, s3://) or on a file system that all workers
share. After the shares of a build, this process completes the table. The same command continues a failed or stopped
one: finished parts are not made again.

Options of Beam choose the runner, for example --runner=DataflowRunner with its project, region, staging location and a
container image that has this package. On one machine:

  python -m data_prep.beam --shares=8 --runner=DirectRunner --direct_num_workers=4 \\
    --direct_running_mode=multi_processing -- build captions --source=DOWNLOAD --data_dir=data

Exit status: 0; 2 after an error, which one line explains; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import subprocess
import sys
from collections.abc import Sequence

from data_prep import build
from data_prep.build_options import parse_options
from vlbert_jax.command import run_command

COMMANDS = "build", "extract_regions"
# A local worker prints the traceback of a failed share, which Beam would log three times more.
QUIET = ["--default_sdk_harness_log_level=CRITICAL"]
RELAYED = "apache_beam.runners.portability.local_job_service"  # the log of workers on this machine
FAILED = re.compile(r"share \d+/\d+ failed: [^\n]*")  # in the text of a runner's error


def run_share(share: int, shares: int, command: Sequence[str], folder: str) -> int:
    """Run one share in a process of its own, since Beam calls this in a thread; return the share.

    Args:
        share: Number of the share, from 0.
        shares: Number of all shares.
        command: One of `COMMANDS`, and its options.
        folder: Folder to which paths of the command are relative, if the worker has it.

    Raises:
        RuntimeError: The command failed; the message has its last line.
    """
    name, *options = command
    if name == "build":  # a runner starts about one worker per core, so a share uses one process by default
        options.insert(1, "--num_processes=1")
    line = [sys.executable, "-m", f"data_prep.{name}", *options, f"--shard={share}/{shares}"]
    place = folder if os.path.isdir(folder) else None
    done = subprocess.run(line, cwd=place, stderr=subprocess.PIPE, text=True, errors="replace")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it wrote nothing"])[-1]
        raise RuntimeError(f"share {share}/{shares} failed: {last.removeprefix('error: ')}")
    print(f"share {share}/{shares} is done", file=sys.stderr, flush=True)
    return share


def run_shares(command: Sequence[str], shares: int, flags: Sequence[str]) -> None:
    """Run all shares of a command on a runner of Beam.

    Args:
        command: One of `COMMANDS`, and its options.
        shares: Number of shares.
        flags: Options of Beam.

    Raises:
        ValueError: Beam is missing, or a share or the runner failed.
    """
    try:
        import apache_beam as beam  # pyright: ignore[reportMissingImports]
        from apache_beam.options.pipeline_options import PipelineOptions  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ValueError("Apache Beam is missing: pip install 'vlbert_jax[beam]'") from None
    logging.getLogger(RELAYED).setLevel(logging.CRITICAL)
    try:
        with beam.Pipeline(options=PipelineOptions([*QUIET, *flags])) as pipeline:
            numbers = pipeline | beam.Create(range(shares)) | beam.Reshuffle()  # else one worker takes all
            _ = numbers | beam.Map(run_share, shares, list(command), os.getcwd())
    except Exception as error:
        found, lines = FAILED.search(str(error)), str(error).strip().splitlines() or [type(error).__name__]
        reason = found[0] if found else f"the runner failed: {lines[-1]}"
        raise ValueError(f"{reason}; the same command continues") from error


def parse_arguments(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str], list[str]]:
    """Return the options of this command, those of Beam, and the command; a usage error exits with status 2."""
    parser = argparse.ArgumentParser(
        "python -m data_prep.beam", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shares", type=int, default=16, metavar="N", help="number of shares (default: 16)")
    split = list(argv).index("--") if "--" in argv else len(argv)
    args, flags = parser.parse_known_args(list(argv[:split]))
    command = list(argv[split + 1 :])
    if args.shares < 2:
        parser.error(f"--shares={args.shares} is less than two; run the command itself")
    if not command or command[0] not in COMMANDS:
        parser.error(f"no command: {' or '.join(COMMANDS)} must follow --")
    if any(option.startswith("--shard") for option in command):
        parser.error("--shard is set for every share; leave it out")
    if len(command) < 2:
        parser.error(f"{command[0]} has no options; python -m data_prep.{command[0]} --help lists them")
    if command[0] == "build":
        parse_options([*command[1:], "--shard=0/2"])  # a mistake is reported here and not by a worker
    return args, flags, command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    args, flags, command = parse_arguments(sys.argv[1:] if argv is None else argv)
    stopped = "stopped; the same command continues"
    status = run_command(lambda: run_shares(command, args.shares, flags), interrupted=stopped)
    return status or (build.main(command[1:]) if command[0] == "build" else 0)


if __name__ == "__main__":
    from data_prep import beam  # workers find its functions by the name of this module

    sys.exit(beam.main())
