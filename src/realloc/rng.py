"""Random numbers without a state: a stream is a function of (seed, purpose, site, step)."""

from __future__ import annotations

import hashlib

import torch


def stream(seed: int, purpose: str, site: str = "", step: int = 0) -> torch.Generator:
    """Make the CPU generator of one decision.

    Nothing has to be saved for a resume to draw the same numbers, and ranks need not talk to agree.

    >>> a, b = stream(0, "start", "fc1"), stream(0, "start", "fc1")
    >>> bool(torch.rand(1, generator=a) == torch.rand(1, generator=b))
    True
    """
    digest = hashlib.sha256(repr((int(seed), purpose, site, int(step))).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") & (2**63 - 1))
