"""The site: `make docs` builds it into build/docs. Why Sphinx: docs/notes/site.md."""

import sys
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from docs.generate import write_pages  # noqa: E402
from docs.generate.files import on_the_site  # noqa: E402
from eagle_kernels import __version__  # noqa: E402

write_pages(ROOT / "docs" / "generated")

project = "Eagle Kernels"
author = copyright = "the authors of Eagle Kernels"
version = release = __version__
extensions = ["myst_parser"]
exclude_patterns = ["generate", "**/__pycache__"]
source_suffix = {".md": "markdown"}
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
highlight_language = "none"  # of code that does not say its language
python_maximum_signature_line_length = 80
python_display_short_literal_types = True
toc_object_entries_show_parents = "hide"
html_theme = "furo"
html_title = f"Eagle Kernels {release}"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_copy_source = False
html_show_copyright = False


def setup(app: Sphinx) -> None:
    def read(app: Sphinx, docname: str, source: list[str]) -> None:
        source[0] = on_the_site(docname, source[0])

    app.connect("source-read", read)
