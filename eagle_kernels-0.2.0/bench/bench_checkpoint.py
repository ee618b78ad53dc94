"""Loading and saving a model of 1 GB: CPU seconds and memory of ours and of transformers, each in its own process.

    python -m bench.bench_checkpoint --out bench/results/checkpoint-cpu.json        # minutes; all rows of the file

Both read the same folder, with transformers 5's names (`layout="transformers5"`), and have the same modules: theirs are
SiglipVisionModel, Qwen2ForCausalLM and a connector in one PreTrainedModel. transformers maps files and copies nothing,
so the work comes when a weight is used: the clock runs until a number of every page was used. `read` is what a forward
does, `written` what an optimizer does. Saving is without fsync, which transformers never calls; of several times the
shortest, without the first, which finds out where the system's memory for files comes from.

    python -m bench.bench_checkpoint --stall --out bench/results/checkpoint-stall-cpu.json

The second form asks how long training waits for a checkpoint of its own, about 1 GB of weights in bf16, masters and
moments: for all of it, written, hashed, on the disk and renamed (save_in_background=false), or for its copy, while a
thread does the same: the wait where it begins and, after a forward and backward pass over a row of tokens, before the
optimizer's update. Seconds by the clock, both ways in turn; the first copy, which allocates, is told apart.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, Qwen2ForCausalLM, SiglipVisionModel

from bench.machine import machine
from eagle_model import files
from eagle_model.batch import PackedBatch
from eagle_model.fields import override
from eagle_model.model.config import EagleConfig, eagle2_5_8b, tiny
from eagle_model.model.eagle import Eagle
from eagle_model.train import state
from eagle_model.train.config import OptimizerConfig
from eagle_model.train.layout import Layout
from eagle_model.train.optimizer import Optimizer
from eagle_model.train.precision import Masters
from eagle_model.train.ranks import start
from eagle_model.train.recipes import debug
from eagle_model.train.saver import Saver
from eagle_model.train.staging import Staging

Result = TypeVar("Result")
PAGE_NUMBERS = 2048  # bf16 numbers of a page of 4 KiB
SAMPLE_SECONDS = 0.002
TOUCHES = ("read", "written")
SAVES = 3  # in a process, after the first


def config() -> EagleConfig:
    """The widths of SigLIP2-so400m and Qwen2.5-1.5B, with so many layers that the weights take 1 GB in bf16."""
    cfg = eagle2_5_8b()
    text = replace(
        cfg.text,
        hidden_size=1536,
        intermediate_size=8960,
        num_hidden_layers=7,
        num_attention_heads=12,
        num_key_value_heads=2,
        vocab_size=32_000,
    )
    return replace(cfg, vision=replace(cfg.vision, num_hidden_layers=6), text=text, image_token_id=0)


def load_ours(folder: Path) -> nn.Module:
    return Eagle.from_pretrained(folder)


def load_ours_mapped(folder: Path) -> nn.Module:
    return Eagle.from_pretrained(folder, mapped=True)


def load_theirs(folder: Path) -> nn.Module:
    class Config(PreTrainedConfig):
        model_type = "eagle_2_5_vl"

    class Theirs(PreTrainedModel):
        config_class = Config

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            vision = transformers.SiglipVisionConfig(**config.vision_config)
            text = transformers.Qwen2Config(**config.text_config)
            wide, width = 4 * vision.hidden_size, text.hidden_size
            self.vision_model, self.language_model = SiglipVisionModel(vision), Qwen2ForCausalLM(text)
            layers = nn.LayerNorm(wide), nn.Linear(wide, width), nn.GELU(), nn.Linear(width, width)
            self.mlp1 = nn.Sequential(*layers)
            self.post_init()

    return Theirs.from_pretrained(folder, dtype=torch.bfloat16)


LOADERS: dict[str, Callable[[Path], nn.Module]] = {
    "ours": load_ours,
    "ours, mapped": load_ours_mapped,
    "transformers": load_theirs,
}


# What is measured of whom, and in how many processes: None is as many as are asked for.
WHATS: dict[str, tuple[tuple[str, ...], int | None]] = {
    "read": (tuple(LOADERS), None),
    "written": (tuple(LOADERS), None),
    "save": (("ours", "transformers"), 1),
    "memory": (tuple(LOADERS), 1),
}


@torch.no_grad()
def touch(model: nn.Module, how: str) -> None:
    for parameter in model.parameters():
        page_starts = parameter.view(-1)[::PAGE_NUMBERS]
        page_starts.sum() if how == "read" else page_starts.add_(1)


def anonymous_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def peak_of(do: Callable[[], object]) -> int:
    """Bytes of anonymous memory at the peak of `do`, above what there was before."""
    before, done, seen = anonymous_bytes(), threading.Event(), [0]

    def watch() -> None:
        while not done.wait(SAMPLE_SECONDS):
            seen[0] = max(seen[0], anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    do()
    done.set()
    watcher.join()
    return max(seen[0], anonymous_bytes()) - before


def measure(way: str, folder: Path, what: str) -> dict[str, float]:
    """One figure in this process, whose packages are loaded."""
    load = LOADERS[way]
    if what == "memory":
        kept: list[nn.Module] = []

        def loaded() -> None:
            kept.append(load(folder))
            touch(kept[0], "read")

        return {"peak_anonymous_bytes": peak_of(loaded)}
    start = time.process_time()
    model = load(folder)
    loaded_seconds = time.process_time() - start
    if what in TOUCHES:
        touch(model, what)
        return {"load_cpu_seconds": loaded_seconds, "cpu_seconds": time.process_time() - start}
    touch(model, "written")
    files.flush = lambda path: None  # type: ignore[assignment]
    seconds = []
    for _ in range(1 + SAVES):
        with tempfile.TemporaryDirectory(dir=folder.parent) as out:
            start = time.process_time()
            model.save_pretrained(Path(out) / "model")  # type: ignore[operator]
            seconds.append(time.process_time() - start)
    return {"cpu_seconds": min(seconds[1:])}


def in_a_process(job: Callable[[], Result]) -> Result:
    """What `job` returns in a process of its own: a fork of this one, so that packages are loaded once.

    Raises EOFError where it raises, after its traceback.
    """
    receiver, sender = multiprocessing.Pipe(duplex=False)
    child = os.fork()
    if child == 0:
        try:
            sender.send(job())
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    sender.close()
    try:
        return receiver.recv()
    finally:
        os.waitpid(child, 0)


# ---- how long training waits


STALL_TOKENS = 512  # of the row: its two passes take longer than the copy does


def training_config() -> EagleConfig:
    """Of a model whose checkpoint of training takes 1 GB: 14 bytes a parameter."""
    cfg = eagle2_5_8b()
    text = replace(
        cfg.text,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=3,
        num_attention_heads=12,
        num_key_value_heads=2,
        vocab_size=16_000,
    )
    return replace(cfg, vision=replace(cfg.vision, num_hidden_layers=1), text=text, image_token_id=0)


def text_row(cfg: EagleConfig, num_tokens: int) -> PackedBatch:
    token_ids_T = torch.arange(num_tokens) % 1000 + 1
    side = cfg.vision.tile_px // cfg.vision.patch_px
    return PackedBatch(
        token_ids_T=token_ids_T,
        labels_T=token_ids_T,
        positions_T=torch.arange(num_tokens, dtype=torch.int32),
        cu_seqlens=torch.tensor([0, num_tokens], dtype=torch.int32),
        patches_IPK=torch.zeros(0, side * side, 3 * cfg.vision.patch_px**2),
        visual_rows_N=torch.zeros(0, dtype=torch.int64),
        sample_ids=("text",),
        num_labelled=num_tokens,
    )


class NoProcessor:
    def save_pretrained(self, folder: Path) -> None: ...


def stalls(folder: Path, rounds: int) -> dict[str, Any]:
    """Seconds that training waits for a save, that the step's two passes take after it began, and that it is complete
    after; by whether it is in the background."""
    torch.manual_seed(0)
    ranks = start(Layout(), "cpu")
    model = Eagle(training_config())
    optimizer = Optimizer(Masters(model, torch.bfloat16), OptimizerConfig())
    optimizer.step(1e-5)
    row = text_row(training_config(), STALL_TOKENS)
    config = override(debug(), ["data.recipe=none.jsonl"])
    savers = {
        way: Saver(folder / way, "run", ranks, in_background=way == "background") for way in ("background", "waits")
    }
    seconds: dict[str, list[dict[str, float]]] = {way: [] for way in savers}
    for step in range(1, rounds + 2):
        for way, saver in savers.items():

            def take(staging: Staging | None, step: int = step) -> state.Share:
                return state.share_of(model, optimizer, dtype=torch.bfloat16, step=step, ranks=ranks, staging=staging)

            def rest(at: Path, share: state.Share, rows: Any, step: int = step) -> None:
                processor: Any = NoProcessor()
                about = state.state_text("run", step, loader={})
                state.write_rest(
                    at,
                    share,
                    rows,
                    processor=processor,
                    dtype=torch.bfloat16,
                    config=config,
                    state=about,
                    step=step,
                )

            began = time.perf_counter()
            saver.begin(step, take, rest=rest, then=lambda: None)
            begun = time.perf_counter()
            model(row, torch.tensor(float(STALL_TOKENS))).backward()
            passed = time.perf_counter()
            saver.copied()
            waited = begun - began + time.perf_counter() - passed
            saver.wait()
            until_complete = time.perf_counter() - began
            seconds[way].append({"waited": waited, "passes": passed - begun, "until_complete": until_complete})
            written = sum(path.stat().st_size for path in (folder / way).rglob("*") if path.is_file())
            shutil.rmtree(folder / way)
    for saver in savers.values():
        saver.close()
    medians = {
        way: {key: round(statistics.median(one[key] for one in runs[1:]), 4) for key in runs[0]}
        for way, runs in seconds.items()
    }
    return {
        "checkpoint_bytes": written,
        "rounds": rounds,
        "median_seconds": medians,
        "first_copy_seconds": round(seconds["background"][0]["waited"], 4),
        "seconds": {
            way: [{key: round(value, 4) for key, value in one.items()} for one in runs] for way, runs in seconds.items()
        },
        "share": round(medians["background"]["waited"] / medians["waits"]["waited"], 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=5, help="in turn; the median of CPU seconds counts")
    parser.add_argument("--folder", type=Path, default=tempfile.gettempdir(), help="where the files are written")
    parser.add_argument("--stall", action="store_true", help="how long training waits for a save, and nothing else")
    args = parser.parse_args()
    about = machine("torch", "transformers", "safetensors")
    if args.stall:
        with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
            content = {"machine": about, **stalls(Path(temporary), args.rounds)}
        print(json.dumps(content["median_seconds"]), "share", content["share"])
        if args.out:
            args.out.write_text(json.dumps(content, indent=1) + "\n")
        return
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)  # a process that has started threads cannot be forked
    (torch.ones(1024, 1024).bfloat16() + 1).sum()
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        folder = Path(temporary) / "model"
        torch.manual_seed(0)
        model = Eagle(config()).bfloat16()
        model.save_pretrained(folder, layout="transformers5")
        sizes = [parameter.nbytes for parameter in model.parameters()]
        del model
        small = Path(temporary) / "small"
        Eagle(tiny()).bfloat16().save_pretrained(small, layout="transformers5")
        for way in LOADERS:  # what they import when they are first called
            LOADERS[way](small)
        figures: dict[str, dict[str, Any]] = {}
        for what, (ways, rounds) in WHATS.items():
            got: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
            for _ in range(rounds or args.rounds):
                for way in ways:
                    got[way].append(in_a_process(partial(measure, way, folder, what)))
            figures[what] = {
                way: {key: round(statistics.median(one[key] for one in runs), 3) for key in runs[0]}
                for way, runs in got.items()
            }
            print(what, json.dumps(figures[what]))
    content = {
        "machine": about,
        "weights_bytes": sum(sizes),
        "largest_tensor_bytes": max(sizes),
        "rounds": args.rounds,
        "figures": figures,
    }
    if args.out:
        args.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
