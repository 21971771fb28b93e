"""Values that depend only on the number of updates, so a resumed run keeps them."""

from __future__ import annotations

__all__ = ["geometric", "stepwise"]


def geometric(start: float, end: float, updates: int, num_updates: int) -> float:
    """Interpolate geometrically from ``start`` to ``end``.

    Args:
        start: value at update 0, positive.
        end: value from update ``updates`` on, positive.
        updates: number of updates between both; 0 returns ``end`` at once.
        num_updates: number of updates done so far.
    """
    if num_updates >= updates:
        return end
    return start * (end / start) ** (num_updates / updates)


def stepwise(start: int, end: int, updates: int, num_updates: int) -> int:
    """Step through the whole numbers from ``start`` to ``end``, each equally long.

    ``end`` is reached at update ``updates``. Arguments as in `geometric`.
    """
    if num_updates >= updates:
        return end
    num_values = abs(end - start) + 1
    passed = num_updates * (num_values - 1) // updates if num_values > 1 else 0
    return start + passed * (1 if end >= start else -1)
