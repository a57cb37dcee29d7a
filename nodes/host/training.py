"""Training an eraser on what is on the canvas, while the user watches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import comfy.model_management
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from PIL import Image
from torch import Tensor

from ...erasers.concepts import ConceptList
from ...erasers.errors import SettingError
from ...erasers.learn.loop import Job, Progress, Stopped, Trained, shortened, train
from ...erasers.learn.moment import STUDENT
from ...erasers.learn.rollout import levels, roll
from ...erasers.learn.run import Run
from ...erasers.learn.scenes import held_prompts
from ...erasers.learn.shift import Shift
from ...erasers.provenance import eraser_fingerprint
from ...erasers.registry import TrainingRecipe
from ...erasers.result import Eraser
from ...erasers.sites import TRAINING
from ...erasers.spec import Value
from ...erasers.task import Task
from .fit import task_of
from .model import HostModel
from .ordinary import ordinary
from .patcher import applied_erasers
from .pictures import decode_pictures, encode_pictures, fitted_regions
from .runtime import LOG, Item, each

DISCARD, KEEP = "discard", "keep what was learned"
_LOOKS = 4
"""Prompts of each side whose predictions are followed."""
_PREVIEW_STEPS, _PREVIEW_CFG = 12, 4.0
_SMALL = "demo"


@dataclass(frozen=True)
class Wish:
    """What the node was asked for, beside the recipe's own settings; 0 stands for the recipe's own value.

    Attributes:
        steps, rate, rank, batch, seed: of the training.
        look_every: steps between two looks; 0 for none.
        on_interrupt: DISCARD or KEEP.
        keep_state: whether the eraser can be trained on.
        checkpoint, bf16: see `Model.ready`.
        pixels: width and height of the pictures it is trained on.
        seen: says of pictures whether they show the concept, to stop early; None not to.
    """

    steps: int = 0
    rate: float = 0.0
    rank: int = 0
    batch: int = 0
    seed: int = 0
    look_every: int = 25
    on_interrupt: str = DISCARD
    keep_state: bool = True
    checkpoint: bool = False
    bf16: bool = False
    pixels: int = 0
    seen: Callable[[Tensor], Tensor] | None = None


def train_eraser(
    recipe: TrainingRecipe,
    settings: Mapping[str, Value],
    model: ModelPatcher,
    clip: Any,
    concepts: ConceptList,
    wish: Wish,
    vae: Any = None,
    pictures: Tensor | None = None,
    regions: Tensor | None = None,
    resumed: Eraser | None = None,
) -> tuple[Trained, Watcher]:
    """Run a recipe outside inference mode; the model is as before when this returns or raises.

    Args:
        pictures: `[n, h, w, 3]` in 0..1, of the concept; need `vae`.
        regions: `[n, h, w]` in 0..1, where in each the concept is.
        resumed: an eraser with its state, to go on from.

    Raises:
        SettingError: pictures without a VAE; a model that carries the eraser to go on from.
    """
    _check_resumed(model, resumed)
    with ordinary(model, clip):
        task = task_of(model, clip, concepts)
        task.family.require(TRAINING)
        task = replace(task, model=HostModel(model, clip, wish.pixels))
        if pictures is not None:
            latents = encode_pictures(task.loaded(), vae, pictures)
            task = replace(task, pictures=latents, regions=fitted_regions(regions, latents))
        own = recipe.small if task.family.name == _SMALL else recipe.schedule
        schedule = shortened(own, wish.steps, wish.rate, wish.rank)
        schedule = replace(schedule, batch=wish.batch or schedule.batch)
        watcher = Watcher(task, vae, wish, schedule.steps)
        job = Job(
            recipe.spec.name,
            settings,
            recipe.plan(task, settings),
            schedule,
            wish.seed,
            resumed,
            wish.keep_state,
            pulse=watcher.pulse,
            checkpoint=wish.checkpoint,
            bf16=wish.bf16,
        )
        return train(replace(task, track=watcher.track), job, watcher), watcher


@dataclass
class Watcher:
    """Shows a training to the user: progress, a preview, how far predictions moved; stops it when asked to.

    Attributes:
        moved: `(step, erased, kept)` at each look (learn/shift.py).
        preview: `[2, h, w, 3]` in 0..1 of the last look, the erased and a kept prompt; None without a VAE.
    """

    task: Task
    vae: Any
    wish: Wish
    steps: int
    moved: list[tuple[int, float, float]] = field(default_factory=list)
    preview: Tensor | None = None

    def __post_init__(self) -> None:
        self.bar = comfy.utils.ProgressBar(self.steps)
        self.erased = list(self.task.concepts.names[:_LOOKS])
        self.kept = list(held_prompts(self.task))[:_LOOKS]
        self.shift: Shift | None = None

    def pulse(self) -> None:
        """Ends the run when the user cancelled."""
        try:
            comfy.model_management.throw_exception_if_processing_interrupted()
        except comfy.model_management.InterruptProcessingException:
            if self.wish.on_interrupt == KEEP:
                raise Stopped("it was interrupted; what was learned so far is kept") from None
            raise

    def track(self, items: Iterable[Item], count: int) -> Iterator[Item]:
        """Shows what is done before the first step: pictures that are drawn, tokens that are learned."""
        return each(items, count, self.pulse)

    def __call__(self, progress: Progress) -> bool:
        every = self.wish.look_every
        due = every and (progress.step % every == 0 or progress.step == self.steps)
        if due:
            self._look(progress)
        image = ("JPEG", _side_by_side(self.preview), 512) if due and self.preview is not None else None
        self.bar.update_absolute(progress.step, self.steps, image)
        return bool(due and self._gone(progress.run))

    def _look(self, progress: Progress) -> None:
        run = progress.run
        if self.shift is None:
            self.shift = Shift(run, [*self.erased, *self.kept])
        found = self.shift.look(run)
        erased, kept = found[: len(self.erased)], found[len(self.erased) :]
        self.moved.append((progress.step, sum(erased) / len(erased), sum(kept) / len(kept)))
        if self.vae is not None:
            self.preview = self._pictures(run, [self.erased[0], self.kept[0]])

    def _gone(self, run: Run) -> bool:
        if self.wish.seen is None or self.vae is None:
            return False
        pictures = self._pictures(run, [name for name in self.erased for _ in range(_LOOKS)])
        if bool(self.wish.seen(pictures.movedim(-1, 1)).any()):
            return False
        raise Stopped(f"the concept was seen in none of {len(pictures)} pictures")

    def _pictures(self, run: Run, prompts: list[str]) -> Tensor:
        """`[n, h, w, 3]`: what the model in training draws."""
        noise = torch.randn(len(prompts), *run.model.latent_shape(), generator=run.fork("preview"))
        sigmas = levels(run.model, _PREVIEW_STEPS)
        with torch.no_grad():
            said, unsaid = run.features(prompts, STUDENT), run.features([""] * len(prompts), STUDENT)
            x = roll(run.model, run.student, noise * sigmas[0], sigmas, said, unsaid, _PREVIEW_CFG)
        return decode_pictures(self.vae, self._own(run).process_latent_out(x))

    def _own(self, run: Run) -> Any:
        assert isinstance(run.model, HostModel)
        return run.model.patcher.model


def _check_resumed(model: ModelPatcher, resumed: Eraser | None) -> None:
    if resumed is None:
        return
    carried = {eraser_fingerprint(entry.eraser) for entry in applied_erasers(model)}
    if eraser_fingerprint(resumed) in carried:
        raise SettingError(
            "The model already carries the eraser to go on from.", "Connect the model from before that eraser."
        )


def _side_by_side(pictures: Tensor | None) -> Image.Image:
    assert pictures is not None
    wide = torch.cat(list(pictures), dim=1)
    return Image.fromarray((wide.clamp(0, 1) * 255).round().byte().numpy())


def note(trained: Trained) -> str:
    """What became of a training, in a few lines; also said in the log where it ended early."""
    lines = [f"{trained.steps} steps, {trained.predictions} predictions of one picture each."]
    if trained.ended:
        lines.append(f"Ended early: {trained.ended}.")
        LOG.warning("Training ended early: %s.", trained.ended)
    return "\n".join(lines)
