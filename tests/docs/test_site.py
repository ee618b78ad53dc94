"""The site builds without a warning, and every link in it leads somewhere, to a place in a page too."""

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parent.parent.parent


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.names: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.names |= {value for key in ("id", "name") if (value := given.get(key))}
        self.links += [value for key in ("href", "src") if (value := given.get(key))]


def broken(folder: Path) -> list[str]:
    """Links of the folder's pages to files or places that are not there, and to scripts and styles of other sites."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in folder.rglob("*.html")}
    found = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            place = unquote(parts.fragment)
            if not target.exists() or (place and target in pages and place not in pages[target].names):
                found.append(f"{path.name}: {link}")
    return found


def test_broken_links_are_found(tmp_path: Path) -> None:
    (tmp_path / "a.html").write_text('<a href="b.html#there"></a><a href="b.html#not"></a><a href="c.html"></a>')
    (tmp_path / "b.html").write_text('<p id="there"></p><a href="https://example.org/x"></a>')
    assert broken(tmp_path) == ["a.html: b.html#not", "a.html: c.html"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_builds_and_no_link_is_broken(tmp_path: Path) -> None:
    pytest.importorskip("sphinx", reason="needs the extra `docs`")
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-q"]
    command += ["-d", str(tmp_path / "doctrees"), "docs", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert broken(tmp_path / "site") == []
    for page in ("index", "generated/api", "generated/performance", "generated/tutorials/one_op", "troubleshooting"):
        assert (tmp_path / "site" / f"{page}.html").exists()
    for page in (tmp_path / "site").rglob("*.html"):
        there = Page(page.read_text(encoding="utf-8"))
        assert not [link for link in there.links if link.startswith(("http:", "//")) and link.endswith((".js", ".css"))]
