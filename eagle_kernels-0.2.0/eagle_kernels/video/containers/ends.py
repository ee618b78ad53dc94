"""What libav passes over in silence at the end of FLV and IVF: a header that is cut, a second file behind the first.

    lost(path, position_D, check=budget.check)   # "the file ends inside the header of a frame"; None: nothing is lost

Both are a header and then pieces, each with its own small header that says how long it is: one look at each finds where
the last one ends.

Source  Adobe Flash Video File Format Specification 10.1, annex E; the IVF header as libvpx writes it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

CONTAINERS = ("flv", "ivf")  # libav's names
FLV_MAGIC, FLV_HEAD_BYTES, FLV_VIDEO = b"FLV", 11, 9
FLV_KINDS = (8, FLV_VIDEO, 18)  # sound, pictures, tags
FLV_SIZE_BYTES = 4  # the piece's size, once more behind it
IVF_MAGIC, IVF_HEAD_BYTES = b"DKIF", 12


def lost(path: Path, position_D: NDArray[np.int64], check: Callable[[], None]) -> str | None:
    """What pictures are in the file, or were, that libav does not give. position_D: where those begin that it gives.
    check: called for each piece; what it raises passes."""
    with open(path, "rb") as file:
        fd, num_bytes = file.fileno(), os.fstat(file.fileno()).st_size
        head = os.pread(fd, 16, 0)
        is_flv = head.startswith(FLV_MAGIC)
        magic, head_bytes = (FLV_MAGIC, FLV_HEAD_BYTES) if is_flv else (IVF_MAGIC, IVF_HEAD_BYTES)
        if len(head) < 16 or not head.startswith(magic):
            return None
        at = int.from_bytes(head[5:9], "big") + FLV_SIZE_BYTES if is_flv else int.from_bytes(head[6:8], "little")
        while at < num_bytes:
            check()
            head = os.pread(fd, head_bytes, at)
            if head.startswith(magic):
                is_read = len(position_D) > 0 and int(position_D.max()) > at
                return None if is_read else f"another film begins at byte {at}, which is not read: keep one a file"
            if is_flv and head[0] & 0x1F not in FLV_KINDS:
                return None  # other players look for where the next piece may begin
            if len(head) < head_bytes:
                is_picture = not is_flv or head[0] & 0x1F == FLV_VIDEO
                return "the file ends inside the header of a frame" if is_picture else None
            size = int.from_bytes(head[1:4], "big") + FLV_SIZE_BYTES if is_flv else int.from_bytes(head[:4], "little")
            if not is_flv and at + head_bytes == num_bytes and size > 0:
                return "the file ends behind the header of a frame"  # of what has one byte, libav gives a packet
            at += head_bytes + size
    return None
