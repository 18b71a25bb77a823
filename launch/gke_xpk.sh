#!/usr/bin/env bash
# Starts one run on TPU slices of a GKE cluster through xpk: builds and pushes the image, submits, lists, deletes.
set -euo pipefail
script=gke_xpk.sh

usage() {
  cat <<'TEXT'
launch/gke_xpk.sh COMMAND --name=NAME --cluster=CLUSTER --image=IMAGE [options] [-- flags of vlbert_jax.main]

  run      build the image, push it, submit the workload
  list     print the state of the workload
  delete   end the workload; the cluster remains and costs money

  --type=TYPE              TPU slice                           (v5litepod-16)
  --slices=N               slices of that type                 (1)
  --zone=ZONE, --project=PROJECT                               (those of gcloud)
  --image=IMAGE            registry path of the image, e.g. europe-docker.pkg.dev/PROJECT/REPOSITORY/vlbert_jax:1
  --config=PATH[:VARIANT]  the recipe, or its name             (configs/pretrain.py:base_e2e)
  --bucket=gs://BUCKET     the workdir is BUCKET/<recipe>_<variant>
  --workdir=DIR            another address, or a folder of storage that is attached to the cluster, e.g. /share/base_e2e
  --restarts=N             maximum number of restarts          (10)
  --dry-run                print the commands without running them
  --help                   this text

GKE restarts the workload after a preemption (status 143), after the loss of a machine (75) and after any other failure
except invalid input (2). It gives the processes two minutes to save. The service account of the nodes needs the right to
write to the bucket; other storage is attached once with `xpk storage attach` (launch/README.md). The script requires docker
and xpk.

  launch/gke_xpk.sh run --name=base-e2e --cluster=tpus --zone=us-west4-a --type=v5litepod-64 --slices=2 \
    --image=europe-docker.pkg.dev/me/images/vlbert_jax:1 --bucket=gs://my-runs -- --config.data.data_dir=/share/data
TEXT
}

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/shared.bash
source launch/shared.bash
name='' cluster='' image='' type=v5litepod-16 slices=1 zone='' project='' restarts=10 verb=''
while (($#)); do
  case $1 in
    run | list | delete) verb=$1 ;;
    --name=?*) name=${1#*=} ;;
    --cluster=?*) cluster=${1#*=} ;;
    --image=?*) image=${1#*=} ;;
    --type=?*) type=${1#*=} ;;
    --slices=?*) slices=${1#*=} ;;
    --zone=?*) zone=${1#*=} ;;
    --project=?*) project=${1#*=} ;;
    --) shift; break ;;
    *) shared_option "$1" ;;
  esac
  shift
done
[[ -n $verb ]] || fail "a command is required: run, list or delete"
[[ $name =~ ^[a-z]([a-z0-9-]*[a-z0-9])?$ ]] || fail "--name='$name' is not a name of small letters, digits and dashes"
[[ -n $cluster ]] || fail "--cluster is required"
[[ -n $image || $verb != run ]] || fail "--image is required"
[[ $slices =~ ^[1-9][0-9]*$ ]] || fail "--slices=$slices is not a positive number"
settle
[[ $workdir == /* || $verb != run ]] || is_address "$workdir" || fail "no --bucket=gs://BUCKET is given, and" \
  "--workdir=$workdir is neither an address nor a folder of attached storage, such as /share/run"

place=("--cluster=$cluster" ${zone:+"--zone=$zone"} ${project:+"--project=$project"})
case $verb in
  list) step xpk workload list "${place[@]}" "--filter-by-job=$name" ;;
  delete) step xpk workload delete "${place[@]}" "--workload=$name" ;;
  run)
    step docker build --file=launch/Dockerfile --build-arg=EXTRA=tpu,convert,gcs "--tag=$image" .
    step docker push "$image"
    step xpk workload create "${place[@]}" "--workload=$name" "--tpu-type=$type" "--num-slices=$slices" \
      "--docker-image=$image" "--max-restarts=$restarts" "--restart-on-exit-codes=$restarted" \
      --termination-grace-period-seconds=120 \
      "--command=$(show python -m vlbert_jax.main "--config=$config" "--workdir=$workdir" "$@")"
    ;;
esac
