"""A made-up table: ratings of films by users, whose taste goes by the id; with a number and a few categories."""

from __future__ import annotations

import random
from pathlib import Path

USERS, FILMS, ROWS = 90, 120, 1500
GENRES = ("drama", "comedy", "war")


def ratings(folder: Path, *, rows: int = ROWS, whole: bool = False) -> str:
    """Write the table; ``whole``: users are numbers. The label is 1 where parities of user and film agree."""
    draw = random.Random(3)
    lines = ["user,film,age,genre,label"]
    for _ in range(rows):
        user, film = int(USERS * draw.random() ** 2), int(FILMS * draw.random() ** 2)
        genre, agree = GENRES[film % 3], (user % 2) == (film % 2)
        name = str(1000 + user) if whole else f"u{user}"
        lines.append(
            f"{name},f{film},{20 + user % 30},{genre},{int(agree) if draw.random() < 0.95 else 1 - int(agree)}"
        )
    path = folder / "ratings.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)
