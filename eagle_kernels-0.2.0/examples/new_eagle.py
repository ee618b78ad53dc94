"""A new Eagle from a vision tower and a language model, and the first steps of its connector: stage 1 in small.

    python examples/new_eagle.py out                                   # of two small random models
    python examples/new_eagle.py out siglip2-so400m-patch14-384 Qwen2.5-0.5B-Instruct --tile-px 448

`eagle assemble` does the first half on the command line. What is taken, drawn and resized: docs/released_folder.md. The
second half freezes both towers and teaches the connector two colours in STEPS steps; then the folder `out` holds a
whole model that `eagle chat out` talks to. Stage 1 on data of your own: eagle train ... --set model=out
--set train_vision=false --set train_llm=false. Small random models need transformers (pip install 'eagle-kernels[hf]').
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image

from eagle_model import Eagle, PackedBatch, Processor
from eagle_model.convert import assemble
from eagle_model.data.packing import pack_row
from eagle_model.data.rows import parse_sample
from eagle_model.data.tokenizer import train_tokenizer
from eagle_model.model.loss import sqrt_mass

STEPS, COLOURS = 10, ("red", "blue")
QUESTION = "Which colour is this?"


def random_models(folder: Path) -> tuple[Path, Path]:
    """A SigLIP and a Qwen2 of small sizes, as their own classes save them."""
    import transformers

    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    tokenizer = train_tokenizer([QUESTION, *COLOURS, "system user assistant You are a helpful assistant."], 320)
    vocab_size = tokenizer.get_vocab_size()
    vision = transformers.SiglipVisionConfig(**sizes, image_size=42, patch_size=7)
    # Larger than a new model's usual 0.02: through random layers of that size no picture would be heard.
    about = {"num_key_value_heads": 2, "vocab_size": vocab_size, "initializer_range": 0.2}
    text = transformers.Qwen2Config(**sizes, **about)
    transformers.SiglipVisionModel(vision).save_pretrained(folder / "vision")
    transformers.Qwen2ForCausalLM(text).save_pretrained(folder / "llm")
    tokenizer.save(str(folder / "llm" / "tokenizer.json"))
    return folder / "vision", folder / "llm"


def rows(processor: Processor, folder: Path) -> list[PackedBatch]:
    """A picture of each colour with its question and answer."""
    batches = []
    for colour in COLOURS:
        Image.new("RGB", (64, 64), colour).save(folder / f"{colour}.png")
        asked = [{"type": "image", "image": f"{colour}.png"}, {"type": "text", "text": QUESTION}]
        messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": colour}]
        sample = parse_sample({"messages": messages}, root=folder, where=colour)
        tokens, patches_IPK = processor.load_sample(processor.plan_sample(sample))
        batches.append(pack_row([tokens], patches_IPK))
    return batches


def train_connector(model: Eagle, batches: list[PackedBatch]) -> list[float]:
    """The loss of each step; the towers stay as they are."""
    model.requires_grad_(False)
    model.connector.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.connector.parameters(), lr=1e-2)
    mass = torch.stack([sqrt_mass(batch.labels_T, batch.cu_seqlens) for batch in batches]).sum()
    losses = []
    for _ in range(STEPS):
        loss = torch.stack([model(batch, mass) for batch in batches]).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def main(arguments: list[str] | None = None) -> list[float]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a new folder, of the trained model; OUT-start takes what it began as")
    parser.add_argument("vision", type=Path, nargs="?")
    parser.add_argument("llm", type=Path, nargs="?")
    parser.add_argument("--tile-px", type=int, help="of a tile; by default 56 for the random models")
    args = parser.parse_args(arguments)
    torch.manual_seed(0)
    work = args.out.with_name(f"{args.out.name}-start")
    work.mkdir(parents=True)
    vision, llm = (args.vision, args.llm) if args.llm else random_models(work)
    assemble(vision, llm, work / "start", tile_px=args.tile_px or (None if args.llm else 56))
    processor = Processor.from_pretrained(work / "start")
    model = Eagle.from_pretrained(work / "start", dtype=torch.float32)
    losses = train_connector(model, rows(processor, work))
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f} in {STEPS} steps of {model.cfg.text.model_type}'s connector")
    model.save_pretrained(args.out)
    processor.save_pretrained(args.out)
    return losses


if __name__ == "__main__":
    main()
