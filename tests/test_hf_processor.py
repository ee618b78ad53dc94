"""The processor in transformers' clothes gives what ours gives, of files and of pictures in memory."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

import eagle_model.hf as hf
from tests.data.conftest import write_video
from tests.hf_folder import QUESTION, picture, write_folder


@pytest.fixture(scope="module")
def processor(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return AutoProcessor.from_pretrained(write_folder(tmp_path_factory.mktemp("model")))


def test_pictures_in_memory_are_those_of_files(processor, tmp_path: Path) -> None:
    text = "<|im_start|>user\n<image-1>What is this?<|im_end|>\n<|im_start|>assistant\n"
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    picture().save(tmp_path / "turned.png", exif=exif)
    deep = Image.fromarray(np.arange(40 * 28, dtype=np.uint16).reshape(28, 40) * 50)
    deep.save(tmp_path / "deep.png")
    for path in (tmp_path / "turned.png", tmp_path / "deep.png"):
        by_path = processor(images=[str(path)], text=text)["pixel_values"]
        assert torch.equal(processor(images=[Image.open(path)], text=text)["pixel_values"], by_path)
    array = np.asarray(picture())
    want = processor(images=[picture()], text=text)["pixel_values"]
    for given in (array, array.transpose(2, 0, 1), torch.from_numpy(array.copy())):
        assert torch.equal(processor(images=[given], text=text)["pixel_values"], want)
    with pytest.raises(ValueError, match=r"an image is an array of float32 .*; needs uint8"):
        processor(images=[array.astype(np.float32)], text=text)


def test_the_processor_gives_what_ours_gives(processor, tmp_path: Path) -> None:
    picture().save(tmp_path / "a.png")
    parts = [{"type": "image", "image": str(tmp_path / "a.png")}, QUESTION[1]]
    want = processor.eagle([{"role": "user", "content": parts}])
    messages = [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": QUESTION}]
    got = processor.apply_chat_template(messages, tokenize=True, return_dict=True, add_generation_prompt=True)
    assert torch.equal(got["input_ids"][0], want.token_ids_T)
    assert torch.equal(got["attention_mask"], torch.ones_like(got["input_ids"]))
    tiles = got["pixel_values"]
    assert tiles.shape == (len(want.patches_IPK), 3, 28, 28)
    assert torch.equal(tiles, processor._tiles(want.patches_IPK.float()))


def test_pictures_in_base64_are_those_of_files(processor, tmp_path: Path) -> None:
    """Transparency and depth too, which transformers' own loading drops; names longer than a file's may be."""
    text = "<|im_start|>user\n<image-1>What is this?<|im_end|>\n<|im_start|>assistant\n"
    clear = picture().convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    deep = Image.fromarray(np.arange(40 * 28, dtype=np.uint16).reshape(28, 40) * 50)
    for name, image in (("clear", clear), ("deep", deep)):
        image.save(tmp_path / f"{name}.png")
        want = processor(images=[str(tmp_path / f"{name}.png")], text=text)["pixel_values"]
        written = base64.encodebytes((tmp_path / f"{name}.png").read_bytes()).decode()
        for given in (written, f"data:image/png;base64,{written}", f"file://{tmp_path}/{name}.png"):
            assert torch.equal(processor(images=[given], text=text)["pixel_values"], want)
    for given in ("missing.png", "x" * 9000, "http://localhost:1/a.png"):
        with pytest.raises(ValueError, match=r"needs the path of a file, an http\(s\) address or base64"):
            processor(images=[given], text=text)


def test_parts_as_other_programs_write_them(processor, tmp_path: Path) -> None:
    path = str(tmp_path / "a.png")
    picture().save(path)
    asked = {"tokenize": True, "return_dict": True, "add_generation_prompt": True}
    want = processor.apply_chat_template([{"role": "user", "content": QUESTION}], **asked)
    for part in (
        {"type": "image_url", "image_url": {"url": path, "detail": "auto"}},
        {"type": "image_url", "image_url": path},
        {"image": path},
        {"type": "image", "image": None, "path": path, "text": ""},  # as a data set fills in what other rows have
    ):
        got = processor.apply_chat_template([{"role": "user", "content": [part, QUESTION[1]]}], **asked)
        assert all(torch.equal(got[name], want[name]) for name in want), part
    for part, name in (
        ({"type": "video", "video": "a.mp4", "video_start": 3}, "video_start"),
        ({"type": "video", "video": "a.mp4", "fps": 4}, "fps"),
        ({"type": "image_url", "image_url": {"url": path, "detail": "low"}}, "detail"),
        ({"type": "image", "image": path, "url": path}, "image, url"),
    ):
        with pytest.raises(ValueError, match=f"a part of type .* has {name}; needs one of .*, alone"):
            processor.apply_chat_template([{"role": "user", "content": [part]}], **asked)
    text = "<|im_start|>user\n<video-1>What?<|im_end|>\n<|im_start|>assistant\n"
    with pytest.raises(ValueError, match="a video is a ndarray; needs the path of a file"):
        processor(text=text, videos=[np.zeros((2, 28, 28, 3), np.uint8)])


def test_what_the_releases_code_does_with_its_own_processor(processor, tmp_path: Path) -> None:
    film = write_video(tmp_path / "a.mp4", num_frames=6)
    shown = [*QUESTION, {"type": "video", "video": film}]
    chats = [
        [{"role": "user", "content": shown}],
        [{"role": "user", "content": "Hello"}],
        [{"role": "user", "content": QUESTION}],
    ]
    texts = [processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) for chat in chats]
    images, videos, about = processor.process_vision_info(chats, return_video_kwargs=True)
    got = processor(text=texts, images=images, videos=videos, return_tensors="pt", padding=True, videos_kwargs=about)
    want = processor.apply_chat_template(chats, tokenize=True, return_dict=True, add_generation_prompt=True)
    assert (len(images), videos) == (2, [film])
    assert all(torch.equal(got[name], want[name]) for name in want)
    assert processor.process_vision_info(chats[1]) == (None, None)
    assert processor.process_vision_info(chats[0])[1] == [film]


def test_batches_of_texts_and_images(processor) -> None:
    turn = "<|im_start|>user\n{}What is this?<|im_end|>\n<|im_start|>assistant\n"
    texts = [turn.format("<image-1>"), turn.format(""), turn.format("<image><image>")]
    images = [picture(seed=seed) for seed in range(3)]
    flat = processor(images=images, text=texts)
    nested = processor(images=[images[:1], [], images[1:]], text=texts, padding_side="right")
    assert torch.equal(flat["pixel_values"], nested["pixel_values"])
    for b, row_mask in enumerate(flat["attention_mask"].bool()):
        assert torch.equal(flat["input_ids"][b][row_mask], nested["input_ids"][b][nested["attention_mask"][b].bool()])
    assert not flat["attention_mask"][1, 0]
    assert not nested["attention_mask"][1, -1]
    single = [processor(images=share or None, text=text) for share, text in zip([images[:1], [], images[1:]], texts)]
    tiles = [one["pixel_values"] for one in single if "pixel_values" in one]
    assert torch.equal(torch.cat(tiles), flat["pixel_values"])
    answered = processor(images=images[0], text=texts[0] + "A cat.<|im_end|>\n")
    assert torch.equal(answered["input_ids"][0, : single[0]["input_ids"].shape[1]], single[0]["input_ids"][0])
    assert processor.batch_decode(answered["input_ids"])[0].endswith("A cat.<|im_end|>\n")


def test_a_video_is_sampled_as_ours_samples_it(processor, tmp_path: Path) -> None:
    path = str(write_video(tmp_path / "clip.mp4"))
    parts = [{"type": "text", "text": "What "}, {"type": "video", "video": path}, {"type": "text", "text": " is this?"}]
    want = processor.eagle([{"role": "user", "content": parts}])
    chat = [{"role": "user", "content": parts}]
    got = processor.apply_chat_template(chat, tokenize=True, return_dict=True, add_generation_prompt=True)
    assert torch.equal(got["input_ids"][0], want.token_ids_T)
    assert torch.equal(got["pixel_values"], processor._tiles(want.patches_IPK.float()))
    assert len(want.patches_IPK) > 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": "<image-1>"}, "got 0 images for texts that name 1"),
        ({"text": "x", "images": [picture()]}, "got 1 images for texts that name 0"),
        ({"text": "<image-1> What?", "images": picture()}, "needs turns as apply_chat_template"),
        ({"text": "x", "truncation": True, "max_length": 3}, "texts are taken whole"),
        ({"images": picture()}, "got no text"),
    ],
    ids=["image lacks", "image too many", "no turns", "truncation", "no text"],
)
def test_texts_that_do_not_fit_are_refused(processor, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        processor(**arguments)


def test_processors_files(processor, tmp_path: Path) -> None:
    processor.save_pretrained(tmp_path)
    again = hf.Eagle2_5_VLProcessor.from_pretrained(tmp_path)
    text = "<|im_start|>user\nWhat is this?<|im_end|>\n"
    assert torch.equal(again(text=text)["input_ids"], processor(text=text)["input_ids"])
    assert again.tokenizer.decode(again(text=text)["input_ids"][0]) == text
    assert '"tile_px": 28' in repr(again)


# -- tags in texts


def test_a_users_own_tag_is_text(processor, tmp_path: Path) -> None:
    """Beside an image as a part, `<image-1>` in a question is these characters, as `eagle_model.Processor` has it."""
    picture().save(tmp_path / "a.png")
    for said in ("What does <image-1> mean?", r"And \<image>, \\<video-3>?"):
        parts = [{"type": "text", "text": said}, {"type": "image", "image": str(tmp_path / "a.png")}, said]
        answered = [
            {"role": "system", "content": "Tags: <image>"},
            {"role": "user", "content": said},
            {"role": "assistant", "content": "It is <image-7>."},
            {"role": "user", "content": parts},
        ]
        want = processor.eagle(answered)
        typed = [part if isinstance(part, dict) else {"type": "text", "text": part} for part in parts]
        chat = [*answered[:-1], {"role": "user", "content": typed}]
        got = processor.apply_chat_template(chat, tokenize=True, return_dict=True, add_generation_prompt=True)
        assert torch.equal(got["input_ids"][0], want.token_ids_T)
        assert len(got["pixel_values"]) == len(want.patches_IPK)
        text = processor.apply_chat_template(chat, add_generation_prompt=True)
        again = processor(text=text, images=[[str(tmp_path / "a.png")]])
        assert torch.equal(again["input_ids"], got["input_ids"])
        alone = chat[:3]
        got = processor.apply_chat_template(alone, tokenize=True, return_dict=True)
        assert f"user\n{said}<|im_end|>" in processor.decode(got["input_ids"][0])


def test_an_image_is_shown_once(processor) -> None:
    turn = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    with pytest.raises(ValueError, match="names <image-1> twice"):
        processor(text=turn.format("<image-1>What is <image-1>?"), images=[picture()])
    with pytest.raises(ValueError, match="both <image> and <image-k>"):
        processor(text=turn.format("<image-1><image>"), images=[picture(), picture(seed=1)])
    twice = processor(text=turn.format("<image-2><image-1>"), images=[picture(), picture(seed=1)])
    once = processor(text=turn.format("<image-1><image-2>"), images=[picture(seed=1), picture()])
    assert torch.equal(twice["pixel_values"], once["pixel_values"])


def test_masks_of_what_the_assistant_says(processor) -> None:
    chat = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": "What?"},
        {"role": "assistant", "content": "A dog."},
    ]
    asked = {"tokenize": True, "return_dict": True, "return_assistant_tokens_mask": True}
    got = processor.apply_chat_template([chat, chat[2:]], **asked)
    for ids_T, mask_T, want in zip(got["input_ids"], got["assistant_masks"], [["A cat.", "A dog."], ["A dog."]]):
        assert processor.decode(ids_T[mask_T.bool()]) == "".join(f"{said}<|im_end|>" for said in want)
    with pytest.raises(ValueError, match="needs tokenize=True, return_dict=True"):
        processor.apply_chat_template(chat, return_assistant_tokens_mask=True)
    with pytest.raises(ValueError, match="sanitize_control_tokens is set"):
        processor.apply_chat_template(chat, tokenize=True, sanitize_control_tokens=True)


@pytest.mark.parametrize("said", [{}, {"content": None}])
def test_calls_of_tools_without_words(processor, said: dict) -> None:
    calls = {"role": "assistant", **said, "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]}
    messages = [{"role": "user", "content": "What?"}, calls, {"role": "tool", "content": "2"}]
    text = processor.apply_chat_template(messages)
    assert "<tool_call>" in text
    assert "None" not in text
