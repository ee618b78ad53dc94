"""Who takes attention on sm_90, how its descriptors are made, and what a launch costs the host."""

import random
import threading
import time
from types import SimpleNamespace

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget

from eagle_kernels import attention, attention_gluon, attention_gluon_bwd, attention_sm90, attention_triton
from tests.kernels.plans import plan_of
from tests.numerics import randn


@pytest.fixture
def sm90(monkeypatch):
    monkeypatch.setattr(attention_sm90, "_is_sm90", lambda x: True)
    monkeypatch.setattr(attention_sm90, "_num_multiprocessors", lambda device: 132)


def heads_of(D=72, dtype=torch.bfloat16, rows=4, heads=2):
    return torch.zeros(rows, heads, D, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("D", attention_sm90.WIDTHS)
def test_gluon_takes_views_of_a_fused_projection(sm90, D, dtype):
    qkv = torch.zeros(5, 9, D, dtype=dtype)
    assert attention_sm90.why_triton(qkv[:, :7], qkv[:, 7:8], qkv[:, 8:], torch.zeros(5, 7, D, dtype=dtype)) is None


UNFIT = {
    "dtype": heads_of(dtype=torch.float32),
    "head width": heads_of(80),
    "empty": heads_of(rows=0),
    "2**30 rows": torch.zeros(1, 1, 64, dtype=torch.bfloat16).expand(2**30 + 1, 1, 64),
    "16 bytes": torch.zeros(4 * 2 * 72 + 1, dtype=torch.bfloat16)[1:].view(4, 2, 72),
    "stride": torch.zeros(4, 2, 76, dtype=torch.bfloat16)[:, :, :72],
    "or is 0": torch.zeros(1, 2, 72, dtype=torch.bfloat16).expand(4, 2, 72),
}


@pytest.mark.parametrize("name", UNFIT)
def test_triton_takes_what_gluon_cannot(sm90, name):
    """Whichever of the tensors it is."""
    for tensors in ((UNFIT[name], heads_of()), (heads_of(), heads_of(), heads_of(), UNFIT[name])):
        assert name in attention_sm90.why_triton(*tensors)


def test_other_chips_and_other_tritons(sm90, monkeypatch):
    monkeypatch.setattr(attention_sm90, "TESTED", ("2.1",))
    assert triton.__version__ in attention_sm90.why_triton(heads_of())
    monkeypatch.undo()
    assert attention_sm90.why_triton(heads_of()) == "the tensors lie on no GPU of sm_90"  # a CPU's


def test_every_rule_has_its_test():
    named = {
        rule.what
        for rule in attention_sm90.RULES
        for name in (*UNFIT, "sm_90", triton.__version__)
        if name in rule.what
    }
    assert named == {rule.what for rule in attention_sm90.RULES}


def test_the_table_as_doctor_shows_it():
    lines = attention_sm90.table()
    assert len(lines) == len(attention_sm90.RULES) + 1
    assert lines[-1][1] == "Gluon" and all(who == "Triton" for _, who in lines[:-1])


@pytest.mark.parametrize(("dtype", "taker"), [(torch.bfloat16, attention_sm90), (torch.float32, attention_triton)])
def test_ops_follow_the_table(sm90, monkeypatch, dtype, taker):
    went = []
    for module in (attention_sm90, attention_triton):
        for name in ("launch_fwd", "launch_bwd"):
            monkeypatch.setattr(
                module, name, lambda *args, module=module, name=name, **kwargs: went.append((module, name))
            )
    monkeypatch.setattr(attention_triton, "launch_delta", lambda *args: (None, None))
    q = torch.zeros(4, 2, 64, dtype=dtype, requires_grad=True)
    attention._varlen_attention(q, q, q, plan_of([4]), True, 0.1)[0].sum().backward()
    assert went == [(taker, "launch_fwd"), (taker, "launch_bwd")]


def test_a_ragged_descriptor_names_any_row_of_any_document():
    """The three outer coordinates, times their strides, in 64 bits; and where the third passes its bound."""
    x = heads_of(128, rows=100, heads=3)
    main, tail = attention_sm90.descriptors(x, 64)
    assert tail is None and main.block_shape == [1, 1, 64, 1, 128] and main.shape[3:] == [3, 128]
    for start, length, row in ((0, 1, 0), (7, 30, 29), (2**29, 2**28, 5)):
        coords = (2**30, start + length, 2**30 - length + row)
        at = sum(c * stride * 2 for c, stride in zip(coords, main.strides, strict=False)) % 2**64
        assert at == (start + row) * x.stride(0) * 2
        assert all(c < bound for c, bound in zip(coords, main.shape, strict=False)) == (row < length)
    assert all(stride * 2 % 16 == 0 and stride * 2 < 2**40 for stride in main.strides[:-1])  # as CUDA asks
    assert max(main.shape) < 2**31


def test_a_tail_takes_its_zeros_from_beyond_the_head():
    main, tail = attention_sm90.descriptors(heads_of(72), 64)
    assert (main.block_shape[-1], tail.block_shape[-1], main.shape[-1], tail.shape[-1]) == (64, 16, 72, 72)


@pytest.fixture
def compilations(monkeypatch):
    """Launches go through Triton's own code up to the driver; a list of what would have been compiled."""
    asked = []

    def compile(self, key, *args, **kwargs):
        asked.append(self.fn.__name__)
        kernel = SimpleNamespace(
            run=lambda *args: None, function=None, packed_metadata=None, launch_metadata=lambda *args: None
        )
        self.device_caches[0][0][key] = kernel
        return kernel

    driver = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
        get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
    )
    for kernel in (attention_gluon.fwd_kernel, attention_gluon_bwd.dq_kernel, attention_gluon_bwd.dkdv_kernel):
        monkeypatch.setattr(kernel, "device_caches", type(kernel.device_caches)(kernel.create_binder))
    monkeypatch.setattr(type(attention_gluon.fwd_kernel), "_do_compile", compile)
    monkeypatch.setattr(triton.runtime.driver, "_active", driver)
    return asked


def launch_of(num_tokens, num_documents, length=0):
    """One call each of both launches, of documents of no particular length."""
    qkv = heads_of(128, rows=num_tokens, heads=9)
    q, k, v = qkv[:, :7], qkv[:, 7:8], qkv[:, 8:]
    out, lse = torch.empty(num_tokens, 7, 128, dtype=torch.bfloat16), torch.empty(7, num_tokens)
    segments, tiles = (torch.empty(num_documents, n, dtype=torch.int32) for n in (4, 2))
    grads = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    options = {"causal": True, "softmax_scale": 0.1, "length": length}

    def launch():
        attention_sm90.launch_fwd(q, k, v, out, lse, segments, tiles, **options)
        attention_sm90.launch_bwd(out, q, k, v, lse, lse, *grads, segments, tiles, segments, **options)

    return launch


def test_no_batch_compiles_anew(sm90, compilations):
    numbers = random.Random(0)
    for _ in range(100):
        launch_of(numbers.randrange(1, 2000), numbers.randrange(1, 50))()
    assert compilations == ["fwd_kernel", "dq_kernel", "dkdv_kernel"]
    for length in (1, 16, 100):
        launch_of(3 * length, 1, length)()
    assert compilations == ["fwd_kernel", "dq_kernel", "dkdv_kernel"] * 2


def test_a_launch_costs_the_host_little(sm90, compilations):
    """Descriptors and Triton's own code, forward and backward; 0.2 ms on a quiet core. GPU work takes longer."""
    launch, best = launch_of(1000, 3), float("inf")
    for _ in range(50):
        begin = time.perf_counter()
        launch()
        best = min(best, time.perf_counter() - begin)
    assert best < 2e-3


def test_a_thread_needs_nothing_of_the_first(sm90, compilations):
    """Autograd launches backward from a thread of its own, where Triton's ContextVars, its allocator, are not set."""
    ended = []
    thread = threading.Thread(target=lambda: ended.append(launch_of(300, 2)()))
    thread.start()
    thread.join()
    assert ended == [None] and compilations == ["fwd_kernel", "dq_kernel", "dkdv_kernel"]


@pytest.fixture
def hopper_gpu():
    """Inputs of a call that Gluon takes: q, k, v that take gradients, and dout."""
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("needs a GPU of sm_90")
    heads = (7, 1, 1, 7)
    q, k, v, dout = (randn(300, n, 128, dtype=torch.bfloat16, device="cuda", seed=i) for i, n in enumerate(heads))
    assert attention_sm90.why_triton(q, k, v, dout) is None
    return [q, k, v], dout.detach()


def gradients(inputs, dout):
    plan = plan_of([65, 0, 235], device="cuda")
    out, lse = attention._varlen_attention(*inputs, plan, True, 0.1)
    return [out.detach(), lse.detach(), *torch.autograd.grad(out, inputs, dout)]


@pytest.mark.gpu
def test_triton_computes_the_same(hopper_gpu, monkeypatch):
    got = gradients(*hopper_gpu)
    monkeypatch.setattr(attention_sm90, "why_triton", lambda *tensors: "asked for")
    for a, b in zip(got, gradients(*hopper_gpu), strict=True):
        torch.testing.assert_close(a, b, rtol=2**-6, atol=2**-6)


@pytest.mark.gpu
def test_a_fresh_thread(hopper_gpu):
    """Autograd's own has none of what Triton keeps for a thread."""
    results = []
    thread = threading.Thread(target=lambda: results.extend(gradients(*hopper_gpu)))
    thread.start()
    thread.join()
    assert all(map(torch.equal, results, gradients(*hopper_gpu))) and len(results) == 5


@pytest.mark.gpu
def test_captured_at_the_first_call(hopper_gpu):
    (q, k, v), _ = hopper_gpu
    plan = plan_of([65, 0, 235], device="cuda")
    attention_gluon.fwd_kernel.device_caches.clear()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.no_grad():
        captured = attention._varlen_attention(q, k, v, plan, True, 0.1)
    graph.replay()
    assert all(map(torch.equal, captured, attention._varlen_attention(q, k, v, plan, True, 0.1)))
