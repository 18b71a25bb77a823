"""The processes of one run, on one machine or many: they join, agree, and end together.

`jax.distributed` connects them, watches their heartbeats and passes SIGTERM on. This module adds one
clear line and a known exit status for every way in which a run ends, and a comparison of code, config
and data before anything is computed.
"""

import atexit
import contextlib
import ctypes
import faulthandler
import hashlib
import importlib.metadata
import json
import logging
import os
import pathlib
import re
import signal
import socket
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Mapping
from typing import Any

import jax
import ml_collections

from vlbert_jax.data.records import corpus_fingerprint
from vlbert_jax.files import address_of
from vlbert_jax.training import description
from vlbert_jax.training.compat import distributed
from vlbert_jax.training.provenance import data_paths
from vlbert_jax.weights.stored_config import flat_config

log = logging.getLogger(__name__)

JOIN_SECONDS = 300  # time that a process waits for the others at the start
HEARTBEAT_SECONDS = 20  # silence after which a process counts as dead
FILE_SECONDS = 10  # time until a file of one process is visible to the others on a network file system
WAIT_SECONDS = 24 * 3600  # for a process at work, e.g. building a corpus; heartbeats show that it is alive
STUCK_SECONDS = 120  # time without running Python after which a process ends itself
LOST = 75  # exit status after the loss of another process (EX_TEMPFAIL of sysexits.h): the command may be repeated
DONE = (0, 143)  # exit statuses that all processes reach by themselves
OF_RUNTIME = re.compile(
    r"(ABORTED|CANCELLED|DEADLINE_EXCEEDED|FAILED_PRECONDITION|INTERNAL|UNAVAILABLE|UNKNOWN): "
)


# --- Joining ----------------------------------------------------------------------------------------------


def join(coordinator: str | None = None, num_processes: int | None = None, process_id: int | None = None):
    """Join the other processes of this run; a run of one process stays as it is.

    The processes are given, in this order, by the arguments, by JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES
    and JAX_PROCESS_ID, or by srun, mpirun, or the hosts of a TPU. Where the others do not come within
    JOIN_SECONDS the process ends with one line that has the address, and status 75.

    Args:
        coordinator: HOST:PORT of process 0.
        num_processes: Number of processes.
        process_id: Number of this process, from 0.

    Raises:
        ValueError: A part is missing.
        OSError: The machine does not report its processes.
    """
    given = coordinator, num_processes, process_id
    if given == (None, None, None):
        given = found()
        if given is None:
            return
    elif None in given:
        raise ValueError("--coordinator=HOST:PORT, --num_processes and --process_id belong together; give all three")
    address, total, number = given
    if address and not re.fullmatch(r".+:\d+", address):
        raise ValueError(f"the coordinator's address {address!r} is not HOST:PORT")
    if total is not None and number is not None and not 0 <= number < total:
        raise ValueError(f"process_id is {number}; with num_processes={total} it is 0 to {total - 1}")
    _end_clearly_when_aborted()
    try:
        jax.distributed.initialize(
            address, total, number,
            initialization_timeout=JOIN_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=WAIT_SECONDS,
        )  # fmt: skip
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"cannot join the other processes: {error} Set JAX_COORDINATOR_ADDRESS=HOST:PORT for all, or give each its "
            "--coordinator=HOST:PORT, --num_processes and --process_id"
        ) from error
    # Under srun and mpirun JAX uses one GPU per process, but it does not detect Open MPI 5. The only process of a
    # machine uses all GPUs.
    gpus = "all" if alone_on_machine() else os.environ.get("OMPI_COMM_WORLD_LOCAL_RANK")
    if gpus and "JAX_LOCAL_DEVICE_IDS" not in os.environ:
        jax.config.update("jax_cuda_visible_devices", gpus)
    _Watch.start()
    if jax.process_index():
        logging.getLogger("vlbert_jax").setLevel(logging.ERROR)  # process 0 logs for all
    log.info("%d processes; this is %s", jax.process_count(), _name())


def found() -> tuple[str | None, int | None, int | None] | None:
    """Return coordinator, number of processes and number of this one from the environment, for `join`.

    A None among them is for JAX to detect; None in place of all means that there is no other process.
    """
    get = os.environ.get
    address = get("JAX_COORDINATOR_ADDRESS")
    for total, number in (
        ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"),
        ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),  # of every Open MPI; JAX detects versions before 5
    ):
        if int(get(total) or 1) > 1:
            return address or _launcher(), int(get(total)), int(get(number)) if get(number) else None
    several = int(get("SLURM_STEP_NUM_TASKS") or 1) > 1  # of the step; an allocation alone starts no processes
    several |= int(get("MEGASCALE_NUM_SLICES") or 1) > 1
    several |= "," in (get("TPU_PROCESS_ADDRESSES") or get("TPU_WORKER_HOSTNAMES") or "")
    # JAX sets TPU_ML_PLATFORM where it finds TPU chips; the metadata of the machine state whether there are more.
    on_tpu = "TPU_ML_PLATFORM" in os.environ and "TPU_SKIP_MDS_QUERY" not in os.environ
    several |= on_tpu and "tpu" in (jax.config.jax_platforms or "tpu")  # pyright: ignore[reportAttributeAccessIssue]
    return (address, None, None) if several else None


def _launcher() -> str | None:
    """Return the address of the coordinator where Open MPI 5 has started this process, else None.

    It is the machine where mpirun runs, as JAX has it for earlier versions: process 0 is assumed to run
    there. Simultaneous runs get different ports.
    """
    mpirun = re.fullmatch(r"prterun-(.+)-(\d+)@\d+", os.environ.get("PMIX_NAMESPACE", ""))
    return f"{mpirun[1]}:{2**16 - 2**12 + int(mpirun[2]) % 2**12}" if mpirun else None


def alone_on_machine() -> bool:
    """Return whether srun or mpirun has started only one process on this machine."""
    tasks = os.environ.get("SLURM_STEP_TASKS_PER_NODE") or os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE") or ""
    return re.fullmatch(r"1(\(x\d+\))?", tasks) is not None


def _name() -> str:
    return f"process {distributed.global_state.process_id} ({socket.gethostname()})"


# --- Ending -----------------------------------------------------------------------------------------------


def wait(name: str):
    """Wait until all processes are here; use each name once. Computation needs no wait: devices wait for each other."""
    if _Watch.thread is not None:
        distributed.global_state.client.wait_at_barrier(f"vlbert_jax/{name}", WAIT_SECONDS * 1000)


def of_first(text: str) -> str:
    """Return the text that process 0 gives to all processes of the run; use it once."""
    if _Watch.thread is None:
        return text
    if jax.process_index() == 0:
        distributed.global_state.client.key_value_set("vlbert_jax/of_first", text)
    return _get("vlbert_jax/of_first")


def leave(status: int, line: str = "") -> int:
    """Return `status`, the exit status, after all processes have agreed to end.

    After success the process waits for the others. After an error it ends them too, with the same status,
    and only the first to fail prints its line; then this does not return.

    Args:
        status: Exit status of this process.
        line: Error message.
    """
    if _Watch.thread is None:
        if line:
            print(line, file=sys.stderr)
        return status
    if status in DONE:
        wait("done")  # the last process may still fail, at a report or a results file
        _Watch.stop()
        return status
    if OF_RUNTIME.search(line):
        # Most likely the consequence of another process that died: then JAX ends this one, and that one has the line.
        time.sleep(HEARTBEAT_SECONDS + 5)
    words = json.dumps(dict(host=distributed.global_state.process_id, status=status, line=line))
    with contextlib.suppress(Exception):  # another process was first
        distributed.global_state.client.key_value_set(_Watch.KEY + "first", words)
    _Watch.thread.join()  # ends the process
    return status


class _Watch:
    """A thread of each process that ends it when another one has failed."""

    KEY = "vlbert_jax/failed/"
    thread: threading.Thread | None = None
    over = threading.Event()
    status: int | None = None  # with which all processes are ending; then the loss of one is expected
    hook_before: Any = None  # sys.excepthook before `start`

    @classmethod
    def start(cls):
        """Start the thread, and report errors that nothing catches to the other processes."""
        cls.over.clear()
        cls.thread = threading.Thread(target=cls._run, daemon=True)
        cls.thread.start()
        atexit.register(cls.stop)  # before JAX's own exit function, which removes the client
        cls.hook_before, sys.excepthook = sys.excepthook, cls._uncaught

    @classmethod
    def stop(cls):
        """End the thread, and put back what `start` changed."""
        cls.over.set()
        if cls.thread is not None:
            cls.thread.join()
        faulthandler.cancel_dump_traceback_later()
        if sys.excepthook == cls._uncaught:
            sys.excepthook = cls.hook_before

    @classmethod
    def _run(cls):
        client = distributed.global_state.client
        while not cls.over.wait(1):
            arm_dead_mans_switch()
            try:
                failed = client.key_value_dir_get(cls.KEY)
            except Exception:  # the coordinator is gone; JAX detects it too
                continue
            if failed:
                first = json.loads(failed[0][1])
                cls.status = first["status"]
                if first["host"] == distributed.global_state.process_id:
                    print(first["line"], file=sys.stderr, flush=True)
                with contextlib.suppress(Exception):  # do not wait for a process that hangs
                    client.wait_at_barrier("vlbert_jax/failed", 10_000)
                sys.stdout.flush()
                os._exit(cls.status)

    @staticmethod
    def _uncaught(kind: type, error: BaseException, trace):
        line = f"error on {_name()}: {kind.__name__}: {error}"
        if not OF_RUNTIME.search(line):
            traceback.print_exception(kind, error, trace)
        leave(1, line)


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _aborted(_):
    state, status = distributed.global_state, LOST
    if _Watch.status is not None:
        os._exit(_Watch.status)
    if _Watch.thread is None:
        line = f"no answer within {JOIN_SECONDS} s: not all of {state.num_processes} processes came to the coordinator"
        line += f" {state.coordinator_address}; is it the right address, can it be reached, are all started?"
    elif threading.get_ident() == threading.main_thread().ident:  # JAX watches the others from a separate thread
        line, status = "XLA or another library aborted it; the lines above say why", 128 + signal.SIGABRT
    else:
        line = "another process of this run died or cannot be reached, or XLA aborted here (see the lines above); "
        line += "the same command continues from the newest checkpoint"
    print(f"error: {_name()} stopped: {line}", file=sys.stderr, flush=True)
    os._exit(status)


def _end_clearly_when_aborted():
    """Install the handler of SIGABRT.

    JAX aborts the process, from a thread of C++, when another process is lost or does not come; it takes no
    callback. A signal handler of Python would only run in the main thread, which hangs in a collective, so
    this one is of C. It calls Python, which waits for the interpreter lock: `arm_dead_mans_switch` covers
    the case in which C code holds the lock.
    """
    ctypes.CDLL(None).signal(signal.SIGABRT, _aborted)


def arm_dead_mans_switch() -> None:
    """End the process with status 1 and a traceback unless this is called again within STUCK_SECONDS.

    The timer is a thread of C, which needs no Python: it also ends a process in which C code holds the
    interpreter lock, so that neither the watch nor the handler of SIGABRT can run.
    """
    faulthandler.dump_traceback_later(STUCK_SECONDS, exit=True, file=sys.__stderr__ or sys.stderr)


# --- Agreeing ---------------------------------------------------------------------------------------------

# Fields of the config that processes may set differently.
MAY_DIFFER = ("data.data_dir", "data.num_threads", "data.prefetch", "data.remember_records")


def facts(config: ml_collections.ConfigDict) -> dict[str, object]:
    """Return what must be equal in every process, for `agree`: name -> value. Files are read."""
    code = hashlib.sha256()
    for path in sorted(pathlib.Path(__file__).parent.parent.rglob("*.py")):
        code.update(path.name.encode() + path.read_bytes())
    found: dict[str, object] = {"the code of vlbert_jax": code.hexdigest()[:12]}
    for package in description.PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[f"the version of {package}"] = importlib.metadata.version(package)
    for name, value in flat_config(config.to_dict()).items():
        if name not in MAY_DIFFER:
            found[f"config.{name}"] = value
    paths = {f"init.{name}": path for name, path in config.init.items()}
    paths |= {f"data.{name}": path for name, path in data_paths(config).items()}
    for name, path in paths.items():
        if path and isinstance(path, str) and (mark := corpus_fingerprint(path)):
            found[f"what config.{name} names"] = mark
    return found


def agree(config: ml_collections.ConfigDict, workdir: pathlib.Path):
    """Check that the `facts` and the workdir of all processes are those of process 0.

    Args:
        config: Config of the run.
        workdir: Folder that exists in every process; for a moment process 0 has a file in it that the
            others must see. Copies of an address must be those of the same address.

    Raises:
        ValueError: They differ; every process raises it, with both values.
    """
    if _Watch.thread is None:
        return
    client, number, total = distributed.global_state.client, jax.process_index(), jax.process_count()
    mine = {name: json.dumps(value, default=str) for name, value in facts(config).items()}
    address = address_of(workdir)
    mine |= {"the workdir": address} if address else {}
    token = workdir / f".seen_by_all_{uuid.uuid4().hex}"
    if number == 0:
        token.touch()
        client.key_value_set("vlbert_jax/facts", json.dumps([token.name, mine]))
    try:
        seen, theirs = json.loads(_get("vlbert_jax/facts"))
        complaint = _difference(mine, theirs)
        if not complaint and not address and not _appears(workdir / seen):
            complaint = f"its workdir {workdir} is not that of process 0; all processes need the same folder"
        complaint = complaint and f"{_name()} differs from process 0: {complaint}"
        client.key_value_set(f"vlbert_jax/complaint/{number}", complaint)
        complaints = [text for i in range(total) if (text := _get(f"vlbert_jax/complaint/{i}"))]
    finally:
        token.unlink(missing_ok=True)
    if complaints:
        more = f" (and {len(complaints) - 1} more processes)" if len(complaints) > 1 else ""
        raise ValueError(complaints[0] + more)


def _difference(mine: Mapping[str, str], theirs: Mapping[str, str]) -> str:
    missing = "missing"
    differ = [name for name in {**theirs, **mine} if theirs.get(name, missing) != mine.get(name, missing)]
    texts = [f"{name} is {mine.get(name, missing)}, there {theirs.get(name, missing)}" for name in differ[:3]]
    return "; ".join(texts) + (f"; and {len(differ) - 3} more" if len(differ) > 3 else "")


def _appears(path: pathlib.Path) -> bool:
    for _ in range(FILE_SECONDS):
        if path.exists():
            return True
        time.sleep(1)
    return path.exists()


def _get(key: str) -> str:
    return distributed.global_state.client.blocking_key_value_get(key, WAIT_SECONDS * 1000)
