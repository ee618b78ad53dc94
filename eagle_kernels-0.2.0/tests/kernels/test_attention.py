import inspect
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from eagle_kernels.attention import (
    _bwd,
    _flash_attn,
    _fwd,
    _varlen_attention,
    flash_attn_varlen_func,
    varlen_attention,
    varlen_attention_backward,
    varlen_attention_ref,
)
from eagle_kernels.attention_plan import AttentionPlan, _plan, _tiles
from tests.kernels.op_checks import check_as_good, check_compiles, far_rows, no_waiting, poisoned_memory
from tests.kernels.plans import offsets, plan_of, plan_of_segments
from tests.numerics import outputs_and_grads, randn

# Triton's interpreter multiplies bfloat16 by its bit patterns, so that a product of two needs a GPU.
DTYPES = [torch.float32, torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)]


def qkv(T, U, H, K, D, dtype=torch.float32, device="cpu"):
    return [
        randn(rows, heads, D, dtype=dtype, device=device, seed=seed)
        for seed, (rows, heads) in enumerate([(T, H), (U, K), (U, K)])
    ]


def finite(out, lse):
    """lse of a row that sees no key is -inf by contract; 0 here, so that all that is compared is a number."""
    return out, lse.masked_fill(lse == -torch.inf, 0)


def ours(plan, causal):
    return lambda q, k, v: finite(*_varlen_attention(q, k, v, plan, causal, q.shape[2] ** -0.5))


def reference(plan, causal):
    return lambda q, k, v: finite(*varlen_attention_ref(q, k, v, plan, causal=causal, return_lse=True))


def dense(q, k, v, segments, causal):
    """Masked softmax over all rows at once: the meaning without a trick. Returns out and lse."""
    (T, H, D), (U, K, _) = q.shape, k.shape
    seen = torch.zeros(T, U, dtype=torch.bool)
    for q_start, q_len, k_start, k_len in segments:
        for i in range(q_len):
            num_seen = max(0, min(k_len, i + 1 + k_len - q_len)) if causal else k_len
            seen[q_start + i, k_start : k_start + num_seen] = True
    blind = ~seen.any(1)
    scores = torch.einsum("thd,uhd->htu", q, k.repeat_interleave(H // K, 1)) * D**-0.5
    scores = scores.masked_fill(~seen, -1e300)
    p = scores.softmax(2) * seen
    out = torch.einsum("htu,uhd->thd", p, v.repeat_interleave(H // K, 1))
    return out, scores.logsumexp(2).masked_fill(blind, -torch.inf)


# With gaps, blind rows, and a segment of no query within another's queries.
OVERLAPPING = [(8, 5, 3, 9), (0, 6, 0, 12), (13, 1, 20, 4), (16, 4, 3, 2), (20, 3, 10, 0), (10, 0, 1, 5)]
LAYOUTS = {
    "one token": ([1], [1]),
    "ragged": ([3, 0, 5, 5, 1], None),
    "equal": ([4, 4, 4], None),
    "longer keys": ([1, 2, 3], [5, 2, 9]),
    "shorter keys": ([3, 5, 2, 4], [2, 0, 2, 9]),
    "queries missing": ([0, 2], [3, 3]),
}


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("heads", [(2, 2), (4, 1)])
@pytest.mark.parametrize("layout", [*LAYOUTS, "overlapping"])
def test_reference_is_a_masked_softmax(layout, heads, causal):
    if layout == "overlapping":
        plan = plan_of_segments(OVERLAPPING, 24, 26, causal=causal)
    else:
        plan = plan_of(*LAYOUTS[layout], causal=causal)
    inputs = [t.detach().double().requires_grad_() for t in qkv(plan.num_tokens, plan.num_tokens_k, *heads, 16)]
    segments = plan.segments_S4.tolist()
    douts = [randn(plan.num_tokens, heads[0], 16).detach(), randn(heads[0], plan.num_tokens).detach()]
    lse = varlen_attention_ref(*inputs, plan, causal=causal, return_lse=True)[1]
    assert torch.equal(lse == -torch.inf, dense(*inputs, segments, causal)[1] == -torch.inf)
    got = outputs_and_grads(reference(plan, causal), inputs, douts)
    want = outputs_and_grads(lambda q, k, v: finite(*dense(q, k, v, segments, causal)), inputs, douts)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    assert torch.equal(got[0], varlen_attention_ref(*inputs, plan, causal=causal))


@pytest.mark.parametrize("causal", [True, False])
def test_reference_gradcheck(causal):
    plan = plan_of([3, 2, 2], [2, 2, 4], causal=causal)
    inputs = [t.detach().double().requires_grad_() for t in qkv(7, 8, 2, 1, 16)]
    assert torch.autograd.gradcheck(reference(plan, causal), inputs)


@pytest.mark.parametrize("causal", [True, False])
def test_reference_packed_is_one_by_one(causal):
    lengths = [5, 1, 9, 9]
    inputs = [t.detach().double().requires_grad_() for t in qkv(24, 24, 4, 2, 16)]
    dout = randn(24, 4, 16).detach().double()

    def one_by_one(q, k, v):
        documents = zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True)
        return torch.cat([varlen_attention(*d, offsets([len(d[0])]), causal=causal) for d in documents])

    packed = outputs_and_grads(lambda q, k, v: varlen_attention(q, k, v, offsets(lengths), causal=causal), inputs, dout)
    for a, b in zip(packed, outputs_and_grads(one_by_one, inputs, dout), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-13)


def test_reference_never_sees_a_square_of_the_row():
    """64 documents of 512 tokens: a mask or scores of the whole row would take gigabytes and minutes."""
    q, k, v = (t.detach() for t in qkv(64 * 512, 64 * 512, 1, 1, 16))
    out = varlen_attention(q, k, v, offsets([512] * 64))
    last = torch.nn.functional.scaled_dot_product_attention(
        *(t[-512:].transpose(0, 1) for t in (q, k, v)), is_causal=True
    )
    torch.testing.assert_close(out[-512:], last.transpose(0, 1))


def test_options_of_the_public_function():
    q, k, v = qkv(7, 7, 2, 1, 16)
    out, lse = varlen_attention(q, k, v, offsets([3, 4]), causal=False, softmax_scale=0.5, return_lse=True)
    want, want_lse = dense(2 * q.double(), k.double(), v.double(), [(0, 3, 0, 3), (3, 4, 3, 4)], False)
    torch.testing.assert_close(out.double(), want, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(lse.double(), want_lse, rtol=1e-5, atol=1e-6)
    assert out.dtype == lse.dtype == torch.float32
    assert lse.shape == (2, 7)
    assert torch.equal(out, varlen_attention(q, k, v, plan_of([3, 4]), causal=False, softmax_scale=0.5))
    bf16 = varlen_attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), offsets([3, 4]), return_lse=True)
    assert [t.dtype for t in bf16] == [torch.bfloat16, torch.float32]


def test_autocast_computes_in_its_dtype(device):
    """As if the inputs had been cast by hand, lse in fp32; one document has no keys."""
    inputs, cu_seqlens = qkv(7, 7, 2, 1, 16, device=device), offsets([3, 4], device)
    options = {"cu_seqlens_k": offsets([0, 7], device), "return_lse": True}
    want = varlen_attention(*(x.bfloat16() for x in inputs), cu_seqlens, **options)
    with torch.autocast(device, torch.bfloat16):
        got = varlen_attention(*inputs, cu_seqlens, **options)
    assert [x.dtype for x in got] == [torch.bfloat16, torch.float32]
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


# q lengths, k lengths, H, K, D, causal. Several tiles, several blocks a tile, several documents a block.
KERNEL_CASES = {
    "width 16, groups of 2": ([5, 0, 40, 1], None, 4, 2, 16, True),
    "width 40, masked columns": ([9, 34], None, 1, 1, 40, True),
    "width 64, several tiles": ([130, 3, 64], None, 1, 1, 64, True),
    "width 72, full": ([37, 0, 1, 40], None, 1, 1, 72, False),
    "width 72, causal": ([33, 32], None, 2, 1, 72, True),
    "width 80, other key lengths": ([3, 0, 40, 1], [60, 7, 0, 3], 2, 1, 80, True),
    "width 80, other key lengths, full": ([3, 70, 4], [60, 7, 0], 1, 1, 80, False),
    "width 128, groups of 7": ([9, 20], None, 7, 1, 128, True),
    "width 96, a tail of 32": ([20, 3], None, 1, 1, 96, True),
    "width 136, a tail of 16": ([5, 34], None, 2, 1, 136, True),
    "width 192, a tail of 64": ([20], [35], 1, 1, 192, False),
    "width 256": ([30, 70], [100, 35], 1, 1, 256, True),
    "keys of no query": ([0, 3], [5, 3], 1, 1, 16, True),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", KERNEL_CASES)
def test_kernels_as_good_as_torch(case, dtype, device):
    q_lens, k_lens, H, K, D, causal = KERNEL_CASES[case]
    plan = plan_of(q_lens, k_lens, causal=causal, device=device)
    inputs = qkv(plan.num_tokens, plan.num_tokens_k, H, K, D, dtype, device)
    with torch.no_grad():
        lse = _varlen_attention(*inputs, plan, causal, D**-0.5)[1]
        same = varlen_attention_ref(*inputs, plan, causal=causal, return_lse=True)[1]
    assert torch.equal(lse == -torch.inf, same == -torch.inf)
    check_as_good(ours(plan, causal), reference(plan, causal), inputs)


# number, length, H, K, D: whole tiles; several blocks and a ragged end; several documents a block
UNIFORM_CASES = [(2, 128, 1, 1, 72), (2, 130, 2, 1, 16), (3, 20, 1, 1, 80)]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("case", UNIFORM_CASES, ids=str)
def test_uniform_plan_gives_the_bits_of_the_tables(case, causal, device):
    """Without reading a table: what stands in segments_S4 does not matter to the kernels."""
    num, length, H, K, D = case
    inputs = qkv(num * length, num * length, H, K, D, torch.float16, device)
    uniform = AttentionPlan.uniform(num, length, device=device)
    assert torch.equal(uniform.segments_S4, plan_of([length] * num, causal=causal, device=device).segments_S4)
    unread = replace(uniform, segments_S4=torch.full_like(uniform.segments_S4, -(2**30)))
    douts = [randn(num * length, H, D, device=device, seed=5).detach(), randn(H, num * length, device=device).detach()]
    got, want = [], []
    for results, plan in ((got, unread), (want, plan_of([length] * num, causal=causal, device=device))):
        with poisoned_memory():
            results += outputs_and_grads(
                lambda q, k, v, plan=plan: _varlen_attention(q, k, v, plan, causal, 0.2), inputs, douts
            )
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_uniform_plan_in_the_public_function():
    inputs = qkv(10, 10, 2, 1, 16)
    plan = AttentionPlan.uniform(2, 5, device="cpu")
    assert torch.equal(varlen_attention(*inputs, plan), varlen_attention(*inputs, offsets([5, 5])))
    none = AttentionPlan.uniform(0, 5, device="cpu")
    assert varlen_attention(*(t[:0] for t in inputs), none).shape == (0, 2, 16)
    assert _varlen_attention(*(t[:0] for t in inputs), none, False, 0.25)[0].shape == (0, 2, 16)
    with pytest.raises(ValueError, match=r"length is 0; needs a whole number >= 1"):
        AttentionPlan.uniform(2, 0, device="cpu")
    with pytest.raises(ValueError, match=r"num_sequences is -1; needs a whole number >= 0"):
        AttentionPlan.uniform(-1, 5, device="cpu")


def _backward_in_parts(function, dout, q, k, v, out, lse, device):
    """Queries 16 to 40 of one causal document of 40: keys 0 to 16 without a mask, then their own."""
    dq, dk, dv = 0, [], []
    for (begin, end), segment, causal in (((0, 16), (0, 24, 0, 16), False), ((16, 40), (0, 24, 0, 24), True)):
        plan = plan_of_segments([segment], 24, end - begin, causal=causal, device=device)
        part = function(dout, q, k[begin:end], v[begin:end], out, lse, plan, causal=causal)
        dq = dq + part[0]
        dk.append(part[1])
        dv.append(part[2])
    return dq, torch.cat(dk), torch.cat(dv)


def test_backward_by_hand_of_keys_in_parts(device):
    """With the lse of all keys the dq of the parts add up and dk, dv are autograd's; the kernels too."""
    q, k, v = (x.double().requires_grad_() for x in qkv(24, 40, 4, 2, 16))
    dout = randn(24, 4, 16, seed=5).double()
    out, lse = varlen_attention_ref(q, k, v, plan_of_segments([(0, 24, 0, 40)], 24, 40, causal=True), return_lse=True)
    want = torch.autograd.grad(out, (q, k, v), dout)
    inputs = [x.detach() for x in (dout, q, k, v, out, lse)]
    got = _backward_in_parts(varlen_attention_backward, *inputs, "cpu")
    for name, ours_, theirs in zip("qkv", got, want, strict=True):
        torch.testing.assert_close(ours_, theirs, rtol=1e-12, atol=1e-12, msg=f"d{name}")

    def kernels(dout, q, k, v, out, lse, plan, *, causal):
        tables = (plan.segments_S4, plan.q_tiles_N2, plan.k_tiles_M4, plan.covers_all, causal, q.shape[2] ** -0.5)
        return _bwd(dout, torch.zeros_like(lse), q, k, v, out, lse, *tables)

    got = _backward_in_parts(kernels, *(x.float().to(device) for x in inputs), device)
    for name, ours_, theirs in zip("qkv", got, want, strict=True):
        torch.testing.assert_close(ours_.double().cpu(), theirs, rtol=1e-4, atol=1e-5, msg=f"d{name}")


def test_backward_by_hand_says_what_does_not_fit():
    q, k, v = qkv(4, 4, 4, 2, 16)
    plan, lse = plan_of([4], causal=True), torch.zeros(4, 4)
    with pytest.raises(ValueError, match=r"dout's shape is \(3, 4, 16\); needs q's \(4, 4, 16\)"):
        varlen_attention_backward(q[:3], q, k, v, q, lse, plan)
    with pytest.raises(ValueError, match=r"lse's shape is \(4, 3\); needs \(heads, tokens\), \(4, 4\)"):
        varlen_attention_backward(q, q, k, v, q, lse[:, :3], plan)


@pytest.mark.parametrize("causal", [True, False])
def test_overlapping_segments(causal, device):
    """Each key row's gradient is the sum over all segments that see it; rows of no segment give 0."""
    far_apart = [(30, 20, 5, 150), (60, 40, 0, 140), (0, 30, 100, 50)]  # several key tiles; the second starts first
    for segments, T, U, dtype in ((OVERLAPPING, 24, 26, torch.float32), (far_apart, 100, 160, torch.float16)):
        plan = plan_of_segments(segments, T, U, causal=causal, device=device)
        check_as_good(ours(plan, causal), reference(plan, causal), qkv(T, U, 1, 1, 16, dtype, device))


def test_no_segment(device):
    q, k, v = qkv(3, 4, 2, 1, 16, device=device)
    plan = plan_of_segments([], 3, 4, causal=True, device=device)
    with poisoned_memory():
        out, lse, *grads = outputs_and_grads(ours(plan, True), (q, k, v), (q.detach(), torch.ones(2, 3, device=device)))
    assert not any(x.any() for x in (out, lse, *grads))
    assert not varlen_attention_ref(q, k, v, plan).any()


def test_one_token_is_its_value(device):
    q, k, v = qkv(1, 1, 2, 1, 16, device=device)
    dout = randn(1, 2, 16, device=device, seed=9).detach()
    out, dq, dk, dv = outputs_and_grads(
        lambda q, k, v: _varlen_attention(q, k, v, plan_of([1], device=device), True, 0.25)[0], (q, k, v), dout
    )
    assert torch.equal(out, v.detach().expand(1, 2, 16))
    assert torch.equal(dv, dout.sum(1, keepdim=True))
    assert max(dq.abs().max(), dk.abs().max()) < 1e-6  # the softmax of one score is 1, whatever the score


@pytest.mark.parametrize("width", [32, 33])  # 33: strides that are no multiple of 8
def test_views_of_one_projection(width, device):
    """q, k and v as column ranges of one (T, 3 * H * D) matrix, or of wider heads: no copy, same bits."""
    fused = randn(45, 3, 2, width, device=device).detach()
    views = [x.requires_grad_() for x in fused[..., :32].unbind(1)]
    plan = plan_of([40, 5], device=device)
    dout = randn(2, 45, 32, device=device, seed=7).detach().transpose(0, 1)
    copies = [x.detach().contiguous().requires_grad_() for x in views]

    assert not any(x.is_contiguous() for x in views)

    def attend(q, k, v):
        return _varlen_attention(q, k, v, plan, True, 0.2)[0]

    for a, b in zip(outputs_and_grads(attend, views, dout), outputs_and_grads(attend, copies, dout), strict=True):
        assert torch.equal(a, b)


def test_rows_gigabytes_apart(device):
    """Addresses are 64 bits wide."""
    inputs = qkv(3, 3, 1, 1, 16, torch.float16, device)
    plan = plan_of([3], device=device)
    far = [far_rows(t.detach().flatten(1)).unflatten(1, (1, 16)).requires_grad_() for t in inputs]
    dout = randn(3, 1, 16, dtype=torch.float16, device=device, seed=5).detach()
    far_dout = far_rows(dout.flatten(1)).unflatten(1, (1, 16))
    attend = lambda q, k, v: _varlen_attention(q, k, v, plan, True, 0.25)[0]  # noqa: E731
    near = outputs_and_grads(attend, inputs, dout)
    for a, b in zip(outputs_and_grads(attend, far, far_dout), near, strict=True):
        assert torch.equal(a, b)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy's, of the poisoned document
@pytest.mark.parametrize("poison", [1.0, torch.nan, torch.inf])
def test_no_document_touches_another(poison, device):
    """Three documents in one tile; whatever the middle one holds, the others keep every bit, gradients too."""
    plan, middle = plan_of([20, 9, 30], device=device), slice(20, 29)
    inputs, dout = qkv(59, 59, 2, 1, 16, device=device), randn(59, 2, 16, device=device, seed=9).detach()
    attend = lambda q, k, v: _varlen_attention(q, k, v, plan, True, 0.25)  # noqa: E731
    dlse = randn(2, 59, device=device, seed=8).detach()
    before = outputs_and_grads(attend, inputs, (dout, dlse))
    for t in (*inputs, dout, dlse.T):
        t.data[middle] += poison
    after = outputs_and_grads(attend, inputs, (dout, dlse))
    for i, (a, b) in enumerate(zip(before, after, strict=True)):
        a, b = (a.T, b.T) if i == 1 else (a, b)
        assert torch.equal(a[:20], b[:20]), i
        assert torch.equal(a[29:], b[29:]), i
        assert not torch.equal(a[middle], b[middle])


@pytest.mark.parametrize("causal", [True, False])
def test_packed_is_one_by_one(causal, device):
    """The bits of a document do not depend on what else lies in the row, nor on its place there."""
    lengths = [33, 1, 0, 20]
    inputs, dout = qkv(54, 54, 2, 1, 16, device=device), randn(54, 2, 16, device=device, seed=9).detach()

    def one_by_one(q, k, v):
        documents = zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True)
        plans = [plan_of([n], causal=causal, device=device) for n in lengths]
        return torch.cat(
            [_varlen_attention(*d, plan, causal, 0.25)[0] for d, plan in zip(documents, plans, strict=True)]
        )

    plan = plan_of(lengths, causal=causal, device=device)
    packed = outputs_and_grads(lambda q, k, v: _varlen_attention(q, k, v, plan, causal, 0.25)[0], inputs, dout)
    for a, b in zip(packed, outputs_and_grads(one_by_one, inputs, dout), strict=True):
        assert torch.equal(a, b)


def test_gradient_of_lse_alone(device):
    plan = plan_of([6, 3], device=device)
    q, k, v = qkv(9, 9, 2, 1, 16, device=device)
    v = v.detach()
    check_as_good(
        lambda q, k: ours(plan, True)(q, k, v)[1], lambda q, k: reference(plan, True)(q, k, v.to(q))[1], (q, k)
    )


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy's, of the poisoned rows
@pytest.mark.parametrize("poisoned", ["q", "dout", "dlse"])
def test_row_that_sees_no_key_takes_no_gradient(poisoned, device):
    """Whatever it holds and flows into it: merging partial results makes NaN of (-inf) - (-inf)."""
    plan = plan_of([7, 35], [7, 15], device=device)  # in one block: rows that see none, rows that see some
    blind = slice(7, 27)
    dout, dlse = randn(42, 2, 16, device=device, seed=5).detach(), randn(2, 42, device=device, seed=4).detach()
    want, got = [], []
    for results, poison in ((want, 0.0), (got, torch.nan)):
        q, k, v = qkv(42, 22, 2, 1, 16, device=device)
        rows = {"q": q.detach(), "dout": dout, "dlse": dlse.T}[poisoned]
        rows[blind] = poison
        results += outputs_and_grads(lambda *x: _varlen_attention(*x, plan, True, 0.25), (q, k, v), (dout, dlse))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert not got[0][blind].any()
    assert not got[2][blind].any()


def test_empty_row(device):
    for q_lens, k_lens in (([], []), ([0, 0], [0, 0]), ([0], [4])):
        plan = plan_of(q_lens, k_lens, device=device)
        inputs = qkv(plan.num_tokens, plan.num_tokens_k, 2, 1, 16, device=device)
        with poisoned_memory():
            out, lse, dq, dk, dv = outputs_and_grads(
                lambda q, k, v, plan=plan: _varlen_attention(q, k, v, plan, True, 0.25),
                inputs,
                (inputs[0], torch.zeros(2, 0, device=device)),
            )
        assert out.shape == dq.shape == (0, 2, 16)
        assert lse.shape == (2, 0)
        assert not dk.any()
        assert not dv.any()


def test_opcheck(device):
    plan = plan_of([4, 1], [2, 4], device=device)
    q, k, v = qkv(5, 6, 2, 1, 16, device=device)
    tables = (plan.segments_S4, plan.q_tiles_N2, plan.k_tiles_M4, True, True, 0.25)
    torch.library.opcheck(_tiles.overload, (plan.segments_S4, 5, 6, True, True))
    torch.library.opcheck(_tiles.overload, (plan.segments_S4, 5, 6, False, False))
    torch.library.opcheck(_fwd.overload, (q, k, v, *tables))
    q, k, v = (t.detach() for t in (q, k, v))
    out, lse = _fwd(q, k, v, *tables)
    torch.library.opcheck(_bwd.overload, (out, lse, q, k, v, out, lse, *tables))
    plan = AttentionPlan.uniform(2, 3, device=device)
    tables = (plan.segments_S4, plan.q_tiles_N2, plan.k_tiles_M4, True, False, 0.25, 3)
    torch.library.opcheck(_fwd.overload, (*qkv(6, 6, 2, 1, 16, device=device), *tables))


def test_compiles_whole(device):
    """With a plan from outside, and with the plan's tables in the same graph."""
    inputs, plan = qkv(7, 7, 2, 1, 16, device=device), plan_of([3, 4], device=device)
    check_compiles(lambda q, k, v: _varlen_attention(q, k, v, plan, True, 0.25), inputs)

    def attend(q, k, v):
        inside = _plan("varlen_attention", plan.segments_S4, q.shape[0], k.shape[0], True, covers_all=True)
        return _varlen_attention(q, k, v, inside, True, 0.25)

    check_compiles(attend, inputs)

    def attend_within_tiles(q, k, v):
        return _varlen_attention(q, k, v, AttentionPlan.uniform(len(q) // 4, 4, device=device), False, 0.25)

    check_compiles(attend_within_tiles, qkv(8, 8, 2, 1, 16, device=device))


def test_public_function_compiles_whole_by_a_uniform_plan(device):
    """On CPU tensors too, as the vision tower is; the reference counts its tiles, so it must know them."""
    plan, args = AttentionPlan.uniform(3, 4, device=device), qkv(12, 12, 2, 1, 16, device=device)
    check_compiles(lambda q, k, v: varlen_attention(q, k, v, plan, causal=False), args, unknown_sizes=False)


@pytest.mark.gpu
def test_public_function_compiles_whole():
    """On CPU tensors the offsets are read and checked, which is no part of a graph."""
    cu_seqlens = offsets([3, 4], "cuda")
    args = qkv(7, 7, 2, 1, 16, device="cuda")
    check_compiles(lambda q, k, v: varlen_attention(q, k, v, cu_seqlens), args, unknown_sizes=False)


@pytest.mark.gpu
@pytest.mark.real_shapes
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("H", "K", "D"), [(28, 4, 128), (16, 16, 72)])
def test_model_shapes(H, K, D, causal):
    """The two shapes of Eagle 2.5, long enough for many tiles, through the public function; no synchronisation."""
    lengths = [1024, 700, 1, 0, 2300]
    plan = plan_of(lengths, causal=causal, device="cuda")
    inputs = qkv(sum(lengths), sum(lengths), H, K, D, torch.bfloat16, "cuda")
    cu_seqlens = offsets(lengths, "cuda")
    varlen_attention(*inputs, cu_seqlens, causal=causal).backward(inputs[0].detach())  # compiles the kernels
    with no_waiting(inputs[0].device):
        varlen_attention(*inputs, cu_seqlens, causal=causal).backward(inputs[0].detach())
    check_as_good(ours(plan, causal), reference(plan, causal), inputs)


@pytest.mark.gpu
@pytest.mark.real_shapes
@pytest.mark.parametrize("causal", [True, False])
def test_vision_tiles(causal):
    """Tiles of 1024 patches by a uniform plan: the bits of the tables, as good as torch, no synchronisation."""
    inputs = qkv(5 * 1024, 5 * 1024, 16, 16, 72, torch.bfloat16, "cuda")
    plan, tables = AttentionPlan.uniform(5, 1024, device="cuda"), plan_of([1024] * 5, causal=causal, device="cuda")
    check_as_good(ours(plan, causal), reference(plan, causal), inputs)
    douts = [inputs[0].detach(), torch.ones(16, 5 * 1024, device="cuda")]
    got, want = (outputs_and_grads(ours(p, causal), inputs, douts) for p in (plan, tables))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def fake_flash_attn(calls):
    """A module with flash-attn 2's function, computed by the reference: its arguments, layouts and conventions."""

    def flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None,
        causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None, deterministic=False,
        return_attn_probs=False, block_table=None,
    ):  # fmt: skip
        assert (dropout_p, window_size, softcap, alibi_slopes, block_table) == (0.0, (-1, -1), 0.0, None, None)
        for cu_seqlens, longest in ((cu_seqlens_q, max_seqlen_q), (cu_seqlens_k, max_seqlen_k)):
            assert cu_seqlens.dtype == torch.int32 and cu_seqlens.is_contiguous()
            assert type(longest) is int and longest == cu_seqlens.diff().max()
        calls.append(deterministic)
        out, lse = varlen_attention_ref(
            q,
            k,
            v,
            cu_seqlens_q,
            cu_seqlens_k=cu_seqlens_k,
            causal=causal,
            softmax_scale=softmax_scale,
            return_lse=True,
        )
        lse = lse.masked_fill(lse == -torch.inf, torch.inf)  # as flash-attn 2 marks a row that sees no key
        return (out, lse, None) if return_attn_probs else out

    return SimpleNamespace(flash_attn_varlen_func=flash_attn_varlen_func)


@pytest.mark.parametrize("causal", [True, False])
def test_flash_attn_is_asked_the_same_question(causal, monkeypatch):
    calls = []
    monkeypatch.setitem(sys.modules, "flash_attn", fake_flash_attn(calls))
    plans = [plan_of([5, 0, 3], [4, 2, 6], causal=causal), plan_of([8, 3]), AttentionPlan.uniform(3, 4, device="cpu")]
    for plan in plans:
        q, k, v = qkv(plan.num_tokens, plan.num_tokens_k, 4, 2, 16, torch.float16)
        want = varlen_attention_ref(q, k, v, plan, causal=causal, softmax_scale=0.3, return_lse=True)
        assert torch.equal(_flash_attn(q, k, v, plan, causal, 0.3, False), want[0])
        with torch.no_grad():
            got = _flash_attn(q, k, v, plan, causal, 0.3, True)
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    with poisoned_memory():  # torch.use_deterministic_algorithms
        _flash_attn(q, k, v, plan, causal, 0.3, False)
    assert calls == [False] * (2 * len(plans)) + [True]


def test_flash_attn_refuses_what_it_cannot_do(monkeypatch):
    q, k, v = qkv(6, 6, 2, 1, 16, torch.float16)
    segments = plan_of_segments([(0, 6, 0, 6)], 6, 6, causal=True)
    monkeypatch.setitem(sys.modules, "flash_attn", None)  # as if it were not installed

    def refused(match, *args, error=ValueError):
        with pytest.raises(error, match=match):
            _flash_attn(*args)

    refused("the plan is one of segments; needs cu_seqlens", q, k, v, segments, True, 0.25, False)
    refused(r"dtype is torch\.float32; needs torch\.bfloat16", q.float(), k, v, plan_of([6]), True, 0.25, False)
    refused("return_lse is True for inputs that take gradients", q, k, v, plan_of([6]), True, 0.25, True)
    refused(r"pip install 'eagle-kernels\[flash-attn\]'", q, k, v, plan_of([6]), True, 0.25, False, error=ImportError)
    for match, backend in (
        ("q's device is cpu; needs a CUDA device for backend='flash_attn'", "flash_attn"),
        ("backend is 'fastest'; needs one of eagle, flash_attn", "fastest"),
    ):
        with pytest.raises(ValueError, match=match):
            varlen_attention(q, k, v, offsets([6]), backend=backend)


@pytest.mark.parametrize("causal", [True, False])
def test_a_drop_in_for_flash_attn(causal):
    """By position and by name, with flash-attn's alignment, its layout of the lse and its sign where no key is seen."""
    q, k, v = qkv(8, 12, 4, 2, 16)
    q_offsets, k_offsets = offsets([5, 0, 3]), offsets([4, 2, 6])
    theirs = fake_flash_attn([]).flash_attn_varlen_func
    positional, named = (q, k, v, q_offsets, k_offsets, 5, 6, 0.0, 0.3, causal), {"return_attn_probs": True}
    got, want = flash_attn_varlen_func(*positional, **named), theirs(*positional, **named)
    assert all(torch.equal(a, b) for a, b in zip(got[:2], want[:2], strict=True))
    assert got[2] is None
    assert (got[1] == torch.inf).any() == causal
    same = flash_attn_varlen_func(q, k[:8], v[:8], q_offsets, q_offsets, 5, 5, deterministic=True, causal=causal)
    assert torch.equal(same, varlen_attention(q, k[:8], v[:8], q_offsets, causal=causal))
    ours, whole = (inspect.signature(f).parameters for f in (flash_attn_varlen_func, theirs))
    assert [(p.name, p.default) for p in ours.values()] == [(p.name, p.default) for p in whole.values()]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dropout_p": 0.1}, "dropout_p is 0.1; needs 0"),
        ({"window_size": (128, 0)}, r"window_size is \(128, 0\); needs \(-1, -1\)"),
        ({"softcap": 30.0}, "softcap is 30.0; needs 0"),
        ({"alibi_slopes": torch.ones(4)}, "alibi_slopes is given; needs None"),
        ({"block_table": torch.ones(4)}, "block_table is given; needs None"),
        ({"softmax_scale": 0.0}, "softmax_scale is 0.0; needs None or a finite number > 0"),
    ],
)
def test_the_drop_in_refuses_by_name(options, message):
    q, k, v = qkv(6, 6, 4, 2, 16)
    with pytest.raises(ValueError, match=f"^flash_attn_varlen_func: {message}"):
        flash_attn_varlen_func(q, k, v, offsets([6]), offsets([6]), 6, 6, **options)


@pytest.mark.gpu
@pytest.mark.real_shapes
@pytest.mark.parametrize("causal", [True, False])
def test_flash_attn_agrees(causal):
    """The backend itself, where it is installed: out, lse and gradients."""
    pytest.importorskip("flash_attn")
    cu_seqlens = offsets([700, 1, 0, 300], "cuda")
    inputs = qkv(1001, 1001, 4, 2, 72, torch.bfloat16, "cuda")
    attend = lambda q, k, v: varlen_attention(q, k, v, cu_seqlens, causal=causal, backend="flash_attn")  # noqa: E731
    with torch.no_grad():
        lse = varlen_attention(*inputs, cu_seqlens, causal=causal, return_lse=True, backend="flash_attn")[1]
        want = varlen_attention_ref(*inputs, cu_seqlens, causal=causal, return_lse=True)[1]
    torch.testing.assert_close(lse, want, rtol=1e-3, atol=1e-3)
    reference = lambda q, k, v: varlen_attention_ref(q, k, v, cu_seqlens, causal=causal)  # noqa: E731
    dout = randn(1001, 4, 72, dtype=torch.bfloat16, device="cuda", seed=5).detach()
    got, want = (outputs_and_grads(attention, inputs, dout) for attention in (attend, reference))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.05)


def test_a_plan_is_equal_to_itself_alone():
    plan, other = plan_of([2, 4]), plan_of([2, 4])
    assert plan == plan
    assert plan != other
    assert len({plan, other}) == 2


def test_errors():
    q, k, v = qkv(6, 6, 4, 2, 16)
    cu = offsets([2, 4])

    def refused(match, *args, **options):
        with pytest.raises(ValueError, match=match):
            varlen_attention(*args, **options)

    refused(r"q's shape is \(6, 64\); needs three dimensions", q.flatten(1), k, v, cu)
    refused(r"q's strides is .*; needs a contiguous last", q.transpose(1, 2), k, v, cu)
    refused("k's dtype is torch.float16; needs q's torch.float32", q, k.half(), v, cu)
    refused("v's device is meta; needs q's cpu", q, k, v.to("meta"), cu)
    refused("q's dtype is torch.int32; needs one of torch.bfloat16", q.int(), k.int(), v.int(), cu)
    refused("head width is 12; needs a multiple of 8 from 16 to 256", q[..., :12], k[..., :12], v[..., :12], cu)
    refused("k's head width is 8; needs q's 16", q, k[..., :8], v, cu)
    refused(r"v's shape is \(5, 2, 16\); needs k's \(6, 2, 16\)", q, k, v[:5], cu)
    refused("query heads is 3; needs a multiple of the 2", q[:, :3], k, v, cu)
    refused("softmax_scale is -1.0; needs None or a finite number > 0", q, k, v, cu, softmax_scale=-1.0)
    refused("cu_seqlens is a list; needs a torch tensor of int32", q, k, v, [0, 6])
    refused("cu_seqlens's dtype is torch.int64; needs int32", q, k, v, cu.long())
    refused(r"cu_seqlens's shape is \(1, 3\); needs \(S \+ 1,\)", q, k, v, cu[None])
    refused("cu_seqlens' device is meta; needs q's cpu", q, k, v, cu.to("meta"))
    refused(r"cu_seqlens\[0\] is 1; needs 0", q, k, v, cu + 1)
    refused(r"cu_seqlens\[2\] is 6; needs at least cu_seqlens\[1\], which is 7", q, k, v, torch.tensor([0, 7, 6]).int())
    refused(r"cu_seqlens\[-1\] is 5; needs the number of rows, 6", q, k, v, offsets([5]))
    refused("number of key rows is 5; needs q's 6, or cu_seqlens_k", q, k[:5], v[:5], cu)
    refused(r"cu_seqlens_k's shape is \(2,\); needs cu_seqlens' \(3,\)", q, k, v, cu, cu_seqlens_k=offsets([6]))
    refused(r"cu_seqlens_k\[-1\] is 7; needs the number of rows, 6", q, k, v, cu, cu_seqlens_k=offsets([3, 4]))
    plan = plan_of([2, 4])
    refused("cu_seqlens_k is a tensor beside a plan; needs None", q, k, v, plan, cu_seqlens_k=cu)
    refused(r"num_tokens, num_tokens_k\) is \(6, 6\); needs the rows of q and of k, \(5, 6\)", q[:5], k, v, plan)
    refused("plan's device is meta; needs q's cpu", q, k, v, replace(plan, segments_S4=plan.segments_S4.to("meta")))
