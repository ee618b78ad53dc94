"""Context parallelism in numbers: balance of the placement, measured; bytes sent and time of a step, by formulas.

    python -m bench.bench_parallel --out bench/results/parallel-cpu.json

Placement   1,000 packs of PACK_TOKENS tokens of each kind of `PACKS`, over 2 to 16 ranks: attention work of the rank
            with the most over the mean, beside that of zigzag and of contiguous shares; CPU time of a plan (placement
            and a rank's segments) on this CPU.
Bytes       What a rank sends for a decoder layer, forward and backward, recomputed in between: ours by
            `context_parallel.sent_bytes` (which a test counts), the others' by the same way of counting.
Steps       Eagle2.5-8B on 8 to 1,024 H100s at 32K to 1M tokens, a row for each group of context ranks, in the smallest
            group that has room: seconds of a step by `train/estimate.py`, in which attention is as unbalanced as it is
            measured here, rounds queries up to tiles of 128 rows as its kernels do, and transfers count where nothing
            hides them. Everything of it is a prediction: no GPU has timed it.

Rivals      ulysses: DeepSpeed's, VeOmni's, and TE's a2a: a rank has a part of the heads, 28 and 4 of keys here, which
            4 ranks can share and 8 cannot. zigzag ring: each document in 2 P pieces, two to a rank. In TE 2.20's p2p
            (cp) gradients of keys go around in bf16, P - 1 times as keys do; in ring-flash-attention's in fp32, P
            times. ulysses x zigzag ring: TE's a2a+p2p. llama3: contiguous shares, a gather of keys and a
            reduce-scatter in bf16, as ring-flash-attention's. All read in their sources.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.machine import machine
from eagle_model.model.config import EagleConfig, eagle2_5_8b
from eagle_model.model.placement import Ints, Placement, place
from eagle_model.train.context_parallel import sent_bytes
from eagle_model.train.estimate import GIB, GPUS, GPUS_A_MACHINE, RATES, Split, Work, memory_of, seconds_of
from eagle_model.train.layout import Layout
from eagle_model.train.memory import MemoryConfig

PACK_TOKENS = 131_072
PACKS = {  # lengths of documents, drawn until the row is full; the last one is cut
    "short": "log-normal, median 800 tokens, sigma 0.7: images and talks",
    "mixed": "log-normal, median 2500 tokens, sigma 1.2: images, documents and clips",
    "long": "even from a sixteenth to a third of the row: long videos",
}
GPU = "h100-80g"
NUM_GPUS = (8, 64, 256, 1024)
TOKENS = tuple(2**k for k in range(15, 21))  # 32K to 1M
KINDS_TIMED = ("mixed", "long")
MEMORY = MemoryConfig(activations="block", mlp_chunk_tokens=8192, vision_chunk_tiles=16)
TILE = 128  # query rows


def pack(kind: str, rng: np.random.Generator, num_tokens: int) -> Ints:
    """Ends of a row's documents, from 0."""
    ends = [0]
    while ends[-1] < num_tokens:
        if kind == "long":
            length = rng.uniform(num_tokens / 16, num_tokens / 3)
        else:
            median, sigma = {"short": (800, 0.7), "mixed": (2500, 1.2)}[kind]
            length = rng.lognormal(np.log(median), sigma)
        ends.append(min(num_tokens, ends[-1] + max(16, int(length))))
    return np.array(ends, np.int64)


def contiguous(ends: Ints, num_ranks: int) -> Placement:
    owners = np.arange(num_ranks)
    return Placement(
        num_tokens=int(ends[-1]), num_ranks=num_ranks, chunk_tokens=-(-int(ends[-1]) // num_ranks), owners_N=owners
    )


def placements(num_packs: int) -> list[dict[str, Any]]:
    found = []
    for kind in PACKS:
        rng = np.random.default_rng(0)
        packs = [pack(kind, rng, PACK_TOKENS) for _ in range(num_packs)]
        for num_ranks in (2, 4, 8, 16):
            balanced, seconds, chunks = [], [], []
            for ends in packs:
                begin = time.thread_time()
                placement = place(ends, num_ranks=num_ranks)
                placement.segments(ends, 0)
                seconds.append(time.thread_time() - begin)
                balanced.append(placement.imbalance(ends))
                chunks.append(len(placement.owners_N) // num_ranks)
            others = {
                "zigzag": [place(ends, num_ranks=num_ranks, order="zigzag").imbalance(ends) for ends in packs],
                "contiguous": [contiguous(ends, num_ranks).imbalance(ends) for ends in packs],
            }
            found.append(
                {
                    "packs": kind,
                    "num_packs": num_packs,
                    "mean_documents": round(statistics.mean(len(ends) - 1 for ends in packs), 1),
                    "num_ranks": num_ranks,
                    "imbalance": _mean_and_max(balanced),
                    **{f"imbalance, {name}": _mean_and_max(its) for name, its in others.items()},
                    "chunks_a_rank": {str(n): chunks.count(n) for n in sorted(set(chunks))},
                    "plan_ms": {
                        "median": round(1e3 * statistics.median(seconds), 3),
                        "p99": round(1e3 * float(np.percentile(seconds, 99)), 3),
                    },
                }
            )
    return found


def _mean_and_max(values: list[float]) -> dict[str, float]:
    return {"mean": round(statistics.mean(values), 4), "max": round(max(values), 4)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """A way to attend over the ranks that share a row."""

    name: str
    layout: Layout
    is_ours: bool = True
    order: str = "balanced"  # or zigzag, contiguous, per document
    is_wide: bool = False  # gradients of keys go around in fp32, once more than the keys


def ways(cfg: EagleConfig, context: int) -> list[Way]:
    """Ours and the rivals that can share this model's heads."""
    heads = np.gcd(cfg.text.num_attention_heads, cfg.text.num_key_value_heads)
    found = [Way(name="gather", layout=Layout(context=context))]
    found += [
        Way(name=f"ulysses {u} x gather", layout=Layout(context=context, ulysses=u))
        for u in (2, 4)
        if heads % u == 0 and context % u == 0 and u < context
    ]
    found += [
        Way(name="ring" if u == 1 else f"ulysses {u} x ring", layout=Layout(context=context, ulysses=u, method="ring"),
            order="zigzag")
        for u in (1, 2, 4)
        if heads % u == 0 and context % u == 0 and u < context
    ]  # fmt: skip
    if heads % context == 0:
        found.append(Way(name="ulysses", layout=Layout(context=context, ulysses=context), is_ours=False))
    ring = Layout(context=context, method="ring")
    found.append(Way(name="TE p2p", layout=ring, is_ours=False, order="per document"))
    found.append(Way(name="ring-flash-attention", layout=ring, is_ours=False, order="per document", is_wide=True))
    if context > 4 and heads % 4 == 0:
        layout = Layout(context=context, ulysses=4, method="ring")
        found.append(Way(name="TE a2a+p2p", layout=layout, is_ours=False, order="per document"))
    found.append(Way(name="llama3 gather", layout=Layout(context=context), is_ours=False, order="contiguous"))
    return found


def bytes_of(way: Way, cfg: EagleConfig, tokens_per_rank: int) -> dict[str, int]:
    """A layer's, forward and backward, by purpose."""
    sent = sent_bytes(way.layout, cfg.text, tokens_per_rank=tokens_per_rank)
    if way.is_wide:
        others = way.layout.context - 1
        sent["sum of gradients of keys"] = sent["sum of gradients of keys"] * 2 * (others + 1) // others
    return sent


def work_factor(way: Way, packs: list[Ints]) -> float:
    """Attention's work of the busiest rank, in tiles of queries, over the mean of what it would be without either."""
    context, factors = way.layout.context, []
    for ends in packs:
        if way.order == "per document":  # balanced by construction, in pieces that are short where documents are
            lengths = np.diff(ends)
            piece = -(-lengths // (2 * context))
            work = lengths.astype(float) ** 2
            factors.append(float((work * (-(-piece // TILE) * TILE / piece)).sum() / work.sum()))
            continue
        if way.order == "contiguous":
            placement = contiguous(ends, context)
        else:
            placement = place(ends, num_ranks=context, order="zigzag" if way.order == "zigzag" else "balanced")
        segments = placement.segments(ends, 0)
        _, q_len, _, k_len = segments.T
        tiles = float((-(-q_len // TILE) * TILE * k_len).sum() / max(1, (q_len * k_len).sum()))
        factors.append(placement.imbalance(ends) * tiles)
    return statistics.mean(factors)


def seconds_of_way(way: Way, cfg: EagleConfig, num_tokens: int, num_gpus: int, packs: list[Ints]) -> dict[str, float]:
    """Of a step of one row for each group; what attention and its transfers take more than on one balanced rank."""
    gpu, context, text = GPUS[GPU], way.layout.context, cfg.text
    work = Work(
        num_rows=num_gpus // context, num_tokens=num_tokens, num_tiles=int(num_tokens * 7 / 8) // cfg.tokens_per_tile,
        documents=max(1, round(statistics.mean(len(ends) - 1 for ends in packs))),
    )  # fmt: skip
    split = Split(data=num_gpus // context, context=context)
    seconds = {
        k: v for k, v in seconds_of(cfg, work, MEMORY, gpu, split).items() if k not in ("all", "keys and values")
    }
    pairs = statistics.mean(float((np.diff(ends).astype(float) ** 2).sum()) for ends in packs)
    equal = (num_tokens / work.documents) ** 2 * work.documents  # what `seconds_of` takes documents for
    seconds["attention"] *= pairs / equal * work_factor(way, packs)
    tokens_per_rank = -(-num_tokens // context)
    sent = bytes_of(way, cfg, tokens_per_rank)
    u, g = way.layout.ulysses, context // way.layout.ulysses

    def rate(ranks_apart: int) -> float:
        return (gpu.link_rate if ranks_apart <= GPUS_A_MACHINE else gpu.network_rate) * RATES["links"]

    layers = text.num_hidden_layers
    keys = layers * sum(count for name, count in sent.items() if name != "heads") / rate(context if g > 1 else 1)
    heads = layers * sent.get("heads", 0) / rate(u)
    hidden = 1 - u / text.num_key_value_heads if way.layout.method == "gather" else (g - 1) / g  # beside computing
    exposed = max(0.0, keys * hidden - seconds["attention"] * hidden) + keys * (1 - hidden)
    merges = 0.0
    if way.layout.method == "ring":  # out so far and the part's are read, their sum is written, in fp32; twice a step
        moved = 2 * g * 3 * tokens_per_rank * text.num_attention_heads * text.head_dim * 4 * layers
        merges = moved / (gpu.memory_rate * RATES["memory"])
    seconds |= {"heads": heads, "keys not hidden": exposed, "merges": merges}
    return {**seconds, "all": sum(seconds.values())}


def smallest_context(cfg: EagleConfig, num_tokens: int, num_gpus: int) -> int | None:
    """The fewest ranks a row that have room for it."""
    for context in (2**k for k in range(num_gpus.bit_length())):
        split = Split(data=num_gpus // context, context=context)
        work = Work(
            num_rows=split.data, num_tokens=num_tokens, num_tiles=int(num_tokens * 7 / 8) // cfg.tokens_per_tile
        )
        if memory_of(cfg, work, MEMORY, split)["peak"] <= GPUS[GPU].room_gib * GIB:
            return context
    return None


def steps(cfg: EagleConfig, num_packs: int) -> list[dict[str, Any]]:
    found = []
    for kind in KINDS_TIMED:
        for num_tokens in TOKENS:
            rng = np.random.default_rng(1)
            packs = [pack(kind, rng, num_tokens) for _ in range(num_packs)]
            for num_gpus in NUM_GPUS:
                least = smallest_context(cfg, num_tokens, num_gpus)
                for context in () if least is None else (max(2, least), max(2, least) * 2):
                    if context > num_gpus:
                        continue
                    rows = {}
                    for way in ways(cfg, context):
                        seconds = seconds_of_way(way, cfg, num_tokens, num_gpus, packs)
                        rows[("" if way.is_ours else "rival: ") + way.name] = {
                            "seconds": round(seconds["all"], 3),
                            "attention": round(seconds["attention"], 3),
                            "heads": round(seconds["heads"], 3),
                            "keys not hidden": round(seconds["keys not hidden"], 3),
                            "MiB a layer": round(sum(bytes_of(way, cfg, num_tokens // context).values()) / 2**20),
                        }
                    ours = {name: row["seconds"] for name, row in rows.items() if not name.startswith("rival")}
                    found.append(
                        {
                            "packs": kind, "tokens": num_tokens, "gpus": num_gpus, "context": context,
                            "tokens_per_second_and_gpu": round(num_tokens / context / min(ours.values())),
                            "best": min(ours, key=lambda name: ours[name]), "ways": rows,
                        }
                    )  # fmt: skip
    return found


def layer_bytes(cfg: EagleConfig) -> dict[str, dict[str, float]]:
    """MiB that a rank sends for a layer of a row of PACK_TOKENS."""
    return {
        f"{context} ranks": {
            ("" if way.is_ours else "rival: ") + way.name: round(
                sum(bytes_of(way, cfg, PACK_TOKENS // context).values()) / 2**20, 1
            )
            for way in ways(cfg, context)
        }
        for context in (2, 4, 8, 16)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--packs", type=int, default=1000)
    arguments = parser.parse_args()
    about = machine("numpy")
    cfg = eagle2_5_8b()
    timed = steps(cfg, max(1, arguments.packs // 100))
    wins = [row["best"] for row in timed]
    result = {
        "machine": about,
        "pack_tokens": PACK_TOKENS,
        "packs": PACKS,
        "placement": placements(arguments.packs),
        "mib_a_layer": layer_bytes(cfg),
        "predicted": {"gpu": GPU, "model": "eagle2_5_8b", "rates": RATES, "memory": repr(MEMORY)},
        "wins": {name: wins.count(name) for name in sorted(set(wins), key=wins.count, reverse=True)},
        "steps": timed,
    }
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    for row in result["placement"]:  # type: ignore[attr-defined]
        print(row["packs"], row["num_ranks"], row["imbalance"], row["plan_ms"])
    print(result["wins"])


if __name__ == "__main__":
    main()
