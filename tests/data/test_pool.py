"""Processes of a pool end with the one that started them, and compute with one thread."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = """
import multiprocessing, os, time, torch
from concurrent.futures import ProcessPoolExecutor
from eagle_model.data.pool import in_pool

if __name__ == "__main__":
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("METHOD"), initializer=in_pool) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        print(pool.submit(torch.get_num_threads).result(), flush=True)
        time.sleep(600)
"""


@pytest.mark.parametrize("method", ["forkserver", "spawn"])  # as `prepare` and `proxies` start theirs
def test_processes_end_with_the_one_that_started_them(method: str, tmp_path: Path) -> None:
    """Which a signal that cannot be handled may end; they would wait for work for ever."""
    (tmp_path / "start.py").write_text(SCRIPT.replace("METHOD", method))
    parent = subprocess.Popen(
        [sys.executable, f"{tmp_path}/start.py"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert parent.stdout is not None
    try:
        worker, num_threads = int(parent.stdout.readline()), int(parent.stdout.readline())
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
    assert num_threads == 1
    deadline = time.monotonic() + 30
    while Path(f"/proc/{worker}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not Path(f"/proc/{worker}").exists()
