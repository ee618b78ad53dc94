"""Processes of a pool: each computes with one thread, and ends when its parent is gone, however that ended.

ProcessPoolExecutor(8, mp_context=multiprocessing.get_context("forkserver"), initializer=in_pool)
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from multiprocessing.connection import wait

import torch


def in_pool() -> None:
    """Begins a process of a pool. The tokenizer, and torch, would start as many threads as there are cores in each; and
    one whose parent was killed would wait for work for ever."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, name="eagle-parent", daemon=True).start()


def _end_with_parent() -> None:
    if (parent := multiprocessing.parent_process()) is not None:
        wait([parent.sentinel])
        os._exit(1)  # results are written whole: nothing is left half done but a temporary file
