"""Low-rank adapters (LoRA) on a frozen model, in the files that PEFT writes and reads.

    model = Eagle.from_pretrained("Eagle2.5-8B", dtype=torch.bfloat16)
    add_lora(model, LoraConfig(rank=16, alpha=32))        # answers as before: B begins as 0
    ...                                                # train what requires a gradient: the adapters alone
    save_adapter(model, "adapter")                     # adapter_config.json, adapter_model.safetensors

    load_adapter(model, "adapter")                     # onto a model without adapters, or with those of this shape
    merge(model)                                       # a plain model again, its weights changed

Dims     T tokens, C width in, R rows of a block, F rows of a projection: the sum of its blocks', r rank.
Formula  y = W x + b + s B A x   with A (r, C), B (R, r), s = alpha / r, or alpha / sqrt(r) with rsLoRA.
         DoRA:  y = m (W + s B A) x / |W + s B A| + b,  the norm of each row, which gets no gradient.
Blocks   A projection here may be several of the release, their rows one after another: qkv_proj holds q_proj, k_proj
         and v_proj. Each is a block, with an adapter of its own or none. The table of weight names says which rows are
         whose.
Names    Targets and files have the released modules' names, `language_model.model.layers.0.self_attn.q_proj`. In the
         model a projection keeps its weight and bias under the names that they had; what is added has
         `<projection>.lora.<block>.{A,B}.weight`, and `.magnitude` with DoRA.
Safety   Nothing unpickles. Names, shapes and dtypes of a file are checked before anything is built or changed.
Source   Hu et al. 2021, arXiv:2106.09685; Kalajdzievski 2023, arXiv:2312.03732 (rsLoRA); Liu et al. 2024,
         arXiv:2402.09353 (DoRA); the files are those of PEFT 0.21.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from eagle_model.checkpoints import read_newest, verify_listed
from eagle_model.fields import MAX_NAMES, ConfigError, few, shown
from eagle_model.files import read_json, write_text
from eagle_model.model import weights
from eagle_model.model.eagle import Eagle
from eagle_model.model.linear import FusedLinear, Linear
from eagle_model.model.lora_config import NARROWING, LoraConfig, from_peft, renamed, to_peft
from eagle_model.model.nf4 import is_nf4
from eagle_model.model.shards import own, put, rows_of, whole

__all__ = ["LoraConfig", "add_lora", "load_adapter", "merge", "save_adapter", "trained_whole"]

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
PICKLES = ("adapter_model.bin", "adapter_model.pt")  # what older programs wrote
MAX_CONFIG_BYTES = 1 << 18  # the names of all projections of a large model take 34 KB
_PREFIX = "base_model.model."  # of all names in PEFT's files
_OURS = "eagle."  # what eagle_model.hf's class has before the names of our modules
_A, _B, _MAGNITUDE = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"


@dataclass(frozen=True, kw_only=True, slots=True)
class Attached:
    """`Eagle.adapter`: what a model's adapters are, beside their numbers."""

    config: LoraConfig
    other: Mapping[str, Any] = field(default_factory=dict)  # fields of adapter_config.json that change nothing here

    @property
    def base(self) -> str:
        """The folder of the model under them; empty where nobody said."""
        return self.other.get("base_model_name_or_path") or ""


@dataclass(frozen=True, slots=True)
class Block:
    """Rows of a projection that are a module of the release."""

    name: str  # of that module
    rows: int
    rank: int  # of its adapter; 0: it has none
    scale: float

    @property
    def leaf(self) -> str:
        return self.name.rpartition(".")[2]


class Adapter(nn.Module):
    """What is added to one block's output."""

    magnitude: nn.Parameter | None  # m, with DoRA

    def __init__(self, block: Block, width: int, *, dora: bool) -> None:
        super().__init__()
        self.scale = block.scale
        # Torch's own layers: what replaces the model's projections by their class must not replace these.
        self.A = nn.Linear(width, block.rank, bias=False)
        self.B = nn.Linear(block.rank, block.rows, bias=False)
        self.register_parameter("magnitude", nn.Parameter(torch.empty(block.rows)) if dora else None)

    def forward(
        self, x_TC: Tensor, out_TR: Tensor, plain_TR: Tensor | None = None, weight_RC: Tensor | None = None
    ) -> Tensor:
        """(T, R). x_TC: with dropout.  out_TR: W x + b.  For DoRA: plain_TR, W x_TC, and weight_RC, W."""
        delta_TR = self.B(self.A(x_TC.to(self.A.weight.dtype))) * self.scale
        if self.magnitude is not None:
            assert plain_TR is not None and weight_RC is not None
            stretch_R = self.magnitude / self.row_norms(weight_RC)
            delta_TR = (stretch_R - 1) * plain_TR + stretch_R * delta_TR
        return (out_TR + delta_TR).to(out_TR.dtype)

    @torch.no_grad()
    def row_norms(self, weight_RC: Tensor) -> Tensor:
        """|W + s B A| of each row, (R,)."""
        return torch.linalg.vector_norm(self.added_to(weight_RC), dim=1)

    def added_to(self, weight_RC: Tensor) -> Tensor:
        """W + s B A, in fp32, or fp64 where W is."""
        dtype = torch.promote_types(weight_RC.dtype, torch.float32)
        return weight_RC.to(dtype) + self.scale * (self.B.weight.to(dtype) @ self.A.weight.to(dtype))

    @torch.no_grad()
    def draw(self, weight_RC: Tensor, init: str) -> None:
        """New numbers that leave the block's output as it is; A from torch's global generator of the CPU.

        weight_RC: W, all of it with DoRA; else its device alone matters.
        """
        A_rC, device, dtype = torch.empty(self.A.weight.shape), weight_RC.device, self.A.weight.dtype
        if init == "gaussian":
            nn.init.normal_(A_rC, std=1 / len(A_rC))
        else:
            nn.init.kaiming_uniform_(A_rC, a=math.sqrt(5))
        put(self.A, "weight", A_rC[slice(*rows_of(self.A.weight))].to(device, dtype, copy=True))
        put(self.B, "weight", torch.zeros_like(own(self.B.weight), device=device, dtype=dtype))
        if self.magnitude is not None:  # of W + s B A, and B is 0
            norms_R = torch.linalg.vector_norm(weight_RC, dim=1)
            put(self, "magnitude", norms_R[slice(*rows_of(self.magnitude))].to(device, dtype, copy=True))


class LoraLinear(Linear):
    """A projection with adapters on some of its blocks. Its own weight may be one of 4 bits (nf4.py)."""

    def __init__(self, linear: Linear, blocks: Sequence[Block], config: LoraConfig) -> None:
        """Takes over the parameters of `linear`. The adapters are beside them, in fp32, and hold no numbers yet."""
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.blocks = tuple(blocks)
        self.sizes = tuple(block.rows for block in blocks)
        self.dora = config.dora
        self.dropout = nn.Dropout(config.dropout)
        with torch.device(linear.weight.device):
            adapters = {b.leaf: Adapter(b, self.in_features, dora=self.dora).float() for b in blocks if b.rank}
        self.lora = nn.ModuleDict(adapters)

    def adapter(self, block: Block) -> Adapter:
        return cast(Adapter, self.lora[block.leaf])

    def forward(self, x_TC: Tensor) -> Tensor:
        out_TF = super().forward(x_TC)
        dropped_TC = self.dropout(x_TC)
        found = list(out_TF.split(self.sizes, dim=-1))
        for_dora = self._for_dora(out_TF, dropped_TC) if self.dora else [()] * len(found)
        for i, block in enumerate(self.blocks):
            if block.rank:
                found[i] = self.adapter(block)(dropped_TC, found[i], *for_dora[i])
        return found[0] if len(found) == 1 else torch.cat(found, dim=-1)

    def _for_dora(self, out_TF: Tensor, dropped_TC: Tensor) -> list[tuple[Tensor, ...]]:
        """W x of the x with dropout, and W, for each block."""
        weight_FC = self.weight.to(dropped_TC.dtype)
        plain_TF = out_TF if self.bias is None else out_TF - self.bias
        if self.training and self.dropout.p:
            plain_TF = F.linear(dropped_TC, weight_FC)
        return list(zip(plain_TF.split(self.sizes, dim=-1), weight_FC.split(self.sizes), strict=True))

    def draw(self, init: str) -> None:
        weights_RC: Sequence[Tensor] = [self.weight] * len(self.blocks)
        if self.dora:
            weights_RC = whole(self.weight.detach()).to(torch.float32).split(self.sizes)
        for block, weight_RC in zip(self.blocks, weights_RC, strict=True):
            if block.rank:
                self.adapter(block).draw(weight_RC, init)

    @torch.no_grad()
    def merged(self) -> Linear:
        """A plain projection that computes the same. It is added up in fp32 and rounded once to the weight's dtype."""
        weight_FC = self.weight.to(torch.promote_types(self.weight.dtype, torch.float32)).clone()
        for block, weight_RC in zip(self.blocks, weight_FC.split(self.sizes), strict=True):
            if block.rank:
                adapter = self.adapter(block)
                added_RC = adapter.added_to(weight_RC)
                if adapter.magnitude is not None:
                    added_RC *= (adapter.magnitude / adapter.row_norms(weight_RC))[:, None]
                weight_RC.copy_(added_RC)
        with torch.device("meta"):
            has_bias = self.bias is not None
            kind = FusedLinear if len(self.sizes) > 1 else Linear
            linear = kind(self.in_features, self.out_features, has_bias)
        if isinstance(linear, FusedLinear):
            linear.sizes = self.sizes
        linear.weight, linear.bias = nn.Parameter(weight_FC.to(self.weight.dtype)), self.bias
        linear.product = self.product
        return linear


def add_lora(model: Eagle, config: LoraConfig, *, base: str | None = None) -> None:
    """Gives a model new adapters, in fp32, and freezes all else but modules_to_save.

    A is drawn on the CPU from torch's global generator: a seed means the same on every device. On "meta" nothing is:
    `draw` does it, once the model has its weights.

    Args:   base: the folder that the model came from, for the adapters' file.
    Raises: ConfigError when the model has adapters, a pattern fits no projection, or a module no parameter.
    """
    _attach(model, config, {"base_model_name_or_path": base})
    if not model.lm_head.weight.is_meta:
        draw(model)


def draw(model: Eagle) -> None:
    """New numbers for the adapters of a model that has its weights; of adapters that are cut, this process's rows."""
    config = _attached(model).config
    for module in model.modules():
        if isinstance(module, LoraLinear):
            module.draw(config.init)


def load_adapter(model: Eagle, folder: Path | str, *, dtype: torch.dtype | None = None) -> None:
    """Gives a model the adapters of a folder that PEFT or `save_adapter` wrote, or of a run's newest checkpoint.

    The model then is in evaluation: no dropout. Where it has adapters already, theirs must be of the same modules,
    ranks and scales; they get the file's numbers, and keep their dropout.

    Args:   dtype: of the adapters; None keeps the file's.
    Raises: FileNotFoundError when there is no adapter; ValueError that names the file and the fields or tensors which
            are missing, unknown, misshapen, or of another computation. The model is then as it was.
    """
    read_newest(Path(folder), lambda at: _load(model, at, dtype))
    model.eval()


def save_adapter(model: Eagle, folder: Path | str) -> None:
    """Writes the model's adapters as PEFT does. Creates `folder`.

    Raises ValueError when the model has no adapters, FileExistsError when the folder has some.
    """
    folder, tensors = Path(folder), adapter_tensors(model)
    folder.mkdir(parents=True, exist_ok=True)
    if present := [name for name in (CONFIG_FILE, WEIGHTS_FILE) if (folder / name).exists()]:
        raise FileExistsError(f"{folder} already holds {few(present)}; save to another folder.")
    weights.write_tensors(folder / WEIGHTS_FILE, tensors)
    write_text(folder / CONFIG_FILE, adapter_config(model))


def adapter_tensors(model: Eagle, *, whole: Callable[[Tensor], Tensor] = Tensor.detach) -> dict[str, Tensor]:
    """What WEIGHTS_FILE holds of a model. whole: makes one tensor of each parameter, in the same order everywhere.

    Raises ValueError when the model has no adapters.
    """
    config = _attached(model).config
    tensors = {_PREFIX + key: whole(getattr(*place)) for key, place in _places(model).items()}
    parameters = {name: whole(model.get_parameter(name)) for name in trained_whole(model, config)}
    return tensors | {_PREFIX + key: tensor for key, tensor in weights.released(parameters, _rules(model)).items()}


def adapter_config(model: Eagle) -> str:
    """What CONFIG_FILE holds beside the tensors. Raises ValueError when the model has no adapters."""
    attached = _attached(model)
    config = attached.config
    meta = {name: torch.empty(model.get_parameter(name).shape, device="meta") for name in trained_whole(model, config)}
    if _by_pefts_rule(model, config) != config:  # then PEFT would take more for it
        modules = sorted({key.rpartition(".")[0] for key in weights.released(meta, _rules(model))})
        config = replace(config, modules_to_save=tuple(modules))
    fields = to_peft(config, list(_adapters(model))) | dict(attached.other)
    if model.cfg.text.tie_word_embeddings and "llm.embed_tokens.weight" in meta:
        fields["ensure_weight_tying"] = True
    return json.dumps(fields, indent=2, sort_keys=True)


def merge(model: Eagle) -> None:
    """Adds the adapters to the weights under them, which makes the model a plain one that computes the same.

    Weights of 4 bits become what they stand for. All parameters require gradients again.

    Raises ValueError when the model has no adapters.
    """
    _attached(model)
    for path, module in list(model.named_modules()):
        if isinstance(module, LoraLinear):
            model.set_submodule(path, module.merged())
        elif isinstance(module, Linear) and is_nf4(module.weight):
            module.weight = nn.Parameter(module.weight.to(module.weight.dtype))
    model.adapter = None
    model.requires_grad_(True)


def trained_whole(model: Eagle, config: LoraConfig, *, apart: bool = False) -> list[str]:
    """The parameters, by our names, of the modules in modules_to_save.

    apart: an output head that shares its weight with the embeddings counts too, under its own name.
    Raises ConfigError for a name that fits no module, or a part of a projection.
    """
    found, fits = [], set()
    for name, parameter in model.named_parameters(remove_duplicate=not apart):
        if ".lora." in name:
            continue
        meta = torch.empty(parameter.shape, device="meta")
        modules = [key.rpartition(".")[0] for key in weights.released({name: meta}, _rules(model))]
        saved = [config.saves(module) for module in modules]
        if any(saved):
            found.append(name)
            fits |= {
                wanted for wanted in config.modules_to_save for module in modules if f".{wanted}." in f".{module}."
            }
        if any(saved) and not all(saved):
            raise ConfigError(f"modules_to_save has a part of {few(modules)}, which are one here; needs all or none.")
    if missing := [name for name in config.modules_to_save if name not in fits]:
        if model.cfg.text.tie_word_embeddings and any("lm_head".endswith(name) for name in missing):
            raise ConfigError(
                "modules_to_save has lm_head, whose weight the embeddings share in this model; train embed_tokens, "
                "which trains both."
            )
        raise ConfigError(f"modules_to_save is {few(missing)}; the model has no parameter of such a name.")
    return found


def _by_pefts_rule(model: Eagle, config: LoraConfig, *, apart: bool = False) -> LoraConfig:
    """modules_to_save as PEFT means it, whose names need only end so: every module by its name, where that is more."""
    parameters = dict(model.named_parameters(remove_duplicate=not apart))
    meta = {name: torch.empty(p.shape, device="meta") for name, p in parameters.items() if ".lora." not in name}
    modules = sorted({key.rpartition(".")[0] for key in weights.released(meta, _rules(model))})
    whole = [module for module in modules if config.trains_whole(module)]
    if whole == [module for module in modules if config.saves(module)]:
        return config
    return replace(config, modules_to_save=tuple(whole))


def _rules(model: Eagle) -> Sequence[weights.Rule]:
    return weights.rules(model.cfg)


def _attached(model: Eagle) -> Attached:
    if model.adapter is None:
        raise ValueError("the model has no adapters; add_lora and load_adapter give it some.")
    return model.adapter


def _plan(model: Eagle, config: LoraConfig) -> dict[str, tuple[Block, ...]]:
    """The blocks of each projection that gets adapters, by its path."""
    modules = {}
    for path, linear in model.named_modules():
        if isinstance(linear, Linear):
            meta = torch.empty(linear.weight.shape, device="meta")
            released = weights.released({f"{path}.weight": meta}, _rules(model))
            if all(tensor.ndim == 2 for tensor in released.values()):  # a convolution is no projection
                modules[path] = {key.removesuffix(".weight"): len(tensor) for key, tensor in released.items()}
    adapted = config.adapted(name for names in modules.values() for name in names)
    if not adapted:
        raise ConfigError(
            f"targets is {few(config.targets)}; no projection has such a name. The names end in, or are: "
            f"{few(sorted({name.rpartition('.')[2] for names in modules.values() for name in names}))}."
        )
    return {
        path: tuple(Block(name, rows, *adapted.get(name, (0, 0.0))) for name, rows in names.items())
        for path, names in modules.items()
        if not adapted.keys().isdisjoint(names)
    }


def _attach(model: Eagle, config: LoraConfig, other: Mapping[str, Any]) -> None:
    """Puts adapters that hold no numbers yet into the model, and freezes the rest."""
    if model.adapter is not None:
        raise ConfigError("the model has adapters; merge them first.")
    plan, whole = _plan(model, config), trained_whole(model, config)
    if any(isinstance(module, Linear) and module.product is not None for module in model.modules()):
        raise ConfigError("the model computes in FP8; it gets adapters first, and use_fp8 after them.")
    model.requires_grad_(False)
    for path, blocks in plan.items():
        linear = model.get_submodule(path)
        assert isinstance(linear, Linear)
        model.set_submodule(path, LoraLinear(linear, blocks, config))
    for name in whole:
        model.get_parameter(name).requires_grad_(True)
    model.adapter = Attached(config=config, other=other)


def _adapters(model: Eagle) -> dict[str, Adapter]:
    """By the released name of their module, in the model's order."""
    return {
        block.name: module.adapter(block)
        for module in model.modules()
        if isinstance(module, LoraLinear)
        for block in module.blocks
        if block.rank
    }


def _places(model: Eagle) -> dict[str, tuple[nn.Module, str]]:
    """The module and the attribute that hold each tensor of the adapters' file, by its name there."""
    places: dict[str, tuple[nn.Module, str]] = {}
    for name, adapter in _adapters(model).items():
        places |= {name + _A: (adapter.A, "weight"), name + _B: (adapter.B, "weight")}
        if adapter.magnitude is not None:
            places[name + _MAGNITUDE] = (adapter, "magnitude")
    return places


# ---- reading


@dataclass(frozen=True, kw_only=True, slots=True)
class _Stored:
    """A tensor of an adapter's file, by its header."""

    shape: tuple[int, ...]
    dtype: str  # as safetensors spells it
    get: Callable[[Any], Tensor]  # of the open file; it may be a view of the mapped file


def _load(model: Eagle, folder: Path, dtype: torch.dtype | None) -> None:
    path, stored = folder / CONFIG_FILE, _contents(folder)
    try:
        fields = read_json(path, max_bytes=MAX_CONFIG_BYTES)
        if not isinstance(fields, dict):
            raise ConfigError(f"it holds {shown(fields)}; needs a JSON object.")
        _refuse_embeddings(stored)
        if any(weights.released_name(key) != key for key in stored):
            fields, stored = _of_another_layout(fields, stored)
        config, other = from_peft(fields, _ranks(stored))
        if any(_our_module(model, key) is not None for key in stored):
            config, stored = _under_released_names(model, config, stored)
            other = {
                name: value
                for name, value in other.items()
                if name not in ("target_modules", "rank_pattern", *NARROWING)
            }
        untie = model.cfg.text.tie_word_embeddings and not fields.get("ensure_weight_tying")
        told, config = config.modules_to_save, _by_pefts_rule(model, config, apart=untie)
        other |= {} if config.modules_to_save == told else {"modules_to_save": list(told)}
        plan, whole = _plan(model, config), trained_whole(model, config, apart=untie)
        if model.adapter is not None:
            _check_same(model, model.adapter.config, config, plan)
    except ValueError as error:
        raise ValueError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    meta = {name: torch.empty(model.get_parameter(name).shape, device="meta") for name in whole}
    wanted = {key: tuple(tensor.shape) for key, tensor in weights.released(meta, _rules(model)).items()}
    _check_fit(folder, stored, _shapes(model, config, plan) | wanted)
    if untie and not {"lm_head.weight", "llm.embed_tokens.weight"}.isdisjoint(whole):
        model.untie()  # as PEFT does: one is trained, and the other stays as it was
    if model.adapter is None:
        _attach(model, config, other)
    parameters = {name: model.get_parameter(name) for name in whole}
    with _open(folder / WEIGHTS_FILE) as file, torch.no_grad():
        for key, (module, attribute) in _places(model).items():
            old, tensor = getattr(module, attribute), stored[key].get(file)
            tensor = tensor[slice(*rows_of(old))]
            # Of a mapped file, which others may write to: copied. Adapters on "meta" go where their model is.
            device = model.lm_head.weight.device
            put(module, attribute, tensor.to(device=device, dtype=dtype or tensor.dtype, copy=True))
        released = {key: stored[key].get(file) for key in wanted}
        for name, tensor in weights.assembled(released, parameters, _rules(model)).items():
            own(parameters[name]).copy_(tensor[slice(*rows_of(parameters[name]))])


def _ranks(stored: Mapping[str, _Stored]) -> dict[str, int]:
    return {key.removesuffix(_A): at.shape[0] for key, at in stored.items() if key.endswith(_A) and at.shape}


def _of_another_layout(
    fields: Mapping[str, Any], stored: Mapping[str, _Stored]
) -> tuple[dict[str, Any], dict[str, _Stored]]:
    """An adapter of the same modules under other names, `weights.LAYOUTS`, as transformers 5 and GR00T have them: under
    the release's. Which modules are targets its tensors say."""
    found = {weights.released_name(key): at for key, at in stored.items()}
    renamed: dict[str, Any] = {"target_modules": [*_ranks(found)], "exclude_modules": None}
    for name in ("rank_pattern", "alpha_pattern"):
        if isinstance(patterns := fields.get(name), dict):
            renamed[name] = {_renamed_pattern(pattern): value for pattern, value in patterns.items()}
    if isinstance(whole := fields.get("modules_to_save"), list):
        renamed["modules_to_save"] = [weights.released_name(name) if isinstance(name, str) else name for name in whole]
    return {**fields, **renamed}, found


def _renamed_pattern(pattern: str) -> str:
    start = "^" * pattern.startswith("^")
    return start + weights.released_name(pattern.removeprefix("^"))


def _refuse_embeddings(stored: Mapping[str, _Stored]) -> None:
    for module, marks in (("lm_head", (_A,)), ("embed_tokens", (".lora_embedding_A",))):
        if any(key.endswith(f"{module}{mark}") for key in stored for mark in marks):
            raise ConfigError(
                f"the file has an adapter of {module}, which is no projection here: the loss reads the head's weight "
                f"and never makes logits, and rows of the embeddings are looked up. Merge it with PEFT's "
                f"merge_and_unload (docs/huggingface.md), or train {module} whole, by modules_to_save."
            )


# Adapters that PEFT trained on our own modules, as those of eagle_model.hf: `eagle.llm.layers.0.self_attn.qkv_proj`.


def _our_module(model: Eagle, key: str) -> str | None:
    """The module of ours that a name in a file begins with, if it is none of the release."""
    name = key.removeprefix(_OURS)
    for end in (_A, _B, _MAGNITUDE):
        if name.endswith(end):
            return _module_or_none(model, name.removesuffix(end))
    return _module_or_none(model, name.rpartition(".")[0])


def _module_or_none(model: Eagle, path: str) -> str | None:
    top = path.partition(".")[0]
    is_ours = top in ("llm", "vision", "connector", "lm_head") and path in dict(model.named_modules())
    return path if is_ours else None


def _under_released_names(
    model: Eagle, config: LoraConfig, stored: Mapping[str, _Stored]
) -> tuple[LoraConfig, dict[str, _Stored]]:
    """The same adapters, of the released modules that each of ours consists of: they share A, and B's rows are theirs.
    Names that are not ours stay as they are."""
    found: dict[str, _Stored] = {}
    parts: dict[str, list[str]] = {}
    whole: list[str] = []
    for key, at in stored.items():
        path = _our_module(model, key)
        if path is None:
            found[key] = at
            continue
        name = key.removeprefix(_OURS)
        end = next((end for end in (_A, _B, _MAGNITUDE) if name.endswith(end)), None)
        if end is None:
            found |= (released := _released_whole(model, name, at))
            whole += [module.rpartition(".")[0] for module in released if module != name]
            continue
        meta = torch.empty(model.get_parameter(f"{path}.weight").shape, device="meta")
        blocks = weights.released({f"{path}.weight": meta}, _rules(model))
        sizes = {block.removesuffix(".weight"): len(tensor) for block, tensor in blocks.items()}
        parts[key.removesuffix(end)] = [*sizes]
        start = 0
        for block, rows in sizes.items():
            found[block + end] = at if end == _A else _rows(at, start, rows, sum(sizes.values()))
            start += rows
    return renamed(config, parts, sorted(set(whole))), found


def _rows(at: _Stored, start: int, rows: int, all_rows: int) -> _Stored:
    """Of a tensor with as many rows as are needed; another is handed on, to be refused by its shape."""
    if not at.shape or at.shape[0] != all_rows:
        return at
    return _Stored(shape=(rows, *at.shape[1:]), dtype=at.dtype, get=lambda file: at.get(file)[start : start + rows])


def _released_whole(model: Eagle, name: str, at: _Stored) -> dict[str, _Stored]:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    if name not in parameters or tuple(parameters[name].shape) != at.shape:
        return {name: at}  # to be refused
    meta = weights.released({name: torch.empty(at.shape, device="meta")}, _rules(model))

    def get_of(key: str) -> Callable[[Any], Tensor]:
        return lambda file: weights.released({name: at.get(file)}, _rules(model))[key]

    return {key: _Stored(shape=tuple(tensor.shape), dtype=at.dtype, get=get_of(key)) for key, tensor in meta.items()}


def _contents(folder: Path) -> dict[str, _Stored]:
    """The tensors of an adapter's folder, by their names without PEFT's prefix."""
    path = folder / WEIGHTS_FILE
    pickles = [name for name in PICKLES if (folder / name).exists()]
    if pickles and not path.is_file():
        raise ValueError(
            f"{folder} holds {few(pickles)}, a pickle: reading it would run whatever code is in it. Load it with PEFT "
            f"where you trust it, and save it again, which writes {WEIGHTS_FILE}."
        )
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing; an adapter's folder needs it.")
    verify_listed(folder, [CONFIG_FILE, WEIGHTS_FILE])
    stored: dict[str, _Stored] = {}
    with _open(path) as file:
        for key in file.keys():  # noqa: SIM118  (not a dict)
            header = file.get_slice(key)
            stored[key.removeprefix(_PREFIX)] = _Stored(
                shape=tuple(header.get_shape()),
                dtype=header.get_dtype(),
                get=lambda file, key=key: file.get_tensor(key),  # type: ignore[misc]
            )
            if not key.startswith(_PREFIX):
                raise ValueError(f"{path} holds {shown(key)}; names in an adapter's file begin with {_PREFIX}.")
    return stored


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt", device="cpu")
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or cut short: {error}. Copy it again.") from error


def _shapes(model: Eagle, config: LoraConfig, plan: Mapping[str, Sequence[Block]]) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors that adapters by this plan have, by their names in a file."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path, blocks in plan.items():
        width = model.get_parameter(f"{path}.weight").shape[1]
        for block in blocks:
            if block.rank:
                shapes |= {block.name + _A: (block.rank, width), block.name + _B: (block.rows, block.rank)}
                shapes |= {block.name + _MAGNITUDE: (block.rows,)} if config.dora else {}
    return shapes


def _check_fit(folder: Path, stored: Mapping[str, _Stored], wanted: Mapping[str, tuple[int, ...]]) -> None:
    problems = [f"missing: {key}" for key in wanted if key not in stored]
    for key, at in stored.items():
        if key not in wanted:
            problems.append(f"unknown: {shown(key)}")
        elif at.shape != wanted[key]:
            problems.append(f"shape: {key} is {at.shape}, needs {wanted[key]}")
        elif at.dtype not in weights.DTYPES:
            problems.append(f"dtype: {key} is {at.dtype}, needs one of {', '.join(weights.DTYPES)}")
    if problems:
        more = f"\n  and {len(problems) - MAX_NAMES:,} more" if len(problems) > MAX_NAMES else ""
        raise ValueError(
            f"{folder}: {WEIGHTS_FILE} does not fit {CONFIG_FILE} and this model ({len(problems)} tensors, named "
            f"without {_PREFIX}):\n  " + "\n  ".join(problems[:MAX_NAMES]) + more
        )


def _check_same(model: Eagle, ours: LoraConfig, theirs: LoraConfig, plan: Mapping[str, Sequence[Block]]) -> None:
    """Raises ConfigError unless a file's adapters are those that the model has."""
    here, there = (
        {block.name: (block.rank, block.scale) for blocks in each.values() for block in blocks if block.rank}
        for each in (_plan(model, ours), plan)
    )
    for name in here | there:
        if here.get(name) != there.get(name):
            told = [f"rank {x[name][0]} and scale {x[name][1]:g}" if name in x else "none" for x in (there, here)]
            raise ConfigError(f"the adapter of {name} has {told[0]}; the model's has {told[1]}.")
    for name in ("dora", "modules_to_save"):
        if getattr(ours, name) != getattr(theirs, name):
            raise ConfigError(f"{name} is {getattr(theirs, name)}; the model's adapters have {getattr(ours, name)}.")
