"""Which of our files one labelled video passes on its way from a file to the loss: README's "Follow one video".

    python -m tests.follow_one_video            # the files in their order, and how often a call left one for another
    python -m tests.follow_one_video --write    # and README.md holds them

A tiny model, one H.264 file, one answer, on a CPU: planning, loading, forward. Every call of our Python code is seen;
a crossing is a call into another file than the call before it went to. Imports are made before.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
import tempfile
import threading
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch

from eagle_kernels.video.libav import index, workers  # noqa: F401
from eagle_model.data.chat import ChatEncoder
from eagle_model.data.loader import DataConfig, Loader
from eagle_model.data.processor import Processor, ProcessorConfig
from eagle_model.data.sampling import SamplingConfig
from eagle_model.data.tokenizer import counting_tokenizer
from eagle_model.model.config import tiny
from eagle_model.model.eagle import Eagle
from eagle_model.model.loss import sqrt_mass
from tests.video.make import X264, draw, write_video

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"(## Follow one video\n\n```\n)(.*?)(```\n)", re.DOTALL)


class Trace(NamedTuple):
    files: list[str]  # in the order in which they were first entered
    num_crossings: int
    loss: float


def trace() -> Trace:
    """Follows one video of 60 frames, a question and an answer."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_video(folder / "film.mp4", (draw(i) for i in range(60)), options={**X264, "g": "24"})
        turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A number."}]
        (folder / "rows.jsonl").write_text(json.dumps({"video": "film.mp4", "conversations": turns}) + "\n")
        return _trace(folder / "rows.jsonl")


def _trace(recipe: Path) -> Trace:
    sampling = SamplingConfig(context_tokens=512, max_tiles=1, min_frames=2)
    config = ProcessorConfig(sampling=sampling, tile_px=28, patch_px=7)
    tokenizer = counting_tokenizer()
    files: list[str] = []
    last, num_crossings = "", 0

    def see(frame: FrameType, event: str, _: Any) -> None:
        nonlocal last, num_crossings
        path = Path(frame.f_code.co_filename)
        if event != "call" or not path.is_relative_to(ROOT):
            return
        file = str(path.relative_to(ROOT))
        if not file.startswith(("eagle_kernels/", "eagle_model/")):
            return
        if file not in files:
            files.append(file)
        if file != last:
            last = file
            num_crossings += 1

    threading.setprofile(see)
    sys.setprofile(see)
    try:
        with Loader(DataConfig(recipe=str(recipe), num_workers=1), Processor(tokenizer, config)) as loader:
            batch = next(loader)
        torch.manual_seed(0)
        model = Eagle(tiny(vocab_size=tokenizer.get_vocab_size(), image_token_id=ChatEncoder(tokenizer).context_id))
        mass = sqrt_mass(batch.labels_T, batch.cu_seqlens)
        loss = model(batch, mass)
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    return Trace(files, num_crossings, loss.item())


def lines(files: list[str]) -> str:
    """Each file beside the first line of its docstring."""
    width = max(map(len, files)) + 2
    return "".join(f"{file:<{width}}{_purpose(ROOT / file)}\n" for file in files)


def _purpose(path: Path) -> str:
    """The first line of a file's docstring, up to the first pause after four words."""
    line = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
    return re.sub(r"^((?:\S+ ){3,}?\S*?\w)[.:;](?: .*)?$", r"\1", line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the files into README.md")
    args = parser.parse_args()
    seen = trace()
    print(lines(seen.files), f"{len(seen.files)} files, {seen.num_crossings} crossings, loss {seen.loss:.4f}", sep="\n")
    if args.write:
        readme = ROOT / "README.md"
        readme.write_text(BLOCK.sub(lambda m: m[1] + lines(seen.files) + m[3], readme.read_text()))


if __name__ == "__main__":
    main()
