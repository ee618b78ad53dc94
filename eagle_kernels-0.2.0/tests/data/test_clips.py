"""Clips are cut where they say, and what is wrong with a file is said before anything is decoded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from eagle_kernels.video import probe
from eagle_model.data import clips
from eagle_model.data.clips import open_clip, open_video
from eagle_model.data.sample import DataError, VideoRef
from tests.data.make_pdf import gray, write_pdf


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
def test_clips(media: Path, start: float | None, end: float | None, first: float, count: int, seconds: float) -> None:
    clip = open_clip(VideoRef(media / "clip.mp4", start, end))
    assert len(clip.frame_times_seconds) == count
    assert clip.frame_times_seconds[0] == pytest.approx(first)
    assert clip.duration_seconds == pytest.approx(seconds)


def test_key_frames_of_a_clip_or_all_where_it_has_none(media: Path) -> None:
    keys = (probe(media / "long.mp4").key_frames / 10).tolist()
    for start, end, want, seconds in (
        (None, None, keys, 6.0),
        (1.0, 4.0, [1.6, 2.4, 3.2], 3.0),
        (0.1, 0.4, [0.1, 0.2, 0.3], 0.3),
    ):
        clip = open_clip(VideoRef(media / "long.mp4", start, end), seek="keyframe")
        assert clip.frame_times_seconds.tolist() == pytest.approx(want)
        assert clip.duration_seconds == pytest.approx(seconds)


@pytest.mark.parametrize(("start", "end"), [(None, None), (1.0, 4.0), (0.1, 0.4), (0.51, 0.55)])
@pytest.mark.parametrize("tolerance", [0.0, 0.25, 0.5])
def test_cheaper_frames_lie_near_the_sampled_ones_and_inside_the_clip(
    media: Path, start: float | None, end: float | None, tolerance: float
) -> None:
    """Groups of pictures are 0.8 s long; a frame of a clip is never exchanged for one outside."""
    plain = open_clip(VideoRef(media / "long.mp4", start, end))
    clip = open_clip(VideoRef(media / "long.mp4", start, end), seek="tolerance", tolerance=tolerance)
    own = clip.frame_times_seconds
    assert own.tolist() == plain.frame_times_seconds.tolist()
    assert plain.choose is None
    assert (clip.choose is None) == (len(own) == 1)
    for step in (1, 2, 7) if clip.choose else ():
        sampled = own[::step]
        chosen = clip.choose(sampled)
        assert len(chosen) == len(sampled)
        assert set(chosen) <= set(own.tolist())
        assert (np.diff(chosen) > 0).all()
        reach = tolerance * np.diff(sampled).mean() if len(sampled) > 1 else 0.0
        assert (np.abs(np.subtract(chosen, sampled)) <= reach + 1e-9).all()
        assert chosen.tolist() == sampled.tolist() or tolerance > 0


def test_a_video_in_use_is_read_once_until_it_changes(
    media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, whole = [], clips.video_files.open
    monkeypatch.setattr(clips.video_files, "open", lambda path, **kept: read.append(path) or whole(path, **kept))
    path = tmp_path / "video.mp4"
    path.write_bytes((media / "clip.mp4").read_bytes())
    for _ in range(3):
        open_clip(VideoRef(path, 0.5, 1.0))
        assert open_video(path).info.num_frames == 20
    assert read == [path]
    path.write_bytes((media / "long.mp4").read_bytes())
    assert open_video(path).info.num_frames == 60
    assert read == [path, path]
    assert clips._opened.cache_info().maxsize == clips.OPEN_VIDEOS, "however many a data set has"


def test_an_index_folder_keeps_what_was_found(media: Path, tmp_path: Path) -> None:
    plain = open_clip(VideoRef(media / "clip.mp4"))
    for _ in ("made", "read"):
        kept = open_clip(VideoRef(media / "clip.mp4"), index_folder=tmp_path)
        assert kept.frame_times_seconds.tolist() == plain.frame_times_seconds.tolist()
        assert [path.name.startswith("clip.mp4") for path in tmp_path.iterdir()] == [True]


BAD = {  # name, start, end, message
    "missing": ("none.mp4", None, None, r"video .*none\.mp4 does not exist"),
    "not a video": ("wide.png", None, None, r"video .*wide\.png cannot be read: "),
    "empty": ("empty.mp4", None, None, r"video .*empty\.mp4 cannot be read: "),
    "endless name": ("v" * 5000, None, None, r"video .*v does not exist"),
    "cut": ("cut.mp4", None, None, r"video .*cut\.mp4 (cannot be read|is damaged): "),
    "late": (
        "clip.mp4",
        2.0,
        None,
        r"the clip is 2 s to the end, but video .*clip\.mp4 lasts 2\.000 s\. Correct the clip's times",
    ),
    "long": ("clip.mp4", None, 3.5, r"the clip is 0 s to 3\.5 s, but video .* lasts 2\.000 s"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_clips_are_named(media: Path, case: str) -> None:
    name, start, end, message = BAD[case]
    with pytest.raises(DataError, match=message):
        open_clip(VideoRef(media / name, start, end))


def test_pages_of_a_document_are_its_frames(tmp_path: Path) -> None:
    clip = open_clip(VideoRef(write_pdf(tmp_path / "a.pdf", [gray(0)] * 3)), seek="tolerance")
    assert clip.frame_times_seconds.tolist() == [0, 1, 2]
    assert clip.duration_seconds is None
    assert clip.choose is None
    with pytest.raises(DataError, match=r"a\.pdf has pages, not seconds; take its start and end out"):
        open_clip(VideoRef(tmp_path / "a.pdf", end_seconds=3))
