import itertools
import re
import xml.etree.ElementTree as ET

import pytest
import torch

from advnas.report.cell import cell_svg
from advnas.spaces import SPACES
from advnas.spaces.nasbench201 import NASBENCH201

SVG = "{http://www.w3.org/2000/svg}"
ARCH = "|nor_conv_3x3~0|+|nor_conv_1x1~0|avg_pool_3x3~1|+|skip_connect~0|none~1|nor_conv_3x3~2|"


def texts(root: ET.Element) -> list[str]:
    return [text.text or "" for text in root.iter(f"{SVG}text")]


def test_every_edge_is_labelled_with_its_operation():
    root = ET.fromstring(cell_svg(NASBENCH201, ARCH))
    labels = ["conv 3×3", "conv 1×1", "avg pool 3×3", "skip", "none", "conv 3×3"]
    assert texts(root)[:6] == labels
    arrows = [path for path in root.iter(f"{SVG}path") if "marker-end" in path.attrib]
    ops = ["nor_conv_3x3", "nor_conv_1x1", "avg_pool_3x3", "skip_connect", "none", "nor_conv_3x3"]
    assert [arrow.get("marker-end") for arrow in arrows] == [f"url(#{op})" for op in ops]
    assert [arrow.get("stroke-dasharray") is not None for arrow in arrows] == [op == "none" for op in ops]


def test_picture_names_the_cell_its_nodes_and_every_operation():
    root = ET.fromstring(cell_svg(NASBENCH201, ARCH))
    assert root.findtext(f"{SVG}title") == ARCH
    assert {"input", "1", "2", "output", *NASBENCH201.ops} <= set(texts(root))
    assert len({path.get("stroke") for path in root.iter(f"{SVG}path") if path.get("stroke")}) == len(NASBENCH201.ops)


def test_labels_and_nodes_lie_apart_and_inside_the_picture():
    names = NASBENCH201.labels
    longest = max(names, key=lambda op: len(names[op]))
    arch = f"|{longest}~0|+|{longest}~0|{longest}~1|+|{longest}~0|{longest}~1|{longest}~2|"
    root = ET.fromstring(cell_svg(NASBENCH201, arch))
    width, height = (float(root.attrib[side]) for side in ("width", "height"))
    boxes = [[float(rect.attrib[key]) for key in ("x", "y", "width", "height")] for rect in root.iter(f"{SVG}rect")]
    assert len(boxes) == 6 + 4
    for x, y, w, h in boxes:
        assert x >= 0
        assert y >= 0
        assert x + w <= width
        assert y + h <= height
    for (x1, y1, w1, h1), (x2, y2, w2, h2) in itertools.combinations(boxes, 2):
        assert x1 + w1 <= x2 or x2 + w2 <= x1 or y1 + h1 <= y2 or y2 + h2 <= y1


def points(shape: str) -> torch.Tensor:
    """Points [101, 2] on a path that is a straight line (M, H) or one cubic curve (M, C)."""
    numbers = [float(number) for number in re.findall(r"-?[\d.]+", shape)]
    if "H" in shape:
        numbers += [numbers.pop(), numbers[1]]
        numbers = [*numbers[:2], *numbers[:2], *numbers[2:], *numbers[2:]]
    control = torch.tensor(numbers).reshape(4, 2)
    t = torch.linspace(0, 1, 101).unsqueeze(1)
    weights = torch.cat(((1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3), dim=1)
    return weights @ control


def test_edges_do_not_cross():
    root = ET.fromstring(cell_svg(NASBENCH201, ARCH))
    lines = [points(path.attrib["d"]) for path in root.iter(f"{SVG}path") if "marker-end" in path.attrib]
    assert len(lines) == 6
    for first, second in itertools.combinations(lines, 2):
        assert torch.cdist(first, second).min() > 8


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES.keys())
def test_every_space_has_a_picture(space):
    """Nodes lie apart and inside, and every operation that is drawn has its arrow, with the arrowhead that it names."""
    ops = torch.arange(space.num_edges) % len(space.ops)
    root = ET.fromstring(cell_svg(space, space.format(ops)))
    width, height = (float(root.attrib[side]) for side in ("width", "height"))
    boxes = [[float(rect.attrib[key]) for key in ("x", "y", "width", "height")] for rect in root.iter(f"{SVG}rect")]
    for x, y, w, h in boxes:
        assert 0 <= x <= x + w <= width
        assert 0 <= y <= y + h <= height
    nodes = boxes[-space.num_nodes :]
    assert all(left[0] + left[2] < right[0] for left, right in itertools.pairwise(nodes))
    heads = {marker.get("id") for marker in root.iter(f"{SVG}marker")}
    arrows = [path.get("marker-end") for path in root.iter(f"{SVG}path") if "marker-end" in path.attrib]
    assert {arrow.removeprefix("url(#").removesuffix(")") for arrow in arrows} <= heads == set(space.ops)
    drawn = [space.ops[op] for op in ops.tolist()]
    assert len(arrows) in (len(drawn), len([op for op in drawn if op != space.zero_op]))


def test_malformed_architecture_is_refused():
    with pytest.raises(ValueError, match="must have the form"):
        cell_svg(NASBENCH201, "conv")
