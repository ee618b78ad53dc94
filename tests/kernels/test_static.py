"""What the compiler makes of every kernel for sm_80, sm_90 and sm_100, read from PTX and cubin: no GPU needed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import static_table

ROOT = Path(__file__).resolve().parents[2]
SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}  # a block's most, CUDA C++ Programming Guide


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
    names = [case.name for case in static_table.all_cases()]
    assert len(names) > 10
    assert [(row["name"], row["sm"]) for row in rows] == [(n, sm) for n in names for sm in static_table.CAPABILITIES]


def test_products_run_on_tensor_cores(rows):
    def wrong(row):
        instruction = {80: "mma", 90: "wgmma", 100: "tcgen05_mma"}[row["sm"]]
        if row["tensor_cores"] and not row[instruction]:
            return f"no {instruction}"
        return None

    assert any(row["tensor_cores"] for row in rows)
    check_rows(rows, wrong)


def test_registers_hold_what_the_kernel_keeps(rows):
    def wrong(row):
        taken, budget = row["stack_bytes"], row["stack_budget_bytes"]
        return f"a thread spills {taken} bytes, budget {budget}" if taken > budget else None

    check_rows(rows, wrong)


def test_shared_memory_fits_the_chip(rows):
    def wrong(row):
        most = SHARED_BYTES[row["sm"]]
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


def test_attention_loads_no_element_alone(rows):
    """bf16 comes in vectors, whatever the stride of a head; beside them only lse, delta and tables, 4 bytes each."""

    def wrong(row):
        return f"{row['loads_below_4_bytes']} loads of one bf16" if row["loads_below_4_bytes"] else None

    check_rows([row for row in rows if row["name"].startswith("attention")], wrong)
