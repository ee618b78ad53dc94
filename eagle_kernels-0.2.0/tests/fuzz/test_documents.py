"""Damaged PDF files: pages of the size that was said, or a DataError; soon, and nothing else."""

from __future__ import annotations

import random
import time
from pathlib import Path

import torch

from eagle_model.data.documents import load_pages, num_pages, page_size
from eagle_model.data.sample import DataError
from tests.data.make_pdf import gray, write_pdf
from tests.fuzz.mutations import damaged
from tests.rounds import Rounds, by_rounds

SECONDS = 10  # of CPU for one small file, on a busy machine; the slowest takes a tenth


@by_rounds(200)
def test_documents(rounds: Rounds, tmp_path: Path) -> None:
    path, rng, num_read = tmp_path / "a.pdf", random.Random(rounds.seed), 0
    pages = [[gray(100)], [gray(9), b"q 1 0 0 rg 2 2 m 30 40 l S Q", b"BT /F1 8 Tf (x) Tj ET"]]
    files = [write_pdf(path, kind).read_bytes() for kind in pages]
    for _ in rounds:
        path.write_bytes(damaged(rng.choice(files), rng, files))
        started = time.process_time()
        try:
            size = page_size(path)
            (page_YX3,) = load_pages(path, [num_pages(path) - 1])
            (first_YX3,) = load_pages(path, [0])
        except DataError as error:
            assert str(path) in str(error)  # noqa: PT017
        else:
            assert first_YX3.shape == (size[1], size[0], 3)
            assert page_YX3.dtype == torch.uint8
            num_read += 1
        assert time.process_time() - started < SECONDS
    assert rounds.num // 10 < num_read < rounds.num
