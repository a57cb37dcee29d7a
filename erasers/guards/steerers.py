"""Concept Steerers (Kim and Ghadiyaram, 2025, arXiv 2501.19066): a sparse autoencoder steers inside the text encoder.

With h_s the states of the concept's names in a layer of the text encoder, position by position, and the parts of an
autoencoder of that layer's states (learn/sparse_code.py),

    a = relu(W_e (h_s - b_pre) + b_lat)      no top-k here
    v = lambda W_d a,   h <- h + v           in that layer, for the prompt; lambda = -strength

The text features change by what the encoder then makes of it: f + (f(h + v) - f(h)), so that weights of words and edits
of guards before this one stay.

Differs from the paper: the autoencoder is trained here, in seconds, on the preserved prompts and the concept's names in
templates, not on 4 10^8 tokens; or it is read from a file (store/sparse_code_file.py). The start token, which knows
nothing of the phrase, is neither learned from nor steered. The negative prompt is not steered the opposite way (h - v);
with guidance w that would count w - 1 times more, so nearly twice the strength is needed. `mean` adds the mean over the
names' own tokens at every position, as positions of the names and of a prompt have nothing to do with each other.
Several names are one phrase, side by side.
Official code read, not copied: kim-dahye/steerers.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ..algebra.context import TEMPLATES
from ..algebra.hooks import Hook, Output, Probe, hooked, states_of
from ..errors import FamilyError
from ..guard import Guarding, guarded_names
from ..learn.sparse_code import SparseCode, fit_sparse_code
from ..model import TextTower, Token
from ..read_features import Added
from ..sites import ONE_CLIP
from ..spec import MethodSpec, Parameter, Value
from ..store.sparse_code_file import load_code, save_code
from ..task import Task

_LOG = logging.getLogger("lethe")
_LAYER = re.compile(r"(^|\.)layers\.\d+$")
ALIGNED, MEAN = "aligned", "mean"
ALL, KEPT = "all", "kept"
_BATCH, _RATE, _MOST, _FRAMES = 128, 2e-3, 100, 3
"""Of the training: batch and rate, which in the demo world's encoder (width 192, 9,000 tokens, a CPU) leave 2 % of the
variance unexplained after 200 steps; how many preserved prompts, and templates, it takes, for memory's sake."""


@dataclass(frozen=True, eq=False)
class Steered(Added):
    """The text part: what steering changes of a prompt's features.

    Attributes:
        tower: the text encoder.
        layer: its layer that is steered.
        vector: v, `[tokens, d]`.
    """

    tower: TextTower
    layer: nn.Module
    vector: Tensor

    def read(self, chunks: Sequence[Sequence[Token]]) -> Tensor | None:
        """f(h + v) - f(h), `[tokens, d]` float32 on the CPU; None where v is 0."""
        if not self.vector.any():
            return None
        plain = self.tower.encode(chunks)[0]
        with hooked([(self.layer, adding_states(self.vector))]):
            steered = self.tower.encode(chunks)[0]
        return (steered - plain).flatten(0, 1).cpu()


def adding_states(vector: Tensor) -> Hook:
    """A hook that adds `vector` `[tokens, d]` to a layer's states, row by row of a batch."""

    def add(_module: nn.Module, _args: tuple[Tensor, ...], output: Output) -> Output:
        states = states_of(output)
        moved = states + vector.to(states)
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    return add


def steering(code: SparseCode, phrase: Tensor, content: int, positions: str, kept: bool) -> Tensor:
    """W_d a, `[tokens, d]`, of the states `[tokens, d]` of a phrase that has `content` tokens; 0 at the start."""
    found = code.directions(code.latents(phrase, kept))
    if positions == MEAN:
        found = found[1 : content + 1].mean(0).expand_as(found).clone()
    found[0] = 0
    return found


def layers_of(module: nn.Module) -> list[str]:
    """Names of a text encoder's layers, the first one first.

    Raises:
        FamilyError: it has no layers that are known.
    """
    names = [name for name, _ in module.named_modules() if _LAYER.search(name)]
    if not names:
        raise FamilyError("This text encoder has no 'layers' to steer.", "Steerers are for CLIP text encoders.")
    return names


def layer_at(module: nn.Module, depth: float) -> str:
    """Name of the layer so deep in a text encoder, 0 for its first; FamilyError where none is known."""
    names = layers_of(module)
    return names[min(int(depth * len(names)), len(names) - 1)]


class Steerers:
    """Steers a layer of the text encoder away from the concept."""

    needs = (
        "Needs the prompt's tokens, so encode the prompt with this node's CLIP, and a model with one CLIP text "
        "encoder; name many preserved prompts, which its autoencoder learns from, or give a file of a trained one. "
        "Works at CFG 1. Trains for seconds to a minute; then costs one more encoding of a prompt, nothing per step."
    )
    spec = MethodSpec(
        name="steerers",
        title="Concept Steerers",
        paper="Kim and Ghadiyaram, Concept Steerers: Leveraging K-Sparse Autoencoders for Test-Time Controllable "
        "Generations, 2025 (arXiv 2501.19066)",
        summary="Takes the concept's directions in a sparse autoencoder out of a layer of the text encoder.",
        families=("demo",),
        parameters=(
            Parameter(
                "strength",
                0.5,
                "How far the layer is steered away, 0 to 5; -lambda. Published: 0.5 for nudity, 0.7 for violence, with "
                "the negative prompt steered too, for which 1 makes up here. 0 changes nothing.",
                maximum=5.0,
                step=0.05,
            ),
            Parameter(
                "positions",
                ALIGNED,
                "Add what a token of the concept's names gives to the token at the same place (aligned, as published), "
                "or their mean everywhere (mean), for prompts that name it late.",
                choices=(ALIGNED, MEAN),
            ),
            Parameter(
                "latents",
                ALL,
                "Steer along all latents that the names wake (all, as published), or only the k strongest (kept), "
                "which takes less of anything else.",
                choices=(ALL, KEPT),
            ),
            Parameter(
                "depth",
                0.75,
                "How deep in the text encoder the layer is, 0 to 1. 0.75 as published: the tenth of 12.",
                advanced=True,
            ),
            Parameter(
                "expansion",
                4,
                "Latents for each feature of the layer, 1 to 64. 4 as published.",
                minimum=1,
                maximum=64,
                step=1,
                advanced=True,
            ),
            Parameter(
                "k",
                32,
                "Latents that explain a token, 1 to 1024. 32 as published.",
                minimum=1,
                maximum=1024,
                step=1,
                advanced=True,
            ),
            Parameter(
                "steps",
                200,
                "Steps of its training, 0 to 100000. Start at 200; more for long lists of preserved prompts.",
                maximum=100000,
                step=1,
                advanced=True,
            ),
            Parameter("seed", 0, "Seed of its training.", 0, 2**31 - 1, 1, advanced=True),
            Parameter(
                "file",
                "",
                "Name of a file of a trained autoencoder in models/steerers. One that is there is read; depth, "
                "expansion, k, steps and seed are then its own, as far as it tells them. One that is not is made by "
                "the training. Start empty: trained each time the node runs.",
                advanced=True,
                folder="steerers",
                optional=True,
            ),
        ),
        wants=(ONE_CLIP,),
        small={"strength": 0.7, "positions": MEAN},
    )

    def plan(self, task: Task, settings: Mapping[str, Value]) -> Guarding:
        """A text part with the vector that steers.

        Raises:
            FamilyError: the model has more than one text encoder, one without known layers, or one whose features are
                taken before the layer.
            EraserFileError: the file cannot be read, holds no autoencoder for this text encoder, or cannot be written.
        """
        tower, names = task.loaded().tower(), guarded_names(task)
        phrase = ", ".join(names)
        code, layer = _code_of(task, tower, phrase, settings)
        own = _states(tower, layer, [phrase])[0].to(code.centre)
        content, kept = len(tower.content(phrase)), settings["latents"] == KEPT
        vector = -float(settings["strength"]) * steering(code, own, content, str(settings["positions"]), kept)
        part = Steered(tower, tower.module.get_submodule(layer), vector)
        changed = part.read([tower.ids(phrase)])
        if changed is not None and not changed.any():
            raise FamilyError("The model's text features do not pass the layer that is steered.", "Lower the depth.")
        return Guarding(text=part, reader=part)


def _code_of(task: Task, tower: TextTower, phrase: str, settings: Mapping[str, Value]) -> tuple[SparseCode, str]:
    """The autoencoder with its layer: that of the file where there is one, else one that is trained."""
    own, path = tower.run([phrase])[0], Path(str(settings["file"]))
    layers, layer = layers_of(tower.module), layer_at(tower.module, float(settings["depth"]))
    if settings["file"] and path.is_file():
        code, number = load_code(path, own.shape[-1], len(layers), own.device, int(settings["k"]))
        return code, layer if number is None else layers[number]
    held = task.held[1 :: len(task.held) // _MOST + 1]
    texts = (*guarded_names(task), *held)
    framed = [frame.format(text) for frame in TEMPLATES["object"][:_FRAMES] for text in texts]
    states = _states(tower, layer, list(dict.fromkeys(("", *framed))))[:, 1:].flatten(0, 1).to(own.device)
    sizes = (int(settings[name]) for name in ("expansion", "k", "steps"))
    generator = torch.Generator().manual_seed(int(settings["seed"]))
    code = fit_sparse_code(states, *sizes, batch=_BATCH, lr=_RATE, generator=generator, track=task.track)
    if settings["file"]:
        save_code(code, layers.index(layer), path)
        _LOG.info("The steerer was trained on %d tokens and written to '%s'.", len(states), path)
    return code, layer


def _states(tower: TextTower, layer: str, prompts: list[str]) -> Tensor:
    found = [seen[layer].outputs for _, seen in Probe(tower).watch(prompts, [layer])]
    return torch.cat(found).float()


GUARD = Steerers()
