"""Trains an eraser on a diffusers pipeline, in one process or in several that share the work.

`python -m lethe.erasers.train --pipeline FOLDER --recipe esd --concept "Van Gogh" --out van_gogh.safetensors`, or the
same behind `accelerate launch --num_processes 4 -m`. Needs the optional packages diffusers, transformers and, for
several processes, accelerate. For pipelines with one CLIP text encoder: Stable Diffusion 1 and 2, and the demo world.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .concepts import ConceptList, read_concepts
from .demo.world import WEIGHTS
from .diffusers_host import DiffusersModel
from .errors import SettingError
from .learn.loop import Job, Progress, Trained, shortened, train
from .provenance import fingerprint
from .registry import recipe_named
from .spec import MethodSpec, Value
from .store.eraser_file import load_eraser, save_eraser
from .task import Task

LOG = logging.getLogger("lethe")


def pipeline_task(folder: str, concepts: ConceptList, device: torch.device) -> Task:
    """A task on a pipeline's UNet, in float32; its text encoder stays on the CPU.

    Args:
        folder: of a StableDiffusionPipeline, or "demo" for the demo world.
    """
    from diffusers import DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    root = str(WEIGHTS) if folder == "demo" else folder
    unet: Any = UNet2DConditionModel.from_pretrained(root, subfolder="unet").float().eval()
    text = CLIPTextModel.from_pretrained(root, subfolder="text_encoder").float().eval()
    scheduler = DDIMScheduler.from_pretrained(root, subfolder="scheduler")
    tokenizer = CLIPTokenizer.from_pretrained(root, subfolder="tokenizer")
    model = DiffusersModel(unet.to(device), scheduler, tokenizer, text)
    return Task(concepts, model.family, fingerprint(text.named_parameters()), model.encode, model)


def run(options: argparse.Namespace) -> Trained:
    """Train as the command line says; every process returns the same eraser, the first one saves it."""
    device, process, reduce = _processes()
    erase = tuple(c for line in options.concept for c in read_concepts(line, options.replacement))
    concepts = ConceptList(erase, tuple(options.preserve), tuple(options.lists))
    task, recipe = pipeline_task(options.pipeline, concepts, device), recipe_named(options.recipe)
    settings = recipe.spec.settings(_given(options.set, recipe.spec))
    own = recipe.small if task.family.name == "demo" else recipe.schedule
    schedule = shortened(own, options.steps, options.rate, options.rank)
    resumed = load_eraser(options.resume) if options.resume else None
    job = Job(
        recipe.spec.name,
        settings,
        recipe.plan(task, settings),
        replace(schedule, batch=options.batch or schedule.batch),
        options.seed,
        resumed,
        options.keep_state,
        reduce,
        process,
        checkpoint=options.checkpoint,
        bf16=options.bf16,
    )

    def say(progress: Progress) -> bool:
        if process == 0 and progress.step % 25 == 0:
            LOG.info("%d/%d erase %.5f keep %.5f", progress.step, progress.steps, *progress.losses.values())
        return False

    found = train(task, job, say)
    if process == 0:
        save_eraser(found.eraser, options.out)
    return found


def _processes() -> tuple[torch.device, int, Callable[[list[Tensor]], None] | None]:
    """This process's device and number, and what averages tensors over all of them."""
    try:
        from accelerate import Accelerator
    except ImportError:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu"), 0, None
    accelerator = Accelerator()

    def reduce(tensors: list[Tensor]) -> None:
        for tensor in tensors:
            averaged: Any = accelerator.reduce(tensor, reduction="mean")
            tensor.copy_(averaged)

    return accelerator.device, accelerator.process_index, reduce if accelerator.num_processes > 1 else None


def _given(pairs: Sequence[str], spec: MethodSpec) -> dict[str, Value]:
    """Settings of the command line, `name=value`, in the types of the recipe's own."""
    known, found = {parameter.name: parameter.default for parameter in spec.parameters}, {}
    for pair in pairs:
        name, _, text = pair.partition("=")
        if name not in known:
            raise SettingError(
                f"Recipe '{spec.name}' has no setting '{name}'.", f"Its settings are: {', '.join(known)}."
            )
        default = known[name]
        try:
            found[name] = text.lower() in ("true", "1") if isinstance(default, bool) else type(default)(text)
        except ValueError as error:
            raise SettingError(f"Setting '{name}' is '{text}'.", f"It has to be like {default!r}.") from error
    return found


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--pipeline", required=True, help="folder of a pipeline, or demo")
    found.add_argument("--recipe", default="esd")
    found.add_argument("--concept", action="append", required=True, help="what to erase; may be repeated")
    found.add_argument("--replacement", default="", help="what it shall mean instead; empty for nothing")
    found.add_argument("--preserve", action="append", default=[], help="a prompt to keep; may be repeated")
    found.add_argument("--lists", action="append", default=[], help="a shipped list to keep")
    found.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a setting of the recipe")
    for name, kind in (("steps", int), ("rate", float), ("rank", int), ("batch", int)):
        found.add_argument(f"--{name}", type=kind, default=0, help="0 for the recipe's own")
    found.add_argument("--seed", type=int, default=0)
    found.add_argument("--resume", type=Path, help="an eraser to go on from")
    found.add_argument("--keep-state", action="store_true", help="so that training can go on later")
    found.add_argument("--checkpoint", action="store_true", help="less memory, a third slower")
    found.add_argument("--bf16", action="store_true")
    found.add_argument("--out", type=Path, required=True)
    return found


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    found = run(parser().parse_args())
    LOG.info("%d steps, %d predictions. %s", found.steps, found.predictions, found.ended)


if __name__ == "__main__":
    main()
