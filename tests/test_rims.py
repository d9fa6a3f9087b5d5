"""The points between those that mark lids and lips."""

import numpy as np
import torch

from fsth_hub.models.rims import EDGES, INNER_MOUTH, along, rim_points, with_rim_points
from fsth_hub.models.triangulation import TRIANGLES, add_vertices, skull_map
from testing_utils.faces import frontal_face


def test_rims_are_curves_through_the_landmarks():
    points = frontal_face(opening=20)
    upper, lower = (with_rim_points(points)[0, along(rim)].numpy() for rim in INNER_MOUTH)
    np.testing.assert_array_equal(upper[::2], points[0, INNER_MOUTH[0]])
    straight = (lower[:-1:2] + lower[2::2]) / 2
    beyond = lower[1::2, 1] - straight[:, 1]  # a mouth bulges outwards
    assert (beyond[[0, 3]] > 0.5).all() and (beyond < 5).all()
    assert abs(lower[1::2, 0] - straight[:, 0]).max() < 2


def test_a_straight_rim_stays_straight_and_goes_with_the_face():
    points = frontal_face()
    points[0, INNER_MOUTH[1]] = torch.stack([torch.linspace(108, 148, 5), torch.linspace(170, 178, 5)], dim=1)
    line = with_rim_points(points)[0, along(INNER_MOUTH[1])]
    expected = torch.stack([torch.linspace(108, 148, 9), torch.linspace(170, 178, 9)], dim=1)
    assert torch.allclose(line, expected, atol=1e-4)
    turned = points @ torch.tensor([[0.8, 0.6], [-0.6, 0.8]]) + 7
    assert torch.allclose(
        rim_points(turned), rim_points(points) @ torch.tensor([[0.8, 0.6], [-0.6, 0.8]]) + 7, atol=1e-3
    )
    points[0, 68:] = torch.nan  # irises that are not known
    assert rim_points(points).isfinite().all()


def test_triangles_meet_in_the_points_of_the_rims():
    """No edge of a rim is left whole, and the triangles cover what they covered before."""
    whole = [edge for triangle in TRIANGLES.tolist() for edge in EDGES if set(edge) <= set(triangle)]
    assert not whole
    assert sorted(set(TRIANGLES.flatten().tolist())) == list(range(77 + len(EDGES)))
    straight = frontal_face(opening=20)
    vertices, _ = add_vertices(straight, straight, skull_map(straight, straight))
    middles = torch.stack([(vertices[0, a] + vertices[0, b]) / 2 for a, b in EDGES])
    vertices[0, 77:] = middles  # as if rims were straight
    edges = vertices[0, TRIANGLES[:, 1:]] - vertices[0, TRIANGLES[:, :1]]
    areas = torch.linalg.det(edges) / 2
    mouth = 0.5 * (40 + 16) * 20
    of_lips = {*range(48, 68), *range(77, 77 + len(EDGES))}
    lips = [index for index, triangle in enumerate(TRIANGLES.tolist()) if of_lips.issuperset(triangle)]
    outer = straight[0, [48, 49, 50, 51, 52, 53, 54, 55, 56, 57, 58, 59]]
    x, y = outer.T
    hull = 0.5 * abs((x * y.roll(-1) - y * x.roll(-1)).sum())
    assert abs(areas[lips].abs().sum() - (hull - mouth)) < 0.01 * hull
