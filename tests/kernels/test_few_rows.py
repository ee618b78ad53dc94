"""few_rows: as good as torch at every number of rows and every ragged width, each row blind to the others."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from eagle_kernels import native
from eagle_kernels.few_rows import DTYPES, MAX_ROWS, _fwd, few_rows, few_rows_ref, takes_few_rows
from tests.kernels.op_checks import poisoned_memory
from tests.numerics import assert_as_good, randn

SIMD = ["", "none", *(["avx2"] if native.build_info()["simd"] in ("avx2", "avx512") else [])]


def inputs_of(T: int, C: int, F: int, dtype: torch.dtype = torch.float32, *, bias: bool = True) -> list[Tensor | None]:
    x, weight, b = (randn(*shape, dtype=dtype, seed=i).detach() for i, shape in enumerate(((T, C), (F, C), (F,))))
    return [x, weight, b if bias else None]


def check_as_good(inputs: list[Tensor | None]) -> None:
    with poisoned_memory():
        got = few_rows(*inputs)
    same = torch.nn.functional.linear(*inputs)
    true = few_rows_ref(*[t if t is None else t.double() for t in inputs])
    x, weight, bias = (t if t is None else t.double().abs() for t in inputs)
    assert_as_good([got], [same], [true], terms=[few_rows_ref(x, weight, bias)])
    assert torch.equal(got, few_rows(*inputs))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("T", range(MAX_ROWS + 1))
def test_as_good_as_torch(T, dtype):
    check_as_good(inputs_of(T, 96, 131, dtype))
    check_as_good(inputs_of(T, 41, 50, dtype, bias=False))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("F", [0, 1, 2, 3, 47, 48, 49, 97])
@pytest.mark.parametrize("C", [0, 1, 7, 8, 9, 15, 16, 17, 31, 33, 1000])
def test_ragged_widths(C, F, dtype):
    for T in (1, 2, 5, 8, 16):
        check_as_good(inputs_of(T, C, F, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_models_own_widths(dtype):
    check_as_good(inputs_of(8, 3584, 512, dtype))
    check_as_good(inputs_of(1, 18944, 64, dtype, bias=False))


@settings(deadline=None, max_examples=40, derandomize=True)
@given(T=st.integers(1, 16), C=st.integers(1, 200), F=st.integers(1, 120), dtype=st.sampled_from(DTYPES))
def test_random_shapes(T, C, F, dtype):
    check_as_good(inputs_of(T, C, F, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("C", [256, 77])
def test_a_row_alone_has_the_same_bits_as_in_a_batch(C, dtype):
    x, weight, bias = inputs_of(16, C, 100, dtype)
    want = few_rows(x, weight, bias)
    for T in range(1, 17):
        assert torch.equal(few_rows(x[:T], weight, bias), want[:T])
    assert torch.equal(few_rows(x[5:6], weight, bias), want[5:6])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("simd", SIMD)
def test_every_kind_of_vector_and_any_number_of_threads(simd, dtype):
    """Large enough that there are several threads."""
    inputs = inputs_of(15, 700, 1201, dtype)
    got = []
    for num_threads in (1, 2, 7):
        out = torch.full((15, 1201), torch.nan, dtype=dtype)
        native.load().few_rows_cpu(*(native.view(t) for t in (*inputs, out)), num_threads, simd)
        got.append(out)
    same, true = torch.nn.functional.linear(*inputs), few_rows_ref(*(t.double() for t in inputs))
    assert_as_good(got[:1], [same], [true], terms=[few_rows_ref(*(t.double().abs() for t in inputs))])
    assert torch.equal(got[0], got[1])
    assert torch.equal(got[0], got[2])


@pytest.mark.parametrize("dtype", DTYPES)
def test_infinity_and_nan_stay_where_they_are(dtype):
    x, weight, bias = inputs_of(9, 37, 20, dtype)
    x[3, 36], x[4, 0] = torch.inf, torch.nan
    weight[7, 1] = torch.nan
    got, want = few_rows(x, weight, bias), few_rows_ref(x, weight, bias)
    assert torch.equal(got.isnan(), want.isnan())
    assert torch.equal(got.isinf(), want.isinf())


def test_takes_rows_that_lie_apart():
    x, weight, bias = inputs_of(6, 64, 33)
    wide = torch.randn(6, 80)
    wide[:, 8:72] = x
    assert torch.equal(few_rows(wide[:, 8:72], weight, bias), few_rows(x, weight, bias))


def test_opcheck():
    for dtype in DTYPES:
        x, weight, bias = inputs_of(5, 20, 7, dtype)
        torch.library.opcheck(_fwd.overload, (x, weight, bias, 1))
        torch.library.opcheck(_fwd.overload, (x, weight, None, 2))


def test_torch_compile_takes_it_whole():
    inputs = inputs_of(5, 20, 7)
    compiled = torch.compile(lambda *tensors: few_rows(*tensors) * 2, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*inputs), few_rows(*inputs) * 2)


def test_autocast_casts_as_torchs_linear():
    inputs = inputs_of(5, 20, 7)
    with torch.autocast("cpu", torch.bfloat16):
        got = few_rows(*inputs)
    assert torch.equal(got, few_rows(*(t.bfloat16() for t in inputs)))


def test_where_it_takes_the_place_of_linear():
    """In inference mode alone: what trains, traces or is checked against torch keeps torch's products."""
    x, weight, _ = inputs_of(5, 20, 7)
    parameter = torch.nn.Parameter(weight)
    assert not takes_few_rows(x, parameter)
    with torch.no_grad():
        assert not takes_few_rows(x, parameter)
    with torch.inference_mode():
        assert takes_few_rows(x, parameter)
        assert takes_few_rows(x[:0], weight)
        assert takes_few_rows(x.bfloat16(), weight.bfloat16())
        assert not takes_few_rows(x, weight.bfloat16())
        assert not takes_few_rows(x.half(), weight.half())
        assert not takes_few_rows(torch.zeros(MAX_ROWS + 1, 20), weight)
        assert not takes_few_rows(x[None], weight)
        assert not takes_few_rows(x, weight.T.contiguous().T)
        assert not takes_few_rows(x.to("meta"), weight.to("meta"))
        with torch.autocast("cpu", torch.bfloat16):
            assert not takes_few_rows(x, weight)


def test_refuses():
    x, weight, bias = inputs_of(5, 20, 7)

    def refused(message: str, *inputs: object) -> None:
        with pytest.raises(ValueError, match=f"^few_rows: {message}"):
            few_rows(*inputs)

    refused("weight is a list; needs a torch tensor", x, [1])
    refused("bias is a list; needs a torch tensor", x, weight, [1])
    refused("weight's requires_grad is True; needs False, or torch.no_grad", x, weight.clone().requires_grad_())
    with torch.no_grad():
        few_rows(x, weight.clone().requires_grad_())
    refused("x's dtype is torch.float16; needs one of torch.float32, torch.bfloat16", x.half(), weight.half())
    refused(r"x's shape is \(17, 20\); needs \(T, C\) with T up to 16", torch.zeros(17, 20), weight)
    refused(r"x's shape is \(1, 5, 20\)", x[None], weight)
    refused(r"weight's shape is \(7, 19\); needs \(F, 20\), x's width", x, weight[:, :19])
    refused(r"bias's shape is \(6,\); needs \(7,\)", x, weight, bias[:6])
    refused("weight's dtype is torch.bfloat16; needs x's torch.float32", x, weight.bfloat16())
    refused("bias's device is meta; needs x's cpu", x, weight, bias.to("meta"))
    refused(r"weight's strides is \(1, 7\); needs contiguous rows", x, weight.T.contiguous().T)


def test_the_core_refuses_what_does_not_agree():
    x, weight, bias = inputs_of(5, 20, 7)
    tensors = {"x": x, "weight": weight, "bias": bias, "out": torch.zeros(5, 7)}

    def call(changed: dict[str, Tensor], num_threads: int = 1, simd: str = "") -> None:
        native.load().few_rows_cpu(*(native.view(t) for t in (tensors | changed).values()), num_threads, simd)

    call({})
    for name, wrong, message in [
        ("x", x.half(), "x is float16; needs bfloat16 or float32"),
        ("weight", weight.bfloat16(), "are float32, bfloat16, float32 and float32; needs one dtype"),
        ("x", torch.zeros(17, 20), "x needs at most 16 contiguous rows"),
        ("weight", weight[:, :19], "weight needs contiguous rows of x's width, 20"),
        ("bias", bias[:6], "bias needs no numbers, or one for each of the weight's 7 rows"),
        ("out", torch.zeros(7, 5), r"out needs the shape \(5, 7\), contiguous"),
    ]:
        with pytest.raises(ValueError, match=message):
            call({name: wrong})
    with pytest.raises(ValueError, match="num_threads is 0; needs at least 1"):
        call({}, 0)
    with pytest.raises(ValueError, match="simd is 'sse'; needs '', 'avx2' or 'none'"):
        call({}, 1, "sse")
