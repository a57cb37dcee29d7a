"""The pictures of the help pages: each node with its neighbours in the smallest template that has it.

`python -m lethe_host.illustrate [NODE ...]` draws them anew in a headless Chromium, into `nodes/web/docs/images`, and
names the template at the end of each page. A node that no template has stands there by itself. Without a node it also
draws the README's graph.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from pathlib import Path

import front_end
from playwright.sync_api import Page

from .convert import Json
from .install import CHECKOUT, Host
from .server import Server

WORKFLOWS = CHECKOUT / "workflows"
README = "erase_object"
DOCS = CHECKOUT / "nodes" / "web" / "docs"
LINE = re.compile(r"\n+!\[[^\n]*\]\(images/\w+\.jpg\)\n*(?=\Z)")
WIDEST, HIGHEST = 1000, 640
WHOLE = (1480, 860)
MOVING = 1500.0  # milliseconds; the front end glides to the whole graph first, and draws a few times a second
# Puts the node and what is linked to it, or the whole graph, in view, and returns where on the screen that is.
FRAME = """([type, widest, highest]) => {
    const node = app.graph.nodes.find(node => node.type === type)
    const links = [...(node?.inputs ?? []).map(i => i.link), ...(node?.outputs ?? []).flatMap(o => o.links ?? [])]
    const ends = links.map(id => app.graph.getLink(id)).filter(Boolean).flatMap(l => [l.origin_id, l.target_id])
    const shown = node ? [node, ...ends.map(id => app.graph.getNodeById(id))] : app.graph.nodes
    const title = LiteGraph.NODE_TITLE_HEIGHT, gap = 20
    const boxes = shown.map(({ pos, size }) => [pos[0], pos[1] - title, size[0], size[1] + title])
    const left = Math.min(...boxes.map(b => b[0])) - gap, top = Math.min(...boxes.map(b => b[1])) - gap
    const right = Math.max(...boxes.map(b => b[0] + b[2])) + gap
    const bottom = Math.max(...boxes.map(b => b[1] + b[3])) + gap
    const scale = Math.min(1, widest / (right - left), highest / (bottom - top))
    app.canvas.min_font_size_for_lod = 0
    app.canvas.ds.scale = scale
    app.canvas.ds.offset[0] = 380 / scale - left
    app.canvas.ds.offset[1] = 110 / scale - top
    app.canvas.setDirty(true, true)
    const canvas = app.canvas.canvas.getBoundingClientRect()
    return { x: canvas.left + 380, y: canvas.top + 110, width: scale * (right - left), height: scale * (bottom - top) }
}"""


def template_of(node: str) -> Path | None:
    """Returns the graph with the fewest nodes that has the node, None when none has."""
    graphs = {path: graph_of(path) for path in WORKFLOWS.glob("*.json")}
    having = [path for path, graph in graphs.items() if any(one["type"] == node for one in graph["nodes"])]
    return min(having, key=lambda path: (len(graphs[path]["nodes"]), path.name), default=None)


def alone(node: str) -> Json:
    """Returns a graph of nothing but the node."""
    only = {"id": 1, "type": node, "pos": [0, 0], "size": [320, 100], "mode": 0}
    return {"nodes": [only], "links": [], "version": 0.4}


def graph_of(template: Path) -> Json:
    return json.loads(template.read_text(encoding="utf-8"))


def picture(page: Page, graph: Json, node: str = "") -> bytes:
    """Returns a JPEG of a node among its neighbours, or of the whole graph."""
    front_end.show(page, graph)
    page.wait_for_timeout(MOVING)
    clip = page.evaluate(FRAME, [node, *((WIDEST, HIGHEST) if node else WHOLE)])
    page.wait_for_timeout(MOVING)
    return page.screenshot(clip=clip, type="jpeg", quality=85)


def illustrate(page: Page, node: str) -> None:
    """Writes the node's picture and names it at the end of its page."""
    template, path = template_of(node), DOCS / f"{node}.md"
    (DOCS / "images" / f"{node}.jpg").write_bytes(picture(page, graph_of(template) if template else alone(node), node))
    where = f"In the template {template.stem}" if template else "By itself"
    text = LINE.sub("", path.read_text(encoding="utf-8").rstrip())
    path.write_text(f"{text}\n\n![{where}](images/{node}.jpg)\n", encoding="utf-8")


def main() -> None:
    nodes = sys.argv[1:] or sorted(path.stem for path in DOCS.glob("*.md"))
    with (
        tempfile.TemporaryDirectory() as folder,
        Server(Host.current(), Path(folder)) as server,
        front_end.running(front_end.chromium()) as browser,
        front_end.opened(browser, server) as (page, _thrown),
    ):
        for node in nodes:
            illustrate(page, node)
        if not sys.argv[1:]:
            drawn = picture(page, graph_of(WORKFLOWS / f"{README}.json"))
            (DOCS / "images" / f"{README}.jpg").write_bytes(drawn)


if __name__ == "__main__":
    main()
