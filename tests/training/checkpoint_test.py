"""Checkpoints are kept by score, refuse other configs and data, and survive a full disk."""

import asyncio
import errno
import json
import re
import shutil
import threading

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from tests.helpers import toy_task
from vlbert_jax.training import checkpoint, optimizer, sharding
from vlbert_jax.training.config import config_differences
from vlbert_jax.training.state import create_state
from vlbert_jax.weights.checksums import newest_intact
from vlbert_jax.weights.export import write_orbax
from vlbert_jax.weights.orbax import newest_step, read_checkpoint
from vlbert_jax.weights.stored_config import SCHEMA


def make_state(config, devices=8):
    """Return (abstract state, shardings, state) of the toy task."""
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:devices])
    tx = optimizer.make_optimizer(config.optimizer, optimizer.learning_rate_schedule(config))
    _, abstract, shardings, create = create_state(config, toy_task.toy, tx, mesh)
    return abstract, shardings, create()


@pytest.fixture(scope="module")
def state():
    return make_state(toy_task.make_config(**{"mesh.fsdp": 4}))[2]


def steps_in(workdir):
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def save(workdir, config, state, step=1, **scores):
    checkpoints = checkpoint.Checkpoints(workdir, config)
    checkpoints.save(step, state, {"window": {"loss": [0.1, 3.0]}}, scores or None)
    checkpoints.close()


def test_restores_onto_another_mesh(state, tmp_path):
    save(tmp_path, toy_task.make_config(), state)
    config = toy_task.make_config(**{"mesh.tensor": 2})
    abstract, shardings, _ = make_state(config, devices=2)
    checkpoints = checkpoint.Checkpoints(tmp_path, config)
    restored = checkpoints.restore(abstract, shardings)
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    assert jax.tree.map(lambda x: x.sharding, restored) == shardings
    assert checkpoints.meta()["window"] == {"loss": [0.1, 3.0]}
    checkpoints.close()


def test_what_a_run_adds_while_a_checkpoint_is_written_is_not_in_it(state, tmp_path, monkeypatch):
    """Orbax writes in another thread; the sums of the next updates are added to the same lists meanwhile."""
    write, changed = ocp.JsonCheckpointHandler._save_fn, threading.Event()

    async def late(*arguments):
        await asyncio.to_thread(changed.wait, 10)
        await write(*arguments)

    monkeypatch.setattr(ocp.JsonCheckpointHandler, "_save_fn", late)
    checkpoints, window = checkpoint.Checkpoints(tmp_path, toy_task.make_config()), {"loss": [0.1, 3.0]}
    checkpoints.save(1, state, {"window": window})
    window["loss"][0], window["other"] = 9.0, [1.0, 1.0]
    changed.set()
    checkpoints.close()
    assert json.loads((tmp_path / "checkpoints/1/meta/metadata").read_text())["window"] == {"loss": [0.1, 3.0]}


@pytest.mark.parametrize("metric, best", [("val_accuracy", 2), ("val_loss", 3)])
def test_keeps_the_newest_and_the_best(state, tmp_path, metric, best):
    config = toy_task.make_config(keep_checkpoints=2, best_metric=metric)
    checkpoints = checkpoint.Checkpoints(tmp_path, config)
    for step, value in enumerate([0.5, 0.9, 0.1, 0.6, None, None], 1):
        checkpoints.save(step, state, {}, None if value is None else {metric: value})
        checkpoints.save(step, state, {}, None if value is None else {metric: value})  # the second save is a no-op
    checkpoints.close()
    assert steps_in(tmp_path) == [best, 5, 6]


def test_the_best_checkpoint_is_kept_after_a_restart(state, tmp_path):
    """The best checkpoint is kept even if a later run ranks by another metric.

    A checkpoint without a score in that metric is never the best.
    """
    scored = dict(loss=0.1, hits=0.2), dict(loss=0.5), {}, dict(hits=0.1), {}
    runs = zip(("loss", "loss", "loss", "hits", "hits"), scored, strict=True)
    for step, (metric, scores) in enumerate(runs, 1):
        save(tmp_path, toy_task.make_config(keep_checkpoints=1, best_metric=metric), state, step, **scores)
        assert steps_in(tmp_path) == sorted({1, step})


def test_scores_without_the_metric_are_not_ranked(state, tmp_path, caplog):
    config = toy_task.make_config(keep_checkpoints=1, best_metric="loss")
    checkpoints = checkpoint.Checkpoints(tmp_path, config)
    given = [{"loss": 0.5}, {"accuracy": 1.0}, {"loss": float("nan")}, {"loss": 0.7}]
    for step, scores in enumerate(given, 1):
        checkpoints.save(step, state, {}, scores)
    checkpoints.close()
    assert steps_in(tmp_path) == [1, 4]
    assert caplog.text.count("best_metric 'loss' has no value") == 2


def test_another_config_is_refused_in_one_line(state, tmp_path):
    save(tmp_path, toy_task.make_config(), state)
    config = toy_task.make_config(learning_rate=0.5, seed=1, log_every_steps=7, **{"mesh.fsdp": 2})
    with pytest.raises(ValueError, match="these fields differ: learning_rate, seed. ") as error:
        checkpoint.Checkpoints(tmp_path, config)
    assert "\n" not in str(error.value)
    checkpoint.Checkpoints(tmp_path, config, read_only=True).close()  # evaluation may use another config
    changes = {f"optimizer.{name}": 0.5 for name in ("b1", "b2", "eps", "momentum", "weight_decay", "clip_norm")}
    config = toy_task.make_config(task="answer", learning_rate=0.5, seed=1, total_steps=99, **changes)
    with pytest.raises(ValueError, match=r"differ: task, (\S+, ){6}\S+ and 2 more\. Choose another --workdir"):
        checkpoint.Checkpoints(tmp_path, config)


def edit_meta(workdir, change):
    """Apply `change` to the metadata of all checkpoints to imitate an earlier version."""
    for file in (workdir / "checkpoints").glob("*/meta/metadata"):
        meta = json.loads(file.read_text())
        change(meta)
        file.write_text(json.dumps(meta))
        (file.parent.parent / "checksums.json").unlink(missing_ok=True)


def test_a_stored_config_may_lack_fields(state, tmp_path, caplog):
    """A missing field in the table has its old default; any other one has the value of the run."""
    caplog.set_level("INFO", "vlbert_jax")
    config = toy_task.make_config(**{"opening.steps": 0})
    save(tmp_path, config, state)

    def change(meta):
        assert meta.pop("schema") == SCHEMA
        for block, name in ((meta["config"], "matmul_precision"), (meta["config"]["opening"], "steps")):
            del block[name]

    edit_meta(tmp_path, change)
    for read_only in (False, True):
        checkpoint.Checkpoints(tmp_path, config, read_only).close()
    assert f"{tmp_path}: the stored config lacks these fields; they mean matmul_precision='default'" in caplog.text
    assert "the values of this run count: opening.steps=0" in caplog.text
    with pytest.raises(ValueError, match="these fields differ: matmul_precision. "):
        checkpoint.Checkpoints(tmp_path, toy_task.make_config(matmul_precision="highest"))


def test_other_data_are_refused_unless_allowed(state, tmp_path, caplog):
    """Data are compared by content, not by path; other package versions only cause a warning."""
    for folder in ("data", "moved"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "vocab.txt").write_text("a\nb\n")

    def config(folder="data", **fields):
        return toy_task.make_config(**{"data.data_dir": str(tmp_path / folder), "data.vocab": "vocab.txt"} | fields)

    save(tmp_path / "run", config(), state)
    checkpoint.Checkpoints(tmp_path / "run", config("moved")).close()
    assert "grain" not in caplog.text and "data" not in caplog.text
    (tmp_path / "moved" / "vocab.txt").write_text("a\nc\n")
    with pytest.raises(ValueError, match=r"what config.data.vocab names has changed .* --config.allow_other_data=True"):
        checkpoint.Checkpoints(tmp_path / "run", config("moved"))
    checkpoint.Checkpoints(tmp_path / "run", config("moved"), read_only=True).close()  # evaluation may use other data
    checkpoint.Checkpoints(tmp_path / "run", config("moved", allow_other_data=True)).close()
    assert caplog.text.count("config.data.vocab names has changed") == 1

    edit_meta(tmp_path / "run", lambda meta: meta["provenance"]["versions"].update(grain="0.0.1"))
    checkpoint.Checkpoints(tmp_path / "run", config()).close()
    assert "the run was started with 0.0.1" in caplog.text
    edit_meta(tmp_path / "run", lambda meta: meta.pop("provenance"))  # an earlier version stored none
    checkpoint.Checkpoints(tmp_path / "run", config("moved")).close()


def test_features_of_another_detector_are_not_evaluated(state, tmp_path):
    save(tmp_path, toy_task.make_config(**{"data.extractor": "one"}), state)
    for extractor in ("", "one"):  # "" means unknown
        config = toy_task.make_config(**{"data.extractor": extractor})
        checkpoint.Checkpoints(tmp_path, config, read_only=True).close()
    with pytest.raises(ValueError, match="these fields differ: data.extractor. "):
        checkpoint.Checkpoints(tmp_path, toy_task.make_config(**{"data.extractor": "two"}), read_only=True)


@pytest.mark.parametrize(
    "name, value, allowed",
    [
        ("mesh.fsdp", 2, True),
        ("data.num_threads", 9, True),
        ("checkpoint_every_steps", 1, True),
        ("grad_accumulation_steps", 2, True),
        ("total_steps", 99, False),  # the slope of the triangle schedule depends on it
        ("batch_size", 8, False),
        ("optimizer.b1", 0.5, False),
        ("data.embedded", "scenes", ""),
        ("prng_impl", "threefry2x32", False),
    ],
)
def test_fields_that_may_change(name, value, allowed):
    old, new = toy_task.make_config(), toy_task.make_config(**{name: value})
    old = json.loads(json.dumps(old.to_dict()))  # JSON has no tuples
    assert config_differences(old, new.to_dict()) == ([] if allowed else [name])


def test_total_steps_may_change_with_a_constant_schedule():
    old, new = (toy_task.make_config(total_steps=n, **{"optimizer.schedule": "constant"}) for n in (10, 20))
    assert config_differences(old.to_dict(), new.to_dict()) == []


def test_fields_that_one_config_lacks_differ():
    old, new = toy_task.make_config().to_dict(), toy_task.make_config().to_dict()
    old["optimizer"]["nesterov"] = False
    assert config_differences(old, new) == ["optimizer.nesterov"]


def test_tuples_equal_lists_read_from_json():
    old = {"a": {"b": [1, 2]}}
    assert config_differences(old, {"a": {"b": (1, 2)}}) == []
    assert config_differences(old, {"a": {"b": (1, 3)}}) == ["a.b"]


ARRAY_STORE_FULL = ValueError(
    'RESOURCE_EXHAUSTED: Error writing "params/0.0" in OCDBT database at local file "d/": '
    "Failed to write 33819 bytes to file 4: No space left on device [os_error_code='28']"
)


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "full"), ARRAY_STORE_FULL], ids=["os", "array_store"]
)
@pytest.mark.parametrize("where", ["save", "wait_until_finished"])
def test_a_full_disk_is_reported_in_one_line(state, tmp_path, monkeypatch, error, where):
    """Both errors of a full disk are reported, at once or from the writer thread.

    Earlier checkpoints stay intact.
    """
    config = toy_task.make_config()
    save(tmp_path, config, state)
    checkpoints = checkpoint.Checkpoints(tmp_path, config)

    def full(*args, **kwargs):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(ocp.CheckpointManager, where, full)
        with pytest.raises(OSError, match="^no space left on device while saving to .* are intact") as caught:
            checkpoints.save(2, state, {})
            checkpoints.close()
    assert "\n" not in str(caught.value)
    checkpoints.close()
    abstract, shardings, _ = make_state(config)
    again = checkpoint.Checkpoints(tmp_path, config)
    jax.tree.map(np.testing.assert_array_equal, again.restore(abstract, shardings), state)
    again.close()


def changed(content: bytes) -> bytes:
    """Return the content of a file with one changed bit."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]


CUT = r"has changed since it was saved \([\d,]+ bytes instead of [\d,]+\)"
DAMAGE = {
    "has changed since it was saved": lambda path: path.write_bytes(changed(path.read_bytes())),
    CUT: lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "is missing": lambda path: path.unlink(),
}


@pytest.fixture(scope="module")
def three_steps(state, tmp_path_factory):
    """Return a workdir with the checkpoints 1, 2 and 3."""
    workdir = tmp_path_factory.mktemp("three_steps")
    for step in (1, 2, 3):
        save(workdir, toy_task.make_config(), state, step, loss=1.0 / step)
    return workdir


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_not_used_but_the_one_before(three_steps, tmp_path, caplog, damage):
    """Every file counts: those of the arrays, of their metadata and of the run."""
    config, number = toy_task.make_config(best_metric="loss"), 0
    files = [path for part in ("state", "meta") for path in three_steps.rglob(f"3/{part}/**/*") if path.is_file()]
    for name in [path.relative_to(three_steps) for path in files]:
        workdir, number = tmp_path / str(number), number + 1
        shutil.copytree(three_steps, workdir)
        DAMAGE[damage](workdir / name)
        caplog.clear()
        assert newest_intact(workdir / "checkpoints", "") == workdir / "checkpoints/2"
        (line,) = caplog.messages
        assert re.fullmatch(f"checkpoint 3 is damaged and not used: {workdir / name} {damage}", line)
    assert number > 8
    assert checkpoint.Checkpoints(workdir, config, read_only=True).newest == 2 and steps_in(workdir) == [1, 2, 3]


def test_a_run_continues_before_a_damaged_checkpoint(three_steps, state, tmp_path, caplog):
    workdir, config = tmp_path / "run", toy_task.make_config(keep_checkpoints=2)
    shutil.copytree(three_steps, workdir)
    shutil.rmtree(workdir / "checkpoints/2/state")
    next(workdir.glob("checkpoints/3/state/d/*")).unlink()
    weights = read_checkpoint(workdir)
    np.testing.assert_array_equal(weights["params"]["first"], state.params.first)
    with pytest.raises(ValueError, match=r"checkpoints/3 is damaged: .*/state/d/\w+ is missing; train or convert"):
        read_checkpoint(workdir / "checkpoints/3")
    caplog.clear()
    checkpoints = checkpoint.Checkpoints(workdir, config)
    assert checkpoints.newest == 1 and steps_in(workdir) == [1]
    assert sorted(path.name for path in (workdir / "damaged_checkpoints").iterdir()) == ["2", "3"]
    assert "3 was moved to " in caplog.text and "the run continues from step 1" in caplog.text
    abstract, shardings, _ = make_state(config)
    jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(abstract, shardings), state)
    checkpoints.save(3, state, {})
    checkpoints.close()
    assert steps_in(workdir) == [1, 3] and checkpoint.Checkpoints(workdir, config, read_only=True).newest == 3
    for path in workdir.glob("checkpoints/*/checksums.json"):
        path.write_text("{")
    for read_only in (True, False):
        with pytest.raises(ValueError, match="all checkpoints in .* are damaged; .*1/checksums.json .*; remove this f"):
            checkpoint.Checkpoints(workdir, config, read_only)
    assert steps_in(workdir) == [1, 3]


def test_a_damaged_converted_folder_is_refused(tmp_path):
    write_orbax(tmp_path / "model", dict(a=np.arange(1000.0)), dict(b=np.ones(3)), {})
    np.testing.assert_array_equal(read_checkpoint(tmp_path / "model")["params"]["a"], np.arange(1000))
    path = next((tmp_path / "model/state").glob("ocdbt.process_0/d/*"))
    path.write_bytes(changed(path.read_bytes()))
    with pytest.raises(ValueError, match=f"^{tmp_path}/model is damaged: {path} has changed .*; .* convert again"):
        read_checkpoint(tmp_path / "model")


def test_checkpoints_without_checksums_are_used(three_steps, state, tmp_path):
    shutil.copytree(three_steps, tmp_path / "run")
    for path in tmp_path.rglob("checksums.json"):
        path.unlink()
    assert checkpoint.Checkpoints(tmp_path / "run", toy_task.make_config()).newest == 3
    shutil.rmtree(tmp_path / "run/checkpoints/3/state")
    assert checkpoint.Checkpoints(tmp_path / "run", toy_task.make_config()).newest == 2


def test_other_errors_pass_through(state, tmp_path, monkeypatch):
    checkpoints = checkpoint.Checkpoints(tmp_path, toy_task.make_config())

    def fail(*args, **kwargs):
        raise ValueError("something else")

    with monkeypatch.context() as patch:
        patch.setattr(ocp.CheckpointManager, "save", fail)
        with pytest.raises(ValueError, match="^something else$"):
            checkpoints.save(2, state, {})
    checkpoints.close()


def test_leftovers_of_a_killed_save_are_removed(state, tmp_path):
    save(tmp_path, toy_task.make_config(), state)
    leftover = tmp_path / "checkpoints" / "7.orbax-checkpoint-tmp"
    shutil.copytree(tmp_path / "checkpoints" / "1", leftover)
    assert newest_step(tmp_path) == 1
    checkpoint.Checkpoints(tmp_path, toy_task.make_config(), read_only=True).close()
    assert leftover.exists()  # a run in progress may still be writing it
    save(tmp_path, toy_task.make_config(), state, step=2)
    assert steps_in(tmp_path) == [1, 2]


def test_read_weights(state, tmp_path, caplog):
    """Weights of a workdir or one of its steps are numpy arrays, without the optimizer state."""
    for step in (1, 9, 10):
        save(tmp_path, toy_task.make_config(), state, step=step)
    assert newest_step(tmp_path) == 10
    caplog.clear()
    for path in (tmp_path, tmp_path / "checkpoints" / "9"):
        weights = read_checkpoint(path)
        assert {name: set(tree) for name, tree in weights.items()} == {
            "params": {"first", "last"}, "constants": {"frozen"},
        }  # fmt: skip
        assert type(weights["params"]["first"]) is np.ndarray
        np.testing.assert_array_equal(weights["params"]["first"], state.params.first)
    assert not [entry for entry in caplog.records if entry.levelname == "WARNING"]
    with pytest.raises(FileNotFoundError, match="no checkpoint at .*nowhere"):
        read_checkpoint(tmp_path / "nowhere")
