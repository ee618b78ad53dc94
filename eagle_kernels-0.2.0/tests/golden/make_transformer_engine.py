"""Makes transformer_engine.json: the signatures of what fp8_te.py calls of Transformer Engine 2.20, from its sources.

    pip download --no-deps transformer_engine==2.20.2 && unzip transformer_engine-2.20.2-*.whl -d sources
    python -m tests.golden.make_transformer_engine sources

The package of that name is Python alone (its compiled parts are transformer_engine_cu13 and transformer_engine_torch);
it is read as text, never imported. Kept are names, parameters and defaults, and for modules the names of the weights.
"""

import ast
import json
import sys
from pathlib import Path

GOLDEN = Path(__file__).with_name("transformer_engine.json")
VERSION = "2.20.2"
CALLED = {  # what fp8_te.py calls, by the name it has there: the file that defines it
    "te.Linear": "pytorch/module/linear.py",
    "te.LayerNormLinear": "pytorch/module/layernorm_linear.py",
    "te.LayerNormMLP": "pytorch/module/layernorm_mlp.py",
    "te.autocast": "pytorch/quantization.py",
    "te.checkpoint": "pytorch/distributed.py",
    "te.is_fp8_available": "pytorch/quantization.py",
    "te.is_fp8_block_scaling_available": "pytorch/quantization.py",
    "te.is_mxfp8_available": "pytorch/quantization.py",
    "recipes.Float8CurrentScaling": "common/recipe/__init__.py",
    "recipes.Float8BlockScaling": "common/recipe/__init__.py",
    "recipes.MXFP8BlockScaling": "common/recipe/__init__.py",
    "recipes.Format": "common/recipe/__init__.py",
}


def definition(tree: ast.Module, name: str) -> ast.ClassDef | ast.FunctionDef:
    return next(n for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef) and n.name == name)


def method(node: ast.ClassDef, name: str) -> ast.FunctionDef | None:
    return next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == name), None)


def parameters(function: ast.FunctionDef) -> dict[str, str | None]:
    """Name: default, as text; None where it must be given. `*args` and `**kwargs` by these names."""
    args = function.args
    names = [arg.arg for arg in args.posonlyargs + args.args if arg.arg not in ("self", "cls")]
    defaults = [None] * (len(names) - len(args.defaults)) + [ast.unparse(value) for value in args.defaults]
    found = dict(zip(names, defaults, strict=True))
    for arg, value in zip(args.kwonlyargs, args.kw_defaults, strict=True):
        found[arg.arg] = None if value is None else ast.unparse(value)
    for star, arg in (("*", args.vararg), ("**", args.kwarg)):
        if arg is not None:
            found[star + arg.arg] = None
    return found


def fields(node: ast.ClassDef) -> dict[str, str | None]:
    """Of a dataclass: what is annotated."""
    annotated = [n for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
    return {n.target.id: None if n.value is None else ast.unparse(n.value) for n in annotated}  # type: ignore[union-attr]


def popped(function: ast.FunctionDef) -> list[str]:
    """Keywords that a function takes out of its **kwargs."""
    calls = [n for n in ast.walk(function) if isinstance(n, ast.Call) and ast.unparse(n.func) == "kwargs.pop"]
    return sorted({call.args[0].value for call in calls})  # type: ignore[attr-defined]


def weights(node: ast.ClassDef) -> list[str]:
    """Names under which a module registers parameters: literal ones, and those in `weight_names` and `bias_names`."""
    found = set()
    for n in ast.walk(node):
        if isinstance(n, ast.Call) and ast.unparse(n.func).endswith("register_parameter"):
            found |= {arg.value for arg in n.args[:1] if isinstance(arg, ast.Constant)}
        if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) in ("self.weight_names", "self.bias_names"):
            found |= set(ast.literal_eval(n.value))
    return sorted(found)


def signature(tree: ast.Module, name: str) -> dict[str, object]:
    node = definition(tree, name)
    if isinstance(node, ast.FunctionDef):
        found = {"parameters": parameters(node)}
        return found | ({"keywords": popped(node)} if "**kwargs" in found["parameters"] else {})
    init, forward = method(node, "__init__"), method(node, "forward")
    if init is None:
        members = [n.targets[0].id for n in node.body if isinstance(n, ast.Assign)]  # type: ignore[attr-defined]
        return {"parameters": fields(node)} if fields(node) else {"members": sorted(members)}
    found = {"parameters": parameters(init)}
    return found | ({"forward": parameters(forward), "weights": weights(node)} if forward else {})


def main(sources: Path) -> None:
    root = sources / "transformer_engine"
    trees = {file: ast.parse((root / file).read_text()) for file in {*CALLED.values(), "pytorch/__init__.py"}}
    exported = {
        alias.name for n in trees["pytorch/__init__.py"].body if isinstance(n, ast.ImportFrom) for alias in n.names
    }
    for name in CALLED:
        assert name.startswith("recipes.") or name.removeprefix("te.") in exported, name
    found = {name: signature(trees[file], name.split(".")[1]) for name, file in CALLED.items()}
    GOLDEN.write_text(json.dumps({"version": VERSION, "signatures": found}, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
