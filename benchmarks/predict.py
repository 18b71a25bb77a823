"""From the command to the answer, and the next picture in the same process: base size, random weights.

    python benchmarks/predict.py [--regions=36] [--picture=PATH] [--detector=PATH]

VQA with the region head trained along (ResNet-101), 3,129 answers, a vocabulary of 30,522 made-up pieces: what is
measured does not depend on what the numbers are. Without --picture, scikit-image's coffee (600 x 400 pixels, the model
sees 900 x 600). Prints a row in Markdown: seconds and the most memory of the command; then, in one process, seconds of
loading, of the first answer (it compiles), of another question about the same picture, of a picture of another size,
and of one on its side (the second shape that is compiled), first and again.
"""

import argparse
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

QUESTION = "piece 100 piece 200 ?"


def write_model(folder: Path) -> None:
    from flax import nnx

    from configs import vqa as recipes
    from vlbert_jax import export
    from vlbert_jax.tasks import vqa

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "piece", *"0123456789?"]
    pieces += [f"##{digit}" for digit in range(10)]
    pieces += [f"word{i}" for i in range(30_522 - len(pieces))]
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
    (folder / "answers.txt").write_text("\n".join(["<unk>", *(f"answer {i}" for i in range(1, 3_129))]) + "\n")
    config = recipes.base()
    config.model.train_region_head = True
    config.data.update(dict(features="image", vocab=str(folder / "vocab.txt"), answers=str(folder / "answers.txt")))
    rng, arrays = np.random.default_rng(0), dict(params={}, constants={})
    for path, variable in nnx.to_flat_state(nnx.state(nnx.eval_shape(lambda: vqa.build_model(config, nnx.Rngs(0))))):
        node = arrays["params" if isinstance(variable, nnx.Param) else "constants"]
        for name in path[:-1]:
            node = node.setdefault(str(name), {})
        if path[-1] in ("scale", "gain", "variance"):
            node[str(path[-1])] = np.ones(variable.shape, np.float32)
        else:
            spread = 0.02 if len(variable.shape) != 4 else (2 / np.prod(variable.shape[:3])) ** 0.5
            node[str(path[-1])] = rng.standard_normal(variable.shape, np.float32) * np.float32(spread)
    about = json.loads(config.to_json_best_effort())
    export.write_orbax(folder / "model", arrays["params"], arrays["constants"], about)


def boxes_of(path: Path, count: int, size: tuple[int, int]) -> Path:
    """So many boxes of all sizes, anywhere."""
    corners = np.sort(np.random.default_rng(1).random((count, 2, 2)), axis=1) * size
    path.write_text(json.dumps(dict(boxes=corners.reshape(count, 4).tolist())))
    return path


def command(model: Path, picture: Path, where: list[str]) -> tuple[float, float]:
    """Seconds, and GiB at most, of the documented command."""
    argv = [sys.executable, "-m", "vlbert_jax.predict", f"--checkpoint={model}", f"--image={picture}"]
    began = time.perf_counter()
    process = subprocess.Popen([*argv, f"--question={QUESTION}", *where], cwd=ROOT, stdout=sys.stderr)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit("the command failed")
    return time.perf_counter() - began, used.ru_maxrss / 2**20


def in_one_process(model: Path, picture: Path, count: int, detector: str) -> dict[str, float]:
    import vlbert_jax

    times, began = {}, time.perf_counter()

    def lap(name: str) -> None:
        nonlocal began
        times[name], began = time.perf_counter() - began, time.perf_counter()

    def ask(image: Image.Image) -> None:
        file = boxes_of(model.parent / "some.json", count, image.size)
        nonlocal looked
        looked = predictor.look(image, None if detector else file)
        predictor.answer(looked, QUESTION)

    predictor, looked = vlbert_jax.load(model, detector=detector or None), None
    lap("load")
    first = Image.open(picture).convert("RGB")
    other = first.resize((first.width * 5 // 4, first.height))
    for name, image in (("first", first), ("another size", other), ("on its side", first.transpose(Image.ROTATE_90)),
                        ("again", other.transpose(Image.ROTATE_90))):  # fmt: skip
        ask(image)
        lap(name)
        if name == "first":
            predictor.answer(looked, QUESTION + " ?")
            lap("another question")
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--regions", type=int, default=36)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--detector", default="")
    args = parser.parse_args()
    if args.picture is None:
        import skimage

        args.picture = Path(skimage.data_dir) / "coffee.png"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        maker = multiprocessing.get_context("spawn").Process(target=write_model, args=(folder,))
        maker.start()  # a process of its own, which takes its memory with it
        maker.join()
        file = boxes_of(folder / "boxes.json", args.regions, Image.open(args.picture).size)
        where = [f"--detector={args.detector}"] if args.detector else [f"--boxes={file}"]
        seconds, memory = command(folder / "model", args.picture.resolve(), where)
        times = in_one_process(folder / "model", args.picture, args.regions, args.detector)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print("| regions | command | memory | " + " | ".join(times) + " | memory of all |")
    print("|---" * (len(times) + 4) + "|")
    cells = [str(args.regions), f"{seconds:.1f} s", f"{memory:.2f} GiB", *(f"{t:.2f} s" for t in times.values())]
    print(f"| {' | '.join(cells)} | {peak:.2f} GiB |")


if __name__ == "__main__":
    main()
