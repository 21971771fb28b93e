"""A trained model that answers requests."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Sequence

from fairseq_plugins.evaluation.compare import distinct_names
from fairseq_plugins.inference.loading import load_runs
from fairseq_plugins.inference.translator import SearchOptions, Translator
from fairseq_plugins.training.run_folder import RunFolder
from fairseq_plugins.utils.errors import UserError

__all__ = ["ServedRun", "load_served_runs"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServedRun:
    """A model with its name and the epsilon of its training, or the default."""

    name: str
    translator: Translator
    epsilon: float

    @property
    def languages(self) -> tuple[str, str]:
        return self.translator.languages

    def translate(self, text: str, options: SearchOptions) -> dict[str, Any]:
        """Return the name and the hypotheses, best first, ready for JSON.

        A text that is too long for the model is split and has one hypothesis.
        """
        (found,) = self.translator.translate([text], options, on_long="split")
        return {
            "run": self.name,
            "hypotheses": [
                {
                    "text": each.text,
                    "score": round(each.score, 6),
                    "length": len(each.tokens),
                    "tokens": list(each.tokens),
                }
                for each in found.hypotheses
            ],
        }

    def explore(
        self,
        text: str,
        *,
        reference: str | None = None,
        beam: int = 5,
        lenpen: float = 1.0,
        epsilon: float | None = None,
    ) -> dict[str, Any]:
        """Return the name and the description of a search, ready for JSON.

        It has three epsilons: the middle one is `epsilon` or that of the run. See
        :func:`fairseq_plugins.evaluation.report.explorer.explore`.

        Raises:
            UserError: a text is too long, or the decoder is not supported.
        """
        from fairseq_plugins.evaluation.report import explorer

        (search,) = explorer.explore(
            self.translator.model,
            self.translator.target_dictionary,
            self.translator.collate(text, reference),
            beam_size=beam,
            epsilons=explorer.surround_epsilon(epsilon or self.epsilon),
            lenpen=lenpen,
        )
        return {"run": self.name, "search": search}


def load_served_runs(
    runs: Sequence[Path], *, checkpoint: str = "best", use_gpu: bool = True
) -> list[ServedRun]:
    """Load the models of runs and translate one word with each.

    Args:
        runs: folders that ``scripts/train.py`` wrote.
        checkpoint: ``best``, ``last``, ``average`` or the path of a checkpoint.
        use_gpu: whether to use a GPU if there is one.

    Raises:
        UserError: a run cannot be used, or the runs have different languages.
    """
    from fairseq_plugins.evaluation.report.explorer import choose_epsilons

    unique = list(dict.fromkeys(Path(run).resolve() for run in runs))
    served: list[ServedRun] = []
    for name, path in zip(distinct_names(unique), unique, strict=True):
        _, epsilon, _ = choose_epsilons(RunFolder(path).read_config())
        translator = load_runs([path], checkpoint=checkpoint, use_gpu=use_gpu)
        served.append(ServedRun(name, translator, epsilon))
        if served[-1].languages != served[0].languages:
            first, other = ("-".join(run.languages) for run in (served[0], served[-1]))
            raise UserError(
                f"all runs must have the same languages, but `{served[0].name}` has "
                f"{first} and `{name}` has {other}."
            )
        # The first call imports modules and builds what later calls use.
        served[-1].translate("a", SearchOptions())
    return served
