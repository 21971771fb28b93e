"""Tables are aligned."""

from __future__ import annotations

import pytest

from fairseq_plugins.evaluation.table import format_table


def test_columns_are_aligned_and_numbers_rounded() -> None:
    table = format_table(
        ["system", "BLEU", "sentences", "p"],
        [["control", 37.812, 1000, None], ["SOFT beam", 8.0, 20, "0.0123"]],
    )
    assert table.split("\n") == [
        "system      BLEU  sentences       p",
        "-----------------------------------",
        "control    37.81      1,000       -",
        "SOFT beam   8.00         20  0.0123",
    ]


def test_a_row_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        format_table(["a", "b"], [[1]])
