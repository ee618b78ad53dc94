"""Rotary position embedding of queries and keys together: one launch, positions of packed documents, half-split.

    q_THD, k_TKD = rope(q_THD, k_TKD, torch.tensor([0, 1, 2, 0, 1]), 1e6)  # documents of 3 and 2 tokens

Dims    T tokens, H query heads, K key heads (any H and K), D head width, even.
Maths   angle[t, i] = positions[t] * theta**(-2 i / D), i < D / 2;  (a, b) = the halves of a head;
        out = scale (a cos - b sin, b cos + a sin). Frequencies of another kind take the place of theta's powers, for
        all tokens or token by token; scale is 1 but for YaRN.
Grads   The map is orthogonal but for scale: its gradient is scale times the rotation by the opposite angle.
Numbers The frequencies and angle are rounded to fp32 exactly as transformers' Qwen2 does, so that both agree at every
        position; cos, sin and the products are fp32, rounded once on store (Qwen2 in bf16 rounds cos and sin first).
        At position 131071 an angle in fp32 is right to 0.004 rad: the model's own definition, not the kernel's error.
Source  Su et al. 2021, arXiv:2104.09864, in the layout of GPT-NeoX and Qwen2.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from eagle_kernels import autocast
from eagle_kernels.checks import (
    check_kernel_dtype,
    has_no_numbers,
    inner_contiguous,
    is_positive,
    on_device_of,
    refuse,
    refuse_types,
    refuse_unlike,
    takes_kernel,
)
from eagle_kernels.library import custom_op

TILE = 1024  # (token, pair) entries a program rotates at a time, the same cos and sin for every head


def rope_frequencies(head_dim: int, theta: float) -> Tensor:
    """theta**(-2 i / D) for i < D / 2, fp32 on the CPU, by the very operations of transformers: the last bit counts."""
    return 1.0 / (theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32, device="cpu") / head_dim))


_UPLOADED: dict[tuple[torch.device, int, float], Tensor] = {}


def rope_frequencies_on(device: torch.device, head_dim: int, theta: float) -> Tensor:
    """Uploaded once per device: a copy from the host at every call would wait for the stream. A CUDA graph cannot hold
    such a copy; captured before any upload, it writes the numbers itself, into memory of its own."""
    key = device, head_dim, theta
    if key not in _UPLOADED:
        frequencies = rope_frequencies(head_dim, theta)
        if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            return _write(frequencies, device)
        _UPLOADED[key] = frequencies.to(device)
    return _UPLOADED[key]


def _write(numbers: Tensor, device: torch.device) -> Tensor:
    """The same on `device`, by a launch for each number, which carries it."""
    written = torch.empty_like(numbers, device=device)
    for i, number in enumerate(numbers.tolist()):
        written[i].fill_(number)
    return written


def rope_ref(
    q_THD: Tensor,
    k_TKD: Tensor,
    positions_T: Tensor,
    theta: float | None = None,
    *,
    frequencies: Tensor | None = None,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """What the kernel means, in plain torch. Any device, any dtype; tests differentiate through it."""
    if frequencies is None:
        assert theta is not None
        frequencies = rope_frequencies(q_THD.shape[-1], theta).to(q_THD.device)
    elif frequencies.ndim == 2:
        frequencies = frequencies[:, None]
    angles = positions_T[:, None, None].float() * frequencies  # T, 1, D / 2
    wide = torch.promote_types(q_THD.dtype, torch.float32)
    cos, sin = angles.to(wide).cos(), angles.to(wide).sin()
    if scale != 1.0:
        cos, sin = cos * scale, sin * scale

    def rotate(x: Tensor) -> Tensor:
        a, b = x.to(wide).chunk(2, dim=-1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)

    return rotate(q_THD), rotate(k_TKD)


@triton.jit
def _cos_sin(  # type: ignore[no-untyped-def]
    position, frequencies_ptr, rows, i, mask, HALF: tl.constexpr, PER_TOKEN: tl.constexpr, SCALE: tl.constexpr
):
    """SCALE times the cosine and sine of the angles of pairs i at the rows' positions."""
    if PER_TOKEN:
        angle = position * tl.load(frequencies_ptr + rows * HALF + i, mask=mask, other=0.0)
    else:
        angle = position * tl.load(frequencies_ptr + i, mask=i < HALF, other=0.0)
    cos, sin = tl.cos(angle), tl.sin(angle)
    if SCALE != 1.0:
        cos, sin = cos * SCALE, sin * SCALE
    return cos, sin


@triton.jit
def _rotate(x_ptr, x_stride_t, x_stride_h, out_ptr, NUM_HEADS, rows, i, cos, sin, mask, HALF):  # type: ignore[no-untyped-def]
    for head in range(NUM_HEADS):
        x = x_ptr + rows * x_stride_t + tl.cast(head, tl.int64) * x_stride_h + i
        a = tl.load(x, mask=mask, other=0.0).to(tl.float32)
        b = tl.load(x + HALF, mask=mask, other=0.0).to(tl.float32)
        out = out_ptr + (rows * NUM_HEADS + head) * (2 * HALF) + i
        tl.store(out, (a * cos - b * sin).to(out_ptr.dtype.element_ty), mask=mask)
        tl.store(out + HALF, (b * cos + a * sin).to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["T"])
def _kernel(  # type: ignore[no-untyped-def]
    q_ptr, k_ptr, positions_ptr, frequencies_ptr, q_out_ptr, k_out_ptr,
    q_stride_t, q_stride_h, k_stride_t, k_stride_h, position_stride, T, Q_HEADS, K_HEADS,
    HALF: tl.constexpr, INVERSE: tl.constexpr, PER_TOKEN: tl.constexpr, SCALE: tl.constexpr,
    ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    rows = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]  # int64: T * H * D passes 2**31
    i = tl.arange(0, COLS)[None, :]
    mask = (rows < T) & (i < HALF)
    position = tl.load(positions_ptr + rows * position_stride, mask=rows < T, other=0).to(tl.float32)
    cos, sin = _cos_sin(position, frequencies_ptr, rows, i, mask, HALF, PER_TOKEN, SCALE)
    if INVERSE:
        sin = -sin
    _rotate(q_ptr, q_stride_t, q_stride_h, q_out_ptr, Q_HEADS, rows, i, cos, sin, mask, HALF)
    _rotate(k_ptr, k_stride_t, k_stride_h, k_out_ptr, K_HEADS, rows, i, cos, sin, mask, HALF)


@custom_op("eagle::rope")
def _rope(
    q_THD: Tensor,
    k_TKD: Tensor,
    positions_T: Tensor,
    theta: float,
    inverse: bool,
    frequencies: Tensor | None = None,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """theta counts where there are no frequencies."""
    T, H, D = q_THD.shape
    K = k_TKD.shape[1]
    q_out_THD, k_out_TKD = q_THD.new_empty(T, H, D), k_TKD.new_empty(T, K, D)
    if T and D:
        cols = triton.next_power_of_2(D // 2)
        rows = max(1, TILE // cols)
        q_THD, k_TKD = inner_contiguous(q_THD), inner_contiguous(k_TKD)
        table = rope_frequencies_on(q_THD.device, D, theta) if frequencies is None else frequencies.contiguous()
        with on_device_of(q_THD):
            _kernel[(triton.cdiv(T, rows),)](
                q_THD, k_TKD, positions_T, table, q_out_THD, k_out_TKD,
                q_THD.stride(0), q_THD.stride(1), k_TKD.stride(0), k_TKD.stride(1), positions_T.stride(0), T, H, K,
                HALF=D // 2, INVERSE=inverse, PER_TOKEN=table.ndim == 2, SCALE=scale, ROWS=rows, COLS=cols,
            )  # fmt: skip
    return q_out_THD, k_out_TKD


@_rope.register_fake
def _(q_THD, k_TKD, positions_T, theta, inverse, frequencies=None, scale=1.0):  # type: ignore[no-untyped-def]
    return q_THD.new_empty(q_THD.shape), k_TKD.new_empty(k_TKD.shape)


def _setup(ctx, inputs, output):  # type: ignore[no-untyped-def]
    _, _, positions_T, ctx.theta, ctx.inverse, frequencies, ctx.scale = inputs
    ctx.save_for_backward(positions_T, frequencies)


def _grad(ctx, dq_THD, dk_TKD):  # type: ignore[no-untyped-def]
    need_dq, need_dk = ctx.needs_input_grad[:2]
    dq_THD = dq_THD if need_dq else dq_THD[:, :0]  # no heads: nothing is read or written for it
    dk_TKD = dk_TKD if need_dk else dk_TKD[:, :0]
    positions_T, frequencies = ctx.saved_tensors
    dq_THD, dk_TKD = _rope(dq_THD, dk_TKD, positions_T, ctx.theta, not ctx.inverse, frequencies, ctx.scale)
    return dq_THD if need_dq else None, dk_TKD if need_dk else None, None, None, None, None, None


_rope.register_autograd(_grad, setup_context=_setup)


def check_positions(op: str, positions_T: Tensor, num_tokens: int, like_name: str, like: Tensor) -> None:
    """Raises ValueError unless they are a position for each token on like's device; on a CPU, where looking costs
    nothing, also when one is negative."""
    shape = tuple(positions_T.shape)
    if len(shape) != 1 or shape[0] != num_tokens:
        refuse(op, "positions' shape", shape, f"({num_tokens},)")
    if positions_T.dtype not in (torch.int32, torch.int64):
        refuse(op, "positions' dtype", positions_T.dtype, "int32 or int64")
    if positions_T.device != like.device:
        refuse(op, "positions' device", positions_T.device, f"{like_name}'s {like.device}")
    if positions_T.device.type != "cpu" or not num_tokens or has_no_numbers(positions_T):
        return
    is_wrong = (positions_T < 0).any()
    if torch.compiler.is_compiling():
        torch._assert_async(~is_wrong, f"{op}: a position is below 0; positions count from 0 in each document.")
    elif is_wrong:
        refuse(op, "a position", int(positions_T.min()), "0 or more: positions count from 0 in each document")


def check_angles(
    op: str,
    theta: float | None,
    frequencies: Tensor | None,
    scale: float,
    shapes: tuple[tuple[int, ...], ...],
    like_name: str,
    like: Tensor,
) -> None:
    """Raises ValueError unless there is a theta or there are frequencies of one of `shapes`, and a scale."""
    if frequencies is not None:
        if theta is not None:
            refuse(op, "theta", theta, "None beside frequencies")
        if not isinstance(frequencies, Tensor):
            refuse_types(op, frequencies=frequencies)
        if tuple(frequencies.shape) not in shapes:
            refuse(op, "frequencies' shape", tuple(frequencies.shape), " or ".join(map(str, shapes)))
        if frequencies.dtype != torch.float32:
            refuse(op, "frequencies' dtype", frequencies.dtype, "torch.float32")
        if frequencies.device != like.device:
            refuse(op, "frequencies' device", frequencies.device, f"{like_name}'s {like.device}")
    elif not is_positive(theta):
        refuse(op, "theta", theta, "a finite number > 0")
    if not is_positive(scale):
        refuse(op, "scale", scale, "a finite number > 0")


def rope(
    q_THD: Tensor,
    k_TKD: Tensor,
    positions_T: Tensor,
    theta: float | None = None,
    *,
    frequencies: Tensor | None = None,
    scale: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Queries and keys rotated by their tokens' positions, in the half-split layout of GPT-NeoX and Qwen2.

        q_THD, k_TKD = torch.randn(5, 28, 128), torch.randn(5, 4, 128)
        q_THD, k_TKD = rope(q_THD, k_TKD, torch.tensor([0, 1, 2, 0, 1]), 1e6)  # documents of 3 and 2 tokens

    CPU tensors take `rope_ref`. q and k may be views into one fused projection; only a tensor whose last dim is strided
    is copied.

    Args:    q_THD: (T, H, D), H query heads of T tokens, D wide, D even, in a floating dtype.
             k_TKD: (T, K, D), K key heads, of q's dtype and device.
             positions_T: (T,) int32 or int64, from 0 on in each document. On a GPU, where looking would make the host
             wait, negative ones are not noticed.
             theta: > 0; the pair i of a head turns by theta**(-2 i / D) radians a position.
             frequencies: instead of theta, fp32 on q's device, not differentiated: how far each pair turns, (D / 2,)
             for all tokens, or (T, D / 2) token by token. So come linear, dynamic, YaRN and Llama 3 scaling.
             scale: > 0, multiplies cos and sin: YaRN's attention factor.
    Returns: new contiguous tensors of q's and k's shapes and dtype; under torch.autocast, where dtypes may differ, of
             the widest.
    Raises:  ValueError when an argument is not as above, or they are fp64 on a GPU.
    """
    if not (isinstance(q_THD, Tensor) and isinstance(k_TKD, Tensor) and isinstance(positions_T, Tensor)):
        refuse_types("rope", q=q_THD, k=k_TKD, positions=positions_T)
    if not q_THD.is_meta and torch.is_autocast_enabled(q_THD.device.type):
        with autocast.off(q_THD):
            wide = autocast.widest(q_THD, k_TKD)
            return rope(*wide, positions_T, theta, frequencies=frequencies, scale=scale)
    q_shape, k_shape = tuple(q_THD.shape), tuple(k_TKD.shape)
    if not (q_THD.ndim == 3 and q_shape[2] % 2 == 0):
        refuse("rope", "q's shape", q_shape, "(T, H, D) with D even")
    if not q_THD.is_floating_point():
        refuse("rope", "q's dtype", q_THD.dtype, "a floating dtype")
    fits = k_TKD.ndim == 3 and k_shape[::2] == q_shape[::2]
    if not fits:
        refuse("rope", "k's shape", k_shape, f"(T, K, D) with q's T = {q_shape[0]} and D = {q_shape[2]}")
    if k_TKD.dtype != q_THD.dtype or k_TKD.device != q_THD.device:
        refuse_unlike("rope", "k", k_TKD, "q", q_THD)
    check_positions("rope", positions_T, q_shape[0], "q", q_THD)
    half = q_shape[2] // 2
    check_angles("rope", theta, frequencies, scale, ((half,), (q_shape[0], half)), "q", q_THD)
    if not takes_kernel(q_THD):
        return rope_ref(q_THD, k_TKD, positions_T, theta, frequencies=frequencies, scale=scale)
    check_kernel_dtype("rope", "q", q_THD)
    return _rope(q_THD, k_TKD, positions_T, theta or 0.0, False, frequencies, scale)
