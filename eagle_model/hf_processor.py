"""The processor for Hugging Face's tools: `eagle_model.Processor` behind transformers' interface. See hf.py.

    import eagle_model.hf                    # teaches AutoProcessor the model's type
    processor = AutoProcessor.from_pretrained("Eagle2.5-8B")
    inputs = processor(images=[picture], text="<|im_start|>user\\n<image-1>What?<|im_end|>\\n<|im_start|>assistant\\n")

Dims    B batch, T tokens of each row, I tiles, P patches a tile, K numbers a patch.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import BatchFeature, PreTrainedTokenizerFast, ProcessorMixin

from eagle_model.data.chat import IMAGE_CONTEXT
from eagle_model.data.processor import Processor
from eagle_model.data.processor_files import CHAT_TEMPLATE
from eagle_model.data.rows import Tag, split_at_tags
from eagle_model.data.templates import END_OF_TEXT, TURN_END, TURN_START, chat_template
from eagle_model.fields import few, to_json

_ANSWER = f"{TURN_START}assistant\n"
_TURN = re.compile(rf"{re.escape(TURN_START)}(\w+)\n(.*?){re.escape(TURN_END)}\n?", re.DOTALL)
_ANSWERED = re.compile(rf"({re.escape(_ANSWER)}.*?(?:{re.escape(TURN_END)}|\Z))", re.DOTALL)
_PLACES = {  # of a medium, the fields of a part that say where it is; as transformers, Qwen and OpenAI name them
    "image": ("image", "url", "path", "base64", "image_url"),
    "video": ("video", "url", "path", "video_url"),
}
MAX_FETCHED_BYTES = 1 << 28  # of an image at an address
FETCH_SECONDS = 60.0  # without a byte from there
_TAG = re.compile(r"(\\*)(<(?:image|video)(?:-[0-9]{1,9})?>)")


class Eagle2_5_VLProcessor(ProcessorMixin):
    """`eagle_model.Processor` in transformers' clothes: text that the chat template wrote, and media, to tensors."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, eagle: Processor, chat_template: str | None = None) -> None:
        self.tokenizer = tokenizer
        self.eagle = eagle
        self.chat_template = chat_template
        self.image_token = IMAGE_CONTEXT
        self.image_token_id = tokenizer.convert_tokens_to_ids(IMAGE_CONTEXT)

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "pixel_values"]

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        videos: Any = None,
        padding: bool | str = True,
        padding_side: str = "left",
        truncation: bool | str | None = None,
        max_length: int | None = None,
        **others: Any,  # arguments of other processors: return_tensors is always "pt"
    ) -> BatchFeature:
        """input_ids and attention_mask (B, T), and pixel_values (I, 3, tile_px, tile_px) where there are media.

        text: conversations that `apply_chat_template` wrote, with `<image-k>` and `<video-k>` for media, each once, and
        a backslash before one that is text; or pieces of text without media.  images: PIL images, arrays, paths or
        addresses, of one text; of several, a list a text, or one list that all use up in turn.  videos: paths, alike.
        padding: texts are always brought to one length.
        Raises ValueError for text that does not fit the media, and for truncation: it would cut visual tokens.
        DataError (a ValueError) as `eagle_model.Processor`.
        """
        if truncation or padding == "max_length":
            raise ValueError(
                f"Eagle2_5_VLProcessor: truncation is {truncation!r}, padding {padding!r}; texts are taken whole. "
                f"Lower the processor's max_tiles or context_tokens instead."
            )
        if text is None:
            raise ValueError("Eagle2_5_VLProcessor: got no text; needs one that holds the media's places.")
        texts = [text] if isinstance(text, str) else list(text)
        shares = [_shared(texts, media, kind) for media, kind in ((images, "image"), (videos, "video"))]
        rows = [self._row(*row) for row in zip(texts, *shares, strict=True)]
        longest = max(len(row[0]) for row in rows)
        ids_BT = torch.full((len(rows), longest), self.tokenizer.pad_token_id)
        mask_BT = torch.zeros_like(ids_BT)
        for b, ids_T in enumerate(row[0] for row in rows):
            place = slice(longest - len(ids_T), None) if padding_side == "left" else slice(len(ids_T))
            ids_BT[b, place], mask_BT[b, place] = ids_T, 1
        data: dict[str, Tensor] = {"input_ids": ids_BT, "attention_mask": mask_BT}
        tiles = [row[1] for row in rows if row[1] is not None]
        if tiles:
            data["pixel_values"] = self._tiles(torch.cat(tiles).float())
        return BatchFeature(data)

    def apply_chat_template(
        self,
        conversation: Any,
        chat_template: str | None = None,
        tokenize: bool = False,
        return_dict: bool = False,
        return_assistant_tokens_mask: bool = False,
        sanitize_control_tokens: bool = False,
        **others: Any,  # transformers'
    ) -> Any:
        """transformers' own, and parts may be OpenAI's, `image_url`; one that asks for another sampling, as by `fps`,
        is refused. In conversations that show media as parts, or are tokenized here, the texts' `<image-k>` are
        characters, written with a backslash before them, not places of media.

        return_assistant_tokens_mask: "assistant_masks" (B, T), 1 for what our trainer learns: each answer through its
        end of turn. Raises ValueError for it without tokenize and return_dict, and for sanitize_control_tokens.
        """
        if sanitize_control_tokens:
            raise ValueError(
                "Eagle2_5_VLProcessor: sanitize_control_tokens is set; call eagle_model.Processor instead."
            )
        if return_assistant_tokens_mask and not (tokenize and return_dict):
            raise ValueError(
                "Eagle2_5_VLProcessor: return_assistant_tokens_mask needs tokenize=True, return_dict=True."
            )
        told = _chats(conversation)  # first: what transformers' own drops of a part is not asked for in vain
        conversations, is_batched = self._normalize_conversations(told[0] if _is_one(conversation) else told)
        has_listed = bool((others.get("processor_kwargs") or others).get("images"))
        chats = [
            _with_escaped_tags(chat) if _shows_media(chat) or (tokenize and not has_listed) else chat
            for chat in conversations
        ]
        chosen = {"chat_template": chat_template, "tokenize": tokenize, "return_dict": return_dict}
        out = super().apply_chat_template(chats if is_batched else chats[0], **chosen, **others)
        if return_assistant_tokens_mask:
            out["assistant_masks"] = torch.stack([self._answers(ids_T) for ids_T in out["input_ids"]])
        return out

    def process_vision_info(
        self, conversations: Sequence[Any], return_video_kwargs: bool = False
    ) -> tuple[list[Any] | None, list[Any] | None] | tuple[list[Any] | None, list[Any] | None, dict[str, Any]]:
        """The images and the videos that messages show, in their order, for a call of this processor: what the
        release's code asks its own for. Videos are paths, whose frames are chosen when the processor is called.

        conversations: one, or a list of several.  return_video_kwargs: with an empty dict, where the release has what
        it decided of the videos.  Raises ValueError as `apply_chat_template`.
        """
        parts = [part for chat in _chats(conversations) for message in chat for part in _parts(message)]
        shown: list[list[Any]] = [[part[kind] for part in parts if kind in part] for kind in _PLACES]
        images, videos = (found or None for found in shown)
        return (images, videos, {}) if return_video_kwargs else (images, videos)

    def to_dict(self) -> dict[str, Any]:
        """What the processor is, as eagle_processor.json says it."""
        return to_json(self.eagle.config)

    def _answers(self, ids_T: Tensor) -> Tensor:
        """1 from after `<|im_start|>assistant` and its newline through `<|im_end|>`, (T,)."""
        ids, mask_T = ids_T.tolist(), torch.zeros_like(ids_T)
        start, end = self._ids(_ANSWER).tolist(), self.tokenizer.convert_tokens_to_ids(TURN_END)
        at = 0
        while at < len(ids):
            if ids[at : at + len(start)] == start:
                first = at + len(start)
                at = ids.index(end, first) + 1 if end in ids[first:] else len(ids)
                mask_T[first:at] = 1
            else:
                at += 1
        return mask_T

    def _row(self, text: str, images: Sequence[Any], videos: Sequence[Any]) -> tuple[Tensor, Tensor | None]:
        """Token ids (T,) and tiles (I, P, K) of one text."""
        if not images and not videos:
            return self._ids("".join(map(str, _pieces(text)))), None
        head, found, tail = text.rpartition(_ANSWER)
        turns = _TURN.findall(head)
        if not found or _TURN.sub("", head):
            raise ValueError(
                f"Eagle2_5_VLProcessor: the text with media is {text[:80]!r}...; needs turns as apply_chat_template "
                f"writes them, with {_ANSWER!r} where the answer begins (add_generation_prompt=True)."
            )
        batch = self.eagle(
            [{"role": role, "content": content} for role, content in turns],
            images=[_picture(image) for image in images],
            videos=[_path(video) for video in videos],
        )
        return torch.cat([batch.token_ids_T, self._ids(tail)]), batch.patches_IPK

    def _ids(self, text: str) -> Tensor:
        return torch.tensor(self.eagle.tokenizer.encode(text, add_special_tokens=False).ids, dtype=torch.int64)

    def _tiles(self, patches_IPK: Tensor) -> Tensor:
        """(I, P, K) -> (I, 3, tile_px, tile_px), as other processors have them."""
        patch_px = self.eagle.config.patch_px
        side = self.eagle.config.tile_px // patch_px
        cut = patches_IPK.unflatten(2, (3, patch_px, patch_px)).unflatten(1, (side, side))
        return cut.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, *_: Any, **kwargs: Any) -> Eagle2_5_VLProcessor:
        """What `eagle_model.Processor.from_pretrained` reads: a folder, or a model of the hub."""
        folder = local_folder(pretrained_model_name_or_path, kwargs)
        eagle = Processor.from_pretrained(folder)
        template = folder / CHAT_TEMPLATE
        if template.is_file():
            text = template.read_text(encoding="utf-8")
        else:  # as `save_pretrained` writes it
            text = chat_template(eagle.config.system_text, auto_thinking_prompt=eagle.config.auto_thinking_prompt)
        has_end = eagle.tokenizer.token_to_id(END_OF_TEXT) is not None
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=eagle.tokenizer,
            eos_token=TURN_END,
            pad_token=END_OF_TEXT if has_end else TURN_END,
            padding_side="left",
            clean_up_tokenization_spaces=False,
            chat_template=text,
        )
        return cls(tokenizer, eagle, text)

    def save_pretrained(self, save_directory: str | Path, push_to_hub: bool = False, **_: Any) -> list[str]:
        """`eagle_model.Processor.save_pretrained`: the files of a folder that `from_pretrained` reads."""
        if push_to_hub:
            raise ValueError("Eagle2_5_VLProcessor: push_to_hub is set; save, then upload with huggingface_hub.")
        self.eagle.save_pretrained(save_directory)
        return sorted(str(path) for path in Path(save_directory).iterdir())


def _shared(texts: Sequence[str], media: Any, kind: str) -> list[list[Any]]:
    """The media of each text. Raises ValueError unless they are as many as the texts' tags ask for."""
    if media is None:
        given: list[Any] = [[] for _ in texts]
    elif not isinstance(media, list | tuple):
        given = [[media]]
    else:
        given = list(media)
    asked = [_num_named(text, kind) for text in texts]
    if not any(isinstance(item, list | tuple) for item in given):  # one list for all
        rest = iter(given)
        shares = [[item for _, item in zip(range(num), rest, strict=False)] for num in asked]
        shares[-1] += rest
    else:
        shares = [list(item) if isinstance(item, list | tuple) else [item] for item in given]
    if [len(share) for share in shares] != asked:
        raise ValueError(
            f"Eagle2_5_VLProcessor: got {few([str(len(share)) for share in shares])} {kind}s for texts that name "
            f"{few([str(num) for num in asked])}; needs one for each <{kind}-k>."
        )
    return shares


def _num_named(text: str, kind: str) -> int:
    """How many media a text speaks of: `<image-2>` of two, each `<image>` of one more."""
    tags = [piece.number for piece in _pieces(text) if not isinstance(piece, str) and piece.kind == kind]
    return max([number for number in tags if number is not None], default=0) + tags.count(None)


def _pieces(text: str) -> list[str | Tag]:
    """A text cut where its tags stand, escaped ones without their backslash. What the assistant says has no tags."""
    pieces: list[str | Tag] = []
    for i, part in enumerate(_ANSWERED.split(text)):
        pieces += [part] if i % 2 else split_at_tags(part)
    return pieces


def _parts(message: Mapping[str, Any]) -> list[Any]:
    """Those of a message's content that are no strings; none beside calls of tools."""
    content = message.get("content") or []
    return [] if isinstance(content, str) else [part for part in content if isinstance(part, Mapping)]


def _shows_media(messages: Sequence[Mapping[str, Any]]) -> bool:
    return any(part.get("type") != "text" for message in messages for part in _parts(message))


def _is_one(conversation: Any) -> bool:
    """Whether it is one, and not a list of several."""
    messages = getattr(conversation, "messages", conversation)  # a pipeline's
    return not messages or isinstance(messages[0], Mapping)


def _chats(conversation: Any) -> list[list[dict[str, Any]]]:
    several = [conversation] if _is_one(conversation) else conversation
    return [_with_plain_media(getattr(chat, "messages", chat)) for chat in several]


def _with_plain_media(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages whose images and videos are parts as transformers reads them, `{"type": "image", "image": ...}`."""
    told = []
    for message in messages:
        content = message.get("content")
        if content and not isinstance(content, str):
            content = [_plain_part(part) if isinstance(part, Mapping) else part for part in content]
        told.append({**message, "content": content})
    return told


def _plain_part(part: Mapping[str, Any]) -> dict[str, Any]:
    given = {name: value for name, value in part.items() if not isinstance(value, str | type(None)) or value}
    kind = str(given.get("type") or next((name for name in (*_PLACES, "image_url", "video_url") if name in given), ""))
    kind = kind.removesuffix("_url")
    if kind not in _PLACES:
        return dict(part)
    given.pop("type", None)
    if isinstance(place := given.get(f"{kind}_url"), Mapping):
        given = {**given, **{name: x for name, x in place.items() if name != "url"}, f"{kind}_url": place.get("url")}
    if given.get("detail") == "auto":
        del given["detail"]
    if len(given) > 1 or not set(given) <= {*_PLACES[kind]}:
        wrong = sorted(set(given) - {*_PLACES[kind]}) or sorted(given)
        raise ValueError(
            f"Eagle2_5_VLProcessor: a part of type {kind} has {few(wrong)}; needs one of {', '.join(_PLACES[kind])}, "
            f"alone. What is seen of a medium says the processor's configuration (docs/sampling.md); clips are shown "
            f"by eagle_model.Processor."
        )
    places = list(given.values())  # none: the next of those beside the messages
    return {"type": kind, kind: places[0]} if places else {"type": kind}


def _with_escaped_tags(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages whose texts keep their `<image-k>` as characters. An assistant's are not looked at anyhow."""

    def escaped(part: Any) -> Any:
        if isinstance(part, str):
            return _TAG.sub(lambda found: f"{found[1]}{found[1]}\\{found[2]}", part)
        return {**part, "text": escaped(part["text"])} if isinstance(part.get("text"), str) else part

    shown = []
    for message in messages:
        content = message.get("content")
        if message.get("role") != "assistant" and content:
            content = escaped(content) if isinstance(content, str) else [escaped(part) for part in content]
        shown.append({**message, "content": content})
    return shown


def _path(video: Any) -> str:
    if not isinstance(video, str | Path):
        raise ValueError(
            f"Eagle2_5_VLProcessor: a video is a {type(video).__name__}; needs the path of a file, whose frames are "
            f"chosen here. Frames that were chosen already are shown as images."
        )
    return str(video).removeprefix("file://")


def _opened(image: str) -> Image.Image:
    """An image at an address, or in base64, as the file would be: its transparency and depth are seen to later.

    Raises ValueError for what is neither, or no image.
    """
    is_remote = image.startswith(("http://", "https://"))
    try:
        if is_remote:
            with urlopen(image, timeout=FETCH_SECONDS) as answer:
                data = answer.read(MAX_FETCHED_BYTES + 1)
            if len(data) > MAX_FETCHED_BYTES:
                raise ValueError(f"it has more than {MAX_FETCHED_BYTES} bytes")
        else:
            data = base64.b64decode(image.partition(",")[2] if image.startswith("data:") else image)
        return Image.open(BytesIO(data))
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"Eagle2_5_VLProcessor: an image is {image[:80]!r} ({len(image)} characters); needs the path of a file, an "
            f"http(s) address or base64 ({error})."
        ) from error


def _picture(image: Any) -> Any:
    """What `eagle_model.Processor` takes: a path, or a PIL image, made of an address, base64 or an array of uint8:
    (Y, X), (Y, X, 1 | 3 | 4) or, as torch has them, (1 | 3 | 4, Y, X)."""
    if isinstance(image, str | Path):
        path = str(image).removeprefix("file://")
        return path if os.path.isfile(path) else _opened(str(image))  # base64 is too long a name for Path.is_file
    if isinstance(image, Image.Image):
        if image.mode == "F":
            raise ValueError("Eagle2_5_VLProcessor: an image has mode 'F'; needs one of whole numbers, as 'RGB'.")
        return image
    array = np.asarray(image)
    if array.ndim == 3 and array.shape[2] not in (1, 3, 4) and array.shape[0] in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (1, 3, 4))):
        raise ValueError(
            f"Eagle2_5_VLProcessor: an image is an array of {array.dtype} {array.shape}; needs uint8, (Y, X) or "
            f"(Y, X, 1, 3 or 4)."
        )
    return Image.fromarray(array[:, :, 0] if array.ndim == 3 and array.shape[2] == 1 else np.ascontiguousarray(array))


def local_folder(name: str | Path, kwargs: Mapping[str, Any]) -> Path:
    """A folder as it is, or that of a model of the hub, which is downloaded."""
    if Path(name).is_dir():
        return Path(name) / (kwargs.get("subfolder") or "")
    from huggingface_hub import snapshot_download

    of_the_hub = ("revision", "cache_dir", "token", "local_files_only", "force_download")
    given = {key: kwargs[key] for key in of_the_hub if kwargs.get(key) is not None}
    files = ["*.json", "*.safetensors", "*.jinja"]
    return Path(snapshot_download(str(name), allow_patterns=files, **given)) / (kwargs.get("subfolder") or "")
