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
    assert [row.label for row in found.train] == [0.0, 1.0] * 6 and not found.test
    assert [row.place for row in found.train] == [f"a.csv, row {i}" for i in range(2, 14)]
    assert read(tmp_path / "a.csv", HEAD + BODY) == found
    some, same, other = (read(tmp_path / "a.csv", HEAD + BODY, rows=10, seed=seed) for seed in (0, 0, 1))
    assert some == same != other and len(some.train) == 10


@pytest.mark.parametrize(
    ("body", "more", "says"),
    [
        ("", {}, "is empty"),
        (HEAD, {}, "a header and no rows"),
        (HEAD + BODY + "one,cell,more\n", {}, "row 14: 3 cells where the header has 2; put texts"),
        (HEAD + BODY + "\none\n", {}, "row 15: 1 cells where the header has 2"),
        (HEAD + BODY + " ,a\n", {}, "row 14, column 'text': the text is empty; fill"),
        (HEAD + BODY + "words,\n", {}, r"row 14, column 'label': the label is missing \(''\); fill"),
        (HEAD + BODY + "words,NaN\n", {}, r"the label is missing \('NaN'\)"),
        (HEAD + BODY + "words,\n" * 3, {}, r"row 14, .*the label is missing \(''\), and in 2 more rows; fill"),
        ("text,text\na,b\n", {}, "two columns named 'text'; rename"),
        ("text;label\na;b\n", {}, "separated by something else than commas"),
        ("text,label,y\na,b,c\n", {}, "'label' and 'y' could each be meant"),
        (HEAD + BODY, {"label": "text"}, "both name 'text'"),
        (HEAD + BODY.replace(",b", ",a"), {}, "every label of .* is 'a'"),
        (HEAD + "word,a\nword,b\n", {}, "gives 2 texts; at least 10"),
        (
            "words,mark\n" + BODY,
            {},
            "no column is named by --text, and none is called text or sentence or review .columns: words, mark",
        ),
        (HEAD + BODY, {"text": "txt"}, r"has no column 'txt' for --text \(columns: text, label\); nearest: 'text'"),
        (HEAD + BODY, {"task": "regression"}, "row 2: the label 'a' is no number, which --task regression needs"),
        (HEAD + "".join(f"word,{i}\n" for i in range(300)), {}, "300 different labels in 300 texts"),
        (HEAD + BODY + '"never closed,a\n', {}, r"cannot be read as CSV \(unexpected end of data\); save"),
    ],
)
def test_what_cannot_be_trained_on(body: str, more: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        read(tmp_path / "a.csv", body, **more)


@pytest.mark.parametrize("ending", [".jsonl", ".xlsx", ".tsv", ".csv.gz"])
def test_a_file_of_another_kind_is_named(ending: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"files in '\.\w+' are not read; give a \.csv or \.parquet file"):
        read(tmp_path / f"a{ending}", HEAD + BODY)


@pytest.mark.parametrize(
    ("labels", "order"),
    [
        (["10", "9"], ("9", "10")),
        (["+10", "-9"], ("-9", "+10")),
        (["--1", "1"], ("--1", "1")),
        (["-", "+-2"], ("+-2", "-")),
        (["10", "\u0669"], ("10", "\u0669")),
        (["1" * 5000, "2"], ("1" * 5000, "2")),
    ],
)
def test_labels_are_put_in_order_as_numbers_only_where_all_are(
    labels: list[str], order: tuple[str, ...], tmp_path: Path
) -> None:
    body = "".join(f"some words,{labels[i % 2]}\n" for i in range(12))
    assert read(tmp_path / "a.csv", HEAD + body).classes == order


def test_labels_of_the_evaluation_file(tmp_path: Path) -> None:
    judge = tmp_path / "eval.csv"
    judge.write_text(HEAD + "words,c\n")
    with pytest.raises(
        ConfigError,
        match=r"eval.csv, row 2: the label 'c' occurs in no training text; nearest|occurs in no training text; mend",
    ):
        read(tmp_path / "a.csv", HEAD + BODY, eval=str(judge))
    judge.write_text("text\nwords\n")
    with pytest.raises(ConfigError, match=r"eval.csv: no column is named by --label"):
        read(tmp_path / "a.csv", HEAD + BODY, eval=str(judge))


def test_hostile_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no file"):
        texts.read(finetune_config({"model": "m", "data": str(tmp_path)}))
    path = tmp_path / "b.csv"
    path.write_bytes(b"text,label\n\xff\xfe\x00,a\n")
    with pytest.raises(ConfigError, match=r"cannot be read as CSV .*UTF-8"):
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
    for labels in ([i % 2 + 9 for i in range(20)], [float(i % 2 + 9) for i in range(20)]):
        pyarrow.parquet.write_table(
            pyarrow.table({"text": ["some words"] * 20, "label": labels, "z": [[1]] * 20}), path
        )
        assert texts.read(finetune_config({"model": "m", "data": str(path)})).classes == ("9", "10")
    with pytest.raises(ConfigError, match="row 2, column 'z' holds a list"):
        texts.read(finetune_config({"model": "m", "data": str(path), "text": "z"}))
    pyarrow.parquet.write_table(pyarrow.table({"text": ["words"] * 20, "label": [None, 1.0] * 10}), path)
    with pytest.raises(ConfigError, match=r"a\.parquet, row 2, column 'label': the label is missing"):
        texts.read(finetune_config({"model": "m", "data": str(path)}))
    found = texts.read(finetune_config({"model": "m", "data": "reviews:department", "rows": 100}))
    assert len(found.classes) == 6 and len(found.test) == 4000 and len(found.train) == 100
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


@given(st.lists(st.integers(0, 4), min_size=2, max_size=300), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_the_held_out_slice_is_a_tenth_of_each_class_and_takes_no_last_row(labels: list[int], seed: int) -> None:
    kept, held = texts.held_out([float(n) for n in labels], seed, by_class=True)
    assert sorted([*kept, *held]) == list(range(len(labels))) and kept and held
    assert (kept, held) == texts.held_out([float(n) for n in labels], seed, by_class=True)
    for label in set(labels):
        count = labels.count(label)
        mine = sum(labels[i] == label for i in held)
        if count > 1 or len(set(labels)) < len(labels):
            assert mine < count
        assert len(held) == 1 or abs(mine - 0.1 * count) <= 1.0


def test_a_text_file_and_a_text_column_for_a_language_model(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one two\nthree", encoding="utf-8")
    found = texts.read(finetune_config({"model": "m", "data": str(tmp_path / "a.txt"), "task": "causal-lm"}))
    assert [row.text for row in found.train] == ["one two\nthree"] and not found.classes
    with pytest.raises(ConfigError, match="is plain text without labels; add --task causal-lm"):
        texts.read(finetune_config({"model": "m", "data": str(tmp_path / "a.txt")}))
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe")
    for name, says in (("a.txt", "save it as UTF-8"), ("b.txt", "does not exist")):
        with pytest.raises(ConfigError, match=says):
            texts.read(finetune_config({"model": "m", "data": str(tmp_path / name), "task": "causal-lm"}))
    assert len(read(tmp_path / "a.csv", "text\nsome words\n", task="causal-lm").train) == 1
