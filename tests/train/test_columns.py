"""What the columns of a csv file become, beside a plain reading: numbers, categories, ids to look up."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from tables import ratings

from realloc.errors import ConfigError
from realloc.train import data
from realloc.train.columns import MANY, Looked, ids_of, known_values
from realloc.train.dataset import HOLDOUT, TEST, Cells, parted


def plainly(path: str) -> tuple[list[dict[str, str]], list[int], list[int]]:
    """The rows of a file, and the numbers of its training and its test rows."""
    with Path(path).open(newline="") as file:
        rows = list(csv.DictReader(file))
    kept, back = parted(len(rows), TEST, "csv test")
    return rows, kept[parted(len(kept), HOLDOUT, "csv validation")[0]].tolist(), back.tolist()


def test_text_is_looked_up_where_it_has_many_values_and_counted_out_where_it_has_few(tmp_path: Path) -> None:
    path = ratings(tmp_path)
    found, (rows, training, test) = data.load(path), plainly(path)
    columns = found.columns
    assert columns.inputs == ("age", "genre=comedy", "genre=drama", "genre=war")
    assert columns.categories == (("genre", 3),) and columns.hints == ()
    for place, name in enumerate(("user", "film")):
        known = sorted({rows[i][name] for i in training})
        unknown = sum(rows[i][name] not in known for i in test) / len(test)
        assert columns.looked[place] == Looked(name, len(known), unknown) and len(known) > MANY
        assert found.train.ids is not None and found.test.ids is not None
        assert [known[i] for i in found.train.ids[:, place].tolist()] == [rows[i][name] for i in training]
        seen = [i < len(known) for i in found.test.ids[:, place].tolist()]
        assert seen == [rows[i][name] in known for i in test]
    for part, where in ((found.train, training), (found.test, test)):
        genres = [columns.inputs[1 + one].removeprefix("genre=") for one in part.x[:, 1:].argmax(1).tolist()]
        assert genres == [rows[i]["genre"] for i in where]
        assert bool((part.x[:, 1:].sum(1) == 1).all()) and set(part.x[:, 1:].flatten().tolist()) == {0.0, 1.0}
    assert abs(float(torch.cat([found.train.x, found.validation.x])[:, 0].std(correction=0)) - 1) < 1e-5
    assert "4 features, 2 looked up" in found.describe()


def test_the_parts_give_the_model_numbers_and_ids(tmp_path: Path) -> None:
    found = data.load(ratings(tmp_path))
    x, y = found.train.at(slice(0, 3))
    assert isinstance(x, Cells) and x.numbers.shape == (3, 4) and x.ids.shape == (3, 2) and y.shape == (3,)
    plain, _ = data.load("digits").train.at(torch.tensor([1, 2]))
    assert isinstance(plain, torch.Tensor) and plain.shape == (2, 64)


def test_whole_numbers_are_numbers_until_they_are_named(tmp_path: Path) -> None:
    path = ratings(tmp_path, whole=True)
    taken = data.load(path)
    assert "user" in taken.columns.inputs and [one.name for one in taken.columns.looked] == ["film"]
    for ids in (("user",), ("user,film",), ("film", "user")):
        assert [one.name for one in data.load(path, ids=ids).columns.looked] == ["user", "film"]
    assert data.load(path, ids=("genre",)).columns.looked[1].ids == 3  # named, however few
    named = tmp_path / "named.csv"
    named.write_text(Path(path).read_text().replace("user,film", "user_id,film", 1))
    assert data.load(str(named)).columns.hints == ("user_id",)
    assert data.load(str(named), ids=("user_id",)).columns.hints == ()


def test_a_column_of_nothing_but_ids_is_enough(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("film,label\n" + "".join(f"f{i % 70},{i % 2}\n" for i in range(700)))
    found = data.load(str(path))
    assert found.features == 0 and found.columns.looked[0].ids == 70


def test_ids_that_training_has_not_are_stable_and_beyond_the_others() -> None:
    known = known_values("t", ["b", "a", "c"], torch.tensor([0, 1]))
    assert known == {"a": 0, "b": 1}
    first, again = ids_of(["c", "d", "c"], known), ids_of(["d", "c"], known)
    assert first[0] == first[2] == again[1] and first[1] == again[0] != first[0]
    assert first.dtype == torch.int64 and int(first.min()) > 2**24


@pytest.mark.parametrize(
    ("old", "new", "ids", "words"),
    [
        ("\nu5,", "\n,", (), ["row", "column 'user'", "missing ('')", "write a word for what is missing"]),
        ("\nu5,", "\nNaN,", (), ["column 'user'", "missing ('NaN')"]),
        (",war,", ",,", (), ["column 'genre'", "missing"]),
        ("", "", ("usr",), ["no column 'usr' for --ids", "user, film, age", "nearest: 'user'"]),
        ("", "", ("user,genr",), ["no column 'genr' for --ids", "nearest: 'genre'"]),
        ("", "", ("label",), ["'label'", "is the label", "--ids"]),
        ("", "", ("",), ["no column ''"]),
    ],
)
def test_bad_columns_are_refused_with_the_place_and_the_remedy(
    tmp_path: Path, old: str, new: str, ids: tuple[str, ...], words: list[str]
) -> None:
    path = ratings(tmp_path)
    text = Path(path).read_text()
    Path(path).write_text(text.replace(old, new, 1) if old else text)
    with pytest.raises(ConfigError) as error:
        data.load(path, ids=ids)
    for word in words:
        assert word in str(error.value), str(error.value)


def test_a_word_among_numbers_is_a_mistake_unless_the_column_is_named(tmp_path: Path) -> None:
    path = tmp_path / "books.csv"
    path.write_text(
        "isbn,label\n" + "".join(f"{1000 + i % 80}{'X' if i % 9 == 0 else ''},{i % 2}\n" for i in range(400))
    )
    with pytest.raises(ConfigError, match=r"row 2, column 'isbn': '1000X' is text .* name it by --ids"):
        data.load(str(path))
    assert data.load(str(path), ids=("isbn",)).columns.looked[0].ids > MANY


def test_ids_are_for_csv_files() -> None:
    with pytest.raises(ConfigError, match="ids 'user' has no meaning for data 'digits'"):
        data.load("digits", ids=("user",))
