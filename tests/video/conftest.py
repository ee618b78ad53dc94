"""The golden set, built once a session (about two seconds)."""

import av
import pytest

from tests.video.make import GoldenSet, make


@pytest.fixture(scope="session")
def golden(tmp_path_factory: pytest.TempPathFactory) -> GoldenSet:
    av.logging.set_level(None)  # libav prints about every damaged file
    return make(tmp_path_factory.mktemp("golden"))
