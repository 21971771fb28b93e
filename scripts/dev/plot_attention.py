"""Draw where two models attend, and measure how much goes beyond the k best positions.

    python scripts/dev/plot_attention.py PLAIN_RUN TOPK_RUN [--sentence 1] [--k 4]

The runs are folders written by scripts/train.py, on the same data. The picture has the
attention over the source of one sentence, gold given, averaged over the heads of the
last layer, and for each head the entropy and the share of weight outside the k largest,
over the first sentences of the subset. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

from attention import attention_by_head, cross_attention

from fairseq_plugins.training.config import binarised_folder
from fairseq_plugins.training.run_folder import RunFolder
from fairseq_plugins.utils.errors import UserError, run_command_line
from fairseq_plugins.utils.files import write_json

BATCH = 32


def main() -> None:
    options = _parse()
    _require_matplotlib()
    report, pictures = [], []
    for run in (options.plain, options.topk):
        model, dataset = _load(run, options)
        if not 0 <= options.sentence - 1 < len(dataset):
            raise UserError(
                f"`--sentence` must be between 1 and {len(dataset)}, but is "
                f"{options.sentence}."
            )
        pictures.append(_sentence(model, dataset, options.sentence - 1))
        samples = _batches(dataset, min(options.sentences, len(dataset)))
        heads = attention_by_head(model, samples, options.k)
        report.append({"run": run.name, "k": options.k, "heads": heads})
    if options.json:
        write_json(options.json, report)
    _draw(report, pictures, options)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("plain", type=Path, metavar="PLAIN_RUN")
    add("topk", type=Path, metavar="TOPK_RUN")
    add("--sentence", type=int, default=1, help="the one to draw, from 1")
    add("--sentences", type=int, default=200, help="over which to average")
    add("--k", type=int, default=4, help="positions whose weight is not left over")
    add("--subset", default="valid")
    add("--checkpoint", default="checkpoint_last.pt")
    add("--out", type=Path, default=Path("docs/images/topk_attention.png"))
    add("--json", type=Path, help="write the values of the heads here")
    return parser.parse_args()


def _load(run: Path, options: argparse.Namespace) -> tuple[Any, Any]:
    """Return the run's model and the subset as fairseq's dataset."""
    import fairseq.checkpoint_utils

    import fairseq_plugins

    fairseq_plugins.register()
    folder = RunFolder(run)
    data = binarised_folder(Path(folder.read_config()["data"]))
    path = folder.checkpoints / options.checkpoint
    if not path.is_file():
        raise UserError(f"`--checkpoint` must be a file, but `{path}` is none.")
    models, _, task = fairseq.checkpoint_utils.load_model_ensemble_and_task(
        [str(path)], arg_overrides={"data": str(data)}
    )
    task.load_dataset(options.subset)
    return models[0], task.dataset(options.subset)


def _batches(dataset: Any, count: int) -> list[dict[str, Any]]:
    items = [dataset[i] for i in range(count)]
    parts = [items[i : i + BATCH] for i in range(0, count, BATCH)]
    return [dataset.collater(part) for part in parts]


def _sentence(model: Any, dataset: Any, index: int) -> dict[str, Any]:
    sample = dataset.collater([dataset[index]])
    weights = cross_attention(model, sample)[-1, :, 0].mean(0)  # of the last layer
    return {
        "weights": weights,
        "source": _words(dataset.src_dict, sample["net_input"]["src_tokens"][0]),
        "target": _words(dataset.tgt_dict, sample["target"][0]),
    }


def _words(dictionary: Any, tokens: Any) -> list[str]:
    return [dictionary[token] for token in tokens.tolist()]


def _require_matplotlib() -> None:
    try:
        import matplotlib
    except ImportError:
        raise UserError("matplotlib is missing: pip install matplotlib.") from None
    matplotlib.use("Agg")


def _draw(report: Any, pictures: Any, options: argparse.Namespace) -> None:
    # Loading a model has switched all debugging messages on.
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(12, 10))
    for image, entry, picture in zip(axes[0], report, pictures):
        image.imshow(picture["weights"], cmap="Greys", vmin=0, vmax=1, aspect="auto")
        image.set_xticks(range(len(picture["source"])), picture["source"], rotation=90)
        image.set_yticks(range(len(picture["target"])), picture["target"])
        image.set_title(f"{entry['run']}: mean of the last layer's heads")
    _draw_heads(axes[1, 0], report, "entropy", "entropy, nats")
    outside = f"weight outside the {options.k} best"
    _draw_heads(axes[1, 1], report, "outside", outside)
    figure.tight_layout()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(options.out, dpi=90)
    plt.close(figure)
    print(f"written to {options.out}")


def _draw_heads(bars: Any, report: Any, name: str, title: str) -> None:
    for offset, entry in enumerate(report):
        places = [i + 0.4 * offset for i in range(len(entry["heads"]))]
        values = [head[name] for head in entry["heads"]]
        bars.bar(places, values, width=0.4, label=entry["run"])
    labels = [f"{head['layer']}.{head['head']}" for head in report[0]["heads"]]
    bars.set_xticks(range(len(labels)), labels, rotation=90)
    bars.set_xlabel("layer.head")
    bars.set_title(title)
    bars.legend(fontsize=8)


if __name__ == "__main__":
    run_command_line(main)
