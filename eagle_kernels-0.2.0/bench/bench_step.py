"""A full training step, forward, backward, clipping, AdamW: ours, and transformers' SigLIP and Qwen2 with our weights.

    python -m bench.bench_step --out bench/results/step-cpu.json       # on a CPU, one thread: CPU seconds

Three ways train on the same samples, one after the other in one process: ours on packed rows; transformers on the same
rows, whose documents it finds by their positions (a mask of T x T); transformers on padded batches of samples sorted by
length, as many at a time as fit a row's tokens. All have torch's AdamW and the same weighted loss, which is shown to be
equal, with its gradient's norm, before anything is timed. Of each way's steps over the whole list some are taken,
evenly spread; tokens count without padding. Peak memory is that of a step in a process of its own, above the weights.

The samples are 1,000 of a committed list, `step_lengths.json`: tiles, tokens of the question, tokens of the answer.
On a GPU the tests below are the bench: one row of 8K, 32K and 128K tokens, in bf16, beside flash-attn 2 and Liger's
kernels, with the widths of Eagle 2.5-8B and a few of its layers.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.bench_checkpoint import in_a_process, peak_of
from bench.harness import DEVICE, measure, rival, seconds
from bench.machine import machine
from eagle_kernels.merge_2x2 import merge_2x2_ref
from eagle_model.batch import IGNORE_INDEX, PackedBatch
from eagle_model.data.packing import pack
from eagle_model.model import weights
from eagle_model.model.config import EagleConfig, TextConfig, VisionConfig, eagle2_5_8b
from eagle_model.model.eagle import Eagle, build
from eagle_model.model.fp8 import use_fp8
from eagle_model.model.fp8_config import Fp8Config
from eagle_model.model.loss import sqrt_mass, token_weights
from eagle_model.model.recompute import recomputed
from eagle_model.train.flops import FlopMeter

pytestmark = pytest.mark.benchmark(timer=seconds)

LENGTHS = Path(__file__).parent / "step_lengths.json"
NUM_SAMPLES, ROW_TOKENS = 1000, 2048
WAYS = ("ours", "transformers packed", "transformers padded")
STEPS = {"5M": 8, "90M": 3}  # of each way: all together under 4 minutes of a core
TOLERANCE = 1e-4  # of the loss and the gradient's norm, relative
IMAGE_TOKEN_ID = 3


class Length(NamedTuple):
    num_tiles: int
    num_question: int  # tokens of text before the answer
    num_answer: int

    def num_tokens(self, cfg: EagleConfig) -> int:
        return self.num_tiles * cfg.tokens_per_tile + self.num_question + self.num_answer


def draw_lengths() -> list[Length]:
    """What step_lengths.json holds: text alone, images of a few tiles, short videos; questions and answers of text."""
    draw = random.Random(0)
    found = []
    for _ in range(NUM_SAMPLES):
        num_tiles = draw.choices((0, draw.randint(1, 6), draw.randint(7, 13), draw.randint(16, 64)), (3, 9, 5, 3))[0]
        found.append(
            Length(
                num_tiles,
                min(400, 8 + round(math.exp(draw.gauss(3.3, 0.8)))),
                min(500, 2 + round(math.exp(draw.gauss(3.6, 1.0)))),
            )
        )
    return found


def read_lengths() -> list[Length]:
    return [Length(*numbers) for numbers in json.loads(LENGTHS.read_text())]


def config(size: str) -> EagleConfig:
    """About 5 and 90 million parameters in Eagle 2.5-8B's proportions: a vocabulary of 42 rows for each channel, MLPs
    5.3 and 3.7 times as wide as their tower, and a vision tower that is a twentieth of the whole. Tiles of 64 patches,
    16 tokens."""
    C, vision_layers, D, layers, head_dim, num_kv_heads = {
        "5M": (64, 5, 160, 6, 32, 1),
        "90M": (256, 6, 512, 13, 64, 2),
    }[size]
    vision = VisionConfig(
        tile_px=112,
        patch_px=14,
        hidden_size=C,
        intermediate_size=8 * round(4304 / 1152 * C / 8),
        num_hidden_layers=vision_layers,
        num_attention_heads=C // head_dim,
    )
    text = TextConfig(
        vocab_size=42 * D,
        hidden_size=D,
        intermediate_size=8 * round(18944 / 3584 * D / 8),
        num_hidden_layers=layers,
        num_attention_heads=D // head_dim,
        num_key_value_heads=num_kv_heads,
    )
    return EagleConfig(vision=vision, text=text, image_token_id=IMAGE_TOKEN_ID)


# ---- samples and batches


def batch_of(samples: Sequence[Length], cfg: EagleConfig, seed: int, *, dtype: torch.dtype) -> PackedBatch:
    """One packed row of random tokens and pixels: visual tokens, question, answer, which is supervised."""
    generator = torch.Generator().manual_seed(seed)
    ids, labels, positions, rows, start = [], [], [], [], 0
    for sample in samples:
        num_visual, length = sample.num_tiles * cfg.tokens_per_tile, sample.num_tokens(cfg)
        token_ids = torch.randint(IMAGE_TOKEN_ID + 1, cfg.text.vocab_size, (length,), generator=generator)
        token_ids[:num_visual] = IMAGE_TOKEN_ID
        shifted = torch.full((length,), IGNORE_INDEX)
        shifted[-1 - sample.num_answer : -1] = token_ids[-sample.num_answer :]
        ids.append(token_ids)
        labels.append(shifted)
        positions.append(torch.arange(length, dtype=torch.int32))
        rows.append(start + torch.arange(num_visual))
        start += length
    num_tiles = sum(sample.num_tiles for sample in samples)
    patches = torch.randn(num_tiles, cfg.vision.num_patches, cfg.vision.num_patch_values, generator=generator)
    lengths = torch.tensor([0] + [len(part) for part in ids])
    return PackedBatch(
        token_ids_T=torch.cat(ids),
        labels_T=torch.cat(labels),
        positions_T=torch.cat(positions),
        cu_seqlens=lengths.cumsum(0).int(),
        patches_IPK=patches.to(dtype),
        visual_rows_N=torch.cat(rows),
        sample_ids=tuple(map(str, range(len(samples)))),
        num_labelled=sum(sample.num_answer for sample in samples),
    )


def packed_rows(lengths: Sequence[Length], cfg: EagleConfig) -> list[list[Length]]:
    rows = pack([length.num_tokens(cfg) for length in lengths], ROW_TOKENS)
    return [[lengths[i] for i in row] for row in rows]


def padded_batches(lengths: Sequence[Length], cfg: EagleConfig) -> list[list[Length]]:
    """Sorted by length; as many of them at a time as, padded to the longest, fit a row's tokens."""
    batches: list[list[Length]] = [[]]
    for length in sorted(lengths, key=lambda sample: sample.num_tokens(cfg)):
        if (len(batches[-1]) + 1) * length.num_tokens(cfg) > ROW_TOKENS:
            batches.append([])
        batches[-1].append(length)
    return batches


def spread(steps: Sequence[list[Length]], number: int) -> list[list[Length]]:
    """So many, each from the middle of an equal share of all."""
    return [steps[int((k + 0.5) * len(steps) / number)] for k in range(number)]


# ---- the rival


class Theirs(nn.Module):
    """SiglipVisionModel, the connector in plain torch, Qwen2ForCausalLM: what `eagle_model.model` computes."""

    def __init__(self, ours: Eagle, attention: str = "sdpa") -> None:
        super().__init__()
        from transformers import Qwen2Config, Qwen2ForCausalLM, SiglipVisionConfig, SiglipVisionModel

        released = weights.released(dict(ours.named_parameters()), weights.rules(ours.cfg))
        fields = ours.cfg.to_dict()
        self.tokens_per_tile = ours.cfg.tokens_per_tile
        dtype, device = ours.lm_head.weight.dtype, ours.lm_head.weight.device
        wide, width = 4 * ours.cfg.vision.hidden_size, ours.cfg.text.hidden_size
        with torch.device(device):
            self.vision_model = SiglipVisionModel(
                SiglipVisionConfig(
                    **{**fields["vision_config"], "vision_use_head": False}, attn_implementation=attention
                )
            )
            text = Qwen2Config(**fields["text_config"], attn_implementation=attention)
            self.language_model = Qwen2ForCausalLM(text)
            self.mlp1 = nn.Sequential(nn.LayerNorm(wide), nn.Linear(wide, width), nn.GELU(), nn.Linear(width, width))
        self.to(dtype)
        flat = {key.replace("vision_model.vision_model.", "vision_model."): t for key, t in released.items()}
        self.load_state_dict({key: tensor.detach() for key, tensor in flat.items()})

    def embed(self, batch: PackedBatch, pixels_I3YX: Tensor) -> Tensor:
        embeddings_TD = self.language_model.model.embed_tokens(batch.token_ids_T)
        if not len(pixels_I3YX):
            return embeddings_TD
        patches_IPC = self.vision_model(pixels_I3YX).last_hidden_state
        visual_ND = self.mlp1(merge_2x2_ref(patches_IPC)).flatten(0, 1)
        return embeddings_TD.index_put((batch.visual_rows_N,), visual_ND)

    def packed(self, batch: PackedBatch, pixels_I3YX: Tensor, weights_T: Tensor) -> Tensor:
        logits_TV = self.language_model(
            inputs_embeds=self.embed(batch, pixels_I3YX)[None],
            position_ids=batch.positions_T.long()[None],
            use_cache=False,  # with one, documents are not told apart
        ).logits[0]
        return weighted_loss(logits_TV, batch.labels_T, weights_T)

    def padded(self, batch: PackedBatch, pixels_I3YX: Tensor, weights_T: Tensor) -> Tensor:
        """Embeddings go to their places in (B, L); padding stands at the end of each sample."""
        lengths_B = batch.cu_seqlens.diff().long()
        mask_BL = torch.arange(int(lengths_B.max())) < lengths_B[:, None]
        embeddings_TD = self.embed(batch, pixels_I3YX)
        embeddings_BLD = embeddings_TD.new_zeros(*mask_BL.shape, embeddings_TD.shape[1])
        embeddings_BLD = embeddings_BLD.masked_scatter(mask_BL[..., None], embeddings_TD)
        labels_BL = torch.full(mask_BL.shape, IGNORE_INDEX).masked_scatter(mask_BL, batch.labels_T)
        weights_BL = torch.zeros(mask_BL.shape).masked_scatter(mask_BL, weights_T)
        logits_BLV = self.language_model(
            inputs_embeds=embeddings_BLD, attention_mask=mask_BL.long(), use_cache=False
        ).logits
        return weighted_loss(logits_BLV.flatten(0, 1), labels_BL.flatten(), weights_BL.flatten())


def weighted_loss(logits_TV: Tensor, labels_T: Tensor, weights_T: Tensor) -> Tensor:
    """In fp32, as transformers' own loss is."""
    losses_T = F.cross_entropy(logits_TV.float(), labels_T, ignore_index=IGNORE_INDEX, reduction="none")
    return (losses_T * weights_T).sum()


def pixels_of(batch: PackedBatch, cfg: EagleConfig) -> Tensor:
    """The patches of a batch as transformers wants them, (I, 3, Y, X)."""
    side, px = math.isqrt(cfg.vision.num_patches), cfg.vision.patch_px
    tiles = batch.patches_IPK.unflatten(1, (side, side)).unflatten(3, (3, px, px))
    return tiles.permute(0, 3, 1, 4, 2, 5).reshape(len(tiles), 3, side * px, side * px).contiguous()


# ---- a step


class Trained:
    """One way to train: its model, its optimizer, and what its loss is."""

    def __init__(self, way: str, ours: Eagle, theirs: Theirs) -> None:
        self.way, self._ours, self._theirs = way, ours, theirs
        self.model: nn.Module = ours if way == "ours" else theirs
        self._adamw = torch.optim.AdamW(self.model.parameters(), lr=1e-6, fused=True)

    def prepared(self, batch: PackedBatch) -> Callable[[], Tensor]:
        """Its loss of a batch; what the data would bring along is made here, outside of the clock."""
        ours, theirs = self._ours, self._theirs
        if self.way == "ours":
            return lambda: ours(batch, sqrt_mass(batch.labels_T, batch.cu_seqlens))
        pixels_I3YX, weights_T = pixels_of(batch, ours.cfg), token_weights(batch.labels_T, batch.cu_seqlens)
        loss = theirs.packed if self.way == "transformers packed" else theirs.padded
        return lambda: loss(batch, pixels_I3YX, weights_T)

    def loss_and_norm(self, batch: PackedBatch) -> tuple[float, float]:
        loss = self.prepared(batch)()
        loss.backward()
        norm = nn.utils.get_total_norm([p.grad for p in self.model.parameters() if p.grad is not None])
        self._adamw.zero_grad(set_to_none=True)
        return loss.item(), norm.item()

    def step(self, loss: Callable[[], Tensor]) -> float:
        value = loss()
        value.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)
        return value.item()


def peak_bytes_of(trained: Trained, batch: PackedBatch) -> int:
    """Of a step in a child process, which begins with the weights and nothing else."""

    def peak() -> int:
        loss = trained.prepared(batch)
        return peak_of(lambda: trained.step(loss))

    gc.collect()
    return in_a_process(peak)


def same_losses(all_ways: Sequence[Trained], batch: PackedBatch) -> dict[str, dict[str, float]]:
    """Loss and gradient norm of each way. Raises AssertionError where they are not equal."""
    found = {trained.way: trained.loss_and_norm(batch) for trained in all_ways}
    for way, numbers in found.items():
        for got, want in zip(numbers, found["ours"], strict=True):
            if not math.isclose(got, want, rel_tol=TOLERANCE):
                raise AssertionError(f"{way} has loss and gradient norm {numbers}, ours {found['ours']}: not the same.")
    return {way: {"loss": loss, "grad_norm": norm} for way, (loss, norm) in found.items()}


def measure_size(size: str, num_steps: int) -> dict[str, Any]:
    torch.manual_seed(0)
    cfg = config(size)
    ours = Eagle(cfg)
    theirs = Theirs(ours)
    ways = [Trained(way, ours, theirs) for way in WAYS]
    lengths = read_lengths()
    steps = {"packed": packed_rows(lengths, cfg), "padded": padded_batches(lengths, cfg)}
    chosen = {name: spread(found, num_steps) for name, found in steps.items()}
    first = batch_of(chosen["packed"][0], cfg, 0, dtype=torch.float32)
    figures: dict[str, dict[str, Any]] = {way: {} for way in WAYS}
    for trained in ways:  # before anything else has used memory
        samples = chosen["padded"][-1] if trained.way.endswith("padded") else chosen["packed"][0]
        batch = batch_of(samples, cfg, 0, dtype=torch.float32)
        figures[trained.way]["peak_bytes"] = peak_bytes_of(trained, batch)
    losses = same_losses(ways, first)
    meter, spent = FlopMeter(ours), dict.fromkeys(WAYS, 0.0)
    tokens, flops = dict.fromkeys(WAYS, 0), dict.fromkeys(WAYS, 0)
    for trained in ways:
        trained.step(trained.prepared(first))  # AdamW's state is made, memory is warm
    for k in range(num_steps):
        for trained in ways:
            samples = chosen["padded" if trained.way.endswith("padded") else "packed"][k]
            batch = batch_of(samples, cfg, k, dtype=torch.float32)
            loss = trained.prepared(batch)
            start = time.process_time()
            trained.step(loss)
            spent[trained.way] += time.process_time() - start
            tokens[trained.way] += batch.num_tokens
            flops[trained.way] += meter.step([batch]).model
    for way in WAYS:
        figures[way] |= {
            "tokens": tokens[way],
            "cpu_seconds": round(spent[way], 2),
            "tokens_per_cpu_second": round(tokens[way] / spent[way], 1),
            "model_gflops_per_cpu_second": round(flops[way] / spent[way] / 1e9, 1),
        }
    padded_tokens = sum(len(step) * step[-1].num_tokens(cfg) for step in steps["padded"])
    real_tokens = sum(length.num_tokens(cfg) for length in lengths)
    rate = {way: figures[way]["tokens_per_cpu_second"] for way in WAYS}
    return {
        "parameters": sum(p.numel() for p in ours.parameters()),
        "num_steps": num_steps,
        "of_steps": {name: len(found) for name, found in steps.items()},
        "padding_share": round(1 - real_tokens / padded_tokens, 3),
        "supervised_share": round(sum(length.num_answer for length in lengths) / real_tokens, 3),
        "same_losses": losses,
        "ways": figures,
        "times_as_fast": {way: round(rate["ours"] / rate[way], 2) for way in WAYS[1:]},
    }


# ---- on a GPU


GPU_TOKENS = {"8K": 8192, "32K": 32_768, "128K": 131_072}
GPU_LAYERS = 4  # of each tower: weights, gradients and AdamW's state of 2.1 billion parameters take 17 GB in bf16
GPU_WAYS = ("ours", "ours, FP8", "transformers, flash-attn 2, Liger")


def gpu_config() -> EagleConfig:
    cfg = eagle2_5_8b()
    text = replace(cfg.text, num_hidden_layers=GPU_LAYERS)
    vision = replace(cfg.vision, num_hidden_layers=GPU_LAYERS)
    return replace(cfg, vision=vision, text=text, image_token_id=IMAGE_TOKEN_ID)


def gpu_row(cfg: EagleConfig, num_tokens: int) -> PackedBatch:
    """Documents of 2,048 tokens: 7 tiles, a question, an answer of 128. All answers are of one length, so that the
    square-root loss is the mean that Liger computes."""
    sample = Length(7, 2048 - 7 * cfg.tokens_per_tile - 128, 128)
    return batch_of([sample] * (num_tokens // 2048), cfg, 0, dtype=torch.bfloat16).to(DEVICE)


def with_liger(theirs: Theirs) -> None:
    kernels = rival("liger_kernel.transformers", "liger-kernel")
    kernels.apply_liger_kernel_to_qwen2(model=theirs.language_model)


@pytest.mark.skipif(
    DEVICE == "cpu", reason="a step of 8K tokens and more needs a GPU; on a CPU: python -m bench.bench_step"
)
@pytest.mark.parametrize("way", GPU_WAYS)
@pytest.mark.parametrize("tokens", GPU_TOKENS)
def test_step(benchmark: Any, tokens: str, way: str) -> None:
    """Both run each layer again in backward. Where one does not fit, its row says so."""
    needed = {"ours": (), "ours, FP8": ("transformer_engine.pytorch",)}.get(way, ("flash_attn", "transformers"))
    for module in needed:
        rival(module, module.partition(".")[0])
    torch.manual_seed(0)
    ours = build(gpu_config(), DEVICE).bfloat16()
    batch = gpu_row(ours.cfg, GPU_TOKENS[tokens])
    mass = sqrt_mass(batch.labels_T, batch.cu_seqlens)
    flops = FlopMeter(ours).step([batch.to("cpu")]).model
    model: nn.Module = ours
    with torch.no_grad():
        want = ours(batch, mass)
    if way == "ours, FP8":
        print(use_fp8(ours, Fp8Config()))
    if way.startswith("ours"):

        def loss() -> Tensor:
            return ours(batch, mass, run_layer=recomputed)
    else:
        theirs = Theirs(ours, "flash_attention_2")
        with_liger(theirs)
        theirs.language_model.gradient_checkpointing_enable()
        theirs.vision_model.gradient_checkpointing_enable()
        pixels_I3YX, model = pixels_of(batch, ours.cfg), theirs.train()
        # transformers shifts labels itself: label t is what stands at t, not what follows.
        labels_T = torch.cat([batch.labels_T.new_full((1,), IGNORE_INDEX), batch.labels_T[:-1]])
        del ours

        def loss() -> Tensor:
            return theirs.language_model(
                inputs_embeds=theirs.embed(batch, pixels_I3YX)[None],
                position_ids=batch.positions_T.long()[None],
                labels=labels_T[None],
                use_cache=False,
            ).loss

    adamw = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.0, fused=True)  # the loss stays what it is

    def step() -> list[Tensor]:
        value = loss()
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        adamw.zero_grad(set_to_none=True)
        return [value.detach().float()]

    benchmark.group = f"training step, {tokens} tokens in documents of 2048, bf16, {GPU_LAYERS} layers of each tower"
    benchmark.extra_info["tokens"] = batch.num_tokens
    measure(benchmark, step, [want.float()], dtype=torch.bfloat16, flops=flops)


def test_the_list_is_what_seed_0_draws() -> None:
    assert read_lengths() == draw_lengths() and len(read_lengths()) == NUM_SAMPLES


def test_losses_are_equal_and_batches_hold_every_sample() -> None:
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    cfg = config("5M")
    ours = Eagle(cfg)
    theirs = Theirs(ours)
    samples = [Length(2, 5, 3), Length(0, 9, 7), Length(1, 4, 1)]
    batch = batch_of(samples, cfg, 0, dtype=torch.float32)
    losses = same_losses([Trained(way, ours, theirs) for way in WAYS], batch)
    assert set(losses) == set(WAYS)
    for steps in (packed_rows(read_lengths(), cfg), padded_batches(read_lengths(), cfg)):
        assert sorted(sample for step in steps for sample in step) == sorted(read_lengths())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--sizes", nargs="+", choices=list(STEPS), default=list(STEPS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    about = {**machine("torch", "transformers", "safetensors"), "threads": 1}
    figures = {}
    for size in args.sizes:
        figures[size] = measure_size(size, STEPS[size])
        print(size, json.dumps(figures[size], indent=1))
    if args.out:
        content = {"machine": about, "row_tokens": ROW_TOKENS, "dtype": "float32", "figures": figures}
        args.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
