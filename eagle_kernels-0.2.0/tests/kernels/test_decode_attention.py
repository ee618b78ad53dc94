"""decode_attention: as good as torch at every edge of a split, blind to its neighbours, the same bits again."""

from __future__ import annotations

import ctypes

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from eagle_kernels import native
from eagle_kernels.attention import varlen_attention
from eagle_kernels.attention_plan import AttentionPlan
from eagle_kernels.decode_attention import _fwd, decode_attention, decode_attention_ref
from tests.kernels.cuda_on_cpu import ARCHITECTURES, build, resources
from tests.kernels.op_checks import DTYPES, far_tensor, no_waiting, poisoned_memory
from tests.numerics import assert_as_good, randn

INF = torch.inf
SPLIT = 256  # csrc/decode_attention.h
HEADS = [(1, 1), (4, 2), (7, 1), (28, 4), (9, 1)]  # the last: more than a block of the CUDA code takes at once
WIDTHS = [16, 64, 72, 80, 128, 256]
LENGTHS = {
    "one key": [1],
    "none": [0, 0],
    "edges of a split": [SPLIT - 1, 0, SPLIT, 1, SPLIT + 1, 2 * SPLIT],
    "long and short": [3, 1500, 17],
}


def ints(values: list[int], device: str = "cpu") -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device=device)


def rows_of(lengths: list[int], device: str = "cpu") -> tuple[Tensor, Tensor, int]:
    """k_start, k_len, and the cache's rows: runs with gaps of three between them, the last sequence's run first."""
    starts, row = [], 2
    for length in reversed(lengths):
        starts.append(row)
        row += length + 3
    return ints(starts[::-1], device), ints(lengths, device), row


def inputs_of(
    lengths: list[int], H: int, K: int, D: int, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> list[Tensor]:
    k_start, k_len, num_rows = rows_of(lengths, device)
    shapes = [(len(lengths), H, D), (num_rows, K, D), (num_rows, K, D)]
    q, k, v = (randn(*shape, dtype=dtype, device=device, seed=seed).detach() for seed, shape in enumerate(shapes))
    return [q, k, v, k_start, k_len]


def in_blocks(inputs: list[Tensor], block_rows: int) -> list[Tensor]:
    """The same sequences with their rows in blocks, in any order; what no sequence sees is NaN, and no block at all
    stands where a table has more entries than its sequence has blocks."""
    q, k, v, k_start, k_len = inputs
    num_blocks = [-(-length // block_rows) for length in k_len.tolist()]
    order = torch.randperm(sum(num_blocks), generator=torch.Generator().manual_seed(0)).tolist()
    paged = [torch.full((len(order) * block_rows + 3, *x.shape[1:]), torch.nan, dtype=x.dtype, device=x.device)
             for x in (k, v)]  # fmt: skip
    table = torch.full((len(num_blocks), max(num_blocks, default=0) + 1), -(2**31), dtype=torch.int32)
    for s, (start, length) in enumerate(zip(k_start.tolist(), k_len.tolist(), strict=True)):
        for b in range(num_blocks[s]):
            table[s, b] = first = order.pop() * block_rows + 3  # blocks may begin anywhere
            rows = slice(start + b * block_rows, start + min((b + 1) * block_rows, length))
            for x, to in zip((k, v), paged, strict=True):
                to[first : first + rows.stop - rows.start] = x[rows]
    return [q, *paged, table.to(q.device), k_len]


def finite(out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    return out, lse.masked_fill(lse == -INF, 0)


def check_as_good(inputs: list[Tensor], **options: int) -> None:
    device = inputs[0].device
    with poisoned_memory():
        out, lse = decode_attention(*inputs, return_lse=True, **options)
    same = decode_attention_ref(*inputs)
    true = decode_attention_ref(*[t.double() for t in inputs[:3]], *inputs[3:])
    assert torch.equal(lse == -INF, true[1] == -INF)
    assert not out[inputs[4] == 0].any()
    # lse is the largest score and the logarithm of up to k_len ones: both may be larger than what is left of them.
    terms = (true[0], finite(*true)[1].abs() + inputs[4].clamp(min=1).log())
    assert_as_good(finite(out, lse), finite(*same), finite(*true), terms=terms)
    with no_waiting(device):
        again = decode_attention(*inputs, return_lse=True, **options)
    assert torch.equal(again[0], out)
    assert torch.equal(again[1], lse)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("H", "K"), HEADS)
@pytest.mark.parametrize("lengths", LENGTHS)
def test_as_good_as_torch(lengths, H, K, dtype, device):
    check_as_good(inputs_of(LENGTHS[lengths], H, K, 64, dtype, device))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("D", WIDTHS)
def test_head_widths(D, dtype, device):
    check_as_good(inputs_of([300, 1, 0, 511], 6, 2, D, dtype, device), max_k_len=511)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    lengths=st.lists(st.one_of(st.integers(0, 5), st.integers(0, 600)), min_size=1, max_size=5),
    group=st.integers(1, 9),
    K=st.integers(1, 3),
    D=st.sampled_from(range(16, 257, 8)),
    slack=st.integers(0, 3),
)
def test_random_shapes(lengths, group, K, D, slack):
    """Six times the same lengths, with other numbers: torch's own worst error, which ours is held against, is a matter
    of chance where two keys of one head are all there is."""
    check_as_good(inputs_of(lengths * 6, group * K, K, D), max_k_len=max(lengths) + slack, num_threads=1)


def test_reference_is_varlen_attention():
    """With one query a document against its own run of the cache, and another scale."""
    lengths = [5, 0, 300, 1]
    q, k, v, k_start, k_len = inputs_of(lengths, 6, 2, 24)
    q, k, v = (t.double() for t in (q, k, v))
    plan = AttentionPlan.from_segments(
        ints([0, 1, 2, 3]), ints([1] * 4), k_start, k_len, num_tokens=4, num_tokens_k=k.shape[0]
    )
    want = varlen_attention(q, k, v, plan, softmax_scale=0.3, return_lse=True)
    got = decode_attention_ref(q, k, v, k_start, k_len, softmax_scale=0.3)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("block_rows", [16, 64, 512])
@pytest.mark.parametrize("lengths", LENGTHS)
def test_blocks_have_the_bits_of_a_run(lengths, block_rows, dtype, device):
    """Where the rows lie changes nothing: smaller than a split and larger, for every bound that the host may give."""
    inputs = inputs_of(LENGTHS[lengths], 14, 2, 64, dtype, device)
    blocks = in_blocks(inputs, block_rows)
    want = decode_attention(*inputs, return_lse=True)
    reference = decode_attention_ref(*blocks, block_rows=block_rows)
    for bound in (None, max(LENGTHS[lengths])):
        with poisoned_memory(), no_waiting(inputs[0].device):
            got = decode_attention(*blocks, block_rows=block_rows, max_k_len=bound, return_lse=True)
        for a, b, c in zip(got, want, reference, strict=True):
            assert torch.equal(a, b)
            torch.testing.assert_close(a, c, atol=1e-2 if dtype != torch.float32 else 1e-5, rtol=1e-2)


def test_sequences_share_blocks(device):
    """A prompt of 32 rows that both see, then a block of each one's own."""
    q, k, v, _, lengths = inputs_of([40, 43], 4, 2, 16, device=device)
    table = ints([0, 16, 48, 0, 16, 32], device).view(2, 3)
    got = decode_attention(q, k, v, table, lengths, block_rows=16)
    for s, rows in enumerate([[*range(32), *range(48, 56)], range(43)]):
        alone = (q[s : s + 1], k[list(rows)], v[list(rows)], ints([0], device), lengths[s : s + 1])
        assert torch.equal(got[s : s + 1], decode_attention(*alone))


def test_options(device):
    q, k, v, k_start, k_len = inputs_of([5, 300], 4, 2, 32, device=device)
    want, want_lse = decode_attention_ref(q, k, v, k_start, k_len, softmax_scale=0.5)
    got, lse = decode_attention(q, k, v, k_start, k_len, max_k_len=300, softmax_scale=0.5, return_lse=True)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(lse, want_lse)
    assert torch.equal(decode_attention(q, k, v, k_start, k_len, softmax_scale=0.5), got)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sequence_alone_has_the_same_bits_as_in_a_batch(dtype, device):
    """Whatever the batch, and whatever bound the host gives."""
    lengths = [700, 3, 0, 256, 1025]
    q, k, v, k_start, k_len = inputs_of(lengths, 7, 1, 128, dtype, device)
    out, lse = decode_attention(q, k, v, k_start, k_len, return_lse=True)
    for s, length in enumerate(lengths):
        one = slice(s, s + 1)
        for bound in (length, k.shape[0]):
            alone = decode_attention(q[one], k, v, k_start[one], k_len[one], max_k_len=bound, return_lse=True)
            assert torch.equal(alone[0], out[one])
            assert torch.equal(alone[1], lse[:, one])


def test_rows_of_no_sequence_are_not_seen(device):
    """They hold NaN, as what a cache was born with; and sequences that share a run see it as their own."""
    q, k, v, k_start, k_len = inputs_of([300, 7], 4, 2, 16, device=device)
    seen = torch.zeros(k.shape[0], dtype=torch.bool, device=device)
    for start, length in zip(k_start.tolist(), k_len.tolist(), strict=True):
        seen[start : start + length] = True
    want = decode_attention(q, k, v, k_start, k_len)
    k[~seen], v[~seen] = torch.nan, torch.nan
    assert torch.equal(decode_attention(q, k, v, k_start, k_len), want)
    shared = decode_attention(q, k, v, k_start[:1].repeat(2), k_len[:1].repeat(2))
    assert torch.equal(shared[0], want[0])
    torch.testing.assert_close(shared[1:], decode_attention_ref(q[1:], k, v, k_start[:1], k_len[:1])[0])


def test_large_scores_do_not_overflow_and_nan_shows(device):
    q, k, v, k_start, k_len = inputs_of([600, 600], 2, 1, 16, device=device)
    check_as_good([100 * q, 100 * k, v, k_start, k_len])
    k[int(k_start[0]) + 400, 0, 3] = torch.nan
    out, lse = decode_attention(q, k, v, k_start, k_len, return_lse=True)
    assert out[0].isnan().all()
    assert lse[:, 0].isnan().all()
    assert out[1].isfinite().all()


def test_takes_views(device):
    """q, k and v as views of one projection, keys and values as halves of one cache."""
    q, k, v, k_start, k_len = inputs_of([30, 300], 6, 2, 24, torch.bfloat16, device)
    want = decode_attention(q, k, v, k_start, k_len)
    cache = torch.cat([k, v], dim=1)
    fused = torch.cat([q, q[:, :4]], dim=1)
    views = fused[:, :6], cache[:, :2], cache[:, 2:]
    assert not any(t.is_contiguous() for t in views)
    assert torch.equal(decode_attention(*views, k_start, k_len), want)


def test_offsets_pass_32_bits(device):
    q, k, v, k_start, k_len = inputs_of([2, 1], 2, 1, 16, torch.float16, device)
    far_k, far_v = (far_tensor(t.shape, (2**28, 16, 1), t.dtype, device).copy_(t) for t in (k, v))
    assert k.shape[0] * 2**28 > 2**31
    want = decode_attention(q, k, v, k_start, k_len)
    assert torch.equal(decode_attention(q, far_k, far_v, k_start, k_len), want)


@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_and_vector_code_change_no_bit(dtype):
    q, k, v, k_start, k_len = inputs_of([700, 0, 30, 257], 6, 2, 72, dtype)
    want = decode_attention(q, k, v, k_start, k_len, return_lse=True)
    extension, num_rows = native.load(), k.shape[0]
    for num_threads, simd in [(1, True), (2, True), (16, True), (1, False), (3, False)]:
        out, lse = (torch.full_like(t, torch.nan) for t in want)
        workspace = torch.full((extension.decode_attention_workspace_floats(*q.shape, num_rows),), torch.nan)
        names = ("q", "k", "v", "k_start", "k_len", "out", "lse", "workspace")
        tensors = (q, k, v, k_start, k_len, out, lse, workspace)
        views = {name: native.view(t) for name, t in zip(names, tensors, strict=True)}
        views["k_start"] = native.view(k_start[:, None])
        extension.decode_attention_cpu(
            extension.DecodeAttention(**views, max_k_len=num_rows, block_rows=0, softmax_scale=72**-0.5),
            num_threads,
            simd,
        )
        assert torch.equal(out, want[0]), (num_threads, simd)
        assert torch.equal(lse, want[1]), (num_threads, simd)


def test_no_sequences_and_no_cache(device):
    q, k, v, k_start, k_len = inputs_of([3], 4, 2, 16, device=device)
    out, lse = decode_attention(q[:0], k, v, k_start[:0], k_len[:0], return_lse=True)
    assert out.shape == (0, 4, 16)
    assert lse.shape == (4, 0)
    with poisoned_memory():
        out, lse = decode_attention(q, k[:0], v[:0], 0 * k_start, 0 * k_len, return_lse=True)
    assert not out.any()
    assert (lse == -INF).all()


def test_opcheck(device):
    inputs = inputs_of([3, 300], 4, 2, 16, torch.bfloat16, device)
    torch.library.opcheck(_fwd.overload, (*inputs, 300, 0, 0.25, 1))
    empty = (inputs[0][:0], *inputs[1:3], inputs[3][:0], inputs[4][:0])
    torch.library.opcheck(_fwd.overload, (*empty, 0, 0, 0.25, 1))
    torch.library.opcheck(_fwd.overload, (*in_blocks(inputs, 16), 300, 16, 0.25, 1))


def test_torch_compile_takes_it_whole(device):
    inputs = inputs_of([3, 300], 4, 2, 16, device=device)

    def attend(*tensors: Tensor) -> Tensor:
        return decode_attention(*tensors, max_k_len=300) * 2

    assert torch.equal(torch.compile(attend, fullgraph=True, backend="aot_eager")(*inputs), attend(*inputs))


def test_refuses():
    q, k, v, start, length = inputs_of([3, 4], 4, 2, 16)

    def refused(message: str, *inputs: Tensor, **options: float) -> None:
        with pytest.raises(ValueError, match=f"^decode_attention: {message}"):
            decode_attention(*inputs, **options)

    refused("k's requires_grad is True; needs False, or torch.no_grad", q, k.clone().requires_grad_(), v, start, length)
    with torch.no_grad():
        decode_attention(q, k.clone().requires_grad_(), v, start, length)
    refused("q's dtype is torch.float64; needs one of", q.double(), k, v, start, length)
    refused("k's dtype is torch.float16; needs q's torch.float32", q, k.half(), v, start, length)
    refused("v's device is meta; needs q's cpu", q, k, v.to("meta"), start, length)
    refused(r"q's shape is \(2, 64\); needs three dimensions", q.flatten(1), k, v, start, length)
    refused(r"k's strides is .*; needs multiples of 8, then 1", q, k.transpose(1, 2), v, start, length)
    refused(r"q's strides is \(80, 20, 1\)", torch.empty(2, 4, 20)[..., :16], k, v, start, length)
    refused("the head width is 264; needs a multiple of 8 from 16", *(torch.zeros(2, 1, 264),) * 3, start, length)
    refused("k's head width is 8; needs q's 16", q, k[..., :8], v, start, length)
    refused("v's shape is .*; needs k's", q, k, v[1:], start, length)
    refused("the number of query heads is 3; needs a multiple of the 2", q[:, :3], k, v, start, length)
    refused("k_start's dtype is torch.int64; needs torch.int32", q, k, v, start.long(), length)
    refused("k_len's device is meta; needs q's cpu", q, k, v, start, length.to("meta"))
    refused(r"k_len's shape is \(1,\); needs \(sequences,\), \(2,\)", q, k, v, start, length[:1])
    refused(r"k_len's strides is \(0,\); needs \(1,\)", q, k, v, start, length[:1].expand(2))
    refused("max_k_len is 999; needs 0 to the 15 rows of k", q, k, v, start, length, max_k_len=999)
    for size in (8, 48, 0, 1 << 21, 16.0):
        refused(f"block_rows is {size}; needs None, or a power of two from 16", q, k, v, start, length, block_rows=size)
    table = start[:, None].repeat(1, 2)
    refused(
        r"k_start's shape is \(2,\); needs \(sequences, blocks\), \(2, ...\)", q, k, v, start, length, block_rows=16
    )
    refused(r"k_start's shape is \(2, 2\); needs \(sequences,\)", q, k, v, table, length)
    refused(r"k_start's strides is \(1, 2\); needs contiguous", q, k, v, table.T.contiguous().T, length, block_rows=16)
    refused("max_k_len is 16; needs 0 to the 15 rows of k", q, k, v, table, length, block_rows=16, max_k_len=16)
    refused("sequence 1 has k_start 14 and k_len 4", q, k, v, ints([0, 0, 14, 0]).view(2, 2), length, block_rows=16)
    refused("softmax_scale is 0; needs None or a finite number > 0", q, k, v, start, length, softmax_scale=0)
    refused("num_threads is -1; needs at least 0", q, k, v, start, length, num_threads=-1)
    refused("sequence 1 has k_start 2 and k_len 4; .* at most max_k_len = 3", q, k, v, start, length, max_k_len=3)
    refused("sequence 0 has k_start -1 and k_len 3; needs every row within", q, k, v, ints([-1, 2]), length)
    refused("sequence 1 has k_start 2 and k_len -4", q, k, v, start, ints([3, -4]))
    refused("sequence 0 has k_start 13 and k_len 3; needs every row within the 15 rows", q, k, v, ints([13, 2]), length)
    refused("sequence 0 has k_start 2147483647", q, k, v, ints([2**31 - 1, 2]), length)


def test_the_core_refuses_what_does_not_agree():
    q, k, v, k_start, k_len = inputs_of([3, 4], 4, 2, 16)
    names = ("q", "k", "v", "k_start", "k_len", "out", "lse", "workspace")
    tensors = dict(
        zip(
            names,
            [q, k, v, k_start[:, None], k_len, q.clone(), torch.zeros(4, 2), torch.zeros(2 * 4 * 17)],
            strict=True,
        )
    )
    extension = native.load()

    def call(changed: dict[str, Tensor], max_k_len: int = 4, block_rows: int = 0) -> None:
        views = {name: native.view(t) for name, t in (tensors | changed).items()}
        whole = extension.DecodeAttention(**views, max_k_len=max_k_len, block_rows=block_rows, softmax_scale=1.0)
        extension.decode_attention_cpu(whole, 1)

    call({})
    for name, wrong, message in [
        ("k", k.half(), "q, k, v and out are float32, float16, float32 and float32; needs one dtype"),
        ("v", v[1:], r"k is \(15, 2, 16\) and v \(14, 2, 16\); needs one shape"),
        ("k_start", k_start, r"k_start needs contiguous int32 of shape \(2, blocks\)"),
        ("k_len", k_len.float(), r"k_len needs contiguous int32 of shape \(2,\)"),
        ("out", q[:1].clone(), "out needs q's shape"),
        ("lse", torch.zeros(2, 4), r"lse needs contiguous float32 of shape \(4, 2\)"),
        ("workspace", torch.zeros(135), "workspace needs 136 contiguous float32"),
    ]:
        with pytest.raises(ValueError, match=message):
            call({name: wrong})
    with pytest.raises(ValueError, match="max_k_len is 16; needs 0 to k's rows, 15"):
        call({}, max_k_len=16)
    for block_rows in (8, 24, 1 << 21):
        with pytest.raises(ValueError, match=f"block_rows is {block_rows} with 1 blocks a sequence; needs 0 with one"):
            call({}, block_rows=block_rows)
    with pytest.raises(ValueError, match="block_rows is 0 with 2 blocks"):
        call({"k_start": k_start[:, None].repeat(1, 2)})


ENTRY_POINT = """
extern "C" int64_t run_kernels(const void* q, const void* k, const void* v, const void* k_start, const void* k_len,
                               void* out, void* lse, void* workspace, int64_t S, int64_t H, int64_t K, int64_t D,
                               int64_t L, int64_t max_k_len, int64_t B, int64_t block_rows, const char* dtype) {
  const int64_t needed = eagle::decode_attention_workspace_floats(S, H, D, max_k_len);
  if (workspace == nullptr) return needed;
  const auto view = [](const void* p, std::vector<int64_t> shape, const char* dtype) {
    std::vector<int64_t> strides(shape.size(), 1);
    for (size_t d = shape.size() - 1; d > 0; --d) strides[d - 1] = strides[d] * shape[d];
    return eagle::make_view("view", reinterpret_cast<uintptr_t>(p), shape, strides, dtype, INT64_MAX);
  };
  eagle::decode_attention_cuda(
      {view(q, {S, H, D}, dtype), view(k, {L, K, D}, dtype), view(v, {L, K, D}, dtype), view(k_start, {S, B}, "int32"),
       view(k_len, {S}, "int32"), view(out, {S, H, D}, dtype), view(lse, {H, S}, "float32"),
       view(workspace, {needed}, "float32"), max_k_len, block_rows, 1 / std::sqrt(static_cast<float>(D))}, 0, 0);
  return needed;
}
"""


@pytest.fixture(scope="module")
def cuda_code_for_the_cpu(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    folder = tmp_path_factory.mktemp("decode_on_cpu")
    others = ["attention_heads.cpp", "decode_attention.cpp"]
    library = build(folder, "decode_attention", 2, ENTRY_POINT, others)
    library.run_kernels.restype = ctypes.c_int64
    library.run_kernels.argtypes = [ctypes.c_void_p] * 8 + [ctypes.c_int64] * 8 + [ctypes.c_char_p]
    return library


@pytest.mark.parametrize(
    ("lengths", "H", "K", "D", "dtype", "block_rows"),
    [
        ([1], 1, 1, 16, torch.float32, 0),
        ([257, 0, 700], 7, 1, 128, torch.bfloat16, 0),
        ([257, 0, 700], 7, 1, 128, torch.bfloat16, 16),
        ([30, 300], 4, 2, 72, torch.float16, 0),  # columns that do not divide the block
        ([5, 520], 9, 1, 256, torch.float32, 0),  # two chunks of query heads
        ([5, 520], 2, 1, 32, torch.float32, 512),  # a block of two splits
        ([2000], 2, 2, 256, torch.bfloat16, 0),  # more splits than groups of threads that join them
        ([0], 2, 1, 16, torch.float32, 0),
    ],
)
def test_cuda_kernels_run_on_the_cpu(cuda_code_for_the_cpu, lengths, H, K, D, dtype, block_rows):
    """The kernels' own source, threads, shared memory and workspace, which starts as NaN and has guards; as good as
    torch, since a block adds in another order than the CPU's code does. What only a GPU can show is in the tests below.
    """
    inputs = inputs_of(lengths, H, K, D, dtype)
    inputs = in_blocks(inputs, block_rows) if block_rows else inputs
    S, L = len(lengths), inputs[1].shape[0]
    numbers = (
        S,
        H,
        K,
        D,
        L,
        max(lengths) + 1,
        inputs[3].numel() // S,
        block_rows,
        str(dtype).removeprefix("torch.").encode(),
    )
    needed = cuda_code_for_the_cpu.run_kernels(*[None] * 8, *numbers)
    memory = torch.full((needed + 128,), torch.nan)
    memory[:64], memory[64 + needed :] = 5.0, 5.0

    def run() -> tuple[Tensor, Tensor]:
        out, lse = torch.full((S, H, D), torch.nan, dtype=dtype), torch.full((H, S), torch.nan)
        pointers = [t.data_ptr() for t in (*inputs, out, lse, memory[64:])]
        cuda_code_for_the_cpu.run_kernels(*pointers, *numbers)
        return out, lse

    out, lse = run()
    assert (memory[:64] == 5).all()
    assert (memory[64 + needed :] == 5).all()
    same = decode_attention_ref(*inputs, block_rows=block_rows or None)
    true = decode_attention_ref(*[t.double() for t in inputs[:3]], *inputs[3:], block_rows=block_rows or None)
    assert torch.equal(lse == -INF, true[1] == -INF)
    assert_as_good(finite(out, lse), finite(*same), finite(*true))
    assert all(torch.equal(a, b) for a, b in zip(run(), (out, lse), strict=True))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_cuda_kernels_keep_their_registers(architecture):
    """No spill, and shared memory that every GPU gives a block: for 3 dtypes, 1, 4 or 8 heads a block and the join."""
    for kernel, num_kernels in [("split_kernel", 9), ("join_kernel", 3)]:
        found = resources(kernel, architecture)
        assert len(found) == num_kernels
        for usage in found:
            assert usage["LOCAL"] == usage["STACK"] == 0
            assert usage["REG"] <= 128  # four blocks of 128 threads a multiprocessor
            assert usage["SHARED"] <= 48 * 1024


@pytest.mark.skipif(torch.cuda.is_available(), reason="here the op would reach the GPU")
def test_cuda_tensors_without_cuda_code_are_an_error(monkeypatch):
    class CudaTensor(Tensor):
        is_cuda = True

    monkeypatch.setattr(native, "build_info", lambda: {"has_cuda": False})
    with pytest.raises(RuntimeError, match=r"decode_attention: .* was built without CUDA\. Put nvcc on PATH"):
        _fwd.function(*[t.as_subclass(CudaTensor) for t in inputs_of([3], 1, 1, 16)], 3, 0, 1.0, 1)


@pytest.mark.gpu
@pytest.mark.real_shapes
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", [[131_072], [4096] * 16, [1, 0, 9000, 255, 33]])
def test_gpu_at_the_models_shape(lengths, dtype):
    check_as_good(inputs_of(lengths, 28, 4, 128, dtype, "cuda"), max_k_len=max(lengths))


@pytest.mark.gpu
@pytest.mark.real_shapes
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", [[131_072], [4096] * 16, [1, 0, 9000, 255, 33]])
def test_gpu_blocks_have_the_bits_of_a_run_at_the_models_shape(lengths, dtype):
    inputs = inputs_of(lengths, 28, 4, 128, dtype, "cuda")
    want = decode_attention(*inputs, max_k_len=max(lengths))
    assert torch.equal(decode_attention(*in_blocks(inputs, 16), max_k_len=max(lengths), block_rows=16), want)


@pytest.mark.gpu
def test_gpu_runs_on_the_current_stream():
    """A cache that a long queue on a side stream writes last: the kernels must wait for it, and it alone."""
    inputs = inputs_of([9000, 300], 28, 4, 128, torch.bfloat16, "cuda")
    want = decode_attention(*inputs)
    late = torch.zeros_like(inputs[1])
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late.copy_(inputs[1])
        out = decode_attention(inputs[0], late, *inputs[2:])
    stream.synchronize()
    assert torch.equal(out, want)
