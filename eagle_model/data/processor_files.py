"""The files of a Hugging Face processor: written beside ours, and read where ours are absent.

    kept = read_kept(folder)                  # {"preprocessor_config.json": {...}, ...}: every field, known or not
    config = released_config(folder, kept)    # what they say of how images are prepared
    write_files(folder, tokenizer, config, kept)

Ours, eagle_processor.json, is the whole truth; these say the part of it that the processor of nvidia/Eagle2.5-8B,
transformers and vLLM read. Fields that we have no word for are kept as they were found, and written again.

preprocessor_config.json    how an image becomes tiles: size, mean, std, how many
processor_config.json       the tokens around images; in transformers 5 the image processor's fields too
tokenizer_config.json       which tokens end a turn and pad, and all added ones; special_tokens_map.json the first two,
                            added_tokens.json the ids of the last, for readers of old
chat_template.jinja         messages to text (templates.py); a template in tokenizer_config.json or in
                            chat_template.json is left out in its favour, since readers differ in which they take
generation_config.json      how other programs sample, and the tokens that end an answer, ChatML's among them
video_preprocessor_config.json   none in the release; kept where a folder has one
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from eagle_model.data.chat import IMAGE_CONTEXT, IMAGE_END, IMAGE_START
from eagle_model.data.templates import END_OF_TEXT, TURN_END, chat_template
from eagle_model.files import read_json, write_json, write_text

if TYPE_CHECKING:
    from eagle_model.data.processor import ProcessorConfig

Kept = Mapping[str, dict[str, Any]]  # by file: what was found there

IMAGES, PROCESSOR, TOKENIZER = "preprocessor_config.json", "processor_config.json", "tokenizer_config.json"
SPECIAL_MAP, ADDED, VIDEOS = "special_tokens_map.json", "added_tokens.json", "video_preprocessor_config.json"
GENERATION = "generation_config.json"
CHAT_TEMPLATE, OLD_CHAT_TEMPLATE = "chat_template.jinja", "chat_template.json"
KEPT_FILES = (IMAGES, PROCESSOR, TOKENIZER, SPECIAL_MAP, GENERATION, VIDEOS)
_IMAGE_FIELDS = {  # of the release, where they say nothing of ours
    "crop_size": None,
    "data_format": "channels_first",
    "default_to_square": False,
    "do_center_crop": None,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_pad": False,
    "do_rescale": True,
    "do_resize": False,
    "image_processor_type": "Eagle2_5_VLImageProcessorFast",
    "input_data_format": None,
    "min_dynamic_tiles": 1,
    "pad_during_tiling": False,
    "processor_class": "Eagle2_5_VLProcessor",
    "resample": 3,
    "rescale_factor": 1 / 255,
}
_PROCESSOR_FIELDS = {
    "image_end_token": IMAGE_END,
    "image_placeholder": "image",
    "image_start_token": IMAGE_START,
    "image_token": IMAGE_CONTEXT,
    "processor_class": "Eagle2_5_VLProcessor",
    "video_placeholder": "video",
    "video_token": IMAGE_CONTEXT,
}


def read_kept(folder: Path) -> dict[str, dict[str, Any]]:
    """All fields of those of KEPT_FILES that the folder has. Raises ValueError when one holds no JSON object."""
    kept = {}
    for name in KEPT_FILES:
        if (folder / name).is_file():
            kept[name] = read_json(folder / name)
            if not isinstance(kept[name], dict):
                raise ValueError(f"{folder / name} holds no object; needs the fields of a Hugging Face processor.")
    return kept


def released_config(folder: Path, kept: Kept) -> dict[str, Any]:
    """The fields of a ProcessorConfig that a folder says without ours: its model's config.json first, then `kept`.

    Raises ValueError when they do not say how large tiles and patches are, or ask for images without a thumbnail.
    """
    model = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    images = kept.get(IMAGES) or kept.get(PROCESSOR, {}).get("image_processor") or {}
    vision = model.get("vision_config") if isinstance(model, dict) else None
    if not isinstance(vision, dict) and not (isinstance(images, dict) and images.get("size")):
        raise ValueError(
            f"{folder} has neither eagle_processor.json, nor a config.json with a vision_config, nor a {IMAGES} with "
            "a size; needs one of them."
        )
    vision, both = vision or {}, {**model, **images}
    if both.get("use_thumbnail") is False:
        raise ValueError(f"{folder}: use_thumbnail is false; images are prepared here with a thumbnail alone.")
    tile_px = vision.get("image_size", _height(images.get("size")))
    given = {
        "tile_px": tile_px,
        "patch_px": vision.get("patch_size", _patch_px(tile_px, images.get("tokens_per_tile"))),
        "use_pixel_shuffle": both.get("use_pixel_shuffle"),
        "mean": images.get("image_mean"),
        "std": images.get("image_std"),
    }
    values: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    tiles = both.get("max_dynamic_tiles", both.get("max_dynamic_patch"))
    values["sampling"] = {} if tiles is None else {"max_tiles": tiles}
    return values


def _height(size: object) -> object:
    return size.get("height") if isinstance(size, dict) else size


def _patch_px(tile_px: object, tokens_per_tile: object) -> int | None:
    """Of a square of tokens, each a block of 2 x 2 patches."""
    if not isinstance(tile_px, int) or not isinstance(tokens_per_tile, int) or tokens_per_tile < 1:
        return None
    return tile_px // (2 * math.isqrt(tokens_per_tile))


def write_files(folder: Path, tokenizer: Tokenizer, config: ProcessorConfig, kept: Kept) -> None:
    """Writes all that this file's head lists into `folder`, which exists."""
    images = _image_fields(config, kept)
    processor = {**_PROCESSOR_FIELDS, **kept.get(PROCESSOR, {}), "tokens_per_tile": config.tokens_per_tile}
    if isinstance(processor.get("image_processor"), dict):
        processor["image_processor"] |= images
    about = _tokenizer_fields(tokenizer, kept.get(TOKENIZER, {}))
    names = ("eos_token", "pad_token", "additional_special_tokens")
    special = {**{name: about[name] for name in names if name in about}, **kept.get(SPECIAL_MAP, {})}
    files = {
        IMAGES: images,
        PROCESSOR: processor,
        TOKENIZER: about,
        SPECIAL_MAP: special,
        ADDED: {token["content"]: int(token_id) for token_id, token in about["added_tokens_decoder"].items()},
        GENERATION: _generation_fields(tokenizer, kept.get(GENERATION, {})),
        **({VIDEOS: kept[VIDEOS]} if VIDEOS in kept else {}),
    }
    for name, fields in files.items():
        write_json(folder / name, fields)
    template = chat_template(config.system_text, auto_thinking_prompt=config.auto_thinking_prompt)
    write_text(folder / CHAT_TEMPLATE, template)
    (folder / OLD_CHAT_TEMPLATE).unlink(missing_ok=True)  # it would be taken for the newer one


def _image_fields(config: ProcessorConfig, kept: Kept) -> dict[str, Any]:
    found = kept.get(IMAGES) or kept.get(PROCESSOR, {}).get("image_processor") or {}
    ours = {
        "image_mean": list(config.mean),
        "image_std": list(config.std),
        "max_dynamic_tiles": config.sampling.max_tiles,
        "size": {"height": config.tile_px, "width": config.tile_px},
        "tokens_per_tile": config.tokens_per_tile,
        "use_thumbnail": True,
    }
    return {**_IMAGE_FIELDS, **found, **ours}


def _generation_fields(tokenizer: Tokenizer, found: dict[str, Any]) -> dict[str, Any]:
    """A turn's end ends an answer, whatever the language model had for it."""
    turn_end, end_of_text = map(tokenizer.token_to_id, (TURN_END, END_OF_TEXT))
    ends = found.get("eos_token_id", [] if end_of_text is None else [end_of_text])
    ends = ends if isinstance(ends, list) else [ends]
    if turn_end in ends:
        return found
    last = {"pad_token_id": turn_end if end_of_text is None else end_of_text}
    return {**last, **found, "eos_token_id": [turn_end, *(end for end in ends if end is not None)]}


def _tokenizer_fields(tokenizer: Tokenizer, found: dict[str, Any]) -> dict[str, Any]:
    """What AutoTokenizer reads beside tokenizer.json."""
    added = sorted(tokenizer.get_added_tokens_decoder().items())
    has_end = tokenizer.token_to_id(END_OF_TEXT) is not None
    defaults = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "additional_special_tokens": [t.content for _, t in added if t.special and t.content != END_OF_TEXT],
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": TURN_END,
        "errors": "replace",
        "pad_token": END_OF_TEXT if has_end else TURN_END,
        "processor_class": "Eagle2_5_VLProcessor",
        "split_special_tokens": False,
        "tokenizer_class": "PreTrainedTokenizerFast",  # tokenizer.json as it stands, whatever made it
        "unk_token": None,
    }
    decoder = {
        str(token_id): {
            "content": token.content,
            "lstrip": token.lstrip,
            "normalized": token.normalized,
            "rstrip": token.rstrip,
            "single_word": token.single_word,
            "special": token.special,
        }
        for token_id, token in added
    }
    fields = {**defaults, **found, "added_tokens_decoder": decoder}
    fields.pop("chat_template", None)
    return fields
