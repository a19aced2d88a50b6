"""Which values a setting takes, by its name: checked before anything is loaded. A new setting costs one line here."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, final, get_args

from realloc.errors import ConfigError, nearest, plain
from realloc.methods.badam import Order
from realloc.methods.shira import PLACE
from realloc.train.config import Setting


@final
@dataclass(frozen=True)
class Range:
    """Numbers from ``least`` to ``most``; without the ends that are open.

    >>> 0 in Range(0, 1, "("), 1 in Range(0, 1, "("), 2 in Range(0, 1)
    (False, True, False)
    """

    least: float = 0
    most: float = math.inf
    open: str = ""  # "(", ")" or "()": ends that do not belong to it

    def __contains__(self, value: float) -> bool:
        below = value > self.least if "(" in self.open else value >= self.least
        return below and (value < self.most if ")" in self.open else value <= self.most) and value < math.inf

    def __str__(self) -> str:
        low = f"above {self.least:g}" if "(" in self.open else f"from {self.least:g}"
        high = f"below {self.most:g}" if ")" in self.open else f"at most {self.most:g}"
        return f"a number {low}" + ("" if math.isinf(self.most) else f", {high}")


SHARE: Final = Range(0, 1, "(")
NUMBERS: Final[Mapping[str, Range]] = {
    "cap": Range(0),  # 0: none
    "drop": Range(0, 1, ")"),  # share of the delta
    "k": Range(0),
    "layers": Range(1),
    "parameters": Range(0),  # 0: by share
    "percentile": Range(0, 100, ")"),
    "rank": Range(1),
    "share": SHARE,  # of a step, of the weights, of LoRA's seconds
    "tests": Range(1),
    "tolerance": Range(0, 1, "()"),
    "trial": Range(0, 0.25),  # the second of two begins a quarter of the run after the first
}
WORDS: Final[Mapping[str, tuple[str, ...]]] = {
    "by": tuple(PLACE), "currency": ("FLOPs", "microseconds"), "order": get_args(Order),
}  # fmt: skip


def check_range(method: str, key: str, value: Setting) -> None:
    """Refuse a value of the right kind that a setting cannot have.

    Raises:
        ConfigError: it is out of range, or no word that the setting knows.

    >>> check_range("focus", "share", -1.0)
    Traceback (most recent call last):
    ...
    realloc.errors.ConfigError: setting 'share' of 'focus' is -1.0; take a number above 0, at most 1
    """
    if isinstance(value, str):
        known = WORDS[key]
        if value not in known:
            raise ConfigError(
                f"setting '{key}' of '{method}' is '{plain(value)[:40]}'; take {', '.join(known)}"
                f"{nearest(value, known, 1)}"
            )
    elif not isinstance(value, bool) and value not in NUMBERS[key]:
        raise ConfigError(f"setting '{key}' of '{method}' is {plain(str(value))[:40]}; take {NUMBERS[key]}")
