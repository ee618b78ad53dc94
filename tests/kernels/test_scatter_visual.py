import pytest
import torch

from eagle_kernels.scatter_visual import (
    COLS,
    ROWS,
    _bwd,
    _bwd_kernel,
    _fwd,
    _fwd_kernel,
    scatter_visual,
    scatter_visual_ref,
)
from tests.kernels.op_checks import DTYPES, check_as_good, check_compiles, far_rows, far_tensor
from tests.numerics import randn

SHAPES = [(1, 1, 1), (17, 5, 100), (6, 4, 3584)]  # tokens, visual tokens, width: one, ragged, the language model's own


def inputs(T, N, C, dtype, device):
    return randn(T, C, dtype=dtype, device=device), randn(N, C, dtype=dtype, device=device, seed=1)


def spread(T, N, device, dtype=torch.int64):
    return (torch.arange(N, device=device) * T // max(N, 1)).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("T", "N", "C"), SHAPES)
def test_is_a_copy(T, N, C, dtype, device):
    embeddings, visual = inputs(T, N, C, dtype, device)
    rows = spread(T, N, device)
    out = _fwd(embeddings, visual, rows)
    want = embeddings.detach().clone()
    want[rows] = visual.detach()
    assert torch.equal(out, want)
    check_as_good(lambda e, v: _fwd(e, v, rows), lambda e, v: scatter_visual_ref(e, v, rows), (embeddings, visual))


def test_overwritten_rows_take_no_gradient(device):
    embeddings, visual = inputs(5, 2, 3, torch.float32, device)
    rows = torch.tensor([1, 4], device=device, dtype=torch.int32)
    dout = randn(5, 3, device=device, seed=2).detach()
    for fn in (_fwd, scatter_visual):
        dembeddings, dvisual = torch.autograd.grad(fn(embeddings, visual, rows), (embeddings, visual), dout)
        assert torch.equal(dvisual, dout[rows])
        assert torch.equal(dembeddings[rows], torch.zeros(2, 3, device=device))
        assert torch.equal(dembeddings[[0, 2, 3]], dout[[0, 2, 3]])


def test_no_visual_tokens_leave_the_embeddings(device):
    embeddings, visual = inputs(4, 0, 3, torch.float32, device)
    rows = torch.zeros(0, dtype=torch.int64, device=device)
    for fn in (_fwd, scatter_visual):
        out = fn(embeddings, visual, rows)
        assert torch.equal(out, embeddings)
        assert out.data_ptr() != embeddings.data_ptr()
        assert torch.equal(torch.autograd.grad(out.sum(), embeddings)[0], torch.ones_like(embeddings))


@pytest.mark.parametrize(("T", "N", "C"), [(0, 0, 3), (4, 2, 0)])
def test_empty(T, N, C, device):
    args = inputs(T, N, C, torch.float32, device)
    out = _fwd(*args, spread(T, N, device))
    dembeddings, dvisual = torch.autograd.grad(out.sum(), args)
    assert (out.shape, dembeddings.shape, dvisual.shape) == ((T, C), (T, C), (N, C))


@pytest.mark.parametrize("frozen", [0, 1])
def test_gradients_only_for_what_needs_them(frozen, device):
    args, rows = inputs(9, 3, 130, torch.float32, device), spread(9, 3, device)
    args[frozen].requires_grad_(False)
    check_as_good(lambda e, v: _fwd(e, v, rows), lambda e, v: scatter_visual_ref(e, v, rows), args)
    made = _bwd(args[0].detach(), rows, frozen != 0, frozen != 1)
    assert [t.numel() > 0 for t in made] == [frozen != 0, frozen != 1]


def test_strided_inputs(device):
    embeddings, visual = randn(20, 9, device=device), randn(3, 40, device=device, seed=1)
    rows = torch.tensor([0, 9, 4, 9, 8, 9], device=device)[::2]
    for v in (lambda t: t[:, 20:], lambda t: t[:, ::2]):
        check_as_good(
            lambda e, t, v=v: _fwd(e.T, v(t), rows),
            lambda e, t, v=v: scatter_visual_ref(e.T, v(t), rows),
            (embeddings, visual),
        )


def test_opcheck(device):
    args, rows = inputs(5, 2, 3, torch.float32, device), spread(5, 2, device)
    torch.library.opcheck(_fwd, (*args, rows))
    torch.library.opcheck(_bwd, (args[0].detach(), rows, True, False))


def test_compiles(device):
    args, rows = inputs(5, 2, 3, torch.float32, device), spread(5, 2, device)
    check_compiles(lambda e, v: _fwd(e, v, rows), args)
    check_compiles(lambda e, v: scatter_visual(e, v, rows), args)


def test_rows_beyond_32_bits(device):
    """Sources through the op; then what the kernels write, its rows 2**30 elements apart: row 2 passes 32 bits."""
    embeddings, visual = (t.detach() for t in inputs(4, 3, 20, torch.float16, device))
    rows = torch.tensor([0, 1, 3], device=device, dtype=torch.int32)
    assert torch.equal(_fwd(far_rows(embeddings), far_rows(visual), rows), _fwd(embeddings, visual, rows))
    for a, b in zip(_bwd(far_rows(embeddings), rows, True, True), _bwd(embeddings, rows, True, True), strict=True):
        assert torch.equal(a, b)

    C, stride, tile = 20, 2**30, {"ROWS": ROWS, "COLS": COLS}
    out, dembeddings, dvisual = (far_tensor((n, C), (stride, 1), torch.float16, device) for n in (4, 4, 3))
    _fwd_kernel[(1,)](embeddings, visual, rows, out, C, C, stride, 4, 3, 2, C=C, **tile)
    assert torch.equal(out, _fwd(embeddings, visual, rows))
    _bwd_kernel[(1,)](
        embeddings, rows, dembeddings, dvisual, C, stride, stride, 4, 3, 2,
        C=C, NEED_DEMBEDDINGS=True, NEED_DVISUAL=True, **tile,
    )  # fmt: skip
    for a, b in zip((dembeddings, dvisual), _bwd(embeddings, rows, True, True), strict=True):
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


@pytest.mark.parametrize("rows", [[-5, 2], [1, 9], [3, 1], [2, 2]])
def test_wrong_rows_write_nothing_outside(rows, device):
    """What the device's assertion would stop is harmless even where it runs on: a row writes only itself."""
    memory = torch.zeros(12, 3, device=device)
    embeddings, visual = torch.ones(4, 3, device=device), torch.full((2, 3), 2.0, device=device)
    at = torch.tensor(rows, device=device)
    _fwd_kernel[(1,)](embeddings, visual, at, memory[4:8], 3, 3, 3, 4, 2, 2, C=3, ROWS=ROWS, COLS=COLS)
    assert not memory[:4].any() and not memory[8:].any()
    assert memory[4:8].ge(1).all()


E5 = torch.zeros(5, 3)
V2 = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("embeddings", "visual", "rows", "message"),
    [
        (E5, V2, [1, 2, 3], "scatter_visual: the number of visual tokens is 2; needs 3, the number of rows"),
        (E5, V2, [1, 1], r"scatter_visual: rows is \[1, 1\]; needs them strictly ascending and within 0 <= row < 5"),
        (E5, V2, [2, 1], r"rows is \[2, 1\]; needs them strictly ascending"),
        (E5, V2, [-1, 1], r"rows is \[-1, 1\]; needs them"),
        (E5, V2, [0, 5], r"rows is \[0, 5\]; needs them"),
        (E5, torch.ones(9, 3), [0] * 9, "rows is 9 rows; needs them"),
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


def test_compiled_code_asserts_the_rows():
    compiled = torch.compile(scatter_visual, fullgraph=True, backend="aot_eager")
    with pytest.raises(RuntimeError, match="scatter_visual: rows are out of order or range"):
        compiled(E5, V2, torch.tensor([2, 1]))
