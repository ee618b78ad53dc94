"""What a training step will take, before it is run: memory by part, time by part, and the layout that is cheapest.

    cfg, config = eagle2_5_8b(), override(recipe("stage4"), ["memory.activations=offload"])
    plan = estimate(cfg, Work.of(cfg, config), config.memory, GPUS["h100-80g"], Split(data=8, context=8))
    plan.memory["peak"] / 2**30, plan.seconds["all"]                     # of one GPU; of one step

Memory   Closed formulas, letter for letter below; on one GPU they agree with the tracked step of
         `bench/bench_memory.py` within 10 % (a test), a decoder layer within 1 %. Full-parameter training.
Time     FLOPs of `flops.py` and bytes moved, over the GPU's peaks times `RATES`. The rates are predictions: nothing
         here was timed on a GPU.
Layouts  Of more than one GPU: predictions throughout. Weights, gradients and the optimizer's state are sharded over all
         GPUs (parallel.py), the sharded fp32 weights being the masters; a layer's are gathered while it runs, the next
         one's beside it, and those of a vision tower in chunks all the while; `context` GPUs share a row's tokens and
         tiles, and each gathers all keys and values of a layer.

Dims     T tokens and I tiles of a row on one GPU, D width, F = (H + 2K) W, M MLP width, H heads, W head width, L
         layers, C vision width, P patches, V vocabulary, N parameters, n GPUs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from eagle_model.fields import shown
from eagle_model.model.config import EagleConfig, TextConfig, VisionConfig
from eagle_model.model.eagle import build
from eagle_model.train.config import TrainConfig
from eagle_model.train.flops import Activations, FlopMeter, Flops
from eagle_model.train.gpu_peaks import peak_flops
from eagle_model.train.layout import Layout, check_layout
from eagle_model.train.memory import MemoryConfig

GIB = 2**30
LOSS_LOGITS = 1040 << 20  # GPU_CHUNK_BYTES of the loss: what it holds of logits where no setting says otherwise
VISUAL_SHARE = 7 / 8  # of a row's tokens, where nothing else is said: long videos
LABELLED_SHARE = 1 / 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """A GPU and what it is connected to. Bytes a second; `room` is what tensors may take of its memory: CUDA, NCCL
    and the gaps of the allocator have the rest."""

    cuda_name: str  # as `gpu_peaks` knows it
    room_gib: float
    memory_rate: float
    host_rate: float  # each way
    link_rate: float  # each way, to the other GPUs of its machine
    network_rate: float  # its share, each way, to other machines

    @property
    def flops(self) -> float:
        peak = peak_flops(self.cuda_name)
        assert peak is not None
        return peak


GPUS = {  # by NVIDIA's datasheets; room: 3.6 GiB below what the driver shows
    "a100-80g": Gpu(
        cuda_name="A100", room_gib=76, memory_rate=2.04e12, host_rate=25e9, link_rate=300e9, network_rate=25e9
    ),
    "h100-80g": Gpu(
        cuda_name="H100", room_gib=76, memory_rate=3.35e12, host_rate=55e9, link_rate=450e9, network_rate=50e9
    ),
    "h200-141g": Gpu(
        cuda_name="H200", room_gib=136, memory_rate=4.8e12, host_rate=55e9, link_rate=450e9, network_rate=50e9
    ),
    "b200-180g": Gpu(
        cuda_name="B200", room_gib=174, memory_rate=7.7e12, host_rate=55e9, link_rate=900e9, network_rate=50e9
    ),
}
GPUS_A_MACHINE = 8
RATES = {  # shares of the GPU's peaks; all predicted
    "linear layers": 0.70,
    "attention": 0.50,
    "vision": 0.55,  # its matrices are narrow: 1152 and 4304
    "loss": 0.60,
    "memory": 0.80,
    "links": 0.80,
}
HOST_UPDATE_RATE = 100e9  # bytes a second of AdamW on the CPU; predicted


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """How many GPUs share what: rows of a step, tokens of a row."""

    data: int = 1
    context: int = 1

    @property
    def num_gpus(self) -> int:
        return self.data * self.context


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """One step of full-parameter training."""

    num_rows: int
    num_tokens: int  # of a row
    num_tiles: int  # of a row
    documents: int = 1  # of a row, equally long; fewer cost more attention
    bytes_a_number: int = 2  # of weights and activations

    @classmethod
    def of(cls, cfg: EagleConfig, config: TrainConfig, *, visual_share: float = VISUAL_SHARE) -> Work:
        """A step of a run whose rows are full. Raises ValueError for runs that train adapters, or not all parts of the
        model: they are not estimated."""
        if config.lora is not None:
            raise ValueError("estimate: the run trains adapters (lora); only full-parameter runs are estimated.")
        parts = ("train_vision", "train_connector", "train_llm", "train_embeddings", "train_lm_head")
        if frozen := [f"{name}=false" for name in parts if getattr(config, name) is False]:
            raise ValueError(
                f"estimate: the run freezes parts of the model ({', '.join(frozen)}); only full-parameter runs are "
                "estimated. --set them to true for what a run takes at most."
            )
        tokens = config.processor.sampling.context_tokens
        return cls(
            num_rows=config.rows_per_step,
            num_tokens=tokens,
            num_tiles=int(tokens * visual_share) // cfg.tokens_per_tile,
            bytes_a_number=2 if config.dtype == "bfloat16" else 4,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """What a training step takes on one GPU, by formulas."""

    memory_config: MemoryConfig
    split: Split
    memory: dict[str, int]  # bytes on one GPU by part; "peak" is the highest moment, "host" is beside it
    seconds: dict[str, float]  # of a step by part; "all" is their sum
    fits: bool

    @property
    def num_seconds(self) -> float:
        return self.seconds["all"]


# ---- memory


def decoder_layer_bytes(text: TextConfig, num_tokens: int, chunk_tokens: int | None, b: int = 2) -> int:
    """The most that backward of one decoder layer holds beside the layer's weights: its input and its gradient, what
    running it again keeps, and the MLP's temporaries."""
    T, D, F, M, H = num_tokens, text.hidden_size, sum(text.qkv_sizes), text.intermediate_size, text.num_attention_heads
    around = 2 * T * D * b  # the input, and the gradient of the output
    kept = T * ((3 * D + H * text.head_dim + F) * b + 4 * H + 8)  # two norms, the sum, attention's; lse, two rstd
    if chunk_tokens is None or chunk_tokens >= T:
        return around + kept + 5 * T * M * b  # gate and up, their gradients, and that of their product
    c = chunk_tokens
    activation = 5 * c * M * b + D * M * b + c * D * b  # the same, down's gradient, the output
    projection = 2 * c * M * b + 3 * D * M * b + 2 * c * D * b  # gate's and up's gradients, all weights', the input's
    return around + kept + max(activation, projection) + T * D * b + 3 * D * M * 4  # the input's, and sums in fp32


def _kept_by_layer(text: TextConfig, T: int, memory: MemoryConfig, b: int) -> int:
    """What one decoder layer keeps on the GPU from forward to backward."""
    D, F, M, H, W = (
        text.hidden_size, sum(text.qkv_sizes), text.intermediate_size, text.num_attention_heads, text.head_dim,
    )  # fmt: skip
    if memory.activations == "offload":
        return 0
    if memory.activations == "none":
        mlp = 0 if memory.mlp_chunk_tokens else 3 * M
        return T * ((4 * D + F + H * W + mlp) * b + 4 * H + 8)
    return T * D * b + (memory.activations == "selective") * T * (H * W * b + 4 * H)


def _vision_bytes(vision: VisionConfig, num_tiles: int, memory: MemoryConfig, b: int) -> tuple[int, int]:
    """What the vision tower keeps until its backward, and the most that its backward holds."""
    P, C, I = vision.num_patches, vision.hidden_size, vision.intermediate_size
    L, H = vision.num_hidden_layers, vision.num_attention_heads
    layer = P * ((8 * C + 2 * I) * b + 4 * H + 16)  # of a tile: what one layer keeps
    pixels = P * vision.num_patch_values * b
    backward = P * (2 * I + C) * b  # the gradients of what is widest
    if memory.vision_chunk_tiles is not None and memory.vision_chunk_tiles < num_tiles:
        sums = 4 * vision.num_parameters + b * vision.num_parameters
        return num_tiles * pixels, num_tiles * pixels + memory.vision_chunk_tiles * (L * layer + backward) + sums
    if memory.activations == "none":
        return num_tiles * (pixels + L * layer), num_tiles * (pixels + L * layer + backward)
    kept = num_tiles * (pixels + (memory.activations != "offload") * L * P * C * b)
    kept += (memory.activations == "selective") * num_tiles * L * P * (C * b + 4 * H)
    return kept, kept + num_tiles * (layer + backward + 2 * P * C * b)


def memory_of(cfg: EagleConfig, work: Work, memory: MemoryConfig, split: Split) -> dict[str, int]:
    """Bytes on one GPU by part. `peak` is the highest of the moments: the loss, the last layer's backward, the first
    one's (with all gradients of the language model), the vision tower's (with all gradients)."""
    text, b, n = cfg.text, work.bytes_a_number, split.num_gpus
    T, tiles = -(-work.num_tokens // split.context), -(-work.num_tiles // split.context)
    D, V, L, N = text.hidden_size, text.vocab_size, text.num_hidden_layers, cfg.num_parameters
    table, tables = V * D, (1 if text.tie_word_embeddings else 2) * V * D
    layer = (text.num_parameters - tables) // L

    cut = n > 1 and memory.optimizer != "host" and not memory.stochastic_rounding  # weights are the masters: fp32
    at_once = cfg.vision.num_parameters if memory.vision_chunk_tiles is not None else 0
    weights = N * (4 if cut else b) // n + (n > 1) * (2 * layer + tables + at_once) * b
    moments = 2 + 2 * 4 / 256 if memory.optimizer == "adamw8bit" else 8
    masters = 4 if b == 2 and not memory.stochastic_rounding and not cut else 0
    states = 0 if memory.optimizer == "host" else int(N * (moments + masters)) // n
    a_gradient = 0 if memory.optimizer == "host" else (2 if memory.stochastic_rounding else 4) / n
    head_gradients = int(a_gradient * table)
    # When the first layer's backward is at its highest, neither it nor the table of embeddings has its own yet.
    llm_gradients = int(a_gradient * (text.num_parameters - (tables - table) - layer))
    all_gradients = int(a_gradient * N)

    kept = _kept_by_layer(text, T, memory, b)
    vision_kept, vision_peak = _vision_bytes(cfg.vision, tiles, memory, b)
    u = T * D * b
    gathered = (split.context > 1) * 2 * work.num_tokens * 2 * text.num_key_value_heads * text.head_dim * b
    working = decoder_layer_bytes(text, T, memory.mlp_chunk_tokens, b) + gathered + (n > 1) * layer * 4
    if memory.activations == "none":
        working -= T * ((3 * D + text.num_attention_heads * text.head_dim + sum(text.qkv_sizes)) * b)
    ids = T * 40
    workspace = memory.loss_chunk_mib << 20 if memory.loss_chunk_mib else LOSS_LOGITS
    loss = 3 * u + 4 * table + workspace + (memory.activations == "offload") * u
    moments_of_step = {
        "loss": L * kept + vision_kept + loss,
        "last layer": L * kept + vision_kept + working + u + head_gradients,
        "first layer": kept + vision_kept + working + llm_gradients,
        "vision": vision_peak + u + all_gradients,
    }
    highest = max(moments_of_step, key=lambda name: moments_of_step[name])
    gradients = {
        "loss": 0,
        "last layer": int(a_gradient * table),
        "first layer": llm_gradients,
        "vision": all_gradients,
    }
    on_host = (memory.optimizer == "host") * N * (4 + 4 + 8) // n
    on_host += (memory.activations == "offload") * (L + 1) * u
    return {
        "weights": weights,
        "states": states,
        "gradients": gradients[highest],
        "activations": moments_of_step[highest] - gradients[highest] + ids,
        "peak": weights + states + moments_of_step[highest] + ids,
        "host": on_host,
    }


# ---- time


def seconds_of(cfg: EagleConfig, work: Work, memory: MemoryConfig, gpu: Gpu, split: Split) -> dict[str, float]:
    """Seconds of a step by part. Copies and collectives count where they take longer than what they run beside."""
    text, b, n, N = cfg.text, work.bytes_a_number, split.num_gpus, cfg.num_parameters
    L, D, M = text.num_hidden_layers, text.hidden_size, text.intermediate_size
    rows = -(-work.num_rows // split.data)
    T = work.num_tokens / split.context
    recomputes = memory.activations != "none"
    row_of = _flops_of_a_row(cfg, replace(work, num_rows=1), memory.activations)
    flops = {name: _all(row) / split.context for name, row in row_of.items() if name != "tile"}
    if not recomputes:  # chunks are computed again all the same
        flops["vision"] += (memory.vision_chunk_tiles is not None) * row_of["vision"].forward / split.context
        flops["linear layers"] += (memory.mlp_chunk_tokens is not None) * 6 * L * T * D * M
    tile = _all(row_of["tile"]) / split.context
    linear = _all(row_of["linear layers"]) / split.context
    flops["linear layers"] -= tile
    flops["attention"] -= linear
    seconds = {name: rows * count / (gpu.flops * RATES[name]) for name, count in flops.items()}

    passes = 3 + recomputes  # backward moves about twice what forward does
    moved = L * T * (10 * D + 2 * sum(text.qkv_sizes) + 3 * M) * b * passes * rows
    seconds["norms, rotation, activations"] = moved / (gpu.memory_rate * RATES["memory"])
    seconds["optimizer"] = _update_seconds(N / n, memory, gpu)
    computed = sum(seconds.values()) - seconds["optimizer"]
    if memory.activations == "offload":
        seconds["offload beyond computing"] = max(0.0, rows * 2 * L * T * D * b / gpu.host_rate - computed)
    if n > 1:
        rate = (gpu.link_rate if n <= GPUS_A_MACHINE else gpu.network_rate) * RATES["links"]
        sharded = rows * 3 * N * b * (n - 1) / n / rate  # gathered twice, gradients once
        seconds["collectives beyond computing"] = max(0.0, sharded - computed)
        if split.context > 1:
            rate = (gpu.link_rate if split.context <= GPUS_A_MACHINE else gpu.network_rate) * RATES["links"]
            others = (split.context - 1) / split.context * work.num_tokens
            pairs = rows * L * others * 2 * text.num_key_value_heads * text.head_dim
            seconds["keys and values"] = pairs * 3 * b / rate  # gathered for forward and backward; their gradients
    return {**seconds, "all": sum(seconds.values())}


@functools.cache
def _flops_of_a_row(cfg: EagleConfig, work: Work, activations: Activations) -> dict[str, Flops]:
    """By part; "linear layers" and "attention" with one tile, "attention" with the linear layers too."""
    meter, T = FlopMeter(build(cfg), activations=activations), work.num_tokens
    lengths: dict[str, list[int]] = {
        "vision": [],
        "tile": [],
        "linear layers": [1] * T,
        "attention": [T // work.documents] * work.documents,
        "loss": [],
    }
    tiles = {"vision": work.num_tiles, "tile": 1, "linear layers": 1, "attention": 1, "loss": 0}
    labelled = {"loss": int(T * LABELLED_SHARE)}
    return {
        part: meter.row(num_tiles=tiles[part], document_lengths=lengths[part], num_labelled=labelled.get(part, 0))
        for part in lengths
    }


def _all(flops: Flops) -> int:
    return flops.forward + flops.backward + flops.recomputed


def _update_seconds(num_parameters: float, memory: MemoryConfig, gpu: Gpu) -> float:
    if memory.optimizer == "host":  # gradients come and weights go, then AdamW: 28 bytes a number
        return num_parameters * (2 + 2) / gpu.host_rate + num_parameters * 28 / HOST_UPDATE_RATE
    moments = 4 if memory.optimizer == "adamw8bit" else 16
    weights = 4 if memory.stochastic_rounding else 10
    gradient = 2 if memory.stochastic_rounding else 4
    return num_parameters * (moments + weights + gradient) / (gpu.memory_rate * RATES["memory"])


# ---- the two together


def estimate(cfg: EagleConfig, work: Work, memory: MemoryConfig, gpu: Gpu, split: Split) -> Estimate:
    """What a step takes in one layout."""
    parts = memory_of(cfg, work, memory, split)
    return Estimate(
        memory_config=memory,
        split=split,
        memory=parts,
        seconds=seconds_of(cfg, work, memory, gpu, split),
        fits=parts["peak"] <= gpu.room_gib * GIB,
    )


def cheapest(cfg: EagleConfig, work: Work, memory: MemoryConfig, gpu: Gpu, num_gpus: int) -> Estimate | None:
    """The quickest step on `num_gpus` GPUs among layouts and settings whose numbers are the same as `memory`'s up to
    the order of sums, and that fit; None where none does."""
    fitting = [
        (split, settings)
        for split in _splits(num_gpus, work.num_rows)
        for settings in _settings(memory)
        if memory_of(cfg, work, settings, split)["peak"] <= gpu.room_gib * GIB
    ]
    # With the same split, the first that fits of a kind is the quickest: those that come later only compute more.
    tried: dict[tuple[Split, str, str], MemoryConfig] = {}
    for split, settings in fitting:
        tried.setdefault((split, settings.activations, settings.optimizer), settings)
    plans = [estimate(cfg, work, settings, gpu, split) for (split, _, _), settings in tried.items()]
    return min(plans, key=lambda plan: plan.num_seconds, default=None)


def _splits(num_gpus: int, num_rows: int) -> Iterator[Split]:
    for context in range(1, num_gpus + 1):
        if num_gpus % context == 0 and num_rows % (num_gpus // context) == 0:
            yield Split(data=num_gpus // context, context=context)


def _split_of(layout: Layout, num_gpus: int, num_rows: int) -> Split:
    """The layout's; where that says nothing, as many rows at a time as the GPUs can share out."""
    if layout.processes == 1:
        data = math.gcd(num_gpus, num_rows)
        return Split(data=data, context=num_gpus // data)
    check_layout(layout, num_processes=num_gpus, rows_per_step=num_rows)
    if layout.replicate > 1:
        raise ValueError(
            f"estimate: layout.replicate is {layout.replicate}; needs 1, as only states that are cut over all GPUs are "
            "estimated."
        )
    return Split(data=layout.shard, context=layout.context)


def _settings(memory: MemoryConfig) -> Iterator[MemoryConfig]:
    optimizers = [memory.optimizer] if memory.optimizer != "adamw" else ["adamw", "host"]
    for optimizer in optimizers:
        for activations in ("none", "selective", "block", "offload"):
            for mlp_chunk_tokens, vision_chunk_tiles in ((None, None), (None, 16), (8192, 16)):
                yield replace(
                    memory,
                    optimizer=optimizer,  # type: ignore[arg-type]
                    activations=activations,
                    mlp_chunk_tokens=mlp_chunk_tokens,
                    vision_chunk_tiles=vision_chunk_tiles,
                )


def gpu_of(name: str) -> Gpu:
    """Raises ValueError that lists the GPUs there are."""
    if name not in GPUS:
        raise ValueError(f"estimate: --gpu is {shown(name)}; needs one of {', '.join(GPUS)}.")
    return GPUS[name]


def lines(plan: Estimate, work: Work, gpu: Gpu) -> list[str]:
    """What `eagle estimate` prints of one plan."""
    memory, split, parts = plan.memory_config, plan.split, plan.memory
    chunks = [
        f"{name}={getattr(memory, name)}"
        for name in ("mlp_chunk_tokens", "vision_chunk_tiles", "loss_chunk_mib")
        if getattr(memory, name) is not None
    ]
    settings = [f"activations={memory.activations}", f"optimizer={memory.optimizer}", *chunks]
    settings += ["stochastic_rounding=true"] * memory.stochastic_rounding
    fits = "fits" if plan.fits else "does NOT fit"
    predicted = ", a prediction" if split.num_gpus > 1 else ""
    tokens = work.num_rows * work.num_tokens / plan.num_seconds / split.num_gpus
    return [
        f"data {split.data} x context {split.context}; {' '.join(f'memory.{setting}' for setting in settings)}",
        f"  {'peak':32}{parts['peak'] / GIB:9.2f} GiB of {gpu.room_gib:g}: {fits}{predicted}",
        *(f"  {name:32}{parts[name] / GIB:9.2f} GiB" for name in ("weights", "states", "gradients", "activations")),
        f"  {'host, pinned and pageable':32}{parts['host'] / GIB:9.2f} GiB a GPU",
        *(f"  {name:32}{count:9.2f} s (predicted)" for name, count in plan.seconds.items() if name != "all"),
        f"  {'a step':32}{plan.num_seconds:9.2f} s (predicted): {tokens:,.0f} tokens a second and GPU",
    ]


def report(
    cfg: EagleConfig,
    config: TrainConfig,
    gpu_name: str,
    num_gpus: int,
    *,
    visual_share: float = VISUAL_SHARE,
    documents: int = 1,
) -> list[str]:
    """The lines of `eagle estimate`: a run as its config says, then the cheapest way that fits. Where the config has no
    layout, rows are shared out over the GPUs, as far as they go.

    Raises ValueError for a GPU that is not known, for a layout that cannot work on so many, and as `Work.of` does.
    """
    gpu = gpu_of(gpu_name)
    work = replace(Work.of(cfg, config, visual_share=visual_share), documents=documents)
    head = (
        f"{num_gpus} x {gpu_name}: a step of {work.num_rows} rows of {work.num_tokens} tokens and {work.num_tiles} "
        f"tiles; {cfg.num_parameters / 1e9:.2f} billion parameters, all trained, {config.dtype}"
    )
    as_given = estimate(cfg, work, config.memory, gpu, _split_of(config.layout, num_gpus, work.num_rows))
    best = cheapest(cfg, work, config.memory, gpu, num_gpus)
    found = ["Nothing fits: more GPUs, fewer tokens, or memory.optimizer=host."] if best is None else []
    notes = ["fp8 is not reckoned with: times and memory are those of bf16."] if config.fp8 is not None else []
    if config.dtype != "bfloat16":
        notes.append(f"Times are by the GPU's bf16 peak; {config.dtype} takes several times as long.")
    return [
        head,
        *notes,
        "",
        "As the recipe says",
        *lines(as_given, work, gpu),
        "",
        "The cheapest that fits",
        *(found or lines(best, work, gpu)),  # type: ignore[arg-type]
    ]
