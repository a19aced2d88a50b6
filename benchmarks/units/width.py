"""Width that moves between layers, beside widths that stay, random moves and a hand-picked shape; and wide to narrow.

    python benchmarks/units/width.py run      # tunes each arm's rate, then five paired seeds; resumes run by run
    python benchmarks/units/width.py table
    python benchmarks/units/width.py clock    # seconds of start wide, end narrow, in turn; wants a quiet machine

Fashion-MNIST: an MLP 784-64-64-10, and 784-69-5-10 of the same parameters, which is badly shaped. A forward's FLOPs are
twice its weights there, so one currency is enough. CIFAR-10: three convolutions of 32, 16 and 8 channels, a pyramid
upside down, at its parameters and at its FLOPs. Hand-picked: the best of the shapes of `PICKED` by the held-out images,
as wide as the same budget pays for. Every arm runs in the same layers over the same pools. AdamW, cosine.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from bench import Arm, Kept, arguments, head, row, title
from width_nets import EXAMPLE, cost_at, fit, widest

from realloc import methods
from realloc.allocate.width_costs import Currency
from realloc.methods.width_method import WidthMethod
from realloc.scores.neuron_random import neuron_random

Widths = tuple[int, ...]

TUNING = (1000,)  # its seed
RATES = {"fashion-mnist": (2e-3, 4e-3), "cifar-10": (8e-3, 16e-3)}
EPOCHS = {"fashion-mnist": 8, "cifar-10": 2}
MATURE = {"fashion-mnist": 100, "cifar-10": 40}  # of 600 and 300 steps in which widths move
# each start, how many times as wide a layer may become, and what stands beside uniform
STARTS: Mapping[str, tuple[tuple[Widths, float, tuple[str, ...]], ...]] = {
    "fashion-mnist": (
        ((69, 5), 4.0, ("width", "morphnet", "gradmax", "random", "hand-picked")),
        ((69, 5), 16.0, ("width", "gradmax", "random", "hand-picked")),
        ((64, 64), 4.0, ("width", "random")),
    ),
    "cifar-10": (((32, 16, 8), 4.0, ("width", "random", "hand-picked")),),
}  # fmt: skip
PICKED: Mapping[str, tuple[tuple[float, ...], ...]] = {
    "fashion-mnist": ((1, 1), (1, 4), (1, 20)), "cifar-10": ((1, 2, 4),),
}  # fmt: skip
NAMES = {"fashion-mnist": "Fashion-MNIST, MLP", "cifar-10": "CIFAR-10 at 16 x 16, three convolutions"}
CURRENCIES: Mapping[str, tuple[Currency, ...]] = {
    "fashion-mnist": ("parameters",), "cifar-10": ("parameters", "FLOPs"),
}  # fmt: skip
MOVED: Mapping[str, Callable[..., WidthMethod]] = {
    "width": methods.width, "morphnet": methods.morphnet, "gradmax": methods.gradmax, "random": methods.random_widths,
}  # fmt: skip
ARMS = ("uniform", *MOVED, "hand-picked", "narrow")
HEAD = ("start", "budget", "arm", "most", "rate", "test accuracy %", "minus uniform, 95 %", "minus random, 95 %",
        "minus hand-picked, 95 %", "held at the end", "widths, seed 0", "seconds")  # fmt: skip

WIDE, SHARES = (64, 64), (0.5, 0.25)  # start wide, end narrow: with a share of its cost
LONGER = {0.5: 1.2, 0.25: 1.6}  # epochs of the net that is narrow from the start, for the FLOPs of one that becomes so
TURNS = 3
NARROW = ("ends narrow", "ends narrow, at random", "narrow from the start", "the same, longer", "stays wide")
HEAD_NARROW = ("of the cost", "arm", "epochs", "rate", "test accuracy %", "minus narrow from the start, 95 %",
               "minus the same, longer, 95 %", "training GFLOPs", "parameters", "seconds")  # fmt: skip


@dataclass(frozen=True)
class Case:
    data: str
    arm: str
    start: Widths
    currency: Currency
    share: float
    most: float
    epochs: int
    rate: float
    seed: int

    def run(self) -> dict[str, Any]:
        return fit(self.data, self.start, self.method(), self.rate, self.seed, self.epochs)

    def method(self) -> WidthMethod:
        if self.arm == "uniform":
            return methods.uniform_widths()
        if self.arm.startswith("ends narrow"):
            return methods.narrow(self.share, **({"score": neuron_random} if self.arm.endswith("random") else {}))
        example = torch.zeros(EXAMPLE[self.data]) if self.data == "cifar-10" else None
        made = MOVED[self.arm](currency=self.currency, mature=MATURE[self.data])
        return made.on(most=self.most, example=example)


def arm(kept: Kept, case: Case, seeds: int) -> Arm | None:
    """A case at its best rate, over seeds."""
    make = lambda rate, seed: replace(case, rate=rate, seed=seed)  # noqa: E731
    return kept.arm(make, RATES[case.data], seeds, TUNING)


def by_hand(kept: Kept, case: Case, budget: int) -> Case | None:
    """The shape that is best on the held-out images, as wide as the budget pays for."""
    best: tuple[float, Case] | None = None
    for shape in PICKED[case.data]:
        still = replace(case, arm="uniform", currency="parameters", most=4.0)
        one = replace(still, start=widest(case.data, shape, budget, case.currency))
        tuned = kept.tuned(lambda rate, seed, o=one: replace(o, rate=rate, seed=seed), RATES[case.data], TUNING)
        if tuned is None:
            return None
        if best is None or max(tuned.tried.values()) > best[0]:
            best = max(tuned.tried.values()), one
    return None if best is None else best[1]


def shares(
    kept: Kept, data: str, start: Widths, most: float, currency: Currency, names: Sequence[str], seeds: int
) -> None:
    """One start at one budget: every way to spend it."""
    budget = cost_at(data, start, currency)
    case = Case(data, "uniform", start, currency, 1.0, most, EPOCHS[data], 0.0, 0)
    found: dict[str, Arm] = {}
    for name in names:
        one: Case | None = replace(case, arm=name)
        if name == "hand-picked":
            one = by_hand(kept, case, budget)
        elif name == "uniform":
            one = replace(case, currency="parameters", most=4.0)  # nothing moves, so both are all one
        if one is None:
            continue
        there = arm(kept, one, seeds)
        if there is not None:
            found[name] = there
    for name, mine in found.items():
        gaps = [mine.less(found[rival]) if rival in found else "" for rival in ("uniform", "random", "hand-picked")]
        held = sorted({one[currency] for one in mine.runs})
        assert held[-1] <= budget, f"{name} holds {held[-1]:,} of {budget:,} {currency}"
        print(row([
            "-".join(map(str, start)), f"{budget:,} {currency}", name, f"{most:g}" if name in MOVED else "",
            f"{mine.rate:g}", f"{mine.mean():.2f} (n={len(mine.runs)})", *gaps,
            f"{held[0]:,}" + (f" to {held[-1]:,}" if len(held) > 1 else ""),
            "-".join(map(str, mine.runs[0]["widths"])), mine.seconds,
        ]))  # fmt: skip


def narrow_cases(share: float) -> dict[str, Case]:
    """The arms of a share of the wide net's cost, without their rates."""
    data, epochs = "fashion-mnist", EPOCHS["fashion-mnist"]
    final = round(share * cost_at(data, WIDE, "parameters"))
    wide = Case(data, "uniform", WIDE, "parameters", 1.0, 4.0, epochs, 0.0, 0)
    small = replace(wide, start=widest(data, (1, 1), final, "parameters"))
    cases = (
        replace(wide, arm=NARROW[0], share=share), replace(wide, arm=NARROW[1], share=share), small,
        replace(small, epochs=round(LONGER[share] * epochs)), wide,
    )  # fmt: skip
    return dict(zip(NARROW, cases, strict=True))


def clock(kept: Kept) -> None:
    """Seconds of seed 0, turn by turn: each arm's once a turn."""
    seconds: dict[tuple[float, str], list[float]] = {}
    for _ in range(TURNS):
        for share in SHARES:
            for name, case in narrow_cases(share).items():
                tuned = kept.tuned(
                    lambda rate, seed, c=case: replace(c, rate=rate, seed=seed), RATES[case.data], TUNING
                )
                if tuned is None or (name == NARROW[-1] and share != SHARES[-1]):
                    continue
                found = replace(case, rate=tuned.rate).run()["seconds"]
                seconds.setdefault((1.0 if name == NARROW[-1] else share, name), []).append(found)
    print(
        f"\n### Start wide, end narrow: seconds, {TURNS} turns\n\n{head(('of the cost', 'arm', 'seconds', 'by turn'))}"
    )
    for (share, name), mine in seconds.items():
        print(row([f"{share:g}", name, f"{statistics.mean(mine):.1f}", ", ".join(f"{one:.1f}" for one in mine)]))


def narrowed(kept: Kept, seeds: int) -> None:
    """A wide net that ends narrow, beside one that is narrow from the start: for as many epochs, and as many FLOPs."""
    print(f"\n### Start wide, end narrow: Fashion-MNIST, from {'-'.join(map(str, WIDE))}\n\n{head(HEAD_NARROW)}")
    for share in SHARES:
        cases = narrow_cases(share)
        final = round(share * cost_at("fashion-mnist", WIDE, "parameters"))
        arms = [arm(kept, case, seeds) for case in cases.values()]
        for (name, case), mine in zip(cases.items(), arms, strict=True):
            if mine is None or (name == NARROW[-1] and share != SHARES[-1]):
                continue
            held = max(one["parameters"] for one in mine.runs)
            assert name == NARROW[-1] or held <= final, f"{name} holds {held:,} of {final:,}"
            print(row([
                f"{share if name != NARROW[-1] else 1:g}", name, str(case.epochs), f"{mine.rate:g}",
                f"{mine.mean():.2f} (n={len(mine.runs)})", mine.less(arms[2]), mine.less(arms[3]),
                f"{mine.mean('training FLOPs', 1e-9):.1f}", f"{held:,}", mine.seconds,
            ]))  # fmt: skip


def main() -> None:
    warnings.simplefilter("ignore")  # a random arm may find nothing to move
    args = arguments(__doc__, ARMS, ("clock",))
    kept = Kept("width", run=args.act == "run", beside=args.beside)
    print(title())
    if args.act == "clock":
        clock(kept)
        return
    for data, currencies in CURRENCIES.items():
        print(f"\n### {NAMES[data]}, {EPOCHS[data]} epochs\n\n{head(HEAD)}")
        for start, most, beside in STARTS[data]:
            names = [one for one in args.arms if one in ("uniform", *beside)]
            for currency in currencies:
                shares(kept, data, start, most, currency, names, args.seeds)
    if "narrow" in args.arms:
        narrowed(kept, args.seeds)


if __name__ == "__main__":
    main()
