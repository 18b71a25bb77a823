"""Measure the value of pre-training: fine-tune the demos of the tasks from the demo's checkpoint and from scratch.

    make demo && python benchmarks/fine_tuning.py [--checkpoint=workdirs/demo] [--seeds=0,1,2] [--tasks=vqa,...]

Each run is the documented command with its own seed, in WORKDIRS/TASK_START_SEED, and adds its score, duration and
machine to `--results` (benchmarks/results/fine_tuning.jsonl). A run that has a row there is not repeated, so a table of
many hours may be made in parts. "From scratch" also lacks a trained region head, which in the paper's comparison comes
from the detector. `blind` is trained like the first column, but without the image (regions: without their appearance).
`chance` uses no example but the most frequent answer of the training split, one choice in four, any region, random
scores of pairs, or the most frequent word. The output is a Markdown table with mean and standard deviation over the
seeds that have a row.
"""

import argparse
import collections
import itertools
import math
import statistics
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from benchmarks import runs  # noqa: E402
from vlbert_jax.data.tables import Split  # noqa: E402
from vlbert_jax.files import required_path, user_file  # noqa: E402
from vlbert_jax.tasks import get_task  # noqa: E402
from vlbert_jax.tasks.answer import accuracy  # noqa: E402
from vlbert_jax.tasks.answer_lists import answers_of  # noqa: E402
from vlbert_jax.tasks.match.batches import Candidates, candidates_of  # noqa: E402
from vlbert_jax.tasks.match.recall import AT  # noqa: E402
from vlbert_jax.tasks.region import model as region_model  # noqa: E402
from vlbert_jax.tasks.region import task as region_task  # noqa: E402

REGION = region_task.RegionTask()

TASKS = {  # name: (config, metric)
    "VQA": ("configs/vqa.py", "answer_accuracy"),
    "VCR Q→A": ("configs/vcr.py", "choice_accuracy"),
    "VCR QA→R": ("configs/vcr.py:demo_qa2r", "choice_accuracy"),
    "RefCOCO+": ("configs/refcoco.py", "grounding_accuracy"),
    "SNLI-VE": ("configs/classify.py", "classify_accuracy"),
    "NLVR2": ("configs/classify.py:demo_pairs", "classify_accuracy"),
    "Retrieval": ("configs/retrieval.py", "mean_recall"),
    "Captions": ("configs/caption.py", "caption_accuracy"),
    "Entities": ("configs/refcoco.py:entities_demo", "grounding_accuracy"),
    "Visual7W": ("configs/refcoco.py:visual7w_demo", "grounding_accuracy"),
}
STARTS = ("pre-trained", "from scratch", "blind")


def run(workdir: Path, name: str, start: str, seed: int, checkpoint: Path, data_dir: Path) -> dict:
    """Train once, and return the row of the results: the metric on the validation split at the end of the run."""
    config, metric = TASKS[name]
    init = "scratch=True" if start == "from scratch" else f"checkpoint={checkpoint}"
    last, facts = runs.train(
        *(workdir, config, f"--config.init.{init}", f"--config.seed={seed}", f"--config.data.data_dir={data_dir}"),
        *(f"--config.blind={start == 'blind'}", "--config.report=False"),
    )
    return dict(task=name, start=start, seed=seed, metric=metric, score=last[metric], **facts)


def chance(name: str, config) -> float:
    """Return the score of a guess that uses neither image nor text."""
    if name.startswith("VCR"):
        return 0.25
    if name == "Retrieval":
        return chance_of_recall(candidates_of(config))
    if name == "Captions":
        labels = collections.Counter()
        for batch in get_task("caption").eval_batches(config, 0, 1)["images"]:
            labels.update(batch.targets.mlm_labels[batch.targets.mlm_mask].tolist())
        return max(labels.values()) / labels.total()
    split = Split(config, config.data.eval_split)
    if name in ("SNLI-VE", "NLVR2"):
        texts = Split(config, config.data.train_split).texts
        given = collections.Counter(texts[number]["labels"][0] for number in range(len(texts)))
        (best, _), known = given.most_common(1)[0], [split.texts[k]["labels"] for k in range(len(split))]
        return statistics.mean(float(labels == [best]) for labels in known)
    if name == "VQA":
        given = collections.Counter()
        texts = Split(config, config.data.train_split).texts
        for number in range(len(texts)):
            given.update(texts[number]["answers"])
        entries, (best, _) = answers_of(config), given.most_common(1)[0]
        answers = (split.texts[number]["answers"] for number in range(len(split)))
        return statistics.mean(float(accuracy.soft_targets(a, entries)[entries.number(best)]) for a in answers)
    hits = []
    for batch in REGION.eval_batches(config, 0, 1)["expressions"]:
        real = batch.index >= 0
        hits += list(batch.targets.region_hits[real].sum(1) / np.asarray(region_model.choosable(batch))[real].sum(1))
    return float(np.mean(hits))


def chance_of_recall(candidates: Candidates) -> float:
    """Return the expected mean recall of random scores."""
    images, texts = len(candidates.images), len(candidates.lengths)
    own = np.bincount(candidates.image_of_text)
    of_texts = [float(np.mean([1 - math.comb(texts - n, k) / math.comb(texts, k) for n in own.tolist()])) for k in AT]
    return float(np.mean([*(min(k / images, 1) for k in AT), *of_texts]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=user_file, default=Path("workdirs/demo"))
    parser.add_argument("--workdirs", type=user_file, default=Path("workdirs/fine_tuning"))
    parser.add_argument("--data_dir", type=user_file, default=Path("data"))
    parser.add_argument("--results", type=required_path, default=ROOT / "benchmarks/results/fine_tuning.jsonl")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--starts", default=",".join(STARTS), help="columns (default: %(default)s)")
    parser.add_argument("--tasks", default=",".join(TASKS), help="comma-separated (default: %(default)s)")
    parser.add_argument("--table", action="store_true", help="print the table of the rows that exist; train nothing")
    args = parser.parse_args()
    tasks, starts, seeds = args.tasks.split(","), args.starts.split(","), [int(seed) for seed in args.seeds.split(",")]
    results, paths = Path(args.results), (args.checkpoint.absolute(), args.data_dir.absolute())
    rows = runs.stored_rows(results, "task", "start", "seed")
    # The first seed of everything comes first: an interrupted table has all its cells.
    for seed, name, start in itertools.product(seeds, tasks, starts):
        if (name, start, seed) not in rows and not args.table:
            workdir = args.workdirs.absolute() / f"{name}_{start}_{seed}".replace(" ", "_")
            rows[name, start, seed] = run(workdir, name, start, seed, *paths)
            runs.store(results, rows[name, start, seed])
    print(f"| task | {' | '.join(starts)} | chance |", "|---" * (len(starts) + 2) + "|", sep="\n")
    for name in tasks:
        scores = [[rows[name, start, s]["score"] for s in seeds if (name, start, s) in rows] for start in starts]
        chance_of = f"{chance(name, config_of(TASKS[name][0], args.data_dir)):.3f}"
        print(f"| {name} | {' | '.join(map(runs.shown, scores))} | {chance_of} |", flush=True)


def config_of(path: str, data_dir: Path):
    module, _, variant = path.partition(":")
    spec = __import__(module.removesuffix(".py").replace("/", "."), fromlist=["get_config"])
    config = spec.get_config(variant or "demo")
    config.data.data_dir = str(data_dir)
    return config


if __name__ == "__main__":
    main()
