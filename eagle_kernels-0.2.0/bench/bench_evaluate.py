"""Questions a minute about films: the evaluation's runner, and the same loop over transformers, at tiny size.

    python -m bench.bench_evaluate --out bench/results/evaluate-cpu.json

Video-MME's layout: three questions a film. The loop does for each question what a script over transformers does: reads
and decodes the film, runs SiglipVisionModel, and lets Qwen2ForCausalLM generate, with the same weights, frames and
tokens; the connector between them is ours. Its answers must be the runner's, or nothing is measured. The clock counts
CPU seconds of all threads.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.machine import machine
from eagle_model.data.processor import Processor, ProcessorConfig
from eagle_model.data.sampling import SamplingConfig
from eagle_model.data.tokenizer import train_tokenizer
from eagle_model.evaluate.answer import of_engine, plan_of
from eagle_model.evaluate.read import read
from eagle_model.evaluate.task import Question
from eagle_model.evaluate.tasks import TASKS
from eagle_model.infer.engine import Engine
from eagle_model.model import weights
from eagle_model.model.config import tiny
from eagle_model.model.eagle import Eagle

ROUNDS = 3
WORDS = (
    "Which colour is it? A. red B. blue C. green D. grey Answer with the letter of the right option alone. "
    "Frame sample at s user assistant system"
)


def write_set(folder: Path, num_films: int, seconds: int) -> None:
    """Films of moving noise, and three questions about each, as Video-MME's files are."""
    import pyarrow
    import pyarrow.parquet
    from tests.video.make import write_video

    (folder / "data").mkdir(parents=True)
    (folder / "videomme").mkdir()
    rows = []
    for film in range(num_films):
        noise = np.random.default_rng(film).integers(0, 255, (240, 320, 3), dtype=np.uint8)
        write_video(
            folder / f"data/v{film}.mp4",
            (np.roll(noise, 4 * i, axis=1) // 2 + 40 for i in range(25 * seconds)),
            fps=25,
            options={"preset": "ultrafast", "g": "50"},
        )
        rows += [
            {
                "videoID": f"v{film}", "question_id": f"{film}-{k}", "duration": "short", "domain": "d",
                "sub_category": "s", "task_type": "t", "question": f"Which colour is {k}?",
                "options": ["A. red", "B. blue", "C. green", "D. grey"], "answer": "A",
            }
            for k in range(3)
        ]  # fmt: skip
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "videomme/test-0.parquet")


def make_model() -> tuple[Eagle, Processor]:
    sampling = SamplingConfig(context_tokens=2048, min_frames=8)
    tokenizer = train_tokenizer([WORDS], 400)
    processor = Processor(tokenizer, ProcessorConfig(tile_px=56, patch_px=7, sampling=sampling))
    torch.manual_seed(0)
    model = Eagle(tiny(vocab_size=tokenizer.get_vocab_size(), image_token_id=processor.encoder.context_id, tile_px=56))
    return model.eval(), processor


def transformers_loop(model: Eagle, processor: Processor, folder: Path) -> Callable[[list[Question]], list[str]]:
    import transformers

    cfg = model.cfg
    vision = transformers.SiglipVisionModel(
        transformers.SiglipVisionConfig(
            hidden_size=cfg.vision.hidden_size,
            intermediate_size=cfg.vision.intermediate_size,
            num_hidden_layers=cfg.vision.num_hidden_layers,
            num_attention_heads=cfg.vision.num_attention_heads,
            image_size=cfg.vision.tile_px,
            patch_size=cfg.vision.patch_px,
            vision_use_head=False,
        )
    ).eval()
    llm = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**cfg.text.to_dict())).eval()
    released = weights.released(dict(model.named_parameters()), weights.rules(cfg))

    def under(prefix: str) -> dict[str, torch.Tensor]:
        return {key.removeprefix(prefix): value for key, value in released.items() if key.startswith(prefix)}

    vision.load_state_dict(under("vision_model.vision_model."))
    llm.load_state_dict(under("language_model."))
    stop = sorted(processor.encoder.stop_token_ids)
    side, patch = cfg.vision.tile_px // cfg.vision.patch_px, cfg.vision.patch_px

    @torch.no_grad()
    def run(questions: list[Question]) -> list[str]:
        said = []
        for question in questions:
            plan = plan_of(processor, question, folder)
            tokens, patches_IPK = processor.load_sample(plan)
            pixels = patches_IPK.float().reshape(-1, side, side, 3, patch, patch).permute(0, 3, 1, 4, 2, 5)
            pixels = pixels.reshape(-1, 3, side * patch, side * patch)
            visual_ND = model.connector(vision(pixel_values=pixels).last_hidden_state).flatten(0, 1)
            embeds = llm.get_input_embeddings()(tokens.token_ids_T[None])
            embeds[0, tokens.visual_positions_N] = visual_ND
            ids = llm.generate(
                inputs_embeds=embeds,
                attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long),
                max_new_tokens=question.task.max_new_tokens,
                do_sample=False,
                eos_token_id=stop,
                pad_token_id=stop[0],
            )[0].tolist()
            spoken = processor.encoder.spoken_ids(ids)
            said.append(processor.tokenizer.decode(spoken, skip_special_tokens=False).strip())
        return said

    return run


def engine_run(model: Eagle, processor: Processor, folder: Path) -> Callable[[list[Question]], list[str]]:
    def run(questions: list[Question]) -> list[str]:
        with Engine(model, processor) as engine:  # a new one: nothing is left of the round before
            replies = {reply.id: reply.text for reply in of_engine(engine, folder)(questions)}
        return [replies[question.id] for question in questions]

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="the JSON file")
    parser.add_argument("--films", type=int, default=8)
    parser.add_argument("--seconds", type=int, default=8, help="of each film")
    args = parser.parse_args()
    about = machine("torch", "transformers", "numpy", "av")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_set(folder, args.films, args.seconds)
        questions = list(read(TASKS["videomme"], folder))
        model, processor = make_model()
        ways = {
            "transformers": transformers_loop(model, processor, folder),
            "runner": engine_run(model, processor, folder),
        }
        said = {way: run(questions) for way, run in ways.items()}
        different = sum(a != b for a, b in zip(said["transformers"], said["runner"], strict=True))
        if different:
            raise AssertionError(f"{different} of {len(questions)} answers differ: not worth measuring.")
        found: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(ROUNDS):
            for way, run in ways.items():
                begin = time.process_time()
                run(questions)
                found[way].append(60 * len(questions) / (time.process_time() - begin))
    rates = {way: sorted(values)[ROUNDS // 2] for way, values in found.items()}
    content: dict[str, Any] = {
        "machine": {**about, "num_threads": torch.get_num_threads()},
        "films": args.films,
        "questions": len(questions),
        "frames_a_film": max(8, 2 * args.seconds),
        "questions_a_cpu_minute": found,
        "median": rates,
        "faster": rates["runner"] / rates["transformers"],
    }
    text = json.dumps(content, indent=1) + "\n"
    print(text)
    if args.out:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
