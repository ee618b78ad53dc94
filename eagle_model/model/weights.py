"""Weights as files: safetensors in shards with an index, under released names that a table of rules makes ours.

    save(folder, dict(model.named_parameters()), rules(cfg))
    for name, tensor in read(folder, dict(model.named_parameters()), rules(cfg), dtype=torch.bfloat16, device="cuda"):
        ...                                      # "llm.layers.0.mlp.down_proj.weight", (3584, 18944) bf16 on the GPU

Dims     C vision width, K = 3 * patch_px**2 numbers a patch.
Rules    A rule says which released tensors become which of ours, and back: renamed, reshaped, joined or split.
         `rules` gives the table of a config; another layout of the same numbers is another table.
Unused   A rule without names of ours tells what the files hold and the model does not compute with, as SigLIP's pooling
         head, `vision_model.vision_model.head.*`: it is handed on as it is, and written again beside the model's own.
Layouts  The same tensors under the names of other programs, `LAYOUTS`: read as they come, written when asked for.
Safety   Files are there whole or not at all (eagle_model/files.py). Nothing here unpickles. Where a checkpoint's
         manifest stands beside the weights, only files that it lists are read, and only as they were written.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from eagle_model.checkpoints import CheckpointError, digests_of, listed_files, verify_listed
from eagle_model.fields import MAX_NAMES, few
from eagle_model.files import os_error, read_json, write_json, write_whole
from eagle_model.model.config import EagleConfig, TextConfig, VisionConfig

MAX_SHARD_BYTES = 5_000_000_000  # what the released model's shards stay below
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
FORMAT = ("format", "pt")  # what transformers looks for in a header
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")  # what other programs keep pickled weights in
MAX_LINE_CHARS = 200  # of a refusal: the longest released name has 75, and shapes come after it
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}  # no quantised ones
# What stands in names that were saved through a wrapper, and how to save without it.
_WRAPPERS = {
    "module.": "DistributedDataParallel or DataParallel saves them; save model.module",
    "_orig_mod.": "torch.compile saves them; save model._orig_mod",
    "_fsdp_wrapped_module.": "FSDP saves them; save its full state_dict",
    "_checkpoint_wrapped_module.": "torch's checkpoint_wrapper saves them; save the module inside",
    "base_model.model.": "peft saves them; save merge_and_unload()'s model",
}
# Names of other layouts of the same model: what they begin with, what is needed, and who writes them.
_LAYOUTS = (
    ("model.vision_model.", "vision_model.vision_model.", "as transformers 5 does"),
    ("model.language_model.", "language_model.model.", "as transformers 5 does"),
    ("language_model.", "language_model.model.", "as transformers 5 does"),
)
_OUTER = re.compile(r"(.+?\.)(?:vision_model|mlp1|language_model)\.")  # what stands before a released name


def _unchanged(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tensors


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """Tensors of a file and what the model has in their place.

    In a name, {word} stands for any text, the same wherever the word stands in the rule:

        Rule(theirs=("model.{rest}",), ours=("llm.{rest}",))                                   # a rename
        Rule(theirs=("{i}.q.{kind}", "{i}.k.{kind}"), ours=("{i}.qk.{kind}",),                 # a join
             to_ours=lambda q, k: (torch.cat([q, k]),), to_theirs=lambda qk: qk.split([H, K]))

    to_ours takes the tensors of `theirs` in that order and gives those of `ours`; to_theirs is its inverse, bit for
    bit, and must work on meta tensors too: the shapes that a file needs come from it. No `ours`: not in the model.
    again: where the model has no parameter for these names, a file may hold theirs[0] under them once more.
    """

    theirs: tuple[str, ...]
    ours: tuple[str, ...] = ()
    to_ours: Callable[..., Sequence[Tensor]] = _unchanged
    to_theirs: Callable[..., Sequence[Tensor]] = _unchanged
    again: tuple[str, ...] = ()


def _rename(theirs: str, ours: str) -> Rule:
    return Rule(theirs=(theirs,), ours=(ours,))


def _convolution(weight_CK: Tensor) -> tuple[Tensor]:
    """The patch embedding as the release has it, (C, 3, patch_px, patch_px)."""
    patch_px = round((weight_CK.shape[1] / 3) ** 0.5)
    return (weight_CK.unflatten(1, (3, patch_px, patch_px)),)


# nvidia/Eagle2.5-8B, which has transformers 4's names
_VISION, _VISION_FLAT, _LLM = "vision_model.vision_model", "vision_model", "language_model"
POOLING_HEAD = f"{_VISION}.head."  # what SigLIP's own tensors beyond Eagle's begin with


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """How a program names the released tensors in its files, and the model's class in config.json."""

    prefix: str = ""  # before all of them
    is_flat: bool = False  # SigLIP's without the second `vision_model.`
    architecture: str = "Eagle2_5_VLForConditionalGeneration"

    def key(self, released_name: str) -> str:
        """The name in this layout's files."""
        flat = released_name.replace(f"{_VISION}.", f"{_VISION_FLAT}.", 1) if self.is_flat else released_name
        return self.prefix + flat


LAYOUTS = {
    "released": Layout(),  # transformers 4, vLLM
    "transformers5": Layout(is_flat=True),
    "groot": Layout(prefix="backbone.eagle_model."),  # Isaac GR00T N1.5
    "lerobot": Layout(prefix="_groot_model.backbone.eagle_model.", architecture="Eagle25VLForConditionalGeneration"),
}
# What the names of all of a model's tensors may begin with; tensors beside it are another model's.
_PREFIXES = ("_groot_model.backbone.eagle_model.", "backbone.eagle_model.", "backbone.model.")


def _joined(theirs: str, ours: str, names: Sequence[str], sizes: Sequence[int]) -> Rule:
    """Projections of one input, one below another: `{x}` of theirs stands for each of `names`, `sizes` rows of each."""
    return Rule(
        theirs=tuple(theirs.replace("{x}", name) for name in names),
        ours=(ours,),
        to_ours=lambda *parts: (torch.cat(parts),),
        to_theirs=lambda fused: fused.split(list(sizes)),
    )


def rules(cfg: EagleConfig) -> tuple[Rule, ...]:
    """The names of a config's tensors in files, as its released classes have them."""
    return (*_siglip2(cfg.vision), *_connector(cfg), *_decoder(cfg.text))


def _siglip2(cfg: VisionConfig) -> tuple[Rule, ...]:
    layers, ours = f"{_VISION}.encoder.layers.{{i}}", "vision.layers.{i}"
    return (
        Rule(
            theirs=(f"{_VISION}.embeddings.patch_embedding.weight",),
            ours=("vision.patch_embedding.weight",),
            to_ours=lambda weight: (weight.flatten(1),),
            to_theirs=_convolution,
        ),
        _rename(f"{_VISION}.embeddings.patch_embedding.bias", "vision.patch_embedding.bias"),
        _rename(f"{_VISION}.embeddings.position_embedding.weight", "vision.position_embedding.weight"),
        _joined(
            f"{layers}.self_attn.{{x}}_proj.{{kind}}", f"{ours}.self_attn.qkv_proj.{{kind}}",
            "qkv", (cfg.hidden_size,) * 3,
        ),
        _rename(f"{layers}.mlp.fc1.bias", f"{ours}.mlp.act.bias"),
        _rename(f"{_VISION}.encoder.layers.{{rest}}", "vision.layers.{rest}"),
        _rename(f"{_VISION}.post_layernorm.{{rest}}", "vision.post_layernorm.{rest}"),
        Rule(theirs=(f"{POOLING_HEAD}{{rest}}",)),
        Rule(theirs=(f"{_VISION}.embeddings.position_ids",)),  # a buffer: 0, 1, 2, ...
    )  # fmt: skip


def _connector(cfg: EagleConfig) -> tuple[Rule, ...]:
    if cfg.mlp_connector_layers == 1:
        return (_rename("mlp1.0.{rest}", "connector.out.{rest}"),)
    return (
        _rename("mlp1.0.{rest}", "connector.norm.{rest}"),
        _rename("mlp1.1.{rest}", "connector.up.{rest}"),
        _rename("mlp1.3.{rest}", "connector.out.{rest}"),
    )


def _decoder(cfg: TextConfig) -> tuple[Rule, ...]:
    layers, ours = f"{_LLM}.model.layers.{{i}}", "llm.layers.{i}"
    return (
        Rule(
            theirs=(f"{_LLM}.model.embed_tokens.weight",),
            ours=("llm.embed_tokens.weight",),
            again=(f"{_LLM}.lm_head.weight",),  # tied embeddings are one parameter
        ),
        _joined(
            f"{layers}.self_attn.{{x}}_proj.{{kind}}", f"{ours}.self_attn.qkv_proj.{{kind}}", "qkv", cfg.qkv_sizes
        ),
        _joined(
            f"{layers}.mlp.{{x}}_proj.{{kind}}", f"{ours}.mlp.gate_up_proj.{{kind}}",
            ("gate", "up"), (cfg.intermediate_size,) * 2,
        ),
        _rename(f"{_LLM}.model.{{rest}}", "llm.{rest}"),
        _rename(f"{_LLM}.lm_head.weight", "lm_head.weight"),
        Rule(theirs=(f"{_LLM}.model.{{rest}}rotary_emb.inv_freq",)),  # buffers, computed from rope_theta
        Rule(theirs=(f"{_LLM}.model.rotary_emb.inv_freq",)),
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class _Applied:
    """A rule applied: the tensors that are made of each other."""

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    again: tuple[str, ...]
    rule: Rule

    def released(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        tensors = self.rule.to_theirs(*(parameters[name] for name in self.ours))
        return dict(zip(self.theirs, tensors, strict=True))


def released(parameters: Mapping[str, Tensor], rules: Sequence[Rule]) -> dict[str, Tensor]:
    """Parameters (our names) as the tensors that a file holds. Raises ValueError for a name that no rule has."""
    return {key: tensor for group in _groups(parameters, rules) for key, tensor in group.released(parameters).items()}


def assembled(
    tensors: Mapping[str, Tensor], parameters: Mapping[str, Tensor], rules: Sequence[Rule]
) -> dict[str, Tensor]:
    """Its inverse: what a file holds as parameters (our names), of those whose tensors are all there.

    parameters: only the names matter. Tensors that no parameter is made of are passed over.
    """
    found: dict[str, Tensor] = {}
    for group in _groups(parameters, rules):
        if all(key in tensors for key in group.theirs):
            made = group.rule.to_ours(*(tensors[key] for key in group.theirs))
            found |= zip(group.ours, made, strict=True)
    return found


def save(
    folder: Path,
    parameters: Mapping[str, Tensor],
    rules: Sequence[Rule],
    *,
    carried: Mapping[str, Tensor] | None = None,
    layout: str = "released",
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Writes parameters (our names) to `folder`: one file, or shards of up to `max_shard_bytes` and an index.

    carried: tensors under released names that the model does not use, which `read` has handed on. layout: whose names
    the files have, of `LAYOUTS`.
    Raises ValueError for another layout and as `released` does; FileExistsError as `write_shards` does.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout is {layout!r}; needs one of {', '.join(LAYOUTS)}.")
    parameters = {name: parameter.detach() for name, parameter in parameters.items()}
    named = {LAYOUTS[layout].key(key): at for key, at in {**released(parameters, rules), **(carried or {})}.items()}
    write_shards(folder, {key: tensor.nbytes for key, tensor in named.items()}, named.__getitem__, max_shard_bytes)


def write_shards(
    folder: Path, num_bytes: Mapping[str, int], get: Callable[[str], Tensor], max_shard_bytes: int = MAX_SHARD_BYTES
) -> None:
    """Writes tensors of known sizes: one file, or shards of up to `max_shard_bytes` and an index that names them.

    get: gives the tensor of a name when its shard is written, so that no more than one shard need be in memory.
    Raises FileExistsError if the folder already holds safetensors: a crash must not leave a mixture of two models.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if present := sorted(path.name for path in folder.glob("*.safetensors*")):
        raise FileExistsError(f"{folder} already holds {', '.join(present)}; save to an empty folder.")
    shards = in_shards(num_bytes, max_shard_bytes)
    names = shard_names(len(shards))
    for name, shard in zip(names, shards, strict=True):
        write_tensors(folder / name, {key: get(key) for key in shard})
    if len(shards) > 1:
        write_index(folder, num_bytes, dict(zip(names, shards, strict=True)))


def in_shards(num_bytes: Mapping[str, int], max_shard_bytes: int = MAX_SHARD_BYTES) -> list[list[str]]:
    """Tensors of known sizes, in their order, in shards of up to `max_shard_bytes` or of one tensor."""
    shards: list[list[str]] = [[]]
    shard_bytes = 0
    for key, size in num_bytes.items():
        if shards[-1] and shard_bytes + size > max_shard_bytes:
            shards.append([])
            shard_bytes = 0
        shards[-1].append(key)
        shard_bytes += size
    return shards


def shard_names(number: int) -> list[str]:
    """The names of so many shards; a single one has one without numbers, and needs no index."""
    return [SINGLE] if number == 1 else [f"model-{i:05d}-of-{number:05d}.safetensors" for i in range(1, number + 1)]


def write_index(folder: Path, num_bytes: Mapping[str, int], shards: Mapping[str, Iterable[str]]) -> None:
    """Writes the index of several shards. shards: their tensors, by file name."""
    weight_map = {key: name for name, keys in shards.items() for key in keys}
    write_json(folder / INDEX, {"metadata": {"total_size": sum(num_bytes.values())}, "weight_map": weight_map})


def read(
    folder: Path,
    parameters: Mapping[str, Tensor],
    rules: Sequence[Rule],
    *,
    dtype: torch.dtype | None,
    device: torch.device | str,
    is_verified: bool = False,
    carried: MutableMapping[str, Tensor] | None = None,
    mapped: bool = False,
    rows: Mapping[str, tuple[int, int]] | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """(our name, tensor) for each of `parameters` (only the shapes matter, they may be on the meta device).

    Every name, shape and dtype is checked before the first tensor is read, and where a manifest stands beside the files
    their bytes, unless `is_verified`. Then the files are read one after another, each tensor into its
    parameter's memory: what is held beside the weights is one shard. `dtype` None keeps the files', which must be one.

    mapped: on a CPU, and where the dtype stays, tensors are views of the mapped files: nothing is read before it is
    used, and pages that are written to become the process's own. Until then they show what others write into the
    files, and a file that is cut short kills the process; files that are replaced, as here, stay as they were. What
    lies apart in the files and is one here, as q, k and v, is copied.

    rows: of these parameters, no more than the rows from the first number up to the second is read, and given.

    Names under `backbone.eagle_model.` or `backbone.model.` (Isaac GR00T) count without that prefix; what such a
    checkpoint holds beside the prefix is not Eagle's and is skipped.

    Raises FileNotFoundError if there are no weights or a shard is missing. Raises ValueError, naming the file or the
    tensors concerned (20 and how many more), if a file is damaged, or a tensor is missing, unknown, of another shape or
    of a dtype that cannot be computed in; CheckpointError, a ValueError, if a file is not what the manifest says.
    """
    stored, prefix = contents(folder)
    groups = _groups(parameters, rules)
    _take_second_names(stored, groups)
    again = check_fit(folder, parameters, rules, stored, dtype=dtype, prefix=prefix)
    wanted = {key for group in groups for key in group.theirs}
    unused = [key for key in stored if key not in wanted and key not in again]
    paths = sorted({tensor.path for tensor in stored.values()})
    if not is_verified:
        verify_listed(folder, [path.name for path in paths])
    rows = rows or {}
    cut, groups = [g for g in groups if g.ours[0] in rows], [g for g in groups if g.ours[0] not in rows]
    yield from _read_rows(cut, parameters, stored, rows, dtype, device)
    started: dict[str, tuple[tuple[Tensor, ...], dict[str, Tensor]]] = {}
    for path in paths:
        in_memory = _Mapped(path) if mapped and torch.device(device).type == "cpu" else None
        with _open(path, str(device)) as file:
            for group in groups:
                here = {key: stored[key].key for key in group.theirs if stored[key].path == path}
                if not here:
                    continue
                kind = dtype or DTYPES[stored[group.theirs[0]].dtype]
                at = [stored[key] for key in here]
                if (
                    in_memory is not None
                    and len(at) == len(group.theirs)
                    and {DTYPES[one.dtype] for one in at} == {kind}
                ):
                    views = in_memory.made_of(group, at)
                    if views is not None:
                        yield from zip(group.ours, views, strict=True)
                        continue
                if group.ours[0] not in started:
                    started[group.ours[0]] = _empty(group, parameters, kind, device)
                ours, theirs = started[group.ours[0]]
                for key, stored_key in here.items():
                    theirs[key].copy_(file.get_tensor(stored_key))
                if any(stored[key].path > path for key in group.theirs):
                    continue
                del started[group.ours[0]]
                if not _share_memory(ours, theirs.values()):
                    ours = tuple(tensor.clone() for tensor in group.rule.to_ours(*theirs.values()))
                yield from zip(group.ours, ours, strict=True)
            if carried is not None:
                here = {key: stored[key].key for key in unused if stored[key].path == path}
                carried.update(
                    {key: file.get_tensor(stored_key).to("cpu", copy=True) for key, stored_key in here.items()}
                )
    for key, first in again.items():
        rows_here = slice(*next((rows[group.ours[0]] for group in cut if first in group.theirs), (None, None)))
        if not torch.equal(
            stored_tensor(stored[key], dtype, rows_here), stored_tensor(stored[first], dtype, rows_here)
        ):
            raise ValueError(
                f"{folder}: config.json says tie_word_embeddings, but {key} and {first} differ. "
                f"Set text_config.tie_word_embeddings to false."
            )


def _read_rows(
    groups: Iterable[_Applied],
    parameters: Mapping[str, Tensor],
    stored: Mapping[str, Stored],
    rows: Mapping[str, tuple[int, int]],
    dtype: torch.dtype | None,
    device: torch.device | str,
) -> Iterator[tuple[str, Tensor]]:
    """Rows of parameters, which are those of a file's tensors one after another; `read` has checked that all fit."""
    with ExitStack() as files:
        opened = {path: files.enter_context(_open(path, "cpu")) for path in {at.path for at in stored.values()}}
        for group in groups:
            (name,) = group.ours
            (first, end), (num_rows, *width) = rows[name], parameters[name].shape
            parts, begin = [], 0
            for at in (stored[key] for key in group.theirs):
                here = slice(max(first - begin, 0), max(min(end - begin, at.shape[0]), 0))
                if here.start < here.stop:
                    parts.append(opened[at.path].get_slice(at.key)[here].reshape(-1, *width))
                begin += at.shape[0]
            if begin != num_rows:
                raise ValueError(
                    f"{name} is not made of {few(group.theirs)} row by row; it cannot be cut over processes."
                )
            kind = dtype or DTYPES[stored[group.theirs[0]].dtype]
            whole = torch.cat(parts) if parts else torch.empty(0, *width)
            yield name, whole.to(device=device, dtype=kind, copy=len(parts) == 1)


def _take_second_names(stored: dict[str, Stored], groups: Iterable[_Applied]) -> None:
    """Tied embeddings that a file holds under the second name alone, as some programs write them."""
    for group in groups:
        held = next((key for key in group.again if key in stored), None)
        if held is not None and group.theirs[0] not in stored:
            stored[group.theirs[0]] = stored.pop(held)


class _Mapped:
    """A safetensors file in memory as the process's own, of which nothing is read before it is used."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:  # `contents` has checked it
            header_bytes = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(header_bytes))
        size = path.stat().st_size
        self.bytes = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)  # not shared: its own
        self.start = 8 + header_bytes
        self.offsets = {key: at["data_offsets"] for key, at in header.items() if key != "__metadata__"}

    def made_of(self, group: _Applied, tensors: Sequence[Stored]) -> tuple[Tensor, ...] | None:
        """What a rule makes of tensors without a copy: of one, or of several that lie one after another; else None."""
        ends = [self.offsets[at.key] for at in tensors]
        (start, _), (_, end), dtype = ends[0], ends[-1], DTYPES[tensors[0].dtype]
        is_aligned = (self.start + start) % dtype.itemsize == 0
        if not is_aligned or any(a[1] != b[0] for a, b in pairwise(ends)):
            return None
        numbers = self.bytes[self.start + start : self.start + end].view(dtype)
        if len(tensors) == 1:
            ours = tuple(group.rule.to_ours(numbers.view(tensors[0].shape)))
            return ours if _share_memory(ours, [numbers]) else None
        joined = numbers.view(-1, *tensors[0].shape[1:])
        theirs = group.rule.to_theirs(joined) if len(group.ours) == 1 else ()
        places = [self.bytes.data_ptr() + self.start + begin for begin, _ in ends]
        return (joined,) if [part.data_ptr() for part in theirs] == places else None


def _empty(
    group: _Applied, parameters: Mapping[str, Tensor], dtype: torch.dtype, device: torch.device | str
) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Memory for what a rule makes, and the released tensors of it: where they are views, filling them fills it."""
    ours = tuple(torch.empty(parameters[name].shape, dtype=dtype, device=device) for name in group.ours)
    return ours, group.released(dict(zip(group.ours, ours, strict=True)))


def _share_memory(ours: Iterable[Tensor], theirs: Iterable[Tensor]) -> bool:
    places = [{tensor.untyped_storage().data_ptr() for tensor in tensors} for tensors in (ours, theirs)]
    return places[0] == places[1]


def num_stored(folder: Path) -> int:
    """How many numbers the safetensors files of a folder hold by their headers, of which no more is read.

    Raises FileNotFoundError and ValueError as `read` does.
    """
    return sum(tensor.numel for tensor in contents(folder)[0].values())


def fingerprint(folder: Path) -> str:
    """SHA-256 of a model's files, config.json and weights: the same for the same model, wherever it lies.

    Where a manifest stands beside them, it is believed: `read` checks them against it.
    """
    names = ["config.json", *(path.name for path in _files(folder))]
    digests = [f"{name} {digest}" for name, digest in sorted(digests_of(folder, names).items())]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _groups(parameters: Mapping[str, Tensor], rules: Sequence[Rule]) -> list[_Applied]:
    """The rules applied to all parameters; the first rule that has a name takes it."""
    groups: dict[str, _Applied] = {}
    for name in parameters:
        if name in groups:
            continue
        for rule in rules:
            words = next((found for template in rule.ours if (found := _match(template, name)) is not None), None)
            if words is not None:
                break
        else:
            raise ValueError(f"{name} has no rule in the table of weight names; add one to write or read it.")
        theirs, ours, again = (
            tuple(template.format(**words) for template in templates)
            for templates in (rule.theirs, rule.ours, rule.again)
        )
        if missing := [name for name in ours if name not in parameters]:
            raise ValueError(f"{name} belongs with {', '.join(missing)} by its rule; the model has no such parameter.")
        groups |= dict.fromkeys(ours, _Applied(theirs=theirs, ours=ours, again=again, rule=rule))
    return list({id(group): group for group in groups.values()}.values())


def _match(template: str, name: str) -> dict[str, str] | None:
    """What the words of a template stand for in a name; None if it is no such name."""
    found = _pattern(template).fullmatch(name)
    return None if found is None else found.groupdict()


@cache
def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>.+)", re.escape(template)))


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor as a file's header describes it."""

    path: Path
    key: str  # its name in that file
    shape: tuple[int, ...]
    dtype: str  # as safetensors spells it: "BF16"

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


def contents(folder: Path) -> tuple[dict[str, Stored], str]:
    """All tensors of a folder's files by released name, as far as one of `LAYOUTS` has them, and what stands before
    each of their names in the files. Raises as `read` does."""
    stored: dict[str, Stored] = {}
    for path in _files(folder):
        with _open(path, "cpu") as file:
            for key in file.keys():  # noqa: SIM118  (not a dict)
                if key in stored:
                    raise ValueError(f"{path} and {stored[key].path.name} both hold {key}; needs it once.")
                header = file.get_slice(key)
                stored[key] = Stored(path, key, tuple(header.get_shape()), header.get_dtype())
    prefix = next((p for p in _PREFIXES if any(key.startswith(p) for key in stored)), "")
    stored = {key.removeprefix(prefix): at for key, at in stored.items() if key.startswith(prefix)}
    if any(key.startswith(f"{_VISION_FLAT}.embeddings.patch_embedding.") for key in stored):
        flat = f"{_VISION_FLAT}."
        stored = {f"{_VISION}.{key[len(flat) :]}" if key.startswith(flat) else key: at for key, at in stored.items()}
    return stored, prefix


def released_name(name: str) -> str:
    """A tensor's or a module's name in the files of any of `LAYOUTS` as the release has it."""
    name = name.removeprefix(next((prefix for prefix in _PREFIXES if name.startswith(prefix)), ""))
    is_flat = name.startswith(f"{_VISION_FLAT}.") and not f"{name}.".startswith(f"{_VISION}.")
    return f"{_VISION}.{name.removeprefix(f'{_VISION_FLAT}.')}" if is_flat else name


def check_fit(
    where: Path | str,
    parameters: Mapping[str, Tensor],
    rules: Sequence[Rule],
    stored: Mapping[str, Stored],
    *,
    dtype: torch.dtype | None,
    prefix: str = "",
) -> dict[str, str]:
    """Raises ValueError unless what is stored is what the model needs; where: the files, for the message.

    Returns the tensors that they hold twice: the second name and the first.
    """
    groups = _groups(parameters, rules)
    meta = {name: torch.empty(parameter.shape, device="meta") for name, parameter in parameters.items()}
    wanted = {key: tuple(tensor.shape) for group in groups for key, tensor in group.released(meta).items()}
    missing = [key for key in wanted if key not in stored]
    twice = {key: group.theirs[0] for group in groups for key in group.again}
    again = {key: twice[key] for key in stored if key in twice and key not in wanted}
    unused = [template for rule in rules if not rule.ours for template in rule.theirs]
    unknown = [
        key
        for key in stored
        if key not in wanted and key not in again and all(_match(template, key) is None for template in unused)
    ]
    if hint := _naming(unknown, set(missing)):
        raise ValueError(f"{where}: {hint}")
    problems = [f"missing: {key}" for key in missing]
    for key, tensor in stored.items():
        if key in wanted and tensor.shape != wanted[key]:
            problems.append(f"shape: {key} is {tensor.shape}, needs {wanted[key]}")
        if (key in wanted or key in again) and tensor.dtype not in DTYPES:
            problems.append(f"dtype: {key} is {tensor.dtype}, needs one of {', '.join(DTYPES)}: no quantised weights")
    problems += [f"unknown: {key}" for key in unknown]
    if problems:
        named = f", whose names begin with {prefix!r} in the files," if prefix else ""
        raise ValueError(
            f"{where}: the weights{named} do not fit the model of its config.json ({len(problems)} tensors):\n  "
            + "\n  ".join(_first(problems))
        )
    kinds = {dtype: [key for key in wanted if stored[key].dtype == dtype] for dtype in DTYPES}
    kinds = {dtype: keys for dtype, keys in kinds.items() if keys}
    if dtype is None and len(kinds) > 1:
        counts = ", ".join(
            f"{len(keys)} {dtype} ({keys[0]}{', ...' * (len(keys) > 1)})" for dtype, keys in kinds.items()
        )
        raise ValueError(f"{where}: the weights have several dtypes: {counts}. Give one, as in dtype=torch.bfloat16.")
    return again


def _naming(unknown: Sequence[str], missing: set[str]) -> str:
    """What is different about all names, if that explains them: one line instead of a line a tensor; "" if not."""
    for wrapper, advice in _WRAPPERS.items():
        held = [key for key in unknown if wrapper in key]
        if any(_unwrapped(key) in missing for key in held):
            return f"{len(held)} tensors have {wrapper!r} in their names, as {advice}, or rename the tensors."
    outer = sorted({found[1] for key in unknown if (found := _OUTER.match(key))})
    for theirs, needed, writer in (*_LAYOUTS, *((x, "", "as a model that holds this one does") for x in outer)):
        held = [key for key in unknown if key.startswith(theirs) and needed + key.removeprefix(theirs) in missing]
        if held:
            return (
                f"{len(held)} tensors have names that begin with {theirs!r} {writer}; needs the released names, which "
                f"begin with {needed or _VISION + '.'!r} there, as in {needed + held[0].removeprefix(theirs)}."
            )
    return ""


def _unwrapped(key: str) -> str:
    for wrapper in _WRAPPERS:
        key = key.replace(wrapper, "")
    return key


def _first(lines: Sequence[str]) -> list[str]:
    """The first MAX_NAMES of many lines, none of them endless, and how many more there are."""
    shown = [line if len(line) <= MAX_LINE_CHARS else line[:MAX_LINE_CHARS] + "..." for line in lines[:MAX_NAMES]]
    return shown + [f"and {len(lines) - MAX_NAMES:,} more"] * (len(lines) > MAX_NAMES)


def stored_tensor(at: Stored, dtype: torch.dtype | None, rows: slice = slice(None)) -> Tensor:
    """A tensor of a file, or rows of it, in a dtype or its own; it may be a view of the mapped file."""
    with _open(at.path, "cpu") as file:
        return file.get_slice(at.key)[rows].to(dtype=dtype)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: tuple[str, str] = FORMAT) -> None:
    """Writes a safetensors file, whole or not at all. about: a name and a text for its header; one, since the order of
    several is not the same each time."""
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    metadata = dict([about])
    try:
        write_whole(path, lambda temporary: save_file(contiguous, temporary, metadata=metadata))
    except SafetensorError as error:
        raise os_error(error, path) from error


def _files(folder: Path) -> list[Path]:
    """The safetensors files of a model's folder: the single one, as transformers takes them, or those of its index."""
    index_path, listed = folder / INDEX, listed_files(folder)
    # Beside a manifest, what came later is none of the checkpoint.
    has_single, has_index = (
        (folder / name).is_file() and (listed is None or name in listed) for name in (SINGLE, INDEX)
    )
    if has_single or ((folder / SINGLE).is_file() and not has_index):
        names = [SINGLE]
    elif has_index:
        verify_listed(folder, [INDEX])
        names = _named_by(index_path)
    else:
        if pickles := sorted(path.name for path in folder.glob("*") if path.suffix in PICKLES):
            raise ValueError(
                f"{folder} holds {few(pickles)}, which is pickle: reading it would run whatever code is in it. Save "
                "the model as safetensors with the program that wrote it, as transformers' save_pretrained does."
            )
        raise FileNotFoundError(f"{folder} holds neither {SINGLE} nor {INDEX}; needs the weights of a model.")
    if listed is not None and (unlisted := [name for name in names if name not in listed]):
        raise CheckpointError(f"{folder} holds {few(unlisted)}, which its manifest does not list.")
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise FileNotFoundError(f"{index_path} names {few(missing)}, which {folder} does not hold.")
    return [folder / name for name in names]


def _named_by(index_path: Path) -> list[str]:
    try:
        names = sorted(set(read_json(index_path)["weight_map"].values()))
        outside = [name for name in names if Path(name).name != name]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index_path} is damaged: needs JSON with a weight_map ({error!r}).") from error
    if outside:
        raise ValueError(f"{index_path} names {few(outside)}; shards must lie in the same folder.")
    if others := [name for name in names if Path(name).suffix in PICKLES]:
        raise ValueError(f"{index_path} names {few(others)}; needs safetensors, as reading pickle runs foreign code.")
    return names


def _open(path: Path, device: str) -> Any:
    try:
        return safe_open(path, framework="pt", device=device)
    except SafetensorError as error:
        size_bytes = path.stat().st_size
        raise ValueError(f"{path} ({size_bytes} bytes) is damaged or cut short: {error}. Copy it again.") from error
