"""Inputs take turns, and the best stay: which columns of a table, or pixels, a model is connected to at all."""

from __future__ import annotations

import math
from typing import Final

from realloc.errors import ConfigError
from realloc.methods.column_method import ColumnMethod
from realloc.methods.method import Method
from realloc.methods.named_score import named_score
from realloc.observe.candidates import sampled
from realloc.schedule import until_end
from realloc.scores.gradient import gradient
from realloc.scores.impression import impression
from realloc.scores.magnitude import magnitude
from realloc.scores.random import random
from realloc.scores.score import Score

DECAY: Final = 0.9  # of the mean gradient, where a score of your own asks for it
SCORES: Final = {"impression": impression, "magnitude": magnitude, "gradient": gradient, "random": random}


def columns(k: int | str = "10%", *, score: str | Score = "impression", candidates: float = 0.2) -> ColumnMethod:
    """Train k inputs and some candidates; at each move the k best stay, and random others take the candidates' place.

    Of D inputs, ``k + floor(candidates * (D - k))`` are held until the last move, which leaves the best k. With the
    score "impression" it is `entryprune`: of four rules the best on Fashion-MNIST with k = 50 (85.2 %, 2.95 ± 0.17
    points over `random_columns`), and on adult with k = 27 second to `neurofs`, by 0.7 (84.7 %, +5.59 ± 3.31;
    benchmarks/results/units.md, five paired seeds). The other scores are not measured.

    Source: EntryPrune (2410.02344); where we differ is said in `entryprune`.

    Args:
        k: inputs held at the end, 1 to D, or a part of them such as "10%", rounded down.
        score: ranks held inputs: "impression" (the gradient when an input was new), "magnitude" (sum |w|), "gradient"
            (sum |gradient| of the step), "random" (control), or a `Score` of your own.
        candidates: share of the other inputs held beside them, (0, 1].

    Raises:
        ConfigError: no such score, a k or a share out of range; with the model known, more than D inputs, or a share
            below one input.

    >>> columns("10%", score="magnitude").at("fc1.weight", 784).density * 784
    78.0
    """
    return in_turn("columns", k, named_score(score, Score, SCORES), candidates)


def in_turn(name: str, k: int | str, score: Score, candidates: float) -> ColumnMethod:
    """The rule of `columns` and `entryprune`, under either's name.

    Raises:
        ConfigError: as they say.
    """
    share = isinstance(candidates, (int, float)) and not isinstance(candidates, bool) and math.isfinite(candidates)
    if not share or not 0 < candidates <= 1:
        raise ConfigError(f"candidates is {candidates!r}; it is a share of the inputs that are not kept: (0, 1]")

    def rule(k: int, inputs: int) -> Method:
        extra = math.floor(candidates * (inputs - k) + 1e-9)  # 0.29 * 100 is 29, where floats give 28.999999999999996
        if not extra and k < inputs:
            raise ConfigError(
                f"candidates is {candidates!r}, less than one of the {inputs - k} inputs that are not kept; use at "
                f"least {math.ceil(1e6 / (inputs - k)) / 1e6}"
            )
        start = k + extra
        drop = (extra + 0.5) / start if extra else 0.0  # half a unit above, as the count is rounded down
        return Method(
            name, k / inputs, keep=score, want=random, candidates=sampled(1.0), regrow=False, drop=until_end(drop),
            held=until_end(start / inputs, k / inputs), impressions="impression" in score.needs, settles=True,
            average=DECAY if "average" in score.needs else None,
        )  # fmt: skip

    return ColumnMethod(name, k, rule=rule, reference="2410.02344")
