"""The recipes `lxmert` and `visualbert` of `benchmarks/peers.py`: forward and backward, against Hugging Face's classes.

Both sides answer the same questions about the same precomputed regions, with 3,129 answers and no padding. The loss is
that of the class: the cross-entropy of the best answer (LXMERT), or the divergence from the scores of all answers
(VisualBERT). The weights are those of a random model of vlbert_jax, which it writes in the format of Hugging Face.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.shapes import shape_of, shrink

SIBLINGS = ("lxmert", "visualbert")
CLASSES = dict(lxmert="LxmertForQuestionAnswering", visualbert="VisualBertForQuestionAnswering")
HEADS = dict(lxmert="pooler", visualbert="mask_linear")  # what the head of the class reads
LOSSES = dict(lxmert="softmax", visualbert="kl")  # the loss of the class
MODEL, BATCH = "hugging_face", "batch.npz"

Opened = tuple[dict, Callable[[], object]]  # what a side says about itself, and its step


def recipe_of(name: str, small: bool):
    """Return the config of a model for questions with the sizes of Hugging Face's base model."""
    from configs import vqa

    config = vqa.lxmert_base()
    config.prng_impl, config.compute_dtype = "rbg", "float32"
    config.model.update(dict(architecture=name, answer_head=HEADS[name]))
    config.losses.answer = LOSSES[name]
    config.model.encoder.num_segments = 2
    config.model.two_stream.layers = (9, 5, 5)
    if small:
        shrink(config)
    return config


def question_shape(small: bool, captions: int | None) -> dict:
    """Return the shape of base_prec; there are as many questions as its captions and texts together."""
    shape = shape_of("base_prec", captions, small)
    return shape | dict(questions=2 * shape["captions"])


def questions(config, shape: dict, task, seed: int = 0) -> dict[str, np.ndarray]:
    """Return a batch of invented questions by the functions of the data pipeline; the config has the vocabularies."""
    from vlbert_jax.data.streams import stacked_evenly

    rng, regions, size = np.random.default_rng(seed), shape["boxes"] - 1, np.array(shape["image"])
    make = task.example_maker(config, "square", train=True)

    def example() -> dict:
        corner, extent = rng.uniform(0, 0.5, (regions, 2)), rng.uniform(0.1, 0.5, (regions, 2))
        words = [f"word{number}" for number in rng.integers(1000, size=shape["tokens"])]  # cut to fit
        record = dict(
            question=" ".join(words),
            answers=[f"answer {number}" for number in rng.integers(1, 3_129, 10)],
            image_size=size.astype(np.int32),
            boxes=(np.concatenate([corner, corner + extent], -1) * np.tile(size, 2)).astype(np.float32),
            features=rng.random((regions, config.model.feature_size), np.float32),
        )
        return make(record, False)

    return stacked_evenly([example() for _ in range(shape["questions"])])


def questions_here(name: str, folder: Path, small: bool, captions: int | None) -> Opened:
    """Open the side of vlbert_jax, after weights and batch are written for the other one."""
    import jax
    from flax import nnx

    from benchmarks import predict
    from vlbert_jax.batch import make_batch
    from vlbert_jax.model.architectures import get_architecture
    from vlbert_jax.tasks import get_task
    from vlbert_jax.training.compile_ahead import matmul_flops
    from vlbert_jax.training.step import LEAST_MEMORY
    from vlbert_jax.weights import export, family_names, vlbert_names

    config, shape, task = recipe_of(name, small), question_shape(small, captions), get_task("answer")
    tokens, boxes = shape["tokens"], shape["boxes"]
    config.data.update(dict(text_length=tokens, max_regions=boxes - 1, sequence_length=tokens + boxes))
    predict.write_vocabularies(folder, config)
    fields = questions(config, shape, task)
    np.savez(folder / BATCH, **fields)
    batch = jax.device_put(make_batch(fields, task.targets))

    model = nnx.eval_shape(lambda: task.build_model(config, nnx.Rngs(0)))
    graphdef, state = nnx.split(model)
    deviation = 0.2 if small else 0.02  # in narrow layers the loss would hardly depend on the inputs with 0.02
    arrays = {path: array for path, _, array in predict.random_arrays(model, deviation)}
    architecture = get_architecture(name)
    table = family_names.table_of(architecture)
    official = vlbert_names.to_official(arrays, config.model.encoder.vocab_size, table)
    tensors = family_names.original_state_dict(official, architecture)
    export.write_sibling(folder / MODEL, tensors, config.model.to_dict(), CLASSES[name])
    for path, variable in nnx.to_flat_state(state):
        variable.set_value(jax.device_put(arrays.pop(tuple(map(str, path)))))
    params, constants = nnx.split_state(state, nnx.Param, ...)
    names = task.active_losses(config, 0)

    def loss_of(params, key):
        sums, _ = task.loss_sums(nnx.merge(graphdef, params, constants), batch, key, config, names)
        counts = task.loss_counts(batch, config, names)
        return sum(sums[name] / counts[name] for name in names)

    key, made = jax.random.key(0, impl=config.prng_impl), 0
    gradient = jax.jit(jax.value_and_grad(loss_of)).trace(params, key)
    compiled = gradient.lower().compile(LEAST_MEMORY if jax.default_backend() == "cpu" else None)

    def step():
        nonlocal made
        made += 1
        jax.block_until_ready(compiled(params, jax.random.fold_in(key, made)))

    about = dict(parameters=sum(tensor.size for tensor in tensors.values()), flops=matmul_flops(gradient.jaxpr.jaxpr))
    return about | dict(result=[float(jax.jit(loss_of)(params, None))]), step


def questions_there(name: str, folder: Path, small: bool, captions: int | None) -> Opened:
    """Open Hugging Face's model with the weights and the batch of the other side."""
    import torch
    import transformers

    kind, words = CLASSES[name], question_shape(small, captions)["tokens"]
    options = dict(output_loading_info=True, attn_implementation="eager")
    model, report = getattr(transformers, kind).from_pretrained(folder / MODEL, **options)
    if wrong := {problem: keys for problem, keys in report.items() if keys}:
        raise SystemExit(f"Hugging Face's {kind} has other tensors: {wrong}")
    batch = {key: torch.from_numpy(array) for key, array in np.load(folder / BATCH).items()}
    inputs = dict(
        input_ids=batch["token_ids"][:, 0, :words].long(),
        attention_mask=batch["element_mask"][:, 0, :words].float(),
        token_type_ids=batch["segment_ids"][:, 0, :words].long(),
        visual_attention_mask=batch["region_mask"][:, 1:].float(),
    )
    if name == "lxmert":
        inputs |= dict(visual_feats=batch["region_features"][:, 1:], visual_pos=batch["box_geometry"][:, 1:])
        inputs["labels"] = torch.from_numpy(batch["answer_targets"].numpy().argmax(-1))  # the first one at ties
    else:
        kinds = torch.zeros(batch["region_mask"][:, 1:].shape, dtype=torch.long)  # as the original code has it
        inputs |= dict(visual_embeds=batch["region_features"][:, 1:], visual_token_type_ids=kinds)
        inputs["labels"] = batch["answer_targets"]
        inputs["attention_mask"] = inputs["attention_mask"].long()  # its sum is the place of the answer

    model.eval()
    with torch.no_grad():
        loss = model(**inputs).loss.item()
    model.train()

    def step():
        model.zero_grad(set_to_none=True)
        model(**inputs).loss.backward()

    return dict(parameters=sum(p.numel() for p in model.parameters()), result=[loss]), step


SIDES = dict(ours=questions_here, pytorch=questions_there)
