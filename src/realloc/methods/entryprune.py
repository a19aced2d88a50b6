"""EntryPrune: an input is judged by the first impression that it makes."""

from __future__ import annotations

import math

from realloc.errors import ConfigError
from realloc.methods.column_method import ColumnMethod
from realloc.methods.method import Method
from realloc.observe.candidates import sampled
from realloc.schedule import until_end
from realloc.scores.impression import impression
from realloc.scores.random import random


def entryprune(k: int, *, candidates: float = 0.2) -> ColumnMethod:
    """Train k inputs and some candidates; at each move the least impressive leave, and random others take their place.

    Of D inputs, ``k + floor(candidates * (D - k))`` are held, and all but k of them are exchanged at each move that is
    not the last. A score is the size of a column's gradient, summed over the interval in which it entered, in standard
    deviations from the mean over all columns held then; one that enters again keeps the better of its scores. The last
    move leaves the best k and brings nothing.

    Args:
        k: inputs held at the end, 1 to D.
        candidates: share of the other inputs held beside them, (0, 1].

    Raises:
        ConfigError: a k or a share out of range; with the model known, more than D inputs, or a share below one input.

    Reference: EntryPrune (2410.02344), by a reading of the authors' code. Where we differ: a column enters at exactly
    zero (there: within 1e-8 of it) and without the Adam moments of the one before (there they stay); its second moments
    start at the median of the layer's; those that have just left cannot enter in the same move; the pool keeps its
    length when the candidates go, so that the optimizer is never made anew (``handle.compact()`` gives them back).

    >>> entryprune(50).at("fc1.weight", 784).start_density * 784
    196.0
    """
    share = isinstance(candidates, (int, float)) and not isinstance(candidates, bool) and math.isfinite(candidates)
    if not share or not 0 < candidates <= 1:
        raise ConfigError(f"candidates is {candidates!r}; it is a share of the inputs that are not kept: (0, 1]")
    return ColumnMethod("entryprune", k, rule=lambda inputs: _rule(k, candidates, inputs), reference="2410.02344")


def _rule(k: int, share: float, inputs: int) -> Method:
    extra = math.floor(share * (inputs - k) + 1e-9)  # 0.29 * 100 is 29, where floats give 28.999999999999996
    if not extra and k < inputs:
        raise ConfigError(
            f"candidates is {share!r}, less than one of the {inputs - k} inputs that are not kept; use at least "
            f"{math.ceil(1e6 / (inputs - k)) / 1e6}"
        )
    start = k + extra
    drop = (extra + 0.5) / start if extra else 0.0  # half a unit above, as the count is rounded down
    return Method(
        "entryprune", k / inputs, keep=impression, want=random, candidates=sampled(1.0), regrow=False,
        drop=until_end(drop), held=until_end(start / inputs, k / inputs), impressions=True, settles=True,
    )  # fmt: skip
