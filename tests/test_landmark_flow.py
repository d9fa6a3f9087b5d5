"""Where in a portrait to look: the flow that landmarks give."""

import cv2
import numpy as np
import pytest
import torch

from fsth_hub.landmarks.pose import MEAN_FACE, Pose
from fsth_hub.models.landmark_flow import (
    FADE_WIDTH,
    FIGURE_FADE_WIDTH,
    face_flow,
    pixel_grid,
    portrait_flow,
    smooth_flow,
    warp,
    with_crown,
)
from fsth_hub.models.landmark_layout import (
    INNER_LIPS,
    IRISES,
    LEFT_EYE,
    OUTER_LIPS,
    RIGHT_EYE,
    RIGHT_IRIS,
    eye_opening,
)
from fsth_hub.models.lids import SHUT, shut_lids


SIZE = 256
UPPER_LIDS, LOWER_LIDS = [37, 38, 43, 44], [41, 40, 47, 46]
UPPER_LIP, LOWER_LIP = [61, 62, 63], [67, 66, 65]
OPENINGS = (RIGHT_EYE, LEFT_EYE, INNER_LIPS)


def face(size=SIZE, turn: float = 0.0) -> torch.Tensor:
    """The mean face in a frame, turned by so many degrees to the side: 1 x 78 x 2."""
    sine, cosine = np.sin(np.deg2rad(turn)), np.cos(np.deg2rad(turn))
    rotation = np.array([[cosine, 0, sine], [0, 1, 0], [-sine, 0, cosine]])
    points = Pose(rotation, 0.0025 * size, np.array([0.5 * size, 0.55 * size])).project(MEAN_FACE)
    return torch.from_numpy(points.astype(np.float32))[None]


def blink(points: torch.Tensor, share: float) -> torch.Tensor:
    """With the upper lids lowered; at a share of 1 they touch the lower ones."""
    points = points.clone()
    points[:, UPPER_LIDS] = torch.lerp(points[:, UPPER_LIDS], points[:, LOWER_LIDS], share)
    return points


def shut(points: torch.Tensor) -> torch.Tensor:
    """With the lips touching."""
    points = points.clone()
    points[:, LOWER_LIP] = points[:, UPPER_LIP]
    return points


def gape(points: torch.Tensor, far: float) -> torch.Tensor:
    """With lower lip and chin so many pixels further down."""
    points = points.clone()
    points[:, [*LOWER_LIP, *range(55, 60), *range(5, 12)], 1] += far
    return points


def expressions() -> torch.Tensor:
    """Faces that differ in what moves: 4 x 78 x 2."""
    turned = face(turn=15)
    return torch.cat([blink(gape(face(), 14), 0.6), shut(face()), blink(gape(turned, 6) + 9, 0.3), turned - 12])


def targets(flow: torch.Tensor) -> np.ndarray:
    """Where a flow leads, in pixels: H x W x 2."""
    size = flow.shape[1]
    return ((flow[0] + pixel_grid(size, size, "cpu") + 1) * size / 2).numpy()


def mask(points: torch.Tensor, indices, margin: float = 0) -> np.ndarray:
    """Pixels whose centres lie within a polygon of landmarks, or so many pixels around it."""
    polygon, inside = points[0, indices].numpy(), np.zeros((SIZE, SIZE), bool)
    reach = 2 + int(margin)
    left, top, right, bottom = np.r_[polygon.min(axis=0) - reach, polygon.max(axis=0) + reach].astype(int)
    for row in range(top, bottom):
        for column in range(left, right):
            inside[row, column] = cv2.pointPolygonTest(polygon, (column + 0.5, row + 0.5), True) >= -margin
    return inside


# The smooth flow.


def test_smooth_flow_moves_a_pixel_with_its_landmark():
    size = 64
    source = torch.tensor([[[20.0, 20.0], [40.0, 40.0]]])
    driving = source + torch.tensor([4.0, -2.0])
    grid = pixel_grid(size, size, "cpu")
    flow = smooth_flow(driving, source, size, grid)
    # backward: the driving landmark's pixel looks back to the source landmark, in half sides
    assert torch.allclose(flow[0, 18, 24], torch.tensor([-4.0, 2.0]) * 2 / size, atol=5e-3)
    assert flow[0, size - 1, 0].abs().max() < 1e-3  # far from the head nothing moves

    image = torch.zeros(1, 1, size, size)
    image[:, :, 19:21, 19:21] = 1
    warped = warp(image, flow, grid)[0, 0]
    ys, xs = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    near = warped[10:28, 10:34]
    centre = (near * xs[10:28, 10:34]).sum() / near.sum(), (near * ys[10:28, 10:34]).sum() / near.sum()
    assert centre == pytest.approx((23.5, 17.5), abs=0.6)


def test_smooth_flow_ignores_unknown_points():
    source = torch.rand(1, 78, 2) * 64
    driving = source + torch.randn(1, 78, 2)
    grid = pixel_grid(16, 16, "cpu")
    without = smooth_flow(driving[:, :68], source[:, :68], 64, grid)
    driving[:, 68:] = float("nan")
    assert torch.allclose(smooth_flow(driving, source, 64, grid), without, atol=1e-6)


def test_crown_moves_with_the_skull_and_not_with_the_jaw():
    points = face(64)
    _, unmoved = with_crown(points, points)
    crown = unmoved[:, 78:]
    assert crown.shape == (1, 15, 2)
    assert crown[..., 1].max() < points[:, LEFT_EYE, 1].min() + 3  # above the eyes
    assert crown[..., 1].min() < points[:, 17:27, 1].min() - 5  # and well above the brows

    matrix = torch.tensor([[0.8, 0.3], [-0.3, 0.8]])
    expected = (crown - 32) @ matrix + 30
    assert torch.allclose(with_crown(points, (points - 32) @ matrix + 30)[1][:, 78:], expected, atol=1e-3)
    assert torch.allclose(with_crown(points, gape(points, 5))[1][:, 78:], crown, atol=1e-3)


def test_fade_width_is_that_of_each_portrait():
    points = face().repeat(2, 1, 1)
    source = points + 6
    both = portrait_flow(points, source, SIZE, torch.tensor([FADE_WIDTH, FIGURE_FADE_WIDTH]))
    alone = [portrait_flow(points[:1], source[:1], SIZE, width).flow for width in (FADE_WIDTH, FIGURE_FADE_WIDTH)]
    assert torch.allclose(both.flow, torch.cat(alone), atol=1e-6)
    corner = [(flow[0, -1, 0] * SIZE / 2).norm().item() for flow in alone]
    assert corner[0] < 0.2 and corner[1] > 1


# The exact flow.


@pytest.mark.parametrize("points", expressions().split(1))
def test_equal_landmarks_give_no_flow(points):
    flow = portrait_flow(points, points, SIZE)
    moved = flow.flow[0].norm(dim=-1).numpy() * SIZE / 2
    assert moved.max() < 1  # off the rim of an opening
    for opening in OPENINGS:
        moved[mask(points, opening, margin=1)] = 0
    assert moved.max() < 0.01 and flow.shade.min() > 0.999


def test_lids_and_lips_lie_where_the_landmarks_have_them():
    faces = expressions()
    for asked in faces.split(1):
        for source in faces.split(1):
            driving = shut_lids(asked, source)
            within = np.any([mask(driving, opening, margin=0.5) for opening in OPENINGS], axis=0)
            rows, columns = np.nonzero(~within)
            led = targets(portrait_flow(asked, source, SIZE).flow)
            for vertex in np.r_[RIGHT_EYE, LEFT_EYE, OUTER_LIPS, INNER_LIPS]:
                point = driving[0, vertex].numpy()
                distances = np.hypot(columns + 0.5 - point[0], rows + 0.5 - point[1])
                nearest = distances.argmin()
                touching = (driving[0, :68] - driving[0, vertex]).norm(dim=-1) < 0.1  # the other lip, too
                expected = source[0, :68][touching].numpy()
                apart = np.linalg.norm(led[rows[nearest], columns[nearest]] - expected, axis=-1).min()
                # what lies beside a vertex may be pressed together or stretched
                assert distances[nearest] < 2.5 and apart < 0.5 + 2 * distances[nearest], vertex


def test_a_face_that_moves_as_a_whole_is_led_as_a_whole():
    driving = face()
    matrix = torch.tensor([[0.9, 0.2], [-0.2, 0.9]])
    source = (driving - SIZE / 2) @ matrix + SIZE / 2 - 4
    flow = face_flow(driving, source, SIZE)
    grid = (pixel_grid(SIZE, SIZE, "cpu") + 1) * SIZE / 2
    expected = ((grid - SIZE / 2) @ matrix + SIZE / 2 - 4).numpy()
    inside = flow.exactness[0, ..., 0].numpy() > 0
    apart = np.linalg.norm(targets(flow.flow) - expected, axis=-1)[inside]
    assert inside.sum() > 5000 and apart.max() < 0.75 and np.quantile(apart, 0.9) < 0.01


def test_an_iris_stays_round_behind_closing_lids():
    source = face()
    driving = blink(source, 0.4)
    driving[:, RIGHT_IRIS, 0] += 3
    flow = portrait_flow(driving, source, SIZE).flow[0].numpy() * SIZE / 2
    rows, columns = np.mgrid[:SIZE, :SIZE] + 0.5
    x, y = driving[0, RIGHT_IRIS[0]].numpy()
    iris = np.hypot(columns - x, rows - y) < 4
    # of what is seen of it, without the rim
    seen = cv2.erode((iris & mask(shut_lids(driving, source), RIGHT_EYE)).astype(np.uint8), np.ones((3, 3))) > 0
    assert seen.sum() > 5
    assert np.abs(flow[seen] - [-3, 0]).max() < 0.05


def test_nothing_is_taken_from_beyond_the_lids():
    for share in (0.5, 0.9):
        driving, source = face(), blink(face(), share)
        source[:, IRISES, 1] += 2
        led = targets(portrait_flow(driving, source, SIZE).flow)
        for eye in (RIGHT_EYE, LEFT_EYE):
            lids = source[0, eye].numpy()
            places = led[mask(driving, eye)]
            assert len(places) > 50
            beyond = min(cv2.pointPolygonTest(lids, tuple(map(float, place)), True) for place in places)
            assert beyond > -0.3  # curves go beyond the polygon


@pytest.mark.parametrize("turn", [0, 20])
def test_eyes_that_the_detector_leaves_a_slit_of_are_shut(turn):
    """All of the slit below what shut eyes have; what has hardly closed stays, and so does a portrait's own slit."""
    source = face(turn=turn)
    opened = {eye[0]: eye_opening(source, eye).item() for eye in (RIGHT_EYE, LEFT_EYE)}
    for eye in (RIGHT_EYE, LEFT_EYE):
        slit = blink(source, 1 - 0.1 / opened[eye[0]])
        assert 0.05 < eye_opening(slit, eye).item() < SHUT
        assert eye_opening(shut_lids(slit, source), eye).item() < 0.02
        hardly = blink(source, 0.1)
        assert eye_opening(shut_lids(hardly, source), eye) > 0.95 * eye_opening(hardly, eye)
        assert torch.equal(shut_lids(source, source), source) and torch.equal(shut_lids(slit, slit), slit)
    others = np.setdiff1d(np.arange(78), UPPER_LIDS)
    assert torch.equal(shut_lids(slit, source)[:, others], slit[:, others])


def test_lids_that_meet_do_so_in_a_line():
    """And not where the portrait's meet too, which shows its own lashes, nor as much where they are half shut."""
    shade = portrait_flow(blink(face(), 1), face(), SIZE).shade[0, ..., 0].numpy()
    for eye in (RIGHT_EYE, LEFT_EYE):
        lower = face()[0, eye[[4, 5]]].numpy().mean(axis=0)
        column = shade[:, int(lower[0])]
        line = np.flatnonzero(column < 0.8)
        assert 1 <= len(line) <= 5 and abs(line.mean() + 0.5 - lower[1]) < 1.5
        assert 0.3 <= column.min() < 0.7
    assert portrait_flow(blink(face(), 1), blink(face(), 1), SIZE).shade.min() > 0.999
    assert portrait_flow(blink(face(), 0.3), face(), SIZE).shade[0, 100:130, 100:110].min() > 0.8


def test_a_mouth_that_was_closed_is_dark_within():
    driving, source = gape(face(), 16), shut(face())
    flow = portrait_flow(driving, source, SIZE)
    shade, mouth = flow.shade[0, ..., 0].numpy(), mask(driving, INNER_LIPS)
    assert (shade[~mask(driving, INNER_LIPS, margin=3)] > 1 - 1e-6).all()
    column, top, bottom = (int(driving[0, index, axis]) for index, axis in ((62, 0), (62, 1), (66, 1)))
    middle = shade[top : bottom + 1, column]
    assert 0.08 <= middle.min() < 0.7 and middle.argmin() in range(4, len(middle) - 4)
    assert 0.08 <= shade[mouth].min() and (shade[mouth] < 1).mean() > 0.8
    # the portrait's lips are not torn: what is dark is taken from between them
    led = targets(flow.flow)[mouth]
    assert np.abs(led[:, 1] - np.interp(led[:, 0], *source[0, [60, 61, 62, 63, 64]].numpy().T)).max() < 0.5


@pytest.mark.parametrize("far", [0.0, 6.0, 16.0])
def test_a_mouth_as_open_as_the_portraits_is_as_light(far):
    for driving in (gape(face(), far) + 5, gape(face(), far / 2)):  # or less open
        assert portrait_flow(driving, gape(face(), far), SIZE).shade.min() > 0.98


def test_faces_without_irises_have_eyes():
    driving, source = blink(face(), 0.4), face()
    with_irises = portrait_flow(driving, source, SIZE)
    for unknown in ((driving,), (source,), (driving, source)):
        pair = [points.clone() for points in (driving, source)]
        for points, original in zip(pair, (driving, source), strict=True):
            if any(original is other for other in unknown):
                points[:, IRISES] = torch.nan
        flow = portrait_flow(*pair, SIZE)
        assert flow.flow.isfinite().all()
        # the eyes only: the smooth flow has some points less
        assert (flow.flow - with_irises.flow).abs().max() * SIZE / 2 < 3
        assert torch.equal(flow.exactness, with_irises.exactness)


def test_a_batch_is_its_faces():
    faces = expressions()
    together = portrait_flow(faces, faces.roll(1, dims=0), SIZE)
    for index, pair in enumerate(zip(faces.split(1), faces.roll(1, dims=0).split(1), strict=True)):
        alone = portrait_flow(*pair, SIZE)
        for name in ("flow", "exactness", "shade"):
            assert torch.allclose(getattr(together, name)[index : index + 1], getattr(alone, name), atol=1e-5), name


def test_same_flow_on_any_number_of_threads():
    driving = torch.cat([face(turn=turn) for turn in (60, 75, 89, -80)]).repeat(4, 1, 1)  # folded over themselves
    source, threads, flows = face().expand(16, -1, -1), torch.get_num_threads(), []
    for count in (1, 2, 2, 2):
        torch.set_num_threads(count)
        flows.append(face_flow(driving, source, SIZE).flow)
    torch.set_num_threads(threads)
    assert all(torch.equal(flow, flows[0]) for flow in flows)


@pytest.mark.parametrize("shift", [(-90, 0), (110, 60), (0, 150), (-300, -300), (2000, 0)])
def test_faces_beyond_the_frame(shift):
    points = face() + torch.tensor(shift)
    for driving, source in ((points, face()), (face(), points), (points, points)):
        flow = portrait_flow(driving, source, SIZE)
        assert flow.flow.isfinite().all() and flow.shade.isfinite().all()
    if max(map(abs, shift)) < SIZE:  # what is seen of it is led as if all were
        whole, shifted = (face_flow(points, points + 3, SIZE).flow[0] for points in (face(), points))
        kept = [slice(max(0, -offset), SIZE - max(0, offset)) for offset in shift[::-1]]
        moved = [slice(max(0, offset), SIZE + min(0, offset)) for offset in shift[::-1]]
        apart = (shifted[moved[0], moved[1]] - whole[kept[0], kept[1]]).norm(dim=-1)
        assert (apart > 1e-4).sum() < 5 < (apart < 1e-4).sum() and shifted[moved[0], moved[1]].any()


@pytest.mark.parametrize(
    "points", [blink(face(), 1), blink(face(), 1.5), shut(face()), face(turn=88), face(turn=-120), face(16)]
)
def test_degenerate_faces_give_finite_flows(points):
    for driving, source in ((points, face()), (face(), points), (points, points)):
        flow = portrait_flow(driving, source, SIZE)
        for part in (flow.flow, flow.exactness, flow.shade):
            assert part.isfinite().all()
        assert flow.flow.abs().max() < 2


def test_flows_have_no_gradient():
    points = face().requires_grad_()
    flow = portrait_flow(points, points.flip(0) + 1, SIZE)
    assert not flow.flow.requires_grad and flow.flow.dtype == torch.float32
    assert portrait_flow(face().half(), face().half(), SIZE).flow.dtype == torch.float32


def test_teeth_that_the_portrait_shows_stay():
    """A mouth that opens further than an open one goes on showing the upper teeth, and is dark only below them."""
    source, driving = gape(face(), 8), gape(face(), 18)
    flow = portrait_flow(driving, source, SIZE)
    column, top, bottom = (int(driving[0, index, axis]) for index, axis in ((62, 0), (62, 1), (66, 1)))
    shade = flow.shade[0, top + 1 : bottom, column, 0]
    assert shade[: len(shade) // 4].min() > 0.9
