#!/usr/bin/env bash
# Starts one run on one or several slices of Cloud TPUs: creates or reuses them, copies the code, runs, fetches logs.
set -euo pipefail
script=tpu_pod.sh

usage() {
  cat <<'TEXT'
launch/tpu_pod.sh COMMAND --name=NAME --zone=ZONE [options] [-- flags of vlbert_jax.main]

  run      create the slice if it does not exist, copy the code, run on all workers, wait, restart after a preemption
  logs     copy the log of every worker to WORKDIR-logs/ on this machine, below workdirs/ for a workdir in a bucket
  delete   delete the slice; until then it costs money, even when it is idle

  --type=TYPE              accelerator                         (v5litepod-16)
  --slices=N               slices of that type                 (1)
  --version=VERSION        software of the TPU machines        (v2-alpha-tpuv5-lite)
  --spot                   cheaper, but may be preempted at any time
  --project=PROJECT        of Google Cloud                     (that of gcloud)
  --setup=COMMAND          run on every worker first, e.g. to mount the folder with data and workdirs
  --config=PATH[:VARIANT]  the recipe, or its name             (configs/pretrain.py:base_e2e)
  --bucket=gs://BUCKET     the workdir is BUCKET/<recipe>_<variant>
  --workdir=DIR            another address, or a folder that all workers share, e.g. /share/base_e2e
  --restarts=N             maximum number of restarts          (10)
  --restart-delay=SECONDS  pause before each                   (30)
  --poll=SECONDS           between checks of the run           (60)
  --dry-run                print the commands without running them
  --help                   this text

The run continues when this machine loses the connection; the same command then finds the run and waits for it. After a
preemption the slice is deleted and requested again, and the run continues from the newest checkpoint. Status 2 (invalid
input, explained in one line) ends it. The script requires gcloud with a login.

  launch/tpu_pod.sh run --name=vlbert --zone=us-west4-a --type=v5litepod-64 --spot \
    --setup='sudo mkdir -p /share && sudo mount -t nfs -o nconnect=8 10.0.0.2:/share /share' \
    --bucket=gs://my-runs -- --config.data.data_dir=/share/data
TEXT
}

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/shared.bash
source launch/shared.bash
name='' zone='' type=v5litepod-16 slices=1 version=v2-alpha-tpuv5-lite spot=false project='' setup=true poll=60
restarts=10 verb='' seen=''
while (($#)); do
  case $1 in
    run | logs | delete) verb=$1 ;;
    --name=?*) name=${1#*=} ;;
    --zone=?*) zone=${1#*=} ;;
    --type=?*) type=${1#*=} ;;
    --slices=?*) slices=${1#*=} ;;
    --version=?*) version=${1#*=} ;;
    --spot) spot=true ;;
    --project=?*) project=${1#*=} ;;
    --setup=?*) setup=${1#*=} ;;
    --poll=?*) poll=${1#*=} ;;
    --) shift; break ;;
    *) shared_option "$1" ;;
  esac
  shift
done
[[ -n $verb ]] || fail "a command is required: run, logs or delete"
[[ $name =~ ^[a-z][a-z0-9-]*$ ]] || fail "--name='$name' is not a name of small letters, digits and dashes"
[[ -n $zone ]] || fail "--zone is required"
[[ $slices =~ ^[1-9][0-9]*$ ]] || fail "--slices=$slices is not a positive number"
is_number "$poll" || fail "--poll=$poll is not a number of seconds"
settle
[[ $workdir == /* || $verb != run ]] || is_address "$workdir" || fail "no --bucket=gs://BUCKET is given, and" \
  "--workdir=$workdir is neither an address nor a folder that all workers share, such as /share/run"

place=("--zone=$zone" ${project:+"--project=$project"})
resources=(gcloud compute tpus queued-resources)
vm=(gcloud compute tpus tpu-vm)
nodes=("$name")
create=("${resources[@]}" create "$name" "${place[@]}" "--accelerator-type=$type" "--runtime-version=$version")
if ((slices > 1)); then
  create+=("--node-count=$slices" "--node-prefix=$name")
  mapfile -t nodes < <(seq -f "$name-%.0f" 0 $((slices - 1)))
else
  create+=("--node-id=$name")
fi
if $spot; then create+=(--spot); fi
delete=("${resources[@]}" delete "$name" "${place[@]}" --force --quiet)

# Commands for every worker. The status file exists only after the run has ended.
install="mkdir -p vlbert_jax && tar -xzf vlbert_jax.tar.gz -C vlbert_jax && cd vlbert_jax && python3 -m venv .venv"
install+=" && .venv/bin/pip install --quiet -e '.[tpu,convert,gcs]'"
main=$(show .venv/bin/python -m vlbert_jax.main "--config=$config" "--workdir=$workdir" "$@")
inside="$main >>~/vlbert_jax.log 2>&1; echo \$? >~/vlbert_jax.status"
launch="cd vlbert_jax && rm -f ~/vlbert_jax.status && (setsid nohup bash -c $(printf %q "$inside") >/dev/null 2>&1 </dev/null &)"
# Prints "running", an exit status, or nothing if no run was started or the machine is new.
look="cat vlbert_jax.status 2>/dev/null || (pgrep -f '[v]lbert_jax.main' >/dev/null && echo running) || true"

# Prints the state of the slice: NONE if it does not exist, UNKNOWN if gcloud fails, e.g. without a network.
list=("${resources[@]}" list "${place[@]}" '--format=value(name.basename(),state.state)')
state() {
  local found
  found=$("${list[@]}") || { echo UNKNOWN; return; }
  found=$(awk -v name="$name" '$1 == name { print $2 }' <<<"$found")
  echo "${found:-NONE}"
}

# Runs a command on every worker of every slice.
everywhere() {
  local node
  for node in "${nodes[@]}"; do step "${vm[@]}" ssh "$node" "${place[@]}" --worker=all "--command=$1"; done
}

# Returns when the slice is active. If gcloud fails, it is called again, provided that it has succeeded before.
answered=false
create_or_reuse() {
  local now asked=false
  if $dry_run; then
    show "${list[@]}"
    step "${create[@]}"
    echo "# ... until the first says ACTIVE"
    return
  fi
  while now=$(state) && [[ $now != ACTIVE ]]; do
    case $now-$asked in
      UNKNOWN-*) $answered || fail "gcloud cannot tell the state of $name; its message is above" ;;
      FAILED-true)
        echo "$script: the request for $name failed: ${resources[*]} describe $name" >&2
        exit 1
        ;;
      NONE-false)
        step "${create[@]}"
        asked=true
        ;;
      SUSPENDED-* | FAILED-false)
        step "${delete[@]}"
        step "${create[@]}"
        asked=true
        ;;
    esac
    [[ $now == UNKNOWN ]] || answered=true
    echo "$script: $name is $now"
    sleep "$poll"
  done
  answered=true
}

copy() {
  local archive node
  archive=${TMPDIR:-/tmp}/$name.tar.gz
  show git ls-files -z "|" tar --null -T - -czf "$archive"
  $dry_run || git ls-files -z | tar --null -T - -czf "$archive"
  for node in "${nodes[@]}"; do
    step "${vm[@]}" scp "$archive" "$node:vlbert_jax.tar.gz" "${place[@]}" --worker=all
  done
  everywhere "$install"
  everywhere "$setup"
}

# Prints the state of the run; `unreachable` if the worker does not respond.
look() { "${vm[@]}" ssh "${nodes[0]}" "${place[@]}" --worker=0 "--command=$look" 2>/dev/null || echo unreachable; }

# Waits until worker 0 responds or the slice no longer exists. Sets `seen` to the output of `look`.
reach() {
  local now=ACTIVE
  while seen=$(look) && [[ $seen == unreachable && $now =~ ^(ACTIVE|UNKNOWN)$ ]]; do
    echo "$script: worker 0 cannot be reached, again in $poll s; why: ${vm[*]} ssh ${nodes[0]} ${place[*]}" >&2
    sleep "$poll"
    now=$(state)
  done
}

# Sets `status` to that of the run, or to 75 if the slice no longer exists.
watch() {
  while reach && [[ $seen == running ]]; do sleep "$poll"; done
  if is_number "$seen"; then
    status=$seen
  elif [[ $seen == unreachable ]]; then
    echo "$script: $name was preempted"
    status=75
  else
    status=1 # the run was killed before it wrote a status
  fi
}

case $verb in
  delete) step "${delete[@]}" ;;
  logs)
    step mkdir -p "$local_folder-logs"
    for node in "${nodes[@]}"; do
      workers=1
      show "${vm[@]}" describe "$node" "${place[@]}" '--format=value(networkEndpoints.len())'
      if $dry_run; then
        echo "# for every worker of these:"
      else
        workers=$("${vm[@]}" describe "$node" "${place[@]}" '--format=value(networkEndpoints.len())')
      fi
      for ((i = 0; i < workers; i++)); do
        step "${vm[@]}" scp "$node:vlbert_jax.log" "$local_folder-logs/$node-$i.log" "${place[@]}" "--worker=$i"
      done
    done
    ;;
  run)
    for ((attempt = 0; ; attempt++)); do
      create_or_reuse
      $dry_run || reach
      if [[ $seen != running && $seen != unreachable ]]; then # a second run on the same chips would end both
        copy
        everywhere "$launch"
      fi
      if $dry_run; then
        show "${vm[@]}" ssh "${nodes[0]}" "${place[@]}" --worker=0 "--command=$look"
        echo "# ... every $poll s; after any status but 0 and 2 the same commands, at most $restarts times"
        exit 0
      fi
      watch
      echo "$script: exit status $status; the end of the log of worker 0:"
      "${vm[@]}" ssh "${nodes[0]}" "${place[@]}" --worker=0 '--command=tail -n 5 vlbert_jax.log' || true
      if ! worth_a_restart "$status" || ((attempt == restarts)); then break; fi
      echo "$script: restart $((attempt + 1)) of $restarts in $restart_delay s"
      sleep "$restart_delay" # until the last process has released its chips
    done
    echo "$script: $name still exists and costs money: launch/tpu_pod.sh delete --name=$name --zone=$zone"
    exit "$status"
    ;;
esac
