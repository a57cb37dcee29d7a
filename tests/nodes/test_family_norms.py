"""Families whose text passes a norm before the first weight: what an edit does there, no weight and no bias can do.

A layer y = W n + b takes points n on a sphere, and keeps what they have to do with each other: four of them on one
circle lie in a plane, so n_4 = a n_1 + b n_2 + c n_3 with a + b + c = 1, and y_4 is the same sum of the others' y,
whatever W and b are. Features edited in front of the norm break that.
"""

from __future__ import annotations

from typing import Any

import pytest
import tiny_models
import torch
from lethe.erasers.registry import families
from lethe.erasers.result import ContextOperator, Eraser, Recipe
from lethe.erasers.sites import HOOK, NO, WEIGHTS
from torch import Tensor

NORMED = sorted(n for n, own in families().items() if own.verdict(WEIGHTS).state == NO and not own.further)


def circle(width: int, made: torch.Generator) -> tuple[Tensor, Tensor]:
    """Four points on one circle of the sphere that a norm maps to itself, `[4, d]`, and the last one's shares `[3]`."""
    away, one, other = torch.linalg.qr(torch.randn(width, 3, generator=made, dtype=torch.float64))[0].T
    turns = torch.tensor([0.0, 1.0, 2.5, 4.0], dtype=torch.float64)
    points = width**0.5 * (0.6 * away + 0.8 * (turns.cos()[:, None] * one + turns.sin()[:, None] * other))
    return points, torch.linalg.lstsq(points[:3].T, points[3]).solution


@pytest.mark.parametrize("name", NORMED)
def test_no_change_of_the_first_weight_is_the_edit(comfy: Any, name: str) -> None:
    import comfy.sample
    from lethe.nodes.host.patcher import apply_to_model
    from lethe.nodes.host.sites import model_sites

    family, model, made = families()[name], tiny_models.tiny_model(name), torch.Generator().manual_seed(5)
    points, shares = circle(family.width, made)
    assert float(shares.sum()) == pytest.approx(1.0)
    assert torch.allclose(points.square().mean(1), torch.ones(4, dtype=torch.float64))
    operator = ContextOperator(down=points[:1].float() / family.width, up=torch.randn(family.width, 1, generator=made))
    eraser = Eraser(Recipe("uce", {}, ({"text": "cat"},), (), name, ""), {family.stream: operator})
    (site,) = model_sites(model).sites
    layer = model.model.get_submodule(model_sites(model).key(site.name).removesuffix(".weight"))

    def missed(changed: Any) -> float:
        """How far the fourth point's output is from what the others' say, as a share of it."""
        seen: list[Tensor] = []
        handle = layer.register_forward_hook(lambda module, args, output: seen.append(output[0, :4].double()))
        given = [[points[None].float(), {"pooled_output": None, "attention_mask": torch.ones(1, 4, dtype=torch.long)}]]
        noise = torch.randn(1, *tiny_models.PLANS[name].latent)
        with torch.inference_mode():
            comfy.sample.sample(
                changed, noise, 1, 1.0, "euler", "normal", given, given, torch.zeros_like(noise), disable_pbar=True
            )
        handle.remove()
        return float((seen[0][3] - shares @ seen[0][:3]).norm() / seen[0][3].norm())

    assert missed(model) < 1e-4
    assert missed(apply_to_model(model, eraser, 1.0, HOOK)) > 1e-2
