"""Peaks by the names that CUDA gives; none is made up."""

import pytest

from eagle_model.train.gpu_peaks import peak_flops


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.4),
        ("NVIDIA GH200 480GB", 989.4),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA B200", 2250),
    ],
)
def test_known_gpus(name, teraflops):
    assert peak_flops(name) == pytest.approx(teraflops * 1e12)


@pytest.mark.parametrize("name", ["NVIDIA GeForce RTX 4090", "NVIDIA A10", "AMD Instinct MI300X", "", "H1000"])
def test_unknown_gpus_have_none(name):
    assert peak_flops(name) is None
