"""The golden set, built once a session (about two seconds)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.video.make import GoldenSet


@pytest.fixture(scope="session")
def golden(tmp_path_factory: pytest.TempPathFactory) -> GoldenSet:
    from tests.video.make import av, make  # here: without PyAV the tests are skipped, and a conftest cannot be

    av.logging.set_level(None)  # libav prints about every damaged file
    return make(tmp_path_factory.mktemp("golden"))
