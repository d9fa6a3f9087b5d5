"""Rims of lids and lips as curves: landmarks mark them by few points, between which a straight line would show.

Halfway between any two points of a rim lies one more, on the curve through them (Catmull and Rom, 1974).
"""

import torch

from .landmark_layout import NUM_POINTS


# Corner, points of the upper rim, corner; the same along the lower rim.
RIGHT_LIDS = ([36, 37, 38, 39], [36, 41, 40, 39])
LEFT_LIDS = ([42, 43, 44, 45], [42, 47, 46, 45])
INNER_MOUTH = ([60, 61, 62, 63, 64], [60, 67, 66, 65, 64])
OUTER_MOUTH = ([48, 49, 50, 51, 52, 53, 54], [48, 59, 58, 57, 56, 55, 54])
_RIMS = [rim for pair in (RIGHT_LIDS, LEFT_LIDS, INNER_MOUTH, OUTER_MOUTH) for rim in pair]
EDGES = [edge for rim in _RIMS for edge in zip(rim[:-1], rim[1:], strict=True)]


def _weights() -> torch.Tensor:
    """How each point added is made of those there are, E x 78; beyond the corners a rim goes on straight."""
    weights = torch.zeros(len(EDGES), NUM_POINTS)
    for rim in _RIMS:
        for index, (a, b) in enumerate(zip(rim[:-1], rim[1:], strict=True)):
            row = weights[EDGES.index((a, b))]
            row[[a, b]] += 9 / 16
            for beyond, near, far in ((index - 1, a, b), (index + 2, b, a)):
                if 0 <= beyond < len(rim):
                    row[rim[beyond]] -= 1 / 16
                else:
                    row[near] -= 2 / 16
                    row[far] += 1 / 16
    return weights


_WEIGHTS = _weights()


def rim_points(points: torch.Tensor) -> torch.Tensor:
    """The points halfway along each of `EDGES`, of landmarks (`(batch, 78, 2)`): `(batch, len(EDGES), 2)`."""
    return _WEIGHTS[:, :68].to(points) @ points[:, :68]  # irises may be NaN


def with_rim_points(points: torch.Tensor) -> torch.Tensor:
    """Landmarks (`(batch, 78, 2)`) and after them their [`rim_points`]."""
    return torch.cat([points, rim_points(points)], dim=1)


def along(rim: list[int], first: int = NUM_POINTS) -> list[int]:
    """The indices of all points along a rim, those of [`rim_points`] counted from `first` on."""
    indices = rim[:1]
    for edge in zip(rim[:-1], rim[1:], strict=True):
        indices = [*indices, first + EDGES.index(edge), edge[1]]
    return indices


def split(triangles: list[tuple[int, int, int]], first: int) -> list[tuple[int, int, int]]:
    """The triangles, cut at the points of [`rim_points`], which are counted from `first` on."""
    for number, edge in enumerate(EDGES):
        parts = []
        for triangle in triangles:
            if set(edge) <= set(triangle):
                parts += [tuple(first + number if corner == end else corner for corner in triangle) for end in edge]
            else:
                parts.append(triangle)
        triangles = parts
    return triangles
