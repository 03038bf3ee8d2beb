"""One set of numbers reads the same on the terminal and in the report."""

import io

from rich.console import Console

from dinov2_zoo.evaluation.table import Table, format_cell, terminal_table


def test_numbers_are_rounded_to_be_compared():
    assert [format_cell(x) for x in (0.63449, -0.2, 12.345, 1234.5, 1797, None, "ViT")] == [
        "0.634",
        "-0.200",
        "12.3",
        "1,234",
        "1,797",
        "-",
        "ViT",
    ]


def test_the_terminal_shows_every_cell():
    table = Table(
        "Agreement", ["", "before", "after"], [["patch cosine", 0.01, 0.634], ["k-NN", None, 0.9]], "9 photos"
    )
    out = io.StringIO()
    Console(file=out, width=80).print(terminal_table(table))
    for word in ("Agreement", "before", "patch cosine", "0.010", "0.634", "-", "9 photos"):
        assert word in out.getvalue()


def test_the_column_that_a_table_is_about_is_bold():
    table = Table("Evaluation", ["task", "teacher", "student"], [["knn", 0.9, 0.8]], marked=["student"])
    assert [str(column.style) for column in terminal_table(table).columns] == ["", "", "bold"]
