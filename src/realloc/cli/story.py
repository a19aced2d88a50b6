"""A run folder, read without holding it: also while the run is going on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import realloc.cli.text as text
import realloc.compare.contest as contest
from realloc.finetune.run import KEY
from realloc.finetune.seeds import is_series
from realloc.finetune.seeds import read as read_series
from realloc.record.checkpoint import listing
from realloc.record.events import read
from realloc.record.folder import read_config, read_result


def story(folder: Path) -> dict[str, Any]:
    """Collect what a folder tells of its run, as data; of several runs, what each of them has reached."""
    if (folder / contest.CONTEST).exists():
        found = contest.read(folder)
        runs = {
            f"{name}-seed{seed}": _state(folder / f"{name}-seed{seed}") for seed in found.seeds for name in found.names
        }
        return {"comparison": runs}
    if is_series(folder):
        return {"comparison": {f"seed{seed}": _state(folder / f"seed{seed}") for seed in read_series(folder).seeds}}
    config, result = read_config(folder), read_result(folder)
    config = config.get(KEY, config)
    log = folder / "events.jsonl"
    lines = read(log).lines if log.exists() else ()
    decisions = [line for line in lines if line["kind"] in ("move", "stay", "skip")]
    metrics = [line for line in lines if line["kind"] == "metric"]
    saved = listing(folder / "checkpoints")
    return {
        "config": config,
        "finished": result is not None,
        "checkpoint": int(saved[-1].name.rpartition("-")[2]) if saved else None,
        "moves": sum(line["kind"] == "move" for line in decisions),
        "skipped": sum(line["kind"] == "skip" for line in decisions),
        "sites": _sites(decisions),
        "last_metric": metrics[-1] if metrics else None,
        "result": result,
    }


def _state(folder: Path) -> str:
    if not (folder / "config.json").exists():
        return "not begun"
    return "begun" if read_result(folder) is None else "finished"


def _sites(decisions: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    sites: dict[str, dict[str, int]] = {}
    for line in decisions:
        for name, change in line["sites"].items():
            site = sites.setdefault(name, {"first": change["before"], "now": 0, "released": 0, "acquired": 0})
            site["now"] = change["after"]
            site["released"] += change["released"]
            site["acquired"] += change["acquired"]
    return sites


def tell(found: dict[str, Any]) -> str:
    """The same for people."""
    if "comparison" in found:
        return text.table(["run", "state"], [[name, state] for name, state in found["comparison"].items()], left=2)
    config, result = found["config"], found["result"]
    state = "finished" if found["finished"] else "not finished: realloc resume goes on with it"
    checkpoint = "none" if found["checkpoint"] is None else f"step {found['checkpoint']:,}"
    lines = [
        f"{config.get('method')} on {config.get('data')}, {config.get('model')}, seed {config.get('seed')}: {state}",
        f"last checkpoint: {checkpoint}; {found['moves']} moves, {found['skipped']} skipped",
    ]
    if result is not None:
        metric = text.measure(result["metric"], result["test_metric"])
        lines.append(f"test {result['metric']} {metric}; {text.time(result['train_seconds'])} of training")
    if found["sites"]:
        header = ["site, in units", "at first", "now", "change", "released", "acquired"]
        rows = [
            [name, *map(text.count, (s["first"], s["now"])), f"{s['now'] - s['first']:+,}",
             *map(text.count, (s["released"], s["acquired"]))]
            for name, s in found["sites"].items()
        ]  # fmt: skip
        lines.append(text.table(header, rows))
    return "\n".join(lines)
