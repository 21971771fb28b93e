"""How a fairseq task generates: its languages, dictionaries and forced tokens."""

from __future__ import annotations

from typing import Any

from fairseq.tasks.fairseq_task import FairseqTask
from fairseq.tasks.multilingual_translation import MultilingualTranslationTask
from fairseq.tasks.speech_to_text import SpeechToTextTask
from fairseq.tasks.translation_lev import TranslationLevenshteinTask
from fairseq.tasks.translation_multi_simple_epoch import TranslationMultiSimpleEpochTask

__all__ = [
    "find_prefix_size",
    "find_target_dictionaries",
    "find_target_languages",
    "find_task_options",
    "uses_moses",
]


def find_prefix_size(task: Any) -> int:
    """Return how many first tokens of a target the task's generation forces.

    The search of training has to begin in the same way. Options of the command line
    such as ``--prefix-size`` and ``--constraints`` are no part of a task.

    Raises:
        ValueError: the task generates in a way that the search does not follow.
    """
    cls = type(task)
    options = find_task_options(task)
    names = [getattr(options, name, None) for name in ("task", "_name")]
    name = next((name for name in names if isinstance(name, str)), cls.__name__)
    if isinstance(task, TranslationLevenshteinTask):
        raise ValueError(
            f"`--task` must be one that generates token by token, but `{name}` is for "
            "non-autoregressive models."
        )
    # fairseq's methods by the size of the prefix that they force.
    steps = {
        FairseqTask.inference_step: lambda: 0,
        # Its language token takes the place of the start token, as in training.
        MultilingualTranslationTask.inference_step: lambda: 0,
        TranslationMultiSimpleEpochTask.inference_step: lambda: _langtok_size(task),
    }
    generators = {
        FairseqTask.build_generator: lambda: 0,
        TranslationMultiSimpleEpochTask.build_generator: lambda: 0,
        SpeechToTextTask.build_generator: lambda: _lang_tag_size(task),
    }
    for method, sizes in (("inference_step", steps), ("build_generator", generators)):
        if getattr(cls, method, None) not in sizes:
            raise ValueError(
                "`--task` must generate as `translation` does, but "
                f"`{name}` changes it by its own `{method}`, which the beam search of "
                "training does not follow."
            )
    return steps[cls.inference_step]() + generators[cls.build_generator]()


def _langtok_size(task: Any) -> int:
    """Return 1 if ``translation_multi_simple_epoch`` prepends the target language."""
    if task.args.lang_tok_replacing_bos_eos:  # the start token, as in training
        return 0
    langtoks = task.args.langtoks
    forces = bool(langtoks["main"][1])
    for category in task.args.extra_data or ():
        if bool(langtoks.get(category, (None, None))[1]) != forces:
            raise ValueError(
                "`--langtoks` must prepend the target language to the targets of all "
                f"kinds of data or of none, but `{category}` differs from `main`, "
                "with which generation begins."
            )
    return int(forces)


def _lang_tag_size(task: Any) -> int:
    """Return 1 if ``speech_to_text`` prepends the tag of the target language."""
    data = task.data_cfg
    appends = getattr(data, "prepend_bos_and_append_tgt_lang_tag", False)
    if appends or data.config.get("eos_token"):
        raise ValueError(
            "The data configuration of `--task speech_to_text` must end targets with "
            "`</s>`, but has `prepend_bos_and_append_tgt_lang_tag` or `eos_token`."
        )
    return int(data.prepend_tgt_lang_tag)


def find_target_dictionaries(task: Any) -> list[Any]:
    """Return the dictionaries that the decoders of a task may have."""
    if isinstance(task, MultilingualTranslationTask):
        return [task.dicts[language] for language in find_target_languages(task)]
    return [task.target_dictionary]


def find_target_languages(task: Any) -> list[str]:
    """Return the target languages of a task, as far as it knows them."""
    pairs = getattr(task, "model_lang_pairs", None)  # of the multilingual tasks
    if pairs is not None:
        return sorted({pair.split("-")[1] for pair in pairs})
    language = getattr(find_task_options(task), "target_lang", None)
    return [language] if language else []


def uses_moses(task: Any) -> bool:
    """Return whether the task is told that Moses tokenized its targets."""
    return getattr(find_task_options(task), "eval_bleu_detok", None) == "moses"


def find_task_options(task: Any) -> Any:
    """Return the options of a task: `cfg`, or `args` of an older one."""
    return getattr(task, "cfg", None) or getattr(task, "args", None)
