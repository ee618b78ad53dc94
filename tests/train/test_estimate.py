"""Estimates against steps that were tracked tensor by tensor, and against arithmetic done by hand."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from bench.bench_memory import GIB, SEEN_TILES, track, track_layer
from eagle_model.fields import override
from eagle_model.model.config import eagle2_5_8b, tiny
from eagle_model.train.estimate import (
    GPUS,
    Split,
    Work,
    cheapest,
    decoder_layer_bytes,
    estimate,
    memory_of,
    report,
    seconds_of,
)
from eagle_model.train.memory import MemoryConfig
from eagle_model.train.recipes import debug, recipe

CFG = eagle2_5_8b()
RESULTS = Path(__file__).parents[2] / "bench/results/memory-8b.json"
H100 = GPUS["h100-80g"]
ALL = MemoryConfig(activations="offload", mlp_chunk_tokens=8192, vision_chunk_tiles=16, optimizer="host")
EIGHT_BITS = replace(ALL, optimizer="adamw8bit", stochastic_rounding=True)


def shallow(vision_layers: int, llm_layers: int):
    """The 8B's widths, and few layers: the same moments in a second."""
    vision, text = CFG.vision, CFG.text
    return replace(
        CFG, vision=replace(vision, num_hidden_layers=vision_layers), text=replace(text, num_hidden_layers=llm_layers)
    )


@pytest.mark.parametrize(("num_tokens", "chunk"), [(8192, None), (8192, 1024), (131_072, 8192), (131_072, None)])
def test_a_decoder_layer_holds_what_the_formula_says(num_tokens, chunk):
    text = CFG.text
    weights = 2 * (text.num_parameters - 2 * text.vocab_size * text.hidden_size) // text.num_hidden_layers
    tracked = track_layer(CFG, num_tokens, chunk)
    assert weights + decoder_layer_bytes(text, num_tokens, chunk) == pytest.approx(tracked, rel=0.01)


@pytest.mark.parametrize(
    ("cfg", "num_tokens", "settings"),
    [
        (shallow(2, 4), 16_384, {"activations": "block", "optimizer": "adamw"}),
        (shallow(2, 4), 16_384, {"activations": "none", "optimizer": "host"}),
        (shallow(1, 4), 16_384, {"activations": "offload", "mlp_chunk_tokens": 2048, "optimizer": "host"}),
    ],
)
def test_a_step_takes_what_was_tracked(cfg, num_tokens, settings):
    memory, tiles = MemoryConfig(**settings), num_tokens * 7 // 8 // 256
    tracked = track(cfg, num_tokens, tiles, memory)
    got = memory_of(cfg, Work(num_rows=1, num_tokens=num_tokens, num_tiles=tiles), memory, Split())
    assert got["peak"] == pytest.approx(tracked["peak"], rel=0.1)
    assert got["weights"] == pytest.approx(tracked["weights"], rel=0.01)
    assert got["states"] == pytest.approx(tracked["states"], rel=0.02, abs=GIB / 100)
    assert got["host"] == pytest.approx(tracked["host"], rel=0.1)


def test_the_committed_step_of_the_8b_is_below_76_gib_and_agrees():
    rows = json.loads(RESULTS.read_text())["rows"]
    assert rows.keys() == {f"{tokens} {name}" for tokens in ("32K", "64K", "128K") for name in ("host", "adamw8bit")}
    for name, row in rows.items():
        memory = ALL if name.endswith("host") else EIGHT_BITS
        work = Work(num_rows=1, num_tokens=row["tokens"], num_tiles=row["tiles"])
        tracked = row["bytes"]["peak"]
        assert tracked < 76 * GIB
        assert memory_of(CFG, work, memory, Split())["peak"] == pytest.approx(tracked, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("memory", [ALL, EIGHT_BITS], ids=["host", "adamw8bit"])
def test_the_8b_takes_131072_tokens_on_one_gpu_of_80_gb(memory):
    tracked = track(CFG, 131_072, 448, memory, num_seen=SEEN_TILES)
    assert tracked["peak"] < 76 * GIB
    got = memory_of(CFG, Work(num_rows=1, num_tokens=131_072, num_tiles=448), memory, Split())
    assert got["peak"] == pytest.approx(tracked["peak"], rel=0.1)


def test_each_setting_saves_what_it_is_for():
    work = Work(num_rows=1, num_tokens=131_072, num_tiles=448)

    def peak(**settings):
        return memory_of(CFG, work, MemoryConfig(**settings), Split())["peak"] / GIB

    none, selective, block, offload = (
        peak(activations=activations, vision_chunk_tiles=16, optimizer="host")
        for activations in ("none", "selective", "block", "offload")
    )
    assert none > selective > block > offload
    assert block - offload == pytest.approx(27 * 131_072 * 3584 * 2 / GIB, rel=0.1)  # the inputs of all layers but one
    chunks = {"activations": "offload", "vision_chunk_tiles": 16, "optimizer": "host"}
    assert peak(**chunks) - peak(**chunks, mlp_chunk_tokens=8192) > 10
    by_optimizer = [
        peak(**{**chunks, "optimizer": name}, mlp_chunk_tokens=8192) for name in ("adamw", "adamw8bit", "host")
    ]
    assert by_optimizer == sorted(by_optimizer, reverse=True)
    whole = {"activations": "offload", "optimizer": "host", "mlp_chunk_tokens": 8192}
    assert peak(**{**whole, "vision_chunk_tiles": 16}) < peak(**whole)  # the tower's part of it


def test_seconds_are_flops_over_rates():
    work = Work(num_rows=2, num_tokens=32_768, num_tiles=112)
    seconds = seconds_of(CFG, work, ALL, H100, Split())
    decoder = CFG.text.num_parameters - 2 * CFG.text.vocab_size * CFG.text.hidden_size
    by_hand = 2 * 32_768 * decoder * 2 * 4 / (989.4e12 * 0.7)  # forward, backward, and forward again
    assert seconds["linear layers"] == pytest.approx(by_hand, rel=0.1)  # down_proj is not computed again
    pairs = 32_768 * 32_769 // 2
    attention = 2 * 28 * pairs * 2 * 3584 * (2 + 4 + 1 + 2) / (989.4e12 * 0.5)
    assert seconds["attention"] == pytest.approx(attention, rel=0.15)
    assert seconds["all"] == pytest.approx(sum(seconds.values()) - seconds["all"])
    apart = seconds_of(CFG, replace(work, documents=8), ALL, H100, Split())
    assert apart["attention"] == pytest.approx(seconds["attention"] / 8, rel=0.01)


def test_the_cheapest_layout_fits_and_none_that_fits_is_quicker():
    config = recipe("stage4")
    work = Work.of(CFG, config)
    assert (work.num_rows, work.num_tokens, work.num_tiles) == (128, 131_072, 448)
    best = cheapest(CFG, work, config.memory, H100, 64)
    assert best.fits
    assert best.split.num_gpus == 64
    assert best.num_seconds <= estimate(CFG, work, ALL, H100, best.split).num_seconds
    alone = cheapest(CFG, replace(work, num_rows=1), config.memory, H100, 1)
    assert (alone.split, alone.memory_config.optimizer, alone.fits) == (Split(), "host", True)
    assert cheapest(CFG, replace(work, num_rows=1, num_tokens=2**23), config.memory, H100, 1) is None


def test_cut_weights_are_the_masters():
    """12 bytes a parameter over all GPUs; one GPU has 2 more, of the copy that it computes with."""
    work = Work(num_rows=8, num_tokens=8192, num_tiles=0)
    one, many = (memory_of(CFG, work, MemoryConfig(), Split(data=data)) for data in (1, 8))
    N, text = CFG.num_parameters, CFG.text
    assert one["weights"] + one["states"] == N * (2 + 4 + 8)
    layer = (text.num_parameters - 2 * text.vocab_size * text.hidden_size) // text.num_hidden_layers
    gathered = 2 * (2 * layer + 2 * text.vocab_size * text.hidden_size)
    assert many["weights"] + many["states"] == pytest.approx(N * (4 + 8) / 8 + gathered)
    chunked = memory_of(CFG, work, MemoryConfig(vision_chunk_tiles=8), Split(data=8))
    assert chunked["weights"] - many["weights"] == 2 * CFG.vision.num_parameters  # the tower, all the while


def test_more_gpus_hold_less_each_and_are_called_predictions():
    work = Work.of(CFG, recipe("stage4"))
    peaks = [memory_of(CFG, work, EIGHT_BITS, Split(data=data, context=8))["peak"] for data in (1, 2, 8)]
    assert peaks == sorted(peaks, reverse=True)
    shown = "\n".join(report(CFG, recipe("stage4"), "h100-80g", 64))
    assert "64 x h100-80g: a step of 128 rows of 131072 tokens" in shown
    assert "a prediction" in shown
    assert shown.count("(predicted)") > 10


def test_what_is_not_estimated_says_so():
    with pytest.raises(ValueError, match="the run trains adapters"):
        Work.of(CFG, recipe("lora"))
    with pytest.raises(ValueError, match=r"--gpu is 'v100'; needs one of a100-80g, h100-80g"):
        report(tiny(), debug(), "v100", 1)
    small = report(tiny(), override(debug(), ["rows_per_step=4"]), "h100-80g", 1)
    assert any("fits" in line for line in small)
    assert any("float32 takes several times as long" in line for line in small)
    with pytest.raises(ValueError, match=r"freezes parts of the model \(train_vision=false, train_llm=false\)"):
        Work.of(CFG, recipe("stage1"))
    fp8 = override(recipe("stage2"), ["fp8.recipe=current"])
    assert any("fp8 is not reckoned with" in line for line in report(CFG, fp8, "h100-80g", 8))


def test_a_run_as_its_layout_says():
    def first(num_gpus, *settings):
        lines = report(CFG, override(recipe("stage4"), list(settings)), "h100-80g", num_gpus)
        return lines[lines.index("As the recipe says") + 1].partition(";")[0]

    assert first(8) == "data 8 x context 1"
    assert first(8, "layout.shard=2", "layout.context=4") == "data 2 x context 4"
    assert first(3) == "data 1 x context 3"  # 128 rows are no multiple of 3: the trainer would refuse to share them out
    assert first(12, "rows_per_step=8") == "data 4 x context 3"
    with pytest.raises(ValueError, match=r"layout \(shard=4\) cannot work: it is for 4 processes, .*; there are 8"):
        first(8, "layout.shard=4")
    with pytest.raises(ValueError, match=r"layout\.replicate is 2; needs 1"):
        first(8, "layout.replicate=2", "layout.shard=4")


def test_any_number_of_gpus_has_a_cheapest_layout():
    config = recipe("stage4")
    best = cheapest(CFG, Work.of(CFG, config), config.memory, H100, 3)
    assert best.split == Split(data=1, context=3)
