"""Texts of made words, whose label is a word."""

from __future__ import annotations

import csv
import random
from pathlib import Path

WORDS = [f"w{i}" for i in range(80)]
LABELS = ("bad", "fine", "good")


def rows(count: int, seed: int) -> list[tuple[str, str]]:
    """Texts of 3 to 12 words; which third of the vocabulary the words come from most often is the label."""
    draw = random.Random(seed)
    found = []
    for _ in range(count):
        label = draw.randrange(3)
        mine = WORDS[label * 26 : label * 26 + 26]
        text = [draw.choice(mine if draw.random() < 0.6 else WORDS) for _ in range(draw.randint(3, 12))]
        found.append((" ".join(text), LABELS[label]))
    return found


def write(path: Path, found: list[tuple[str, str]], header: tuple[str, str] = ("text", "label")) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *found])
    return path
