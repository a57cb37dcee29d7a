"""Lethe: text-to-image models that forget.

The host imports this package and calls `comfy_entrypoint`. Importing it loads nothing else.
"""

from __future__ import annotations

from typing import Any

WEB_DIRECTORY = "./nodes/web"


async def comfy_entrypoint() -> Any:
    """Give the host the pack's nodes; on a host that is too old, say so in one line."""
    try:
        from comfy_api.latest import io

        io.DynamicCombo  # noqa: B018
        io.NodeInfoV1.search_aliases  # noqa: B018
    except (ImportError, AttributeError) as error:
        raise RuntimeError("Lethe needs ComfyUI 0.16.3 or newer; please update it.") from error
    from .nodes import LetheExtension

    return LetheExtension()
