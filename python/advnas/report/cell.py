"""A cell as an SVG picture. It has no background, and its colours and text stand out on white and on black."""

from __future__ import annotations

from html import escape

from advnas.report.figures import COLOURS
from advnas.spaces import Space

WIDTH, HEIGHT = 780, 352
NODE_WIDTH, NODE_HEIGHT, SPACING = 76, 44, 212
MIDDLE = 196  # y of the nodes' centres
LEGEND = 44  # its height, below
NARROW = 150  # between nodes where many are drawn
ARC = 46  # height of an arc for each node that it passes
GREY = "#7D8590"  # contrast above 3.5 with white and with black
CHARACTER = 7.2  # width of one at 13 px, a little more than the fonts have


def cell_svg(space: Space, arch: str) -> str:
    """The picture of a cell: its nodes from left to right, and on each edge the operation, a colour for each.

    Raises:
        ValueError: ``arch`` is malformed; see :meth:`advnas.spaces.Space.parse`.
    """
    return _Picture(space).svg(arch)


class _Picture:
    """Edges between neighbours are straight. The others bend as the space says, so that no two lines touch; where it says nothing,
    they are arcs, upwards and downwards in turn, the higher the longer. Operations that contribute nothing are left out of such a
    drawing, where they would be most of the edges."""

    def __init__(self, space: Space) -> None:
        self.space = space
        self.colour = {op: COLOURS[place % len(COLOURS)] for place, op in enumerate(self._in_order(space))}
        self.is_laid_out = bool(space.bends)
        self.spacing = SPACING if self.is_laid_out else NARROW
        self.legend = [64 + round(len(op) * CHARACTER) for op in space.ops]
        self.width = max(WIDTH, NODE_WIDTH + 68 + self.spacing * (space.num_nodes - 1), sum(self.legend) + 32)
        self.middle, self.height = MIDDLE, HEIGHT

    @staticmethod
    def _in_order(space: Space) -> list[str]:
        """Grey, the first colour, is that of the operation that contributes nothing."""
        return sorted(space.ops, key=lambda op: op != space.zero_op)

    def svg(self, arch: str) -> str:
        space = self.space
        picked = [space.ops[op] for op in space.parse(arch).tolist()]
        drawn = {
            name: [
                (*edge, op)
                for edge, op in zip(space.edges[part], picked[part], strict=True)
                if self.is_laid_out or op != space.zero_op
            ]
            for name, part in space.parts.items()
        }
        if not self.is_laid_out:
            reach = max((target - source - 1 for part in drawn.values() for target, source, _ in part), default=0)
            self.middle = ARC * reach + 2 * NODE_HEIGHT
            self.height = 2 * self.middle + NODE_HEIGHT
        cell_height = self.height - LEGEND
        self.height = cell_height * len(drawn) + LEGEND
        cells = "\n".join(
            self._cell(name, edges, cell_height * place) for place, (name, edges) in enumerate(drawn.items())
        )
        return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" width="{self.width}" \
height="{self.height}" role="img" font-family="system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif" font-size="13" \
text-anchor="middle">
<title>{escape(arch)}</title>
<defs>
{"".join(map(self._arrowhead, space.ops))}</defs>
{cells}
{self._legend()}
</svg>
"""

    def _cell(self, name: str, edges: list[tuple[int, int, str]], y: int) -> str:
        """A kind of cell, ``y`` from the top."""
        lines = [*(self._edge(*edge) for edge in edges), *map(self._node, range(self.space.num_nodes))]
        if not name:
            return "\n".join(lines)
        title = f'<text x="16" y="28" font-size="15" fill="{GREY}" text-anchor="start">{name}</text>'
        return "\n".join([f'<g transform="translate(0 {y})">', title, *lines, "</g>"])

    def _x(self, node: int) -> int:
        return self.width // 2 + round((node - (self.space.num_nodes - 1) / 2) * self.spacing)

    def _arrowhead(self, op: str) -> str:
        return (
            f'<marker id="{op}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="11" markerHeight="11" '
            f'markerUnits="userSpaceOnUse" orient="auto"><path d="M0 1 L10 5 L0 9 Z" fill="{self.colour[op]}"/></marker>\n'
        )

    def _line(self, shape: str, op: str, attributes: str = "") -> str:
        style = 'stroke-width="1.5" stroke-dasharray="4 5"' if op == self.space.zero_op else 'stroke-width="3"'
        return f'<path d="{shape}" fill="none" stroke="{self.colour[op]}" {style} {attributes}/>'

    def _bend(self, target: int, source: int) -> tuple[int, int]:
        """How high the curve of an edge between nodes that are no neighbours reaches, and how far its ends are moved."""
        if (target, source) in self.space.bends:
            return self.space.bends[target, source]
        up = -1 if source % 2 == 0 else 1
        return round(up * ARC * (target - source - 1) / 0.75), 6 * (target - source - 1)

    def _edge(self, target: int, source: int, op: str) -> str:
        start, end = self._x(source), self._x(target)
        if target - source > 1:
            bend, shift = self._bend(target, source)
            y = self.middle + (NODE_HEIGHT // 2 if bend > 0 else -NODE_HEIGHT // 2)
            start, end = start + shift, end - shift
            shape = f"M{start} {y} C{start} {y + bend} {end} {y + bend} {end} {y}"
            y += round(0.75 * bend)  # where a cubic is halfway
        else:
            start, end, y = start + NODE_WIDTH // 2, end - NODE_WIDTH // 2, self.middle
            shape = f"M{start} {y} H{end}"
        return self._line(shape, op, f'marker-end="url(#{op})"') + "\n" + self._label((start + end) // 2, y, op)

    def _label(self, x: int, y: int, op: str) -> str:
        name, colour = self.space.labels.get(op, op), self.colour[op]
        width = round(len(name) * CHARACTER) + 18
        return (
            f'<rect x="{x - width // 2}" y="{y - 12}" width="{width}" height="24" rx="12" fill="{colour}"/>'
            f'<text x="{x}" y="{y + 4.5}" fill="{_ink(colour)}">{name}</text>'
        )

    def _node(self, node: int) -> str:
        names = self.space.node_names
        name = names[node] if names else str(node)
        x, y = self._x(node) - NODE_WIDTH // 2, self.middle - NODE_HEIGHT // 2
        return (
            f'<rect x="{x}" y="{y}" width="{NODE_WIDTH}" height="{NODE_HEIGHT}" rx="10" fill="#44505C" stroke="{GREY}" '
            f'stroke-width="1.5"/><text x="{self._x(node)}" y="{self.middle + 5}" font-size="15" fill="#FFFFFF">{name}</text>'
        )

    def _legend(self) -> str:
        """Every operation of the space: its line and its full name."""
        x, y = (self.width - sum(self.legend)) // 2, self.height - 22
        entries = []
        for op, width in zip(self.space.ops, self.legend, strict=True):
            text = f'<text x="{x + 38}" y="{y + 4.5}" fill="{GREY}" text-anchor="start">{op}</text>'
            entries.append(self._line(f"M{x} {y} h30", op) + text)
            x += width
        return "\n".join(entries)


def _ink(colour: str) -> str:
    """Black or white, whichever is easier to read on ``colour``: their contrasts are equal at a luminance of 0.18 (WCAG 2)."""
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return "#111111" if 0.2126 * red**2.2 + 0.7152 * green**2.2 + 0.0722 * blue**2.2 > 0.18 else "#FFFFFF"
