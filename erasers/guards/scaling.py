"""ScalingConcept (Huang et al., 2024, arXiv 2410.24151): a concept of a given picture is scaled down.

The way back from the picture under the concept's own text c gives the noise that sampling starts from, and with it
predictions e_t at the levels between (learn/path.py). From there, with N steps and 0 the empty prompt,

    w_t = omega (1 - i / (N - 1))^gamma
    eps = eps_0(x_t) + w_t (eps_c(x_t) - eps_0(x_t)) + w_t (e_t - eps_c(x_t))     the last part where i < t_exit

At w_t = 1 the first steps are the picture's own way, so that it comes back. Above 1 the concept grows, below it goes.

The paper scales concepts up by 5, or by 3 for faces, and tells little of scaling down; the default here is ours. Shares
of sampling stand for steps. The connected negative prompt stands for the empty one. The prompt on the canvas is not
drawn: a gate reads it, nothing else. Its inversion is averaged over rounds as in ReNoise there, and is solved by
rounds alone here. Official code read, not copied: WikiChao/ScalingConcept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ..errors import SettingError
from ..guard import Guarding, Look, Path, guarded_names
from ..sites import A_PICTURE
from ..spec import MethodSpec, Parameter, Value
from ..task import Task


@dataclass(frozen=True)
class Scaled:
    """The mix: the same denoised latents for prompt and negative, so that guidance changes nothing.

    Attributes:
        concept: its text.
        omega, gamma: as above.
        leave: share of sampling at which the picture's own way is left; t_exit.
    """

    concept: str
    omega: float
    gamma: float
    leave: float

    def __call__(self, look: Look) -> tuple[Tensor, Tensor]:
        nothing, own = look.predicted(look.unsaid), look.predicted(look.seen[self.concept])
        scale = self.omega * max(0.0, 1 - look.percent) ** self.gamma
        towards = own
        if look.percent < self.leave:
            assert look.along is not None
            towards = look.along
        mixed = look.shifted(look.x, -(nothing + scale * (towards - nothing)))
        return mixed, mixed


class ScalingConcept:
    """Draws a given picture anew, with the concept in it scaled."""

    needs = (
        "Needs a picture of the concept and the VAE, which is drawn anew: give the sampler empty latents of its size, "
        "euler or ddim, and all the steps. The prompt and CFG do not count; the negative should be empty. Works at "
        "CFG 1. Costs the rounds in predictions per step before sampling, and one prediction per step, two at CFG 1."
    )
    spec = MethodSpec(
        name="scaling",
        title="ScalingConcept",
        paper="Huang et al., Scaling Concept With Text-Guided Diffusion Models, 2024 (arXiv 2410.24151)",
        summary="Draws the connected picture anew with less of the concept in it.",
        families=("demo",),
        parameters=(
            Parameter(
                "omega",
                -3.0,
                "How much of the concept there shall be, -10 to 10. 1 keeps it where gamma is 0, 0 leaves it out, "
                "below 0 it is pushed away; published are 3 to 5, which make it stronger. Start at -3.",
                minimum=-10.0,
                maximum=10.0,
                step=0.1,
            ),
            Parameter(
                "gamma",
                3.0,
                "How fast the scale falls to 0 while the picture is drawn, 0 to 10. 3 as published; 0 keeps it.",
                maximum=10.0,
                step=0.1,
            ),
            Parameter(
                "leave",
                0.3,
                "Share of sampling for which the picture's own way is followed, 0 to 1. 0.3 as published (15 steps of "
                "50).",
            ),
            Parameter(
                "rounds",
                3,
                "How often each step of the way back is solved, 1 to 20. Start at 3; more keep the picture better.",
                minimum=1,
                maximum=20,
                step=1,
                advanced=True,
            ),
        ),
        wants=(A_PICTURE,),
    )

    def plan(self, task: Task, settings: Mapping[str, Value]) -> Guarding:
        """A mix, and the picture's own way.

        Raises:
            SettingError: no picture is connected.
        """
        prompt = ", ".join(guarded_names(task))
        if task.pictures is None:
            raise SettingError("ScalingConcept changes a given picture.", "Connect it to 'images', and the VAE.")
        omega, gamma, leave = (float(settings[name]) for name in ("omega", "gamma", "leave"))
        path = Path(task.pictures.float(), prompt, int(settings["rounds"]))
        return Guarding((prompt,), Scaled(prompt, omega, gamma, leave), path=path)


GUARD = ScalingConcept()
