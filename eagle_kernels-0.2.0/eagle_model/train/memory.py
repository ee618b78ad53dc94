"""What training saves memory by: settings of a run, and the model that keeps to them.

    run_layer = use_memory(model, MemoryConfig(activations="offload", mlp_chunk_tokens=8192), device)
    loss = model(batch, mass, run_layer=run_layer)

docs/memory.md says what each setting saves and costs; `eagle estimate` what a run takes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from eagle_model.fields import require

if TYPE_CHECKING:
    import torch

    from eagle_model.model.eagle import Eagle
    from eagle_model.model.recompute import RunLayer


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryConfig:
    """What is kept, what is computed again, and where the optimizer's numbers are."""

    activations: Literal["none", "block", "selective", "offload"] = (
        "none"  # all that autograd keeps is kept. block: each layer's input; the layer is run again in backward.
        # selective: that and what attention computed, which is not computed again. offload: as block, in host memory
    )
    mlp_chunk_tokens: int | None = None  # the MLP computes so many tokens at a time, and again in backward; none: all
    loss_chunk_mib: int | None = None  # the most that the loss holds of logits; none: 1040 on a GPU, 64 on a CPU
    vision_chunk_tiles: int | None = None  # tiles seen at a time, and again in backward, of which pixels alone are kept
    optimizer: Literal["adamw", "adamw8bit", "host"] = (
        "adamw"  # in fp32. adamw8bit: moments of 8 bits (needs torchao). host: fp32 weights, moments, update on the CPU
    )
    stochastic_rounding: bool = False  # with adamw8bit and bfloat16: no fp32 weights; each update is rounded at random

    def __post_init__(self) -> None:
        for name in ("mlp_chunk_tokens", "loss_chunk_mib", "vision_chunk_tiles"):
            value = getattr(self, name)
            require(value is None or value >= 1, name, value, "1 or more, or none")
        require(
            self.optimizer == "adamw8bit" or not self.stochastic_rounding,
            "stochastic_rounding",
            f"true with optimizer={self.optimizer}",
            "optimizer=adamw8bit",
        )


def use_memory(model: Eagle, config: MemoryConfig, device: torch.device) -> RunLayer | None:
    """Makes a model compute in the chunks of a config. Returns what its forward takes as `run_layer`, all run long."""
    from eagle_model.model import recompute
    from eagle_model.train.offload import Offload, copies_of

    model.vision_chunk_tiles = config.vision_chunk_tiles
    model.lm_head.chunk_bytes = None if config.loss_chunk_mib is None else config.loss_chunk_mib << 20
    for layer in model.llm.layers:
        layer.mlp.chunk_tokens = config.mlp_chunk_tokens  # type: ignore[union-attr]
    if config.activations == "offload":
        return Offload(copies_of(device))
    return {
        "none": None,
        "block": recompute.recomputed,
        "selective": recompute.attention_kept,
    }[config.activations]
