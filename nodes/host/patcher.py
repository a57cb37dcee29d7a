"""Applying an eraser to a MODEL and a CLIP: by a hook on the text features, or as weight patches."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import comfy.lora
import comfy.model_management
import comfy.model_patcher
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from comfy.weight_adapter import LoRAAdapter
from torch import Tensor

from ...erasers.errors import FamilyError, SettingError
from ...erasers.gated import GatedParts
from ...erasers.registry import families
from ...erasers.result import Bottleneck, ContextOperator, Eraser, Member, WeightEdit
from ...erasers.sites import HOOK, WEIGHTS, Family, reading_weights
from .entering import edit_entering
from .gated import add_gated
from .reading import TOKENS, ReadingClip, TokenReader
from .sites import HostSites, model_sites
from .tokens import token_key

KEY = "lethe.erasers"


@dataclass(frozen=True)
class Applied:
    """An eraser that a MODEL carries, its strength, and whether its operators act as a hook or as weights."""

    eraser: Eraser
    strength: float
    form: str


def applied_erasers(model: ModelPatcher) -> tuple[Applied, ...]:
    """The erasers that `model` carries, the newest first."""
    return model.get_attachment(KEY) or ()


def apply_to_model(model: ModelPatcher, eraser: Eraser, strength: float, form: str) -> ModelPatcher:
    """A clone of `model` with an eraser's operators and adapters applied; strength 0 adds nothing.

    Operators that are already there stay, and act after the new one: as later edits of weights do.

    Raises:
        FamilyError: the eraser is for another family, an edit does not fit its weight, or the family cannot be edited
            in this form.
        SettingError: an operator with a bias shall become weights.
    """
    found = model_sites(model)
    eraser.check_family(found.family)
    clone = model.clone()
    if eraser.context:
        found.family.require(form)
    if strength == 0:
        return clone
    clone.set_attachments(KEY, (Applied(eraser, strength, form), *applied_erasers(model)))
    _hook(clone, found.family)
    _add(clone, _edits(eraser.adapters, found), strength)
    if form == WEIGHTS:
        # The operator acts on the features, so on the adapters too: (W + D) (I + M).
        _add(clone, _context_patches(clone, eraser, found), strength)
    if eraser.modules:
        clone.set_model_attn2_output_patch(_beside(eraser.modules, found, strength))
    if eraser.members:
        add_gated(clone, found.family, found.keys, GatedParts(_gated_members(clone, found)))
    return clone


def hook_operators(model: ModelPatcher, family: Family, operators: Mapping[str, ContextOperator]) -> ModelPatcher:
    """A clone of `model` that draws with more edits of its text features, by stream, for a look at them."""
    clone = model.clone()
    _hook(clone, family, operators)
    return clone


def apply_to_clip(clip: Any, eraser: Eraser, strength: float) -> Any:
    """`clip`, or a clone of it: with the eraser's text-encoder part as weight patches, and telling gates its tokens.

    Raises:
        FamilyError: the CLIP lacks a text encoder or a weight that the eraser edits.
    """
    if strength == 0:
        return clip
    if any(member.gate.reads_tokens for member in eraser.members):
        parts = families()[eraser.recipe.family].stream.split("|")
        clip = ReadingClip.of(clip, TOKENS, TokenReader(tuple(token_key(part.split("+")[-1]) for part in parts)))
    if not eraser.text_encoder:
        return clip
    shapes = {name: tuple(value.shape) for name, value in clip.patcher.model_state_dict().items()}
    patches = {}
    for name, edit in eraser.text_encoder.items():
        stream, _, rest = name.partition(".")
        key = f"{stream}.transformer.{rest}"
        if key not in shapes:
            raise FamilyError(f"This CLIP has no weight '{key}'.", "Connect the CLIP that the eraser was made for.")
        patches[key] = _patch(key, edit, shapes[key])
    clone = clip.clone()
    _add(clone, patches, strength)
    return clone


def effective_weight(patcher: ModelPatcher, key: str) -> Tensor:
    """A weight in float32 on the CPU: base weight plus the patches of `patcher`, loaded or not, quantised or not."""
    weight, _, convert = comfy.model_patcher.get_key_weight(patcher.model, key)
    if key in patcher.backup:
        weight = patcher.backup[key].weight
    weight = comfy.model_management.cast_to_device(weight, torch.device("cpu"), torch.float32, copy=True)
    if convert is not None:
        weight = convert(weight, inplace=True)
    return comfy.lora.calculate_weight(patcher.patches.get(key, []), weight, key)


def _beside(modules: Mapping[str, Bottleneck], found: HostSites, strength: float) -> Callable[..., Tensor]:
    """The patch that adds small networks to what cross-attentions give.

    Raises:
        FamilyError: the model has no such cross-attention, or the host names no place for it.
    """
    places = {_block_of(found.key(f"{name}.to_out.0.weight")): own for name, own in modules.items()}
    moved: dict[tuple[object, torch.device], Bottleneck] = {}

    def patch(n: Tensor, extra_options: dict[str, Any]) -> Tensor:
        block = extra_options.get("block")
        place = None if block is None else (block[0], block[1], extra_options.get("block_index", 0))
        if place not in places:
            return n
        if (place, n.device) not in moved:
            moved[place, n.device] = places[place].to(n.device)
        return moved[place, n.device].apply(n, strength)

    return patch


def _block_of(key: str) -> tuple[str, int, int]:
    """What the host calls the transformer block of a weight: its part, its number there, and its own in the row."""
    found = re.search(r"\.(input|middle|output)_blocks?\.(\d+)\..*transformer_blocks\.(\d+)\.", key)
    if found is None:
        raise FamilyError(f"This host has no place for an eraser beside '{key}'.", "Use a UNet, such as SD 1 or SDXL.")
    return found[1], 0 if found[1] == "middle" else int(found[2]), int(found[3])


def _gated_members(model: ModelPatcher, found: HostSites) -> list[tuple[Member, float]]:
    """Every member of every eraser that a MODEL carries, the newest first; FamilyError where an edit does not fit."""
    members = [(member, entry.strength) for entry in applied_erasers(model) for member in entry.eraser.members]
    for member, _ in members:
        for name, edit in member.eraser.adapters.items():
            found.key(name)
            edit.check_shape(found.shapes[name])
        for name in member.eraser.modules:
            found.key(f"{name}.to_out.0.weight")
    return members


def _edits(adapters: Mapping[str, WeightEdit], found: HostSites) -> dict[str, Any]:
    return {found.key(name): _patch(found.key(name), edit, found.shapes[name]) for name, edit in adapters.items()}


def _context_patches(model: ModelPatcher, eraser: Eraser, found: HostSites) -> dict[str, Any]:
    """W (I + M) as a low-rank patch on every weight that reads the operators' features."""
    patches = {}
    for stream, operator in eraser.context.items():
        if operator.bias is not None:
            raise SettingError("This eraser shifts the text features by a bias.", "Apply it as a hook.")
        for key in (found.key(name) for name in reading_weights(found.shapes, found.family, stream)):
            up, down = operator.factors(effective_weight(model, key))
            patches[key] = _low_rank_patch(key, up, down)
    return patches


def _patch(key: str, edit: WeightEdit, shape: tuple[int, ...]) -> Any:
    edit.check_shape(shape)
    if edit.up is not None and edit.down is not None:
        return _low_rank_patch(key, edit.up, edit.down)
    return ("diff", (edit.delta(shape),))


def _low_rank_patch(key: str, up: Tensor, down: Tensor) -> LoRAAdapter:
    return LoRAAdapter({key}, (up, down, None, None, None, None))


def _add(patcher: Any, patches: Mapping[str, Any], strength: float) -> None:
    refused = set(patches) - set(patcher.add_patches(patches, strength))
    if refused:
        raise FamilyError(f"The host refused to patch {sorted(refused)[0]}.", "Apply the eraser as a hook.")


def _hook(model: ModelPatcher, family: Family, newest: Mapping[str, ContextOperator] | None = None) -> None:
    """Put the one wrapper of this pack on `model`, for the erasers it carries and `newest` before them."""
    hooked = [entry for entry in applied_erasers(model) if entry.form == HOOK]
    operators = {
        stream: [e.eraser.context[stream].scaled(e.strength) for e in hooked if stream in e.eraser.context]
        for stream in family.widths
    }
    for stream, operator in (newest or {}).items():
        operators[stream].insert(0, operator)
    model.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, KEY)
    if any(operators.values()):
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, _edit_features(family, operators))


def _edit_features(family: Family, operators: Mapping[str, list[ContextOperator]]) -> Callable[..., Tensor]:
    """The wrapper that passes every stream of text features through its operators, the first of each first."""
    moved: dict[tuple[str, torch.device, bool], list[ContextOperator]] = {}

    def edit(features: Tensor, stream: str) -> Tensor:
        key = stream, features.device, torch.is_inference_mode_enabled()
        if key not in moved:
            moved[key] = [operator.to(features.device) for operator in operators.get(stream, ())]
        for operator in moved[key]:
            own = operator.apply(features[..., : operator.width])
            rest = features[..., operator.width :]
            features = torch.cat([own, rest], dim=-1) if rest.shape[-1] else own
        return features

    def wrapper(
        executor: Any, x: Tensor, t: Tensor, c_concat: Any = None, c_crossattn: Any = None, *args: Any, **kwargs: Any
    ) -> Tensor:
        c_crossattn, kwargs = edit_entering(family, c_crossattn, kwargs, edit)
        return executor(x, t, c_concat, c_crossattn, *args, **kwargs)

    return wrapper
