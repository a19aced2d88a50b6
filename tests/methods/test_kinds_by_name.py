"""One name for each kind of unit: which arm it is, and that words and scores of one's own are taken alike."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from realloc import methods
from realloc.errors import ConfigError, StateError
from realloc.methods.columns import SCORES as OF_COLUMNS
from realloc.methods.example_score import ExampleScore
from realloc.methods.examples import SCORES as OF_EXAMPLES
from realloc.methods.rate_method import RatePast
from realloc.methods.rate_score import RateScore
from realloc.methods.rates import SCORES as OF_RATES
from realloc.methods.rows import SCORES as OF_ROWS
from realloc.methods.width import SCORES as OF_WIDTH
from realloc.observe.visited import Past

WORDS = {"rows": OF_ROWS, "columns": OF_COLUMNS, "width": OF_WIDTH, "examples": OF_EXAMPLES, "rates": OF_RATES}
# where a method has its score; of examples it is inside the draw, which is compared below
TAKEN: dict[str, Callable[[Any], Any]] = {
    "rows": lambda made: made.score, "columns": lambda made: made.at("fc.weight", 40).keep,
    "width": lambda made: made.keep, "rates": lambda made: made.weigh,
}  # fmt: skip


@pytest.mark.parametrize("kind", WORDS)
def test_each_kind_takes_its_score_in_one_way(kind: str) -> None:
    make, words = getattr(methods, kind), WORDS[kind]
    default = inspect.signature(make).parameters["score"].default
    assert default in words and (kind == "rates" or "random" in words)
    for word, score in words.items():
        made, same = make(score=word), make(score=score)
        assert made.name == same.name == kind and made.reference == same.reference
        if kind in TAKEN:
            assert TAKEN[kind](made) is TAKEN[kind](same) is (score.weigh if kind == "rates" else score)
    for wrong in (default[:-1], None, 3, "zzz"):
        with pytest.raises(
            ConfigError,
            match=rf"score is {re.escape(repr(wrong))}.*; use one of {next(iter(words))}, .* or a (\w*Score|Width\w+)$",
        ):
            make(score=wrong)
    with pytest.raises(ConfigError, match=f"nearest: '{default}'"):
        make(score=default[:-1])


def past_of(score: list[float], loss: list[float]) -> Past:
    return Past(
        torch.tensor(loss, dtype=torch.float64), torch.tensor(score, dtype=torch.float64), torch.ones(len(loss)).long()
    )


def test_examples_draw_as_importance_does() -> None:
    past = past_of([0.0, 0.1, 0.1, 9.0] * 5, [5.0, 0.1, 0.1, 0.0] * 5)
    for word, by in (("gradient", "score"), ("loss", "loss")):
        mine, theirs = (
            method.draw(past, 8, torch.Generator().manual_seed(2))
            for method in (methods.examples(score=word), methods.importance(by=by))
        )
        assert torch.equal(mine.index, theirs.index) and torch.equal(mine.weight, theirs.weight)
        assert mine.weight.unique().numel() > 1, "the gate was closed: nothing is shown"
    plain = methods.examples(score="random").draw(past, 8, torch.Generator().manual_seed(2))
    order = torch.randperm(20, generator=torch.Generator().manual_seed(2))
    assert torch.equal(plain.index, order[:8]) and bool((plain.weight == 1).all())


def test_an_example_score_of_ones_own() -> None:
    mine = ExampleScore("last", lambda past: torch.arange(len(past)).double() ** 4)
    drawn = methods.examples(score=mine, floor=0.01).draw(past_of([0.0] * 20, [0.0] * 20), 8, torch.Generator())
    assert int(drawn.index.min()) > 0 and drawn.index.double().mean() > 12
    bad = ExampleScore("short", lambda past: torch.ones(1))
    with pytest.raises(StateError, match=r"score 'short' gave .* for 20 examples; return one float for each"):
        methods.examples(score=bad).draw(past_of([0.0] * 20, [0.0] * 20), 8, torch.Generator())
    with pytest.raises(ConfigError, match="needs is 'losses'"):
        ExampleScore("mine", lambda past: past.loss, "losses")  # type: ignore[arg-type]
    seen = Past(torch.ones(3), torch.ones(3), torch.tensor([1, 1, 0]))
    for gives, word in ((float("nan"), "NaN for every example"), (float("inf"), "Inf")):
        with pytest.raises(StateError, match=f"score 'odd' gave {word}"):
            ExampleScore("odd", lambda past, gives=gives: torch.full((len(past),), gives))(seen)
    with pytest.raises(StateError, match="gave a list"):
        ExampleScore("odd", lambda past: [1.0] * len(past))(seen)  # type: ignore[arg-type, return-value]
    below = ExampleScore("below", lambda past: -torch.ones(len(past)))
    with pytest.raises(StateError, match="examples cannot draw by a below below 0"):
        methods.examples(score=below).draw(past_of([0.0] * 20, [0.0] * 20), 8, torch.Generator())


def layers() -> RatePast:
    weights = [torch.randn(12, 9, generator=torch.Generator().manual_seed(s)) * (s + 1) for s in range(3)]
    return RatePast(
        ("a", "b", "c"), (108,) * 3, (0.3, 1.0, 4.0), (2.0, 1.0, 3.0), (0.01, 0.02, 0.4), (0.1, 0.5, 0.2), (1.0,) * 3,
        tuple((w,) for w in weights), 0.5, lambda word: torch.Generator().manual_seed(0),
    )  # fmt: skip


def test_rates_weigh_as_the_named_methods_do() -> None:
    named = {
        "spectrum": methods.tempbalance(), "gradient": methods.auto_rgn(), "balance": methods.gradnorm(),
        "gain": methods.loss_change(), "depth": methods.llrd(),
    }  # fmt: skip
    assert {*named, "even"} == set(OF_RATES)
    for word, method in named.items():
        mine = methods.rates(word)
        assert mine.weigh(layers()) == method.weigh(layers()) and len(set(mine.weigh(layers()))) == 3, word
        assert (mine.moves, mine.window, mine.reference) == (
            method.moves, method.window if word != "depth" else 10, method.reference,
        )  # fmt: skip
    assert methods.rates("even").weigh(layers()) == [1.0] * 3
    mine = RateScore("sizes", lambda past: [float(one) for one in past.sizes], moves=False)
    assert methods.rates(mine).weigh(layers()) == [108.0] * 3 and not methods.rates(mine).moves
    with pytest.raises(ConfigError, match="hold is 'movement', and nothing has moved when rates shares the rate"):
        methods.rates("even", hold="movement")
