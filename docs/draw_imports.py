"""Draw the packages and who imports whom, from the import statements of the sources: docs/concepts/architecture.svg.

    python docs/draw_imports.py

An arrow that follows from others is left out (transitive reduction). An import that points upwards or sideways is an
error that names the two modules.
"""

import ast
import html
import pathlib

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = ROOT / "docs" / "concepts" / "architecture.svg"

# The levels, bottom to top, and one line about each room. A room that is not listed is placed just above its imports.
LEVELS: tuple[dict[str, str], ...] = (
    {
        "batch": "contract of host and device",
        "geometry": "box embedding, IoU",
        "files": "atomic writes",
        "compiled": "programs kept on disk",
        "memory": "settings of the allocator",
        "configs": "recipes by name",
        "examples": "a scene",
    },
    {
        "data": "records, streams, tokenizer, masking, packing",
        "visualization": "report and attention pages, drawing",
        "storage": "runs and weights in buckets",
    },
    {"model": "encoder, embeddings, region head (ResNet, RoIAlign)"},
    {"tasks": "one folder per task: sequence, head, loss, score"},
    {"weights": "names, reading, export, initialization"},
    {
        "training": "state, step, loop, checkpoints, mesh, processes",
        "detector": "bottom-up-attention Faster R-CNN",
    },
    {
        "prediction": "Predictor and its regions",
        "convert": "command: weights in and out",
        "data_prep": "builders, one per corpus",
    },
    {
        "web": "page of the app",
        "predict": "command: ask about images",
        "main": "command: train, evaluate, compile",
        "report": "command: compare runs",
    },
    {"app": "command: ask on a local web page"},
)
WIDTH, ROW, MARGIN, BOX = 1060, 104, 24, 56
STYLE = """
  text { font-family: system-ui, "DejaVu Sans", sans-serif; text-anchor: middle; fill: #1c2b2a }
  .name { font-size: 16px; font-weight: 600 }
  .about { font-size: 11.5px; fill: #4a5a58 }
  .room { fill: #e6f2f0; stroke: #00796b; stroke-width: 1.2 }
  .command { fill: #fff3e0; stroke: #b26a00; stroke-width: 1.2 }
  .ground { fill: #eceff1; stroke: #546e7a; stroke-width: 1.2 }
  .arrow { fill: none; stroke: #78909c; stroke-width: 1.3; marker-end: url(#head) }
"""


def room_of(module: str) -> str:
    """Return the room of a dotted module: its package in vlbert_jax, the file itself at the top, or data_prep."""
    parts = module.removesuffix(".__main__").split(".")
    return parts[0] if parts[0] != "vlbert_jax" else parts[1] if len(parts) > 1 else ""


def imported_modules(path: pathlib.Path) -> set[str]:
    """Return the dotted names that a file imports, at any depth of its code."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] in ("vlbert_jax", "data_prep")}


def imports_of_rooms(root: pathlib.Path = ROOT) -> dict[str, dict[str, str]]:
    """Return for each room the rooms that it imports, with one import statement as evidence."""
    rooms: dict[str, dict[str, str]] = {}
    for path in sorted([*(root / "vlbert_jax").rglob("*.py"), *(root / "data_prep").rglob("*.py")]):
        module = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        room = room_of(module)
        if not room:
            continue  # vlbert_jax/__init__.py: load() imports prediction when it is called
        below = rooms.setdefault(room, {})
        for name in sorted(imported_modules(path)):
            if room_of(name) not in ("", room):
                below.setdefault(room_of(name), f"{module} imports {name}")
    known = rooms.keys()
    return {room: {other: why for other, why in below.items() if other in known} for room, below in rooms.items()}


def levels_of(imports: dict[str, dict[str, str]]) -> dict[str, int]:
    """Return the level of each room. Raises ValueError for an import that does not point downwards."""
    levels = {room: level for level, rooms in enumerate(LEVELS) for room in rooms if room in imports}
    waiting = sorted(imports.keys() - levels.keys())
    while waiting:
        placed = [room for room in waiting if imports[room].keys() <= levels.keys()]
        if not placed:
            raise ValueError(f"the rooms {', '.join(waiting)} import each other in a cycle")
        levels |= {room: 1 + max((levels[below] for below in imports[room]), default=-1) for room in placed}
        waiting = [room for room in waiting if room not in levels]
    for room, below in imports.items():
        for other, why in below.items():
            if levels[other] >= levels[room]:
                raise ValueError(f"{why}: {other} is not below {room} (docs/draw_imports.py, LEVELS)")
    return levels


def reduced(imports: dict[str, dict[str, str]]) -> list[tuple[str, str]]:
    """Return the arrows that remain when every arrow that follows from others is left out."""

    def reached(room: str) -> set[str]:
        return set(imports[room]).union(*(reached(below) for below in imports[room]))

    arrows = []
    for room, below in imports.items():
        indirect = set().union(*(reached(other) for other in below)) if below else set()
        arrows += [(room, other) for other in below if other not in indirect]
    return sorted(arrows)


def drawing(root: pathlib.Path = ROOT) -> str:
    """Return the SVG of the present sources."""
    imports = imports_of_rooms(root)
    levels = levels_of(imports)
    about = {room: line for rooms in LEVELS for room, line in rooms.items()}
    order = list(about)
    top = max(levels.values())
    height = 2 * MARGIN + top * ROW + BOX
    places: dict[str, tuple[float, float, float]] = {}  # left, top, width
    for level in range(top + 1):
        row = [room for room, at in levels.items() if at == level]
        row.sort(key=lambda room: (order.index(room) if room in order else len(order), room))
        gap, number = 40, max(len(row), 1)
        width = min(320, (WIDTH - 2 * MARGIN - gap * (number - 1)) / number)
        left = (WIDTH - number * width - (number - 1) * gap) / 2
        for i, room in enumerate(row):
            places[room] = (left + i * (width + gap), MARGIN + (top - level) * ROW, width)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">',
        "<title>Packages of vlbert_jax and their imports</title>",
        f"<style>{STYLE}</style>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z" fill="#78909c"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{height}" rx="8" fill="#ffffff"/>',
    ]
    arrows = reduced(imports)
    for room, below in arrows:
        lines.append(arrow(room, below, places, arrows))
    for room, (left, y, width) in places.items():
        kind = "ground" if levels[room] == 0 else "command" if about.get(room, "").startswith("command") else "room"
        middle = left + width / 2
        text = html.escape(about.get(room, ""))
        lines += [
            f'<rect class="{kind}" x="{left:.0f}" y="{y}" width="{width:.0f}" height="{BOX}" rx="7"/>',
            f'<text class="name" x="{middle:.0f}" y="{y + 24}">{html.escape(room)}</text>',
            f'<text class="about" x="{middle:.0f}" y="{y + 43}">{text}</text>',
        ]
    return "\n".join([*lines, "</svg>", ""])


def arrow(room: str, below: str, places: dict, arrows: list[tuple[str, str]]) -> str:
    """Return the curve from the bottom of `room` to the top of `below`; arrows of one box share its width."""

    def spread(box: str, ends: list[str], other: str) -> float:
        left, _, width = places[box]
        ends = sorted(ends, key=lambda end: places[end][0] + places[end][2] / 2)
        return left + width * (ends.index(other) + 1) / (len(ends) + 1)

    x1 = spread(room, [b for a, b in arrows if a == room], below)
    x2 = spread(below, [a for a, b in arrows if b == below], room)
    y1, y2 = places[room][1] + BOX, places[below][1] - 1
    bend = min(60, (y2 - y1) / 2)
    return f'<path class="arrow" d="M{x1:.0f} {y1} C{x1:.0f} {y1 + bend:.0f} {x2:.0f} {y2 - bend:.0f} {x2:.0f} {y2}"/>'


if __name__ == "__main__":
    TARGET.write_text(drawing(), encoding="utf-8")
    print(TARGET)
