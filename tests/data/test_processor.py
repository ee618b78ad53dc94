"""Plans are exact, clips are cut where they say, and a processor comes back from its folder as it went."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from eagle_kernels.video import probe
from eagle_model.batch import IGNORE_INDEX
from eagle_model.data.media import DataError, ImageRef, Sample, Turn, VideoRef, parse_sample
from eagle_model.data.processor import Processor, ProcessorConfig
from tests.data.conftest import TEXTS, chat_row, tiny_config, write_image, write_video


def sample_of(root: Path, row: dict) -> Sample:
    return parse_sample(row, root=root, where="rows:1")


def test_plan_and_load_agree(processor: Processor, media: Path) -> None:
    row = chat_row("<video-1> or <image-1>?", image="wide.png", video="clip.mp4", id="s1")
    plan = processor.plan_sample(sample_of(media, row))
    tokens, patches_IPK = processor.load_sample(plan)
    assert plan.videos[0].timestamps_seconds == pytest.approx([0.0, 0.6, 1.3, 1.9])  # 2 s at 2 fps, corner to corner
    assert plan.videos[0].frames_per_second == pytest.approx(2.0)
    assert plan.visual.grids == ((3, 1),)
    assert plan.num_tokens == tokens.token_ids_T.numel()
    assert patches_IPK.shape == (plan.num_tiles, 16, 588) == (8, 16, 588)
    assert tokens.visual_positions_N.numel() == 8 * 4


@pytest.mark.parametrize(
    ("start", "end", "first", "count", "seconds"),
    [
        (None, None, 0.0, 20, 2.0),
        (0.5, 1.5, 0.5, 10, 1.0),  # [start, end): the frame at 1.5 s is the next clip's
        (0.45, 1.55, 0.5, 11, 1.1),
        (1.0, None, 1.0, 10, 1.0),
        (None, 0.3, 0.0, 3, 0.3),
        (0.51, 0.55, 0.5, 1, 0.1),  # no frame begins in it: the one on show
        (1.95, None, 1.9, 1, 0.1),
        (1.0, 2.5, 1.0, 10, 1.0),  # the end rounded up
    ],
)
def test_clips(
    tokenizer: Tokenizer, media: Path, start: float | None, end: float | None, first: float, count: int, seconds: float
) -> None:
    dense = Processor(tokenizer, tiny_config(frames_per_second=10, max_frames=100))
    sample = Sample("s", (Turn("user", "<video-1>"),), (), (VideoRef(media / "clip.mp4", start, end),))
    video = dense.plan_sample(sample).videos[0]
    assert len(video.timestamps_seconds) == count
    assert video.timestamps_seconds[0] == pytest.approx(first)
    assert video.frames_per_second == pytest.approx(count / seconds)


def test_key_frames_alone(tokenizer: Tokenizer, media: Path) -> None:
    """Of a clip without one, all of its frames."""
    keys = (probe(media / "long.mp4").key_frames / 10).tolist()
    assert keys == pytest.approx([0.0, 0.8, 1.6, 2.4, 3.2, 4.0, 4.8, 5.6])
    processor = Processor(tokenizer, tiny_config(frames_per_second=10, seek="keyframe"))
    for start, end, want in ((None, None, keys), (1.0, 4.0, [1.6, 2.4, 3.2]), (0.1, 0.4, [0.1, 0.2, 0.3])):
        sample = Sample("s", (Turn("user", "<video-1>"),), (), (VideoRef(media / "long.mp4", start, end),))
        plan = processor.plan_sample(sample)
        (video,) = plan.videos
        assert video.timestamps_seconds == pytest.approx(want)
        assert video.frames_per_second == pytest.approx(len(want) / ((end or 6.0) - (start or 0.0)))
        _, patches_IPK = processor.load_sample(plan)
        levels = (patches_IPK.float().mean((1, 2)) + 1) * 127.5
        np.testing.assert_allclose(levels, [40 * seconds for seconds in want], atol=3)


def test_a_file_of_one_frame(processor: Processor, tmp_path: Path) -> None:
    write_video(tmp_path / "still.mp4", num_frames=1, first_level=100)
    plan = processor.plan_sample(sample_of(tmp_path, chat_row(video="still.mp4")))
    assert plan.videos[0].timestamps_seconds == (0.0,)
    assert plan.videos[0].frames_per_second > 0
    assert processor.load_sample(plan).patches_IPK.shape[0] == 1


BAD = {
    "missing image": ({"image": "none.png"}, r"sample s: image .*none\.png does not exist"),
    "missing video": ({"video": "none.mp4"}, r"sample s: video .*none\.mp4 does not exist"),
    "not a video": ({"video": "wide.png"}, r"sample s: video .*wide\.png cannot be read: "),
    "empty video": ({"video": "empty.mp4"}, r"sample s: video .*empty\.mp4 cannot be read: "),
    "endless name": ({"video": "v" * 5000}, r"sample s: video .*v does not exist"),
    "cut video": ({"video": "cut.mp4"}, r"sample s: video .*cut\.mp4 (cannot be read|is damaged): "),
    "late clip": (
        {"video": {"path": "clip.mp4", "start": 2}},
        r"the clip is 2 s to the end, but video .*clip\.mp4 lasts 2\.000 s\. Correct the clip's times",
    ),
    "long clip": (
        {"video": {"path": "clip.mp4", "end": 3.5}},
        r"the clip is 0 s to 3\.5 s, but video .* lasts 2\.000 s",
    ),
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


def test_source_may_lower_max_tiles_not_raise_it(tokenizer: Tokenizer, media: Path) -> None:
    sample = sample_of(media, chat_row(image="wide.png"))
    for config_tiles, source_tiles, cols in [(12, None, 3), (12, 1, 1), (12, 3, 3), (1, 12, 1)]:
        plan = Processor(tokenizer, tiny_config(max_tiles=config_tiles)).plan_sample(sample, max_tiles=source_tiles)
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
        chosen_images = tuple(ImageRef(rng.choice(images)[0]) for kind in kinds if kind == "image")
        chosen_videos = tuple(VideoRef(rng.choice(videos)[0]) for kind in kinds if kind == "video")
        names = [f"<image-{k + 1}>" for k in range(len(chosen_images))]
        names += [f"<video-{k + 1}>" for k in range(len(chosen_videos))]
        rng.shuffle(names)
        question = " ".join(name + rng.choice(TEXTS)[: rng.randrange(60)] for name in [*names, ""])
        sample = Sample(
            f"s{i}", (Turn("user", question), Turn("assistant", rng.choice(TEXTS))), chosen_images, chosen_videos
        )
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


# ---- config and files


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
        ({"sampling": sampling | {"seek": "nearest"}}, "seek is 'nearest'; needs one of exact, keyframe"),
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
