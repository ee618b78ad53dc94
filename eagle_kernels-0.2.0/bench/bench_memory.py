"""How much memory a training step takes, without a GPU: the whole step on tensors that have shapes and no numbers.

    python -m bench.bench_memory --out bench/results/memory-8b.json

torch's MemTracker sees every tensor that a step makes: weights, what layers keep, gradients, temporaries. Tensors on
"cpu" stand for the GPU's here and those on "meta" for the host's. The ops of eagle_kernels take the way of a GPU
(`checks.takes_kernel`). What kernels allocate and give back inside (the logits of a chunk of the loss) is added: it is
`workspace` in the table. The allocator's rounding and CUDA's own memory are not in it.

What is tracked is the second step of a run: the optimizer's state is there. Of a row's tiles, three chunks go through
the vision tower: more of them repeat the same moments one after the other, and take minutes. The pixels and visual
tokens of the rest, and their gradients, are added.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from bench.machine import machine
from eagle_kernels.linear_cross_entropy import GPU_CHUNK_BYTES
from eagle_model.batch import PackedBatch
from eagle_model.model.config import EagleConfig, eagle2_5_8b
from eagle_model.model.eagle import Eagle
from eagle_model.train.config import OptimizerConfig
from eagle_model.train.memory import MemoryConfig, use_memory
from eagle_model.train.offload import Offload
from eagle_model.train.optimizer import Optimizer
from eagle_model.train.precision import Masters

DEVICE, HOST = torch.device("cpu"), torch.device("meta")
GIB = 2**30
SEEN_TILES = 48  # of the 8B's rows: three chunks
FITS_128K = {"activations": "offload", "mlp_chunk_tokens": 8192, "vision_chunk_tiles": 16}
CASES: dict[str, tuple[int, dict[str, Any]]] = {  # name: tokens, settings. Seven eighths of the tokens are visual
    **{
        f"{tokens >> 10}K {optimizer}": (tokens, {**FITS_128K, "optimizer": optimizer})
        for tokens in (131_072, 65_536, 32_768)
        for optimizer in ("host", "adamw8bit")
    },
}


class Peaks(MemTracker):
    """MemTracker without its statistics of each module, which take nine tenths of its time."""

    def _pre_fw_hook(self, module: nn.Module, inputs: Any) -> None: ...

    def _post_fw_hook(self, module: nn.Module, inputs: Any, outputs: Any) -> None: ...

    def _pre_bw_hook(self, module: nn.Module, args: Any) -> None: ...

    def _post_bw_hook(self, module: nn.Module, args: Any) -> None: ...

    def _update_peak_stats(self, peak_state: Any) -> None:
        for device, snapshot in self._curr_mem_snap.items():
            self._peak_mem[device] = max(self._peak_mem.get(device, 0), snapshot["Total"])

    def now(self, device: torch.device = DEVICE) -> int:
        return self._curr_mem_snap.get(device, {}).get("Total", 0)

    def start(self) -> None:
        self._peak_mem = {device: snapshot["Total"] for device, snapshot in self._curr_mem_snap.items()}

    def peak(self, device: torch.device = DEVICE) -> int:
        return self._peak_mem.get(device, 0)


class ToMeta:
    """The copies of `Offload`, from one kind of tensor without numbers to the other."""

    def to_host(self, x: Tensor) -> tuple[Tensor, Any]:
        return torch.empty_like(x, device=HOST), lambda: None

    def to_device(self, x: Tensor) -> tuple[Tensor, Any]:
        return torch.empty_like(x, device=DEVICE), lambda: None


def batch_of(cfg: EagleConfig, num_tokens: int, num_tiles: int, num_labelled: int) -> PackedBatch:
    return PackedBatch(
        token_ids_T=torch.zeros(num_tokens, dtype=torch.int64),
        labels_T=torch.zeros(num_tokens, dtype=torch.int64),
        positions_T=torch.zeros(num_tokens, dtype=torch.int32),
        cu_seqlens=torch.zeros(9, dtype=torch.int32),
        patches_IPK=torch.zeros(num_tiles, cfg.vision.num_patches, cfg.vision.num_patch_values, dtype=torch.bfloat16),
        visual_rows_N=torch.zeros(num_tiles * cfg.tokens_per_tile, dtype=torch.int64),
        sample_ids=("a",),
        num_labelled=num_labelled,
    )


def with_state(optimizer: Optimizer) -> None:
    """Gives an optimizer its moments, as its first step would."""
    for group in optimizer.adamw.param_groups:
        for master in group["params"]:
            if hasattr(optimizer.adamw, "_new_buffer"):  # torchao's
                moments = [optimizer.adamw._new_buffer(master, signed) for signed in (True, False)]
            else:
                moments = [torch.zeros_like(master) for _ in range(2)]
            optimizer.adamw.state[master] = dict(zip(("exp_avg", "exp_avg_sq"), moments, strict=True))


def track(
    cfg: EagleConfig, num_tokens: int, num_tiles: int, memory: MemoryConfig, *, num_seen: int | None = None
) -> dict[str, int]:
    """Bytes by part of a full-parameter step in bf16: `peak` is all of it, on the device, `host` what is not.

    The parts that make up `peak`: weights, states (of the optimizer, fp32 weights included), gradients (what of them
    outlives a layer's backward), activations (all else that was alive at the highest moment) and workspace.
    """
    if memory.optimizer == "adamw8bit":
        from torchao.optim.subclass_8bit import OptimState8bit

        for signed in (True, False):  # makes tables of numbers when first used
            OptimState8bit.zeros((256,), signed, 256)
    with FakeTensorMode(), Peaks() as peaks:
        model = Eagle(cfg)
        run_layer = use_memory(model, memory, DEVICE)
        if memory.activations == "offload":
            run_layer = Offload(ToMeta())
        on_host = memory.optimizer == "host"
        masters = Masters(model, torch.bfloat16, host=HOST if on_host else None, stochastic=memory.stochastic_rounding)
        weights = sum(p.nbytes for p in model.parameters())
        optimizer = None
        if not on_host:
            in_8_bits = memory.optimizer == "adamw8bit"
            optimizer = Optimizer(
                masters, OptimizerConfig(), in_8_bits=in_8_bits, stochastic_rounding=memory.stochastic_rounding
            )
            with_state(optimizer)
        states = peaks.now() - weights
        num_seen = num_tiles if num_seen is None else min(num_seen, num_tiles)
        batch = batch_of(cfg, num_tokens, num_seen, num_tokens // 8)
        peaks.start()
        loss = model(batch, torch.ones(()), run_layer=run_layer)
        forward = peaks.peak()
        peaks.start()
        loss.backward()
        del loss
        backward = peaks.peak()
        del batch
        gradients = peaks.now() - weights - states
        moments_on_host = 2 * sum(master.nbytes for master in masters.by_name.values()) if on_host else 0
        host = peaks.peak(HOST) + moments_on_host
    tile = cfg.vision.num_patches * cfg.vision.num_patch_values + 2 * cfg.tokens_per_tile * cfg.text.hidden_size
    unseen = 2 * (num_tiles - num_seen) * tile
    forward, backward = forward + unseen, backward + unseen
    workspace = memory.loss_chunk_mib << 20 if memory.loss_chunk_mib else GPU_CHUNK_BYTES
    # Gradients grow while activations shrink: which of the two was higher is the tracker's to say.
    highest = max(forward + workspace, backward)
    return {
        "peak": highest,
        "weights": weights,
        "states": states,
        "gradients": gradients,
        "activations": highest - weights - states - (workspace if highest > backward else 0),
        "forward": forward + workspace,
        "backward": backward,
        "workspace": workspace,
        "host": host,
    }


def track_layer(cfg: EagleConfig, num_tokens: int, mlp_chunk_tokens: int | None) -> int:
    """The most bytes that backward of one decoder layer holds, whose input is kept and nothing else: its weights and
    what stands outside of it (the input, the gradients that come and go) included."""
    from dataclasses import replace

    from eagle_kernels.attention_plan import AttentionPlan
    from eagle_model.model.attend import Packed
    from eagle_model.model.llm import DecoderLayer, Rotary
    from eagle_model.model.recompute import recomputed

    text = replace(cfg.text, num_hidden_layers=1)
    with FakeTensorMode(), Peaks() as peaks:
        layer = DecoderLayer(text, 0)
        layer.mlp.chunk_tokens = mlp_chunk_tokens
        for parameter in layer.parameters():
            parameter.data = parameter.data.bfloat16()
            parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
        x_TD = torch.zeros(num_tokens, text.hidden_size, dtype=torch.bfloat16, requires_grad=True)
        plan = AttentionPlan.from_cu_seqlens(torch.zeros(9, dtype=torch.int32), num_tokens=num_tokens)
        rotary = Rotary.of(text, torch.zeros(num_tokens, dtype=torch.int32), None)
        out_TD = recomputed(layer, x_TD, rotary, Packed(plan=plan, causal=True))
        end = _End.apply(out_TD)
        del out_TD
        peaks.start()
        end.backward()
        return peaks.peak()


class _End(torch.autograd.Function):
    """What comes after a layer: it holds nothing, and its gradient appears in backward."""

    @staticmethod
    def forward(ctx: Any, out: Tensor) -> Tensor:
        ctx.like = out.shape, out.dtype
        return out.new_empty(())

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> Tensor:
        shape, dtype = ctx.like
        return torch.empty(shape, dtype=dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", default="", help="cases whose name holds this")
    options = parser.parse_args()
    cfg, rows = eagle2_5_8b(), {}
    for name, (tokens, settings) in CASES.items():
        if options.only in name:
            begin = time.process_time()
            stochastic = settings["optimizer"] == "adamw8bit"
            memory = MemoryConfig(**settings, stochastic_rounding=stochastic)
            tiles = tokens * 7 // 8 // cfg.tokens_per_tile
            rows[name] = {"tokens": tokens, "tiles": tiles, **settings, "stochastic_rounding": stochastic}
            rows[name] |= {"bytes": track(cfg, tokens, tiles, memory, num_seen=SEEN_TILES)}
            found = {part: round(count / GIB, 2) for part, count in rows[name]["bytes"].items()}
            print(f"{name}: {found} ({time.process_time() - begin:.0f} CPU s)", flush=True)
            rows[name]["cpu_seconds"] = round(time.process_time() - begin)
            if options.out:
                options.out.write_text(json.dumps({**about(), "rows": rows}, indent=1) + "\n")


def about() -> dict[str, Any]:
    return {"model": "eagle2_5_8b", "seen_tiles": SEEN_TILES, "machine": machine("torch"), "gpu": None}


if __name__ == "__main__":
    main()
