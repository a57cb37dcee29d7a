"""Demo-world pictures with the kernels on and off: gated erasers beside the layers, and an eraser in the weights.

Everything is computed in float32. Backends sum in another order, which costs some 1e-7 per layer, and a few steps of
sampling through a whole model make of it what TOLERANCE allows; the erasers move the latents by more than a tenth.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.result import Eraser, Member, Recipe, WeightEdit
from lethe.kernels import stacked
from lethe.kernels.dispatch import forced
from torch import Tensor

pytest.importorskip("diffusers", reason="pictures are drawn through diffusers")

OPERATION = stacked.OPERATION
PROMPTS = ["a red ball on paper", "a large green tree"]
RECIPE = Recipe("toy", {}, (), (), "demo", "toy")
TOLERANCE = 1e-4
"""Largest relative error of latents (Frobenius norm)."""
PICTURES = 5e-4
"""Largest mean difference of decoded pictures, of numbers from 0 to 1: the decoder runs in bfloat16, whose steps there
are up to 4e-3, and rounding may now and then fall to the other side."""


@pytest.fixture(scope="module")
def gallery() -> Any:
    from lethe.erasers.demo.gallery import Gallery

    found = Gallery(steps=2)
    found.model.autocast = False
    return found


def _edits(gallery: Any, rank: int, seed: int) -> dict[str, WeightEdit]:
    """Adapters on every projection of the first cross-attentions; the interpreter is slow."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, weight in gallery.model.unet.named_parameters():
        if ".attn2." in name and name.endswith("weight") and not name.startswith("up_blocks"):
            down, up = (
                torch.randn(size, generator=generator) for size in ((rank, weight.shape[1]), (len(weight), rank))
            )
            found[name] = WeightEdit(down=down / weight.shape[1] ** 0.5, up=up / (3 * rank**0.5))
    return found


def _gated(gallery: Any) -> Eraser:
    """Two erasers of different rank, which open for the first prompt and stay shut for the second."""
    from lethe.erasers.gates.discriminant import fit_gate

    concepts = ConceptList(lists=("demo-world",)).with_concept(Concept("ball", ""))
    gate = fit_gate(gallery.task(concepts), 0.5)
    parts = [Eraser(RECIPE, adapters=_edits(gallery, rank, rank)) for rank in (1, 5)]
    return Eraser(RECIPE, members=tuple(Member(gate, part) for part in parts))


def _latents(gallery: Any, eraser: Eraser, backend: str) -> Tensor:
    with forced(stacked=backend, grouped=backend):
        return gallery.erased(eraser).model.sample(PROMPTS, 2, 4.0, seed=1)


def _apart(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("kind", ["gated", "written"])
def test_pictures_are_the_same_with_the_kernels_on_and_off(gallery: Any, kind: str, backend: str) -> None:
    eraser = _gated(gallery) if kind == "gated" else Eraser(RECIPE, adapters=_edits(gallery, 5, 7))
    plain = gallery.model.sample(PROMPTS, 2, 4.0, seed=1)
    off, on = (_latents(gallery, eraser, name) for name in ("eager", backend))
    assert _apart(off[0], plain[0]) > 0.1
    assert off[1].equal(plain[1]) == (kind == "gated")
    assert _apart(on, off) < TOLERANCE
    if kind == "gated":
        assert on[1].equal(plain[1])
    assert float((gallery.decode(on) - gallery.decode(off)).abs().mean()) < PICTURES


def test_a_row_of_the_leaderboard_is_the_same_with_the_kernels_on_and_off(
    gallery: Any, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lethe.erasers.demo import leaderboard

    eraser = Eraser(RECIPE, adapters=_edits(gallery, 4, 3))
    monkeypatch.setattr(leaderboard, "make_eraser", lambda *_: eraser)
    job = leaderboard.Job("toy", "ball", {"concept_arithmetic": {"tries": 1}}, each_kind=2, pictures=1, steps=4)
    rows = []
    for name in ("eager", backend):
        with forced(stacked=name, grouped=name):
            rows.append(leaderboard.run_job(job))
    assert [report.kind for report in rows[0]] == ["evaluation", "attack"]
    for off, on in zip(*rows, strict=True):
        one, other = ({name: figure.value for name, figure in report.figures.items()} for report in (off, on))
        assert one == pytest.approx(other, abs=1e-3, nan_ok=True)
