"""Run the command line with the toy task: `python -m tests.helpers.toy_process FLAGS`.

Environment variables set the time limits.
"""

import atexit
import os
import sys

sys.modules.setdefault("torch", None)  # without this, TensorBoard's writer imports torch, which takes seconds

from tests.helpers import toy_hosts  # noqa: E402
from vlbert_jax import main, tasks  # noqa: E402
from vlbert_jax.storage import workdir  # noqa: E402
from vlbert_jax.training import hosts  # noqa: E402

ARGUMENTS, LOG, ENVIRONMENT = sys.argv, "", {}  # a test that forks this process replaces them

if __name__ == "__main__":
    ARGUMENTS, LOG, ENVIRONMENT = globals().get("FORKED", (ARGUMENTS, LOG, ENVIRONMENT))
    os.environ.update(ENVIRONMENT)
    if LOG:
        for stream in (1, 2):
            os.dup2(os.open(LOG, os.O_CREAT | os.O_WRONLY | os.O_APPEND), stream)
    for name in ("JOIN_SECONDS", "HEARTBEAT_SECONDS"):
        setattr(hosts, name, int(os.environ.get(name, getattr(hosts, name))))
    hosts.FILE_SECONDS = 1
    workdir.INTERVAL = float(os.environ.get("STORE_SECONDS", workdir.INTERVAL))
    tasks.TASKS["toy"] = toy_hosts.REGISTERED
    try:
        status = main.main(ARGUMENTS)
    except BaseException:  # multiprocessing prints the exception without an exit status
        sys.excepthook(*sys.exc_info())
        status = 1
    atexit._run_exitfuncs()  # a fork of multiprocessing skips JAX's exit functions
    sys.stdout.flush()
    os._exit(status)
