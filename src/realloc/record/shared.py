"""One log for all handles of a model that are given the same path: a log refuses lines of another writer."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Final

from torch import nn

import realloc.record.disk as disk
from realloc.record.events import EventLog

_Logs = weakref.WeakValueDictionary[Path, EventLog]
_KNOWN: Final[weakref.WeakKeyDictionary[nn.Module, _Logs]] = weakref.WeakKeyDictionary()


def log_of(model: nn.Module, path: str | Path) -> EventLog:
    """The log that a handle of this model writes to already, where nobody else wrote to the file since; or a new one.

    >>> import tempfile
    >>> net, path = nn.Module(), Path(tempfile.mkdtemp()) / "events.jsonl"
    >>> log = log_of(net, path)
    >>> log_of(net, str(path)) is log, log_of(nn.Module(), path) is log
    (True, False)
    """
    known = _KNOWN.setdefault(model, _Logs())
    place = Path(path).expanduser().absolute()
    log = known.get(place)
    if log is None or not place.exists() or disk.size_of(place) != log.offset:
        log = known[place] = EventLog(path)
    return log
