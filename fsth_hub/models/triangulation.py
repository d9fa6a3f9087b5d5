"""The face as a mesh of triangles: which of them each pixel of a frame lies in."""

import torch

from .landmark_layout import JAW, LEFT_EYE, RIGHT_EYE, RIGID
from .rims import EDGES, rim_points, split


# The triangulation of a mean face: the 68 points, seven of the forehead (68 to 74) and one of either cheek (75, 76),
# after them those between the points of a rim. No triangle spans an opening.
NUM_VERTICES = 77
BROWS = (17, 18, 20, 21, 22, 23, 25, 26)
CHEEKS = ((36, 31, 3, 2), (45, 35, 13, 14))
FOREHEAD_HEIGHT = 0.45  # above the brows, in distances between the eyes
TRIANGLES = torch.tensor(split([
    (0, 1, 36), (0, 17, 36), (0, 17, 68), (1, 2, 75), (1, 36, 75), (2, 3, 75), (3, 4, 48), (3, 48, 75), (4, 5, 48),
    (5, 6, 59), (5, 48, 59), (6, 7, 59), (7, 8, 57), (7, 57, 58), (7, 58, 59), (8, 9, 57), (9, 10, 55), (9, 55, 56),
    (9, 56, 57), (10, 11, 55), (11, 12, 54), (11, 54, 55), (12, 13, 54), (13, 14, 76), (13, 54, 76), (14, 15, 76),
    (15, 16, 45), (15, 45, 76), (16, 26, 45), (16, 26, 74), (17, 18, 36), (17, 18, 68), (18, 19, 37), (18, 19, 69),
    (18, 36, 37), (18, 68, 69), (19, 20, 37), (19, 20, 70), (19, 69, 70), (20, 21, 38), (20, 21, 70), (20, 37, 38),
    (21, 22, 27), (21, 22, 71), (21, 27, 39), (21, 38, 39), (21, 70, 71), (22, 23, 43), (22, 23, 72), (22, 27, 42),
    (22, 42, 43), (22, 71, 72), (23, 24, 44), (23, 24, 72), (23, 43, 44), (24, 25, 44), (24, 25, 73), (24, 72, 73),
    (25, 26, 45), (25, 26, 74), (25, 44, 45), (25, 73, 74), (27, 28, 39), (27, 28, 42), (28, 29, 39), (28, 29, 42),
    (29, 30, 31), (29, 30, 35), (29, 31, 40), (29, 35, 47), (29, 39, 40), (29, 42, 47), (30, 31, 32), (30, 32, 33),
    (30, 33, 34), (30, 34, 35), (31, 32, 49), (31, 40, 75), (31, 49, 75), (32, 33, 50), (32, 49, 50), (33, 34, 52),
    (33, 50, 51), (33, 51, 52), (34, 35, 53), (34, 52, 53), (35, 47, 76), (35, 53, 76), (36, 41, 75), (40, 41, 75),
    (45, 46, 76), (46, 47, 76), (48, 49, 60), (48, 49, 75), (48, 59, 60), (49, 50, 61), (49, 60, 61), (50, 51, 61),
    (51, 52, 63), (51, 61, 62), (51, 62, 63), (52, 53, 63), (53, 54, 64), (53, 54, 76), (53, 63, 64), (54, 55, 64),
    (55, 56, 65), (55, 64, 65), (56, 57, 65), (57, 58, 67), (57, 65, 66), (57, 66, 67), (58, 59, 67), (59, 60, 67),
], NUM_VERTICES))  # fmt: skip
# How exact the flow is at each vertex; in between it goes over into the smooth one.
EXACTNESS = torch.ones(NUM_VERTICES + len(EDGES))
EXACTNESS[JAW] = 0
EXACTNESS[68:NUM_VERTICES] = 0

MIN_AREA = 1e-6  # square pixels, twice that of a triangle
TOUCHES = 1e-3  # pixels: how far beyond a triangle a pixel still counts, or those on its edge would fall in between


def skull_map(driving, source) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The affine map from a frame to a portrait that fits the points which do not move on the skull best.

    Args:
        driving, source (`torch.Tensor` of shape `(batch, 78, 2)`): pixels.

    Returns:
        The points' middle in both (`(batch, 1, 2)`) and the matrix between (`(batch, 2, 2)`): points p of the frame go
        to `(p - middle) @ matrix + middle_source`.
    """
    skull, skull_source = driving[:, RIGID], source[:, RIGID]
    middle, middle_source = skull.mean(dim=1, keepdim=True), skull_source.mean(dim=1, keepdim=True)
    a, b = skull - middle, skull_source - middle_source  # B x 21 x 2
    return middle, middle_source, torch.linalg.solve(a.mT @ a, a.mT @ b)


def add_vertices(driving, source, skull: tuple) -> tuple[torch.Tensor, torch.Tensor]:
    """The vertices of the triangulation in both frames: the 68 points, forehead, cheeks and rims, B x 109 x 2;
    `skull` is of [`skull_map`]."""
    right, left = driving[:, RIGHT_EYE].mean(dim=1), driving[:, LEFT_EYE].mean(dim=1)  # B x 2
    up = torch.stack([(left - right)[:, 1], (right - left)[:, 0]], dim=-1)[:, None]  # B x 1 x 2
    brows = driving[:, BROWS]
    middle = (brows[:, 3:4] + brows[:, 4:5]) / 2
    brows = torch.cat([brows[:, :3], middle, brows[:, 5:]], dim=1)  # B x 7 x 2
    forehead = brows + FOREHEAD_HEIGHT * up
    cheeks = torch.stack([driving[:, corners].mean(dim=1) for corners in CHEEKS], dim=1)  # B x 2 x 2
    added = torch.cat([forehead, cheeks], dim=1)
    centre, centre_source, matrix = skull
    added_source = (added - centre) @ matrix + centre_source
    return (
        torch.cat([driving[:, :68], added, rim_points(driving)], dim=1),
        torch.cat([source[:, :68], added_source, rim_points(source)], dim=1),
    )


def interpolate(corners, values, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    What is known at the corners of triangles, at the pixels whose centres lie in one.

    Args:
        corners (`torch.Tensor` of shape `(batch, t, 3, 2)`): pixels.
        values (`torch.Tensor` of shape `(batch, t, 3, c)`): what is known.
        size (`int`): side of the frames in pixels.

    Returns:
        Which pixels they are, all frames' being counted row by row (`(m,)`), their centres (`(m, 2)`), and what was
        found there (`(c, m)`).
    """
    owners, cells = _find(corners, size)
    places = torch.stack([cells % size, cells // size % size], dim=1) + 0.5
    table = torch.cat([corners, values], dim=-1).flatten(0, 1)  # Bt x 3 x 2 + c
    table = torch.cat([table[:, :1], table[:, 1:] - table[:, :1]], dim=1).flatten(1)
    # column by column, for a product of so many small matrices takes several times as long
    first, b, c = table.index_select(0, owners).T.contiguous().unflatten(0, (3, -1))  # 2 + c x m each
    x, y = places.T - first[:2]
    # a pixel a + s (b - a) + t (c - a)
    area = b[0] * c[1] - b[1] * c[0]
    area = torch.where(area.abs() < MIN_AREA, MIN_AREA, area)  # what is degenerate holds pixels of its edges at most
    s = ((x * c[1] - y * c[0]) / area).clamp(0, 1)
    t = ((y * b[0] - x * b[1]) / area).clamp(min=0).minimum(1 - s)
    return cells, places, first[2:] + s * b[2:] + t * c[2:]


def _find(corners, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The pixels whose centres lie in a triangle, of which the first counts where they share an edge or fold.

    Returns:
        Of each pixel its triangle, all frames' being counted, and its number, as in [`interpolate`]; both `(m,)`.
    """
    batch, count = corners.shape[:2]
    corners = corners.flatten(0, 1)
    rows, triangles = _list(corners[..., 1], size)  # r
    a = corners[triangles]  # r x 3 x 2
    along = a.roll(-1, dims=1) - a
    # a row cuts two sides of a triangle, or three in a corner
    way = ((rows + 0.5)[:, None] - a[..., 1]) / along[..., 1]  # r x 3, of a level side infinite or NaN
    cuts = (way > -TOUCHES) & (way < 1 + TOUCHES)
    xs = a[..., 0] + way.clamp(0, 1) * along[..., 0]
    ends = torch.stack([xs.where(cuts, torch.inf).amin(dim=1), xs.where(cuts, -torch.inf).amax(dim=1)], dim=1)
    columns, spans = _list(ends, size)  # m
    first = rows * size + triangles // count * size * size
    cells, triangles = first[spans] + columns, triangles[spans]
    owners = triangles.new_full((batch * size * size,), batch * count).scatter_reduce(0, cells, triangles, "amin")
    cells = (owners < batch * count).nonzero()[:, 0]
    return owners[cells], cells


def _list(ends, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The pixels between ends, one range after another.

    Args:
        ends (`torch.Tensor` of shape `(n, k)`): k places of each range along an axis of a frame with `size` pixels.

    Returns:
        Pixels and to which range they belong, both `(m,)`.
    """
    low = (ends.amin(dim=1) - 0.5 - TOUCHES).clamp(-1, size).ceil().clamp(min=0).long()
    high = (ends.amax(dim=1) - 0.5 + TOUCHES).clamp(-1, size).floor().clamp(max=size - 1).long()
    counts = (high - low + 1).clamp(min=0)
    ranges = torch.repeat_interleave(counts)
    before = counts.cumsum(0) - counts
    return torch.arange(len(ranges), device=ends.device) + (low - before)[ranges], ranges
