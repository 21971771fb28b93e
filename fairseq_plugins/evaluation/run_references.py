"""What a run's model thinks of the references of a subset, computed once."""
from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from fairseq_plugins.evaluation.found import Reference
from fairseq_plugins.evaluation.generate import Subset, Translator
from fairseq_plugins.evaluation.run_checkpoint import Checkpoint
from fairseq_plugins.pipeline.files import read_json, write_json

__all__ = ["scored_references"]

logger = logging.getLogger(__name__)


def scored_references(
    translator: Translator,
    checkpoint: Checkpoint,
    subset: Subset,
    *,
    data_sha256: str,
    folder: Path,
) -> list[Reference]:
    """Return one for each sentence of a subset, from ``folder`` if they are there.

    They depend on neither beam nor lenpen, so that one pass serves all evaluations.

    Args:
        translator: has the model loaded, or loads it if it is needed.
        checkpoint: the model.
        subset: binarised sentences with their references.
        data_sha256: digest of the binarised data.
        folder: ``RUN/eval``.

    Raises:
        UserError: fairseq fails.
    """
    name = f"{subset.name}.{Path(checkpoint.name).stem}.references"
    path = folder / f"{name}.json"
    identity = {"checkpoint_sha256": checkpoint.sha256, "data_sha256": data_sha256}
    known: dict[str, Any] = read_json(path) if path.is_file() else {}
    if not identity.items() <= known.items():
        found = translator.score_references(subset, log=folder / f"{name}.log")
        rows = [[item.log_prob, item.tokens] for item in found]
        known = {**identity, "references": rows}
        write_json(path, known)
    return [Reference(*row) for row in known["references"]]
