"""How much disk and GPU memory the WMT runs need: estimates, each with its derivation.

None of this was measured on a GPU.

What is wrong with a machine for each stage, and how to mend it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterator

from fairseq_plugins.doctor.system import Machine, RecipeFault, RecipeNeeds

__all__ = [
    "BYTES_PER_PAIR",
    "CACHE_OF_EVALUATION",
    "MODELS",
    "STAGES",
    "Finding",
    "check",
    "checkpoint_bytes",
    "training_bytes",
]

# A pair of news text is about 300 bytes; it is kept as extracted, as cleaned, as
# ids and binarised (2 bytes a token), which together is somewhat more than thrice it.
BYTES_PER_PAIR = 1_000
CACHE_OF_EVALUATION = 4 << 30

# bf16 weights and gradients, fp32 weights and gradients, two fp32 moments of Adam.
_BYTES_PER_PARAMETER = 2 + 2 + 4 + 4 + 8
# In a file: bf16 weights, fp32 weights and moments.
_SAVED_PER_PARAMETER = 2 + 4 + 8
_BESIDES = 3  # the last, the best and the mean
_CONTEXT = 1 << 30  # CUDA's own memory


@dataclass(frozen=True)
class ModelSize:
    """A model of configs/wmt*.yaml, with its beam run, which needs the most.

    Attributes:
        parameters: with a vocabulary of 32,000.
        width: of the decoder.
        layers: of the decoder.
        is_lstm: which formula holds.
        tokens: ``max_tokens`` of the beam run.
        batches_per_update: of the beam run.
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
_VOCABULARY = 32_000
_BEAM = 5


def training_bytes(model: str) -> int:
    """Return the peak of a beam update: docs/beam_training.md, in fp32, at beam 5."""
    size = MODELS[model]
    n, v, d = size.tokens, _VOCABULARY, size.width
    if size.is_lstm:
        activations = 4 * (1.5 * n * v + 24 * _BEAM * n * d * size.layers + 3 * v * d)
    else:
        activations = 4 * (1.9 * n * v + 25 * _BEAM * n * d * size.layers)
    return int(activations) + _BYTES_PER_PARAMETER * size.parameters + _CONTEXT


def checkpoint_bytes(model: str) -> int:
    """Return the disk that one run's checkpoints take."""
    size = MODELS[model]
    return _SAVED_PER_PARAMETER * size.parameters * (size.kept + _BESIDES)


STAGES = ("setup", "prepare", "train", "evaluate")
_PYTHONS = ((3, 10), (3, 12))
_SETUP = "run bash scripts/setup.sh"
_RECIPE_MENDS = {
    "python": _SETUP,
    "recipe": "give another --recipe, or mend its file",
    "source": "give the folder that holds these files with --source",
}
_GIB = 1 << 30
_SHARED_MEMORY = _GIB
_BUILD_DISK = 8 * _GIB


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        level: ``ok``, ``warning`` (works, but less well) or ``problem`` (does not).
        what: what was found.
        mend: how to mend it; empty when there is nothing to mend.
    """

    stage: str
    level: str
    what: str
    mend: str = ""


def check(
    machine: Machine,
    *,
    model: str | None = None,
    needs: RecipeNeeds | None = None,
    fault: RecipeFault | None = None,
    has_source: bool = False,
) -> list[Finding]:
    """Return the findings of all stages, in their order.

    Args:
        machine: what :func:`~fairseq_plugins.doctor.system.examine` saw.
        model: ``lstm``, ``base`` or ``big``, whose needs are looked at.
        needs: what the recipe asks for.
        fault: why it cannot be prepared.
        has_source: the recipe's files are here already.
    """
    return [
        *_setup(machine),
        *_prepare(machine, needs, fault, has_source),
        *_train(machine, model),
        *_evaluate(machine, model),
    ]


def _setup(machine: Machine) -> Iterator[Finding]:
    version = ".".join(map(str, machine.python_version))
    lowest, highest = _PYTHONS
    right = lowest <= machine.python_version[:2] <= highest
    yield _finding(
        "setup", right, f"Python {version or 'does not run'} ({machine.python})",
        "install Python 3.10, 3.11 or 3.12 and run PYTHON=python3.11 bash "
        "scripts/setup.sh",
    )  # fmt: skip
    yield from _torch(machine)
    built = machine.fairseq_error is None
    yield _finding(
        "setup", built,
        "fairseq loads the plug-in" if built
        else f"fairseq does not load the plug-in: {machine.fairseq_error}", _SETUP,
    )  # fmt: skip
    if not built:  # else it was compiled already
        yield from _compiler(machine)


def _torch(machine: Machine) -> Iterator[Finding]:
    torch = machine.torch
    if torch is None:
        yield Finding("setup", "problem", f"torch: {machine.torch_error}", _SETUP)
        return
    cuda = f"built for CUDA {torch.cuda}" if torch.cuda else "built for the CPU only"
    yield Finding("setup", "ok", f"torch {torch.version}, {cuda}")


def _compiler(machine: Machine) -> Iterator[Finding]:
    package = "install it (Debian, Ubuntu: apt install build-essential python3-dev)"
    yield _finding(
        "setup", machine.compiler is not None,
        f"C++ compiler: {machine.compiler or 'none'}", package,
    )  # fmt: skip
    header = "there" if machine.headers else "missing"
    yield _finding("setup", machine.headers, f"Python's headers: {header}", package)
    yield _enough_disk("setup", machine.disk, _BUILD_DISK, "for the environment")


def _prepare(
    machine: Machine,
    needs: RecipeNeeds | None,
    fault: RecipeFault | None,
    has_source: bool,
) -> Iterator[Finding]:
    if machine.out_error:
        mend = "give another folder with --out"
        yield Finding("prepare", "problem", machine.out_error, mend)
    if fault is not None:
        what, mend = f"the recipe: {fault.message}", _RECIPE_MENDS[fault.cause]
        yield Finding("prepare", "problem", what, mend)
    if needs is None:
        return
    yield _recipe_disk(machine, needs, has_source)
    if has_source:
        return
    for host, error in machine.host_errors.items():
        yield _finding(
            "prepare", error is None,
            f"network: {host} {f'cannot be reached ({error})' if error else 'answers'}",
            "fetch the archives elsewhere and give their folder with --source, or set "
            "https_proxy",
        )  # fmt: skip


def _recipe_disk(machine: Machine, needs: RecipeNeeds, has_source: bool) -> Finding:
    download = 0 if has_source else needs.download
    needed = download + BYTES_PER_PAIR * needs.pairs
    unknown = []
    if needs.unknown and not has_source:
        unknown.append(f"{needs.unknown} archives of unknown size")
    if needs.unknown_parts:
        unknown.append(f"{needs.unknown_parts} parts of unknown length")
    beside = f", besides {' and '.join(unknown)}" if unknown else ""
    return _enough_disk("prepare", machine.disk, needed, f"for the corpus{beside}")


def _train(machine: Machine, model: str | None) -> Iterator[Finding]:
    yield from _gpus(machine)
    if model is not None:
        needed = training_bytes(model)
        if machine.gpus:
            yield _gpu_memory(machine, model, needed)
        yield _enough_disk(
            "train", machine.disk, checkpoint_bytes(model),
            f"for the checkpoints of one run of {model}",
        )  # fmt: skip
    shared = machine.shared_memory
    if shared is not None:
        yield _finding(
            "train", shared >= _SHARED_MEMORY,
            f"shared memory: {_gib(shared)} free in /dev/shm, {_gib(_SHARED_MEMORY)} "
            "is enough",
            "in a container give --shm-size=8g, or train with num_workers=0",
            otherwise="warning",
        )  # fmt: skip


def _gpus(machine: Machine) -> Iterator[Finding]:
    torch = machine.torch
    if machine.driver_error:
        yield Finding(
            "train", "problem", f"nvidia-smi fails: {machine.driver_error}",
            "install the NVIDIA driver anew, or restart the machine after an update",
        )  # fmt: skip
        return
    if not machine.gpus:
        yield Finding(
            "train", "warning", "no NVIDIA GPU: only --smoke and small corpora",
            "use a machine with a GPU; in a container give --gpus all",
        )  # fmt: skip
        return
    for gpu in machine.gpus:
        yield Finding("train", "ok", f"{gpu.name}, {_gib(gpu.memory << 20)}")
    if torch is None:
        return
    yield from _driver(machine)
    if torch.cuda:
        yield from _architectures(machine)
        if not torch.sees_gpu:
            yield Finding(
                "train", "problem", "torch sees no GPU though nvidia-smi does",
                "look at CUDA_VISIBLE_DEVICES; in a container give --gpus all",
            )  # fmt: skip


def _driver(machine: Machine) -> Iterator[Finding]:
    """A driver runs what was built for its own major version of CUDA or an older."""
    assert machine.torch is not None
    built, newest = machine.torch.cuda, machine.driver_cuda
    if built is None:
        yield Finding(
            "train", "problem", "torch is built for the CPU only, but there is a GPU",
            f"install the build of torch for CUDA {newest or 'of the driver'} into the "
            "environment (pytorch.org, Get Started)",
        )  # fmt: skip
    elif newest is not None:
        yield _finding(
            "train", int(built.split(".")[0]) <= int(newest.split(".")[0]),
            f"driver {machine.driver} runs CUDA up to {newest}, torch wants {built}",
            f"update the driver, or install a build of torch for CUDA {newest}",
        )  # fmt: skip


def _architectures(machine: Machine) -> Iterator[Finding]:
    assert machine.torch is not None
    numbers = [
        int(name.split("_")[1].rstrip("af"))
        for name in machine.torch.architectures
        if name.startswith("sm_")
    ]
    for gpu in machine.gpus:
        major, minor = gpu.capability
        if numbers and 10 * major + minor < min(numbers):
            yield Finding(
                "train", "problem",
                f"torch {machine.torch.version} is not built for {gpu.name} "
                f"(compute capability {major}.{minor})",
                "install an older torch or use a newer GPU",
            )  # fmt: skip
        elif major < 8:
            yield Finding(
                "train", "warning", f"{gpu.name} has no bfloat16",
                "train with bf16=null fp16=true",
            )  # fmt: skip


def _gpu_memory(machine: Machine, model: str, needed: int) -> Finding:
    free = min(gpu.free_memory for gpu in machine.gpus) << 20
    batches = MODELS[model].batches_per_update
    return _finding(
        "train", free >= needed,
        f"GPU memory: {_gib(free)} free, {model} needs about {_gib(needed)} (estimate)",
        "end other programs on the GPU, or halve max_tokens and double "
        f"batches_per_update (now {batches} in the beam run)",
        otherwise="warning",
    )  # fmt: skip


def _evaluate(machine: Machine, model: str | None) -> Iterator[Finding]:
    missing = {"sacrebleu", "sentencepiece"} - machine.packages.keys()
    for name in sorted(missing):
        yield Finding("evaluate", "problem", f"{name} is not installed", _SETUP)
    if not missing:
        version = machine.packages["sacrebleu"]
        yield Finding("evaluate", "ok", f"sacrebleu {version}: in every signature")
    if model is not None and machine.gpus:
        free = min(gpu.free_memory for gpu in machine.gpus) << 20
        yield _finding(
            "evaluate", free >= CACHE_OF_EVALUATION,
            f"GPU memory: {_gib(free)} free, {_gib(CACHE_OF_EVALUATION)} is enough",
            "translate with --max-tokens 1000", otherwise="warning",
        )  # fmt: skip


def _enough_disk(stage: str, free: int, needed: int, why: str) -> Finding:
    return _finding(
        stage, free >= needed,
        f"disk: {_gib(free)} free, about {_gib(needed)} needed {why} (estimate)",
        "free some space, or give a folder on another disk with --out",
    )  # fmt: skip


def _finding(
    stage: str, good: bool, what: str, mend: str, *, otherwise: str = "problem"
) -> Finding:
    return Finding(stage, "ok", what) if good else Finding(stage, otherwise, what, mend)


def _gib(count: int) -> str:
    return f"{count / _GIB:.1f} GiB"
