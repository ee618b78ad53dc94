"""Linear cross-entropy, forward and backward together: every token supervised, one of ten, and over a process group."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor

from bench.fused import DTYPE, WAYS_AND_LIGER, liger, random
from bench.harness import DEVICE, measure, rival, seconds
from eagle_kernels.linear_cross_entropy import (
    linear_cross_entropy,
    linear_cross_entropy_ref,
    vocab_parallel_linear_cross_entropy,
)

pytestmark = pytest.mark.benchmark(timer=seconds)
T, C, V = (32_768, 3584, 152_064) if DEVICE == "cuda" else (64, 64, 1000)
WANT_TOKENS = 2048 if DEVICE == "cuda" else 48  # whose logits the fp32 reference holds at a time, 1.2 GB
MATMULS = "three matmuls"  # no loss at all: what is left of the time is the loss's own
KNOWN = "ours, number known"  # of labels: by the library's matmuls on a GPU
ALL_WAYS = (*WAYS_AND_LIGER, KNOWN, "torch chunked", MATMULS)
ALL_WAYS += ("liger cutedsl", "quack", "cce_exact") if DEVICE == "cuda" else ()
NUM_PROCESSES = torch.cuda.device_count() if DEVICE == "cuda" else 2


def problem(supervised_percent: int) -> tuple[list[Tensor], Tensor]:
    """[hidden (T, C), weight (V, C)], labels (T,); the same in every process."""
    inputs = random((T, C), (V, C))
    with torch.no_grad():
        inputs[1] *= C**-0.5  # logits of deviation 1: at 60, bf16 logits are whole units off and no gradient is right
    labels = torch.randint(0, V, (T,), generator=torch.Generator().manual_seed(1))
    labels[T * supervised_percent // 100 :] = -100
    return inputs, labels.to(DEVICE)


def loss_and_grads(fn: Callable[..., Tensor], inputs: list[Tensor], labels: Tensor) -> list[Tensor]:
    loss = fn(*inputs, labels)
    return [loss.detach(), *torch.autograd.grad(loss, inputs)]


def wanted(inputs: list[Tensor], labels: Tensor) -> list[Tensor]:
    """Loss and gradients in fp32, of some tokens after the other: the logits of all of them would be 20 GB."""
    hidden, weight = (x.detach().float().requires_grad_() for x in inputs)
    labelled = labels != -100
    shares = labelled.float() / labelled.sum()
    loss = torch.zeros((), device=DEVICE)
    for start in range(0, T, WANT_TOKENS):
        part = slice(start, start + WANT_TOKENS)
        summand = linear_cross_entropy_ref(hidden[part], weight, labels[part], shares[part])
        summand.backward()
        loss += summand.detach()
    return [loss, hidden.grad, weight.grad]


def three_matmuls(inputs: list[Tensor], num_tokens: int) -> list[Tensor]:
    """What `num_tokens` labelled tokens multiply, by torch alone and with all logits in memory: the ceiling."""
    hidden, weight = inputs[0].detach()[:num_tokens], inputs[1].detach()
    logits = hidden @ weight.T
    return [logits @ weight, logits.T @ hidden]


def cce_exact() -> Callable[..., Tensor]:
    """cut-cross-entropy that drops no gradient and sums in fp32; skips, with the reason, where there is none."""
    package = rival("cut_cross_entropy", "cut-cross-entropy")
    if not hasattr(package.LinearCrossEntropyImpl, "CCE_EXACT"):
        pytest.skip(
            f"cut-cross-entropy {package.__version__} has no cce_exact: docs/notes/fused_ops.md names a commit that has"
        )
    return partial(package.linear_cross_entropy, impl="cce_exact")


def torch_chunked(hidden: Tensor, weight: Tensor, labels: Tensor, **options: Any) -> Tensor:
    """torch's own, from 2.13 on, which keeps the logits of some tokens at a time; by itself it chooses how many."""
    if not hasattr(torch.nn, "LinearCrossEntropyOptions"):
        pytest.skip(f"torch {torch.__version__} has no linear_cross_entropy")
    return F.linear_cross_entropy(hidden, weight, labels, options=torch.nn.LinearCrossEntropyOptions(**options))


def liger_cutedsl(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """What LIGER_KERNEL_IMPL=cutedsl makes of Liger-Kernel's function, beside the Triton one in one process."""
    module = rival("liger_kernel.ops.cutedsl.ops", "liger-kernel[cutedsl]")
    return module.LigerFusedLinearCrossEntropyFunction.apply(hidden, weight, labels)[0]


def quack(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """Chunks of 4096 tokens, its default; on sm_90 in bf16 its scaled-exp pipeline."""
    module = rival("quack.linear_cross_entropy", "quack-kernels")
    return module.chunked_linear_cross_entropy(hidden, weight, labels)


RIVALS: dict[str, Callable[..., Tensor]] = {
    "torch chunked": torch_chunked,
    "liger cutedsl": liger_cutedsl,
    "quack": quack,
}


@pytest.mark.parametrize("way", ALL_WAYS)
@pytest.mark.parametrize("supervised_percent", [100, 10])
def test_loss_and_gradients(benchmark, supervised_percent, way):
    """FLOPs count the three matmuls over supervised tokens only."""
    benchmark.group = f"linear_cross_entropy, {T} x {C} x {V}, {supervised_percent} % supervised"
    fn = linear_cross_entropy if way == "ours" else RIVALS.get(way, linear_cross_entropy_ref)
    if way == KNOWN:
        fn = partial(linear_cross_entropy, num_labelled=T * supervised_percent // 100)
    elif way == "torch.compile":
        fn = torch.compile(fn)
    elif way == "liger":
        fn = liger("liger_fused_linear_cross_entropy")
    elif way == "cce_exact":
        fn = cce_exact()
    inputs, labels = problem(supervised_percent)
    num_tokens = T * supervised_percent // 100
    flops = 6 * C * V * num_tokens
    if way == MATMULS:
        run = partial(three_matmuls, inputs, num_tokens)
        measure(benchmark, run, run(), dtype=DTYPE, flops=flops)
        return
    run = partial(loss_and_grads, fn, inputs, labels)
    try:
        measure(benchmark, run, wanted(inputs, labels), dtype=DTYPE, flops=flops)
    except torch.OutOfMemoryError as error:
        if way in ("ours", KNOWN):
            raise
        pytest.skip(f"{way} does not fit {T} x {V} logits into this GPU: {error}")


def labelled_first(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """What a careful user of torch writes: the labelled tokens alone are multiplied."""
    rows = (labels != -100).nonzero().squeeze(1)
    return F.cross_entropy(F.linear(hidden[rows], weight).float(), labels[rows])


CPU_WAYS = {
    "ours": linear_cross_entropy,
    "torch": linear_cross_entropy_ref,
    "labelled first, torch": labelled_first,
    "torch chunked": torch_chunked,
    "torch chunked, 128 tokens, compact": partial(torch_chunked, batch_chunk_size=128, acc_policy="compact"),
}


@pytest.mark.skipif(DEVICE == "cuda", reason="the CPU's own sizes")
@pytest.mark.benchmark(timer=time.process_time)
@pytest.mark.parametrize("way", CPU_WAYS)
@pytest.mark.parametrize("supervised_percent", [100, 10])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_cpu(benchmark, rehearsed, dtype, supervised_percent, way):
    """CPU seconds of all threads: OMP_NUM_THREADS=1 compares work."""
    T, C, V = (64, 64, 1000) if rehearsed else (512, 512, 32_000)
    benchmark.group = f"linear_cross_entropy on a CPU, {T} x {C} x {V}, {dtype}, {supervised_percent} % supervised"
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(T, C, generator=generator).to(dtype).requires_grad_()
    weight = (torch.randn(V, C, generator=generator) * C**-0.5).to(dtype).requires_grad_()
    labels = torch.randint(V, (T,), generator=generator)
    labels[torch.rand(T, generator=generator) >= supervised_percent / 100] = -100
    wide = [x.detach().float().requires_grad_() for x in (hidden, weight)]
    run = partial(loss_and_grads, CPU_WAYS[way], [hidden, weight], labels)
    measure(benchmark, run, loss_and_grads(linear_cross_entropy_ref, wide, labels), dtype=dtype)


@pytest.mark.parametrize("way", ["ours", "one process"])
def test_vocab_parallel(benchmark, tmp_path, way):
    """The vocabulary over a process for each GPU, two on a CPU, beside one process with all of it. This process is the
    first of the group and its time is what counts: every collective waits for the others. FLOPs are those of a process.
    """
    benchmark.group = f"vocab_parallel_linear_cross_entropy, {T} x {C} x {V}, {NUM_PROCESSES} processes"
    (hidden, weight), labels = problem(100)
    loss, dhidden, dweight = wanted([hidden, weight], labels)
    flops = 6 * C * V * T
    if way == "one process":
        run = partial(loss_and_grads, linear_cross_entropy, [hidden, weight], labels)
        measure(benchmark, run, [loss, dhidden, dweight], dtype=DTYPE, flops=flops)
        return
    with process_group(tmp_path / "rendezvous") as next_round:
        want = [loss, dhidden, dweight.chunk(NUM_PROCESSES)[0]]
        measure(benchmark, share_of(0), want, dtype=DTYPE, flops=flops / NUM_PROCESSES, prepare=next_round)


def share_of(rank: int) -> Callable[[], list[Tensor]]:
    """What process `rank` of the group runs."""
    (hidden, weight), labels = problem(100)
    shard = weight.detach().chunk(NUM_PROCESSES)[rank].clone().requires_grad_()
    fn = partial(vocab_parallel_linear_cross_entropy, vocab_size=V, group=dist.group.WORLD)
    return partial(loss_and_grads, fn, [hidden, shard], labels)


@contextmanager
def process_group(rendezvous: Path) -> Iterator[Callable[[], None]]:
    """Makes this process the first of the group. The function it gives waits for the others, which then run their
    share once."""
    others = [
        mp.get_context("spawn").Process(target=run_share, args=(rank, rendezvous), daemon=True)
        for rank in range(1, NUM_PROCESSES)
    ]
    for process in others:
        process.start()
    try:
        join(0, rendezvous)
        yield meet
    finally:
        for process in others:  # they wait for a round that does not come
            process.terminate()
            process.join()
        if dist.is_initialized():
            dist.destroy_process_group()


def join(rank: int, rendezvous: Path) -> None:
    if DEVICE == "cuda":
        torch.cuda.set_device(rank)
    backend = "cpu:gloo,cuda:nccl" if DEVICE == "cuda" else "gloo"
    method, timeout = f"file://{rendezvous}", timedelta(minutes=2)
    dist.init_process_group(backend, init_method=method, rank=rank, world_size=NUM_PROCESSES, timeout=timeout)


def meet() -> None:
    dist.all_reduce(torch.zeros(1))


def run_share(rank: int, rendezvous: Path) -> None:
    join(rank, rendezvous)
    run = share_of(rank)
    while True:
        meet()
        run()
