"""Saliency masks: which entries they keep, and that a run is as it was once they are made."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from lethe.erasers.errors import SettingError
from lethe.erasers.learn.run import Run
from lethe.erasers.learn.saliency import Saliency, largest
from torch import Tensor
from toy_trainee import job_of, run_of, tiny_task

FIRST, SECOND = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k", "up_blocks.1.attentions.0.proj_in"


def test_the_largest_magnitudes_are_kept() -> None:
    found = largest({"a": torch.tensor([0.1, 5.0, 0.2, -3.0])}, 0.5)
    assert found["a"].tolist() == [False, True, False, True]


def test_tensors_are_ranked_together_or_alone() -> None:
    sums = {"a": torch.tensor([[4.0, -3.0]]), "b": torch.tensor([1.0, 2.0, 0.5, 0.1])}
    together, alone = largest(sums, 0.5), largest(sums, 0.5, together=False)
    assert [together[name].int().tolist() for name in "ab"] == [[[1, 1]], [0, 1, 0, 0]]
    assert [alone[name].int().tolist() for name in "ab"] == [[[1, 0]], [1, 1, 0, 0]]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.37, 0.5, 1.0])
def test_the_share_is_exact_also_with_ties_and_zeros(share: float) -> None:
    generator = torch.Generator().manual_seed(0)
    sums = {"a": torch.randn(31, 7, generator=generator), "b": torch.zeros(53), "c": torch.full((40,), 0.25)}
    found = largest(sums, share)
    assert sum(int(mask.sum()) for mask in found.values()) == round(share * 310)
    kept = torch.cat([sums[name].abs().flatten()[found[name].flatten()] for name in sums])
    rest = torch.cat([sums[name].abs().flatten()[~found[name].flatten()] for name in sums])
    assert not len(kept) or not len(rest) or kept.min() >= rest.max()


def _run() -> Run:
    task = tiny_task()
    settings = {"sites": "all", "pictures": 2, "sampling_steps": 3}
    return run_of(job_of("salun", task, settings), task)


def _on(name: str, direction: list[float]) -> Callable[[Run], Iterator[Callable[[], Tensor]]]:
    """A loss whose gradient is `direction` on the first entries of one tensor, drawn in two halves."""

    def losses(run: Run) -> Iterator[Callable[[], Tensor]]:
        for _ in range(2):
            yield lambda: 0.5 * (run.trainables.tensors[name].flatten()[: len(direction)] @ torch.tensor(direction))

    return losses


def test_gradients_are_those_of_the_untouched_model_and_are_summed() -> None:
    run = _run()
    before = dict(run.trainables.tensors)
    seen: list[Tensor] = []

    def losses(run: Run) -> Iterator[Callable[[], Tensor]]:
        def loss() -> Tensor:
            own = run.trainables.tensors[FIRST]
            seen.append(own.detach().clone())
            # Half of each sum cancels: what is left is 1 for the first entry, 3 for the second and 0 for the third.
            sign = 1.0 if len(seen) == 1 else -1.0
            return own.flatten()[:3] @ torch.tensor([0.5 + 5 * sign, 1.5 + 2 * sign, 9 * sign])

        yield loss
        yield loss

    with torch.no_grad():
        for tensor in run.trainables.tensors.values():
            tensor.fill_(0.3)
    total = sum(tensor.numel() for tensor in before.values())
    mask = Saliency((losses,), 2 / total)(run)
    assert mask[FIRST].flatten().nonzero().flatten().tolist() == [0, 1]
    assert sum(int(own.sum()) for own in mask.values()) == 2
    assert not any(bool(own.any()) for own in seen)
    assert all(run.trainables.tensors[name] is tensor for name, tensor in before.items())
    assert all(bool((tensor == 0.3).all()) for tensor in before.values())


def test_masks_are_intersected() -> None:
    run = _run()
    total = sum(tensor.numel() for tensor in run.trainables.tensors.values())
    both = Saliency((_on(FIRST, [3.0, 2.0, 0.0]), _on(FIRST, [0.0, 2.0, 3.0])), 2 / total)(run)
    assert both[FIRST].flatten().nonzero().flatten().tolist() == [1]
    with pytest.raises(SettingError, match="no entry in common"):
        Saliency((_on(FIRST, [1.0]), _on(SECOND, [1.0])), 1 / total)(run)


def test_a_mask_takes_nothing_from_the_runs_generator_and_is_the_same_again() -> None:
    run = _run()
    measured = run.plan.mask
    assert measured is not None
    with torch.no_grad(), run.active():
        state = run.generator.get_state()
        one = measured(run)
        assert torch.equal(run.generator.get_state(), state)
        torch.rand(5, generator=run.generator)
        other = measured(run)
    assert all(torch.equal(one[name], other[name]) for name in one)
