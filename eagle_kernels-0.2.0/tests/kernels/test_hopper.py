"""Every Triton and Gluon launch that bench/static_cases.py has for sm_90, run by its machine code on a CPU (tests/ptx):
as good as torch, the same bits under two schedules. Attention's nasty shapes are in test_hopper_attention.py."""

import re
from collections.abc import Callable
from functools import cache
from importlib import import_module
from itertools import count

import pytest
import torch

from bench import static_cases
from eagle_kernels import attention_sm90
from eagle_kernels.attention import _varlen_attention, varlen_attention_ref
from eagle_kernels.attention_plan import AttentionPlan
from tests.kernels import hopper
from tests.kernels.op_checks import check_as_good
from tests.kernels.plans import plan_of
from tests.numerics import assert_as_good, outputs_and_grads, randn, to_double
from tests.ptx.machine import Schedule

CASES = {case.name: case for case in static_cases.cases() if 90 in case.capabilities}
BF16 = torch.bfloat16
EPS = 1e-6


def bf16(*shape, seed=0):
    return randn(*shape, dtype=BF16, seed=seed)


def schedules() -> Callable[[], Schedule]:
    """Each launch goes by a schedule of its own, its warps at any pace."""
    numbers = count()
    return lambda: Schedule(next(numbers), order="random", landing="random")


def check(ours, ref, inputs):
    with hopper.machine(schedules()) as launches:
        check_as_good(ours, ref, inputs)
    return launches


def rms_norm(add):
    module = import_module("eagle_kernels.rms_norm")
    x, residual, weight = bf16(5, 3584), bf16(5, 3584, seed=1), bf16(3584, seed=2)
    if add:
        return check(
            lambda x, r, w: module._add_fwd(x, r, w, EPS)[:2],
            lambda x, r, w: module.add_rms_norm_ref(x, r, w, EPS),
            (x, residual, weight),
        )
    return check(lambda x, w: module._fwd(x, w, EPS)[0], lambda x, w: module.rms_norm_ref(x, w, EPS), (x, weight))


def layer_norm(width):
    module = import_module("eagle_kernels.layer_norm")
    inputs = bf16(5, width), bf16(width, seed=1), bf16(width, seed=2)
    return check(lambda x, w, b: module._fwd(x, w, b, EPS)[0], lambda *args: module.layer_norm_ref(*args, EPS), inputs)


def merge_2x2_layer_norm():
    module = import_module("eagle_kernels.merge_2x2_layer_norm")
    inputs = bf16(2, 16, 1152), bf16(4608, seed=1), bf16(4608, seed=2)
    return check(
        lambda x, w, b: module._fwd(x, w, b, EPS)[0], lambda *args: module.merge_2x2_layer_norm_ref(*args, EPS), inputs
    )


def sum_of_partials():
    module = import_module("eagle_kernels.sum_partials")
    partials = randn(37, 3584).detach()
    with hopper.machine(schedules()) as launches:
        got = module.sum_partials(partials, torch.float32)
    torch.testing.assert_close(got, partials.sum(0))
    return launches


def swiglu():
    module = import_module("eagle_kernels.swiglu")
    gate, up = bf16(3, 2 * 18944).chunk(2, dim=1)
    return check(module._fwd, module.swiglu_ref, (gate.detach().requires_grad_(), up.detach().requires_grad_()))


def gelu_bias():
    module = import_module("eagle_kernels.gelu_bias")
    return check(module._fwd, module.gelu_bias_ref, (bf16(35, 4304), bf16(4304, seed=1)))


def merge_2x2():
    module = import_module("eagle_kernels.merge_2x2")
    return check(lambda x: module._merge(x, False), module.merge_2x2_ref, (bf16(2, 36, 1152),))


def positions(T):
    return torch.arange(T, dtype=torch.int32) * 9973 % 131072


def rope(inverse):
    module = import_module("eagle_kernels.rope")
    where = positions(21) if not inverse else -positions(21)
    return check(
        lambda q, k: module._rope(q, k, positions(21), 1e6, inverse),
        lambda q, k: module.rope_ref(q, k, where, 1e6),
        (bf16(21, 3, 128), bf16(21, 1, 128, seed=1)),
    )


def qkv_rope():
    module = import_module("eagle_kernels.qkv_rope")
    return check(
        lambda x, b: module._fwd(x, b, positions(6), 1e6, 28, 4),
        lambda x, b: module.qkv_rope_ref(x, b, positions(6), 1e6, num_heads=28, num_kv_heads=4),
        (bf16(6, 36 * 128), bf16(36 * 128, seed=1)),
    )


def softmax(read, grad):
    """Rows beyond the labelled ones keep what they hold; the gradient is that of the statistics read."""
    module = import_module("eagle_kernels.linear_cross_entropy")
    V, num_labelled = 152_064, 2
    logits = (4 * randn(3, V)).detach().to(BF16)
    labels, scales = torch.tensor([151_643, 7, 0]), torch.tensor([1.0, 0.25, 1.0])
    wide = logits[:num_labelled].double()
    want = (wide.softmax(1) - torch.nn.functional.one_hot(labels[:2], V)) * scales[:2, None]
    runs, launches = [], []
    for seed in range(2):
        out, stats = logits.clone(), module._statistics(3, scales)
        if not read:
            stats.top[:2], stats.total[:2] = wide.max(1)[0], (wide - wide.max(1, keepdim=True)[0]).exp().sum(1)
        with hopper.machine(Schedule(seed)) as ran:
            import_module("eagle_kernels.linear_cross_entropy_triton").softmax(
                out, labels, scales, stats, torch.tensor(num_labelled), 0, read=read, grad=grad
            )
        launches += ran
        runs.append((out, *stats))
        torch.testing.assert_close(out[:2].double(), want if grad else wide, rtol=2**-8, atol=1e-7)
        assert torch.equal(out[2], logits[2])
        lse = stats.top[:2].double() + stats.total[:2].double().log()
        torch.testing.assert_close(lse, wide.logsumexp(1), rtol=1e-6, atol=1e-6)
        if read:
            assert torch.equal(stats.best[:2], wide.argmax(1))
            assert torch.equal(stats.picked[:2].double(), wide[range(2), labels[:2]])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    return launches


def linear_cross_entropy():
    """Two chunks, the second with labelled tokens in its first rows alone; what ignored tokens hold is NaN."""
    module = import_module("eagle_kernels.linear_cross_entropy")
    T, C, V = 50, 208, 264
    hidden, weight = bf16(T, C), bf16(V, C, seed=1)
    labels = torch.randint(V, (T,), generator=torch.Generator().manual_seed(0))
    labels[::5] = -100

    def ours(hidden, weight):
        dirty = torch.where((labels == -100)[:, None], torch.nan, hidden)
        return module._fwd(dirty, weight, labels, None, -100, True, True, True, 32)[0]

    return check(ours, lambda h, w: module.linear_cross_entropy_ref(h, w, labels), (hidden, weight))


def attention(gluon, D, H, K, causal, uniform):
    """Once, under one schedule: the same bits under others are test_hopper_attention.py's."""
    plan = AttentionPlan.uniform(1, 128, device="cpu") if uniform else plan_of([66], causal=causal)
    T = plan.num_tokens
    inputs = bf16(T, H, D), bf16(T, K, D, seed=1), bf16(T, K, D, seed=2)
    douts = [bf16(T, H, D, seed=3).detach(), randn(H, T, seed=4).detach()]

    def reference(q, k, v):
        return varlen_attention_ref(q, k, v, plan, causal=causal, return_lse=True)

    with pytest.MonkeyPatch.context() as patch, hopper.machine(schedules()) as launches:
        if gluon:
            patch.setattr(attention_sm90, "_is_sm90", lambda x: True)
            patch.setattr(attention_sm90, "_num_multiprocessors", lambda device: 2)
        got = outputs_and_grads(lambda q, k, v: _varlen_attention(q, k, v, plan, causal, D**-0.5), inputs, douts)
    same = outputs_and_grads(reference, inputs, douts)
    true = outputs_and_grads(reference, to_double(inputs), [d.double() for d in douts])
    assert_as_good(got, same, true)
    return launches


ATTENTION = {
    "vision": (72, 16, 16, False, True),
    "vision_by_tables": (72, 16, 16, False, False),
    "llm": (128, 28, 4, True, False),
}
BY_TRITON = ATTENTION | {
    "widest": (256, 8, 4, True, False),
    "two_pieces_72": (72, 16, 16, True, False),
    "two_pieces_192": (192, 8, 4, True, False),
}
BY_GLUON = ATTENTION | {"64": (64, 16, 16, True, False)}
DRIVERS: dict[str, Callable[[], list[hopper.Launched]]] = {
    "add_rms_norm": lambda: rms_norm(True),
    "rms_norm": lambda: rms_norm(False),
    "layer_norm_fwd_1152": lambda: layer_norm(1152),
    "layer_norm_bwd_1152": lambda: layer_norm(1152),
    "layer_norm": lambda: layer_norm(4608),
    "merge_2x2_layer_norm": merge_2x2_layer_norm,
    "merge_2x2": merge_2x2,
    "sum_partials": sum_of_partials,
    "swiglu": swiglu,
    "gelu_bias": gelu_bias,
    "rope_inverse": lambda: rope(True),
    "rope": lambda: rope(False),
    "qkv_rope": qkv_rope,
    "linear_cross_entropy_loss_and_grad": lambda: softmax(True, True),
    "linear_cross_entropy_loss": lambda: softmax(True, False),
    "linear_cross_entropy_grad": lambda: softmax(False, True),
    "linear_cross_entropy_matmul": linear_cross_entropy,
}
for step in ("fwd", "dq", "dkdv", "delta"):
    for shape_name, shape in BY_TRITON.items():
        DRIVERS[f"attention_{step}_{shape_name}"] = lambda shape=shape: attention(False, *shape)  # type: ignore[misc]
    for shape_name, shape in BY_GLUON.items():
        DRIVERS[f"attention_sm90_{step}_{shape_name}"] = lambda shape=shape: attention(True, *shape)  # type: ignore[misc]


@cache
def launches_of(name: str) -> list[hopper.Launched]:
    return DRIVERS[name]()


def driver_of(case_name: str) -> str:
    return max((name for name in DRIVERS if case_name.startswith(name)), key=len)


def shared_driver(name: str) -> str:
    """The steps of one op run together, by the driver of its first."""
    return re.sub(r"_(bwd|dq|dkdv|delta)_", "_fwd_", name)


@pytest.mark.parametrize("name", CASES)
def test_a_launch_of_sm_90(name):
    case = CASES[name]
    launches = launches_of(shared_driver(driver_of(name)))
    want = (case.kernel.fn.__module__, case.kernel.fn.__name__, case.num_warps)
    same = [x for x in launches if (x.module, x.kernel, x.num_warps) == want]
    constants = {key: case.constants[key] for key in dict(same[0].constants)}
    assert any(dict(x.constants) == constants for x in same), (constants, [x.constants for x in same])


def test_what_the_table_of_cases_has_not():
    """Frequencies token by token, a scale, no bias; both halves of a fused projection."""
    table = randn(6, 16, seed=3).detach().abs()
    rope, qkv_rope, swiglu = (import_module(f"eagle_kernels.{name}") for name in ("rope", "qkv_rope", "swiglu"))
    launches = check(
        lambda q, k: rope._rope(q, k, positions(6), 0.0, False, table, 1.25),
        lambda q, k: rope.rope_ref(q, k, positions(6), frequencies=table, scale=1.25),
        (bf16(6, 3, 32), bf16(6, 1, 32, seed=1)),
    )
    heads = {"num_heads": 3, "num_kv_heads": 1}
    launches += check(
        lambda x: qkv_rope._fwd(x, None, positions(6), 0.0, 3, 1, table, 1.25),
        lambda x: qkv_rope.qkv_rope_ref(x, None, positions(6), frequencies=table, scale=1.25, **heads),
        (bf16(6, 5 * 32),),
    )
    launches += check(swiglu._fwd_halves, lambda x: swiglu.swiglu_ref(*x.chunk(2, dim=1)), (bf16(5, 2 * 144),))
    constants = [dict(launch.constants) for launch in launches]
    for name, value in {"PER_TOKEN": True, "SCALE": 1.25, "HAS_BIAS": False, "GRAD_STRIDE": 288}.items():
        assert {x[name] for x in constants if name in x} == {value}
