"""Hot ids own embedding rows, the others share: rows move to where the score says that they pay."""

from __future__ import annotations

from typing import Final

from realloc.methods.hot_row_method import HotRowMethod
from realloc.methods.named_score import named_score
from realloc.scores.row_conflict import row_conflict
from realloc.scores.row_frequency import row_frequency
from realloc.scores.row_gradient import row_gradient
from realloc.scores.row_product import row_product
from realloc.scores.row_random import row_random
from realloc.scores.row_score import RowScore

SCORES: Final = {one.name: one for one in (row_gradient, row_frequency, row_product, row_conflict, row_random)}


def rows(
    score: str | RowScore = "product",
    *,
    decay: float = 0.9,
    margin: float = 0.1,
    migrate: bool = True,
    look: int = 4,
) -> HotRowMethod:
    """Give the rows of `realloc.nn.Embedding` and `EmbeddingBag` to the ids with the highest score.

    An id that gets a row starts from its shared one, with its second moments and first moments of zero, so no output
    changes; a row that gives way is merged into the shared row of its id, each weighted by its score.

    Measured (benchmarks/results/units.md, two sets of ratings, 5 paired seeds): "product" is the best score at 2 to 25
    % of the full table's bytes. `realloc.nn.DoubleHashing`, in which nothing moves, is better still at up to 10 %: take
    rows of their own where an id must be read as one row, or where products of rows do not train well.

    Source: CAFE (2312.03256). Where we differ: ids are compared with each other, not with a threshold that is tuned for
    each size; rows move with their optimizer state and are merged back, where the published code drops a demoted row
    and lets a new tenant inherit an old accumulator; the sketch is part of the state.

    Args:
        score: "product" (AdaEmbed: frequency times gradient), "gradient" (CAFE), "frequency", "conflict" (ours; build
            the layer with ``directions=8``), "random" (control), or a `RowScore` of your own.
        decay: what is left of every score after a decision, 0 < decay <= 1.
        margin: by what part a newcomer must be worth more than the id that it replaces, 0 or more.
        migrate: False is the control that starts rows at zero and drops those that give way.
        look: of so many steps the gradients of one are noted, 1 or more; which one is drawn. Where decisions come so
            often that one of them might know nothing new, it is noted more often. With "product" 4 is not told apart
            from 2 at any size of two data sets, and a step keeps 0.87 of `nn.Embedding`'s speed in place of 0.77; the
            score "conflict" loses by it.

    Raises:
        ConfigError: no such score, or a number out of range.

    >>> rows("conflict").score.needs_directions
    True
    """
    found = named_score(score, RowScore, SCORES)
    return HotRowMethod("rows", found, decay=decay, margin=margin, migrate=migrate, look=look, reference="2312.03256")
