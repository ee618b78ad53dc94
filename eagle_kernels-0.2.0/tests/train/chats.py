"""Small data for tests of training: chats about one-colour images and chats about nothing, no video."""

import json
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file

from eagle_model.fields import override
from eagle_model.train.config import TrainConfig
from eagle_model.train.recipes import debug
from eagle_model.train.start import new_model
from eagle_model.train.trainer import Trainer

COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "white": (250, 250, 250)}


def write_chats(folder: Path) -> Path:
    """chats.jsonl and its images; returns the folder."""
    rows = []
    for colour, rgb in COLOURS.items():
        Image.new("RGB", (28, 28), rgb).save(folder / f"{colour}.png")
        turns = [{"from": "human", "value": "<image>Which colour?"}, {"from": "gpt", "value": f"It is {colour}."}]
        rows.append({"id": colour, "image": f"{colour}.png", "conversations": turns})
        turns = [{"from": "human", "value": f"Spell {colour}."}, {"from": "gpt", "value": " ".join(colour) * 4}]
        rows.append({"id": f"spell-{colour}", "conversations": turns})
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def config_of(chats: Path, *assignments: str) -> TrainConfig:
    base = [
        f"data.recipe={chats / 'chats.jsonl'}",
        "processor.sampling.context_tokens=160",
        "max_steps=4",
        "save_every_steps=2",
    ]
    return override(debug(), [*base, *assignments])


def quiet(message: str) -> None:
    pass


def without_report(run_folder: Path, say: object) -> Path:
    """In place of the trainer's `write_report`, whose curves take longer than the steps of a small run."""
    return run_folder / "report.html"


def run(config: TrainConfig, folder: Path) -> Trainer:
    trainer = Trainer(config, folder, say=quiet)
    assert trainer.train()
    return trainer


def weights_of(folder: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoints" / f"step-{step:06d}" / "model.safetensors")


def assert_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def tokenizer_file(chats: Path, folder: Path) -> Path:
    _, processor = new_model(config_of(chats))
    processor.tokenizer.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"
