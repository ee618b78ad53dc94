import subprocess
import sys
from importlib import import_module

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
import triton.language as tl

from eagle_kernels.linear_cross_entropy import (
    _chunk_tokens,
    _fwd,
    linear_cross_entropy,
    linear_cross_entropy_ref,
    vocab_parallel_linear_cross_entropy,
)
from eagle_kernels.linear_cross_entropy_triton import BLOCK
from tests.kernels.op_checks import DTYPES, check_as_good, check_compiles
from tests.numerics import randn

MODULE = import_module("eagle_kernels.linear_cross_entropy")  # as an attribute, that name is the function

SHAPES = [(1, 1, 1), (21, 16, 70), (5, 8, 5000)]  # T, C, V: one, ragged, more vocabulary than one block
WAYS = [False, True]  # the CPU's way and the GPU's


@pytest.fixture(autouse=True)
def bfloat16_as_on_a_gpu(monkeypatch, device):
    """Triton's interpreter multiplies bfloat16 by its bit patterns, and cuts fp32 off instead of rounding it."""
    if device == "cuda":
        return
    from triton.runtime import interpreter

    builder, handle = interpreter.InterpreterBuilder, interpreter.TensorHandle
    dot, cast = builder.create_dot, builder.create_fp_trunc

    def widened(x):
        if x.dtype.scalar != tl.bfloat16:
            return handle(x.data.astype(np.float32), tl.float32)  # the same values, by a faster matmul
        return handle((x.data.view(np.uint16).astype(np.uint32) << 16).view(np.float32), tl.float32)

    def rounded(self, x, dtype):
        if x.dtype.scalar != tl.float32 or dtype.scalar != tl.bfloat16:
            return cast(self, x, dtype)
        bits = torch.from_numpy(np.array(x.data)).bfloat16().view(torch.int16).numpy()
        return handle(bits.view(np.uint16), tl.bfloat16)

    monkeypatch.setattr(builder, "create_dot", lambda self, a, b, *rest: dot(self, widened(a), widened(b), *rest))
    monkeypatch.setattr(builder, "create_fp_trunc", rounded)


def op(hidden, weight, labels, token_weights=None, *, as_on_gpu, ignore_index=-100, chunk_bytes=None, known=None):
    need = torch.is_grad_enabled()
    needs = need and hidden.requires_grad, need and weight.requires_grad
    chunk_tokens = _chunk_tokens(chunk_bytes, len(weight), hidden.dtype, as_on_gpu)
    return _fwd(hidden, weight, labels, token_weights, ignore_index, *needs, as_on_gpu, chunk_tokens, None, 0, known)[0]


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
def test_many_chunks_and_token_weights(dtype, as_on_gpu, device):
    """Chunks of 3 tokens, the last one ragged, and on the GPU's way some of ignored tokens alone."""
    chunk_bytes = 3 * 70 * dtype.itemsize
    labels, weights = some_labels(20, 70, device), torch.rand(20, device=device)
    check_as_good(
        lambda h, w: op(h, w, labels, weights, as_on_gpu=as_on_gpu, chunk_bytes=chunk_bytes),
        lambda h, w: linear_cross_entropy_ref(h, w, labels, weights.to(torch.promote_types(h.dtype, torch.float32))),
        inputs(20, 16, 70, dtype, device),
    )


@pytest.mark.parametrize("chunk_tokens", [3, 20])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_known_number_of_labels(dtype, chunk_tokens, device):
    """By the library's matmuls, on a GPU; ignored rows are not read. One chunk, and several that add up."""
    labels, weights = some_labels(20, 70, device), torch.rand(20, device=device)
    num, ignored = int((labels != -100).sum()), (labels == -100)[:, None]

    def ours(hidden, weight):
        dirty = torch.where(ignored, torch.nan, hidden)
        return op(
            dirty, weight, labels, weights, as_on_gpu=True, chunk_bytes=chunk_tokens * 70 * dtype.itemsize, known=num
        )

    def reference(hidden, weight):
        wide = weights.to(torch.promote_types(hidden.dtype, torch.float32))
        return linear_cross_entropy_ref(hidden.masked_fill(ignored, 0), weight, labels, wide)

    check_as_good(ours, reference, inputs(20, 16, 70, dtype, device))


@pytest.mark.parametrize("labelled", [0, 20])
def test_a_known_number_of_none_or_all(labelled, device):
    hidden, weight = inputs(20, 16, 70, torch.float32, device)
    labels = some_labels(20, 70, device, ignored=100)
    labels[labelled:] = -100
    labels[:labelled].clamp_(min=0)
    want = linear_cross_entropy_ref(hidden, weight, labels)
    for loss in (
        linear_cross_entropy(hidden, weight, labels, num_labelled=labelled),
        op(hidden, weight, labels, as_on_gpu=True, known=labelled),
    ):
        torch.testing.assert_close(loss, want)
        torch.testing.assert_close(*(torch.autograd.grad(x, (hidden, weight), retain_graph=True) for x in (loss, want)))


def test_refuses_another_number_of_labels():
    hidden, weight = inputs(4, 3, 7, torch.float32, "cpu")
    with pytest.raises(ValueError, match="num_labelled is 4; needs 3, the number of labels that are not -100"):
        linear_cross_entropy(hidden, weight, torch.tensor([1, 2, 3, -100]), num_labelled=4)


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
    made = _fwd(hidden, weight, labels, None, -100, frozen != 0, frozen != 1, as_on_gpu)[3:5]
    assert [t.numel() > 0 for t in made] == [frozen != 0, frozen != 1]


def test_no_grad_makes_no_gradients(device):
    hidden, weight = inputs(20, 16, 70, torch.float32, device)
    labels = some_labels(20, 70, device)
    with torch.no_grad():
        loss = linear_cross_entropy(hidden, weight, labels)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, linear_cross_entropy_ref(hidden, weight, labels))


def test_autocast_computes_in_its_dtype(device):
    """As if the inputs had been cast by hand: the gradients arrive in the inputs' own dtype."""
    args, labels = inputs(20, 16, 70, torch.float32, device), some_labels(20, 70, device)
    want = torch.autograd.grad(linear_cross_entropy(*(x.bfloat16() for x in args), labels), args)
    with torch.autocast(device, torch.bfloat16):
        got = torch.autograd.grad(linear_cross_entropy(*args, labels), args)
    assert [x.dtype for x in got] == [torch.float32] * 2
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


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


def test_refuses_a_second_derivative(as_on_gpu, device):
    """The gradients are constants: that of a gradient's norm would come out as 0."""
    args, labels = inputs(6, 3, 7, torch.float32, device), some_labels(6, 7, device)
    loss = op(*args, labels, as_on_gpu=as_on_gpu)
    with pytest.raises(ValueError, match="linear_cross_entropy: create_graph is True; needs False"):
        torch.autograd.grad(loss, args, create_graph=True)


def test_opcheck(as_on_gpu, device):
    args, labels = inputs(6, 3, 7, torch.float32, device), some_labels(6, 7, device)
    torch.library.opcheck(_fwd.overload, (*args, labels, None, -100, True, True, as_on_gpu))
    frozen = (args[0], args[1].detach(), labels, torch.rand(6, device=device), -100, True, False, as_on_gpu)
    torch.library.opcheck(_fwd.overload, frozen)


def test_compiles(device):
    args, labels = inputs(6, 3, 7, torch.float32, device), some_labels(6, 7, device)
    check_compiles(lambda h, w: op(h, w, labels, as_on_gpu=True), args)
    check_compiles(lambda h, w: linear_cross_entropy(h, w, labels, num_labelled=4), args)
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


PEAK = """
import re, sys, torch
from eagle_kernels.linear_cross_entropy import linear_cross_entropy
torch.set_num_threads(1)
T, C, V, dtype = int(sys.argv[1]), 8, 152064, getattr(torch, sys.argv[2])
hidden, weight = torch.randn(T, C, dtype=dtype, requires_grad=True), torch.randn(V, C, dtype=dtype, requires_grad=True)
linear_cross_entropy(hidden[:8], weight[:8], torch.zeros(8, dtype=torch.int64)).backward()  # libraries load
hidden.grad = weight.grad = None
def resident_bytes(what):  # VmHWM, not ru_maxrss: that one starts at the parent's peak
    return int(re.search(what + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
before = resident_bytes("VmRSS")
linear_cross_entropy(hidden, weight, torch.randint(0, V, (T,))).backward()
print((resident_bytes("VmHWM") - before) / (T * V * 4))
"""


@pytest.mark.parametrize(("T", "dtype"), [(8192, "float32"), (2048, "bfloat16")])  # bf16 takes a CPU longer
def test_peak_memory_on_cpu(T, dtype):
    """Forward and backward, dweight included, in 15 % of what the fp32 logits alone would take."""
    run = subprocess.run([sys.executable, "-c", PEAK, str(T), dtype], capture_output=True, text=True, check=True)
    assert 0 < float(run.stdout) < 0.15


def stats_ref(hidden, weight, labels):
    logits, labelled = hidden @ weight.T, labels != -100
    losses = F.cross_entropy(logits, labels, reduction="none")
    predictions = torch.where(labelled, logits.argmax(1), -1)
    return losses, predictions, (predictions == labels)[labelled].float().mean()


@pytest.mark.parametrize("chunk_bytes", [None, 3 * 70 * 4])
def test_stats(chunk_bytes, device):
    hidden, weight = inputs(20, 16, 70, torch.float32, device)
    labels, weights = some_labels(20, 70, device), torch.rand(20, device=device)
    with torch.no_grad():
        labels[1::4] = (hidden @ weight.T).argmax(1)[1::4]  # some are right
    loss, stats = linear_cross_entropy(hidden, weight, labels, weights, chunk_bytes=chunk_bytes, return_stats=True)
    assert torch.equal(loss, linear_cross_entropy(hidden, weight, labels, weights, chunk_bytes=chunk_bytes))
    for got, want in zip(stats, stats_ref(hidden, weight, labels), strict=True):
        assert not got.requires_grad
        torch.testing.assert_close(got, want.detach())
    assert 0 < stats.accuracy < 1
    torch.testing.assert_close((stats.losses_T * weights).sum(), loss.detach())
    dhidden, dweight = torch.autograd.grad(loss, (hidden, weight))
    want = torch.autograd.grad(linear_cross_entropy_ref(hidden, weight, labels, weights), (hidden, weight))
    torch.testing.assert_close((dhidden, dweight), want, rtol=1e-4, atol=1e-5)


def test_stats_where_every_label_is_ignored(device):
    hidden, weight = inputs(5, 16, 70, torch.float32, device)
    for T in (0, 5):
        labels = torch.full((T,), -100, device=device)
        _, stats = linear_cross_entropy(hidden[:T], weight, labels, return_stats=True)
        assert stats.losses_T.tolist() == [0.0] * T
        assert stats.predictions_T.tolist() == [-1] * T
        assert stats.accuracy.item() == 0


def test_the_first_of_equal_logits_is_predicted(as_on_gpu, device):
    """Equal logits one block apart, in one lane and in two."""
    hidden, weight = torch.ones(4, 1, device=device), torch.zeros(10_000, 1, device=device)
    weight[[5, 5 + BLOCK, 17, 9000]] = 2.0
    labels = torch.tensor([5, 17, -100, 9000], device=device)
    predictions = _fwd(hidden, weight, labels, None, -100, False, False, as_on_gpu)[2]
    assert predictions.tolist() == [5, 5, -1, 5]
    weight[5] = 0
    assert _fwd(hidden, -weight, labels, None, -100, False, False, as_on_gpu)[2].tolist() == [0, 0, -1, 0]
    assert _fwd(hidden, weight, labels, None, -100, False, False, as_on_gpu)[2].tolist() == [17, 17, -1, 17]


def test_stats_compile(device):
    hidden, weight = inputs(6, 3, 7, torch.float32, device)
    labels = some_labels(6, 7, device)
    run = lambda: linear_cross_entropy(hidden, weight, labels, return_stats=True)  # noqa: E731
    backend = "inductor" if device == "cuda" else "aot_eager"
    compiled = torch.compile(run, fullgraph=True, backend=backend)()
    torch.testing.assert_close(compiled, run())


@pytest.mark.parametrize(("chunk_bytes", "num_chunks"), [(1, 15), (300, 3), (10**9, 1)])
def test_chunk_bytes_bounds_the_logits(chunk_bytes, num_chunks, as_on_gpu, device, monkeypatch):
    """15 tokens of 40 bytes of logits; one token's logits at least. The loss does not depend on it."""
    (hidden, weight), taken = inputs(15, 4, 10, torch.float32, device), []
    labels = torch.arange(15, device=device) % 10
    way = "_chunk_on_gpu" if as_on_gpu else "_chunk_on_cpu"
    whole = getattr(MODULE, way)

    def spy(*args):
        taken.append(args[8].nbytes)
        whole(*args)

    monkeypatch.setattr(MODULE, way, spy)
    loss = op(hidden, weight, labels, as_on_gpu=as_on_gpu, chunk_bytes=chunk_bytes)
    assert max(taken) <= max(chunk_bytes, 40)
    assert len(taken) == num_chunks
    torch.testing.assert_close(loss, linear_cross_entropy_ref(hidden, weight, labels))


def test_chunks_at_the_models_size():
    """Whole tiles of 128 tokens on a GPU, and there, beside dweight, 1.5 GB at most of 32K tokens in bf16."""
    V, C, T = 152_064, 3584, 32_768
    tokens = _chunk_tokens(None, V, torch.bfloat16, True)
    assert tokens == 3584
    logits, chunk, dhidden, per_token = tokens * V * 2, 2 * tokens * C * 2, T * C * 2, T * 80
    assert logits + chunk + dhidden + per_token < 1.5e9
    assert _chunk_tokens(2**20, V, torch.bfloat16, True) == 3


def in_processes(rank, rendezvous):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=4)
    two = dist.new_group([0, 1])
    for group in (dist.group.WORLD, two) if rank < 2 else (dist.group.WORLD,):
        check_against_one_process(group)
        check_kernels_against_one_process(group)
        check_edges(group)
    dist.destroy_process_group()


def shard_of(weight, group):
    return weight.detach().chunk(group.size())[group.rank()].clone().requires_grad_(weight.requires_grad)


def check_against_one_process(group):
    """fp64: loss, dhidden and this process's rows of dweight to 1e-10, whichever of them is asked for."""
    T, C, V = 21, 5, 70  # 70 rows on 4 processes: 18, 18, 18, 16
    hidden, weight = (t.detach().double() for t in inputs(T, C, V, torch.float32, "cpu"))
    labels, weights = some_labels(T, V, "cpu"), torch.rand(T, generator=torch.Generator().manual_seed(3)).double()
    kwargs = {"vocab_size": V, "group": group, "chunk_bytes": 4 * (V // group.size()) * 8, "return_stats": True}
    for token_weights in (None, weights):
        for needs in ((True, True), (True, False), (False, True)):
            whole = [t.clone().requires_grad_(need) for t, need in zip((hidden, weight), needs, strict=True)]
            parts = [whole[0].detach().clone().requires_grad_(needs[0]), shard_of(whole[1], group)]
            want, want_stats = linear_cross_entropy(*whole, labels, token_weights, return_stats=True)
            got, stats = vocab_parallel_linear_cross_entropy(*parts, labels, token_weights, **kwargs)
            torch.testing.assert_close((got, *stats), (want, *want_stats), rtol=0, atol=1e-10)
            (3 * want).backward()
            (3 * got).backward()
            for part, full in zip(parts, (whole[0].grad, whole[1].grad), strict=True):
                if full is None:
                    assert part.grad is None
                else:
                    mine = full if part is parts[0] else shard_of(full, group)
                    torch.testing.assert_close(part.grad, mine.detach(), rtol=0, atol=1e-10)
    nothing = vocab_parallel_linear_cross_entropy(*parts, torch.full_like(labels, -100), **kwargs)[0]
    assert nothing.item() == 0


def check_kernels_against_one_process(group):
    """The GPU's way, in fp32, with chunks of ignored tokens alone: the processes must not disagree about them."""
    T, C, V = 20, 16, 70
    whole = inputs(T, C, V, torch.float32, "cpu")
    parts, labels = [whole[0].detach().clone().requires_grad_(), shard_of(whole[1], group)], some_labels(T, V, "cpu", 2)
    want = linear_cross_entropy_ref(*whole, labels)
    first_id = -(-V // group.size()) * group.rank()
    dhidden, dweight = torch.autograd.grad(want, whole)
    for known in (None, 10):
        got = _fwd(*parts, labels, None, -100, True, True, True, 3, group.group_name, first_id, known)[0]
        torch.testing.assert_close(got, want)
        grads = torch.autograd.grad(got, parts)
        torch.testing.assert_close(grads[0], dhidden, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(grads[1], shard_of(dweight, group).detach(), rtol=1e-4, atol=1e-5)


def check_edges(group):
    # A shard all of whose logits are -inf takes no part; equal logits: the first of all processes.
    hidden, labels = torch.ones(2, 1), torch.tensor([0, -100])
    for fill, want in ((-torch.inf, torch.tensor(2.0).log()), (0.0, torch.tensor(8.0).log())):
        weight = torch.full((8, 1), fill)
        weight[:2] = 0
        part = shard_of(weight, group)
        args = {"vocab_size": 8, "group": group, "return_stats": True}
        loss, stats = vocab_parallel_linear_cross_entropy(hidden, part, labels, **args)
        torch.testing.assert_close(loss, want)
        assert stats.predictions_T.tolist() == [0, -1]
        loss = _fwd(hidden, part, labels, None, -100, False, False, True, 1, group.group_name, group.rank() * len(part))
        torch.testing.assert_close(loss[0], want)
    n, rank = group.size(), group.rank()
    message = (
        rf"weight's shape is \(3, 1\); needs \({8 // n}, 1\): rows {rank * 8 // n}.. of 8 on process {rank} of {n}"
    )
    with pytest.raises(ValueError, match="vocab_parallel_linear_cross_entropy: " + message):
        vocab_parallel_linear_cross_entropy(hidden, hidden.new_ones(3, 1), labels, vocab_size=8, group=group)
    with pytest.raises(ValueError, match=rf"vocab_size is {n - 1}; needs a row for each of {n} processes"):
        vocab_parallel_linear_cross_entropy(hidden, part, labels, vocab_size=n - 1, group=group)
    with pytest.raises(ValueError, match="a label is 8; needs 0 <= label < 8, or ignore_index = -92"):
        vocab_parallel_linear_cross_entropy(hidden, part, labels + 8, vocab_size=8, group=group, ignore_index=-92)


def test_vocab_parallel_on_4_and_on_2_processes(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # with a GPU too: gloo's processes have CPU tensors
    mp.spawn(in_processes, (tmp_path / "rendezvous",), nprocs=4)


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


@pytest.mark.parametrize("chunk_bytes", [0, -1])
def test_refuses_no_memory(chunk_bytes):
    with pytest.raises(ValueError, match=rf"chunk_bytes is {chunk_bytes}; needs a number of bytes above 0, or None"):
        linear_cross_entropy(H, W, Y, chunk_bytes=chunk_bytes)


def test_compiled_code_asserts_the_labels():
    compiled = torch.compile(linear_cross_entropy, fullgraph=True, backend="aot_eager")
    with pytest.raises(RuntimeError, match="linear_cross_entropy: a label is out of range"):
        compiled(H, W, Y + 7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_graph_that_is_retained_keeps_its_gradients(dtype):
    """On a CPU a gradient is handed on as it is kept: what is added to it elsewhere must not come back."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 8, generator=generator).to(dtype).requires_grad_() for n in (6, 11))
    loss = linear_cross_entropy(hidden, weight, torch.arange(6))
    once = [grad.clone() for grad in torch.autograd.grad(loss, (hidden, weight), retain_graph=True)]
    for times in (1, 2, 3):
        loss.backward(retain_graph=times < 3)
        for x, grad in zip((hidden, weight), once, strict=True):
            torch.testing.assert_close(x.grad, times * grad)
