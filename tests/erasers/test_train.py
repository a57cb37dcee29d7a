"""Training a pipeline from the command line, in one process and in two that share the work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lethe.erasers.errors import SettingError
from lethe.erasers.result import Eraser
from lethe.erasers.store.eraser_file import load_eraser
from lethe.erasers.train import parser, run

QUICK = ("--pipeline", "demo", "--concept", "ball, box", "--steps", "3", "--set", "sampling_steps=4",
         "--set", "trajectories=2", "--set", "sites=cross-kv")  # fmt: skip


def largest(one: Eraser, other: Eraser) -> float:
    """The largest difference between two erasers of the same shape."""
    return max(
        float((tensor - other.adapters[name].tensors()[kind]).abs().max())
        for name, edit in one.adapters.items()
        for kind, tensor in edit.tensors().items()
    )


def test_one_process_trains_and_saves(tmp_path: Path) -> None:
    found = run(parser().parse_args([*QUICK, "--out", str(tmp_path / "a.safetensors"), "--keep-state"]))
    saved = load_eraser(tmp_path / "a.safetensors")
    assert saved.recipe.concepts[0]["replacement"] == "box"
    assert saved.recipe.settings["sampling_steps"] == 4
    assert largest(saved, found.eraser) == 0
    assert saved.training


@pytest.mark.parametrize(("pair", "words"), [("nonsense=1", "no setting"), ("eta=high", "like 1.0"), ("eta=99", "20")])
def test_wrong_settings_are_refused(pair: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=words):
        run(parser().parse_args([*QUICK, "--set", pair, "--out", str(tmp_path / "a.safetensors")]))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_two_processes_share_their_gradients(tmp_path: Path) -> None:
    both = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
        "-m", "lethe.erasers.train", *QUICK,
    ]  # fmt: skip
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([*both, "--out", str(tmp_path / "two.safetensors")], check=True, env=environment, cwd=tmp_path)
    alone = run(parser().parse_args([*QUICK, "--out", str(tmp_path / "one.safetensors")])).eraser
    shared = load_eraser(tmp_path / "two.safetensors")
    assert shared.adapters.keys() == alone.adapters.keys()
    # The second process drew other latents; had it not been heard, the first would have learned the same alone.
    assert largest(shared, alone) > 1e-6
    assert all(
        bool(torch.isfinite(tensor).all()) for edit in shared.adapters.values() for tensor in edit.tensors().values()
    )
