"""Of a video that lies elsewhere no more is fetched than a plan needs, and its frames are those of the local file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray

from eagle_kernels import video
from eagle_kernels.video import VideoError
from eagle_kernels.video.ranged import LocalFile, Unreachable, open_binary, open_bytes, stamp_of
from tests.video.make import GOOD_NAMES, draw, numbers, write_video

if TYPE_CHECKING:
    from tests.video.make import GoldenSet


class Elsewhere:
    """A file, of which each span that is read is written down; `kept` is where all of it comes with `fetch`."""

    def __init__(self, path: Path, kept: Path) -> None:
        self.content, self.kept = path.read_bytes(), kept
        self.spans: list[tuple[int, int]] = []
        self.needed: list[set[tuple[int, int]]] = []
        self.num_fetched = 0
        self.name = f"far://{path.name}"
        self.tag = "1"
        self.is_reachable = True

    @property
    def stamp(self) -> list[int | str]:
        return [len(self.content), self.tag]

    def open(self, look: Callable[[], None]) -> Elsewhere:
        look()
        return self

    def close(self) -> None:
        pass

    def pread(self, num_bytes: int, offset: int) -> bytes:
        if not self.is_reachable:
            raise Unreachable(f"{self.name}: gone")
        self.spans.append((offset, num_bytes))
        return self.content[offset : offset + num_bytes]

    def need(self, offset_D: NDArray[Any], size_D: NDArray[Any]) -> None:
        self.needed.append(set(zip(offset_D.tolist(), size_D.tolist())))

    def fetch(self, look: Callable[[], None]) -> None:
        self.num_fetched += 1
        self.kept.write_bytes(self.content)


@pytest.mark.parametrize("name", GOOD_NAMES)
def test_frames_are_those_of_the_local_file(golden: GoldenSet, name: str, tmp_path: Path) -> None:
    far = Elsewhere(golden.good[name].path, tmp_path / golden.good[name].path.name)
    here, there = video.open(golden.good[name].path), video.open(far.kept, ranged=far)
    np.testing.assert_array_equal(here.info.frame_times_seconds, there.info.frame_times_seconds)
    times = here.info.frame_times_seconds[[0, len(here.info.frame_times_seconds) // 2, -1]]
    for a, b in zip(here.frames(times), there.frames(times), strict=True):
        assert a.timestamp_seconds == b.timestamp_seconds
        assert (a.rgb_YX3 == b.rgb_YX3).all()


def test_of_an_mp4_its_tables_and_the_planned_packets_alone(tmp_path: Path) -> None:
    path = tmp_path / "long.mp4"
    frames = [draw(i, 320, 240) ^ np.random.default_rng(i).integers(0, 24, (240, 320, 3), np.uint8) for i in range(80)]
    write_video(path, frames, options={"g": "10", "crf": "12", "bf": "0", "sc_threshold": "0"})
    far = Elsewhere(path, tmp_path / "kept.mp4")
    film = video.open(far.kept, ranged=far)
    assert numbers(film.frames([0.0, 2.0])) == [0, 50]
    asked = {at for offset, size in far.spans for at in range(offset, offset + size)}
    assert far.num_fetched == 0
    assert not far.kept.exists()
    assert len(asked) < 0.5 * len(far.content)
    assert len(far.needed[1]) == 2, "after those that open a decoder, what the plan says, together"
    assert far.needed[1] <= set(far.spans)


@pytest.mark.parametrize("name", ["vp9.webm", "h264.ts"])
def test_a_file_without_tables_is_fetched_whole(golden: GoldenSet, name: str, tmp_path: Path) -> None:
    source = next(g for n, g in golden.good.items() if n.endswith(name.rpartition(".")[2]))
    far = Elsewhere(source.path, tmp_path / source.path.name)
    list(video.open(far.kept, ranged=far).frames([0.0]))
    assert far.num_fetched >= 1
    assert far.kept.read_bytes() == far.content


def test_a_sidecar_is_by_the_name_elsewhere_and_the_tag(golden: GoldenSet, tmp_path: Path) -> None:
    source = next(g for n, g in golden.good.items() if n.endswith(".mkv"))
    far = Elsewhere(source.path, tmp_path / "a" / source.path.name)
    (tmp_path / "a").mkdir()
    video.open(far.kept, ranged=far, index_folder=tmp_path / "indexes")
    far.kept.unlink()
    again = Elsewhere(source.path, tmp_path / "b" / source.path.name)  # another cache
    film = video.open(again.kept, ranged=again, index_folder=tmp_path / "indexes")
    assert numbers(film.frames([0.0])) == [source.numbers[0]]
    assert again.num_fetched == 0, "a Matroska's blocks are in the sidecar: it is read in parts too"
    again.tag = "2"
    (tmp_path / "b").mkdir()
    video.open(again.kept, ranged=again, index_folder=tmp_path / "indexes")
    assert again.num_fetched == 1


def test_what_cannot_be_reached_is_not_taken_for_damage(golden: GoldenSet, tmp_path: Path) -> None:
    source = next(g for n, g in golden.good.items() if n.endswith(".mp4"))
    far = Elsewhere(source.path, tmp_path / "a.mp4")
    film = video.open(far.kept, ranged=far)
    far.is_reachable = False
    with pytest.raises(Unreachable, match="gone"):
        list(film.frames([0.0]))
    with pytest.raises(Unreachable, match="gone"):
        video.open(far.kept, ranged=far)


def test_what_is_no_video_is_said_as_of_a_local_file(golden: GoldenSet, tmp_path: Path) -> None:
    far = Elsewhere(golden.bad["text.mp4"], tmp_path / "text.mp4")
    with pytest.raises(VideoError, match=r"text\.mp4: cannot be opened as a video"):
        video.open(far.kept, ranged=far)


def test_bytes_of_both_kinds(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(bytes(range(100)))
    far = Elsewhere(path, tmp_path / "kept")
    for file in (open_bytes(path, None, far.close), open_bytes(path, far, far.close)):
        assert file.pread(5, 10) == bytes(range(10, 15))
        assert file.pread(50, 90) == bytes(range(90, 100))
        file.close()
    assert isinstance(open_bytes(path, None, far.close), LocalFile)
    with open_binary(far, far.close) as stream:
        assert stream.seek(0, 2) == 100
        assert stream.seek(-4, 1) == 96
        assert stream.read() == bytes(range(96, 100))
        stream.seek(3)
        assert stream.read(2) == bytes([3, 4])
    assert stamp_of(path, far) == [100, "1"]
    assert stamp_of(path, None) == [100, path.stat().st_mtime_ns]
