"""One picture of a study: accuracies with intervals, and features in two dimensions."""
from __future__ import annotations

from pathlib import Path
from typing import Any

from fairseq_plugins.knn.settings import METHODS
from fairseq_plugins.knn.study import Study
from fairseq_plugins.pipeline.errors import UserError
from fairseq_plugins.pipeline.files import write_atomically

__all__ = ["draw", "require"]

VIEWED = ("raw", "ce", "soft")


def require() -> None:
    """Raise ``UserError`` unless what the picture needs is installed."""
    try:
        import matplotlib
        import sklearn.manifold  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"the picture needs {error.name}, which is not installed: "
            f"pip install {error.name} (or the extra `knn`)."
        ) from None
    matplotlib.use("Agg")


def draw(study: Study, summary: dict[str, Any], path: Path) -> None:
    """Draw the accuracies and t-SNE views of test images (van der Maaten, 2008)."""
    require()
    from matplotlib import pyplot
    from sklearn.manifold import TSNE

    views = study.views([name for name in VIEWED if name in study.methods])
    labels = study.viewed_labels()
    columns = 1 + len(views)
    figure, axes = pyplot.subplots(
        1, columns, figsize=(4.2 * columns, 4), squeeze=False, layout="constrained"
    )
    _draw_accuracies(axes[0][0], summary)
    for panel, (method, features) in zip(axes[0][1:], views.items()):
        perplexity = min(30, (len(features) - 1) / 3)
        points = TSNE(perplexity=perplexity, random_state=1).fit_transform(features)
        panel.scatter(*points.T, c=labels, cmap="tab10", s=6)
        panel.set_title(f"test images: {METHODS[method]}", fontsize=9)
        panel.set_xticks([])
        panel.set_yticks([])
    with write_atomically(path, "wb") as stream:
        figure.savefig(stream, format="png", dpi=110)
    pyplot.close(figure)


def _draw_accuracies(panel: Any, summary: dict[str, Any]) -> None:
    for place, row in enumerate(reversed(summary["results"])):
        accuracy = row["accuracy"]
        low, value, high = (100 * accuracy[name] for name in ("low", "value", "high"))
        colour = "tab:red" if row["method"] == "soft" else "tab:blue"
        panel.errorbar(
            value, place, xerr=[[value - low], [high - value]],
            fmt="o", capsize=3, color=colour,
        )  # fmt: skip
        panel.plot(
            [100 * each for each in row["by_seed"]], [place] * len(row["by_seed"]),
            "|", color="grey",
        )  # fmt: skip
    panel.set_yticks(range(len(summary["results"])))
    panel.set_yticklabels(
        [row["title"] for row in reversed(summary["results"])], fontsize=8
    )
    panel.set_xlabel("accuracy in %, 95 % interval; | one seed")
    panel.grid(alpha=0.3)
