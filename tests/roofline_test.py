"""Test how the benchmark counts products and names the kinds of operations."""

import collections
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import question, roofline
from vlbert_jax.training import compile_ahead


def function(x, kernel, image, key):
    """Multiply in a loop, convolve, and sample bits; a cheap branch is never counted."""

    def body(x, _):
        return jax.nn.softmax(x @ kernel), None

    x, _ = jax.lax.scan(body, x, None, length=3)
    x = jax.lax.cond(x.sum() > 0, lambda x: x @ kernel, lambda x: x, x)
    found = jax.lax.conv_general_dilated(image, jnp.ones((3, 3, 4, 8)), (1, 1), "SAME", dimension_numbers=NUMBERS)
    return (jax.random.bits(key, x.shape, jnp.uint16) > 9) * x.sum() + found.sum()


NUMBERS = ("NHWC", "HWIO", "NHWC")
ARGUMENTS = jnp.ones((16, 32)), jnp.ones((32, 32)), jnp.ones((1, 8, 8, 4)), jax.random.key(0)


def test_products_have_all_flops():
    jaxpr = jax.make_jaxpr(function)(*ARGUMENTS).jaxpr
    found = roofline.products_alone(jaxpr)
    products, convolutions = (found[name] for name in roofline.PRODUCTS)
    assert products["flops"] == 4 * 2 * 16 * 32 * 32 and products["sizes"] == 1
    assert convolutions["flops"] == 2 * 8 * 8 * 8 * 3 * 3 * 4 and convolutions["sizes"] == 1
    assert products["flops"] + convolutions["flops"] == compile_ahead.matmul_flops(jaxpr)
    assert min(products["seconds"], convolutions["seconds"]) > 0


def test_operations_have_a_kind_and_a_part():
    def loss(kernel):
        with jax.named_scope("model"):
            return jnp.sum(jax.nn.softmax(jnp.ones((16, 32)) @ kernel)[:, 0] ** 2)

    def update(kernel):
        return kernel - 0.1 * jax.grad(loss)(kernel)

    program = jax.jit(update).lower(jnp.ones((32, 32))).compile().as_text()
    found = set(roofline.operations_of(program).values())
    assert {("matrix products", "forward"), ("matrix products", "backward")} <= found
    assert {kind for kind, part in found if part == "optimizer"} >= {roofline.ELEMENTWISE}
    assert {part for _, part in found} == set(roofline.PARTS)
    assert any(kind == "softmax, losses" for kind, _ in found)


def test_a_program_without_a_gradient_is_a_forward_pass():
    program = jax.jit(lambda kernel: jax.nn.softmax(kernel @ kernel) + 1).lower(jnp.ones((32, 32))).compile().as_text()
    assert {part for _, part in roofline.operations_of(program).values()} == {"forward"}


@pytest.mark.slow
def test_products_of_answers_are_counted_without_padding(capsys):
    """A question reads 37 of 101 rows of regions, and 54 of 136 elements."""
    roofline.main(["--small", "--steps=1", "--recipes=vqa"])
    facts = json.loads(capsys.readouterr().out.splitlines()[-1])[0]
    assert {name.rpartition(", ")[2] for name in facts["thread_seconds"]} == {"forward"}
    block_of_c5 = 1024 * 512 + 9 * 512 * 512 + 512 * 2048 + 1024 * 2048
    c5 = 37 * 2 * 14 * 14 * block_of_c5  # the rest is less than half of it
    assert c5 < 1e12 * facts["tflop"] < 1.5 * c5


def test_padding_is_left_out():
    elements, regions = np.arange(136) < 54, np.arange(101) < 37
    batch = dict.fromkeys(question.OF_ELEMENTS, elements[None, None])
    batch |= dict.fromkeys(question.OF_REGIONS, regions[None])
    batch |= dict(pixels=np.zeros((1, 1, 608, 1024, 3)), answer_positions=np.array([53]))
    found = question.without_padding(batch)
    assert all(found[name].all() for name in question.OF_ELEMENTS + question.OF_REGIONS)
    shapes = {name: found[name].shape for name in ("token_ids", "boxes", "pixels", "answer_positions")}
    assert shapes == dict(token_ids=(1, 1, 54), boxes=(1, 37), pixels=(1, 1, 600, 900, 3), answer_positions=(1,))


def test_calls_of_libraries_of_a_gpu_have_a_kind():
    """The lines are those of XLA's programs for a GPU."""
    program = """
HloModule jit_update

ENTRY %main (a: bf16[8,8], b: bf16[8,8]) -> (bf16[8,8]) {
  %a = bf16[8,8]{1,0} parameter(0)
  %product.1 = (bf16[8,8]{1,0}, s8[64]{0}) custom-call(%a, %a), custom_call_target="__cublas$lt$matmul", metadata={op_name="jit(update)/jvp(model)/dot_general"}
  %cudnn-conv.2 = (f32[8,8]{1,0}, u8[0]{0}) custom-call(%a, %a), custom_call_target="__cudnn$convBackwardInput", metadata={op_name="jit(update)/transpose(jvp(model))/conv"}
}
"""  # noqa: E501
    found = roofline.operations_of(program)
    assert found["product.1"] == ("matrix products", "forward")
    assert found["cudnn-conv.2"] == ("convolutions", "backward")


def test_the_tables_are_printed(capsys):
    facts = dict(recipe="base_prec", step_s=2.0, products_alone_s=1.5, share=0.75, page_faults=1000, system_s=0.1)
    alone = dict(dot_general=dict(flops=3e11, seconds=1.5, sizes=4))
    times = collections.Counter({("GELU", "forward"): 1.0, ("copies", "backward"): 3.0})
    roofline.print_tables(facts, alone, times)
    out = capsys.readouterr().out
    assert "(75 %)" in out and "| dot_general | 4 | 0.300 | 1.50 | 200.0 |" in out
    assert "| copies | 0.00 | 3.00 | 0.00 | 75.0 % |" in out
    assert np.isclose(sum(float(cell) for cell in re.findall(r"([\d.]+) % \|", out)), 100)
