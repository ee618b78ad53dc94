"""Answers: prompts and new tokens a second, memory, and a second question about one film; beside transformers.

    python -m bench.bench_generate --out bench/results/generate-cpu.json            # all of the file; minutes

Models of 5 and 90 million parameters with new weights, the same in both, 1, 8 and 16 prompts of 512 tokens and 33 new
tokens each, greedy. transformers' `generate` has its best case, prompts of one length that need no padding;
`generate_batch`, its continuous batching of text, is there as it runs on a CPU. Seconds are CPU seconds of one thread,
ways in turn, the median.
Memory is what a process of its own takes at most beside what it had with the weights and a first short answer.

As a benchmark of the suite: the first token after a text prompt of 32 tokens. The widths are the model's own, with a
few layers of each tower on a CPU. The prompt has no tile, so that the vision tower, which is there, has nothing to do.
On a CPU the clock counts CPU seconds of all threads.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench.harness import DEVICE, measure, seconds
from bench.machine import machine
from eagle_model.batch import IGNORE_INDEX, PackedBatch
from eagle_model.data.processor import Processor, ProcessorConfig
from eagle_model.data.sampling import SamplingConfig
from eagle_model.data.tokenizer import train_tokenizer
from eagle_model.infer.engine import Engine
from eagle_model.infer.prompts import Prompt
from eagle_model.infer.request import Request, Shown
from eagle_model.infer.sampling import Sampling
from eagle_model.model import weights
from eagle_model.model.config import EagleConfig, eagle2_5_8b, tiny
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


# ---- answers a second, by `python -m bench.bench_generate`

NEW_TOKENS = 32  # after the first, which counts as the prompt's
BATCHES = (1, 8, 16)
SIZES = {
    "5M": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 4,
           "num_key_value_heads": 2, "vocab_size": 4096},
    "90M": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 10, "num_attention_heads": 12,
            "num_key_value_heads": 4, "vocab_size": 16_384},
}  # fmt: skip


def small_config(size: str) -> EagleConfig:
    cfg = tiny(image_token_id=5)
    return replace(cfg, text=replace(cfg.text, **SIZES[size]))


def new_processor(context_tokens: int) -> Processor:
    tokenizer = train_tokenizer(["What happens in the film?"], 300)
    sampling = SamplingConfig(context_tokens=context_tokens, frames_per_second=25, max_frames=64)
    processor = Processor(tokenizer, ProcessorConfig(tile_px=28, patch_px=7, sampling=sampling))
    processor.encoder.stop_token_ids = set()  # all answers are as long as asked for
    return processor


def submit_ids(engine: Engine, ids: list[int], num_new: int) -> Request:
    """What `submit` does with a conversation of these tokens."""
    nothing = torch.zeros(0, dtype=torch.int64)
    shown = Shown((), 0, len(ids), False, "")
    prompt = Prompt(ids, nothing, (), shown, None, engine.processor)  # type: ignore[arg-type]
    request = Request(Sampling(max_new_tokens=num_new), prompt, drive=engine._drive)
    engine._arrived.append(engine._activate(request, prompt, num_new, None))
    return request


def ways(
    size: str, batch: int, names: tuple[str, ...], num_tokens: int
) -> dict[str, Callable[[list[list[int]], int], list[list[int]]]]:
    """By name: prompts and a number of new tokens to the new tokens of each."""
    torch.manual_seed(0)
    model = build(small_config(size), "cpu")
    found: dict[str, Callable[[list[list[int]], int], list[list[int]]]] = {}
    if "ours" in names:
        room = -(-(num_tokens + NEW_TOKENS + 1) // 16) * 16
        engine = Engine(model, new_processor(room), cache_tokens=batch * room, max_running=batch)

        def ours(prompts: list[list[int]], num_new: int) -> list[list[int]]:
            asked = [submit_ids(engine, ids, num_new) for ids in prompts]
            return [list(request.result().token_ids) for request in asked]

        found["ours"] = ours
    if set(names) - {"ours"}:
        import transformers

        llm = transformers_llm(model)

    def generate(prompts: list[list[int]], num_new: int) -> list[list[int]]:
        ids = torch.tensor(prompts)
        options = {"max_new_tokens": num_new, "min_new_tokens": num_new, "do_sample": False, "pad_token_id": 0}
        out = llm.generate(ids, attention_mask=torch.ones_like(ids), **options)
        return out[:, ids.shape[1] :].tolist()

    def generate_batch(prompts: list[list[int]], num_new: int) -> list[list[int]]:
        settings = transformers.GenerationConfig(max_new_tokens=num_new, do_sample=False, eos_token_id=-1)
        out = llm.generate_batch(prompts, generation_config=settings, progress_bar=False)
        return [out[key].generated_tokens for key in sorted(out, key=lambda key: int(key.rpartition("_")[2]))]

    found |= {"generate": generate, "generate_batch": generate_batch}
    return {name: found[name] for name in names}


def prompts_of(batch: int, seed: int, vocab_size: int, num_tokens: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(10, vocab_size, (batch, num_tokens), generator=generator).tolist()


def speeds(size: str, batch: int, names: tuple[str, ...], rounds: int, num_tokens: int) -> dict[str, Any]:
    """Tokens a CPU second. Both say the same, or it says how many of the tokens are."""
    run, vocab_size = ways(size, batch, names, num_tokens), SIZES[size]["vocab_size"]
    seconds_of: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    said: dict[str, list[list[int]]] = {}
    for i in range(rounds + 1):
        for name in names:
            spent = []
            for num_new, seed in ((1, 2 * i), (NEW_TOKENS + 1, 2 * i + 1)):
                prompts = prompts_of(batch, seed, vocab_size, num_tokens)
                began = time.process_time()
                said[name] = run[name](prompts, num_new)
                spent.append(time.process_time() - began)
            if i:  # the first is for what is imported and made once
                seconds_of[name].append((spent[0], max(spent[1] - spent[0], 1e-9)))
    figures: dict[str, Any] = {}
    for name in names:
        prefill, decode = (statistics.median(times) for times in zip(*seconds_of[name], strict=True))
        figures[name] = {
            "prefill_tokens_per_second": round(batch * num_tokens / prefill, 1),
            "decode_tokens_per_second": round(batch * NEW_TOKENS / decode, 1),
        }
    first, *others = names
    for other in others:
        pairs = [
            (a, b) for one, two in zip(said[first], said[other], strict=True) for a, b in zip(one, two, strict=True)
        ]
        figures[other]["same_tokens"] = round(sum(a == b for a, b in pairs) / len(pairs), 4)
        for what in ("prefill", "decode"):
            key = f"{what}_tokens_per_second"
            figures[f"{what}_times_{other}"] = round(figures[first][key] / figures[other][key], 2)
    return figures


def peak_bytes(size: str, batch: int, way: str, num_tokens: int) -> int:
    """Beside the weights: of all prompts and answers."""
    (run,) = ways(size, batch, (way,), num_tokens).values()
    vocab_size = SIZES[size]["vocab_size"]
    run(prompts_of(1, 0, vocab_size, 8), 2)
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    run(prompts_of(batch, 1, vocab_size, num_tokens), NEW_TOKENS + 1)
    return _status("VmHWM") - before


def _status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def second_question(frames: int = 64) -> dict[str, float]:
    """CPU seconds of two questions about one film, the first token of each: a model of 5M, tiles of 224 px."""
    from tests.video.make import draw, write_video

    text, vision = tiny().text, tiny().vision
    cfg = replace(tiny(image_token_id=5), text=replace(text, **SIZES["5M"]))
    vision = replace(vision, tile_px=224, patch_px=14, hidden_size=256, intermediate_size=1024, num_hidden_layers=6,
                     num_attention_heads=4)  # fmt: skip
    tokenizer = train_tokenizer(["What happens in the film?"], 300)
    sampling = SamplingConfig(context_tokens=16_384, frames_per_second=25, max_frames=frames)
    processor = Processor(tokenizer, ProcessorConfig(tile_px=224, patch_px=14, sampling=sampling))
    torch.manual_seed(0)
    model = build(replace(cfg, vision=vision, image_token_id=processor.encoder.context_id), "cpu")
    engine = Engine(model, processor, cache_tokens=16_384)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        film = Path(folder) / "film.mp4"
        write_video(film, [draw(i, 320, 240) for i in range(4 * frames)], fps=25)
        for name, question in (("first", "What happens in the film?"), ("second", "And then? " * 20)):
            parts = [{"type": "video", "video": str(film)}, {"type": "text", "text": question}]
            began = time.process_time()
            request = engine.submit([{"role": "user", "content": parts}], Sampling(max_new_tokens=1))
            request.result()
            found[f"{name}_seconds"] = round(time.process_time() - began, 4)
        found["tiles"] = request.shown.num_tiles
        found["prompt_tokens"], found["cached_tokens"] = request.usage.prompt_tokens, request.usage.cached_tokens
    found["times_sooner"] = round(found["first_seconds"] / found["second_seconds"], 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sizes", nargs="*", default=list(SIZES))
    parser.add_argument("--batches", nargs="*", type=int, default=list(BATCHES))
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--batch-api", action="store_true", help="generate_batch too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    content: dict[str, Any] = {"machine": machine("torch", "transformers"), "prompt_tokens": args.prompt_tokens,
                               "new_tokens": NEW_TOKENS, "rounds": args.rounds, "dtype": "float32"}  # fmt: skip
    names = ("ours", "generate", *(["generate_batch"] if args.batch_api else []))
    context = multiprocessing.get_context("spawn")
    for size in args.sizes:
        content[size] = {}
        for batch in args.batches:
            figures = speeds(size, batch, names, args.rounds, args.prompt_tokens)
            with context.Pool(1, maxtasksperchild=1) as pool:
                for name in names[:2]:
                    figures[name]["peak_bytes"] = pool.apply(_peak, (size, batch, name, args.prompt_tokens))
            figures["peak_share"] = round(figures["ours"]["peak_bytes"] / figures["generate"]["peak_bytes"], 2)
            content[size][f"batch {batch}"] = figures
            print(size, batch, json.dumps(figures), flush=True)
    content["second question about a film"] = second_question()
    print(json.dumps(content["second question about a film"]))
    if args.out:
        args.out.write_text(json.dumps(content, indent=1) + "\n")


def _peak(size: str, batch: int, name: str, num_tokens: int) -> int:
    torch.set_num_threads(1)
    return peak_bytes(size, batch, name, num_tokens)


if __name__ == "__main__":
    main()
