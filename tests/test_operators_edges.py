"""Every cell of the table of edge cases in docs/operators.md, for every operator."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, Callable, NamedTuple

import numpy as np
import pytest
import torch

from fairseq_plugins.operators import (
    SORTED_OPERATORS,
    hard_topk_softmax,
    pooled_soft_topk,
    soft_topk,
    soft_topk_logits,
    topk_softmax,
)

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "operators.md"
CLOSE = {"rtol": 0, "atol": 2e-6}
OUT_OF_RANGE = (0.0, 1e-40, 1e39, math.inf, math.nan)


def dense_pool(scores, k, **options):
    pooled = pooled_soft_topk(scores, k, **options)
    zeros = torch.zeros_like(scores)
    return zeros.scatter(-1, pooled.members, pooled.memberships)


def softmax_without_epsilon(scores, k, *, epsilon):
    return hard_topk_softmax(scores, k)


OPERATORS: dict[str, dict[str, Callable[..., torch.Tensor]]] = {
    "memberships": {
        "soft_topk": soft_topk,
        "soft_topk_logits": lambda *args, **kw: soft_topk_logits(*args, **kw).sigmoid(),
        "pooled_soft_topk": dense_pool,
    },
    "ranks": {operator.__name__: operator for operator in SORTED_OPERATORS.values()},
    "weights": {
        "topk_softmax": topk_softmax,
        "hard_topk_softmax": softmax_without_epsilon,
    },
}


class Arguments(NamedTuple):
    scores: torch.Tensor  # (3, n); an edge case is in row 1
    k: Any = 3
    options: dict[str, Any] = {"epsilon": 0.5}


def change_row(scores, *values, **options):
    scores = scores.clone()
    scores[1, : len(values)] = torch.tensor(values)
    return Arguments(scores, 3, {"epsilon": 0.5, **options})


def with_epsilon(scores, *epsilons):
    return [Arguments(scores, 3, {"epsilon": each}) for each in epsilons]


# The arguments of each case: one, or a list of them.
CASES: dict[str, Callable[[torch.Tensor], Arguments | list[Arguments]]] = {
    "`k` = 0": lambda s: Arguments(s, 0),
    "`k` = n + 1": lambda s: Arguments(s, s.size(1) + 1),
    "`k` = n": lambda s: Arguments(s[:, :6], 6),
    "`k` = 1.5": lambda s: Arguments(s, 1.5),
    "`k` = NaN": lambda s: Arguments(s, math.nan),
    "`k` = `np.int64(3)`": lambda s: Arguments(s, np.int64(3)),
    "0 in a tensor of `k`": lambda s: Arguments(s, torch.tensor([3, 0, 3])),
    "NaN in a tensor of `k`": lambda s: Arguments(s, torch.tensor([3, math.nan, 3])),
    "a tensor of `k` with a wrong shape": lambda s: Arguments(s, torch.tensor([3, 3])),
    "2 valid entries, `k` = 3": lambda s: change_row(
        s, *s[1, :2].tolist(), *[-math.inf] * (s.size(1) - 2)
    ),
    "no valid entry": lambda s: change_row(s, *[-math.inf] * s.size(1)),
    "`-inf`": lambda s: change_row(s, -math.inf, -math.inf),
    "`+inf` with `largest=False`": lambda s: change_row(
        s, math.inf, math.inf, largest=False
    ),
    "`+inf` once, `k` = 3": lambda s: change_row(s, math.inf),
    "`+inf` more than `k` times": lambda s: change_row(s, *[math.inf] * 4),
    "NaN": lambda s: change_row(s, math.nan),
    "equal scores": lambda s: change_row(s, *[-7.0] * s.size(1)),
    "scores of 1e4, `epsilon` from 1e-6 to 1e4": lambda s: with_epsilon(
        1e4 * s, 1e-6, 1e-3, 1.0, 1e4
    ),
    "scores of 3e38 and -3e38": lambda s: change_row(s, 3e38, -3e38),
    "`epsilon` = 1e-30 or 1e30": lambda s: with_epsilon(s, 1e-30, 1e30),
    "`epsilon` = 0, 1e-40, 1e39, inf or NaN": lambda s: with_epsilon(s, *OUT_OF_RANGE),
    "one of these in a tensor of `epsilon`": lambda s: with_epsilon(
        s, *(torch.tensor([0.5, each, 0.5]) for each in OUT_OF_RANGE)
    ),
    "a tensor of `epsilon` with a wrong shape": lambda s: with_epsilon(
        s, torch.tensor([0.5, 0.5])
    ),
    "integer or complex scores": lambda s: [
        Arguments(s.long()),
        Arguments(s.to(torch.complex64)),
    ],
    "no candidates": lambda s: Arguments(s[:, :0]),
    "no rows": lambda s: Arguments(s[:0]),
    "a mask that is not boolean or has a wrong shape": lambda s: [
        change_row(s, mask=torch.ones(s.shape)),
        change_row(s, mask=torch.ones(2, 2, dtype=torch.bool)),
    ],
    "float16 or bfloat16 scores": lambda s: [
        Arguments(s.to(dtype)) for dtype in (torch.float16, torch.bfloat16)
    ],
}


def expect_ones(result, given, operator):
    is_chosen = given.scores[1] > -math.inf
    assert (result[1, is_chosen] == 1).all() and (result[1, ~is_chosen] == 0).all()


def expect_mask(result, given, operator):
    is_valid = given.scores.isfinite()
    if operator in (topk_softmax, softmax_without_epsilon):
        expected = operator(given.scores[1, 2:], given.k, **given.options)
    else:
        finite = given.scores.nan_to_num(0.0, 0.0, 0.0)
        masked = operator(finite, given.k, mask=is_valid, **given.options)
        torch.testing.assert_close(result, masked, **CLOSE)
        expected = operator(finite[1, 2:], given.k, **given.options)
    torch.testing.assert_close(result[1, 2:], expected, **CLOSE)
    assert (result[~is_valid] == 0).all()


def expect_float64(result, given, operator):
    exact = operator(given.scores.double(), given.k, **given.options)
    torch.testing.assert_close(result.double(), exact, **CLOSE)


def expect_exact_or_nan(result, given, operator):
    if not result[1].isnan().any():
        exact = operator(given.scores[1].double(), given.k, **given.options)
        torch.testing.assert_close(result[1].double(), exact, **CLOSE)


def expect_softmax(result, given, operator):
    torch.testing.assert_close(result[1], torch.softmax(given.scores[1], -1), **CLOSE)


def expect_columns(filled: int | None) -> Callable[..., None]:
    def check(result, given, operator):
        totals = torch.zeros(result.size(-1))
        totals[:filled] = 1
        torch.testing.assert_close(result[1].sum(0), totals, **CLOSE)

    return check


def expect_sum(total: float) -> Callable[..., None]:
    def check(result, given, operator):
        expected = torch.full((3,), total)
        torch.testing.assert_close(result.sum(-1), expected, rtol=1e-5, atol=0)

    return check


def expect_one_and_a_sum(result, given, operator):
    assert result[1, 0] == 1 and abs(result[1].sum() - 3) < 1e-5


def expect_as_usual(result, given, operator):
    usual = operator(given.scores, 3, epsilon=0.5)
    assert torch.equal(result, usual)


def expect_equal(result, given, operator):
    torch.testing.assert_close(result[1], result[1, :1].expand_as(result[1]), **CLOSE)


def expect_nan(result, given, operator):
    assert result[1].isnan().any()


def expect_zeros(result, given, operator):
    assert (result[1] == 0).all()


def expect_empty(result, given, operator):
    assert result.shape[:2] == given.scores.shape


def expect_dtype(dtype: torch.dtype | None) -> Callable[..., None]:
    def check(result, given, operator):
        assert result.dtype == (dtype or given.scores.dtype)
        exact = operator(given.scores.float(), given.k, **given.options)
        torch.testing.assert_close(result.float(), exact, rtol=1e-2, atol=1e-3)

    return check


CHECKS: dict[str, Callable[..., None]] = {
    "zeros": expect_zeros,
    "ones": expect_ones,
    "ones and a sum of 3": expect_one_and_a_sum,
    "NaN in that row": expect_nan,
    "as if masked": expect_mask,
    "as an int": expect_as_usual,
    "ignored": expect_as_usual,
    "as in float64": expect_float64,
    "exact or NaN in that row": expect_exact_or_nan,
    "softmax": expect_softmax,
    "columns sum to 1": expect_columns(None),
    "2 columns sum to 1, then zeros": expect_columns(2),
    "sum 1": expect_sum(1.0),
    "sum 1.5": expect_sum(1.5),
    "sum 3": expect_sum(3.0),
    "equal": expect_equal,
    "empty": expect_empty,
    "in their dtype": expect_dtype(None),
    "in float32": expect_dtype(torch.float32),
}


def read_table() -> list[tuple[str, str, str]]:
    """Return (case, operator, expected result) for every cell and operator."""
    text = DOCUMENT.read_text()
    table = text.split("<!-- edges-begin -->")[1].split("<!-- edges-end -->")[0]
    header, _, *lines = table.strip().splitlines()
    families = split_line(header)[1:]
    found = []
    for line in lines:
        case, *cells = split_line(line)
        for family, cell in zip(families, cells, strict=True):
            exceptions = dict(re.findall(r" \(`(\w+)`: ([^)]*)\)", cell))
            usual = re.sub(r" \(`\w+`: [^)]*\)", "", cell)
            assert exceptions.keys() <= OPERATORS[family].keys(), cell
            for name in OPERATORS[family]:
                found.append((case, name, exceptions.get(name, usual)))
    return found


def split_line(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("| ").split(" | ")]


TABLE = read_table()
BY_NAME = {name: each for family in OPERATORS.values() for name, each in family.items()}


def test_the_table_and_the_cases_of_this_test_are_the_same():
    assert {case for case, _, _ in TABLE} == CASES.keys()


@pytest.mark.parametrize("length", [6, 5000])
@pytest.mark.parametrize("case, name, expected", TABLE)
def test_the_result_is_that_of_the_table(case, name, expected, length):
    if expected in ("no such argument", "not converged"):
        pytest.skip(f"{expected} in this case")
    if length > 6 and name not in OPERATORS["memberships"]:
        pytest.skip("one path for rows of all lengths")
    operator = BY_NAME[name]
    scores = torch.randn(3, length, generator=torch.Generator().manual_seed(28))
    cases = CASES[case](scores)
    for given in cases if isinstance(cases, list) else [cases]:
        if expected == "`ValueError`":
            with pytest.raises(ValueError, match="^`(k|epsilon|scores|mask)` must"):
                operator(given.scores, given.k, **given.options)
            continue
        leaf = given.scores.clone().requires_grad_()
        result = operator(leaf, given.k, **given.options)
        CHECKS[expected](result.detach(), given, operator)
        check_other_rows(operator, given, leaf, result)


def check_other_rows(operator, given, leaf, result):
    """Rows 0 and 2 have the values and gradients that they have alone."""
    if not result.numel():
        return
    k, options = given.k, dict(given.options)
    if isinstance(k, torch.Tensor):
        k = 3
    if isinstance(options["epsilon"], torch.Tensor):
        options["epsilon"] = 0.5
    gradient = differentiate(result, leaf)
    if gradient is not None and not result[1].isnan().any():
        assert gradient[1].isfinite().all()
    for row in (0, 2):
        scores = given.scores[row].clone().requires_grad_()
        alone = operator(scores, k, **options)
        torch.testing.assert_close(result[row], alone, **CLOSE)
        expected = differentiate(alone, scores)
        if expected is not None and scores.dtype == torch.float32:
            largest = max(1.0, float(expected.abs().max()))
            torch.testing.assert_close(
                gradient[row], expected, rtol=0, atol=1e-5 * largest
            )


def differentiate(result, scores):
    if not result.requires_grad:
        return None
    (gradient,) = torch.autograd.grad(result.square().sum(), scores)
    return gradient
