"""Several tasks in one run: the order of the updates, what they change, the scores, and models of single tasks."""

import functools
import itertools
import json
from collections import Counter

import jax
import ml_collections
import numpy as np
import pytest
from flax import nnx

from configs import multitask
from data_prep.build import build_scene_tasks
from data_prep.scene_kinds import build_scene_kinds
from tests.helpers.batch_case import fields_of
from vlbert_jax.batch import NUM_EXTRA_IDS
from vlbert_jax.data.tables import Split
from vlbert_jax.prediction.loading import load_trained
from vlbert_jax.prediction.predictor import Predictor
from vlbert_jax.tasks import get_task
from vlbert_jax.tasks.mixture.task import MixtureTask, _part
from vlbert_jax.tasks.schedule import counts_before, name_at, parts_of_steps
from vlbert_jax.training import compile_ahead, sharding
from vlbert_jax.training.evaluate import _in_order, evaluate, evaluate_run
from vlbert_jax.training.loop import train
from vlbert_jax.weights.initialize import load_into

MIXTURE = MixtureTask()
RATIOS = dict(questions=2.0, expressions=1.0)


def test_each_part_gets_its_share_of_any_updates():
    ratios = dict(a=3.0, b=1.0, c=0.5)
    numbers = parts_of_steps(ratios, 0, 3000)
    for first, count in ((0, 90), (1234, 90), (0, 3000)):
        found = np.bincount(parts_of_steps(ratios, first, count), minlength=3)
        np.testing.assert_allclose(found, count * np.array([3.0, 1.0, 0.5]) / 4.5, atol=3)
        np.testing.assert_array_equal(parts_of_steps(ratios, first, count), numbers[first : first + count])
    assert [name_at(ratios, step) for step in range(50)] == ["abc"[number] for number in numbers[:50]]
    assert counts_before(ratios, 777) == dict(zip("abc", np.bincount(numbers[:777]).tolist(), strict=True))
    assert counts_before(ratios, 0) == dict(a=0, b=0, c=0)
    assert (np.bincount(parts_of_steps(dict(a=1.0, b=1.0), 0, 100)) == 50).all()
    for wrong in (dict(a=1.0, b=0.0), dict(a=-1.0), {}, dict(a=float("nan"))):
        with pytest.raises(ValueError, match="it must have a positive number for each part"):
            parts_of_steps(wrong, 0, 1)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Return the demo with two tiny parts."""
    folder = tmp_path_factory.mktemp("data")
    build_scene_tasks(folder, num_train=10, num_val=4, num_test=2, tasks=("vqa", "refcoco"))
    build_scene_kinds(folder, num_train=8, num_val=8, num_test=8, tasks=())
    config = multitask.demo()
    del config.parts["captions"]
    config.ratios = dict(RATIOS)
    config.model.encoder.update(dict(num_layers=1, hidden_size=32, num_heads=2, mlp_size=32))
    config.model.region_head.update(dict(stem_width=4, widths=(4, 4, 4, 8)))
    config.batch_size, config.total_steps, config.warmup_steps, config.init.scratch = 8, 4, 0, True
    config.log_every_steps, config.report = 1, False
    config.compute_dtype = "float32"
    config.data.data_dir = str(folder)
    for part in config.parts.values():
        part.data.image_scale = (32, 48)
    return config


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    """Train four updates; return the workdir, the last state and the rows of metrics."""
    workdir = tmp_path_factory.mktemp("run")
    _, state = train(config, MIXTURE, workdir, sharding.make_mesh(config.mesh, jax.devices()[:1]))
    return workdir, state, [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_updates_train_the_parts_in_turn(config, run):
    names = [name_at(RATIOS, step) for step in range(config.total_steps)]
    assert set(names) == set(RATIOS)
    *rows, validation = run[2]
    for name, row in zip(names, rows, strict=True):
        losses = {key for key in row if key.endswith("_loss")}
        assert losses == {"questions_answer_loss" if name == "questions" else "expressions_region_loss"}
    assert {"questions_answer_accuracy", "expressions_grounding_accuracy"} <= set(validation)
    assert "expressions_answer_accuracy" not in validation
    assert int(run[1].step) == config.total_steps and bool(run[1].finite)


def test_batches_continue_where_a_run_stopped(config):
    whole = list(itertools.islice(MIXTURE.train_batches(config, 0, 0, 1), 5))
    later = list(itertools.islice(MIXTURE.train_batches(config, 3, 0, 1), 2))
    for step, (one, other) in enumerate(zip(whole[3:], later, strict=True), 3):
        assert one.targets.part == other.targets.part == name_at(RATIOS, step)
        jax.tree.map(np.testing.assert_array_equal, one, other)
    # The batches of a part are those of a run of this part alone.
    part = config.parts.expressions.copy_and_resolve_references()
    part.batch_size, part.seed = config.batch_size, config.seed
    part.data.update(dict(data_dir=config.data.data_dir, vocab=config.data.vocab))
    alone = get_task("region").train_batches(part, 0, 0, 1)
    for batch in (batch for batch in whole if batch.targets.part == "expressions"):
        own = batch.replace(targets=batch.targets.own)
        jax.tree.map(np.testing.assert_array_equal, fields_of(next(alone)), fields_of(own))


def test_a_part_leaves_the_head_of_the_other_alone(config):
    head, losses = ("heads", "region", "region_head", "classes", "kernel"), ("questions_answer",)
    assert MIXTURE.is_idle(head, config, losses) and not MIXTURE.is_idle(head, config, ("expressions_region",))
    assert not MIXTURE.is_idle(("vlbert", "token_embeddings"), config, losses)


def test_rows_of_several_tasks_are_put_in_order():
    first, last = (dict(a_x=np.array(x), index=np.array(index)) for x, index in (([1, 0], [1, 0]), ([9, 2], [-1, 2])))
    tables = [first, dict(b_y=np.array([[5], [6]]), index=np.array([1, -1])), {}, last]
    found = _in_order(tables)
    assert found["a_x"].tolist() == [0, 1, 2] and found["b_y"].tolist() == [[5]] and _in_order([{}, {}]) == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    "task, part", [("answer", "questions"), ("region", "expressions"), ("", "questions"), ("choice", "questions")]
)
def test_a_checkpoint_is_a_model_of_each_task(config, run, task, part):
    workdir, state, _ = run
    found, graphdef, one = load_trained(workdir, 9, task)
    assert found.task == config.parts[part].task and found.model.encoder.hidden_size == 32
    assert found.data.texts == config.parts[part].data.texts and found.data.vocab.endswith("vocabularies/vocab")
    flat = {tuple(map(str, path)): v[...] for path, v in nnx.to_flat_state(one)}
    whole = {tuple(map(str, path)): v[...] for path, v in nnx.to_flat_state(state.params)}
    own = {path: v for path, v in whole.items() if path[0] != "heads"}
    own |= {path[2:]: v for path, v in whole.items() if path[:2] == ("heads", found.task)}
    for path, value in own.items():
        read = config.model.encoder.vocab_size + NUM_EXTRA_IDS if path[-1] == "token_embeddings" else None
        np.testing.assert_array_equal(flat[path][:read], value[:read], err_msg="/".join(path))
    assert {path[0] for path in flat} >= {"answer_head" if found.task == "answer" else "region_head"}
    model = nnx.merge(graphdef, one)
    assert type(model).__name__ in ("AnswerModel", "RegionModel")
    predictor = Predictor(str(workdir), found, graphdef, one)
    other = dict(answer="ground", region="answer")[found.task]
    with pytest.raises(ValueError, match=f"has heads of several tasks.* for {other}, load it with task="):
        predictor.require(other)


@pytest.mark.slow
def test_a_task_starts_from_a_mixture_and_a_mixture_from_pretraining_heads(config, run):
    workdir, state, _ = run
    whole = {tuple(map(str, path)): np.asarray(v[...]) for path, v in nnx.to_flat_state(state.params)}
    single = load_trained(workdir, 9, "region")[0]
    model = nnx.eval_shape(lambda: get_task("region").build_model(single, nnx.Rngs(0)))
    zeros = jax.tree.map(lambda x: jax.numpy.zeros(x.shape, x.dtype), nnx.state(model, nnx.Param))
    encoder = config.model.encoder.to_dict()
    params, _, filled = load_into(zeros, nnx.State({}), encoder, "region", dict(checkpoint=str(workdir)))
    assert ("region_head", "classes", "kernel") in filled
    for path, value in nnx.to_flat_state(params):
        path = tuple(map(str, path))
        read = config.model.encoder.vocab_size + NUM_EXTRA_IDS if path[-1] == "token_embeddings" else None
        wanted = whole[path if path in whole else ("heads", "region", *path)]
        np.testing.assert_array_equal(value[...][:read], wanted[:read], err_msg="/".join(path))
    starts = MIXTURE.starts_from
    assert "heads.region.final_mlp.0." in starts["vlbert.mvrc_head.transform."]
    assert "heads.answer.final_mlp.0." in starts["vlbert.mlm_head.predictions.transform."]


def test_losses_and_counts_are_those_of_one_device(config):
    """An update of each part has the losses, metrics and counts of one device on eight."""
    config = config.copy_and_resolve_references()
    config.batch_size = 24
    graphdef, state = nnx.split(nnx.jit(lambda: MIXTURE.build_model(config, nnx.Rngs(0)))())
    batches = {}
    for batch in MIXTURE.train_batches(config, 0, 0, 1):
        batches.setdefault(batch.targets.part, batch)
        if len(batches) == 2:
            break

    def losses(state, batch):
        names = tuple(f"{batch.targets.part}_{loss}" for loss in ("answer", "region"))
        names = tuple(name for name in names if name in MIXTURE.loss_weights(config))
        sums, metrics = MIXTURE.loss_sums(nnx.merge(graphdef, state), batch, None, config, names)
        return MIXTURE.loss_counts(batch, config, names), sums, metrics

    def on(devices, batch):
        mesh = sharding.make_mesh(config.mesh, jax.devices()[:devices])
        with jax.set_mesh(mesh):
            return jax.device_get(jax.jit(losses)(state, sharding.global_batch(batch, mesh)))

    for batch in batches.values():
        counts, *alone = on(1, batch)
        again, *found = on(8, batch)
        assert again == counts and min(counts.values()) > 20
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), found, alone)  # order of the sums


@pytest.mark.parametrize("devices", [1, 2, 3, 8])
def test_evaluation_counts_each_example_of_each_part_once(config, devices):
    config = config.copy_and_resolve_references()
    config.batch_size = 48
    mesh = sharding.make_mesh(config.mesh, jax.devices()[:devices])

    @jax.jit
    def score(params, constants, batch):
        name, real = batch.targets.part, batch.index >= 0
        return {f"{name}_real": (real.sum(), jax.numpy.ones(()))}, {f"{name}/index": batch.index, "index": batch.index}

    values, rows = evaluate(score, {}, {}, MIXTURE, config, mesh, lambda: False)
    for name, part in config.parts.items():
        number = len(Split(_part(config, name)[1], part.data.eval_split))
        np.testing.assert_array_equal(rows[f"{name}/index"], np.arange(number))
        assert number % config.batch_size and values[f"{name}_real"] * -(-number // config.batch_size) == number


@pytest.mark.slow
def test_an_evaluation_writes_the_files_of_each_part(config, run):
    """They are those of the recipe of the part alone, which scores the same checkpoint."""
    workdir, mesh = run[0], sharding.make_mesh(config.mesh, jax.devices()[:1])
    scores = evaluate_run(config, MIXTURE, workdir, mesh)
    part = _part(config, "expressions")[1]
    part.init = ml_collections.ConfigDict(config.init.to_dict() | dict(scratch=False, checkpoint=str(workdir)))
    alone = workdir.parent / "alone"
    alone.mkdir()
    found = evaluate_run(part, get_task("region"), alone, mesh)
    assert scores["expressions_grounding_accuracy"] == found["grounding_accuracy"]
    files = {path.name: path.read_bytes() for path in (alone / "predictions").iterdir()}
    assert files == {path.name: path.read_bytes() for path in (workdir / "predictions/expressions").iterdir()}
    answers = json.loads((workdir / "predictions/questions/val.json").read_text())
    assert len(answers) == len(Split(_part(config, "questions")[1], "val")) and len(files) > 0


def test_memory_is_reported_for_all_parts(config, monkeypatch, capsys):
    kinds = MIXTURE.updates(config)
    assert {name: kind.number for name, kind in kinds.items()} == counts_before(RATIOS, config.total_steps)
    for name, kind in kinds.items():
        task, part = _part(config, name)
        assert kind.losses == tuple(f"{name}_{loss}" for loss in task.loss_weights(part))
        assert kind.batch.targets.part == name and kind.batch.token_ids.shape == task.batch_shapes(part).token_ids.shape
    made = dict(devices=1, kind="TPU v5 lite", mesh=dict(data=1, fsdp=1, tensor=1), collectives=Counter(), reduced=0)
    needs = dict(questions=12, expressions=20)

    def compile_step(config, task, devices, name):
        needed = needs[name] * compile_ahead.GIB
        return compile_ahead.Compiled(**made, memory=dict(state=needed), needed=needed, flops=1.0, executed_flops=1.0)

    monkeypatch.setattr(compile_ahead, "compile_step", compile_step)
    with pytest.raises(ValueError, match=r"20.0 GiB per device for updates of expressions. Smaller with"):
        compile_ahead.run(config, MIXTURE)
    needs["expressions"] = 11
    assert compile_ahead.run(config, MIXTURE) == 0
    lines = capsys.readouterr().out
    for name, kind in kinds.items():
        assert lines.count(f"updates of {name}: {kind.number} of 4\n") == 2
    assert "12.00 GiB per device, by updates of questions, which need the most" in lines


def test_parts_that_do_not_belong_together_are_reported(config):
    other = config.copy_and_resolve_references()
    with other.unlocked():
        other.parts["more"] = other.parts.questions.copy_and_resolve_references()
        other.parts.more.model.num_answers = 7
    message = "has shares for expressions, questions, but config.parts has expressions, more"
    with pytest.raises(ValueError, match=message):
        MIXTURE.loss_weights(other)
    alike = config.copy_and_resolve_references()
    with alike.unlocked():
        alike.parts["questions_hard"], alike.ratios["questions_hard"] = alike.parts.questions, 1.0
    with pytest.raises(ValueError, match="has questions and questions_hard, whose metrics would be mixed up"):
        MIXTURE.loss_weights(alike)
    with pytest.raises(ValueError, match="config.parts.questions and an earlier part are both for visual question"):
        nnx.eval_shape(lambda: MIXTURE.build_model(other, nnx.Rngs(0)))
