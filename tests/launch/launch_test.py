"""The launch scripts print dry runs, refuse wrong arguments and restart failed runs."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest

from tests.helpers import HANG_SECONDS, ROOT

SCRIPTS = sorted([*(ROOT / "launch").glob("*.sh"), ROOT / "launch" / "slurm.sbatch"])
ARRAY = ROOT / "launch" / "slurm_array.sbatch"
OTHERS = ("tests/launch/slurm_cluster.sh", "benchmarks/gpu.sh")
SHELL = [*SCRIPTS, ARRAY, ROOT / "launch" / "shared.bash", ROOT / ".ci" / "run", *(ROOT / name for name in OTHERS)]
GPU_NODE, LOCAL, SLURM, TPU_POD, GKE = (
    ROOT / "launch" / name for name in ("gpu_node.sh", "local.sh", "slurm.sbatch", "tpu_pod.sh", "gke_xpk.sh")
)
SET_BY_SCRIPTS = ("XLA_FLAGS", "XLA_PYTHON_CLIENT_MEM_FRACTION", "JAX_PLATFORMS", "JAX_COMPILATION_CACHE_DIR")

# The test extra installs shellcheck next to the Python interpreter.
TOOLS = os.environ | {"PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"}


def launch(*arguments, script=GPU_NODE, cwd=ROOT, **environment):
    clean = {k: v for k, v in os.environ.items() if k not in SET_BY_SCRIPTS and not k.startswith("SLURM")}
    return subprocess.run(
        [script, *arguments], cwd=cwd, env=clean | environment, capture_output=True, text=True, timeout=HANG_SECONDS
    )


def fake_program(path, name, body):
    """Return a program `path`/`name` that adds its arguments to `path`/starts and runs `body`."""
    program = path / name
    program.write_text(f"#!/bin/sh\necho \"$@\" >> '{path}/starts'\n{body}\n")
    program.chmod(0o755)
    return program


def fake_python(path, body):
    """Return flags that replace the Python interpreter by a program with `body`."""
    return [f"--python={fake_program(path, 'python', body)}", f"--workdir={path}/run", "--restart-delay=0"]


def starts(path):
    return (path / "starts").read_text().splitlines()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_help(script):
    result = launch("--help", script=script)
    assert result.returncode == 0 and not result.stderr
    assert "--dry-run" in result.stdout and "--config" in result.stdout


@pytest.mark.parametrize("script", SHELL, ids=lambda p: p.name)
def test_shellcheck(script):
    command = ["shellcheck", "-x", script.relative_to(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=TOOLS)
    assert done.returncode == 0, done.stdout


def test_dry_run_prints_the_command_and_runs_nothing(tmp_path):
    workdir = tmp_path / "run"
    result = launch("--dry-run", "--config=configs/pretrain.py:base_prec", f"--workdir={workdir}", "--gpus=3", "--",
                    "--config.batch_size=64", "--config.data.data_dir=/a b")
    assert result.returncode == 0, result.stderr
    assert not workdir.exists()
    command = next(line for line in result.stdout.splitlines() if "vlbert_jax.main" in line)
    assert f"--config=configs/pretrain.py:base_prec --workdir={workdir} --config.batch_size=64" in command
    assert r"/a\ b" in command  # quoted for a shell
    assert r"CUDA_VISIBLE_DEVICES=0\,1\,2" in command
    assert "JAX_PLATFORMS=cuda" in command and "XLA_FLAGS=--xla_gpu" in command


def test_the_default_workdir_does_not_depend_on_the_directory(tmp_path):
    result = launch("--dry-run", "--config=configs/pretrain.py:base_prec", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "--workdir=workdirs/pretrain_base_prec" in result.stdout
    assert "CUDA_VISIBLE_DEVICES" not in result.stdout  # all GPUs are visible
    assert launch("--dry-run", "--config=pretrain:base_prec", cwd=tmp_path).stdout == result.stdout  # a name


def test_environment_variables_take_precedence():
    result = launch("--dry-run", XLA_FLAGS="--xla_mine=1", JAX_PLATFORMS="cpu")
    assert "--xla_mine=1 " in result.stdout and "JAX_PLATFORMS=cpu" in result.stdout
    assert result.stdout.index("--xla_gpu_") < result.stdout.index("--xla_mine")  # the last of two equal flags counts


@pytest.mark.parametrize(
    "arguments",
    [
        ["--gpu=2"],
        ["--gpus=0"],
        ["--gpus="],
        ["--gpus=two"],
        ["--devices=0;1"],
        ["--gpus=1", "--devices=0"],
        ["--restarts=-1"],
        ["--memory=2"],
        ["--config=configs/none.py"],
        ["--config.batch_size=64"],
        ["configs/pretrain.py"],
    ],
    ids=" ".join,
)
def test_wrong_arguments_are_refused(arguments):
    result = launch("--dry-run", *arguments)
    assert result.returncode == 2
    assert result.stderr.startswith("gpu_node.sh: ") and not result.stdout


def test_a_successful_run_is_not_restarted(tmp_path):
    result = launch(*fake_python(tmp_path, "exit 0"), "--", "--config.seed=3")
    assert result.returncode == 0
    assert starts(tmp_path) == [
        f"-m vlbert_jax.main --config=configs/pretrain.py:base_e2e --workdir={tmp_path}/run --config.seed=3"
    ]


def test_failures_are_restarted_a_bounded_number_of_times(tmp_path):
    result = launch(*fake_python(tmp_path, "exit 7"), "--restarts=2")
    assert result.returncode == 7
    assert len(starts(tmp_path)) == 3
    assert "restart 2 of 2" in result.stderr


def test_a_successful_restart_returns_zero(tmp_path):
    result = launch(*fake_python(tmp_path, f"test $(wc -l < '{tmp_path}/starts') -eq 2"))
    assert result.returncode == 0
    assert len(starts(tmp_path)) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_are_forwarded_and_prevent_restarts(tmp_path, number):
    body = f"trap 'echo saved > {tmp_path}/saved; exit 1' TERM; touch {tmp_path}/ready; while :; do sleep 0.05; done"
    # Background processes ignore SIGINT, and a shell cannot reset that, so Python resets it here.
    start = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", start, GPU_NODE, *fake_python(tmp_path, body)], cwd=ROOT, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + HANG_SECONDS
        while not (tmp_path / "ready").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        assert process.wait(timeout=HANG_SECONDS) != 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert (tmp_path / "saved").read_text() == "saved\n"
    assert len(starts(tmp_path)) == 1


# --- Several processes ----------------------------------------------------------------------------

WRONG = [
    (LOCAL, []),
    (LOCAL, ["0"]),
    (LOCAL, ["2", "3"]),
    (LOCAL, ["2", "--devices=none"]),
    (LOCAL, ["2", "--port=http"]),
    (SLURM, ["--nodes=0"]),
    (SLURM, ["--time=60"]),
    (ARRAY, ["--tasks=0", "--", "build"]),
    (ARRAY, ["--", "train"]),
    (ARRAY, ["--", "build", "captions", "--shard=0/2"]),
    (TPU_POD, ["run", "--name=a"]),
    (TPU_POD, ["run", "--name=a", "--zone=b"]),  # the default workdir is on the worker's disk, which is temporary
    (TPU_POD, ["run", "--name=a", "--zone=b", "--workdir=workdirs/a"]),
    (TPU_POD, ["run", "--name=a", "--zone=b", "--bucket=my-runs"]),
    (TPU_POD, ["--name=a", "--zone=b"]),
    (TPU_POD, ["run", "--name=A_b", "--zone=b"]),
    (TPU_POD, ["run", "--name=a", "--zone=b", "--workdir=/c", "--slices=0"]),
    (TPU_POD, ["run", "--name=a", "--zone=b", "--workdir=/c", "--config=configs/none.py"]),
    (GKE, ["run", "--name=a", "--cluster=b"]),
    (GKE, ["run", "--name=a", "--cluster=b", "--image=c"]),
    (GKE, ["run", "--name=a-", "--cluster=b", "--image=c", "--workdir=/c"]),
    (GKE, ["run", "--name=a", "--image=c", "--workdir=/c"]),
    (GKE, ["go", "--name=a", "--cluster=b"]),
]


@pytest.mark.parametrize("script, arguments", WRONG, ids=[f"{s.name} {' '.join(a)}" for s, a in WRONG])
def test_wrong_arguments_for_several_processes_are_refused(script, arguments):
    result = launch("--dry-run", *arguments, script=script)
    assert result.returncode == 2
    assert result.stderr.startswith(f"{script.name}: ") and result.stderr.count("\n") == 1 and not result.stdout


@pytest.mark.parametrize(
    "script, arguments",
    [
        (TPU_POD, ["run", "--name=a", "--zone=b"]),
        (GKE, ["run", "--name=a", "--cluster=b", "--image=c"]),
        (SLURM, ["--nodes=2"]),
        (LOCAL, ["2"]),
        (GPU_NODE, []),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_the_workdir_is_in_the_bucket(script, arguments):
    """Logs and compiled programs stay in a folder of the machine."""
    flags = ["--dry-run", "--bucket=gs://my-runs/", "--config=configs/pretrain.py:base_prec"]
    result = launch(*arguments, *flags, script=script)
    assert result.returncode == 0, result.stderr
    assert re.search(r"--workdir=gs://my-runs/pretrain_base_prec\b", result.stdout.replace("\\", ""))
    for option in ("mkdir -p ", "JAX_COMPILATION_CACHE_DIR=", "--output="):
        for path in re.findall(rf"{option}(\S+)", result.stdout):
            assert path.startswith(("workdirs/pretrain_base_prec", "vlbert_jax")), path


def test_local_restarts_all_processes(tmp_path):
    body = f"test $(wc -l < '{tmp_path}/starts') -gt 3 || exit 75"
    result = launch("3", "--port=1234", *fake_python(tmp_path, body), "--", "--config.seed=3", script=LOCAL)
    assert result.returncode == 0, result.stderr
    assert "exit status 75; restart 1 of 3" in result.stderr
    places = [f"--coordinator=localhost:1234 --num_processes=3 --process_id={i} --config.seed=3" for i in range(3)]
    assert sorted(line[line.index("--coord") :] for line in starts(tmp_path)) == sorted(2 * places)


def test_a_wrong_argument_in_one_process_prevents_restarts(tmp_path):
    result = launch("2", *fake_python(tmp_path, 'case "$@" in *process_id=1*) exit 2;; esac; exit 75'), script=LOCAL)
    assert result.returncode == 2
    assert len(starts(tmp_path)) == 2


def test_slurm_submits_itself_with_sbatch(tmp_path):
    fake_program(tmp_path, "sbatch", "")
    arguments = ["--nodes=4", "--sbatch=--time=60", "--sbatch=--partition=a b", f"--workdir={tmp_path}/run"]
    result = launch(*arguments, "--", "--x=1", script=SLURM, PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert result.returncode == 0, result.stderr
    (submitted,) = starts(tmp_path)
    head = f"--nodes=4 --output={tmp_path}/run/slurm-%j.out --time=60 --partition=a b launch/slurm.sbatch --nodes=4"
    assert submitted.startswith(head) and submitted.endswith(" -- --x=1")


@pytest.mark.parametrize(
    "status, before, requeued", [(0, 0, False), (2, 0, False), (143, 0, True), (75, 1, True), (75, 2, False)]
)
def test_slurm_requeues_depending_on_the_exit_status(tmp_path, status, before, requeued):
    fake_program(tmp_path, "srun", f"exit {status}")
    fake_program(tmp_path, "scontrol", "")
    result = launch(
        f"--workdir={tmp_path}/run", "--restarts=2", "--python=py", "--", "--x=1", script=SLURM,
        PATH=f"{tmp_path}:{os.environ['PATH']}",
        SLURM_JOB_ID="7", SLURM_SUBMIT_DIR=str(ROOT), SLURM_RESTART_COUNT=str(before),
    )  # fmt: skip
    assert result.returncode == status
    step, *after = starts(tmp_path)
    assert step.endswith(f"py -m vlbert_jax.main --config=configs/pretrain.py:base_e2e --workdir={tmp_path}/run --x=1")
    assert after == ["requeue 7"] * requeued


def test_slurm_shares_a_build_among_the_tasks_of_an_array(tmp_path):
    fake_program(tmp_path, "sbatch", "echo 12")
    fake_program(tmp_path, "python", "")
    options = ["--tasks=3", f"--logs={tmp_path}/logs", f"--python={tmp_path}/python"]
    command = ["build", "captions", "--source=/a b"]

    def array(*arguments, **environment):
        path = f"{tmp_path}:{os.environ['PATH']}"
        result = launch(*options, *arguments, script=ARRAY, PATH=path, SLURM_SUBMIT_DIR=str(ROOT), **environment)
        assert result.returncode == 0, result.stderr
        return result.stdout

    printed = array("--dry-run", "--", *command)
    assert not (tmp_path / "starts").exists() and "--dependency=afterany:JOB" in printed
    array("--sbatch=--time=60", "--", *command)
    array("--", "extract_regions", "images", "--out=o")
    shares, last, extraction = starts(tmp_path)
    head = f"--parsable --output={tmp_path}/logs/%A_%a.out --time=60"
    assert shares.startswith(f"{head} --array=0-2 launch/slurm_array.sbatch --tasks=3")
    assert last.startswith(f"{head} --dependency=afterany:12 --array=3 launch/slurm_array.sbatch --tasks=3")
    assert all(line.endswith(" -- build captions --source=/a b") for line in (shares, last))
    assert "--array=0-2" in extraction  # its last share concludes it
    (tmp_path / "starts").unlink()
    for task in "13":
        array("--", *command, SLURM_ARRAY_TASK_ID=task, SLURM_CPUS_PER_TASK="8")
    array("--", "extract_regions", "images", "--out=o", SLURM_ARRAY_TASK_ID="0")
    for task in "23":
        array("--", "experiments", "ablation", "--small", SLURM_ARRAY_TASK_ID=task)
    study = "-m experiments.run ablation --small"
    build = "-m data_prep.build captions --source=/a b"
    extract = "-m data_prep.extract_regions images --out=o --shard=0/3"
    shares = [f"{build} --shard=1/3 --num_processes=8", f"{build} --num_processes=8", extract]
    assert starts(tmp_path) == [*shares, f"{study} --shard=2/3", study]


# A fake gcloud with one resource, whose state is in a file, and one run. Each query of the run
# returns the next line of the file `statuses`.
GCLOUD = r"""
cd '{folder}'
case "$*" in
  *queued-resources\ create*) echo ACTIVE > state; touch offline ;;
  *queued-resources\ delete*) rm state ;;
  *queued-resources\ list*)
    [ ! -f offline ] || {{ rm offline; exit 1; }}
    printf 'another\tFAILED\n'
    [ ! -f state ] || printf 'pod\t%s\n' "$(cat state)" ;;
  *vlbert_jax.status*cat*|*cat*vlbert_jax.status*)
    [ -f running ] || exit 0
    status=$(head -n 1 statuses)
    sed -i 1d statuses
    case $status in
      lost) exit 255 ;;
      offline) touch offline; exit 255 ;;
      gone) echo SUSPENDED > state; rm running; exit 1 ;;
      [0-9]*) rm running ;;
    esac
    echo "$status" ;;
  *setsid*) touch running ;;
esac
"""


@pytest.mark.parametrize(
    "statuses, created, started",
    [
        (["0"], 1, 1),
        (["2"], 1, 1),
        (["75", "0"], 1, 2),
        (["gone", "0"], 2, 2),
        (["running", "lost", "offline", "offline", "0"], 1, 1),  # the network fails
    ],
    ids=str,
)
def test_tpu_pod_is_created_reused_and_replaced(tmp_path, statuses, created, started):
    fake_program(tmp_path, "gcloud", GCLOUD.format(folder=tmp_path))
    (tmp_path / "statuses").write_text("\n".join(statuses) + "\n")
    result = launch(
        "run", "--name=pod", "--zone=z", "--workdir=/share/a", "--poll=0", "--restart-delay=0", "--setup=mount it",
        "--", "--config.seed=3", script=TPU_POD, PATH=f"{tmp_path}:{os.environ['PATH']}", TMPDIR=str(tmp_path),
    )  # fmt: skip
    assert result.returncode == int(statuses[-1]), result.stdout + result.stderr
    commands = starts(tmp_path)
    assert sum("queued-resources create pod" in line for line in commands) == created
    runs = [line for line in commands if "setsid" in line]
    assert len(runs) == started and "--config.seed=3" in runs[0].replace("\\", "")
    assert sum("mount it" in line for line in commands) == started
    names = subprocess.run(["tar", "-tzf", tmp_path / "pod.tar.gz"], capture_output=True, text=True).stdout.splitlines()
    assert {"setup.cfg", "vlbert_jax/main.py", "configs/pretrain.py"} <= set(names)
    assert "costs money" in result.stdout


@pytest.mark.parametrize("first", ["lost", "offline"])
def test_a_run_in_progress_is_not_started_again(tmp_path, first):
    fake_program(tmp_path, "gcloud", GCLOUD.format(folder=tmp_path))
    (tmp_path / "statuses").write_text(f"{first}\nrunning\n0\n")
    (tmp_path / "state").write_text("ACTIVE\n")
    (tmp_path / "running").touch()
    environment = dict(PATH=f"{tmp_path}:{os.environ['PATH']}", TMPDIR=str(tmp_path))
    result = launch("run", "--name=pod", "--zone=z", "--workdir=/share/a", "--poll=0", script=TPU_POD, **environment)
    assert result.returncode == 0, result.stdout + result.stderr
    commands = "\n".join(starts(tmp_path))
    assert not any(word in commands for word in ("setsid", "scp", "create", "delete"))
    assert "cannot be reached" in result.stderr


def test_a_failed_query_is_not_a_missing_slice(tmp_path):
    fake_program(tmp_path, "gcloud", "echo 'ERROR: log in first' >&2; exit 1")
    environment = dict(PATH=f"{tmp_path}:{os.environ['PATH']}")
    result = launch("run", "--name=pod", "--zone=z", "--workdir=/share/a", script=TPU_POD, **environment)
    assert result.returncode == 2 and len(starts(tmp_path)) == 1
    assert "log in first" in result.stderr and "gcloud cannot tell the state of pod" in result.stderr


def test_the_command_for_the_pod_is_valid_shell(tmp_path):
    """The command that the dry run prints also runs in a separate shell."""
    place = ["--name=pod", "--zone=z", "--workdir=/c"]
    result = launch("run", *place, "--dry-run", "--", "--config.x=a b", script=TPU_POD)
    assert "tpu\\,convert\\,gcs" in result.stdout  # the extra `convert` reads PyTorch files
    line = next(line for line in result.stdout.splitlines() if "setsid" in line)
    unquote = ["bash", "-c", f"printf %s {line.partition('--command=')[2]}"]
    command = subprocess.run(unquote, capture_output=True, text=True)
    home = tmp_path / "vlbert_jax" / ".venv" / "bin"
    home.mkdir(parents=True)
    fake_program(home, "python", "echo computed; exit 75")
    environment = os.environ | {"HOME": str(tmp_path)}
    subprocess.run(["bash", "-c", command.stdout], cwd=tmp_path, env=environment, check=True, timeout=HANG_SECONDS)
    status = tmp_path / "vlbert_jax.status"
    for _ in range(200):
        if status.exists() and status.read_text():
            break
        time.sleep(0.05)
    assert status.read_text() == "75\n" and (tmp_path / "vlbert_jax.log").read_text() == "computed\n"
    assert starts(home)[0].endswith("--config.x=a b")


def test_gke_submits_a_workload_that_the_cluster_restarts():
    arguments = ["--name=a", "--cluster=b", "--image=c/d:1", "--type=v5litepod-64", "--slices=2", "--workdir=/share/a"]
    result = launch("run", *arguments, "--dry-run", "--", "--config.seed=3", script=GKE)
    build, push, submit = result.stdout.splitlines()
    assert "--file=launch/Dockerfile" in build and r"EXTRA=tpu\,convert\,gcs" in build
    assert push.strip() == "docker push c/d:1"
    assert "--tpu-type=v5litepod-64 --num-slices=2" in submit and r"--restart-on-exit-codes=1\,3-255" in submit
    assert r"--workdir=/share/a\ --config.seed=3" in submit


def test_the_docker_image_copies_existing_files():
    lines = (ROOT / "launch" / "Dockerfile").read_text().splitlines()
    copied = [name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]]
    assert {"vlbert_jax", "data_prep", "configs", "setup.cfg"} <= set(copied)
    assert all((ROOT / name).exists() for name in copied)
