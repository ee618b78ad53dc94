"""The one numerical rule: as good as torch in the same dtype, both judged against fp64."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def randn(*shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0) -> Tensor:
    """Standard normal values, the same on every machine; grad is on for floating dtypes."""
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
    return values.to(device=device, dtype=dtype).requires_grad_()


def to_double(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """fp64 leaves with the same values; integer tensors and None stay as they are."""
    return [
        t if t is None or not t.is_floating_point() else t.detach().double().requires_grad_(t.requires_grad)
        for t in tensors
    ]


def outputs_and_grads(
    fn: Callable[..., Tensor | tuple[Tensor, ...]], inputs: Sequence[Tensor | None], douts: Sequence[Tensor] | Tensor
) -> list[Tensor]:
    """fn(*inputs) and the gradient of every input that requires one, in order. `douts` match fn's outputs."""
    leaves = [t.detach().requires_grad_(t.requires_grad) if isinstance(t, Tensor) else t for t in inputs]
    outputs = fn(*leaves)
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    douts = (douts,) if isinstance(douts, Tensor) else douts
    wanted = [t for t in leaves if isinstance(t, Tensor) and t.requires_grad]
    grads = torch.autograd.grad(outputs, wanted, [d.to(o.dtype) for o, d in zip(outputs, douts, strict=True)])
    return [t.detach() for t in (*outputs, *grads)]


def assert_as_good(
    ours: Sequence[Tensor],
    same: Sequence[Tensor],
    true: Sequence[Tensor],
    *,
    factor: float = 2,
    terms: Sequence[Tensor] | None = None,
) -> None:
    """|ours - true| <= factor * max|same - true| + 2 ulp of `true` in our dtype, at every element, and no NaN.

    ours: the kernel; same: torch in the same dtype; true: torch in fp64. The factor is flash-attention's own rule.
    terms: of outputs that are sums of what may cancel, how large that is: ulps are of it then.
    """
    assert len(ours) == len(same) == len(true)
    for i, (o, s, t, size) in enumerate(zip(ours, same, true, terms or true, strict=True)):
        assert o.shape == t.shape and o.dtype == s.dtype, (i, o.shape, t.shape, o.dtype, s.dtype)
        if o.numel() == 0:
            continue
        assert torch.isfinite(o).all(), f"output {i}: {(~torch.isfinite(o)).sum()} values are not finite"
        o64, s64, t64 = o.double().cpu(), s.double().cpu(), t.double().cpu()
        eps = torch.finfo(o.dtype).eps
        allowed = factor * (s64 - t64).abs().max() + 2 * eps * size.double().cpu().abs() + torch.finfo(o.dtype).tiny
        error = (o64 - t64).abs()
        worst = (error - allowed).argmax()
        assert (error <= allowed).all(), (
            f"output {i} {tuple(o.shape)} {o.dtype}: at flat index {int(worst)} ours is {o64.flatten()[worst]:.8g}, "
            f"true is {t64.flatten()[worst]:.8g}; error {error.flatten()[worst]:.3g}, "
            f"allowed {allowed.flatten()[worst]:.3g} (torch's own worst {(s64 - t64).abs().max():.3g})"
        )
