"""Weights as files: safetensors under the names of nvidia/Eagle2.5-8B, in shards with an index.

Dims     C vision width, K = 3 * patch_px**2 numbers a patch.
Names    The released model has transformers 4's names. `RELEASED` maps the beginnings of ours to theirs, one to one.
Shapes   The same, but for the patch embedding: a convolution (C, 3, patch_px, patch_px) there, flat (C, K) here.
Unused   `vision_model.vision_model.head.*`, SigLIP's pooling head, gets no gradient in Eagle and is not part of this
         model: it is skipped when read, and not written (config.json then says `vision_use_head: false`).
Safety   Files are there whole or not at all (eagle_model/files.py). Nothing here unpickles.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from eagle_model.files import write_json, write_whole

MAX_SHARD_BYTES = 5_000_000_000
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

RELEASED = {
    "vision.patch_embedding.": "vision_model.vision_model.embeddings.patch_embedding.",
    "vision.position_embedding.": "vision_model.vision_model.embeddings.position_embedding.",
    "vision.layers.": "vision_model.vision_model.encoder.layers.",
    "vision.post_layernorm.": "vision_model.vision_model.post_layernorm.",
    "connector.norm.": "mlp1.0.",
    "connector.up.": "mlp1.1.",
    "connector.out.": "mlp1.3.",
    "llm.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
}
_PATCH_EMBEDDING = "vision.patch_embedding.weight"
_EMBEDDING, _HEAD = "language_model.model.embed_tokens.weight", "language_model.lm_head.weight"
_UNUSED = "vision_model.vision_model.head."
_GROOT = ("backbone.eagle_model.", "backbone.model.")  # Isaac GR00T and LeRobot hold the model under one of these


def released_name(name: str) -> str:
    """The released name of a parameter of `Eagle`."""
    for ours, theirs in RELEASED.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    raise ValueError(f"{name} is no parameter of Eagle; its names begin with {', '.join(RELEASED)}.")


def released_shape(name: str, shape: Iterable[int]) -> tuple[int, ...]:
    """The shape that the parameter `name` of shape `shape` has in a file."""
    shape = tuple(shape)
    if name != _PATCH_EMBEDDING:
        return shape
    patch_px = round((shape[1] / 3) ** 0.5)
    return (shape[0], 3, patch_px, patch_px)


def save(folder: Path, parameters: Mapping[str, Tensor], *, max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
    """Writes Eagle's parameters (our names) to `folder`: one file, or shards of up to `max_shard_bytes` and an index.

    Raises FileExistsError if the folder already holds safetensors: a crash must not leave a mixture of two models.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if present := sorted(path.name for path in folder.glob("*.safetensors*")):
        raise FileExistsError(f"{folder} already holds {', '.join(present)}; save to an empty folder.")
    shards: list[dict[str, Tensor]] = [{}]
    shard_bytes = total_bytes = 0
    for name, tensor in parameters.items():
        num_bytes = tensor.numel() * tensor.element_size()
        if shards[-1] and shard_bytes + num_bytes > max_shard_bytes:
            shards.append({})
            shard_bytes = 0
        shards[-1][released_name(name)] = tensor.detach().reshape(released_shape(name, tensor.shape))
        shard_bytes += num_bytes
        total_bytes += num_bytes
    if len(shards) == 1:
        write_tensors(folder / SINGLE, shards[0])
        return
    weight_map = {}
    for i, shard in enumerate(shards, start=1):
        file_name = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        write_tensors(folder / file_name, shard)
        weight_map.update(dict.fromkeys(shard, file_name))
    write_json(folder / INDEX, {"metadata": {"total_size": total_bytes}, "weight_map": weight_map})


def load(
    folder: Path, parameters: Mapping[str, Tensor], *, dtype: torch.dtype | None, device: torch.device | str
) -> dict[str, Tensor]:
    """The tensors of `folder` for `parameters` (our names; only the shapes matter, they may be on the meta device).

    Every name and shape is checked before the first tensor is read. `dtype` None keeps the file's.
    Names under `backbone.eagle_model.` or `backbone.model.` (Isaac GR00T) count without that prefix; what such a
    checkpoint holds beside the prefix is not Eagle's and is skipped.

    Raises FileNotFoundError if there are no weights or a shard is missing. Raises ValueError, naming the file or all
    tensors concerned, if a file is damaged, or a tensor is missing, unknown or of another shape.
    """
    stored: dict[str, tuple[Path, str]] = {}  # released name -> file, name in the file
    shapes: dict[str, tuple[int, ...]] = {}
    for path in _files(folder):
        with _open(path, "cpu") as file:
            for key in file.keys():  # noqa: SIM118  (not a dict)
                stored[key] = (path, key)
                shapes[key] = tuple(file.get_slice(key).get_shape())
    for prefix in _GROOT:
        if any(key.startswith(prefix) for key in stored):
            stored = {key.removeprefix(prefix): at for key, at in stored.items() if key.startswith(prefix)}
            shapes = {key: shapes[at[1]] for key, at in stored.items()}

    wanted = {released_name(name): name for name in parameters}
    tied = _HEAD not in wanted  # tied embeddings are one parameter; a file may hold it under both names
    problems = [f"missing: {key}" for key in wanted if key not in stored]
    for key in stored:
        if key.startswith(_UNUSED) or (tied and key == _HEAD):
            continue
        if key not in wanted:
            problems.append(f"unknown: {key}")
        elif shapes[key] != (need := released_shape(wanted[key], parameters[wanted[key]].shape)):
            problems.append(f"shape: {key} is {shapes[key]}, needs {need}")
    if problems:
        raise ValueError(
            f"{folder}: the weights do not fit the model of its config.json ({len(problems)} tensors):\n  "
            + "\n  ".join(problems)
        )

    tensors = {}
    for path in sorted({path for path, _ in stored.values()}):
        with _open(path, str(device)) as file:
            for key, (at, stored_key) in stored.items():
                if at == path and key in wanted:
                    tensor = file.get_tensor(stored_key).reshape(parameters[wanted[key]].shape)
                    # A copy, because what safetensors gives may be a view of the mapped file, which others may change.
                    tensors[wanted[key]] = tensor.to(dtype=dtype or tensor.dtype, device=device, copy=True)
    if tied and _HEAD in stored:
        path, stored_key = stored[_HEAD]
        with _open(path, "cpu") as file:
            head = file.get_tensor(stored_key).to(dtype=dtype, device=device)
        if not torch.equal(head, tensors[wanted[_EMBEDDING]]):
            raise ValueError(
                f"{folder}: config.json says tie_word_embeddings, but {_HEAD} and {_EMBEDDING} differ. "
                f"Set text_config.tie_word_embeddings to false."
            )
    return tensors


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes a safetensors file, whole or not at all."""
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    write_whole(path, lambda temporary: save_file(contiguous, temporary, metadata={"format": "pt"}))


def _files(folder: Path) -> list[Path]:
    """The safetensors files of a model's folder, as its index names them."""
    index_path = folder / INDEX
    if not index_path.is_file():
        if not (folder / SINGLE).is_file():
            raise FileNotFoundError(f"{folder} holds neither {SINGLE} nor {INDEX}; needs the weights of a model.")
        return [folder / SINGLE]
    try:
        names = sorted(set(json.loads(index_path.read_text(encoding="utf-8"))["weight_map"].values()))
        outside = [name for name in names if Path(name).name != name]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index_path} is damaged: needs JSON with a weight_map ({error!r}).") from error
    if outside:
        raise ValueError(f"{index_path} names {', '.join(outside)}; shards must lie in the same folder.")
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise FileNotFoundError(f"{index_path} names {', '.join(missing)}, which {folder} does not hold.")
    return [folder / name for name in names]


def _open(path: Path, device: str) -> Any:
    try:
        return safe_open(path, framework="pt", device=device)
    except SafetensorError as error:
        size_bytes = path.stat().st_size
        raise ValueError(f"{path} ({size_bytes} bytes) is damaged or cut short: {error}. Copy it again.") from error
