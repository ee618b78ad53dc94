"""What every op's public function asks of its arguments, and does with CUDA tensors as far as a CPU can show it."""

import contextlib
import importlib
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch._subclasses.fake_tensor import FakeTensorMode

import eagle_kernels as ek
from eagle_kernels.attention import _varlen_attention
from eagle_kernels.checks import on_device_of

ROOT = Path(__file__).parents[2]


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


def tensors_of(outputs: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


# A torch without CUDA cannot index fake CUDA tensors, as these do.
INDEXING = {"varlen_attention", "varlen_attention of a plan"}
COPYING = {"merge_2x2", "scatter_visual", "frames_to_tiles", "yuv_to_tiles"}


@pytest.mark.parametrize("op", [pytest.param(op, marks=pytest.mark.gpu if op in INDEXING else ()) for op in OPS])
def test_cuda_tensors_take_the_op_and_no_value_is_read(op: str) -> None:
    """Fake CUDA tensors have shapes and no values: whatever would make the host wait for one raises here."""
    real = tensors_of(OPS[op](torch.ones(8, 32), torch.ones(32)))
    with FakeTensorMode():
        fake = tensors_of(OPS[op](torch.ones(8, 32, device="cuda"), torch.ones(32, device="cuda")))
    assert [t.shape for t in fake] == [t.shape for t in real]
    assert [t.dtype for t in fake] == [t.dtype for t in real]
    assert all(t.device.type == "cuda" and t.is_contiguous() for t in fake)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("op", OPS)
def test_tensors_without_numbers_take_the_op(op: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So memory and graph are a GPU's on a machine without one, and no value is asked for. Real ones on a CPU do not:
    the references of the ops that have one are made to fail."""
    real = tensors_of(OPS[op](torch.ones(8, 32), torch.ones(32)))
    module = importlib.import_module("eagle_kernels." + op.split()[0].removeprefix("add_").removeprefix("varlen_"))
    for name in [name for name in vars(module) if name.endswith("_ref")]:
        monkeypatch.setattr(module, name, None)
    with FakeTensorMode() if device == "cpu" else contextlib.nullcontext():
        x, w = torch.ones(8, 32, device=device, requires_grad=True), torch.ones(32, device=device, requires_grad=True)
        fake = tensors_of(OPS[op](x, w))
        if fake[0].requires_grad:
            sum(t.sum() for t in fake).backward()
            assert x.grad is not None
    assert [(t.shape, t.dtype, t.device.type) for t in fake] == [(t.shape, t.dtype, device) for t in real]


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
            tensors_of(call(torch.ones(8, 32, device=d), torch.ones(32, device=d))) for d in ("cuda:0", "cuda:1")
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
        outputs = tensors_of(OPS[op](torch.ones(shape, device="cuda"), torch.ones(shape[-1:], device="cuda")))
    assert all(t.shape == shape for t in outputs)


ROWS, WEIGHT, HEADS = torch.ones(8, 32), torch.ones(32), torch.ones(8, 2, 16)
LSE, INDEX = torch.ones(2, 8), torch.arange(8)
PIXELS, HALF_PIXELS = torch.zeros(1, 4, 6, dtype=torch.uint8), torch.zeros(1, 2, 3, dtype=torch.uint8)
COLOUR = {"matrix": "bt709", "full_range": False}
PAIR = torch.tensor([0, 8], dtype=torch.int32)
OFFSETS = {"num_tokens": 8}
# Each public function: its tensors by name, in order, and its other arguments.
ARGUMENTS: dict[str, tuple[Callable[..., object], dict[str, Tensor], tuple[object, ...], dict[str, object]]] = {
    "rms_norm": (ek.rms_norm, {"x": ROWS, "weight": WEIGHT}, (1e-6,), {}),
    "add_rms_norm": (ek.add_rms_norm, {"x": ROWS, "residual": ROWS, "weight": WEIGHT}, (1e-6,), {}),
    "layer_norm": (ek.layer_norm, {"x": ROWS, "weight": WEIGHT, "bias": WEIGHT}, (1e-6,), {}),
    "merge_2x2": (ek.merge_2x2, {"patches": ROWS.view(2, 4, 32)}, (), {}),
    "merge_2x2_layer_norm": (
        ek.merge_2x2_layer_norm,
        {"patches": ROWS.view(2, 4, 32), "weight": torch.ones(128), "bias": torch.ones(128)},
        (1e-6,),
        {},
    ),
    "gelu_bias": (ek.gelu_bias, {"x": ROWS, "bias": WEIGHT}, (), {}),
    "swiglu": (ek.swiglu, {"gate": ROWS, "up": ROWS}, (), {}),
    "rope": (ek.rope, {"q": HEADS, "k": HEADS, "positions": INDEX}, (1e4,), {}),
    "qkv_rope": (
        ek.qkv_rope,
        {"qkv": torch.ones(8, 64), "bias": torch.ones(64), "positions": INDEX},
        (1e4,),
        {"num_heads": 2, "num_kv_heads": 1},
    ),
    "scatter_visual": (ek.scatter_visual, {"embeddings": ROWS, "visual": ROWS, "rows": INDEX}, (), {}),
    "linear_cross_entropy": (ek.linear_cross_entropy, {"hidden": ROWS, "weight": ROWS, "labels": INDEX}, (), {}),
    "varlen_attention": (ek.varlen_attention, {"q": HEADS, "k": HEADS, "v": HEADS, "cu_seqlens": PAIR}, (), {}),
    "flash_attn_varlen_func": (
        ek.flash_attn_varlen_func, {"q": HEADS, "k": HEADS, "v": HEADS, "cu_seqlens": PAIR}, (PAIR, 8, 8), {}
    ),
    "merge_attention": (
        ek.merge_attention, {"out_a": HEADS, "lse_a": LSE, "out_b": HEADS, "lse_b": LSE}, (), {}
    ),
    "decode_attention": (
        ek.decode_attention,
        {"q": HEADS[:1], "k": HEADS, "v": HEADS, "k_start": PAIR[:1], "k_len": PAIR[1:]},
        (),
        {},
    ),
    "AttentionPlan.from_cu_seqlens": (ek.AttentionPlan.from_cu_seqlens, {"cu_seqlens": PAIR}, (), OFFSETS),
    "AttentionPlan.from_segments": (
        ek.AttentionPlan.from_segments,
        {"q_start": PAIR[:1], "q_len": PAIR[1:], "k_start": PAIR[:1], "k_len": PAIR[1:]},
        (),
        OFFSETS,
    ),
    "frames_to_tiles": (ek.frames_to_tiles, {"frames": PIXELS[..., None].repeat(1, 1, 1, 3)}, ((1, 1), TILING), {}),
    "yuv_to_tiles": (
        ek.yuv_to_tiles, {"y": PIXELS, "u": HALF_PIXELS, "v": HALF_PIXELS}, ((1, 1), TILING), COLOUR
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "got"),
    [
        (None, "None"),
        (np.ones((8, 32), dtype=np.float32), "a numpy.ndarray"),
        (torch.nn.Linear(2, 2), "a torch.nn.modules.linear.Linear"),
        ([1.0, 2.0], "a list"),
    ],
    ids=["None", "numpy", "module", "list"],
)
@pytest.mark.parametrize("op", ARGUMENTS)
def test_what_is_no_tensor_is_named(op: str, wrong: object, got: str) -> None:
    """In the name of the function that was called, by the argument, with what it is and what it should be."""
    function, tensors, others, options = ARGUMENTS[op]
    function(*tensors.values(), *others, **options)
    for name in tensors:
        if wrong is None and (op, name) == ("qkv_rope", "bias"):
            continue  # it may be absent
        given = {**tensors, name: wrong}
        with pytest.raises(ValueError, match=rf"^{op}: {name} is {got}; needs a torch tensor"):
            function(*given.values(), *others, **options)


@pytest.mark.parametrize("op", ["rms_norm", "add_rms_norm", "layer_norm", "merge_2x2_layer_norm"])
@pytest.mark.parametrize("eps", [0, -1e-6, float("nan"), float("inf"), True, None, torch.ones(())])
def test_eps_is_above_zero(op: str, eps: object) -> None:
    function, tensors, *_ = ARGUMENTS[op]
    with pytest.raises(ValueError, match=f"^{op}: eps is .*; needs a finite number > 0"):
        function(*tensors.values(), eps)


def test_a_long_value_stays_short_in_a_refusal() -> None:
    with pytest.raises(ValueError, match=r"rms_norm: eps is \[0, 1, .*\.\.\.; needs a finite number > 0") as error:
        ek.rms_norm(torch.ones(2, 4), torch.ones(4), list(range(10_000)))  # type: ignore[arg-type]
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("op", ["rope", "qkv_rope"])
def test_positions_count_from_zero(op: str) -> None:
    function, tensors, others, options = ARGUMENTS[op]
    wrong = {**tensors, "positions": INDEX - 3}
    with pytest.raises(ValueError, match=f"^{op}: a position is -3; needs 0 or more"):
        function(*wrong.values(), *others, **options)
    compiled = torch.compile(lambda *tensors: function(*tensors, *others, **options), fullgraph=True, backend="eager")
    compiled(*tensors.values())
    with pytest.raises(RuntimeError, match=f"{op}: a position is below 0"):
        compiled(*wrong.values())


@pytest.mark.parametrize(("op", "argument"), [("rope", "theta"), ("varlen_attention", "softmax_scale")])
@pytest.mark.parametrize("value", ["1", torch.ones(1), float("inf"), True])
def test_numbers_are_numbers(op: str, argument: str, value: object) -> None:
    function, tensors, *_ = ARGUMENTS[op]
    with pytest.raises(ValueError, match=f"^{op}: {argument} is .*; needs .*a finite number > 0"):
        function(*tensors.values(), **{argument: value})


def no_rows(x: Tensor) -> Tensor:
    return x[:0].requires_grad_(x.is_floating_point())


NONE = torch.zeros(1, dtype=torch.int32)


@pytest.mark.parametrize("op", [*sorted(OPS.keys() - {"varlen_attention of a plan", "frames_to_tiles", "yuv_to_tiles"}),
                                "qkv_rope", "merge_2x2_layer_norm", "flash_attn_varlen_func"])  # fmt: skip
def test_outputs_without_rows_keep_their_gradient(op: str) -> None:
    """A rank may have no image, or no text: its backward runs all the same, and gives zeros."""
    function, tensors, others, options = ARGUMENTS[op]
    parameters = {"weight", "bias"}
    given = {
        name: x.clone().requires_grad_() if name in parameters else NONE if name == "cu_seqlens" else no_rows(x)
        for name, x in tensors.items()
    }
    others = (NONE, 0, 0) if op == "flash_attn_varlen_func" else others
    outs = tensors_of(function(*given.values(), *others, **options))
    assert all(out.requires_grad for out in outs)
    wanted = [x for x in given.values() if x.requires_grad]
    for x, dx in zip(wanted, torch.autograd.grad([out.sum() for out in outs], wanted), strict=True):
        assert dx.shape == x.shape
        assert not dx.any()


def test_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+", ek.__version__)
    assert 'version = { attr = "eagle_kernels.__version__" }' in (ROOT / "pyproject.toml").read_text()
