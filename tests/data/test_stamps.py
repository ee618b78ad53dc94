"""A medium is known by its size and time, or by its content; what is another file is said so."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from eagle_model.data import stamps
from eagle_model.data.rows import parse_sample
from eagle_model.data.sample import DataError, ImageRef, Stamp, VideoRef
from eagle_model.data.stamps import digest_of, is_same, need_same, stamp_of, stamped
from tests.data.conftest import chat_row


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "a.png").write_bytes(b"0123456789")
    return tmp_path / "a.png"


def test_size_and_time_are_enough(file: Path) -> None:
    stamp = stamp_of(file)
    assert (stamp.num_bytes, stamp.digest) == (10, b"")
    assert is_same(file, stamp)
    need_same(ImageRef(file, stamp=stamp))
    need_same(ImageRef(file))
    os.utime(file, ns=(1, 1))
    with pytest.raises(DataError, match=r"a\.png has changed since it was prepared: its time is another one, and its"):
        need_same(ImageRef(file, stamp=stamp))
    file.write_bytes(b"0123")
    with pytest.raises(DataError, match=r"it had 10 bytes then and has 4 now\. Run eagle data prepare with --again"):
        need_same(VideoRef(file, stamp=stamp))
    file.unlink()
    need_same(ImageRef(file, stamp=stamp))  # who opens it says so


def test_a_copy_is_known_by_its_content(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stamp = stamp_of(file, with_digest=True)
    os.utime(file, ns=(1, 1))
    need_same(ImageRef(file, stamp=stamp))
    file.write_bytes(b"9876543210")
    os.utime(file, ns=(2, 2))
    with pytest.raises(DataError, match=r"a\.png has changed since it was prepared: it has other content"):
        need_same(ImageRef(file, stamp=stamp))
    monkeypatch.setattr(stamps, "_READ_BYTES", 3)
    assert digest_of(str(file), 10, 3) == digest_of(str(file), 10, 2)


def test_stamps_go_to_their_media_in_order(tmp_path: Path) -> None:
    row = chat_row("<video> Then <image> and <image>", video=["a.mp4"], image=["b.png", "c.png"])
    sample = parse_sample(row, root=tmp_path, where="x:1")
    marked = stamped(sample, iter([Stamp(1, 1), None, Stamp(3, 3)]))
    assert [medium.stamp for medium in marked.media] == [Stamp(1, 1), None, Stamp(3, 3)]
    assert marked == sample, "a stamp is no part of what is said"
    assert replace(marked.media[0], stamp=None) == sample.media[0]
