"""From benches to a report: the numbers arrive in the table, and the plot is a picture."""

import json
from pathlib import Path

import pytest
from PIL import Image

from bench.report import markdown, read_rows, write_report


def bench(group: str, way: str, median: float, **info: float) -> dict:
    stats = {"median": median, "data": [median * share for share in (1.2, 0.9, 1.0, 0.8, 1.1)]}
    return {"group": group, "name": f"test_op[{way}]", "params": {"way": way}, "stats": stats, "extra_info": info}


RESULTS = {
    "machine_info": {"machine": "x86_64", "python_version": "3.11.7", "torch": "2.13", "triton": "3.7", "gpu": "X1"},
    "commit_info": {"id": "abc123", "dirty": True},
    "datetime": "2026-01-02T03:04:05",
    "benchmarks": [
        bench("norm, 4", "liger", 3e-3, terabytes_per_second=1.0, percent_of_copy=40.0),
        bench("norm, 4", "ours", 1.5e-3, terabytes_per_second=2.0, percent_of_copy=80.0, peak_bytes=25e8),
        bench("attention, 4", "ours", 2e-5, tflops=600.0, percent_of_matmul=75.0),
    ],
}


def test_table_says_where_and_how_fast() -> None:
    text = markdown(RESULTS)
    assert text.startswith("# Benches: X1\n")
    assert "commit abc123, with changes not committed" in text
    assert "On a CPU" not in text
    lines = text.splitlines()[-3:]
    assert lines == [  # sorted by bench, ours first
        "| attention, 4 | ours | 20 us | 18 us to 24 us | 600 TFLOP/s | 75 % | 1.00 |  |",
        "| norm, 4 | ours | 1.5 ms | 1.35 ms to 1.8 ms | 2 TB/s | 80 % | 1.00 | 2.5 GB |",
        "| norm, 4 | liger | 3 ms | 2.7 ms to 3.6 ms | 1 TB/s | 40 % | 2.00 |  |",
    ]


def test_a_table_from_a_cpu_says_what_it_does_not_show() -> None:
    machine = {**RESULTS["machine_info"], "cpu": {"brand_raw": "C64"}, "torch_threads": 2}
    del machine["gpu"]
    text = markdown({**RESULTS, "machine_info": machine})
    assert text.startswith("# Benches: CPU only, C64, 2 torch threads\n")
    assert "not how fast a kernel is" in text


def test_rows_know_their_work_and_ceiling() -> None:
    liger, _, attention = read_rows(RESULTS)
    assert (liger.work, liger.ceiling) == pytest.approx((3e9, 2.5e12))
    assert (attention.work, attention.ceiling) == pytest.approx((1.2e10, 8e14))


def test_a_bench_that_counts_nothing_has_empty_cells() -> None:
    results = {**RESULTS, "benchmarks": [bench("decode", "ours", 1e-3)]}
    assert markdown(results).endswith("| decode | ours | 1 ms | 900 us to 1.2 ms |  |  | 1.00 |  |\n")


def test_writes_table_and_plot(tmp_path: Path) -> None:
    source = tmp_path / "x1.json"
    source.write_text(json.dumps(RESULTS))
    table, plot = write_report(source, tmp_path / "made" / "here")
    assert table.read_text() == markdown(RESULTS)
    with Image.open(plot) as image:
        assert image.format == "PNG"
        assert image.width == 2 * image.height * 7 / 5  # two panels: bandwidth and arithmetic


def test_no_plot_without_a_rate(tmp_path: Path) -> None:
    source = tmp_path / "decode.json"
    source.write_text(json.dumps({**RESULTS, "benchmarks": [bench("decode", "ours", 1e-3)]}))
    with pytest.raises(ValueError, match="no bench counts bytes or FLOPs"):
        write_report(source, tmp_path)
