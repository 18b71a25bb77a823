"""Start several processes of one run of the toy task, and wait for their ends."""

import multiprocessing
import runpy
import socket

from tests.helpers import HANG_SECONDS, ROOT

RECIPE = "--config=tests/helpers/toy_task.py"
DEVICES = "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"

# Imports take longer than the runs, so processes are forked from one that has imported everything.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["tests.helpers.toy_process", "pytest"])


def free_address():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


def start(folder, count, *flags, own=((), ()), **environment):
    """Start `count` processes of one run with logs in `folder`.

    Process i has `flags` and the flags `own[i % 2]`.
    """
    processes, address = [], free_address()
    for number in range(count):
        place = [f"--coordinator={address}", f"--num_processes={count}", f"--process_id={number}"]
        arguments = ["main", RECIPE, *place, *flags, *own[number % 2]]
        log = folder / f"{address.rpartition(':')[2]}_{number}.log"
        log.touch()
        environment |= {"XLA_FLAGS": DEVICES, "SEEN": str(folder), "HEARTBEAT_SECONDS": "6"}
        forked = dict(FORKED=(arguments, str(log), environment))
        path = str(ROOT / "tests/helpers/toy_process.py")
        process = FORKS.Process(target=runpy.run_path, args=(path, forked, "__main__"))
        process.start()
        process.log = log
        processes.append(process)
    return processes


def end(processes):
    """Wait for the processes; return the exit status and the error lines of each."""
    for process in processes:
        process.join(HANG_SECONDS)
    lines = [[x for x in process.log.read_text().splitlines() if x.startswith("error")] for process in processes]
    statuses = [process.exitcode for process in processes]
    for process in processes:
        process.kill()  # the process may hang
        process.close()
    return statuses, lines
