"""Parallelism: a model laid over the processes that train it, by torch's FSDP2.

    ranks = start(config.layout, device)                       # ranks.py
    model = build(cfg)                                         # names and shapes; adapters are added here, if any are
    parallelize(model, ranks, dtype=torch.bfloat16)            # one process: everything here
    load(model, source, dtype=torch.float32, device=ranks.device)     # each process reads its rows alone
    masters = Masters(model, torch.bfloat16)                   # what is trained, in this process's rows

Between building and loading, because only then no process ever holds more than its share.

Cut      Each parameter in runs of rows over shard * context processes, and as many copies as replicate (shards.py). A
         layer of a tower, the table of embeddings, the output head, the connector and what is left of each tower are
         gathered when they are called, in `dtype`, and dropped after it; in backward they are gathered again.
Numbers  The cut fp32 weights are the masters; there is no second copy. Gradients of `dtype` are summed in fp32 over all
         processes, those of replicas and of context ranks included: sums, not means, so that mass x loss adds up as it
         does over the rows of one process. Rows of a step add up where the cut weights are, in fp32.
FP8      The weight's scales are of the gathered weight, the same as in one process. Those of activations and gradients
         are of the tokens that this process has: of whole rows without context parallelism, so the same too.
8 bits   Moments of 8 bits share scales over 256 numbers of a process's rows. So the runs of 256 begin anew in each
         process, and what has no multiple of them stays in fp32: the numbers are others than one process's by what
         rounding to 8 bits is, and only by that.
Refused  A base of 4 bits (base_weights=nf4), whose blocks do not follow rows: LoRA on a full one is cut instead.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, Replicate, Shard

from eagle_model.fields import ConfigError
from eagle_model.model.eagle import Eagle
from eagle_model.model.loss import LMHead
from eagle_model.model.shards import rows_of
from eagle_model.train.config import TrainConfig
from eagle_model.train.layout import Layout, check_layout
from eagle_model.train.precision import DTYPES
from eagle_model.train.ranks import Ranks

__all__ = ["Layout", "check_layout", "laid_out", "parallelize"]

METHODS = ("hidden", "embed", "encode_tiles")  # beside forward, that need the model's own parameters; others call these


def laid_out(model: Eagle, config: TrainConfig, ranks: Ranks) -> Eagle:
    """`parallelize` as a run's config has it. Raises ConfigError for a layout in which this model cannot be trained."""
    layout, text = ranks.layout, model.cfg.text
    check_layout(
        layout,
        num_processes=layout.processes,
        rows_per_step=config.rows_per_step,
        num_heads=text.num_attention_heads,
        num_kv_heads=text.num_key_value_heads,
    )
    if config.base_weights == "nf4" and layout.processes > 1:
        raise ConfigError(
            f"base_weights is nf4 in a layout of {layout.processes} processes ({layout}); weights of 4 bits are not "
            f"cut over processes. Set base_weights=full, of which each process then holds "
            f"1/{layout.processes // layout.replicate}, or train in one process."
        )
    if layout.vocab_parallel and text.tie_word_embeddings:
        raise ConfigError(
            "layout.vocab_parallel is true, and the model's lm_head is its table of embeddings (tie_word_embeddings), "
            "whose rows are looked up. Set layout.vocab_parallel=false."
        )
    at_once = config.memory.vision_chunk_tiles is not None
    return parallelize(model, ranks, dtype=DTYPES[config.dtype], vision_at_once=at_once)


def parallelize(
    model: Eagle, ranks: Ranks, *, dtype: torch.dtype = torch.float32, vision_at_once: bool = False
) -> Eagle:
    """The model, each process with its share of it; in a layout of one, that is all. Modules are not replaced after it.

    dtype: what it computes in, and is gathered in. float32 and float64 leave parameters as they are.
    vision_at_once: tower and connector are gathered for as long as the model runs, and their gradients summed once.
                    Where `vision_chunk_tiles` is set it must be so: the tower runs a number of times that other
                    processes do not know.
    """
    if (mesh := ranks.mesh) is None:
        return model
    narrow = dtype if dtype not in (torch.float32, torch.float64) else None
    # Inputs stay as they are: weights of tokens and the mass are fp32.
    policy = MixedPrecisionPolicy(
        param_dtype=narrow, reduce_dtype=torch.float32 if narrow else None, cast_forward_inputs=False
    )
    left = {_cut_head(model.lm_head, mesh)} if ranks.layout.vocab_parallel else set()
    for unit in _units(model, vision_at_once):
        fully_shard(unit, mesh=mesh, mp_policy=policy, reshard_after_forward=True, ignored_params=left)
    for module in model.modules():
        if isinstance(module, FSDPModule):  # every one: what is set on the root alone does nothing
            module.set_force_sum_reduction_for_comms(True)
            module.set_gradient_divide_factor(1.0)
    if isinstance(model.llm.embed_tokens, FSDPModule) and not model.cfg.text.tie_word_embeddings:
        model.llm.embed_tokens.set_unshard_in_backward(False)  # rows are looked up; their gradient needs no weight
    _gather_for_methods(model)
    # Of towers, which give views: nothing here writes into them.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    return model


def _units(model: Eagle, vision_at_once: bool) -> Iterator[Any]:
    """What is gathered together, the inner before the outer; several modules where they share a weight."""
    if not vision_at_once:
        yield from model.vision.layers
        yield model.vision
        yield model.connector
    yield from model.llm.layers
    if model.cfg.text.tie_word_embeddings:
        yield [model.llm.embed_tokens, model.lm_head]
    else:
        yield model.llm.embed_tokens
        if not model.lm_head.vocab_parallel:
            yield model.lm_head
    yield model.llm
    yield model


def _cut_head(head: LMHead, mesh: DeviceMesh) -> nn.Parameter:
    """Cuts the output head's weight as FSDP would, and leaves it so."""
    whole = head.weight.detach()
    cut = partial(
        DTensor.from_local,
        device_mesh=mesh,
        placements=[*[Replicate()] * (mesh.ndim - 1), Shard(0)],
        run_check=False,
        shape=whole.shape,
        stride=whole.stride(),
    )
    rows = slice(*rows_of(cut(whole[:0])))
    head.weight = nn.Parameter(cut(whole[rows]), head.weight.requires_grad)
    head.vocab_parallel = True
    return head.weight


def _gather_for_methods(model: Eagle) -> None:
    """Methods beside forward gather the model's own parameters too, if they are called from outside of it."""
    inside = False

    def enter(module: nn.Module, inputs: Any) -> None:
        nonlocal inside
        inside = True

    def leave(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal inside
        inside = False

    def gathering(name: str) -> Callable[..., Any]:
        plain = getattr(model, name)
        register_fsdp_forward_method(model, name)
        hooked = getattr(model, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal inside
            if inside:
                return plain(*args, **kwargs)
            inside = True
            try:
                return hooked(*args, **kwargs)
            finally:
                inside = False

        return call

    model.register_forward_pre_hook(enter)
    model.register_forward_hook(leave, always_call=True)
    for name in METHODS:
        setattr(model, name, gathering(name))
