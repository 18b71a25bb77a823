"""Measure seconds and peak memory of converting weights: official -> vlbert_jax -> official.

    python benchmarks/convert.py [--variant=base_e2e|base_prec|large_e2e|large_prec] [--suffix=.model|.safetensors]

Memory is the resident peak of the whole process, also as a multiple of the size of the file.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from flax import nnx  # noqa: E402

from configs import pretrain as recipes  # noqa: E402
from vlbert_jax.tasks.pretrain import task as pretrain  # noqa: E402
from vlbert_jax.weights import export, vlbert_names  # noqa: E402

PRETRAIN = pretrain.PretrainTask()


def write_random(path: Path, variant: str) -> None:
    """Write a file with the names and shapes of a released model and random values."""
    config, rng = getattr(recipes, variant)(), np.random.default_rng(0)
    state = nnx.state(nnx.eval_shape(lambda: PRETRAIN.build_model(config, nnx.Rngs(0))))
    arrays = {
        tuple(map(str, at)): rng.standard_normal(v.shape, dtype=np.float32) for at, v in nnx.to_flat_state(state)
    }
    official = vlbert_names.official_state_dict(vlbert_names.to_official(arrays, config.model.encoder.vocab_size), {})
    if path.suffix == ".safetensors":
        export.write_safetensors(path, official)
    else:
        export.write_torch(path, official, wrap=True)


def convert(source: Path, target: Path) -> tuple[float, float]:
    """Return the seconds and the peak memory (MB) of one conversion in a separate process."""
    command = [sys.executable, "-m", "vlbert_jax.convert", str(source), str(target)]
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, env=os.environ | {"JAX_PLATFORMS": "cpu"})
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(command)} failed")
    return time.perf_counter() - began, usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="base_e2e", choices=("base_e2e", "base_prec", "large_e2e", "large_prec"))
    parser.add_argument("--suffix", default=".model", choices=(".model", ".safetensors"))
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.write:
        write_random(args.write, args.variant)
        return
    with tempfile.TemporaryDirectory() as folder:
        names = f"given{args.suffix}", "converted", f"back{args.suffix}"
        given, converted, back = (Path(folder) / name for name in names)
        # The peak of a child starts at the memory of its parent, so the file is written in a separate process.
        subprocess.run([sys.executable, __file__, f"--variant={args.variant}", f"--write={given}"], check=True)
        size = given.stat().st_size / 1e6
        print(f"{args.variant}, {args.suffix}: {size:.0f} MB")
        for source, target in ((given, converted), (converted, back)):
            seconds, memory = convert(source, target)
            print(f"  {source.name} -> {target.name}: {seconds:.1f} s, peak {memory:.0f} MB, {memory / size:.2f} x")


if __name__ == "__main__":
    main()
