"""A run's record: its length, its log, its checkpoints, all inside one run folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

from realloc.record.checkpoint import Checkpoint, load_latest, save
from realloc.record.events import EventLog
from realloc.record.folder import RunFolder
from realloc.record.sealed import made
from realloc.record.state import pack, unpack
from realloc.train.length import Length
from realloc.train.loop import Trainee

LENGTH = "length.json"


@final
@dataclass(frozen=True)
class Account:
    """What a checkpoint holds beside the training itself: sums so far, and where the log stood."""

    log_offset: int = 0
    train_seconds: float = 0.0
    elsewhere: Mapping[str, float] | None = None
    epoch_loss: float = 0.0
    epoch_steps: int = 0
    validation: float | None = None
    peak_bytes: int | None = None
    train_peak_bytes: int | None = None
    mapped_bytes: int | None = None


@final
class Keep:
    """The record of one run, written by the run that holds its folder."""

    def __init__(self, held: RunFolder) -> None:
        self._held = held
        self.path: Path = held.path
        self.log = EventLog(held.events)

    def length(self) -> Length | None:
        """Read the length that was decided before the first step, or None."""
        values = self._held.read(LENGTH, 1 << 12)
        return None if values is None else made(lambda: Length(**values), self._held.file(LENGTH))

    def write_length(self, length: Length) -> None:
        """Write the length down, once: a resume uses the same number."""
        self._held.write(LENGTH, asdict(length))

    def latest(self) -> Checkpoint | None:
        """Find the checkpoint to go on from; without one, empty the log for a new start."""
        found = load_latest(self._held.checkpoints)
        if found is None:
            self.log.truncate(0)
        return found

    def save(self, step: int, trainee: Trainee, account: Account) -> None:
        """Write one checkpoint."""
        values = asdict(account) | {"log_offset": self.log.sync()}
        packed = pack(trainee.model, trainee.optimizer, values, parts=trainee.parts)
        save(self._held.checkpoints, step, packed.tensors, packed.state)

    def restore(self, found: Checkpoint, trainee: Trainee) -> Account:
        """Put a checkpoint into a trainee that was built alike, and set the log back to it."""
        extra: dict[str, Any] = unpack(
            found.tensors, found.state, trainee.model, trainee.optimizer, parts=trainee.parts
        )
        account = made(lambda: Account(**extra), found.path)
        self.log.truncate(account.log_offset)
        return account

    def finish(self, result: Mapping[str, object]) -> None:
        """Write the result: the run counts as finished."""
        self.log.sync()
        self._held.finish(result)
