"""The demo model as the nodes give it, and the same with the ball erased by UCE."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import tiny_models
import torch
from lethe.erasers.concepts import Concept, ConceptList


@pytest.fixture(scope="module", autouse=True)
def forgotten() -> Iterator[None]:
    """Families' models go with the file that used them, and before the host does."""
    yield
    tiny_models.tiny.cache_clear()


@pytest.fixture(scope="module")
def demo(comfy: Any) -> Any:
    """MODEL, CLIP, VAE and CLIP_VISION."""
    from lethe.nodes.demo import LetheDemoModel

    with torch.inference_mode():
        return LetheDemoModel.execute().result


@pytest.fixture(scope="module")
def erased(demo: Any) -> Any:
    """MODEL, CLIP, eraser and summary of the erasure of the ball."""
    from lethe.nodes.erase import LetheErase

    concepts = ConceptList(lists=("demo-world",)).with_concept(Concept("ball", "box"))
    with torch.inference_mode():
        return LetheErase.execute(demo[0], demo[1], concepts, 1.0, "hook", False, method={"method": "uce"}).result
