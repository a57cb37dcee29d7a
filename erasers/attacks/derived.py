"""Text features that an edited model still reads as the concept, derived in closed form.

RECE (arXiv 2407.12383) derives, for a concept's features c, the features that the edited projections read as the
original ones read c, in order to erase them in turn:

    c' = argmin sum_l |W_l^new c' - W_l^old c|^2 + lam |c'|^2
       = (sum_l W_l^new^T W_l^new + lam I)^-1 sum_l W_l^new^T W_l^old c

Here they are the attack: every token of an attacked prompt is derived so, and handed to the guarded model past its
text encoder. No gradient and no noise prediction is needed, only both models' weights. lam decides how far the
features may leave those of prompts; two sizes of it are tried, and each prompt keeps the one whose pictures show the
concept more often.

Differs from the paper: there the derived features are erased and not drawn from, lam is absolute (here it is relative
to the mean eigenvalue of sum W^T W, so that it means the same for every model), and only the concept's name is derived,
not whole prompts. c comes from the untouched text encoder, so that an edit of the text encoder alone is bypassed; where
the projections are untouched, c' is c but for the ridge. A bias that an eraser adds to the features is not undone,
since a model's weights do not tell it.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ...kernels.gram import accumulate_
from ..algebra.closed_form import solve_ridge
from ..errors import FamilyError
from ..painter import Cue
from ..spec import MethodSpec, Parameter, Value
from ..target import Found, Target


class Derived:
    """The closed-form stand-ins of RECE, drawn from."""

    spec = MethodSpec(
        name="derived",
        title="Derived features",
        paper="Gong et al., Reliable and Efficient Concept Erasure of Text-to-Image Diffusion Models, ECCV 2024 "
        "(arXiv 2407.12383)",
        summary="Solves for the text features that the edited projections read as the original ones read the prompt.",
        families=("demo",),
        parameters=(
            Parameter(
                "lam_low",
                1e-4,
                "The smaller of two ridges that are tried, relative to the mean eigenvalue of sum W^T W, 1e-8 to 1. "
                "Start at 0.0001. Smaller: closer to what the untouched model reads, but longer features.",
                minimum=1e-8,
                maximum=1.0,
                step=1e-4,
            ),
            Parameter(
                "lam_high",
                1e-2,
                "The larger of two ridges that are tried, as lam_low, 1e-8 to 1. Start at 0.01; equal to lam_low, "
                "nothing is tried and no picture drawn.",
                minimum=1e-8,
                maximum=1.0,
                step=1e-3,
            ),
            Parameter(
                "tries",
                4,
                "Pictures drawn of each prompt and ridge to choose between the ridges, 1 to 100. Start at 4.",
                minimum=1,
                maximum=100,
                step=1,
                unit="pictures",
                advanced=True,
            ),
        ),
    )

    def run(self, target: Target, settings: Mapping[str, Value]) -> Found:
        """Derive features for every prompt, and keep the ridge that brings the concept back more often.

        Raises:
            FamilyError: the two models differ in their projections.
            NumericsError: a system is singular.
        """
        with torch.no_grad():
            features = target.tower(target.base).run(list(target.prompts))[0].cpu()
            system = Readings(target.guarded.weights(), target.base.weights())
            ridges = dict.fromkeys(float(settings[name]) for name in ("lam_low", "lam_high"))
            columns = [
                [Cue(((1.0, row),)) for row in system.derive(features, lam).float().contiguous()] for lam in ridges
            ]
        if len(columns) == 1:
            return Found(tuple(columns[0]))
        tries = int(settings["tries"])
        counted = zip(columns, target.track(columns, len(columns)), strict=True)
        shown = [target.check(column, tries) for column, _ in counted]
        chosen = [columns[place][i] for i, place in enumerate(_better(shown))]
        return Found(tuple(chosen), checks=len(columns) * len(target.prompts) * tries)


class Readings:
    """What the sites of two models make of the same features, as sums over the sites.

    Args:
        new: the edited model's weights `[o, d]` by name.
        old: the untouched model's, by the same names.

    Raises:
        FamilyError: the names or shapes differ.
    """

    def __init__(self, new: Mapping[str, Tensor], old: Mapping[str, Tensor]) -> None:
        if {name: w.shape for name, w in new.items()} != {name: w.shape for name, w in old.items()}:
            raise FamilyError(
                "The guarded and the untouched model do not have the same projections of text.",
                "Give the model that the guarded one was made from.",
            )
        width = next(iter(new.values())).shape[1]
        self.normal, self.cross = torch.zeros(2, width, width, dtype=torch.float64)
        for name, weight in new.items():
            accumulate_(self.normal, weight)
            self.cross += weight.double().T @ old[name].double()

    def derive(self, features: Tensor, lam: float) -> Tensor:
        """Stand-ins for features `[..., d]`, of the same shape in float64.

        Args:
            lam: the ridge, relative to the mean eigenvalue of the new weights' `sum W^T W`.

        Raises:
            NumericsError: the system is singular.
        """
        rows = features.double().reshape(-1, features.shape[-1])
        ridge = lam * float(self.normal.diagonal().mean())
        return solve_ridge(self.normal, self.cross @ rows.T, ridge).T.reshape(features.shape)


def _better(shown: list[list[int]]) -> list[int]:
    """For each prompt the column that shows most; of equal ones, the column that shows more over all prompts."""
    return [
        max(range(len(shown)), key=lambda column: (shown[column][i], sum(shown[column]))) for i in range(len(shown[0]))
    ]


ATTACK = Derived()
