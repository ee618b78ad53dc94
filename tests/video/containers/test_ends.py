"""What stands at the end of an FLV or IVF and is not read is told from the sizes of its pieces alone."""

from pathlib import Path

import numpy as np
import pytest

from eagle_kernels.video.containers.ends import lost

FLV = b"FLV\1\1\0\0\0\x09" + bytes(4)
IVF = b"DKIF\0\0\x20\0VP80".ljust(32, b"\0")


def tag(kind: int, num_bytes: int) -> bytes:
    return bytes([kind, 0, 0, num_bytes]) + bytes(7 + num_bytes) + (11 + num_bytes).to_bytes(4, "big")


def frame(num_bytes: int) -> bytes:
    return num_bytes.to_bytes(4, "little") + bytes(8 + num_bytes)


def of(tmp_path: Path, content: bytes, last: int = 0) -> str | None:
    path = tmp_path / "made"
    path.write_bytes(content)
    return lost(path, np.array([0, last]), lambda: None)


def test_an_flv_behind_another(tmp_path: Path) -> None:
    first = FLV + tag(18, 30) + tag(9, 20)
    assert of(tmp_path, first) is None
    assert (
        of(tmp_path, first + first) == f"another film begins at byte {len(first)}, which is not read: keep one a file"
    )
    assert of(tmp_path, first + first, last=len(first) + 60) is None, "it is read, by its own position"
    assert of(tmp_path, first + bytes(40)) is None, "what was appended is no film"


@pytest.mark.parametrize(("kind", "is_lost"), [(9, True), (8, False)], ids=["picture", "sound"])
def test_an_flv_that_is_cut_inside_a_header(tmp_path: Path, kind: int, is_lost: bool) -> None:
    whole = FLV + tag(9, 20)
    for num_bytes in (1, 10):
        problem = of(tmp_path, whole + tag(kind, 20)[:num_bytes])
        assert problem == ("the file ends inside the header of a frame" if is_lost else None)
    for num_bytes in (1, 4):
        assert of(tmp_path, whole[:-num_bytes]) is None, "the size behind a piece holds nothing"


def test_an_ivf_that_is_cut_inside_a_header(tmp_path: Path) -> None:
    whole = IVF + frame(20) + frame(300)
    assert of(tmp_path, whole) is None
    for num_bytes in (1, 11):
        assert of(tmp_path, whole + frame(20)[:num_bytes]) == "the file ends inside the header of a frame"
    assert of(tmp_path, whole + frame(20)[:12]) == "the file ends behind the header of a frame"
    assert "another film" in str(of(tmp_path, whole + whole))


def test_other_files_say_nothing(tmp_path: Path) -> None:
    assert of(tmp_path, b"FLV") is None
    assert of(tmp_path, b"RIFF".ljust(100, b"\0")) is None


def test_each_piece_is_checked_for_the_time_limit(tmp_path: Path) -> None:
    path, looks = tmp_path / "made", []
    path.write_bytes(FLV + tag(9, 20) * 5)
    lost(path, np.array([0]), lambda: looks.append(1))
    assert len(looks) == 5
