"""What pictures packets hold, and which of them the wanted ones need."""

import struct
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("av", reason="needs PyAV (the extra `video`)")


from eagle_kernels.video import open as open_video
from eagle_kernels.video import probe
from eagle_kernels.video.bitstream.nal import NalFormat
from eagle_kernels.video.bitstream.pictures import Syntax, is_no_start, needed, picture, syntax
from eagle_kernels.video.libav.source import PacketReader
from eagle_kernels.video.plan import Group
from tests.video.make import GoldenSet, draw, write_video
from tests.video.remake import packets_of


def nal_units(*units: bytes) -> bytes:
    return b"".join(struct.pack(">I", len(unit)) + unit for unit in units)


AVC, AVC_START_CODES, HEVC = NalFormat("h264", 4, 0), NalFormat("h264", 0, 0), NalFormat("hevc", 4, 2)


SEI, SLICE, REF_SLICE, IDR, PPS = b"\x06\x01", b"\x01\x9a", b"\x41\x9a", b"\x65\x88", b"\x68\xce"


HEVC_SEI, HEVC_PPS, CRA = b"\x4e\x01", b"\x44\x01", b"\x2a\x01"


TSA, STSA = 2, 4  # as sub-layer non-reference pictures


def trail(layer: int, *, is_reference: bool, kind: int = 0) -> bytes:
    return bytes([(kind + is_reference) << 1, layer + 1])


@pytest.mark.parametrize(
    ("nal", "packet", "want"),
    [
        (AVC, nal_units(SLICE), False),
        (AVC, nal_units(SEI, SLICE, SLICE), False),
        (AVC, nal_units(REF_SLICE), True),
        (AVC, nal_units(SLICE, REF_SLICE), True),  # one field of two
        (AVC, nal_units(IDR), True),
        (AVC, nal_units(SEI), True),  # no picture
        (AVC, nal_units(PPS, SLICE), True),  # later pictures may go by it
        (AVC, nal_units(SLICE)[:-1], True),  # cut short
        (AVC, nal_units(SLICE) + b"\0\0\0\0", True),
        (AVC, b"", True),
        (AVC_START_CODES, b"\0\0\0\1" + SEI + b"\0\0\1" + SLICE, False),
        (AVC_START_CODES, b"\0\0\0\1" + SEI + b"\0\0\1" + REF_SLICE, True),
        (HEVC, nal_units(HEVC_SEI, trail(2, is_reference=False)), False),
        (HEVC, nal_units(trail(1, is_reference=False)), True),  # the layer above may refer to it
        (HEVC, nal_units(trail(2, is_reference=True)), True),
        (HEVC, nal_units(HEVC_PPS, trail(2, is_reference=False)), True),
        (HEVC, nal_units(trail(2, is_reference=False), trail(1, is_reference=False)), True),  # of no one layer
        (HEVC, nal_units(CRA), True),
        (HEVC, nal_units(trail(-1, is_reference=False)), True),  # no layer
    ],
)
def test_what_is_needed_whatever_is_wanted_after_it(nal: NalFormat, packet: bytes, want: bool) -> None:
    for form in (packet, memoryview(packet)):
        assert needed([form], [False], nal, is_last=False) == [want]
        assert needed([form], [True], nal, is_last=True) == [True]


def test_layers_above_those_wanted_later_are_not_needed() -> None:
    layers = [0, 2, 1, 2, 0, 2, 1, 2]
    packets = [nal_units(trail(layer, is_reference=layer < 2)) for layer in layers]

    def places(wanted: int) -> list[int]:
        keep = needed(packets, [i == wanted for i in range(8)], HEVC, is_last=True)
        return [i for i in range(8) if keep[i]]

    assert places(4) == [0, 4]
    assert places(6) == [0, 2, 4, 6]
    assert places(7) == [0, 2, 4, 6, 7]
    assert places(1) == [0, 1]


def test_a_picture_that_gives_access_to_its_layer_cuts_off_what_lies_before() -> None:
    layers = [0, 1, 2, 2, 1, 2, 2, 0, 1, 2, 2]

    def places(kinds: dict[int, int], wanted: int) -> list[int]:
        packets = [nal_units(trail(layers[i], is_reference=True, kind=kinds.get(i, 0))) for i in range(11)]
        keep = needed(packets, [i == wanted for i in range(11)], HEVC, is_last=True)
        return [i for i in range(11) if keep[i]]

    assert places({}, 10) == list(range(11))
    assert places({8: TSA}, 10) == [0, 7, 8, 9, 10]
    assert places({8: STSA}, 10) == list(range(11)), "layer 2 may refer back to layer 1 and 2"
    assert places({8: STSA, 9: STSA}, 10) == [0, 1, 4, 7, 8, 9, 10], "to layer 1 still"
    assert places({8: STSA}, 8) == [0, 7, 8]
    assert places({10: TSA}, 10) == [0, 1, 4, 7, 8, 10]


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 1 << 32), st.integers(1, 40), st.integers(1, 6), st.integers(1, 20))
def test_what_layers_allow_a_picture_to_refer_to_is_fed(seed: int, length: int, num_wanted: int, window: int) -> None:
    """Pictures of any layer, which refer to all that the standard lets them."""
    noise = np.random.default_rng(seed)
    layers, marks = noise.integers(0, 3, length).tolist(), noise.integers(0, 2, length).astype(bool).tolist()
    kinds = [int(noise.choice([0, 0, 0, TSA, STSA])) if layer else 0 for layer in layers]
    packets = [nal_units(trail(layers[i], is_reference=marks[i], kind=kinds[i])) for i in range(length)]

    def may_refer(picture: int, other: int) -> bool:
        if layers[other] > layers[picture] or (layers[other] == layers[picture] and not marks[other]):
            return False
        return not any(
            (kinds[i] == TSA and layers[i] <= layers[other])
            or (kinds[i] == STSA and layers[i] == layers[other] == layers[picture])
            for i in range(other + 1, picture + 1)
        )

    wanted = set(noise.integers(0, length, num_wanted).tolist())
    end = max(wanted) + 1
    kept: list[bool] = []
    for at in range(0, end, window):
        part = range(at, min(at + window, end))
        is_wanted = [i in wanted for i in part]
        kept += needed([packets[i] for i in part], is_wanted, HEVC, is_last=at + window >= end)
    leads_to = set(wanted)
    for i in reversed(range(end)):
        if i in leads_to:
            leads_to |= {other for other in range(i) if may_refer(i, other)}
    assert all(kept[i] for i in leads_to)
    if window >= end:
        assert kept == [i in leads_to for i in range(end)], "and nothing else"


ANNEX_B_SYNTAX, AVC_SYNTAX = Syntax("h264", 0), Syntax("h264", 4)


VP9 = Syntax("vp9", 0, size_px=(64, 48))


def nal(content: bytes, code: Syntax) -> bytes:
    return (len(content).to_bytes(code.length_bytes, "big") if code.length_bytes else b"\0\0\1") + content


@pytest.mark.parametrize("code", [ANNEX_B_SYNTAX, AVC_SYNTAX, Syntax("h264", 2)])
def test_pictures_of_h264(code: Syntax) -> None:
    code = code._replace(headers=b"\x67\x42\x00\x1e")
    sps, sei, idr, p, p_rest = b"\x67\x42\x00\x1e", b"\x06\x05\x01", b"\x65\x88\x80", b"\x41\x9a\x02", b"\x41\x1a\x02"
    one = [nal(unit, code) for unit in (sps, sei, idr)]
    assert picture(b"".join(one), code) == (1, 1, True, False)
    assert picture(nal(p, code) + nal(p_rest, code), code) == (1, 1, False, False)  # two slices
    assert picture(nal(p, code) + nal(p, code), code) == (2, 2, False, False)  # two fields
    assert picture(nal(p, code) + nal(idr, code), code) == (2, 2, False, False)
    assert picture(nal(sps, code), code) == (0, 0, False, False)
    assert picture(nal(idr, code)[:-2], code) == (0, 0, False, False)  # cut short


@pytest.mark.parametrize(
    ("kind", "is_start"),
    [(0, False), (1, False), (8, False), (16, True), (19, True), (20, True), (21, True), (24, False)],
)
def test_pictures_of_hevc(kind: int, is_start: bool) -> None:
    code = Syntax("hevc", 4)
    assert picture(nal(bytes([kind << 1, 1, 0x80]), code), code) == (1, 1, is_start, False)
    assert picture(nal(bytes([kind << 1, 1, 0x00]), code), code).num_coded == 0  # a further segment
    assert picture(nal(bytes([35 << 1, 1, 0x80]), code), code).num_coded == 0  # a delimiter


def vp9(*fields: tuple[int, int]) -> bytes:
    """A frame's header of (bits, value), after frame_marker 2 and profile 0."""
    bits = "1000" + "".join(f"{value:0{num_bits}b}" for num_bits, value in fields)
    return int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8), "big")


def vp9_key(width_px: int, height_px: int) -> bytes:
    return vp9((4, 0b0010), (24, 0x498342), (3, 1), (1, 0), (16, width_px - 1), (16, height_px - 1))


def vp9_inter(is_shown: int, *size: tuple[int, int]) -> bytes:
    """size: found_ref bits, and what follows."""
    intra_only = () if is_shown else ((1, 0),)
    return vp9((4, 0b0100 | is_shown << 1), *intra_only, (2, 0), (8, 1), (12, 0), *size)


KEY, INTER, HIDDEN_INTER, AGAIN = vp9_key(64, 48), vp9_inter(1, (1, 1)), vp9_inter(0, (3, 1)), vp9((4, 0b1000))


def superframe(*frames: bytes, size_bytes: int = 1) -> bytes:
    marker = bytes([0b11000000 | (size_bytes - 1) << 3 | len(frames) - 1])
    return b"".join(frames) + marker + b"".join(len(f).to_bytes(size_bytes, "little") for f in frames) + marker


def test_pictures_of_vp9() -> None:
    assert picture(KEY, VP9) == (1, 1, True, False)
    assert picture(INTER, VP9) == (1, 1, False, False)
    assert picture(AGAIN, VP9) == (1, 0, False, False)
    assert picture(HIDDEN_INTER, VP9) == (0, 1, False, False)
    assert picture(superframe(HIDDEN_INTER, INTER), VP9) == (1, 2, False, False)
    assert picture(superframe(KEY, INTER, AGAIN, size_bytes=3), VP9) == (3, 2, True, False)
    assert picture(superframe(INTER, KEY), VP9) == (2, 2, False, False)
    assert picture(b"\xa2" + KEY[1:], VP9) == (0, 0, False, False)  # profile 2
    assert picture(b"", VP9) == (0, 0, False, False)


@pytest.mark.parametrize(
    ("packet", "changes"),
    [
        (vp9_key(64, 50), True),
        (vp9_inter(1, (2, 1)), False),  # the size of the second reference
        (vp9_inter(1, (3, 0), (16, 63), (16, 47)), False),
        (vp9_inter(1, (3, 0), (16, 31), (16, 23)), True),
        (vp9_inter(0, (3, 0), (16, 31), (16, 23)), True),
        (vp9((4, 0b0101), (1, 1), (24, 0x498342), (8, 1), (16, 63), (16, 47)), False),  # resilient, intra only
        (vp9((4, 0b0100), (1, 1), (2, 0), (24, 0x498342), (8, 1), (16, 63), (16, 23)), True),
        (superframe(INTER, vp9_key(32, 24)), True),
    ],
)
def test_sees_vp9_change_its_size(packet: bytes, changes: bool) -> None:
    assert picture(packet, VP9).changes_size == changes


@pytest.mark.parametrize("code", [ANNEX_B_SYNTAX, AVC_SYNTAX])
def test_sees_headers_that_are_not_the_stream_s(code: Syntax) -> None:
    sps, other, slice_ = b"\x67\x42\x00\x1e", b"\x67\x42\x00\x1f", b"\x65\x88\x80"
    code = code._replace(headers=b"\x01\x42" + sps + b"\x01\x68")
    assert picture(nal(sps, code) + nal(slice_, code), code) == (1, 1, True, False)
    assert picture(nal(other, code) + nal(slice_, code), code) == (1, 1, True, True)
    assert picture(nal(slice_, code) + nal(other, code), code).changes_size


def test_sizes_of_real_vp9(golden: GoldenSet) -> None:
    video = open_video(golden.good["vp9_odd.webm"].path)
    with closing(PacketReader(video.index)) as reader:
        for packet in reader.packets(Group(0, 0, video.info.num_frames, ())):
            assert not picture(packet.content, Syntax("vp9", 0, size_px=(63, 47))).changes_size
            key = picture(packet.content, Syntax("vp9", 0, size_px=(63, 48)))
            assert key.changes_size == key.is_start


def test_syntax_follows_the_codec_s_headers() -> None:
    avc, annex_b = b"\x01\x64\x00\x1f\xff\xe1\x00", b"\0\0\0\1\x40\x01"
    assert syntax("vp9", None, (64, 48)) == VP9
    assert syntax("h264", avc, (64, 48)) == Syntax("h264", 4, avc)
    assert syntax("hevc", annex_b, (64, 48)) == Syntax("hevc", 0, annex_b)
    assert syntax("hevc", b"\x01", (64, 48)) is None
    assert syntax("h264", None, (64, 48)) is None


@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("mpeg4", {}),
        ("mpeg4", {"bf": "2"}),
        ("flv", {}),
        ("msmpeg4v2", {}),
        ("msmpeg4", {}),
        ("wmv1", {}),
        ("wmv2", {}),
    ],
)
@pytest.mark.parametrize("size", [(64, 48), (352, 288), (300, 700)])
def test_pictures_that_are_no_place_to_start(tmp_path: Path, codec: str, options: dict, size: tuple[int, int]) -> None:
    """As the encoder's own key flags have it."""
    path = tmp_path / "a.avi"
    options = {"q": "5", "g": "5", **options}
    write_video(path, (draw(i, *size) for i in range(12)), codec=codec, options=options)
    name = probe(path).codec
    packets = packets_of(path)
    assert 2 <= sum(p.is_key for p in packets) < len(packets)
    assert [is_no_start(name, p.content) for p in packets] == [not p.is_key for p in packets]
    assert not any(is_no_start(name, p.content[:cut]) for p in packets if p.is_key for cut in range(12))
    assert not any(is_no_start("h264", p.content) for p in packets)
