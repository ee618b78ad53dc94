"""NAL units: how packets hold them."""

from eagle_kernels.video.bitstream.nal import nal_format, nal_starts, parameter_sets, unescaped


def test_the_form_of_packets_is_read_from_the_decoder_configuration() -> None:
    avcc = bytes([1, 100, 0, 31, 0xFC | 3, 0xE1, 0])
    hvcc = bytearray(23)
    hvcc[0], hvcc[21] = 1, 2 << 3 | 1
    assert nal_format("h264", avcc) == ("h264", 4, 0)
    assert nal_format("h264", b"\0\0\0\1\x67") == ("h264", 0, 0)
    assert nal_format("hevc", b"\0\0\1\x40") == ("hevc", 0, 6)
    assert nal_format("hevc", bytes(hvcc)) == ("hevc", 2, 1)
    hvcc[21] = 1  # the number of layers is unknown
    assert nal_format("hevc", bytes(hvcc)) == ("hevc", 2, 6)
    for codec, record in (("hevc", bytes(hvcc[:22])), ("h264", None), ("vp9", avcc)):
        assert nal_format(codec, record) is None


def test_units_begin_after_their_length_or_start_code() -> None:
    assert nal_starts(b"\0\0\0\1ab\0\0\1c", 0) == [4, 9]
    assert nal_starts(b"\0\0\0\2ab\0\0\0\1c", 4) == [4, 10]
    assert nal_starts(b"\0\2ab\0\1c", 2) == [2, 6]
    for cut in (b"\0\0\0\2a", b"\0\0\0\0"):
        assert nal_starts(cut, 4) == [len(cut)], "lengths that do not add up"
    assert nal_starts(b"", 4) == nal_starts(b"ab", 0) == []


def test_parameter_sets_of_any_record() -> None:
    sps, pps, vps = b"\x67\x64\x00\x0a", b"\x68\xef", b"\x40\x01\x0c"
    avcc = bytes([1, 100, 0, 10, 0xFF, 0xE1, 0, 4]) + sps + bytes([1, 0, 2]) + pps
    hvcc = bytes([1]) + bytes(21) + bytes([2, 0x20, 0, 1, 0, 3]) + vps + bytes([0x21, 0, 1, 0, 4]) + sps
    assert parameter_sets("h264", avcc) == [sps, pps]
    assert parameter_sets("hevc", hvcc) == [vps, sps]
    assert parameter_sets("h264", b"\0\0\0\1" + sps + b"\0\0\0\1" + pps) == [sps, pps]
    for record in (None, b"", b"\0\0\1"):
        assert parameter_sets("h264", record) == []
    for cut in range(len(hvcc)):
        assert parameter_sets("h264", avcc[:cut]) in ([], [sps], [sps, pps])
        assert parameter_sets("hevc", hvcc[:cut]) in ([], [vps], [vps, sps])


def test_escapes_are_taken_out() -> None:
    assert unescaped(b"\0\0\3\1\0\0\3\0\0\3") == b"\0\0\1\0\0\0\0"
    assert unescaped(memoryview(b"\0\3")) == b"\0\3"
