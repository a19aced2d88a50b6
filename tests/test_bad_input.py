"""One table of what users get wrong: each is refused before the first step, by name, with the value and a remedy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parameter import is_lazy

import realloc
from realloc import methods
from realloc.errors import ConfigError, StateError
from realloc.methods.method import Method
from realloc.observe.candidates import sampled as candidates
from realloc.schedule import constant, cosine, cubic, every, linear
from realloc.scores.score import Score


class Bench:
    """A model, its optimizer, and the call of a user who gets one thing wrong."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model: nn.Module = nn.Sequential()
        for name, layer in {
            "conv": nn.Conv1d(3, 4, 3), "fc1": nn.Linear(10, 24), "act": nn.ReLU(), "fc2": nn.Linear(24, 15),
            "head": nn.Linear(15, 4),
        }.items():  # fmt: skip
            self.model.add_module(name, layer)
        self.optimizer: Any = torch.optim.AdamW(self.model.parameters())

    def attach(self, method: Any = None, **settings: Any) -> Any:
        settings.setdefault("schedule", every(4, total=40))
        model, optimizer = settings.pop("model", self.model), settings.pop("optimizer", self.optimizer)
        return realloc.attach(model, optimizer, methods.rigl(0.3) if method is None else method, **settings)

    def state(self) -> Any:
        params = [[id(p) for p in g["params"]] for g in self.optimizer.param_groups]
        keys = [sorted(k for k in g if k != "params") for g in self.optimizer.param_groups]
        hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in self.model.modules()]
        values = {k: v.clone() for k, v in self.model.state_dict().items() if not v.is_meta and not is_lazy(v)}
        kept = len(self.optimizer._optimizer_step_pre_hooks), len(self.optimizer.state)
        return [type(m) for m in self.model.modules()], [*self.model.state_dict()], params, keys, hooks, kept, values


def same(a: Any, b: Any) -> bool:
    return a[:-1] == b[:-1] and all(torch.equal(v.nan_to_num(), b[-1][k].nan_to_num()) for k, v in a[-1].items())


def with_(change: Callable[[Bench], Any], *args: Any, **settings: Any) -> Callable[[Bench], Any]:
    """First spoil the bench, then attach."""

    def act(bench: Bench) -> Any:
        change(bench)
        bench.before = bench.state()
        return bench.attach(*args, **settings)

    return act


def poison(bench: Bench) -> None:
    with torch.no_grad():
        bench.model.fc1.weight[0, 0] = float("nan")


def infinite(bench: Bench) -> None:
    with torch.no_grad():
        bench.model.fc2.weight[1] = float("-inf")


def meta(bench: Bench) -> None:
    bench.model.fc1.to("meta")


def lazy(bench: Bench) -> None:
    bench.model.fc1 = nn.LazyLinear(24)
    bench.optimizer = torch.optim.AdamW(bench.model.parameters())


def whole_numbers(bench: Bench) -> None:
    bench.model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    bench.model[0].weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.int32), requires_grad=False)


def sparse_gradients(bench: Bench) -> None:
    bench.model.fc1 = nn.Embedding(10, 24, sparse=True)
    bench.optimizer = torch.optim.SGD(bench.model.parameters(), lr=0.1)


def complex_numbers(bench: Bench) -> None:
    bench.model.fc1 = nn.Linear(10, 24, dtype=torch.complex64)


def frozen(bench: Bench) -> None:
    bench.model.requires_grad_(False)


def another(bench: Bench) -> None:
    bench.optimizer = torch.optim.AdamW(Bench().model.parameters())


def half(bench: Bench) -> None:
    bench.optimizer = torch.optim.AdamW(bench.model.fc1.parameters())


def uses(make: Callable[..., Any], **settings: Any) -> Callable[[Bench], None]:
    def change(bench: Bench) -> None:
        bench.optimizer = make([p for p in bench.model.parameters() if p.ndim == 2], **settings)

    return change


class Lamb(torch.optim.Optimizer):
    """Scales each tensor's step by its own norm."""

    def __init__(self, params: Any, lr: float = 1e-2) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.add_(p.grad * (p.norm() + 1) / (p.grad.norm() + 1e-6), alpha=-group["lr"])


def prepared(bench: Bench) -> None:
    realloc.prepare(bench.model, methods.rigl(0.3))


def attached(bench: Bench) -> Any:
    return bench.attach()


def prepare_twice(bench: Bench) -> Any:
    prepared(bench)
    bench.before = bench.state()
    return realloc.prepare(bench.model, methods.rigl(0.3))


def wrapped(bench: Bench) -> Any:
    bench.model = nn.DataParallel(bench.model)
    bench.before = bench.state()
    return realloc.prepare(bench.model, methods.rigl(0.3))


def ask(question: Callable[[Any, Bench], Any]) -> Callable[[Bench], Any]:
    def act(bench: Bench) -> Any:
        handle = attached(bench)
        bench.before = bench.state()
        return question(handle, bench)

    return act


def starting(start: Any) -> Method:
    return replace(methods.static(0.3), start=start)


NAN = float("nan")
SHARE = r"0 < \w+ <= 1"
CASES: dict[str, tuple[Callable[[Bench], Any], type[Exception], str]] = {
    # density
    "density zero": (lambda b: b.attach(methods.rigl(density=0.0)), ConfigError, rf"density is 0\.0.*{SHARE}"),
    "density above one": (lambda b: b.attach(methods.rigl(density=1.5)), ConfigError, rf"density is 1\.5.*{SHARE}"),
    "density negative": (lambda b: b.attach(methods.gse(density=-0.1)), ConfigError, rf"density is -0\.1.*{SHARE}"),
    "density NaN": (lambda b: b.attach(methods.snfs(density=NAN)), ConfigError, rf"density is nan.*{SHARE}"),
    "density infinite": (lambda b: b.attach(methods.gmp(density=float("inf"))), ConfigError, rf"is inf.*{SHARE}"),
    "density a bool": (lambda b: b.attach(methods.static(density=True)), ConfigError, rf"density is True.*{SHARE}"),
    "density a string": (lambda b: b.attach(methods.rigl(density="0.1")), ConfigError, rf"'0\.1'.*{SHARE}"),
    "density none": (lambda b: b.attach(methods.granet(density=None)), ConfigError, rf"density is None.*{SHARE}"),
    "density too small": (lambda b: b.attach(methods.rigl(1e-6)), ConfigError, r"1e-06.*3 layers.*use density >= 0\.0"),
    # settings of methods
    "granet starts below": (lambda b: methods.granet(0.5, start=0.2), ConfigError, r"start is 0\.2.*density 0\.5.*use"),
    "granet starts above one": (lambda b: methods.granet(0.5, start=2.0), ConfigError, rf"start is 2\.0.*{SHARE}"),
    "smet young zero": (lambda b: methods.smet(0.1, young=0), ConfigError, r"young is 0.*1 or more"),
    "smet young a float": (lambda b: methods.smet(0.1, young=2.5), ConfigError, r"young is 2\.5.*1 or more"),
    "itop grows by magic": (lambda b: methods.itop(0.1, grow="magic"), ConfigError, r"'magic'.*'gradient' or 'random'"),
    "drop one": (lambda b: methods.rigl(0.1, drop=1.0), ConfigError, r"drop is 1\.0.*0 <= drop < 1"),
    "drop negative": (lambda b: methods.chts(0.1, drop=-0.2), ConfigError, r"drop is -0\.2.*0 <= drop < 1"),
    "drop a string": (lambda b: methods.rigl(0.1, drop="0.3"), ConfigError, r"'0\.3'.*finite number"),
    "drop NaN": (lambda b: methods.sparse_evolution(0.1, drop=NAN), ConfigError, r"nan.*finite number"),
    "decay above one": (lambda b: methods.snfs(0.1, decay=1.5), ConfigError, r"decay is 1\.5.*0 <= decay < 1"),
    "decay a string": (lambda b: methods.snfs(0.1, decay="0.9"), ConfigError, r"decay is '0\.9'.*0 <= decay < 1"),
    "candidates negative": (lambda b: methods.gse(0.1, candidates=-1), ConfigError, r"-1.*above 0"),
    "candidates zero": (lambda b: candidates(0), ConfigError, r"0.*above 0"),
    "a budget that grows": (lambda b: replace(methods.gmp(0.1), held=cubic(0.1, 0.5)), ConfigError, r"only fall"),
    "a score that needs the impossible": (
        lambda b: Score("mine", frozenset({"gradeint"}), len), ConfigError, r"'gradeint'.*nearest: 'gradient'",
    ),
    "a curve of nothing": (lambda b: constant(None), ConfigError, r"value=None.*finite number"),
    "a cosine to infinity": (lambda b: cosine(0.3, float("inf")), ConfigError, r"end=inf.*finite number"),
    "a line of text": (lambda b: linear("a"), ConfigError, r"'a'.*finite number"),
    # which layers, how stored
    "a pattern without a match": (lambda b: b.attach(methods.rigl(0.3).on("fc11")), ConfigError, r"'fc11'.*'fc1'"),
    "an exclusion without a match": (
        lambda b: b.attach(methods.rigl(0.3).on(exclude=("haed",))), ConfigError, r"'haed'.*nearest: 'head'",
    ),
    "a pattern with escape codes": (
        lambda b: b.attach(methods.rigl(0.3).on("fc1\x1b[2J")), ConfigError, r"'fc1\[2J'.*nearest",
    ),
    "a pattern that is a number": (lambda b: b.attach(methods.rigl(0.3).on(3)), ConfigError, r"pattern 3 is no string"),
    "exclude a string": (lambda b: methods.rigl(0.3).on(exclude="fc1"), ConfigError, r"'fc1'.*tuple"),
    "everything excluded": (
        lambda b: b.attach(methods.rigl(0.3).on(exclude=("*",))), ConfigError, r"no layer takes part.*excluded.*\.on\(",
    ),
    "an unknown storage": (lambda b: methods.rigl(0.3).on(storage="sparse"), ConfigError, r"'sparse'.*'packed' or"),
    "packed on a convolution": (
        lambda b: b.attach(methods.rigl(0.3).on("conv", storage="packed")), ConfigError, r'conv\.weight.*"masked"',
    ),
    "a block of no size": (lambda b: methods.rigl(0.3).on(block=(0, 4)), ConfigError, r"\(0, 4\).*positive integers"),
    "a block of floats": (lambda b: methods.rigl(0.3).on(block=(2.0, 2)), ConfigError, r"2\.0.*positive integers"),
    "a block that is a number": (lambda b: methods.rigl(0.3).on(block=4), ConfigError, r"block is 4.*positive int"),
    "a block of three": (lambda b: methods.rigl(0.3).on(block=(2, 2, 2)), ConfigError, r"\(2, 2, 2\).*two positive"),
    "a block that does not divide": (
        lambda b: b.attach(methods.rigl(0.3).on("fc*", block=(4, 4))), ConfigError, r"15 x 24|24 x 10.*4 x 4.*divides",
    ),
    # model and weights
    "no module": (lambda b: b.attach(model="net"), ConfigError, r"model is a str, not a torch\.nn\.Module"),
    "a model without weights": (lambda b: b.attach(model=nn.ReLU()), ConfigError, r"ReLU has no parameters.*nn\.L"),
    "a model without a layer": (
        lambda b: b.attach(model=nn.LayerNorm(4)), ConfigError, r"no layer takes part.*nn\.Linear",
    ),
    "NaN weights": (with_(poison), ConfigError, r"fc1\.weight has NaN or Inf.*before attach"),
    "infinite weights": (with_(infinite), ConfigError, r"fc2\.weight has NaN or Inf.*before attach"),
    "weights on the meta device": (with_(meta), ConfigError, r"fc1\.weight.*meta device.*materialise"),
    "a lazy layer": (with_(lazy), ConfigError, r"fc1\.weight.*lazy.*one batch"),
    "integer weights": (with_(whole_numbers, methods.rigl(0.3).on("0")), ConfigError, r"0\.weight.*frozen|int32"),
    "sparse gradients": (
        with_(sparse_gradients, methods.rigl(0.3).on("fc1", storage="masked")),
        ConfigError, r"fc1\.weight.*sparse=False",
    ),
    "start miscounts": (lambda b: b.attach(starting(lambda rooms, budget: [1] * len(rooms))), ConfigError, "start of"),
    "start gives floats": (
        lambda b: b.attach(starting(lambda rooms, budget: [budget / len(rooms)] * len(rooms))),
        ConfigError, "no integers",
    ),
    "complex weights": (with_(complex_numbers, methods.rigl(0.3).on("fc1")), ConfigError, r"fc1\.weight.*complex64"),
    "everything frozen": (with_(frozen), ConfigError, r"no layer takes part.*frozen"),
    # optimizer
    "no optimizer": (lambda b: b.attach(optimizer=None), ConfigError, r"NoneType, not a torch\.optim\.Optimizer"),
    "an optimizer class": (lambda b: b.attach(optimizer=torch.optim.AdamW), ConfigError, r"not a torch\.optim"),
    "another model's optimizer": (with_(another), ConfigError, r"does not hold 'conv\.weight' and 2 more.*make"),
    "an optimizer of one layer": (with_(half), ConfigError, r"does not hold.*freeze or exclude"),
    "LBFGS": (
        with_(lambda b: setattr(b, "optimizer", torch.optim.LBFGS(b.model.parameters()))), ConfigError,
        r"LBFGS.*masked storage.*storage=\"masked\"",
    ),
    "Adafactor": (with_(uses(torch.optim.Adafactor), methods.rigl(0.3).on("fc*")), ConfigError, r"Adafactor.*\"mask"),
    "Muon": (with_(uses(torch.optim.Muon), methods.rigl(0.3).on("fc*")), ConfigError, r"Muon.*\"masked\""),
    "LAMB": (with_(uses(Lamb), methods.rigl(0.3).on("fc*")), ConfigError, r"Lamb.*two parts.*\"masked\""),
    # method, schedule, seed, record
    "a method not called": (lambda b: b.attach(methods.rigl), ConfigError, r"rigl.*call a recipe.*density=0\.1\)"),
    "a method by name": (lambda b: b.attach("rigl"), ConfigError, r"'rigl'.*call a recipe"),
    "a schedule that is a number": (lambda b: b.attach(schedule=100), ConfigError, r"schedule is 100.*realloc\.every"),
    "no schedule": (lambda b: b.attach(schedule=None), ConfigError, r"schedule is None.*realloc\.every"),
    "a schedule that never fires": (lambda b: every(50, total=40), ConfigError, r"n=50.*never fires.*n=40 or less"),
    "every zero": (lambda b: every(0, total=40), ConfigError, r"n=0.*1 or more"),
    "every half": (lambda b: every(0.5, total=40), ConfigError, r"n=0\.5.*integer"),
    "a total of nothing": (lambda b: every(1, total=0), ConfigError, r"total=0.*1 or more"),
    "begin after until": (lambda b: every(1, begin=30, until=20, total=40), ConfigError, r"is step 20.*lower begin"),
    "begin is until": (lambda b: every(1, begin=0.5, until=20, total=40), ConfigError, r"step 20.*raise until"),
    "until past the end": (lambda b: every(1, until=50, total=40), ConfigError, r"until=50.*0 to 40"),
    "until a fraction above one": (lambda b: every(1, until=1.5, total=40), ConfigError, r"until=1\.5.*0\.0 to 1\.0"),
    "begin negative": (lambda b: every(1, begin=-3, total=40), ConfigError, r"begin=-3.*0 to 40"),
    "until NaN": (lambda b: every(1, until=NAN, total=40), ConfigError, r"until=nan.*fraction"),
    "a seed of text": (lambda b: b.attach(seed="7"), ConfigError, r"seed is '7'.*integer"),
    "a seed of a half": (lambda b: b.attach(seed=0.5), ConfigError, r"seed is 0\.5.*integer"),
    "a seed that is a bool": (lambda b: b.attach(seed=True), ConfigError, r"seed is True.*integer"),
    "a seed too large": (lambda b: b.attach(seed=2**70), ConfigError, r"seed is \d{20,}.*63 bits"),
    "a record that cannot record": (lambda b: b.attach(record=5), ConfigError, r"record is 5.*decision\(event\)"),
    "a record in a file's place": (
        lambda b: b.attach(record="/dev/null/events.jsonl"), realloc.errors.RecordError, r"/dev/null",
    ),
    # order of calls
    "attached twice": (ask(lambda h, b: b.attach()), StateError, r"attached already.*detach\(\)|detach\(\).*attach"),
    "attached twice with a new optimizer": (
        ask(lambda h, b: b.attach(optimizer=torch.optim.SGD(b.model.parameters(), 0.1))), StateError,
        r"model is attached already.*detach\(\)",
    ),
    "prepared twice": (prepare_twice, StateError, r"prepared already.*attach\(\)"),
    "prepared when attached": (
        ask(lambda h, b: realloc.prepare(b.model, methods.rigl(0.3))), StateError, r"prepared already",
    ),
    "wrapped before prepare": (wrapped, StateError, r"before DataParallel wraps it"),
    "prepared after the optimizer": (with_(prepared), ConfigError, r"optimizer.*model\.parameters\(\) after prepare"),
    "prepared for another method": (with_(prepared, methods.gse(0.3)), ConfigError, r"rigl.*gse.*same method to both"),
    "prepared for another density": (with_(prepared, methods.rigl(0.2)), ConfigError, r"0\.3.*0\.2.*same method"),
    # questions to the handle
    "the mask of a stranger": (ask(lambda h, b: h.mask("fc3")), ConfigError, r"no site 'fc3'.*nearest: 'fc"),
    "why a stranger gained": (ask(lambda h, b: h.explain("conv.wieght")), ConfigError, r"nearest: 'conv\.weight'"),
    "a mask by number": (ask(lambda h, b: h.mask(0)), ConfigError, r"no site '?0"),
    "follow a stranger": (ask(lambda h, b: h.follow(nn.Linear(2, 2))), ConfigError, r"copying the attached model"),
    "follow itself": (ask(lambda h, b: h.follow(b.model)), ConfigError, r"cannot follow itself.*averaged copy"),
    "follow a word": (ask(lambda h, b: h.follow("ema")), ConfigError, r"copy"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_refused_with_a_remedy_and_changes_nothing(case: str) -> None:
    act, error, words = CASES[case]
    bench = Bench()
    bench.before = bench.state()
    with pytest.raises(error, match=rf"(?s){words}") as caught:
        act(bench)
    assert len(str(caught.value)) < 400 and "\x1b" not in str(caught.value)
    assert same(bench.before, bench.state())


def test_the_table_is_long_enough() -> None:
    assert len(CASES) >= 40


def test_every_refusal_can_be_mended_and_tried_again() -> None:
    bench = Bench()
    for spoiled in ({"seed": "x"}, {"schedule": 3}, {"record": 3}, {"optimizer": None}):
        with pytest.raises(ConfigError):
            bench.attach(**spoiled)
    assert bench.attach().budget > 0
