"""Find repeated pairs by their digests, with memory that does not grow with them."""
from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

__all__ = ["DIGEST_BYTES", "digest_of_pair", "mark_first"]

# 128 bits: among 10^8 pairs the odds that two different ones collide are 10^-23.
DIGEST_BYTES = 16
_DIGEST = np.dtype([("high", "<u8"), ("low", "<u8")])
# Digests that are sorted at once: 24 bytes each with their places, and a few copies.
_AT_ONCE = 1 << 20


def digest_of_pair(source: str, target: str) -> bytes:
    """Return a digest of both sides, which hold no line feed."""
    text = f"{source}\n{target}".encode()
    return hashlib.blake2b(text, digest_size=DIGEST_BYTES).digest()


def mark_first(digests: Path, marks: Path, *, at_once: int = _AT_ONCE) -> int:
    """Write one byte for each digest: 1 where it stands for the first time.

    The digests are scanned once for each share of about ``at_once`` of them; a share
    has those whose value falls into its class, so that equal ones are in one share.

    Args:
        digests: file of digests, :data:`DIGEST_BYTES` each.
        marks: file to write.

    Returns:
        the number of repeated ones.
    """
    total = digests.stat().st_size // DIGEST_BYTES
    shares = max(1, -(-total // at_once))
    with open(marks, "wb") as stream:
        stream.truncate(total)
    if not total:
        return 0
    all_digests = np.memmap(digests, _DIGEST, mode="r", shape=(total,))
    first = np.memmap(marks, np.uint8, mode="r+", shape=(total,))
    repeated = 0
    for share in range(shares):
        values, places = _share(all_digests, share, shares, at_once)
        # Stable, so that of equal digests the earliest comes first.
        order = np.lexsort((values["low"], values["high"]))
        ordered = values[order]
        is_first = np.ones(len(ordered), np.uint8)
        is_first[1:] = ordered[1:] != ordered[:-1]
        first[places[order]] = is_first
        repeated += len(ordered) - int(is_first.sum())
    first.flush()
    return repeated


def _share(
    digests: np.ndarray, share: int, shares: int, at_once: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the digests of a share, in their order, and their places."""
    values, places = [], []
    for start in range(0, len(digests), at_once):
        chunk = np.array(digests[start : start + at_once])
        chosen = np.flatnonzero(chunk["high"] % np.uint64(shares) == share)
        values.append(chunk[chosen])
        places.append(chosen + start)
    return np.concatenate(values), np.concatenate(places)
