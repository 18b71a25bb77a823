"""Write the models that ship with the package, their cards, and the example scene; `make assets` calls it.

    python benchmarks/assets.py [--data_dir=data] [--pretrain=workdirs/demo] [--vqa=workdirs/vqa]
        [--refcoco=workdirs/refcoco]

The workdirs are finished runs of the demo variants. For each the script writes vlbert_jax/assets/demo-NAME: the
weights in float16 (with the config as metadata), the vocabularies, and README.md, a model card. The card has two sets
of scores: those of the run's validation split (metrics.jsonl), and those of the shipped weights on a small corpus of
another seed, which tests/prediction/shipped_test.py computes again. The script also writes examples/scene.jpg and
examples/scene.json.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import ml_collections  # noqa: E402
import numpy as np  # noqa: E402
from huggingface_hub import EvalResult, ModelCardData  # noqa: E402

from configs import pretrain, refcoco, vqa  # noqa: E402
from data_prep.build import build_scene_tasks, build_scenes  # noqa: E402
from data_prep.scenes.corpus import detect  # noqa: E402
from data_prep.scenes.crowded import draw_crowded  # noqa: E402
from vlbert_jax import main as command  # noqa: E402
from vlbert_jax.files import atomic_write, user_file, user_path  # noqa: E402
from vlbert_jax.training.metrics import read_rows  # noqa: E402
from vlbert_jax.training.provenance import copy_vocabularies  # noqa: E402
from vlbert_jax.weights.conversion import prepare_conversion, write_conversion  # noqa: E402
from vlbert_jax.weights.shipped import ASSETS  # noqa: E402
from vlbert_jax.weights.stored_config import own_vocabularies  # noqa: E402

RECIPES = dict(pretrain=pretrain, vqa=vqa, refcoco=refcoco)
SCORES = {  # scores on the card; the first is the one to look at
    "pretrain": ("visual_word_accuracy", "visual_word_accuracy_blind", "mlm_caption_accuracy", "mrc_accuracy"),
    "vqa": ("answer_accuracy",),
    "refcoco": ("grounding_accuracy", "grounding_accuracy_blind", "grounding_accuracy_chance"),
}
HELD_OUT = dict(seed=1, num_train=1, num_val=100)  # no run of the demo has this seed
EXAMPLE = (1, 10, 1216)  # seed of the example scene, chosen because the answers about it are right
EXAMPLE_TEXTS = {  # for each option of the prediction command, for the page of the app; each was tried
    "question": ["what color is the large fish?", "what is the purple thing?", "how many things are there?"],
    "expression": ["the large fish", "the car", "the purple thing"],
    "caption": ["the purple [MASK]", "a [MASK] car", "three things on the [MASK]"],
}
TRAINING = {
    "pretrain": "make demo",
    "vqa": "python -m vlbert_jax.main --config=configs/vqa.py --config.init.checkpoint=workdirs/demo",
    "refcoco": "python -m vlbert_jax.main --config=configs/refcoco.py --config.init.checkpoint=workdirs/demo",
}
ABOUT = {
    "pretrain": ("fill-mask", "fills masked words of a caption from the image", '--caption "the purple [MASK]"'),
    "vqa": (
        "visual-question-answering",
        "answers questions about an image",
        '--question "what color is the large fish?"',
    ),
    "refcoco": ("object-detection", "finds the region that an expression describes", '--expression "the large fish"'),
}
CARD = """\
# {name}

A small VL-BERT that {does}. It ships with vlbert_jax, so that the first
command works without training:

```
python -m vlbert_jax.predict --checkpoint={name} --image=examples/scene.jpg --boxes=examples/scene.json \\
  {option}
```

The encoder has {layers} layers of width {width}, the region head is a small ResNet, and the vocabulary has {words}
tokens: {parameters:,} parameters in float16. Computation is in float32.

## Training

The weights come from this command at commit `{commit}`, {steps:,} updates of {batch_size} sequences:

```
{training}
```

{start}The command generates its training data, {scenes} synthetic scenes. A scene shows up to four things,
such as fish, balls and houses, in eight colors and five places. `make assets` makes this folder again.

## Scores

{table}

The first column is the validation split of the run (seed 0), at the end of training. The second is a corpus of
seed {seed} ({num_val} scenes), scored with the weights in this folder.

## Limits

This is a demonstration. The model has seen nothing but synthetic scenes of 96 to 144 pixels, with ten kinds of things
and a few dozen words. Its answers about photographs, people and other words are guesses. It expects a box around each
thing: with the grid that replaces missing boxes it is much worse. The answers about `examples/scene.jpg` are right
because that scene was chosen. Do not use the model for decisions. For photographs, use released weights or train the
recipes of the paper.
"""


def write_example() -> None:
    """Write the example scene, the boxes of the simulated detector, and texts about it."""
    rng = np.random.default_rng(EXAMPLE)
    scene, _ = draw_crowded(rng)
    folder = ROOT / "examples"
    folder.mkdir(exist_ok=True)
    (folder / "scene.jpg").write_bytes(scene.jpeg)
    boxes = [[round(float(side), 1) for side in box] for box in detect(scene, rng)[0]]
    (folder / "scene.json").write_text(json.dumps(dict(boxes=boxes, texts=EXAMPLE_TEXTS)) + "\n")


def export(task: str, workdir: Path, data_dir: str, target: Path) -> ml_collections.ConfigDict:
    """Write weights and vocabularies of a run to `target`; return the config of the run."""
    config = ml_collections.ConfigDict(json.loads((workdir / "config.json").read_text()))
    config.data.data_dir = data_dir
    config.data.update(own_vocabularies(workdir))
    write_conversion(prepare_conversion(workdir, task), target / "model.safetensors", "safetensors", "float16")
    copy_vocabularies(config, target)
    return config


def held_out_scores(task: str, model: Path, folder: Path) -> dict[str, float]:
    """Return the scores of a model on the validation split of the held-out corpus in `folder`."""
    config = RECIPES[task].get_config()
    config.data.update(dict(data_dir=str(folder), embedded=""))
    config.init.checkpoint = str(model)
    command.run(config, folder / f"run_{task}", "evaluate")
    return json.loads((folder / f"run_{task}/scores.json").read_text())


def write_card(
    target: Path, task: str, workdir: Path, config: ml_collections.ConfigDict, held_out: dict[str, float]
) -> None:
    """Write the model card in the form of Hugging Face."""
    rows = [row for row in read_rows(workdir / "metrics.jsonl") if row["split"] == "val"]
    reached, results = rows[-1], []
    kind, does, option = ABOUT[task]
    for seed, scores in ((0, reached), (HELD_OUT["seed"], held_out)):
        for metric in SCORES[task]:
            about = dict(dataset_type="synthetic-scenes", dataset_name="synthetic scenes", dataset_split="val")
            about |= dict(task_type=kind, dataset_config=f"seed-{seed}", metric_type=metric)
            results.append(EvalResult(metric_value=round(float(scores[metric]), 4), **about))
    data = ModelCardData(
        language="en", license="mit", library_name="vlbert_jax", pipeline_tag=kind, model_name=target.name,
        tags=["vl-bert", "jax", "demonstration"], datasets=["synthetic-scenes"], eval_results=results,
    )  # fmt: skip
    table = ["| score | validation | held out |", "|---|---|---|"]
    table += [f"| `{metric}` | {reached[metric]:.3f} | {held_out[metric]:.3f} |" for metric in SCORES[task]]
    encoder = config.model.encoder
    sizes = [array.size for array in prepare_conversion(target).tensors.values()]
    starts = "It starts from `demo-pretrain`. " if config.init.checkpoint else ""
    text = CARD.format(
        name=target.name, does=does, option=option, layers=encoder.num_layers, width=encoder.hidden_size,
        words=encoder.vocab_size, parameters=sum(sizes), steps=config.total_steps, batch_size=config.batch_size,
        commit=json.loads((workdir / "versions.json").read_text())["revision"], training=TRAINING[task], start=starts,
        scenes="12,000" if task == "pretrain" else "3,000", table="\n".join(table), **HELD_OUT,
    )  # fmt: skip
    (target / "README.md").write_text(f"---\n{data.to_yaml()}\n---\n\n{text}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=user_path, default="data", help="data of the runs, for the vocabularies")
    for task, workdir in dict(pretrain="demo", vqa="vqa", refcoco="refcoco").items():
        parser.add_argument(f"--{task}", type=user_file, default=Path("workdirs", workdir))
    args = parser.parse_args()
    write_example()
    with tempfile.TemporaryDirectory() as name:
        build_scenes(name, **HELD_OUT, num_train_stories=1, num_val_stories=50)
        build_scene_tasks(name, **HELD_OUT, num_test=1)
        for task in RECIPES:
            workdir, target = getattr(args, task), ASSETS / f"demo-{task}"
            with atomic_write(target) as folder:
                folder.mkdir()
                config = export(task, workdir, args.data_dir, folder)
            write_card(target, task, workdir, config, held_out_scores(task, target, Path(name)))
            print(f"written: {target}")


if __name__ == "__main__":
    main()
