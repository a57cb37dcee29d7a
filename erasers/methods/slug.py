"""SLUG, single layer unlearning gradient (arXiv 2407.11867): one gradient, one layer, one scalar search.

With g_f the mean gradient of 1 - cos(picture, text) over the concept's pictures and g_r that of the
contrastive loss over what is held, each weight matrix has

    importance I = |g_f| / |W|,    alignment a = |cos(g_f, g_r)|

The deepest layer on the Pareto front (no other matrix is both less aligned and more important) takes
W <- W + eta g_f, and eta is searched: doubled while the concept is still
recognised, bisected once it is gone.

Differs from the official programs in that
- there is no `variant`: they disagree with each other about the step's sign, let gradients pile up over
  batches and from the forget into the retain pass, and replace the retained captions by the concept's
  name. Here a step raises 1 - cos by definition, gradients are means, and captions are their pictures';
- pictures are drawn by the untouched model instead of taken from LAION;
- losing what is held bounds the search as losing the concept does, so that it cannot stall; `margin`
  goes on from its result; one scalar serves the chosen matrices, measured in their joint norms;
- the front is never empty, so there is no fallback layer; layers that the model's text features do not
  depend on are left out;
- `part` unet is ours: the same on the denoising loss and the projections that read text, judged on
  pictures that the edited denoiser draws.
Official code read, not copied: CSIPlab/SLUG.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..algebra.closed_form import finite
from ..algebra.hooks import Loss, adding, edit_gradients, hooked
from ..errors import FamilyError, NumericsError, SettingError
from ..measure.recognition import Pictures, draw_pictures, sight_of
from ..provenance import recipe_of
from ..result import Eraser, WeightEdit
from ..spec import MethodSpec, Parameter, Value
from ..task import Task

TEXT_ENCODER, UNET = "text_encoder", "unet"
_LOG = logging.getLogger("lethe")
_MATRIX = re.compile(r"(?P<block>(^|\.)layers\.(?P<layer>\d+)\.(self_attn|mlp))\.(?P<kind>[qkv]_proj|out_proj|fc[12])$")
Score = Callable[[float], tuple[float, float]]
"""A step's size to two shares of pictures: those still recognised of what goes, and of what stays."""


@dataclass(frozen=True)
class Site:
    """Where a weight matrix stands: how deep, and in which group that is updated together."""

    depth: int
    group: str


@dataclass(frozen=True)
class Step:
    """A step and what it does: the shares of pictures still recognised of what goes and of what stays."""

    eta: float
    forget: float
    retain: float


class SLUG:
    """One step on one layer along the forget gradient."""

    spec = MethodSpec(
        name="slug",
        title="SLUG",
        paper="Cai et al., Targeted Unlearning with Single Layer Unlearning Gradient (arXiv 2407.11867)",
        summary="Takes one gradient, picks the layer that matters most for the concept and least for the rest, and "
        "steps until the concept is no longer recognised.",
        families=("demo", "sd1", "sd2"),
        parameters=(
            Parameter(
                "part", TEXT_ENCODER,
                "What is edited: the text encoder, as published, or the denoiser's projections that read text (unet, "
                "ours).",
                choices=(TEXT_ENCODER, UNET),
            ),
            Parameter("pictures", 16, "Pictures drawn of each concept, 1 to 256. Start at 16.", 1, 256, 1),
            Parameter(
                "held", 32,
                "At most how many preserved prompts are drawn and held, chosen by the seed, 2 to 1024. Start at 32.",
                2, 1024, 1,
            ),
            Parameter("batch", 16, "Pictures per gradient batch, 2 to 256. Start at 16.", 2, 256, 1, advanced=True),
            Parameter(
                "draws", 4, "Noises drawn per picture for the denoising loss of part unet, 1 to 100. Start at 4.",
                1, 100, 1, advanced=True,
            ),
            Parameter(
                "logit_scale", 100.0, "Scale of the cosines in the loss, 1 to 1000. Start at 100, CLIP's own.",
                1.0, 1000.0, 1.0, advanced=True,
            ),
            Parameter(
                "start", 0.1,
                "First step, as a share of the layer's norm, 0.001 to 10. Start at 0.1, as published; 0.4 for styles.",
                0.001, 10.0, 0.001,
            ),
            Parameter("tolerance", 0.1, "How much recognition of what is held may be lost, 0 to 1. Start at 0.1."),
            Parameter("evaluations", 10, "Steps tried at most, 1 to 50. Start at 10.", 1, 50, 1, advanced=True),
            Parameter(
                "probes", 16,
                "How many pictures of each concept, and how many preserved ones, are drawn to judge a step, 1 to 256. "
                "Start at 16; more take longer and hold more.",
                1, 256, 1,
            ),
            Parameter(
                "margin", 2.0,
                "How many times the smallest step that erases is taken in the end, if what is held bears it, 1 to 10. "
                "1 as published, which leaves the concept in longer prompts; start at 2.",
                1.0, 10.0, 0.1,
            ),
            Parameter("steps", 20, "Sampling steps of the pictures, 1 to 200. Start at 20.", 1, 200, 1, unit="steps"),
            Parameter("cfg", 7.5, "Guidance of the pictures, 1 to 30. Start at the one you draw with.", 1.0, 30.0, 0.1),
            Parameter("seed", 0, "Seed of the pictures and of the choice of preserved prompts.", 0, 2**31 - 1, 1),
        ),
    )  # fmt: skip

    @torch.inference_mode(False)
    def fit(self, task: Task, settings: Mapping[str, Value]) -> Eraser:
        """Draw pictures, take both gradients, and search the step.

        Raises:
            ConceptError: nothing to erase, fewer than two prompts to hold, or a concept that is not
                recognised in its own pictures.
            FamilyError: the task has no model or no image encoder, or the model no such layers.
            SettingError: no step that was tried keeps what is held and erases anything.
            NumericsError: a gradient is zero or not finite.
        """
        pictures = draw_pictures(task, settings)
        side = (_TextSide if settings["part"] == TEXT_ENCODER else _UnetSide)(task, pictures, settings)
        forget = edit_gradients(side.modules, side.weights, side.forget_losses(), task.track)
        retain = edit_gradients(side.modules, side.weights, side.retain_losses(), task.track)
        trial = _Trial(task, side.modules, pictures, settings)
        edits, step = unlearn_layer(side.weights, forget, retain, side.sites, settings, trial)
        if step.forget > 0:
            _LOG.warning("SLUG still recognises the concept in %.0f %% of its pictures.", 100 * step.forget)
        found = {f"{side.prefix}{name}.weight": edit for name, edit in edits.items()}
        recipe = recipe_of(self.spec.name, settings, task, int(settings["seed"]))
        if settings["part"] == UNET:
            return Eraser(recipe, adapters=found)
        return Eraser(recipe, text_encoder=found)


def importance(gradient: Tensor, weight: Tensor) -> float:
    """|g_f| / |W| of one matrix (Frobenius norms)."""
    return float(gradient.double().norm() / weight.double().norm().clamp_min(1e-300))


def alignment(forget: Tensor, retain: Tensor) -> float:
    """|cos(g_f, g_r)| of one matrix; 0 where either vanishes."""
    f, r = forget.double().flatten(), retain.double().flatten()
    return float((f @ r).abs() / (f.norm() * r.norm()).clamp_min(1e-300))


def pareto_front(alignments: Sequence[float], importances: Sequence[float]) -> list[int]:
    """Indices such that no other one has a lower alignment and a higher importance at once."""
    pairs = list(zip(alignments, importances, strict=True))
    return [i for i, (a, worth) in enumerate(pairs) if not any(b < a and more > worth for b, more in pairs)]


def choose_group(
    sites: Mapping[str, Site], weights: Mapping[str, Tensor], forget: Mapping[str, Tensor], retain: Mapping[str, Tensor]
) -> list[str]:
    """The matrices to update: the group of the deepest on the Pareto front, of the most important one at a tie.

    Args:
        sites: of every matrix by name; those without a gradient are passed over.
        weights: `[o, i]` by name.
        forget, retain: g_f and g_r `[o, i]` by name.

    Raises:
        NumericsError: no matrix has both gradients.
    """
    names = [name for name in sites if name in forget and name in retain]
    if not names:
        raise NumericsError(
            "No layer has a gradient from the pictures.", "Use an image encoder that reads the model's text encoder."
        )
    worth = [importance(forget[name], weights[name]) for name in names]
    front = pareto_front([alignment(forget[name], retain[name]) for name in names], worth)
    best = names[max(front, key=lambda index: (sites[names[index]].depth, worth[index]))]
    return [name for name in names if sites[name] == sites[best]]


def signed_step(forget: Mapping[str, Tensor], names: Sequence[str], eta: float) -> dict[str, WeightEdit]:
    """eta g_f for the named matrices; eta > 0 raises 1 - cos, and so lowers cos(picture, text)."""
    return {name: WeightEdit(dense=eta * forget[name]) for name in names}


def search_step(score: Score, start: float, tolerance: float = 0.1, evaluations: int = 10, margin: float = 1.0) -> Step:
    """Find the smallest step at which the concept is gone and what is held is still there.

    The step doubles while the concept is recognised; once it is gone, or too much of what is held is,
    the two sides are bisected until they lie within a tenth.

    Args:
        score: may be asked `evaluations` times, once at 0, and once for the margin.
        start: the first step, > 0.
        tolerance: how far the share of what stays may fall below that at 0.
        margin: how many times as far to go in the end, if what is held bears it.

    Returns:
        The step; where none that keeps what is held erases the concept wholly, the one that comes closest.

    Raises:
        SettingError: no step that was tried keeps what is held and erases anything.
    """
    before = Step(0.0, *score(0.0))
    low, high, eta, tried = 0.0, None, start, []
    for _ in range(evaluations):
        tried.append(Step(eta, *score(eta)))
        if tried[-1].forget <= 0 or not _keeps(tried[-1], before, tolerance):
            high = eta
        else:
            low = eta
        if high is not None and high - low <= 0.1 * high:
            break
        eta = 2 * low if high is None else (low + high) / 2
    useful = [step for step in tried if _keeps(step, before, tolerance) and step.forget < before.forget]
    if not useful:
        raise SettingError(
            f"None of {len(tried)} steps up to {max(step.eta for step in tried) / start:g} times the first one erases "
            f"something and keeps what is held within {tolerance:g}.",
            "Raise tolerance, lower start, or preserve other prompts.",
        )
    best = min(useful, key=lambda step: (step.forget, step.eta))
    further = Step(margin * best.eta, *score(margin * best.eta)) if margin > 1 else best
    return further if further.forget <= best.forget and _keeps(further, before, tolerance) else best


def _keeps(step: Step, before: Step, tolerance: float) -> bool:
    return step.retain >= before.retain - tolerance


def unlearn_layer(
    weights: Mapping[str, Tensor],
    forget: Mapping[str, Tensor],
    retain: Mapping[str, Tensor],
    sites: Mapping[str, Site],
    settings: Mapping[str, Value],
    score: Callable[[Mapping[str, WeightEdit]], tuple[float, float]],
) -> tuple[dict[str, WeightEdit], Step]:
    """SLUG on plain tensors.

    Args:
        weights: `[o, i]` by name.
        forget, retain: g_f and g_r `[o, i]` by name; a matrix without them cannot be chosen.
        sites: of every matrix, by name.
        settings: checked settings (`SLUG.spec.settings({...})`); those of the search count.
        score: edits to the shares of pictures still recognised, of what goes and of what stays.

    Returns:
        Edits `[o, i]` in the gradients' dtype by name, and the step that was chosen.

    Raises:
        NumericsError: a gradient is not finite, or g_f vanishes on the chosen matrices.
        SettingError: no step that was tried keeps what is held and erases anything.
    """
    for gradient in (*forget.values(), *retain.values()):
        finite(erase=gradient)
    names = choose_group(sites, weights, forget, retain)
    size, slope = (
        float(torch.stack([tensors[name].double().norm() for name in names]).norm()) for tensors in (weights, forget)
    )
    if slope == 0:
        raise NumericsError(
            "The concept's pictures have no gradient in this model.", "Check that model and image encoder are a pair."
        )
    step = search_step(
        lambda eta: score(signed_step(forget, names, eta)),
        float(settings["start"]) * size / slope,
        float(settings["tolerance"]),
        int(settings["evaluations"]),
        float(settings["margin"]),
    )
    return signed_step(forget, names, step.eta), step


class _Trial:
    """Scores edits by what the model draws with them; the first ones have to be zero."""

    def __init__(
        self, task: Task, modules: Mapping[str, nn.Module], pictures: Pictures, settings: Mapping[str, Value]
    ) -> None:
        self.task, self.modules, self.pictures, self.settings = task, modules, pictures, settings
        self.untouched: Tensor | None = None

    def __call__(self, edits: Mapping[str, WeightEdit]) -> tuple[float, float]:
        with hooked((self.modules[name], adding(edit)) for name, edit in edits.items()):
            found = self.pictures.redrawn(self.task, self.settings)
        if self.untouched is None:
            self.untouched = found.latents
        elif torch.equal(found.latents, self.untouched):
            raise FamilyError(
                "The model draws the same pictures whatever its text encoder says.",
                "Use a model that encodes its prompts anew for every picture.",
            )
        goes, stays = found.recognised()
        return max(goes), stays


class _TextSide:
    """The text encoder's matrices, by the cosines of pictures and texts."""

    def __init__(self, task: Task, pictures: Pictures, settings: Mapping[str, Value]) -> None:
        tower = task.loaded().tower()
        found = {name: match for name, _ in tower.module.named_modules() if (match := _MATRIX.search(name))}
        if not found:
            raise FamilyError("This text encoder has no layers that SLUG knows.", "SLUG edits CLIP text encoders.")
        self.pictures, self.settings, self.prefix = pictures, settings, f"{tower.stream}."
        self.embed = sight_of(task).embed_text
        modules = {name: tower.module.get_submodule(name) for name in found}
        weights = {name: tower.weight(f"{name}.weight") for name in found}
        # Layers behind those that the model's text features come from would change nothing it draws.
        reached = edit_gradients(modules, weights, [lambda: tower.run([""])[0][..., 0].sum()])
        self.modules = {name: modules[name] for name in reached}
        self.weights = {name: weights[name] for name in reached}
        self.sites = {name: _text_site(found[name]) for name in reached}

    def forget_losses(self) -> list[Loss]:
        """1 - cos of every concept's names and pictures."""
        return [self._unlike]

    def retain_losses(self) -> list[Loss]:
        """The contrastive loss of the held pictures and their captions, batch by batch."""
        return [partial(self._contrast, rows) for rows in _batches(len(self.pictures.held), self.settings)]

    def _unlike(self) -> Tensor:
        pictures, total, weight = self.pictures, torch.zeros(()), 0.0
        for index, concept in enumerate(pictures.concepts):
            texts = F.normalize(self.embed(list(concept.names)), dim=1)
            cosines = pictures.seen[pictures.of_concept(index)] @ texts.T
            total, weight = total + concept.weight * (1 - cosines).mean(), weight + concept.weight
        return total / weight

    def _contrast(self, rows: Tensor) -> Tensor:
        texts = F.normalize(self.embed([self.pictures.held[i] for i in rows]), dim=1)
        seen = self.pictures.seen[self.pictures.first_held :][rows]
        table, own = float(self.settings["logit_scale"]) * seen @ texts.T, torch.arange(len(rows))
        return (F.cross_entropy(table, own) + F.cross_entropy(table.T, own)) / 2


class _UnetSide:
    """The denoiser's projections of text, by its denoising loss."""

    prefix = ""

    def __init__(self, task: Task, pictures: Pictures, settings: Mapping[str, Value]) -> None:
        self.task, self.pictures, self.settings = task, pictures, settings
        self.model = task.loaded()
        self.weights = {name.removesuffix(".weight"): weight for name, weight in self.model.weights().items()}
        self.modules = self.model.modules(f"^({'|'.join(map(re.escape, self.weights))})$")
        groups = list(dict.fromkeys(name.rpartition(".")[0] for name in self.modules))
        self.sites = {
            name: Site(groups.index(group), group) for name in self.modules for group in [name.rpartition(".")[0]]
        }
        self.generator = torch.Generator().manual_seed(int(settings["seed"]))

    def forget_losses(self) -> list[Loss]:
        """The denoising loss on the concepts' pictures."""
        return self._denoising(range(self.pictures.first_held))

    def retain_losses(self) -> list[Loss]:
        """The denoising loss on the held pictures."""
        return self._denoising(range(self.pictures.first_held, len(self.pictures.prompts)))

    def _denoising(self, chosen: range) -> list[Loss]:
        batches = [rows + chosen.start for rows in _batches(len(chosen), self.settings)]
        return [partial(self._denoise, rows) for _ in range(int(self.settings["draws"])) for rows in batches]

    def _denoise(self, rows: Tensor) -> Tensor:
        latents = self.pictures.latents[rows]
        context = torch.stack([p.states for p in self.task.encode([self.pictures.prompts[i] for i in rows])])
        noise = torch.randn(latents.shape, generator=self.generator).to(latents)
        percent = float(torch.rand((), generator=self.generator))
        return F.mse_loss(self.model.predict_noise(latents, noise, percent, context), noise)


def _batches(count: int, settings: Mapping[str, Value]) -> tuple[Tensor, ...]:
    """Indices below `count` in parts of about `batch`, of which none is left with one alone."""
    return torch.arange(count).tensor_split(max(count // int(settings["batch"]), 1))


def _text_site(match: re.Match[str]) -> Site:
    """q, k and v belong together, and fc1 and fc2."""
    alone = match["kind"] == "out_proj"
    return Site(int(match["layer"]), match["block"] + (".out_proj" if alone else ""))


METHOD = SLUG()
