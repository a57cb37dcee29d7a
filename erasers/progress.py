"""A bar that shows how far a long command is, on a terminal and where tqdm is installed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from .target import Item


@contextmanager
def progress_bar(count: int) -> Iterator[Callable[[], object]]:
    """A bar of `count` steps; what it gives is called after each."""
    if not sys.stderr.isatty() or find_spec("tqdm") is None:
        yield lambda: None
        return
    from tqdm import tqdm

    with tqdm(total=count, leave=False) as bar:
        yield bar.update


def tracked(items: Iterable[Item], count: int) -> Iterable[Item]:
    """Go through items, of which there are `count`, with a bar (target.Track)."""
    with progress_bar(count) as step:
        for item in items:
            yield item
            step()
