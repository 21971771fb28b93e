"""Each fix of fairseq: stock fairseq fails, fixed fairseq works."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fairseq
import numpy
import pytest
import torch
from conftest import ROOT, run_module

from fairseq_plugins.compat import SKIP_VARIABLE

RELEASED = fairseq.__version__ == "0.12.2"  # without some of the defects
USER_DIR = ("--user-dir", ROOT / "fairseq_plugins")
TRAIN = (
    "--arch", "lstm", "--encoder-embed-dim", 16, "--encoder-hidden-size", 16,
    "--decoder-embed-dim", 16, "--decoder-hidden-size", 16,
    "--decoder-out-embed-dim", 16, "--optimizer", "adam", "--lr", "1e-3",
    "--batch-size", 32, "--max-update", 2, "--cpu", "--num-workers", 0,
    "--disable-validation", "--log-format", "simple", "--log-interval", 1,
)  # fmt: skip
BEAM_TRAINING = ("--criterion", "soft_beam_search", "--beam", 3, "--mixing", "soft")


@pytest.fixture(scope="module")
def trained(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint after two updates, with ``--eval-bleu`` meters inside."""
    folder = tmp_path_factory.mktemp("trained")
    options = [option for option in TRAIN if option != "--disable-validation"]
    result = run_module(
        "fairseq_cli.train", tiny_data, *USER_DIR, *options, "--save-dir", folder,
        "--eval-bleu", "--eval-bleu-args", '{"beam": 1, "max_len_b": 5}',
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return folder / "checkpoint_last.pt"


def generate(data: Path, checkpoint: Path, *options: object) -> Any:
    return run_module(
        "fairseq_cli.generate", data, "--path", checkpoint, "--gen-subset", "test",
        "--beam", 2, "--cpu", *options,
    )  # fmt: skip


def resume(data: Path, checkpoint: Path, *options: object) -> Any:
    return run_module(
        "fairseq_cli.train", data, *TRAIN, "--save-dir", checkpoint.parent / "resumed",
        "--restore-file", checkpoint, "--max-update", 4, *options,
    )  # fmt: skip


@pytest.mark.skipif(
    torch.__version__ < "2.6", reason="older torch loads checkpoints unsafely"
)
def test_stock_fairseq_cannot_load_its_own_checkpoints(tiny_data, trained):
    result = generate(tiny_data, trained)
    assert result.returncode != 0
    assert "Weights only load failed" in result.stderr


def test_fixed_fairseq_generates_from_and_resumes_its_checkpoints(tiny_data, trained):
    result = generate(tiny_data, trained, *USER_DIR)
    assert result.returncode == 0, result.stderr
    assert len(re.findall("^H-", result.stdout, re.M)) == 20
    result = resume(tiny_data, trained, *USER_DIR)
    assert result.returncode == 0, result.stderr
    assert "@ 2 updates" in result.stdout and "num_updates 4" in result.stdout


class Attack:
    """Code in a foreign checkpoint that runs when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        import os

        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("command", ["train", "generate"])
def test_a_foreign_pickle_is_refused_by_name_and_not_run(
    command, tiny_data, trained, tmp_path
):
    # Other containers and pickles: tests/soak/test_hostile_input.py.
    marker, checkpoint = tmp_path / "code-was-run", tmp_path / "foreign.pt"
    state = torch.load(trained, weights_only=False)
    state["extra_state"]["surprise"] = Attack(marker)
    torch.save(state, checkpoint)
    run = resume if command == "train" else generate
    result = run(tiny_data, checkpoint, *USER_DIR)
    assert result.returncode != 0
    assert "posix.system" in result.stderr.splitlines()[-1]
    assert f"checkpoint `{checkpoint}`" in result.stderr.splitlines()[-1]
    assert "nothing in it was run" in result.stderr
    assert not marker.exists()


def test_a_request_to_load_unsafely_is_overruled(tmp_path):
    # fairseq's main branch asks for weights_only=False.
    from fairseq_plugins.compat.checkpoints import (
        ForeignCheckpointError,
        _load_weights_only,
    )

    marker, checkpoint = tmp_path / "code-was-run", tmp_path / "foreign.pt"
    torch.save({"surprise": Attack(marker)}, checkpoint)
    load = _load_weights_only(lambda path: torch.load(path, weights_only=False))
    with pytest.raises(ForeignCheckpointError, match="posix.system"):
        load(str(checkpoint))
    assert not marker.exists()


def test_bf16_needs_the_fix_and_trains_and_resumes_with_it(tiny_data, tmp_path):
    def train(updates: int, *options: object) -> Any:
        return run_module(
            "fairseq_cli.train", tiny_data, *TRAIN, "--bf16", "--save-dir", tmp_path,
            "--max-update", updates, *options,
        )  # fmt: skip

    stock = train(2)
    assert stock.returncode != 0
    assert "xla" in stock.stderr
    for updates in (2, 4):
        result = train(updates, *USER_DIR, *BEAM_TRAINING)
        assert result.returncode == 0, result.stderr
    assert "@ 2 updates" in result.stdout


def test_fp16_without_gpu_needs_the_fix_and_then_counts_the_updates_it_skips(
    tiny_data, tmp_path
):
    def train(*options: object) -> Any:
        return run_module(
            "fairseq_cli.train", tiny_data, *TRAIN, "--fp16", "--fp16-init-scale",
            2**30, "--save-dir", tmp_path, *options,
        )  # fmt: skip

    if not torch.cuda.is_available():
        stock = train()
        assert stock.returncode != 0
        assert "cuda" in stock.stderr.lower().splitlines()[-1]
    result = train(*USER_DIR, *BEAM_TRAINING)
    assert result.returncode == 0, result.stderr
    skipped = result.stdout.count("gradient overflow detected")
    assert skipped > 0
    of_epochs = re.findall(r"\| train \|.*\| overflows (\d+) \|", result.stdout)
    assert sum(map(int, of_epochs)) == skipped
    assert "num_updates 2 " in result.stdout


def test_bf16_keeps_an_explicit_tpu_option(task):
    from fairseq import options

    words = ["data", "--arch", "lstm", "--optimizer", "adam", "--bf16"]
    for more, expected in (["--tpu"], True), ([], False):
        parser = options.get_training_parser()
        args = options.parse_args_and_arch(parser, [*words, *more])
        assert args.tpu is expected


def test_torchrun_on_cpu_needs_the_fix_and_trains_with_it(tiny_data, tmp_path):
    def train(*options: object) -> Any:
        return run_module(
            "torch.distributed.run", "--nproc-per-node", 2, "--master-port", 29817,
            Path(sys.executable).with_name("fairseq-train"), tiny_data, *TRAIN,
            "--save-dir", tmp_path, "--distributed-backend", "gloo", *options,
        )  # fmt: skip

    stock = train("--distributed-world-size", 2)
    assert stock.returncode != 0
    reason = "device_ids and output_device" if RELEASED else "ZeroDivisionError"
    assert reason in stock.stderr
    # Without being told the number of processes stock fairseq trains two models.
    result = train(*USER_DIR, *BEAM_TRAINING)
    assert result.returncode == 0, result.stderr
    assert "training on 2 devices" in result.stdout


@pytest.mark.slow
@pytest.mark.skipif(
    torch.__version__ < "2.6", reason="older torch loads checkpoints unsafely"
)
def test_several_processes_cannot_resume_without_the_fix(
    trained, tiny_data, tmp_path, monkeypatch
):
    def resume() -> Any:
        return run_module(
            "torch.distributed.run", "--standalone", "--nproc-per-node", 2,
            Path(sys.executable).with_name("fairseq-train"), tiny_data, *TRAIN,
            "--distributed-backend", "gloo", "--save-dir", tmp_path,
            "--restore-file", trained, "--max-update", 4, *USER_DIR,
        )  # fmt: skip

    with monkeypatch.context() as patch:
        patch.setenv(SKIP_VARIABLE, "broadcast-checkpoints")
        result = resume()
    assert result.returncode != 0
    assert "Weights only load failed" in result.stderr
    assert "_broadcast_object_slow" in result.stderr  # the only refusal is there
    result = resume()
    assert result.returncode == 0, result.stderr
    assert "@ 2 updates" in result.stdout and "num_updates 4" in result.stdout


def test_without_the_fix_fairseq_leaves_out_the_longest_sentences(task):
    from fairseq.data import data_utils

    sizes = numpy.arange(1, 21)
    options: dict[str, Any] = dict(
        num_tokens_fn=lambda i: sizes[i], num_tokens_vec=sizes, max_tokens=1000
    )
    for multiple, left_out in (8, [16, 17, 18, 19]), (1, []):
        options["required_batch_size_multiple"] = multiple
        fixed = data_utils.batch_by_size(numpy.arange(20), **options)
        stock = data_utils.batch_by_size.__wrapped__(numpy.arange(20), **options)
        assert sorted(numpy.concatenate(fixed).tolist()) == list(range(20))
        missing = set(range(20)) - set(numpy.concatenate(stock).tolist())
        assert sorted(missing) == ([] if RELEASED else left_out)
    options.update(num_tokens_vec=None, required_batch_size_multiple=8)
    few = data_utils.batch_by_size([2, 0, 1], **options)
    assert [batch.tolist() for batch in few] == [[2, 0, 1]]


@pytest.mark.parametrize("fixed", [True, False])
def test_a_copy_that_stops_halfway_spoils_the_checkpoint_without_the_fix(
    fixed, task, tmp_path, monkeypatch
):
    from fairseq.file_io import PathManager

    def stop_halfway(source: str, destination: str) -> None:
        Path(destination).write_bytes(Path(source).read_bytes()[:50])
        raise OSError("No space left on device")

    new, last = tmp_path / "checkpoint_1_2.pt", tmp_path / "checkpoint_last.pt"
    new.write_bytes(b"n" * 100)
    last.write_bytes(b"o" * 100)
    copy = PathManager.copy if fixed else PathManager.copy.__wrapped__
    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr("shutil.copyfile", stop_halfway)
        copy(str(new), str(last), overwrite=True)
    assert last.read_bytes() == (b"o" * 100 if fixed else b"n" * 50)
    assert copy(str(new), str(last), overwrite=True)
    assert last.read_bytes() == b"n" * 100


@pytest.mark.parametrize("fixed", [True, False])
def test_a_resumed_training_has_other_batches_without_the_fix(fixed, task):
    from fairseq.tasks.fairseq_task import FairseqTask

    get = FairseqTask.get_batch_iterator
    is_same = fixed or RELEASED  # which the fix leaves as it is
    get = get if is_same else get.__wrapped__
    batches = []
    for epoch in (1, 5):
        task.dataset_to_epoch_iter.clear()  # as in a new process
        iterator = get(task, task.dataset("train"), max_tokens=40, seed=7, epoch=epoch)
        assert iterator.seed == 7
        batches.append([batch.tolist() for batch in iterator.frozen_batches])
    task.dataset_to_epoch_iter.clear()
    assert sorted(sum(batches[0], [])) == sorted(sum(batches[1], []))
    assert (batches[0] == batches[1]) is is_same


@pytest.mark.parametrize("mixin", ["fp32_optimizer", "wrapped_optimizer"])
def test_the_counters_of_the_loss_scale_are_resumed(mixin, task):
    from fairseq.optim import fp16_optimizer
    from fairseq.optim.dynamic_loss_scaler import DynamicLossScaler

    owner = {
        "fp32_optimizer": fp16_optimizer._FP16OptimizerMixin,
        "wrapped_optimizer": fp16_optimizer._MemoryEfficientFP16OptimizerMixin,
    }[mixin]
    inner = SimpleNamespace(
        state_dict=dict,
        load_state_dict=lambda *_: None,
        disable_mem_eff_fp16_loading_hack=True,
    )
    before, after = (
        SimpleNamespace(scaler=DynamicLossScaler(scale_window=3), optimizer=inner)
        for _ in range(2)
    )
    for optimizer in (before, after):
        setattr(optimizer, mixin, inner)
    for _ in range(4):
        before.scaler.update()
    owner.load_state_dict(after, owner.state_dict(before))
    for _ in range(9):
        assert vars(before.scaler) == vars(after.scaler)
        before.scaler.update()
        after.scaler.update()


def test_the_fused_encoder_layer_is_never_used(make_model):
    from fairseq_plugins.compat.devices import _build_without_fused_layer

    class Layer:
        def __init__(self, fused):
            if fused:
                self.can_use_fastpath = True  # fairseq 0.12.2

    build = _build_without_fused_layer(Layer.__init__)
    for fused in (True, False):
        layer = Layer(fused)
        build(layer, fused)
        assert vars(layer) == ({"can_use_fastpath": False} if fused else {})
    layers = make_model("transformer").encoder.layers
    assert not any(getattr(layer, "can_use_fastpath", False) for layer in layers)


def test_batches_that_are_not_drawn_by_the_epoch_are_left_as_they_are():
    from fairseq_plugins.compat.batches import _use_batches_of_first_epoch

    def get_batch_iterator(self, dataset, seed=1, epoch=1):  # fairseq 0.12.2
        return seed

    fixed = _use_batches_of_first_epoch(get_batch_iterator)
    assert fixed(None, None, seed=7, epoch=5) == 7
