"""Where there is a GPU, each test that runs on the `device` fixture is a GPU test: `pytest -m gpu` selects it."""

import pytest
import torch


def pytest_itemcollected(item: pytest.Item) -> None:
    if torch.cuda.is_available() and "device" in getattr(item, "fixturenames", ()):
        item.add_marker(pytest.mark.gpu)
