"""Figures: what they show of names, and that a failing one is a warning."""

import numpy as np
import pytest

from deepjax.runs import plots


def test_names_are_drawn_as_they_are(tmp_path):
    """Dollar signs, letters that the font lacks, bytes of a file's name, very long names."""
    names = ["A$$AP", "$\\frac{1}", "猫", "\udcff", "x" * 300]
    figure = plots.confusion(np.eye(5, dtype=int), np.ones(5, int), names, "A$$AP on \udcff: $x$")
    plots.save(figure, tmp_path / "confusion.png")
    assert (tmp_path / "confusion.png").read_bytes().startswith(b"\x89PNG")
    drawn = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert drawn[:4] == ["A$$AP", "$\\frac{1}", "猫", "?"]
    assert len(drawn[4]) == 40


def test_colors_are_shares_of_all_examples_of_a_class():
    image = plots.confusion(np.array([[1, 2], [0, 0]]), np.array([6, 0]), ["a", "b"], "").axes[0].images[0]
    np.testing.assert_allclose(image.get_array(), [[1 / 6, 1 / 3], [0, 0]])


def test_a_search_has_one_line_for_each_choice_of_the_other_options():
    values = {(0.1, 0.0): 0.5, (0.1, 1e-3): 0.4, (1.0, 0.0): 0.3, (1.0, 1e-3): None, (10.0, 0.0): None}
    found = [({"optimizer.learning_rate": a, "optimizer.weight_decay": b}, value) for (a, b), value in values.items()]
    (axes,) = plots.candidates(found[::-1], plots.Curve("error (%)", 100), "").axes
    lines = {line.get_label(): line for line in axes.lines}
    assert [label.get_text() for label in axes.get_xticklabels()] == ["10.0", "1.0", "0.1"]
    np.testing.assert_allclose(lines["weight_decay 0.0"].get_ydata(), [np.nan, 30, 50])
    assert list(lines["diverged"].get_xdata()) == [0, 1]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("optimizer.learning_rate", "validation error (%)")


@pytest.mark.parametrize("where", ["made", "saved"])
def test_a_figure_that_fails_is_one_warning(tmp_path, monkeypatch, where):
    def fail(*_):
        raise MemoryError("no memory\nfor a picture")

    def figures():
        return fail() if where == "made" else {"a.png": None}

    monkeypatch.setattr(plots, "save", fail)
    said = []
    plots.draw(tmp_path, figures, said.append)
    name = "its figures" if where == "made" else "a.png"
    assert said == [f"{tmp_path}: {name} cannot be drawn (MemoryError: no memory)"]
