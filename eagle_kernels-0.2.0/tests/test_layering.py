"""The table of layers in docs/architecture.md, enforced: who may import whom."""

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BASE = {"__init__", "autocast", "checks", "library", "native"}  # what every op may import
OPS = sorted(p.stem for p in (ROOT / "eagle_kernels").glob("*.py") if p.stem not in BASE)
THIRD_PARTY_IN_KERNELS = {"torch", "triton", "numpy"}
COMPOSITIONS: dict[str, set[str]] = {  # an op that may import others, by name
    "attention": {"attention_plan", "attention_sm90", "attention_triton"},
    "attention_gluon_bwd": {"attention_gluon"},
    "attention_sm90": {"attention_gluon", "attention_gluon_bwd", "attention_plan", "attention_triton"},
    "attention_triton": {"attention_plan"},
    "decode_tiles": {"frames_to_tiles", "tiles", "video", "yuv_to_tiles"},
    "frames_to_tiles": {"tiles"},
    "gelu_bias": {"sum_partials"},
    "layer_norm": {"sum_partials"},
    "linear_cross_entropy": {"linear_cross_entropy_triton"},
    "merge_2x2_layer_norm": {"layer_norm", "merge_2x2"},
    "qkv_rope": {"rope", "sum_partials"},
    "rms_norm": {"sum_partials"},
    "yuv_to_tiles": {"tiles", "video.colour"},
}
SHARED = ("batch", "checkpoints", "fields", "files")  # of eagle_model, what its folders share
FOLDERS = tuple(f"eagle_model.{name}" for name in ("data", "model", "train", "infer", "evaluate", "annotate"))
ONE_PLACE = {  # a file, or a folder
    "av": "eagle_kernels/video/libav",
    "aiohttp": "eagle_model/data/remote.py",
    "fastapi": "eagle_model/infer/server.py",
    "flash_attn": "eagle_kernels/attention.py",
    "fsspec": "eagle_model/data/remote.py",
    "httpx2": "eagle_model/infer/endpoint.py",
    "jinja2": "eagle_model/train/report.py",
    "lmdb": "eagle_model/data/formats/lmdb_media.py",
    "nvidia": "eagle_kernels/video/dali.py",
    "onnx": "eagle_model/infer/export.py",
    "pillow_heif": "eagle_model/data/images.py",
    "prometheus_client": "eagle_model/infer/metrics.py",
    "pypdfium2": "eagle_model/data/documents.py",
    "simplejpeg": "eagle_model/data/images.py",
    "transformer_engine": "eagle_model/model/fp8_te.py",
    "uvicorn": "eagle_model/infer/server.py",
    "vllm": "eagle_model/infer/vllm",
    "wandb": "eagle_model/train/sinks.py",
    "xgrammar": "eagle_model/infer/guided.py",
}
TORCHAO = {"eagle_model/model/nf4.py", "eagle_model/model/quantize.py", "eagle_model/train/adamw8bit.py"}


def modules(folder: str) -> list[Path]:
    return [ROOT / folder] if folder.endswith(".py") else sorted((ROOT / folder).rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Every module that the file names in an import, at any depth, as absolute dotted names."""
    package = path.relative_to(ROOT).with_suffix("").parts[:-1]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(filter(None, [base, node.module or ""]))
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return found


def reaches(path: Path, *forbidden: str) -> list[str]:
    return [m for m in imports(path) if any(m == f or m.startswith(f + ".") for f in forbidden)]


def test_the_reader_of_imports_sees_them(tmp_path: Path) -> None:
    assert "eagle_kernels.checks.refuse" in imports(ROOT / "eagle_kernels/swiglu.py")
    assert reaches(ROOT / "eagle_kernels/swiglu.py", "eagle_kernels.checks")


@pytest.mark.parametrize("op", OPS)
def test_an_op_imports_native_checks_torch_and_triton(op: str) -> None:
    path = ROOT / "eagle_kernels" / f"{op}.py"
    allowed = {op} | COMPOSITIONS.get(op, set())
    others = reaches(path, "eagle_model", "bench", "tests", *(f"eagle_kernels.{o}" for o in [*OPS, "video"]))
    may = set(reaches(path, *(f"eagle_kernels.{a}" for a in allowed)))
    assert not set(others) - may
    third_party = {m.split(".")[0] for m in imports(path)} - set(sys.stdlib_module_names) - {"eagle_kernels"}
    alone = {module for module, file in ONE_PLACE.items() if file == f"eagle_kernels/{op}.py"}
    assert third_party <= THIRD_PARTY_IN_KERNELS | alone, third_party


def test_native_imports_nothing_of_ours_but_the_extension() -> None:
    assert not reaches(ROOT / "eagle_kernels/native.py", "eagle_kernels", "eagle_model")


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("eagle_kernels", ("eagle_model", "bench", "tests")),
        ("eagle_kernels/video", (*(f"eagle_kernels.{op}" for op in OPS), "eagle_model")),
        ("eagle_kernels/integrations", ("eagle_kernels.video", "eagle_model")),
        ("eagle_model/data", ("eagle_model.model", "eagle_model.train", "eagle_model.infer", "bench", "tests")),
        (
            "eagle_model/model",
            ("eagle_model.data", "eagle_model.train", "eagle_model.infer", "eagle_kernels.video", "bench", "tests"),
        ),
        *(
            (f"eagle_model/{folder}", (*(f"eagle_model.{name}" for name in never), "bench", "tests", "eagle_model.cli"))
            for folder, never in {
                "train": ("infer", "evaluate", "annotate"),
                "infer": ("train", "evaluate", "annotate"),
                "evaluate": ("train", "annotate"),
                "annotate": ("model", "train", "evaluate"),
            }.items()
        ),
        ("eagle_model/hf.py", ("eagle_model.train", "eagle_model.infer", "eagle_model.cli", "bench", "tests")),
        (
            "eagle_model/hf_processor.py",
            ("eagle_model.model", "eagle_model.train", "eagle_model.infer", "eagle_model.cli", "bench", "tests"),
        ),
        ("eagle_model", ("bench", "tests", "examples")),
        *((f"eagle_model/{name}.py", (*FOLDERS, "eagle_kernels", "eagle_model.cli")) for name in SHARED),
    ],
)
def test_a_layer_reaches_only_down(folder: str, forbidden: tuple[str, ...]) -> None:
    files = modules(folder)
    assert files
    wrong = {str(p.relative_to(ROOT)): found for p in files if (found := reaches(p, *forbidden))}
    assert not wrong


@pytest.mark.parametrize("name", SHARED)
def test_what_the_folders_share_needs_little(name: str) -> None:
    third_party = {m.split(".")[0] for m in imports(ROOT / f"eagle_model/{name}.py")} - set(sys.stdlib_module_names)
    assert third_party <= {"eagle_model", "torch", "numpy", "safetensors"}, third_party


def test_data_and_model_meet_only_in_packed_batch() -> None:
    """The other files that both use hold no data: configs, whole-file writes, checkpoints as they are read."""
    ours = {m for p in modules("eagle_model/data") + modules("eagle_model/model") for m in imports(p)}
    crossing = {m for m in ours if re.fullmatch(r"eagle_model\.\w+", m)} - {"eagle_model.data", "eagle_model.model"}
    assert crossing <= {f"eagle_model.{name}" for name in SHARED}, crossing


def test_other_libraries_models_are_known_at_the_edges_alone() -> None:
    """transformers: integrations, hf's two files, vLLM's adapter, the encoder of clips. The integrations: hf.py."""
    files = ("eagle_model/hf.py", "eagle_model/hf_processor.py", "eagle_model/annotate/encoder.py")
    edges = {
        *modules("eagle_kernels/integrations"),
        *modules("eagle_model/infer/vllm"),
        *(ROOT / file for file in files),
    }
    inside = [p for p in modules("eagle_kernels") + modules("eagle_model") if p not in edges]
    found = {str(p): reaches(p, "transformers", "peft", "trl", "eagle_kernels.integrations") for p in inside}
    assert not {path: names for path, names in found.items() if names}


@pytest.mark.parametrize("library", ONE_PLACE)
def test_a_decoder_is_imported_in_one_place(library: str) -> None:
    users = [p.relative_to(ROOT) for p in modules("eagle_kernels") + modules("eagle_model") if reaches(p, library)]
    assert all(Path(ONE_PLACE[library]) in (user, *user.parents) for user in users), users


def test_torchao_is_imported_where_it_is_named() -> None:
    assert {str(p.relative_to(ROOT)) for p in modules("eagle_model") if reaches(p, "torchao")} == TORCHAO


def test_libav_is_imported_late_by_all_but_its_own_folder() -> None:
    """The package imports without PyAV: outside of libav/ only functions, and type checkers, import it."""
    for path in modules("eagle_kernels"):
        if path.is_relative_to(ROOT / "eagle_kernels/video/libav"):
            continue
        at_once = [node for node in ast.parse(path.read_text()).body if isinstance(node, (ast.Import, ast.ImportFrom))]
        assert not [node.lineno for node in at_once if "libav" in ast.unparse(node)], path


def test_the_rooms_of_video_know_no_more_than_they_must() -> None:
    """bitstream/ and containers/ read bytes: no planner, no decoder; the planner reads no file."""
    for folder in ("bitstream", "containers"):
        for path in modules(f"eagle_kernels/video/{folder}"):
            ours = [m for m in imports(path) if m.startswith("eagle_kernels.video.")]
            allowed = (f"eagle_kernels.video.{folder}", "eagle_kernels.video.info")
            assert all(m.startswith(allowed) for m in ours), path
    plan = ROOT / "eagle_kernels/video/plan.py"
    assert not reaches(plan, "eagle_kernels.video.libav", "eagle_kernels.video.containers")


def test_nothing_unpickles() -> None:
    """Checkpoints and caches are safetensors and JSON: no pickle, no torch.load, no torch.save, anywhere."""
    for path in [p for f in ("eagle_kernels", "eagle_model", "bench", "examples") for p in modules(f)]:
        assert not reaches(path, "pickle", "dill", "cloudpickle", "joblib", "shelve"), path
        for node in ast.walk(ast.parse(path.read_text())):
            called = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch"
            assert not (called and node.attr in {"load", "save"}), f"{path}:{node.lineno} calls torch.{node.attr}"


@pytest.mark.parametrize("path", sorted((ROOT / "csrc").iterdir()), ids=lambda p: p.name)
def test_native_code_knows_no_torch_and_python_only_in_bindings(path: Path) -> None:
    included = re.findall(r'#\s*include\s*[<"]([^">]+)', path.read_text())
    assert not [i for i in included if re.match(r"torch|ATen|c10", i)]
    if path.name != "bindings.cpp":
        assert not [i for i in included if re.match(r"pybind11|Python", i)]
