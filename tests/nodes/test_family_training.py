"""Adapters trained through the node on a reduced model of every family, in the real host, and their way into a LoRA."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from lethe.erasers.algebra.hooks import gradients, hooked
from lethe.erasers.concepts import Concept, ConceptList
from lethe.erasers.learn.low_rank import LowRank
from lethe.erasers.learn.moment import Features
from lethe.erasers.learn.where import (
    ALL,
    BLOCKS,
    CROSS,
    FEED_FORWARD,
    KEYS_VALUES,
    NOT_CROSS,
    SELF,
    SELF_AND_QUERY,
    TEXT_STREAM,
    denoiser_layers,
)
from lethe.erasers.registry import families
from lethe.erasers.result import ContextOperator, Eraser, WeightEdit
from lethe.erasers.sites import HOOK, NO, TESTED, TRAINING, WEIGHTS
from lethe.erasers.stack import Stack
from torch import Tensor

TRAINED = sorted(n for n, family in families().items() if family.verdict(TRAINING).state == TESTED and n != "demo")
PROMPT = "a photo of a cat on a mat"
CONCEPTS = ConceptList(preserve=("a tree",)).with_concept(Concept("cat", "dog"))
STEPS = 3
SLOW = ("flux2_klein_4b", "flux2_klein_9b", "mochi")
"""Relatives of Flux 2, with prompts of 512 tokens; a pooling of the text as wide as at full size."""
ESD = {"recipe": "esd", "templates": "none", "sampling_steps": 2, "trajectories": 2, "form": "low rank"}


def _train(model: Any, clip: Any, name: str, sites: str) -> Any:
    from lethe.nodes.train import LetheTrain

    pixels = tiny_models.PLANS[name].latent[-1] * model.model.latent_format.spacial_downscale_ratio
    chosen = {"steps": STEPS, "learning_rate": 0.05, "rank": 2, "batch": 2, "look_every": 0, "pixels": pixels}
    with torch.inference_mode():
        return LetheTrain.execute(model, clip, CONCEPTS, recipe={**ESD, "sites": sites}, **chosen).result


def _another(model: Any, trained: Eraser) -> Eraser:
    """An eraser to stack with: an operator where weights can hold one, else an edit of one of the model's weights."""
    from lethe.nodes.host.sites import model_sites

    found, made = model_sites(model), torch.Generator().manual_seed(7)
    recipe = replace(trained.recipe, method="uce", settings={})
    width, site = found.family.width, found.sites[0]
    down = torch.randn(2, width, generator=made) / width**0.5
    if found.family.verdict(WEIGHTS).state == NO:
        edit = WeightEdit(down=down, up=torch.randn(site.fan_out, 2, generator=made) * 0.3)
        return Eraser(recipe, adapters={site.name: edit})
    operator = ContextOperator(down=down, up=torch.randn(width, 2, generator=made) * 0.1)
    return Eraser(recipe, {found.family.stream: operator})


def _stacked(model: Any, clip: Any, *erasers: Eraser) -> Eraser:
    from lethe.nodes.stack import LetheMerge

    stack = Stack().with_erasers(list(erasers), 1.0)
    with torch.inference_mode():
        return LetheMerge.execute(stack, model, clip, {"mode": "sum"}).result[0]


def _applied(model: Any, clip: Any, eraser: Eraser) -> Any:
    from lethe.nodes.erase import LetheApply

    with torch.inference_mode():
        return LetheApply.execute(model, clip, eraser, 1.0, HOOK).result[0]


def _loaded(model: Any, clip: Any, eraser: Eraser, name: str) -> Any:
    """A fresh model with the eraser as a LoRA, saved and loaded by the host's own nodes."""
    import folder_paths
    from comfy_extras.nodes_train import SaveLoRA
    from lethe.nodes.exchange import LetheToLora

    import nodes

    with torch.inference_mode():
        lora = LetheToLora.execute(model, eraser).result[0]
        SaveLoRA.execute(lora, f"trained_{name}")
        path = next(Path(folder_paths.get_output_directory()).glob(f"trained_{name}*.safetensors"))
        folder = Path(folder_paths.get_folder_paths("loras")[0])
        folder.mkdir(parents=True, exist_ok=True)
        path.rename(folder / path.name)
        return nodes.LoraLoader().load_lora(tiny_models.tiny_model(name), clip, path.name, 1.0, 0.0)[0]


def _share(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def _state(model: Any) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.model.state_dict().items()}


def _hooks(model: Any) -> int:
    modules = model.model.modules()
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) + ("forward" in vars(m)) for m in modules)


def _same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def _drawing(clip: Any, name: str, side: int = 0) -> Callable[[Any], Tensor]:
    """Draws a latent of `PROMPT` with a model, in its plan's steps; of another size than its plan's with `side`."""
    import comfy.sample

    shape, steps = tiny_models.PLANS[name].latent, tiny_models.PLANS[name].steps
    shape = (*shape[:-2], side, side) if side else shape
    noise = torch.randn(1, *shape, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        given = clip.encode_from_tokens_scheduled(clip.tokenize(PROMPT))

    def draw(model: Any) -> Tensor:
        latent = torch.zeros_like(noise)
        with torch.inference_mode():
            return comfy.sample.sample(
                model, noise, steps, 1.0, "euler", "normal", given, given, latent, disable_pbar=True, seed=3
            )

    return draw


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in TRAINED])
def test_trained_adapters_stack_and_become_a_lora(comfy: Any, name: str) -> None:
    import comfy.model_management
    from lethe.nodes.host.model import HostModel

    model, clip = tiny_models.tiny_model(name), tiny_models.tiny_clip(name)
    before, hooks, places = _state(model), _hooks(model), [p.data_ptr() for p in model.model.parameters()]
    draw = _drawing(clip, name)
    plain = draw(model)
    sites = TEXT_STREAM if families()[name].layers else CROSS
    changed, _, eraser, losses, _, summary = _train(model, clip, name, sites)
    chosen = denoiser_layers(HostModel(model, clip), sites, families()[name])
    assert set(eraser.adapters) == {f"{layer}.weight" for layer in chosen}
    assert len(losses["loss"]) == STEPS
    assert all(0 < loss < float("inf") for loss in losses["loss"])
    assert "3 steps" in summary
    assert any(bool(edit.up is not None and edit.up.any()) for edit in eraser.adapters.values())
    assert _same(before, _state(model))
    assert [p.data_ptr() for p in model.model.parameters()] == places
    assert _hooks(model) == hooks
    assert not comfy.model_management.in_training
    trained = draw(changed)
    assert _share(trained, plain) > 1e-4
    both = _stacked(model, clip, eraser, _another(model, eraser))
    erased = draw(_applied(model, clip, both))
    assert _share(erased, trained) > 1e-4
    assert _share(draw(_loaded(model, clip, both, name)), erased) < 1e-3 * _share(erased, plain)
    assert torch.equal(draw(model), plain)


@pytest.mark.parametrize("name", ["flux", "hunyuan_video", "ltxv", "cosmos2", "ernie_image"])
def test_gradients_are_those_of_the_loss_also_where_blocks_run_twice(comfy: Any, name: str) -> None:
    """Blocks that compute in place, and fused operations without gradients of their own."""
    from lethe.nodes.host.fit import task_of

    model, clip = tiny_models.tiny_model(name), tiny_models.tiny_clip(name)
    with torch.inference_mode(False), torch.no_grad():
        task = task_of(model, clip, CONCEPTS)
        host, made = task.loaded(), torch.Generator().manual_seed(1)
        given = Features.of(task.encode(["a cat"]))
        x, sigma = torch.randn(1, *tiny_models.PLANS[name].latent, generator=made), host.level(torch.tensor([0.5]))
        found = LowRank("all").build(host, task.family, 2, made)
        for tensor in found.tensors.values():
            tensor.copy_(torch.randn(tensor.shape, generator=made) * 0.02)
        leaves = [tensor.requires_grad_() for tensor in found.tensors.values()]

        def loss() -> Tensor:
            said = host.predict(x, sigma, given.states, given.pooled, given.stacked() or None)
            return said.double().square().mean()

        gradient = []
        for checkpoint in (False, True):
            with host.ready(checkpoint), hooked(found.hooks), gradients():
                own = torch.autograd.grad(loss(), leaves, allow_unused=True)
            gradient.append([torch.zeros_like(t) if g is None else g for g, t in zip(own, leaves, strict=True)])
        ways = [torch.randn(leaf.shape, generator=made) * 0.02 for leaf in leaves]
        there = []
        with host.ready(), hooked(found.hooks):
            for sign in (1, -2):
                for leaf, way in zip(leaves, ways, strict=True):
                    leaf.data.add_(way, alpha=sign * 0.02)
                there.append(float(loss()))
    slope = sum(float((g * way).sum()) for g, way in zip(gradient[0], ways, strict=True))
    assert slope == pytest.approx((there[0] - there[1]) / 0.04, rel=0.02)
    once, twice = (torch.cat([g.flatten() for g in own]) for own in gradient)
    assert _share(twice, once) < 1e-5


def test_what_stands_for_a_fused_operation_computes_the_same(comfy: Any) -> None:
    kitchen = pytest.importorskip("comfy_kitchen")
    from lethe.nodes.host.gradients import normed_rope, rope

    made = torch.Generator().manual_seed(2)
    q, k = torch.randn(2, 2, 5, 3, 8, generator=made)
    one_gain, other_gain = torch.randn(2, 8, generator=made)
    angles = torch.randn(1, 5, 1, 4, generator=made)
    turns = torch.stack([angles.cos(), -angles.sin(), angles.sin(), angles.cos()], -1).unflatten(-1, (2, 2))
    for own, fused in (
        (rope(q, k, turns), kitchen.apply_rope_split_half(q, k, turns)),
        (
            normed_rope(q, k, turns, one_gain, other_gain),
            kitchen.rms_rope_split_half(q, k, turns, one_gain, other_gain),
        ),
    ):
        assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(own, fused, strict=True))


@pytest.mark.parametrize("name", sorted(tiny_models.PLANS))
def test_kinds_of_layers_go_together_at_full_size(comfy: Any, name: str) -> None:
    from lethe.nodes.host.model import HostModel

    found, full, family = {}, HostModel(tiny_models.full_model(name), None), families()[name]
    for where in (CROSS, KEYS_VALUES, NOT_CROSS, SELF, SELF_AND_QUERY, BLOCKS, FEED_FORWARD, TEXT_STREAM, ALL):
        found[where] = set(denoiser_layers(full, where, family))
    assert not found[CROSS] & (found[NOT_CROSS] | found[SELF])
    assert found[KEYS_VALUES] <= found[TEXT_STREAM]
    assert found[KEYS_VALUES] < found[CROSS] < found[ALL]
    assert found[SELF] <= found[SELF_AND_QUERY] < found[ALL]
    assert found[FEED_FORWARD] <= found[BLOCKS]
    assert found[SELF] <= found[BLOCKS]


@pytest.mark.parametrize(
    "name",
    ["auraflow", "flux", "hidream", "hunyuan_video", "lumina2", "mochi", "omnigen2", "qwen_image", "sd3"],
)
def test_only_text_passes_the_text_stream(comfy: Any, name: str) -> None:
    """As many tokens pass it for pictures of any size."""
    from lethe.nodes.host.model import HostModel

    model, clip = tiny_models.tiny_model(name), tiny_models.tiny_clip(name)
    chosen = denoiser_layers(HostModel(model, clip), TEXT_STREAM, families()[name])

    def tokens(side: int) -> dict[str, int]:
        passed: dict[str, int] = {}

        def see(layer: str) -> Any:
            return lambda module, args, output: passed.update({layer: args[0].shape[-2]})

        with hooked((module, see(layer)) for layer, module in chosen.items()):
            _drawing(clip, name, side)(model)
        return passed

    assert set(tokens(8)) == set(chosen)
    assert tokens(8) == tokens(4)


def test_pixels_and_formats_give_the_shape_of_latents(comfy: Any) -> None:
    from lethe.nodes.host.model import HostModel

    shapes = {
        name: HostModel(tiny_models.full_model(name), None, pixels).latent_shape()
        for name, pixels in (("sd1", 256), ("flux2", 512), ("wan", 512), ("ltxv", 0))
    }
    assert shapes == {"sd1": (4, 32, 32), "flux2": (128, 32, 32), "wan": (16, 1, 64, 64), "ltxv": (128, 1, 24, 24)}
    assert HostModel(tiny_models.full_model("sd1"), None).latent_shape() == (4, 64, 64)


def test_the_fused_norm_and_rotation_is_spelled_out_in_training_alone(comfy: Any) -> None:
    import comfy.model_management
    import comfy.quant_ops
    from lethe.nodes.host.gradients import differentiable

    made = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 6, 2, 8, generator=made)
    angles, gains = torch.rand(1, 6, 1, 4, generator=made), torch.rand(2, 8, generator=made)
    pairs = (angles.cos(), -angles.sin(), angles.sin(), angles.cos())
    rotation = torch.stack(pairs, dim=-1).unflatten(-1, (2, 2))
    given: Any = (q, k, rotation, *gains, 1e-6)
    fused: Any = comfy.quant_ops.ck.rms_rope_split_half
    with torch.no_grad():
        wanted = fused(*given)
    with torch.enable_grad(), differentiable(tiny_models.tiny_model("cosmos2").model.diffusion_model):
        assert comfy.model_management.in_training
        q.requires_grad_()
        found = fused(*given)
        found[0].square().sum().backward()
    assert not comfy.model_management.in_training
    assert q.grad is not None
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(found, wanted, strict=True))
