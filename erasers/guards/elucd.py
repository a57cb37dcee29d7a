"""EluCD (Ma et al., ICLR 2024, arXiv 2310.11311): guidance by a classifier that was not made for it.

With f the logits that a classifier gives denoised latents D(x), of which f_y asks whether the concept is there,

    eps <- eps + s sigma grad_x (tau_1 f_y - tau_2 logsumexp f)

which for tau_1 = tau_2 = 1 is guidance away from log p(y | D(x)); tau_1 > tau_2 weighs the joint p(x, y) more, as is
advised. Gradients do not go through the network: for data of unit variance a gradient towards x is one towards D times
the variance v that is left of the picture, so that

    D <- D - s v grad_D (tau_1 f_y - tau_2 logsumexp f),   v = sigma^2 / (sigma^2 + a^2)

with a the share of the picture in x: 1, or 1 - sigma for flow. The negative's prediction moves alike, so that guidance
does not multiply it.

The classifier is a function from latents to logits, `EluCD(classifier)`, whose last class is the concept; without one a
small one is trained when the node runs (learn/latent_probe.py), on pictures that the model draws of the concept in
sentences, of its replacement in the same ones and of what is preserved. The published settings are for drawing classes
of ImageNet; s, the temperatures and the window are ours. Official code read, not copied: AlexMaOLS/EluCD.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ..algebra.parameters import templates
from ..errors import ConceptError, FamilyError
from ..guard import Guarding, Look, guarded_names
from ..learn.latent_probe import LatentProbe, fit_latent_probe
from ..learn.moment import ANCHOR, CONCEPT
from ..learn.scenes import by_turns, concept_scenes, kept_scenes
from ..learn.space import FLOW, wide
from ..spec import MethodSpec, Parameter, Value
from ..task import Task
from ..window import window_of, window_settings

_DRAWN_STEPS, _DRAWN_CFG, _SEED = 20, 5.0, 0
"""How pictures are drawn to learn from."""


@dataclass(frozen=True, eq=False)
class Repelled:
    """The mix: away from what the classifier calls the concept.

    Attributes:
        classifier: latents to logits; the last class is the concept.
        strength: s.
        joint, marginal: tau_1, tau_2.
        kind: what the model predicts (learn/space.py).
    """

    classifier: LatentProbe
    strength: float
    joint: float
    marginal: float
    kind: str

    def __call__(self, look: Look) -> tuple[Tensor, Tensor]:
        with torch.inference_mode(False), torch.enable_grad():
            clean = look.said.detach().clone().float().requires_grad_()
            logits = self.classifier(clean)
            energy = self.joint * logits[:, -1] - self.marginal * logits.logsumexp(1)
            (towards,) = torch.autograd.grad(energy.sum(), clean)
        own = (1 - look.sigma) if self.kind == FLOW else torch.ones_like(look.sigma)
        left = look.sigma**2 / (look.sigma**2 + own**2)
        shift = self.strength * wide(left, look.said) * towards.to(look.said)
        return look.said - shift, look.unsaid - shift


class EluCD:
    """Guides away from what a classifier calls the concept."""

    needs = (
        "Experimental. Works with any model, at CFG 1 too. Is as good as its classifier: without one of yours (in "
        "Python) it draws pictures of the concept and of preserved prompts when the node runs, and learns from those. "
        "Costs next to nothing per step; at CFG 1 one more prediction."
    )
    spec = MethodSpec(
        name="elucd",
        title="EluCD",
        paper="Ma et al., Elucidating the Design Space of Classifier-Guided Diffusion Generation, ICLR 2024 (arXiv "
        "2310.11311)",
        summary="Experimental: guides away from what a classifier of clean latents calls the concept.",
        families=("demo",),
        parameters=(
            Parameter(
                "strength",
                30.0,
                "s: how far the picture is moved, 0 to 1000. Start at 30; 0 does nothing, too much leaves artefacts.",
                maximum=1000.0,
                step=1.0,
            ),
            Parameter(
                "joint", 1.0, "tau_1: weight of the concept's own logit, 0 to 5. Start at 1.", maximum=5.0, step=0.05
            ),
            Parameter(
                "marginal",
                0.5,
                "tau_2: weight of all logits together, 0 to 5. Start at 0.5; as high as joint it is plain guidance by "
                "a probability.",
                maximum=5.0,
                step=0.05,
            ),
            Parameter(
                "pictures",
                16,
                "Pictures of the concept that are drawn to learn from, beside as many of its replacement and of what "
                "is preserved, 1 to 1000. 16 is a try-out.",
                minimum=1,
                maximum=1000,
            ),
            templates("object"),
            Parameter("steps", 200, "Steps of its training, 1 to 20000. Start at 200.", minimum=1, maximum=20000),
            *window_settings(0.1, "a classifier reads little off the first steps"),
        ),
        small={"templates": "scenes"},
    )

    def __init__(self, classifier: LatentProbe | None = None) -> None:
        self.classifier = classifier

    def plan(self, task: Task, settings: Mapping[str, Value]) -> Guarding:
        """A mix, with a classifier that may be learned now.

        Raises:
            ConceptError: nothing to tell the concept from.
            FamilyError: the model's latents have frames, and no classifier was given.
        """
        strength, joint, marginal = (float(settings[name]) for name in ("strength", "joint", "marginal"))
        guarded_names(task)
        if not strength:
            return Guarding()
        classifier = self.classifier
        if classifier is None:
            classifier = learned(task, str(settings["templates"]), int(settings["pictures"]), int(settings["steps"]))
        mix = Repelled(classifier, strength, joint, marginal, task.loaded().prediction())
        return Guarding(mix=mix, window=window_of(settings))


def learned(task: Task, frames: str, pictures: int, steps: int) -> LatentProbe:
    """A classifier of the task's concepts, which are class 1, among what it holds and what replaces them.

    Args:
        frames: of `TEMPLATES`; the concepts, their replacements and names to hold stand in these sentences.
        pictures: of the concepts, at least one of each name; as many of replacements, and up to as many held prompts.

    Raises:
        ConceptError: there is nothing to tell the concepts from.
        FamilyError: the model's latents have frames.
    """
    scenes = by_turns(concept_scenes(task, frames), pictures)
    asked = [own[CONCEPT] for own in scenes]
    held = [own[CONCEPT] for own in kept_scenes(task, frames) if own[CONCEPT]]
    stride = max(1, len(held) // len(asked))
    apart = [*(own[ANCHOR] for own in scenes if own[ANCHOR]), *held[::stride][: len(asked)]]
    if not apart:
        raise ConceptError("There is nothing to tell the concept from.", "Name some prompts to preserve.")
    latents = task.loaded().sample([*apart, *asked], _DRAWN_STEPS, _DRAWN_CFG, _SEED).float().cpu()
    if latents.ndim != 4:
        raise FamilyError("This model's latents have frames, which no classifier here reads.", "Take another guard.")
    labels = torch.tensor([0] * len(apart) + [1] * len(asked))
    return fit_latent_probe(latents, labels, steps, torch.Generator().manual_seed(_SEED), task.track)


GUARD = EluCD()
