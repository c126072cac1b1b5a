"""How near an update comes to what the device could do (Williams et al. 2009, the roofline model).

    floor_s = FLOPs of forward and backward / peak FLOP/s + bytes of the optimizer / peak byte/s

The two add up, since the optimizer begins when the last gradient is there. FLOPs are those of a plain eager update, so
recomputed activations, copies and the VAE count for nothing. Called by bench.py.
"""

import contextlib
from collections.abc import Callable
from typing import NamedTuple

import torch


class Peak(NamedTuple):
    """What the makers' data sheets promise of a card."""

    tflops: float  # dense, half precision with float32 sums
    tbytes_per_s: float  # of its own memory


# The first name that is part of the card's own counts
PEAKS = {
    "H200": Peak(989, 4.8),
    "H100 PCIe": Peak(756, 2.0),
    "H100 NVL": Peak(835, 3.9),
    "H100": Peak(989, 3.35),
    "A100-SXM4-80GB": Peak(312, 2.04),
    "A100 80GB PCIe": Peak(312, 1.94),
    "A100": Peak(312, 1.56),
    "Tesla T4": Peak(65, 0.32),
    "RTX 4090": Peak(165, 1.01),
    "RTX 3090": Peak(71, 0.94),
}
# AdamW reads a weight, its gradient and two moments, and writes all but the gradient, each of them float32
ADAMW_BYTES = 7 * 4


def peak_named(name: str) -> Peak | None:
    """The peak of a card by the name that its driver gives; None where it isn't in the table."""
    return next((peak for part, peak in PEAKS.items() if part in name), None)


def peak_of(device: torch.device) -> Peak | None:
    """The peak of the card behind `device`; None for a CPU."""
    return peak_named(torch.cuda.get_device_name(device)) if device.type == "cuda" else None


def count_flops(work: Callable[[], object], device: torch.device) -> int:
    """Floating point operations of the matrix products and convolutions in `work`, two for each multiplication."""
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    # The counter knows attention as the GPU computes it; the CPU's own is split into products that it knows
    plainly = sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else contextlib.nullcontext()
    with plainly, FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def floor_ms(flops: float, trained: int, peak: Peak) -> float:
    """Milliseconds that no update of `trained` weights and `flops` operations can go below."""
    return 1e3 * (flops / (peak.tflops * 1e12) + trained * ADAMW_BYTES / (peak.tbytes_per_s * 1e12))
