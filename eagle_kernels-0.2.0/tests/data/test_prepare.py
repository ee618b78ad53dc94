"""Preparing: in parts and processes, interrupted and gone on with; what is known is not looked at again."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from eagle_model.data import prepare as prepare_module
from eagle_model.data.index import open_index
from eagle_model.data.prefetch import Prefetch
from eagle_model.data.prepare import Progress, begin, finish, part_path, prepare, prepare_part
from eagle_model.data.processor import Processor
from eagle_model.data.sample import DataError
from tests.data.conftest import chat_row

Recipe = Callable[..., Path]
ROWS = [chat_row(f"Question {i}? " * 5, id=f"s{i}", **({"image": "wide.png"} if i % 4 else {})) for i in range(60)]


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_module, "PART_BYTES", 1500)
    monkeypatch.setattr(prepare_module, "_READ_BYTES", 700)


def ids(folder: Path, processor: Processor) -> list[str]:
    with Prefetch(1) as prefetch:
        index = open_index(folder, processor, prefetch)
    return [index.plan(i).sample.id for i in range(index.num_samples)]


def test_every_row_is_in_one_part_whatever_the_cuts(recipe: Recipe, processor: Processor, tmp_path: Path) -> None:
    path = recipe(ROWS)
    lines = tmp_path / "rows.jsonl"
    lines.write_text("\ufeff" + lines.read_text().replace("\n", "\n\n", 3).rstrip("\n"))  # blank lines, no last newline
    done = prepare(path, processor, tmp_path / "out")
    assert (done["rows"], done["skipped"], done["images"], done["text_only"]) == (60, 0, 45, 15)
    assert done["num_parts"] > 5
    assert ids(tmp_path / "out", processor) == [f"s{i}" for i in range(60)]
    with Prefetch(1) as prefetch:
        plan = open_index(tmp_path / "out", processor, prefetch).plan
        assert plan(59).sample.where == open_index(path, processor, prefetch).plan(59).sample.where


def test_a_list_of_rows_is_prepared_by_lines(recipe: Recipe, processor: Processor, tmp_path: Path) -> None:
    path = recipe(ROWS, annotation="rows.json")
    (tmp_path / "rows.json").write_text(json.dumps(ROWS[:30], indent=1) + "\n")
    prepare(path, processor, tmp_path / "out")
    with Prefetch(1) as prefetch:
        memory, index = (open_index(p, processor, prefetch) for p in (path, tmp_path / "out"))
    assert index.num_samples == 30
    assert [index.plan(i) for i in range(30)] == [memory.plan(i) for i in range(30)]
    assert index.plan(7).sample.where == memory.plan(7).sample.where != index.plan(6).sample.where


def test_what_was_interrupted_goes_on(
    recipe: Recipe, processor: Processor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out, made = recipe(ROWS), tmp_path / "out", list[int]()
    plain = prepare_module.prepare_part

    def until_three(folder: Path, k: int) -> dict[str, int]:
        if len(made) == 3:
            raise KeyboardInterrupt
        made.append(k)
        return plain(folder, k)

    monkeypatch.setattr(prepare_module, "prepare_part", until_three)
    with pytest.raises(KeyboardInterrupt):
        prepare(path, processor, out)
    with pytest.raises(DataError, match=r"parts are missing, the first 3\."):
        finish(out)
    made.clear()
    monkeypatch.setattr(prepare_module, "prepare_part", lambda folder, k: made.append(k) or plain(folder, k))
    seen: list[Progress] = []
    done = prepare(path, processor, out, progress=seen.append)
    assert made == list(range(3, done["num_parts"]))
    assert done["rows"] == 60
    assert ids(out, processor) == [f"s{i}" for i in range(60)]
    assert (seen[0].num_parts_done, seen[0].seconds_left, seen[-1].seconds_left) == (3, None, 0)
    assert 0 < seen[0].done_bytes == seen[0].found_bytes < seen[-1].done_bytes == seen[-1].all_bytes
    prepare(path, processor, out)
    assert made == list(range(3, done["num_parts"]))  # and is not done again


def test_other_rows_are_prepared_anew(recipe: Recipe, processor: Processor, tmp_path: Path) -> None:
    prepare(recipe(ROWS), processor, tmp_path / "out")
    prepare(recipe(ROWS[:9]), processor, tmp_path / "out")
    assert ids(tmp_path / "out", processor) == [f"s{i}" for i in range(9)]


def test_a_recipe_s_length_is_held_to(recipe: Recipe, processor: Processor, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="digits: 60 rows, but the recipe's length for it is 61"):
        prepare(recipe(ROWS, length=61), processor, tmp_path / "out")


def test_annotations_that_change_meanwhile_are_refused(recipe: Recipe, processor: Processor, tmp_path: Path) -> None:
    path = recipe(ROWS)
    begin(path, processor, tmp_path / "out")
    os.utime(tmp_path / "rows.jsonl", ns=(1, 1))
    with pytest.raises(DataError, match=r"rows\.jsonl has changed since it was prepared"):
        prepare_part(tmp_path / "out", 0)


@pytest.mark.slow
def test_processes_make_what_one_makes_and_a_killed_one_is_named(
    recipe: Recipe, processor: Processor, tmp_path: Path
) -> None:
    path = recipe(ROWS)
    prepare(path, processor, tmp_path / "one")

    def kill_a_worker(progress: Progress) -> None:
        if progress.num_rows:
            for child in os.popen(f"pgrep -P $(pgrep -P {os.getpid()} -f forkserver | head -1)").read().split():
                os.kill(int(child), signal.SIGKILL)

    with pytest.raises(DataError, match="a process that prepares was killed"):
        prepare(path, processor, tmp_path / "two", num_workers=2, progress=kill_a_worker)
    prepare(path, processor, tmp_path / "two", num_workers=2)
    for k in range(json.loads((tmp_path / "one/prepared.json").read_text())["num_parts"]):
        assert part_path(tmp_path / "two", k).read_bytes() == part_path(tmp_path / "one", k).read_bytes()


def test_two_do_not_prepare_one_folder(recipe: Recipe, processor: Processor, tmp_path: Path) -> None:
    path = recipe(ROWS[:9])

    def prepare_too(_: Progress) -> None:
        with pytest.raises(DataError, match="out is being prepared by another process"):
            prepare(path, processor, tmp_path / "out")

    prepare(path, processor, tmp_path / "out", progress=prepare_too)
    assert ids(tmp_path / "out", processor) == [f"s{i}" for i in range(9)]


def test_no_rows_are_prepared_and_refused_by_training(recipe: Recipe, processor: Processor, tmp_path: Path) -> None:
    done = prepare(recipe([]), processor, tmp_path / "out")
    assert (done["rows"], done["skipped"], done["images"], done["videos"]) == (0, 0, 0, 0)
    with pytest.raises(DataError, match=r"out: no sample to train on\."):
        ids(tmp_path / "out", processor)


def test_names_in_capitals_are_prepared_by_lines_too(recipe: Recipe, processor: Processor, tmp_path: Path) -> None:
    recipe([row for row in ROWS if "image" not in row])
    path = (tmp_path / "rows.jsonl").rename(tmp_path / "ROWS.JSONL")
    prepare(path, processor, tmp_path / "out")
    assert ids(tmp_path / "out", processor) == [f"s{i}" for i in range(0, 60, 4)]


@pytest.mark.slow
def test_processes_end_with_the_one_that_started_them() -> None:
    """Which a signal that cannot be handled may end; they would wait for work for ever."""
    script = """
import multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor
from eagle_model.data.prepare import in_pool
if __name__ == "__main__":
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("forkserver"), initializer=in_pool) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        time.sleep(600)
"""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "start.py").write_text(script)
        parent = subprocess.Popen([sys.executable, f"{folder}/start.py"], stdout=subprocess.PIPE, text=True)
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        parent.kill()
        parent.wait()
        deadline = time.monotonic() + 30
        while Path(f"/proc/{worker}").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not Path(f"/proc/{worker}").exists()
