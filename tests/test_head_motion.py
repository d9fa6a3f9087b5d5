"""How what is around a face can go with it."""

import math

import pytest
import torch

from fsth_hub.models.configuration_fsth import FsthConfig
from fsth_hub.models.flow_refiner import FlowRefiner
from fsth_hub.models.head_motion import NUM_MOTIONS, head_motions
from fsth_hub.models.head_motion import head_pose as head_pose_of
from fsth_hub.models.landmark_flow import pixel_grid
from fsth_hub.models.source_skips import SourceSkips
from fsth_hub.models.triangulation import skull_map
from testing_utils.faces import face as face_points


SIZE, GRID = 256, 16
AFFINE, SIMILARITY, STILL, POSE = 0, 1, 2, slice(3, None)


def face(**pose) -> torch.Tensor:
    return torch.from_numpy(face_points(**pose))[None]


def head_pose(driving, source):
    return head_pose_of(driving, source, skull_map(driving, source))


def moved(points: torch.Tensor, matrix: torch.Tensor, shift=(0.0, 0.0)) -> torch.Tensor:
    """Points (1 x 78 x 2) about the middle of the frame, in pixels; the shift in normalized coordinates."""
    return (points - SIZE / 2) @ matrix + SIZE / 2 + torch.tensor(shift) * SIZE / 2


def turned(angle: float, scale: float = 1.0) -> torch.Tensor:
    sine, cosine = scale * math.sin(angle), scale * math.cos(angle)
    return torch.tensor([[cosine, sine], [-sine, cosine]])


def flow_of(matrix, shift=(0.0, 0.0)) -> torch.Tensor:
    grid = pixel_grid(GRID, GRID, "cpu")
    return (grid @ matrix + torch.tensor(shift) - grid)[None]  # 1 x 16 x 16 x 2


def test_nothing_moves_where_no_head_moves():
    still = torch.zeros(1, GRID, GRID, 2)
    motions = head_motions(face(), face(), still, SIZE)
    assert motions.shape == (1, NUM_MOTIONS, GRID, GRID, 2)
    assert motions.abs().max() < 1e-5


@pytest.mark.parametrize("matrix", [turned(0.2, 1.1), torch.tensor([[1.1, 0.05], [-0.1, 0.9]])])
def test_the_skulls_map_is_followed_everywhere(matrix):
    """From any flow its motion leads to that of the affine map, and for a similarity its own motion does, too."""
    flow = torch.rand(1, GRID, GRID, 2) / 10
    motions = head_motions(face(), moved(face(), matrix, (0.05, -0.1)), flow, SIZE)
    expected = flow_of(matrix, (0.05, -0.1))
    torch.testing.assert_close(motions[:, AFFINE] + flow, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(motions[:, STILL] + flow, torch.zeros_like(flow))
    is_similarity = bool((matrix[0, 0] == matrix[1, 1]) and (matrix[0, 1] == -matrix[1, 0]))
    assert torch.allclose(motions[:, SIMILARITY] + flow, expected, atol=1e-4) == is_similarity


def test_a_pose_is_shift_turn_and_scale():
    unit = face() * 2 / SIZE - 1
    matrix, numbers = head_pose(unit, unit @ turned(0.3, 1.2) + torch.tensor([0.05, -0.1]))
    torch.testing.assert_close(matrix[0], turned(0.3, 1.2), atol=1e-4, rtol=0)
    torch.testing.assert_close(numbers[0, 2:4], torch.tensor([0.3, math.log(1.2)]), atol=1e-4, rtol=0)
    assert numbers[0, 4:].abs().max() < 1e-4  # nothing comes out of the skull's plane
    _, shifted = head_pose(unit, unit + torch.tensor([0.05, -0.1]))
    torch.testing.assert_close(shifted[0, :2], torch.tensor([0.05, -0.1]), atol=1e-5, rtol=0)


def test_turning_is_seen_by_the_nose_and_a_jaw_by_the_chin():
    straight, aside = (face(yaw=angle) * 2 / SIZE - 1 for angle in (0, 15))
    right, left = (head_pose(*pair)[1][0] for pair in ((straight, aside), (aside, straight)))
    assert right[4].abs() > 0.02 and right[4] * left[4] < 0
    dropped = straight.clone()
    dropped[:, 8, 1] += 0.05
    numbers = head_pose(straight, dropped)[1][0]
    assert numbers[7] == pytest.approx(0.05, abs=1e-5) and numbers[:7].abs().max() < 1e-5


def test_pose_moves_places_to_the_right_and_down():
    source = moved(face(), torch.eye(2), (0.05, -0.1))
    constant = head_motions(face(), source, torch.zeros(1, GRID, GRID, 2), SIZE)[0, POSE]  # 16 x 16 x 16 x 2
    assert (constant == constant[:, :1, :1]).all()
    rows = torch.tensor([[0.05, 0], [0, 0.05], [-0.1, 0], [0, -0.1]])
    torch.testing.assert_close(constant[:4, 0, 0], rows, atol=1e-5, rtol=0)


def test_far_away_an_affine_map_is_followed_no_further():
    motions = head_motions(face(), moved(face(), turned(0.0, 3.0)), torch.zeros(1, GRID, GRID, 2), SIZE)
    assert motions[:, AFFINE].abs().max() == pytest.approx(0.6)


def test_refiner_mixes_the_motions():
    """An untrained one changes nothing; one that says so has all that is around the face follow the skull."""
    refiner = FlowRefiner(3, 8)
    with torch.no_grad():
        refiner.head.weight.zero_()
        refiner.head.bias.zero_()
        motions = torch.randn(2, NUM_MOTIONS, GRID, GRID, 2)
        flow, confidence, visibility = refiner(torch.randn(2, 3, GRID, GRID), motions)
        assert not flow.any() and not confidence.any() and confidence.shape == visibility.shape == (2, 1, GRID, GRID)
        refiner.head.bias[AFFINE], refiner.head.bias[-2], refiner.head.bias[-1] = 1, 2, 3
        flow, confidence, visibility = refiner(torch.randn(2, 3, GRID, GRID), motions)
    torch.testing.assert_close(flow, motions[:, AFFINE])
    assert (confidence == 2).all() and (visibility == 3).all()


def test_frames_follow_what_the_refiner_says():
    """What is around the face follows the skull or rests, as it is told, and the face goes as the landmarks say."""
    config = FsthConfig(image_size=64, base_channels=8, max_channels=16, embedding_dim=16)
    skips = SourceSkips(config).eval()
    driving = face(scale=0.13, centre=(32, 35))
    source = (driving - 32) @ turned(0.1) + 32 + torch.tensor([3.0, 0.0])
    pictures = torch.rand(1, 1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        skips.refiner.head.weight.zero_()
        skips.refiner.head.bias.zero_()
        sources = skips.encode(pictures, pictures, source[:, None])
        before = skips(sources, pictures[:, 0], driving).composition.flow[0]
        skips.refiner.head.bias[AFFINE] = 1
        after = skips(sources, pictures[:, 0], driving).composition.flow[0]
        skips.refiner.head.bias[AFFINE], skips.refiner.head.bias[STILL] = 0, 1
        still = skips(sources, pictures[:, 0], driving).composition.flow[0]
    grid = pixel_grid(64, 64, "cpu")
    expected = (grid @ turned(0.1) - grid + torch.tensor([3 / 32, 0.0]))[None]
    corner = (slice(None), slice(4, 10), slice(4, 10))
    torch.testing.assert_close(after[corner], expected[corner], atol=2e-3, rtol=0)
    assert (before[corner] - expected[corner]).abs().max() > 0.02
    torch.testing.assert_close(still[corner], torch.zeros_like(expected[corner]), atol=2e-3, rtol=0)
    nose = (slice(None), 36, 32)
    torch.testing.assert_close(still[nose], before[nose], atol=1e-4, rtol=0)
    assert before[nose].norm() > 0.05
