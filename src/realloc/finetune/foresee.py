"""How long judging the held-out texts will take, and about how many steps the other seconds pay for: measured first."""

from __future__ import annotations

import time
from typing import Final

import torch

from realloc.finetune.aim import JUDGED
from realloc.finetune.pace import Length
from realloc.finetune.scene import Scene
from realloc.modes import as_it_was

PARTS: Final = (0.2, 0.5, 0.8)  # of the held-out rows by length: where some are timed
SAMPLE: Final = 8  # rows at each
MARGIN: Final = 1.25  # of judging: adapters that are not there yet, and a machine that is not always as fast
SLACK: Final = 0.005  # of the seconds, for what nobody measures
STEP: Final = 2.5  # passes forward that a step is thought to cost, before one was taken
LEAST: Final = 100  # steps of the first guess: a run that turns out shorter has not left its warm-up too soon


def foreseen(scene: Scene, seconds: float) -> Length:
    """The length of a run of so many seconds. Leaves the model as it was.

    Args:
        scene: with the model before anything is attached to it.
        seconds: of the whole run, judging included.
    """
    model, held = scene.loaded.model, scene.held
    sizes = [batch["input_ids"].numel() for _, batch, _ in held.sorted(JUDGED)]
    order = held.by_length()
    starts = [max(0, min(int(part * len(order)), len(order) - SAMPLE)) for part in PARTS]
    seconds_of_sample, tokens = 0.0, 0
    with torch.no_grad(), as_it_was(model):
        model.eval()
        scene.aim.losses(model, *held.of(order[:1]))  # the first call loads code
        for start in starts:
            batch, labels = held.of(order[start : start + SAMPLE])
            began = time.perf_counter()
            scene.aim.losses(model, batch, labels)
            seconds_of_sample += time.perf_counter() - began
            tokens += batch["input_ids"].numel()
    token = seconds_of_sample / tokens
    step = STEP * token * scene.train.tokens / scene.train.per_epoch
    reserve = MARGIN * token * sum(sizes) + SLACK * seconds
    return Length(max(LEAST, int((seconds - reserve) / step)), seconds, reserve)
