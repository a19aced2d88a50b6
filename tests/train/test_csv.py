"""A csv file as data: what is taken, and what is refused with row, column, value and remedy."""

from pathlib import Path

import pytest
import torch

from realloc.errors import ConfigError
from realloc.train import data

ROWS = 40


def write(folder: Path, header: str, rows: list[str]) -> str:
    path = folder / "t.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return str(path)


def numbers(i: int) -> str:
    return f"{i},{i * i % 7}"


@pytest.mark.parametrize("name", ["label", "target", "y", "Label"])
def test_the_label_column_is_found_by_name_wherever_it_stands(tmp_path: Path, name: str) -> None:
    found = data.load(
        write(tmp_path, f"{name},a,b", [f"{'odd' if i % 2 else 'even'},{numbers(i)}" for i in range(ROWS)])
    )
    assert found.classes == ("even", "odd")
    assert found.features == 2
    assert [len(part.y) for part in (found.train, found.validation, found.test)] == [29, 3, 8]


def test_a_lone_text_column_at_the_end_is_the_label(tmp_path: Path) -> None:
    assert data.load(write(tmp_path, "a,b,kind", [f"{numbers(i)},k{i % 3}" for i in range(ROWS)])).classes == (
        "k0",
        "k1",
        "k2",
    )


def test_classes_that_are_numbers_are_ordered_as_numbers(tmp_path: Path) -> None:
    found = data.load(write(tmp_path, "a,b,label", [f"{numbers(i)},{(i % 3) * 9}.0" for i in range(ROWS)]))
    assert found.classes == ("0", "9", "18")


def test_features_are_standardised_by_the_training_rows_and_the_split_is_fixed(tmp_path: Path) -> None:
    path = write(tmp_path, "a,constant,label", [f"{i * 3 + 5},7,{i % 2}" for i in range(ROWS)])
    found, again = data.load(path), data.load(path)
    kept = torch.cat([found.train.x, found.validation.x])
    assert torch.allclose(kept[:, 0].mean(), torch.tensor(0.0), atol=1e-6)
    assert torch.allclose(kept[:, 0].std(correction=0), torch.tensor(1.0), atol=1e-6)
    assert not kept[:, 1].any()
    for one, other in zip(
        (found.train, found.validation, found.test), (again.train, again.validation, again.test), strict=True
    ):
        assert torch.equal(one.x, other.x) and torch.equal(one.y, other.y)


def test_regression_standardises_the_label_and_remembers_its_unit(tmp_path: Path) -> None:
    found = data.load(
        write(tmp_path, "a,b,price", [f"{numbers(i)},{100 * i}" for i in range(ROWS)]), "regression", "price"
    )
    y = torch.cat([found.train.y, found.validation.y])
    assert found.outputs == 1 and found.train.y.dtype == torch.float32
    assert abs(float(y.mean())) < 1e-6
    assert 500 < found.label_scale < 2000


GOOD = [f"{numbers(i)},{i % 2}" for i in range(ROWS)]


def with_row(row: str) -> list[str]:
    return [*GOOD[:4], row, *GOOD[4:]]


@pytest.mark.parametrize(
    ("header", "rows", "task", "label", "words"),
    [
        ("a,b,c", GOOD, None, None, ["no label column", "a, b, c", "--label"]),
        ("a,label,y", GOOD, None, None, ["'label'", "'y'", "--label"]),
        ("1,2,3", GOOD, None, None, ["numbers in its first line", "header"]),
        ("a,b,label", GOOD, None, "labl", ["'labl'", "nearest: 'label'"]),
        ("a,b,label", with_row("1,red,0"), None, None, ["row 6", "column 'b'", "'red'", "text"]),
        ("a,b,label", with_row("1,,0"), None, None, ["row 6", "column 'b'", "empty"]),
        ("a,b,label", with_row("1,nan,0"), None, None, ["row 6", "column 'b'", "nan"]),
        ("a,b,label", with_row("inf,1,0"), None, None, ["row 6", "column 'a'", "inf"]),
        ("a,b,label", with_row("1e300,1,0"), None, None, ["row 6", "1e300"]),
        ("a,b,label", with_row("1,2,"), None, None, ["row 6", "label", "missing"]),
        ("a,b,label", with_row("1,2,0.5"), None, None, ["row 6", "0.5", "--task regression"]),
        ("a,b,label", with_row("1,2,high"), "regression", None, ["row 6", "column 'label'", "'high'"]),
        ("a,b,label", with_row("1,2"), None, None, ["row 6", "2 cells", "3"]),
        ("a,b,label", with_row("1,2,3,4"), None, None, ["row 6", "4 cells"]),
        ("a,a,label", GOOD, None, None, ["two columns", "'a'"]),
        ("a,b,label", GOOD[:3], None, None, ["3 rows"]),
        ("a,b,label", [], None, None, ["0 rows"]),
        ("a,b,label", [f"{numbers(i)},1" for i in range(ROWS)], None, None, ["'1'", "at least two"]),
        ("label", ["1"] * ROWS, None, None, ["one column"]),
        ("a;b;label", ["1;2;0"] * ROWS, None, None, ["one column", "commas"]),
    ],
)
def test_bad_tables_are_refused_with_the_place_and_the_remedy(
    tmp_path: Path, header: str, rows: list[str], task: data.Task | None, label: str | None, words: list[str]
) -> None:
    with pytest.raises(ConfigError) as error:
        data.load(write(tmp_path, header, rows), task, label)
    for word in words:
        assert word in str(error.value), str(error.value)


def test_files_that_are_no_csv_are_refused(tmp_path: Path) -> None:
    binary = tmp_path / "x.csv"
    binary.write_bytes(b"\xff\xfe\x00\x01" * 50)
    empty = tmp_path / "e.csv"
    empty.write_text("")
    for path, word in (
        (binary, "UTF-8"),
        (empty, "empty"),
        (tmp_path / "none.csv", "does not exist"),
        (tmp_path / "d.csv", "read"),
    ):
        if word == "read":
            path.mkdir()
        with pytest.raises(ConfigError, match=word):
            data.load(str(path))


def test_a_byte_order_mark_and_spaces_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "b.csv"
    path.write_text("\ufeff label , a\r\n" + "".join(f" {i % 2} , {i}\r\n" for i in range(ROWS)), encoding="utf-8")
    assert data.load(str(path)).classes == ("0", "1")


def test_control_characters_of_a_file_never_reach_the_terminal(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        data.load(write(tmp_path, "a,b\x1b[2J,label", with_row("1,\x1b]0;x\x07,0")))
    assert "\x1b" not in str(error.value) and "\x07" not in str(error.value)
