import subprocess
import sys
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F

from eagle_kernels.linear_cross_entropy import _fwd, _softmax_grad, linear_cross_entropy, linear_cross_entropy_ref
from tests.kernels.op_checks import DTYPES, check_as_good, check_compiles, far_rows
from tests.numerics import randn

MODULE = import_module("eagle_kernels.linear_cross_entropy")  # as an attribute, that name is the function

SHAPES = [(1, 1, 1), (21, 16, 70), (5, 8, 5000)]  # T, C, V: one, ragged, more vocabulary than one block
WAYS = [False, True]  # the CPU's way and the GPU's


def op(hidden, weight, labels, token_weights=None, *, as_on_gpu, ignore_index=-100):
    need = torch.is_grad_enabled()
    need_dhidden, need_dweight = need and hidden.requires_grad, need and weight.requires_grad
    return _fwd(hidden, weight, labels, token_weights, ignore_index, need_dhidden, need_dweight, as_on_gpu)[0]


def inputs(T, C, V, dtype, device):
    return randn(T, C, dtype=dtype, device=device), randn(V, C, dtype=dtype, device=device, seed=1)


def some_labels(T, V, device, ignored=3):
    """Every `ignored`-th is ignored, but for T = 1."""
    labels = torch.randint(0, V, (T,), generator=torch.Generator().manual_seed(2)).to(device)
    if T > 1:
        labels[::ignored] = -100
    return labels


@pytest.fixture(params=WAYS, ids=["cpu_way", "gpu_way"])
def as_on_gpu(request, device):
    if device == "cuda" and not request.param:
        pytest.skip("CUDA tensors take the GPU's way only")
    return request.param


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("T", "C", "V"), SHAPES)
def test_as_good_as_torch(T, C, V, dtype, as_on_gpu, device):
    labels = some_labels(T, V, device)
    check_as_good(
        lambda h, w: op(h, w, labels, as_on_gpu=as_on_gpu),
        lambda h, w: linear_cross_entropy_ref(h, w, labels),
        inputs(T, C, V, dtype, device),
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_many_chunks_and_token_weights(dtype, as_on_gpu, monkeypatch, device):
    """Chunks of 3 tokens, the last one ragged, and on the GPU's way one of ignored tokens alone."""
    monkeypatch.setattr(MODULE, "CHUNK_BYTES", 3 * 70 * 4)
    monkeypatch.setattr(MODULE, "CHUNK_TOKENS", 3)
    labels, weights = some_labels(20, 70, device), torch.rand(20, device=device)
    check_as_good(
        lambda h, w: op(h, w, labels, weights, as_on_gpu=as_on_gpu),
        lambda h, w: linear_cross_entropy_ref(h, w, labels, weights.to(torch.promote_types(h.dtype, torch.float32))),
        inputs(20, 16, 70, dtype, device),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mean_is_torchs(dtype, device):
    if dtype == torch.float64 and device == "cuda":
        pytest.skip("fp64 is for CPU tensors")
    hidden, weight = inputs(40, 16, 300, dtype, device)
    labels = some_labels(40, 300, device)
    got, want = linear_cross_entropy(hidden, weight, labels), F.cross_entropy(hidden @ weight.T, labels)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-12)
    grads = zip(*[torch.autograd.grad(loss, (hidden, weight)) for loss in (got, want)], strict=True)
    for a, b in grads:
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5 if dtype == torch.float32 else 1e-12)


def test_square_root_weights(as_on_gpu, device):
    """Samples of 4, 16 and 1 answer tokens at weight n**-0.5 / sum of n**0.5: their means, shared 2/7, 4/7, 1/7."""
    lengths, hidden, weight = [4, 16, 1], *inputs(21, 16, 70, torch.float32, device)
    labels = some_labels(21, 70, device, ignored=100).clamp(min=0)
    weights = torch.cat([torch.full((n,), n**-0.5 / 7) for n in lengths]).to(device)
    means = [
        F.cross_entropy(h @ weight.T, y) for h, y in zip(hidden.split(lengths), labels.split(lengths), strict=True)
    ]
    want = sum(share / 7 * mean for share, mean in zip([2, 4, 1], means, strict=True))
    torch.testing.assert_close(op(hidden, weight, labels, weights, as_on_gpu=as_on_gpu), want)


@pytest.mark.parametrize("with_weights", [False, True])
@pytest.mark.parametrize("T", [0, 5])
def test_every_label_ignored(T, with_weights, as_on_gpu, device):
    hidden, weight = inputs(T, 16, 70, torch.float32, device)
    labels, weights = torch.full((T,), -100, device=device), torch.ones(T, device=device)
    loss = op(hidden, weight, labels, weights if with_weights else None, as_on_gpu=as_on_gpu)
    assert loss.item() == 0
    dhidden, dweight = torch.autograd.grad(loss, (hidden, weight))
    assert torch.equal(dhidden, torch.zeros_like(hidden))
    assert torch.equal(dweight, torch.zeros_like(weight))


def test_what_ignored_rows_hold_does_not_matter(as_on_gpu, device):
    """NaN in an ignored token's hidden state and weight reaches neither the loss nor a gradient."""
    hidden, weight = inputs(20, 16, 70, torch.float32, device)
    labels, weights = some_labels(20, 70, device), torch.rand(20, device=device)
    want = torch.autograd.grad(op(hidden, weight, labels, weights, as_on_gpu=as_on_gpu), (hidden, weight))
    ignored = labels == -100
    poisoned = hidden.detach().masked_fill(ignored[:, None], torch.nan).requires_grad_()
    loss = op(poisoned, weight, labels, weights.masked_fill(ignored, torch.nan), as_on_gpu=as_on_gpu)
    got = torch.autograd.grad(loss, (poisoned, weight))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert not got[0][ignored].any()


def test_another_ignore_index(as_on_gpu, device):
    hidden, weight = inputs(20, 16, 70, torch.float32, device)
    labels = some_labels(20, 70, device).clamp(min=0)  # 0 is a token of the vocabulary, here not learned
    loss = op(hidden, weight, labels, as_on_gpu=as_on_gpu, ignore_index=0)
    torch.testing.assert_close(loss, F.cross_entropy(hidden @ weight.T, labels, ignore_index=0))


@pytest.mark.parametrize("frozen", [0, 1])
def test_gradients_only_for_what_needs_them(frozen, as_on_gpu, device):
    args, labels = inputs(20, 16, 70, torch.float32, device), some_labels(20, 70, device)
    args[frozen].requires_grad_(False)
    check_as_good(
        lambda h, w: op(h, w, labels, as_on_gpu=as_on_gpu), lambda h, w: linear_cross_entropy_ref(h, w, labels), args
    )
    hidden, weight = (t.detach() for t in args)
    made = _fwd(hidden, weight, labels, None, -100, frozen != 0, frozen != 1, as_on_gpu)[1:]
    assert [t.numel() > 0 for t in made] == [frozen != 0, frozen != 1]


def test_no_grad_makes_no_gradients(device):
    hidden, weight = inputs(20, 16, 70, torch.float32, device)
    labels = some_labels(20, 70, device)
    with torch.no_grad():
        loss = linear_cross_entropy(hidden, weight, labels)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, linear_cross_entropy_ref(hidden, weight, labels))


def test_extreme_logits(as_on_gpu, device):
    """Logits of +-3e4: softmax is one-hot, the loss a difference of logits, and nothing overflows."""
    hidden = torch.tensor([[1.0], [-1.0]], device=device, requires_grad=True)
    weight = torch.tensor([[3e4], [-3e4], [0.0]], device=device, requires_grad=True)
    loss = op(hidden, weight, torch.tensor([0, 0], device=device), as_on_gpu=as_on_gpu)
    dhidden, dweight = torch.autograd.grad(loss, (hidden, weight))
    assert loss.item() == 3e4  # right and free, wrong by 6e4; the mean
    assert dhidden.flatten().tolist() == [0.0, -3e4]
    assert dweight.flatten().tolist() == [0.5, -0.5, 0.0]


def test_small_weights_survive_fp16(as_on_gpu, device):
    """Weights of 1e-7 leave g at fp16's last digits or 0; scaled by the loss scaler afterwards, gradients are right."""
    hidden, weight = inputs(20, 16, 70, torch.float16, device)
    labels, weights = some_labels(20, 70, device), torch.full((20,), 1e-7, device=device)
    scale = 1e7
    got = torch.autograd.grad(op(hidden, weight, labels, weights, as_on_gpu=as_on_gpu) * scale, (hidden, weight))
    wide = [t.detach().double().requires_grad_() for t in (hidden, weight)]
    want = torch.autograd.grad(linear_cross_entropy_ref(*wide, labels, weights.double()) * scale, wide)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=0, atol=4e-3 * b.abs().max().item())


def test_gradcheck():
    hidden, weight = inputs(6, 3, 7, torch.float64, "cpu")
    labels, weights = some_labels(6, 7, "cpu"), torch.rand(6, dtype=torch.float64)
    hidden, weight = hidden.double().requires_grad_(), weight.double().requires_grad_()
    for fn in (linear_cross_entropy, linear_cross_entropy_ref):
        for w in (None, weights):
            assert torch.autograd.gradcheck(lambda h, v, fn=fn, w=w: fn(h, v, labels, w), (hidden, weight))


def test_opcheck(as_on_gpu, device):
    args, labels = inputs(6, 3, 7, torch.float32, device), some_labels(6, 7, device)
    torch.library.opcheck(_fwd, (*args, labels, None, -100, True, True, as_on_gpu))
    frozen = (args[0], args[1].detach(), labels, torch.rand(6, device=device), -100, True, False, as_on_gpu)
    torch.library.opcheck(_fwd, frozen)


def test_compiles(device):
    args, labels = inputs(6, 3, 7, torch.float32, device), some_labels(6, 7, device)
    check_compiles(lambda h, w: op(h, w, labels, as_on_gpu=True), args)
    check_compiles(lambda h, w: linear_cross_entropy(h, w, labels), args)


def test_more_logits_than_32_bits_count(device):
    """T x V = 2.3e9, of which 40 tokens are labelled, the last of them at the very end."""
    T, V = 15_000, 152_064
    hidden, weight = inputs(T, 2, V, torch.float32, device)
    rows = torch.arange(T - 1, 0, -T // 40, device=device).flip(0)
    labels = torch.full((T,), -100, device=device)
    labels[rows] = (rows * 10_007) % V
    loss = linear_cross_entropy(hidden, weight, labels)
    want = F.cross_entropy(hidden[rows] @ weight.T, labels[rows])
    torch.testing.assert_close(loss, want)
    grads = [torch.autograd.grad(x, (hidden, weight)) for x in (loss, want)]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4)


def test_logits_beyond_32_bits(device):
    logits = randn(3, 70, dtype=torch.float16, device=device).detach()
    labels, scales = torch.tensor([0, -100, 69], device=device), torch.ones(3, device=device)
    far = far_rows(logits)
    assert torch.equal(
        _softmax_grad(far, labels, scales, -100, True), _softmax_grad(logits, labels, scales, -100, True)
    )
    assert torch.equal(far, logits)  # both now hold the gradient
    assert logits[2, 69] < 0


PEAK = """
import re, sys, torch
from eagle_kernels.linear_cross_entropy import linear_cross_entropy
torch.set_num_threads(1)
T, C, V, dtype = 2048, 64, 152064, getattr(torch, sys.argv[1])
hidden, weight = torch.randn(T, C, dtype=dtype, requires_grad=True), torch.randn(V, C, dtype=dtype, requires_grad=True)
linear_cross_entropy(hidden[:8], weight[:8], torch.zeros(8, dtype=torch.int64)).backward()  # libraries load
hidden.grad = weight.grad = None
def resident_bytes(what):  # VmHWM, not ru_maxrss: that one starts at the parent's peak
    return int(re.search(what + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
before = resident_bytes("VmRSS")
linear_cross_entropy(hidden, weight, torch.randint(0, V, (T,))).backward()
print((resident_bytes("VmHWM") - before) / (T * V * 4))
"""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_peak_memory_on_cpu(dtype):
    """Forward and backward of 2048 tokens, dweight included, in 20 % of what the fp32 logits alone would take."""
    run = subprocess.run([sys.executable, "-c", PEAK, dtype], capture_output=True, text=True, check=True)
    assert 0 < float(run.stdout) < 0.20


H, W, Y = torch.ones(4, 3), torch.ones(7, 3), torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((H[0], W, Y), r"linear_cross_entropy: hidden is \(3,\); needs floats \(T, C\)"),
        ((H.long(), W.long(), Y), r"hidden is \(4, 3\); needs floats \(T, C\)"),
        ((H, W[:, :2], Y), r"weight's shape is \(7, 2\); needs \(V, 3\) with V >= 1, the width of hidden"),
        ((H, W[:0], Y), r"weight's shape is \(0, 3\); needs"),
        ((H, W.half(), Y), "weight's dtype is torch.float16; needs hidden's torch.float32"),
        ((H, W, Y[:3]), r"labels is torch.int64 \(3,\); needs int64 and \(4,\)"),
        ((H, W, Y.int()), r"labels is torch.int32 \(4,\); needs int64"),
        ((H, W, Y.to("meta")), "labels' device is meta; needs cpu"),
        ((H, W, Y + 7), "a label is 7; needs 0 <= label < 7, or ignore_index = -100"),
        ((H, W, Y - 1), "a label is -1; needs 0 <= label < 7"),
        ((H, W, Y, torch.ones(4).half()), r"token_weights is torch.float16 \(4,\); needs torch.float32 and \(4,\)"),
        ((H, W, Y, torch.ones(3)), r"token_weights is torch.float32 \(3,\); needs torch.float32 and \(4,\)"),
        ((H, W, Y, torch.ones(4, device="meta")), "token_weights' device is meta; needs cpu"),
        (
            (H, W, Y, torch.ones(4).requires_grad_()),
            "token_weights' requires_grad is True; needs a constant: detach it",
        ),
    ],
)
def test_refuses(args, message):
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(*args)


def test_compiled_code_asserts_the_labels():
    compiled = torch.compile(linear_cross_entropy, fullgraph=True, backend="aot_eager")
    with pytest.raises(RuntimeError, match="linear_cross_entropy: a label is out of range"):
        compiled(H, W, Y + 7)
