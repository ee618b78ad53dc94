"""Writes released_processor.json: what the published processor makes of messages, read from a folder that we saved.

    python tests/golden/make_released_processor.py save FOLDER          # in our environment
    python tests/golden/make_released_processor.py ask FOLDER CODE      # in one of transformers 4.57.1 and torchvision

CODE is the folder `lerobot/policies/groot/eagle2_hg_model` of LeRobot 0.4.4's wheel, which carries that processor.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

OUT = Path(__file__).with_name("released_processor.json")
TEXTS = [
    "system You are a helpful assistant. user assistant",
    "The first video sampled with 2.00 fps: Frame 1 sample at",
]
CASES: list[dict[str, Any]] = [  # sizes are (width, height) of images, in their order; frames are of one size
    {"parts": [[{"type": "image"}, {"type": "text", "text": "What is it?"}]], "sizes": [[64, 48]]},
    {
        "parts": [
            [{"type": "text", "text": "See "}, {"type": "image"}, {"type": "text", "text": " and "}, {"type": "image"}],
            "Sure?",
            [{"type": "image"}, {"type": "text", "text": "And this?"}],
        ],
        "sizes": [[100, 300], [300, 40], [56, 56]],
    },
    {
        "parts": [[{"type": "video"}, {"type": "image"}, {"type": "text", "text": "Which first?"}]],
        "sizes": [[500, 200]],
        "timestamps": [0.0, 0.5, 12.346],
        "fps": 2.0,
    },
    {"parts": [[{"type": "video"}, {"type": "text", "text": "Sum up."}]], "sizes": [], "pages": 2},
]


def messages_of(case: dict[str, Any]) -> list[dict]:
    """Questions of a case, with an answer after each but the last."""
    messages: list[dict] = []
    for content in case["parts"]:
        messages += [{"role": "user", "content": content}, {"role": "assistant", "content": "Yes."}]
    return messages[:-1]


def save(folder: Path) -> None:
    from eagle_model.data.processor import Processor, ProcessorConfig
    from eagle_model.data.tokenizer import train_tokenizer

    Processor(train_tokenizer(TEXTS, 300), ProcessorConfig(tile_px=56, patch_px=14)).save_pretrained(folder)


def ask(folder: Path, code: Path) -> None:
    sys.path.insert(0, str(code))
    from image_processing_eagle2_5_vl_fast import Eagle25VLImageProcessorFast
    from PIL import Image
    from processing_eagle2_5_vl import Eagle25VLProcessor
    from transformers import AutoTokenizer

    about = json.loads((folder / "processor_config.json").read_text())
    processor = Eagle25VLProcessor(
        Eagle25VLImageProcessorFast.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
        chat_template=(folder / "chat_template.jinja").read_text(),
        **{name: value for name, value in about.items() if name != "processor_class"},
    )
    for case in CASES:
        text = processor.apply_chat_template(messages_of(case), tokenize=False, add_generation_prompt=True)
        images = [Image.new("RGB", tuple(size), (200, 100, 50)) for size in case["sizes"]]
        num_frames = len(case.get("timestamps", ())) or case.get("pages", 0)
        videos = [[Image.new("RGB", (64, 48))] * num_frames] if num_frames else None
        about_video = {"timestamps": [case["timestamps"]], "fps": [case["fps"]]} if "fps" in case else {}
        made = processor(
            text=[text], images=images or None, videos=videos, videos_kwargs=about_video, return_tensors="pt"
        )
        (ids,) = made["input_ids"]
        shown = processor.tokenizer.decode(ids)
        case["messages"] = messages_of(case)
        case["text"] = re.sub("(<IMG_CONTEXT>)+", lambda m: f"<IMG_CONTEXT>*{len(m[0]) // 13}", shown)
        case["ids"], case["num_tiles"] = [int(token_id) for token_id in ids], len(made["pixel_values"])
        del case["parts"]
    about = "Made by make_released_processor.py, tiles of 56 px, a tokenizer of 300 tokens trained on `texts`."
    OUT.write_text(json.dumps({"about": about, "texts": TEXTS, "cases": CASES}) + "\n")


if __name__ == "__main__":
    {"save": save, "ask": ask}[sys.argv[1]](*map(Path, sys.argv[2:]))
