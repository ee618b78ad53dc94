"""What every op's public function does with CUDA tensors, as far as a machine without a GPU can show it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch._subclasses.fake_tensor import FakeTensorMode

import eagle_kernels as ek
from eagle_kernels.attention import _varlen_attention
from eagle_kernels.checks import on_device_of


def ints(*values: int, dtype: torch.dtype = torch.int32, device: str = "cuda") -> Tensor:
    return torch.tensor(values, dtype=dtype, device=device)


def plan(device: str) -> ek.AttentionPlan:
    return ek.AttentionPlan.from_segments(*(ints(n, device=device) for n in (0, 5, 2, 6)), num_tokens=8)


def plan_of_three(device: str) -> ek.AttentionPlan:
    return ek.AttentionPlan.from_cu_seqlens(ints(0, 3, device=device), num_tokens=3)


TILING = ek.Tiling(mean=(0.5,) * 3, std=(0.5,) * 3, thumbnail=True)
# Each op of (8, 32) rows x and a row w.
OPS = {
    "rms_norm": lambda x, w: ek.rms_norm(x, w, 1e-6),
    "add_rms_norm": lambda x, w: ek.add_rms_norm(x, x, w, 1e-6),
    "layer_norm": lambda x, w: ek.layer_norm(x, w, w, 1e-6),
    "gelu_bias": lambda x, w: ek.gelu_bias(x, w),
    "swiglu": lambda x, w: ek.swiglu(x, x),
    "rope": lambda x, w: ek.rope(x.unsqueeze(1), x.unsqueeze(1), ints(*range(8), device=x.device), 1e4),
    "linear_cross_entropy": lambda x, w: ek.linear_cross_entropy(
        x, x, ints(*range(8), dtype=torch.int64, device=x.device)
    ),
    "varlen_attention": lambda x, w: ek.varlen_attention(*[x.unsqueeze(1)] * 3, ints(0, 3, 8, device=x.device)),
    "varlen_attention of a plan": lambda x, w: ek.varlen_attention(*[x.unsqueeze(1)] * 3, plan(x.device)),
    "merge_2x2": lambda x, w: ek.merge_2x2(x.view(2, 4, 32)),
    "scatter_visual": lambda x, w: ek.scatter_visual(x, x.narrow(0, 0, 3), ints(1, 2, 5, device=x.device)),
    "frames_to_tiles": lambda x, w: ek.frames_to_tiles(x.new_zeros(2, 4, 5, 3, dtype=torch.uint8), (2, 1), TILING),
    "yuv_to_tiles": lambda x, w: ek.yuv_to_tiles(
        *[x.new_zeros(2, *size, dtype=torch.uint8) for size in ((4, 5), (2, 3), (2, 3))],
        (2, 1),
        TILING,
        matrix="bt709",
        full_range=False,
    ),
}


def tensors(outputs: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


# A torch without CUDA cannot index fake CUDA tensors, as these do.
INDEXING = {"varlen_attention", "varlen_attention of a plan"}
COPYING = {"merge_2x2", "scatter_visual", "frames_to_tiles", "yuv_to_tiles"}


@pytest.mark.parametrize("op", [pytest.param(op, marks=pytest.mark.gpu if op in INDEXING else ()) for op in OPS])
def test_cuda_tensors_take_the_op_and_no_value_is_read(op: str) -> None:
    """Fake CUDA tensors have shapes and no values: whatever would make the host wait for one raises here."""
    real = tensors(OPS[op](torch.ones(8, 32), torch.ones(32)))
    with FakeTensorMode():
        fake = tensors(OPS[op](torch.ones(8, 32, device="cuda"), torch.ones(32, device="cuda")))
    assert [t.shape for t in fake] == [t.shape for t in real]
    assert [t.dtype for t in fake] == [t.dtype for t in real]
    assert all(t.device.type == "cuda" and t.is_contiguous() for t in fake)


@pytest.mark.parametrize("op", sorted(OPS.keys() - COPYING - {"varlen_attention of a plan"}))
def test_fp64_on_a_gpu_is_refused(op: str) -> None:
    """The kernels are fp32 inside; those that only copy take any dtype."""
    with FakeTensorMode(), pytest.raises(ValueError, match=r"dtype is torch.float64; needs one of torch.bfloat16, "):
        OPS[op](torch.ones(8, 32, device="cuda").double(), torch.ones(32, device="cuda").double())


def test_a_kernel_starts_on_the_device_of_its_tensors(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    """Triton launches on the current device, whatever device the pointers belong to."""
    seen: list[Tensor] = []
    whole = torch.cuda.device_of
    monkeypatch.setattr(torch.cuda, "device_of", lambda tensor: seen.append(tensor) or whole(tensor))
    x = torch.ones(3, 16, device=device)
    x_THD, one = x.unsqueeze(1), plan_of_three(device)
    for op, arguments in {
        "attention_fwd": (x_THD, x_THD, x_THD, one.segments_S4, one.q_tiles_N2, one.k_tiles_M4, True, True, 0.25),
        "rms_norm": (x, x[0], 1e-6),
        "layer_norm": (x, x[0], x[0], 1e-6),
        "gelu_bias": (x, x[0]),
        "swiglu": (x, x),
        "rope": (x_THD, x_THD, ints(0, 1, 2, device=device), 1e4, False),
        "merge_2x2": (x.new_ones(1, 4, 2), False),
        "linear_cross_entropy": (x, x, ints(0, 1, 2, dtype=torch.int64, device=device), None, -100, True, True, True),
    }.items():
        seen.clear()
        getattr(torch.ops.eagle, op)(*arguments)
        assert seen, op
        assert all(t.device == x.device for t in seen)
    with on_device_of(torch.ones(1)):
        pass  # a CPU tensor on a machine without a GPU


@pytest.mark.gpu
def test_a_second_gpu() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip(f"needs two GPUs; this machine has {torch.cuda.device_count()}")
    for op, call in OPS.items():
        first, second = (
            tensors(call(torch.ones(8, 32, device=d), torch.ones(32, device=d))) for d in ("cuda:0", "cuda:1")
        )
        for a, b in zip(first, second, strict=True):
            assert torch.equal(a.cpu(), b.cpu()), op


def attend_by_offsets(q_THD: Tensor, cu_seqlens: Tensor) -> Tensor:
    """What varlen_attention does with CUDA tensors; its offsets are read on a CPU, which is no part of a graph."""
    num_tokens = q_THD.shape[0]
    made = ek.AttentionPlan.from_cu_seqlens(cu_seqlens, num_tokens=num_tokens, num_tokens_k=num_tokens)
    return _varlen_attention(q_THD, q_THD, q_THD, made, True, 0.25)[0]


def rows(T: int, device: str = "cpu") -> Tensor:
    return torch.ones(T, 2, 16, device=device)


def numbers(T: int, device: str = "cpu") -> Tensor:
    return torch.arange(T, dtype=torch.int32, device=device)


OF_MANY_SIZES: dict[str, tuple[Callable[..., object], Callable[[int], tuple[Tensor, ...]]]] = {
    "varlen_attention": (attend_by_offsets, lambda T: (rows(T, "meta"), numbers(T // 2, "meta"))),
    "decode_attention": (
        ek.decode_attention,
        lambda T: (rows(T), rows(T + 9), rows(T + 9), numbers(T), torch.ones(T, dtype=torch.int32)),
    ),
    "merge_attention": (
        lambda out, lse: ek.merge_attention(out, lse, out, lse),
        lambda T: (rows(T), torch.zeros(2, T)),
    ),
    "rope": (lambda x, positions: ek.rope(x, x, positions, 1e4), lambda T: (rows(T), numbers(T))),
    "qkv_rope": (
        lambda x, bias, positions: ek.qkv_rope(x, bias, positions, 1e4, num_heads=2, num_kv_heads=1),
        lambda T: (rows(T).flatten(1), torch.ones(32), numbers(T)),
    ),
    "linear_cross_entropy": (
        ek.linear_cross_entropy,
        lambda T: (torch.ones(T, 16), torch.ones(99, 16), numbers(T).long(), torch.ones(T)),
    ),
    "scatter_visual": (
        ek.scatter_visual,
        lambda T: (torch.ones(T, 16), torch.ones(T // 2, 16), numbers(T // 2)),
    ),
    "swiglu": (ek.swiglu, lambda T: (torch.ones(T, 16), torch.ones(T, 16))),
    "rms_norm": (lambda x, w: ek.rms_norm(x, w, 1e-6), lambda T: (torch.ones(T, 16), torch.ones(16))),
}


@pytest.mark.parametrize("op", OF_MANY_SIZES)
def test_a_new_number_of_rows_compiles_nothing(op: str) -> None:
    """Batches have other lengths each: torch.compile makes one graph of sizes, after a first of constants."""
    fn, arguments = OF_MANY_SIZES[op]
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(fn, fullgraph=True, backend=counter)
    for T in (7, 12, 31, 16, 22):
        compiled(*arguments(T))
    assert counter.frame_count <= 2


@pytest.mark.parametrize("shape", [(0,), (4, 0), (2, 4, 0), (2, 0, 3)])
@pytest.mark.parametrize("op", ["rms_norm", "add_rms_norm", "layer_norm", "gelu_bias", "swiglu"])
def test_cuda_tensors_may_be_empty(op: str, shape: tuple[int, ...]) -> None:
    with FakeTensorMode():
        outputs = tensors(OPS[op](torch.ones(shape, device="cuda"), torch.ones(shape[-1:], device="cuda")))
    assert all(t.shape == shape for t in outputs)
