#!/usr/bin/env bash
# One run as several processes of this machine: a rehearsal of many hosts, without any of them.
set -euo pipefail
script=local.sh

usage() {
  cat <<'TEXT'
launch/local.sh N [options] [-- flags of vlbert_jax.main]

  N                        processes, e.g. 2 or 4
  --config=PATH[:VARIANT]  the recipe                          (configs/pretrain.py:base_e2e)
  --workdir=DIR            checkpoints, metrics, report        (workdirs/<recipe>_<variant>)
  --devices=N              CPU devices of each process         (1)
  --port=PORT              where process 0 awaits the others   (8476)
  --restarts=N             starts after failures, at most      (3)
  --restart-delay=SECONDS  pause before each                   (30)
  --python=PATH            the interpreter                     (.venv/bin/python if it is there, else python3)
  --dry-run                print what would run, run nothing
  --help                   this text

The processes compute on the CPU, whatever else there is (JAX_PLATFORMS in the environment wins). Lines of process 1
begin with [1]. SIGINT and SIGTERM reach all of them as SIGTERM: they save the same step and stop, and are not
restarted. When one dies, the others end within half a minute, and all are started again from the newest checkpoint.

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
  show mkdir -p "$workdir"
  printf '%s&\n' "${commands[@]}"
  echo "# after a failure: the same again, at most $restarts times, $restart_delay s later"
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
mkdir -p "$workdir"
printf '%s&\n' "${commands[@]}"
run_with_restarts
