"""The Gluon kernels for sm_90, by the machine code that a Hopper GPU would get, on a CPU (tests/ptx): as good as torch,
the same bits by other schedules and in another place of the pack, nothing of what lies beside a document."""

from itertools import count

import pytest
import torch

from eagle_kernels import attention_sm90
from eagle_kernels.attention import _varlen_attention, varlen_attention_ref
from eagle_kernels.attention_plan import AttentionPlan
from tests.kernels import hopper
from tests.kernels.op_checks import check_as_good
from tests.kernels.plans import plan_of, plan_of_segments
from tests.numerics import outputs_and_grads, randn
from tests.ptx.machine import Schedule

# q_start, q_len, k_start, k_len: with gaps, overlapping keys, rows that see no key, no queries, no keys.
OVERLAPPING = [(10, 70, 50, 40), (90, 30, 0, 130), (125, 5, 60, 30), (131, 0, 10, 10), (131, 20, 100, 0)]


@pytest.fixture(autouse=True)
def sm90(monkeypatch):
    """CPU tensors as on a Hopper GPU of two multiprocessors, so that a uniform plan's programs take several items."""
    monkeypatch.setattr(attention_sm90, "_is_sm90", lambda x: True)
    monkeypatch.setattr(attention_sm90, "_num_multiprocessors", lambda device: 2)


def schedules():
    numbers = count()
    return lambda: Schedule(next(numbers), order="random", landing="random")


def qkv(plan, heads, D, dtype=torch.bfloat16):
    H, K = heads
    shapes = [(plan.num_tokens, H, D), (plan.num_tokens_k, K, D), (plan.num_tokens_k, K, D)]
    return [randn(*shape, dtype=dtype, seed=seed) for seed, shape in enumerate(shapes)]


def finite(out, lse):
    """lse of a row that sees no key is -inf by contract; 0 here, so that all that is compared is a number."""
    return out, lse.masked_fill(lse == -torch.inf, 0)


def ours(plan, causal):
    return lambda q, k, v: finite(*_varlen_attention(q, k, v, plan, causal, q.shape[2] ** -0.5))


def check(plan, heads, D, causal, dtype=torch.bfloat16):
    """Outputs and gradients, through the lse too; twice, each launch by a schedule of its own: the same bits."""
    reference = lambda q, k, v: finite(*varlen_attention_ref(q, k, v, plan, causal=causal, return_lse=True))  # noqa: E731
    with hopper.machine(schedules()) as launches:
        check_as_good(ours(plan, causal), reference, qkv(plan, heads, D, dtype))
    kernels = {launch.kernel for launch in launches if launch.module == "eagle_kernels.attention_gluon"}
    assert kernels == {"fwd_kernel", "dq_kernel", "dkdv_kernel"}
    assert {launch.kernel for launch in launches} == kernels | {"_delta_kernel"}


@pytest.mark.parametrize(("D", "heads"), [(128, (7, 1)), (72, (2, 2)), (64, (2, 1))])
def test_documents(D, heads):
    check(plan_of([65, 0, 1, 130]), heads, D, True)


LONG = [pytest.param(128, False, marks=pytest.mark.slow), pytest.param(72, True, marks=pytest.mark.slow)]


@pytest.mark.parametrize(("D", "causal"), [(128, True), (72, False), *LONG])
def test_keys_of_other_lengths(D, causal):
    check(plan_of([70, 1, 64, 3], [20, 140, 0, 3], causal=causal), (1, 1), D, causal)


@pytest.mark.parametrize(("D", "causal"), [(128, True), (72, False), *LONG])
def test_overlapping_segments(D, causal):
    check(plan_of_segments(OVERLAPPING, 152, 140, causal=causal), (1, 1), D, causal)


@pytest.mark.parametrize("length", [150, pytest.param(128, marks=pytest.mark.slow)])
@pytest.mark.parametrize("causal", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_uniform_plans(causal, length):
    """Two programs with three items each, or six: the rings go on from item to item."""
    check(AttentionPlan.uniform(3, length, device="cpu"), (1, 1), 72, causal)


@pytest.mark.slow
def test_fp16():
    check(plan_of([40, 30]), (2, 1), 72, True, torch.float16)


@pytest.mark.slow
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("heads", [(1, 1), (7, 1)])
@pytest.mark.parametrize("D", [128, 72, 64])
@pytest.mark.parametrize("k_lens", [None, [5, 200, 63, 0, 300, 1, 129, 77]])
def test_every_length(D, heads, causal, k_lens):
    check(plan_of([0, 1, 63, 64, 65, 127, 129, 300], k_lens, causal=causal), heads, D, causal)


@pytest.mark.slow
@pytest.mark.parametrize("D", [128, 72, 64])
def test_fifty_schedules(D):
    plan = plan_of([65, 0, 1, 130])
    inputs = qkv(plan, (2, 1), D)
    douts = [randn(196, 2, D, dtype=torch.bfloat16).detach(), randn(2, 196).detach()]
    with hopper.machine(schedules()):
        first = outputs_and_grads(ours(plan, True), inputs, douts)
        for _ in range(49):
            assert all(map(torch.equal, outputs_and_grads(ours(plan, True), inputs, douts), first))


@pytest.mark.parametrize("D", [72, pytest.param(128, marks=pytest.mark.slow)])
def test_a_document_does_not_see_its_neighbours(D):
    """The same bits wherever it lies in the pack, with NaN and inf in the rows before and after it."""
    H, K, length = 2, 1, 70
    inputs = [randn(length, heads, D, dtype=torch.bfloat16, seed=s).detach() for s, heads in enumerate((H, K, K))]
    dout = randn(length, H, D, dtype=torch.bfloat16, seed=3).detach()

    def run(before, after, bad):
        packed = [
            torch.cat([torch.full_like(x[:before], bad), x, torch.full_like(x[:after], bad)]) for x in (*inputs, dout)
        ]
        plan = plan_of([before, length, after])
        with hopper.machine(Schedule(before)):
            q, k, v = (x.requires_grad_() for x in packed[:3])
            out, _ = _varlen_attention(q, k, v, plan, True, 0.1)
            out.backward(packed[3])
        return [x[before : before + length] for x in (out.detach(), q.grad, k.grad, v.grad)]

    alone = run(0, 0, 0.0)
    assert all(x.isfinite().all() for x in alone)
    for before, after, bad in ((3, 60, torch.nan), (65, 1, torch.inf)):
        assert all(map(torch.equal, run(before, after, bad), alone))
