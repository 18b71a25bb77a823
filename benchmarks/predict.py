"""Measure the time from the command to the answer, and of more images in one process: base size, random weights.

    python benchmarks/predict.py [--regions=36] [--image=PATH]            # boxes from a file
    python benchmarks/predict.py --detector [--proposals=300] [--precomputed]

The model is for VQA, with ResNet-101 as its region head, or with --precomputed on the features of the detector. It has
3,129 answers and a vocabulary of 30,522 invented tokens; the time does not depend on the values of the weights. The
detector has the published sizes. Its proposals are anchors in random order, so that there are as many as requested.
The default image is scikit-image's coffee (600 x 400 pixels, the model sees 900 x 600).

The output is a Markdown row: seconds and peak memory of the command; then, in one process, seconds of loading, of the
first answer (which compiles), of another question about the same image, of an image of another size, and of a rotated
image (the second compiled shape), first and again.
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
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from configs import vqa as recipes  # noqa: E402
from vlbert_jax.files import user_file  # noqa: E402

QUESTION = "token 100 token 200 ?"


def invented_tokens(size: int) -> list[str]:
    """Return a vocabulary of `size` tokens: special ones, "token" and the digits, and word0, word1, ..."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "token", *"0123456789?"]
    tokens += [f"##{digit}" for digit in range(10)]
    return tokens + [f"word{i}" for i in range(size - len(tokens))]


def write_vocabularies(folder: Path, config) -> None:
    """Write the tokens and the answers of a model for questions into a folder; they enter the config."""
    answers = ["<unk>", *(f"answer {i}" for i in range(1, config.model.num_answers))]
    (folder / "vocab.txt").write_text("\n".join(invented_tokens(config.model.encoder.vocab_size)) + "\n")
    (folder / "answers.txt").write_text("\n".join(answers) + "\n")
    config.data.update(dict(vocab=str(folder / "vocab.txt"), answers=str(folder / "answers.txt")))


def write_model(folder: Path, config) -> None:
    """Write a model for questions with random weights to FOLDER/model, and its vocabularies; they enter the config."""
    from flax import nnx

    from vlbert_jax.tasks import get_task
    from vlbert_jax.weights import export

    write_vocabularies(folder, config)
    arrays: dict = dict(params={}, constants={})
    model = nnx.eval_shape(lambda: get_task("answer").build_model(config, nnx.Rngs(0)))
    for path, variable, array in random_arrays(model):
        node = arrays["params" if isinstance(variable, nnx.Param) else "constants"]
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = array
    about = json.loads(config.to_json_best_effort())
    export.write_orbax(folder / "model", arrays["params"], arrays["constants"], about)


def write_detector(folder: Path) -> None:
    from flax import nnx

    from vlbert_jax.detector import weights
    from vlbert_jax.detector.network import FasterRCNN, Sizes
    from vlbert_jax.detector.options import Settings
    from vlbert_jax.detector.proposals import base_anchors
    from vlbert_jax.weights import detector_names

    network = nnx.eval_shape(lambda: FasterRCNN(Sizes(), Settings(), rngs=nnx.Rngs(0)))
    arrays = {path: array for path, _, array in random_arrays(network)}
    arrays[("anchors",)] = base_anchors()
    arrays[("anchor_deltas", "kernel")] *= 0
    weights.write_detector(detector_names.parameters_to_milvlg(arrays), {}, folder / "detector", "orbax")


def random_arrays(model, deviation: float = 0.02) -> Iterator[tuple]:
    """Iterate over (path, variable, random values) of an abstract model; gains and variances are 1.

    Other values have the standard deviation `deviation`, kernels of convolutions that of He et al. (2015).
    """
    from flax import nnx

    rng = np.random.default_rng(0)
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        if path[-1] in ("scale", "gain", "variance"):
            array = np.ones(variable.shape, np.float32)
        else:
            spread = deviation if len(variable.shape) != 4 else (2 / np.prod(variable.shape[:3])) ** 0.5
            array = rng.standard_normal(variable.shape, np.float32) * np.float32(spread)
        yield tuple(map(str, path)), variable, array


def boxes_of(path: Path, count: int, size: tuple[int, int]) -> Path:
    """Write `count` boxes of all sizes and places in an image of `size` (width, height) to `path`."""
    corners = np.sort(np.random.default_rng(1).random((count, 2, 2)), axis=1) * size
    path.write_text(json.dumps(dict(boxes=corners.reshape(count, 4).tolist())))
    return path


def command(model: Path, image: Path, where: list[str]) -> tuple[float, float]:
    """Return the seconds and the peak memory (GiB) of the documented command."""
    argv = [sys.executable, "-m", "vlbert_jax.predict", f"--checkpoint={model}", f"--image={image}"]
    began = time.perf_counter()
    process = subprocess.Popen([*argv, f"--question={QUESTION}", *where], cwd=ROOT, stdout=sys.stderr)
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"The command failed: {' '.join(argv)}")
    return time.perf_counter() - began, used.ru_maxrss / 2**20


def in_one_process(model: Path, image: Path, count: int, detector: Path | None, proposals: int) -> dict[str, float]:
    import vlbert_jax
    from vlbert_jax.detector.detect import load_detector
    from vlbert_jax.detector.options import Settings

    times, began = {}, time.perf_counter()

    def lap(name: str) -> None:
        nonlocal began
        times[name], began = time.perf_counter() - began, time.perf_counter()

    def ask(image: Image.Image):
        file = boxes_of(model.parent / "some.json", count, image.size)
        seen = predictor.look(image, None if detector else file)
        predictor.answer(seen, QUESTION)
        return seen

    finder = load_detector(detector, Settings(proposals_after=proposals)) if detector else None
    predictor = vlbert_jax.load(model, detector=finder)
    lap("load")
    first = Image.open(image).convert("RGB")
    other = first.resize((first.width * 5 // 4, first.height))
    turn = Image.Transpose.ROTATE_90
    for name, picture in (("first", first), ("another size", other), ("rotated", first.transpose(turn)),
                          ("again", other.transpose(turn))):  # fmt: skip
        seen = ask(picture)
        lap(name)
        if name == "first":
            predictor.answer(seen, QUESTION + " ?")
            lap("another question")
    print(f"{len(seen.regions)} regions in the last image", file=sys.stderr)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--regions", type=int, default=36)
    parser.add_argument("--image", type=user_file, help="file (default: scikit-image's coffee)")
    parser.add_argument("--detector", action="store_true")
    parser.add_argument("--proposals", type=int, default=300)
    parser.add_argument("--precomputed", action="store_true")
    args = parser.parse_args()
    if args.image is None:
        try:
            import skimage
        except ImportError:
            remedy = "pip install scikit-image, or give --image=FILE"
            parser.error(f"scikit-image, which has the default image, is missing: {remedy}")
        args.image = Path(skimage.data_dir) / "coffee.png"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = recipes.base()
        config.model.train_region_head = not args.precomputed
        config.data.features = "precomputed" if args.precomputed else "image"
        for make, options in ((write_model, (config,)), (write_detector, ())):
            maker = multiprocessing.get_context("spawn").Process(target=make, args=(folder, *options))
            maker.start()  # the memory of a separate process is freed at its end
            maker.join()
        detector = folder / "detector" if args.detector else None
        file = boxes_of(folder / "boxes.json", args.regions, Image.open(args.image).size)
        where = [f"--detector={detector}", f"--proposals={args.proposals}"] if detector else [f"--boxes={file}"]
        seconds, memory = command(folder / "model", args.image.resolve(), where)
        times = in_one_process(folder / "model", args.image, args.regions, detector, args.proposals)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print("| regions from | command | memory | " + " | ".join(times) + " | memory of all |")
    print("|---" * (len(times) + 4) + "|")
    source = f"detector, {args.proposals}" if args.detector else f"file, {args.regions}"
    cells = [source, f"{seconds:.1f} s", f"{memory:.2f} GiB", *(f"{t:.2f} s" for t in times.values())]
    print(f"| {' | '.join(cells)} | {peak:.2f} GiB |")


if __name__ == "__main__":
    main()
