"""annotate/shots.py: cuts of joined films, and pieces of a wanted length."""

from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eagle_model.annotate.shots import cut_places, find_cuts, merged
from eagle_model.data.clips import open_video
from tests.annotate.conftest import films


def join(out: Path, *pieces: tuple[Path, float]) -> list[float]:
    """Films one after the other, so many seconds of each, at 25 a second and 160 x 96; returns where one ends."""
    ends, count = [], 0
    with av.open(str(out), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 160, 96, "yuv420p"
        for path, seconds in pieces:
            with av.open(str(path)) as film:
                for number, frame in enumerate(film.decode(video=0)):
                    if number >= seconds * 25:
                        break
                    frame = frame.reformat(160, 96, "yuv420p")
                    frame.pts, frame.time_base = count, Fraction(1, 25)
                    count += 1
                    container.mux(stream.encode(frame))
            ends.append(count / 25)
        container.mux(stream.encode())
    return ends


def test_cuts_are_where_films_were_joined(tmp_path: Path) -> None:
    folder = films(tmp_path)
    bunny, phone = folder / "bigbuckbunny.mp4", folder / "carphone_pristine.mp4"
    ends = join(tmp_path / "joined.mp4", (bunny, 3.0), (phone, 2.0), (bunny, 2.0))
    found = find_cuts(open_video(tmp_path / "joined.mp4"), frames_per_second=4.0, threshold=0.35)
    assert len(found) == 2
    for cut, end in zip(found, ends):
        assert 0 <= cut - end < 0.25


@pytest.mark.parametrize(
    ("changes", "places"),
    [
        ([0, 0.1, 0.9, 0.1, 0.1], [2]),
        ([0, 0.8, 0.9, 0.8, 0.85], []),  # everything changes all the time: a flicker
        ([0, 0.3, 0.3, 0.3], []),
        ([0, 0.0, 0.5], [2]),
        ([0], []),
    ],
    ids=range(5),
)
def test_a_cut_changes_more_than_what_is_around_it(changes: list[float], places: list[int]) -> None:
    assert cut_places(changes, 0.35) == places


@settings(max_examples=300, deadline=None)
@given(
    cuts=st.lists(st.floats(0.1, 2000), max_size=60).map(sorted),
    duration=st.floats(0.5, 3000),
    most=st.integers(1, 64),
)
def test_pieces_tile_the_video_and_have_the_wanted_length(cuts: list[float], duration: float, most: int) -> None:
    pieces = merged(cuts, duration_seconds=duration, min_seconds=10, max_seconds=120, max_pieces=most)
    assert pieces[0][0] == 0 and pieces[-1][1] == duration and len(pieces) <= most
    assert all(a[1] == b[0] for a, b in pairwise(pieces))
    lengths = [end - start for start, end in pieces]
    assert min(lengths) >= min(10, duration) - 1e-6
    assert max(lengths) <= max(120, 2 * duration / most) + 1e-6
