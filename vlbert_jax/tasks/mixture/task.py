"""Several tasks in one run, in turn: one trunk, and a head for each kind of task (12-in-1's idea).

The parts of a run are configs of other tasks (`config.parts`), and each update trains one of them: `config.ratios` are
their shares. Parts of one kind share its head. Every part is evaluated on its split; its losses and metrics begin with
its name. The fields of the run replace those of its parts: all at the top level, those of `config.model`, and the
vocabulary and folder of the data (`tasks.part_config`).
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import ml_collections
from flax import nnx
from jax.tree_util import GetAttrKey
from jaxtyping import Array, Float

from vlbert_jax.batch import Arrays, Batch, padding
from vlbert_jax.model.config import model_options
from vlbert_jax.model.structure import structure_of
from vlbert_jax.model.visual_linguistic import VisualLinguisticModel
from vlbert_jax.tasks import TASKS, get_task, part_config
from vlbert_jax.tasks.base import Task, Updates
from vlbert_jax.tasks.schedule import counts_before, name_at, parts_of_steps

Config = ml_collections.ConfigDict
HEADS = "heads"  # the parameters of the heads are HEADS/TASK/...


@dataclasses.dataclass(frozen=True, eq=False)
class PartTargets(Arrays):
    """The targets of a part, and its name, which is static in a compiled program."""

    own: Any = padding(None)  # the part's task makes its padding
    part: str = padding("")

    def _flatten(self):
        return [(GetAttrKey("own"), self.own)], self.part

    @classmethod
    def _unflatten(cls, part, leaves):
        targets = object.__new__(cls)
        targets.__dict__.update(own=leaves[0], part=part)
        return targets


class KindHeads(nnx.Module):
    """What a model of one task has besides the trunk."""

    def __init__(self, model: VisualLinguisticModel, trunk: VisualLinguisticModel):
        shared = vars(trunk)
        for name, value in vars(model).items():
            is_own = name not in shared or not (isinstance(value, nnx.Module) or value == shared[name])
            if is_own and not name.startswith("_"):
                setattr(self, name, value)


class MixtureModel(VisualLinguisticModel):
    """The trunk and the heads of several tasks."""

    def __init__(self, encoder, region_head, models: Mapping[str, VisualLinguisticModel], rngs: nnx.Rngs):
        super().__init__(encoder, region_head, rngs)
        self.heads = nnx.Dict({task: KindHeads(model, self) for task, model in models.items()})
        self.classes = tuple((task, type(model)) for task, model in sorted(models.items()))

    def of_task(self, task: str) -> Any:
        """Return a model of one task that has the same variables."""
        view = object.__new__(dict(self.classes)[task])
        own = {name: value for name, value in vars(self.heads[task]).items() if not name.startswith("_")}
        vars(view).update(vars(self) | own)
        return view


class MixtureTask(Task):
    """Several tasks in turn."""

    name = "mixture"
    targets = PartTargets

    # --- Parts ----------------------------------------------------------------------------------------

    def build_model(self, config, rngs: nnx.Rngs) -> MixtureModel:
        """Return the model; raise ValueError without parts, or where parts of one task need different heads."""
        if "parts" not in config:
            raise ValueError(
                "a model for several tasks at once (mixture) is trained from a config with parts, not converted; give "
                "one of the other tasks with --task"
            )
        models, shapes = {}, {}
        for name in sorted(config.parts):
            task, part = _part(config, name)
            heads = structure_of(functools.partial(task.build_model, part))
            found = {path: v.shape for path, v in nnx.to_flat_state(nnx.state(heads))}
            if shapes.setdefault(task.name, found) != found:
                raise ValueError(
                    f"config.parts.{name} and an earlier part are both for {TASKS[task.name].title}, but their heads "
                    "differ in size; parts of one task share its head"
                )
            if task.name not in models:
                models[task.name] = task.build_model(part, rngs)
        return MixtureModel(*model_options(config), models, rngs)

    def initialize_heads(self, model: MixtureModel, config, loaded: set[tuple]) -> None:
        """Initialize the heads of each task as in a run of that task alone."""
        for name in sorted(config.parts):
            task, part = _part(config, name)
            prefix = (HEADS, task.name)
            own = {path[2:] for path in loaded if path[:2] == prefix}
            task.initialize_heads(model.of_task(task.name), part, own | {path for path in loaded if path[0] != HEADS})

    # --- Training -------------------------------------------------------------------------------------

    def train_batches(
        self, config, start_step: int, process_index: int, process_count: int
    ) -> Iterator[Batch]:
        """Iterate without end over this process's part of the global batches, each of one part of the run."""
        before = counts_before(_shares(config), start_step)
        streams = {}
        for name in sorted(config.parts):
            task, part = _part(config, name)
            streams[name] = task.train_batches(part, before[name], process_index, process_count)
        while True:
            for number in parts_of_steps(_shares(config), start_step, 1024):
                name = sorted(config.ratios)[number]
                yield _marked(next(streams[name]), name)
            start_step += 1024

    def eval_batches(self, config, process_index: int, process_count: int) -> dict[str, Iterator[Batch]]:
        """Return this process's part of the evaluation split of every part."""
        found = {}
        for name in sorted(config.parts):
            task, part = _part(config, name)
            for subset, batches in task.eval_batches(part, process_index, process_count).items():
                found[f"{name}_{subset}"] = map(functools.partial(_marked, name=name), batches)
        return found

    def batch_shapes(self, config) -> Batch:
        """Return the global batch of the first update as shapes alone."""
        name = name_at(_shares(config), 0)
        task, part = _part(config, name)
        return _marked(task.batch_shapes(part), name)

    def updates(self, config) -> dict[str, Updates]:
        """Return the largest updates of each part."""
        numbers, found = counts_before(_shares(config), config.total_steps), {}
        for name in sorted(config.parts):
            task, part = _part(config, name)
            losses = task.active_losses(part, max(numbers[name] - 1, 0))
            batch = _marked(task.batch_shapes(part), name)
            found[name] = Updates(batch, tuple(f"{name}_{loss}" for loss in losses), numbers[name])
        return found

    def alternates(self, config) -> bool:
        """Return True: the parts have different losses."""
        return True

    def loss_weights(self, config) -> dict[str, float]:
        """Return the weight of each loss of each part."""
        _check_parts(config)
        found = {}
        for name in sorted(config.parts):
            task, part = _part(config, name)
            found |= {f"{name}_{loss}": weight for loss, weight in task.loss_weights(part).items()}
        return found

    def active_losses(self, config, step: int) -> tuple[str, ...]:
        """Return the losses of the part that update `step` trains."""
        name = name_at(_shares(config), step)
        task, part = _part(config, name)
        return tuple(f"{name}_{loss}" for loss in task.active_losses(part, counts_before(_shares(config), step)[name]))

    def loss_counts(self, batch: Batch, config, names: tuple[str, ...]) -> dict[str, Float[Array, ""]]:
        """Return what the losses of the batch's part are divided by."""
        name, task, part, own = _of_batch(batch, config)
        losses = tuple(loss.removeprefix(f"{name}_") for loss in names)
        return _named(name, task.loss_counts(own, part, losses))

    def loss_sums(self, model: MixtureModel, batch: Batch, key, config, names: tuple[str, ...]):
        """Return the summed losses and the training metrics of the batch's part."""
        name, task, part, own = _of_batch(batch, config)
        losses = tuple(loss.removeprefix(f"{name}_") for loss in names)
        sums, metrics = task.loss_sums(model.of_task(task.name), own, key, part, losses)
        return _named(name, sums), _named(name, metrics)

    def score(self, model: MixtureModel, batch: Batch, config) -> dict[str, tuple[Array, Array]]:
        """Return the metrics of an evaluation batch of a part."""
        name, task, part, own = _of_batch(batch, config)
        return _named(name, task.score(model.of_task(task.name), own, part))

    def predict(self, model: MixtureModel, batch: Batch, config) -> dict[str, Array]:
        """Return the predictions of the batch's part, each with the name of the part before it."""
        name, task, part, own = _of_batch(batch, config)
        return _rows(name, task.predict(model.of_task(task.name), own, part), own)

    def joint_rows(self, model: MixtureModel, batch: Batch, config) -> dict[str, Array]:
        """Return the predictions that `joint_scores` needs of the batch's part; none for most tasks."""
        name, task, part, own = _of_batch(batch, config)
        return _rows(name, task.joint_rows(model.of_task(task.name), own, part), own)

    def conclude(self, directory: Path, predictions: dict, config) -> dict[str, float]:
        """Write the files of each part to a folder of its name, as a run of this part alone does to `directory`."""
        found = {}
        for name in sorted(config.parts):
            task, part = _part(config, name)
            if rows := _rows_of(name, predictions[""]):
                (directory / name).mkdir(exist_ok=True)
                found |= _named(name, task.conclude(directory / name, {"": rows}, part))
        return found

    def joint_scores(self, rows: dict, config) -> dict[str, float]:
        """Return the scores of the parts that need all examples of their split at once."""
        found = {}
        for name in sorted(config.parts):
            task, part = _part(config, name)
            if own := _rows_of(name, rows):
                found |= _named(name, task.joint_scores(own, part))
        return found

    def is_idle(self, path: tuple, config, names: tuple[str, ...]) -> bool:
        """Return whether a parameter belongs to the head of another task than that of the losses."""
        name = next(name for name in config.parts if names[0].startswith(f"{name}_"))
        return path[0] == HEADS and path[1] != config.parts[name].task

    def report_title(self, config) -> str:
        """Return the heading of the report."""
        return f"VL-BERT on {len(config.parts)} tasks: {', '.join(sorted(config.parts))}"

    # --- Weights --------------------------------------------------------------------------------------

    @property
    def official_names(self) -> Mapping[str, str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Return the names of the heads of all tasks, each with the name of its task before it."""
        return {
            f"{HEADS}/{task.name}/{module}": f"{HEADS}.{task.name}.{official}"
            for task in map(get_task, TASKS) if task is not self
            for module, official in task.official_names.items()
        }  # fmt: skip

    @property
    def starts_from(self) -> Mapping[str, str | tuple[str, ...]]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Return the heads of all tasks that start from one of pre-training."""
        found: dict[str, tuple[str, ...]] = {}
        for task in map(get_task, TASKS):
            for old, new in ({} if task is self else task.starts_from).items():
                found[old] = (*found.get(old, ()), f"{HEADS}.{task.name}.{new}")
        return found

    official_heads: ClassVar[tuple[str, ...]] = (f"{HEADS}.",)

    def owns(self, names: set[str]) -> bool:
        """Return whether these are weights with the heads of a mixture."""
        return any(name.startswith(f"{HEADS}.") for name in names)


def _shares(config) -> dict[str, float]:
    return dict(config.ratios.items())


def _check_parts(config) -> None:
    """Raise ValueError where shares and parts do not belong together."""
    parts_of_steps(_shares(config), 0, 1)
    if set(config.ratios) != set(config.parts):
        raise ValueError(
            f"config.ratios has shares for {', '.join(sorted(config.ratios))}, but config.parts has "
            f"{', '.join(sorted(config.parts))}; give each part a share"
        )
    for name, part in config.parts.items():
        if longer := [other for other in config.parts if other.startswith(f"{name}_")]:
            raise ValueError(f"config.parts has {name} and {longer[0]}, whose metrics would be mixed up: rename one")
        if part.get("companion", ""):
            raise ValueError(
                f"config.parts.{name}.companion is {part.companion!r}; another run is scored together with a run of "
                "one task only: leave it empty, and evaluate the checkpoint with the recipe of this task"
            )


def _part(config, name: str) -> tuple[Task, Config]:
    """Return the task of a part and its config, with the fields of the run."""
    part = ml_collections.ConfigDict(part_config(config.to_dict(), name))
    return get_task(part.task), part


def _rows(name: str, rows: Mapping[str, Any], batch: Batch) -> dict[str, Any]:
    """Return predictions of a part and their index, by NAME/FIELD; none where the part has none."""
    return {f"{name}/{key}": value for key, value in (rows and {**rows, "index": batch.index}).items()}


def _rows_of(name: str, rows: Mapping[str, Any]) -> dict[str, Any]:
    """Return the predictions of a part among those of all."""
    return {key.removeprefix(f"{name}/"): value for key, value in rows.items() if key.startswith(f"{name}/")}


def _marked(batch: Batch, name: str) -> Batch:
    """Return a batch of a part, of arrays or of shapes alone, with the name of the part."""
    names, (fields, static) = Batch.names(), batch._flatten()
    values = dict(zip(names, (value for _, value in fields), strict=True))
    return Batch._unflatten(static, [*(values | dict(targets=PartTargets(batch.targets, name))).values()])


def _of_batch(batch: Batch, config) -> tuple[str, Task, Config, Batch]:
    """Return the name, the task and the config of the part of a batch, and the batch as the task knows it."""
    name = batch.targets.part
    return name, *_part(config, name), batch.replace(targets=batch.targets.own)


def _named(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{name}_{key}": value for key, value in values.items()}
