"""Live progress on stderr: a bar with ETA in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType
from typing import Self, final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

import realloc.cli.text as text
from realloc.cli.outcome import talk
from realloc.errors import plain
from realloc.train.progress import COMPILING, Progress, Tell

PLAIN_EVERY = 10.0  # seconds between two lines where nobody watches live
MOST_SITES = 6  # densities shown on one line
CACHE = "REALLOC_KERNEL_CACHE"


def live() -> bool:
    """Whether stderr is a terminal that may be drawn on."""
    quiet = "NO_COLOR" in os.environ or os.environ.get("TERM", "") in ("dumb", "")
    return sys.stderr.isatty() and not quiet


def words(progress: Progress) -> str:
    """The numbers beside the bar."""
    parts = []
    if progress.metric is not None:
        parts.append(f"validation {progress.metric:.4f}")
    if progress.density:
        parts.append(f"{progress.moves} moves")
        shown = list(progress.density.items())[:MOST_SITES]
        more = " ..." if len(progress.density) > MOST_SITES else ""
        parts.append(
            "held " + ", ".join(f"{plain(n).removesuffix('.weight')} {100 * d:.1f} %" for n, d in shown) + more
        )
    return "; ".join(parts)


def stage(progress: Progress) -> str:
    """What a run is doing, and how long a wait that will be."""
    if progress.stage != COMPILING:
        return progress.stage
    kept = "once" if os.environ.get(CACHE) else f"some seconds; {CACHE}=FOLDER keeps them for the next run"
    return f"{progress.stage} ({kept})"


@final
class Screen:
    """Shows runs while it is open."""

    def __init__(self) -> None:
        self._bar: Bar | None = None
        if live():
            columns = (
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[words]}", markup=False),
            )
            self._bar = Bar(*columns, console=Console(stderr=True), transient=True)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, title: str) -> Tell:
        """Begin to show one run."""
        title = plain(title)
        if self._bar is not None:
            return _live(self._bar, title)
        return _plain(title)


def _live(bar: Bar, title: str) -> Tell:
    for old in list(bar.task_ids):
        bar.remove_task(old)
    task: TaskID = bar.add_task(title, total=None, words="")

    def tell(progress: Progress) -> None:
        what = "" if progress.total else f": {stage(progress)}"
        bar.update(
            task, description=title + what, completed=progress.step, total=progress.total or None,
            words=words(progress),
        )  # fmt: skip

    return tell


def _plain(title: str) -> Tell:
    last = time.monotonic()

    def tell(progress: Progress) -> None:
        nonlocal last
        if progress.stage == COMPILING:
            talk(f"{title}: {stage(progress)}")
        now = time.monotonic()
        if now - last < PLAIN_EVERY or not progress.step:
            return
        last = now
        left = progress.seconds / progress.step * (progress.total - progress.step)
        left = left if progress.left is None else min(left, progress.left)
        parts = [f"{title}: step {progress.step:,} of {progress.total:,}, {text.time(left)} to go", words(progress)]
        talk("; ".join(part for part in parts if part))

    return tell
