"""Fixtures in official layouts: a few records each, written here, with the fields that the originals have."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from eagle_model.data.formats.check import check
from eagle_model.data.formats.opening import open_data
from eagle_model.data.rows import training_sample
from eagle_model.data.sample import DataError, Sample

Read = Callable[..., list[Sample]]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """read("nextqa", {"train.csv": "..."}, ["videos/1.mp4"]): the samples of a layout's files and empty media."""

    def samples(layout: str, files: dict[str, object], media: list[str] = []) -> list[Sample]:  # noqa: B006
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        for name in media:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        (data_set,) = open_data(tmp_path, layout=layout)
        found = []
        for where, row in data_set.rows():
            assert isinstance(row, dict | DataError)
            sample = training_sample(row, root=tmp_path, where=where)
            assert all(medium.path.is_file() for medium in sample.media), sample.media
            found.append(sample)
        return found

    return samples


def problems(path: Path, layout: str) -> dict[str, int]:
    return dict(check(path, layout=layout).problems)
