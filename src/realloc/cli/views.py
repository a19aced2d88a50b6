"""Results as people read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import realloc.cli.text as text
from realloc.compare.table import Comparison, Row
from realloc.errors import plain
from realloc.train.columns import RULE
from realloc.train.id_tables import TablePlan
from realloc.train.preview import Preview
from realloc.train.prune_after import turn
from realloc.train.result import RunResult

MOST_NAMES = 12  # of inputs, on one line
UNITS = ("weights", "parameters", "FLOPs")  # currencies of methods that count their moved units


def run(result: RunResult) -> str:
    """One finished run."""
    rows = [
        ["method", result.method], ["data, model", f"{result.data}, {result.model}"],
        [f"test {result.metric}", text.measure(result.metric, result.test_metric)],
        ["test loss", "-" if result.test_loss is None else f"{result.test_loss:.4f}"],
    ]  # fmt: skip
    if result.test_rmse is not None:
        rows.append(["test error", f"{result.test_rmse:.4g} (root mean square, in the label's unit)"])
    rows.append(["parameters", text.count(result.params)])
    if result.excess is not None:
        rows.append(["excess", f"{text.count(result.excess)} over the sparse model"])
    if result.budget is not None:
        unit = "" if result.currency == "weights" else f" {result.currency}"
        kept = f"{text.count(result.held)} held + {text.count(result.parked)} parked"
        rows.append(["budget", f"{result.budget:,}{unit} = {kept}"])
        rows += [["moves", _moved(result)]] if result.moves is not None else []
    rows += [["looked up", _looked(result.tables)]] if result.tables is not None else []
    rows += [["inputs held", _named(result.inputs)]] if result.inputs is not None else []
    rows += [["widths", _widths(result.widths)]] if result.widths is not None else []
    rows.append(["training", f"{text.time(result.train_seconds)}, {result.steps:,} steps"])
    peak = f"{text.size(result.peak_bytes)} over the loaded data, {text.size(result.train_peak_bytes)} in training"
    rows.append(["peak memory", peak])
    if not result.finished:
        rows.append(["stopped", "the time budget was spent before the schedule ended"])
    if result.resumed_from is not None:
        rows.append(["resumed from", f"step {result.resumed_from:,}"])
    if result.folder is not None:
        rows.append(["record", result.folder])
    return text.table(["", ""], rows, left=2).lstrip("\n")


def _moved(result: RunResult) -> str:
    """What the moves did. A slot that is given up for good is parked, and counts as no unit moved."""
    if result.currency == "bytes":
        return f"{text.count(result.moves)}, {text.count(result.units_moved)} rows given to ids"
    if result.currency not in UNITS:
        return text.count(result.moves)
    done = [f"{text.count(result.units_moved)} units moved"] if result.units_moved or not result.parked else []
    gone = result.parked if result.currency == "weights" else 0
    done += [f"{text.count(gone)} weights released for good"] if gone else []
    return ", ".join([text.count(result.moves), *done])


def preview(found: Preview, seed: int) -> str:
    """What a run would do."""
    return "\n".join([found.data, *_columns(found), *_arm(found), f"1 run, seed {seed}"])


def previews(found: Sequence[Preview], seeds: Sequence[int]) -> str:
    """What a comparison would do; its arms share the data."""
    runs = len(found) * len(seeds)
    count = f"{runs:,} run{'s' * (runs != 1)}: {len(found)} arm{'s' * (len(found) != 1)}"
    arms = ["\n".join(_arm(one)) for one in found]
    data = "\n".join([found[0].data, *_columns(found[0])])
    return "\n\n".join([data, *arms, f"{count}, seed{'s' * (len(seeds) != 1)} {', '.join(map(str, seeds))}"])


def _looked(tables: Mapping[str, Any]) -> str:
    """Columns and their ids, from a result."""
    ids = ", ".join(f"{plain(name)} {count:,}" for name, count in tables["columns"].items()) + " ids"
    if tables["budget"] is None:
        return f"{ids}, full tables of {text.size(tables['full_bytes'])}"
    given = "" if tables["moves"] is None else f"; {tables['rows_given']:,} rows given in {tables['moves']:,} moves"
    held = f"{tables['held']:,} held + {tables['parked']:,} parked"
    return f"{ids}; {tables['budget']:,} of {tables['full_bytes']:,} bytes = {held}{given}"


def _named(names: Sequence[str]) -> str:
    """The first of some names, and how many there are."""
    shown = ", ".join(plain(name) for name in names[:MOST_NAMES])
    return f"{len(names):,}: {shown}" + (", ..." if len(names) > MOST_NAMES else "")


def _widths(widths: Mapping[str, int]) -> str:
    """Hidden layers and their units at the end."""
    return ", ".join(f"{plain(name)} {width:,}" for name, width in widths.items())


def _columns(found: Preview) -> list[str]:
    """What the columns of a csv file became, where there is more to say than that they are numbers."""
    columns, lines = found.columns, []
    if columns.categories:
        counts = ", ".join(f"{plain(name)} {count}" for name, count in columns.categories)
        lines.append(f"categories, an input for each value: {counts}")
    for one in columns.looked:
        lines.append(
            f"looked up: {plain(one.name)}, {one.ids:,} ids; {text.share(one.unknown)} of test rows have another"
        )
    if lines:
        lines.append(f"rule: {RULE}")
    return lines + [
        f"hint: {plain(name)} holds whole numbers and is taken as one; if they are names, write --ids {plain(name)}"
        for name in columns.hints
    ]


def _tables(tables: TablePlan) -> str:
    """How ids are looked up."""
    budget, full = tables.budget, f"{tables.full_bytes:,} bytes with their moments"
    if budget is None:
        return f"tables: full, {tables.ids:,} rows of {tables.costs.dim} numbers, {full}"
    own = f", {tables.to_own:,} to own, sketch {tables.sketch_bytes:,} bytes" if tables.to_own else ""
    own += ", two of them for each id" if tables.doubled else ""
    return f"tables: {budget:,} bytes, {budget / tables.full_bytes:.1%} of {full}; {tables.shared:,} shared rows{own}"


def _arm(found: Preview) -> list[str]:
    lines = [
        f"{found.method}: {found.model}, {found.params:,} trainable parameters",
        *([_tables(found.tables)] if found.tables is not None else []),
        f"{found.optimizer}, learning rate {found.lr:g}",
    ]
    schedule = found.length.schedule() if found.length and found.moves else None
    still = "no moves"
    if found.method == "prune_after":
        still += (
            f"; one cut to the budget after step {turn(found.length.total):,}" if found.length else "; one cut half way"
        )
    if found.length is None:
        lines.append(
            "steps: as many as the time budget allows, measured at the start" + f"; {still}" * (not found.moves)
        )
    else:
        lines.append(f"{found.length.total:,} steps; " + (f"moves {schedule}" if schedule else still))
    return [*lines, *([str(found.plan)] if found.plan is not None else [])]


def comparison(found: Comparison) -> str:
    """All arms, and what may be said of them."""
    first = found.rows[0].arm
    many = len(found.seeds) > 1
    header = ["arm", found.metric, *(["sd"] if many else []), f"to {first}", *(["95 % interval"] if many else [])]
    rates = [row.runs[0].lr for row in found.rows]
    tuned = len(set(rates)) > 1
    header += [*(["rate"] if tuned else []), "seconds", "parameters", "peak bytes", "in training"]
    rows = []
    for row in found.rows:
        line = [row.arm + ("*" if row.arm == "dense" else ""), text.measure(found.metric, row.mean)]
        line += [_points(found.metric, row.deviation, sign=False)] if many else []
        line.append(_points(found.metric, row.difference.mean if row.difference else None))
        line += [_interval(found.metric, row)] if many else []
        line += [f"{row.runs[0].lr:g}"] if tuned else []
        line += [f"{row.seconds:.1f}", text.count(row.params), text.count(row.peak_bytes)]
        line.append(text.count(row.train_peak_bytes))
        rows.append(line)
    notes = [_note(row) for row in found.rows]
    seeds = f"{len(found.seeds)} seed{'s' * many}; {found.why}"
    notes.append("peak bytes: memory over the loaded data; in training: without building the model and its start")
    return "\n".join([text.table(header, rows), *[note for note in notes if note], seeds])


def _note(row: Row) -> str:
    if row.arm == "dense":
        return "* dense has no budget: it stands here for comparison"
    if row.excess is not None:
        return f"{row.arm}: {row.runs[0].model}, {row.excess:,} parameters more than the sparse model"
    if row.began_with_more:
        budget = row.runs[0].budget
        before = "every weight for half the run" if row.arm == "prune_after" else f"up to {text.count(budget)} weights"
        return f"{row.arm}: held {before}, and {text.count(row.held)} at the end"
    return ""


def _points(metric: str, value: float | None, sign: bool = True) -> str:
    if value is None:
        return "-"
    scale = 100 if metric == "accuracy" else 1
    return f"{scale * value:{'+' if sign else ''}.{2 if metric == 'accuracy' else 4}f}"


def _interval(metric: str, row: Row) -> str:
    found = row.difference
    if found is None or found.low is None or found.high is None:
        return "-"
    return f"{_points(metric, found.low)} to {_points(metric, found.high)}"
