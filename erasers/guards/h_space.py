"""Self-discovered directions (Li et al., CVPR 2024): one vector per concept between the halves of the UNet.

Pictures of what shall be drawn instead are drawn first. With text that names the concept, and all weights frozen,

    v = argmin_v E_{x, t, eps} |truth - prediction(x_t, t, "concept", h + v)|^2

where h are the features behind the UNet's middle block, v is the same at every place and time, and the truth is what
was mixed into the picture, in the model's own prediction space. So v is what the concept's text lacks to be the other
one: the published use for safe pictures. While pictures are drawn, h + weight * v stands behind the middle block on the
prompt's side. Vectors of several concepts are learned together and added.

It is a training, once, when the node runs: published are Adam at 0.1, batches of 8, and 20 rounds of 1000 pictures, two
hours of an A100. The few steps here are for trying; the summary of the node does not tell whether they were enough.
Published for Stable Diffusion 1.
Official code read, not copied: hangligit/InterpretDiffusion.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..algebra.context import TEMPLATES
from ..algebra.hooks import Hook, Output, gradients, hooked, states_of
from ..algebra.parameters import templates
from ..errors import FamilyError
from ..guard import MIDDLE_BLOCK, Guarding, Middle, guarded_names
from ..learn.moment import Features
from ..learn.space import mixed, own_space
from ..model import Model
from ..sites import A_UNET
from ..spec import MethodSpec, Parameter, Value
from ..task import Task
from ..window import window_of, window_settings

_SEED, _DRAWN_STEPS, _DRAWN_CFG = 0, 20, 5.0


@dataclass(frozen=True)
class Lessons:
    """Clean latents `[p, c, h, w]`, what is to be read as their text, and the number of the concept in it."""

    latents: Tensor
    prompts: tuple[str, ...]
    concepts: Tensor


@dataclass(frozen=True)
class Budget:
    """How vectors are learned: steps of Adam, its rate, and pictures of a step."""

    steps: int
    rate: float
    batch: int


class HSpace:
    """Adds a learned vector between the halves of the UNet."""

    needs = (
        "Needs a UNet with a middle block (SD 1, SD 2, SDXL), and a training when the node runs: minutes on a GPU. "
        "Works at CFG 1. Costs nothing per step. It acts on every prompt that passes the gate, so set the gate."
    )
    spec = MethodSpec(
        name="h_space",
        title="Self-discovered direction",
        paper="Li et al., Self-Discovering Interpretable Diffusion Latent Directions for Responsible Text-to-Image "
        "Generation, CVPR 2024",
        summary="Learns one vector that makes the concept's text draw its replacement, and adds it inside the UNet.",
        families=("demo",),
        parameters=(
            Parameter(
                "weight",
                1.0,
                "How much of the vector is added, -3 to 3. 1 as learned and published; 0 does nothing, below 0 it "
                "pushes towards the concept.",
                minimum=-3.0,
                maximum=3.0,
                step=0.05,
            ),
            Parameter(
                "steps",
                100,
                "Steps of the training, 1 to 20000. 100 is a try-out; published are 2500.",
                minimum=1,
                maximum=20000,
            ),
            Parameter(
                "pictures",
                16,
                "Pictures of the replacement that are drawn to learn from, for each concept, 1 to 1000. 16 is a "
                "try-out; published are 1000.",
                minimum=1,
                maximum=1000,
            ),
            Parameter(
                "rate", 0.1, "Learning rate of Adam, 0.0001 to 1. 0.1 as published.", minimum=0.0001, step=0.0001
            ),
            Parameter("batch", 8, "Pictures of a step, 1 to 64. 8 as published.", minimum=1, maximum=64),
            templates("object"),
            *window_settings(0.0, "as published"),
        ),
        small={"templates": "scenes"},
        wants=(A_UNET,),
    )

    def plan(self, task: Task, settings: Mapping[str, Value]) -> Guarding:
        """The vector, which is learned now.

        Raises:
            FamilyError: the model has no middle block.
        """
        guarded_names(task)
        weight = float(settings["weight"])
        if not weight:
            return Guarding()
        lessons = draw_lessons(task, str(settings["templates"]), int(settings["pictures"]))
        budget = Budget(int(settings["steps"]), float(settings["rate"]), int(settings["batch"]))
        vectors = learn_directions(task, lessons, budget)
        return Guarding(middle=Middle(weight * vectors.sum(0), window_of(settings)))


def draw_lessons(task: Task, frames: str, count: int) -> Lessons:
    """Pictures of each concept's replacement, or of nothing in particular, under sentences that name the concept."""
    prompts, anchors, numbers = [], [], []
    for number, concept in enumerate(task.concepts.erase):
        sentences = [(frame, name) for frame in TEMPLATES[frames] for name in concept.names]
        for index in range(count):
            frame, name = sentences[index % len(sentences)]
            prompts.append(frame.format(name))
            anchors.append(frame.format(concept.replacement) if concept.replacement else "")
            numbers.append(number)
    latents = task.loaded().sample(anchors, _DRAWN_STEPS, _DRAWN_CFG, _SEED)
    return Lessons(latents.float().cpu(), tuple(prompts), torch.tensor(numbers))


@torch.inference_mode(False)
def learn_directions(task: Task, lessons: Lessons, budget: Budget) -> Tensor:
    """One vector per concept, `[k, c]` float32 on the CPU; the model stays as it is.

    Raises:
        FamilyError: the model has no middle block.
    """
    model, kind = task.loaded(), task.loaded().prediction()
    name, module = _last(model)
    generator = torch.Generator().manual_seed(_SEED)
    features = Features.of(task.encode(list(lessons.prompts)))
    shape = int(lessons.concepts.max()) + 1, len(model.parameter(f"{name}.weight"))
    vectors = torch.zeros(shape, device=model.device(), requires_grad=True)
    adam, rows = torch.optim.Adam([vectors], lr=budget.rate), torch.zeros(0, dtype=torch.long)
    with model.ready(), hooked([(module, _adding(lambda: vectors[rows]))]):
        for _ in task.track(range(budget.steps), budget.steps):
            chosen = torch.randint(len(lessons.latents), (budget.batch,), generator=generator)
            rows, clean = lessons.concepts[chosen], lessons.latents[chosen]
            noise = torch.randn(clean.shape, generator=generator)
            sigma = model.level(torch.rand(len(clean), generator=generator))
            x = mixed(kind, clean, noise, sigma)
            pooled = None if features.pooled is None else features.pooled[chosen]
            with gradients(model.in_place):
                seen = model.predict(x, sigma, features.states[chosen], pooled)
                loss = (seen - own_space(kind, x, sigma, clean).to(seen)).square().mean()
                (vectors.grad,) = torch.autograd.grad(loss, vectors)
            adam.step()
    return vectors.detach().float().cpu()


def _last(model: Model) -> tuple[str, nn.Module]:
    found = list(model.modules(MIDDLE_BLOCK).items())
    if not found:
        raise FamilyError("This model has no middle block to add a vector behind.", "Take another guard.")
    return found[-1]


def _adding(vectors: Callable[[], Tensor]) -> Hook:
    def add(_module: nn.Module, _args: tuple[Tensor, ...], output: Output) -> Tensor:
        states = states_of(output)
        return states + vectors().to(states)[:, :, None, None]

    return add


GUARD = HSpace()
