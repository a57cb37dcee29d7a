"""EMCID (arXiv 2403.13807): many concepts edited in the text encoder's feed-forward layers.

Every name gets a key k, the input of `mlp.fc2` at its last token, and a value z, what the output of the
last edited layer shall be there. Layers are edited in order, what was edited so far staying in place
while the next one is measured:

    dW = R^T K (lam_c Cov + K^T K)^-1,    R = (Z - Zcur) / layers left

Where the official program departs from its derivation, `variant` chooses: its residual subtracts fc2's
own output from a value that is a layer's output (corrected: both are the last edited layer's output),
and its images of the destination are drawn from the source (corrected: from the destination).
Differs from the program in that
- the value can be read off the destination's prompt (`value` destination, our addition: closed form)
  instead of being found by gradient through the denoiser (optimised, as published);
- Cov comes from the prompts to hold instead of 100,000 captions; `shrink` fills the directions that so
  few prompts do not reach, and lam_c starts lower;
- h0 is the mean over the templates, not the first one's (as released: the first one's);
- an empty replacement means the empty prompt's end token, not its start token, whose features are
  outliers in CLIP and would make the edit large. Naming a replacement erases better.
Official code read, not copied: SilentView/EMCID.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.gram import gram_of
from ..algebra.closed_form import Kept, cholesky, finite, solve_ridge, solved_dtype
from ..algebra.context import TEMPLATES
from ..algebra.hooks import Place, Probe, gradients, hooked, shifting
from ..algebra.parameters import AS_RELEASED, templates, variant
from ..errors import ConceptError, FamilyError, NumericsError, SettingError
from ..model import Model
from ..provenance import recipe_of
from ..result import Eraser, WeightEdit
from ..spec import MethodSpec, Parameter, Value
from ..task import Task

DESTINATION, OPTIMISED = "destination", "optimised"
_FC2 = re.compile(r"(^|\.)layers\.(\d+)\.mlp\.fc2$")


class EMCID:
    """Edits of fc2 in the text encoder, one rank per name."""

    spec = MethodSpec(
        name="emcid",
        title="EMCID",
        paper="Xiong et al., Editing Massive Concepts in Text-to-Image Diffusion Models (arXiv 2403.13807)",
        summary="Rewrites what the text encoder's feed-forward layers recall at the concept's last word.",
        families=("demo", "sd1", "sd2"),
        parameters=(
            templates("object"),
            Parameter(
                "first_layer",
                0,
                "First edited layer of the text encoder, from 0; negative counts from the end. Start at 0, for things; "
                "7 of 12 for artists, as published. Higher edits fewer layers and erases less.",
                minimum=-64,
                maximum=63,
                unit="layers",
            ),
            Parameter(
                "last_layer",
                -2,
                "Last edited layer; negative counts from the end. Start at -2, all but the last, as published. Lower "
                "edits fewer layers and erases less.",
                minimum=-64,
                maximum=63,
                unit="layers",
            ),
            Parameter(
                "lam_c",
                100.0,
                "Weight of the held prompts' covariance, in tokens. Start at 100; the programs' is 4000 to 10000, with "
                "100,000 captions. Higher erases less and keeps more.",
                minimum=1e-3,
                maximum=1e6,
                step=1.0,
            ),
            Parameter(
                "shrink",
                0.01,
                "Ridge on the covariance, as a share of its mean diagonal: it stands in for captions that a short list "
                "of prompts lacks. Start at 0.01; 0 as published needs more tokens held than fc2 is wide.",
                step=0.001,
            ),
            Parameter(
                "edit_weight",
                0.5,
                "Weight of what is erased against what is held, from 0.01 to 0.99. 0.5 is neutral.",
                minimum=0.01,
                maximum=0.99,
                advanced=True,
            ),
            Parameter(
                "value",
                DESTINATION,
                "What the concept's last word shall become: the replacement's own features (destination, at once) or "
                "ones found by gradient through the denoiser (optimised, as published, minutes).",
                choices=(DESTINATION, OPTIMISED),
            ),
            variant(
                "it subtracts fc2's output from a value that is a layer's output, starts from the first template "
                "alone, and draws the optimised value's images from the concept."
            ),
            Parameter(
                "steps", 200, "Steps of the optimised value, 1 to 2000. Start at 200.", 1, 2000, 1, advanced=True
            ),
            Parameter(
                "lr", 0.2, "Learning rate of the optimised value, 0.0001 to 10. Start at 0.2.", 1e-4, 10.0,
                advanced=True,
            ),
            Parameter(
                "clamp",
                1.5,
                "Longest move of the optimised value, in lengths of the features it starts from, 0.01 to 10. Start at "
                "1.5.",
                0.01,
                10.0,
                advanced=True,
            ),
            Parameter(
                "wd", 5e-4, "Weight decay of the optimised value, 0 to 10. Start at 0.0005.", step=1e-4, maximum=10.0,
                advanced=True,
            ),
            Parameter(
                "align", 0.01, "Weight of the pooled features in the optimised value, 0 to 10. Start at 0.01.",
                maximum=10.0, advanced=True,
            ),
            Parameter(
                "sample_steps", 20, "Sampling steps of the optimised value's images, 1 to 200. Start at 20.", 1, 200, 1,
                unit="steps", advanced=True,
            ),
            Parameter(
                "cfg", 5.0, "Guidance of the optimised value's images, 1 to 30. Start at 5; 7.5 for SD.",
                1.0, 30.0, 0.1, advanced=True,
            ),
            Parameter("seed", 0, "Seed of the optimised value's noise.", 0, 2**31 - 1, 1, advanced=True),
        ),
    )  # fmt: skip

    @torch.inference_mode(False)
    def fit(self, task: Task, settings: Mapping[str, Value]) -> Eraser:
        """Measure keys, values and covariances on the text encoder, and solve layer by layer.

        Takes one pass over the held prompts, and two over the concept's per edited layer.

        Raises:
            ConceptError: there is nothing to erase.
            FamilyError: the task has no model, or its text encoder no such layers.
            SettingError: the layers do not exist.
            NumericsError: features are not finite, or a system is singular.
        """
        frames = TEMPLATES[str(settings["templates"])]
        names = _names_of(task, frames)
        probe = Probe(task.loaded().tower())
        layers = _layers_of(probe.tower.module, settings)
        moments = _covariances(probe, layers, _captions(task.held, frames))
        if settings["value"] == OPTIMISED:
            goal = torch.stack([_optimise(task, probe, _block(layers), name, settings) for name in names])
        else:
            targets = [place for name in names for place in name.targets]
            goal = _averaged(probe.read(targets, _block(layers))[1], len(frames))
        edits = _edit_layers(probe, layers, names, goal, moments, settings)
        return Eraser(recipe_of(self.spec.name, settings, task, int(settings["seed"])), text_encoder=edits)


def edit_layer(
    keys: Tensor, residual: Tensor, moment: Kept, settings: Mapping[str, Value], weights: Tensor | None = None
) -> WeightEdit:
    """Equation 6.1 for one layer, on plain tensors.

    Args:
        keys: K, `[n, k]`, one input of fc2 per concept.
        residual: R, `[n, o]`, what fc2's output shall gain there.
        moment: Cov, the mean outer product `[k, k]` of fc2's inputs over what is held; its Cholesky
            factor is kept for the next call.
        settings: checked settings (`EMCID.spec.settings({...})`); lam_c, shrink and edit_weight count.
        weights: `[n]` importance of the concepts; ones when None.

    Returns:
        dW `[o, k]`, in factors of rank n while n < k, else dense; float64 for float64 keys, else float32.

    Raises:
        NumericsError: shapes disagree, values are not finite, or the system is singular.
    """
    width = len(moment.gram)
    if keys.ndim != 2 or residual.ndim != 2 or keys.shape[1] != width or len(keys) != len(residual) or not len(keys):
        raise NumericsError(
            f"Keys and residuals have shapes {tuple(keys.shape)} and {tuple(residual.shape)}.",
            f"They have to be [n, {width}] and [n, o], n at least 1.",
        )
    finite(erase=keys, replace=residual, preserve=moment.gram)
    share, dtype = float(settings["edit_weight"]), solved_dtype(keys)
    ones = torch.ones(len(keys), dtype=torch.float64)
    root = ((ones if weights is None else weights.double()) * share / 0.5).sqrt()[:, None]
    k, r = keys.double() * root, residual.double() * root
    lam = float(settings["lam_c"]) * (1 - share) / 0.5
    ridge = float(settings["shrink"]) * float(moment.gram.diagonal().mean())
    if len(k) >= width:
        dense = solve_ridge(lam * moment.gram + gram_of(k), k.T @ r, lam * ridge).T
        return WeightEdit(dense=dense.contiguous().to(dtype))
    # Woodbury: K A^-1 = (I + K C^-1 K^T)^-1 K C^-1 with C = lam (Cov + ridge I).
    base = torch.cholesky_solve(k.T, moment.factor(ridge)).T / lam
    inner = base @ k.T
    inner.diagonal().add_(1.0)
    down = torch.cholesky_solve(base, cholesky(inner, lam))
    return WeightEdit(down=down.to(dtype), up=r.T.contiguous().to(dtype))


@dataclass(frozen=True)
class _Name:
    """One name to erase: where it stands in its sentences, where what replaces it does, and its weight."""

    sources: tuple[Place, ...]
    targets: tuple[Place, ...]
    weight: float


@dataclass
class _Moment:
    """Rows that one layer saw, folded into their Gram matrix once they are more than their width."""

    rows: list[Tensor] = field(default_factory=list)
    gram: Tensor | float = 0.0
    count: int = 0

    def add(self, rows: Tensor) -> None:
        self.rows.append(rows)
        self.count += len(rows)
        if sum(map(len, self.rows)) > rows.shape[1]:
            self._fold()

    def mean(self) -> Kept:
        """The uncentred covariance, `[k, k]` float64."""
        self._fold()
        return Kept(torch.as_tensor(self.gram) / self.count)

    def _fold(self) -> None:
        if self.rows:
            self.gram, self.rows = self.gram + gram_of(torch.cat(self.rows)), []


def _names_of(task: Task, frames: tuple[str, ...]) -> list[_Name]:
    """Every name of every concept, in every frame; an empty replacement is the empty prompt."""
    if not task.concepts.erase:
        raise ConceptError("There is no concept to erase.", "Connect a 'Concept to Erase' node.")

    def framed(phrase: str) -> tuple[Place, ...]:
        return tuple(Place(frame.format(phrase) if phrase else "", phrase) for frame in frames)

    return [
        _Name(framed(name), framed(concept.replacement), concept.weight)
        for concept in task.concepts.erase
        for name in concept.names
    ]


def _layers_of(module: nn.Module, settings: Mapping[str, Value]) -> list[str]:
    """Names of the fc2 to edit, in order; FamilyError or SettingError where there are none."""
    matches = [match for match in (_FC2.search(name) for name, _ in module.named_modules()) if match]
    found = [match.string for match in sorted(matches, key=lambda match: int(match[2]))]
    if not found:
        raise FamilyError("This text encoder has no layers with an 'mlp.fc2'.", "EMCID edits CLIP text encoders.")
    ends = [int(settings[end]) for end in ("first_layer", "last_layer")]
    first, last = (place + len(found) if place < 0 else place for place in ends)
    if not 0 <= first <= last < len(found):
        raise SettingError(
            f"There are no layers from {ends[0]} to {ends[1]} in this text encoder.",
            f"It has layers 0 to {len(found) - 1}.",
        )
    return found[first : last + 1]


def _block(layers: list[str]) -> str:
    """The layer whose output is the value: the last edited one."""
    return layers[-1].removesuffix(".mlp.fc2")


def _captions(held: list[str], frames: tuple[str, ...]) -> list[str]:
    """The prompts to hold, bare and in one frame each, in turn."""
    return list(dict.fromkeys([*held, *(frames[i % len(frames)].format(p) for i, p in enumerate(held) if p)]))


def _covariances(probe: Probe, layers: list[str], captions: list[str]) -> dict[str, _Moment]:
    """What each edited layer sees of the captions, padding left out."""
    moments = {name: _Moment() for name in layers}
    for batch, seen in probe.watch(captions, layers):
        ends = torch.tensor([probe.tower.position(prompt, "") + 1 for prompt in batch])
        for name, passed in seen.items():
            states = passed.inputs
            finite(preserve=states)
            moments[name].add(states[torch.arange(states.shape[1]) <= ends[:, None]])
    return moments


def _edit_layers(
    probe: Probe,
    layers: list[str],
    names: list[_Name],
    goal: Tensor,
    moments: dict[str, _Moment],
    settings: Mapping[str, Value],
) -> dict[str, WeightEdit]:
    """Edit the layers in order towards `goal` `[n, o]`; returns the edits by parameter name."""
    weights = torch.tensor([name.weight for name in names], dtype=torch.float64)
    sources, frames = [place for name in names for place in name.sources], len(names[0].sources)
    for index, layer in enumerate(layers):
        keys, current = probe.read(sources, layer)
        if settings["variant"] != AS_RELEASED:
            _, current = probe.read(sources, _block(layers))
        residual = (goal - _averaged(current, frames)) / (len(layers) - index)
        moment = moments.pop(layer).mean()
        probe.edits[layer] = edit_layer(_averaged(keys, frames), residual, moment, settings, weights)
    return {f"{probe.tower.stream}.{layer}.weight": edit for layer, edit in probe.edits.items()}


def _optimise(task: Task, probe: Probe, block: str, name: _Name, settings: Mapping[str, Value]) -> Tensor:
    """Stage 1: the value `[o]` with which the denoiser sees what it sees for the replacement."""
    released, seed = settings["variant"] == AS_RELEASED, int(settings["seed"])
    texts, targets = ([place.text for place in side] for side in (name.sources, name.targets))
    places = torch.tensor([probe.position(place) for place in name.sources])
    start = probe.read(name.sources, block)[1]
    start = start[0] if released else start.mean(0)
    drawn = texts if released else targets
    latents = task.loaded().sample(drawn, int(settings["sample_steps"]), float(settings["cfg"]), seed)
    lesson = _Lesson(task.loaded(), probe, latents.clone(), targets, settings)
    delta = torch.zeros_like(start, requires_grad=True)
    optimizer = torch.optim.Adam([delta], lr=float(settings["lr"]))
    steps = int(settings["steps"])
    for _ in task.track(range(steps), steps):
        optimizer.zero_grad()
        with gradients(task.loaded().in_place):
            with hooked(probe.active({block: shifting(delta, places)})):
                context, pooled = probe.tower.run(texts)
            decay = float(settings["wd"]) * delta.norm() / start.square().sum()
            (lesson.loss(context, pooled) + decay).backward()
        optimizer.step()
        with torch.no_grad():
            longest = float(settings["clamp"]) * start.norm()
            delta.mul_((longest / delta.norm().clamp_min(1e-12)).clamp(max=1.0))
    return (start + delta).detach()


class _Lesson:
    """What the edited prompts are compared with: how the denoiser and the pooled features take the replacement."""

    def __init__(
        self, model: Model, probe: Probe, latents: Tensor, targets: list[str], settings: Mapping[str, Value]
    ) -> None:
        self.model, self.latents, self.align = model, latents, float(settings["align"])
        self.generator = torch.Generator().manual_seed(int(settings["seed"]))
        with torch.no_grad():
            self.context, self.pooled = probe.tower.run(targets)

    def loss(self, context: Tensor, pooled: Tensor) -> Tensor:
        """For the edited prompts' states `[n, tokens, d]` and pooled features `[n, p]`, at a time drawn anew."""
        noise = torch.randn(self.latents.shape, generator=self.generator).to(self.latents)
        percent = float(torch.rand((), generator=self.generator))
        with torch.no_grad():
            wanted = self.model.predict_noise(self.latents, noise, percent, self.context)
        loss = F.mse_loss(self.model.predict_noise(self.latents, noise, percent, context), wanted)
        if pooled.numel():
            loss = loss + self.align * F.mse_loss(pooled, self.pooled).to(loss)
        return loss


def _averaged(rows: Tensor, frames: int) -> Tensor:
    """Means of every `frames` rows."""
    return rows.unflatten(0, (-1, frames)).mean(1)


METHOD = EMCID()
