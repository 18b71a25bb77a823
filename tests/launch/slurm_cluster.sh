#!/usr/bin/env bash
# Starts and stops a SLURM cluster of one node with two processors, for tests:
# `slurm_cluster.sh start DIR`, then `slurm_cluster.sh stop DIR`. It requires root, and Debian's
# slurm-wlm and munge. It writes only to DIR and stops only the daemons that it started there.
# DIR/environment has the variables for sbatch and scontrol.
set -euo pipefail

folder=$(mkdir -p "$2" && cd "$2" && pwd)

stop() {
  local name number
  if [[ -f $folder/slurmctld.pid ]]; then # jobs end first, because that requires the daemons
    SLURM_CONF=$folder/slurm.conf timeout 10 scancel --user="$(id -un)" || true
    for _ in {1..50}; do
      [[ -n $(SLURM_CONF=$folder/slurm.conf timeout 10 squeue --noheader 2>/dev/null) ]] || break
      sleep 0.2
    done
  fi
  for name in slurmd slurmctld munged; do
    [[ -f $folder/$name.pid ]] || continue
    number=$(<"$folder/$name.pid")
    kill "$number" 2>/dev/null || true
    for _ in {1..50}; do
      kill -0 "$number" 2>/dev/null || break
      sleep 0.2
    done
    kill -9 "$number" 2>/dev/null || true
    rm -f "$folder/$name.pid"
  done
}

wait_for() {
  for _ in {1..100}; do
    "$@" >/dev/null 2>&1 && return
    sleep 0.2
  done
  echo "slurm_cluster.sh: failed for 20 seconds: $*" >&2
  tail -n 5 "$folder"/*.log >&2
  stop
  exit 1
}

all_idle() { [[ $(sinfo --noheader --format=%t --Node | sort -u) == idle ]]; }

start() {
  stop
  mkdir -p "$folder/state" "$folder/spool"
  head -c 1024 /dev/urandom >"$folder/munge.key"
  chmod 400 "$folder/munge.key"
  local port=$((20000 + RANDOM % 20000))
  cat >"$folder/slurm.conf" <<TEXT
ClusterName=test
SlurmctldHost=$(hostname)(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
FirstJobId=$((1 + RANDOM)) # JAX derives its port from the job number, so two clusters on a machine must differ
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket,cred_expire=5
CredType=cred/munge
MpiDefault=none
SchedulerParameters=sched_interval=2,bf_interval=2
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
KillWait=30
ReturnToService=2
NodeName=$(hostname) NodeAddr=127.0.0.1 Port=$((port + 1)) CPUs=2
PartitionName=all Nodes=$(hostname) Default=YES MaxTime=60
TEXT
  echo "SLURM_CONF=$folder/slurm.conf" >"$folder/environment"
  export SLURM_CONF=$folder/slurm.conf
  munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
    --log-file="$folder/munged.log" --seed-file="$folder/munged.seed"
  slurmctld -i
  slurmd
  wait_for all_idle
}

"$1"
