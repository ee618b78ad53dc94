"""The minutes on a GPU, rehearsed on a CPU: killed and resumed, out of time, with packages missing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from bench.records import append_record, read_records, results
from bench.session import ROOT, STAGES, Session, _goals, _missing, as_benchmark_file

ABSENT = ("av", "typer", "rich")


def start(out: Path, *options: str, without: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    """A session in a process group of its own, on a machine that lacks the packages `without`."""
    hidden = out / "hidden"
    hidden.mkdir(parents=True, exist_ok=True)
    for package in without:
        (hidden / f"{package}.py").write_text(
            f'raise ModuleNotFoundError("No module named {package!r}", name={package!r})\n'
        )
    command = [sys.executable, "-m", "bench.session", "--out", str(out), *options]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(hidden), str(ROOT)]), "CUDA_VISIBLE_DEVICES": ""}
    for of_a_worker in [name for name in environment if name.startswith("PYTEST_")]:
        del environment[of_a_worker]
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, start_new_session=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=1500)
    assert process.returncode in (0, 1), output
    return output


def records_file(out: Path) -> Path:
    (path,) = out.glob("*.jsonl")
    return path


def kill_after(process: subprocess.Popen[str], out: Path, num_results: int) -> None:
    """SIGKILL to the session and all its processes once that many results are on the disk."""
    while process.poll() is None:
        files = list(out.glob("*.jsonl"))
        if files and sum("outcome" in record for record in read_records(files[0])) >= num_results:
            break
        time.sleep(0.05)
    else:
        raise AssertionError(f"it ended by itself: {process.stdout.read() if process.stdout else ''}")
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def check_each_bench_once(out: Path) -> dict[str, dict]:
    """No test has two results, none was lost: the JSON holds each bench that passed exactly once."""
    records = read_records(records_file(out))
    ended = Counter(record["test"] for record in records if "outcome" in record)
    assert ended and set(ended.values()) == {1}
    found = results(records)
    measured = [bench["fullname"] for bench in json.loads((out / "cpu.json").read_text())["benchmarks"]]
    assert len(measured) == len(set(measured))
    passed = [test for test, record in found.items() if record["outcome"] == "passed" and record["bench"]]
    assert sorted(passed) == sorted(measured)
    return found


def test_killed_and_out_of_time_each_bench_stands_once(tmp_path: Path) -> None:
    stages = ("--only", "decode attention")
    kill_after(start(tmp_path, *stages), tmp_path, 3)
    num_at_kill = sum("outcome" in record for record in read_records(records_file(tmp_path)))
    finish(start(tmp_path, *stages, "--minutes", "1", "--count-each", "15"))  # a fifth of it for these: one test
    found = results(read_records(records_file(tmp_path)))
    assert len(found) == num_at_kill + 1
    output = finish(start(tmp_path, *stages))
    found = check_each_bench_once(tmp_path)
    assert len(found) > num_at_kill + 1
    assert "| bench/bench_decode_attention.py |" in output


@pytest.mark.slow
@pytest.mark.timeout(1700)
def test_the_whole_of_twelve_minutes(tmp_path: Path) -> None:
    """Every stage on a CPU; each test counts as two seconds; killed at five moments, three packages missing."""
    options = ("--minutes", "12", "--count-each", "2")
    for num_results in (1, 40, 150, 220, 300):
        kill_after(start(tmp_path, *options, without=ABSENT), tmp_path, num_results)
    for _ in range(20):  # sessions until one finds nothing left to do
        num_before = len(results(read_records(records_file(tmp_path))))
        output = finish(start(tmp_path, *options, without=ABSENT))
        if len(results(read_records(records_file(tmp_path)))) == num_before:
            break
    found = check_each_bench_once(tmp_path)
    assert not [test for test, record in found.items() if record["outcome"] in ("failed", "crashed")]
    table = output.partition("| not installed |")[2].partition("\n\n")[0]
    rows = [line.split("|")[1].strip() for line in table.splitlines()[2:] if line.startswith("| ")]
    assert sorted(rows) == sorted(ABSENT), output
    assert {Path(test.partition("::")[0]).name for test in found} >= {"bench_attention.py", "bench_rms_norm.py"}


def test_every_test_for_a_gpu_is_in_a_stage() -> None:
    """And every bench: in a stage of its own, or in the last one, which takes the folder."""
    ran = [path for stage in STAGES if "gpu" in " ".join(stage.options) for path in stage.paths]
    marked = [path for path in (ROOT / "tests").rglob("test_*.py") if "pytest.mark.gpu" in path.read_text()]
    names = [path.relative_to(ROOT).as_posix() for path in marked if path != Path(__file__)]
    assert len(names) > 10
    assert not [name for name in names if not name.startswith(tuple(f"{path}/" for path in ran))]
    assert STAGES[-1].paths == ("bench",)
    assert all((ROOT / path).exists() for stage in STAGES for path in stage.paths)


def test_what_a_process_took_down_twice_counts_as_crashed() -> None:
    once = [{"started": "t"}]
    assert not results(once)
    assert results(once * 2)["t"]["outcome"] == "crashed"
    assert results([*once * 2, {"test": "t", "outcome": "passed"}])["t"]["outcome"] == "passed"


def test_a_finished_stage_is_left_out_until_there_is_what_it_lacked(tmp_path: Path) -> None:
    session = Session(tmp_path, "cpu", seconds=1.0)
    first, second, third = [stage for stage in STAGES if stage.paths][:3]
    append_record(session.records_path, {"finished": first.name, "without": ["not_there_at_all"]})
    append_record(session.records_path, {"finished": second.name, "without": ["json", "not_there_at_all"]})
    assert [session._is_finished(stage) for stage in (first, second, third)] == [True, False, False]


def test_a_line_cut_short_is_no_result(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    append_record(path, {"test": "a", "outcome": "passed", "bench": None})
    with path.open("a") as file:
        file.write('\n{"test": "b", "outc')
    append_record(path, {"test": "c", "outcome": "passed", "bench": None})
    assert list(results(read_records(path))) == ["a", "c"]
    assert as_benchmark_file(read_records(path))["benchmarks"] == []


def test_a_missing_rival_costs_its_own_row(tmp_path: Path) -> None:
    """Its package is named; the bench of ours beside it ran."""
    bench, records = tmp_path / "bench_of_two.py", tmp_path / "records.jsonl"
    bench.write_text(
        "import pytest\n"
        "from bench.harness import rival\n"
        "@pytest.mark.parametrize('way', ['ours', 'theirs', 'a module of theirs'])\n"
        "def test_it(way):\n"
        "    if way == 'a module of theirs':\n"
        "        pytest.importorskip('not_there_at_all.functional')\n"
        "    assert way == 'ours' or rival('not_there_at_all.functional', 'not-there')\n"
    )
    command = [sys.executable, "-m", "pytest", str(bench), "-q", "-p", "bench.records", "-p", "no:cacheprovider"]
    command += ["--records", str(records), "--seconds-left", "60", "-c", str(ROOT / "pyproject.toml")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    machine = as_benchmark_file(read_records(records))["machine_info"]
    assert "torch_threads" in machine  # a test outside bench/ is of the same machine
    found = {test.rpartition("::")[2]: record["outcome"] for test, record in results(read_records(records)).items()}
    assert found == {
        "test_it[ours]": "passed",
        "test_it[theirs]": "skipped",
        "test_it[a module of theirs]": "skipped",
    }
    assert sum("not_there_at_all |" in line for line in _missing(read_records(records))) == 1
    (row,) = [line for line in _missing(read_records(records)) if line.startswith("| not-there |")]
    assert "test_it[theirs]" in row


def test_the_goal_beside_the_best_of_the_others() -> None:
    """Ours 2 ms beside 3, 1.5 and 9: 0.75 times as fast as the best; what is ours by another way counts with ours."""
    ways = {"ours": 2e-3, "a": 3e-3, "b": 1.5e-3, "c": 9e-3, "ours by Triton": 1e-3}
    group = "attention deterministic backward, packed 32K"
    benches = [
        {"name": way, "group": group, "params": {"way": way}, "extra_info": {},
         "stats": {"median": seconds, "min": seconds, "max": seconds, "data": [seconds]}}
        for way, seconds in ways.items()
    ]  # fmt: skip
    (row,) = [line for line in _goals({"benchmarks": benches}) if line.startswith("| attention")]
    assert row == f"| {group} | b | 1.00 | 0.75 | missed |"
