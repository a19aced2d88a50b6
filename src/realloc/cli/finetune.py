"""``realloc finetune``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

import realloc.cli.flags as flags
import realloc.cli.outcome as outcome
import realloc.cli.several as several
import realloc.cli.text as text
import realloc.finetune.arms.table as arms
from realloc.cli.screen import Screen
from realloc.errors import ConfigError, plain
from realloc.finetune.config import FinetuneConfig, finetune_config
from realloc.finetune.preview import account, preview
from realloc.finetune.result import FinetuneResult
from realloc.finetune.run import check_same
from realloc.finetune.run import finetune as finetune_run
from realloc.finetune.run import resume as resume_run
from realloc.finetune.seeds import check_same as same_series
from realloc.finetune.seeds import is_series, series
from realloc.record.folder import read_result
from realloc.train.progress import LOADING, Progress, Tell

Words = str | None


def _option(name: str, says: str, shown: str | bool = False) -> Any:
    return typer.Option(name, help=says, show_default=shown)


def finetune(
    model: Annotated[Words, _option("--model", "a folder, a hub name that is here, minilm or smollm2")] = None,
    data: Annotated[
        Words,
        _option("--data", "FILE.csv, FILE.parquet, FILE.txt (causal-lm), or reviews:department|rating|recommended"),
    ] = None,
    evaluation: Annotated[Words, _option("--eval", "texts that judge, read once at the end")] = None,
    text_column: Annotated[Words, _option("--text", "column of the texts", "text, sentence or review")] = None,
    label: Annotated[Words, _option("--label", "column to foretell", "label, target, y or class")] = None,
    task: Annotated[
        Words, _option("--task", "text-classification, regression, causal-lm", "text-classification")
    ] = None,
    method: Annotated[
        Words,
        _option("--method", ", ".join(arms.NAMES), "focus"),
    ] = None,
    settings: flags.Settings = None,
    budget: Annotated[Words, _option("--budget", "60s, 300k trainable parameters, or 5% of the model's")] = None,
    epochs: Annotated[Words, _option("--epochs", "times through the texts", "3")] = None,
    batch_size: Annotated[Words, _option("--batch-size", "texts per step", "32")] = None,
    lr: Annotated[Words, _option("--lr", "learning rate; it decays to 0", "the method's usual one")] = None,
    tokens: Annotated[Words, _option("--tokens", "longest text, in tokens", "128, or what the model reads")] = None,
    rows: Annotated[Words, _option("--rows", "training texts to take", "all")] = None,
    eval_rows: Annotated[Words, _option("--eval-rows", "evaluation texts to take, the first ones", "all")] = None,
    layers: Annotated[Words, _option("--layers", "layers of the model to keep, the lowest ones", "all")] = None,
    cache: Annotated[Words, _option("--cache", "bytes that frozen layers' activations may take", "1GB")] = None,
    seed: flags.Seed = None,
    seeds: Annotated[
        Words, _option("--seeds", "how many (3), or which (0,1,2): one run each, in a folder of its own in --out")
    ] = None,
    threads: flags.Threads = None,
    out: flags.Out = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the run in --out, if there is one")] = False,
    dry_run: flags.DryRun = False,
    json: flags.Json = False,
) -> None:
    """Fine-tune a pre-trained transformer, with time and parameters spent only where the task needs them."""
    with outcome.told():
        flags.check_paths(model, data, evaluation, out)
        given = {
            "model": model, "data": data, "eval": evaluation, "text": text_column, "label": label, "task": task,
            "method": method, "settings": flags.settings_of(settings) or None, "budget": budget, "epochs": epochs,
            "batch_size": batch_size, "lr": lr, "tokens": tokens, "rows": rows, "seed": seed,
            "eval_rows": eval_rows, "layers": layers, "threads": threads, "cache": cache,
        }  # fmt: skip
        given = {key: value for key, value in given.items() if value is not None}
        if seed is not None and seeds is not None:
            raise ConfigError(f"--seed {plain(seed)} and --seeds {plain(seeds)} both name seeds; give one of the two")
        several_seeds = None if seeds is None else flags.seeds_of(seeds)
        if resume and out is None:
            raise ConfigError("--resume needs the run's folder; write --out FOLDER")
        if resume and dry_run and out is not None and (is_series(out) or (out / "config.json").exists()):
            raise ConfigError(
                f"--dry-run tells of a run before it begins, and {plain(str(out))} holds one that has begun; see it "
                f"by: realloc inspect {plain(str(out))}; or leave one of --resume and --dry-run out"
            )
        if not (resume and out is not None and _gone_on(out, given, several_seeds, json)):
            _begin(given, several_seeds, out, dry_run, json)


def _gone_on(out: Path, given: dict[str, Any], seeds: tuple[int, ...] | None, json: bool) -> bool:
    """Go on with what a folder holds, if it holds anything."""
    if is_series(out):
        several.present(same_series(out, given, seeds), out, json, resumed=True)
        return True
    if seeds is None and (out / "config.json").exists():
        check_same(out, given)
        go_on(out, json)
        return True
    return False


def _begin(given: dict[str, Any], seeds: tuple[int, ...] | None, out: Path | None, dry_run: bool, json: bool) -> None:
    for flag in ("model", "data"):
        if flag not in given:
            raise ConfigError(f"--{flag} is missing; for a first try: --model minilm --data reviews:department")
    config = finetune_config(given)
    arms.check(config.method, config.settings)
    arms.check_cache(config.method, config.cache)
    runs = None if seeds is None else series(config, seeds)
    if dry_run:
        _foretell(config if runs is None else runs.configs[0], seeds, json)
    elif runs is not None:
        several.present(runs, out, json)
    else:
        with Screen() as screen:
            result = finetune_run(config, out, _announced(screen.show(config.method), config, out))
        present(result, json)


def go_on(folder: Path, json: bool) -> None:
    """Go on with a run from its last checkpoint; of a finished one, print the result."""
    if read_result(folder) is not None:
        outcome.talk(f"{plain(str(folder))} is finished; this is its result")
    with Screen() as screen:
        result = resume_run(folder, screen.show(folder.name))
    present(result, json)


def _foretell(config: FinetuneConfig, seeds: Sequence[int] | None, json: bool) -> None:
    found = preview(config, lambda: outcome.talk("timing a few steps: of a large model that takes minutes"))
    if json:
        outcome.data_json(found.as_json() | ({} if seeds is None else {"seeds": list(seeds)}))
        return
    lines = [str(found)]
    if seeds is not None:
        many = "s" * (len(seeds) != 1)
        lines.append(f"  {len(seeds)} run{many}, seed{many} {', '.join(map(str, seeds))}, one after the other")
    outcome.data("\n".join(lines))


def _announced(tell: Tell, config: FinetuneConfig, out: Path | None) -> Tell:
    """Name the run once it is sure that there will be one: after loading."""
    said = False

    def told(progress: Progress) -> None:
        nonlocal said
        if not said and progress.stage != LOADING:
            said = True
            where = "; nothing is saved without --out FOLDER" if out is None else f", recorded in {out}"
            outcome.talk(f"{config.method} on {plain(config.data)}{where}")
        tell(progress)

    return told


def present(result: FinetuneResult, json: bool) -> None:
    """Print a result for people or for programs."""
    outcome.data_json(result.as_json()) if json else outcome.data(_told(result))


def _told(result: FinetuneResult) -> str:
    chosen = ", ".join(f"{key}={value}" for key, value in result.settings.items())
    rows = [
        ["method", f"{result.method}: {result.used} {chosen}".rstrip()],
        ["data, model", f"{result.data}, {result.model}"],
        *([["why", result.why]] if result.why else []),
        [f"test {result.metric}", text.measure(result.metric, result.test_metric)],
        ["held out", ", ".join(f"{key} {value:.4f}" for key, value in result.held.items())],
        ["trained", f"{result.trainable:,} of {result.parameters:,} parameters, learning rate {result.lr:g}"],
        *([] if result.ledger is None else [["ledger", account(result.ledger)]]),
        ["training", f"{text.time(result.train_seconds)}, {result.steps:,} steps, {result.epochs:.3g} epochs"],
        ["memory", f"{text.size(result.peak_bytes)} over the loaded weights; optimizer state "
                   f"{text.size(result.optimizer_bytes)}, cache {text.size(result.cached_bytes)}"],
    ]  # fmt: skip
    if result.predicted_lora_seconds is not None:
        rows.append(["uniform LoRA", f"would take about {text.time(result.predicted_lora_seconds)}"])
    if result.resumed_from is not None:
        rows.append(["resumed from", f"step {result.resumed_from:,}"])
    if result.folder is not None:
        rows.append(["record", result.folder])
        rows.append(["model", str(Path(result.folder) / "model")])
    return text.table(["", ""], rows, left=2).lstrip("\n")
