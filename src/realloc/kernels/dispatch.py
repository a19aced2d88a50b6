"""How a packed site computes: by kernel, or by scatter into a temporary dense weight.

A fixed rule, so that equal seeds agree on every machine.
"""

from __future__ import annotations

from typing import Final

import torch

KERNEL: Final = 0
SCATTER: Final = 1
BREAK_EVEN: Final = 0.25


def not_supported(device: torch.device | str, dtype: torch.dtype) -> list[str]:
    """Why the kernels cannot compute this; empty if they can."""
    reasons = []
    kind = torch.device(device).type
    if kind != "cpu":
        reasons.append(f"device {kind}: the kernels run on the CPU only")
    if dtype not in (torch.float32, torch.float64):
        reasons.append(f"dtype {dtype}: the kernels know float32 and float64 only")
    return reasons


def choose_compute(
    device: torch.device | str, dtype: torch.dtype, density: float, block: tuple[int, int] = (1, 1)
) -> int:
    """0 (kernel) or 1 (scatter)."""
    if not_supported(device, dtype):
        return SCATTER
    return KERNEL if density <= BREAK_EVEN else SCATTER
