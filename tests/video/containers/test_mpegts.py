"""Joints of MPEG-TS files are told from losses by the counters alone."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from eagle_kernels.video.containers.mpegts import PACKET_BYTES, find_joints

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
