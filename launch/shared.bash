# shellcheck shell=bash
# Functions and options of all launch scripts. A script sets `script` and `usage`, then sources this file.
set -euo pipefail

# shellcheck disable=SC2034  # read by the scripts
config=configs/pretrain.py:base_e2e workdir='' bucket='' restarts=3 restart_delay=30 python='' dry_run=false

# Collectives overlap with computation, and gradients are summed in few large all-reduces (size in bytes).
# shellcheck disable=SC2034
gpu_flags="--xla_gpu_enable_latency_hiding_scheduler=true --xla_gpu_all_reduce_combine_threshold_bytes=134217728"

# shellcheck disable=SC2154
fail() { echo "$script: $*; see --help" >&2; exit 2; }

# Prints a command so that it can be pasted into a shell.
show() { printf '%q ' "$@"; echo; }

# Prints a command, and runs it unless --dry-run is given.
step() {
  show "$@"
  $dry_run || "$@"
}

is_address() { [[ $1 == *://* ]]; }
is_number() { [[ $1 =~ ^[0-9]+$ ]]; }

# Reads an option that all scripts have; fails for any other.
shared_option() {
  case $1 in
    --config=?*) config=${1#*=} ;;
    --workdir=?*) workdir=${1#*=} ;;
    --bucket=?*) bucket=${1#*=} ;;
    --restarts=?*) restarts=${1#*=} ;;
    --restart-delay=?*) restart_delay=${1#*=} ;;
    --python=?*) python=${1#*=} ;;
    --dry-run) dry_run=true ;;
    --help | -h) usage; exit 0 ;;
    *) fail "unknown option or missing value: $1 (flags of vlbert_jax.main follow --)" ;;
  esac
}

# Checks the shared options and sets the defaults. The current folder must be the root of the checkout.
settle() {
  is_number "$restarts" || fail "--restarts=$restarts is not a number"
  is_number "$restart_delay" || fail "--restart-delay=$restart_delay is not a number of seconds"
  local file=${config%%:*}
  if [[ ! -f $file && -f configs/$file.py ]]; then # a name of a recipe, as vlbert_jax.main takes it
    config=configs/$file.py${config#"$file"}
  fi
  [[ -f ${config%%:*} ]] || fail "no config file $file in $PWD"
  [[ -z $bucket || $bucket =~ ^(gs|s3)://[^/] ]] || fail "--bucket=$bucket is not gs://BUCKET or s3://BUCKET"
  local recipe
  recipe=$(basename "${config%%:*}" .py)
  [[ $config == *:* ]] && recipe+=_${config#*:}
  bucket=${bucket%/}
  workdir=${workdir:-${bucket:-workdirs}/$recipe}
  local_folder=$workdir # for logs and compiled programs
  is_address "$workdir" && local_folder=workdirs/$recipe
  # shellcheck disable=SC2034
  compiled=${JAX_COMPILATION_CACHE_DIR:-$local_folder/compiled} # restarts do not compile again
  settle_python
}

# Sets the default interpreter.
settle_python() {
  if [[ -z $python ]]; then
    python=python3
    [[ -x .venv/bin/python ]] && python=.venv/bin/python
  fi
  return 0
}

# Succeeds if a restart may help: status 0 means done, and 2 means that the command line, a host or the data is invalid.
worth_a_restart() { (($1 != 0 && $1 != 2)); }
# shellcheck disable=SC2034
restarted=1,3-255 # the same statuses in the syntax of xpk

# --- Restarts of processes of this machine. `start` runs them in the background and sets `children` to their ids.

children=() stopping=false status=0

# shellcheck disable=SC2317,SC2329  # called by the trap
stop() {
  stopping=true
  if ((${#children[@]})); then kill -TERM "${children[@]}" 2>/dev/null || true; fi
}

# Waits for the children and sets `status`: 2 if any child has 2, because no restart helps then; else the highest.
await() {
  local child one
  status=0
  for child in "${children[@]}"; do
    one=0
    wait "$child" || one=$?
    while kill -0 "$child" 2>/dev/null; do # `wait` returns early when a signal comes
      one=0
      wait "$child" || one=$?
    done
    if ((status != 2 && (one == 2 || one > status))); then status=$one; fi
  done
  children=()
}

run_with_restarts() {
  trap stop INT TERM
  local attempt kept
  for ((attempt = 0; ; attempt++)); do
    start
    await
    kept=$status
    if ! worth_a_restart "$status" || $stopping || ((attempt == restarts)); then break; fi
    echo "$script: exit status $status; restart $((attempt + 1)) of $restarts in $restart_delay s" >&2
    sleep "$restart_delay" &
    children=($!)
    await
    if $stopping; then break; fi
  done
  echo "$script: exit status $kept after $((attempt + 1)) start(s)" >&2
  exit "$kept"
}
