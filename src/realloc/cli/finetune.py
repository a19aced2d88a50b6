"""``realloc finetune``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

import realloc.cli.flags as flags
import realloc.cli.outcome as outcome
import realloc.cli.text as text
from realloc.cli.screen import Screen
from realloc.errors import ConfigError, plain
from realloc.finetune.config import finetune_config
from realloc.finetune.result import FinetuneResult

Words = str | None


def _option(name: str, says: str, shown: str | bool = False) -> Any:
    return typer.Option(name, help=says, show_default=shown)


def finetune(
    model: Annotated[Words, _option("--model", "a folder, a hub name, minilm or smollm2")] = None,
    data: Annotated[
        Words, _option("--data", "FILE.csv, FILE.parquet, or reviews:department (rating, recommended)")
    ] = None,
    evaluation: Annotated[Words, _option("--eval", "texts that judge, read once at the end")] = None,
    text_column: Annotated[Words, _option("--text", "column of the texts", "text, sentence or review")] = None,
    label: Annotated[Words, _option("--label", "column to foretell", "label, target, y or class")] = None,
    task: Annotated[Words, _option("--task", "or regression, or causal-lm", "text-classification")] = None,
    method: Annotated[Words, _option("--method", "focus, topk, lora, full, lisa, badam, ...", "focus")] = None,
    settings: flags.Settings = None,
    budget: Annotated[Words, _option("--budget", "60s, 300k trainable parameters, or 5% of the model's")] = None,
    epochs: Annotated[Words, _option("--epochs", "times through the texts", "3")] = None,
    batch_size: Annotated[Words, _option("--batch-size", "texts per step", "32")] = None,
    lr: Annotated[Words, _option("--lr", "learning rate; it decays to 0", "the method's usual one")] = None,
    tokens: Annotated[Words, _option("--tokens", "longest text, in tokens", "128")] = None,
    rows: Annotated[Words, _option("--rows", "training texts to take", "all")] = None,
    eval_rows: Annotated[Words, _option("--eval-rows", "evaluation texts to take", "all")] = None,
    seed: flags.Seed = None,
    threads: flags.Threads = None,
    out: flags.Out = None,
    dry_run: flags.DryRun = False,
    json: flags.Json = False,
) -> None:
    """Fine-tune a pre-trained transformer, with time and parameters spent only where the task needs them."""
    with outcome.told():
        import_check()
        values = {
            "model": model, "data": data, "eval": evaluation, "text": text_column, "label": label, "task": task,
            "method": method, "settings": flags.settings_of(settings), "budget": budget, "epochs": epochs,
            "batch_size": batch_size, "lr": lr, "tokens": tokens, "rows": rows,
            "eval_rows": eval_rows, "seed": seed, "threads": threads,
        }  # fmt: skip
        for flag in ("model", "data"):
            if values[flag] is None:
                raise ConfigError(f"--{flag} is missing; for a first try: --model minilm --data reviews:department")
        config = finetune_config({key: value for key, value in values.items() if value is not None})
        # these two load torch, transformers and peft
        import realloc.finetune.preview as preview
        import realloc.finetune.session as session

        if dry_run:
            found = preview.preview(config)
            outcome.data_json(found.as_json()) if json else outcome.data(str(found))
            return
        if out is not None and out.exists() and any(out.iterdir()):
            raise ConfigError(f"folder '{plain(str(out))}' is not empty; give another --out")
        outcome.talk(f"{config.method} on {plain(config.data)}")
        with Screen() as screen:
            result = session.run(config, out, screen.show(config.method))
        outcome.data_json(result.as_json()) if json else outcome.data(told(result))


def import_check() -> None:
    """Say what to install before anything else fails."""
    from importlib.util import find_spec

    if find_spec("transformers") is None:
        raise ConfigError("fine-tuning needs transformers: pip install 'realloc[finetune]'")


def told(result: FinetuneResult) -> str:
    """A result for people."""
    lines = [f"{result.method} on {plain(result.data)}, seed {result.seed}: {text.time(result.train_seconds)}"]
    if result.why:
        lines.append(f"  {result.why}")
    if result.predicted_lora_seconds is not None:
        lines.append(f"  uniform LoRA would take about {text.time(result.predicted_lora_seconds)}")
    for name, found in (("held out", result.held), ("evaluation", result.test)):
        if found is not None:
            lines.append(f"  {name}: " + ", ".join(f"{key} {value:.4f}" for key, value in found.items()))
    lines.append(
        f"  {result.trainable:,} of {result.parameters:,} parameters trained for {result.steps:,} steps at rate "
        f"{result.lr:g}; optimizer state {text.size(result.optimizer_bytes)}, cache {text.size(result.cached_bytes)}"
    )
    return "\n".join(lines)
