"""A fine-tuning run's record: what was decided, its log, its checkpoints, its result, all inside one run folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, final

import realloc.record.disk as disk
from realloc.finetune.arms.arm import Arm
from realloc.finetune.decided import Decided, from_json
from realloc.finetune.moving import Moving, check_digest, digest
from realloc.finetune.pace import Course, course_of
from realloc.record.checkpoint import Checkpoint, load_latest, save
from realloc.record.events import EventLog
from realloc.record.folder import RunFolder
from realloc.record.sealed import made
from realloc.record.state import pack, unpack

DECIDED: Final = "decided.json"
COURSE: Final = "course.json"  # of a run with a budget of seconds: how many steps it pays for, as often as revised
CACHE: Final = "activations"


@final
@dataclass(frozen=True)
class Account:
    """What a checkpoint holds beside the training itself: sums so far, and where the log stood."""

    log_offset: int = 0
    frozen: str = ""
    train_seconds: float = 0.0
    elsewhere: Mapping[str, float] = field(default_factory=dict)
    epoch_loss: float = 0.0
    epoch_steps: int = 0
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
        self._frozen: str | None = None  # of one arm: a run has no other

    @property
    def cache(self) -> Path:
        """Where the activations of a frozen prefix lie."""
        return self._held.file(CACHE)

    def decided(self) -> Decided | None:
        """Read what was decided before the first step, or None."""
        values = self._held.read(DECIDED, 1 << 16)
        return None if values is None else made(lambda: from_json(values), self._held.file(DECIDED))

    def write_decided(self, decided: Decided) -> None:
        """Write the decision down, once."""
        self._held.write(DECIDED, decided.as_json())

    def course(self) -> Course | None:
        """Read how many steps the seconds were found to pay for, or None."""
        values = self._held.read(COURSE, 1 << 16)
        return None if values is None else course_of(values.get("totals"))

    def write_course(self, course: Course) -> None:
        """Write it down, before a step is taken by it."""
        self._held.write(COURSE, {"totals": [list(row) for row in course.totals]})

    def latest(self) -> Checkpoint | None:
        """Find the checkpoint to go on from; without one, empty the log for a new start."""
        found = load_latest(self._held.checkpoints)
        if found is None:
            self.log.truncate(0)
        return found

    def save(self, step: int, arm: Arm, account: Account) -> None:
        """Write one checkpoint."""
        values = asdict(account) | {"log_offset": self.log.sync(), "frozen": self._digest(arm)}
        packed = pack(Moving(arm.model, arm.frozen), arm.optimizer, values, parts=arm.parts)
        save(self._held.checkpoints, step, packed.tensors, packed.state)

    def restore(self, found: Checkpoint, arm: Arm) -> Account:
        """Put a checkpoint into an arm that was made alike, and set the log back to it."""
        model = Moving(arm.model, arm.frozen)
        check_digest(str(found.state.get("extra", {}).get("frozen")), self._digest(arm))
        extra: dict[str, Any] = unpack(found.tensors, found.state, model, arm.optimizer, parts=arm.parts)
        account = made(lambda: Account(**extra), found.path)
        self.log.truncate(account.log_offset)
        return account

    def _digest(self, arm: Arm) -> str:
        if self._frozen is None:
            self._frozen = digest(arm.model, arm.frozen)
        return self._frozen

    def finish(self, result: Mapping[str, object]) -> None:
        """Write the result: the run counts as finished, and its activations are of no more use."""
        self.log.sync()
        self._held.finish(result)
        with disk.told("remove the activations of", self.path, "remove them by hand"):
            for file in self.path.glob(f"{CACHE}*"):
                file.unlink()
