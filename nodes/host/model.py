"""A MODEL with its CLIP as methods see it (erasers/model.py): weights, hooks, sampling, noise predictions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.patcher_extension
import comfy.sample
import comfy.samplers
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ...erasers.errors import FamilyError
from ...erasers.learn.checkpoint import checkpointed
from ...erasers.learn.space import COSMOS, EDM, EPS, FLOW, RAW_V, V, own_space
from ...erasers.model import TextTower, Token
from ...erasers.result import ContextOperator
from ...erasers.sites import reading_weights
from .conditioning import end_token, token_ids
from .gradients import differentiable, spelled_out
from .ordinary import make_ordinary
from .patcher import HOOK, applied_erasers, effective_weight, hook_operators
from .runtime import progress
from .sampling import READINGS, encode_prompt, latent_shape, prompts_at_once
from .sites import HostSites, model_sites

_NOT_TRAINED = (comfy.model_sampling.X0, comfy.model_sampling.IMG_TO_IMG_FLOW)
_KINDS = {
    comfy.model_sampling.CONST: FLOW,
    comfy.model_sampling.COSMOS_RFLOW: COSMOS,
    comfy.model_sampling.EDM: EDM,
    comfy.model_sampling.V_PREDICTION: V,
    comfy.model_sampling.EPS: EPS,
}
"""Classes after those that derive from them."""
_RAW_V = getattr(comfy.model_sampling, "V_PREDICTION_DDPM", None)
if _RAW_V is not None:
    # Hosts before CogVideoX have none.
    _KINDS[_RAW_V] = RAW_V
_BATCH = 8
"""Pictures drawn at a time: few enough for the memory that one at full size leaves."""


class HostModel:
    """The loaded model; fulfils `erasers.model.Model`.

    Args:
        pixels: width and height of the pictures it is asked for; 0 for the family's own.
        stream: the text features that the sites of `weights` read; "" for the family's.
    """

    in_place = True

    def __init__(self, model: ModelPatcher, clip: Any, pixels: int = 0, stream: str = "") -> None:
        self.patcher, self.clip, self.pixels, self.stream = model, clip, pixels, stream

    @cached_property
    def found(self) -> HostSites:
        """What kind of model it is, and its sites; FamilyError where it is of no known family."""
        return model_sites(self.patcher)

    def weights(self) -> Mapping[str, Tensor]:
        family = self.found.family
        stream = self.stream or family.stream
        hooked = [
            entry.eraser.context[stream].scaled(entry.strength)
            for entry in reversed(applied_erasers(self.patcher))
            if entry.form == HOOK and stream in entry.eraser.context
        ]
        found = {}
        for name in reading_weights(self.found.shapes, family, stream):
            weight = self.parameter(name)
            for operator in hooked:
                up, down = operator.factors(weight)
                weight = weight + up @ down
            found[name] = weight
        return found

    def parameter(self, name: str) -> Tensor:
        return effective_weight(self.patcher, self.found.key(name))

    def modules(self, pattern: str) -> Mapping[str, nn.Module]:
        names = [name.removesuffix(".weight") for name in self.found.keys if name.endswith(".weight")]
        keys = {name: self.found.keys[f"{name}.weight"].removesuffix(".weight") for name in names}
        return {name: self.patcher.model.get_submodule(keys[name]) for name in names if re.search(pattern, name)}

    def tower(self) -> TextTower:
        inner = self.clip.cond_stage_model
        stream = getattr(inner, "clip", None)
        if stream is None:
            raise FamilyError(
                "This CLIP holds more than one text encoder.", "This method is for models with one, such as SD 1 and 2."
            )
        encoder = getattr(inner, stream)

        def ids(prompt: str) -> tuple[int, ...]:
            return token_ids(self.clip, prompt)

        def encode(rows: Sequence[Sequence[Token]]) -> tuple[Tensor, Tensor]:
            comfy.model_management.load_models_gpu([self.clip.patcher], force_full_load=True)
            make_ordinary(encoder)
            inner.reset_clip_options()
            if self.clip.layer_idx is not None:
                inner.set_clip_options({"layer": self.clip.layer_idx})
            inner.set_clip_options({"execution_device": self.clip.patcher.load_device})
            states, pooled = encoder.encode([list(row) for row in rows])[:2]
            # Encoders that are no CLIP pool nothing.
            return states.float(), states.new_zeros(len(rows), 0) if pooled is None else pooled.float()

        def decode(ids: Sequence[int]) -> str:
            return self.clip.tokenizer.decode(list(ids)).strip()

        def weight(name: str) -> Tensor:
            return effective_weight(self.clip.patcher, f"{stream}.transformer.{name}")

        return TextTower(stream, encoder.transformer, ids, encode, decode, weight, end_token(self.clip))

    def sample(
        self,
        prompts: list[str],
        steps: int,
        cfg: float,
        seed: int,
        on_step: Callable[[int], None] | None = None,
        operators: Mapping[str, ContextOperator] | None = None,
    ) -> Tensor:
        patcher = hook_operators(self.patcher, self.found.family, operators) if operators else self.patcher
        noise = torch.randn(len(prompts), *self.latent_shape(), generator=torch.Generator().manual_seed(seed))
        against, found = encode_prompt(self.clip, ""), []
        batches = list(zip(_chunks(prompts), noise.split(_BATCH), strict=True))
        with progress(len(batches) * steps) as step:

            def told(index: int, *_: object) -> None:
                step()
                if on_step:
                    on_step(index)

            for chunk, own in batches:
                latent = comfy.sample.sample(
                    patcher,
                    own,
                    steps,
                    cfg,
                    "ddim",
                    "normal",
                    prompts_at_once([encode_prompt(self.clip, prompt) for prompt in chunk]),
                    against,
                    torch.zeros_like(own),
                    callback=told,
                    disable_pbar=True,
                    seed=seed,
                )
                found.append(self.patcher.model.process_latent_in(latent).cpu())
        return torch.cat(found)

    def predict_noise(
        self, latents: Tensor, noise: Tensor, percent: float | Tensor, context: Tensor, cfg: float = 1.0
    ) -> Tensor:
        sampling, device = self.patcher.model.model_sampling, self.patcher.load_device
        highest = float(sampling.sigma_max)
        percents = torch.as_tensor(percent, dtype=torch.float32).expand(len(latents)).tolist()
        sigmas = torch.tensor([min(sampling.percent_to_sigma(p), highest) for p in percents], device=device)
        wide = sigmas.view(-1, *[1] * (latents.ndim - 1))
        x = sampling.noise_scaling(wide, noise.to(device), latents.to(device))
        look = _OneLook(x, sigmas)
        # A guided look is what a sampler's step sees: every hook of the host that guards may use takes part.
        with differentiable(self.patcher.model.diffusion_model):
            comfy.sample.sample_custom(
                self.patcher,
                torch.zeros_like(x),
                cfg,
                look,
                sigmas[:1],
                # Features of no prompt: guards that read tokens have nothing to read.
                [[context, {READINGS: {}}]],
                encode_prompt(self.clip, ""),
                torch.zeros_like(x),
                disable_pbar=True,
                seed=0,
            )
        return ((x - look.denoised) / wide).float().cpu()

    def prediction(self) -> str:
        sampling = self.patcher.get_model_object("model_sampling")
        for base, kind in _KINDS.items():
            if isinstance(sampling, base) and not isinstance(sampling, _NOT_TRAINED):
                return kind
        name = type(sampling).__bases__[-1].__name__
        raise FamilyError(f"{name} predictions cannot be trained.", "Use another model.")

    def level(self, percent: Tensor) -> Tensor:
        sampling = self.patcher.get_model_object("model_sampling")
        highest = float(sampling.sigma_max)
        return torch.tensor([min(float(sampling.percent_to_sigma(p)), highest) for p in percent.tolist()])

    def latent_shape(self) -> tuple[int, ...]:
        side = self.pixels or self.found.family.pixels
        return latent_shape(self.patcher, side, side)

    def device(self) -> torch.device:
        return self.patcher.load_device

    @contextmanager
    def ready(self, checkpoint: bool = False, bf16: bool = False) -> Iterator[None]:
        comfy.model_management.load_models_gpu([self.patcher], force_full_load=True)
        denoiser = self.patcher.model.diffusion_model
        make_ordinary(self.patcher.model)
        with ExitStack() as stack:
            if checkpoint:
                stack.enter_context(checkpointed(denoiser, lambda: spelled_out(denoiser)))
            stack.enter_context(torch.autocast(self.patcher.load_device.type, torch.bfloat16, enabled=bf16))
            stack.enter_context(differentiable(denoiser))
            yield

    def predict(
        self,
        x: Tensor,
        sigma: Tensor,
        context: Tensor,
        pooled: Tensor | None = None,
        beside: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        device = self.patcher.load_device
        x, sigma = x.to(device), sigma.to(device)
        given = {"cross_attn": context, "pooled_output": pooled, **(beside or {})}
        if not beside:
            return self._pass(x, sigma, {name: cond.cond for name, cond in self._conds(x, given).items()})
        # Prompt by prompt, as the host does: some conditions are single figures about a prompt.
        each = [
            {name: None if own is None else own[row : row + 1] for name, own in given.items()} for row in range(len(x))
        ]
        conds = [self._conds(x[row : row + 1], own) for row, own in enumerate(each)]
        first, others = conds[0], conds[1:]
        if all(own.keys() == first.keys() and all(first[n].can_concat(own[n]) for n in own) for own in others):
            found = {name: cond.concat([own[name] for own in others]) for name, cond in first.items()}
            return self._pass(x, sigma, found)
        rows = [
            self._pass(x[row : row + 1], sigma[row : row + 1], {name: cond.cond for name, cond in own.items()})
            for row, own in enumerate(conds)
        ]
        return torch.cat(rows)

    def _pass(self, x: Tensor, sigma: Tensor, found: Mapping[str, Any]) -> Tensor:
        """The prediction under what `_conds` made."""
        options = comfy.model_patcher.create_model_options_clone(self.patcher.model_options)["transformer_options"]
        wrappers = options.setdefault("wrappers", {})
        comfy.patcher_extension.merge_nested_dicts(wrappers, self.patcher.wrappers, copy_dict1=False)
        options |= {"cond_or_uncond": [0], "sigmas": sigma}
        denoised = self.patcher.model.apply_model(x, sigma, transformer_options=options, **found)
        return own_space(self.prediction(), x, sigma, denoised).float().cpu()

    def _conds(self, x: Tensor, given: Mapping[str, Tensor | None]) -> dict[str, Any]:
        """What the model is given beside `x`, as the host makes it of features of as many prompts."""
        device = self.patcher.load_device
        moved = {name: None if own is None else own.to(device) for name, own in given.items()}
        conds = self.patcher.model.extra_conds(
            device=device,
            noise=x,
            latent_image=torch.zeros_like(x),
            width=x.shape[-1] * 8,
            height=x.shape[-2] * 8,
            prompt_type="positive",
            **moved,
        )
        return {name: cond.process_cond(batch_size=len(x), area=None) for name, cond in conds.items()}


class _OneLook(comfy.samplers.Sampler):
    """A sampler that asks the model once, for what it sees in `x` at `sigmas`, and draws nothing."""

    def __init__(self, x: Tensor, sigmas: Tensor) -> None:
        self.x, self.sigmas = x, sigmas
        self.denoised = x

    def sample(self, model_wrap: Any, sigmas: Tensor, extra_args: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        make_ordinary(model_wrap.inner_model)
        self.denoised = model_wrap(self.x, self.sigmas, **extra_args)
        return self.denoised.detach()


def _chunks(prompts: list[str]) -> list[list[str]]:
    return [prompts[i : i + _BATCH] for i in range(0, len(prompts), _BATCH)]
