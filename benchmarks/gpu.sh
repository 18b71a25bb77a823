#!/usr/bin/env bash
# Measures training steps, the PyTorch baseline, the detector and a profile on one GPU, in less than ten minutes.
set -euo pipefail

usage() {
  cat <<'TEXT'
benchmarks/gpu.sh [FOLDER] [options]

  FOLDER              gets results.jsonl, the rows, and results.md, the tables
                                                                          (benchmarks/results/gpu/<name of the device>)
  --seconds=N         time limit of the whole                             (570)
  --peak-tflops=N     peak of the device in bfloat16                      (by its name, where it is known)
  --python=PATH       the interpreter                                     (.venv/bin/python if it exists, else python3)
  --small             toy sizes, also on a CPU, to see that everything runs
  --help              this text

It reads no network. A finished row is written at once, so a run that is killed keeps it. A batch that does not fit in the
memory, a part that fails and one that has no time left are rows, too. Rows of earlier runs stay in results.jsonl. The GPU
is the first of CUDA_VISIBLE_DEVICES. The interpreter has this package's dependencies, JAX for CUDA, and for the baseline
PyTorch with torchvision.
TEXT
}

fail() { echo "gpu.sh: $*; see --help" >&2; exit 2; }

cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder='' total=570 peak='' python='' small=false
while (($#)); do
  case $1 in
    --seconds=?*) total=${1#*=} ;;
    --peak-tflops=?*) peak=${1#*=} ;;
    --python=?*) python=${1#*=} ;;
    --small) small=true ;;
    --help | -h) usage; exit 0 ;;
    -*) fail "unknown option or missing value: $1" ;;
    *) [[ -z $folder ]] || fail "two folders: $folder and $1"; folder=$1 ;;
  esac
  shift
done
[[ $total =~ ^[1-9][0-9]*$ ]] || fail "--seconds=$total is not a number of seconds"
[[ -z $peak || $peak =~ ^[0-9]+(\.[0-9]+)?$ ]] || fail "--peak-tflops=$peak is not a number"
if [[ -z $python ]]; then
  python=python3
  [[ -x .venv/bin/python ]] && python=.venv/bin/python
fi

export PYTHONUNBUFFERED=1 CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0}
export XLA_PYTHON_CLIENT_PREALLOCATE=false # PyTorch needs memory at the same time
compiled=$(mktemp -d)                      # several parts run the same program
trap 'rm -rf "$compiled"' EXIT
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$compiled} JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0

# One line: platform, name of the device, versions, and what is missing for the baseline.
about=$("$python" - <<'PY'
import importlib.util
import jax

missing = [name for name in ("torch", "torchvision", "transformers") if not importlib.util.find_spec(name)]
versions, platform = [f"jax {jax.__version__}"], jax.devices()[0].platform
if "torch" not in missing:
    import torch

    versions.append(f"torch {torch.__version__}")
    if platform != "cpu" and not torch.cuda.is_available():
        missing.append("a GPU that PyTorch sees")
print(platform, jax.devices()[0].device_kind, ", ".join(versions), ", ".join(missing), sep="\t")
PY
) || fail "$python cannot import jax, or JAX finds no device"
IFS=$'\n' read -r -d '' platform device versions missing < <(tr '\t' '\n' <<<"$about") || true
if [[ $platform == cpu ]] && ! $small; then fail "JAX sees no GPU; --small runs toy sizes on a CPU"; fi
name=${device,,}
folder=${folder:-benchmarks/results/gpu/${name//[^a-z0-9]/_}}

# part NAME LIMIT FIELDS COMMAND... runs a part for at most LIMIT seconds, and not beyond the end of the whole.
part() {
  local name=$1 limit=$(("$2" < total - SECONDS ? "$2" : total - SECONDS)) fields=$3
  shift 3
  "$python" benchmarks/gpu_part.py --folder="$folder" --part="$name" --seconds="$limit" --about="$fields" -- "$@"
}

flags=(--dtype=bfloat16)
torch=(--device=cuda --compile)
rounds=10 images=8
if $small; then
  flags+=(--small)
  torch=(--device=cpu --compile=aot_eager)
  rounds=1 images=1
  [[ $platform == cpu ]] || torch=(--device=cuda --compile)
fi
peak=${peak:+--peak_tflops=$peak}

# steps RECIPE CAPTIONS,... LIMIT
steps() {
  part steps "$3" "{\"recipe\": \"$1\"}" \
    "$python" benchmarks/train_step.py --config="$1" --captions="$2" --steps="$rounds" "${flags[@]}" ${peak:+"$peak"}
}

# peers RECIPE CAPTIONS LIMIT
peers() {
  local fields="{\"recipe\": \"$1\", \"captions\": $2}" lacks=$missing
  [[ $1 == base_prec && $lacks == torchvision ]] && lacks='' # it reads features
  if [[ $lacks ]]; then
    part peers "$3" "$fields" echo "{\"failed\": \"there is no $lacks\"}"
    return
  fi
  part peers "$3" "$fields" \
    "$python" benchmarks/peers.py --recipes="$1" --captions="$2" --rounds="$rounds" \
    "${torch[@]}" "${flags[@]}" ${peak:+"$peak"}
}

profile() {
  part profile "$3" "{\"recipe\": \"$1\"}" \
    "$python" benchmarks/roofline.py --trace_only --recipes="$1" --captions="$2" "${flags[@]}"
}

part device 30 '{}' echo "{\"device\": \"$device\", \"versions\": \"$versions\"}"
if $small; then
  steps base_prec 2 100
  peers base_prec 2 150
  part detector 100 '{}' "$python" benchmarks/detector.py --batch_size="$images" "${flags[@]}"
  profile base_prec 2 100
  exit
fi
# The most important figures are first: each recipe once, with the baseline, then the others.
steps base_prec 128 80
steps base_e2e 16 110
steps large_e2e 8 110
peers base_prec 128 110
peers base_e2e 16 140
part detector 80 "{\"batch_size\": $images}" "$python" benchmarks/detector.py --batch_size="$images" "${flags[@]}"
# Kernels of a CUDA graph have no name of an operation, so the profile runs without graphs.
XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_enable_command_buffer=" profile base_prec 128 60
XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_enable_command_buffer=" profile base_e2e 16 80
peers large_e2e 8 140
steps base_prec 32,512 100
steps base_e2e 4,64 140
steps large_e2e 2,32 140
