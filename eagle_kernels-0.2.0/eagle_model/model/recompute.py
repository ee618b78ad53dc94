"""What layers keep for backward, and what is computed again there instead.

    hidden_TD = decoder(x_TD, positions_T, attend, run_layer=recomputed)         # of each layer its input alone
    out_TD = in_chunks([mlp], mlp.whole, x_TD, 8192)                             # of an MLP its input alone

A tower without a `RunLayer` keeps what autograd keeps. With one it hands its layers to it: `recomputed` keeps a layer's
input, `attention_kept` that and what attention computed. Who trains may hand over another, as train/offload.py does.

`in_chunks` computes some rows after the other, and each again in backward, so that what one chunk keeps is gone before
the next. Gradients of weights are added up in fp32 (fp64 for fp64 weights) and rounded once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from eagle_model.model import linear

ATTENTION_OPS = {  # by their names: not all of them are there in every installation
    "eagle::attention_fwd",
    "flash_attn::_flash_attn_varlen_forward",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
}


class RunLayer(Protocol):
    def __call__(self, layer: nn.Module, x: Tensor, *rest: Any) -> Tensor:
        """layer(x, *rest). Of its arguments, x alone is a tensor that takes a gradient."""


def recomputed(layer: nn.Module, x: Tensor, *rest: Any) -> Tensor:
    """Keeps x; backward runs the layer again first. The same numbers, dropout included."""
    return linear.checkpoint(layer, x, *rest)


def attention_kept(layer: nn.Module, x: Tensor, *rest: Any) -> Tensor:
    """Keeps x and attention's output (with its lse): backward runs all of the layer again but attention."""
    return checkpoint(layer, x, *rest, use_reentrant=False, context_fn=_contexts)


_contexts = functools.partial(
    create_selective_checkpoint_contexts,
    lambda _context, op, *args, **options: (
        CheckpointPolicy.MUST_SAVE
        if isinstance(op, torch._ops.OpOverload) and op.name().partition(".")[0] in ATTENTION_OPS
        else CheckpointPolicy.PREFER_RECOMPUTE
    ),
)


def in_chunks(
    modules: Iterable[nn.Module], function: Callable[[Tensor], Tensor], x: Tensor, chunk_rows: int | None
) -> Tensor:
    """function(x), computed `chunk_rows` rows of x at a time, of which x alone is kept for backward.

        out_TD = in_chunks([mlp], mlp.whole, x_TD, 8192)

    Args:    modules: those whose parameters `function` uses.  function: gives each row of x as many rows, and looks at
             no other rows (tiles, tokens of an MLP).  chunk_rows: >= 1; None, or no fewer than x has: all at once,
             kept by autograd.
    Returns: what function(x) gives. Its gradients differ by rounding: a weight's is the sum of the chunks'.
    """
    if chunk_rows is None or len(x) <= chunk_rows:
        return function(x)
    parameters = list({p: None for module in modules for p in module.parameters() if p.requires_grad})
    if not (torch.is_grad_enabled() and (x.requires_grad or parameters)):
        return _rows_after_rows(function, x, chunk_rows)
    kept = _Keep.apply(x, x.new_empty(0, requires_grad=True))
    return _InChunks.apply(function, chunk_rows, kept.grad_fn, x.requires_grad, kept, *parameters)


def _rows_after_rows(function: Callable[[Tensor], Tensor], x: Tensor, chunk_rows: int) -> Tensor:
    out, row = None, 0
    for part in x.split(chunk_rows):
        part_out = function(part)
        if out is None:
            out = part_out.new_empty(len(x) * len(part_out) // len(part), *part_out.shape[1:])
        out[row : row + len(part_out)] = part_out
        row += len(part_out)
    assert out is not None
    return out


class _Keep(torch.autograd.Function):
    """x, kept in a node of its own before the chunks are computed. A layer that is run again in backward, to give x
    back, stops here: its chunks are not computed a third time."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, _takes_gradient: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, dx: Tensor | None) -> tuple[Tensor | None, None]:
        return dx, None


class _InChunks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        function: Callable[[Tensor], Tensor],
        chunk_rows: int,
        keeper: Any,
        needs_dx: bool,
        x: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        ctx.function, ctx.chunk_rows, ctx.keeper, ctx.needs_dx = function, chunk_rows, keeper, needs_dx
        ctx.parameters = parameters
        kind = x.device.type
        ctx.autocast = None if x.is_meta else (kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind))
        ctx.rng = torch.get_rng_state(), torch.cuda.get_rng_state(x.device) if x.is_cuda else None
        return _rows_after_rows(function, x.detach(), chunk_rows)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Any, ...]:
        (x,) = ctx.keeper.saved_tensors
        dx = torch.empty_like(x) if ctx.needs_dx else None
        sums: list[Tensor | None] = [None] * len(ctx.parameters)
        rows_out, row = len(dout) // len(x), 0
        on_cpu, on_gpu = ctx.rng
        with torch.random.fork_rng(devices=[] if on_gpu is None else [x.device]):
            torch.set_rng_state(on_cpu)
            if on_gpu is not None:
                torch.cuda.set_rng_state(on_gpu, x.device)
            for part in x.detach().split(ctx.chunk_rows):
                end = row + len(part)
                part.requires_grad_(ctx.needs_dx)
                with torch.enable_grad(), _autocast(ctx.autocast):
                    out = ctx.function(part)
                inputs = (part, *ctx.parameters) if dx is not None else ctx.parameters
                grads = torch.autograd.grad(out, inputs, dout[row * rows_out : end * rows_out], allow_unused=True)
                del out
                if dx is not None:
                    dx[row:end], grads = grads[0], grads[1:]
                _add(sums, grads)
                del grads  # not beside the next chunk's
                row = end
        rounded = [None if s is None else s.to(p.dtype) for s, p in zip(sums, ctx.parameters, strict=True)]
        return None, None, None, None, dx, *rounded


def _autocast(was: tuple[str, torch.dtype, bool] | None) -> torch.autocast:
    kind, dtype, enabled = was or ("cpu", torch.bfloat16, False)
    return torch.autocast(kind, dtype=dtype, enabled=enabled)


def _add(sums: list[Tensor | None], grads: tuple[Tensor | None, ...]) -> None:
    for i, grad in enumerate(grads):
        if grad is not None:
            wide, so_far = torch.promote_types(grad.dtype, torch.float32), sums[i]
            sums[i] = grad.to(wide, copy=True) if so_far is None else so_far.add_(grad)
