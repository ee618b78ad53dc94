"""merge_attention: as good as torch against fp64, exact where one side saw nothing, the same bits on every path."""

from __future__ import annotations

import ctypes

import pytest
import torch
from torch import Tensor

from eagle_kernels import native
from eagle_kernels.attention import varlen_attention
from eagle_kernels.merge_attention import _fwd, merge_attention, merge_attention_ref
from tests.kernels.cuda_on_cpu import ARCHITECTURES, build, resources
from tests.kernels.op_checks import DTYPES, far_tensor, no_waiting, poisoned_memory
from tests.numerics import assert_as_good, randn

INF = torch.inf
SHAPES = [(1, 1, 16), (5, 7, 72), (3, 2, 256), (400, 28, 128), (0, 2, 16), (3, 0, 16)]


def partials(T: int, H: int, D: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> list[Tensor]:
    """out_a, lse_a, out_b, lse_b; every fifth head sees nothing on a, every third on b, some on neither."""
    out_a, out_b = (randn(T, H, D, dtype=dtype, device=device, seed=seed).detach() for seed in (0, 1))
    lse_a, lse_b = (4 * randn(H, T, device=device, seed=seed).detach() for seed in (2, 3))
    lse_a.view(-1)[::5] = -INF
    lse_b.view(-1)[::3] = -INF
    return [out_a, lse_a, out_b, lse_b]


def finite(out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    return out, lse.masked_fill(lse == -INF, 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("T", "H", "D"), SHAPES)
def test_as_good_as_torch(T, H, D, dtype, device):
    inputs = partials(T, H, D, dtype, device)
    with poisoned_memory():
        out, lse = merge_attention(*inputs)
    same = merge_attention_ref(*inputs)
    true = merge_attention_ref(*[t.double() for t in inputs])
    assert torch.equal(lse == -INF, true[1] == -INF)
    assert_as_good(finite(out, lse), finite(*same), finite(*true))
    with no_waiting(torch.device(device)):
        again = merge_attention(*inputs)
    assert torch.equal(again[0], out)
    assert torch.equal(again[1], lse)


def test_reference_is_the_softmax_over_all_keys():
    """And so are three partials merged one after another, in either order; one of them has no keys for the first."""
    q, k, v = randn(6, 4, 16).double(), randn(30, 2, 16, seed=1).double(), randn(30, 2, 16, seed=2).double()

    def attend(begin: int, end: int) -> tuple[Tensor, Tensor]:
        offsets = torch.tensor([0, 6], dtype=torch.int32), torch.tensor([0, end - begin], dtype=torch.int32)
        return varlen_attention(
            q, k[begin:end], v[begin:end], offsets[0], cu_seqlens_k=offsets[1], causal=False, return_lse=True
        )

    parts = [attend(0, 13), attend(13, 13), attend(13, 29), attend(29, 30)]
    assert (parts[1][1] == -INF).all()
    for order in (parts, parts[::-1]):
        out, lse = order[0]
        for part in order[1:]:
            out, lse = merge_attention_ref(out, lse, *part)
        for got, want in zip((out, lse), attend(0, 30), strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_side_without_keys_keeps_every_number_of_the_other(dtype, device):
    """All 65536 of them, infinities and subnormal numbers too; the side without keys holds NaN."""
    out_a = torch.arange(2**16).to(torch.uint16).view(dtype).view(256, 1, 256).to(device)
    lse_a = torch.full((1, 256), -3.5, device=device)
    out_b, lse_b = torch.full_like(out_a, torch.nan), torch.full_like(lse_a, -INF)
    for inputs in ((out_a, lse_a, out_b, lse_b), (out_b, lse_b, out_a, lse_a)):
        out, lse = merge_attention(*inputs)
        assert torch.equal(out.isnan(), out_a.isnan())
        assert torch.equal(out.nan_to_num(7, posinf=INF, neginf=-INF), out_a.nan_to_num(7, posinf=INF, neginf=-INF))
        assert torch.equal(lse, lse_a)
        assert torch.equal(merge_attention_ref(*inputs)[1], lse_a)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounds_as_torch_does(dtype, device):
    """Equal lse give weights of exactly 1/2, so what is rounded is known: many ties, subnormal and huge numbers."""
    bits = torch.randint(0, 2**16, (2, 64, 8, 256), generator=torch.Generator().manual_seed(0)).to(torch.uint16)
    bits[1, ::2] = (bits[0, ::2].int() ^ 1).to(torch.uint16)  # neighbours: their mean is a tie
    out_a, out_b = bits.view(dtype).nan_to_num(1.0).to(device)
    lse = torch.full((8, 64), 2.0, device=device)
    out, _ = merge_attention(out_a, lse, out_b, lse)
    want = (0.5 * out_a.float() + 0.5 * out_b.float()).to(dtype)
    assert torch.equal(out, want), int((out != want).sum())


def test_no_keys_at_all(device):
    nothing = torch.full((2, 3), -INF, device=device)
    nan = torch.full((3, 2, 16), torch.nan, device=device)
    for out, lse in (merge_attention(nan, nothing, nan, nothing), merge_attention_ref(nan, nothing, nan, nothing)):
        assert torch.equal(lse, nothing)
        assert not out.any()


def test_large_lse_do_not_overflow_and_nan_shows(device):
    out_a, out_b = torch.ones(4, 1, 16, device=device), -torch.ones(4, 1, 16, device=device)
    lse_a = torch.tensor([[1e4, -1e4, 3e38, torch.nan]], device=device)
    lse_b = torch.tensor([[1e4, -2e4, -3e38, -INF]], device=device)
    out, lse = merge_attention(out_a, lse_a, out_b, lse_b)
    assert out[:, 0, 0].tolist()[:3] == [0.0, 1.0, 1.0]
    assert lse[0, :3].tolist() == pytest.approx([1e4 + 0.6931472, -1e4, lse_a[0, 2].item()], rel=1e-6)
    assert out[3].isnan().all()
    assert lse[0, 3].isnan()


def test_takes_views(device):
    """Two heads' ranges of one tensor, and an lse that lies (T, H)."""
    T, H, D = 9, 3, 24
    both = randn(T, 2 * H, D, device=device).detach()
    lse_TH = randn(T, 2 * H, device=device, seed=1).detach()
    views = [both[:, :H], lse_TH[:, :H].t(), both[:, H:], lse_TH[:, H:].t()]
    assert not any(t.is_contiguous() for t in views)
    for got, want in zip(merge_attention(*views), merge_attention(*[t.contiguous() for t in views]), strict=True):
        assert torch.equal(got, want)
    one_row = both[:1].as_strided((1, 2, D), (3, D, 1))  # the stride of a dimension of one row says nothing
    lse = lse_TH[:1, :2].t()
    assert torch.equal(merge_attention(one_row, lse, one_row, lse)[0], one_row)


def test_offsets_pass_32_bits(device):
    near = partials(3, 2, 16, torch.float16, device)
    far = [far_tensor(t.shape, (2**30, 16, 1), t.dtype, device).copy_(t) if t.dim() == 3 else t for t in near]
    for got, want in zip(merge_attention(*far), merge_attention(*near), strict=True):
        assert torch.equal(got, want)


def test_threads_change_no_bit():
    inputs = partials(400, 28, 64, torch.bfloat16)
    first = merge_attention(*inputs, num_threads=1)
    for num_threads in (0, 2, 5):
        for got, want in zip(merge_attention(*inputs, num_threads=num_threads), first, strict=True):
            assert torch.equal(got, want)


def test_opcheck(device):
    for T in (3, 0):
        torch.library.opcheck(_fwd.overload, (*partials(T, 2, 16, torch.bfloat16, device), 1))


def test_torch_compile_takes_it_whole(device):
    inputs = partials(5, 2, 16, device=device)

    def attend(*tensors: Tensor) -> Tensor:
        return merge_attention(*tensors)[0] * 2

    assert torch.equal(torch.compile(attend, fullgraph=True, backend="aot_eager")(*inputs), attend(*inputs))


def test_refuses():
    out_a, lse_a, out_b, lse_b = partials(4, 2, 16)

    def refused(message: str, *inputs: Tensor, **options: int) -> None:
        with pytest.raises(ValueError, match=f"^merge_attention: {message}"):
            merge_attention(*inputs, **options)

    refused("out_b's requires_grad is True; needs False, or torch.no_grad", out_a, lse_a, randn(4, 2, 16), lse_b)
    refused("lse_a's requires_grad is True", out_a, lse_a.clone().requires_grad_(), out_b, lse_b)
    with torch.no_grad():
        merge_attention(out_a, lse_a, randn(4, 2, 16), lse_b)
    refused("out_a's dtype is torch.float64; needs one of", out_a.double(), lse_a, out_b.double(), lse_b)
    refused("out_b's dtype is torch.float16; needs out_a's torch.float32", out_a, lse_a, out_b.half(), lse_b)
    refused("lse_b's device is meta; needs out_a's cpu", out_a, lse_a, out_b, lse_b.to("meta"))
    refused(r"out_a's shape is \(8, 16\); needs three dimensions", out_a.flatten(0, 1), lse_a, out_b, lse_b)
    refused("the head width is 12; needs a multiple of 8 from 16", out_a[..., :12], lse_a, out_b[..., :12], lse_b)
    refused(r"out_b's shape is \(3, 2, 16\); needs out_a's \(4, 2, 16\)", out_a, lse_a, out_b[:3], lse_b)
    odd = torch.empty(4, 2, 20)[..., :16]
    refused(r"out_b's strides is \(40, 20, 1\); needs multiples of 8, then 1", out_a, lse_a, odd, lse_b)
    refused(r"lse_a's shape is \(4, 2\); needs \(heads, tokens\), \(2, 4\)", out_a, lse_a.t(), out_b, lse_b)
    refused("lse_b's dtype is torch.float64; needs torch.float32", out_a, lse_a, out_b, lse_b.double())
    refused("num_threads is -1; needs at least 0", out_a, lse_a, out_b, lse_b, num_threads=-1)
    refused("out_a's strides are .* from an address that leaves 4 of 16", torch.empty(65)[1:].view(2, 2, 16),
            lse_a[:, :2], out_b[:2], lse_b[:, :2])  # fmt: skip


def test_the_core_refuses_what_does_not_agree():
    names = ("out_a", "lse_a", "out_b", "lse_b", "out", "lse")
    tensors = dict(zip(names, [*partials(4, 2, 16), *partials(4, 2, 16)[:2]], strict=True))
    for name, wrong, message in [
        ("out_b", torch.zeros(4, 2, 24), r"out_b is float32 \(4, 2, 24\); needs out's float32 \(4, 2, 16\)"),
        ("out", torch.zeros(4, 2, 16, dtype=torch.int32), "out's dtype is int32; needs float16"),
        ("lse", torch.zeros(4, 2), r"lse needs float32 of shape \(2, 4\)"),
        ("lse_a", torch.zeros(2, 4, dtype=torch.int32), "lse_a needs float32"),
        ("out_a", torch.zeros(4, 2), "out_a has 2 dims"),
    ]:
        views = {key: native.view(t) for key, t in (tensors | {name: wrong}).items()}
        with pytest.raises(ValueError, match=message):
            native.load().merge_attention_cpu(native.load().MergeAttention(**views), 1)


ENTRY_POINT = """
extern "C" void run_kernels(const void* out_a, const void* lse_a, const void* out_b, const void* lse_b, void* out,
                            void* lse, int64_t T, int64_t H, int64_t D, const char* dtype) {
  const auto view = [](const void* p, std::vector<int64_t> shape, const char* dtype) {
    std::vector<int64_t> strides(shape.size(), 1);
    for (size_t d = shape.size() - 1; d > 0; --d) strides[d - 1] = strides[d] * shape[d];
    return eagle::make_view("view", reinterpret_cast<uintptr_t>(p), shape, strides, dtype, INT64_MAX);
  };
  const auto heads = [&](const void* p) { return view(p, {T, H, D}, dtype); };
  const auto numbers = [&](const void* p) { return view(p, {H, T}, "float32"); };
  eagle::merge_attention_cuda({heads(out_a), numbers(lse_a), heads(out_b), numbers(lse_b), heads(out), numbers(lse)},
                              0, 0);
}
"""


@pytest.fixture(scope="module")
def cuda_code_for_the_cpu(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("merge_on_cpu")
    library = build(folder, "merge_attention", 1, ENTRY_POINT, ["attention_heads.cpp", "merge_attention.cpp"])
    library.run_kernels.argtypes = [ctypes.c_void_p] * 6 + [ctypes.c_int64] * 3 + [ctypes.c_char_p]
    return library


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("T", "H", "D"), [(1, 1, 16), (5, 7, 72), (2, 3, 256), (0, 1, 16)])
def test_cuda_kernels_run_on_the_cpu_give_the_same_bits(cuda_code_for_the_cpu, T, H, D, dtype):
    inputs = partials(T, H, D, dtype)
    want = merge_attention(*inputs)
    got = [torch.full_like(t, torch.nan) for t in want]
    pointers = [t.data_ptr() for t in (*inputs, *got)]
    cuda_code_for_the_cpu.run_kernels(*pointers, T, H, D, str(dtype).removeprefix("torch.").encode())
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_cuda_kernels_keep_their_registers(architecture):
    """No spill, and few enough registers that a multiprocessor holds all the threads it can: 3 dtypes."""
    found = resources("merge_kernel", architecture)
    assert len(found) == 3
    for usage in found:
        assert usage["LOCAL"] == usage["STACK"] == usage["SHARED"] == 0
        assert usage["REG"] <= 32


@pytest.mark.skipif(torch.cuda.is_available(), reason="here the op would reach the GPU")
def test_cuda_tensors_without_cuda_code_are_an_error(monkeypatch):
    class CudaTensor(Tensor):
        is_cuda = True

    monkeypatch.setattr(native, "build_info", lambda: {"has_cuda": False})
    with pytest.raises(RuntimeError, match=r"merge_attention: .* was built without CUDA\. Put nvcc on PATH"):
        _fwd.function(*[t.as_subclass(CudaTensor) for t in partials(1, 1, 16)], 1)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("T", "H", "D"), SHAPES)
def test_gpu_agrees_with_the_cpu(T, H, D, dtype):
    inputs = partials(T, H, D, dtype)
    got, want = merge_attention(*[t.cuda() for t in inputs]), merge_attention(*inputs)
    assert all(t.is_cuda for t in got)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.cpu(), b)


@pytest.mark.gpu
def test_gpu_runs_on_the_current_stream():
    """A partial that a long queue on a side stream writes last: the kernel must wait for it, and it alone."""
    inputs = partials(4000, 28, 128, torch.bfloat16)
    want = merge_attention(*inputs)[0]
    on_gpu = [t.cuda() for t in inputs]
    late = torch.zeros_like(on_gpu[0])
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late.copy_(on_gpu[0])
        out, _ = merge_attention(late, *on_gpu[1:])
    stream.synchronize()
    torch.testing.assert_close(out.cpu(), want)
