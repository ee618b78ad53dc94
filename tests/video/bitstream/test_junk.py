"""Malformed SEI messages and parameter sets beside good pictures are left out; pictures never are."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av", reason="needs PyAV (the extra `video`)")

from eagle_kernels.video import probe
from eagle_kernels.video.bitstream.junk import Junk
from eagle_kernels.video.bitstream.nal import START_CODE
from tests.video.make import B_FRAMES, X265, draw, write_video
from tests.video.remake import Stored, check_exact, remux

# Units by what is wrong with them: H.264's and HEVC's kinds.
H264 = {
    "sei cut short": bytes.fromhex("0605ff20414280"),
    "sei of nonsense": bytes.fromhex("0601ff80"),
    "picture parameters": bytes.fromhex("680000"),
    "sequence parameters": bytes.fromhex("67640000"),
    "unknown kind": bytes.fromhex("78aabb80"),
}
HEVC = {
    "sei cut short": bytes.fromhex("4e0105ff20414280"),
    "picture parameters": bytes.fromhex("4401000080"),
    "sequence parameters": bytes.fromhex("42010180"),
}


def spoilt(unit: bytes, *, after: bool, in_mp4: bool) -> object:
    def spoil(content: bytes) -> bytes:
        if not in_mp4:  # in front of the first picture, as in a stream with start codes only pictures end access units
            at = min(i for i in map(content.find, (b"\0\0\1\x65", b"\0\0\1\x41", b"\0\0\1\1")) if i >= 0)
            return content[:at] + START_CODE + unit + content[at:]
        junk = len(unit).to_bytes(4, "big") + unit
        return content + junk if after else junk + content

    def change(packets: list[Stored]) -> list[Stored]:
        return [p._replace(content=spoil(p.content)) for p in packets]

    return change


@pytest.mark.parametrize(
    ("codec", "name", "suffix", "after"),
    [
        *(("libx264", name, "mp4", after) for name in H264 for after in (False, True)),
        *(("libx264", name, "ts", False) for name in ("sei cut short", "picture parameters")),
        ("libx264", "picture parameters", "mkv", True),
        *(("libx265", name, "mp4", False) for name in HEVC),
    ],
)
def test_all_frames_come_out(tmp_path: Path, codec: str, name: str, suffix: str, after: bool) -> None:
    options = B_FRAMES if codec == "libx264" else {**X265, "x265-params": "log-level=error:keyint=24:bframes=3"}
    good = tmp_path / f"good.{suffix}"
    write_video(good, (draw(i) for i in range(40)), codec=codec, options=options)
    unit = (H264 if codec == "libx264" else HEVC)[name]
    path = tmp_path / f"junk.{suffix}"
    remux(good, path, spoilt(unit, after=after, in_mp4=suffix != "ts"))  # type: ignore[arg-type]
    check_exact(path, range(40))
    assert probe(path).damage is None


EXTRADATA = START_CODE + b"\x67\x64\x00\x0a\xac" + START_CODE + b"\x68\xef\x82\x3c"
SLICE, BROKEN_SLICE, RECOVERY = b"\x65\x88\x84", b"\x41", b"\x06\x06\x01\xc4\x80"


def test_takes_out_what_is_malformed_and_nothing_else() -> None:
    asked: list[bytes] = []
    junk = Junk("h264", EXTRADATA, lambda sets: bool(asked.append(sets)))  # type: ignore[func-returns-value]
    units = [b"\x09\x10", b"\x06\x05\xff", RECOVERY, b"\x68\x00\x01", SLICE, BROKEN_SLICE, b"\x68\x00\x01", b"\x0a"]
    packet = b"".join(START_CODE + unit for unit in units)
    kept = [b"\x09\x10", RECOVERY, SLICE, BROKEN_SLICE, b"\x0a"]
    assert junk.without(packet) == b"".join(START_CODE + unit for unit in kept)
    assert asked[-1] == b"\0\0\1\x68\x00\x01", "of the headers none was valid"
    assert len(asked) == 3, "each of the two headers, and the one in the packet once"
    for good in (START_CODE + RECOVERY + START_CODE + SLICE, START_CODE + b"\x06\x05\xff"):
        assert junk.without(good) == good, "nothing is wrong; no picture is left"


def test_lengths_that_do_not_add_up_lose_no_picture() -> None:
    record = bytes([1, 100, 0, 10, 0xFF, 0xE1, 0, 5]) + b"\x67\x64\x00\x0a\xac" + bytes([1, 0, 4]) + b"\x68\xef\x82\x3c"
    junk = Junk("h264", record, lambda sets: True)
    whole = b"\0\0\0\3" + SLICE
    assert junk.without(whole + b"\0\0\0\0" + whole) == whole + whole, "an empty unit"
    assert junk.without(whole + b"\0\0\0\x50\x06\x05") == whole, "a message that reaches out of the packet"
    cut = whole + b"\0\0\0\x50" + SLICE
    assert junk.without(cut) == cut, "a picture that is cut short stays damage"
    assert junk.without(whole + b"\0\0") == whole


def test_any_bytes_are_taken() -> None:
    rng = np.random.default_rng(0)
    for codec in ("h264", "hevc"):
        for length in range(60):
            Junk(codec, rng.bytes(length), lambda sets: True).without(rng.bytes(length))
            Junk(codec, START_CODE + rng.bytes(length), lambda sets: True).without(START_CODE + rng.bytes(length))
