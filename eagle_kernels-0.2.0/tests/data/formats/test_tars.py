"""WebDataset tars: samples, names that lead out, pickles, damaged and endless headers."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eagle_model.data.formats import tars
from eagle_model.data.formats.media import Embedded
from eagle_model.data.formats.records import row_of
from eagle_model.data.formats.tars import tar_records
from eagle_model.data.sample import DataError
from tests.data.formats.conftest import picture


def write_tar(path: Path, members: list[tuple[str, bytes]], *, kind: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=kind) as tar:
        for name, data in members:
            about = tarfile.TarInfo(name)
            about.size = len(data)
            tar.addfile(about, io.BytesIO(data))
    return path


def as_json(record: dict) -> bytes:
    return json.dumps(record).encode()


def records(path: Path) -> dict[str, object]:
    return {where.partition(": ")[2]: record for where, record in tar_records(path)}


def test_samples_by_their_keys(tmp_path: Path) -> None:
    turns = {"conversations": [{"from": "human", "value": "<image>"}]}
    members = [
        ("./a/0001.jpg", picture()),
        ("./a/0001.json", as_json(turns)),
        ("a/0002.txt", b"A dog.\n"),
        ("a/0002.png", picture(7)),
        ("a/._0002.png", b"mac"),
        ("0003.left.png", picture(1)),
        ("0003.right.png", picture(2)),
        ("0003.mp4", b"\0\0\0\x18ftypmp42"),
        ("0003.json", as_json({"question": "Q", "answer": "A"})),
    ]
    found = records(write_tar(tmp_path / "x.tar", members))
    assert found["a/0001"] == {"id": "a/0001", "images": [Embedded(picture())], **turns}
    assert found["a/0002"] == {"id": "a/0002", "caption": "A dog.", "images": [Embedded(picture(7))]}
    assert found["0003"] == {
        "id": "0003",
        "images": [Embedded(picture(1)), Embedded(picture(2))],
        "videos": [Embedded(b"\0\0\0\x18ftypmp42")],
        "question": "Q",
        "answer": "A",
    }


def test_tars_of_img2dataset_are_captions(tmp_path: Path) -> None:
    """Its tars have image, caption and what was found at the URL: web data such as CC3M comes so."""
    about = {
        "caption": "A dog.",
        "url": "https://host/a.jpg",
        "key": "000",
        "status": "success",
        "width": 32,
        "exif": "{}",
    }
    members = [("000.jpg", picture(kind="JPEG")), ("000.txt", b"A dog."), ("000.json", as_json(about))]
    row = row_of(records(write_tar(tmp_path / "x.tar", members))["000"])
    assert row["messages"][0]["content"][0] == {"type": "image", "image": Embedded(picture(kind="JPEG"))}
    assert row["messages"][1]["content"] == "A dog."


def test_media_that_the_record_names_are_its_members(tmp_path: Path) -> None:
    record = {"image": ["img/0001.b.png", ".a.png"], "question": "Q", "answer": "A"}
    members = [("0001.a.png", picture(1)), ("0001.b.png", picture(2)), ("0001.json", as_json(record))]
    assert records(write_tar(tmp_path / "x.tar", members))["0001"]["image"] == [
        Embedded(picture(2)),
        Embedded(picture(1)),
    ]  # type: ignore[index]
    outside = [("0001.json", as_json({"image": "/etc/passwd", "question": "Q", "answer": "A"}))]
    assert "no member" in str(records(write_tar(tmp_path / "y.tar", outside))["0001"])


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_dialect_of_tar_and_long_names(tmp_path: Path, kind: int) -> None:
    stem = "f" * 60 + "/" + "g" * 80 if kind == tarfile.USTAR_FORMAT else "ü" * 90 + "/" + "g" * 150
    path = write_tar(tmp_path / "x.tar", [(f"{stem}.txt", b"said"), ("b.txt", b"more")], kind=kind)
    assert [r["caption"] for r in records(path).values()] == ["said", "more"]  # type: ignore[index]
    assert next(iter(records(path))) == stem


def test_gzipped(tmp_path: Path) -> None:
    plain = write_tar(tmp_path / "x.tar", [("a.txt", b"said")])
    (tmp_path / "x.tar.gz").write_bytes(gzip.compress(plain.read_bytes()))
    assert records(tmp_path / "x.tar.gz") == records(plain)


def test_a_pickle_is_passed_over_and_named(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    planted = b"cos\nsystem\n(S'touch " + str(marker).encode() + b"'\ntR."
    members = [("a.pyd", planted), ("a.pickle", planted), ("a.pth", planted), ("a.txt", b"A."), ("a.png", picture())]
    (record,) = records(write_tar(tmp_path / "x.tar", members)).values()
    assert record == {
        "id": "a", "caption": "A.", "images": [Embedded(picture())], ".pyd": True, ".pickle": True, ".pth": True,
    }  # fmt: skip
    assert not marker.exists()


@pytest.mark.parametrize("name", ["../../etc/x.txt", "/etc/x.txt", "a/../../x.txt", "a\\..\\x.txt"])
def test_names_that_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="leads out"):
        records(write_tar(tmp_path / "x.tar", [(name, b"x")]))


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_are_refused(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        about = tarfile.TarInfo("a.png")
        about.type, about.linkname = kind, "/etc/passwd"
        tar.addfile(about)
    with pytest.raises(DataError, match="link or device"):
        records(tmp_path / "x.tar")


def test_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_tar(tmp_path / "x.tar", [("a.png", picture()), ("a.txt", b"x" * 300), ("b.txt", b"fine")])
    monkeypatch.setattr(tars, "MAX_SAMPLE_BYTES", 200)
    found = records(path)
    assert isinstance(found["a"], DataError) and found["b"] == {"id": "b", "caption": "fine"}
    monkeypatch.setattr(tars, "MAX_ROW_BYTES", 3)
    assert "a text or record at most 3" in str(records(path)["b"])
    monkeypatch.setattr(tars, "MAX_NAME_BYTES", 50)
    with pytest.raises(DataError, match="at most 50"):
        records(write_tar(tmp_path / "y.tar", [("n" * 200 + ".txt", b"x")]))


DAMAGES = {
    "cut in a member": lambda whole: whole[:2000],
    "cut in a header": lambda whole: whole[:300],
    "a flipped bit": lambda whole: whole[:10] + b"\xff" + whole[11:],
    "no tar": lambda whole: b"hello" * 200,
    "a size of no number": lambda whole: whole[:124] + b"99999999999\0" + whole[136:],
    "half a gzip": lambda whole: gzip.compress(whole)[:60],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_files(tmp_path: Path, damage: str) -> None:
    whole = write_tar(tmp_path / "x.tar", [("a.txt", b"x" * 3000)]).read_bytes()
    (tmp_path / "damaged.tar").write_bytes(DAMAGES[damage](whole))
    with pytest.raises(DataError):
        records(tmp_path / "damaged.tar")


def test_records_that_are_no_json_or_say_a_thing_twice(tmp_path: Path) -> None:
    members = [
        ("e.x.txt", b"one"),
        ("e.y.txt", b"two"),
        ("a.json", b"{"),
        ("b.json", b"[1]"),
        ("c.json", b'{"id": 1}'),
        ("c.x.json", b'{"id": 2}'),
        ("d.txt", b"\xff"),
    ]
    assert all(isinstance(record, DataError) for record in records(write_tar(tmp_path / "x.tar", members)).values())


WHOLE: dict[str, bytes] = {}


@settings(max_examples=60, deadline=None)
@given(at=st.integers(0, 4000), data=st.binary(min_size=1, max_size=8), cut=st.integers(0, 6000))
def test_any_damage_is_read_or_said(tmp_path_factory: pytest.TempPathFactory, at: int, data: bytes, cut: int) -> None:
    """Bytes overwritten and the end cut off anywhere: records, or a DataError, and nothing else."""
    path = tmp_path_factory.getbasetemp() / "damaged-at-random.tar"
    if not WHOLE:
        members = [("n" * 150 + ".txt", b"said"), ("a.png", picture()), ("a.json", b'{"question": "Q", "answer": "A"}')]
        WHOLE["tar"] = write_tar(path, members).read_bytes()
    whole = WHOLE["tar"]
    path.write_bytes((whole[:at] + data + whole[at + len(data) :])[: len(whole) - cut])
    said = str(path)
    try:
        records(path)
    except DataError as error:
        said = str(error)
    assert str(path) in said
