"""A method over rows that ids own: which of them get one, and when one gives way."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, final

from realloc.errors import ConfigError
from realloc.kernels.mixing import mixed_plain
from realloc.scores.row_score import RowScore


@final
@dataclass(frozen=True)
class HotRowMethod:
    """The parts of one way to give the rows of `realloc.nn.Embedding` to ids.

    Args:
        name: as users call it.
        score: ranks the ids.
        decay: what is left of every score after a decision, 0 < decay <= 1.
        margin: by what part a newcomer must be worth more than the id that it replaces, 0 or more.
        migrate: whether a row starts from the shared one, with its state, and is merged back into it; False is the
            control, as other libraries do it: a row starts at zero, and one that gives way is dropped.
        look: of so many steps one is noted, drawn by the seed, 1 or more; see `looks`.
        reference: arXiv number of its paper.
    """

    name: str
    score: RowScore
    decay: float = 0.9
    margin: float = 0.1
    migrate: bool = True
    look: int = 4
    reference: str = ""

    moves: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name, value in (("decay", self.decay), ("margin", self.margin)):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ConfigError(f"{name} is {value!r}; it is a finite number")
        if not 0 < self.decay <= 1:
            raise ConfigError(f"decay is {self.decay!r}; what is left of a score after a decision: 0 < decay <= 1")
        if isinstance(self.look, bool) or not isinstance(self.look, int) or self.look < 1:
            raise ConfigError(f"look is {self.look!r}; it is a number of steps, 1 or more: 4 notes one of four steps")
        if self.margin < 0:
            raise ConfigError(f"margin is {self.margin!r}; it is 0 or more: 0.1 asks newcomers for a tenth more")

    def looks(self, step: int, gap: int, seed: int) -> bool:
        """Whether a step is noted: one of each ``look`` steps, drawn, since every second batch may be of one kind.

        Args:
            step: optimizer steps taken before it.
            gap: steps from one decision to the next; of so many one is noted at least.
            seed: of the run.

        >>> method = HotRowMethod("mine", RowScore("counts", lambda step: step.counts), look=3)
        >>> [step for step in range(15) if method.looks(step, gap=100, seed=0)]
        [2, 5, 7, 10, 12]
        """
        every = min(self.look, (gap + 1) // 2)
        block, place = divmod(step, every)
        return place == mixed_plain(seed ^ mixed_plain(block)) % every
