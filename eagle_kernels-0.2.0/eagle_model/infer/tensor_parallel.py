"""One model on several processes: each has a part of the heads and of the feed-forward width of every layer.

    cut(model, group)                          # on every process: its rows and columns of the language model
    forward = Forward(model, num_blocks=1000)
    if group.rank() == 0:
        forward.group = group                  # each step of the engine is told to the others
        engine answers; tell(group, None)      # at the end: they may go
    else:
        follow(model, forward.cache, group)    # computes what it is told, until then

The first process has the tokenizer, the vision tower, the schedule and the sampling; the others get the step's
embeddings, and where its keys go. Two sums over the processes a layer. Every process holds its heads of the cache.

Dims     T tokens of the step, D width, R processes.
Source   Shoeybi et al. 2019, arXiv:1909.08053.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from eagle_model.model.attend import Cache, Chunk, Paged
from eagle_model.model.eagle import Eagle
from eagle_model.model.linear import FusedLinear, Linear
from eagle_model.model.llm import DecoderLayer


@dataclass(frozen=True, slots=True)
class Summed:
    """The product of a projection whose inputs are shared out: the parts' sum, then the bias, once."""

    group: dist.ProcessGroup

    def __call__(self, x_TC: Tensor, weight_FC: Tensor, bias_F: Tensor | None) -> Tensor:
        out_TF = F.linear(x_TC, weight_FC)
        dist.all_reduce(out_TF, group=self.group)
        return out_TF if bias_F is None else out_TF + bias_F

    def checkpoint(self, layer: nn.Module, *args: Any) -> Any:
        raise RuntimeError("tensor_parallel: a model that is cut for answers cannot be trained.")


def cut(model: Eagle, group: dist.ProcessGroup) -> None:
    """Leaves this process its part of the language model's layers. Embeddings, output head and vision tower stay.

    Raises ValueError where heads or widths cannot be shared out evenly, or the model has adapters.
    """
    num, rank, text = group.size(), group.rank(), model.cfg.text
    if model.adapter is not None:
        raise ValueError("tensor_parallel: the model has adapters; lora.merge them first.")
    for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        if getattr(text, name) % num:
            raise ValueError(
                f"tensor_parallel: {name} is {getattr(text, name)}; needs a multiple of the {num} processes. "
                "Use fewer of them."
            )
    for layer in model.llm.layers:
        assert isinstance(layer, DecoderLayer)
        attention, mlp = layer.self_attn, layer.mlp
        _cut_rows(attention.qkv_proj, num, rank)
        _cut_columns(attention.o_proj, num, rank, group)
        _cut_rows(mlp.gate_up_proj, num, rank)
        _cut_columns(mlp.down_proj, num, rank, group)
        attention.num_heads //= num
        attention.num_kv_heads //= num


def _cut_rows(linear: FusedLinear, num: int, rank: int) -> None:
    """Of each of its projections, this process's rows."""

    def own(rows: Tensor) -> nn.Parameter:
        parts = [part.chunk(num)[rank] for part in rows.split(linear.sizes)]
        return nn.Parameter(torch.cat(parts), requires_grad=False)

    linear.weight = own(linear.weight.detach())
    if linear.bias is not None:
        linear.bias = own(linear.bias.detach())
    linear.sizes = tuple(size // num for size in linear.sizes)


def _cut_columns(linear: Linear, num: int, rank: int, group: dist.ProcessGroup) -> None:
    own = linear.weight.detach().chunk(num, dim=1)[rank]
    linear.weight = nn.Parameter(own.clone(), requires_grad=False)
    linear.product = Summed(group)


def tell(group: dist.ProcessGroup, step: tuple[Tensor, Tensor, Paged, Tensor | None] | None) -> None:
    """From the first process: the next step's embeddings, positions, way to attend and lengths; None: there is none."""
    device = _device(group)
    if step is None:
        dist.broadcast(torch.zeros(1, dtype=torch.int64, device=device), group_src=0, group=group)
        return
    embeddings_TD, positions_T, attend, lengths_T = step
    about = {
        "num_tokens": len(embeddings_TD),
        "tensors": [_listed(t) for t in (positions_T, attend.rows_T, attend.start_SB, attend.length_S)],
        "longest": attend.longest,
        "block_tokens": attend.block_tokens,
        "chunks": [(chunk.first, chunk.num_tokens, _listed(chunk.rows_L)) for chunk in attend.chunks],
        "lengths": None if lengths_T is None else _listed(lengths_T),
    }
    text = torch.frombuffer(bytearray(json.dumps(about).encode()), dtype=torch.uint8).to(device)
    dist.broadcast(torch.tensor([len(text)], device=device), group_src=0, group=group)
    dist.broadcast(text, group_src=0, group=group)
    dist.broadcast(embeddings_TD.contiguous(), group_src=0, group=group)


def _device(group: dist.ProcessGroup) -> str:
    """Where the group's collectives want tensors to be."""
    return "cuda" if dist.get_backend(group) == "nccl" else "cpu"


def _listed(numbers: Tensor) -> tuple[str, list[Any]]:
    return str(numbers.dtype).removeprefix("torch."), numbers.tolist()


def _tensor(listed: tuple[str, list[Any]], device: torch.device) -> Tensor:
    return torch.tensor(listed[1], dtype=getattr(torch, listed[0]), device=device)


@torch.no_grad()
def follow(model: Eagle, cache: Cache, group: dist.ProcessGroup) -> int:
    """On the other processes: computes each step that is told, and returns how many there were."""
    weight, num_steps = model.llm.embed_tokens.weight, 0
    length = torch.zeros(1, dtype=torch.int64, device=_device(group))
    while True:
        dist.broadcast(length, group_src=0, group=group)
        if not int(length):
            return num_steps
        text = torch.empty(int(length), dtype=torch.uint8, device=length.device)
        dist.broadcast(text, group_src=0, group=group)
        about = json.loads(bytes(text.tolist()))
        embeddings_TD = weight.new_empty(about["num_tokens"], weight.shape[1])
        dist.broadcast(embeddings_TD, group_src=0, group=group)
        positions_T, rows_T, start_SB, length_S = (_tensor(listed, weight.device) for listed in about["tensors"])
        attend = Paged(
            cache=cache,
            rows_T=rows_T,
            start_SB=start_SB,
            length_S=length_S,
            longest=about["longest"],
            block_tokens=about["block_tokens"],
            chunks=[Chunk.of(first, num, _tensor(rows, weight.device)) for first, num, rows in about["chunks"]],
        )
        lengths = about["lengths"]
        lengths_T = None if lengths is None else _tensor(lengths, weight.device)
        model.llm(embeddings_TD, positions_T, attend, lengths_T=lengths_T)
        num_steps += 1
