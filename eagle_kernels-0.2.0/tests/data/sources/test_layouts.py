"""A layout's files and records: which are read, and what happens to those that are of another."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from eagle_model.data.formats.opening import open_data
from eagle_model.data.rows import training_sample
from eagle_model.data.sample import DataError
from eagle_model.data.sources.layouts import LAYOUTS

GOOD = {"id": "1", "label": "pushing a cup"}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_records_of_another_layout_are_errors_with_their_place(tmp_path: Path, layout: str) -> None:
    """Each record for itself, whatever it holds: the others of its file are read on."""
    name = LAYOUTS[layout].pattern.replace("*", "x")
    records: list[object] = [
        {},
        {"database": 3},
        7,
        None,
        {"question": [], "video": {}, "choices": 1, "id": 2, "label": []},
    ]
    if name.endswith(".parquet"):
        pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
        pq.write_table(pa.table({"question": ["Q", None], "mp4": [b"x", None]}), tmp_path / name)
    elif name.endswith(".csv"):
        (tmp_path / name).write_text("video,label\n1,x\n2,y\n")
    elif name.endswith(".txt"):
        (tmp_path / name).write_text("what\nAB 1 two##x.\n")
    elif layout in ("vitt", "qvhighlights"):
        (tmp_path / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    else:
        members = {str(i): record for i, record in enumerate(records)}
        wrapped = {"segments": {"database": members}, "dude": {"data": records}, "mp_docvqa": {"data": records}}
        named = layout in ("activitynet_captions", "vidchapters", "perception_test")
        content = wrapped.get(layout, {"data": members} if layout == "vript" else members if named else records)
        (tmp_path / name).write_text(json.dumps(content))
    found = list(LAYOUTS[layout](tmp_path))
    assert len(found) > 1
    for where, row in found:
        with pytest.raises(DataError, match=re.escape(where)):  # in the row's place, or when it is read
            _read(row, tmp_path, where)


def _read(row: object, root: Path, where: str) -> None:
    if isinstance(row, DataError):
        raise row
    training_sample(row, root=root, where=where)


def test_a_file_or_a_folder_of_several(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for path in (tmp_path / "b.json", tmp_path / "in/a.json"):
        path.write_text(json.dumps([GOOD]))
    (tmp_path / "b.csv").touch()
    assert len(list(LAYOUTS["something_something_v2"](tmp_path))) == 2
    assert len(list(LAYOUTS["something_something_v2"](tmp_path / "b.json"))) == 1
    with pytest.raises(DataError, match=r"holds no \*_caption\.json"):
        list(LAYOUTS["vript"](tmp_path))


def test_a_name_that_leads_out_is_refused(tmp_path: Path) -> None:
    from eagle_model.data.formats.check import check

    (tmp_path / "root").mkdir()
    (tmp_path / "secret.mp4").touch()
    (tmp_path / "root/x.json").write_text(json.dumps([{**GOOD, "id": "../../secret"}]))
    assert check(tmp_path / "root", layout="something_something_v2").problems == {"outside_root": 1}
    assert open_data(tmp_path / "root/x.json", layout="something_something_v2")[0].root == tmp_path / "root"
