"""The API reference: a page for each public module, read from the source without importing it.

What is public is in `GROUPS`: what a package's `__init__.py` exports, and names of other modules that the documentation
tells people to use. A name without a docstring is an error here.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field
from pathlib import Path

from docs.generate.docstrings import escaped, to_markdown

ROOT = Path(__file__).parent.parent.parent

# Group -> what it is, and its modules. "*" stands for all that the module's `__all__` names.
GROUPS: dict[str, tuple[str, dict[str, tuple[str, ...]]]] = {
    "Ops": (
        "Each is one function that takes and gives tensors: a kernel on a GPU, C++ or plain torch on a CPU.",
        {"eagle_kernels": ("*",)},
    ),
    "Video": (
        "What is in a file, and its frames by time. Needs the extra `video`.",
        {"eagle_kernels.video": ("*",)},
    ),
    "In other libraries' models": (
        "Our ops in models of transformers; see [the guide](../patching.md).",
        {
            "eagle_kernels.integrations.transformers": (
                "patch", "unpatch", "Swap", "RMSNorm", "LayerNorm", "SwiGLU", "GeluMLP",
            ),
            "eagle_kernels.integrations.attention": ("eagle_attention", "eagle_mask"),
        },
    ),
    "Model": (
        "Eagle 2.5 itself.",
        {
            "eagle_model": ("*",),
            "eagle_model.model": ("*",),
            "eagle_model.model.lora": ("*",),
            "eagle_model.model.fp8_config": ("Fp8Config",),
            "eagle_model.model.fp8": ("use_fp8",),
            "eagle_model.convert": ("to_folder", "to_run", "assemble"),
            "eagle_model.hf": ("Eagle2_5_VLConfig", "Eagle2_5_VLForConditionalGeneration"),
        },
    ),
    "Data": (
        "From rows of a data set to packed rows.",
        {
            "eagle_model.data.tiling": ("choose_grid", "choose_grids", "Grid"),
            "eagle_model.data.sampling": ("plan", "VisualPlan", "SamplingConfig", "DoesNotFit"),
            "eagle_model.data.packing": ("pack", "pack_row"),
            "eagle_model.data.processor": ("ProcessorConfig", "SamplePlan"),
            "eagle_model.data.recipe": ("read_recipe", "Source"),
            "eagle_model.data.rows": ("read_samples", "parse_sample"),
            "eagle_model.data.sample": ("Sample", "Turn", "ImageRef", "VideoRef", "DataError"),
            "eagle_model.data.loader": ("Loader", "DataConfig", "StepRow"),
            "eagle_model.data.prepare": ("prepare", "begin", "prepare_part", "finish"),
            "eagle_model.data.tokenizer": ("train_tokenizer",),
        },
    ),
    "Training": (
        "Runs, recipes, many processes.",
        {
            "eagle_model.train.config": ("TrainConfig", "OptimizerConfig", "ValidationConfig", "AnswersConfig"),
            "eagle_model.train.recipes": (
                "recipe", "tiny", "debug", "lora", "stage1", "stage1_5", "stage2", "stage3", "stage4",
            ),
            "eagle_model.train.trainer": ("Trainer", "TrainingError"),
            "eagle_model.train.progressive": ("Progressive",),
            "eagle_model.train.parallel": ("parallelize", "laid_out"),
            "eagle_model.train.layout": ("Layout", "check_layout"),
            "eagle_model.train.verify": ("verify",),
            "eagle_model.train.estimate": ("estimate", "cheapest", "Estimate", "Gpu"),
        },
    ),
    "Answers": (
        "A trained model at work.",
        {
            "eagle_model.infer": ("*",),
            "eagle_model.infer.offline": ("answer_file", "answer_all"),
            "eagle_model.infer.server": ("ServerConfig", "make_app", "serve"),
            "eagle_model.infer.export": ("export_onnx", "export_package"),
        },
    ),
    "Evaluation and annotation": (
        "Benchmarks, and training rows from films.",
        {
            "eagle_model.evaluate.task": ("Task", "Question"),
            "eagle_model.evaluate.runner": ("Run",),
            "eagle_model.evaluate.needle": ("needles",),
            "eagle_model.annotate.config": ("AnnotateConfig", "read_config"),
            "eagle_model.annotate.steps": ("run_named",),
        },
    ),
}  # fmt: skip

MAX_VALUE = 60  # characters of a default that a signature shows


@dataclass
class Entry:
    """One public name: where people import it from, where it is written, and what it is."""

    module: str  # imported from here
    name: str
    home: str  # defined here
    node: ast.FunctionDef | ast.ClassDef

    @property
    def summary(self) -> str:
        return (ast.get_docstring(self.node) or "").split("\n\n")[0].replace("\n", " ")


@dataclass
class Group:
    name: str
    about: str
    entries: list[Entry] = field(default_factory=list)


def source_of(module: str) -> Path:
    path = ROOT / Path(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def tree_of(module: str) -> ast.Module:
    return ast.parse(source_of(module).read_text(encoding="utf-8"))


def exported(module: str) -> list[str]:
    """What its `__all__` says."""
    for node in tree_of(module).body:
        if isinstance(node, ast.Assign) and any(isinstance(t, ast.Name) and t.id == "__all__" for t in node.targets):
            return list(ast.literal_eval(node.value))
    raise ValueError(f"{module} has no __all__; name what is public in {__name__}.GROUPS.")


def find(module: str, name: str) -> tuple[str, ast.FunctionDef | ast.ClassDef]:
    """Where a name that `module` has is defined: there, or, however often it is imported, in another one of ours."""
    tree = tree_of(module)
    found = [n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef) and n.name == name]
    if found:
        return module, found[-1]  # the last: overloads come first
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0].startswith("eagle_"):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return find(node.module, alias.name)
    raise ValueError(f"{module} has no {name} that is a function or a class.")


def groups() -> list[Group]:
    """Everything public. Raises ValueError for a name that is not there or says nothing of itself."""
    found, known = [], set()
    for title, (about, modules) in GROUPS.items():
        group = Group(title, about)
        for module, names in modules.items():
            for name in exported(module) if names == ("*",) else names:
                home, node = find(module, name)
                if (home, name) in known:  # exported twice; it is described where it comes first
                    continue
                known.add((home, name))
                entry = Entry(module, name, home, node)
                if not entry.summary:
                    raise ValueError(f"{home}.{name} is public and has no docstring.")
                group.entries.append(entry)
        found.append(group)
    return found


def value(node: ast.expr) -> str:
    text = ast.unparse(node)
    return text if len(text) <= MAX_VALUE else "..."


def signature(node: ast.FunctionDef, *, is_method: bool) -> str:
    """(a: int, *, b: str = "x") -> Tensor; without self or cls."""
    args = node.args
    shown: list[str] = []
    plain = [*args.posonlyargs, *args.args]
    defaults: list[ast.expr | None] = [None] * (len(plain) - len(args.defaults)) + list(args.defaults)
    is_static = any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in node.decorator_list)
    pairs = list(zip(plain, defaults, strict=True))[1 if is_method and not is_static else 0 :]

    def one(arg: ast.arg, default: ast.expr | None) -> str:
        text = arg.arg if arg.annotation is None else f"{arg.arg}: {ast.unparse(arg.annotation)}"
        if default is None:
            return text
        return f"{text} = {value(default)}" if arg.annotation is not None else f"{text}={value(default)}"

    shown += [one(arg, default) for arg, default in pairs]
    if args.vararg:
        shown.append(f"*{one(args.vararg, None)}")
    elif args.kwonlyargs:
        shown.append("*")
    shown += [one(arg, default) for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True)]
    if args.kwarg:
        shown.append(f"**{one(args.kwarg, None)}")
    returns = f" -> {ast.unparse(node.returns)}" if node.returns is not None else ""
    return f"({', '.join(shown)}){returns}"


def comments(module: str) -> list[str]:
    return source_of(module).read_text(encoding="utf-8").splitlines()


def comment_of(lines: list[str], node: ast.AnnAssign) -> str:
    """What the comment behind a field says, with the comment lines that go on below it."""
    assert node.end_lineno is not None
    match = re.search(r"#\s*(.*)$", lines[node.end_lineno - 1][node.end_col_offset :])
    if match is None:
        return ""
    said = [match[1]]
    for line in lines[node.end_lineno :]:
        more = re.match(r"\s+#\s*(?!--)(.*)$", line)
        if more is None:
            break
        said.append(more[1])
    return " ".join(said)


def fields_of(entry: Entry) -> str:
    """A table of a dataclass's or named tuple's fields; empty for other classes."""
    node = entry.node
    assert isinstance(node, ast.ClassDef)
    lines = comments(entry.home)
    rows = []
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name) and not item.target.id.startswith("_"):
            default = "" if item.value is None else f"`{value(item.value)}`"
            kind = ast.unparse(item.annotation).replace("|", "\\|")
            rows.append(f"| `{item.target.id}` | `{kind}` | {default} | {escaped(comment_of(lines, item))} |")
    if not rows:
        return ""
    return "\n".join(["| field | type | default | |", "|---|---|---|---|", *rows])


def is_dataclass(node: ast.ClassDef) -> bool:
    return any("dataclass" in ast.unparse(d) for d in node.decorator_list)


def documented(entry: Entry) -> str:
    """The directive of one name."""
    node = entry.node
    text = to_markdown(ast.get_docstring(node) or "")
    if isinstance(node, ast.FunctionDef):
        return f"::::{{py:function}} {entry.name}{signature(node, is_method=False)}\n\n{text}\n::::\n"
    init = next((m for m in node.body if isinstance(m, ast.FunctionDef) and m.name == "__init__"), None)
    head = ""
    if init is not None and not is_dataclass(node):
        head = signature(init, is_method=True).partition(" -> ")[0]
        if said := ast.get_docstring(init):
            text += f"\n\n{to_markdown(said)}"
    parts = [text, fields_of(entry)]
    for item in node.body:
        if not isinstance(item, ast.FunctionDef) or item.name.startswith("_"):
            continue
        said = ast.get_docstring(item)
        if said is None:
            continue
        marks = {ast.unparse(d).split(".")[-1] for d in item.decorator_list}
        if "overload" in marks:
            continue
        if marks & {"property", "cached_property"}:
            kind = f"\n   :type: {ast.unparse(item.returns)}" if item.returns is not None else ""
            parts.append(f":::{{py:property}} {item.name}{kind}\n\n{to_markdown(said)}\n:::")
        else:
            option = next((f"\n   :{m}:" for m in ("classmethod", "staticmethod") if m in marks), "")
            told = signature(item, is_method=True)
            parts.append(f":::{{py:method}} {item.name}{told}{option}\n\n{to_markdown(said)}\n:::")
    body = "\n\n".join(part for part in parts if part)
    return f"::::{{py:class}} {entry.name}{head}\n\n{body}\n::::\n"


def page_name(entry: Entry) -> str:
    """Names that one file defines and one module gives share a page."""
    return f"{entry.module}-{entry.home.split('.')[-1]}" if entry.module != entry.home else entry.home


def module_page(entries: list[Entry]) -> str:
    """Names of one module, after what the module's own docstring says of dimensions, formulas and numbers."""
    first = entries[0]
    names = ", ".join(entry.name for entry in entries)
    title = f"{names}" if len(names) <= MAX_VALUE else first.home
    said = ast.get_docstring(tree_of(first.home)) or ""
    about = f"`from {first.module} import {names}`" if len(names) <= MAX_VALUE else f"`import {first.module}`"
    path = source_of(first.home).relative_to(ROOT)
    parts = [f"# {title.replace('_', chr(92) + '_')}", about]
    parts += [f"```{{py:currentmodule}} {first.module}\n```"]
    parts += [documented(entry) for entry in entries]
    parts += [f"## The file `{path}`", f"```text\n{said}\n```"] if said else []
    return "\n\n".join(parts) + "\n"


def pages() -> dict[str, str]:
    """Every page of the reference by its path below docs/generated/."""
    written: dict[str, str] = {}
    index = [
        "# API reference",
        "All public names, from their docstrings. Letters at the end of a tensor's name are its dimensions: each page "
        "says what they stand for. What is not here is for the library's own use, and may change in any version.",
    ]
    listed: list[str] = []
    for group in groups():
        index += [f"## {group.name}", group.about]
        by_page: dict[str, list[Entry]] = {}
        for entry in group.entries:
            by_page.setdefault(page_name(entry), []).append(entry)
        rows = ["| | |", "|---|---|"]
        for name, entries in by_page.items():
            written[f"api/{name}.md"] = module_page(entries)
            listed.append(name)
            rows += [f"| [`{e.module}.{e.name}`](api/{name}.md) | {escaped(e.summary)} |" for e in entries]
        index.append("\n".join(rows))
    toc = "\n".join(f"api/{name}" for name in listed)
    index.append(f"```{{toctree}}\n:hidden:\n\n{toc}\n```")
    written["api.md"] = "\n\n".join(index) + "\n"
    return written
