"""The command line's reference and the list of a run's settings, as the program itself has them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from typer.main import get_command

from docs.generate.docstrings import escaped
from eagle_model import cli
from eagle_model.fields import listing
from eagle_model.train.recipes import RECIPES, recipe


def walk(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Every command with its full name; groups come before what is in them."""
    for word, inner in command.commands.items():
        yield f"{name} {word}", inner
        if hasattr(inner, "commands"):
            yield from walk(inner, f"{name} {word}")


def option(param: Any) -> str:
    """A row of the table: the names, what it is, its default."""
    is_option = param.opts[0].startswith("-")
    names = ", ".join(f"`{name}`" for name in [*param.opts, *param.secondary_opts])
    if not is_option:
        names = f"`{param.opts[0].upper()}`"
    default = param.default
    if param.required:
        said = "needed"
    elif default in (None, "", [], (), False) or callable(default):
        said = ""
    else:
        said = f"`{default}`"
    return f"| {names} | {escaped(param.help or '')} | {said} |"


def about(text: str) -> str:
    """A command's help: paragraphs, and its examples as commands."""
    prose = [line for line in inspect.cleandoc(text).splitlines() if not line.startswith("Example:")]
    examples = [line.removeprefix("Example:").strip() for line in text.splitlines() if "Example:" in line]
    examples = [line.partition("Example:")[2].strip() or line for line in examples]
    paragraphs = "\n".join(prose).strip().split("\n\n")
    parts = [escaped(" ".join(p.split())) for p in paragraphs if p.strip()]
    if examples:
        parts.append("```console\n" + "\n".join(f"$ {line}" for line in examples) + "\n```")
    return "\n\n".join(parts)


def commands_page() -> str:
    parts = [
        "# Command line",
        "`eagle COMMAND --help` prints the same. A command that ends well has exit code 0; 2 says that it was called "
        "wrongly, or that a file or a setting is wrong, in one sentence; 1 that the machine has no room; 3 that there "
        "are bad rows, matches or questions without an answer; 75 that another process of the run was lost.",
    ]
    for name, command in walk(get_command(cli.app), "eagle"):
        params = [p for p in command.params if not p.hidden and p.name != "help"]
        parts += [f"## {name}", about(command.help or "")]
        if params:
            parts.append("\n".join(["| | | default |", "|---|---|---|", *(option(p) for p in params)]))
    return "\n\n".join(part for part in parts if part) + "\n"


def settings_page() -> str:
    """Every field that `--set` sets, with the values of two recipes that differ most."""
    lists = {name: listing(recipe(name)) for name in ("stage2", "lora")}
    of_lora = {name: value for name, _, value in (line.partition("=") for line, _ in lists["lora"])}
    rows = []
    for line, meaning in lists["stage2"]:
        if not line:  # the meaning goes on
            rows[-1] = rows[-1].removesuffix(" |") + f" {escaped(meaning)} |"
            continue
        name, _, value = line.partition("=")
        key = name.removeprefix("# ")
        other = of_lora.get(name, of_lora.get(key, value))
        shown = f"`{value}`" if value else ""
        if other != value:
            shown += f" (lora: `{other}`)"
        rows.append(f"| `{key}` | {shown} | {escaped(meaning)} |")
    return (
        "\n\n".join(
            [
                "# Settings of a run",
                "Every field that `eagle train RECIPE --set name=value` sets. Values are those of the recipe `stage2`; "
                "where the recipe `lora` has another, it stands beside. `eagle train RECIPE --show` prints the list "
                f"of any recipe ({', '.join(RECIPES)}). A group that is `none` is off; setting one of its "
                "fields turns it on.",
                "\n".join(["| field | value | |", "|---|---|---|", *rows]),
            ]
        )
        + "\n"
    )


def pages() -> dict[str, str]:
    return {"commands.md": commands_page(), "settings.md": settings_page()}
