#!/usr/bin/env bash
# Starts one run on the GPUs of one machine. One process uses all of them; config.mesh defines how they share the work.
set -euo pipefail
script=gpu_node.sh

usage() {
  cat <<'TEXT'
launch/gpu_node.sh [options] [-- flags of vlbert_jax.main]

  --config=PATH[:VARIANT]  the recipe, or its name             (configs/pretrain.py:base_e2e)
  --bucket=ADDRESS         gs://BUCKET or s3://BUCKET: the workdir is BUCKET/<recipe>_<variant>
  --workdir=DIR            checkpoints, metrics, report; a folder or an address     (workdirs/<recipe>_<variant>)
  --gpus=N                 the first N GPUs                    (all)
  --devices=LIST           only these GPUs, e.g. 0,2; excludes --gpus
  --restarts=N             maximum number of restarts          (3)
  --restart-delay=SECONDS  pause before each                   (30)
  --memory=FRACTION        of each GPU, allocated at the start (0.92)
  --python=PATH            the interpreter                     (.venv/bin/python if it exists, else python3)
  --dry-run                print the commands without running them
  --help                   this text

A run continues from the newest checkpoint of its workdir, so a restart loses the steps since then. The script forwards
SIGINT and SIGTERM to the run as SIGTERM: the run saves, stops, and is not restarted. Variables of the environment
(XLA_FLAGS, XLA_PYTHON_CLIENT_MEM_FRACTION, JAX_PLATFORMS, JAX_COMPILATION_CACHE_DIR) override the values set here.

  launch/gpu_node.sh --config=configs/pretrain.py:base_prec --gpus=4 -- --config.data.data_dir=/data/vlbert
TEXT
}

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/shared.bash
source launch/shared.bash
gpus='' devices='' memory=0.92
while (($#)); do
  case $1 in
    --gpus=?*) gpus=${1#*=} ;;
    --devices=?*) devices=${1#*=} ;;
    --memory=?*) memory=${1#*=} ;;
    --) shift; break ;;
    *) shared_option "$1" ;;
  esac
  shift
done
[[ -z $gpus || $gpus =~ ^[1-9][0-9]*$ ]] || fail "--gpus=$gpus is not a positive number"
[[ -z $devices || $devices =~ ^[0-9]+(,[0-9]+)*$ ]] || fail "--devices=$devices is not a list like 0,2"
[[ $memory =~ ^(0?\.[0-9]+|1(\.0*)?)$ ]] || fail "--memory=$memory is not a fraction"
[[ -z $gpus || -z $devices ]] || fail "--gpus and --devices exclude each other"
settle
[[ -n $gpus ]] && devices=$(seq -s, 0 $((gpus - 1)))

environment=(
  "JAX_PLATFORMS=${JAX_PLATFORMS:-cuda}" # a machine without working GPUs is an error, not a slow run
  "XLA_FLAGS=$gpu_flags${XLA_FLAGS:+ $XLA_FLAGS}"
  "XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-$memory}"
  "JAX_COMPILATION_CACHE_DIR=$compiled"
)
[[ -n $devices ]] && environment+=("CUDA_VISIBLE_DEVICES=$devices")
command=(env "${environment[@]}" "$python" -m vlbert_jax.main "--config=$config" "--workdir=$workdir" "$@")

if $dry_run; then
  show mkdir -p "$local_folder"
  show "${command[@]}"
  echo "# after a failure: the same command, at most $restarts times, $restart_delay s later"
  exit 0
fi

start() {
  "${command[@]}" &
  children=($!)
}
mkdir -p "$local_folder"
show "${command[@]}"
run_with_restarts
