"""`python tests/toy_process.py FLAGS`: the command line with the task of toy_hosts, and with time-outs of seconds."""

import atexit
import os
import sys

sys.modules.setdefault("torch", None)  # TensorBoard's writer would import it, which takes seconds

import toy_hosts  # noqa: E402

from vlbert_jax import hosts, main, tasks  # noqa: E402

ARGUMENTS, LOG, ENVIRONMENT = sys.argv, "", {}  # others where a test forks this process

if __name__ == "__main__":
    ARGUMENTS, LOG, ENVIRONMENT = globals().get("FORKED", (ARGUMENTS, LOG, ENVIRONMENT))
    os.environ.update(ENVIRONMENT)
    if LOG:
        for stream in (1, 2):
            os.dup2(os.open(LOG, os.O_CREAT | os.O_WRONLY | os.O_APPEND), stream)
    hosts.JOIN_SECONDS, hosts.HEARTBEAT_SECONDS = int(os.environ.get("JOIN_SECONDS", 60)), 4
    hosts.FILE_SECONDS = 1
    tasks.TASKS["toy"] = toy_hosts.task
    status = main.main(ARGUMENTS)
    atexit._run_exitfuncs()  # a fork of multiprocessing would leave JAX's out
    sys.stdout.flush()
    os._exit(status)
