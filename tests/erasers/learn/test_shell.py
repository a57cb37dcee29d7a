"""Random text features: their length, their directions, and that the concept's own is avoided."""

from __future__ import annotations

import torch
from lethe.erasers.learn.moment import CONCEPT, TEACHER, Ask
from lethe.erasers.learn.shell import Shell, shell_point, shell_roles
from torch.nn import functional
from toy_trainee import job_of, run_of, tiny_task


def test_points_lie_in_the_shell_and_at_right_angles() -> None:
    task = tiny_task()
    run = run_of(job_of("esd", task, {"sampling_steps": 3, "trajectories": 2}, batch=6), task)
    with torch.no_grad(), run.active():
        moment = run.draw()
        own = run.of_role(Ask(TEACHER, CONCEPT), moment["x"]).states
        found, again = (Shell().make(run, moment).states for _ in range(2))
    assert found.shape == own.shape
    lengths = (found.flatten(1).norm(dim=1) / own.flatten(1).norm(dim=1)).tolist()
    assert all(0.8 <= length <= 1.2 for length in lengths) and max(lengths) - min(lengths) > 0.02
    assert functional.cosine_similarity(found.flatten(1), own.flatten(1)).abs().max() < 0.1
    assert not torch.equal(found, again) and not torch.equal(found[0], found[1])


def test_the_concepts_own_direction_is_avoided() -> None:
    generator, centre = torch.Generator().manual_seed(0), torch.tensor([3.0, 4.0])
    points = torch.stack([shell_point(centre, 0.2, generator) for _ in range(2000)])
    # In the plane a density of min(1, 1 - cos) has a mean cosine of -0.367; an even one, of 0.
    assert abs(float(functional.cosine_similarity(points, centre[None]).mean()) + 0.367) < 0.05
    lengths = points.norm(dim=1)
    assert 4.0 <= float(lengths.min()) < 4.02 and 5.98 < float(lengths.max()) <= 6.0


def test_roles_are_numbered() -> None:
    assert shell_roles(2) == ("shell 0", "shell 1")
