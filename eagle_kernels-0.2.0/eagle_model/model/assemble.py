"""A fresh Eagle from a SigLIP2 folder and a language model's folder: what the first stage of training starts from.

    assemble("siglip2-so400m-patch14-384", "Qwen2.5-7B-Instruct", "start",
             tile_px=448, vocab_size=151674, num_new_tokens=9, image_token_id=151667)

The two may be as transformers 4 or 5 has written them, a whole SigLIP or its vision tower alone. Between them comes a
connector with new weights, from torch's global generator. What stands in `start` is complete but for the processor's
files; `eagle assemble` writes those too (eagle_model/convert.py).

Dims     V vocabulary, D width of the language model, P patches a tile, C vision width.
Rows     As the paper's code resizes them: padded rows beyond the tokenizer's length are cut; a new token's row of
         lm_head is the mean of the old tokens' rows; of embed_tokens it is what stood there (Qwen's padding has rows),
         or drawn. Tied embeddings are one table, whose new rows are the mean.
Memory   One shard: tensors are read, changed and written one shard after another.
Source   NVlabs/Eagle's fine-tuning script, arXiv:2504.15271.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eagle_model.files import read_json
from eagle_model.model import weights
from eagle_model.model.config import EagleConfig, TextConfig, VisionConfig
from eagle_model.model.connector import Connector
from eagle_model.model.eagle import build, draw, write_config
from eagle_model.model.vision import resize_position_table

_VISION, _LLM = "vision_model.vision_model.", "language_model."
_POSITIONS = f"{_VISION}embeddings.position_embedding.weight"
_INPUT, _OUTPUT = f"{_LLM}model.embed_tokens.weight", f"{_LLM}lm_head.weight"


def assemble(
    vision_folder: Path | str,
    llm_folder: Path | str,
    out: Path | str,
    *,
    vocab_size: int,
    num_new_tokens: int,
    image_token_id: int,
    tile_px: int | None = None,
    select_layer: int = -1,
    mlp_connector_layers: int = 2,
    use_pixel_shuffle: bool = True,
    dtype: torch.dtype = torch.bfloat16,
    max_shard_bytes: int = weights.MAX_SHARD_BYTES,
) -> EagleConfig:
    """Writes the weights and config.json of a new Eagle to `out`, an empty folder or a new one; returns its config.

    vocab_size: the tokenizer's length with Eagle's tokens, of which the last num_new_tokens are new to the language
    model. tile_px: of a tile, where it is not the vision tower's own size: its position table is then resized.

    Raises FileNotFoundError and ValueError where `weights.read` does, and ValueError for another kind of model, or a
    vocabulary that the language model has no rows for. FileExistsError where `weights.write_shards` does.
    """
    vision_folder, llm_folder, out = Path(vision_folder), Path(llm_folder), Path(out)
    tower, llm = _vision_config(vision_folder), TextConfig.from_dict(_fields(llm_folder))
    if not 0 <= num_new_tokens < vocab_size or vocab_size - num_new_tokens > llm.vocab_size:
        raise ValueError(
            f"assemble: vocab_size is {vocab_size} with {num_new_tokens} new tokens; the language model in "
            f"{llm_folder} has rows for {llm.vocab_size} tokens. Take the tokenizer that belongs to it."
        )
    cfg = EagleConfig(
        vision=replace(tower, tile_px=tile_px or tower.tile_px),
        text=replace(llm, vocab_size=vocab_size),
        image_token_id=image_token_id,
        select_layer=select_layer,
        mlp_connector_layers=mlp_connector_layers,
        use_pixel_shuffle=use_pixel_shuffle,
    )
    source = replace(cfg, vision=tower, text=llm, image_token_id=0, use_pixel_shuffle=False)
    stored = _vision_tensors(vision_folder) | _llm_tensors(llm_folder)
    carried = _check(f"{vision_folder} and {llm_folder}", source, stored)
    drawn = _connector(cfg, dtype)

    def get(key: str) -> Tensor:
        if key in drawn:
            return drawn[key]
        if key == _POSITIONS:
            table_PC = weights.stored_tensor(stored[key], torch.float32)
            return resize_position_table(table_PC, cfg.vision.num_patches).to(dtype)
        tensor = weights.stored_tensor(stored[key], dtype)
        if key == _OUTPUT or (key == _INPUT and cfg.text.tie_word_embeddings):
            return _rows(tensor, cfg, num_mean_rows=num_new_tokens)
        return _rows(tensor, cfg, num_mean_rows=0) if key == _INPUT else tensor

    num_numbers = {
        key: tensor.numel() for key, tensor in weights.released(_parameters(cfg), weights.rules(cfg)).items()
    }
    num_numbers |= {key: stored[key].numel for key in carried}
    weights.write_shards(out, {key: count * dtype.itemsize for key, count in num_numbers.items()}, get, max_shard_bytes)
    write_config(out, cfg, dtype, carried)
    return cfg


def _parameters(cfg: EagleConfig) -> dict[str, Tensor]:
    return dict(build(cfg).named_parameters())


def _fields(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; needs the folder of a model.")
    fields = read_json(path)
    if not isinstance(fields, dict):
        raise ValueError(f"{path} holds a {type(fields).__name__}; needs a JSON object.")
    return fields


def _vision_config(folder: Path) -> VisionConfig:
    fields = _fields(folder)
    return VisionConfig.from_dict(fields.get("vision_config", fields))


def _vision_tensors(folder: Path) -> dict[str, weights.Stored]:
    """Of the vision tower, under released names: what a whole SigLIP has beside it is not Eagle's."""
    stored, _ = weights.contents(folder)
    if "embeddings.patch_embedding.weight" in stored:  # a tower alone, of transformers 5
        return {_VISION + key: at for key, at in stored.items()}
    return {key: at for key, at in stored.items() if key.startswith(_VISION)}


def _llm_tensors(folder: Path) -> dict[str, weights.Stored]:
    return {_LLM + key: at for key, at in weights.contents(folder)[0].items()}


def _check(where: str, source: EagleConfig, stored: Mapping[str, weights.Stored]) -> list[str]:
    """Raises ValueError unless the files hold both towers; returns what else of theirs is kept: the pooling head."""
    rules = weights.rules(source)
    towers = {name: at for name, at in _parameters(source).items() if not name.startswith("connector.")}
    again = weights.check_fit(where, towers, rules, stored, dtype=torch.float32)
    used = weights.released(towers, rules).keys() | again.keys()
    return [key for key in stored if key not in used and key.startswith(weights.POOLING_HEAD)]


def _connector(cfg: EagleConfig, dtype: torch.dtype) -> dict[str, Tensor]:
    """A new one, under released names."""
    connector = Connector(cfg)
    draw(connector, cfg.initializer_range)
    parameters = {f"connector.{name}": parameter.detach().to(dtype) for name, parameter in connector.named_parameters()}
    return weights.released(parameters, weights.rules(cfg))


def _rows(table_VD: Tensor, cfg: EagleConfig, *, num_mean_rows: int) -> Tensor:
    """A table of the config's vocabulary: rows beyond it are cut, those it lacks drawn, the last ones the mean."""
    table_VD = table_VD[: cfg.text.vocab_size]
    lacking = torch.empty(cfg.text.vocab_size - len(table_VD), cfg.text.hidden_size)
    nn.init.normal_(lacking, std=cfg.initializer_range)
    table_VD = torch.cat([table_VD, lacking.to(table_VD.dtype)])
    if num_mean_rows:
        table_VD[-num_mean_rows:] = table_VD[:-num_mean_rows].mean(0, dtype=torch.float32)
    return table_VD
