"""GS-LoRA, group-sparse LoRA (Zhao et al., CVPR 2024, arXiv 2403.11530), for diffusion models.

The paper makes classifiers forget, with a LoRA in the feed-forward layers of which few blocks survive:

    L = beta relu( B - L_forget ) + L_retain + alpha sum_g ||p_g||,    g: the LoRA matrices of one transformer block

The losses of a classifier have no counterpart here, so this is an adaptation: both are the ordinary diffusion loss, on
pictures of the concept and on pictures of what is preserved. Blocks whose norm ends under a threshold are left out of
the eraser: Adam shrinks them, but does not bring them to zero. B, beta, learning rate and length are ours, as the
published ones belong to a classifier's loss; rank and alpha are the paper's. Prototypes (GS-LoRA++) and a first part
without the penalty are left out.
For another request later on, train again on a model that carries this eraser: each has a LoRA of its own.
Official code read, not copied: bjzhb666/GS-LoRA (MIT).
"""

from __future__ import annotations

from collections.abc import Mapping

from ..learn import settings as shared
from ..learn.bounded import Bounded
from ..learn.group_lasso import GroupLasso
from ..learn.low_rank import LowRank
from ..learn.moment import CONCEPT
from ..learn.pictures import Pictures
from ..learn.plan import Plan, Schedule
from ..learn.regress import Denoise
from ..learn.scenes import concept_scenes, kept_scenes
from ..learn.where import FEED_FORWARD
from ..spec import MethodSpec, Parameter, Value
from ..task import Task

_KEPT = "kept"


class GSLoRA:
    """Climbs the denoising loss of the concept up to a bound, in few feed-forward blocks."""

    spec = MethodSpec(
        name="gs_lora",
        title="GS-LoRA",
        paper="Zhao et al., Continual Forgetting for Pre-trained Vision Models, CVPR 2024 (arXiv 2403.11530)",
        summary="Unlearns pictures of the concept with small changes of as few transformer blocks as it takes.",
        families=("demo",),
        parameters=(
            Parameter(
                "bound",
                1.0,
                "Denoising error at which the concept counts as forgotten, 0 to 100. Start at 1, about that of a model "
                "that predicts nothing; the paper's bound is one for classifiers.",
                maximum=100.0,
            ),
            Parameter(
                "beta",
                1.0,
                "Weight of forgetting, 0 to 100, where what is kept has 1. Start at 1; 0.03 to 0.15 as published, for "
                "a classifier's loss that is driven up to 105.",
                maximum=100.0,
            ),
            Parameter(
                "alpha",
                1e-4,
                "Weight of the penalty on blocks, 0 to 10; 0.0001 as published. Higher leaves fewer blocks changed.",
                maximum=10.0,
                step=1e-5,
            ),
            Parameter(
                "smallest",
                0.1,
                "Norm under which a block is left out of the eraser, 0 to 10. Start at 0.1; blocks begin at about 2.",
                maximum=10.0,
            ),
            Parameter(
                "pictures",
                48,
                "Pictures of the concept (where you give none) and of what is preserved that the model draws, each, "
                "1 to 1024. Start at 48; what is preserved is held where there is a picture of it.",
                minimum=1,
                maximum=1024,
                step=1,
                unit="pictures",
                advanced=True,
            ),
            shared.templates(),
        ),
    )
    schedule = Schedule(steps=500, rate=1e-3, batch=4, rank=8)
    small = Schedule(steps=60, rate=1e-2, batch=4, rank=8)

    def plan(self, task: Task, settings: Mapping[str, Value]) -> Plan:
        templates, count = str(settings["templates"]), int(settings["pictures"])
        return Plan(
            parameters=LowRank(FEED_FORWARD, smallest=float(settings["smallest"])),
            sources=(
                Pictures(concept_scenes(task, templates), count=count, given=True),
                Pictures(kept_scenes(task, templates), name=_KEPT, count=count),
            ),
            terms=(
                Bounded(Denoise(CONCEPT), float(settings["bound"]), float(settings["beta"])),
                Denoise(CONCEPT, at=_KEPT),
            ),
            penalties=(GroupLasso(float(settings["alpha"])),),
        )


RECIPE = GSLoRA()
