"""What an eraser, or a file of another program, holds; as text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from torch import Tensor

from ..errors import LetheError
from ..exchange.lora import DOWN, split
from ..exchange.reading import concepts_in, layout_of
from ..exchange.tensor_file import TensorFile, opened
from ..registry import families
from ..result import Bottleneck, ContextOperator, Eraser, WeightEdit
from ..store.eraser_file import FORMAT, load_eraser

_SHOWN, _LONGEST = 8, 100


def describe(eraser: Eraser) -> str:
    """An eraser's recipe, its parts, their ranks and sizes."""
    recipe = eraser.recipe
    known = families().get(recipe.family)
    lines = [
        f"Method: {recipe.method}",
        f"Erases: {_listed(_concept(concept) for concept in recipe.concepts) or 'not said'}",
        f"Preserves: {len(recipe.preserve)} prompts",
        f"Family: {known.title if known else 'unknown'} ({recipe.family})",
        f"Text encoder: {recipe.encoder or 'not said'}",
        f"Settings: {_pairs(recipe.settings) or 'none'}",
        f"Seed: {recipe.seed}",
        f"Versions: {_pairs(recipe.versions) or 'not said'}",
        f"Size: {_size(eraser.tensors().values())}",
        f"Figures: {'; '.join(map(_figure, eraser.figures.items())) or 'none kept with it'}",
        "",
        *_parts(eraser),
    ]
    for number, member in enumerate(eraser.members, 1):
        gate = f"{member.gate.kind}, threshold {member.gate.threshold:g}, {_size(member.gate.tensors().values())}"
        names = _listed(member.eraser.recipe.names) or "not said"
        lines += ["", f"Member {number}: {member.eraser.recipe.method}, erases {names}", f"  gate: {gate}"]
        lines += [f"  {line}" for line in _parts(member.eraser)]
    return "\n".join(lines)


def describe_file(path: Path) -> str:
    """What a file holds, told without a model.

    Raises:
        EraserFileError: the file cannot be read, or is of no known layout.
    """
    with opened(path) as file:
        if file.metadata.get("format") == FORMAT:
            return describe(load_eraser(path))
        layout = layout_of(path, file.tensors)
        ranks = [file.tensors.shape(key) for key in file.tensors if split(key)[1] == DOWN]
        lines = [
            f"Layout: {layout.name}. {layout.about}",
            f"Erases: {_listed(_told(file)) or 'not said'}",
            f"Tensors: {len(file.tensors)}, {path.stat().st_size / 2**20:.2f} MB",
            *([f"Layers: {len(ranks)}, {_range('rank', [shape[0] for shape in ranks if shape])}"] if ranks else []),
            f"Metadata: {_pairs(file.metadata) or 'none'}",
            "",
            *(f"{key} {list(file.tensors.shape(key))}" for key in list(file.tensors)[:_SHOWN]),
        ]
        rest = len(file.tensors) - _SHOWN
        return "\n".join([*lines, *([f"and {rest} more"] if rest > 0 else [])])


def _figure(figure: tuple[str, tuple[float, float, float]]) -> str:
    name, (value, low, high) = figure
    return f"{_short(name)} {value:.2f} ({low:.2f} to {high:.2f})"


def _told(file: TensorFile) -> list[str]:
    try:
        return concepts_in(file.metadata)
    except LetheError as error:
        return [f"({error.problem})"]


def _parts(eraser: Eraser) -> list[str]:
    lines = []
    for stream, operator in eraser.context.items():
        form = "dense" if operator.dense is not None else f"rank {operator.rank}"
        bias = ", with a bias" if operator.bias is not None else ""
        size = _size(operator.tensors().values())
        lines.append(f"Context operator on {stream}: {form}, width {operator.width}{bias}, {size}")
    lines += _edits("Denoiser", eraser.adapters)
    lines += _edits("Text encoder", eraser.text_encoder)
    lines += _edits("Networks beside cross-attention", eraser.modules)
    if eraser.training:
        lines.append(f"State to train on from: {len(eraser.training)} tensors, {_size(eraser.training.values())}")
    return lines


def _edits(title: str, edits: Mapping[str, WeightEdit] | Mapping[str, Bottleneck]) -> list[str]:
    if not edits:
        return []
    tensors = [tensor for edit in edits.values() for tensor in edit.tensors().values()]
    ranks = [len(edit.down) for edit in edits.values() if edit.down is not None]
    spread = f", {_range('rank', ranks)}" if ranks else ""
    lines = [f"{title}: {len(edits)} sites{spread}, {_size(tensors)}"]
    lines += [
        f"  {name}: {_form(edit)}, {_size(edit.tensors().values())}" for name, edit in list(edits.items())[:_SHOWN]
    ]
    return [*lines, *([f"  and {len(edits) - _SHOWN} more"] if len(edits) > _SHOWN else [])]


def _form(edit: WeightEdit | Bottleneck | ContextOperator) -> str:
    if edit.down is not None:
        return f"rank {len(edit.down)}"
    values = getattr(edit, "values", None)
    return "dense" if values is None else f"{len(values)} numbers"


def _concept(concept: Mapping[str, object]) -> str:
    replacement = concept.get("replacement")
    return f"{concept['text']} -> {replacement}" if replacement else str(concept["text"])


def _range(name: str, values: list[int]) -> str:
    low, high = min(values, default=0), max(values, default=0)
    return f"{name} {low}" if low == high else f"{name}s {low} to {high}"


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(_short(name) for name in names[:_SHOWN]) + more


def _pairs(values: Mapping[str, object]) -> str:
    return ", ".join(f"{_short(key)} {_short(str(value))}" for key, value in values.items())


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _size(tensors: Iterable[Tensor]) -> str:
    count = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return f"{count / 2**20:.2f} MB" if count >= 2**20 else f"{count / 2**10:.1f} KB"
