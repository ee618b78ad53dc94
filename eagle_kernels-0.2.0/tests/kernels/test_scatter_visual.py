"""scatter_visual: a copy, bit for bit, on every path; its gradient; what it refuses; what the compiler made of it."""

from __future__ import annotations

import ctypes
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from eagle_kernels import native
from eagle_kernels.scatter_visual import _bwd, _bytes, _fwd, scatter_visual, scatter_visual_ref
from tests.kernels.cuda_on_cpu import ARCHITECTURES, build, machine_code, resources
from tests.kernels.op_checks import DTYPES, check_as_good, check_compiles, far_rows, far_tensor, poisoned_memory
from tests.numerics import randn

SHAPES = [(1, 1, 1), (17, 5, 100), (6, 4, 3584)]  # tokens, visual tokens, width: one, ragged, the language model's own


def rows_of_bytes(x: Tensor) -> native.View:
    return _bytes(native.view(x), x.element_size())


def inputs(T, N, C, dtype, device):
    return randn(T, C, dtype=dtype, device=device), randn(N, C, dtype=dtype, device=device, seed=1)


def spread(T, N, device, dtype=torch.int64):
    return (torch.arange(N, device=device) * T // max(N, 1)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("T", "N", "C"), SHAPES)
def test_is_a_copy(T, N, C, dtype, device):
    embeddings, visual = inputs(T, N, C, dtype, device)
    rows = spread(T, N, device)
    out = scatter_visual(embeddings, visual, rows)
    want = embeddings.detach().clone()
    want[rows] = visual.detach()
    assert torch.equal(out, want)
    check_as_good(
        lambda e, v: scatter_visual(e, v, rows), lambda e, v: scatter_visual_ref(e, v, rows), (embeddings, visual)
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64, torch.uint8, torch.bool, torch.complex64])
def test_takes_any_dtype(dtype, device):
    embeddings, visual = (torch.arange(n, device=device).view(-1, 3).to(dtype) for n in (15, 6))
    rows = torch.tensor([0, 3], device=device)
    assert torch.equal(scatter_visual(embeddings, visual, rows), scatter_visual_ref(embeddings, visual, rows))


def test_keeps_the_bits_of_every_number(device):
    """NaN with its payload, infinities, negative zero."""
    bits = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(256, 256).to(device)
    rows = torch.arange(0, 256, 2, device=device)
    out = scatter_visual(bits.view(torch.bfloat16), bits[rows].flip(1).view(torch.bfloat16), rows)
    want = bits.clone()
    want[rows] = bits[rows].flip(1)
    assert torch.equal(out.view(torch.int16), want)


def test_overwritten_rows_take_no_gradient(device):
    embeddings, visual = inputs(5, 2, 3, torch.float32, device)
    rows = torch.tensor([1, 4], device=device, dtype=torch.int32)
    dout = randn(5, 3, device=device, seed=2).detach()
    out = scatter_visual(embeddings, visual, rows)
    dembeddings, dvisual = torch.autograd.grad(out, (embeddings, visual), dout)
    assert torch.equal(dvisual, dout[rows])
    assert torch.equal(dembeddings[rows], torch.zeros(2, 3, device=device))
    assert torch.equal(dembeddings[[0, 2, 3]], dout[[0, 2, 3]])


def test_no_visual_tokens_leave_the_embeddings(device):
    embeddings, visual = inputs(4, 0, 3, torch.float32, device)
    rows = torch.zeros(0, dtype=torch.int64, device=device)
    out = scatter_visual(embeddings, visual, rows)
    assert torch.equal(out, embeddings)
    assert out.data_ptr() != embeddings.data_ptr()
    assert torch.equal(torch.autograd.grad(out.sum(), embeddings)[0], torch.ones_like(embeddings))


@pytest.mark.parametrize(("T", "N", "C"), [(0, 0, 3), (4, 2, 0)])
def test_empty(T, N, C, device):
    args = inputs(T, N, C, torch.float32, device)
    out = scatter_visual(*args, spread(T, N, device))
    dembeddings, dvisual = torch.autograd.grad(out.sum(), args)
    assert (out.shape, dembeddings.shape, dvisual.shape) == ((T, C), (T, C), (N, C))


@pytest.mark.parametrize("frozen", [0, 1])
def test_gradients_only_for_what_needs_them(frozen, device):
    args, rows = inputs(9, 3, 130, torch.float32, device), spread(9, 3, device)
    args[frozen].requires_grad_(False)
    check_as_good(lambda e, v: scatter_visual(e, v, rows), lambda e, v: scatter_visual_ref(e, v, rows), args)
    made = _bwd(args[0].detach(), rows, frozen != 0, frozen != 1)
    assert [t.numel() > 0 for t in made] == [frozen != 0, frozen != 1]


def test_strided_inputs(device):
    embeddings, visual = randn(20, 9, device=device), randn(3, 40, device=device, seed=1)
    rows = torch.tensor([0, 9, 4, 9, 8, 9], device=device)[::2]
    for v in (lambda t: t[:, 20:], lambda t: t[:, ::2]):
        check_as_good(
            lambda e, t, v=v: scatter_visual(e.T, v(t), rows),
            lambda e, t, v=v: scatter_visual_ref(e.T, v(t), rows),
            (embeddings, visual),
        )
    one, rows = randn(1, 40, device=device, seed=2).detach(), rows.new_zeros(1)
    column = one[:, 3:4]  # contiguous to torch, though its last stride need not be 1
    out = scatter_visual(one.T[::2].as_strided((20, 1), (2, 7)), column, rows)
    assert torch.equal(out, torch.cat((column, one.T[2::2])))
    everywhere = column.expand(4, 5)  # a stride of 0
    assert torch.equal(scatter_visual(everywhere, one[:, :5], rows), torch.cat((one[:, :5], everywhere[1:])))


def test_opcheck(device):
    args, rows = inputs(5, 2, 3, torch.float32, device), spread(5, 2, device)
    torch.library.opcheck(_fwd.overload, (*args, rows))
    torch.library.opcheck(_bwd.overload, (args[0].detach(), rows, True, False))


def test_compiles(device):
    args, rows = inputs(5, 2, 3, torch.float32, device), spread(5, 2, device)
    check_compiles(lambda e, v: scatter_visual(e, v, rows), args)


def test_rows_beyond_32_bits(device):
    """Sources through the op, rows 2**30 elements apart; the test of the CUDA code below writes so, too."""
    embeddings, visual = (t.detach() for t in inputs(4, 3, 20, torch.float16, device))
    rows = torch.tensor([0, 1, 3], device=device, dtype=torch.int32)
    assert torch.equal(_fwd(far_rows(embeddings), far_rows(visual), rows), _fwd(embeddings, visual, rows))
    for a, b in zip(_bwd(far_rows(embeddings), rows, True, True), _bwd(embeddings, rows, True, True), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("num_visual", [1, 2, 3, 15, 16, 17, 40])
def test_every_row_finds_itself(num_visual, device):
    """The search by halves, at counts around powers of two, with rows at both ends, dense and scattered."""
    for seed in range(3):
        chosen = torch.randperm(40, generator=torch.Generator().manual_seed(seed))[:num_visual]
        rows = chosen.sort().values.to(device)
        embeddings, visual = torch.zeros(40, 1, device=device), torch.arange(1.0, 41, device=device)[:num_visual, None]
        assert torch.equal(_fwd(embeddings, visual, rows), scatter_visual_ref(embeddings, visual, rows))
        dout = torch.arange(1.0, 41, device=device)[:, None]
        dembeddings, dvisual = _bwd(dout, rows, True, True)
        assert torch.equal(dvisual, dout[rows])
        assert torch.equal(dembeddings, dout.index_fill(0, rows, 0))


def test_more_rows_than_a_block_of_a_thread():
    """The CPU code shares the rows out by megabytes: here three blocks, the last one ragged, on three threads."""
    args, rows = inputs(600, 400, 1000, torch.float32, "cpu"), spread(600, 400, "cpu")
    want = scatter_visual_ref(*args, rows)
    out = torch.full_like(want, torch.nan)
    run_on_cpu(args[0], args[1], rows, out, backward=False, num_threads=3)
    assert torch.equal(out, want)


def run_on_cpu(text, visual, rows, whole, *, backward, num_threads=1):
    core = native.load()
    views = {
        "text": rows_of_bytes(text),
        "visual": rows_of_bytes(visual),
        "rows": native.view(rows),
        "whole": rows_of_bytes(whole),
    }
    core.scatter_visual_cpu(core.ScatterVisual(**views, backward=backward), num_threads)


@pytest.mark.parametrize("rows", [[-5, 2], [1, 9], [3, 1], [2, 2]])
def test_wrong_rows_write_nothing_outside(rows):
    """Forward refuses them; backward, which does not look again, stays within its tensors."""
    text, visual = torch.zeros(12, 3), torch.zeros(6, 3)
    run_on_cpu(text[4:8], visual[2:4], torch.tensor(rows), torch.ones(4, 3), backward=True)
    assert not text[:4].any() and not text[8:].any()
    assert not visual[:2].any() and not visual[4:].any()


E5 = torch.zeros(5, 3)
V2 = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("embeddings", "visual", "rows", "message"),
    [
        (E5, V2, [1, 2, 3], "scatter_visual: the number of visual tokens is 2; needs 3, the number of rows"),
        (E5, V2, [1, 1], r"scatter_visual: rows\[1\] is 1; needs rows strictly ascending and within 0 <= row < 5\."),
        (E5, V2, [2, 1], r"rows\[1\] is 1; needs rows strictly ascending"),
        (E5, V2, [-1, 1], r"rows\[0\] is -1; needs rows"),
        (E5, V2, [0, 5], r"rows\[1\] is 5; needs rows"),
        (E5, torch.ones(9, 3), [0] * 9, "the number of rows is 9; needs at most 5, one for each of the embeddings"),
        (E5[:, :0], V2[:, :0], [4, 3], r"rows\[1\] is 3; needs rows"),
        (E5, V2[:, :2], [0, 1], r"visual's shape is \(2, 2\); needs \(N, 3\), the width of the embeddings"),
        (E5, V2.half(), [0, 1], "visual's dtype is torch.float16; needs embeddings's torch.float32"),
        (E5[0], V2, [0, 1], r"embeddings' shape is \(3,\); needs \(T, C\)"),
        (E5, V2, [[0, 1]], r"rows is torch.int64 \(1, 2\); needs int32 or int64 and \(N,\)"),
        (E5, V2, [0.0, 1.0], r"rows is torch.float32 \(2,\); needs int32 or int64"),
        (E5.to("meta"), V2.to("meta"), [0, 1], "rows' device is cpu; needs meta"),
    ],
)
def test_refuses(embeddings, visual, rows, message):
    with pytest.raises(ValueError, match=message):
        scatter_visual(embeddings, visual, torch.tensor(rows))
    assert embeddings.is_meta or not embeddings.any()  # nothing was written


def test_refuses_rows_that_are_no_tensor():
    with pytest.raises(ValueError, match="scatter_visual: rows is a list; needs a torch tensor"):
        scatter_visual(E5, V2, [0, 1])


def test_compiled_code_refuses_wrong_rows():
    compiled = torch.compile(scatter_visual, fullgraph=True, backend="aot_eager")
    with pytest.raises(ValueError, match=r"scatter_visual: rows\[1\] is 1; needs rows strictly ascending"):
        compiled(E5, V2, torch.tensor([2, 1]))


def test_the_core_refuses_what_does_not_agree():
    good = {
        "text": rows_of_bytes(E5),
        "visual": rows_of_bytes(V2),
        "whole": rows_of_bytes(E5),
        "rows": native.view(torch.arange(2)),
    }
    core = native.load()
    for name, wrong, backward, message in [
        ("rows", native.view(torch.zeros(2)), False, "rows needs int32 or int64 and 1 dim"),
        ("rows", native.view(torch.arange(3)), False, r"visual is \(2, 12\); needs \(3, 12\)\."),
        ("text", rows_of_bytes(E5[:4]), False, r"text is \(4, 12\); needs \(5, 12\)\."),
        ("text", rows_of_bytes(E5.new_empty(0, 0)), False, r"text is \(0, 0\); needs \(5, 12\)\."),
        (
            "visual",
            rows_of_bytes(V2[:, :2]),
            True,
            r"visual is \(2, 8\); needs \(2, 12\), or \(0, 0\) where it is not wanted",
        ),
        ("whole", native.view(E5), False, "whole needs uint8 and 2 dims, the bytes of a row side by side"),
        ("whole", native.view(torch.zeros(5, 24, dtype=torch.uint8)[:, ::2]), False, "whole needs uint8 and 2 dims"),
    ]:
        with pytest.raises(ValueError, match=f"^scatter_visual: {message}"):
            core.scatter_visual_cpu(core.ScatterVisual(**(good | {name: wrong}), backward=backward), 1)
    with pytest.raises(ValueError, match="num_threads is -1; needs >= 0"):
        core.scatter_visual_cpu(core.ScatterVisual(**good, backward=False), -1)


ENTRY_POINT = """
extern "C" void run_kernels(const int64_t* addresses, const int64_t* num_rows, const int64_t* strides,
                            int64_t row_bytes, const char* rows_dtype, bool backward) {
  const auto rows_of = [&](int i) {
    return eagle::make_view("view", addresses[i], {num_rows[i], num_rows[i] ? row_bytes : 0}, {strides[i], 1}, "uint8",
                            INT64_MAX);
  };
  const eagle::TensorView rows = eagle::make_view("rows", addresses[2], {num_rows[2]}, {strides[2]}, rows_dtype,
                                                  INT64_MAX);
  eagle::scatter_visual_cuda({rows_of(0), rows_of(1), rows, rows_of(3), backward}, 0, 0);
}
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The CUDA code, built for the CPU."""
    folder = tmp_path_factory.mktemp("scatter_on_cpu")
    build(folder, "scatter_visual", 1, ENTRY_POINT, ["scatter_visual.cpp"])
    return folder / "kernels.so"


def run_cuda_code(library: Path, text: Tensor, visual: Tensor, rows: Tensor, whole: Tensor, *, backward: bool) -> None:
    tensors = [text, visual, rows, whole]
    size = whole.element_size()
    numbers = [
        (ctypes.c_int64 * 4)(*values)
        for values in (
            [t.data_ptr() for t in tensors],
            [t.shape[0] for t in tensors],
            [t.stride(0) * (1 if t is rows else size) for t in tensors],
        )
    ]
    dtype = str(rows.dtype).removeprefix("torch.").encode()
    row_bytes = ctypes.c_int64(whole.shape[1] * size)
    ctypes.CDLL(str(library)).run_kernels(*numbers, row_bytes, dtype, ctypes.c_bool(backward))


# Rows of 16, 4, 2 and 1 bytes at once; more than 32 x 4 units, so that threads go round again.
@pytest.mark.parametrize(
    ("C", "dtype"),
    [(1160, torch.bfloat16), (16, torch.float32), (129, torch.float32), (77, torch.bfloat16), (33, torch.uint8)],
)
@pytest.mark.parametrize("rows_dtype", [torch.int32, torch.int64])
def test_cuda_code_run_on_the_cpu_gives_the_same_bits(library, C, dtype, rows_dtype):
    T, N = 19, 7  # three blocks, the last one ragged
    embeddings, visual = (torch.arange(n * C).reshape(n, C).to(dtype) + i for i, n in enumerate((T, N)))
    rows = torch.tensor([0, 1, 5, 8, 15, 16, 18], dtype=rows_dtype)
    with poisoned_memory():
        out, dembeddings, dvisual = (torch.empty(n, C, dtype=dtype) for n in (T, T, N))
    run_cuda_code(library, embeddings, visual, rows, out, backward=False)
    assert torch.equal(out, scatter_visual_ref(embeddings, visual, rows))
    nothing = torch.empty(0, 0, dtype=dtype)
    want_dembeddings, want_dvisual = embeddings.index_fill(0, rows.long(), 0), embeddings[rows]
    for first, second in ((dembeddings, dvisual), (dembeddings, nothing), (nothing, dvisual)):
        for t in (first, second):
            t.fill_(111)
        run_cuda_code(library, first, second, rows, embeddings, backward=True)
        assert first is nothing or torch.equal(first, want_dembeddings)
        assert second is nothing or torch.equal(second, want_dvisual)


def test_cuda_code_takes_views_that_16_bytes_do_not_divide(library):
    """One tensor of rows at an odd address or stride makes all of them move in smaller units; none is read wrongly."""
    base, rows = torch.randn(9, 40).half(), torch.tensor([2, 3, 7])
    visual = torch.randn(3, 16).half()
    for embeddings in (base[:, 8:24], base[:, 2:18], base[:, 1:17], torch.randn(9, 17).half()[:, :16]):
        out = torch.full((9, 16), torch.nan).half()
        run_cuda_code(library, embeddings, visual, rows, out, backward=False)
        assert torch.equal(out, scatter_visual_ref(embeddings, visual, rows))


def test_cuda_code_writes_rows_beyond_32_bits(library):
    embeddings, visual = (t.detach() for t in inputs(4, 3, 20, torch.float16, "cpu"))
    rows = torch.tensor([0, 1, 3], dtype=torch.int32)
    out, dembeddings, dvisual = (far_tensor((n, 20), (2**30, 1), torch.float16, "cpu") for n in (4, 4, 3))
    run_cuda_code(library, far_rows(embeddings), far_rows(visual), rows, out, backward=False)
    assert torch.equal(out, scatter_visual_ref(embeddings, visual, rows))
    run_cuda_code(library, dembeddings, dvisual, rows, embeddings, backward=True)
    assert torch.equal(dembeddings, embeddings.index_fill(0, rows.long(), 0))
    assert torch.equal(dvisual, embeddings[rows])


@pytest.mark.parametrize("rows", [(0, 0), (1, 0), (-1, 0), (0, 2)])
def test_cuda_code_asserts_the_rows(library, rows):
    """In a process of its own, which the assertion ends."""
    code = f"""
import ctypes
memory, rows = (ctypes.c_char * 64)(), (ctypes.c_int64 * 2)(*{rows})
addresses = (ctypes.c_int64 * 4)(*[ctypes.addressof(x) for x in (memory, memory, rows, memory)])
four = lambda *x: (ctypes.c_int64 * 4)(*x)
ctypes.CDLL({str(library)!r}).run_kernels(addresses, four(2, 2, 2, 2), four(4, 4, 1, 4), ctypes.c_int64(4), b"int64", 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -signal.SIGABRT, done.stderr
    assert "rows_ascend_strictly_and_lie_in_the_embeddings" in done.stderr


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_cuda_kernels_keep_their_registers(architecture):
    """No spill, and few enough registers that a multiprocessor holds six blocks of 256 threads: 96 KB on their way."""
    found = resources("scatter_kernel", architecture)
    assert len(found) == 4  # 16, 4, 2 and 1 bytes at once
    for usage in found:
        assert usage["LOCAL"] == usage["STACK"] == usage["SHARED"] == 0
        assert usage["REG"] <= 40


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_cuda_kernels_move_16_bytes_at_once(architecture):
    """At Eagle's width; and the compiler sees that every address is one of global memory (LDG, not the generic LD)."""
    moves = re.findall(r"\b(LDG?|STG?)\.E((?:\.\w+)*)", machine_code(r"scatter_kernel\S*Vector", architecture))
    assert {name for name, _ in moves} == {"LDG", "STG"}
    assert all(".128" in width for name, width in moves if name == "STG")
    wide = "".join(name for name, width in moves if ".128" in width)  # the other loads look up rows
    assert "LDG" * 4 + "STG" in wide, "four loads are on their way before the first store waits"


@pytest.mark.skipif(torch.cuda.is_available(), reason="here the op would reach the GPU")
def test_cuda_tensors_without_cuda_code_are_an_error(monkeypatch):
    class CudaTensor(Tensor):
        is_cuda = True

        def new_empty(self, *shape):
            return torch.empty(*shape).as_subclass(CudaTensor)

    monkeypatch.setattr(native, "build_info", lambda: {"has_cuda": False})
    with pytest.raises(RuntimeError, match=r"scatter_visual: .* was built without CUDA\. Put nvcc on PATH"):
        _fwd.function(*[t.as_subclass(CudaTensor) for t in (E5, V2, torch.arange(2))])


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("T", "N", "C"), [*SHAPES, (3000, 2000, 3584)])
def test_gpu_agrees_with_the_cpu(T, N, C, dtype):
    args, rows = [t.detach() for t in inputs(T, N, C, dtype, "cpu")], spread(T, N, "cpu")
    assert torch.equal(scatter_visual(*[t.cuda() for t in args], rows.cuda()).cpu(), scatter_visual(*args, rows))
    got, want = _bwd(args[0].cuda(), rows.cuda(), True, True), _bwd(args[0], rows, True, True)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(got, want, strict=True))


@pytest.mark.gpu
def test_gpu_asserts_the_rows():
    """In a process of its own: a failed assertion ends its CUDA context."""
    code = """
import torch
from eagle_kernels import scatter_visual
scatter_visual(torch.ones(5, 8, device="cuda"), torch.ones(2, 8, device="cuda"), torch.tensor([3, 1], device="cuda"))
torch.cuda.synchronize()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0
    assert "rows_ascend_strictly_and_lie_in_the_embeddings" in done.stdout + done.stderr
    assert "device-side assert" in done.stderr


@pytest.mark.gpu
def test_gpu_runs_on_the_current_stream():
    """Visual tokens that a long queue on a side stream writes last: the kernel must wait for them, and them alone."""
    args, rows = [t.detach() for t in inputs(4000, 3000, 3584, torch.bfloat16, "cuda")], spread(4000, 3000, "cuda")
    want, late = scatter_visual_ref(*args, rows), torch.zeros_like(args[1])
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late.copy_(args[1])
        out = scatter_visual(args[0], late, rows)
    stream.synchronize()
    assert torch.equal(out, want)
