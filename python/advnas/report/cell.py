"""A cell as an SVG picture. It has no background, and its colours and text stand out on white and on black."""

from __future__ import annotations

from html import escape

from advnas.report import COLOURS
from advnas.spaces.nasbench201 import EDGES, NUM_NODES, OPS, parse_arch

NAMES = {
    "none": "none",
    "skip_connect": "skip",
    "nor_conv_1x1": "conv 1×1",
    "nor_conv_3x3": "conv 3×3",
    "avg_pool_3x3": "avg pool 3×3",
}
COLOUR = dict(zip(OPS, COLOURS, strict=False))

WIDTH, HEIGHT = 780, 352
NODE_WIDTH, NODE_HEIGHT, SPACING = 76, 44, 212
MIDDLE = 196  # y of the nodes' centres
LEGEND = 330
GREY = "#7D8590"  # contrast above 3.5 with white and with black
CHARACTER = 7.2  # width of one at 13 px, a little more than the fonts have

# Edges between neighbours are straight. The others bend: how high, and where on the nodes' edge they begin and end, so that no two
# lines touch. Negative is upwards.
BENDS = {(2, 0): (-104, 12), (3, 0): (-196, -12), (3, 1): (104, 0)}


def cell_svg(arch: str) -> str:
    """The picture of a NAS-Bench-201 cell: its nodes from left to right, and on each edge the operation, a colour for each.

    Raises:
        ValueError: ``arch`` is malformed; see :func:`advnas.spaces.nasbench201.parse_arch`.
    """
    picked = [OPS[op] for op in parse_arch(arch).tolist()]
    edges = "\n".join(_edge(target, source, op) for (target, source), op in zip(EDGES, picked, strict=True))
    nodes = "\n".join(_node(node) for node in range(NUM_NODES))
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" \
role="img" font-family="system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif" font-size="13" text-anchor="middle">
<title>{escape(arch)}</title>
<defs>
{"".join(_arrowhead(op) for op in OPS)}</defs>
{edges}
{nodes}
{_legend()}
</svg>
"""


def _x(node: int) -> int:
    return WIDTH // 2 + round((node - (NUM_NODES - 1) / 2) * SPACING)


def _arrowhead(op: str) -> str:
    return (
        f'<marker id="{op}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="11" markerHeight="11" '
        f'markerUnits="userSpaceOnUse" orient="auto"><path d="M0 1 L10 5 L0 9 Z" fill="{COLOUR[op]}"/></marker>\n'
    )


def _line(shape: str, op: str, attributes: str = "") -> str:
    style = 'stroke-width="1.5" stroke-dasharray="4 5"' if op == "none" else 'stroke-width="3"'
    return f'<path d="{shape}" fill="none" stroke="{COLOUR[op]}" {style} {attributes}/>'


def _edge(target: int, source: int, op: str) -> str:
    start, end = _x(source), _x(target)
    if (target, source) in BENDS:
        bend, shift = BENDS[target, source]
        y = MIDDLE + (NODE_HEIGHT // 2 if bend > 0 else -NODE_HEIGHT // 2)
        start, end = start + shift, end - shift
        shape = f"M{start} {y} C{start} {y + bend} {end} {y + bend} {end} {y}"
        y += round(0.75 * bend)  # where a cubic is halfway
    else:
        start, end, y = start + NODE_WIDTH // 2, end - NODE_WIDTH // 2, MIDDLE
        shape = f"M{start} {y} H{end}"
    return _line(shape, op, f'marker-end="url(#{op})"') + "\n" + _label((start + end) // 2, y, op)


def _label(x: int, y: int, op: str) -> str:
    width = round(len(NAMES[op]) * CHARACTER) + 18
    return (
        f'<rect x="{x - width // 2}" y="{y - 12}" width="{width}" height="24" rx="12" fill="{COLOUR[op]}"/>'
        f'<text x="{x}" y="{y + 4.5}" fill="{_ink(COLOUR[op])}">{NAMES[op]}</text>'
    )


def _ink(colour: str) -> str:
    """Black or white, whichever is easier to read on ``colour``: their contrasts are equal at a luminance of 0.18 (WCAG 2)."""
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return "#111111" if 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2 > 0.18 else "#FFFFFF"


def _node(node: int) -> str:
    name = "input" if node == 0 else "output" if node == NUM_NODES - 1 else str(node)
    x, y = _x(node) - NODE_WIDTH // 2, MIDDLE - NODE_HEIGHT // 2
    return (
        f'<rect x="{x}" y="{y}" width="{NODE_WIDTH}" height="{NODE_HEIGHT}" rx="10" fill="#44505C" stroke="{GREY}" '
        f'stroke-width="1.5"/><text x="{_x(node)}" y="{MIDDLE + 5}" font-size="15" fill="#FFFFFF">{name}</text>'
    )


def _legend() -> str:
    """Every operation of the space: its line and its full name."""
    widths = [64 + round(len(op) * CHARACTER) for op in OPS]
    x = (WIDTH - sum(widths)) // 2
    entries = []
    for op, width in zip(OPS, widths, strict=True):
        text = f'<text x="{x + 38}" y="{LEGEND + 4.5}" fill="{GREY}" text-anchor="start">{op}</text>'
        entries.append(_line(f"M{x} {LEGEND} h30", op) + text)
        x += width
    return "\n".join(entries)
