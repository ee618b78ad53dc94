"""Preference training of an Eagle with TRL's DPO: pairs of answers to questions about images.

    python examples/dpo.py Eagle2.5-8B pairs.jsonl --out preferred

A line of pairs.jsonl:  {"images": ["cat.png"], "prompt": "What is this?", "chosen": "A cat.", "rejected": "A dog."}
Paths count from the file's folder; "images" may be an empty list. Needs TRL and PEFT: pip install
'eagle-kernels[preference]'.

Adapters (LoRA) are trained, so that the frozen model is its own reference; then they are merged, and the folder --out
is a model in the released format: `eagle chat preferred` answers with it, and vLLM reads it.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import DPOConfig, DPOTrainer

import eagle_model.hf  # noqa: F401  (teaches the Auto classes what an Eagle is)

TARGETS = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]  # the decoder's projections, as Eagle's modules are named


def read_pairs(path: Path) -> Dataset:
    """Rows as TRL wants conversations with images."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        pair = json.loads(line)
        rows.append(
            {
                "images": [str(path.parent / name) for name in pair["images"]],
                "prompt": [{"role": "user", "content": pair["prompt"]}],
                "chosen": [{"role": "assistant", "content": pair["chosen"]}],
                "rejected": [{"role": "assistant", "content": pair["rejected"]}],
            }
        )
    return Dataset.from_list(rows)


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model's folder, with its processor's files")
    parser.add_argument("pairs", type=Path, help="a .jsonl file")
    parser.add_argument("--out", type=Path, default=Path("preferred"))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--lr", type=float, default=1e-5)
    options = parser.parse_args(arguments)
    has_gpu = torch.cuda.is_available()
    model = AutoModelForImageTextToText.from_pretrained(
        options.model, dtype=torch.bfloat16 if has_gpu else torch.float32, device_map="auto"
    )
    processor = AutoProcessor.from_pretrained(options.model)
    trainer = DPOTrainer(
        model=model,
        args=DPOConfig(
            output_dir=str(options.out / "trainer"),
            max_steps=options.steps,
            learning_rate=options.lr,
            per_device_train_batch_size=2,
            max_length=None,  # a cut would take visual tokens away
            gradient_checkpointing=has_gpu,
            bf16=has_gpu,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
        ),
        train_dataset=read_pairs(options.pairs),
        processing_class=processor,
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules=rf".*llm\..*\.({'|'.join(TARGETS)})"),
    )
    trainer.train()
    trainer.model.merge_and_unload().save_pretrained(options.out)
    processor.save_pretrained(options.out)
    return [entry for entry in trainer.state.log_history if "rewards/margins" in entry]


if __name__ == "__main__":
    main()
