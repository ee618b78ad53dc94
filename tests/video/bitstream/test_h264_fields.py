"""Fields that are packets of their own: told apart, paired, and one frame in every container."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("av", reason="needs PyAV (the extra `video`)")

import av

from eagle_kernels.video import probe
from eagle_kernels.video.bitstream.h264_fields import FieldPairs
from tests.video.make import B_FRAMES, draw, write_video
from tests.video.remake import check_exact, packets_of

START = b"\0\0\0\1"
WIDTH_PX = HEIGHT_PX = 64


def golomb(number: int) -> str:
    bits = f"{number + 1:b}"
    return "0" * (len(bits) - 1) + bits


def unit(head: int, bits: str, tail: bytes = b"") -> bytes:
    """A NAL unit: its header, bits filled up with zeros, bytes, the stop bit; escaped."""
    bits += "0" * (-len(bits) % 8) if tail else "1"
    bits += "0" * (-len(bits) % 8)
    content = int(bits, 2).to_bytes(len(bits) // 8, "big") + tail + (b"\x80" if tail else b"")
    escaped = bytearray()
    for byte in content:
        if escaped[-2:] == b"\0\0" and byte < 4:
            escaped.append(3)
        escaped.append(byte)
    return START + bytes([head]) + bytes(escaped)


def headers() -> bytes:
    """Of pictures that may be fields, 64 x 64; order follows decoding (pic_order_cnt_type 2)."""
    sps = f"{66:08b}{0:08b}{30:08b}" + golomb(0) + golomb(0) + golomb(2) + golomb(1) + "0"
    sps += golomb(WIDTH_PX // 16 - 1) + golomb(HEIGHT_PX // 32 - 1) + "0" + "0" + "1" + "0" + "0"
    pps = golomb(0) + golomb(0) + "0" + "0" + golomb(0) + golomb(0) * 2 + "0" + "00" + golomb(0) * 3 + "1" + "0" + "0"
    return unit(0x67, sps) + unit(0x68, pps)


def field(number: int, frame_num: int, *, is_bottom: bool, is_idr: bool) -> bytes:
    """One intra field, every macroblock written out (I_PCM)."""
    luma_YX = draw(number, WIDTH_PX, HEIGHT_PX)[int(is_bottom) :: 2, :, 0]
    bits = golomb(0) + golomb(7) + golomb(0) + f"{frame_num % 16:04b}" + "1" + str(int(is_bottom))
    bits += golomb(0) + "00" if is_idr else "0"
    bits += golomb(0) + golomb(1)  # quantiser; no deblocking
    content = bytearray()
    for y in range(0, HEIGHT_PX // 2, 16):
        for x in range(0, WIDTH_PX, 16):
            content += b"" if not (x or y) else b"\x0d\x00"  # mb_type 25, aligned: 000011010 0000000
            content += luma_YX[y : y + 16, x : x + 16].tobytes() + bytes([128]) * 128
    return unit(0x65 if is_idr else 0x61, bits + golomb(25), bytes(content))


def fields(num_frames: int, group: int = 12) -> list[bytes]:
    packets = []
    for i in range(num_frames):
        is_first = i % group == 0
        first = field(i, i % group, is_bottom=False, is_idr=is_first)
        packets.append((headers() if is_first else b"") + first)
        packets.append(field(i, i % group, is_bottom=True, is_idr=False))
    return packets


def write_fields(path: Path, packets: list[bytes], *, duration: int = 1800) -> Path:
    raw = path.with_suffix(".h264")
    raw.write_bytes(b"".join(packets))
    with av.open(str(raw)) as whole, av.open(str(path), "w") as container:
        stream = container.add_stream_from_template(whole.streams.video[0])
        for i, content in enumerate(packets):
            packet = av.Packet(content)
            packet.pts = packet.dts = i * duration
            packet.duration, packet.time_base, packet.stream = duration, Fraction(1, 90_000), stream
            packet.is_keyframe = START + b"\x65" in content
            container.mux(packet)
    return path


@pytest.mark.parametrize("suffix", ["ts", "mp4", "mkv", "flv", "avi"])
def test_a_packet_for_each_field(tmp_path: Path, suffix: str) -> None:
    path = write_fields(tmp_path / f"fields.{suffix}", fields(30))
    assert len(packets_of(path)) == 60
    check_exact(path, range(30))
    info = probe(path)
    assert info.damage is None
    assert info.duration_seconds == pytest.approx(1.2, abs=0.05)


@pytest.mark.parametrize("suffix", ["ts", "mp4", "mkv"])
def test_a_packet_for_both_fields(tmp_path: Path, suffix: str) -> None:
    single = fields(30)
    both = [a + b for a, b in zip(single[::2], single[1::2], strict=True)]
    check_exact(write_fields(tmp_path / f"frames.{suffix}", both, duration=3600), range(30))


def test_what_makes_a_pair() -> None:
    pairs = FieldPairs.of(headers())
    assert pairs is not None
    top, bottom = (field(1, 3, is_bottom=b, is_idr=False) for b in (False, True))
    other = field(1, 4, is_bottom=True, is_idr=False)
    order = [top, bottom, bottom, top, top, other, top + bottom, bottom, b""]
    assert [pairs.is_second_field(p) for p in order] == [False, True, False, True, False, False, False, False, False]


def test_streams_without_fields_are_left_alone(tmp_path: Path) -> None:
    write_video(tmp_path / "plain.mp4", (draw(i) for i in range(5)), options=B_FRAMES)
    with av.open(str(tmp_path / "plain.mp4")) as container:
        extradata = container.streams.video[0].codec_context.extradata
    assert FieldPairs.of(extradata) is None
    assert FieldPairs.of(None) is None
    for cut in range(len(extradata)):
        FieldPairs.of(extradata[:cut])
    rng = np.random.default_rng(0)
    for _ in range(200):
        pairs = FieldPairs.of(START + b"\x67" + rng.bytes(20))
        if pairs is not None:
            pairs.is_second_field(START + rng.bytes(40))
