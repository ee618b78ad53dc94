"""Folders as their users have them: of LeRobot's class, other layouts, tensors that the model does not use, pickle."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from eagle_model.batch import IGNORE_INDEX, PackedBatch
from eagle_model.model import weights
from eagle_model.model.config import EagleConfig, tiny
from eagle_model.model.eagle import Eagle
from tests.model.samples import IMAGE_TOKEN_ID, VOCAB_SIZE, small_model
from tests.model.test_config import RELEASED

GOLDEN = Path(__file__).parent.parent / "golden" / "eagle"  # by make_eagle.py beside it
CFG = tiny(vocab_size=VOCAB_SIZE, image_token_id=IMAGE_TOKEN_ID)
HEAD = {f"{weights.POOLING_HEAD}{name}": torch.randn(3, 5).bfloat16() for name in ("probe", "mlp.fc1.weight")}


def files(folder: Path) -> dict[str, Tensor]:
    paths = [path for path in folder.glob("*.safetensors") if path.name != "golden.safetensors"]
    return {key: tensor for path in paths for key, tensor in load_file(path).items()}


def assert_same_tensors(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for key, tensor in ours.items():
        assert (tensor.dtype, tensor.shape) == (theirs[key].dtype, theirs[key].shape), key
        assert torch.equal(tensor.view(torch.uint8), theirs[key].view(torch.uint8)), key  # every bit, of nan too


def row_of(golden: dict[str, Tensor], cfg: EagleConfig) -> PackedBatch:
    token_ids_T, pixels = golden["token_ids"], golden["pixels"].float()
    side, patch_px = cfg.vision.tile_px // cfg.vision.patch_px, cfg.vision.patch_px
    patches = pixels.unflatten(3, (side, patch_px)).unflatten(2, (side, patch_px)).permute(0, 2, 4, 1, 3, 5)
    num_tokens = len(token_ids_T)
    return PackedBatch(
        token_ids_T=token_ids_T,
        labels_T=torch.full_like(token_ids_T, IGNORE_INDEX),
        positions_T=torch.arange(num_tokens, dtype=torch.int32),
        cu_seqlens=torch.tensor([0, num_tokens], dtype=torch.int32),
        patches_IPK=patches.reshape(len(pixels), side**2, -1),
        visual_rows_N=(token_ids_T == cfg.image_token_id).nonzero()[:, 0],
        sample_ids=("golden",),
    )


# ---- LeRobot's class


@pytest.mark.parametrize("name", ["qwen2", "groot", "llama"])
def test_what_lerobots_class_wrote_gives_its_numbers(name):
    folder = GOLDEN / name
    golden = load_file(folder / "golden.safetensors")
    model = Eagle.from_pretrained(folder, dtype=torch.float32)
    row = row_of(golden, model.cfg)
    with torch.no_grad():
        features = model.vision(row.patches_IPK)
        hidden_TD = model.hidden(row)
        got = {"visual_tokens": model.encode_tiles(row.patches_IPK), "hidden": hidden_TD}
        got["logits"] = model.lm_head(hidden_TD)
    assert (features - golden["vision"]).abs().max() < 1e-5
    for key, tensor in got.items():
        assert golden[key].abs().mean() > 0.05  # numbers that say something
        assert (tensor - golden[key]).abs().max() < 1e-4, key


@pytest.mark.parametrize(("name", "layout"), [("qwen2", "released"), ("llama", "released"), ("groot", "groot")])
def test_what_lerobots_class_wrote_comes_back_bit_by_bit(tmp_path, name, layout):
    """Tensors, the pooling head among them, and every field of config.json, in one dtype or another of computation."""
    folder = GOLDEN / name
    Eagle.from_pretrained(folder).save_pretrained(tmp_path, layout=layout)
    theirs = {key: tensor for key, tensor in files(folder).items() if not key.startswith("action_head.")}
    assert sum("vision_model.head." in key for key in theirs) == 11
    assert_same_tensors(files(tmp_path), theirs)
    before, after = (json.loads((path / "config.json").read_text()) for path in (folder, tmp_path))
    before["architectures"] = [weights.LAYOUTS[layout].architecture]
    assert {key: after[key] for key in before.keys() - {"text_config", "vision_config"}} == {
        key: before[key] for key in before.keys() - {"text_config", "vision_config"}
    }
    for part in ("text_config", "vision_config"):
        assert {key: after[part][key] for key in before[part]} == before[part]
    assert after["vision_config"]["vision_use_head"] is True


# ---- layouts


def folder_with_head(folder: Path) -> Path:
    model = small_model(CFG)
    model.carried.update(HEAD)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("layout", weights.LAYOUTS)
def test_a_layout_is_written_and_read(tmp_path, layout):
    model = Eagle.from_pretrained(folder_with_head(tmp_path / "released"))
    model.save_pretrained(tmp_path / layout / "model", layout=layout, max_shard_bytes=500_000)
    keys = files(tmp_path / layout / "model").keys()
    at = weights.LAYOUTS[layout]
    vision = "vision_model." if layout == "transformers5" else "vision_model.vision_model."
    assert at.prefix + vision + "post_layernorm.bias" in keys
    assert at.prefix + vision + "head.probe" in keys
    assert all(key.startswith(at.prefix) for key in keys)
    assert json.loads((tmp_path / layout / "model/config.json").read_text())["architectures"] == [at.architecture]
    Eagle.from_pretrained(tmp_path / layout / "model").save_pretrained(tmp_path / "again")
    assert_same_tensors(files(tmp_path / "again"), files(tmp_path / "released"))


def test_an_unknown_layout_is_refused(tmp_path):
    with pytest.raises(ValueError, match="layout is 'mine'; needs one of released, transformers5, groot, lerobot"):
        small_model(CFG).save_pretrained(tmp_path, layout="mine")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("prefix", ["backbone.eagle_model.", "backbone.model.", "_groot_model.backbone.eagle_model."])
def test_a_models_prefix_is_taken_off_and_named(tmp_path, prefix):
    path = folder_with_head(tmp_path) / weights.SINGLE
    tensors = {prefix + key: tensor for key, tensor in load_file(path).items()}
    tensors["action_head.state_encoder.weight"] = torch.zeros(2)
    save_file(tensors, path)
    model, same = Eagle.from_pretrained(tmp_path), small_model(CFG)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters(), strict=True))
    assert_same_tensors(model.carried, HEAD)
    del tensors[prefix + "mlp1.0.bias"]
    save_file(tensors, path)
    with pytest.raises(
        ValueError, match=rf"whose names begin with '{prefix}' in the files, do not fit.*\n  missing: mlp1"
    ):
        Eagle.from_pretrained(tmp_path)


# ---- what the model does not use


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
def test_the_pooling_head_stays_as_it_was_in_the_files(tmp_path, dtype):
    model = Eagle.from_pretrained(folder_with_head(tmp_path / "before"), dtype=dtype)
    with torch.no_grad():
        model.lm_head.weight.add_(1)  # as after training
    model.save_pretrained(tmp_path / "after")
    before, after = files(tmp_path / "before"), files(tmp_path / "after")
    assert_same_tensors({key: after[key] for key in HEAD}, HEAD)
    assert after.keys() == before.keys()
    assert not set(HEAD) & set(dict(model.named_parameters())) | set(HEAD) & set(model.state_dict())


@pytest.mark.parametrize("carried", [False, True])
@pytest.mark.parametrize("given", [False, True, None])
def test_vision_use_head_says_what_the_files_hold(tmp_path, given, carried):
    """Whatever the config said: with true, transformers makes the head, and without its weights a random one."""
    fields = CFG.to_dict()
    fields["vision_config"]["vision_use_head"] = given
    if given is None:
        del fields["vision_config"]["vision_use_head"]
    model = Eagle(EagleConfig.from_dict(fields))
    model.carried.update(HEAD if carried else {})
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["vision_config"]["vision_use_head"] is carried


# ---- config.json


def test_config_keeps_every_field_of_its_file():
    fields = json.loads(json.dumps(RELEASED))
    fields |= {"some_new_field": {"a": [1, None]}, "transformers_version": "4.51.0", "min_dynamic_patch": 1}
    fields["text_config"] |= {"another": 3, "bos_token_id": 151643, "use_cache": False}
    fields["vision_config"] |= {"vision_use_head": True, "third": "x"}
    written = EagleConfig.from_dict(fields).to_dict()
    for part in ("vision_config", "text_config"):
        assert {key: written[part][key] for key in fields[part]} == fields[part]
    assert {key: written[key] for key in fields.keys() - {"vision_config", "text_config"}} == {
        key: fields[key] for key in fields.keys() - {"vision_config", "text_config"}
    }


@pytest.mark.parametrize("value", [None, ["Eagle25VLForConditionalGeneration"], "absent"])
def test_a_config_without_architectures_or_with_lerobots(value):
    fields = {**RELEASED, "architectures": value}
    fields["text_config"] = RELEASED["text_config"] | {"architectures": None}
    if value == "absent":
        del fields["architectures"], fields["text_config"]["architectures"]
    config, want = EagleConfig.from_dict(fields), EagleConfig.from_dict(RELEASED)
    written = config.to_dict()["text_config"]
    assert written["architectures"] == (["Qwen2ForCausalLM"] if value == "absent" else None)  # as it came
    assert replace(config, text=replace(config.text, other=want.text.other)) == want


# ---- pickle


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt", "model.pth"])
def test_pickle_is_refused_with_the_reason(tmp_path, name):
    folder_with_head(tmp_path)
    (tmp_path / weights.SINGLE).rename(tmp_path / name)
    with pytest.raises(
        ValueError, match=rf"holds {name}, which is pickle: reading it would run whatever code is in it"
    ):
        Eagle.from_pretrained(tmp_path)
    (tmp_path / weights.INDEX).write_text(json.dumps({"weight_map": {"mlp1.0.bias": name}}))
    with pytest.raises(ValueError, match=rf"index\.json names {name}; needs safetensors"):
        Eagle.from_pretrained(tmp_path)
