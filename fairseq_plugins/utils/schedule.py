"""Values that change with the number of updates, and nothing else.

Depending on the number of updates alone, they go on where they were when a run resumes.
"""

from __future__ import annotations

__all__ = ["geometric", "stepwise"]


def geometric(start: float, end: float, updates: int, num_updates: int) -> float:
    """Go from ``start`` to ``end`` in ``updates`` updates by a constant factor.

    Args:
        start: value at update 0, positive.
        end: value from update ``updates`` on, positive.
        updates: length of the way; 0 is ``end`` from the first update.
        num_updates: number of updates done so far.
    """
    if num_updates >= updates:
        return end
    return start * (end / start) ** (num_updates / updates)


def stepwise(start: int, end: int, updates: int, num_updates: int) -> int:
    """Go from ``start`` to ``end`` in equal stays at the whole numbers between them.

    ``end`` is reached at update ``updates``. Arguments as in `geometric`.
    """
    if num_updates >= updates:
        return end
    num_values = abs(end - start) + 1
    passed = num_updates * (num_values - 1) // updates if num_values > 1 else 0
    return start + passed * (1 if end >= start else -1)
