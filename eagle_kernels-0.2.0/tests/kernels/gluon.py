"""Runs attention's Gluon kernels on CPU tensors, by the machine code that a Hopper GPU would get (tests/ptx).

check(plan_of([65, 130]), heads=(7, 1), D=128, causal=True)  # forward and backward as good as torch
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

import pytest
import torch
from torch import Tensor

from eagle_kernels import attention_sm90
from eagle_kernels.attention import _varlen_attention, varlen_attention_ref
from eagle_kernels.attention_plan import AttentionPlan
from tests.kernels import hopper
from tests.kernels.op_checks import check_as_good
from tests.numerics import randn
from tests.ptx.machine import Schedule

# q_start, q_len, k_start, k_len: with gaps, overlapping keys, rows that see no key, no queries, no keys.
OVERLAPPING = [(10, 70, 50, 40), (90, 30, 0, 130), (125, 5, 60, 30), (131, 0, 10, 10), (131, 20, 100, 0)]


@contextmanager
def machine() -> Iterator[list[hopper.Launched]]:
    """A Hopper GPU of two multiprocessors, so that a uniform plan's programs take several items; each launch goes by a
    schedule of its own."""
    numbers = count()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_sm90, "_is_sm90", lambda x: True)
        patch.setattr(attention_sm90, "_num_multiprocessors", lambda device: 2)
        with hopper.machine(lambda: Schedule(next(numbers), order="random", landing="random")) as launches:
            yield launches


def qkv(plan: AttentionPlan, heads: tuple[int, int], D: int, dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    H, K = heads
    shapes = [(plan.num_tokens, H, D), (plan.num_tokens_k, K, D), (plan.num_tokens_k, K, D)]
    return [randn(*shape, dtype=dtype, seed=seed) for seed, shape in enumerate(shapes)]


def finite(out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    """lse of a row that sees no key is -inf by contract; 0 here, so that all that is compared is a number."""
    return out, lse.masked_fill(lse == -torch.inf, 0)


def ours(plan: AttentionPlan, causal: bool) -> Callable[..., tuple[Tensor, Tensor]]:
    return lambda q, k, v: finite(*_varlen_attention(q, k, v, plan, causal, q.shape[2] ** -0.5))


def check(plan: AttentionPlan, heads: tuple[int, int], D: int, causal: bool, **options: Any) -> None:
    """Outputs and gradients, through the lse too; twice, by other schedules: the same bits."""
    reference = lambda q, k, v: finite(*varlen_attention_ref(q, k, v, plan, causal=causal, return_lse=True))  # noqa: E731
    with machine() as launches:
        check_as_good(ours(plan, causal), reference, qkv(plan, heads, D, **options))
    gluon = {launch.kernel for launch in launches if launch.module.startswith("eagle_kernels.attention_gluon")}
    assert gluon == {"fwd_kernel", "dq_kernel", "dkdv_kernel"}
    assert {launch.kernel for launch in launches} == gluon | {"_delta_kernel"}
