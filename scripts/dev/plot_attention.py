"""Draw where two models attend, and measure the weight outside the k best positions.

    python scripts/dev/plot_attention.py PLAIN_RUN TOPK_RUN [--sentence 1] [--k 4]

The runs are folders written by scripts/train.py, on the same data. The picture shows
the attention over the source of one sentence while the reference is forced, averaged
over the heads of the last layer. For each head it also shows the entropy and the
fraction of weight outside the k largest, over the first sentences of the subset. Needs
matplotlib.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
from pathlib import Path
from typing import Any, Iterator

import torch
from results_tables import merge_rows
from torch import Tensor

from fairseq_plugins.training.config import find_binarized_folder
from fairseq_plugins.training.run_folder import RunFolder
from fairseq_plugins.utils.errors import UserError, run_command_line

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
        report.append({"run": run.name, "heads": heads})
        if options.csv:
            rows = [{"run": run.name, "k": options.k, **head} for head in heads]
            merge_rows(options.csv, rows, ("run", "k", "layer", "head"))
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
    add("--k", type=int, default=4, help="positions that count as the best")
    add("--subset", default="valid")
    add("--checkpoint", default="checkpoint_last.pt")
    add("--out", type=Path, default=Path("docs/images/topk_attention.png"))
    add("--csv", type=Path, help="add the values of the heads to this file")
    return parser.parse_args()


def _load(run: Path, options: argparse.Namespace) -> tuple[Any, Any]:
    """Return the run's model and the subset as fairseq's dataset."""
    import fairseq.checkpoint_utils

    import fairseq_plugins

    fairseq_plugins.register()
    folder = RunFolder(run)
    data = find_binarized_folder(Path(folder.read_config()["data"]))
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
    # Loading a model has enabled all debugging messages.
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


def cross_attention(model: Any, sample: dict[str, Any]) -> Tensor:
    """Return the weights over the source, shape (layers, H, B, T, S).

    Args:
        model: a Transformer of fairseq, with top-k attention or without.
        sample: a batch of its task. Its reference is forced.

    Raises:
        UserError: the model is not a Transformer.
    """
    layers = getattr(model.decoder, "layers", None)
    if not layers or not hasattr(layers[0], "encoder_attn"):
        raise UserError(
            "the model must be a Transformer, but its decoder is a "
            f"{type(model.decoder).__name__}."
        )
    model.eval()
    attentions = [layer.encoder_attn for layer in layers]
    with torch.no_grad(), _weights_of(attentions) as found:
        model(**sample["net_input"])
    return torch.stack(found).float()


@contextlib.contextmanager
def _weights_of(attentions: list[Any]) -> Iterator[list[Tensor]]:
    """Make attentions return the weights of each head, and collect them."""
    found: list[Tensor] = []

    def request(_: Any, args: Any, options: dict[str, Any]) -> Any:
        return args, {**options, "need_weights": True, "need_head_weights": True}

    hooks = []
    for part in attentions:
        hooks.append(part.register_forward_pre_hook(request, with_kwargs=True))
        hooks.append(
            part.register_forward_hook(lambda _, __, out: found.append(out[1]))
        )
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def entropy(weights: Tensor) -> Tensor:
    """Return the entropy of each row in nats: (..., S) -> (...)."""
    return -torch.xlogy(weights, weights).sum(-1)


def weight_outside(weights: Tensor, k: int) -> Tensor:
    """Return the weight outside of each row's k largest: (..., S) -> (...)."""
    if k >= weights.size(-1):
        return torch.zeros_like(weights[..., 0])
    return (1 - weights.topk(k).values.sum(-1)).clamp_min(0.0)


def attention_by_head(model: Any, samples: list[dict[str, Any]], k: int) -> list[Any]:
    """Return a row for each layer and head, averaged over target tokens.

    Each has ``layer`` and ``head``, from 0, ``entropy`` in nats and ``outside``, the
    fraction of weight outside the k largest.
    """
    totals: Any = 0.0
    num_tokens = 0
    for sample in samples:
        weights = cross_attention(model, sample)
        is_word = sample["target"].ne(model.decoder.padding_idx)
        values = torch.stack([entropy(weights), weight_outside(weights, k)])
        totals = totals + (values * is_word).sum((-2, -1))  # (2, layers, H)
        num_tokens += int(is_word.sum())
    means = (totals / num_tokens).tolist()
    return [
        {
            "layer": layer,
            "head": head,
            "entropy": means[0][layer][head],
            "outside": means[1][layer][head],
        }
        for layer in range(len(means[0]))
        for head in range(len(means[0][0]))
    ]


if __name__ == "__main__":
    run_command_line(main)
