"""Several seeds of one fine-tuning run, and what they say together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import realloc.cli.outcome as outcome
import realloc.cli.text as text
from realloc.cli.screen import Screen
from realloc.finetune.config import FinetuneConfig
from realloc.finetune.result import FinetuneResult
from realloc.finetune.seeds import Series, run_all, summary
from realloc.train.progress import Tell
from realloc.train.stop import Interrupted

FEW: Final = 2  # seeds of which Student's t makes an interval thirteen times as wide as one would think


def present(found: Series, out: Path | None, json: bool, *, resumed: bool = False) -> None:
    """Run several seeds; with ``json``, print each result as soon as it is there, and what they say together last."""
    results = []
    with Screen() as screen:

        def announce(config: FinetuneConfig, number: int, total: int) -> Tell:
            title = f"{config.method}, seed {config.seed} ({number} of {total})"
            outcome.talk(title)
            return screen.show(title)

        try:
            for result in run_all(found, out, announce, resumed=resumed):
                results.append(result)
                if json:
                    outcome.data_json(result.as_json())
        except Interrupted:
            if out is None:
                outcome.talk("nothing is kept without --out FOLDER; with it and --resume, the runs go on")
            raise
    outcome.data_json(_together(results)) if json else outcome.data(_told_all(results, out))


def _together(results: Sequence[FinetuneResult]) -> dict[str, Any]:
    metric, of, found, n = summary(results)
    return {
        "seeds": [run.seed for run in results], "metric": metric, "of": of,
        "mean": found.mean, "low": found.low, "high": found.high, "n": n,
    }  # fmt: skip


def _told_all(results: Sequence[FinetuneResult], out: Path | None) -> str:
    first = results[0]
    of, metric = summary(results).of, first.metric
    rows = [
        [
            str(run.seed), run.used, text.measure(metric, run.test_metric if of == "test" else run.held[metric]),
            text.time(run.train_seconds), f"{run.steps:,}", text.size(run.peak_bytes),
        ]
        for run in results
    ]  # fmt: skip
    lines = [
        f"{first.method} on {first.data}, {first.model}",
        text.table(["seed", "trains", f"{of} {metric}", "training", "steps", "peak memory"], rows, left=2),
        _summed(results),
    ]
    return "\n".join([*lines, *([] if out is None else [f"record {out}"])])


def _summed(results: Sequence[FinetuneResult]) -> str:
    metric, of, found, n = summary(results)
    mean = text.measure(metric, found.mean)
    bounds = f"{text.measure(metric, found.low)} to {text.measure(metric, found.high)}"
    spread = "no interval from a single seed" if found.low is None else f"95 % interval {bounds}"
    if n == FEW:
        spread += " (of two seeds it is hardly ever narrow; take three or more)"
    return f"{of} {metric}: mean {mean}, {spread}, n = {n}"
