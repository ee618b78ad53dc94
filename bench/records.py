"""A pytest plugin that writes each result the moment it comes, goes on where an earlier run stopped, and stops in time.

    python -m pytest bench/bench_rms_norm.py -p bench.records --records results.jsonl --seconds-left 60

Each line of the file is one JSON object:
    {"machine_info", "commit_info", "datetime"}                 once a run
    {"started": test}                                           before a test
    {"test", "outcome", "seconds", "reason", "bench"}           after it
    {"missing": package, "test": file}                          a file that cannot be imported without that package
    {"finished": stage, "without": [package, ...]}              by session.py: all of a stage, but for such files
A test with a result is not run again. One that was started twice and never ended took its process down with it: it
counts as "crashed".
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from bench.machine import add_gpu_and_versions

MAX_STARTS = 2  # the first may have been ended from outside; a second end is the test's own
OUT_OF_TIME = "no seconds left"
# After one of these a CUDA context is lost: every later test of the process would fail with it.
LOST_CONTEXT = re.compile(r"CUDA error|device-side assert|illegal memory access|misaligned address")
_MISSING = re.compile(r"could not import '([^']+)'|No module named '([\w.]+)'")


def _missing(text: str) -> str | None:
    """The package that an error or the reason of a skip names: "av" for one of its modules too."""
    found = _MISSING.search(text)
    return (found[1] or found[2]).partition(".")[0] if found else None


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of a file, in order; a line that was cut short by a kill, or is empty, is left out."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            records.append(json.loads(line))
    return records


def append_record(path: Path, record: dict[str, Any]) -> None:
    """Adds a line, on the disk when this returns. It starts with its line break: the last line may have been cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" + json.dumps(record))
        file.flush()
        os.fsync(file.fileno())


def results(records: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The one result of each test: what it ended with, or "crashed"."""
    found: dict[str, dict[str, Any]] = {}
    starts: Counter[str] = Counter()
    for record in records:
        if "started" in record:
            starts[record["started"]] += 1
        elif "outcome" in record:
            found.setdefault(record["test"], record)
    for test, num_starts in starts.items():
        if test not in found and num_starts >= MAX_STARTS:
            found[test] = {"test": test, "outcome": "crashed", "seconds": 0.0, "reason": "its process ended with it"}
    return found


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("records")
    group.addoption("--records", type=Path, help="the file that takes a line a result; tests that it holds are not run")
    group.addoption("--seconds-left", type=float, default=float("inf"), help="start no test after so many seconds")
    group.addoption("--count-each", type=float, help="rehearsal: every test counts as so many seconds")
    group.addoption("--in-turn", action="store_true", help="one test of each file, then the next of each")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--records") and not hasattr(config, "workerinput"):  # a worker of xdist leaves it to its head
        config.pluginmanager.register(_Records(config), "eagle-records")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if path := config.getoption("--records"):
        done = results(read_records(path))
        items[:] = [item for item in items if item.nodeid not in done]
    if config.getoption("--in-turn"):
        place: Counter[str] = Counter()
        keys = []
        for item in items:
            file = item.nodeid.partition("::")[0]
            keys.append(place[file])
            place[file] += 1
        items[:] = [item for _, item in sorted(zip(keys, items, strict=True), key=lambda pair: pair[0])]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    """Hands the figures of a bench on with its report, which travels from a worker to its head."""
    report = yield
    benchmark = getattr(item, "funcargs", {}).get("benchmark")
    if report.when == "call" and report.passed and getattr(benchmark, "stats", None) is not None:
        figures = benchmark.stats.as_dict(include_data=True, flat=False, stats=True)
        figures["params"] = {key: str(value) for key, value in (figures["params"] or {}).items()}
        report.user_properties.append(("bench", json.dumps(figures, default=str)))
    return report


class _Records:
    def __init__(self, config: pytest.Config) -> None:
        self._path: Path = config.getoption("--records")
        self._seconds_left: float = config.getoption("--seconds-left")
        self._count_each: float | None = config.getoption("--count-each")
        self._start = time.monotonic()
        self._num_ended = 0
        self._session: pytest.Session | None = None
        self._seconds: Counter[str] = Counter()

    def _used_seconds(self) -> float:
        if self._count_each is not None:
            return self._num_ended * self._count_each
        return time.monotonic() - self._start

    @pytest.hookimpl(trylast=True)
    def pytest_sessionstart(self, session: pytest.Session) -> None:
        from pytest_benchmark.utils import get_commit_info

        self._session = session
        hook = session.config.hook
        machine = hook.pytest_benchmark_generate_machine_info(config=session.config)
        add_gpu_and_versions(machine)  # not by the hook: bench/conftest.py, which has it, is not read for tests/
        now = datetime.now(UTC).isoformat()
        append_record(self._path, {"machine_info": machine, "commit_info": get_commit_info(), "datetime": now})

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if not report.failed and not report.skipped:
            return
        text = str(report.longrepr)
        if package := _missing(text):
            append_record(self._path, {"missing": package, "test": report.nodeid})
        elif report.failed:
            last = text.strip().splitlines()[-1]
            append_record(self._path, {"test": report.nodeid, "outcome": "failed", "seconds": 0.0, "reason": last})

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        append_record(self._path, {"started": nodeid})

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._seconds[report.nodeid] += report.duration
        is_last = report.when == "call" or (report.when == "setup" and not report.passed)
        if not is_last and not (report.when == "teardown" and report.failed):
            return
        reason = "" if report.passed else _reason(report)
        if report.skipped and (package := _missing(reason)):
            append_record(self._path, {"missing": package, "test": report.nodeid})
        record = {"test": report.nodeid, "outcome": report.outcome, "seconds": self._seconds[report.nodeid]}
        figures = dict(report.user_properties).get("bench")
        append_record(self._path, {**record, "reason": reason, "bench": json.loads(str(figures)) if figures else None})
        self._num_ended += 1
        assert self._session is not None
        if report.failed and LOST_CONTEXT.search(str(report.longrepr)):
            self._session.shouldstop = "the CUDA context is lost; a new process goes on"
        elif self._used_seconds() >= self._seconds_left:
            self._session.shouldstop = OUT_OF_TIME


def _reason(report: pytest.TestReport) -> str:
    if isinstance(report.longrepr, tuple):  # a skip: file, line, reason
        return report.longrepr[2].removeprefix("Skipped: ")
    return str(report.longrepr).strip().splitlines()[-1]
