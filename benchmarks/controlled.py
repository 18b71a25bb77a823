"""Compare five architectures under one recipe: the controlled study on synthetic scenes.

    python benchmarks/controlled.py [--seeds=0,1,2] [--architectures=vlbert,...] [--table]

Each row is two documented commands with one seed: configs/pretrain.py:controlled_demo and, from its weights,
configs/vqa.py:controlled_demo. Only `config.model.architecture` differs between the rows of a seed. A row has the
accuracy of masked words that only the image determines, read with and without the image ("blind"), and the accuracy of
answers after fine-tuning, all on the validation split at the end of the run. It is added to `--results`
(benchmarks/results/controlled.jsonl) at once, and a row that exists is not repeated. The output is a Markdown table
with mean and standard deviation over the seeds that have a row; docs/science/controlled.md has it.

The table says whether each architecture learns to read the image under one recipe, and how much of a difference is due
to the seed. It does not rank the systems: the models have two or three layers of width 128 and a region head that is
trained along, the two-stream models have more parameters, and the rates are those of VL-BERT's demo, not the best of
each architecture.
"""

import argparse
import itertools
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import runs  # noqa: E402
from vlbert_jax.files import required_path, user_file  # noqa: E402

ARCHITECTURES = ("vlbert", "uniter", "visualbert", "vilbert", "lxmert")
SCORES = {  # column -> (command, metric)
    "visual words": ("pretrain", "visual_word_accuracy"),
    "blind": ("pretrain", "visual_word_accuracy_blind"),
    "VQA": ("vqa", "answer_accuracy"),
}


def run(workdir: Path, architecture: str, seed: int, flags: list[str]) -> dict:
    """Pre-train and fine-tune an architecture, and return the row of the results."""
    flags = [f"--config.model.architecture={architecture}", f"--config.seed={seed}", "--config.report=False", *flags]
    pretrained = workdir / "pretrain"
    found = {
        "pretrain": runs.train(pretrained, "configs/pretrain.py:controlled_demo", *flags),
        "vqa": runs.train(
            workdir / "vqa", "configs/vqa.py:controlled_demo", f"--config.init.checkpoint={pretrained}", *flags
        ),
    }
    scores = {column: found[command][0][metric] for column, (command, metric) in SCORES.items()}
    return dict(architecture=architecture, seed=seed, **scores, **{name: facts for name, (_, facts) in found.items()})


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdirs", type=user_file, default=Path("workdirs/controlled"))
    parser.add_argument("--data_dir", type=user_file, default=Path("data"))
    parser.add_argument("--results", type=required_path, default=ROOT / "benchmarks/results/controlled.jsonl")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--architectures", default=",".join(ARCHITECTURES), help="rows (default: %(default)s)")
    parser.add_argument("--table", action="store_true", help="print the table of the rows that exist; train nothing")
    parser.add_argument(
        "--flag", action="append", default=[], help="a further flag of both commands, as --flag=--config.batch_size=16"
    )
    args = parser.parse_args(argv)
    architectures, seeds = args.architectures.split(","), [int(seed) for seed in args.seeds.split(",")]
    results, flags = Path(args.results), [f"--config.data.data_dir={args.data_dir.absolute()}", *args.flag]
    rows = runs.stored_rows(results, "architecture", "seed")
    # The first seed of everything comes first: an interrupted table has all its cells.
    for seed, name in itertools.product(seeds, architectures):
        if (name, seed) not in rows and not args.table:
            rows[name, seed] = run(args.workdirs.absolute() / f"{name}_{seed}", name, seed, flags)
            runs.store(results, rows[name, seed])
    print(f"| architecture | seeds | {' | '.join(SCORES)} |", "|---" * (len(SCORES) + 2) + "|", sep="\n")
    for name in architectures:
        found = [rows[name, seed] for seed in seeds if (name, seed) in rows]
        cells = [str(len(found)), *(runs.shown([row[column] for row in found]) for column in SCORES)]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
