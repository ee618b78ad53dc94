"""What the compiler makes of every kernel for sm_80, sm_90 and sm_100, and of those that need most shared memory for
the GPUs that people own, read from PTX and cubin: no GPU needed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import sass_clocks, static_table
from bench.bench_attention import GPU_PATTERNS, LLM, VISION, Pattern

ROOT = Path(__file__).resolve().parents[2]
KIB = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}  # shared memory of a block, CUDA C++ Programming Guide


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """One compilation of all cases, in a process where kernels are not the interpreter's."""
    out = tmp_path_factory.mktemp("static")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "bench.static_table", "--out", str(out)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return json.loads((out / "static_table.json").read_text())["rows"]


def check_rows(rows, wrong):
    """`wrong(row)` says what is wrong with a row, or nothing; all complaints come at once."""
    complaints = [f"{row['name']} sm_{row['sm']}: {text}" for row in rows if (text := wrong(row))]
    assert not complaints, "\n".join(complaints)


def find(rows, name, sm):
    return next(row for row in rows if row["name"] == name and row["sm"] == sm)


def test_every_case_compiles_for_every_chip(rows):
    names = {case.name for case in static_table.all_cases()}
    assert len(names) > 10
    launched = sorted((row["name"], row["sm"]) for row in rows)
    chips = {name: [90] if name.startswith("attention_sm90") else static_table.CAPABILITIES for name in names}
    assert [pair for pair in launched if pair[1] not in static_table.SMALL] == sorted(
        (name, sm) for name in names for sm in chips[name]
    )
    for sm in static_table.SMALL:  # 256 wide keeps most in shared memory
        assert {f"attention_{step}_widest" for step in ("fwd", "dq", "dkdv")} <= {n for n, at in launched if at == sm}


def test_products_run_on_tensor_cores(rows):
    def wrong(row):
        instruction = {90: "wgmma", 100: "tcgen05_mma"}.get(row["sm"], "mma")
        if row["tensor_cores"] and not row[instruction]:
            return f"no {instruction}"
        return None

    assert any(row["tensor_cores"] for row in rows)
    check_rows(rows, wrong)


def test_nothing_touches_a_product_under_way(rows):
    """ptxas of CUDA 12 and 13.0 is known to write operands of wgmma that it still reads: bench/sass_registers.py."""

    def wrong(row):
        return "; ".join(row["touched_under_way"])

    assert sum(bool(row["wgmma"]) for row in rows) > 30
    check_rows(rows, wrong)


def test_registers_hold_what_the_kernel_keeps(rows):
    def wrong(row):
        taken, budget = row["stack_bytes"], row["stack_budget_bytes"]
        return f"a thread spills {taken} bytes, budget {budget}" if taken > budget else None

    check_rows(rows, wrong)


def test_shared_memory_fits_the_chip(rows):
    def wrong(row):
        most = 1024 * KIB[row["sm"]]
        return f"{row['shared_bytes']} bytes of shared memory, {most} at most" if row["shared_bytes"] > most else None

    check_rows(rows, wrong)


def test_loads_are_16_bytes_wide(rows):
    def wrong(row):
        share = row["wide_load_share"]
        return f"only {share:.0%} of the bytes come in loads of 16" if row["vectorised"] and share < 0.75 else None

    assert any(row["vectorised"] for row in rows)
    check_rows(rows, wrong)


@pytest.mark.parametrize(("step", "num_products"), [("fwd", 2), ("dq", 3), ("dkdv", 4)])
@pytest.mark.parametrize(("name", "width"), [("vision", 64 + 16), ("llm", 128)])
def test_attention_multiplies_no_padding(rows, step, num_products, name, width):
    """A head of 72 costs 80 columns of tensor core work, not 128: what the code multiplies a pair of blocks."""
    row = find(rows, f"attention_{step}_{name}", 90)
    warp_groups = row["num_warps"] // 4
    block = row["constants"]["BLOCK_M"] * row["constants"]["BLOCK_N"]
    assert row["wgmma_macs"] * warp_groups == num_products * block * width


@pytest.mark.parametrize(("step", "num_products"), [("fwd", 2), ("dq", 3), ("dkdv", 4)])
@pytest.mark.parametrize(("name", "width"), [("vision", 64 + 16), ("llm", 128), ("64", 64)])
def test_gluon_multiplies_no_padding(rows, step, num_products, name, width):
    """In the loop; forward's first scores and last sums lie before it and after it."""
    row = find(rows, f"attention_sm90_{step}_{name}", 90)
    block = 128 * row["constants"].get("BLOCK_M", row["constants"].get("BLOCK_N"))
    assert row["wgmma_macs"] == num_products * block * width * (2 if step == "fwd" else 1)


def test_gluon_gives_registers_from_loading_warps_to_computing_ones(rows):
    """And needs no allocator: Triton keeps it in a ContextVar, which autograd's own thread does not see."""

    def wrong(row):
        if not row["setmaxnreg"] or row["num_warps"] != 12:
            return f"{row['setmaxnreg']} setmaxnreg, {row['num_warps']} warps"
        return f"{row['scratch_bytes']} bytes of scratch memory" if row["scratch_bytes"] else None

    chosen = [row for row in rows if row["name"].startswith("attention_sm90")]
    assert len(chosen) == 12
    check_rows(chosen, wrong)


def test_attention_loads_no_element_alone(rows):
    """bf16 comes in vectors, whatever the stride of a head; beside them only lse, delta and tables, 4 bytes each."""

    def wrong(row):
        return f"{row['loads_below_4_bytes']} loads of one bf16" if row["loads_below_4_bytes"] else None

    check_rows([row for row in rows if row["name"].startswith("attention")], wrong)


@pytest.mark.parametrize("sm", static_table.CAPABILITIES)
@pytest.mark.parametrize("step", ["fwd", "dq", "dkdv"])
def test_a_uniform_plan_reads_no_table(rows, step, sm):
    """The loads of the tables are gone, with the masks: fewer instructions for each pair of blocks."""
    uniform, by_tables = (find(rows, f"attention_{step}_{name}", sm) for name in ("vision", "vision_by_tables"))
    assert uniform["loads"] <= by_tables["loads"] - (8 if step == "dkdv" else 6)  # a tile's 2 or 4, a segment's 4
    assert 0 < uniform["loop_instructions"] < by_tables["loop_instructions"]


@pytest.mark.parametrize("sm", [90, 100])
def test_two_blocks_of_the_vision_tower_share_a_multiprocessor(rows, sm):
    """The reason for its max_registers: one block's softmax beside the other's products."""
    assert find(rows, "attention_fwd_vision", sm)["resident_blocks"] == 2


@pytest.mark.parametrize("direction", sass_clocks.STEPS)
@pytest.mark.parametrize("pattern", GPU_PATTERNS, ids=lambda pattern: pattern.name)
def test_predictions_stay_below_the_chip(rows, pattern, direction):
    hopper = {row["name"]: row for row in rows if row["sm"] == 90}
    predicted = sass_clocks.predict(hopper, pattern, direction)
    chip = sass_clocks.CHIP
    peak = 2 * chip.macs_a_clock * chip.num_sms * chip.clock_hz / 1e12
    assert peak == pytest.approx(989, rel=1e-3)
    # Products that the kernels compute for each that counts: 80 columns for 72; backward computes 7 instead of 5.
    most = peak * (72 / 80 if pattern.shape == VISION else 1) * (5 / 7 if direction == "backward" else 1)
    assert 0.3 * most < predicted["tflops_slow"] < predicted["tflops_fast"] <= 1.001 * most


def test_pairs_of_blocks():
    causal, full = (Pattern(name="", shape=shape, lengths=(300, 1)) for shape in (LLM, VISION))
    assert sass_clocks.num_block_pairs(causal, 128, 64) == (2 + 4 + 5) + 1
    assert sass_clocks.num_block_pairs(full, 128, 64) == 3 * 5 + 1


def test_rope_loads_no_element_alone(rows):
    """Its slow path for angles beyond 105615 reads a table, 4 bytes at a time; what it rotates comes in vectors."""

    def wrong(row):
        return f"{row['loads_below_4_bytes']} loads of one bf16" if row["loads_below_4_bytes"] else None

    chosen = [row for row in rows if row["name"].startswith(("rope", "qkv_rope"))]
    assert chosen
    check_rows(chosen, wrong)


@pytest.mark.parametrize("name", ["rms_norm_bwd_3584", "add_rms_norm_bwd_3584"])
@pytest.mark.parametrize("sm", [90, 100])
def test_two_programs_of_rms_norm_backward_share_a_multiprocessor(rows, name, sm):
    """NUM_PARTIALS is two programs a multiprocessor: all of them run from the start."""
    assert find(rows, name, sm)["resident_blocks"] >= 2
