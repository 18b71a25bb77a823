#!/usr/bin/env bash
# Starts one run as several processes of this machine, to test a run of many hosts.
set -euo pipefail
script=local.sh

usage() {
  cat <<'TEXT'
launch/local.sh N [options] [-- flags of vlbert_jax.main]

  N                        processes, e.g. 2 or 4
  --config=PATH[:VARIANT]  the recipe, or its name             (configs/pretrain.py:base_e2e)
  --bucket=ADDRESS         gs://BUCKET or s3://BUCKET: the workdir is BUCKET/<recipe>_<variant>
  --workdir=DIR            checkpoints, metrics, report; a folder or an address     (workdirs/<recipe>_<variant>)
  --devices=N              CPU devices of each process         (1)
  --port=PORT              of the coordinator, process 0       (8476)
  --restarts=N             maximum number of restarts          (3)
  --restart-delay=SECONDS  pause before each                   (30)
  --python=PATH            the interpreter                     (.venv/bin/python if it exists, else python3)
  --dry-run                print the commands without running them
  --help                   this text

The processes use the CPU, unless the environment sets JAX_PLATFORMS. Lines of process 1 begin with [1]. The script
forwards SIGINT and SIGTERM to all processes as SIGTERM: they save the same step, stop, and are not restarted. When one
process dies, the others end within half a minute, and the script restarts all from the newest checkpoint.

  launch/local.sh 2 --config=configs/pretrain.py --workdir=workdirs/rehearsal -- --config.total_steps=20
TEXT
}

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/shared.bash
source launch/shared.bash
processes='' devices=1 port=8476
while (($#)); do
  case $1 in
    --devices=?*) devices=${1#*=} ;;
    --port=?*) port=${1#*=} ;;
    --) shift; break ;;
    -*) shared_option "$1" ;;
    *) [[ -z $processes ]] || fail "unknown argument: $1"; processes=$1 ;;
  esac
  shift
done
[[ $processes =~ ^[1-9][0-9]*$ ]] || fail "how many processes? '$processes' is not a positive number"
[[ $devices =~ ^[1-9][0-9]*$ ]] || fail "--devices=$devices is not a positive number"
is_number "$port" || fail "--port=$port is not a number"
settle

xla_flags="--xla_force_host_platform_device_count=$devices"
environment=(
  "JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}"
  "XLA_FLAGS=$xla_flags${XLA_FLAGS:+ $XLA_FLAGS}"
  "JAX_COMPILATION_CACHE_DIR=$compiled"
)
commands=()
for ((i = 0; i < processes; i++)); do
  place=("--coordinator=localhost:$port" "--num_processes=$processes" "--process_id=$i")
  one=(env "${environment[@]}" "$python" -m vlbert_jax.main "--config=$config" "--workdir=$workdir" "${place[@]}" "$@")
  commands+=("$(show "${one[@]}")")
done

if $dry_run; then
  show mkdir -p "$local_folder"
  printf '%s&\n' "${commands[@]}"
  echo "# after a failure: the same commands, at most $restarts times, $restart_delay s later"
  exit 0
fi

start() {
  local i
  for ((i = 0; i < processes; i++)); do
    if ((i)); then
      eval "exec ${commands[i]}" > >(sed -u "s/^/[$i] /") 2>&1 &
    else
      eval "exec ${commands[i]}" &
    fi
    children+=($!)
  done
}
mkdir -p "$local_folder"
printf '%s&\n' "${commands[@]}"
run_with_restarts
