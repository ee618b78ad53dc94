"""Eagle's ops in a Qwen2 that somebody else trains: one line, the same losses, the model's own training code.

    python examples/patch_qwen2.py                       # a small random Qwen2, on whatever device there is
    python examples/patch_qwen2.py Qwen/Qwen2.5-0.5B     # or a folder, or a model of the hub

Needs transformers (pip install 'eagle-kernels[hf]'). Trains STEPS steps on packed rows as it is and as many patched,
from the same weights, and prints both losses; then unpatches. What is swapped, and what is refused: docs/patching.md.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM

from eagle_kernels.integrations.transformers import patch, unpatch

STEPS, LENGTHS = 5, (60, 100, 96)  # documents of one row


def load(name: str | None, device: str) -> Any:
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    if name is not None:
        return AutoModelForCausalLM.from_pretrained(name, dtype=dtype).to(device)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=4096, hidden_size=256, intermediate_size=704, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    return Qwen2ForCausalLM(config).to(device, dtype)


def packed_row(vocab_size: int, device: str) -> dict[str, torch.Tensor]:
    """Documents end to end. Positions that begin again say where; a document's first token is nobody's next."""
    ids_1T = torch.randint(vocab_size, (1, sum(LENGTHS)), generator=torch.Generator().manual_seed(0))
    positions_1T = torch.cat([torch.arange(length) for length in LENGTHS])[None]
    labels_1T = ids_1T.masked_fill(positions_1T == 0, -100)
    row = {"input_ids": ids_1T, "position_ids": positions_1T, "labels": labels_1T}
    return {name: tensor.to(device) for name, tensor in row.items()}


def train(model: Any, row: dict[str, torch.Tensor]) -> list[float]:
    """The loss of each step. Nothing here knows of patches."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(STEPS):
        loss = model.train()(**row, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def main(arguments: list[str] | None = None) -> dict[str, list[float]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="a folder or a name of the hub; none: a small random Qwen2")
    name = parser.parse_args(arguments).model
    device = "cuda" if torch.cuda.is_available() else "cpu"
    results = {}
    for kind in ("as it is", "patched"):
        model = load(name, device)
        if kind == "patched":
            swaps = patch(model)
            print(f"{len(swaps)} swaps, of which the first: {swaps[0]}, {swaps[1]}, {swaps[2]}")
        started = time.perf_counter()
        results[kind] = train(model, packed_row(model.config.vocab_size, device))
        seconds = time.perf_counter() - started
        print(f"{kind:9} {seconds:6.2f} s   losses {' '.join(f'{loss:.4f}' for loss in results[kind])}")
    unpatch(model)  # its classes are transformers' again
    return results


if __name__ == "__main__":
    main()
