"""RealEra-like LoRA: erasure of a concept's neighbourhood by training, after RealEra (arXiv 2410.09140).

No program of theirs was found. What the paper says: random perturbations of the concept's embedding within a bound are
neighbours, which go to the anchor with it; embeddings beyond it are held; both are used in a closed-form edit and in
the training of a LoRA. This is the second part, on its own; the first is the method 'realera'. The loss is inferred:

    L = mse( S(e_c), T(a) ) + mse( S(e_near), T(a) ) + lam mse( S(e_far), T(e_far) )

with new points at each step (learn/sphere.py). The paper's layers, rank, bounds, latents and schedule are not known:
those here are ours, and this is no reproduction.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..errors import SettingError
from ..learn import settings as shared
from ..learn.low_rank import LowRank
from ..learn.moment import ANCHOR, TEACHER
from ..learn.plan import Plan, Schedule
from ..learn.regress import Regress, same
from ..learn.scenes import concept_scenes
from ..learn.sphere import FAR, NEAR, Sphere
from ..learn.where import ALL, BLOCKS, CROSS, KEYS_VALUES
from ..spec import MethodSpec, Parameter, Value
from ..task import Task


def _bound(name: str, default: float, what: str, maximum: float) -> Parameter:
    return Parameter(
        name, default, f"{what}, 0 to {maximum:g}. Start at {default:g}; the paper's is not known.", maximum=maximum
    )


class RealEraLoRA:
    """Trains the concept and points around it towards the anchor, and holds points further away."""

    spec = MethodSpec(
        name="realera_lora",
        title="RealEra-like LoRA",
        paper="Liu et al., RealEra: Semantic-level Concept Erasure via Neighbor-Concept Mining (arXiv 2410.09140)",
        summary="Teaches the model to predict the replacement for the concept and for random features near it.",
        families=("demo",),
        parameters=(
            shared.where(BLOCKS, (BLOCKS, CROSS, KEYS_VALUES, ALL), "The paper's are not known."),
            _bound("near", 0.3, "Greatest distance of a neighbour, as a share of the features' length", 4.0),
            _bound("far", 1.0, "Greatest distance of what is held; it begins where neighbours end", 4.0),
            _bound("cosine_low", 0.95, "Least cosine between the concept's features and a neighbour's", 1.0),
            _bound("cosine_high", 1.0, "Greatest cosine between the concept's features and a neighbour's", 1.0),
            Parameter(
                "lam",
                0.1,
                "Weight of what is held, 0 to 100. Start at 0.1; the paper's is not known.",
                maximum=100.0,
            ),
            shared.templates(published="not known"),
            shared.latents("Published: not known."),
            shared.cfg(3.0),
            shared.sampling_steps(50),
            shared.trajectories(),
        ),
    )
    schedule = Schedule(steps=1000, rate=1e-4, rank=4)
    small = Schedule(steps=200, rate=3e-3, batch=2, rank=4)

    def plan(self, task: Task, settings: Mapping[str, Value]) -> Plan:
        near, far = float(settings["near"]), float(settings["far"])
        if far < near:
            raise SettingError(
                f"What is held ends at {far:g}, before neighbours do.", f"Set 'far' to {near:g} or more."
            )
        anchor = {(TEACHER, ANCHOR): 1.0}
        return Plan(
            parameters=LowRank(str(settings["sites"])),
            sources=(shared.rollout_of(settings, concept_scenes(task, str(settings["templates"]))),),
            makers={
                NEAR: Sphere(0.0, near, float(settings["cosine_low"]), float(settings["cosine_high"])),
                FAR: Sphere(near, far),
            },
            terms=(Regress(anchor), Regress(anchor, NEAR), same(FAR, float(settings["lam"]))),
        )


RECIPE = RealEraLoRA()
