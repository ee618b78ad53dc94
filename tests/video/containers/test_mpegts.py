"""MPEG-TS: joints are told from losses by the counters alone, and times are those of the PES packets."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from eagle_kernels.video.containers.mpegts import CLOCK_BITS, PACKET_BYTES, find_joints, is_cut_inside, unit_times

PID = 256


def packet(pid: int, counter: int, *, begins: bool = False, may_jump: bool = False, is_faulty: bool = False) -> bytes:
    head = bytes(
        [0x47, is_faulty << 7 | begins << 6 | pid >> 8, pid & 255, (0x30 if may_jump else 0x10) | counter % 16]
    )
    return (head + (b"\1\x80" if may_jump else b"")).ljust(PACKET_BYTES, b"\0")


def segment(num_pictures: int, first: int = 0, table: int = 0) -> list[bytes]:
    """A table, then pictures of two packets."""
    pictures = [packet(PID, first + i, begins=i % 2 == 0) for i in range(2 * num_pictures)]
    return [packet(0, table, begins=True), *pictures]


def found(tmp_path: Path, packets: list[bytes]) -> tuple[list[int], list[int]]:
    path = tmp_path / "made.ts"
    path.write_bytes(b"".join(packets))
    whole, broken = find_joints(path, PID, lambda: None)
    return (whole // PACKET_BYTES).tolist(), (broken // PACKET_BYTES).tolist()


def test_counters_that_all_begin_anew_are_a_joint(tmp_path: Path) -> None:
    assert found(tmp_path, segment(3) + segment(3)) == ([5, 8], [])
    assert found(tmp_path, segment(3, table=15) + segment(3)) == ([5, 8], []), "the table's counter goes on, by chance"
    assert found(tmp_path, segment(3) + segment(3, first=6, table=9)) == ([], []), "only the table's breaks"
    assert found(tmp_path, segment(8) + segment(3, table=1)) == ([], []), "no counter breaks"


def test_packets_of_m2ts_have_a_time_before_each(tmp_path: Path) -> None:
    path = tmp_path / "made.m2ts"
    path.write_bytes(b"".join(bytes([0x47, 1, 2, 3])[::-1] + p for p in segment(3) + segment(3)))
    whole, broken = find_joints(path, PID, lambda: None)
    assert ((whole // 192).tolist(), broken.tolist()) == ([5, 8], [])


@pytest.mark.parametrize("before", [b"", bytes(4)], ids=["ts", "m2ts"])
def test_a_packet_that_is_cut_at_the_end_is_noticed(tmp_path: Path, before: bytes) -> None:
    path, other = tmp_path / "made.ts", packet(PID + 1, 0)
    whole = b"".join(before + p for p in segment(3))
    for content, is_cut in (
        (whole, False),
        (whole[:-1], True),
        (whole[: 2 - PACKET_BYTES], True),
        (whole + before + other[:100], False),
        (whole + bytes(100), False),
    ):
        path.write_bytes(content)
        assert is_cut_inside(path, PID) == is_cut


def test_a_gap_is_a_loss_anywhere_else(tmp_path: Path) -> None:
    whole = segment(5)
    assert found(tmp_path, whole) == ([], [])
    assert found(tmp_path, whole[:4] + whole[5:]) == ([], [3]), "the second packet of a picture"
    assert found(tmp_path, whole[:3] + whole[4:]) == ([], [1]), "the first: it runs into the one before"
    assert found(tmp_path, whole[:5] + whole[7:]) == ([], [3]), "a whole picture: who knows what else"
    assert found(tmp_path, [*whole[:3], packet(PID, 9, begins=True, may_jump=True), *segment(1, 10)[1:]]) == ([], [])
    faulty = [*whole[:4], packet(PID, 3, is_faulty=True), *whole[5:]]
    assert found(tmp_path, faulty) == ([], [3])


def test_a_joint_excuses_no_loss_beside_it(tmp_path: Path) -> None:
    first, second = segment(3), segment(3)
    assert found(tmp_path, first[:-1] + second) == ([5, 7], []), "an end that is gone leaves no trace"
    assert found(tmp_path, first + second[:2] + second[3:]) == ([5], [8])
    assert found(tmp_path, [*first, packet(0, 1, begins=True), *segment(3, first=11)[1:]]) == ([], [5])


def test_what_libav_distrusts(tmp_path: Path) -> None:
    path = tmp_path / "made.ts"
    path.write_bytes(b"".join(segment(3) + segment(3)))
    joints = find_joints(path, PID, lambda: None)
    position_D: NDArray[np.int64] = np.array([1, 3, 5, 8, 10, 12]) * PACKET_BYTES
    distrusted = np.array([True, True, False, False, False, False])
    assert joints.damaged(distrusted, position_D).tolist() == [True, False, False, False, False, False]
    assert joints.damaged(distrusted[:0], position_D[:0]).tolist() == []


def test_other_files_say_nothing(tmp_path: Path) -> None:
    assert found(tmp_path, []) == ([], [])
    assert found(tmp_path, [b"\0" * PACKET_BYTES]) == ([], [])
    assert found(tmp_path, [*segment(3), b"x" * 500]) == ([], [])


def unit(time: int | None, *, padding: int = 0) -> bytes:
    """A packet in which a unit begins that is shown then."""
    pes = b"\0\0\1\xe0\0\0\x80" + (b"\0\0" if time is None else b"\x80\5")
    if time is not None:
        bits = time % (1 << CLOCK_BITS)
        parts = (bits >> 30 << 1 | 0x21, bits >> 22 & 255, bits >> 14 & 254 | 1, bits >> 7 & 255, bits << 1 & 254 | 1)
        pes += bytes(parts)
    head = packet(PID, 0, begins=True)[:4]
    if padding:
        head = head[:3] + b"\x30" + bytes([padding, 0]) + bytes(padding - 1)
    return (head + pes).ljust(PACKET_BYTES, b"\xff")


def test_the_times_of_units(tmp_path: Path) -> None:
    path = tmp_path / "made.ts"
    times = [2**33 - 5000, 2**33 + 4000, 2**33 - 500, 2**33 + 8000]  # past where the clock begins anew
    rest = packet(PID, 1)
    path.write_bytes(b"".join(unit(time, padding=9 * (i % 2)) + rest for i, time in enumerate(times)))
    found = unit_times(path, PID, lambda: None)
    assert found is not None and found.tolist() == [0, 9000, 4500, 13000]
    assert unit_times(path, PID + 1, lambda: None).tolist() == []  # type: ignore[union-attr]
    path.write_bytes(unit(0) + unit(None))
    assert unit_times(path, PID, lambda: None) is None
    path.write_bytes(unit(0) + bytes(PACKET_BYTES))
    assert unit_times(path, PID, lambda: None) is None
