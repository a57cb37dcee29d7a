"""Features around a prompt's: their bounds, what stays, and bounds that exclude each other."""

from __future__ import annotations

import pytest
import torch
from lethe.erasers.errors import SettingError
from lethe.erasers.learn.moment import CONCEPT, TEACHER, Ask
from lethe.erasers.learn.sphere import Sphere
from toy_trainee import job_of, run_of, tiny_task


@pytest.mark.parametrize(
    "block", [Sphere(0.0, 0.3, 0.97, 0.99), Sphere(0.0, 3.0, 0.5, 0.6), Sphere(0.3, 1.0), Sphere(0.5, 0.5)]
)
@pytest.mark.parametrize("width", [2, 192])
def test_every_point_satisfies_both_bounds(block: Sphere, width: int) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(300, width, generator=generator, dtype=torch.float64) * 7
    found = block.around(rows, generator)
    distance = (found - rows).norm(dim=1) / rows.norm(dim=1)
    cosine = torch.cosine_similarity(found, rows, dim=1)
    assert block.inner - 1e-6 <= float(distance.min()) and float(distance.max()) <= block.outer + 1e-6
    assert block.low - 1e-6 <= float(cosine.min()) and float(cosine.max()) <= block.high + 1e-6


def test_bounds_that_exclude_each_other_are_an_error() -> None:
    with pytest.raises(SettingError, match="No neighbour"):
        Sphere(0.0, 0.1, 0.5, 0.6).around(torch.ones(2, 8), torch.Generator().manual_seed(0))


def test_all_tokens_move_but_the_first_and_anew_each_time() -> None:
    task = tiny_task()
    run = run_of(job_of("esd", task, {"sampling_steps": 4, "trajectories": 2}), task)
    with torch.no_grad(), run.active():
        moment = run.draw()
        own = run.of_role(Ask(TEACHER, CONCEPT), moment["x"]).states
        first, second = (Sphere(0.0, 0.3).make(run, moment).states for _ in range(2))
        again = run.of_role(Ask(TEACHER, CONCEPT), moment["x"]).states
    assert torch.equal(own[:, 0], first[:, 0]) and torch.equal(own, again)
    assert bool((own[:, 1:] != first[:, 1:]).any(-1).all()) and bool((first[:, 1:] != second[:, 1:]).any(-1).all())
