"""Training a pipeline from the command line, in one process and in two that share the work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lethe.erasers.commands import main
from lethe.erasers.result import Eraser
from lethe.erasers.store.eraser_file import load_eraser

QUICK = ("train", "--pipeline", "demo", "--device", "cpu", "--concept", "ball, box", "--steps", "3",
         "--set", "sampling_steps=4", "--set", "trajectories=2", "--set", "sites=cross-kv")  # fmt: skip


def largest(one: Eraser, other: Eraser) -> float:
    """The largest difference between two erasers of the same shape."""
    return max(
        float((tensor - other.adapters[name].tensors()[kind]).abs().max())
        for name, edit in one.adapters.items()
        for kind, tensor in edit.tensors().items()
    )


def test_one_process_trains_saves_and_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, first, second = (tmp_path / f"{name}.safetensors" for name in ("whole", "first", "second"))
    assert main([*QUICK, "--out", str(whole), "--keep-state"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("3 steps, ") and "esd: 1 concepts, 8 weights" in said and str(whole) in said
    saved = load_eraser(whole)
    assert saved.recipe.concepts[0]["replacement"] == "box"
    assert saved.recipe.settings["sampling_steps"] == 4
    assert saved.training
    fewer = [*QUICK, "--steps", "2", "--out", str(first)]
    assert main(fewer) == 0
    assert not load_eraser(first).training
    assert main([*fewer, "--overwrite", "--keep-state"]) == 0
    assert main([*QUICK, "--resume", str(first), "--out", str(second)]) == 0
    assert "3 steps, " in capsys.readouterr().out
    assert largest(load_eraser(first), saved) > 1e-5
    assert largest(load_eraser(second), load_eraser(first)) > 1e-5


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--set", "nonsense=1"], "no setting"),
        (["--set", "eta=high"], "like 1.0"),
        (["--set", "eta=99"], "20"),
        (["--recipe", "magic"], "There is no recipe 'magic'. Choose one of: ace"),
        (["--device", "toaster"], "There is no device 'toaster'"),
        (["--resume", "missing.safetensors"], "missing.safetensors"),
    ],
)
def test_what_is_wrong_is_refused(
    more: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*QUICK, *more, "--out", str(tmp_path / "a.safetensors")]) == 1
    captured = capsys.readouterr()
    assert words in captured.err and not captured.out
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_two_processes_share_their_gradients(tmp_path: Path) -> None:
    both = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
        "-m", "lethe", *QUICK,
    ]  # fmt: skip
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    ran = subprocess.run(
        [*both, "--out", str(tmp_path / "two.safetensors")],
        check=True,
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ran.stdout.count("3 steps, ") == 1, "one process says what came of it"
    assert main([*QUICK, "--out", str(tmp_path / "one.safetensors")]) == 0
    shared, alone = (load_eraser(tmp_path / f"{name}.safetensors") for name in ("two", "one"))
    assert shared.adapters.keys() == alone.adapters.keys()
    # The second process drew other latents; had it not been heard, the first would have learned the same alone.
    assert largest(shared, alone) > 1e-6
    assert all(
        bool(torch.isfinite(tensor).all()) for edit in shared.adapters.values() for tensor in edit.tensors().values()
    )
