"""CSV and parquet files: their records, and files that somebody made to do harm."""

from __future__ import annotations

from pathlib import Path

import pytest

from eagle_model.data.formats import tables
from eagle_model.data.formats.tables import csv_records, parquet_records
from eagle_model.data.sample import DataError
from tests.data.formats.conftest import picture


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_csv_rows_with_quotes_lines_and_json(tmp_path: Path) -> None:
    text = (
        '\ufeffvideo,question,answer,images,score\na.mp4,"Who, and\nwhen?",Me,"[""x.png""]",\n\nb.mp4,Q,[not JSON],,1\n'
    )
    first, second = csv_records(write(tmp_path / "qa.csv", text))
    assert first == (
        f"{tmp_path}/qa.csv:3",
        {"video": "a.mp4", "question": "Who, and\nwhen?", "answer": "Me", "images": ["x.png"]},
    )
    assert second[1] == {"video": "b.mp4", "question": "Q", "answer": "[not JSON]", "score": "1"}


def test_tsv_by_its_name(tmp_path: Path) -> None:
    ((_, record),) = csv_records(write(tmp_path / "qa.tsv", "image\ttext\na,b.png\tA, b.\n"))
    assert record == {"image": "a,b.png", "text": "A, b."}


def test_json_in_a_cell_has_the_bound_of_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_ROW_BYTES", 5)
    ((_, record),) = csv_records(write(tmp_path / "x.csv", 'images\n"[""a"", ""b""]"\n'))
    assert "JSON at most 5" in str(record)


def test_csv_cells_of_a_clip_are_numbers(tmp_path: Path) -> None:
    ((_, record),) = csv_records(write(tmp_path / "x.csv", "video,start,end_time,answer\na.mp4,1.5,20,7\n"))
    assert record == {"video": "a.mp4", "start": 1.5, "end_time": 20.0, "answer": "7"}


def test_csv_rows_that_do_not_fit_are_errors_in_their_place(tmp_path: Path) -> None:
    found = [record for _, record in csv_records(write(tmp_path / "x.csv", 'a,images\n1,2,3\n1,"[x"\n1,\n'))]
    assert "3 cells, but the header has 2" in str(found[0]) and isinstance(found[0], DataError)
    assert "begins as JSON" in str(found[1])
    assert found[2] == {"a": "1"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "needs a header"),
        (b"a,a\n1,2\n", "needs a header"),
        (b"a,b\n\xff,2\n", "not UTF-8"),
        (b'a,b\n"1,2\n', "no CSV"),
        (b"a,b\n" + b"x" * 200 + b",1\n", "no CSV: field larger"),
    ],
)
def test_files_that_are_no_csv(tmp_path: Path, data: bytes, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_CELL_CHARS", 100)
    (tmp_path / "x.csv").write_bytes(data)
    with pytest.raises(DataError, match=message):
        list(csv_records(tmp_path / "x.csv"))


def test_parquet_with_bytes_in_row_groups(tmp_path: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [
        {"images": [{"bytes": picture(i), "path": None}], "texts": [{"user": f"Q{i}", "assistant": "A"}]}
        for i in range(5)
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet", row_group_size=2)
    found = list(parquet_records(tmp_path / "t.parquet"))
    assert [where.partition(": ")[2] for where, _ in found] == [f"row {i}" for i in range(1, 6)]
    assert [record for _, record in found] == rows


def test_parquet_has_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"a": list(range(1000))}), path)
    monkeypatch.setattr(tables, "MAX_ROW_GROUP_BYTES", 100)
    with pytest.raises(DataError, match="smaller row groups"):
        list(parquet_records(path))
    data = path.read_bytes()
    for name, damaged in {
        "cut": data[:-5],
        "empty": b"",
        "footer": data[:-8] + b"\xff\xff\xff\x7fPAR1",
        "inside": data[: len(data) - 30] + b"\xff" * 22 + data[-8:],
    }.items():
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(DataError, match=r"parquet|footer"):
            list(parquet_records(tmp_path / name))
