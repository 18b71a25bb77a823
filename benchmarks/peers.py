"""Compare the speed of vlbert_jax with a VL-BERT of today's PyTorch, one step of each in turn.

    make bench                                              # installs .venv-bench, then runs all
    python benchmarks/peers.py [--recipes=base_prec,lxmert] [--rounds=7] [--captions=4] [--small]
    python benchmarks/peers.py --recipes=base_e2e --captions=16 --dtype=bfloat16 --device=cuda --compile    # on a GPU

    base_prec  an update, precomputed features, 4 captions and 4 texts (shapes of `shapes.py`)
    base_e2e   an update with ResNet-101, one image of 800x600 with 20 boxes, and one text
    vqa        answers to a question about an image of 900x600 with 36 boxes: ResNet-101 and the encoder, no dropout
    lxmert     forward and backward of 8 questions, each of 64 tokens and 36 boxes with precomputed features
    visualbert the same

The baseline of VL-BERT is `benchmarks/pytorch_baseline.py`: layers of Hugging Face and torchvision, eager without
--compile; that of the other two is Hugging Face's class for questions with eager attention
(`benchmarks/sibling_peers.py`). Both sides have the same weights, batches, losses, clipping and AdamW, with dropout; in
bfloat16 the baseline runs under autocast. First they are compared: the number of parameters, and without dropout the
loss (of vqa, the best probabilities), which must agree within 1e-3, in bfloat16 within 5e-2. Each side is a process of
its own, which waits while the other one works; the first round is not counted. vlbert_jax runs as its commands do: with
their memory settings, and on padded shapes. It runs on the device that JAX chooses. Only updates of VL-BERT run in
bfloat16, and the classes of Hugging Face run eagerly on the CPU.

The last line is a JSON object: for each recipe the ratio (the baseline's median over ours; above 1, ours is faster),
the least, median and largest ratio of a round, both medians in seconds, and both peak memories in GB (on a GPU, those
of the device); and the processor. The script needs the extra `bench`.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from benchmarks import question, shapes, sibling_peers  # noqa: E402
from benchmarks.sibling_peers import SIBLINGS  # noqa: E402
from vlbert_jax.memory import keep_freed_memory  # noqa: E402

RECIPES = ("base_prec", "base_e2e", "vqa", *SIBLINGS)
CHOICES = (*RECIPES, "large_e2e")
IN_FLOAT32 = {"vqa", *SIBLINGS}
# Of losses and probabilities. bfloat16 has 8 bits, and the sum of losses is about 20 without training.
TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}
WEIGHTS, BATCH, OPTIONS = "weights.safetensors", "batch.npz", "options.json"


class Side:
    """A process that makes one step whenever it is asked."""

    def __init__(self, name: str, recipe: str, folder: Path, flags: list[str]):
        self.name, self.times = name, []
        command = [sys.executable, __file__, f"--side={name}", f"--recipes={recipe}", f"--folder={folder}", *flags]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.about = self._read()

    def step(self) -> float:
        self._write("step")
        self.times.append(self._read()["seconds"])
        return self.times[-1]

    def close(self) -> float:
        """End the process and return its peak memory in GB."""
        self._write("end")
        peak = self._read()["peak_gb"]
        self.process.wait()
        return peak

    def _write(self, word: str) -> None:
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()

    def _read(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"The side {self.name} ended with status {self.process.wait()}.")
        return json.loads(line)


def compare(recipe: str, rounds: int, dtype: str, flags: list[str]) -> dict:
    """Return the figures of a recipe."""
    with tempfile.TemporaryDirectory() as folder:
        ours = Side("ours", recipe, Path(folder), flags)  # writes weights and batch, which the other one reads
        theirs = Side("pytorch", recipe, Path(folder), flags)
        check(recipe, ours.about, theirs.about, dtype)
        for number in range(rounds + 1):
            seconds = [side.step() for side in (ours, theirs)]
            print(f"{recipe} round {number}: ours {seconds[0]:.3f} s, pytorch {seconds[1]:.3f} s", flush=True)
        peaks = ours.close(), theirs.close()
    pairs = [theirs / ours for ours, theirs in zip(ours.times[1:], theirs.times[1:], strict=True)]
    medians = [statistics.median(side.times[1:]) for side in (ours, theirs)]
    tflop, peak = ours.about["flops"] / 1e12, ours.about.get("peak_tflops")
    shares = [round(tflop / seconds / peak, 4) for seconds in medians] if peak else [None, None]
    return dict(
        ratio=round(medians[1] / medians[0], 3),
        pairwise=[round(min(pairs), 3), round(statistics.median(pairs), 3), round(max(pairs), 3)],
        ours_s=round(medians[0], 4),
        pytorch_s=round(medians[1], 4),
        ours_peak_gb=round(peaks[0], 2),
        pytorch_peak_gb=round(peaks[1], 2),
        tflop=round(tflop, 4),
        ours_share_of_peak=shares[0],
        pytorch_share_of_peak=shares[1],
    )


def check(recipe: str, ours: dict, theirs: dict, dtype: str = "float32") -> None:
    """End the program where the two sides do not do the same work."""
    if ours["parameters"] != theirs["parameters"]:
        raise SystemExit(f"{recipe}: {ours['parameters']:,} parameters here, {theirs['parameters']:,} in the baseline")
    difference = float(np.max(np.abs(np.subtract(ours["result"], theirs["result"]))))
    if not difference < TOLERANCE[dtype]:
        raise SystemExit(f"{recipe}: the results of both sides differ by {difference:.2g}")
    print(f"{recipe}: {ours['parameters']:,} parameters; results differ by {difference:.1e}", flush=True)


def serve(about: dict, step: Callable[[], None], device_peak: Callable[[], int] = int) -> None:
    """Describe this side on stdout, then make one step per line of stdin.

    `device_peak` returns the peak memory of an accelerator in bytes, 0 where there is none.
    """
    print(json.dumps(about), flush=True)
    for line in sys.stdin:
        if line.strip() == "end":
            break
        began = time.perf_counter()
        step()
        print(json.dumps(dict(seconds=time.perf_counter() - began)), flush=True)
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(json.dumps(dict(peak_gb=device_peak() / 1e9 or host)), flush=True)


# --- vlbert_jax -------------------------------------------------------------------------------------------------


def recipe_of(name: str, args: argparse.Namespace):
    """Return the config of a recipe in the sizes and the dtype of the options."""
    config = question.recipe_of(args.small) if name == "vqa" else shapes.recipe_of(name, args.small)
    config.prng_impl, config.compute_dtype = "rbg", args.dtype
    return config


def updates_here(name: str, args: argparse.Namespace) -> None:
    """Serve updates of a recipe, after its weights, its batch and its options are written for the other side."""
    import jax
    from flax import nnx

    from benchmarks import train_step
    from vlbert_jax.model.region_head import prepare_pixels
    from vlbert_jax.training import sharding

    config, task, folder = recipe_of(name, args), train_step.PRETRAIN, args.folder
    shape = shapes.shape_of(name, args.captions, args.small)
    shapes.fit_to_shape(config, shape)
    names = task.active_losses(config, 0)
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:1])
    with jax.set_mesh(mesh):
        opened = train_step.open_step(config, shape, mesh)
        batch, state = opened.batch, opened.state

        @jax.jit
        def loss_of(state):
            model = nnx.merge(opened.graphdef, state.params, state.constants)
            sums, _ = task.loss_sums(model, batch, None, config, names)
            counts = task.loss_counts(batch, config, names)
            return sum(sums[name] / counts[name] for name in names)

        arrays = {name: array for part in (batch, batch.targets) for name, array in vars(part).items()}
        if batch.pixels is not None:
            size, regions = batch.image_size[:, 0], (batch.boxes, batch.region_hidden)
            arrays["pixels"] = prepare_pixels(batch.pixels[:, 0], size, *regions)
        write_batch(folder, arrays)
        options = dict(clip_norm=config.optimizer.clip_norm, weight_decay=config.optimizer.weight_decay)
        (folder / OPTIONS).write_text(json.dumps(options | dict(lr=config.learning_rate)))
        about = dict(parameters=write_weights(folder, [state.params, state.constants], config), flops=opened.flops)
        peak = args.peak_tflops or train_step.peak_tflops(args.dtype)
        about |= dict(result=[float(loss_of(state))], peak_tflops=peak)
        device = jax.local_devices()[0]
        serve(about, train_step.updates_of(opened), lambda: (device.memory_stats() or {}).get("peak_bytes_in_use", 0))


def answers_here(args: argparse.Namespace) -> None:
    """Serve answers to a question about an image, after weights and batch are written for the other side."""
    config, folder = recipe_of("vqa", args), args.folder
    asked = question.Question(folder, config)
    write_batch(folder, asked.example)
    probabilities = [answer.probability for answer in asked.ask()]
    parameters = write_weights(folder, [asked.predictor._state], config)
    serve(dict(parameters=parameters, result=probabilities, flops=0), asked.ask)


def write_batch(folder: Path, arrays: dict) -> None:
    arrays = {name: np.asarray(array) for name, array in arrays.items() if hasattr(array, "dtype")}
    # NumPy's files have no bfloat16.
    widened = {name: array.astype(np.float32) for name, array in arrays.items() if array.dtype.name == "bfloat16"}
    np.savez(folder / BATCH, **arrays | widened)


def write_weights(folder: Path, states: list, config) -> int:
    """Write the arrays of NNX states under their official names and return how many numbers they are."""
    from flax import nnx

    from vlbert_jax.weights import export, vlbert_names

    ours = {}
    for state in states:
        ours |= {tuple(map(str, path)): np.asarray(value[...]) for path, value in nnx.to_flat_state(state)}
    tensors = vlbert_names.to_official(ours, config.model.encoder.vocab_size)
    unread = () if config.task == "pretrain" else vlbert_names.OF_PRETRAINING
    tensors = {name: array for name, array in tensors.items() if name not in unread}
    export.write_safetensors(folder / WEIGHTS, tensors)
    return sum(array.size for array in tensors.values())


# --- The baseline -----------------------------------------------------------------------------------------------


def open_baseline(name: str, args: argparse.Namespace):
    """Return the baseline of a recipe with the weights of the other side, its batch, and its number of parameters."""
    import torch
    from safetensors.torch import load_file

    from benchmarks.pytorch_baseline import Baseline, bert_config

    config = recipe_of(name, args)
    tensors = load_file(args.folder / WEIGHTS)
    blocks = None if name == "base_prec" else list(config.model.region_head.blocks)
    model = Baseline(bert_config(config.model.encoder), blocks, answers=3129 if name == "vqa" else 0)
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    if missing or unexpected:
        raise SystemExit(f"The baseline has other tensors: {[*missing, *unexpected][:5]}")
    for key, parameter in model.named_parameters():
        frozen = (".backbone.conv1.", ".backbone.layer1.")
        parameter.requires_grad_(not any(part in key for part in frozen))
    model = model.to(args.device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    batch = {key: torch.from_numpy(array).to(args.device) for key, array in np.load(args.folder / BATCH).items()}
    batch = {key: tensor.long() if tensor.dtype == torch.int32 else tensor for key, tensor in batch.items()}
    return model, batch, sum(tensor.numel() for tensor in tensors.values())


def updates_there(name: str, args: argparse.Namespace) -> None:
    import torch

    from benchmarks.pytorch_baseline import channels_first, train_step

    model, batch, parameters = open_baseline(name, args)
    if "pixels" in batch:
        batch["pixels"] = channels_first(batch["pixels"])
    options = json.loads((args.folder / OPTIONS).read_text())
    clip_norm = options.pop("clip_norm")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, fused=True, **options)
    autocast = torch.autocast(args.device, torch.bfloat16, enabled=args.dtype == "bfloat16")
    with torch.no_grad(), autocast:
        loss = model.eval().loss(batch).item()
    model.train()
    model.loss = autocast(torch.compile(model.loss, backend=args.compile) if args.compile else model.loss)
    about = dict(parameters=parameters, result=[loss])
    device_peak = torch.cuda.max_memory_allocated if args.device == "cuda" else int
    serve(about, lambda: train_step(model, optimizer, clip_norm, batch), device_peak)


def answers_there(args: argparse.Namespace) -> None:
    import torch

    from benchmarks.pytorch_baseline import prepared

    model, batch, parameters = open_baseline("vqa", args)
    model.eval()
    if args.compile:
        model.answers = torch.compile(model.answers, backend=args.compile)
    canvas = batch["pixels"][:, 0]
    batch = question.without_padding(batch)  # a user of PyTorch has none
    position = batch["answer_positions"]
    image = batch.pop("pixels")[:, 0].clone()

    @torch.inference_mode()
    def answers(pixels):
        logits = model.answers(batch | dict(pixels=prepared(pixels)), position)
        return logits.sigmoid()[0].topk(5).values.tolist()

    # The results are compared on the canvas that vlbert_jax reads: in the official code, too, padding changes features.
    serve(dict(parameters=parameters, result=answers(canvas)), lambda: answers(image))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", default=",".join(RECIPES), help="what is compared (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="counted rounds (default: %(default)s)")
    parser.add_argument("--captions", type=int, help="captions per batch of the updates (default: see shapes.py)")
    parser.add_argument("--dtype", default="float32", choices=tuple(TOLERANCE), help="dtype of activations")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="of the baseline")
    parser.add_argument(
        "--compile", nargs="?", const="inductor", default="", metavar="BACKEND",
        help="compile the baseline (default backend: inductor)",
    )  # fmt: skip
    parser.add_argument("--peak_tflops", type=float, help="peak of the device (default: of its name, in bfloat16)")
    parser.add_argument("--small", action="store_true", help="a toy size, to see that everything runs")
    parser.add_argument("--side", choices=("ours", "pytorch"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    names = args.recipes.split(",")
    if wrong := set(names) - set(CHOICES):
        parser.error(f"--recipes has {', '.join(sorted(wrong))}; it can be {', '.join(CHOICES)}")
    if args.dtype != "float32" and (wrong := IN_FLOAT32 & set(names)):
        parser.error(f"--dtype={args.dtype} is not for {', '.join(sorted(wrong))}: choose other --recipes")
    if (args.device != "cpu" or args.compile) and (wrong := set(SIBLINGS) & set(names)):
        parser.error(f"--device and --compile are not for {', '.join(sorted(wrong))}: choose other --recipes")
    if args.side == "ours":
        keep_freed_memory()
    if args.side and names[0] in SIBLINGS:
        serve(*sibling_peers.SIDES[args.side](names[0], args.folder, args.small, args.captions))
    elif args.side == "ours":
        answers_here(args) if names[0] == "vqa" else updates_here(names[0], args)
    elif args.side == "pytorch":
        answers_there(args) if names[0] == "vqa" else updates_there(names[0], args)
    else:
        chosen = [(name, getattr(args, name)) for name in ("captions", "device", "compile", "dtype", "peak_tflops")]
        flags = ["--small"] * args.small + [f"--{name}={value}" for name, value in chosen if value]
        from benchmarks import train_step

        found = {name: compare(name, args.rounds, args.dtype, flags) for name in names}
        print(json.dumps(found | dict(processor=train_step.processor(), captions=args.captions)))


if __name__ == "__main__":
    main()
