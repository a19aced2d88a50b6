"""What stays the same over a run: texts as tokens, cut in three, and the pre-trained model. Made before the clock."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

import realloc.finetune.arms.table as arms
import realloc.finetune.texts as texts
import realloc.finetune.weights as weights
from realloc.errors import ConfigError, plain
from realloc.finetune.aim import Aim
from realloc.finetune.batches import Batches, chunked, tokenise
from realloc.finetune.config import FinetuneConfig
from realloc.finetune.weights import Loaded
from realloc.sites.blocks import blocks_of


@final
@dataclass(frozen=True, eq=False)
class Scene:
    """``held`` is a slice of the training texts that decisions may look at; ``test`` is read once, at the end."""

    config: FinetuneConfig
    loaded: Loaded
    aim: Aim
    train: Batches
    held: Batches
    test: Batches | None
    classes: tuple[str, ...]


def prepared(config: FinetuneConfig) -> Scene:
    """Load texts and weights, tokenise, and cut the held-out slice.

    Raises:
        ConfigError: anything a user can mend.
    """
    arms.check(config.method, config.settings)
    found = texts.read(config)
    loaded = weights.load(config, max(1, len(found.classes)))
    blocks_of(loaded.base)
    tokens, labels = _tokens(found.train, config, loaded)
    judged, judged_labels = _tokens(found.test, config, loaded) if found.test else ([], [])
    _check_pieces("data", config.data, len(tokens), 2, loaded)
    if config.eval is not None:
        _check_pieces("eval", config.eval, len(judged), 1, loaded)
    kept, back = texts.held_out(labels, config.seed, by_class=config.task == "text-classification")

    def part(index: Sequence[int]) -> Batches:
        return _batches([tokens[i] for i in index], [labels[i] for i in index], config, loaded)

    train = part(kept)
    aim = _standard(train.labels) if config.task == "regression" else Aim(config.task)
    test = _batches(judged, judged_labels, config, loaded) if judged else None
    return Scene(config, loaded, aim, train, part(back), test, found.classes)


def _tokens(rows: Sequence[texts.Row], config: FinetuneConfig, loaded: Loaded) -> tuple[list[list[int]], list[float]]:
    if config.task == "causal-lm":
        pieces = chunked(rows, loaded.tokenizer, loaded.tokens)
        return pieces, [0.0] * len(pieces)
    return tokenise(rows, loaded.tokenizer, loaded.tokens), [row.label for row in rows]


def _check_pieces(what: str, where: str, pieces: int, least: int, loaded: Loaded) -> None:
    """Of a causal-lm only a text can be too short; the rows of a table were counted before."""
    if pieces < least:
        shorter = ", or lower --tokens" if pieces and loaded.tokens > 2 else ""
        raise ConfigError(
            f"{what} '{plain(where)}' gives {pieces} piece(s) of 2 to {loaded.tokens} tokens, and at least {least} are "
            f"needed; give more text{shorter}"
        )


def _standard(labels: Tensor) -> Aim:
    """Mean and spread of the numbers ``[n]`` to foretell, in float64: float32 does not tell 100000000.5 from its mean.

    Raises:
        ConfigError: they are all the same.
    """
    least, most = labels.min(), labels.max()
    if least == most:
        raise ConfigError("every label of the training texts is the same number; there is nothing to learn")
    width = most - least
    parts = (labels - least) / width  # from 0 to 1: squares of tiny numbers vanish, sums of large ones are rounded
    return Aim("regression", float(least + width * parts.mean()), float(width * parts.std(correction=0)))


def _batches(tokens: list[list[int]], labels: list[float], config: FinetuneConfig, loaded: Loaded) -> Batches:
    pad = loaded.tokenizer.pad_token_id
    marks = torch.tensor(labels, dtype=torch.float64)
    return Batches(tokens, marks, config.batch_size, config.seed, 0 if pad is None else int(pad))
