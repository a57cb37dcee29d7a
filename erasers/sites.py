"""Sites: the linear maps that text features pass through first, found by parameter name and shape.

Only names and shapes are looked at, so the same table serves a ComfyUI model (quantised and
offloaded weights included) and a diffusers UNet. In a UNet they are the key and value projections of every
cross-attention; in most transformers the one embedder of the text, after which features depend on the picture too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from .errors import FamilyError

TESTED, EXPECTED, NO = "tested", "expected", "no"
HOOK, WEIGHTS, GUARDS, WORDS, TRAINING, STACKING = "hook", "weights", "guards", "words", "training", "stacking"
CAPABILITIES = (HOOK, WEIGHTS, GUARDS, WORDS, TRAINING, STACKING)
"""Closed-form edits as a hook and as weights, guards, reweighted words, trained adapters, several erasers at once."""
UNET_SITES = r"\.attn2\.to_(?P<role>[kv])\.weight$"
UNET_FOREIGN = r"^(?:transformer_|joint_|double_|double_stream_)?blocks\."
"""Transformers list their blocks at the top; some have an `attn2` that reads what comes after a caption projection."""


@dataclass(frozen=True)
class Encoder:
    """A text encoder as a family uses it.

    Attributes:
        stream: its name, as the host names encoders.
        width: features per token.
        causal: whether a token's features know only what stands before it.
        start, end: whether a prompt begins with a start token, and closes with an end token.
        least: tokens that the host pads a prompt to, at least.
        padding_read: whether the denoiser sees the padding's features; else it masks them.
        wrapped: whether the host puts the prompt into a template.
    """

    stream: str
    width: int
    causal: bool = False
    start: bool = False
    end: bool = True
    least: int = 1
    padding_read: bool = True
    wrapped: bool = False


CLIP_L = Encoder("clip_l", 768, causal=True, start=True, least=77)
CLIP_G = Encoder("clip_g", 1280, causal=True, start=True, least=77)


@dataclass(frozen=True)
class Verdict:
    """Whether something works for a family: `TESTED`, `EXPECTED` or `NO`, and why not or how far."""

    state: str
    why: str = ""


@dataclass(frozen=True)
class TextKeys:
    """Where a prompt's tokens stand among what a picture's places look at, in a transformer.

    Attributes:
        joint: whether the places themselves stand beside them; else it is cross-attention to the tokens alone.
        before: tokens of the model's own in front of them.
        behind: whether they stand behind the places, and not in front.
        always: whether all attentions are to both.
        marked: whether the host names the kind of block in attentions to both, and not in those to one alone; else
            they are told by how many they look at.
        alone: whether tokens look at each other too, in attentions as wide, of blocks that the host does not name.
        multiple: what the model pads the number of tokens, and that of places, to a multiple of.
        patch: latents a side of a place of a picture.
        zeros: whether the host makes prompts longer by zeros in front of them, where it repeats them for others.
    """

    joint: bool
    before: int = 0
    behind: bool = False
    always: bool = False
    marked: bool = True
    alone: bool = False
    multiple: int = 1
    patch: int = 2
    zeros: bool = False


@dataclass(frozen=True)
class Further:
    """Text features that enter a model beside those of its sites, by weights of their own.

    Attributes:
        stream: their name in erasers.
        encoder: the stream of the text encoder that they come from.
        width: features per token.
        sites: pattern of the weights that read them first.
        given: what the host calls them in what it gives of a prompt, `[n, tokens, d]`.
        taken: what the host's model calls them.
        layer: where several layers' features are given as one, `[n, layers, tokens, d]`, which layer; else None.
    """

    stream: str
    encoder: str
    width: int
    sites: str
    given: str
    taken: str
    layer: int | None = None


@dataclass(frozen=True)
class Family:
    """What the pack knows about a model family.

    Attributes:
        name: id used in files.
        title: name shown to people.
        stream: which text encoders' features the sites read, named as the host names encoders:
            "a+b" when two are concatenated along the width, "a|b" when they follow each other along the tokens.
        width: features per token that enter the sites.
        sites: pattern of the weights that read text features first; its group "role" tells key from value, where
            they are told apart.
        mark, foreign: patterns of a weight that a model of the family has, and of one that it has not; "" for any.
        pooled_stream, pooled_width: the pooled features that enter beside the tokens; "" and 0 where none do.
        pooled_site: pattern of the first weight they pass; they are its leading columns.
        blocks: number of blocks that read text, of the largest full-size model.
        pixels: width and height it was trained to draw.
        prediction: what the denoiser predicts; two where the family has models of both kinds.
        encoders: the text encoders that feed it, pooled features included.
        lora: what other trainers' files call the first site.
        hosts: the host's classes of its models.
        layers: which modules the kinds of layers are that training knows (learn/where.py), where they have other
            names than a UNet's.
        can: verdicts by capability; those that are not there are `EXPECTED`.
        proven: what was run, in a few words.
        text_keys: where a prompt's tokens stand in attention; None for UNets, and where nothing can reach them.
        further: text features that enter beside the tokens and the pooled ones.
    """

    name: str
    title: str
    stream: str
    width: int
    blocks: int
    pixels: int
    proven: str
    sites: str = UNET_SITES
    mark: str = ""
    foreign: str = ""
    pooled_stream: str = ""
    pooled_width: int = 0
    pooled_site: str = ""
    prediction: tuple[str, ...] = ("eps",)
    encoders: tuple[Encoder, ...] = (CLIP_L,)
    lora: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    layers: Mapping[str, str] = field(default_factory=dict)
    can: Mapping[str, Verdict] = field(default_factory=dict)
    text_keys: TextKeys | None = None
    further: tuple[Further, ...] = ()

    @property
    def widths(self) -> Mapping[str, int]:
        """The width of every stream of text features that an eraser may edit."""
        pooled = {self.pooled_stream: self.pooled_width} if self.pooled_stream else {}
        return {self.stream: self.width, **pooled, **{own.stream: own.width for own in self.further}}

    def seen_by(self, own: Further) -> Family:
        """The family as if its further features were the only ones."""
        alone = {"pooled_stream": "", "pooled_width": 0, "pooled_site": "", "further": ()}
        return replace(self, stream=own.stream, width=own.width, sites=own.sites, **alone)

    @property
    def is_unet(self) -> bool:
        """Whether it is a UNet whose cross-attentions read text features as they leave the text encoder."""
        return self.sites == UNET_SITES

    @property
    def readers(self) -> tuple[Encoder, ...]:
        """The text encoders whose features the sites read."""
        streams = self.stream.replace("|", "+").split("+")
        return tuple(encoder for encoder in self.encoders if encoder.stream in streams)

    @property
    def is_plain(self) -> bool:
        """Whether its text is one CLIP encoder's features, token by token, and nothing beside them."""
        return len(self.encoders) == 1 and self.ends and not self.pooled_stream

    @property
    def ends(self) -> bool:
        """Whether each prompt is closed by an end token that knows all of it, in all features alike."""
        return "|" not in self.stream and all(one.causal and one.start and one.end for one in self.readers)

    def verdict(self, capability: str) -> Verdict:
        """Whether the family can do something of `CAPABILITIES`."""
        return self.can.get(capability, Verdict(EXPECTED))

    def require(self, capability: str) -> None:
        """FamilyError, with the reason, where the family cannot do something of `CAPABILITIES`."""
        verdict = self.verdict(capability)
        if verdict.state == NO:
            raise FamilyError(f"{self.title}: {verdict.why}", "The README says what works for which models.")


@dataclass(frozen=True)
class Need:
    """Something that is not there everywhere.

    Attributes:
        what: what it is, as in 'needs a UNet'.
        met: whether a family has it.
        given: whether it is none of the model's, and the user gives it.
    """

    what: str
    met: Callable[[Family], bool]
    given: bool = False


A_UNET = Need("a UNet", lambda family: family.is_unet)
AN_END = Need("text encoders that close a prompt with an end token, as CLIP's do", lambda family: family.ends)
ONE_CLIP = Need("one CLIP text encoder", lambda family: len(family.readers) == 1 and family.ends)
A_PICTURE = Need("a picture of yours to change", lambda family: True, given=True)
A_MASK = Need("a mask of what is to go", lambda family: True, given=True)


@dataclass(frozen=True)
class Site:
    """One linear map from text features: its parameter's name, role ("k", "v", or "" for both) and sizes."""

    name: str
    role: str
    fan_out: int
    width: int


def find_sites(shapes: Mapping[str, tuple[int, ...]], known: Iterable[Family]) -> tuple[Family, tuple[Site, ...]]:
    """Recognise a model and list its sites.

    Args:
        shapes: every parameter's name and shape.
        known: the families to try.

    Returns:
        The family and its sites in the order of `shapes`.

    Raises:
        FamilyError: no family fits, or its sites disagree about the width.
    """
    known, listed = tuple(known), "\n".join(shapes)
    widths: set[int] = set()
    for family in known:
        sites = list_sites(shapes, family, listed) if _fits(listed, family) else ()
        widths |= {site.width for site in sites}
        if sites and all(site.width == family.width for site in sites):
            return family, sites
    supported = ", ".join(f"{family.title} ({family.width})" for family in known)
    if not widths:
        raise FamilyError(
            "This model has no cross-attention and no text embedder that is known, so there is no place to erase from.",
            f"Supported families and their text widths: {supported}.",
        )
    found = ", ".join(str(width) for width in sorted(widths))
    raise FamilyError(
        f"This model reads text features of width {found}, which no known family of its kind has.",
        f"Supported families and their text widths: {supported}.",
    )


def pooled_site(shapes: Mapping[str, tuple[int, ...]], family: Family) -> str:
    """The weight that the pooled features enter first; FamilyError where the model has none."""
    found = [name for name in shapes if family.pooled_site and re.search(family.pooled_site, name)]
    if not found:
        raise FamilyError(
            f"{family.title} has no weight that reads pooled text features.", "Switch the editing of them off."
        )
    return found[0]


def reading_weights(shapes: Mapping[str, tuple[int, ...]], family: Family, stream: str) -> list[str]:
    """Names of the weights that features of a stream enter first; FamilyError where the model has none."""
    if stream == family.stream:
        return [site.name for site in list_sites(shapes, family)]
    own = next((own for own in family.further if own.stream == stream), None)
    if own is None:
        return [pooled_site(shapes, family)]
    found = [site.name for site in list_sites(shapes, family.seen_by(own))]
    if not found:
        raise FamilyError(
            f"This {family.title} has no weight that reads {stream}.", "Load the model that the eraser was made for."
        )
    return found


def list_sites(shapes: Mapping[str, tuple[int, ...]], family: Family, listed: str = "") -> tuple[Site, ...]:
    """The sites of a family among a model's weights, or some of them.

    Args:
        shapes: names and shapes of the weights.
        listed: the names, one per line, where they are at hand like this: one search, not one for each.
    """
    listed, found = listed or "\n".join(shapes), []
    for match in re.finditer(family.sites, listed, re.MULTILINE):
        name = listed[listed.rfind("\n", 0, match.start()) + 1 : match.end()]
        shape = shapes[name]
        if len(shape) == 2:
            found.append(Site(name, match.groupdict().get("role") or "", *shape))
    return tuple(found)


def _fits(listed: str, family: Family) -> bool:
    """Whether names of weights, one per line, have a family's mark and none that is foreign to it."""
    if family.foreign and re.search(family.foreign, listed, re.MULTILINE):
        return False
    return not family.mark or re.search(family.mark, listed, re.MULTILINE) is not None
