"""Adapters beside PEFT itself: its rules for names, its files, its logits and gradients.

One file, because importing PEFT takes seconds.
"""

import json
import math
import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file
from torch import nn

from eagle_model.model.config import tiny
from eagle_model.model.eagle import Eagle
from eagle_model.model.lora import add_lora, load_adapter, merge, save_adapter
from eagle_model.model.lora_config import LoraConfig, from_peft, to_peft
from tests.model import test_llm, test_vision
from tests.model.samples import IMAGE_TOKEN_ID, VOCAB_SIZE, mixed_documents, pack, small_model, with_text, with_vision
from tests.model.test_lora_config import CONFIGS, NAMES


@pytest.mark.parametrize(
    "targets",
    [
        ["q_proj"],
        ["k_proj", "self_attn.v_proj", "1"],
        ["language_model.model.layers.11.mlp.up_proj", "proj"],
        r"language_model\..*_proj",
        r".*\.(q|v)_proj",
        "q_proj",
    ],
    ids=str,
)
@pytest.mark.parametrize("rslora", [False, True])
def test_targets_ranks_and_scales_are_pefts(targets, rslora) -> None:
    patterns = {
        "rank_pattern": {"v_proj": 4, r"layers\.1\..*_proj": 2, "layers.1.self_attn.q_proj": 3},
        "alpha_pattern": {"^mlp1.1": 1.5, "layers.11.self_attn.q_proj": 24, r"self_attn\.\w_proj": 6},
    }
    theirs = PeftConfig(r=8, lora_alpha=12, target_modules=targets, modules_to_save=["mlp1.3", "1.mlp"], **patterns)
    want = {}
    for name in NAMES:
        if check_target_module_exists(theirs, name):
            rank = theirs.rank_pattern.get(get_pattern_key(theirs.rank_pattern, name), 8)
            alpha = theirs.alpha_pattern.get(get_pattern_key(theirs.alpha_pattern, name), 12)
            want[name] = (rank, alpha / (math.sqrt(rank) if rslora else rank))
    ours = LoraConfig(
        rank=8,
        alpha=12,
        targets=tuple(targets) if isinstance(targets, list) else (f"(?:{targets})",),
        modules_to_save=("mlp1.3", "1.mlp"),
        rslora=rslora,
        **{name: tuple(pattern.items()) for name, pattern in patterns.items()},
    )
    assert ours.adapted(NAMES) == want
    if targets != "q_proj":  # an expression of whole names
        assert want


@pytest.mark.parametrize("config", CONFIGS, ids=range(len(CONFIGS)))
def test_what_is_written_means_the_same_to_us_and_to_peft(config):
    adapted = config.adapted(NAMES)
    fields = json.loads(json.dumps(to_peft(config, list(adapted))))
    again, _ = from_peft(fields, {name: rank for name, (rank, _) in adapted.items()})
    assert again.adapted(NAMES) == adapted
    assert (again.dropout, again.dora, again.init, again.modules_to_save) == (
        config.dropout, config.dora, config.init, config.modules_to_save,
    )  # fmt: skip
    theirs = PeftConfig(**fields)
    assert (theirs.use_dora, theirs.use_rslora, theirs.lora_dropout) == (config.dora, config.rslora, config.dropout)
    assert theirs.init_lora_weights == (True if config.init == "kaiming" else "gaussian")
    for name in adapted:
        rank, scale = adapted[name]
        assert check_target_module_exists(theirs, name)
        assert theirs.rank_pattern.get(get_pattern_key(theirs.rank_pattern, name), theirs.r) == rank
        alpha = theirs.alpha_pattern.get(get_pattern_key(theirs.alpha_pattern, name), theirs.lora_alpha)
        assert alpha / (math.sqrt(rank) if theirs.use_rslora else rank) == scale


# ---- logits, gradients, files


class Released(nn.Module):
    """The released model's modules under their names, in transformers' code and with our weights."""

    def __init__(self, ours: Eagle) -> None:
        super().__init__()
        cfg = self.cfg = ours.cfg
        self.vision_model = nn.Module()
        self.vision_model.vision_model = test_vision.theirs_like(ours.vision)
        norm, up, out = nn.LayerNorm(4 * cfg.vision.hidden_size), *(
            nn.Linear(layer.in_features, layer.out_features) for layer in (ours.connector.up, ours.connector.out)
        )  # fmt: skip
        for theirs, layer in ((norm, ours.connector.norm), (up, ours.connector.up), (out, ours.connector.out)):
            theirs.load_state_dict(layer.state_dict())
        self.mlp1 = nn.Sequential(norm, up, nn.GELU(), out)
        self.language_model = test_llm.theirs_like(ours)

    def forward(self, document):
        """Logits of one document."""
        embeddings = self.language_model.model.embed_tokens(document.token_ids_T)
        if num_tiles := len(document.patches_IPK):
            vision = self.cfg.vision
            side = vision.tile_px // vision.patch_px
            patches = document.patches_IPK.unflatten(2, (3, vision.patch_px, vision.patch_px))
            tiles = patches.unflatten(1, (side, side)).permute(0, 3, 1, 4, 2, 5)
            tiles = tiles.reshape(num_tiles, 3, vision.tile_px, vision.tile_px)
            features = self.vision_model.vision_model(tiles).last_hidden_state.unflatten(
                1, (side // 2, 2, side // 2, 2)
            )
            blocks = features.permute(0, 1, 3, 2, 4, 5).flatten(3).flatten(1, 2)
            where = document.token_ids_T == self.cfg.image_token_id
            embeddings = embeddings.masked_scatter(where[:, None], self.mlp1(blocks))
        return self.language_model(inputs_embeds=embeddings[None]).logits[0]


CFG = with_vision(
    with_text(tiny(vocab_size=VOCAB_SIZE, image_token_id=IMAGE_TOKEN_ID), num_hidden_layers=2), num_hidden_layers=1
)
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "out_proj", "fc1", "fc2"]
ADAPTERS = {
    "q_proj alone": {"target_modules": ["q_proj"]},
    "k and up, an expression": {"target_modules": r"language_model\..*\.(k|up)_proj", "lora_alpha": 5},
    "everywhere, a rank a module": {
        "target_modules": [*ALL, "mlp1.1", "mlp1.3"],
        "rank_pattern": {"k_proj": 2, "layers.1.mlp.up_proj": 5},
        "alpha_pattern": {"fc1": 3},
        "use_rslora": True,
    },
    "some layers, but for one kind": {
        "target_modules": ["q_proj", "up_proj", "fc1"],
        "layers_to_transform": 0,
        "layers_pattern": "layers",
        "exclude_modules": r".*fc1",
    },
    "DoRA, connector whole": {"target_modules": ALL, "use_dora": True, "modules_to_save": ["mlp1", "lm_head"]},
}


def randomised(peft: PeftModel) -> PeftModel:
    with torch.no_grad():
        for parameter in peft.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return peft.eval()


@pytest.fixture(scope="module")
def documents():
    return mixed_documents(small_model(CFG).cfg)


@pytest.mark.parametrize("name", ADAPTERS)
def test_pefts_adapter_loads_answers_learns_merges_and_is_saved_as_it_was(name, tmp_path: Path, documents) -> None:
    ours = small_model(CFG)
    theirs = Released(ours)
    config = PeftConfig(**{"r": 4, "lora_alpha": 8, "lora_dropout": 0.1, **ADAPTERS[name]})
    peft = randomised(get_peft_model(theirs, config))
    peft.save_pretrained(tmp_path / "theirs")
    load_adapter(ours, tmp_path / "theirs")
    want = torch.cat([peft(document) for document in documents])
    logits = ours.lm_head(ours.hidden(pack(documents)))
    assert (logits - want).abs().max() < 1e-4
    logits_before = small_model(CFG).lm_head(small_model(CFG).hidden(pack(documents)))
    assert (logits - logits_before).abs().max() > 0.1

    (want * torch.linspace(-1, 1, want.numel()).view_as(want)).sum().backward()
    (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum().backward()
    gradients_of(ours, tmp_path / "ours-grads")
    gradients_of_peft = {
        key.replace(".default", "").replace(".modules_to_save", "").removesuffix("magnitude_vector.weight"): p.grad
        for key, p in peft.named_parameters()
        if p.requires_grad
    }
    grads = load_file(tmp_path / "ours-grads" / "adapter_model.safetensors")
    grads = {key.removesuffix("magnitude_vector"): grad for key, grad in grads.items()}
    assert grads.keys() == gradients_of_peft.keys()
    for key, grad in gradients_of_peft.items():
        assert (grads[key] - grad).abs().max() <= 1e-4 * (1e-3 + grad.abs().max()), key

    save_adapter(ours, tmp_path / "ours")
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        first, second = ((tmp_path / folder / file).read_bytes() for folder in ("theirs", "ours"))
        if file.endswith("json"):
            first, second = json.loads(first), json.loads(second)
            for fields in (first, second):  # which PEFT has as sets, in any order
                if isinstance(fields["target_modules"], list):
                    fields["target_modules"].sort()
        assert first == second

    merge(ours)
    in_theirs = Released(ours).state_dict()
    for key, tensor in peft.merge_and_unload().state_dict().items():
        assert (in_theirs[key] - tensor).abs().max() < 1e-6, key


@pytest.mark.parametrize("tied", [False, True], ids=["apart", "tied"])
@pytest.mark.parametrize(
    "saved", [["norm"], ["lm_head"], ["embed_tokens"], ["norm", "lm_head", "embed_tokens"]], ids=str
)
def test_modules_that_peft_trains_whole(saved: list[str], tied: bool, tmp_path: Path, documents) -> None:
    """`norm` is every module whose name ends so; of tied embeddings PEFT trains a copy, and the other stays."""
    cfg = with_text(CFG, tie_word_embeddings=tied)
    ours = small_model(cfg)
    theirs = Released(ours)
    if tied:
        theirs.language_model.lm_head.weight = theirs.language_model.model.embed_tokens.weight
    peft = randomised(get_peft_model(theirs, PeftConfig(r=2, target_modules=["q_proj"], modules_to_save=saved)))
    peft.save_pretrained(tmp_path / "theirs")
    load_adapter(ours, tmp_path / "theirs")
    with torch.no_grad():
        want = torch.cat([peft(document) for document in documents])
        assert (ours.lm_head(ours.hidden(pack(documents))) - want).abs().max() < 1e-4
    save_adapter(ours, tmp_path / "ours")
    first, second = ((tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("theirs", "ours"))
    assert first == second
    merge(ours)
    ours.save_pretrained(tmp_path / "merged")
    again = Eagle.from_pretrained(tmp_path / "merged")
    assert again.cfg.text.tie_word_embeddings == (tied and saved == ["norm"])
    with torch.no_grad():
        assert (again.lm_head(again.hidden(pack(documents))) - want).abs().max() < 1e-4


@pytest.mark.parametrize("module", ["lm_head", "embed_tokens"])
def test_adapters_of_embeddings_are_refused_with_a_way_out(module: str, tmp_path: Path) -> None:
    ours = small_model(CFG)
    get_peft_model(Released(ours), PeftConfig(r=2, target_modules=["q_proj", module])).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=f"an adapter of {module}, which is no projection here.* train {module} whole"):
        load_adapter(ours, tmp_path)
    assert ours.adapter is None


@pytest.mark.parametrize("prefix", ["", "eagle."], ids=["Eagle", "the class for Hugging Face"])
@pytest.mark.parametrize(
    "changes",
    [
        {"target_modules": ["qkv_proj", "gate_up_proj", "o_proj", "up"]},
        {
            "target_modules": r".*\.(qkv_proj|down_proj)",
            "rank_pattern": {"layers.1.self_attn.qkv_proj": 3},
            "alpha_pattern": {"down_proj": 5},
            "use_dora": True,
            "use_rslora": True,
        },
    ],
    ids=["LoRA", "DoRA, ranks"],
)
def test_adapters_of_our_own_modules_are_split_without_loss(changes, prefix, tmp_path: Path, documents) -> None:
    ours, row = small_model(CFG), pack(documents)
    holder: nn.Module = small_model(CFG)
    if prefix:
        eagle, holder = holder, nn.Module()
        holder.eagle = eagle
    config = PeftConfig(**{"r": 4, "lora_alpha": 8, "modules_to_save": ["connector", "llm.norm"], **changes})
    peft = randomised(get_peft_model(holder, config))
    peft.save_pretrained(tmp_path / "theirs")
    load_adapter(ours, tmp_path / "theirs")
    inner = peft.base_model.model.eagle if prefix else peft.base_model.model
    with torch.no_grad():
        want = inner.lm_head(inner.hidden(row))
        assert (ours.lm_head(ours.hidden(row)) - want).abs().max() < 1e-4
    save_adapter(ours, tmp_path / "ours")
    names = [
        key.removeprefix("base_model.model.") for key in load_file(tmp_path / "ours" / "adapter_model.safetensors")
    ]
    assert all(name.startswith(("language_model.", "mlp1.", "vision_model.")) for name in names)
    again = small_model(CFG)
    load_adapter(again, tmp_path / "ours")
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), ours.parameters(), strict=True))
    released = PeftModel.from_pretrained(Released(small_model(CFG)), tmp_path / "ours").eval()
    with torch.no_grad():
        assert (torch.cat([released(document) for document in documents]) - want).abs().max() < 1e-4


def test_a_damaged_adapter_of_our_own_modules_is_refused_by_name(tmp_path: Path) -> None:
    peft = get_peft_model(small_model(CFG), PeftConfig(r=4, target_modules=["qkv_proj"], modules_to_save=["connector"]))
    peft.save_pretrained(tmp_path)
    path, start = tmp_path / "adapter_model.safetensors", "base_model.model."
    tensors = load_file(path)
    tensors[f"{start}llm.layers.0.self_attn.qkv_proj.lora_B.weight"] = torch.zeros(7, 4)
    tensors[f"{start}connector.out.bias"] = torch.zeros(3)
    save_file(tensors, path)
    ours = small_model(CFG)
    with pytest.raises(ValueError, match=r"(?s)unknown: 'connector.out.bias'.*q_proj.lora_B.weight is \(7, 4\), needs"):
        load_adapter(ours, tmp_path)
    assert ours.adapter is None


def gradients_of(model: Eagle, folder: Path) -> None:
    """Writes the gradients where an adapter's numbers would be."""
    kept = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for name in kept:
            model.get_parameter(name).copy_(model.get_parameter(name).grad)
    save_adapter(model, folder)
    with torch.no_grad():
        for name, value in kept.items():
            model.get_parameter(name).copy_(value)


CONFIGS_OF_OURS = {
    "the language model": LoraConfig(rank=3, targets=(r"language_model\..*_proj",)),
    "all, DoRA": LoraConfig(
        rank=4,
        targets=("all-linear",),
        dora=True,
        rslora=True,
        rank_pattern=((".*q_proj", 2),),
        modules_to_save=("mlp1",),
    ),
}


@pytest.mark.parametrize("name", CONFIGS_OF_OURS)
def test_peft_reads_what_we_write(name, tmp_path: Path, documents) -> None:
    ours = small_model(CFG)
    theirs = Released(ours)
    add_lora(ours, CONFIGS_OF_OURS[name])
    with torch.no_grad():
        for parameter in ours.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    save_adapter(ours, tmp_path / "ours")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # PEFT warns of tensors that it misses or does not know
        peft = PeftModel.from_pretrained(theirs, tmp_path / "ours")
    with torch.no_grad():
        want = torch.cat([peft(document) for document in documents])
        logits = ours.eval().lm_head(ours.hidden(pack(documents)))
    assert (logits - want).abs().max() < 1e-4
