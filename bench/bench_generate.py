"""The first token after a text prompt of 32 tokens: ours, and transformers' Qwen2 with the same weights.

The widths are the model's own, with a few layers of each tower on a CPU. The prompt has no tile, so that the vision
tower, which is there, has nothing to do. On a CPU the clock counts CPU seconds of all threads.
"""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from bench.harness import DEVICE, measure, seconds
from eagle_model.batch import IGNORE_INDEX, PackedBatch
from eagle_model.model import weights
from eagle_model.model.config import EagleConfig, eagle2_5_8b
from eagle_model.model.eagle import Eagle, build

CLOCK = seconds if DEVICE == "cuda" else time.process_time  # of all threads: other programs' time is not ours
pytestmark = pytest.mark.benchmark(timer=CLOCK)

NUM_TOKENS = 32
DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float32


def config(rehearsed: bool) -> EagleConfig:
    cfg = eagle2_5_8b()
    if DEVICE == "cuda":
        return cfg
    text = replace(  # Qwen2.5-0.5B's widths
        cfg.text,
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=1 if rehearsed else 4,
        num_attention_heads=14,
        num_key_value_heads=2,
        vocab_size=1000 if rehearsed else 32_000,
    )
    return replace(
        cfg, vision=replace(cfg.vision, num_hidden_layers=1 if rehearsed else 4), text=text, image_token_id=0
    )


def prompt() -> PackedBatch:
    token_ids_T = torch.arange(1, NUM_TOKENS + 1)
    patches_IPK = torch.zeros(0, 1024, 588)
    return PackedBatch(
        token_ids_T=token_ids_T,
        labels_T=torch.full_like(token_ids_T, IGNORE_INDEX),
        positions_T=torch.arange(NUM_TOKENS, dtype=torch.int32),
        cu_seqlens=torch.tensor([0, NUM_TOKENS], dtype=torch.int32),
        patches_IPK=patches_IPK,
        visual_rows_N=torch.zeros(0, dtype=torch.int64),
        sample_ids=("prompt",),
    ).to(DEVICE, dtype=DTYPE)


def transformers_llm(model: Eagle) -> torch.nn.Module:
    transformers = pytest.importorskip("transformers")
    text = {**model.cfg.text.to_dict(), "dtype": str(DTYPE).removeprefix("torch.")}
    with torch.device(DEVICE):
        llm = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**text)).to(DTYPE)
    released = weights.released(dict(model.named_parameters()), weights.rules(model.cfg))
    prefix = "language_model."
    own = {key.removeprefix(prefix): tensor for key, tensor in released.items() if key.startswith(prefix)}
    llm.load_state_dict(own)
    return llm.eval()


@pytest.mark.parametrize("way", ["ours", "transformers"])
@torch.no_grad()
def test_first_token(benchmark, rehearsed, way):
    torch.manual_seed(0)
    model, batch = build(config(rehearsed), DEVICE).to(DTYPE), prompt()
    logits_TV = model.lm_head(model.hidden(batch))
    want = logits_TV[-1].argmax()

    def ours() -> Tensor:
        return torch.tensor(model.generate(batch, max_new_tokens=1)[0][0])

    if way == "transformers":
        llm = transformers_llm(model)
    run = {
        "ours": ours,
        "transformers": lambda: llm(batch.token_ids_T[None], logits_to_keep=1).logits[0, -1].argmax(),
    }[way]
    benchmark.group = f"first token of {NUM_TOKENS} tokens of text, {DTYPE}"
    measure(benchmark, lambda: [run()], [want.cpu()], dtype=DTYPE, tolerance=0)
