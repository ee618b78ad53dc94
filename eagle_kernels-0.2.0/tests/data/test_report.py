"""The page of a data set: its numbers are those of the plans, what was left out is listed, and it loads nothing."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from eagle_model.data import report
from eagle_model.data.index import open_index
from eagle_model.data.prefetch import Prefetch
from eagle_model.data.processor import Processor
from eagle_model.data.report import look, lost_area, spread, write_report
from eagle_model.data.tiling import Grid
from tests.data.conftest import chat_row, tiny_config

ROWS = [
    *[chat_row(f"Question <b>{i}</b>?", id=f"s{i}") for i in range(4)],
    chat_row(image="wide.png", id="picture"),
    chat_row(video="long.mp4", id="film"),
    chat_row(image="none.png", id="gone"),
]


def test_the_page_shows_what_is_planned(recipe: Callable[..., Path], processor: Processor, tmp_path: Path) -> None:
    processor = Processor(processor.tokenizer, tiny_config(context_tokens=150))
    with Prefetch(1) as prefetch:
        index = open_index(recipe(ROWS), processor, prefetch, skip_bad=True)
    looked = look(index, processor)
    film = index.plan(5).visual
    assert film.most_frames == 12
    assert (looked.frames, looked.kept_frames) == ([film.num_visual_tokens // 4], [film.num_visual_tokens / 48])
    assert (looked.image_tiles, looked.lost_area, dict(looked.tile_limits)) == ([4], [0.0], {12: 1})
    assert (looked.num_plans, looked.num_reduced) == (6, 1)
    write_report(index, processor, tmp_path / "report.html", num_shown=6)
    page = (tmp_path / "report.html").read_text()
    assert "1 of 6 samples show less than the limits allow" in page
    assert f"Tokens</td><td style='text-align:left'>{index.tokens.sum():,}, " in page
    assert "gone: " in page and "none.png does not exist" in page
    assert "Question &lt;b&gt;0&lt;/b&gt;?" in page and "<b>0</b>" not in page
    assert page.count("data:image/jpeg;base64,") == 4 + film.num_visual_tokens // 4
    assert "<span class='learned'>A digit.&lt;|im_end|&gt;</span>" in page
    assert set(re.findall("(?:src|href)='([a-z]+)", page)) == {"data"}  # nothing is loaded


def test_a_long_text_is_cut_and_a_sample_that_fails_is_named(
    recipe: Callable[..., Path], processor: Processor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "MAX_TEXT_CHARS", 60)
    with Prefetch(1) as prefetch:
        index = open_index(recipe([chat_row("word " * 100), chat_row(image="cut.png", id="cut")]), processor, prefetch)
    write_report(index, processor, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert " ...</span>" in page and "word " * 20 not in page
    assert "sample cut: image" in page and "cannot be decoded" in page


def test_lost_area_is_what_the_grid_has_no_room_for() -> None:
    assert lost_area(Grid(2, 1), 896, 448, 448) == 0
    assert lost_area(Grid(1, 1), 896, 448, 448) == 0.5
    assert lost_area(Grid(3, 3), 100, 100, 448) == 0


@pytest.mark.parametrize(("num", "most"), [(0, 5), (3, 5), (5, 5), (1001, 10)])
def test_numbers_are_evenly_spread(num: int, most: int) -> None:
    found = spread(num, most)
    assert len(found) == min(num, most)
    assert len(set(found)) == len(found)
    assert not found or (found[0] == 0 and found[-1] < num)
    assert len(found) < 3 or np.ptp(np.diff(found)) <= 1
