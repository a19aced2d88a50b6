"""A budget in words: seconds, trainable parameters, or a share of the model's parameters."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, final

from realloc.errors import ConfigError, plain

_TIME: Final = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_COUNT: Final = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}
_MOST_SECONDS: Final = 1e9  # about thirty years
_MOST_PARAMETERS: Final = 10**15


@final
@dataclass(frozen=True)
class Budget:
    """At most one of the three is given."""

    seconds: float | None = None
    parameters: int | None = None
    share: float | None = None

    @classmethod
    def read(cls, words: str | None) -> Budget:
        """Read ``60s``, ``2m``, ``1h``; ``300k``, ``1.5M``, ``20000``; ``5%``.

        Raises:
            ConfigError: neither of these, nothing at all, or more than 10^9 seconds or 10^15 parameters.

        >>> Budget.read("90s").seconds, Budget.read("300k").parameters, Budget.read("5%").share
        (90.0, 300000, 0.05)
        """
        if words is None:
            return cls()
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(s|min|m|h|%|k|M|G)?\s*", words)
        if found and float(found[1]) > 0:
            number, unit = float(found[1]), found[2] or ""
            if unit in _TIME and number * _TIME[unit] <= _MOST_SECONDS:
                return cls(seconds=number * _TIME[unit])
            if unit == "%" and number <= 100:
                return cls(share=number / 100)
            if unit in _COUNT and 1 <= number * _COUNT[unit] <= _MOST_PARAMETERS:
                return cls(parameters=int(number * _COUNT[unit]))
        raise ConfigError(
            f"budget '{plain(words)[:40]}' is no budget; write seconds (60s, 2m), trainable parameters (300k, "
            f"1.5M), or a share of the model's parameters (5%); at most {_MOST_SECONDS:.0f}s or "
            f"{_MOST_PARAMETERS // 10**9}G"
        )

    def parameters_of(self, whole: int) -> int | None:
        """Trainable parameters it allows in a model of so many; None where it says nothing of them."""
        if self.parameters is not None:
            return self.parameters
        return None if self.share is None else int(self.share * whole)
