"""From the command to the answer, and the next picture in the same process: base size, random weights.

    python benchmarks/predict.py [--regions=36] [--picture=PATH]            # boxes from a file
    python benchmarks/predict.py --detector [--proposals=300] [--precomputed]

VQA with the region head trained along (ResNet-101), or with --precomputed on the detector's features; 3,129 answers, a
vocabulary of 30,522 made-up pieces: what is measured does not depend on what the numbers are. The detector has the
published sizes, its proposals are anchors in random order, so that as many come as are asked for. Without --picture,
scikit-image's coffee (600 x 400 pixels, the model sees 900 x 600). Prints a row in Markdown: seconds and most memory
of the command; then, in one process, seconds of loading, of the first answer (it compiles), of another question about
the same picture, of a picture of another size, and of one on its side (the second shape that is compiled), first and
again.
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

QUESTION = "piece 100 piece 200 ?"


def write_model(folder: Path, precomputed: bool) -> None:
    from flax import nnx

    from configs import vqa as recipes
    from vlbert_jax.tasks import get_task
    from vlbert_jax.weights import export

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "piece", *"0123456789?"]
    pieces += [f"##{digit}" for digit in range(10)]
    pieces += [f"word{i}" for i in range(30_522 - len(pieces))]
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
    (folder / "answers.txt").write_text("\n".join(["<unk>", *(f"answer {i}" for i in range(1, 3_129))]) + "\n")
    config = recipes.base()
    config.model.train_region_head = not precomputed
    features = "precomputed" if precomputed else "image"
    config.data.update(dict(features=features, vocab=str(folder / "vocab.txt"), answers=str(folder / "answers.txt")))
    arrays: dict = dict(params={}, constants={})
    model = nnx.eval_shape(lambda: get_task("vqa").build_model(config, nnx.Rngs(0)))
    for path, variable, array in drawn(model):
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
    ours = {path: array for path, _, array in drawn(network)}
    ours[("anchors",)] = base_anchors()
    ours[("anchor_deltas", "kernel")] *= 0
    weights.write_detector(detector_names.parameters_to_milvlg(ours), {}, folder / "detector", "orbax")


def drawn(model) -> Iterator[tuple]:
    """(path, variable, random numbers) of all arrays of an abstract model; norms and variances are 1."""
    from flax import nnx

    rng = np.random.default_rng(0)
    for path, variable in nnx.to_flat_state(nnx.state(model)):
        if path[-1] in ("scale", "gain", "variance"):
            array = np.ones(variable.shape, np.float32)
        else:
            spread = 0.02 if len(variable.shape) != 4 else (2 / np.prod(variable.shape[:3])) ** 0.5
            array = rng.standard_normal(variable.shape, np.float32) * np.float32(spread)
        yield tuple(map(str, path)), variable, array


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


def in_one_process(model: Path, picture: Path, count: int, detector: Path | None, proposals: int) -> dict[str, float]:
    import vlbert_jax
    from vlbert_jax.detector.detect import load_detector
    from vlbert_jax.detector.options import Settings

    times, began = {}, time.perf_counter()

    def lap(name: str) -> None:
        nonlocal began
        times[name], began = time.perf_counter() - began, time.perf_counter()

    def ask(image: Image.Image) -> None:
        file = boxes_of(model.parent / "some.json", count, image.size)
        nonlocal looked
        looked = predictor.look(image, None if detector else file)
        predictor.answer(looked, QUESTION)

    finder = load_detector(detector, Settings(proposals_after=proposals)) if detector else None
    predictor, looked = vlbert_jax.load(model, detector=finder), None
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
    print(f"{len(looked.regions)} regions in the last picture", file=sys.stderr)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--regions", type=int, default=36)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--detector", action="store_true")
    parser.add_argument("--proposals", type=int, default=300)
    parser.add_argument("--precomputed", action="store_true")
    args = parser.parse_args()
    if args.picture is None:
        import skimage

        args.picture = Path(skimage.data_dir) / "coffee.png"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for make, options in ((write_model, (args.precomputed,)), (write_detector, ())):
            maker = multiprocessing.get_context("spawn").Process(target=make, args=(folder, *options))
            maker.start()  # a process of its own, which takes its memory with it
            maker.join()
        detector = folder / "detector" if args.detector else None
        file = boxes_of(folder / "boxes.json", args.regions, Image.open(args.picture).size)
        where = [f"--detector={detector}", f"--proposals={args.proposals}"] if detector else [f"--boxes={file}"]
        seconds, memory = command(folder / "model", args.picture.resolve(), where)
        times = in_one_process(folder / "model", args.picture, args.regions, detector, args.proposals)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print("| regions from | command | memory | " + " | ".join(times) + " | memory of all |")
    print("|---" * (len(times) + 4) + "|")
    source = f"detector, {args.proposals}" if args.detector else f"file, {args.regions}"
    cells = [source, f"{seconds:.1f} s", f"{memory:.2f} GiB", *(f"{t:.2f} s" for t in times.values())]
    print(f"| {' | '.join(cells)} | {peak:.2f} GiB |")


if __name__ == "__main__":
    main()
