"""Pages of PDF files: how many, how large, their pixels; and what is said of files that cannot be read."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from eagle_model.data import documents
from eagle_model.data.documents import MAX_PAGE_PX, load_pages, num_pages, page_size
from eagle_model.data.sample import DataError
from tests.data.make_pdf import gray, write_pdf

HALF_BLACK = b"0 g 0 0 30 40 re f"
SLOW = b"0 0 m 60 40 30 40 60 0 c S\n" * 15_000


def test_pages_are_rendered_on_white_at_150_dots_an_inch(tmp_path: Path) -> None:
    path = write_pdf(tmp_path / "a.PDF", [gray(100), HALF_BLACK, b""])
    assert num_pages(path) == 3
    assert page_size(path) == (125, 83)  # of 60 x 40 points
    black, gray_page, empty = load_pages(path, [1, 0, 2])
    assert black.shape == gray_page.shape == empty.shape == (83, 125, 3)
    assert (black[:, :60] == 0).all() and (black[:, 65:] == 255).all()
    assert (gray_page == 100).all()
    assert (empty == 255).all()


def test_colours_come_red_first(tmp_path: Path) -> None:
    (page_YX3,) = load_pages(write_pdf(tmp_path / "a.pdf", [b"1 0.2 0 rg 0 0 60 40 re f"]), [0])
    assert page_YX3[40, 60].tolist() == [255, 51, 0]


@pytest.mark.parametrize(
    ("width", "height", "size"),
    [
        (612, 792, (1275, 1650)),  # US letter
        (144_000, 144_000, (4096, 4096)),  # as many pixels as are allowed, not more
        (14_400, 1, (30_000, 2)),
        (1e9, 1e-3, (65_536, 1)),
    ],
)
def test_a_page_of_any_size_is_bounded(tmp_path: Path, width: float, height: float, size: tuple[int, int]) -> None:
    path = write_pdf(tmp_path / "a.pdf", [b""], width=width, height=height)
    assert page_size(path) == size
    assert size[0] * size[1] <= MAX_PAGE_PX


ENCRYPTED = b"/Encrypt << /Filter /Standard /V 1 /R 2 /O (%s) /U (%s) /P -4 >> /ID [<00> <00>]" % (b"o" * 32, b"u" * 32)


def test_files_that_cannot_be_read_say_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "a.pdf"
    whole = write_pdf(path, [gray(0)] * 2).read_bytes()
    for content, message in [
        (b"", "is no PDF, or a damaged one. Repair it, or print it to a new PDF."),
        (b"no document at all", "is no PDF, or a damaged one"),
        (whole[: len(whole) // 2], "is no PDF, or a damaged one"),
        (write_pdf(path, []).read_bytes(), "has 0 pages, none that can be seen; leave it out."),
        (write_pdf(path, [b""], trailer=ENCRYPTED).read_bytes(), "is encrypted and needs a password. Save it without"),
    ]:
        path.write_bytes(content)
        for read in (num_pages, page_size, lambda path: list(load_pages(path, [0]))):
            with pytest.raises(DataError, match=rf"document .*a\.pdf {message}"):
                read(path)
    for missing in (tmp_path / "none.pdf", tmp_path):
        with pytest.raises(DataError, match="does not exist or is not a file"):
            num_pages(missing)
    path.write_bytes(whole)
    with pytest.raises(DataError, match="has 2 pages; there is no page 3"):
        list(load_pages(path, [2]))


def test_limits_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_pdf(tmp_path / "a.pdf", [gray(0)] * 3)
    monkeypatch.setattr(documents, "MAX_PAGES", 2)
    with pytest.raises(DataError, match="has 3 pages, more than 2; split it"):
        num_pages(path)
    monkeypatch.setattr(documents, "MAX_FILE_BYTES", 10)
    with pytest.raises(DataError, match=r"has \d+ bytes, more than 10; split it"):
        num_pages(path)


def test_rendering_stops_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_pdf(tmp_path / "a.pdf", [gray(9), SLOW], width=600, height=400)
    started = time.process_time()
    list(load_pages(path, [1]))
    whole_seconds = time.process_time() - started
    started = time.process_time()
    pages = load_pages(path, [0, 1], time_limit_seconds=0.05)
    assert (next(pages) == 9).all()
    with pytest.raises(DataError, match=r"page 2 takes longer to render than 0\.\d+ s\. Print it to a new PDF"):
        next(pages)
    monkeypatch.setattr(documents, "MAX_PAGE_SECONDS", 0.05)
    with pytest.raises(DataError, match=r"page 2 takes longer to render than 0\.05 s"):
        list(load_pages(path, [1]))
    assert (time.process_time() - started) / 2 < whole_seconds


def test_threads_take_turns(tmp_path: Path) -> None:
    paths = [write_pdf(tmp_path / f"{level}.pdf", [gray(level)] * 8) for level in (10, 60, 120, 240)]
    wrong: list[object] = []

    def read(path: Path) -> None:
        level = int(path.stem)
        wrong.extend(page for page in load_pages(path, range(num_pages(path))) if not (page == level).all())

    threads = [threading.Thread(target=read, args=(path,)) for path in paths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_without_the_extra_the_error_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_pdf(tmp_path / "a.pdf", [b""])
    monkeypatch.setattr(documents, "pdfium", None)
    with pytest.raises(DataError, match=r"a\.pdf is a PDF, which needs pypdfium2: pip install 'eagle-kernels\[pdf\]'"):
        num_pages(path)
