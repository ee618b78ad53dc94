"""Fine-tune a released model with LoRA: adapters of a few hundred KB learn, the model itself stays as it is.

    python examples/lora.py --out lora_example                          # a small model of random weights, on a CPU
    python examples/lora.py --out lora_example --model Eagle2.5-8B      # a released folder that you have, on a GPU

1. A model's folder: yours, or a small one in the same format, made here.
2. A data set: pictures of one colour, and what the assistant says of them.
3. Training: `eagle train lora --set model=FOLDER` does the same from the command line.
4. A question to the model without and with the adapters: `eagle chat FOLDER PICTURE --adapter RUN`.
5. The adapters added to the weights: a folder like the first, for any program that reads those.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from eagle_model.data.loader import DataConfig
from eagle_model.data.processor import Processor, ProcessorConfig
from eagle_model.data.sampling import SamplingConfig
from eagle_model.data.tokenizer import train_tokenizer
from eagle_model.infer import Assistant
from eagle_model.model import tiny
from eagle_model.model.eagle import Eagle
from eagle_model.model.lora import LoraConfig, load_adapter, merge
from eagle_model.train.recipes import lora
from eagle_model.train.trainer import Trainer

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "yellow": (230, 220, 40)}
QUESTION = "Which colour is this?"
PIECES = ("system", "user", "assistant", QUESTION, "The picture is all", *COLOURS, "You are a helpful assistant.")


def make_model(folder: Path, context_tokens: int = 256) -> None:
    """A small model with random weights, in the files of a released one."""
    sampling = SamplingConfig(context_tokens=context_tokens, max_tiles=1, min_frames=2)
    processor = Processor(
        train_tokenizer(sorted(PIECES), 320), ProcessorConfig(sampling=sampling, tile_px=28, patch_px=7)
    )
    torch.manual_seed(0)
    cfg = tiny(vocab_size=processor.tokenizer.get_vocab_size(), image_token_id=processor.encoder.context_id)
    Eagle(cfg).save_pretrained(folder)
    processor.save_pretrained(folder)


def make_data(folder: Path) -> Path:
    """Pictures of one colour, and chats about them, one a line."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for colour, rgb in COLOURS.items():
        Image.new("RGB", (28, 28), rgb).save(folder / f"{colour}.png")
        talk = [
            {"from": "human", "value": f"<image>{QUESTION}"},
            {"from": "gpt", "value": f"The picture is all {colour}."},
        ]
        rows.append({"id": colour, "image": f"{colour}.png", "conversations": talk})
    path = folder / "colours.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def train(model: Path, data: Path, run: Path, max_steps: int) -> None:
    """Adapters on every projection, for a model of any size. Interrupted, it goes on when it is called again."""
    recipe = lora()
    on_gpu = torch.cuda.is_available()
    config = replace(
        recipe,
        model=str(model),
        data=DataConfig(recipe=str(data)),
        processor=Processor.from_pretrained(model).config,
        lora=LoraConfig(rank=8, alpha=16, targets=("all-linear",), modules_to_save=("mlp1",)),
        optimizer=replace(recipe.optimizer, learning_rate=1e-4 if on_gpu else 1e-2),
        dtype="bfloat16" if on_gpu else "float32",
        max_steps=max_steps,
    )
    Trainer(config, run).train()


def ask(model: Path, picture: Path, adapter: Path | None = None) -> str:
    parts = [{"type": "image", "image": str(picture)}, {"type": "text", "text": QUESTION}]
    return "".join(Assistant(model, adapter=adapter, max_new_tokens=12).stream([{"role": "user", "content": parts}]))


def write_merged(model: Path, adapter: Path, out: Path) -> None:
    """The model with the adapters in its weights: no program need know of them."""
    eagle = Eagle.from_pretrained(model)
    load_adapter(eagle, adapter)
    merge(eagle)
    eagle.save_pretrained(out)
    Processor.from_pretrained(adapter).save_pretrained(out)


def main(out: Path, model: Path | None, max_steps: int) -> None:
    out.mkdir(parents=True, exist_ok=True)
    if model is None:
        model = out / "model"
        if not model.exists():
            make_model(model)
    data = make_data(out / "data")
    train(model, data, out / "run", max_steps)
    for colour in COLOURS:
        picture = out / "data" / f"{colour}.png"
        print(f"{colour}: without adapters {ask(model, picture)!r}, with them {ask(model, picture, out / 'run')!r}")
    if not (out / "merged").exists():
        write_merged(model, out / "run", out / "merged")
    print(f"The model with the adapters in its weights: {out / 'merged'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the folder for all that is made here")
    parser.add_argument("--model", type=Path, help="a released model's folder; by default a small one is made")
    parser.add_argument("--max-steps", type=int, default=60)
    arguments = parser.parse_args()
    main(arguments.out, arguments.model, arguments.max_steps)
