"""The heads of published siblings that score regions and pairs, in the models of the tasks: recorded outputs, names.

Tolerance: 1e-4 absolute, as for the trunk.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs import refcoco, retrieval, vcr
from tests.helpers.golden_case import Case, close
from tests.helpers.golden_folders import golden_folders
from tests.helpers.one_stream_case import encoder_of, joined, load_case, pack_case, positions_of_regions, region_head_of
from tests.helpers.siblings_case import small_tensors
from tests.helpers.tiny_recipes import shrink
from tests.helpers.two_stream_case import TwoStreamCase, load, text_and_regions, two_stream_fixtures
from vlbert_jax.batch import make_batch
from vlbert_jax.model.architectures import get_architecture
from vlbert_jax.model.config import RegionHeadConfig
from vlbert_jax.tasks import get_task, task_of_names, tasks_of_family
from vlbert_jax.tasks.choice.model import ChoiceModel, choice_losses
from vlbert_jax.tasks.match.model import MatchModel, match_losses
from vlbert_jax.tasks.region.model import RegionModel
from vlbert_jax.weights import family_names
from vlbert_jax.weights.family_names import to_bert_names

REGION, MATCH, CHOICE = get_task("region"), get_task("match"), get_task("choice")
FIELDS = {REGION: "grounding_head", MATCH: "matching_head", CHOICE: "choice_head"}
ONE_STREAM = [
    path
    for folder in golden_folders("one_stream")
    for path in sorted(folder.glob("*.json"))
    if path.name.startswith(("uniter_refcoco_", "uniter_retrieval_", "oscar_retrieval_"))
]
CHOICES = [
    path
    for folder in golden_folders("one_stream")
    for path in sorted(folder.glob("*.json"))
    if path.name.startswith(("uniter_vcr_", "visualbert_vcr_", "visualbert_original_multichoice_", "b2t2_"))
]
TWO_STREAMS = [path for path in two_stream_fixtures() if "_tasks_" in path.name]


def kind_of(task, architecture, tensors) -> str:
    """Return the kind of head that the task reads from tensors."""
    shapes = {name: array.shape for name, array in tensors.items()}
    assert task.owns_family(architecture, shapes)
    fields = task.config_from_family(architecture, shapes)
    return fields[f"model.{FIELDS[task]}"]


@pytest.mark.parametrize("path", ONE_STREAM, ids=lambda path: path.stem)
def test_one_stream(path):
    case = Case(path)
    packed = pack_case(case)
    task = REGION if "refcoco" in path.stem else MATCH
    encoder, region_head = encoder_of(case), region_head_of(case, packed.feature_size)
    tensors = to_bert_names(case.sd, encoder.architecture)
    kind = kind_of(task, encoder.architecture.name, tensors)
    if task is REGION:
        assert kind == ("linear" if "mlp1" in path.stem else "norm")
        model, _ = load_case(lambda: RegionModel(encoder, region_head, nnx.Rngs(0), kind), case)
        positions, real = (x[:, 0] for x in positions_of_regions(packed))
        scores = lambda model, batch: model.region_logits(model.states(batch), positions)  # noqa: E731
    else:
        uniter = kind == "score"
        assert uniter or kind == "hidden"
        packed = joined(packed, case.meta["scalars"]["in/sample_size"]) if uniter else packed
        hidden = 0 if uniter else len(tensors["classifier.0.bias"])
        model, _ = load_case(lambda: MatchModel(encoder, region_head, 2, nnx.Rngs(0), kind, hidden), case)
        real = np.ones(packed.fields["token_ids"].shape[:2], bool)
        scores = lambda model, batch: model.pair_scores(model.states(batch), batch.token_ids)  # noqa: E731
    found = nnx.jit(scores)(model, jax.tree.map(jnp.asarray, make_batch(packed.fields)))
    if task is MATCH and not uniter:  # recorded are the logits of "does not belong" and "belongs"
        close(found[:, 0], case.out["logits"][:, 1] - case.out["logits"][:, 0])
        labels = jnp.asarray(case.inputs["labels"])
        losses = jnp.where(labels == 1, *(match_losses(found * sign, 0 * labels, "sigmoid", 0.0) for sign in (1, -1)))
        close(losses.mean(), case.out["loss"])
        return
    expected = case.out["rank_scores" if task is MATCH else "scores"].reshape(real.shape)
    close(np.asarray(found)[real], expected[real])


@pytest.mark.parametrize("path", CHOICES, ids=lambda path: path.stem)
def test_choices(path):
    """The last output of the head is the recorded score; for two outputs the loss is the recorded one, too."""
    case = Case(path)
    options = dict(default_segment=0) if "original" in path.name else {}
    packed, system = pack_case(case, **options), path.stem.split("_")[0]
    encoder, region_head = encoder_of(case), region_head_of(case, packed.feature_size)
    architecture = encoder.architecture
    kind = kind_of(CHOICE, architecture.name, to_bert_names(case.sd, architecture))
    assert kind == {"uniter": "hidden", "visualbert": "score", "b2t2": "classes"}[system]
    expected = case.out["logits" if "logits" in case.out else "scores"]
    if system == "visualbert":
        packed = joined(packed, expected.shape[1])
    model, _ = load_case(lambda: ChoiceModel(encoder, region_head, 0, nnx.Rngs(0), kind), case)

    @nnx.jit
    def logits(model, batch):
        return model.choice_logits(model.states(batch), token_ids=batch.token_ids)

    found = logits(model, jax.tree.map(jnp.asarray, make_batch(packed.fields)))
    close(found[..., -1], expected[:, -1:] if kind != "score" else expected)
    if kind != "score":  # each recorded sequence is right or wrong
        labels = case.inputs["targets" if system == "uniter" else "label"].reshape(-1)
        other = jnp.zeros_like(found)  # a second choice, whose loss is log 2
        both = choice_losses(jnp.concatenate([found, other], axis=1), jnp.asarray(1 - labels), "classes")
        close(jnp.mean(2 * both - np.log(2)), case.out["loss"])


@pytest.mark.parametrize("path", TWO_STREAMS, ids=lambda path: path.stem)
def test_vilbert(path):
    case = TwoStreamCase(path)
    inputs = text_and_regions(case.inputs)
    region_head = RegionHeadConfig(0, backbone=None, feature_size=8, architecture=get_architecture("vilbert"))

    wanted = {REGION: "linear", MATCH: "score"} | ({} if case.config.task_tokens else {CHOICE: "score"})  # 12-in-1
    assert {task: kind_of(task, "vilbert", case.sd) for task in wanted} == wanted
    of_choices = lambda: ChoiceModel(case.config, region_head, 0, nnx.Rngs(0))  # noqa: E731
    of_regions = lambda: RegionModel(case.config, region_head, nnx.Rngs(0), "linear")  # noqa: E731
    of_pairs = lambda: MatchModel(case.config, region_head, 2, nnx.Rngs(0), "score")  # noqa: E731
    models = [load(build, case.sd, case.config)[0] for build in (of_regions, of_pairs, of_choices)]

    @nnx.jit
    def compute(regions, pairs, choices):
        rows = inputs["region_mask"].shape[-1]
        positions = jnp.broadcast_to(inputs["token_ids"].shape[-1] + jnp.arange(rows), (len(inputs["token_ids"]), rows))
        scores = regions.region_logits(regions.two_stream(**inputs, wanted=("visual",)), positions)
        states = pairs.two_stream(**inputs)
        of_choices = choices.choice_logits(states, token_ids=inputs["token_ids"])[..., 0]
        return scores, pairs.pair_scores(states, inputs["token_ids"]), of_choices

    regions, pairs, choices = compute(*models)
    real = np.asarray(inputs["region_mask"][:, 0])
    close(np.asarray(regions)[real], case.out["vision_logit"][..., 0][real])
    close(pairs, case.out["vil_logit"])
    close(choices, case.out["vil_logit"])


# List of names -> the tasks whose heads it has.
OWNED = {
    "uniter_base_refcoco_mlp1": ["region"],
    "uniter_base_retrieval": ["match"],
    "uniter_base": ["match"],  # by the head of pre-training
    "hf_lxmert_base_uncased": ["answer", "match"],
    "vilbert_beta_6layer_pretrain": ["match"],
    "vilbert_beta_6layer_vcr_retrieval_refcoco": ["choice", "region", "match"],
    "uniter_base_vcr": ["choice"],
    "visualbert_original_vcr": ["choice"],
    "visualbert_nlvr2": ["classify"],
    "b2t2_base": ["choice"],
    "vilbert_multitask_12in1": ["answer", "region", "classify", "match"],
    "visualbert_vqa_pre": [],
    "oscar_base": [],
}


@pytest.mark.parametrize("name", OWNED)
def test_tasks_of_published_names(name):
    raw = small_tensors(name, layers=99 if "vilbert" in name else 1)
    architecture = family_names.architecture_of_names(raw)
    tensors = to_bert_names(raw, get_architecture(architecture))
    assert tasks_of_family(architecture, {key: array.shape for key, array in tensors.items()}) == OWNED[name]


@pytest.mark.parametrize("architecture", ["vlbert", "uniter", "oscar", "lxmert", "vilbert"])
@pytest.mark.parametrize("task, recipe, field, kind", [
    (REGION, refcoco.base_gt, "grounding_head", "linear"), (REGION, refcoco.base_gt, "grounding_head", "norm"),
    (MATCH, retrieval.flickr30k, "matching_head", "score"), (MATCH, retrieval.flickr30k, "matching_head", "classes"),
    (MATCH, retrieval.flickr30k, "matching_head", "hidden"), (CHOICE, vcr.q2a_base, "choice_head", "classes"),
    (CHOICE, vcr.q2a_base, "choice_head", "hidden"),
])  # fmt: skip
def test_heads_have_names_in_every_architecture(architecture, task, recipe, field, kind):
    """All parameters have different names, and those of VL-BERT say which task and which head it is."""
    config = recipe()
    shrink(config, config, "", 1, ())
    config.model.update({"architecture": architecture, field: kind, "train_region_head": False})
    config.data.features, config.data.hide_pixels = "precomputed", False
    state = nnx.state(nnx.eval_shape(lambda: task.build_model(config, nnx.Rngs(0))))
    shapes = {tuple(map(str, path)): v.shape for path, v in nnx.to_flat_state(state)}
    assert any(path[0] == field for path in shapes)
    entries = list(family_names.table_of(get_architecture(architecture))(shapes, config.model.encoder.vocab_size))
    names = {entry.official for entry in entries}
    assert len(names) == len(entries)
    if architecture == "vlbert":
        assert task_of_names(names) == task.name
        found = task.config_from_weights({
            entry.official: entry.to_official(np.zeros(shapes[entry.path])).shape
            for entry in entries if entry.path[0] == field
        })  # fmt: skip
        assert found[f"model.{field}"] == kind
    config.model[field] = "other"
    with pytest.raises(ValueError, match=f"config.model.{field} is 'other'; it must be one of"):
        nnx.eval_shape(lambda: task.build_model(config, nnx.Rngs(0)))


@pytest.mark.parametrize("shapes", [
    {"classifier.2.weight": (2, 5)}, {"classifier.2.weight": (2, 5), "classifier.0.weight": (5,)},
    {"classifier.weight": ()}, {"classifier.weight": (7,)},
])  # fmt: skip
def test_a_part_of_a_head_is_no_head_for_retrieval(shapes):
    shapes = shapes | {"bert.embeddings.word_embeddings.weight": (9, 4)}
    assert not MATCH.owns_family("oscar", shapes)
    assert MATCH.config_from_family("oscar", shapes)["model.matching_head"] == "classes"  # a new one
    assert get_task("classify").config_from_family("oscar", shapes)["model.num_labels"] == 2


def test_a_head_with_another_number_of_outputs_is_named_by_its_shape():
    assert MATCH.config_from_weights({"matching_score.weight": (3, 4)})["model.matching_head"] == "score"
