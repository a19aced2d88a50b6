"""Errors and warnings that teach: the thing, the value, the remedy.

ReallocError
├── ConfigError (ValueError)      bad input, found before the first step
├── StateError (RuntimeError)     right call, wrong moment: attached twice, model and optimizer out of step
└── RecordError (RuntimeError)    a run folder or checkpoint that must not be read or written
"""

from __future__ import annotations

import difflib
import unicodedata
import warnings
from collections.abc import Iterable
from typing import final


class ReallocError(Exception):
    """Root of everything realloc raises on purpose."""


@final
class ConfigError(ReallocError, ValueError):
    """Bad input. Raised before the first training step, so nothing is lost by it."""


@final
class StateError(ReallocError, RuntimeError):
    """A right call at a wrong moment."""


@final
class RecordError(ReallocError, RuntimeError):
    """A run folder or a checkpoint that is damaged, locked or foreign."""


@final
class ReallocWarning(UserWarning):
    """A warning with a code (``RA001``...), listed in ``docs/warnings.md``."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"[{code}] {message}")
        self.code = code


def warn(code: str, message: str) -> None:
    """Issue one coded warning."""
    warnings.warn(ReallocWarning(code, message), stacklevel=3)


@final
class Once:
    """The warnings of one attached model: each code at most once.

    >>> once = Once()
    >>> with warnings.catch_warnings(record=True) as told:
    ...     warnings.simplefilter("always")
    ...     for step in (1, 2):
    ...         once.say("RA001", f"no move at step {step}")
    >>> [str(one.message) for one in told]
    ['[RA001] no move at step 1']
    """

    def __init__(self) -> None:
        self._said: set[str] = set()

    def say(self, code: str, message: str) -> None:
        """Warn, unless it was said."""
        if code not in self._said:
            self._said.add(code)
            warn(code, message)


def nearest(name: str, names: Iterable[str], count: int = 3) -> str:
    """Name the closest valid names, as the tail of an error message.

    >>> nearest("fc11", ["fc1", "fc2", "head"], 1)
    "; nearest: 'fc1'"
    """
    close = difflib.get_close_matches(name, list(names), n=count, cutoff=0.3)
    return "; nearest: " + ", ".join(repr(plain(c)) for c in close) if close else ""


def plain(text: str) -> str:
    r"""Strip control characters from a name that came from outside, so that no terminal obeys it.

    >>> plain("fc1\x1b[2J")
    'fc1[2J'
    """
    return "".join(c for c in text if unicodedata.category(c)[0] != "C")
