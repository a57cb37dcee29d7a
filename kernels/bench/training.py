"""Memory of erasure training at full size, with random weights and embeddings.

`python -m lethe.kernels.bench.training [--recipe esd] [--unet sd1] [--checkpoint] [--bf16]`. Three processes, so that
each has a peak of its own: the weights alone, one prediction with its gradient, and some steps of training. What
training takes beyond the second is what it keeps for itself; a second copy of the weights would show there.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.diffusers_host import DiffusersModel
from lethe.erasers.learn.loop import Job, train
from lethe.erasers.registry import recipe_named
from lethe.erasers.task import EncodedPrompt, Task

from .unets import UNETS

LOADED, LOOK, TRAIN = "weights", "prediction", "training"
_STEPS = 3


def main() -> None:
    parser = argparse.ArgumentParser(prog="lethe.kernels.bench.training", description=__doc__)
    parser.add_argument("--recipe", default="esd")
    parser.add_argument("--unet", default="sd1", choices=list(UNETS))
    parser.add_argument("--checkpoint", action="store_true")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--size", type=int, default=64, help="latent pixels of a side")
    parser.add_argument("--part", choices=[LOADED, LOOK, TRAIN], help="do one part in this process")
    options = parser.parse_args()
    if options.part:
        print(measure(options))
        return
    for part in (LOADED, LOOK, TRAIN):
        subprocess.run(
            [sys.executable, "-m", "lethe.kernels.bench.training", *sys.argv[1:], "--part", part], check=True
        )


def measure(options: argparse.Namespace) -> str:
    """Do one part and say what it took."""
    torch.manual_seed(0)
    unet: Any = UNet2DConditionModel(sample_size=options.size, **UNETS[options.unet]).eval()
    model = DiffusersModel(unet, DDIMScheduler(), None, torch.nn.Module())
    weights = sum(p.numel() * p.element_size() for p in unet.parameters()) / 2**30
    x = torch.randn(1, *model.latent_shape())
    context = torch.randn(1, 77, model.family.width)
    started, kept = time.perf_counter(), 0.0
    if options.part == LOOK:
        with model.ready(options.checkpoint, options.bf16):
            row = context.requires_grad_()
            model.predict(x, torch.tensor([1.0]), row).square().mean().backward()
    if options.part == TRAIN:
        concepts = ConceptList((Concept("a", "b"),), preserve=("c",))
        task = Task(concepts, model.family, "", lambda prompts: [_encoded(p, model) for p in prompts], model)
        recipe = recipe_named(options.recipe)
        settings = recipe.spec.settings({"sampling_steps": 2, "trajectories": 1})
        schedule = replace(recipe.schedule, steps=_STEPS, batch=1)
        job = Job(options.recipe, settings, recipe.plan(task, settings), schedule, keep_state=True)
        found = train(task, replace(job, checkpoint=options.checkpoint, bf16=options.bf16))
        kept = sum(t.numel() * t.element_size() for t in found.eraser.training.values()) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    seconds = time.perf_counter() - started
    state = f", tensors and optimiser {kept:.2f} GiB" if kept else ""
    return f"{options.part}: peak {peak:.2f} GiB, weights {weights:.2f} GiB{state}, {seconds:.0f} s"


def _encoded(prompt: str, model: DiffusersModel) -> EncodedPrompt:
    generator = torch.Generator().manual_seed(sum(prompt.encode()))
    return EncodedPrompt(prompt, torch.randn(77, model.family.width, generator=generator), 1)


if __name__ == "__main__":
    main()
