"""Whole folders of a model: Hugging Face's, training checkpoints, and a fresh start; model and processor together.

    to_folder("runs/first", "my-eagle")                      # a run's newest checkpoint as other tools read it
    to_folder("Eagle2.5-8B", "merged", adapter="runs/lora")   # with a LoRA adapter in its weights
    to_run("Eagle2.5-8B", "runs/start")                      # a checkpoint: eagle train ... --set model=runs/start
    assemble("siglip2-so400m-patch14-384", "Qwen2.5-7B-Instruct", "start", tile_px=448)

A released folder has files that are neither the model's nor the processor's (its licence, the code of its classes):
they are copied as they are. docs/released_folder.md names them all.
"""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer

from eagle_model.checkpoints import MANIFEST, read_newest
from eagle_model.data.chat import SPECIAL_TOKENS, ChatEncoder
from eagle_model.data.processor import CONFIG_FILE, Processor, ProcessorConfig
from eagle_model.data.processor_files import GENERATION, OLD_CHAT_TEMPLATE, read_kept
from eagle_model.data.tokenizer import add_special_tokens, read_released_tokenizer
from eagle_model.fields import from_json
from eagle_model.files import read_json, write_whole
from eagle_model.model import assemble as assembling
from eagle_model.model import lora, weights
from eagle_model.model.eagle import Eagle
from eagle_model.train import checkpoint

MAX_OTHER_BYTES = 1 << 26  # of a file that is copied as it is: tokenizers and code are smaller
# Eagle's tokens in the order in which a tokenizer without them gets them, which decides their ids.
TOKEN_ORDERS = {
    "released": SPECIAL_TOKENS,  # nvidia/Eagle2.5-8B's
    "training": (  # of the public training code
        "<IMG_CONTEXT>", "<img>", "</img>", "<box>", "</box>", "<quad>", "</quad>", "<ref>", "</ref>",
        "<interval>", "</interval>",
    ),
}  # fmt: skip
_ROLE = "assistant"  # one token, where answers begin


def to_folder(
    source: Path | str,
    out: Path | str,
    *,
    adapter: Path | str | None = None,
    processor: Path | str | None = None,
    layout: str = "released",
    dtype: torch.dtype | None = None,
) -> None:
    """Writes a folder that other tools read: the model, its processor's files, and what else the source has.

    source: a released folder, a checkpoint or a run, whose newest is taken. adapter: a folder that PEFT or
    `lora.save_adapter` wrote, or a run that trained one; merged into the weights. processor: a folder for all but the
    model, where the source has no tokenizer of its own. layout: as for `Eagle.save_pretrained`. dtype: of the weights;
    None keeps the source's.

    Raises FileExistsError when `out` holds files; FileNotFoundError and ValueError where the readers do.
    """
    _need_empty(out := Path(out))
    read_newest(Path(source), lambda at: _write_folder(at, out, adapter, processor, layout, dtype))


def to_run(
    source: Path | str,
    out: Path | str,
    *,
    adapter: Path | str | None = None,
    processor: Path | str | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """Writes a run's folder with one checkpoint, of step 0, whose bytes its manifest checks; returns the checkpoint.

    It has no state of an optimizer, as nothing was trained: other runs start from it, `--set model=OUT`.
    Arguments and errors as for `to_folder`.
    """
    _need_empty(out := Path(out))
    return read_newest(
        Path(source),
        lambda at: checkpoint.save(
            out / "checkpoints",
            0,
            secrets.token_hex(8),
            lambda folder: _write_folder(at, folder, adapter, processor, "released", dtype),
        ),
    )


def _need_empty(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} exists and is no empty folder; nothing is written over. Name another.")


def _write_folder(
    source: Path,
    out: Path,
    adapter: Path | str | None,
    processor: Path | str | None,
    layout: str,
    dtype: torch.dtype | None,
) -> None:
    beside = source if processor is None else Path(processor)
    theirs = Processor.from_pretrained(beside)  # first: it is read in no time
    model = Eagle.from_pretrained(source, dtype=dtype)
    if adapter is not None:
        lora.load_adapter(model, adapter)
        lora.merge(model)
    model.save_pretrained(out, layout=layout)
    theirs.save_pretrained(out)
    copy_other_files(beside, out)


def copy_other_files(source: Path, out: Path) -> None:
    """Copies the files of a model's folder that `out` lacks, but for weights, what the processor's files replace, a
    manifest, hidden files and folders."""
    replaced = (MANIFEST, CONFIG_FILE, OLD_CHAT_TEMPLATE)
    for path in sorted(source.iterdir()):
        is_weights = ".safetensors" in path.name or path.suffix in weights.PICKLES or ".bin.index" in path.name
        if is_weights or path.name in replaced or path.name.startswith(".") or (out / path.name).exists():
            continue
        if path.is_file() and path.stat().st_size <= MAX_OTHER_BYTES:
            write_whole(out / path.name, lambda beside, path=path: shutil.copyfile(path, beside))  # type: ignore[misc]


def assemble(
    vision_folder: Path | str,
    llm_folder: Path | str,
    out: Path | str,
    *,
    tile_px: int | None = None,
    token_order: str = "released",
    mlp_connector_layers: int = 2,
    use_pixel_shuffle: bool = True,
    dtype: torch.dtype = torch.bfloat16,
    max_shard_bytes: int = weights.MAX_SHARD_BYTES,
) -> None:
    """Writes a whole folder of a new Eagle: towers of two folders, a new connector, a tokenizer with Eagle's tokens.

    token_order: of `TOKEN_ORDERS`; a token that the language model's tokenizer has already keeps its id in either.
    The rest as `eagle_model.model.assemble` has it. Raises what that does, and ValueError for a folder without a
    tokenizer or another order.
    """
    _need_empty(out := Path(out))
    vision_folder, llm_folder = Path(vision_folder), Path(llm_folder)
    tokenizer = read_released_tokenizer(llm_folder)
    num_before = vocab_size(tokenizer)
    add_tokens(tokenizer, token_order)
    num_after = vocab_size(tokenizer)
    cfg = assembling.assemble(
        vision_folder,
        llm_folder,
        out,
        vocab_size=num_after,
        num_new_tokens=num_after - num_before,
        image_token_id=ChatEncoder(tokenizer).context_id,
        tile_px=tile_px,
        mlp_connector_layers=mlp_connector_layers,
        use_pixel_shuffle=use_pixel_shuffle,
        dtype=dtype,
        max_shard_bytes=max_shard_bytes,
    )
    sizes = {"tile_px": cfg.vision.tile_px, "patch_px": cfg.vision.patch_px}
    config = from_json(ProcessorConfig, {**sizes, **_pixels(vision_folder)})
    kept = {name: fields for name, fields in read_kept(llm_folder).items() if name == GENERATION}
    Processor(tokenizer, config, kept=kept).save_pretrained(out)


def vocab_size(tokenizer: Tokenizer) -> int:
    """Rows that a table needs for every id of a tokenizer."""
    return max(tokenizer.get_vocab().values()) + 1


def add_tokens(tokenizer: Tokenizer, token_order: str) -> None:
    """Gives a tokenizer, in place, what it lacks of ChatML's and Eagle's tokens, Eagle's in an order of `TOKEN_ORDERS`,
    and `assistant` where that is not one token. Raises ValueError for another order."""
    if token_order not in TOKEN_ORDERS:
        raise ValueError(f"token_order is {token_order!r}; needs one of {', '.join(TOKEN_ORDERS)}.")
    lacking = [token for token in TOKEN_ORDERS[token_order] if tokenizer.token_to_id(token) is None]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in lacking])
    add_special_tokens(tokenizer)
    if len(tokenizer.encode(_ROLE, add_special_tokens=False).ids) != 1:
        tokenizer.add_tokens([AddedToken(_ROLE, normalized=False)])


def _pixels(vision_folder: Path) -> dict[str, object]:
    """Mean and standard deviation of the pixels that a vision tower was trained on, where its folder says so."""
    path = vision_folder / "preprocessor_config.json"
    fields = read_json(path) if path.is_file() else {}
    given = {ours: fields.get(theirs) for ours, theirs in (("mean", "image_mean"), ("std", "image_std"))}
    return {name: value for name, value in given.items() if value is not None}
