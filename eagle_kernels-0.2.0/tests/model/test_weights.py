"""Weights as files: released names, bit-equal round trips, shards, and every way a file can be wrong."""

import json
import os
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from eagle_model.checkpoints import CheckpointError
from eagle_model.model import weights
from eagle_model.model.config import EagleConfig, tiny
from eagle_model.model.eagle import Eagle
from eagle_model.model.weights import Rule
from eagle_model.train import checkpoint
from tests.model.samples import IMAGE_TOKEN_ID, VOCAB_SIZE, mixed_documents, pack, small_model, with_text

CFG = tiny(vocab_size=VOCAB_SIZE, image_token_id=IMAGE_TOKEN_ID)


def released_keys() -> set[str]:
    """The names of nvidia/Eagle2.5-8B, for CFG's numbers of layers."""
    vision, text = "vision_model.vision_model.", "language_model.model."
    keys = {f"{vision}embeddings.patch_embedding.{k}" for k in ("weight", "bias")}
    keys |= {f"{vision}embeddings.position_embedding.weight", "language_model.lm_head.weight"}
    keys |= {f"{vision}post_layernorm.weight", f"{vision}post_layernorm.bias"}
    keys |= {f"mlp1.{i}.{k}" for i in (0, 1, 3) for k in ("weight", "bias")}
    keys |= {f"{text}embed_tokens.weight", f"{text}norm.weight"}
    for i in range(CFG.vision.num_hidden_layers):
        names = ["layer_norm1", "layer_norm2", "mlp.fc1", "mlp.fc2"]
        names += [f"self_attn.{p}_proj" for p in ("q", "k", "v", "out")]
        keys |= {f"{vision}encoder.layers.{i}.{name}.{k}" for name in names for k in ("weight", "bias")}
    for i in range(CFG.text.num_hidden_layers):
        names = ["input_layernorm", "post_attention_layernorm", "self_attn.o_proj"]
        names += [f"mlp.{p}_proj" for p in ("gate", "up", "down")] + [f"self_attn.{p}_proj" for p in "qkv"]
        keys |= {f"{text}layers.{i}.{name}.weight" for name in names}
        keys |= {f"{text}layers.{i}.self_attn.{p}_proj.bias" for p in "qkv"}
    return keys


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    small_model(CFG).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def rewrite(folder: Path, change) -> None:
    """Lets `change` edit the tensors of a saved model in place."""
    tensors = load_file(folder / weights.SINGLE)
    change(tensors)
    save_file(tensors, folder / weights.SINGLE)


def assert_same(a: Eagle, b: Eagle) -> None:
    ours, theirs = dict(a.named_parameters()), dict(b.named_parameters())
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype, name
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip_is_bit_equal(tmp_path, dtype):
    model = small_model(CFG).to(dtype)
    model.save_pretrained(tmp_path)
    again = Eagle.from_pretrained(tmp_path)
    assert_same(model, again)
    assert all(p.requires_grad and not p.is_meta for p in again.parameters())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == str(dtype).removeprefix("torch.")
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    row = pack(mixed_documents(CFG))
    with torch.no_grad():
        assert torch.equal(model.hidden(row), again.hidden(row))


def test_names_and_shapes_are_the_released_ones(saved):
    tensors = load_file(saved / "model.safetensors")
    assert tensors.keys() == released_keys()
    patch_embedding = tensors["vision_model.vision_model.embeddings.patch_embedding.weight"]
    assert patch_embedding.shape == (64, 3, 7, 7)
    assert torch.equal(patch_embedding.flatten(1), small_model(CFG).vision.patch_embedding.weight)


def test_saved_config_names_the_dtype_of_the_weights_alone(tmp_path):
    """Whatever the config that the model came with said."""
    fields = CFG.to_dict() | {"dtype": "float16"}
    fields["vision_config"]["torch_dtype"] = fields["text_config"]["dtype"] = "float16"
    small_model(EagleConfig.from_dict(fields)).bfloat16().save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    assert text.count('"bfloat16"') == 4
    assert '"float16"' not in text


def test_dtype_on_load(saved):
    half = Eagle.from_pretrained(saved, dtype=torch.bfloat16)
    assert_same(half, small_model(CFG).bfloat16())


def test_shards(tmp_path):
    model = small_model(CFG)
    limit_bytes = 400_000
    model.save_pretrained(tmp_path, max_shard_bytes=limit_bytes)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == released_keys()
    assert index["metadata"]["total_size"] == sum(p.numel() * 4 for p in model.parameters())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) > 3
    assert files == [f"model-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, len(files) + 1)]
    assert not (tmp_path / "model.safetensors").exists()
    for name in files:
        tensors = load_file(tmp_path / name)
        assert sum(t.numel() * 4 for t in tensors.values()) <= limit_bytes
        assert {key for key, file in index["weight_map"].items() if file == name} == tensors.keys()
    assert_same(model, Eagle.from_pretrained(tmp_path))

    (tmp_path / files[1]).unlink()
    with pytest.raises(FileNotFoundError, match=f"names {files[1]}, which"):
        Eagle.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is damaged"),
        ("[]", "is damaged"),
        ('{"weight_map": 3}', "is damaged"),
        ('{"weight_map": {"a": 3}}', "is damaged"),
        ("[" * 100_000, "is damaged"),
        ('{"weight_map": {"a": "../model.safetensors"}}', "shards must lie in the same folder"),
    ],
)
def test_bad_index(saved, text, message):
    (saved / weights.SINGLE).unlink()
    (saved / weights.INDEX).write_text(text)
    with pytest.raises(ValueError, match=message):
        Eagle.from_pretrained(saved)


def test_tied_embeddings_are_stored_once(tmp_path):
    model = small_model(with_text(CFG, tie_word_embeddings=True))
    model.save_pretrained(tmp_path)
    assert load_file(tmp_path / weights.SINGLE).keys() == released_keys() - {"language_model.lm_head.weight"}
    again = Eagle.from_pretrained(tmp_path)
    assert again.lm_head.weight is again.llm.embed_tokens.weight
    assert_same(model, again)

    def add_head(tensors, scale):
        tensors["language_model.lm_head.weight"] = scale * tensors["language_model.model.embed_tokens.weight"]

    rewrite(tmp_path, lambda tensors: add_head(tensors, 1))
    assert_same(model, Eagle.from_pretrained(tmp_path))
    rewrite(tmp_path, lambda tensors: add_head(tensors, 2))
    with pytest.raises(ValueError, match=r"says tie_word_embeddings, but language_model\.lm_head\.weight and"):
        Eagle.from_pretrained(tmp_path)


def test_tied_embeddings_under_the_heads_name_alone(tmp_path):
    """As programs write them that drop the first of two names."""
    model = small_model(with_text(CFG, tie_word_embeddings=True))
    model.save_pretrained(tmp_path)
    head, table = "language_model.lm_head.weight", "language_model.model.embed_tokens.weight"
    rewrite(tmp_path, lambda tensors: tensors.update({head: tensors.pop(table)}))
    again = Eagle.from_pretrained(tmp_path)
    assert_same(model, again)
    assert again.lm_head.weight is again.llm.embed_tokens.weight
    again.save_pretrained(tmp_path / "again")
    assert table in load_file(tmp_path / "again" / weights.SINGLE)


def test_every_wrong_tensor_is_named(saved):
    def change(tensors):
        del tensors["mlp1.1.bias"], tensors["language_model.model.norm.weight"]
        tensors["mlp1.2.weight"] = torch.zeros(1)
        tensors["vision_model.vision_model.encoder.layers.7.mlp.fc1.bias"] = torch.zeros(1)
        tensors["mlp1.3.bias"] = torch.zeros(5)
        tensors["vision_model.vision_model.embeddings.patch_embedding.weight"] = torch.zeros(64, 147)

    rewrite(saved, change)
    with pytest.raises(ValueError, match=r"do not fit the model of its config.json \(6 tensors\)") as raised:
        Eagle.from_pretrained(saved)
    assert sorted(str(raised.value).splitlines()[1:]) == [
        "  missing: language_model.model.norm.weight",
        "  missing: mlp1.1.bias",
        "  shape: mlp1.3.bias is (5,), needs (128,)",
        "  shape: vision_model.vision_model.embeddings.patch_embedding.weight is (64, 147), needs (64, 3, 7, 7)",
        "  unknown: mlp1.2.weight",
        "  unknown: vision_model.vision_model.encoder.layers.7.mlp.fc1.bias",
    ]


@pytest.mark.parametrize("keep", [0, 4, 100, 0.5, 0.999])
def test_truncated_file(saved, keep):
    path = saved / weights.SINGLE
    size_bytes = path.stat().st_size
    os.truncate(path, keep if isinstance(keep, int) else int(keep * size_bytes))
    with pytest.raises(ValueError, match=r"model\.safetensors \(\d+ bytes\) is damaged or cut short"):
        Eagle.from_pretrained(saved)


def test_garbage_is_no_pickle(saved):
    (saved / weights.SINGLE).write_bytes(b"\x80\x04cos\nsystem\n" + b"x" * 100)
    with pytest.raises(ValueError, match="is damaged or cut short"):
        Eagle.from_pretrained(saved)


def test_missing_files(tmp_path, saved):
    with pytest.raises(FileNotFoundError, match=r"nowhere is no folder; needs that of a checkpoint"):
        Eagle.from_pretrained(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        Eagle.from_pretrained(tmp_path / "empty")
    (saved / weights.SINGLE).unlink()
    with pytest.raises(FileNotFoundError, match=r"holds neither model\.safetensors nor model\.safetensors\."):
        Eagle.from_pretrained(saved)


def test_saving_over_weights_is_refused(saved):
    before = (saved / weights.SINGLE).read_bytes()
    with pytest.raises(FileExistsError, match=r"already holds model\.safetensors; save to an empty folder"):
        small_model(CFG, seed=1).save_pretrained(saved)
    assert (saved / weights.SINGLE).read_bytes() == before


def test_files_have_the_permissions_that_the_umask_gives(tmp_path):
    before = os.umask(0o027)
    try:
        small_model(CFG).save_pretrained(tmp_path)
    finally:
        os.umask(before)
    modes = {file.name: oct(file.stat().st_mode & 0o777) for file in tmp_path.iterdir()}
    assert modes == {"config.json": "0o640", "model.safetensors": "0o640"}


def test_a_failed_write_leaves_no_file(tmp_path, monkeypatch):
    def no_space(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left"):
        small_model(CFG).save_pretrained(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_loaded_weights_do_not_depend_on_the_file(saved):
    model = Eagle.from_pretrained(saved)
    path = saved / weights.SINGLE
    path.write_bytes(b"\0" * path.stat().st_size)
    assert_same(model, small_model(CFG))


def test_a_parameter_without_a_rule_is_named():
    with pytest.raises(ValueError, match=r"adapter\.weight has no rule in the table of weight names"):
        weights.released({"adapter.weight": torch.zeros(1)}, weights.rules(CFG))


# ---- dtypes, names, sizes


def test_mixed_dtypes_are_cast_or_refused(saved):
    def change(tensors):
        for key in ("mlp1.0.weight", "mlp1.0.bias"):
            tensors[key] = tensors[key].bfloat16()

    rewrite(saved, change)
    with pytest.raises(
        ValueError, match=r"several dtypes: 80 F32 \(.*, \.\.\.\), 2 BF16 \(mlp1\.0\.weight, \.\.\.\)\. Give"
    ):
        Eagle.from_pretrained(saved)
    for dtype in (torch.float32, torch.bfloat16):
        assert {p.dtype for p in Eagle.from_pretrained(saved, dtype=dtype).parameters()} == {dtype}


@pytest.mark.parametrize(
    ("dtype", "name"), [(torch.int8, "I8"), (torch.float8_e4m3fn, "F8_E4M3"), (torch.int64, "I64")]
)
def test_quantised_weights_are_refused(saved, dtype, name):
    key = "language_model.model.layers.0.mlp.up_proj.weight"
    rewrite(saved, lambda tensors: tensors.update({key: tensors[key].to(dtype)}))
    with pytest.raises(
        ValueError, match=rf"dtype: {re.escape(key)} is {name}, needs one of F64, F32, F16, BF16: no quant"
    ):
        Eagle.from_pretrained(saved, dtype=torch.float32)


def renamed(folder: Path, rename) -> None:
    tensors = {rename(key): tensor for key, tensor in load_file(folder / weights.SINGLE).items()}
    save_file(tensors, folder / weights.SINGLE)


@pytest.mark.parametrize(
    ("rename", "message"),
    [
        (lambda key: f"module.{key}", r"\d+ tensors have 'module\.' in their names, as DistributedDataParallel"),
        (lambda key: f"_orig_mod.{key}", r"have '_orig_mod\.' in their names, as torch\.compile saves them; save"),
        (lambda key: f"module._orig_mod.{key}", r"have 'module\.' in their names"),
        (lambda key: key.replace("mlp1.", "mlp1._orig_mod."), r"^\S+: 6 tensors have '_orig_mod\.'"),
        (lambda key: f"base_model.model.{key}", r"as peft saves them; save merge_and_unload\(\)'s model"),
        (
            lambda key: "model." + key.replace("vision_model.vision_model.", "vision_model."),
            r"begin with 'model\.vision_model\.' as transformers 5 does; .* begin with 'vision_model\.vision_model\.'",
        ),
        (
            lambda key: f"model.{key}",
            r"tensors have names that begin with 'model\.' as a model that holds this one does",
        ),
        (lambda key: f"policy.vlm.{key}", r"begin with 'policy\.vlm\.' as a model that holds this one does"),
    ],
)
def test_other_names_for_all_tensors_are_one_line(saved, rename, message):
    renamed(saved, rename)
    with pytest.raises(ValueError, match=message) as raised:
        Eagle.from_pretrained(saved)
    assert len(str(raised.value).splitlines()) == 1


def test_buffers_that_are_computed_do_not_stop_a_load(saved):
    buffers = {
        "vision_model.vision_model.embeddings.position_ids": torch.arange(16)[None],
        "language_model.model.rotary_emb.inv_freq": torch.ones(16),
        "language_model.model.layers.1.self_attn.rotary_emb.inv_freq": torch.ones(16),
    }
    rewrite(saved, lambda tensors: tensors.update(buffers))
    assert_same(Eagle.from_pretrained(saved), small_model(CFG))


def test_a_refusal_has_20_names_and_a_count(saved):
    renamed(saved, lambda key: "x" * 5_000 + key)
    with pytest.raises(ValueError, match=r"\(1\d\d tensors\)") as raised:
        Eagle.from_pretrained(saved)
    lines = str(raised.value).splitlines()
    assert len(lines) == 22
    assert re.fullmatch(r"  and 1\d\d more", lines[-1])
    assert max(map(len, lines)) < 400
    names = {f"{i}": f"shard-{i}" for i in range(1000)}
    (saved / weights.SINGLE).unlink()
    (saved / weights.INDEX).write_text(json.dumps({"weight_map": names}))
    with pytest.raises(FileNotFoundError, match=r"shard-999|and 980 more") as raised:
        Eagle.from_pretrained(saved)
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("text_config", "num_hidden_layers", 10**9),
        ("vision_config", "num_hidden_layers", 10**9),
        ("text_config", "intermediate_size", 10**18),
        ("text_config", "vocab_size", 10**18),
    ],
)
def test_absurd_sizes_are_refused_before_a_layer_is_built(saved, part, field, value):
    fields = json.loads((saved / "config.json").read_text())
    fields[part][field] = value
    (saved / "config.json").write_text(json.dumps(fields))
    with pytest.raises(
        ValueError, match=r"a model of \d{13,} parameters, but the safetensors files hold 7\d{5} numbers"
    ):
        Eagle.from_pretrained(saved)


def test_a_tensor_in_two_shards_is_named(saved):
    tensors = load_file(saved / weights.SINGLE)
    save_file({"mlp1.0.bias": tensors["mlp1.0.bias"] + 1}, saved / "more.safetensors")
    (saved / weights.SINGLE).rename(saved / "most.safetensors")
    index = {"weight_map": {"mlp1.0.bias": "more.safetensors", "mlp1.0.weight": "most.safetensors"}}
    (saved / weights.INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"both hold mlp1\.0\.bias; needs it once"):
        Eagle.from_pretrained(saved)


# ---- beside a manifest


@pytest.fixture
def step(tmp_path: Path) -> Path:
    """A checkpoint of a run."""
    folder = tmp_path / "run" / "checkpoints"
    return checkpoint.save(folder, 1, "run", lambda partial: small_model(CFG).save_pretrained(partial))


def test_an_unlisted_index_is_not_read(step):
    zeros = {key: torch.zeros_like(tensor) for key, tensor in load_file(step / weights.SINGLE).items()}
    save_file(zeros, step / "model-00001-of-00001.safetensors")
    index = {"weight_map": dict.fromkeys(zeros, "model-00001-of-00001.safetensors")}
    (step / weights.INDEX).write_text(json.dumps(index))
    assert_same(Eagle.from_pretrained(step), small_model(CFG))


@pytest.mark.parametrize("name", ["config.json", weights.SINGLE])
def test_what_is_read_is_checked(step, name):
    content = bytearray((step / name).read_bytes())
    content[-20] ^= 1
    (step / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{name} has SHA-256 \w+; the manifest says"):
        Eagle.from_pretrained(step)


def test_what_is_not_read_is_not_checked(tmp_path):
    """So that answering a question does not wait for the optimizer's bytes, of which there are four times as many."""

    def write(folder: Path) -> None:
        small_model(CFG).save_pretrained(folder)
        (folder / "optimizer.safetensors").write_bytes(b"good")

    step = checkpoint.save(tmp_path, 1, "run", write)
    (step / "optimizer.safetensors").write_bytes(b"baad")
    assert_same(Eagle.from_pretrained(step), small_model(CFG))


def test_weights_that_the_manifest_does_not_list_are_refused(tmp_path):
    def write(folder: Path) -> None:
        small_model(CFG).save_pretrained(folder)
        (folder / weights.SINGLE).rename(folder / "other")

    step = checkpoint.save(tmp_path, 1, "run", write)
    (step / "other").rename(step / weights.SINGLE)
    with pytest.raises(CheckpointError, match=r"holds model\.safetensors, which its manifest does not list"):
        Eagle.from_pretrained(step)


# ---- memory


def test_loading_takes_the_weights_and_one_shard(tmp_path):
    """Read in bf16 from fp32 shards, in a process of its own, whose peak counts the mapped files too."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("needs Linux's /proc/self/clear_refs to measure a peak")
    shard_bytes = 16_000_000
    cfg = with_text(CFG, hidden_size=256, intermediate_size=4096, num_hidden_layers=8)
    model = Eagle(cfg)
    model.save_pretrained(tmp_path, max_shard_bytes=shard_bytes)
    assert len(list(tmp_path.glob("*.safetensors"))) > 5
    code = f"""
import torch
from pathlib import Path
from eagle_model.model.config import EagleConfig
from eagle_model.model.eagle import build, load
def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))
model = build(EagleConfig.read({str(tmp_path / "config.json")!r}))
torch.ones(1 << 20).bfloat16()
Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
before = status("VmRSS")
load(model, {str(tmp_path)!r}, dtype=torch.bfloat16)
print(status("VmHWM") - before)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    weight_bytes = sum(2 * p.numel() for p in model.parameters())
    grown_bytes = int(out.stdout)
    assert weight_bytes > 3 * shard_bytes
    assert 0.9 * weight_bytes < grown_bytes < weight_bytes + shard_bytes + 4_000_000, grown_bytes


@pytest.mark.parametrize("max_shard_bytes", [10**9, 200_000])
def test_mapped_weights_are_views_of_the_files_and_the_same(tmp_path, max_shard_bytes):
    model = small_model(CFG)
    model.save_pretrained(tmp_path, max_shard_bytes=max_shard_bytes)
    again = Eagle.from_pretrained(tmp_path, mapped=True)
    assert_same(model, again)

    def in_files(x) -> bool:
        starts = [
            line.split()[0].split("-")
            for line in Path("/proc/self/maps").read_text().splitlines()
            if str(tmp_path) in line
        ]
        return any(int(start, 16) <= x.data_ptr() < int(end, 16) for start, end in starts)

    mapped = {name for name, parameter in again.named_parameters() if in_files(parameter)}
    copied = {name.rpartition(".")[0].rpartition(".")[2] for name, _ in again.named_parameters() if name not in mapped}
    assert copied <= {"qkv_proj", "gate_up_proj"}
    assert "qkv_proj" in copied  # which lie apart
    if max_shard_bytes == 10**9:
        assert "llm.layers.0.mlp.gate_up_proj.weight" in mapped  # which lie one after another
    before = {path: path.read_bytes() for path in tmp_path.glob("*.safetensors")}
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.add_(1)
    assert {path: path.read_bytes() for path in before} == before
    assert all(torch.equal(a, b + 1) for a, b in zip(again.parameters(), model.parameters(), strict=True))
    other = Eagle.from_pretrained(tmp_path, mapped=True, dtype=torch.bfloat16)  # another dtype is a copy
    assert not any(map(in_files, other.parameters()))


# ---- rules


def fused_rules(num_heads: int, num_kv_heads: int, head_dim: int) -> tuple[Rule, ...]:
    """Released q, k, v, gate and up become qkv and gate_up; a released qkv becomes q, k and v; one name is unused."""
    heads = [head_dim * n for n in (num_heads, num_kv_heads, num_kv_heads)]

    def join(*parts):
        return (torch.cat(parts),)

    return (
        Rule(
            theirs=tuple(f"model.{{i}}.self_attn.{x}_proj.{{kind}}" for x in "qkv"),
            ours=("llm.{i}.attn.qkv.{kind}",),
            to_ours=join,
            to_theirs=lambda qkv: qkv.split(heads),
        ),
        Rule(
            theirs=("model.{i}.mlp.gate_proj.{kind}", "model.{i}.mlp.up_proj.{kind}"),
            ours=("llm.{i}.mlp.gate_up.{kind}",),
            to_ours=join,
            to_theirs=lambda gate_up: gate_up.chunk(2),
        ),
        Rule(
            theirs=("visual.{i}.qkv.{kind}",),
            ours=tuple(f"vision.{{i}}.{x}.{{kind}}" for x in "qkv"),
            to_ours=lambda qkv: qkv.chunk(3),
            to_theirs=join,
        ),
        Rule(theirs=("model.{rest}",), ours=("llm.{rest}",)),
        Rule(theirs=("visual.head.{rest}",)),
    )


class FusedLayer(nn.Module):
    def __init__(self, num_heads: int, num_kv_heads: int, head_dim: int) -> None:
        super().__init__()
        width = num_heads * head_dim
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, width + 2 * num_kv_heads * head_dim)})
        self.mlp = nn.ModuleDict({"gate_up": nn.Linear(width, 6 * width, bias=False), "down": nn.Linear(3 * width, 1)})


class Fused(nn.Module):
    def __init__(self, num_layers: int, *sizes: int) -> None:
        super().__init__()
        self.llm = nn.ModuleList(FusedLayer(*sizes) for _ in range(num_layers))
        self.vision = nn.ModuleList(nn.ModuleDict({x: nn.Linear(4, 4) for x in "qkv"}) for _ in range(num_layers))


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()


@settings(max_examples=25, deadline=None)
@given(
    num_layers=st.integers(1, 12),
    num_kv_heads=st.integers(1, 3),
    group=st.integers(1, 4),
    head_dim=st.integers(1, 5),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    num_files=st.integers(1, 5),
    seed=st.integers(0, 2**32),
)
def test_tables_of_joins_and_splits_come_back_bit_by_bit(
    num_layers, num_kv_heads, group, head_dim, dtype, num_files, seed
):
    """Whatever the sizes, and however the released tensors lie in files."""
    sizes = (group * num_kv_heads, num_kv_heads, head_dim)
    rules = fused_rules(*sizes)
    torch.manual_seed(seed)
    model = Fused(num_layers, *sizes).to(dtype)
    parameters = dict(model.named_parameters())
    stored = weights.released(parameters, rules)
    for i in range(num_layers):
        qkv = parameters[f"llm.{i}.attn.qkv.bias"]
        parts = [stored[f"model.{i}.self_attn.{x}_proj.bias"] for x in "qkv"]
        assert [len(part) for part in parts] == [head_dim * n for n in (sizes[0], num_kv_heads, num_kv_heads)]
        assert torch.equal(torch.cat(parts), qkv)
        assert stored[f"visual.{i}.qkv.weight"].shape == (12, 4)
    assert sum(t.numel() for t in stored.values()) == sum(p.numel() for p in model.parameters())
    assert {name.split(".")[0] for name in stored} == {"model", "visual"}
    assert "model.0.mlp.down.weight" in stored

    with tempfile.TemporaryDirectory() as folder:
        files = [dict[str, torch.Tensor]() for _ in range(num_files)]
        rng = random.Random(seed)
        for key, tensor in stored.items():
            rng.choice(files)[key] = tensor.detach().contiguous()
        files[0]["visual.head.probe"] = torch.zeros(3)
        names = {f"model-{i}.safetensors": tensors for i, tensors in enumerate(files)}
        for name, tensors in names.items():
            save_file(tensors, Path(folder) / name)
        index = {"weight_map": {key: name for name, tensors in names.items() for key in tensors}}
        (Path(folder) / weights.INDEX).write_text(json.dumps(index))
        shapes = dict(Fused(num_layers, *sizes).to("meta").named_parameters())
        again = dict(weights.read(Path(folder), shapes, rules, dtype=None, device="cpu"))
    assert again.keys() == parameters.keys()
    for name, tensor in again.items():
        assert bits(tensor) == bits(parameters[name]), name


def test_what_waits_for_a_later_shard_does_not_hold_an_earlier_one(tmp_path):
    """A view of a mapped file keeps all of it in memory, and shows what is written to it."""
    rules = fused_rules(4, 2, 3)
    parameters = dict(Fused(1, 4, 2, 3).named_parameters())
    stored = {key: tensor.detach().contiguous() for key, tensor in weights.released(parameters, rules).items()}
    first = {key: stored.pop(key) for key in ("model.0.self_attn.q_proj.weight", "model.0.mlp.down.weight")}
    save_file(first, tmp_path / "model-1.safetensors")
    save_file(stored, tmp_path / "model-2.safetensors")
    index = {"weight_map": dict.fromkeys(first, "model-1.safetensors") | dict.fromkeys(stored, "model-2.safetensors")}
    (tmp_path / weights.INDEX).write_text(json.dumps(index))
    tensors = weights.read(tmp_path, parameters, rules, dtype=None, device="cpu")
    assert next(tensors)[0] == "llm.0.mlp.down.weight"  # the first file has been read; q waits for k and v
    path = tmp_path / "model-1.safetensors"
    path.write_bytes(b"\0" * path.stat().st_size)
    assert torch.equal(dict(tensors)["llm.0.attn.qkv.weight"], parameters["llm.0.attn.qkv.weight"])


def test_a_fused_model_saves_what_a_plain_one_reads(tmp_path):
    model = Fused(2, 4, 2, 3)
    weights.save(tmp_path, dict(model.named_parameters()), fused_rules(4, 2, 3))
    keys = load_file(tmp_path / weights.SINGLE).keys()
    assert {key for key in keys if key.startswith("model.1.")} == {
        *(f"model.1.self_attn.{x}_proj.{kind}" for x in "qkv" for kind in ("weight", "bias")),
        "model.1.mlp.gate_proj.weight",
        "model.1.mlp.up_proj.weight",
        "model.1.mlp.down.weight",
        "model.1.mlp.down.bias",
    }


def test_a_part_of_a_join_that_is_missing_or_wrong_is_named(tmp_path):
    model, rules = Fused(1, 4, 2, 3), fused_rules(4, 2, 3)
    parameters = dict(model.named_parameters())
    weights.save(tmp_path, parameters, rules)

    def change(tensors):
        del tensors["model.0.self_attn.k_proj.bias"]
        tensors["model.0.mlp.up_proj.weight"] = torch.zeros(35, 12)

    rewrite(tmp_path, change)
    with pytest.raises(ValueError, match=r"\(2 tensors\)") as raised:
        list(weights.read(tmp_path, parameters, rules, dtype=None, device="cpu"))
    assert sorted(str(raised.value).splitlines()[1:]) == [
        "  missing: model.0.self_attn.k_proj.bias",
        "  shape: model.0.mlp.up_proj.weight is (35, 12), needs (36, 12)",
    ]


def test_a_rule_needs_all_of_its_parameters():
    parameters = dict(Fused(1, 4, 2, 3).named_parameters())
    del parameters["vision.0.k.bias"]
    with pytest.raises(ValueError, match=r"vision\.0\.q\.bias belongs with vision\.0\.k\.bias by its rule"):
        weights.released(parameters, fused_rules(4, 2, 3))


def test_eagles_table_names_every_parameter_once():
    model = small_model(CFG)
    stored = weights.released(dict(model.named_parameters()), weights.rules(CFG))
    assert stored.keys() == released_keys()
    used = {template for rule in weights.rules(CFG) for template in rule.theirs if rule.ours}
    for template in used:
        assert any(weights._match(template, key) is not None for key in stored), template


def test_a_single_file_beside_an_index_of_another_saving_is_what_is_read(saved):
    want = Eagle.from_pretrained(saved)
    zeros = {name: torch.zeros_like(tensor) for name, tensor in load_file(saved / weights.SINGLE).items()}
    save_file(zeros, saved / "model-00001-of-00001.safetensors")
    index = {"weight_map": dict.fromkeys(zeros, "model-00001-of-00001.safetensors")}
    (saved / weights.INDEX).write_text(json.dumps(index))
    assert torch.equal(Eagle.from_pretrained(saved).lm_head.weight, want.lm_head.weight)
