"""``RUN/eval``: the rows of ``scores.json`` and the files that they name."""
from __future__ import annotations

from pathlib import Path
from typing import Any, Sequence

from fairseq_plugins.evaluation.found import Hypothesis
from fairseq_plugins.pipeline.files import (
    read_json,
    read_lines,
    sha256_of,
    write_json,
    write_lines,
)

__all__ = ["Row", "ScoreStore", "stem"]

Row = dict[str, Any]

# A row with the same values of these takes the place of an older one.
_SETTINGS = ("subset", "title", "checkpoint", "lenpen", "beam")


class ScoreStore:
    """The evaluations of one run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._path = folder / "scores.json"

    def _rows(self) -> list[Row]:
        """Read anew each time: another evaluation of the run may have added some."""
        rows: list[Row] = read_json(self._path) if self._path.exists() else []
        return rows

    def find(self, identity: Row) -> Row | None:
        """Return the row of this very evaluation if its hypotheses are still there."""
        for row in self._rows():
            if identity.items() <= row.items() and self._is_whole(row):
                return row
        return None

    def add(self, row: Row) -> None:
        """Keep a row in place of an older one with the same settings."""
        kept = [other for other in self._rows() if _key(other) != _key(row)]
        write_json(self._path, sorted([*kept, row], key=_key))

    def hypotheses(self, row: Row) -> list[str]:
        """Return the plain text of a row's translations."""
        return read_lines(self.folder / row["hypotheses"])

    def write_hypotheses(self, name: str, lines: list[str]) -> Row:
        """Write translations; return what the row says of them."""
        path = self.folder / f"{name}.hyp.txt"
        write_lines(path, lines)
        return {"hypotheses": path.name, "hypotheses_sha256": sha256_of(path)}

    def write_nbest(
        self,
        name: str,
        texts: Sequence[Sequence[str]],
        nbest: Sequence[Sequence[Hypothesis]],
    ) -> Row:
        """Write all hypotheses: line number, score and text, with tabs between them."""
        path = self.folder / f"{name}.nbest.tsv"
        lines = [
            f"{number}\t{hypothesis.score:.6f}\t{text}"
            for number, (plain, scored) in enumerate(zip(texts, nbest), start=1)
            for text, hypothesis in zip(plain, scored)
        ]
        write_lines(path, lines)
        return {"nbest": path.name}

    def read_nbest(self, row: Row) -> tuple[list[list[str]], list[list[Hypothesis]]]:
        """Return what :meth:`write_nbest` wrote.

        The subwords are not kept: hypotheses have their text in place of them.
        """
        texts: list[list[str]] = []
        nbest: list[list[Hypothesis]] = []
        for line in read_lines(self.folder / row["nbest"]):
            number, score, text = line.split("\t")
            if int(number) > len(texts):
                texts.append([])
                nbest.append([])
            texts[-1].append(text)
            nbest[-1].append(Hypothesis(float(score), text))
        return texts, nbest

    def _is_whole(self, row: Row) -> bool:
        path = self.folder / row["hypotheses"]
        return path.is_file() and sha256_of(path) == row["hypotheses_sha256"]


def stem(row: Row) -> str:
    """Return ``test.beam5``, with whatever is not the default between the two."""
    parts = [row["subset"]]
    if "lines_of" in row:
        parts.append(row["title"].replace("/", "-"))
    if row["checkpoint"] != "checkpoint_best.pt":
        parts.append(Path(row["checkpoint"]).stem)
    if row["lenpen"] != 1.0:
        parts.append(f"lenpen{row['lenpen']:g}")
    return ".".join([*parts, f"beam{row['beam']}"])


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in _SETTINGS)
