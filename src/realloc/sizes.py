"""Bytes as people write them."""

from __future__ import annotations

import re
from typing import Final

_UNITS: Final = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def bytes_in(text: str) -> int | None:
    """Read a number of bytes with its unit; None where the text is none.

    >>> bytes_in("200kB"), bytes_in("1.5 MiB"), bytes_in("64 b"), bytes_in("10%"), bytes_in("64")
    (200000, 1572864, 64, None, None)
    """
    found = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,15})?)\s*([kmg]i?b|b)\s*", text.lower(), re.ASCII)
    return int(float(found[1]) * _UNITS[found[2]]) if found else None
