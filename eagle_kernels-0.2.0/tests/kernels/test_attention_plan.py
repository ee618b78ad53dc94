"""The tile tables of csrc/attention_plan: those of the torch reference to the last bit, on every path."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from eagle_kernels import native
from eagle_kernels.attention_plan import TILE, AttentionPlan, _plan, _tiles, _tiles_ref
from tests.kernels.cuda_on_cpu import ARCHITECTURES, build, resources
from tests.kernels.op_checks import no_waiting
from tests.kernels.plans import plan_of, plan_of_segments

Segments = list[tuple[int, int, int, int]]  # q_start, q_len, k_start, k_len
Tables = tuple[Tensor, Tensor]

LENGTHS = st.sampled_from([0, 1, 127, 128, 129]) | st.integers(0, 700)
STARTS = st.sampled_from([0, 128, 300]) | st.integers(0, 400)  # so that some ranges share an end, or are the same


@st.composite
def documents(draw: st.DrawFn) -> tuple[Segments, int, int, bool, bool]:
    """The arguments of _tiles for packed documents, whose key lengths may be others."""
    q_lens = draw(st.lists(LENGTHS, max_size=8))
    same = draw(st.booleans())
    k_lens = q_lens if same else draw(st.lists(LENGTHS, min_size=len(q_lens), max_size=len(q_lens)))
    segments: Segments = []
    for s, lengths in enumerate(zip(q_lens, k_lens, strict=True)):
        segments.append((sum(q_lens[:s]), lengths[0], sum(k_lens[:s]), lengths[1]))
    return segments, sum(q_lens), sum(k_lens), draw(st.booleans()), True


@st.composite
def overlapping(draw: st.DrawFn) -> tuple[Segments, int, int, bool, bool]:
    """The same for segments with gaps between their queries and keys that overlap, nest and repeat, in any order."""
    segments: Segments = []
    row = 0
    pieces = st.tuples(LENGTHS, st.integers(0, 3), STARTS, LENGTHS)
    for q_len, gap, k_start, k_len in draw(st.lists(pieces, max_size=8)):
        segments.append((row, q_len, k_start, k_len))
        row += q_len + gap
    segments.sort(key=lambda s: s[2])  # stable: segments that start together are in any order otherwise
    num_tokens_k = max([s[2] + s[3] for s in segments], default=0) + draw(LENGTHS)
    return segments, row, num_tokens_k, draw(st.booleans()), False


def on_device(arguments: tuple[Segments, int, int, bool, bool], device: str = "cpu") -> tuple:
    segments, *others = arguments
    return torch.tensor(segments, dtype=torch.int32, device=device).view(-1, 4), *others


def assert_same(got: Sequence[Tensor], want: Sequence[Tensor]) -> None:
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype == torch.int32
        assert torch.equal(a, b)


NO_SEGMENT = ([], 0, 300, True, False)  # rows of k that nobody sees have tiles: their gradients are zeros
NOTHING = ([], 0, 0, True, True)
ONE_TOKEN = ([(0, 1, 0, 1)], 1, 1, True, True)
WITHOUT_KEYS = ([(0, 500, 0, 3), (500, 4, 3, 0)], 504, 3, True, True)  # causal work below zero


@settings(deadline=None, max_examples=200)
@given(documents() | overlapping())
@example(NO_SEGMENT)
@example(NOTHING)
@example(ONE_TOKEN)
@example(WITHOUT_KEYS)
def test_the_tables_are_the_reference_s(arguments):
    assert_same(_tiles(*on_device(arguments)), _tiles_ref(*on_device(arguments)))


def many(kind: str) -> tuple[Tensor, int, int, bool, bool]:
    """100,000 documents of 0 to 9 tokens, or as many segments that each see up to 300 keys."""
    generator = torch.Generator().manual_seed(0)
    q_len = torch.randint(0, 10, (100_000,), generator=generator)
    q_start = q_len.cumsum(0) - q_len
    num_tokens = int(q_len.sum())
    if kind == "documents":
        return torch.stack((q_start, q_len, q_start, q_len), dim=1).int(), num_tokens, num_tokens, True, True
    k_len = torch.randint(0, 300, (100_000,), generator=generator)
    k_start = (torch.rand(100_000, generator=generator) * num_tokens).long().sort().values
    return torch.stack((q_start, q_len, k_start, k_len), dim=1).int(), num_tokens, num_tokens + 300, True, False


@pytest.mark.parametrize("kind", ["documents", "segments"])
def test_a_hundred_thousand(kind):
    assert_same(_tiles(*many(kind)), _tiles_ref(*many(kind)))


def test_a_view_of_segments_is_refused_unless_it_is_contiguous():
    segments = torch.zeros(3, 8, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"segments needs contiguous int32 of shape \(n, 4\)"):
        _tiles(segments[:, ::2], 0, 0, True, True)


def test_the_core_refuses_what_does_not_agree():
    tensors = {"segments": torch.tensor([[0, 300, 0, 300]]), "q_tiles": torch.empty(3, 2), "k_tiles": torch.empty(3, 4)}
    tensors = {name: t.int() for name, t in tensors.items()}
    for name, wrong, message in [
        ("segments", torch.zeros(1, 4), r"segments needs contiguous int32 of shape \(n, 4\)"),
        ("q_tiles", torch.zeros(3, 4).int(), r"q_tiles needs contiguous int32 of shape \(n, 2\)"),
        ("k_tiles", torch.zeros(12).int(), r"k_tiles needs contiguous int32 of shape \(n, 4\)"),
        ("q_tiles", torch.zeros(2, 2).int(), "q_tiles has 2 entries; the segments have more tiles"),
        ("k_tiles", torch.zeros(2, 4).int(), "k_tiles has 2 entries; the segments have more tiles"),
    ]:
        views = {key: native.view(t) for key, t in (tensors | {name: wrong}).items()}
        with pytest.raises(ValueError, match=message):
            native.load().attention_plan_cpu(native.load().AttentionPlan(**views, num_tokens_k=300, causal=True))
    views = {key: native.view(t) for key, t in tensors.items()}
    with pytest.raises(ValueError, match=r"num_tokens_k is 2147483648; needs 0 to 2\*\*31 - 1"):
        native.load().attention_plan_cpu(native.load().AttentionPlan(**views, num_tokens_k=2**31, causal=True))


ENTRY_POINT = """
extern "C" const char* run_kernel(int num_threads, const void* segments, int64_t S, void* q_tiles, int64_t N,
                                  void* k_tiles, int64_t M, int64_t num_tokens_k, bool causal, void* workspace,
                                  int64_t num_ints) {
  const auto view = [](const void* p, std::vector<int64_t> shape) {
    return eagle::make_view("view", reinterpret_cast<uintptr_t>(p), shape, {shape.back(), 1}, "int32", INT64_MAX);
  };
  const eagle::AttentionPlan plan{view(segments, {S, 4}), view(q_tiles, {N, 2}), view(k_tiles, {M, 4}), num_tokens_k,
                                  causal};
  static std::string error;
  try {
    if (num_threads == eagle::kThreads) {
      eagle::attention_plan_cuda(plan, view(workspace, {1, num_ints}), 0, 0);
      return nullptr;
    }
    eagle::run<4>(plan, static_cast<int32_t*>(workspace), nullptr);
    return nullptr;
  } catch (const std::exception& e) {
    error = e.what();
    return error.c_str();
  }
}
"""
GUARD = -123_456_789  # around what the kernel may write
FEW, ALL = 4, 512  # threads a block: few leave several items to each even of small tables; all are what a GPU gets


@pytest.fixture(scope="module")
def cuda_code_for_the_cpu(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    library = build(tmp_path_factory.mktemp("plan_on_cpu"), "attention_plan", 1, ENTRY_POINT, ["attention_plan.cpp"])
    number, pointer = ctypes.c_int64, ctypes.c_void_p
    library.run_kernel.argtypes = [
        ctypes.c_int, pointer, number, pointer, number, pointer, number, number, ctypes.c_bool, pointer, number,
    ]  # fmt: skip
    library.run_kernel.restype = ctypes.c_char_p
    return library


def run_kernel(library: ctypes.CDLL, num_threads: int, segments: Tensor, num_tokens_k: int, causal: bool, like: Tables,
               *, too_few: int = 0) -> Tables:  # fmt: skip
    """The kernel's tables, of `like`'s shapes; fails if it writes outside them or its workspace."""
    guarded = [torch.full((1 + len(t) + 1, t.shape[1]), GUARD, dtype=torch.int32) for t in like]
    q_tiles, k_tiles = (t[1:-1] for t in guarded)
    views = {"segments": segments, "q_tiles": q_tiles, "k_tiles": k_tiles}
    plan = native.load().AttentionPlan(
        **{name: native.view(t) for name, t in views.items()}, num_tokens_k=num_tokens_k, causal=causal
    )
    num_ints = native.load().attention_plan_workspace_ints(plan)
    workspace = torch.full((num_ints + 64,), GUARD, dtype=torch.int32)
    error = library.run_kernel(
        num_threads, segments.data_ptr(), len(segments), q_tiles.data_ptr(), len(q_tiles), k_tiles.data_ptr(),
        len(k_tiles), num_tokens_k, causal, workspace.data_ptr(), num_ints - too_few,
    )  # fmt: skip
    if error:
        raise ValueError(error.decode())
    assert all((t[[0, -1]] == GUARD).all() for t in guarded)
    assert (workspace[num_ints:] == GUARD).all()
    return q_tiles, k_tiles


@settings(deadline=None, max_examples=200)
@given(arguments=documents() | overlapping())
@example(arguments=NO_SEGMENT)
@example(arguments=NOTHING)
@example(arguments=WITHOUT_KEYS)
def test_cuda_kernel_run_on_the_cpu_gives_the_same_bits(cuda_code_for_the_cpu, arguments):
    segments, _, num_tokens_k, causal, _ = on_device(arguments)
    want = _tiles_ref(*on_device(arguments))
    assert_same(run_kernel(cuda_code_for_the_cpu, FEW, segments, num_tokens_k, causal, want), want)


@pytest.mark.parametrize(("num_threads", "num_segments"), [(FEW, 100_000), (ALL, 2_000)])
def test_cuda_kernel_run_on_the_cpu_takes_many_segments(cuda_code_for_the_cpu, num_threads, num_segments):
    segments, num_tokens, num_tokens_k, causal, covers_all = many("segments")
    segments = segments[:num_segments]
    want = _tiles_ref(segments, num_tokens, num_tokens_k, causal, covers_all)
    assert_same(run_kernel(cuda_code_for_the_cpu, num_threads, segments, num_tokens_k, causal, want), want)


def test_cuda_code_refuses_too_small_a_workspace(cuda_code_for_the_cpu):
    arguments = on_device(ONE_TOKEN)
    with pytest.raises(ValueError, match=r"workspace needs \d+ contiguous int32 from an address divisible by 8"):
        run_kernel(cuda_code_for_the_cpu, ALL, arguments[0], 1, True, _tiles_ref(*arguments), too_few=1)


@settings(deadline=None, max_examples=60)
@given(numbers=st.lists(st.tuples(*[st.integers(-(2**31), 2**31 - 1)] * 4), max_size=8), causal=st.booleans())
def test_wrong_segments_on_a_gpu_stay_within_the_tables(cuda_code_for_the_cpu, numbers, causal):
    """Nobody checks what lies on a GPU: the tables are worth nothing then, but no other memory is touched."""
    tables = torch.empty(5, 2, dtype=torch.int32), torch.empty(5, 4, dtype=torch.int32)
    segments = torch.tensor(numbers, dtype=torch.int64).view(-1, 4).int()
    run_kernel(cuda_code_for_the_cpu, FEW, segments, 300, causal, tables)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_cuda_kernel_keeps_its_registers(architecture):
    """No spill, registers for 512 threads, and shared memory that needs no attribute: at most 48 KiB."""
    (usage,) = resources("plan_kernel", architecture)
    assert usage["LOCAL"] == usage["STACK"] == 0
    assert usage["REG"] <= 128
    assert usage["SHARED"] <= 48 * 1024


@pytest.mark.skipif(torch.cuda.is_available(), reason="here the op would reach the GPU")
def test_cuda_tensors_without_cuda_code_are_an_error(monkeypatch):
    class CudaTensor(Tensor):
        is_cuda = True

    monkeypatch.setattr(native, "build_info", lambda: {"has_cuda": False})
    segments = on_device(ONE_TOKEN)[0].as_subclass(CudaTensor)
    with pytest.raises(RuntimeError, match=r"varlen_attention: .* was built without CUDA\. Put nvcc on PATH"):
        _plan("varlen_attention", segments, 1, 1, True, covers_all=True)


@pytest.mark.gpu
@settings(deadline=None, max_examples=200)
@given(documents() | overlapping())
@example(NO_SEGMENT)
@example(NOTHING)
@example(ONE_TOKEN)
@example(WITHOUT_KEYS)
def test_gpu_gives_the_same_bits(arguments):
    on_gpu = on_device(arguments, "cuda")
    with no_waiting(torch.device("cuda")):
        got = _tiles(*on_gpu)
    assert_same([t.cpu() for t in got], _tiles_ref(*on_device(arguments)))


@pytest.mark.gpu
@pytest.mark.real_shapes
@pytest.mark.parametrize("kind", ["documents", "segments"])
def test_gpu_takes_a_hundred_thousand(kind):
    segments, *others = many(kind)
    assert_same([t.cpu() for t in _tiles(segments.cuda(), *others)], _tiles_ref(segments, *others))


@pytest.mark.gpu
def test_gpu_runs_on_the_current_stream():
    """Offsets that a long queue on a side stream writes last: the kernel must wait for them, and them alone."""
    cu_seqlens = torch.tensor([0, 1000, 1300, 4000], dtype=torch.int32)
    want = AttentionPlan.from_cu_seqlens(cu_seqlens, num_tokens=4000)
    late, on_gpu = torch.zeros(4, dtype=torch.int32, device="cuda"), cu_seqlens.cuda()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late.copy_(on_gpu)
        plan = AttentionPlan.from_cu_seqlens(late, num_tokens=4000)
    stream.synchronize()
    assert_same((plan.q_tiles_N2.cpu(), plan.k_tiles_M4.cpu()), (want.q_tiles_N2, want.k_tiles_M4))


def test_a_plan_of_many_documents_takes_little_memory():
    """100,000 documents of one token: a table of tiles x segments would take 80 GB."""
    plan = AttentionPlan.from_cu_seqlens(torch.arange(100_001, dtype=torch.int32), num_tokens=100_000)
    assert (plan.k_tiles_M4[:, 1] > 0).sum() == (plan.q_tiles_N2[:, 0] >= 0).sum() == 100_000


lengths_strategy = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 400)), max_size=6)


@settings(deadline=None, max_examples=100)
@given(lengths_strategy, st.booleans())
def test_tiles_of_documents(lengths, causal):
    """Each row lies in exactly one tile, of its own document; tiles come longest first, idle entries last."""
    q_lens, k_lens = [list(x) for x in zip(*lengths, strict=True)] if lengths else ([], [])
    check_tiles(plan_of(q_lens, k_lens, causal=causal), causal)


segment_strategy = st.tuples(st.integers(0, 300), st.integers(0, 300), st.integers(0, 300))


@settings(deadline=None, max_examples=100)
@given(st.lists(segment_strategy, max_size=6), st.randoms(use_true_random=False), st.booleans())
def test_tiles_of_segments(pieces, random, causal):
    segments, q_start = [], 0
    for q_len, k_start, k_len in pieces:
        segments.append((q_start, q_len, k_start, k_len))
        q_start += q_len + 3
    random.shuffle(segments)
    check_tiles(plan_of_segments(segments, q_start, 600, causal=causal), causal)


def check_tiles(plan, causal):
    segments = plan.segments_S4.tolist()
    assert [s[2] for s in segments] == sorted(s[2] for s in segments)
    rows, work = [], []
    for segment, first in plan.q_tiles_N2.tolist():
        work.append(-(10**9))
        if segment >= 0:
            q_start, q_len, _, k_len = segments[segment]
            rows += range(q_start + first, q_start + min(first + TILE, q_len))
            work[-1] = min(k_len, first + TILE + k_len - q_len) if causal else k_len
    assert sorted(rows) == sorted(r for q_start, q_len, _, _ in segments for r in range(q_start, q_start + q_len))
    assert work == sorted(work, reverse=True)

    rows, work = [], []
    for first, num, begin, end in plan.k_tiles_M4.tolist():
        rows += range(first, first + num)
        sees = [s for s in segments if s[3] and s[2] < first + num and s[2] + s[3] > first] if num else []
        assert all(s[2] <= first and first + num <= s[2] + s[3] for s in sees), "a tile crosses the end of a segment"
        assert all(s in segments[begin:end] for s in sees), "a segment that sees the tile is not looked at"
        if plan.covers_all:
            assert [s for s in segments[begin:end] if s[3]] == sees, "a document looks at another"
        work.append(sum(min(s[1], s[2] + s[3] - first) if causal else s[1] for s in sees) if num else -1)
    assert sorted(rows) == list(range(plan.num_tokens_k))
    assert work == sorted(work, reverse=True)


def test_errors_of_segments():
    def refused(match, segments):
        with pytest.raises(ValueError, match=match):
            plan_of_segments(segments, 10, 20, causal=True)

    refused("segment 0 is q_start 8 and q_len 3; needs both >= 0 and an end within the 10 rows of q", [(8, 3, 0, 3)])
    refused("segment 1 is k_start -1 and k_len 3; .* 20 rows of k", [(0, 3, 0, 3), (3, 3, -1, 3)])
    refused(
        "q_start is 2; needs query ranges that do not overlap; the one before ends at 3", [(2, 3, 0, 3), (0, 3, 0, 3)]
    )
    ints = torch.zeros(2, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"q_len's dtype is torch\.int64; needs int32"):
        AttentionPlan.from_segments(ints, ints.long(), ints, ints, num_tokens=1)
    with pytest.raises(ValueError, match=r"k_len's shape is \(1,\); needs q_start's \(2,\)"):
        AttentionPlan.from_segments(ints, ints, ints, ints[:1], num_tokens=1)
