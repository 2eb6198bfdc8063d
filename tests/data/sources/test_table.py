"""CSV files: numbers as targets, names of classes, seeds of the split, and what is refused with row and column."""

import numpy as np
import pytest

from helpers import load_data, loading_fails


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def numbers(tmp_path):
    rows = "".join(f"{i},{i % 7},{100 + i}\n" for i in range(50))
    return write(tmp_path / "t.csv", f"\ufeffage, rooms,price\n{rows}")


def test_the_last_column_is_learned_and_each_row_is_in_one_split(numbers):
    found = load_data(numbers)
    assert (found.name, found.classes, found.shape) == ("t", (), (2,))
    assert found.columns == ("age", "rooms", "price")
    splits = [found.train, found.validation, found.test]
    assert [len(split) for split in splits] == [36, 4, 10]
    assert sorted(np.concatenate([split.labels for split in splits])) == list(range(100, 150))
    for split in splits:
        np.testing.assert_array_equal(split.images[:, 0], split.labels - 100)
    assert found.notes == ("10 of 50 rows were drawn for testing, with seed 0",)
    other = load_data(numbers, seed=1)
    np.testing.assert_array_equal(other.test.labels, found.test.labels)
    assert not np.array_equal(other.validation.labels, found.validation.labels)
    assert not np.array_equal(load_data(numbers, test_seed=1).test.labels, found.test.labels)
    assert len(load_data(numbers, test=0.5, validation=0.2).train) == 20


def test_another_target(numbers):
    found = load_data(numbers, target="age")
    assert found.columns == ("rooms", "price", "age")
    np.testing.assert_array_equal(found.test.images[:, 1], found.test.labels + 100)


def test_words_are_classes(tmp_path):
    rows = "".join(f"{i},{'dog' if i % 3 else 'cat'}\n" for i in range(30))
    found = load_data(write(tmp_path / "t.csv", f"size,kind\n{rows}"))
    assert found.classes == ("cat", "dog")
    np.testing.assert_array_equal(found.train.labels, found.train.images[:, 0] % 3 > 0)
    assert np.bincount(found.test.labels).tolist() == [2, 4]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n3,\n", "t.csv: row 3, column b is missing; fill it in"),
        ("a,b\n1,2\n\n ,3\n", "row 4, column a is missing"),
        ("a,b\n1,2\nold,3\n", "row 3, column a is 'old', not a finite number"),
        ("a,b\n1,2\nnan,3\n", "row 3, column a is 'nan', not a finite number"),
        ("a,b\n1,2\n1e60,3\n", "row 3, column a is '1e60', not a finite number"),
        ("a,b\n1,2\n3,n/a\n", "row 3, column b is 'n/a', not a finite number"),
        ("a,b\n1,2\n3\n", "row 3 has 1 cells, the first row 2"),
        ("a,a\n1,2\n", "the first row must name each column differently"),
        ("a,b\n", "has 1 rows"),
        ("a\n1\n2\n", "has only the column a; separate columns by commas"),
        ('a,b\n"1,2\n', "cannot be read as CSV"),
    ],
)
def test_what_is_refused(tmp_path, text, message):
    loading_fails(message, write(tmp_path / "t.csv", text))


def test_options_that_do_not_fit(numbers, tmp_path):
    loading_fails("data.target 'prise': .* did you mean 'price'", numbers, target="prise")
    loading_fails("data.skip_broken True: is for folders of images", numbers, skip_broken=True)
    loading_fails("data.target x: is for CSV files; leave it out", "digits", target="x")
    loading_fails("no such file", tmp_path / "other.csv")
