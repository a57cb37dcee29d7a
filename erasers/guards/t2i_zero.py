"""Multi-Concept T2I-Zero (2023, arXiv 2310.07419): a dominating token is thinned out, and loses places to others.

The correction by similarities, with f the prompt's text features `[tokens, d]` and c each token that names the concept:

    S_j = f_c * f_j                                    element by element, one row for each token j
    S~  = S / max S  where S reaches its quantile q and |j - c| <= window,  else 0
    f_c <- (1 - alpha) f_c + alpha sum_j S~_j * f_j

Of the token stays what it has most in common with itself and its neighbours. So a token that dominates the picture is
demoted; the names of a concept are, here. With one threshold p for every model, q = 1 - exp(-10 p).

Differs from the paper: it corrects all of several concepts, so that each is drawn; here it is those to erase alone. The
features are those of the text encoder's end, which padding shares: a summary of the prompt stands there too, so that a
model whose padding is well read still draws the concept. `tail` corrects every token from the name on, which in a
causal encoder are those that know of it.

Where text enters by several text encoders, or by several layers of one, the tokens of each are corrected by features of
their own.

The suppression between the words' attention maps (rivals.py) is off unless it is asked for.
A known reimplementation was read for its constants, not copied: v0xie/sd-webui-incantations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import ConceptError, FamilyError
from ..guard import Guarding, guarded_names
from ..model import TextTower, Token
from ..nudge import Words, read_words
from ..read_features import copies
from ..rivals import Rivals
from ..sites import A_UNET
from ..spec import MethodSpec, Parameter, Value
from ..task import Task
from ..window import Window, window_of, window_settings

NAMES, TAIL = "names", "tail"
_STEEP = 10.0


@dataclass(frozen=True)
class Named:
    """Where names stand in a prompt: rows of each chunk, how many rows each has, and its words for their rivalry."""

    rows: tuple[list[int], ...]
    lengths: tuple[int, ...]
    words: Words | None = None


@dataclass(frozen=True, eq=False)
class Corrected:
    """The text part: the correction of the tokens that were found.

    Attributes:
        tower: the text encoders.
        names: the concepts' names.
        alpha: how far tokens are moved.
        quantile: q.
        reach: tokens to either side that count.
        tail: whether every token from a name on is corrected.
        window: when it acts.
        rivals: whether it reads the words that attention is shared between.
    """

    tower: TextTower
    names: tuple[str, ...]
    alpha: float
    quantile: float
    reach: int
    tail: bool
    window: Window
    rivals: bool = False

    def read(self, chunks: Sequence[Sequence[Token]]) -> Named | None:
        """Which rows of each chunk are corrected, and none of any other; None where no name stands in any."""
        found = tuple(self._rows(chunk) for chunk in chunks)
        words = read_words(self.tower, self.names, chunks) if self.rivals else None
        return Named(found, tuple(map(len, chunks)), words) if any(found) else None

    def _rows(self, chunk: Sequence[Token]) -> list[int]:
        places = [place for name in self.names for place in self.tower.spans(chunk, name)]
        if places and self.tail:
            return list(range(min(place.start for place in places), len(chunk)))
        return sorted({row for place in places for row in place})

    def holds(self, reading: Any, percent: float) -> bool:
        return reading is not None and self.alpha > 0 and self.window.holds(percent)

    def edit(self, states: Tensor, reading: Named) -> Tensor:
        times = copies(states, sum(reading.lengths))
        pairs = zip(states.split(reading.lengths * times), reading.rows * times, strict=True)
        return torch.cat([corrected(f, rows, self.alpha, self.quantile, self.reach) for f, rows in pairs])


def corrected(states: Tensor, rows: Sequence[int], alpha: float, quantile: float, reach: int) -> Tensor:
    """Features `[tokens, d]` with some rows corrected, each by the features as they came."""
    f, found = states.float(), states.clone()
    for c in rows:
        similar = f[c] * f
        similar = torch.where(similar >= similar.flatten().quantile(quantile), similar / similar.max(), 0)
        first, last = max(c - reach, 0), c + reach + 1
        mixed = (similar[first:last] * f[first:last]).sum(0)
        found[c] = torch.lerp(f[c], mixed, alpha).to(found)
    return found


class T2IZero:
    """Thins the concept's tokens out to what they share with their neighbours."""

    needs = (
        "Needs the prompt's tokens, so encode the prompt with this node's CLIP. Any model; suppression needs a UNet. "
        "Acts where the concept's name or a synonym stands in the prompt, at CFG 1 too. Costs next to nothing; "
        "suppression computes cross-attention's shares once more."
    )
    spec = MethodSpec(
        name="t2i_zero",
        title="T2I-Zero correction",
        paper="Multi-Concept T2I-Zero: Tweaking Only The Text Embeddings and Nothing Else, 2023 (arXiv 2310.07419)",
        summary="Corrects the text features of the concept's words by their similarities, so that they dominate less.",
        families=("demo",),
        parameters=(
            Parameter(
                "alpha",
                1.0,
                "How far the words' features move to the corrected ones, 0 to 1. Start at 1; 0 changes nothing.",
            ),
            Parameter(
                "where",
                NAMES,
                "Correct the concept's own tokens (names, as published), or every token from them on, padding "
                "included (tail), for models that also draw what stands there.",
                choices=(NAMES, TAIL),
            ),
            Parameter(
                "threshold",
                0.5,
                "How similar features have to be to stay, 0 to 1; p, which makes the quantile 1 - exp(-10 p). 0.5 "
                "keeps the most similar 0.7 %, lower keeps more.",
            ),
            Parameter(
                "window",
                2,
                "Tokens to either side that a token is corrected by, 0 to 75. Start at 2.",
                maximum=75,
                step=1,
                unit="tokens",
            ),
            *window_settings(),
            Parameter(
                "suppression",
                0.0,
                "In cross-attention of a UNet: the share of what the concept's words get that they lose where another "
                "word of the prompt gets more, 0 to 1. 0 is off, 1 takes all.",
                optional=True,
            ),
        ),
        small={"where": TAIL, "threshold": 0.7},
    )

    def plan(self, task: Task, settings: Mapping[str, Value]) -> Guarding:
        """A text part that finds the names among the prompt's tokens.

        Raises:
            ConceptError: the text encoder reads nothing in a name.
            FamilyError: suppression is on and it is no UNet.
        """
        tower, names, share = task.tower(), guarded_names(task), float(settings["suppression"])
        if share and not A_UNET.met(task.family):
            raise FamilyError(f"Suppression needs {A_UNET.what}, and this model is none.", "Set suppression to 0.")
        for name in names:
            if not tower.content(name):
                raise ConceptError(f"The text encoder reads nothing in '{name}'.", "Write words of its language.")
        part = Corrected(
            tower,
            names,
            float(settings["alpha"]),
            1 - math.exp(-_STEEP * float(settings["threshold"])),
            int(settings["window"]),
            settings["where"] == TAIL,
            window_of(settings),
            share > 0,
        )
        rivals = Rivals(share, part.window) if share else None
        further = {own.family.stream: part for own in task.further}
        return Guarding(text=part, reader=part, rivals=rivals, further=further)


GUARD = T2IZero()
