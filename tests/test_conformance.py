from __future__ import annotations

import dataclasses

import pytest
import torch

import kinds
import realloc
from kinds import WEIGHTS, kind_of
from realloc import methods
from realloc.allocate.prefix import depths_of
from realloc.methods.example_method import Draw, ExampleMethod
from realloc.methods.method import Method
from realloc.schedule import constant, cosine
from realloc.scores.gradient import gradient
from realloc.scores.row_score import RowScore
from realloc.scores.score import Score
from realloc.select.top_k import top_k
from realloc.testing import PROMISES, Report, check_method
from realloc.testing.worlds import world_of


def test_every_method_is_of_a_kind_that_has_a_suite():
    """Each list of `kinds` is what the tests of that kind go by: none is left out."""
    lists = [found for name, found in vars(kinds).items() if name.isupper()]
    assert sorted(name for found in lists for name in found) == sorted(methods.__all__) and all(lists)


@pytest.mark.parametrize("name", WEIGHTS)
def test_every_method_keeps_its_promises(name):
    report = check_method(getattr(methods, name))
    assert report.method == name and [promise for promise, _ in report.lines] == [promise for promise, _ in PROMISES]


@pytest.mark.parametrize("density", [0.05, 0.95])
@pytest.mark.parametrize("name", ["chts", "gmp", "gse", "rigl", "snfs"])
def test_at_the_ends_of_the_range(name, density):
    check_method(getattr(methods, name), density=density)


@pytest.mark.parametrize("name", ["chts", "granet", "gse", "rigl", "smet", "snfs", "sparse_evolution"])
def test_in_blocks(name):
    check_method(lambda density: getattr(methods, name)(density).on(block=(2, 4)))


@pytest.mark.parametrize("moments", ["median", "seed"])
def test_with_other_starts_of_the_moments(moments):
    check_method(lambda density: dataclasses.replace(methods.rigl(density), moments=moments))


def loudest(density: float) -> Method:
    score = Score("loudest", frozenset({"values", "gradient"}), lambda seen: (seen.values * seen.gradient).abs().sum(1))
    return Method("loudest", density, keep=score, want=gradient, drop=cosine(0.3))


def test_a_strangers_ten_lines_pass_and_print():
    report = check_method(loudest)
    assert isinstance(report, Report)
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.method = "other"
    text = str(report)
    assert text.startswith("loudest: keeps its promises") and text.count("\n") == len(PROMISES)


def broken(**parts):
    return lambda density: dataclasses.replace(methods.rigl(density), name="broken", **parts)


def loses_one(scores, k, generator):
    return top_k(scores, max(0, k - 1))


def doubles_one(scores, k, generator):
    chosen = top_k(scores, k).clone()
    chosen[-1:] = chosen[0] if k > 1 else chosen[-1:]
    return chosen


calls = iter(range(10**9))
forgetful = Score("forgetful", frozenset(), lambda seen: torch.rand(len(seen)))
nan = Score("nan", frozenset({"gradient"}), lambda seen: seen.gradient.abs().sum(1) * float("nan"))
short = Score("short", frozenset(), lambda seen: torch.zeros(max(0, len(seen) - 1)))
moody = Score("moody", frozenset(), lambda seen: (seen.places * 7919 + next(calls)).double() % 31)


@pytest.mark.parametrize(
    ("parts", "promise", "word"),
    [
        ({"acquire": loses_one}, "budget exact", "acquire of broken selected"),
        ({"acquire": doubles_one}, "budget exact", "acquire of broken selected"),
        ({"survive": lambda phase: loses_one}, "budget exact", "survive of broken selected"),
        ({"share": lambda rooms, budget: [0] * len(rooms)}, "budget exact", "share of broken gave"),
        ({"share": lambda rooms, budget: [budget + 1, -1]}, "budget exact", "share of broken gave"),
        ({"want": nan}, "moves happen", "nan scores of .* are not finite"),
        ({"want": short}, "budget exact", "short"),
        ({"drop": constant(0.0)}, "moves happen", "nothing moved"),
        ({"want": moody}, "same seed, same plans", "equal seeds"),
        ({"keep": forgetful}, "same seed, same plans", "equal seeds"),
    ],
)
def test_a_broken_method_is_caught_by_name(parts, promise, word):
    with pytest.raises(AssertionError, match=f"broken: {promise}.*{word}"):
        check_method(broken(**parts))


def test_a_factory_of_something_else_is_refused():
    with pytest.raises(AssertionError, match="must return"):
        check_method(lambda density: None)


def reads_gradient(density: float) -> Method:
    score = Score("eager", frozenset({"values"}), lambda seen: (seen.values * seen.gradient).abs().sum(1))
    return Method("eager", density, keep=score, want=gradient, drop=cosine(0.3))


def wants_gradient(density: float) -> Method:
    score = Score("eager", frozenset(), lambda seen: seen.gradient.abs().sum(1))
    return Method("eager", density, want=score, drop=cosine(0.3))


@pytest.mark.parametrize(
    ("factory", "word"),
    [
        (reads_gradient, 'score \'eager\' reads "gradient" without naming it: add "gradient" to its needs'),
        (wants_gradient, 'score \'eager\' reads "gradient" without naming it: add "gradient" to its needs'),
        (
            lambda density: Method("still", density, want=gradient),
            "nothing moved in 6 decisions; drop is 0.*give it drop",
        ),
        (lambda density: methods.rigl(0.3), "asked for density 0.15 and made a method of density 0.3"),
        (lambda density: methods.rigl(density / 3), "hand its density on"),
        (lambda density: Method("half", density, drop=cosine(0.3)), "drop is 0.3, but it names no want"),
        (methods.rigl(0.3), "'rigl', already made; pass its factory"),
    ],
)
def test_a_common_slip_is_met_with_the_remedy(factory, word):
    with pytest.raises(AssertionError, match=word):
        check_method(factory)


# every other kind -----------------------------------------------------------------------------------------------------

DEPTHS = depths_of([torch.arange(8.0) / 8 + 4 - depth for depth in range(5)])
OF_KIND = {"ColumnMethod": {"k": 4}, "RankMethod": {"rank": 4}, "DeltaMethod": {"budget": 80}}
NAMED = {
    "permuted_rates": lambda: methods.permuted_rates(methods.loss_change()), "focus": lambda: methods.focus(DEPTHS),
    "rho": lambda: methods.rho(torch.linspace(0, 1, 60), over=3), "fixed": lambda: methods.fixed(ranks={"2": 4}),
    "egeria": lambda: methods.egeria(0.9, tests=1, window=2), "layer_gradient": lambda: methods.layer_gradient(0.7),
    "random_layers": lambda: methods.random_layers(0.7), "spiel": lambda: methods.spiel(budget=80, steps=2),
    "touched_rows": lambda: methods.touched_rows(40), "continual_backprop": lambda: methods.continual_backprop(0.1),
}  # fmt: skip
OTHERS = [name for name in methods.__all__ if name not in WEIGHTS]


def made(name):
    method = NAMED[name]() if name in NAMED else getattr(methods, name)(**OF_KIND.get(kind_of(name), {}))
    if not getattr(method, "measures", False):
        return method
    world = world_of(method)
    loss = lambda model, batch: (model(batch[0]) - batch[1]).square().mean()  # noqa: E731
    return realloc.calibrate(world.model, [world.batch(1000)], method, loss=loss)


@pytest.mark.parametrize("name", OTHERS)
def test_every_method_of_every_other_kind_keeps_them_too(name):
    report = check_method(made(name))
    assert report.method == getattr(made(name), "name", name) and len(report.lines) >= 4


def drawn_outside(past, count, random):
    index = torch.randperm(len(past))[:count]
    return Draw(index, torch.ones(count, dtype=torch.float64))


def with_parts(recipe, **parts):
    return dataclasses.replace(recipe, name="broken", **parts)


@pytest.mark.parametrize(
    ("method", "promise"),
    [
        (ExampleMethod("broken", drawn_outside, 0.5), "same seed, same visits: .*use only the generator given"),
        (ExampleMethod("broken", lambda past, count, random: Draw(torch.arange(count), torch.zeros(count).double()),
                       0.5), "visits exact .* a weight is not finite or not above 0"),
        (with_parts(methods.rows(RowScore("mine", lambda step: step.counts * torch.rand(len(step.counts))))),
         "same seed, same bits"),
        (with_parts(methods.rows(RowScore("mine", lambda step: torch.zeros(len(step.counts))))), "moves happen"),
        (with_parts(methods.auto_rgn(), weigh=lambda past: [float(torch.rand(()))] * len(past)), "moves happen"),
        (with_parts(methods.auto_rgn(), weigh=lambda past: torch.rand(len(past)).tolist()), "same seed, same bits"),
        (with_parts(methods.lisa(1), choose=lambda turn: (int(torch.randint(4, ())),)), "same seed, same bits"),
    ],
)  # fmt: skip
def test_a_broken_method_of_another_kind_is_caught_by_name(method, promise):
    with pytest.raises(AssertionError, match=f"broken: {promise}"):
        check_method(method)
