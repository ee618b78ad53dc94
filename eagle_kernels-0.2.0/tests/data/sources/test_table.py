"""The table of the paper's sets, and its page in the docs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from eagle_model.data.sources.layouts import LAYOUTS
from eagle_model.data.sources.table import SETS, UNKNOWN, listing, page

DOCS = Path(__file__).parents[3] / "docs"


def test_every_set_of_the_two_tables_is_there_once() -> None:
    """The numbers are the paper's, counted in its tables."""
    assert Counter(s.table for s in SETS) == {"1": 44, "11a": 154, "11b": 6}
    images = Counter(s.uses[0] for s in SETS if s.table == "11a")
    assert images == {
        "captioning and knowledge": 13,
        "mathematics": 10,
        "science": 8,
        "charts and tables": 14,
        "naive OCR": 33,
        "OCR QA": 22,
        "grounding and counting": 4,
        "general VQA": 34,
        "text alone": 16,
    }
    assert len({(s.table, s.name) for s in SETS}) == len(SETS)
    uses = Counter(use for s in SETS if s.table == "1" for use in s.uses)
    assert uses == {
        "video classification": 8,
        "temporal action localisation": 7,
        "video temporal grounding": 16,
        "dense video captioning": 6,
        "temporal segmentation": 2,
        "temporal reasoning": 1,
        "general video QA": 12,
        "multi-page documents": 3,
        "video captioning": 11,
        "long text": 2,
    }


def test_layouts_that_it_names_are_there_and_all_are_named() -> None:
    text = page()
    assert {name for name in LAYOUTS if f"--layout {name}" in text} == set(LAYOUTS)
    for s in SETS:
        for name in s.read_as.replace(",", "").split():
            assert name in LAYOUTS or name in ("--layout", "as", "it", "is"), s


def test_what_is_not_verified_says_so() -> None:
    """A licence is given only where something was seen that says it."""
    assert all(s.seen for s in SETS if s.licence != UNKNOWN)
    assert "not verified" in page()


def test_the_page_of_the_docs_is_this_table() -> None:
    assert (DOCS / "data_sources.md").read_text() == page(), "eagle data sources --markdown > docs/data_sources.md"


def test_the_listing_has_a_line_a_set() -> None:
    assert len(listing()) == len(SETS)
    assert listing([]) == []
