"""What works for kinds of models, and why not: the reasons that families share."""

from __future__ import annotations

from collections.abc import Mapping

from .sites import GUARDS, HOOK, NO, STACKING, TESTED, TRAINING, WEIGHTS, WORDS, Verdict

_UNREACHED = Verdict(NO, "the host hands its attention no options, so nothing can reach the words there.")
BEHIND = Verdict(
    NO, "its words stand behind the picture's places in attention, once for each layer, where they are not looked for."
)
_VIDEO = Verdict(TESTED, "on single frames.")
_NORM = Verdict(
    NO, "its text passes a norm before the first weight, so no change of weights equals the edit: use a hook."
)

UNET: Mapping[str, Verdict] = dict.fromkeys((HOOK, WEIGHTS, GUARDS, WORDS, TRAINING, STACKING), Verdict(TESTED))
"""Cross-attentions that read the text encoders' features."""
EMBEDDED: Mapping[str, Verdict] = UNET
"""A transformer whose text passes one linear embedder first."""
UNREACHED: Mapping[str, Verdict] = {**EMBEDDED, WORDS: _UNREACHED}
VIDEO: Mapping[str, Verdict] = {**EMBEDDED, TRAINING: _VIDEO}
NORMED: Mapping[str, Verdict] = {**EMBEDDED, WEIGHTS: _NORM}
NORMED_VIDEO: Mapping[str, Verdict] = {**NORMED, TRAINING: _VIDEO}
