"""Files that a kill may cut short at any byte."""

from pathlib import Path

import pytest

from eagle_model.evaluate.lines import cut_off, read_lines

WHOLE = b'{"id": "a"}\n{"id": "b"}\n'


def test_a_line_cut_at_any_byte_is_passed_over_and_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    for end in range(len(WHOLE) + 1):
        path.write_bytes(WHOLE[:end])
        whole = WHOLE[:end].count(b"\n")
        assert [row["id"] for row in read_lines(path)] == ["a", "b"][:whole]
        cut_off(path)
        assert path.read_bytes() == b"".join(WHOLE.splitlines(keepends=True)[:whole])


def test_another_content_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"id": "a"}\n{"x": 1}\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: no row of a run"):
        list(read_lines(path))
