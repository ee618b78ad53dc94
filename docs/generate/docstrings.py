"""A docstring as Markdown: its prose, its indented code, and its Args, Returns and Raises.

Docstrings here are plain text, made for `help()`. Backticks mark names; everything else that Markdown would take for a
sign of its own is escaped.
"""

import ast
import inspect
import re

FIELD = re.compile(r"(Args|Returns|Raises|Yields|Source|Units|Ties):\s+(.*)")
# Where an item of Args begins: a name or several, then a colon, at a line's start or after two spaces.
ITEM = re.compile(r"(?:^|(?<=  ))(\*{0,2}\w+(?:, \*{0,2}\w+)*|\w+ and the rest): ")


def escaped(text: str) -> str:
    """Markdown that shows `text` as it is; what stands between backticks is code."""
    parts = text.split("`")
    if len(parts) % 2 == 0:  # a lone backtick
        return re.sub(r"([\\`*_<>\[\]|$#~{}])", r"\\\1", text)
    for k in range(0, len(parts), 2):
        parts[k] = re.sub(r"([\\*_<>\[\]|$#~{}])", r"\\\1", parts[k])
    return "`".join(parts)


def paragraphs(docstring: str) -> list[list[str]]:
    """Blocks of lines that stand together; a change between prose and indented lines begins another."""
    blocks: list[list[str]] = []
    last_blank = True
    for line in inspect.cleandoc(docstring).splitlines():
        if not line.strip():
            last_blank = True
            continue
        begins = last_blank or FIELD.match(line) is not None or is_list(line)
        if begins:
            blocks.append([])
        blocks[-1].append(line)
        last_blank = False
    return blocks


def is_list(line: str) -> bool:
    return re.match(r"- |\d\. ", line) is not None


def field(block: list[str]) -> str:
    """`Args:    x: what it is.  y: ...` as a list of its items; Returns and Raises as a paragraph."""
    match = FIELD.match(block[0])
    assert match is not None
    name, lines = match[1], [match[2], *(line.strip() for line in block[1:])]
    if name != "Args":
        return f"**{name}:** {escaped(' '.join(lines))}"
    items: list[str] = []
    for line in lines:
        starts = [m.start() for m in ITEM.finditer(line)]
        if not starts or starts[0] > 0:
            text = line[: starts[0]] if starts else line
            if items:
                items[-1] += f" {text.strip()}"
            else:
                items.append(text.strip())
        for start, end in zip(starts, [*starts[1:], len(line)]):
            items.append(line[start:end].strip())
    shown = []
    for item in items:
        names, colon, rest = item.partition(": ")
        shown.append(f"- `{names}`: {escaped(rest)}" if colon and ITEM.match(item) else f"- {escaped(item)}")
    return "**Args:**\n\n" + "\n".join(shown)


def fence(lines: list[str]) -> str:
    """A block of code: Python's where it is Python."""
    text = "\n".join(lines)
    try:
        ast.parse(text)
    except SyntaxError:
        return f"```text\n{text}\n```"
    return f"```python\n{text}\n```"


def to_markdown(docstring: str) -> str:
    """The whole of it, as paragraphs, lists and blocks of code."""
    out: list[str] = []
    for block in paragraphs(docstring):
        if FIELD.match(block[0]):
            out.append(field(block))
        elif block[0].startswith("    "):
            code = inspect.cleandoc("\n".join(block)).splitlines()
            if out and out[-1].endswith("```"):  # of one example, with an empty line inside
                out[-1] = out[-1].removesuffix("```") + "\n" + "\n".join(code) + "\n```"
            else:
                out.append(fence(code))
        elif is_list(block[0]):
            mark, _, text = " ".join(line.strip() for line in block).partition(" ")
            out.append(f"{mark} {escaped(text)}")
        elif any(line.startswith("  ") for line in block[1:]):  # a table by spaces, or hanging indents
            out.append("```text\n" + "\n".join(block) + "\n```")
        else:
            out.append(escaped(" ".join(block)))
    return "\n\n".join(out)
