"""LEACE, least-squares concept erasure (arXiv 2306.03819): no linear reader tells the concept any more.

Of features x labelled z, with Sxx their covariance and Sxz their cross-covariance with the labels,

    r(x) = x - Wh^+ U U^T Wh (x - mean x),    Wh = Sxx^(-1/2),  U = left singular vectors of Wh Sxz

is uncorrelated with z and, of all affine maps that are, changes x least in every norm. `orth` puts
Wh = I, a plain orthogonal projection. `oracle` is allowed to know z and so has less to change:
r(x, z) = x - Sxz Szz^+ (z - mean z); at run time features count as labelled with the concept, and
what remains of it is a bias. Nothing is put in the concept's place: a replacement serves as an
example of what the concept is not, and r knows nothing of a second, non-linear reading.

Labels are one column per concept, so that each one goes, not only what they have in common. Weights of
concepts have no meaning here.

Differs from the official program in two things. Sxx is shrunk towards a multiple of the identity by
Ledoit and Wolf's estimate (2004), whose weight stays in 0..1 where the program's (arXiv 1308.2608)
leaves it for nearly round features. And its guard against a growing trace of the covariance is not
here, as r cannot make it grow: with S = a Sxx + c I whitened, V an orthonormal basis of what r
removes and r = I - V M, one has M V = I, M S M^T = M S V = G >= c I and M M^T >= I, so
a (tr Cov r - tr Sxx) = -tr G - c tr(M M^T) + 2 c k <= 0. The program tries it with rounding errors
alone, and would then mix in a projection that does not erase.
Official code read, not copied: EleutherAI/concept-erasure (MIT).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.gram import gram_of
from ..algebra.closed_form import finite, solved_dtype
from ..algebra.context import TEMPLATES, no_pooled
from ..algebra.parameters import templates
from ..algebra.tokens import EOT, LAST, select_rows
from ..errors import ConceptError, NumericsError
from ..provenance import recipe_of
from ..result import ContextOperator, Eraser
from ..spec import MethodSpec, Parameter, Value
from ..task import EncodedPrompt, Task

LEAST_SQUARES, ORTHOGONAL, ORACLE = "leace", "orth", "oracle"
CONTENT = "content"
ENDINGS = (
    *("", " on paper", " at night", " in a meadow", " in the desert", " at sunset", " in the rain", " in the snow"),
    *(" on a table", " in a room", " on a street", " in the city", " in black and white", " in the morning"),
    *(", close up", ", from above", ", highly detailed", ", in the background", ", very large", ", very small"),
)
_BATCH = 64
_RTOL = 1e-10


class LEACE:
    """Removes what a linear reader can tell of a concept, changing features least."""

    spec = MethodSpec(
        name="leace",
        title="LEACE",
        paper="Belrose et al., LEACE: Perfect linear concept erasure in closed form, NeurIPS 2023 (arXiv 2306.03819)",
        summary="Takes away all that a linear reader can tell of the concept, and puts nothing in its place.",
        families=("demo",),
        parameters=(
            Parameter(
                "kind",
                LEAST_SQUARES,
                "leace changes the features least. orth is a plain orthogonal projection, which changes more. oracle "
                "takes every prompt for one of the concept and shifts it away by the mean difference.",
                choices=(LEAST_SQUARES, ORTHOGONAL, ORACLE),
            ),
            Parameter(
                "tokens",
                LAST,
                "Which token rows are the samples: each prompt's last word (last), its first end token (eot), or all "
                "of its words (content). The edit then goes to every token.",
                choices=(LAST, EOT, CONTENT),
            ),
            templates("object"),
            Parameter(
                "samples",
                400,
                "How many prompts stand for the concepts, and how many for everything else; each name gets at least "
                "one. Start at 400; more is slower and steadier.",
                minimum=2,
                maximum=20000,
                step=1,
                unit="prompts",
            ),
            Parameter(
                "shrinkage",
                True,
                "Pull the features' covariance towards a round one, as far as the number of samples calls for. Only "
                "for leace. Leave it on unless there are many more samples than features.",
            ),
            Parameter(
                "affine",
                True,
                "Keep the samples' mean where it is. Without it the edit of leace and orth is linear and can be "
                "written into weights, and oracle moves the concept onto what is not the concept.",
            ),
            Parameter(
                "svd_tol",
                0.01,
                "Directions that vary with the labels less than this are left alone. Start at 0.01, as published; "
                "smaller erases fainter traces.",
                minimum=1e-6,
                maximum=1.0,
                step=0.001,
                advanced=True,
            ),
        ),
    )

    def fit(self, task: Task, settings: Mapping[str, Value]) -> Eraser:
        """Encode samples of the concepts and of what they are not, and fit the map to them.

        Raises:
            ConceptError: nothing to erase, or a concept without tokens.
            FamilyError: the task asks for pooled features and the family has none.
            NumericsError: features are not finite, or they do not vary with the labels.
        """
        rows, labels, pooled = [], [], []
        for prompt, label in _labelled(task, str(settings["templates"]), int(settings["samples"])):
            rows.append(_select(str(settings["tokens"]), prompt))
            labels.append(label)
            if task.pooled and prompt.pooled is not None:
                pooled.append(prompt.pooled)
        one_hot = torch.zeros(len(labels), len(task.concepts.erase))
        for index, label in enumerate(labels):
            if label is not None:
                one_hot[index, label] = 1.0
        if settings["kind"] == ORACLE:
            one_hot = one_hot.amax(1, keepdim=True)
        counts = torch.tensor([len(found) for found in rows])
        context = {task.family.stream: fit_leace(torch.cat(rows), one_hot.repeat_interleave(counts, 0), settings)}
        if task.pooled:
            if len(pooled) < len(rows) or not task.family.pooled_stream:
                raise no_pooled(task.family)
            context[task.family.pooled_stream] = fit_leace(torch.stack(pooled), one_hot, settings)
        return Eraser(recipe_of(self.spec.name, settings, task), context)


@dataclass(frozen=True)
class Oracle:
    """Erasure from features whose label is known: r(x, z) = x - (z - centre) coef^T.

    Attributes:
        coef: `[d, k]` float64, Sxz Szz^+.
        centre: `[k]` float64, the mean label; zeros where the mean need not be kept.
    """

    coef: Tensor
    centre: Tensor

    def apply(self, x: Tensor, z: Tensor) -> Tensor:
        """Features `x` `[N, d]` with labels `z` `[N, k]` or `[N]`, erased; in their own dtype."""
        shift = (_columns(z).double() - self.centre) @ self.coef.T
        return (x.double() - shift).to(x.dtype)


def fit_leace(x: Tensor, z: Tensor, settings: Mapping[str, Value]) -> ContextOperator:
    """LEACE on plain tensors (its least-squares eraser).

    Args:
        x: samples, `[N, d]` float, N >= 2.
        z: their labels, `[N, k]` or `[N]`, any numbers; for kind "oracle" one column that is 1 where the concept is.
        settings: checked settings (`LEACE.spec.settings({...})`).

    Returns:
        Factors of rank at most k (k - 1 for one-hot labels of k classes) and, if affine, a bias; for the oracle,
        factors of rank one that are zero, and the bias of features labelled 1. In float64 for float64 samples,
        else in float32.

    Raises:
        NumericsError: shapes disagree, values are not finite, or the samples do not vary with the labels.
    """
    if settings["kind"] == ORACLE:
        oracle = fit_oracle(x, z, bool(settings["affine"]))
        if oracle.coef.shape[1] != 1:
            raise NumericsError(
                f"The oracle got {oracle.coef.shape[1]} columns of labels.",
                "As an operator it needs one; use fit_oracle for more.",
            )
        down, up = torch.zeros(1, x.shape[1]), torch.zeros(x.shape[1], 1)
        bias = -(oracle.coef @ (1.0 - oracle.centre))
    else:
        samples, labels = _checked(x, z)
        mean = samples.mean(0)
        centred = samples - mean
        cross = centred.T @ (labels - labels.mean(0)) / len(samples)
        up, down = _directions(centred, cross, settings)
        bias = -(up @ (down @ mean)) if settings["affine"] else None
    dtype = solved_dtype(x)
    return ContextOperator(down=down.to(dtype), up=up.to(dtype), bias=None if bias is None else bias.to(dtype))


def fit_oracle(x: Tensor, z: Tensor, affine: bool = True) -> Oracle:
    """The least-squares erasure that is told the labels.

    Args:
        x: samples, `[N, d]` float, N >= 2.
        z: their labels, `[N, k]` or `[N]`.
        affine: whether the samples' mean stays where it is.

    Raises:
        NumericsError: as for `fit_leace`.
    """
    samples, labels = _checked(x, z)
    mean = labels.mean(0)
    spread = labels - mean
    # One-hot labels sum to one, which makes Szz singular up to rounding: hence a pseudo-inverse with a tolerance.
    inverse = torch.linalg.pinv(spread.T @ spread, rtol=_RTOL, hermitian=True)
    coef = (samples - samples.mean(0)).T @ spread @ inverse
    return Oracle(coef, mean if affine else torch.zeros_like(mean))


def shrink(centred: Tensor, width: int = 0) -> Tensor:
    """The covariance of centred samples `[N, d]` float64, shrunk to (1 - rho) S + rho m I (Ledoit and Wolf 2004).

    m = tr S / d, and rho = min(1, b / a) with a = |S - m I|_F^2 and b = sum_n |x_n x_n^T - S|_F^2 / N^2, the
    expected squared error of S: the rho that brings the result closest to the true covariance.

    Args:
        width: d, where the samples are given by their coordinates in a space that holds them all; 0 for their own.
    """
    count, width = len(centred), width or centred.shape[1]
    sample = gram_of(centred) / count
    middle = sample.trace() / width
    error = (centred.square().sum(1).square().sum() / count - sample.square().sum()) / count
    distance = sample.square().sum() - width * middle.square()
    rho = 1.0 if distance <= error else float(error / distance)
    shrunk = (1.0 - rho) * sample
    shrunk.diagonal().add_(rho * middle)
    return shrunk


def _directions(centred: Tensor, cross: Tensor, settings: Mapping[str, Value]) -> tuple[Tensor, Tensor]:
    """`up` `[d, r]` and `down` `[r, d]` with r(x) = x + up @ down @ (x - mean)."""
    count, width = centred.shape
    if count >= width:
        return _directions_within(centred, cross, width, settings)
    # Wh only meets what lies in the samples' span, and is a multiple of I outside of it: no d x d matrix is needed.
    basis = torch.linalg.qr(centred.T).Q
    up, down = _directions_within(centred @ basis, basis.T @ cross, width, settings)
    return basis @ up, down @ basis.T


def _directions_within(
    centred: Tensor, cross: Tensor, width: int, settings: Mapping[str, Value]
) -> tuple[Tensor, Tensor]:
    """`_directions` for features of `width`, by coordinates in a space that holds all samples."""
    root = inverse = None
    if settings["kind"] == LEAST_SQUARES:
        covariance = shrink(centred, width) if settings["shrinkage"] else gram_of(centred) / len(centred)
        values, vectors = torch.linalg.eigh(covariance)
        # Directions in which the samples do not vary hold nothing to erase and have no inverse.
        seen = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
        values, vectors = values[seen], vectors[:, seen]
        root, inverse = (vectors * values.sqrt()) @ vectors.T, (vectors * values.rsqrt()) @ vectors.T
    left, strengths, _ = torch.linalg.svd(cross if inverse is None else inverse @ cross, full_matrices=False)
    found = left[:, strengths > float(settings["svd_tol"])]
    if not found.shape[1]:
        raise NumericsError(
            f"The samples vary with the labels by {float(strengths.max()):.2g} at most.",
            "There is nothing to erase; lower svd_tol, or choose other tokens.",
        )
    return (-found, found.T) if root is None or inverse is None else (-(root @ found), found.T @ inverse)


def _checked(x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Samples `[N, d]` and labels `[N, k]` in float64."""
    if x.ndim != 2 or z.ndim not in (1, 2) or len(z) != len(x) or len(x) < 2:
        raise NumericsError(
            f"Samples and labels have shapes {tuple(x.shape)} and {tuple(z.shape)}.",
            "They have to be [N, d] and [N, k], with two samples or more.",
        )
    finite(erase=x, label=z)
    labels = _columns(z).double()
    if bool((labels == labels[0]).all()):
        raise NumericsError("All samples have the same label.", "Give samples with and without the concept.")
    return x.double(), labels


def _columns(z: Tensor) -> Tensor:
    return z[:, None] if z.ndim == 1 else z


def _labelled(task: Task, kind: str, samples: int) -> Iterator[tuple[EncodedPrompt, int | None]]:
    """Encoded sentences with the number of the concept they name, None for those that name none."""
    concepts = task.concepts
    if not concepts.erase:
        raise ConceptError("There is no concept to erase.", "Connect a 'Concept to Erase' node.")
    names = [(name, label) for label, concept in enumerate(concepts.erase) for name in concept.names]
    for prompt in task.encode([name for name, _ in names]):
        if prompt.last < prompt.start:
            raise ConceptError(
                f"'{prompt.text}' has no token that the text encoder knows.",
                "Name the concept in words of its language.",
            )
    # A concept without a replacement is set against the same sentences without its name.
    others = dict.fromkeys((*concepts.kept, *(concept.replacement for concept in concepts.erase)))
    frames = [template + ending for ending in ENDINGS for template in TEMPLATES[kind]]
    wanted = _spread(names, frames, samples) + _spread([(other, None) for other in others], frames, samples)
    texts = [(text, label) for text, label in wanted if text]
    for start in range(0, len(texts), _BATCH):
        batch = texts[start : start + _BATCH]
        yield from zip(task.encode([text for text, _ in batch]), (label for _, label in batch), strict=True)


def _spread(
    words: list[tuple[str, int]] | list[tuple[str, None]], frames: list[str], samples: int
) -> list[tuple[str, int | None]]:
    """About `samples` sentences, every word in at least one frame and the frames in equal shares."""
    stride = min(len(frames), max(1, len(words) * len(frames) // samples))
    return [
        (" ".join(frame.format(word).split()).lstrip(", "), label)
        for index, (word, label) in enumerate(words)
        for place, frame in enumerate(frames)
        if (index + place) % stride == 0
    ]


def _select(rule: str, prompt: EncodedPrompt) -> Tensor:
    return prompt.states[prompt.start : prompt.last + 1] if rule == CONTENT else select_rows(rule, [prompt])


METHOD = LEACE()
