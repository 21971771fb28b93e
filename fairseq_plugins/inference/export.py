"""Export a trained Transformer to CTranslate2 or Argos Translate, and verify it.

CTranslate2's own converter for fairseq does the conversion. The exported model then
translates validation sentences and must find the translations that fairseq finds.
"""

from __future__ import annotations

import dataclasses
import logging
import pickle
import shutil
import tempfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Mapping

from fairseq_plugins.corpus.manifest import PreparedCorpus
from fairseq_plugins.evaluation.evaluate import choose_checkpoint
from fairseq_plugins.evaluation.metrics import corpus_bleu
from fairseq_plugins.inference.codec import SentencePieceCodec
from fairseq_plugins.inference.translator import Hypothesis, SearchOptions, Translator
from fairseq_plugins.training.run_folder import RunFolder
from fairseq_plugins.utils.errors import UserError
from fairseq_plugins.utils.files import read_lines, write_atomically, write_json

__all__ = ["FORMATS", "QUANTIZATIONS", "Measurement", "export_run"]

logger = logging.getLogger(__name__)

FORMATS = ("ctranslate2", "argos")
QUANTIZATIONS = ("float32", "float16", "bfloat16", "int16", "int8")
_ARGOS_SUFFIX = ".argosmodel"
_NUM_SENTENCES = 200  # validation sentences that both systems translate
_SEARCH = SearchOptions(beam=5, max_len_a=0, max_len_b=200)
_BATCH_TOKENS = 4000
# Largest difference of log-probability per token that is taken for rounding. The
# largest one in 1,014 translations of Multi30k was 0.0003.
_TOLERANCE = 1e-3
_README = """\
# Translation from `{source_lang}` to `{target_lang}`

A CTranslate2 model and its SentencePiece model. After `pip install ctranslate2 sentencepiece`,
these lines translate a sentence in this folder:

```python
import ctranslate2, sentencepiece
model, subwords = ctranslate2.Translator("{folder}"), sentencepiece.SentencePieceProcessor(model_file="sentencepiece.model")
print(subwords.decode(model.translate_batch([subwords.encode({source!r}, out_type=str)], beam_size=5, max_decoding_length={max_length})[0].hypotheses[0]))
```

The model reads at most {max_source_tokens:,} subwords at a time, and was trained on single sentences. The lines print:

    {translation}
"""  # noqa: E501


@dataclass(frozen=True)
class Measurement:
    """How a system translated the validation sentences on the CPU.

    Attributes:
        system: ``fairseq``, or ``CTranslate2`` with the type of its weights.
        sentences: number of sentences.
        same: number of translations that are those of fairseq.
        bleu: against the references, 0 to 100.
        tokens_per_second: subwords of the translations, from text to text.
        megabytes: size of the model file; ``None`` for fairseq, whose checkpoints also
            hold the state of the optimizer.
    """

    system: str
    sentences: int
    same: int
    bleu: float
    tokens_per_second: float
    megabytes: float | None = None


def export_run(
    run: Path,
    output: Path,
    *,
    to: str,
    checkpoint: str = "best",
    quantization: str = "float32",
) -> list[Measurement]:
    """Write the model of a run in another format and compare it with fairseq.

    The model is always verified in float32, even if it is written in another type. This
    distinguishes a faulty conversion from the effect of quantization.

    Args:
        run: folder that ``scripts/train.py`` wrote.
        output: what to write; it must not exist. A folder for ``ctranslate2``, a file
            ``NAME.argosmodel`` for ``argos``.
        to: one of :data:`FORMATS`.
        checkpoint: ``best``, ``last``, ``average`` or the path of a checkpoint.
        quantization: type of the weights, one of :data:`QUANTIZATIONS`.

    Returns:
        the measurements of fairseq, of CTranslate2 in float32 and, if it is another
        type, of CTranslate2 with ``quantization``.

    Raises:
        UserError: the model or its subwords cannot be exported, ``output`` exists, a
            package is missing, or the translations in float32 are not those of fairseq.
            Then nothing is written.
    """
    if output.exists():
        raise UserError(f"`{output}` must not exist, but does.")
    if to == "argos" and output.suffix != _ARGOS_SUFFIX:
        raise UserError(
            f"`--to argos` must write a file `NAME{_ARGOS_SUFFIX}`, but `{output}` has "
            "another ending."
        )
    folder = RunFolder(run)
    config = folder.read_config()
    _check_architecture(str(config.get("arch")))
    corpus = PreparedCorpus.load(Path(str(config["data"])))
    if corpus.codes_file is not None:
        raise UserError(
            f"`{corpus.folder}` must be prepared with SentencePiece to be exported, "
            "but is prepared with subword-nmt. Its text passes through Moses' "
            "tokenizer and detokenizer, which the exported model does not contain."
        )
    _check_packages(to)
    path = choose_checkpoint(folder, checkpoint).path
    codec = SentencePieceCodec(corpus.spm_model)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=f".{output.name}.", suffix=".partial", dir=output.parent
    ) as temporary:
        folders = {}
        for weights in dict.fromkeys(("float32", quantization)):
            logger.info("converting %s to %s", path, weights)
            folders[weights] = Path(temporary) / weights
            _convert(path, corpus, folders[weights], weights)
        fairseq = Translator(
            [path],
            corpus.bin_dir,
            (corpus.source_lang, corpus.target_lang),
            codec,
            max_tokens=_BATCH_TOKENS,
            use_gpu=False,
        )
        # CTranslate2 fails at a position that the model does not have.
        positions = int(fairseq.model.max_decoder_positions())
        max_length = min(_SEARCH.max_len_b, positions - 1)
        models = {
            weights: _ExportedModel(folder, codec, max_length)
            for weights, folder in folders.items()
        }
        measurements = _compare(fairseq, models, corpus)
        package = folders[quantization]
        if to == "argos":
            package = _create_argos_folder(package, corpus)
        shutil.copyfile(corpus.spm_model, package / "sentencepiece.model")
        _add_readme(package, corpus, fairseq, models[quantization])
        if to == "argos":
            _write_zip(output, package)
        else:
            package.rename(output)
    return measurements


def _check_architecture(arch: str) -> None:
    import fairseq_plugins

    fairseq_plugins.register()
    from fairseq.models import ARCH_MODEL_NAME_REGISTRY

    model = ARCH_MODEL_NAME_REGISTRY.get(arch, arch)
    if model == "transformer":
        return
    reason = "the export of this architecture has not been tried"
    if "lstm" in model:
        reason = "CTranslate2 has no LSTM"
    elif model.endswith("_topk"):
        reason = "CTranslate2 cannot restrict attention to k positions"
    raise UserError(
        "`arch` must be a fairseq `transformer` to be exported, but is "
        f"`{arch}`: {reason}."
    )


def _check_packages(to: str) -> None:
    try:
        import ctranslate2  # noqa: F401

        if to == "argos":
            import babel  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"export needs {error.name}: pip install -e '.[export]'."
        ) from None


def _convert(
    checkpoint: Path, corpus: PreparedCorpus, model: Path, quantization: str
) -> None:
    from ctranslate2.converters import FairseqConverter

    from fairseq_plugins.compat import allow_checkpoint_classes

    # The converter reads checkpoints with torch's safe loader, which refuses the
    # options in them. Allowing these few classes is safer than its unsafe mode.
    allow_checkpoint_classes()
    converter = FairseqConverter(
        str(checkpoint),
        str(corpus.bin_dir),
        # A checkpoint does not name its languages if fairseq read them from the data.
        source_lang=corpus.source_lang,
        target_lang=corpus.target_lang,
    )
    try:
        converter.convert(str(model), quantization=quantization)
    except (
        ValueError,
        RuntimeError,
        LookupError,
        AttributeError,
        pickle.UnpicklingError,
    ) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"`{checkpoint}` cannot be converted by CTranslate2: {reason}"
        ) from None


class _ExportedModel:
    """A model that CTranslate2 runs, with the search of fairseq.

    Args:
        model: folder of the model.
        codec: converts between raw text and subwords.
        max_length: the longest translation, in subwords.
    """

    def __init__(self, model: Path, codec: SentencePieceCodec, max_length: int) -> None:
        import ctranslate2
        import torch

        self._model = ctranslate2.Translator(
            str(model), device="cpu", intra_threads=torch.get_num_threads()
        )
        self._codec = codec
        self.max_length = max_length
        self.megabytes = (model / "model.bin").stat().st_size / 1e6

    def translate(self, lines: list[str]) -> list[Hypothesis]:
        results = self._model.translate_batch(
            [self._codec.encode(line).split() for line in lines],
            max_batch_size=_BATCH_TOKENS,
            batch_type="tokens",
            beam_size=_SEARCH.beam,
            length_penalty=_SEARCH.lenpen,
            max_input_length=0,  # no limit
            max_decoding_length=self.max_length,
            return_scores=True,
        )
        return [
            Hypothesis(
                self._codec.decode(" ".join(result.hypotheses[0])),
                result.scores[0],
                tuple(result.hypotheses[0]),
            )
            for result in results
        ]


def _compare(
    fairseq: Translator, models: Mapping[str, _ExportedModel], corpus: PreparedCorpus
) -> list[Measurement]:
    """Translate validation sentences with all systems; check the model in float32."""
    sources, references = _read_sentences(corpus, fairseq)
    logger.info("translating %d sentences of %s", len(sources), corpus.folder)

    def translate(lines: list[str]) -> list[Hypothesis]:
        found = fairseq.translate(lines, _SEARCH)
        return [translation.hypotheses[0] for translation in found]

    expected, seconds = _time(translate, sources)
    measurements = [_measure("fairseq", expected, expected, references, seconds)]
    for weights, model in models.items():
        found, seconds = _time(model.translate, sources)
        if weights == "float32":
            _check_same(sources, expected, found)
        row = _measure(f"CTranslate2 {weights}", found, expected, references, seconds)
        measurements.append(dataclasses.replace(row, megabytes=model.megabytes))
    return measurements


def _read_sentences(
    corpus: PreparedCorpus, translator: Translator
) -> tuple[list[str], list[str]]:
    """Return validation sentences that the model can read, and their references."""
    valid = corpus.subset("valid")[1]
    pairs = [
        pair
        for pair in zip(read_lines(valid.source), read_lines(valid.target))
        if 0 < len(translator.encode(pair[0]).split()) <= translator.max_source_tokens
    ][:_NUM_SENTENCES]
    if not pairs:
        raise UserError(
            f"`{valid.source}` must have a sentence that the model can read, but has "
            "none."
        )
    sources, references = zip(*pairs)
    return list(sources), list(references)


def _time(
    translate: Callable[[list[str]], list[Hypothesis]], lines: list[str]
) -> tuple[list[Hypothesis], float]:
    translate(lines[:8])  # the first batch takes longer
    start = time.perf_counter()
    return translate(lines), time.perf_counter() - start


def _measure(
    system: str,
    found: list[Hypothesis],
    expected: list[Hypothesis],
    references: list[str],
    seconds: float,
) -> Measurement:
    texts = [hypothesis.text for hypothesis in found]
    return Measurement(
        system=system,
        sentences=len(found),
        same=sum(text == other.text for text, other in zip(texts, expected)),
        bleu=corpus_bleu(texts, references),
        tokens_per_second=sum(len(each.tokens) for each in found) / seconds,
    )


def _check_same(
    sources: list[str], expected: list[Hypothesis], found: list[Hypothesis]
) -> None:
    """Raise ``UserError`` unless all translations are the same or equally good."""
    differing = [
        (source, ours, theirs)
        for source, ours, theirs in zip(sources, expected, found)
        if ours.text != theirs.text and abs(ours.score - theirs.score) > _TOLERANCE
        # fairseq ends a hypothesis at the limit, CTranslate2 leaves it without an end.
        and not ours.reached_limit
    ]
    if differing:
        source, ours, theirs = differing[0]
        raise UserError(
            "the translations in float32 must be those of fairseq, but "
            f"{len(differing)} of {len(sources)} differ. The first is of `{source}`: "
            f"fairseq finds `{ours.text}` ({ours.score:.4f} per token), CTranslate2 "
            f"`{theirs.text}` ({theirs.score:.4f}). The model has an option that "
            "CTranslate2's converter ignores. Nothing was written."
        )


def _create_argos_folder(model: Path, corpus: PreparedCorpus) -> Path:
    """Return a folder with the model and the metadata that Argos Translate reads."""
    import babel

    source, target = corpus.source_lang, corpus.target_lang
    folder = model.with_name(f"translate-{source}_{target}-1_0")
    folder.mkdir()
    model.rename(folder / "model")
    languages = babel.Locale("en").languages
    metadata = {
        "package_version": "1.0",
        "argos_version": "1.0",
        "from_code": source,
        "from_name": languages.get(source, source),
        "to_code": target,
        "to_name": languages.get(target, target),
    }
    write_json(folder / "metadata.json", metadata)
    return folder


def _add_readme(
    package: Path, corpus: PreparedCorpus, fairseq: Translator, model: _ExportedModel
) -> None:
    lines = filter(str.strip, read_lines(corpus.subset("valid")[1].source))
    source = min(lines, key=lambda line: abs(len(line) - 40))  # not too long to read
    (translation,) = model.translate([source])
    text = _README.format(
        source_lang=corpus.source_lang,
        target_lang=corpus.target_lang,
        folder="model" if (package / "model").is_dir() else ".",
        source=source,
        max_length=model.max_length,
        max_source_tokens=fairseq.max_source_tokens,
        translation=translation.text,
    )
    (package / "README.md").write_text(text, encoding="utf-8")


def _write_zip(output: Path, folder: Path) -> None:
    with write_atomically(output, "wb") as stream:
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as package:
            for path in sorted(folder.rglob("*")):
                package.write(path, path.relative_to(folder.parent))
