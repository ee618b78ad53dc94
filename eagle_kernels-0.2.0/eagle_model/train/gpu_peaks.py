"""How fast a GPU multiplies matrices at most, by its name: what model FLOPs utilization (MFU) is a share of.

    peak_flops("NVIDIA H100 80GB HBM3")          # 989.4e12, of dense bf16; None for a name that is not here

Source   NVIDIA's datasheets: bf16 on tensor cores without sparsity, which they give as half of what they print.
"""

from __future__ import annotations

# The first whose words are all in the name counts, so the narrower names come first.
_BF16_FLOPS = {
    "B200": 2250e12,
    "GH200": 989.4e12,
    "H200 NVL": 835.5e12,
    "H200": 989.4e12,
    "H100 NVL": 835.5e12,
    "H100 PCIe": 756.5e12,
    "H100": 989.4e12,
    "H800 PCIe": 756.5e12,
    "H800": 989.4e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362.05e12,
}


def peak_flops(name: str) -> float | None:
    """Dense bf16 FLOP/s of a GPU by the name that CUDA gives it; None where it is not known here."""
    words = name.replace("-", " ").split()
    return next((flops for key, flops in _BF16_FLOPS.items() if set(key.split()) <= set(words)), None)
