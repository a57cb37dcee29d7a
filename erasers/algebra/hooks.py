"""Looking into a model's layers, and trying edits on them, by forward hooks that never touch a weight."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..errors import FamilyError
from ..model import TextTower
from ..result import WeightEdit
from ..target import Track, untracked
from .closed_form import solved_dtype

Output = Tensor | tuple[Tensor, ...]
Hook = Callable[[nn.Module, tuple[Tensor, ...], Output], Output | None]
Loss = Callable[[], Tensor]

_BATCH = 16


@contextmanager
def hooked(hooks: Iterable[tuple[nn.Module, Hook]]) -> Iterator[None]:
    """Carry forward hooks while the block runs, each module's in order; they go whatever happens in it."""
    with ExitStack() as stack:
        for module, hook in hooks:
            stack.callback(module.register_forward_hook(hook).remove)
        yield


@contextmanager
def gradients(in_place: bool = True) -> Iterator[None]:
    """Gradients on.

    Args:
        in_place: through layers that change their own inputs in place too, as some hosts' do (`Model.in_place`). Torch
            then looks at every operation, which takes a small model as long as the operations do.
    """
    with torch.enable_grad(), torch.autograd.graph.allow_mutation_on_saved_tensors() if in_place else nullcontext():
        yield


def adding(edit: WeightEdit) -> Hook:
    """A hook that makes a linear layer behave as if `edit` were added to its weight; gradients reach the edit."""

    def add(_module: nn.Module, args: tuple[Tensor, ...], output: Output) -> Tensor:
        assert isinstance(output, Tensor)
        x = args[0].to(solved_dtype(args[0]))
        if edit.up is not None and edit.down is not None:
            moved = x @ edit.down.to(x).T @ edit.up.to(x).T
        else:
            moved = x @ edit.delta((output.shape[-1], x.shape[-1])).to(x).T
        return output + moved.to(output)

    return add


def shifting(delta: Tensor, places: Tensor) -> Hook:
    """A hook that adds `delta` `[o]` to a layer's output at position `places[i]` of row i; gradients reach delta."""

    def shift(_module: nn.Module, _args: tuple[Tensor, ...], output: Output) -> Output:
        states = states_of(output).clone()
        states[torch.arange(len(places)), places] += delta.to(states)
        return (states, *output[1:]) if isinstance(output, tuple) else states

    return shift


def edit_gradients(
    modules: Mapping[str, nn.Module],
    weights: Mapping[str, Tensor],
    losses: Sequence[Loss],
    track: Track = untracked,
) -> dict[str, Tensor]:
    """Mean gradients of the losses with respect to linear layers' weights.

    They are taken of a zero edit added by hooks, so that the weights may be frozen, quantised or on
    another device, and none is touched.

    Args:
        modules: the layers, by name.
        weights: tensors of the weights' shapes `[o, i]` and the gradients' dtype, by the same names.
        losses: each is run once, in order, while the hooks are there; not in inference mode.
        track: goes through the losses; what it raises ends it.

    Returns:
        `[o, i]` by name, without the layers that no loss depends on.
    """
    with gradients():
        deltas = {name: torch.zeros_like(weights[name], requires_grad=True) for name in modules}
        with hooked((modules[name], adding(WeightEdit(dense=delta))) for name, delta in deltas.items()):
            for loss in track(losses, len(losses)):
                value = loss() / len(losses)
                if value.requires_grad:
                    value.backward()
    return {name: delta.grad for name, delta in deltas.items() if delta.grad is not None}


def states_of(output: Output) -> Tensor:
    """The states in what a layer returns, which may be alone or first in a tuple."""
    return output[0] if isinstance(output, tuple) else output


@dataclass(frozen=True)
class Place:
    """A prompt and the phrase in it whose last token counts; "" for the whole prompt's."""

    text: str
    phrase: str = ""


@dataclass
class Probe:
    """A text tower and the edits that its forward passes here already see, by module name."""

    tower: TextTower
    edits: dict[str, WeightEdit] = field(default_factory=dict)

    def active(self, hooks: Mapping[str, Hook]) -> list[tuple[nn.Module, Hook]]:
        """The edits' hooks, and `hooks` by module name after them, for `hooked`."""
        every = [*((name, adding(edit)) for name, edit in self.edits.items()), *hooks.items()]
        return [(self.tower.module.get_submodule(name), hook) for name, hook in every]

    def watch(self, prompts: Sequence[str], names: Iterable[str]) -> Iterator[tuple[list[str], dict[str, Seen]]]:
        """Run prompts without gradients, in batches; yields each batch and what passed the named modules."""
        for start in range(0, len(prompts), _BATCH):
            batch = list(prompts[start : start + _BATCH])
            seen = {name: Seen(len(batch)) for name in names}
            with torch.no_grad(), hooked(self.active({name: passed.see for name, passed in seen.items()})):
                self.tower.run(batch)
            yield batch, seen

    def read(self, places: Sequence[Place], name: str) -> tuple[Tensor, Tensor]:
        """Input `[n, k]` and output `[n, o]` of a module at n places, on the CPU, float64 if it runs in that."""
        positions = iter([self.position(place) for place in places])
        inputs, outputs = [], []
        for batch, seen in self.watch([place.text for place in places], [name]):
            rows, at = torch.arange(len(batch)), torch.tensor([next(positions) for _ in batch])
            inputs.append(seen[name].inputs[rows, at])
            outputs.append(seen[name].outputs[rows, at])
        return torch.cat(inputs), torch.cat(outputs)

    def position(self, place: Place) -> int:
        """Where the phrase's last token stands; in the empty prompt the end token, which says nothing."""
        return self.tower.position(place.text, place.phrase) + (not place.text)


class Seen:
    """What passed one module while `count` prompts ran."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._inputs: list[Tensor] = []
        self._outputs: list[Tensor] = []

    def see(self, _module: nn.Module, args: tuple[Tensor, ...], output: Output) -> None:
        """The hook; it copies, since some hosts add to a layer's output in place."""
        self._inputs.append(args[0].clone())
        self._outputs.append(states_of(output).clone())

    @property
    def inputs(self) -> Tensor:
        """`[count, tokens, k]`."""
        return self._joined(self._inputs)

    @property
    def outputs(self) -> Tensor:
        """`[count, tokens, o]`."""
        return self._joined(self._outputs)

    def _joined(self, parts: list[Tensor]) -> Tensor:
        rows = sum(len(part) for part in parts)
        if rows != self._count:
            raise FamilyError(
                f"The text encoder ran {rows} rows for {self._count} prompts.",
                "Use concepts and preserved prompts that fit one window of it.",
            )
        joined = torch.cat(parts)
        return joined.to("cpu", solved_dtype(joined))
