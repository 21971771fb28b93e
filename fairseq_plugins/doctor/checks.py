"""Check what each stage needs, and tell how to fix what is missing or wrong.

The needs of disk and GPU memory are estimates; none of them was measured on a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterator

from fairseq_plugins.doctor.system import RecipeNeeds, System, Torch

__all__ = [
    "MODELS",
    "STAGES",
    "Finding",
    "check_system",
    "estimate_checkpoint_bytes",
    "estimate_training_bytes",
]

STAGES = ("setup", "prepare", "train", "evaluate")
_GIB = 1 << 30
_SHARED_MEMORY = _GIB
_ENVIRONMENT = 8 * _GIB
_EVALUATION = 4 * _GIB  # caches of attention
# A pair of news sentences has about 300 bytes. It is stored extracted, cleaned, as
# subword ids and binarized (2 bytes per token): a bit more than three times in all.
_BYTES_PER_PAIR = 1_000
# bf16 weights and gradients, fp32 weights and gradients, two fp32 moments of Adam.
_BYTES_PER_PARAMETER = 2 + 2 + 4 + 4 + 8
_SAVED_PER_PARAMETER = 2 + 4 + 8  # bf16 weights, fp32 weights and moments
_EXTRA_CHECKPOINTS = 3  # the last, the best and the average
_CUDA_CONTEXT = _GIB
_VOCABULARY = 32_000
_BEAM = 5

_RUN_SETUP = "run bash scripts/setup.sh"
_RECIPE_FIXES = {
    "python": _RUN_SETUP,
    "recipe": "pass another --recipe, or correct its file",
    "source": "pass the folder with these files with --source",
}


@dataclass(frozen=True)
class ModelSize:
    """A model of configs/wmt*.yaml and its beam-aware run, which needs the most.

    Attributes:
        parameters: with a vocabulary of 32,000.
        width: of the decoder.
        layers: of the decoder.
        is_lstm: selects the formula.
        tokens: ``max_tokens`` of the beam-aware run.
        batches_per_update: of the beam-aware run.
        kept: checkpoints that a run keeps (``keep_interval_updates``).
    """

    parameters: int
    width: int
    layers: int
    is_lstm: bool
    tokens: int
    batches_per_update: int
    kept: int


MODELS = {
    "lstm": ModelSize(88_700_000, 1000, 1, True, 2048, 16, 5),
    "base": ModelSize(60_500_000, 512, 6, False, 2048, 16, 5),
    "big": ModelSize(209_000_000, 1024, 6, False, 2048, 16, 20),
}


def estimate_training_bytes(model: str) -> int:
    """Return the peak memory of a beam-aware update in fp32 at beam 5."""
    size = MODELS[model]
    n, v, d = size.tokens, _VOCABULARY, size.width
    if size.is_lstm:
        activations = 4 * (1.5 * n * v + 24 * _BEAM * n * d * size.layers + 3 * v * d)
    else:
        activations = 4 * (1.9 * n * v + 25 * _BEAM * n * d * size.layers)
    return int(activations) + _BYTES_PER_PARAMETER * size.parameters + _CUDA_CONTEXT


def estimate_checkpoint_bytes(model: str) -> int:
    """Return the disk space of the checkpoints of one run."""
    size = MODELS[model]
    return _SAVED_PER_PARAMETER * size.parameters * (size.kept + _EXTRA_CHECKPOINTS)


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        level: ``ok``, ``warning`` (works, but less well) or ``problem`` (fails).
        fix: what the user can do; empty if the level is ``ok``.
    """

    stage: str
    level: str
    message: str
    fix: str = ""


def check_system(
    system: System, *, model: str | None = None, recipe: RecipeNeeds | None = None
) -> list[Finding]:
    """Return the findings of all stages, in their order.

    Args:
        model: ``lstm``, ``base`` or ``big``: also check the needs of its WMT runs.
        recipe: also check the needs of its preparation.
    """
    return [
        *_check_setup(system),
        *_check_prepare(system, recipe),
        *_check_train(system, model),
        *_check_evaluate(system, model),
    ]


def _check_setup(system: System) -> Iterator[Finding]:
    version = ".".join(map(str, system.python_version)) or "does not run"
    yield _judge(
        "setup", (3, 10) <= system.python_version[:2] <= (3, 12),
        f"Python {version} ({system.python})",
        "install Python 3.10, 3.11 or 3.12 and run PYTHON=python3.11 bash "
        "scripts/setup.sh",
    )  # fmt: skip
    torch, error = system.torch, system.fairseq_error
    if torch is None:
        yield Finding("setup", "problem", f"torch: {system.torch_error}", _RUN_SETUP)
    else:
        build = f"CUDA {torch.cuda}" if torch.cuda else "the CPU only"
        yield Finding("setup", "ok", f"torch {torch.version}, built for {build}")
    if error is None:
        yield Finding("setup", "ok", "fairseq loads the plug-in")
        return  # fairseq is compiled already
    message = f"fairseq does not load the plug-in: {error}"
    yield Finding("setup", "problem", message, _RUN_SETUP)
    package = "install it (Debian, Ubuntu: apt install build-essential python3-dev)"
    yield _judge(
        "setup", system.compiler is not None,
        f"C++ compiler: {system.compiler or 'none'}", package,
    )  # fmt: skip
    headers = "installed" if system.headers else "missing"
    yield _judge("setup", system.headers, f"Python's headers: {headers}", package)
    yield _check_disk("setup", system, _ENVIRONMENT, "for the environment")


def _check_prepare(system: System, recipe: RecipeNeeds | None) -> Iterator[Finding]:
    if system.out_error:
        fix = "pass another folder with --out"
        yield Finding("prepare", "problem", system.out_error, fix)
    if recipe is None:
        return
    if recipe.fault:
        message, fix = f"the recipe: {recipe.fault}", _RECIPE_FIXES[recipe.cause]
        yield Finding("prepare", "problem", message, fix)
    if recipe.pairs or recipe.unknown_parts:
        unknown = []
        if recipe.unknown_archives:
            unknown.append(f"{recipe.unknown_archives} archives of unknown size")
        if recipe.unknown_parts:
            unknown.append(f"{recipe.unknown_parts} parts of unknown length")
        extra = f", plus {' and '.join(unknown)}" if unknown else ""
        needed = recipe.download + _BYTES_PER_PAIR * recipe.pairs
        yield _check_disk("prepare", system, needed, f"for the corpus{extra}")
    for host, error in system.host_errors.items():
        yield _judge(
            "prepare", error is None,
            f"network: {host} {f'cannot be reached ({error})' if error else 'answers'}",
            "download the archives elsewhere and pass their folder with --source, or "
            "set https_proxy",
        )  # fmt: skip


def _check_train(system: System, model: str | None) -> Iterator[Finding]:
    yield from _check_gpus(system)
    if model is not None:
        batches = MODELS[model].batches_per_update
        yield from _check_gpu_memory(
            "train", system, estimate_training_bytes(model), f"{model} needs about",
            "end other programs on the GPU, or halve max_tokens and double "
            f"batches_per_update (now {batches} in the beam-aware run)",
        )  # fmt: skip
        yield _check_disk(
            "train", system, estimate_checkpoint_bytes(model),
            f"for the checkpoints of one run of {model}",
        )  # fmt: skip
    shared = system.shared_memory
    if shared is not None:
        yield _judge(
            "train", shared >= _SHARED_MEMORY,
            f"shared memory: {_gib(shared)} free in /dev/shm, {_gib(_SHARED_MEMORY)} "
            "is enough",
            "in a container pass --shm-size=8g, or train with num_workers=0",
            otherwise="warning",
        )  # fmt: skip


def _check_gpus(system: System) -> Iterator[Finding]:
    if system.driver_error:
        yield Finding(
            "train", "problem", f"nvidia-smi fails: {system.driver_error}",
            "reinstall the NVIDIA driver, or restart the machine after an update",
        )  # fmt: skip
    elif not system.gpus:
        yield Finding(
            "train", "warning", "no NVIDIA GPU: only --smoke and small corpora",
            "use a machine with a GPU; in a container pass --gpus all",
        )  # fmt: skip
    for gpu in system.gpus:
        yield Finding("train", "ok", f"{gpu.name}, {_gib(gpu.memory << 20)}")
    if system.gpus and system.torch is not None:
        yield from _check_torch(system, system.torch)


def _check_torch(system: System, torch: Torch) -> Iterator[Finding]:
    newest = system.driver_cuda
    if torch.cuda is None:
        yield Finding(
            "train", "problem", "torch is built for the CPU only, but there is a GPU",
            f"install the build of torch for CUDA {newest or 'of the driver'} into the "
            "environment (pytorch.org, Get Started)",
        )  # fmt: skip
        return
    if newest is not None:  # a driver runs builds for its major version and older ones
        yield _judge(
            "train", int(torch.cuda.split(".")[0]) <= int(newest.split(".")[0]),
            f"driver {system.driver} runs CUDA up to {newest}, torch needs "
            f"{torch.cuda}",
            f"update the driver, or install a build of torch for CUDA {newest}",
        )  # fmt: skip
    names = [name for name in torch.architectures if name.startswith("sm_")]
    oldest = min((int(name[3:].rstrip("af")) for name in names), default=0)
    for gpu in system.gpus:
        major, minor = gpu.capability
        if 10 * major + minor < oldest:
            yield Finding(
                "train", "problem",
                f"torch {torch.version} is not built for {gpu.name} (compute "
                f"capability {major}.{minor})",
                "install an older torch or use a newer GPU",
            )  # fmt: skip
        elif major < 8:
            yield Finding(
                "train", "warning", f"{gpu.name} has no bfloat16",
                "train with bf16=null fp16=true",
            )  # fmt: skip
    if not torch.sees_gpu:
        yield Finding(
            "train", "problem", "torch sees no GPU, but nvidia-smi does",
            "check CUDA_VISIBLE_DEVICES; in a container pass --gpus all",
        )  # fmt: skip


def _check_evaluate(system: System, model: str | None) -> Iterator[Finding]:
    for name in ("sacrebleu", "sentencepiece"):
        if name not in system.packages:
            message = f"{name} is not installed"
            yield Finding("evaluate", "problem", message, _RUN_SETUP)
    version = system.packages.get("sacrebleu")
    if version:
        yield Finding("evaluate", "ok", f"sacrebleu {version}")
    if model is not None:
        yield from _check_gpu_memory(
            "evaluate", system, _EVALUATION, "evaluation needs about",
            "translate with --max-tokens 1000",
        )  # fmt: skip


def _check_gpu_memory(
    stage: str, system: System, needed: int, purpose: str, fix: str
) -> Iterator[Finding]:
    if system.gpus:
        free = min(gpu.free_memory for gpu in system.gpus) << 20
        yield _judge(
            stage, free >= needed,
            f"GPU memory: {_gib(free)} free, {purpose} {_gib(needed)} (estimate)",
            fix, otherwise="warning",
        )  # fmt: skip


def _check_disk(stage: str, system: System, needed: int, purpose: str) -> Finding:
    return _judge(
        stage, system.disk >= needed,
        f"disk: {_gib(system.disk)} free, about {_gib(needed)} needed {purpose} "
        "(estimate)",
        "free some space, or pass a folder on another disk with --out",
    )  # fmt: skip


def _judge(
    stage: str, is_good: bool, message: str, fix: str, *, otherwise: str = "problem"
) -> Finding:
    if is_good:
        return Finding(stage, "ok", message)
    return Finding(stage, otherwise, message, fix)


def _gib(count: int) -> str:
    return f"{count / _GIB:.1f} GiB"
