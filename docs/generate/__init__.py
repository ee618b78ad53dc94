"""Pages of the site that are made from the code: `write_pages` writes them all below one folder, in Markdown."""

from __future__ import annotations

from pathlib import Path


def write_pages(folder: Path) -> None:
    """Writes what changed and removes what is no page any more, so that Sphinx reads again what it must and no more."""
    from docs.generate import api, commands, files, performance, tutorials

    pages = api.pages() | commands.pages() | performance.pages() | tutorials.pages() | files.pages()
    for name, text in pages.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
    for path in folder.rglob("*.md"):
        if str(path.relative_to(folder)) not in pages:
            path.unlink()
