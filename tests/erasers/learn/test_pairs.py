"""Pairs of pictures: which are partners, and that both carry the same noise."""

from __future__ import annotations

import pytest
import torch
from lethe.erasers.errors import SettingError
from lethe.erasers.learn.pairs import GONE, SHOWN, Pairs, pairs_of
from lethe.erasers.learn.scenes import scene
from toy_trainee import job_of, run_of, tiny_task

PICTURES = torch.arange(6.0)[:, None, None, None].expand(6, 4, 8, 8)
"""Three that show the concept, 0 to 2, and their partners, 3 to 5."""


def test_the_first_half_shows_the_concept_and_the_second_its_partners_in_order() -> None:
    shown, gone = pairs_of(tiny_task(pictures=PICTURES))
    assert shown[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert gone[:, 0, 0, 0].tolist() == [3, 4, 5]


@pytest.mark.parametrize(
    ("pictures", "said"), [(None, "no pairs"), (PICTURES[:0], "no pairs"), (PICTURES[:3], "are 3")]
)
def test_pictures_without_partners_are_errors(pictures: torch.Tensor | None, said: str) -> None:
    with pytest.raises(SettingError, match=said):
        pairs_of(tiny_task(pictures=pictures))


def test_partners_carry_the_same_noise_at_the_same_time() -> None:
    task = tiny_task(pictures=PICTURES)
    run = run_of(job_of("esd", task), task)
    scenes = (scene("ball"), scene("box"))
    moment = Pairs(scenes).draw(run, 12)
    shown, gone = moment[SHOWN], moment[GONE]
    assert shown.clean is not None and gone.clean is not None and shown.noise is not None
    assert torch.equal(gone.clean - shown.clean, torch.full((12, 4, 8, 8), 3.0))
    assert torch.allclose(gone.x - shown.x, torch.full((12, 4, 8, 8), 3.0), atol=1e-4)
    assert torch.allclose(shown.x, shown.clean + shown.sigma[:, None, None, None] * shown.noise, atol=1e-4)
    assert torch.equal(shown.sigma, gone.sigma) and len(set(shown.sigma.tolist())) == 12
    assert len(set(shown.clean[:, 0, 0, 0].tolist())) == 3
    assert shown.scenes == gone.scenes and {found["concept"] for found in shown.scenes} == {"ball", "box"}
