"""Attention by the machine code of sm_90, Triton's and Gluon's, at the shapes that break kernels: documents shorter and
longer than a tile by one, keys fewer and more than queries, overlapping segments, NaN in the rows next door; the same
bits under many schedules and wherever a document lies."""

from itertools import count

import pytest
import torch

from eagle_kernels import attention_sm90
from eagle_kernels.attention import _varlen_attention, varlen_attention_ref
from tests.combinations import pairs
from tests.kernels import hopper
from tests.kernels.plans import plan_of, plan_of_segments
from tests.numerics import assert_as_good, outputs_and_grads, randn, to_double
from tests.ptx.machine import Schedule

LENGTHS = [0, 1, 63, 64, 65, 127, 129, 300]
OTHERS = dict(zip(LENGTHS, [5, 200, 63, 0, 300, 1, 129, 77], strict=True))  # queries without keys, and the reverse
KEYS = {"equal": lambda n: n, "fewer": lambda n: n - n // 3, "more": lambda n: n + 70, "others": OTHERS.__getitem__}
# q_start, q_len, k_start, k_len: gaps, keys that several segments see, rows that see no key, no queries, no keys.
OVERLAPPING = [(10, 130, 50, 140), (150, 65, 0, 200), (220, 5, 60, 30), (231, 0, 10, 10), (231, 20, 100, 0)]


# Gluon's short tests are test_attention_gluon.py and test_attention_gluon_bwd.py.
@pytest.fixture(params=["triton", pytest.param("gluon", marks=pytest.mark.slow)])
def kernels(request, monkeypatch):
    """Whose kernels run; Gluon's as on a Hopper GPU of two multiprocessors."""
    if request.param == "gluon":
        monkeypatch.setattr(attention_sm90, "_is_sm90", lambda x: True)
        monkeypatch.setattr(attention_sm90, "_num_multiprocessors", lambda device: 2)
    return request.param


def inputs_of(plan, H, K, D):
    shapes = [(plan.num_tokens, H, D), (plan.num_tokens_k, K, D), (plan.num_tokens_k, K, D)]
    return [randn(*shape, dtype=torch.bfloat16, seed=seed) for seed, shape in enumerate(shapes)]


def attend(inputs, plan, causal, schedule, dout):
    """out, lse, dq, dk, dv"""
    seeds = count(schedule.seed)

    def make():
        return Schedule(next(seeds), order=schedule.order, landing=schedule.landing, races=schedule.races)

    def ours(q, k, v):
        out, lse = _varlen_attention(q, k, v, plan, causal, q.shape[2] ** -0.5)
        return out, lse.masked_fill(lse == -torch.inf, 0)

    with hopper.machine(make):
        return outputs_and_grads(ours, inputs, dout)


def douts_of(inputs):
    q = inputs[0]
    return [randn(*q.shape, seed=8).detach().to(q.dtype), randn(q.shape[1], q.shape[0], seed=9).detach()]


def check(plan, H, K, D, causal, schedule):
    inputs = inputs_of(plan, H, K, D)
    douts = douts_of(inputs)

    def reference(q, k, v):
        out, lse = varlen_attention_ref(q, k, v, plan, causal=causal, return_lse=True)
        return out, lse.masked_fill(lse == -torch.inf, 0)

    got = attend(inputs, plan, causal, schedule, douts)
    same = outputs_and_grads(reference, inputs, douts)
    true = outputs_and_grads(reference, to_double(inputs), [d.double() for d in douts])
    assert_as_good(got, same, true)


def plan_with_keys(lengths, keys, causal):
    return plan_of(lengths, [KEYS[keys](n) for n in lengths], causal=causal)


FEW = [(1, 1, "fewer", True), (1, 1, "more", False), (7, 1, "equal", True)]


@pytest.mark.parametrize("D", [72, 128])
@pytest.mark.parametrize(("H", "K", "keys", "causal"), FEW)
def test_documents(kernels, D, H, K, keys, causal):
    lengths = LENGTHS if H == 1 else [65, 0, 1, 64]
    check(plan_with_keys(lengths, keys, causal), H, K, D, causal, Schedule(7))


@pytest.mark.parametrize(("D", "group", "keys", "causal"), pairs([64, 72, 128], [1, 7], KEYS, [True, False]))
def test_all_documents(kernels, D, group, keys, causal):
    """All warps together, for time's sake: what nothing orders is found under any schedule. That check, most of the
    time, is left to one query head: seven go through the same barriers, with other rows."""
    schedule = Schedule(1, order="together", races=group == 1)
    check(plan_with_keys(LENGTHS, keys, causal), group, 1, D, causal, schedule)


@pytest.mark.slow
@pytest.mark.parametrize("D", [16, 96, 192, 256])
@pytest.mark.parametrize("causal", [True, False])
def test_other_widths(D, causal):
    check(plan_with_keys(LENGTHS, "fewer", causal), 1, 1, D, causal, Schedule(1, order="together"))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("D", [72, 128])
def test_overlapping_segments(kernels, D, causal):
    check(plan_of_segments(OVERLAPPING, 252, 200, causal=causal), 1, 1, D, causal, Schedule(3))


@pytest.mark.parametrize("D", [72, 128])
@pytest.mark.parametrize("value", [torch.nan, pytest.param(torch.inf, marks=pytest.mark.slow)])
def test_rows_next_door_do_not_matter(kernels, D, value):
    """Documents between others that are NaN or infinite give the bits that they give between zeros."""
    lengths = [3, 65, 1, 62]
    plan = plan_of(lengths)
    mine = torch.zeros(sum(lengths), dtype=torch.bool)
    mine[3:68] = True
    inputs = inputs_of(plan, 2, 1, D)
    douts = douts_of(inputs)
    results = []
    for filler in (0.0, value):
        dirty = [torch.where(mine[:, None, None], t.detach(), filler).requires_grad_() for t in inputs]
        dirty_douts = [torch.where(mine[:, None, None], douts[0], filler), torch.where(mine, douts[1], filler)]
        out, lse, *grads = attend(dirty, plan, True, Schedule(2), dirty_douts)
        results.append([out[mine], lse[:, mine], *(grad[mine] for grad in grads)])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert all(torch.isfinite(t).all() for t in results[0])


@pytest.mark.parametrize("D", [72, 128])
def test_a_document_moved_within_the_pack(kernels, D):
    """Alone, and after documents of other lengths: the same bits."""
    length, whole = 66, None
    for before in ([], [5], [64]):
        lengths = [*before, length, 20]
        plan, start = plan_of(lengths), sum(before)
        tokens = [randn(length, heads, D, dtype=torch.bfloat16, seed=seed) for seed, heads in enumerate((2, 1, 1))]
        rest = inputs_of(plan, 2, 1, D)
        inputs = [
            torch.cat([r[:start], t, r[start + length :]]).detach().requires_grad_()
            for r, t in zip(rest, tokens, strict=True)
        ]
        dout = randn(length, 2, D, seed=8).detach().to(torch.bfloat16)
        douts = [torch.zeros(sum(lengths), 2, D, dtype=torch.bfloat16), torch.zeros(2, sum(lengths))]
        douts[0][start : start + length] = dout
        out, lse, *grads = attend(inputs, plan, True, Schedule(4), douts)
        own = slice(start, start + length)
        got = [out[own], lse[:, own], *(grad[own] for grad in grads)]
        whole = whole or got
        assert all(torch.equal(a, b) for a, b in zip(got, whole, strict=True))


def same_bits(D, num_schedules):
    """Order, most of the time, is checked in the first few."""
    plan = plan_of([129, 0])
    inputs = inputs_of(plan, 1, 1, D)
    douts = douts_of(inputs)
    first = attend(inputs, plan, True, Schedule(order="together", landing="early"), douts)
    landings = ("random", "early", "late")
    for seed in range(num_schedules):
        again = attend(inputs, plan, True, Schedule(100 * seed, landing=landings[seed % 3], races=seed < 3), douts)
        assert all(torch.equal(a, b) for a, b in zip(again, first, strict=True)), seed


@pytest.mark.parametrize("D", [72, 128])
def test_the_same_bits_under_a_few_schedules(D):
    same_bits(D, 3)


@pytest.mark.slow
@pytest.mark.parametrize("D", [72, pytest.param(128, marks=pytest.mark.exhaustive)])
def test_the_same_bits_under_50_schedules(kernels, D):
    same_bits(D, 50)
