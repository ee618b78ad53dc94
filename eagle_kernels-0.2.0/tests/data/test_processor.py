"""Plans are exact, tiles come in the order shown, and a processor comes back from its folder as it went."""

from __future__ import annotations

import json
import random
import threading
import time
from concurrent.futures import CancelledError
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor

from eagle_kernels.video import probe
from eagle_model.batch import IGNORE_INDEX
from eagle_model.data import processor as processor_module
from eagle_model.data.chat import seen_media
from eagle_model.data.contact_sheet import captions
from eagle_model.data.processor import PIXELS_DTYPE, Processor, ProcessorConfig, SamplePlan
from eagle_model.data.recipe import Source
from eagle_model.data.rows import parse_sample
from eagle_model.data.sample import DataError, ImageRef, Sample, Turn, VideoRef
from eagle_model.data.sampling import VisualPlan
from eagle_model.data.tiling import Grid
from tests.data.conftest import TEXTS, chat_row, tiny_config, write_image, write_video
from tests.data.make_pdf import gray, write_pdf
from tests.data.test_documents import SLOW


def sample_of(root: Path, row: dict) -> Sample:
    return parse_sample(row, root=root, where="rows:1")


def test_plan_and_load_agree(processor: Processor, media: Path) -> None:
    row = chat_row("<video-1> or <image-1>?", image="wide.png", video="clip.mp4", id="s1")
    plan = processor.plan_sample(sample_of(media, row))
    tokens, patches_IPK = processor.load_sample(plan)
    video, grid = plan.seen
    assert video.timestamps_seconds == pytest.approx([0.0, 0.6, 1.3, 1.9])  # 2 s at 2 fps, corner to corner
    assert video.frames_per_second == pytest.approx(2.0)
    assert grid == (3, 1)
    assert plan.visual.grids == ((3, 1),)
    assert plan.num_tokens == tokens.token_ids_T.numel()
    assert patches_IPK.shape == (plan.num_tiles, 16, 588) == (8, 16, 588)
    assert tokens.visual_positions_N.numel() == 8 * 4


def test_key_frames_alone(tokenizer: Tokenizer, media: Path) -> None:
    """Of a clip without one, all of its frames."""
    keys = (probe(media / "long.mp4").key_frames / 10).tolist()
    assert keys == pytest.approx([0.0, 0.8, 1.6, 2.4, 3.2, 4.0, 4.8, 5.6])
    processor = Processor(tokenizer, tiny_config(frames_per_second=10, seek="keyframe"))
    for start, end, want in ((None, None, keys), (1.0, 4.0, [1.6, 2.4, 3.2]), (0.1, 0.4, [0.1, 0.2, 0.3])):
        sample = Sample("s", (Turn("user", (VideoRef(media / "long.mp4", start, end),)),))
        plan = processor.plan_sample(sample)
        (video,) = plan.seen
        assert video.timestamps_seconds == pytest.approx(want)
        assert video.frames_per_second == pytest.approx(len(want) / ((end or 6.0) - (start or 0.0)))
        _, patches_IPK = processor.load_sample(plan)
        levels = (patches_IPK.float().mean((1, 2)) + 1) * 127.5
        np.testing.assert_allclose(levels, [40 * seconds for seconds in want], atol=3)


@pytest.mark.parametrize("seek", ["exact", "keyframe", "tolerance"])
@pytest.mark.parametrize(("start", "end"), [(None, None), (1.0, 4.0)])
def test_labels_name_the_own_times_of_the_frames_shown(
    tokenizer: Tokenizer, media: Path, seek: str, start: float | None, end: float | None
) -> None:
    """However they were chosen: frame i of the file is at i / 10 s and of level 4 i; none is shown twice."""
    processor = Processor(tokenizer, tiny_config(frames_per_second=2, seek=seek, tolerance=0.4))
    sample = Sample("s", (Turn("user", (VideoRef(media / "long.mp4", start, end),)),))
    plan = processor.plan_sample(sample)
    (times,) = plan.visual.timestamps_seconds
    assert set(times) <= set(probe(media / "long.mp4").frame_times_seconds.tolist())
    assert (np.diff(times) > 0).all()
    whole = {"exact": 12, "keyframe": 8, "tolerance": 12}
    clip = {"exact": 6, "keyframe": 3, "tolerance": 6}
    assert len(times) == (whole if start is None else clip)[seek]
    tokens, patches_IPK = processor.load_sample(plan)
    assert tokens.token_ids_T.numel() == plan.num_tokens
    text = tokenizer.decode(tokens.token_ids_T.tolist(), skip_special_tokens=False)
    for number, seconds in enumerate(times, 1):
        assert f"Frame {number} sample at {seconds:.2f}s" in text
    levels = (patches_IPK.float().mean((1, 2)) + 1) * 127.5
    np.testing.assert_allclose(levels, [40 * seconds for seconds in times], atol=3)


def test_cheaper_frames_are_other_ones(tokenizer: Tokenizer, media: Path) -> None:
    sample = Sample("s", (Turn("user", (VideoRef(media / "long.mp4"),)),))
    times = {
        seek: Processor(tokenizer, tiny_config(frames_per_second=1, seek=seek, tolerance=0.4))
        .plan_sample(sample)
        .visual.timestamps_seconds[0]
        for seek in ("exact", "tolerance")
    }
    keys = set(probe(media / "long.mp4").key_frames / 10)
    assert len(times["exact"]) == len(times["tolerance"]) == 6
    assert len(keys & set(times["tolerance"])) > len(keys & set(times["exact"]))


def test_a_file_of_one_frame(processor: Processor, tmp_path: Path) -> None:
    write_video(tmp_path / "still.mp4", num_frames=1, first_level=100)
    plan = processor.plan_sample(sample_of(tmp_path, chat_row(video="still.mp4")))
    (video,) = plan.seen
    assert video.timestamps_seconds == (0.0,)
    assert video.frames_per_second > 0
    assert processor.load_sample(plan).patches_IPK.shape[0] == 1


BAD = {
    "missing image": ({"image": "none.png"}, r"sample s: image .*none\.png does not exist"),
    "missing video": ({"video": "none.mp4"}, r"sample s: video .*none\.mp4 does not exist"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_media_name_the_sample(processor: Processor, media: Path, name: str) -> None:
    row, message = BAD[name]
    with pytest.raises(DataError, match=message):
        processor.plan_sample(sample_of(media, chat_row(id="s", **row)))


def test_cut_image_is_found_when_it_is_loaded(processor: Processor, media: Path) -> None:
    plan = processor.plan_sample(sample_of(media, chat_row(id="s", image="cut.png")))
    with pytest.raises(DataError, match=r"sample s: image .*cut\.png cannot be decoded"):
        processor.load_sample(plan)


def test_sample_that_cannot_fit_names_itself_and_the_numbers(tokenizer: Tokenizer, media: Path) -> None:
    small = Processor(tokenizer, tiny_config(context_tokens=40))
    with pytest.raises(DataError, match=r"sample s: the sample needs at least \d+ tokens and context_tokens is 40"):
        small.plan_sample(sample_of(media, chat_row("long " * 50, id="s")))


def test_text_that_cannot_fit_is_refused_before_it_is_tokenised(tokenizer: Tokenizer, media: Path) -> None:
    started = time.process_time()
    with pytest.raises(
        DataError, match=r"sample s: its text alone takes more than context_tokens, which is 1024\. Sho"
    ):
        Processor(tokenizer, tiny_config()).plan_sample(sample_of(media, chat_row("many words " * 2_000_000, id="s")))
    assert (
        time.process_time() - started < 5
    )  # about 0.3 on an idle core, of which half is the row's; all of it takes 20


@pytest.mark.parametrize("error", [MemoryError, RecursionError])
def test_what_is_too_large_is_a_bad_sample(
    processor: Processor, media: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise error

    plan = processor.plan_sample(sample_of(media, chat_row(id="s", image="wide.png")))
    message = r"sample s: it, or a file of it, is (nested too deep|too large for the memory there is)\. Leave it out"
    monkeypatch.setattr(processor_module, "load_image", fail)
    with pytest.raises(DataError, match=message):
        processor.load_sample(plan)
    monkeypatch.setattr(processor_module, "open_clip", fail)
    with pytest.raises(DataError, match=message):
        processor.plan_sample(sample_of(media, chat_row(id="s", video="clip.mp4")))


def test_source_may_lower_max_tiles_not_raise_it(tokenizer: Tokenizer, media: Path) -> None:
    sample = sample_of(media, chat_row(image="wide.png"))
    for config_tiles, source_tiles, cols in [(12, None, 3), (12, 1, 1), (12, 3, 3), (1, 12, 1)]:
        processor = Processor(tokenizer, tiny_config(max_tiles=config_tiles))
        limits = Source("a", media, (), max_tiles=source_tiles).limited(processor.config.sampling)
        plan = processor.plan_sample(sample, limits=limits)
        assert plan.visual.grids[0].cols == cols


def test_a_thousand_random_samples_fit_as_planned(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """ADS plans before the text is final: with labels of its own, the whole sample must still hold the budget."""
    videos = [(tmp_path / f"{n}.mp4", n) for n in (1, 7, 60)]
    for path, num_frames in videos:
        write_video(path, num_frames=num_frames)
    images = [(tmp_path / f"{w}x{h}.png", w, h) for w, h in [(30, 30), (300, 60), (64, 400), (224, 168)]]
    for path, width, height in images:
        write_image(path, width, height)
    rng = random.Random(0)
    num_planned = num_full = 0
    too_small: list[str] = []
    for i in range(1000):
        kinds = [rng.choice(("image", "video")) for _ in range(rng.randrange(5))]
        parts: list[str | ImageRef | VideoRef] = []
        for k, kind in enumerate(kinds, start=1):
            parts.append(ImageRef(rng.choice(images)[0], k) if kind == "image" else VideoRef(rng.choice(videos)[0]))
            parts.append(rng.choice(TEXTS)[: rng.randrange(60)])
        parts.append(rng.choice(TEXTS)[: rng.randrange(60)])
        turns = (Turn("user", tuple(parts)), Turn("assistant", (rng.choice(TEXTS),)))
        sample = Sample(f"s{i}", turns)
        context_tokens = rng.choice((150, 300, 600))
        processor = processor_of(tokenizer, context_tokens)
        try:
            plan = processor.plan_sample(sample)
        except DataError as error:
            too_small.append(str(error))
            continue
        tokens = processor.tokenize(plan)
        num_planned += 1
        num_full += tokens.token_ids_T.numel() > context_tokens - 40
        assert tokens.token_ids_T.numel() == plan.num_tokens <= context_tokens
        assert tokens.visual_positions_N.numel() == plan.num_tiles * 4
    assert all("the sample needs at least" in message for message in too_small)
    assert num_planned > 500
    assert num_full > 100  # the budget was felt


_PROCESSORS: dict[int, Processor] = {}


def processor_of(tokenizer: Tokenizer, context_tokens: int) -> Processor:
    if context_tokens not in _PROCESSORS:
        config = tiny_config(context_tokens=context_tokens, frames_per_second=10.0)
        _PROCESSORS[context_tokens] = Processor(tokenizer, config)
    return _PROCESSORS[context_tokens]


# ---- tiles


def plan_of(processor: Processor, sample: Sample, grids: list[Grid], *times: tuple[float, ...]) -> SamplePlan:
    """A plan with these grids and times, whatever the limits are."""
    config, seconds = processor.config, [1.0] * len(times)
    num_tiles = sum(grid.num_tiles for grid in grids) + sum(map(len, times))
    visual = VisualPlan(
        grids=tuple(grids),
        timestamps_seconds=times,
        max_tiles=12,
        num_visual_tokens=num_tiles * config.tokens_per_tile,
        num_text_tokens=processor.encoder.num_text_tokens(sample, seconds, times),
    )
    return SamplePlan(sample, visual, seen_media(sample, grids, times, seconds), visual.num_tokens)


def levels(patches_IPK: Tensor) -> list[int]:
    """The mean gray level of each tile, 0 to 255."""
    return (patches_IPK.float().mean((1, 2)) * 127.5 + 127.5).round().int().tolist()


def test_tiles_come_in_the_order_shown(processor: Processor, media: Path) -> None:
    row = chat_row("<image-2> <video-1> <image-1>", image=["wide.png", "square.png"], video="clip.mp4")
    sample = sample_of(media, row)
    assert [image.path.name for image in sample.images] == ["square.png", "wide.png"]
    plan = plan_of(processor, sample, [Grid(1, 1), Grid(3, 1)], (0.0, 0.5, 1.9))
    patches_IPK = processor.load_sample(plan).patches_IPK
    assert patches_IPK.shape == (1 + 3 + 4, 16, 588)
    assert patches_IPK.dtype == PIXELS_DTYPE
    expected = [50, 0, 20, 76, 200, 200, 200, 200]  # square.png; frames 0, 5, 19; wide.png's three and its thumbnail
    assert np.abs(np.subtract(levels(patches_IPK), expected)).max() <= 3  # H.264 is lossy


def test_a_range_of_tiles_is_that_part_of_all(processor: Processor, media: Path, tmp_path: Path) -> None:
    """Of two images, a video and a document; tokens are whole whatever the range."""
    write_pdf(tmp_path / "pages.pdf", [gray(10 * i) for i in range(3)])
    rows = {"image": [str(media / "wide.png"), str(media / "square.png")]}
    rows["video"] = [str(media / "clip.mp4"), str(tmp_path / "pages.pdf")]
    sample = parse_sample(chat_row(**rows), root=media, where="rows:1", allow_outside_root=True)
    plan = processor.plan_sample(sample)
    tokens, patches_IPK = processor.load_sample(plan)
    num_tiles = plan.num_tiles
    assert num_tiles == 4 + 1 + 4 + 3
    for first in range(num_tiles + 1):
        for end in {first, first + 1, (first + num_tiles) // 2, num_tiles}:
            if first <= end <= num_tiles:
                part = processor.load_sample(plan, tiles=(first, end))
                assert torch.equal(part.patches_IPK, patches_IPK[first:end])
                assert torch.equal(part.tokens.token_ids_T, tokens.token_ids_T)
    for wrong in ((-1, 2), (3, 2), (0, num_tiles + 1)):
        with pytest.raises(ValueError, match=r"tiles are \(.*\); sample .* has 12\. Needs a first and an end"):
            processor.load_sample(plan, tiles=wrong)


def test_thumbnail_is_last_and_the_whole(processor: Processor, tmp_path: Path) -> None:
    left_black = np.full((56, 112, 3), 255, np.uint8)
    left_black[:, :56] = 0
    Image.fromarray(left_black).save(tmp_path / "a.png")
    plan = plan_of(processor, sample_of(tmp_path, chat_row(image="a.png")), [Grid(2, 1)])
    black, white, both = levels(processor.load_sample(plan).patches_IPK)
    assert (black, white) == (0, 255)
    assert 120 < both < 135


def test_a_jpeg_at_reduced_size_gives_other_pixels_and_the_same_tokens(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """On a smooth picture the tiles are nearly those of the whole; what the plan says does not change."""
    y, x = np.mgrid[:480, :640] / 480
    picture = Image.fromarray(np.stack([200 * x / 1.4, 200 * y, 100 * (x + y)], -1).astype(np.uint8))
    for suffix, is_same in (("jpg", False), ("png", True)):
        picture.save(tmp_path / f"a.{suffix}")
        messages = chat({"image": str(tmp_path / f"a.{suffix}")}, "What?")
        whole, scaled = (Processor(tokenizer, tiny_config(jpeg_scaling=on))(messages) for on in (False, True))
        assert torch.equal(whole.token_ids_T, scaled.token_ids_T)
        assert torch.equal(whole.patches_IPK, scaled.patches_IPK) == is_same
        assert (whole.patches_IPK - scaled.patches_IPK).float().abs().max() < 0.05  # of -1 to 1: 6 levels of 255


def test_text_alone_has_no_tiles(processor: Processor) -> None:
    plan = processor.plan_sample(Sample("s", (Turn("user", ("Hi",)),)))
    assert processor.load_sample(plan).patches_IPK.shape == (0, 16, 588)


def test_a_tag_in_a_text_is_no_image(processor: Processor, media: Path) -> None:
    content = [{"type": "image", "image": "square.png"}, {"type": "text", "text": "Is <image> an <image-2> tag?"}]
    plan = processor.plan_sample(sample_of(media, {"messages": [{"role": "user", "content": content}]}))
    tokens, patches_IPK = processor.load_sample(plan)
    assert patches_IPK.shape[0] == 1
    assert tokens.visual_positions_N.numel() == 4
    text = processor.tokenizer.decode(tokens.token_ids_T.tolist(), skip_special_tokens=False)
    assert text.endswith("</img>Is <image> an <image-2> tag?<|im_end|>\n")


def test_workers_and_kept_indexes_change_no_bit(processor: Processor, media: Path, tmp_path: Path) -> None:
    plan = plan_of(processor, sample_of(media, chat_row(video="long.mp4")), [], tuple(i / 10 for i in range(0, 60, 7)))
    plain = processor.load_sample(plan).patches_IPK
    for _ in ("made", "read"):
        loaded = processor.load_sample(plan, num_decode_workers=2, index_folder=tmp_path / "indexes")
        assert torch.equal(loaded.patches_IPK, plain)
        (kept,) = (tmp_path / "indexes").iterdir()
        assert kept.name.startswith("long.mp4")


def test_a_video_is_tiled_into_the_sample_s_own_tensor(
    processor: Processor, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No tensor of the video's tiles beside it: that would double the peak."""
    seen: list[Tensor] = []
    whole = processor_module.decode_tiles

    def spy(*args, **kwargs):  # type: ignore[no-untyped-def]
        seen.append(kwargs["out"])
        return whole(*args, **kwargs)

    monkeypatch.setattr(processor_module, "decode_tiles", spy)
    sample = sample_of(media, chat_row("<image> <video>", image="square.png", video="clip.mp4"))
    patches_IPK = processor.load_sample(plan_of(processor, sample, [Grid(1, 1)], (0.0, 0.5))).patches_IPK
    assert [out.data_ptr() for out in seen] == [patches_IPK[1:].data_ptr()]


def test_bad_video_files_are_data_errors(processor: Processor, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video at all")
    for path in (tmp_path / "text.mp4", tmp_path / "none.mp4"):
        sample = Sample("s", (Turn("user", (VideoRef(path),)),))
        with pytest.raises(DataError, match=rf"sample s: video .*{path.name} cannot be decoded: "):
            processor.load_sample(plan_of(processor, sample, [], (0.0,)))


def test_another_thread_can_stop_the_work(processor: Processor, media: Path) -> None:
    stop = threading.Event()
    stop.set()
    plan = plan_of(processor, sample_of(media, chat_row(video="clip.mp4")), [], (0.0,))
    with pytest.raises(CancelledError):
        processor.load_sample(plan, stop=stop)
    with pytest.raises(CancelledError):
        processor.plan_sample(plan.sample, stop=stop)


def test_bf16_keeps_all_levels_apart() -> None:
    normalised = ((torch.arange(256) / 255 - 0.5) / 0.5).to(PIXELS_DTYPE)
    assert normalised.unique().numel() == 256


# ---- messages


def test_call_makes_a_prompt(processor: Processor, media: Path) -> None:
    content = [{"type": "video", "video": str(media / "clip.mp4")}, {"type": "text", "text": "What moves?"}]
    batch = processor([{"role": "user", "content": content}])
    text = processor.tokenizer.decode(batch.token_ids_T.tolist(), skip_special_tokens=False)
    assert text.endswith("</img>What moves?<|im_end|>\n<|im_start|>assistant\n")
    assert batch.labels_T.unique().tolist() == [IGNORE_INDEX]
    assert batch.cu_seqlens.tolist() == [0, batch.num_tokens]
    assert batch.visual_rows_N.numel() == batch.patches_IPK.shape[0] * 4 == 16


def test_call_with_earlier_answers_supervises_nothing(processor: Processor) -> None:
    turns = [("user", "Hi"), ("assistant", "Hello."), ("user", "Bye")]
    batch = processor([{"role": role, "content": text} for role, text in turns])
    assert batch.labels_T.unique().tolist() == [IGNORE_INDEX]
    assert batch.patches_IPK.shape == (0, 16, 588)
    with pytest.raises(DataError, match="the last turn is the assistant's; needs a turn to answer"):
        processor([{"role": role, "content": text} for role, text in turns[:2]])


def test_call_confines_messages_of_others(processor: Processor, media: Path) -> None:
    def messages(path: str) -> list[dict]:
        return [{"role": "user", "content": [{"type": "image", "image": path}]}]

    assert processor(messages("wide.png"), root=media).patches_IPK.shape[0] == 4
    with pytest.raises(DataError, match="leaves the root"):
        processor(messages(str(media / "wide.png")), root=media)


def chat(*parts: object) -> list[dict]:
    return [{"role": "user", "content": list(parts)}]


def test_call_with_files_beside_the_messages(processor: Processor, media: Path) -> None:
    """By parts that name none, by tags, or at the start: the same files, each at its place."""
    wide, square, clip = (str(media / name) for name in ("wide.png", "square.png", "clip.mp4"))
    named = processor(chat({"image": square}, "or", {"video": clip}, {"image": wide}))
    bare = chat({"type": "image"}, "or", {"type": "video"}, {"type": "image"})
    for messages in (bare, [{"role": "user", "content": "<image-1>or<video-1><image-2>"}]):
        batch = processor(messages, images=[square, wide], videos=[clip])
        assert torch.equal(batch.token_ids_T, named.token_ids_T)
        assert torch.equal(batch.patches_IPK, named.patches_IPK)
    first = processor([{"role": "user", "content": "or"}], images=[Path(square)])
    assert torch.equal(first.token_ids_T, processor(chat({"image": square}, "or")).token_ids_T)


def test_call_with_images_in_memory(processor: Processor, media: Path) -> None:
    path = str(media / "wide.png")
    named = processor(chat({"image": path}, {"type": "image_url", "image_url": {"url": path, "detail": "low"}}))
    image = Image.open(path)
    batch = processor(chat({"type": "image", "image": image}, {"image_url": {"url": image, "detail": "low"}}))
    listed = processor(chat({"type": "image"}, "Same?"), images=[image])
    assert torch.equal(batch.patches_IPK, named.patches_IPK)
    assert torch.equal(batch.token_ids_T, named.token_ids_T)
    assert torch.equal(listed.patches_IPK, named.patches_IPK[:4])
    with pytest.raises(DataError, match=r"messages: video is <PIL\..*; needs the path of one file"):
        processor(chat({"type": "video", "video": image}))


def test_call_with_tools(processor: Processor) -> None:
    tools = [{"type": "function", "function": {"name": "look"}}]
    calls = [{"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}]
    messages = [{"role": "user", "content": "Sky?"}, {"role": "assistant", "content": None, "tool_calls": calls}]
    messages.append({"role": "tool", "tool_call_id": "1", "content": "blue"})
    text = processor.tokenizer.decode(processor(messages, tools=tools).token_ids_T.tolist(), skip_special_tokens=False)
    assert '<tools>\n{"type": "function", "function": {"name": "look"}}\n</tools>' in text
    assert '<|im_start|>assistant\n<tool_call>\n{"name": "look", "arguments": {}}\n</tool_call><|im_end|>' in text
    assert text.endswith("<tool_response>\nblue\n</tool_response><|im_end|>\n<|im_start|>assistant\n")


def test_low_detail_is_one_tile(processor: Processor, media: Path) -> None:
    def grids(*details: str) -> list[tuple[int, int]]:
        parts = [
            {"type": "image_url", "image_url": {"url": str(media / "wide.png"), "detail": detail}} for detail in details
        ]
        sample = parse_sample({"messages": chat(*parts)}, root=media, where="t:1", allow_outside_root=True)
        return list(processor.plan_sample(sample).visual.grids)

    assert grids("low", "high", "auto") == [(1, 1), (3, 1), (3, 1)]
    assert grids("low") == [(1, 1)]


def test_without_pixel_shuffle_each_patch_is_a_token(tokenizer: Tokenizer, media: Path) -> None:
    config = replace(tiny_config(), use_pixel_shuffle=False)
    processor = Processor(tokenizer, config)
    plan = processor.plan_sample(sample_of(media, chat_row("<image-1>", image="wide.png")))
    tokens, patches_IPK = processor.load_sample(plan)
    assert tokens.visual_positions_N.numel() == patches_IPK.shape[0] * 16 == plan.num_tiles * config.tokens_per_tile
    with pytest.raises(ValueError, match=r"tile_px is 50; needs a multiple of patch_px = 14"):
        replace(config, tile_px=50)


# ---- documents


def test_pages_of_a_document_are_frames(tokenizer: Tokenizer, tmp_path: Path) -> None:
    levels_of_pages = [0, 40, 80, 120, 160, 200, 240]
    write_pdf(tmp_path / "a.pdf", [gray(level) for level in levels_of_pages])
    sample = sample_of(tmp_path, chat_row("Sum up.", video="a.pdf"))
    for frames_per_second in (0.01, 2.0):  # a rate of videos, which pages do not have
        processor = Processor(tokenizer, tiny_config(frames_per_second=frames_per_second))
        plan = processor.plan_sample(sample)
        tokens, patches_IPK = processor.load_sample(plan)
        assert levels(patches_IPK) == levels_of_pages
    text = tokenizer.decode(tokens.token_ids_T.tolist(), skip_special_tokens=False)
    assert "user\nThe first video: Frame 1: <img><IMG_CONTEXT>" in text
    assert "</img>Frame 7: <img>" in text
    assert tokens.token_ids_T.numel() == plan.num_tokens
    small = Processor(tokenizer, tiny_config(context_tokens=plan.num_tokens - 1))
    assert levels(small.load_sample(small.plan_sample(sample)).patches_IPK) == [0, 40, 80, 160, 200, 240]
    few = Processor(tokenizer, tiny_config(max_frames=3))
    assert levels(few.load_sample(few.plan_sample(sample)).patches_IPK) == [0, 120, 240]
    assert captions(few.plan_sample(sample)) == ["page 1", "page 4", "page 7"]


def test_a_document_among_other_media(processor: Processor, media: Path, tmp_path: Path) -> None:
    write_pdf(tmp_path / "a.pdf", [gray(250), gray(150)])
    one = write_pdf(tmp_path / "one.pdf", [gray(100)], width=80.64, height=26.88)  # 168 x 56 px
    parts = [{"video": str(tmp_path / "a.pdf")}, {"image": str(one)}, {"video": str(media / "clip.mp4")}]
    batch = processor(chat(*parts, {"image": str(media / "square.png")}))
    assert levels(batch.patches_IPK)[:6] == [250, 150, 100, 100, 100, 100]  # the one page in tiles, as an image
    text = processor.tokenizer.decode(batch.token_ids_T.tolist(), skip_special_tokens=False)
    assert "The first video: Frame 1: <img>" in text
    assert "The second video sampled with 2.00 fps: Frame 1 sample at 0.00s: <img>" in text


def test_documents_that_cannot_be_shown_name_the_sample(processor: Processor, tmp_path: Path) -> None:
    write_pdf(tmp_path / "a.pdf", [gray(0)] * 2)
    (tmp_path / "b.pdf").write_bytes(b"%PDF-1.4 cut")
    for row, message in [
        ({"image": "a.pdf"}, r"image .*a\.pdf has 2 pages; an image has one\. Give it as a video"),
        (
            {"video": {"video": "a.pdf", "start": 1}},
            r"document .*a\.pdf has pages, not seconds; take its start and end",
        ),
        ({"video": "b.pdf"}, r"document .*b\.pdf is no PDF, or a damaged one"),
        ({"image": "b.pdf"}, r"document .*b\.pdf is no PDF, or a damaged one"),
        ({"video": "none.pdf"}, r"document .*none\.pdf does not exist"),
    ]:
        with pytest.raises(DataError, match=f"sample s: {message}"):
            processor.plan_sample(sample_of(tmp_path, chat_row(id="s", **row)))


def test_rendering_can_be_stopped(processor: Processor, tmp_path: Path) -> None:
    write_pdf(tmp_path / "a.pdf", [gray(0)] * 2)
    plan = processor.plan_sample(sample_of(tmp_path, chat_row(video="a.pdf")))
    stop = threading.Event()
    stop.set()
    with pytest.raises(CancelledError):
        processor.load_sample(plan, stop=stop)
    slow = write_pdf(tmp_path / "a.pdf", [SLOW] * 2, width=600, height=400)
    assert slow.exists()
    with pytest.raises(DataError, match=r"sample .*a\.pdf: page [12] takes longer to render than"):
        processor.load_sample(plan, video_time_limit_seconds=0.01)


# ---- config and files


def test_a_template_by_name(tokenizer: Tokenizer, media: Path, tmp_path: Path) -> None:
    saved = Processor(tokenizer, tiny_config(template="training-1"))
    saved.save_pretrained(tmp_path)
    for processor in (saved, Processor.from_pretrained(tmp_path)):
        assert processor.config.system_text == "You are an AI assistant whose name is Eagle-Next."
        batch = processor(chat({"image": str(media / "square.png")}, "What?"))
        text = tokenizer.decode(batch.token_ids_T.tolist(), skip_special_tokens=False)
        assert "Eagle-Next.<|im_end|>\n<|im_start|>user\n<img><IMG_CONTEXT>" in text
        assert "</img>\nWhat?<|im_end|>" in text
    path = tmp_path / "eagle_processor.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"template": "mine"}))
    with pytest.raises(ValueError, match="template is 'mine'; needs one of processor-1, training-1, demo-1"):
        Processor.from_pretrained(tmp_path)
    # Files of before there were templates: the one that there was.
    of_old = {
        name: value
        for name, value in values.items()
        if name not in ("template", "auto_thinking_prompt", "jpeg_scaling")
    }
    path.write_text(json.dumps(of_old | {"system": "You are a helpful assistant."}))
    assert Processor.from_pretrained(tmp_path).config.template == "processor-1"


def test_saved_and_read_again(processor: Processor, tmp_path: Path, media: Path) -> None:
    processor.save_pretrained(tmp_path / "new" / "folder")
    again = Processor.from_pretrained(tmp_path / "new" / "folder")
    assert again.config == processor.config
    plan = processor.plan_sample(sample_of(media, chat_row(image="wide.png")))
    assert torch.equal(again.tokenize(plan).token_ids_T, processor.tokenize(plan).token_ids_T)


def test_wrong_folders(processor: Processor, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"has no tokenizer\.json; needs a folder that Processor\.save_pretrained wrote"
    ):
        Processor.from_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    path = tmp_path / "eagle_processor.json"
    values = json.loads(path.read_text())
    sampling = values["sampling"]
    for change, message in [
        ({"tile_size": 56}, r"eagle_processor\.json: tile_size: there is no field tile_size. Did you mean tile_px\?"),
        ({"tile_px": 57}, r"tile_px is 57; needs a multiple of 2 \* patch_px = 28"),
        ({"std": [0.5, 0.0, 0.5]}, r"std is \(0\.5, 0\.0, 0\.5\); needs three numbers"),
        ({"sampling": sampling | {"min_frames": 0}}, "min_frames is 0; needs at least 1"),
        ({"sampling": sampling | {"seek": "nearest"}}, "seek is 'nearest'; needs one of exact, keyframe, tolerance"),
        ({"sampling": 3}, r"sampling is 3; needs an object with the fields of SamplingConfig"),
        ({"sampling": {}}, r"eagle_processor\.json lacks the field sampling\.context_tokens"),
        (
            {"sampling": sampling | {"context_tokens": 3}},
            r"sampling\.context_tokens is 3; one tile of 56 px takes 4\. Raise context_tokens or lower tile_px",
        ),
        ({"tile_px": "56"}, "tile_px is '56'; needs a whole number"),
        ({"sampling": sampling | {"max_frames": True}}, r"sampling\.max_frames is True; needs a whole number"),
        ({"mean": 0.5}, r"mean is 0\.5; needs 3 values, each a number"),
        ({"std": ["a", 1, 1]}, r"std is 'a'; needs a number"),
        ({"std": [float("inf"), 1, 1]}, r"std is \(inf, 1\.0, 1\.0\); needs three numbers, std above 0"),
        (
            {"sampling": sampling | {"frames_per_second": float("nan")}},
            "frames_per_second is nan; needs a number above 0",
        ),
    ]:
        path.write_text(json.dumps(values | change))
        with pytest.raises(ValueError, match=message):
            Processor.from_pretrained(tmp_path)
    path.write_text(json.dumps({name: value for name, value in values.items() if name != "mean"}))
    with pytest.raises(ValueError, match="lacks the field mean; needs all that save_pretrained wrote"):
        Processor.from_pretrained(tmp_path)
    path.write_text("{")
    with pytest.raises(ValueError, match=r"eagle_processor\.json is not JSON"):
        Processor.from_pretrained(tmp_path)
    path.write_text(json.dumps(values))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json is no tokenizer\.json: "):
        Processor.from_pretrained(tmp_path)


def test_defaults_are_the_papers() -> None:
    config = ProcessorConfig()
    assert config.tokens_per_tile == 256
    limits = config.sampling
    assert (limits.frames_per_second, limits.min_frames, limits.max_frames, limits.max_tiles) == (2.0, 8, 512, 12)


def test_clip_durations_add_up(media: Path) -> None:
    info = probe(media / "long.mp4")
    assert (info.num_frames, info.duration_seconds) == (60, pytest.approx(6.0))
