"""Tutorials are scripts in cells (`# %%`): examples/tutorials/NAME.py. From each a notebook and a page are made.

    python -m docs.generate.tutorials        # writes the notebooks beside the scripts, without outputs

A cell that begins with `# %% [markdown]` is prose, each line behind `# `; every other cell is code.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent.parent.parent / "examples" / "tutorials"
NAMES = (  # in the order of the site
    "one_op", "your_qwen2", "film_to_tiles", "your_data", "adapters", "stages", "many_processes", "annotating",
    "benchmarks", "serving",
)  # fmt: skip


class Cell(NamedTuple):
    is_prose: bool
    text: str


def cells(script: str) -> list[Cell]:
    """The cells of a script. What stands before the first one belongs to none and is left out."""
    found = []
    for part in f"\n{script}".split("\n# %%")[1:]:
        mark, _, body = part.partition("\n")
        lines = body.strip("\n").splitlines()
        if mark.strip() == "[markdown]":
            found.append(Cell(True, "\n".join(line.removeprefix("#").removeprefix(" ") for line in lines)))
        elif mark.strip():
            raise ValueError(f"a cell is marked {mark.strip()!r}; needs [markdown], or nothing for code.")
        else:
            found.append(Cell(False, "\n".join(lines)))
    return found


def notebook(script: str) -> str:
    """A notebook of the format 4.5, the same bytes for the same script."""

    def lines(text: str) -> list[str]:
        return text.splitlines(keepends=True)

    made = []
    for k, cell in enumerate(cells(script)):
        common = {"id": f"cell-{k:02}", "metadata": {}, "source": lines(cell.text)}
        code = {"cell_type": "code", "execution_count": None, "outputs": []}
        made.append({"cell_type": "markdown", **common} if cell.is_prose else {**code, **common})
    about = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return json.dumps({"cells": made, "metadata": about, "nbformat": 4, "nbformat_minor": 5}, indent=1) + "\n"


def page(name: str, script: str) -> str:
    """The site's page: prose and code one after the other, and where both files are."""
    parts = []
    for cell in cells(script):
        # Links are those of the script's own folder, where notebooks are read too.
        prose = re.sub(r"\((\w+)\.ipynb\)", r"(\1.md)", cell.text.replace("(../../docs/", "(../../"))
        parts.append(prose if cell.is_prose else f"```python\n{cell.text}\n```")
    files = (
        f"*The same as a [script](../../../examples/tutorials/{name}.py) and a "
        f"[notebook](../../../examples/tutorials/{name}.ipynb). The tests run both.*"
    )
    return "\n\n".join([parts[0], files, *parts[1:]]) + "\n"


def pages() -> dict[str, str]:
    scripts = {name: (FOLDER / f"{name}.py").read_text(encoding="utf-8") for name in NAMES}
    return {f"tutorials/{name}.md": page(name, script) for name, script in scripts.items()}


if __name__ == "__main__":
    for path in (FOLDER / f"{name}.py" for name in NAMES):
        path.with_suffix(".ipynb").write_text(notebook(path.read_text(encoding="utf-8")), encoding="utf-8")
