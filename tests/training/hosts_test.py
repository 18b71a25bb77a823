"""Several real processes compute one run, stop together and refuse settings that differ."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.helpers import HANG_SECONDS, ROOT, toy_hosts
from tests.helpers.toy_processes import DEVICES, RECIPE, end, free_address, start
from vlbert_jax import main
from vlbert_jax.tasks import TASKS
from vlbert_jax.training import hosts, metrics
from vlbert_jax.weights.orbax import newest_step

pytestmark = pytest.mark.slow
# Dropout must not depend on the mesh. Batches must be slow enough to interrupt a run between two
# checkpoints.
FIELDS = ["--config.prng_impl=threefry2x32", "--config.total_steps=40", "--config.step_delay=0.05", "--config.report"]


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setitem(TASKS, "toy", toy_hosts.REGISTERED)
    monkeypatch.chdir(ROOT)


def wait_for_a_checkpoint(processes, workdir):
    newest = newest_step(workdir)
    while newest_step(workdir) == newest and all(process.is_alive() for process in processes):
        time.sleep(0.02)


def press_ctrl_c(processes):
    """Send what a terminal sends to all processes of a command."""
    for process in processes:
        os.kill(process.pid, signal.SIGINT)


def losses(workdir):
    rows = metrics.read_rows(workdir / "metrics.jsonl")
    return [(row["step"], row["split"]) for row in rows], [row["loss"] for row in rows]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """Return the workdir of an uninterrupted, evaluated run of one process with eight devices."""
    workdir, patch = tmp_path_factory.mktemp("uninterrupted"), pytest.MonkeyPatch()
    with patch.context() as patch:
        patch.setitem(TASKS, "toy", toy_hosts.REGISTERED)
        for mode in ("train", "evaluate"):
            assert main.main(["main", RECIPE, *FIELDS, f"--workdir={workdir}", f"--mode={mode}"]) == 0
    return workdir


def test_a_run_continues_after_sigterm_and_sigkill(uninterrupted, tmp_path):
    """A run of two processes continues after SIGTERM or SIGKILL to one of them, and after Ctrl-C.

    The other process stops, too, after SIGKILL to the worker as well as to the coordinator. SIGTERM
    interrupts an evaluation, and the next start repeats it.
    """
    run = tmp_path / "run"
    flags = [*FIELDS, f"--workdir={run}"]

    processes = start(tmp_path, 2, *flags, SIGTERM_IN_EVALUATION="1")
    assert end(processes) == ([143, 143], [[], []])
    assert newest_step(run) == 10
    assert {row["split"] for row in metrics.read_rows(run / "metrics.jsonl")} == {"train"}

    processes = start(tmp_path, 2, *flags)
    wait_for_a_checkpoint(processes, run)
    press_ctrl_c(processes)
    assert end(processes) == ([143, 143], [[], []])
    assert 10 < newest_step(run) < 40

    for killed in (1, 0):
        processes = start(tmp_path, 2, *flags)
        wait_for_a_checkpoint(processes, run)
        processes[killed].kill()
        statuses, lines = end(processes)
        assert (statuses[killed], statuses[1 - killed]) == (-signal.SIGKILL, hosts.LOST), lines
        (line,) = lines[1 - killed]
        assert re.match(rf"error: process {1 - killed} \(.*\) stopped: another process of this run died", line)

    processes = start(tmp_path, 2, *flags)
    assert end(processes) == ([0, 0], [[], []])
    assert losses(run)[0] == losses(uninterrupted)[0]
    np.testing.assert_allclose(losses(run)[1], losses(uninterrupted)[1], rtol=1e-5)


def test_sigterm_during_startup(tmp_path):
    """After SIGTERM to a process that loads, all processes stop at one of the first updates."""
    processes = start(tmp_path, 2, *FIELDS, f"--workdir={tmp_path}/run")
    while "this is process 0" not in processes[0].log.read_text() and processes[0].is_alive():
        time.sleep(0.02)
    processes[0].terminate()
    assert end(processes) == ([143, 143], [[], []])
    assert 1 <= newest_step(tmp_path / "run") < 5


def test_a_second_ctrl_c_ends_all_processes_at_once(tmp_path):
    """Nothing is saved: the first would have saved at the end of the update, which waits for three seconds."""
    run = tmp_path / "run"
    processes = start(tmp_path, 2, *FIELDS, f"--workdir={run}", "--config.log_every_steps=1", "--config.step_delay=3")
    while not metrics.read_rows(run / "metrics.jsonl") and all(process.is_alive() for process in processes):
        time.sleep(0.02)
    logs = [process.log for process in processes]
    press_ctrl_c(processes)
    while "Ctrl-C again ends it at once" not in logs[0].read_text() and processes[0].is_alive():
        time.sleep(0.02)
    press_ctrl_c(processes)
    assert end(processes) == ([130, 130], [[], []])
    assert newest_step(run) is None and not any("Traceback" in log.read_text() for log in logs)


def test_four_processes_equal_one_process(uninterrupted, tmp_path):
    """Losses, the prediction file and the report of four processes equal those of one process.

    Together the processes read every record once.
    """
    flags = [*FIELDS, "--config.step_delay=0", f"--workdir={tmp_path}/run"]
    for mode in ("train", "evaluate"):
        assert end(start(tmp_path, 4, *flags, f"--mode={mode}")) == ([0] * 4, [[]] * 4)
    assert losses(tmp_path / "run")[0] == losses(uninterrupted)[0]
    np.testing.assert_allclose(losses(tmp_path / "run")[1], losses(uninterrupted)[1], rtol=1e-5)
    seen = [list(map(int, (tmp_path / f"seen_{i}").read_text().split())) for i in range(4)]
    assert len({number for part in seen for number in part}) == sum(map(len, seen)) == 40 * 16  # one epoch
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 1
    found, expected = (json.loads((w / "predictions/val.json").read_text()) for w in (tmp_path / "run", uninterrupted))
    assert [index for index, _ in found] == list(range(toy_hosts.VALIDATION))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    pages = [(workdir / "report/index.html").read_text() for workdir in (tmp_path / "run", uninterrupted)]
    found, expected = (re.search(r"logits: ([-\d. ]+)", page)[1].split() for page in pages)
    assert len(found) == 16 and "4 processes" in pages[0]
    np.testing.assert_allclose(np.array(found, float), np.array(expected, float), atol=0.0011)  # three digits


def command(*flags, cwd=ROOT, **environment):
    """Start the command line in a new interpreter."""
    environment = os.environ | {"XLA_FLAGS": DEVICES, "PYTHONPATH": str(cwd)} | environment
    return subprocess.Popen(
        [sys.executable, "-m", "tests.helpers.toy_process", RECIPE, *flags], cwd=cwd, env=environment, text=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip


def error_lines(process):
    return [line for line in process.communicate(timeout=HANG_SECONDS)[1].splitlines() if line.startswith("error")]


def test_processes_that_differ_are_reported(tmp_path):
    """Different code, learning rates and vocabulary files are reported."""
    shutil.copytree(ROOT / "vlbert_jax", tmp_path / "vlbert_jax", ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "vlbert_jax/geometry.py").open("a") as file:
        file.write("# changed\n")
    for folder in ("tests", "configs", "data_prep"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    flags = [f"--workdir={tmp_path}/run", "--config.data.vocab=words.txt", f"--coordinator={free_address()}"]
    processes = []
    for number, cwd in enumerate((ROOT, tmp_path)):
        folder = tmp_path / f"data{number}"
        folder.mkdir()
        (folder / "words.txt").write_text(str(number))
        own = [f"--config.data.data_dir={folder}", f"--config.learning_rate={number}"]
        processes.append(command(*flags, *own, "--num_processes=2", f"--process_id={number}", cwd=cwd))
    (line,) = error_lines(processes[0]) + error_lines(processes[1])
    assert [process.returncode for process in processes] == [2, 2]
    assert re.match(
        r"error: process 1 \(.*\) differs from process 0: the code of vlbert_jax is .*, there .*; "
        r"config.learning_rate is 1.0, there 0.0; what config.data.vocab names is .*, there .*",
        line,
    ), line
    assert not list((tmp_path / "run").iterdir())


def test_facts_cover_only_configured_files(tmp_path):
    """Another corpus and a folder with the name of a split do not change the facts."""
    config = toy_hosts.toy_task.make_config()
    config.data.update(data_dir=str(tmp_path), extractor="", captions="captions", eval_split="val")
    (tmp_path / "captions").mkdir()
    (tmp_path / "captions" / "records").write_text("1")
    facts = hosts.facts(config)
    for folder in ("val", "other"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "file").touch()
    assert hosts.facts(config) == facts and "what config.data.captions names" in facts
    (tmp_path / "captions" / "records").write_text("2")
    assert hosts.facts(config) != facts


def test_processes_require_the_same_workdir(tmp_path):
    statuses, lines = end(start(tmp_path, 2, own=[[f"--workdir={tmp_path}/{name}"] for name in "ab"]))
    assert statuses == [2, 2]
    (line,) = lines[0] + lines[1]
    assert re.match(r"error: process 1 \(.*\) differs from process 0: its workdir .*/b is not that of process 0", line)
    assert not list((tmp_path / "a").iterdir())


def test_an_error_in_all_processes_is_reported_once(tmp_path):
    statuses, lines = end(start(tmp_path, 2, f"--workdir={tmp_path}/run", "--config.batch_size=6"))
    assert statuses == [2, 2]
    (line,) = lines[0] + lines[1]
    assert "error: 3 examples per host do not divide among 2 devices" in line


def test_tensor_stays_within_a_host(uninterrupted, tmp_path):
    """With two devices per host, mesh.tensor=2 equals one process and mesh.tensor=4 is an error."""
    flags = [*FIELDS, "--config.step_delay=0", f"--workdir={tmp_path}/run"]
    statuses, lines = end(start(tmp_path, 2, *flags, "--config.mesh.tensor=4"))
    (line,) = lines[0] + lines[1]
    assert statuses == [2, 2] and "error: mesh.tensor=4 does not divide the 2 devices of each host" in line
    assert end(start(tmp_path, 2, *flags, "--config.mesh.tensor=2")) == ([0, 0], [[], []])
    assert losses(tmp_path / "run")[0] == losses(uninterrupted)[0]
    np.testing.assert_allclose(losses(tmp_path / "run")[1], losses(uninterrupted)[1], rtol=1e-5)


def test_a_missing_coordinator_is_reported(tmp_path):
    processes = start(tmp_path, 2, JOIN_SECONDS="1")
    processes[0].kill()  # the coordinator, before it listens
    statuses, lines = end(processes)
    assert statuses == [-signal.SIGKILL, hosts.LOST]
    (line,) = lines[1]
    assert re.search(r"process 1 .* not all of 2 processes came to the coordinator localhost:\d+; is it", line), line


def test_an_abort_is_not_reported_as_a_lost_process(tmp_path):
    """The process that aborts reports a library; the other process reports a lost process."""
    flags = [f"--coordinator={free_address()}", "--num_processes=2", f"--workdir={tmp_path}/run"]
    environment = dict(ABORT="1", HEARTBEAT_SECONDS="6")
    processes = [command(*flags, f"--process_id={number}", **environment) for number in range(2)]
    (other,), (own,) = map(error_lines, processes)
    assert [process.returncode for process in processes] == [hosts.LOST, 134]
    assert re.match(r"error: process 1 \(.*\) stopped: XLA or another library aborted it", own), own
    assert re.match(r"error: process 0 \(.*\) stopped: another process of this run died", other), other


@pytest.mark.parametrize(
    "flags, line",
    [
        (["--coordinator=a:1"], "--coordinator=HOST:PORT, --num_processes and --process_id belong together"),
        (["--coordinator=a", "--num_processes=2", "--process_id=0"], "address 'a' is not HOST:PORT"),
        (["--coordinator=a:1", "--num_processes=2", "--process_id=2"], "process_id is 2; with num_processes=2 it is 0"),
        (["--num_processes=0"], "num_processes"),
    ],
)  # fmt: skip
def test_impossible_process_flags_are_reported(flags, line, capsys):
    assert main.main(["main", RECIPE, *flags]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert line in error


OPEN_MPI = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3"}
ENVIRONMENTS = [
    ({}, None),
    ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4"}, None),  # an allocation is not a job step
    ({"SLURM_STEP_NUM_TASKS": "4"}, (None, None, None)),
    (OPEN_MPI, (None, 4, 3)),
    # Open MPI 5 stores the host and the process number of mpirun in PMIX_NAMESPACE.
    (OPEN_MPI | {"PMIX_NAMESPACE": "prterun-node-01-8346@1"}, ("node-01:61594", 4, 3)),
    (OPEN_MPI | {"PMIX_NAMESPACE": "prterun-a-1@1", "JAX_COORDINATOR_ADDRESS": "b:2"}, ("b:2", 4, 3)),
    (OPEN_MPI | {"PMIX_NAMESPACE": "1531576320"}, (None, 4, 3)),
    ({"TPU_WORKER_HOSTNAMES": "localhost"}, None),
    ({"TPU_WORKER_HOSTNAMES": "a,b"}, (None, None, None)),
    ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, (None, None, None)),
    ({"TPU_ML_PLATFORM": "JAX"}, None),  # JAX_PLATFORMS is cpu in the tests
    ({"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1", "JAX_COORDINATOR_ADDRESS": "a:1"}, ("a:1", 2, 1)),
    ({"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0", "JAX_COORDINATOR_ADDRESS": "a:1"}, None),
]


@pytest.fixture
def no_cluster(monkeypatch):
    for name in os.environ:
        if name.startswith(("SLURM", "OMPI", "PMIX", "JAX_NUM", "JAX_PROCESS", "JAX_COORD", "TPU", "MEGASCALE")):
            monkeypatch.delenv(name)


@pytest.mark.parametrize("environment, expected", ENVIRONMENTS, ids=str)
def test_cluster_environments_are_detected(environment, expected, no_cluster, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert hosts.found() == expected


@pytest.mark.parametrize(
    "name, value, alone",
    [
        ("SLURM_STEP_TASKS_PER_NODE", "1", True),
        ("SLURM_STEP_TASKS_PER_NODE", "1(x16)", True),
        ("SLURM_STEP_TASKS_PER_NODE", "2,1", False),
        ("SLURM_STEP_TASKS_PER_NODE", "8(x2)", False),
        ("OMPI_COMM_WORLD_LOCAL_SIZE", "1", True),
        ("OMPI_COMM_WORLD_LOCAL_SIZE", "8", False),
        ("SLURM_NTASKS", "1", False),
    ],
)
def test_the_only_process_of_a_machine_is_detected(name, value, alone, no_cluster, monkeypatch):
    monkeypatch.setenv(name, value)
    assert hosts.alone_on_machine() is alone


HOLDS_THE_LOCK = """
import ctypes, signal, threading, time
from vlbert_jax.training import hosts
hosts.STUCK_SECONDS = 2
hosts._end_clearly_when_aborted()
hosts.arm_dead_mans_switch()
libc = ctypes.CDLL(None)
libc.signal(signal.SIGALRM, ctypes.cast(libc.abort, ctypes.c_void_p))
threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])  # so the other thread aborts, as in JAX
libc.alarm(1)
ctypes.PyDLL(None).sleep(600)  # C code that holds the interpreter lock
"""


def test_an_abort_while_c_code_holds_the_interpreter_lock_ends_the_process():
    done = subprocess.run(
        [sys.executable, "-c", HOLDS_THE_LOCK], cwd=ROOT, capture_output=True, text=True, timeout=HANG_SECONDS
    )
    assert done.returncode == 1 and "Timeout (0:00:02)!" in done.stderr, done.stderr
