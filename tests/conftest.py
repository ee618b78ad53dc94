"""Where tests run: kernels on the GPU where there is one, else Triton's interpreter on CPU tensors."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before any kernel is decorated: Triton reads it then
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU; this machine has none (run `make gpu` on one)"))


@pytest.fixture(scope="session")
def device() -> str:
    """Where kernels run: "cuda", or "cpu" under Triton's interpreter. Call the op itself, not its public function,
    which sends CPU tensors to the reference."""
    return "cuda" if torch.cuda.is_available() else "cpu"
