"""Files of the repository that pages link to and that lie outside of docs/: the site has a page for each, and one that
lists them beside the pages about the project."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
NAMES = ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")
ABOUT = ("coming_from", "compatibility", "dependencies", "deprecation")  # pages of docs/ about the project itself


def moved(text: str) -> str:
    """A file at the root, with links as they are from docs/generated/files/."""
    text = re.sub(r"\]\(docs/", "](../../", text)
    here = "|".join(re.escape(name) for name in NAMES)
    return re.sub(rf"\]\((?!\w+:|#|\.\./|(?:{here})[)#])", "](../../../", text)


def on_the_site(docname: str, text: str) -> str:
    """The text of a page in which links to Markdown files outside of docs/ lead to the site's pages of them."""
    depth = docname.count("/")
    outside = re.escape("../" * (depth + 1))
    return re.sub(rf"\]\({outside}(?:[\w-]+/)*([\w-]+\.md)", rf"]({'../' * depth}generated/files/\1", text)


def pages() -> dict[str, str]:
    there = [ROOT / name for name in NAMES if (ROOT / name).exists()]
    listed = [f"../{name}" for name in ABOUT if (ROOT / f"docs/{name}.md").exists()]
    listed += [f"files/{path.stem}" for path in there]
    project = "# The project\n\n```{toctree}\n" + "\n".join(listed) + "\n```\n"
    return {"project.md": project} | {f"files/{p.name}": moved(p.read_text(encoding="utf-8")) for p in there}
