import pytest
import torch

from tests.kernels.conftest import pytest_itemcollected


def test_a_test_on_the_device_is_a_gpu_test_where_there_is_one(
    request: pytest.FixtureRequest, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that `make gpu` runs every kernel on the GPU, not only the tests that need one anywhere."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    pytest_itemcollected(request.node)
    assert request.node.get_closest_marker("gpu")
