"""Prompts and pixels for vLLM: our own processor's, and those that vLLM 0.33's processing gave (golden/vllm.json)."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from eagle_model.data.processor import Processor
from eagle_model.data.sample import ImageRef, Sample, Turn, VideoRef
from eagle_model.data.templates import SampledVideo
from eagle_model.infer.vllm.inputs import EagleInputs
from tests.infer.vllm.cases import CASES, SECONDS, TIMES, media_of, processor

GOLDEN = json.loads((Path(__file__).parents[2] / "golden/vllm.json").read_text())["cases"]


def encoded(ours: Processor, case: dict[str, Any]) -> list[int]:
    """What our processor makes of the prompt where it sees the same frames."""
    pictures, parts, seen = iter(media_of(case).get("image", [])), [], []
    count = {"image": 0, "video": 0}
    inputs = EagleInputs(ours)
    for part in case["messages"][0]["content"]:
        kind = part["type"]
        if kind == "text":
            parts.append(part["text"])
            continue
        count[kind] += 1
        name = Path(f"{kind} {count[kind]}")
        parts.append(ImageRef(name, count[kind]) if kind == "image" else VideoRef(name, number=count[kind]))
        of_image = kind == "image"
        seen.append(inputs.grid(*next(pictures).size) if of_image else SampledVideo(TIMES, len(TIMES) / SECONDS))
    sample = Sample("s", (Turn("user", tuple(parts)),))
    each = ours.config.tokens_per_tile
    return ours.encoder.encode(sample, seen=seen, tokens_per_tile=each, generation_prompt=True).token_ids_T.tolist()


@pytest.mark.parametrize("name", CASES)
def test_vllms_prompts_are_ours(name: str):
    assert GOLDEN[name]["token_ids"] == encoded(processor(), CASES[name])


@pytest.mark.parametrize("name", CASES)
def test_vllm_puts_visual_tokens_where_they_stand(name: str):
    """Each range begins at <img>; the ranges of a kind come in the prompt's order."""
    golden, ours = GOLDEN[name], processor()
    ids, covered = golden["token_ids"], set()
    for ranges in golden["ranges"].values():
        assert ranges == sorted(ranges)
        for offset, length in ranges:
            assert ids[offset] == ours.tokenizer.token_to_id("<img>")
            covered |= set(range(offset, offset + length))
    assert {i for i, token_id in enumerate(ids) if token_id == ours.encoder.context_id} <= covered


@pytest.mark.parametrize("name", [name for name in CASES if name != "text"])
def test_vllms_pixels_are_ours(name: str):
    inputs, media = EagleInputs(processor()), media_of(CASES[name])
    got = {
        "image": [inputs.image(image) for image in media.get("image", [])],
        "video": [inputs.video(torch.as_tensor(frames)) for frames, _ in media.get("video", [])],
    }
    digests = {
        kind: [
            [list(p.shape), hashlib.sha256(p.bfloat16().view(torch.int16).numpy().tobytes()).hexdigest()]
            for p in pixels
        ]
        for kind, pixels in got.items()
        if pixels
    }
    assert GOLDEN[name]["pixels"] == digests


def test_pixels_are_the_processors():
    """The same tiles as training has, as pictures instead of patches."""
    ours, case = processor(), CASES["images"]
    pictures = media_of(case)["image"]
    content = [{"type": "image", "image": picture} for picture in pictures]
    batch = ours([{"role": "user", "content": [*content, {"type": "text", "text": "?"}]}])
    tiles_I3YX = torch.cat([EagleInputs(ours).image(picture) for picture in pictures])
    patches_IKP = torch.nn.functional.unfold(tiles_I3YX.float(), 7, stride=7)
    assert torch.equal(patches_IKP.transpose(1, 2).bfloat16(), batch.patches_IPK)


@pytest.mark.parametrize("number", [1, 2, 10, 11])
def test_what_was_kept_is_numbered_anew(number: int):
    inputs = EagleInputs(processor())
    for kind, ids_of in (
        ("image", lambda k: inputs.image_ids(3, number=k)),
        ("video", lambda k: inputs.video_ids(TIMES, seconds=SECONDS, number=k)),
    ):
        assert inputs.renumbered(ids_of(3), kind, 3, number) == ids_of(number)
        with pytest.raises(ValueError, match="needs to begin with"):
            inputs.renumbered(ids_of(3), kind, 4, number)


@pytest.mark.parametrize("template", ["training-1", "demo-1"])
def test_a_layout_in_which_images_depend_on_each_other_is_refused(template):
    ours = processor()
    with pytest.raises(ValueError, match=f"have the layout '{template}'"):
        EagleInputs(Processor(ours.tokenizer, replace(ours.config, template=template)))
