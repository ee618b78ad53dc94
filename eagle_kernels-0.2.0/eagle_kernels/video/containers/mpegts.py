"""MPEG-TS where libav errs: pictures that it distrusts after a joint, and times that it gives to the wrong pictures.

    joints = find_joints(path, pid=256, check=budget.check)
    is_damaged_D = joints.damaged(is_corrupt_D, position_D)
    times_U = unit_times(path, pid=256, check=budget.check)    # of each PES packet

Units that begin a picture (SEI messages, delimiters, parameter sets) may stand behind the slices of the one before, in
its PES packet. libav's parser then finds the next picture to begin there, where the time is used up, and gives each
picture from there on the time of the one before. The PES packets' own times, in their order, are right.

Every packet of a PID is numbered from 0 to 15. A gap means loss, and libav then distrusts a picture: the one before,
for its parser hands on a picture when the next one's bytes come, and marks it by those. Segments of an HLS stream, or
recordings, that are written one after another make such gaps too, and lose nothing: there the tables stand anew (a
PAT), their own counter breaks with the picture's, and a picture begins.

Packets of M2TS (cameras, Blu-ray) have four bytes of time before each.

Memory  48 bytes for each packet of the PID, of 188: a quarter of the file.
Source  ISO/IEC 13818-1, 2.4.3.3 (continuity_counter), 2.4.3.6 (PTS).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

PACKET_BYTES = 188
WINDOW_PACKETS = 1 << 15  # 6 MB
M2TS_BYTES = 4  # before each packet
SYNC, PAT_PID = 0x47, 0
CLOCK_BITS = 33  # of a time; 26 hours


class Joints(NamedTuple):
    """Pictures, by the bytes where they (their PES packets) begin, ascending."""

    whole: NDArray[np.int64]  # on either side of a joint
    broken: NDArray[np.int64]  # something of these is lost

    def damaged(self, is_corrupt_D: NDArray[np.bool_], position_D: NDArray[np.int64]) -> NDArray[np.bool_]:
        """(D,) which pictures are damaged, of those that libav distrusts and of those that lost something."""
        is_whole_D = np.isin(position_D, self.whole)
        is_explained_D = is_whole_D | np.append(is_whole_D[1:], np.zeros(min(1, len(position_D)), np.bool_))
        return (is_corrupt_D & ~is_explained_D) | np.isin(position_D, self.broken)


NOTHING = Joints(np.zeros(0, np.int64), np.zeros(0, np.int64))


def is_cut_inside(path: Path, pid: int) -> bool:
    """Whether the file ends inside a packet of the PID, or so early in one that it may be. libav leaves it out, and
    where it was the whole of a picture nothing else tells."""
    with open(path, "rb") as file:
        before = _bytes_before(file)
        stride, num_bytes = before + PACKET_BYTES, file.seek(0, 2)
        num_left = num_bytes % stride
        if num_left == 0 or num_bytes < stride:
            return False
        file.seek(num_bytes - num_left - stride)
        end = file.read(stride + num_left)
    last, rest = end[:stride][before:], end[stride:][before:]
    if last[0] != SYNC or rest[:1] not in (b"", bytes([SYNC])):
        return False  # packets of another size, or what was appended
    return len(rest) < 3 or (rest[1] & 0x1F) << 8 | rest[2] == pid


def find_joints(path: Path, pid: int, check: Callable[[], None]) -> Joints:
    """Empty where the file is no plain series of packets. check: called for each window; what it raises passes."""
    parts: list[NDArray[np.int64]] = []
    with open(path, "rb") as file:
        stride, first = _bytes_before(file) + PACKET_BYTES, 0
        for packets in _windows(file, check):
            if bool((packets[:, 0] != SYNC).any()):
                return NOTHING
            parts.append(_facts(packets, pid, first))
            first += len(packets)
    return _joints(np.concatenate(parts), stride) if parts else NOTHING


def unit_times(path: Path, pid: int, check: Callable[[], None]) -> NDArray[np.int64] | None:
    """(U,) when what each PES packet of the PID holds is shown: ticks after the first one. None where one does not say,
    or the file is no plain series of packets. check: called for each window; what it raises passes."""
    times: list[int] = []
    with open(path, "rb") as file:
        for packets in _windows(file, check):
            if bool((packets[:, 0] != SYNC).any()):
                return None
            pid_L = (packets[:, 1].astype(np.int64) & 0x1F) << 8 | packets[:, 2]
            for packet in packets[(pid_L == pid) & (packets[:, 1] & 0x40 != 0)]:
                time = _time(packet.tobytes())
                if time is None:
                    return None
                times.append(time)
    half = 1 << CLOCK_BITS - 1
    times_U = np.array(times, np.int64)
    steps_U = np.mod(np.diff(times_U, prepend=times_U[:1]) + half, 2 * half) - half  # past where the clock begins anew
    return np.cumsum(steps_U)


def _time(packet: bytes) -> int | None:
    """The PTS of the PES packet that begins in it."""
    at = 4 + (1 + packet[4] if packet[3] & 0x20 else 0)  # past the adaptation field
    head = packet[at : at + 14]
    if len(head) < 14 or head[:3] != b"\0\0\1" or head[7] & 0x80 == 0:
        return None
    return (head[9] >> 1 & 7) << 30 | head[10] << 22 | (head[11] >> 1) << 15 | head[12] << 7 | head[13] >> 1


def _windows(file: BinaryIO, check: Callable[[], None]) -> Iterator[NDArray[np.uint8]]:
    """(L, PACKET_BYTES) at a time, of all whole packets."""
    before = _bytes_before(file)
    stride = before + PACKET_BYTES
    file.seek(0)
    while window := file.read(WINDOW_PACKETS * stride):
        check()
        packets = np.frombuffer(window, np.uint8, len(window) // stride * stride)
        yield packets.reshape(-1, stride)[:, before:]


def _bytes_before(file: BinaryIO) -> int:
    """Each packet."""
    file.seek(0)
    return 0 if file.read(PACKET_BYTES + 1)[::PACKET_BYTES].strip(bytes([SYNC])) == b"" else M2TS_BYTES


FIELDS = 6  # of each packet: its number, is it a PAT, counter, begins a unit, is it faulty, may its counter jump


def _facts(packets: NDArray[np.uint8], pid: int, first: int) -> NDArray[np.int64]:
    """(L, FIELDS) of the packets of the PID and of the PAT that hold anything."""
    pid_L = (packets[:, 1].astype(np.int64) & 0x1F) << 8 | packets[:, 2]
    has_content = packets[:, 3] & 0x10 != 0
    kept = np.flatnonzero(((pid_L == pid) | (pid_L == PAT_PID)) & has_content)
    packets = packets[kept]
    may_jump = (packets[:, 3] & 0x20 != 0) & (packets[:, 4] > 0) & (packets[:, 5] & 0x80 != 0)
    columns = (
        kept + first,
        pid_L[kept] == PAT_PID,
        packets[:, 3] & 0x0F,
        packets[:, 1] & 0x40 != 0,
        packets[:, 1] & 0x80 != 0,
        may_jump,
    )
    return np.stack([column.astype(np.int64) for column in columns], axis=1)


def _joints(facts: NDArray[np.int64], stride: int) -> Joints:
    is_pat = facts[:, 1] == 1
    pictures, tables = facts[~is_pat], facts[is_pat]
    if len(pictures) < 2 or len(tables) == 0:
        return NOTHING
    number, _, counter, begins, is_faulty, may_jump = pictures.T
    step = (np.diff(counter, prepend=counter[0] - 1)) % 16
    breaks = (step != 1) & (step != 0) & (may_jump == 0)
    table_breaks = (np.diff(tables[:, 2], prepend=tables[0, 2] - 1) % 16) != 1
    last_table = np.searchsorted(tables[:, 0], number) - 1  # the last one before each packet
    is_new = (last_table >= 0) & (tables[np.maximum(last_table, 0), 0] > np.concatenate([[-1], number[:-1]]))
    both_anew = (counter == 0) & (tables[np.maximum(last_table, 0), 2] == 0)
    joints = breaks & (begins == 1) & is_new & (table_breaks[np.maximum(last_table, 0)] | both_anew)
    unit = np.cumsum(begins) - 1  # -1: before the first
    lost = breaks & ~joints  # before this packet: of the unit that it goes on, or of the one before
    broken = np.unique(np.concatenate([unit[lost] - begins[lost], unit[is_faulty == 1]]))
    at_joints = np.unique(np.concatenate([unit[joints], unit[joints] - 1]))
    whole = np.setdiff1d(at_joints[at_joints >= 0], broken)
    position = number[begins == 1] * stride
    return Joints(position[whole], position[broken[broken >= 0]])
