"""Values that change with the number of updates, and nothing else."""
from __future__ import annotations

__all__ = ["geometric"]


def geometric(start: float, end: float, updates: int, num_updates: int) -> float:
    """Go from ``start`` to ``end`` in ``updates`` updates by a constant factor.

    Depending on ``num_updates`` alone, it goes on where it was when a run resumes.

    Args:
        start: value at update 0, positive.
        end: value from update ``updates`` on, positive.
        updates: length of the way; 0 is ``end`` from the first update.
        num_updates: number of updates done so far.
    """
    if num_updates >= updates:
        return end
    return start * (end / start) ** (num_updates / updates)
