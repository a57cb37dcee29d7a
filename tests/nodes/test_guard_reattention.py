"""SAFREE's latent re-attention in the real host: what it changes, of whom, when, and what stays."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lethe.erasers.concepts import Concept, ConceptList

PROMPT, OTHER = "a large red ball, flat style, on paper", "a large red tree, flat style, on paper"
BALL = ConceptList(lists=("demo-world",)).with_concept(Concept("ball", "box"))
ON: dict[str, Any] = {"adaptive": False, "reattention": True}


def safree(demo: Any, gate: float = 0.0, **settings: Any) -> Any:
    """MODEL and CLIP behind the guard."""
    from lethe.nodes.guard import LetheGuard

    with torch.inference_mode():
        return LetheGuard.execute(demo[0], demo[1], BALL, gate, guard={"guard": "safree", **settings}).result[:2]


def sample(
    model: Any, clip: Any, prompts: tuple[str, ...] = (PROMPT,), cfg: float = 4.0, steps: int = 4, negative: str = ""
) -> Any:
    from lethe.nodes.host.sampling import encode_prompt, prompts_at_once

    import nodes

    with torch.inference_mode():
        positive, against = prompts_at_once([encode_prompt(clip, p) for p in prompts]), encode_prompt(clip, negative)
        latent = nodes.EmptyLatentImage().generate(128, 128, len(prompts))[0]
        return nodes.KSampler().sample(model, 3, steps, cfg, "ddim", "normal", positive, against, latent)[0]["samples"]


def watched(model: Any) -> tuple[Any, list[int]]:
    """A clone that tells how many pictures each call of the network has."""
    sizes: list[int] = []
    clone = model.clone()

    def tell(apply: Any, given: Any) -> Any:
        sizes.append(len(given["input"]))
        return apply(given["input"], given["timestep"], **given["c"])

    clone.set_model_unet_function_wrapper(tell)
    return clone, sizes


def weakened(edited: torch.Tensor, original: torch.Tensor, scale: float) -> torch.Tensor:
    """Each channel's lowest four frequencies, one by one."""
    found, other = torch.fft.fft2(edited.double()), torch.fft.fft2(original.double())
    for row in (-1, 0):
        for column in (-1, 0):
            larger = found[..., row, column].abs() > 1.01 * other[..., row, column].abs()
            found[..., row, column] *= torch.where(larger, scale, 1.0)
    return torch.fft.ifft2(found).real.float()


def test_what_the_halves_hand_over_is_weakened_by_what_they_do_unedited(demo: Any) -> None:
    """Before: what another node's patch sees. Behind: what the second half's blocks get."""
    model, clip = safree(demo, **ON)
    before: list[tuple[int, torch.Tensor, int]] = []
    behind: dict[int, list[torch.Tensor]] = {}
    clone = model.clone()

    def see(h: torch.Tensor, skip: torch.Tensor, options: Any) -> Any:
        before.append((options["block"][1], skip.clone(), h.shape[1]))
        return h, skip

    clone.set_model_output_block_patch(see)
    blocks = demo[0].model.diffusion_model.output_blocks
    hooks = [
        block[0].register_forward_pre_hook(lambda _, args, i=i: behind.setdefault(i, []).append(args[0].clone()))
        for i, block in enumerate(blocks)
    ]
    try:
        sample(clone, clip, cfg=1.0, steps=1)
    finally:
        for hook in hooks:
            hook.remove()
    half, changed = len(blocks), 0
    assert len(before) == 2 * half
    for (i, original, _), (_, edited, width) in zip(before[:half], before[half:], strict=True):
        scale = {128: 0.9, 64: 0.2}.get(width, 1.0)
        wanted = weakened(edited, original, scale)
        found = behind[i][1][:, width:]
        assert torch.allclose(found, wanted, atol=1e-4)
        assert torch.equal(behind[i][0][:, width:], original), "the unedited prompt is looked at as it is"
        changed += not torch.allclose(found, edited, atol=1e-3)
    assert changed == 1, "the demo model's other blocks hand over what knows nothing of the text yet"


def test_it_acts_and_at_full_strength_of_what_is_left_changes_nothing(demo: Any) -> None:
    without, plain = sample(*safree(demo, adaptive=False)), sample(*demo[:2])
    assert not torch.allclose(sample(*safree(demo, **ON)), without, atol=1e-2)
    assert torch.allclose(sample(*safree(demo, **ON, s1=1.0, s2=1.0)), without, atol=1e-4)
    assert torch.equal(sample(*demo[:2]), plain)


def test_the_unedited_prompt_is_looked_at_only_while_the_edit_acts(demo: Any) -> None:
    model, clip = safree(demo, reattention=True, longest=0.5, steep=0.0)
    clone, sizes = watched(model)
    sample(clone, clip, steps=4)
    assert sizes == [1, 2, 2, 2, 2], "steep 0 makes the edit act for half of the longest, a quarter of sampling"


def test_behind_its_gate_nothing_changes_and_nothing_is_asked(demo: Any) -> None:
    model, clip = safree(demo, 0.45, **ON)
    clone, sizes = watched(model)
    assert torch.equal(sample(clone, clip, (OTHER,)), sample(*demo[:2], (OTHER,)))
    assert sizes == [2, 2, 2, 2]


def test_in_a_batch_only_the_prompts_that_pass_the_gate_are_changed(demo: Any) -> None:
    plain, changed = sample(*demo[:2], (OTHER, PROMPT)), sample(*safree(demo, 0.45, **ON), (OTHER, PROMPT))
    assert torch.allclose(plain[0], changed[0], atol=1e-4)
    assert not torch.allclose(plain[1], changed[1], atol=1e-2)


def test_the_negatives_rows_are_left_alone(demo: Any) -> None:
    def first(model: Any, clip: Any) -> list[torch.Tensor]:
        seen: list[list[torch.Tensor]] = []
        clone = model.clone()
        clone.set_model_sampler_pre_cfg_function(lambda given: seen.append(given["conds_out"]) or given["conds_out"])
        sample(clone, clip, steps=1)
        return seen[0]

    (said, unsaid), (changed, left) = first(*safree(demo, adaptive=False)), first(*safree(demo, **ON))
    assert torch.allclose(unsaid, left, atol=1e-5) and not torch.allclose(said, changed, atol=1e-3)


@pytest.mark.parametrize("negative", ["", ", ".join([OTHER] * 12)])
def test_batches_that_memory_splits_give_the_same(demo: Any, monkeypatch: Any, negative: str) -> None:
    """Prompts that do not fit into one batch are looked at one after the other."""
    model, clip = safree(demo, **ON)
    together = sample(model, clip, negative=negative)
    monkeypatch.setattr(type(model.model), "memory_required", lambda *args, **kwargs: 2**62)
    clone, sizes = watched(model)
    assert torch.allclose(sample(clone, clip, negative=negative), together, atol=1e-3)
    assert set(sizes) == {1}


def test_it_goes_with_other_guards_in_any_order(demo: Any) -> None:
    from lethe.nodes.guard import LetheGuard

    def other(pair: Any) -> Any:
        settings = {"guard": "sld", "strength": "max"}
        with torch.inference_mode():
            return LetheGuard.execute(pair[0], pair[1], BALL, 0.0, guard=settings).result[:2]

    one, two = sample(*other(safree(demo, **ON))), sample(*safree(other(demo), **ON))
    assert torch.allclose(one, two, atol=1e-3)
    assert not torch.allclose(one, sample(*other(demo)), atol=1e-2)
    assert not torch.allclose(one, sample(*other(safree(demo, adaptive=False))), atol=1e-3)
