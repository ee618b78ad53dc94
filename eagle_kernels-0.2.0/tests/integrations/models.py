"""Small random models of transformers, in which every weight shows, and what two of them make of one batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Siglip2VisionConfig,
    Siglip2VisionModel,
    SiglipTextConfig,
    SiglipTextModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

VOCAB_SIZE = 61
_TEXT = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
_SIGLIP = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 2}


def causal_lm(family: str = "qwen2", *, attention: str = "eager", **changes: Any) -> Any:
    """family: "qwen2", "qwen3" (heads wider than hidden_size / heads) or "llama"."""
    fields = {**_TEXT, "attn_implementation": attention, **changes}
    if family == "qwen2":
        model: PreTrainedModel = Qwen2ForCausalLM(Qwen2Config(**fields))
    elif family == "qwen3":
        model = Qwen3ForCausalLM(Qwen3Config(**{"head_dim": 24, **fields}))
    else:
        model = LlamaForCausalLM(LlamaConfig(**fields))
    return randomised(model)


def siglip_vision(**changes: Any) -> Any:
    return randomised(SiglipVisionModel(SiglipVisionConfig(**_SIGLIP, image_size=32, patch_size=8, **changes)))


def siglip_text() -> Any:
    config = SiglipTextConfig(**_SIGLIP, vocab_size=VOCAB_SIZE, max_position_embeddings=16, attn_implementation="eager")
    return randomised(SiglipTextModel(config))


def naflex(attention: str) -> Any:
    """SigLIP2 for images of any shape, up to 16 patches."""
    config = Siglip2VisionConfig(**_SIGLIP, num_patches=16, patch_size=4, attn_implementation=attention)
    return randomised(Siglip2VisionModel(config)).eval()


def randomised(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(std=0.1, generator=generator)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1)
    return model


def token_ids(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(1, VOCAB_SIZE, shape, generator=torch.Generator().manual_seed(seed))


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    """Of every parameter, by name; the model's own are cleared."""
    model.zero_grad()
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def assert_close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    """By the largest value of theirs."""
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= tolerance * max(1.0, float(theirs.detach().abs().max()))


def assert_same_gradients(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float = 1e-5) -> None:
    assert ours.keys() == theirs.keys()
    for name, gradient in ours.items():
        scale = float(theirs[name].abs().max())
        assert (gradient - theirs[name]).abs().max() <= tolerance * max(scale, 0.1), name
