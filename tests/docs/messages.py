"""Every text of the source with its holes: what an f-string leaves open is "…". For pages that quote messages."""

import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
HOLE = "…"


def said(node: ast.AST) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(said(value) if isinstance(value, ast.Constant) else HOLE for value in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = said(node.left), said(node.right)
        return (left or HOLE) + (right or HOLE) if left or right else ""
    return ""


def all_messages() -> list[str]:
    found: list[str] = []
    for package in ("eagle_kernels", "eagle_model"):
        for path in sorted((ROOT / package).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            docstrings = {
                id(node.body[0].value)
                for node in ast.walk(tree)
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
                and node.body
                and isinstance(node.body[0], ast.Expr)
            }
            for node in ast.walk(tree):
                if id(node) not in docstrings and (text := said(node)):
                    found.append(text)
    return found
