"""Texts are checked before anything slow, and every complaint names the thing, the place and the remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import realloc.finetune.texts as texts
from realloc.errors import ConfigError
from realloc.finetune.batches import CHUNK, Batches
from realloc.finetune.budget import Budget
from realloc.finetune.config import finetune_config

HEAD = "text,label\n"
BODY = "".join(f"some words {i},{'ab'[i % 2]}\n" for i in range(12))


def read(path: Path, body: str, **more: Any) -> texts.Texts:
    path.write_text(body, encoding="utf-8")
    return texts.read(finetune_config({"model": "m", "data": str(path), **more}))


def test_texts_are_parted_and_their_labels_numbered(tmp_path: Path) -> None:
    found = read(tmp_path / "a.csv", "\ufeff" + HEAD + BODY)
    assert found.classes == ("a", "b")
    assert len(found.train) == 11 and len(found.held) == 1 and not found.test
    assert {row.label for row in (*found.train, *found.held)} == {0.0, 1.0}
    again = read(tmp_path / "a.csv", HEAD + BODY)
    assert again == found
    assert read(tmp_path / "a.csv", HEAD + BODY, seed=1) != found


@pytest.mark.parametrize(
    ("body", "more", "says"),
    [
        ("", {}, "is empty"),
        (HEAD, {}, "is empty"),
        (HEAD + BODY + "one,cell,more\n", {}, "line 14: 3 cells, the header has 2; quote"),
        (HEAD + BODY + " ,a\n", {}, "row 13: the text is empty"),
        (HEAD + BODY + "words,\n", {}, "row 13: column 'label' has no label"),
        (HEAD + BODY.replace(",b", ",a"), {}, "every label of .* is 'a'"),
        (HEAD + "word,a\nword,b\n", {}, "has 2 texts"),
        ("words,mark\n" + BODY, {}, "which column of a.csv is the text"),
        (HEAD + BODY, {"text": "txt"}, "has no column 'txt'; nearest: 'text'"),
        (HEAD + BODY, {"task": "regression"}, "'[ab]' is no number"),
        (HEAD + "".join(f"word,{i}\n" for i in range(300)), {}, "300 different labels in 300 texts"),
        (HEAD + 'a "quote,a\n' + '"never closed', {}, "row|cells|CSV"),
    ],
)
def test_what_cannot_be_trained_on(body: str, more: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        read(tmp_path / "a.csv", body, **more)


def test_labels_of_the_evaluation_file(tmp_path: Path) -> None:
    judge = tmp_path / "eval.csv"
    judge.write_text(HEAD + "words,c\n")
    with pytest.raises(ConfigError, match=r"eval.csv row 1: label 'c' never occurs"):
        read(tmp_path / "a.csv", HEAD + BODY, eval=str(judge))
    judge.write_text("text\nwords\n")
    with pytest.raises(ConfigError, match=r"which column of eval.csv is the label"):
        read(tmp_path / "a.csv", HEAD + BODY, eval=str(judge))


def test_hostile_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no file"):
        texts.read(finetune_config({"model": "m", "data": str(tmp_path)}))
    path = tmp_path / "b.csv"
    path.write_bytes(b"text,label\n\xff\xfe\x00,a\n")
    with pytest.raises(ConfigError, match="cannot be read as CSV in UTF-8"):
        texts.read(finetune_config({"model": "m", "data": str(path)}))
    path = tmp_path / "b.parquet"
    path.write_bytes(b"PAR1 not at all")
    with pytest.raises(ConfigError, match="cannot be read as parquet"):
        texts.read(finetune_config({"model": "m", "data": str(path)}))
    with pytest.raises(ConfigError, match="nearest: 'rating'"):
        texts.read(finetune_config({"model": "m", "data": "reviews:ratings"}))


def test_parquet_and_the_bundled_reviews(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "a.parquet"
    columns = {"text": ["some words"] * 20, "label": [i % 2 for i in range(20)]}
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    assert texts.read(finetune_config({"model": "m", "data": str(path)})).classes == ("0", "1")
    found = texts.read(finetune_config({"model": "m", "data": "reviews:department", "rows": 100}))
    assert len(found.classes) == 6 and len(found.test) == 4000 and len(found.train) == 90
    assert not {row.text for row in found.test} & {row.text for row in found.train}


@pytest.mark.parametrize("words", ["", "s", "0s", "-5s", "5", "101%", "k", "1e3", "3 apples", "0.0001k"])
def test_what_is_no_budget(words: str) -> None:
    if words == "5":
        assert Budget.read(words).parameters == 5
        return
    with pytest.raises(ConfigError, match="is no budget"):
        Budget.read(words)


def test_budgets_in_words() -> None:
    assert Budget.read("1.5M") == Budget(parameters=1_500_000)
    assert Budget.read("2min").seconds == 120
    assert Budget.read("5%").parameters_of(1000) == 50
    with pytest.raises(ConfigError, match="both set the run's length"):
        finetune_config({"model": "m", "data": "d", "budget": "60s", "epochs": 2})


@given(st.lists(st.integers(1, 30), min_size=1, max_size=200), st.integers(1, 7), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_batches_lose_and_double_nothing_and_depend_on_the_step_alone(lengths: list[int], size: int, seed: int) -> None:
    rows = [[i + 1] * length for i, length in enumerate(lengths)]
    made = [Batches(rows, torch.arange(len(rows)), size, seed, pad=0) for _ in range(2)]
    for epoch in range(2):
        seen: list[int] = []
        for place in range(made[0].per_epoch):
            batch, labels = made[0].at(epoch * made[0].per_epoch + place)
            other, same = made[1].at(epoch * made[0].per_epoch + place)
            assert torch.equal(batch["input_ids"], other["input_ids"]) and torch.equal(labels, same)
            seen += labels.tolist()
            assert batch["attention_mask"].sum(1).tolist() == [lengths[i] for i in labels.tolist()]
            assert batch["input_ids"].shape[1] == max(lengths[i] for i in labels.tolist())
        assert sorted(seen) == list(range(len(rows)))


def test_rows_of_a_batch_are_about_as_long_as_each_other() -> None:
    lengths = torch.randint(1, 100, (1280,), generator=torch.Generator().manual_seed(0)).tolist()
    batches = Batches([[1] * n for n in lengths], torch.zeros(1280), 32, 0, pad=0)
    area = sum(batches.at(step)[0]["input_ids"].numel() for step in range(batches.per_epoch))
    assert CHUNK > 1 and area < 1.1 * sum(lengths)
