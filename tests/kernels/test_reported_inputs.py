"""What broke others: inputs of public bug reports on flash-attention, Liger, flashinfer and torch, rebuilt for our ops.

Each by the public function on CPU tensors (the reference), and by the kernels (Triton's interpreter, or a GPU), against
plain torch in fp64 that shares no code with either.
"""

from importlib import import_module

import pytest
import torch
import torch.nn.functional as F

from eagle_kernels.attention import _varlen_attention, flash_attn_varlen_func, varlen_attention
from eagle_kernels.layer_norm import layer_norm
from eagle_kernels.linear_cross_entropy import _chunk_tokens, linear_cross_entropy
from eagle_kernels.rms_norm import rms_norm, rms_norm_ref
from eagle_kernels.swiglu import swiglu
from tests.kernels.op_checks import poisoned_memory
from tests.kernels.plans import offsets, plan_of
from tests.numerics import assert_as_good, outputs_and_grads, randn, to_double

MODULES = {name: import_module(f"eagle_kernels.{name}") for name in ("layer_norm", "rms_norm", "swiglu")}
LOSS = import_module("eagle_kernels.linear_cross_entropy")

F16, F32 = torch.float16, torch.float32


def one_by_one(q, k, v, q_lens, k_lens, causal):
    """Softmax of each document and head alone, by a mask of all its pairs; 0 for rows that see nothing."""
    group, outs, row, key = q.shape[1] // k.shape[1], [], 0, 0
    for L, M in zip(q_lens, k_lens, strict=True):
        heads = []
        for head in range(q.shape[1]):
            s = q[row : row + L, head] @ k[key : key + M, head // group].T * q.shape[2] ** -0.5
            seen = torch.arange(M, device=q.device) <= torch.arange(L, device=q.device)[:, None] + (M - L)
            seen = seen if causal else torch.ones_like(seen)
            blind = ~seen.any(1, keepdim=True)
            p = s.masked_fill(~(seen | blind), -torch.inf).softmax(1) if M else s
            heads.append(p.masked_fill(blind, 0) @ v[key : key + M, head // group])
        outs.append(torch.stack(heads, 1))
        row, key = row + L, key + M
    return torch.cat(outs)


ATTENTION = {  # heads, key heads, width, query lengths, key lengths, causal, dtype
    "flash-attention#1537: one query at most, and none": (9, 3, 64, [0, 1, 0, 1], [0, 3, 0, 5], True, F16),
    "flash-attention#443: more queries than keys": (1, 1, 32, [76, 34, 146], [1, 1, 1], True, F16),
    "flash-attention#1713: keys without a query": (2, 2, 32, [15, 0, 15], [10, 10, 10], False, F32),
    "flash-attention#2562: the same, 256 wide": (4, 1, 256, [0, 12, 8, 0], [25, 17, 8, 31], False, F32),
    "native-sparse-attention-triton#27: groups of three": (6, 2, 16, [20, 33], [20, 33], True, F32),
    "flash-attention#2860: more tiles than needed": (2, 1, 16, [1, 1, 1, 129, 1], [1, 2, 1, 129, 3], True, F32),
}  # fmt: skip


def attention_inputs(H, K, D, q_lens, k_lens, dtype, device):
    shapes = [(sum(q_lens), H, D), (sum(k_lens), K, D), (sum(k_lens), K, D)]
    return [randn(*shape, dtype=dtype, device=device, seed=seed) for seed, shape in enumerate(shapes)]


def check_attention(inputs, q_lens, k_lens, causal, device, dout=None):
    """By the public function and by the kernels, out and every gradient; an element that nobody wrote is NaN."""
    D = inputs[0].shape[2]
    dout = torch.randn_like(inputs[0]) if dout is None else dout
    plan, cu_q, cu_k = plan_of(q_lens, k_lens, causal=causal, device=device), offsets(q_lens), offsets(k_lens)
    truth = lambda q, k, v: one_by_one(q, k, v, q_lens, k_lens, causal)  # noqa: E731
    true = outputs_and_grads(truth, to_double(inputs), dout.double())
    same = outputs_and_grads(truth, inputs, dout)
    with poisoned_memory():
        kernels = outputs_and_grads(lambda *qkv: _varlen_attention(*qkv, plan, causal, D**-0.5)[0], inputs, dout)
        on_cpu = [x.detach().cpu().requires_grad_() for x in inputs]
        public = outputs_and_grads(
            lambda *qkv: varlen_attention(*qkv, cu_q, cu_seqlens_k=cu_k, causal=causal), on_cpu, dout.cpu()
        )
    assert_as_good(kernels, same, true)
    assert_as_good(public, [x.cpu() for x in same], [x.cpu() for x in true])
    return kernels


@pytest.mark.parametrize("report", ATTENTION)
def test_lengths_of_documents(report, device):
    H, K, D, q_lens, k_lens, causal, dtype = ATTENTION[report]
    inputs = attention_inputs(H, K, D, q_lens, k_lens, dtype, device)
    _, _, dk, dv = check_attention(inputs, q_lens, k_lens, causal, device)
    key = 0
    for L, M in zip(q_lens, k_lens, strict=True):  # keys that nobody sees take no gradient, not even a small one
        assert L or not (dk[key : key + M].any() or dv[key : key + M].any())
        key += M


def test_every_score_below_zero_and_the_first_block_masked(device):
    """flash-attention#2082: the maximum of a block that is all masked was taken as 0, far above all that came after."""
    q, k, v = attention_inputs(14, 2, 64, [24], [140], torch.float32, device)
    q, k = (x.detach().abs().mul(sign).requires_grad_() for x, sign in ((q, 8), (k, -8)))
    check_attention([q, k, v], [24], [140], True, device)


@pytest.mark.parametrize("level", [-2.45e5, 2.45e5])
def test_scores_far_from_zero(level, device):
    """flashinfer#4267: a maximum that starts at -5e4 in place of -inf gave zeros for a row below it."""
    q, k, v = attention_inputs(2, 1, 128, [5], [70], torch.float32, device)
    q = (q.detach() * 0 + abs(level / 128) ** 0.5).requires_grad_()
    k = (k.detach() * 1e-3 + level / 128 / abs(level / 128) ** 0.5).requires_grad_()
    out, *_ = check_attention([q, k, v], [5], [70], False, device)
    assert out.abs().max() > 0


@pytest.mark.parametrize("layout", ["one projection", "values by head", "gradient by head", "gradient of a sum"])
def test_memory_of_others(layout, device):
    """flash-attention#2541 and #355, FlagGems#5896, and a gradient that `sum` expands from one number."""
    D = 256 if layout == "one projection" else 32
    inputs = attention_inputs(4, 4, D, [20, 3], [20, 3], torch.float32, device)
    dout = torch.randn_like(inputs[0])
    if layout == "one projection":
        inputs = [x.requires_grad_() for x in torch.stack([x.detach() for x in inputs], 1).unbind(1)]
    elif layout == "values by head":
        inputs[2] = inputs[2].detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    elif layout == "gradient by head":
        dout = dout.transpose(0, 1).contiguous().transpose(0, 1)
    else:
        dout = torch.ones((), device=device).expand(dout.shape)
    check_attention(inputs, [20, 3], [20, 3], True, device, dout)


def test_rows_beyond_the_last_document_are_refused():
    """flash-attention#2324, pytorch#176793: two rows of padding gave gradients of NaN, without a word."""
    fused = torch.randn(24, 3, 2, 16)
    with pytest.raises(ValueError, match="the number of rows, 24"):
        varlen_attention(*fused.unbind(1), offsets([7, 15]))
    with pytest.raises(ValueError, match="the number of rows, 24"):
        flash_attn_varlen_func(*fused.unbind(1), offsets([7, 15]), offsets([7, 15]), 15, 15)


def test_a_strided_last_dimension_is_refused_at_once():
    """flash-attention#2777: taken in forward, and an error about dq in backward."""
    q, k, v = (torch.randn(9, 16, 2).transpose(1, 2).requires_grad_() for _ in range(3))
    with pytest.raises(ValueError, match="a contiguous last dimension"):
        varlen_attention(q, k, v, offsets([9]))


# Linear cross-entropy


def by_kernels(hidden, weight, labels, token_weights=None, ignore_index=-100):
    """The GPU's way, by the interpreter where there is none."""
    needs = hidden.requires_grad, weight.requires_grad
    chunk = _chunk_tokens(None, len(weight), hidden.dtype, True)
    return LOSS._fwd(hidden, weight, labels, token_weights, ignore_index, *needs, True, chunk, None, 0, None)[0]


def by_the_public_function(hidden, weight, labels, token_weights=None, ignore_index=-100):
    return linear_cross_entropy(hidden, weight, labels, token_weights, ignore_index=ignore_index)


def by_torch(hidden, weight, labels, token_weights=None, ignore_index=-100):
    logits = hidden @ weight.T
    if token_weights is None:
        return F.cross_entropy(logits, labels, ignore_index=ignore_index)
    losses = F.cross_entropy(logits, labels, ignore_index=ignore_index, reduction="none")
    return (losses * token_weights).sum()


def loss_inputs(T, C, V, device):
    labels = torch.randint(V, (T,), generator=torch.Generator().manual_seed(7)).to(device)
    return randn(T, C, device=device), randn(V, C, device=device, seed=1), labels


LOSSES = {  # labels to ignore, what stands for them, weights
    "Liger#968: a mask of weights, and labels to ignore": (3, -100, True),
    "Liger#678: all but one to ignore": (7, -100, False),
    "pytorch#63004: what is ignored is a class, too": (3, 0, False),
    "pytorch#15508: what is ignored lies beyond all classes": (3, 255, False),
}


@pytest.mark.parametrize("way", [by_the_public_function, by_kernels])
@pytest.mark.parametrize("report", LOSSES)
def test_losses(report, way, device):
    num_ignored, ignore_index, weighted = LOSSES[report]
    hidden, weight, labels = loss_inputs(8, 16, 15, device)
    labels[labels == ignore_index] = 1
    labels[:num_ignored] = ignore_index
    mask = torch.rand(8, generator=torch.Generator().manual_seed(3)).to(device) if weighted else None
    ours = outputs_and_grads(lambda h, w: way(h, w, labels, mask, ignore_index), (hidden, weight), torch.ones(()))
    true = outputs_and_grads(lambda h, w: by_torch(h, w, labels, mask, ignore_index), (hidden, weight), torch.ones(()))
    torch.testing.assert_close(ours, true)
    assert not ours[1][:num_ignored].any()  # Liger#968: and the others have one
    assert ours[1][num_ignored:].any(dim=1).all()


@pytest.mark.parametrize("way", [by_the_public_function, by_kernels])
def test_what_others_saved_is_left_alone(way, device):
    """Liger#272: a gradient written over the input, which softmax had saved for its own backward."""
    x, weight, labels = loss_inputs(9, 16, 40, device)
    ours, true = (
        outputs_and_grads(lambda x, w, way=way: way(x.softmax(1), w, labels), (x, weight), torch.ones(()))
        for way in (way, by_torch)
    )
    torch.testing.assert_close(ours, true)


@pytest.mark.parametrize("way", [by_the_public_function, by_kernels])
def test_a_loss_without_gradients(way, device):
    """Liger#507: 0 where nothing takes a gradient."""
    hidden, weight, labels = loss_inputs(4, 8, 3, device)
    torch.testing.assert_close(way(hidden.detach(), weight.detach(), labels), by_torch(hidden, weight, labels).detach())


def test_a_label_that_is_no_class_is_refused():
    """pytorch#12670: -4 where -1 is what to ignore."""
    hidden, weight, labels = loss_inputs(3, 8, 5, "cpu")
    labels[1:] = torch.tensor([-4, -1])
    with pytest.raises(ValueError, match="got -4"):
        linear_cross_entropy(hidden, weight, labels, ignore_index=-1)


@pytest.mark.parametrize("way", [by_the_public_function, by_kernels])
def test_a_class_that_nobody_may_choose(way, device):
    """MindNLP#1633: logits of -inf."""
    hidden, weight, labels = loss_inputs(6, 8, 20, device)
    hidden, weight = hidden.detach().abs(), weight.detach()
    labels[labels == 4] = 5
    weight[4] = -torch.inf
    torch.testing.assert_close(way(hidden, weight, labels), by_torch(hidden, weight, labels))


# Norms, SwiGLU


def test_layer_norm_of_a_width_that_is_no_power_of_two(device):
    """Liger#518: lanes beyond the row counted as minus the mean."""
    x, weight, bias = randn(3, 1536, device=device), randn(1536, device=device, seed=1), randn(1536, device=device)
    x = (x.detach() + 50).requires_grad_()
    truth = lambda x, w, b: F.layer_norm(x, (1536,), w, b, 1e-6)  # noqa: E731
    for op in (lambda x, w, b: MODULES["layer_norm"]._fwd(x, w, b, 1e-6)[0], lambda x, w, b: layer_norm(x, w, b, 1e-6)):
        same, true = (
            outputs_and_grads(truth, t, torch.ones_like(x)) for t in ((x, weight, bias), to_double((x, weight, bias)))
        )
        assert_as_good(outputs_and_grads(op, (x, weight, bias), torch.ones_like(x)), same, true)


def test_rms_norm_adds_up_its_weights_gradient_in_fp32(device):
    """Liger#950: sums over rows in bf16. 4,096 rows of nearly one sign, where such a sum stops growing."""
    x = (randn(4096, 24, device=device).detach() * 0.01 + 1).bfloat16().requires_grad_()
    weight, dy = torch.ones(24, dtype=torch.bfloat16, device=device, requires_grad=True), torch.ones_like(x)
    _, _, true = outputs_and_grads(lambda x, w: rms_norm_ref(x, w, 1e-6), to_double((x, weight)), dy.double())
    for op in (lambda x, w: MODULES["rms_norm"]._fwd(x, w, 1e-6)[0], lambda x, w: rms_norm(x, w, 1e-6)):
        _, _, dweight = outputs_and_grads(op, (x, weight), dy)
        assert dweight.dtype == torch.bfloat16
        torch.testing.assert_close(dweight.double(), true, rtol=2**-8, atol=0)


def test_rms_norm_of_columns(device):
    """LightLLM#1467: the square of the right elements, the values of others."""
    x, weight = randn(33, 20, device=device).detach().T, randn(33, device=device, seed=1).detach()
    want = x / (x.square().mean(1, keepdim=True) + 1e-6).sqrt() * weight
    for op in (MODULES["rms_norm"]._fwd(x, weight, 1e-6)[0], rms_norm(x, weight, 1e-6)):
        torch.testing.assert_close(op, want)


def test_swiglu_rounds_once(device):
    """Liger#414: a sigmoid that was rounded to bf16 before it met its gate."""
    gate, up = (randn(16, 64, dtype=torch.bfloat16, device=device, seed=seed) for seed in (0, 1))
    want = (F.silu(gate.double()) * up.double()).bfloat16()
    ours = MODULES["swiglu"]._fwd(gate, up)
    assert (ours.view(torch.int16) - want.view(torch.int16)).abs().max() <= 1
    assert (swiglu(gate, up).double() - want.double()).abs().max() <= 0.02 * want.double().abs().max()
