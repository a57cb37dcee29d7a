"""What works for kinds of models, and why not: the reasons that families share."""

from __future__ import annotations

from collections.abc import Mapping

from .sites import EXPECTED, GUARDS, HOOK, NO, STACKING, TESTED, TRAINING, WEIGHTS, WORDS, Verdict

_ENCODERS = Verdict(NO, "guards read prompts as one CLIP encoder writes them, with a start and an end token.")
_ATTENTION = Verdict(NO, "words are reweighted in cross-attentions of UNets, and this model is no UNet.")
_IN_PLACE = Verdict(NO, "its blocks compute in place, and training has no way round that yet.")
_VIDEO = Verdict(NO, "its latents have a time axis, which training does not know yet.")
_UNTRAINED = Verdict(EXPECTED, "the host computes its gradients.")
_NORM = Verdict(
    NO, "its text passes a norm before the first weight, so no change of weights equals the edit: use a hook."
)

_EDITED: Mapping[str, Verdict] = {HOOK: Verdict(TESTED), WEIGHTS: Verdict(TESTED), STACKING: Verdict(TESTED)}
UNET: Mapping[str, Verdict] = _EDITED
"""Cross-attentions that read the text encoder's features."""
MANY_ENCODERS: Mapping[str, Verdict] = {
    **_EDITED,
    GUARDS: Verdict(EXPECTED, "those that read features; those that read tokens need a single text encoder."),
    WORDS: Verdict(NO, "words are looked up in the tokens of a single text encoder."),
}
"""A UNet with more than one text encoder."""
EMBEDDED: Mapping[str, Verdict] = {**_EDITED, GUARDS: _ENCODERS, WORDS: _ATTENTION, TRAINING: _UNTRAINED}
"""A transformer whose text passes one linear embedder first."""
IN_PLACE: Mapping[str, Verdict] = {**EMBEDDED, TRAINING: _IN_PLACE}
VIDEO: Mapping[str, Verdict] = {**EMBEDDED, TRAINING: _VIDEO}
NORMED: Mapping[str, Verdict] = {**EMBEDDED, WEIGHTS: _NORM}
NORMED_VIDEO: Mapping[str, Verdict] = {**NORMED, TRAINING: _VIDEO}


def refused(why: str) -> Mapping[str, Verdict]:
    """Verdicts on a model that nothing can be done to yet."""
    return dict.fromkeys((HOOK, WEIGHTS, GUARDS, WORDS, TRAINING, STACKING), Verdict(NO, why))


def untested(verdicts: Mapping[str, Verdict], why: str) -> Mapping[str, Verdict]:
    """Verdicts that are expected only, for the same reason."""
    return {name: Verdict(EXPECTED, why) if own.state == TESTED else own for name, own in verdicts.items()}
