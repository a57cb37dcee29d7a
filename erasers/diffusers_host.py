"""A diffusers pipeline as a host: its sites, its text encoder, and erasers written into its weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from .algebra.hooks import Hook, Output, hooked, states_of
from .algebra.written import written
from .errors import FamilyError, SettingError
from .gated import AtWork, GatedParts
from .learn.checkpoint import checkpointed
from .learn.space import EPS, V, wide
from .model import TextTower, Token, is_vector
from .painter import Shot, Source, Spelling, alike
from .registry import families
from .result import Bottleneck, ContextOperator, Eraser
from .sites import Family, Site, find_sites, pooled_site
from .task import Encode, EncodedPrompt, remembering

_BATCH = 50


@dataclass(frozen=True, eq=False)
class _Said:
    """Text features `[n, tokens, d]`, and the token ids of each row; empty where they are not known."""

    states: Tensor
    ids: Sequence[Sequence[int]] = ()

    def split(self, size: int) -> list[_Said]:
        starts = range(0, len(self.states), size)
        return [_Said(self.states[start : start + size], self.ids[start : start + size]) for start in starts]

    def repeated(self, count: int) -> _Said:
        return _Said(self.states.expand(count, -1, -1), [*self.ids] * count)

    @classmethod
    def joined(cls, parts: Sequence[_Said]) -> _Said:
        ids = [own for part in parts for own in (part.ids or [()] * len(part.states))]
        return cls(torch.cat([part.states for part in parts]), ids)


class DiffusersModel:
    """A UNet with one CLIP text encoder, as diffusers and transformers load them (model.Model).

    Args:
        unet, scheduler, tokenizer, text_model: the parts of a StableDiffusionPipeline.
        autocast: sample in bfloat16; twice as fast on CPUs with matrix units.
        operator: a context operator that the text features pass through on their way into sampling.
        gated: erasers behind gates, which are asked about every prompt.
    """

    in_place = False

    def __init__(
        self,
        unet: Any,
        scheduler: Any,
        tokenizer: Any,
        text_model: Any,
        autocast: bool = False,
        operator: ContextOperator | None = None,
        gated: GatedParts | None = None,
    ) -> None:
        self.unet, self.scheduler, self.tokenizer, self.text_model = unet, scheduler, tokenizer, text_model
        self.autocast, self.operator, self.gated = autocast, operator, gated
        self.family, self.sites = unet_sites(unet)
        self.encode = text_encoder(tokenizer, text_model)

    def weights(self) -> Mapping[str, Tensor]:
        found = {site.name: self.parameter(site.name) for site in self.sites}
        if self.operator is None:
            return found
        folded = {name: self.operator.factors(weight) for name, weight in found.items()}
        return {name: weight + folded[name][0] @ folded[name][1] for name, weight in found.items()}

    def parameter(self, name: str) -> Tensor:
        return self.unet.get_parameter(name).detach().float().cpu()

    def modules(self, pattern: str) -> Mapping[str, nn.Module]:
        return {name: module for name, module in self.unet.named_modules() if re.search(pattern, name)}

    def tower(self) -> TextTower:
        module, tokenizer = named_tower(self.text_model), self.tokenizer
        table = module.get_submodule("text_model.embeddings.token_embedding")

        def ids(prompt: str) -> list[int]:
            return _token_ids(tokenizer, [prompt])[0].tolist()

        def encode(rows: Sequence[Sequence[Token]]) -> tuple[Tensor, Tensor]:
            vectors = [(i, j, token) for i, row in enumerate(rows) for j, token in enumerate(row) if is_vector(token)]
            stand_in = tokenizer.unk_token_id or 0
            numbers = torch.tensor([[stand_in if is_vector(token) else int(token) for token in row] for row in rows])

            def splice(_module: nn.Module, _args: tuple[Tensor, ...], output: Output) -> Output:
                assert isinstance(output, Tensor)
                embedded = output.clone()
                for i, j, vector in vectors:
                    embedded[i, j] = vector.to(embedded)
                return embedded

            with hooked([(table, splice)]):
                out = self.text_model(numbers)
            return out.last_hidden_state.float(), out.pooler_output.float()

        def weight(name: str) -> Tensor:
            return module.get_parameter(name).detach().float().cpu()

        def decode(ids: Sequence[int]) -> str:
            return tokenizer.decode(list(ids), skip_special_tokens=True).strip()

        return TextTower(self.family.stream, module, ids, encode, decode, weight, tokenizer.eos_token_id)

    @torch.no_grad()
    def sample(
        self,
        prompts: list[str],
        steps: int,
        cfg: float,
        seed: int,
        on_step: Callable[[int], None] | None = None,
        operators: Mapping[str, ContextOperator] | None = None,
    ) -> Tensor:
        operator = (operators or {}).get(self.family.stream)
        said = _Said(self.context(prompts, operator), _token_ids(self.tokenizer, prompts).tolist())
        noise = torch.randn(len(prompts), *self._shape(), generator=torch.Generator().manual_seed(seed))
        empty = self._empty(operator)
        batches = zip(noise.split(_BATCH), said.split(_BATCH), strict=True)
        return torch.cat([self._sample(x, [(1.0, rows)], empty, steps, cfg, on_step) for x, rows in batches])

    @torch.no_grad()
    def sample_shots(self, shots: Sequence[Shot], steps: int, cfg: float) -> Tensor:
        """Draw one latent per shot, `[n, c, h, w]`, in batches of those that differ only in sources and seeds."""
        found, empty = torch.empty(len(shots), *self._shape()), self._empty()
        for places in alike(shots, _BATCH):
            chosen = [shots[place] for place in places]
            columns = zip(*(shot.cue.parts for shot in chosen), strict=True)
            parts = [(column[0][0], self._features([source for _, source in column])) for column in columns]
            noise = [torch.randn(self._shape(), generator=torch.Generator().manual_seed(s.seed)) for s in chosen]
            own = cfg if chosen[0].cfg is None else chosen[0].cfg
            found[places] = self._sample(torch.stack(noise), parts, empty, steps, own)
        return found

    def context(self, prompts: list[str], operator: ContextOperator | None = None) -> Tensor:
        """The text features of prompts as they leave the text encoder and `operator`, `[n, tokens, d]`."""
        with torch.no_grad():
            batches = [self.tower().run(prompts[i : i + _BATCH])[0] for i in range(0, len(prompts), _BATCH)]
            return torch.cat(batches) if operator is None else operator.apply(torch.cat(batches))

    def predict_noise(
        self, latents: Tensor, noise: Tensor, percent: float | Tensor, context: Tensor, cfg: float = 1.0
    ) -> Tensor:
        if self.scheduler.config["prediction_type"] != "epsilon":
            raise FamilyError(
                f"This scheduler predicts {self.scheduler.config['prediction_type']}, not the noise.",
                "Use a pipeline whose scheduler predicts epsilon.",
            )
        last = self.scheduler.config["num_train_timesteps"] - 1
        time = ((1 - torch.as_tensor(percent)) * last).round().long().expand(len(latents))
        x = self.scheduler.add_noise(latents, noise, time)
        said = self._see(x, time, context, self._at_work(_Said(context)))
        if cfg == 1:
            return said
        empty = _Said(self.context([""]).expand_as(context))
        unsaid = self._see(x, time, empty.states, self._at_work(empty))
        return unsaid + cfg * (said - unsaid)

    def prediction(self) -> str:
        kinds = {"epsilon": EPS, "v_prediction": V}
        kind = self.scheduler.config["prediction_type"]
        if kind not in kinds:
            raise FamilyError(f"This scheduler predicts {kind}.", f"Use one that predicts {' or '.join(kinds)}.")
        return kinds[kind]

    def level(self, percent: Tensor) -> Tensor:
        time = (1 - percent) * (len(self._levels) - 1)
        low = time.floor().long()
        return torch.lerp(self._levels[low], self._levels[(low + 1).clamp(max=len(self._levels) - 1)], time - low).exp()

    def latent_shape(self) -> tuple[int, int, int]:
        return self._shape()

    def device(self) -> torch.device:
        return self.unet.device

    @contextmanager
    def ready(self, checkpoint: bool = False, bf16: bool = False) -> Iterator[None]:
        parameters = [*self.unet.parameters(), *self.text_model.parameters()]
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        with ExitStack() as stack:
            for parameter in trained:
                parameter.requires_grad_(False)
                stack.callback(parameter.requires_grad_, True)
            if checkpoint:
                stack.enter_context(checkpointed(self.unet))
            device = self.unet.device.type
            stack.enter_context(torch.autocast(device, torch.bfloat16, enabled=bf16))
            yield

    def predict(
        self,
        x: Tensor,
        sigma: Tensor,
        context: Tensor,
        pooled: Tensor | None = None,
        beside: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        scaled = x / (1 + wide(sigma, x) ** 2).sqrt()
        return self._see(scaled, self._time(sigma), context, self._at_work(_Said(context))).float().cpu()

    @cached_property
    def _levels(self) -> Tensor:
        """The logarithm of sigma at every time, rising, `[t]`."""
        alphas = self.scheduler.alphas_cumprod
        return ((1 - alphas) / alphas).sqrt().log()

    def _time(self, sigma: Tensor) -> Tensor:
        """The time, between whole ones too, that belongs to levels `[n]`; the reverse of `level`."""
        log = sigma.log()
        high = torch.searchsorted(self._levels, log).clamp(1, len(self._levels) - 1)
        low = high - 1
        share = (log - self._levels[low]) / (self._levels[high] - self._levels[low])
        return (low + share.clamp(0, 1)).to(torch.float32)

    def _see(self, x: Tensor, time: Tensor, context: Tensor, at_work: AtWork | None) -> Tensor:
        """What the UNet predicts from text features as they leave the text encoder, with all erasers at work."""
        hooks, device, dtype = [], self.unet.device, self.unet.dtype
        context = context.to(device, dtype)
        if at_work is not None:
            context = at_work.edit(context, self.family.stream)
            hooks = at_work.hooks(self.unet.get_submodule)
        if self.operator is not None:
            context = self.operator.apply(context)
        with hooked(hooks):
            return self.unet(x.to(device, dtype), time.to(device), context).sample.to(x.device)

    def _at_work(self, said: _Said) -> AtWork | None:
        """The gated erasers that act on rows of text features; None where all gates are shut."""
        if self.gated is None:
            return None
        openness = self.gated.openness(said.states, said.ids)
        return self.gated.at_work(openness, self.unet.device, self.unet.dtype)

    def _empty(self, operator: ContextOperator | None = None) -> _Said:
        return _Said(self.context([""], operator), _token_ids(self.tokenizer, [""]).tolist())

    def _shape(self) -> tuple[int, int, int]:
        size = self.unet.config["sample_size"]
        return self.unet.config["in_channels"], size, size

    def _features(self, sources: Sequence[Source]) -> _Said:
        tower = self.tower()
        spelled = [s.tokens if isinstance(s, Spelling) else tower.ids(s) for s in sources if not isinstance(s, Tensor)]
        states, tokens = iter(tower.encode(spelled)[0] if spelled else ()), iter(spelled)
        known = [() if isinstance(s, Tensor) else [t for t in next(tokens) if isinstance(t, int)] for s in sources]
        return _Said(torch.stack([s if isinstance(s, Tensor) else next(states) for s in sources]), known)

    def _sample(
        self,
        x: Tensor,
        parts: Sequence[tuple[float, _Said]],
        empty: _Said,
        steps: int,
        cfg: float,
        on_step: Callable[[int], None] | None = None,
    ) -> Tensor:
        """DDIM from noise `[n, c, h, w]`, with features `[n, tokens, d]` weighed as a `Cue` says."""
        features = [*(said for _, said in parts), empty.repeated(len(x))]
        said = _Said.joined(features)
        at_work = self._at_work(said)
        self.scheduler.set_timesteps(steps)
        for step, time in enumerate(self.scheduler.timesteps):
            with torch.autocast(self.unet.device.type, torch.bfloat16, enabled=self.autocast):
                seen = self._see(torch.cat([x] * len(features)), time, said.states, at_work)
            *saw, unsaid = seen.float().split(len(x))
            pull = sum(weight * (noise - unsaid) for (weight, _), noise in zip(parts, saw, strict=True))
            x = self.scheduler.step(unsaid + cfg * pull, time, x).prev_sample
            if on_step is not None:
                on_step(step)
        return x


def unet_sites(unet: nn.Module) -> tuple[Family, tuple[Site, ...]]:
    """Recognise a diffusers UNet and list its sites; FamilyError where it has none that are known."""
    shapes = {name: tuple(value.shape) for name, value in unet.named_parameters()}
    return find_sites(shapes, families().values())


def text_encoder(tokenizer: Any, model: Any) -> Encode:
    """An encoder over a CLIP tokenizer and CLIPTextModel: final states of all positions."""

    @torch.no_grad()
    def encode(prompts: list[str]) -> list[EncodedPrompt]:
        ids = _token_ids(tokenizer, prompts)
        ends = (ids == tokenizer.eos_token_id).int().argmax(1)
        states = model(ids).last_hidden_state.float()
        rows = zip(prompts, states, ends.tolist(), ids.tolist(), strict=True)
        return [EncodedPrompt(prompt, state, end - 1, tuple(row)) for prompt, state, end, row in rows]

    return remembering(encode)


def named_tower(model: nn.Module) -> nn.Module:
    """A CLIPTextModel under the names of the checkpoints, `text_model.encoder...`, which transformers 5 shortened."""
    return model if hasattr(model, "text_model") else nn.ModuleDict({"text_model": model})


@torch.no_grad()
def write_eraser(
    unet: nn.Module, eraser: Eraser, strength: float = 1.0, context: bool = True, gated: bool = True
) -> dict[str, Tensor]:
    """The edited weights of the denoiser, by parameter name; `unet` itself is not changed.

    Load them with `unet.load_state_dict(weights, strict=False)`.

    Args:
        context: whether context operators are written into every site, as `(W + s D) (I + s M)`.
        gated: whether members behind gates are to be written as well, which weights cannot hold; else the caller
            runs them (gated.py).

    Raises:
        FamilyError: the eraser is for another family, or an edit does not fit its weight.
        SettingError: an operator has a bias, which projections without one cannot hold, or there are gated members.
    """
    if gated and eraser.members:
        raise SettingError("This eraser holds parts that open by the prompt.", "Give them to DiffusersModel as gated.")
    family, sites = unet_sites(unet)
    eraser.check_family(family)
    parameters = dict(unet.named_parameters())
    shapes = {name: tuple(value.shape) for name, value in parameters.items()}
    operators: dict[str, ContextOperator] = {}
    for stream, operator in eraser.context.items() if context else ():
        if operator.bias is not None:
            raise SettingError("This eraser shifts the text features by a bias.", "Apply it as a context operator.")
        names = [s.name for s in sites] if stream == family.stream else [pooled_site(shapes, family)]
        operators |= dict.fromkeys(names, operator)
    edited = written(parameters, {n: edit for n, edit in eraser.adapters.items() if n not in operators}, strength)
    for name, operator in operators.items():
        found = parameters[name].float()
        if name in eraser.adapters:
            found = found + strength * eraser.adapters[name].delta(shapes[name])
        edited[name] = torch.addmm(found, *operator.factors(found), alpha=strength).to(parameters[name].dtype)
    return edited


def attach_modules(unet: nn.Module, eraser: Eraser, strength: float = 1.0) -> list[Any]:
    """Put an eraser's small networks beside the layers of `unet`, by forward hooks.

    Returns:
        The hooks' handles; `remove` takes each away.

    Raises:
        FamilyError: the model has no such layer.
    """
    layers = dict(unet.named_modules())
    missing = sorted(f"{name}.to_out.0" for name in eraser.modules if f"{name}.to_out.0" not in layers)
    if missing:
        raise FamilyError(f"The model has no layer '{missing[0]}'.", "Load the model that the eraser was made for.")

    def beside(own: Bottleneck) -> Hook:
        return lambda _module, _args, output: own.apply(states_of(output), strength)

    placed = [(layers[f"{name}.to_out.0"], beside(own)) for name, own in eraser.modules.items()]
    return [layer.register_forward_hook(hook) for layer, hook in placed]


@torch.no_grad()
def write_text_edits(model: nn.Module, stream: str, eraser: Eraser, strength: float = 1.0) -> dict[str, Tensor]:
    """The edited weights of the text encoder `stream`, under the names of `named_tower`; `model` is not changed.

    Load them with `named_tower(model).load_state_dict(weights, strict=False)`.

    Raises:
        FamilyError: the text encoder has no such weight, or an edit does not fit it.
    """
    edits = {name.removeprefix(f"{stream}."): edit for name, edit in eraser.text_encoder.items()}
    return written(dict(named_tower(model).named_parameters()), edits, strength)


def _token_ids(tokenizer: Any, prompts: list[str]) -> Tensor:
    return tokenizer(
        prompts, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    ).input_ids
