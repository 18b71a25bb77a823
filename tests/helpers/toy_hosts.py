"""Define the toy task for several processes, with numbered records as in the other tasks."""

import dataclasses
import json
import os
import pathlib
import signal

import numpy as np

from tests.helpers import toy_task
from vlbert_jax.batch import make_batch
from vlbert_jax.data.streams import in_order, iterate, per_host, shuffled
from vlbert_jax.tasks import Registered

TRAIN, VALIDATION = 640, 21  # numbers of records; two processes cannot share 21 records evenly


def record(number: int) -> dict:
    rng = np.random.default_rng(number)
    boxes, zero = rng.normal(size=(1, 4)).astype(np.float32), np.zeros((1, 1), np.int32)
    group, mask = np.int32(np.sin(boxes.sum()) > 0), rng.random((1, 1)) < 0.8
    ids = dict.fromkeys(("token_ids", "region_ids", "segment_ids", "position_ids"), zero)
    return dict(ids, element_mask=mask, boxes=boxes, group=group, index=np.int32(number))


class ToyHosts(toy_task.ToyTask):
    targets = toy_task.ToyTargets

    def train_batches(self, config, start_step, process_index, process_count):
        if os.environ.get("ABORT") == str(process_index):
            os.abort()

        def example(number, _):
            if folder := os.environ.get("SEEN"):
                with (pathlib.Path(folder) / f"seen_{process_index}").open("a") as file:
                    file.write(f"{number}\n")
            return record(number)

        size = per_host(config.batch_size, process_count)
        split = dict(batch_size=size, process_index=process_index, process_count=process_count)
        dataset = shuffled(range(TRAIN), config.seed, example, **split)
        for batch in iterate(dataset[start_step:], 0, 0):
            toy_task.time.sleep(config.step_delay)
            yield make_batch(batch, toy_task.ToyTargets)

    def eval_batches(self, config, process_index, process_count):
        def empty(example):
            return dict(example, element_mask=np.zeros((1, 1), bool), index=np.int32(-1))

        def batches(numbers):
            split = dict(batch_size=16 // process_count, process_index=process_index, process_count=process_count)
            for batch in iterate(in_order(numbers, record, empty, **split), 0, 0):
                yield make_batch(batch, toy_task.ToyTargets)

        def terminated():
            """Terminate one process, then yield empty batches until all processes have stopped."""
            if process_index == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            batch = next(batches(range(VALIDATION)))
            nothing = dataclasses.replace(batch, element_mask=batch.element_mask & False)
            for _ in range(600):
                toy_task.time.sleep(0.05)
                yield nothing
            yield from batches(range(VALIDATION))

        return {"val": terminated() if "SIGTERM_IN_EVALUATION" in os.environ else batches(range(VALIDATION))}

    def predict(self, model, batch, config):
        return {"logit": model(batch)}

    def conclude(self, directory, predictions, config):
        rows = predictions[""]
        path = directory / "val.json"
        with path.open("x") as file:  # fails if another process has written it
            json.dump([[int(i), float(x)] for i, x in zip(rows["index"], rows["logit"], strict=True)], file)
        return {}


REGISTERED = Registered(f"{__name__}:ToyHosts", "a toy", "--toy", "nothing")
