"""Two processes and gradient accumulation give the gradient of one big batch."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from conftest import ROOT, run_module

from fairseq_plugins import compat

BEAM = dict(beam=3, beam_loss="risk=1,survival=0.5", rho=0.3, label_smoothing=0.1)


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def assert_close_in_norm(ours: dict[str, Any], expected: dict[str, Any]) -> None:
    assert ours.keys() == expected.keys()
    # Models are in float64. What remains is fairseq's softmax in float32, whose sums
    # depend on the padding: a few units of 6e-8 of the largest gradient.
    scale = max(float(value.abs().max()) for value in expected.values())
    for name, value in expected.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-5, atol=1e-6 * scale)


def worker(rank: int, folder: Path, parts: Any, job: Any) -> None:
    """Compute one part of the batch and leave the averaged gradient of rank 0."""
    from fairseq.models.distributed_fairseq_model import DistributedFairseqModel

    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=len(parts)
    )
    criterion, model = job
    args = Namespace(
        ddp_backend="legacy_ddp", device_id=None, broadcast_buffers=False,
        bucket_cap_mb=25,
        find_unused_parameters=False, distributed_world_size=len(parts),
        heartbeat_timeout=-1, gradient_as_bucket_view=False, ddp_comm_hook="none",
        tpu=False, cpu=True,
    )  # fmt: skip
    group = torch.distributed.group.WORLD
    wrapped = DistributedFairseqModel(args, model, group, torch.device("cpu"))
    loss, _, _ = criterion(wrapped, parts[rank])
    loss.backward()
    wrapped.all_reduce_grads()
    if rank == 0:
        torch.save(gradients(model), folder / "gradients.pt")
    torch.distributed.destroy_process_group()


def test_two_gloo_processes_give_the_gradient_of_one(
    arch, make_model, make_criterion, sentences, collate, tmp_path
):
    criterion, model = make_criterion(**BEAM), make_model(arch).double()
    loss, _, _ = criterion(model, collate(sentences))
    loss.backward()
    expected = {name: value.clone() for name, value in gradients(model).items()}
    model.zero_grad()
    # Uneven shards, and a sentence of which one process has nothing like it.
    parts = [collate(sentences[:11]), collate(sentences[11:])]
    torch.multiprocessing.start_processes(
        worker, (tmp_path, parts, (criterion, model)), nprocs=2,
        start_method="fork",
    )  # fmt: skip
    averaged = torch.load(tmp_path / "gradients.pt")
    assert_close_in_norm({n: 2 * value for n, value in averaged.items()}, expected)


def test_accumulated_gradients_are_those_of_one_big_batch(
    arch, make_model, make_criterion, sentences, collate
):
    criterion, found = make_criterion(**BEAM), []
    for parts in ([sentences], [sentences[:3], sentences[3:]]):
        model = make_model(arch).double()
        for part in parts:
            criterion(model, collate(part))[0].backward()
        found.append(gradients(model))
    assert_close_in_norm(found[1], found[0])


def train(
    save: Path, data: Path, *options: object, launch: tuple[object, ...] = ()
) -> dict[str, torch.Tensor]:
    """Train by three updates; return how the last two of them moved the parameters."""
    result = run_module(
        *launch, "fairseq_cli.train", data, "--user-dir", ROOT / "fairseq_plugins",
        "--save-dir", save, "--cpu", "--arch", "lstm", "--dropout", 0,
        "--encoder-embed-dim", 16, "--decoder-embed-dim", 16,
        "--encoder-hidden-size", 16, "--decoder-hidden-size", 16,
        "--decoder-out-embed-dim", 16, "--criterion", "soft_beam_search",
        "--beam", 3, "--beam-loss", "risk=1,survival=0.5", "--rho", 0.3,
        "--optimizer", "sgd", "--lr", 0.5, "--max-tokens", 150, "--max-update", 3,
        "--num-workers", 0, "--disable-validation", "--save-interval-updates", 1,
        *options,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    compat.allow_checkpoint_classes()
    first, last = (torch.load(save / f"checkpoint_1_{n}.pt")["model"] for n in (1, 3))
    return {name: last[name] - first[name] for name in last}


@pytest.mark.slow
def test_torchrun_with_pytorch_ddp_trains_as_one_process_that_accumulates(
    tiny_data, tmp_path
):
    expected = train(tmp_path / "one", tiny_data, "--update-freq", 2)
    assert max(float(change.abs().max()) for change in expected.values()) > 0.01
    launch = ("torch.distributed.run", "--nproc-per-node", 2, "--master-port", 29841,
              "--module")  # fmt: skip
    options = ("--ddp-backend", "pytorch_ddp", "--distributed-backend", "gloo")
    found = train(tmp_path / "two", tiny_data, *options, launch=launch)
    assert_close_in_norm(found, expected)
