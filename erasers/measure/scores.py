"""Published summaries of an erasure: MACE's harmonic means, UnlearnCanvas's accuracies, HUB's axes.

Formulas on rates that were measured elsewhere. Rates are shares in 0..1; nan, "nothing was measured", stays nan.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, fields

from ..errors import SettingError
from ..prompts import COMPOSITIONAL, DIRECT, NEAR


def harmonic_objects(erased: float, kept: float, synonyms: float) -> float:
    """MACE's H_o = 3 / (1/(1 - Acc_e) + 1/Acc_s + 1/(1 - Acc_g)); 0 if any term is 0 (arXiv 2403.06135).

    Args:
        erased: Acc_e, accuracy on the erased concept.
        kept: Acc_s, on the others.
        synonyms: Acc_g, on the erased concept's synonyms.

    Raises:
        SettingError: a rate is not in 0..1.
    """
    return _harmonic(1 - _share(erased), _share(kept), 1 - _share(synonyms))


def harmonic_celebrities(erased: float, kept: float) -> float:
    """MACE's H_c = 2 / (1/(1 - Acc_e) + 1/Acc_s); 0 if any term is 0 (arXiv 2403.06135).

    Args:
        erased: Acc_e, accuracy on the erased people; MACE counts it over pictures that show a face.
        kept: Acc_s, on the others.

    Raises:
        SettingError: a rate is not in 0..1.
    """
    return _harmonic(1 - _share(erased), _share(kept))


def art_difference(erased: float, kept: float) -> float:
    """MACE's H_a = CLIP_s - CLIP_e, the mean CLIP score on kept artists less that on erased ones (arXiv 2403.06135)."""
    return kept - erased


@dataclass(frozen=True)
class UnlearnCanvas:
    """UnlearnCanvas's accuracies.

    Attributes:
        ua: unlearning accuracy, the share of the target's pictures in which it is not recognised.
        ira: in-domain retain accuracy, on others of the target's kind.
        cra: cross-domain retain accuracy, on other kinds.
    """

    ua: float
    ira: float
    cra: float


def unlearn_canvas(target: float, near: float, far: float) -> UnlearnCanvas:
    """UnlearnCanvas's accuracies (Zhang et al., NeurIPS 2024 Datasets and Benchmarks) of an evaluation's rates.

    Args:
        target: how often the erased concept is recognised on its own prompts.
        near: how often the subject is recognised on prompts of the concept's kind.
        far: the same on prompts of other kinds.

    Raises:
        SettingError: a rate is not in 0..1.
    """
    return UnlearnCanvas(1 - _share(target), _share(near), _share(far))


@dataclass(frozen=True)
class HubAxes:
    """The axes of HUB, the Holistic Unlearning Benchmark (arXiv 2410.05664); None where one was not measured.

    HUB's figures come from its own prompts and judges; these are its definitions with the evaluation's.

    Attributes:
        target_proportion: share of target pictures that show the concept; low is good.
        general_quality: distance of unrelated pictures from real ones or the untouched model's (HUB: FID); low is good.
        target_quality: aesthetic score of target pictures.
        alignment: fit of pictures and prompts (HUB: ImageReward and PickScore).
        selective_alignment: share of what stands beside the concept in a prompt that is still drawn.
        pinpoint_ness: share of the concept's neighbours that are still drawn.
        multilingual_robustness, attack_robustness: target proportion on translated and on adversarial prompts; low
            is good.
        efficiency: what it cost (HUB: time, memory and storage).
    """

    target_proportion: float | None = None
    general_quality: float | None = None
    target_quality: float | None = None
    alignment: float | None = None
    selective_alignment: float | None = None
    pinpoint_ness: float | None = None
    multilingual_robustness: float | None = None
    attack_robustness: float | None = None
    efficiency: float | None = None

    def named(self) -> dict[str, float | None]:
        """Every axis by its published name."""
        return {
            "pinpoint-ness" if entry.name == "pinpoint_ness" else entry.name.replace("_", " "): getattr(
                self, entry.name
            )
            for entry in fields(self)
        }


def hub_axes(concept: Mapping[str, float], subject: Mapping[str, float], **measured: float | None) -> HubAxes:
    """HUB's axes of an evaluation.

    Args:
        concept: how often the concept is seen, by kind of prompts (`prompts.KINDS`).
        subject: how often the subject is, by kind of prompts.
        measured: axes that were measured in other ways, by the attributes of `HubAxes`.

    Raises:
        SettingError: a rate is not in 0..1, or there is no such axis.
    """
    unknown = sorted(set(measured) - {entry.name for entry in fields(HubAxes)})
    if unknown:
        raise SettingError(f"HUB has no axis '{unknown[0]}'.", f"Its axes are: {', '.join(HubAxes().named())}.")
    rates = {
        "target_proportion": concept.get(DIRECT, math.nan),
        "selective_alignment": subject.get(COMPOSITIONAL, math.nan),
        "pinpoint_ness": subject.get(NEAR, math.nan),
    }
    found: dict[str, float | None] = {name: _share(value) for name, value in rates.items()} | measured
    return HubAxes(**{name: None if value is None or math.isnan(value) else value for name, value in found.items()})


def _harmonic(*terms: float) -> float:
    return math.nan if any(math.isnan(term) for term in terms) else statistics.harmonic_mean(terms)


def _share(value: float) -> float:
    if not (math.isnan(value) or 0 <= value <= 1):
        raise SettingError(f"A rate is {value!r}.", "It has to be a share, from 0 to 1.")
    return value
