"""Facial components: aligned crops, masks, what the networks are given, and how their work comes into a frame."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fsth_hub import FsthPipeline
from fsth_hub.models.aligned_crops import (
    PARTS,
    align,
    blend_mask,
    invert,
    part_masks,
    sample_crops,
    similarity,
    to_aligned,
)
from fsth_hub.models.facial_components import FsthComponentDiscriminators, FsthComponentsConfig, FsthFacialComponents
from fsth_hub.models.landmark_layout import FLIP, INNER_LIPS, LEFT_EYE, LEFT_IRIS, RIGHT_EYE, RIGHT_IRIS


SIZE = 256


def tiny_components(seed: int = 0) -> FsthFacialComponents:
    """Small networks whose output is not zero."""
    torch.manual_seed(seed)
    config = FsthComponentsConfig(
        mouth_size=32, eye_size=32, mouth_channels=(8, 8, 16), eye_channels=(8, 8, 8), num_middle_blocks=1,
        discriminator_channels=8,
    )  # fmt: skip
    components = FsthFacialComponents(config)
    for network in (components.mouth, components.eye):
        torch.nn.init.normal_(network.head.weight, std=0.3)
    return components.eval()


def face(opening: float = 20.0, closed: bool = False, turn: float = 0.0, size: int = SIZE) -> torch.Tensor:
    """A face of 78 points, 1 x 78 x 2 pixels, eyes 60 apart at 256; turned about the frame's centre (radians)."""
    points = np.full((78, 2), 128.0)
    points[:17] = np.stack([np.linspace(68, 188, 17), 110 + 100 * np.sin(np.linspace(0, np.pi, 17))], axis=1)
    points[17:22] = np.stack([np.linspace(75, 115, 5), np.full(5, 85)], axis=1)
    points[22:27] = np.stack([np.linspace(141, 181, 5), np.full(5, 85)], axis=1)
    points[27:31] = np.stack([np.full(4, 128), np.linspace(105, 140, 4)], axis=1)
    points[31:36] = np.stack([np.linspace(116, 140, 5), np.full(5, 148)], axis=1)
    lid = 1.0 if closed else 6.0
    offsets = np.array([(-14, 0), (-5, -lid), (5, -lid), (14, 0), (5, lid), (-5, lid)])
    for eye, iris, x in ((RIGHT_EYE, RIGHT_IRIS, 98), (LEFT_EYE, LEFT_IRIS, 158)):
        points[eye] = offsets + [x, 105]
        points[iris] = np.array([(0, 0), (5, 0), (0, -5), (-5, 0), (0, 5)]) + [x, 105]
    half = opening / 2
    upper = [(-25, 0), (-14, -8 - half), (-5, -11 - half), (0, -10 - half), (5, -11 - half), (14, -8 - half), (25, 0)]
    lower = [(14, 9 + half), (5, 12 + half), (0, 13 + half), (-5, 12 + half), (-14, 9 + half)]
    points[48:60] = np.array(upper + lower) + [128, 172]
    inner = [(-20, 0), (-8, -half), (0, -half), (8, -half), (20, 0), (8, half), (0, half), (-8, half)]
    points[INNER_LIPS] = np.array(inner) + [128, 172]
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    points = ((points - 128) @ rotation + 128) * size / SIZE
    return torch.from_numpy(points).float()[None]


def mirrored(points: torch.Tensor) -> torch.Tensor:
    return points[:, FLIP.copy()] * torch.tensor([-1.0, 1.0]) + torch.tensor([float(SIZE), 0.0])


@pytest.mark.parametrize("name", list(PARTS))
def test_a_crop_is_centred_level_and_as_large_as_the_face(name):
    part = PARTS[name]
    for turn in (0.0, 0.7):
        for size in (256, 512):
            landmarks = face(turn=turn, size=size)
            points = to_aligned(landmarks, align(landmarks, part, size), part, size)
            centre = RIGHT_EYE if part.network == "eye" else list(part.centre)  # the left eye looks like a right one
            assert points[0, centre].mean(dim=0).abs().max() < 1e-4
            assert torch.allclose(points, to_aligned(face(), align(face(), part, SIZE), part, SIZE), atol=1e-4)


def test_the_left_eye_is_seen_as_the_right_one_of_the_mirrored_face():
    landmarks = face()
    landmarks[:, LEFT_IRIS] += 2  # looks aside
    left, right = PARTS["left_eye"], PARTS["right_eye"]
    seen = to_aligned(landmarks, align(landmarks, left, SIZE), left, SIZE)
    as_right = to_aligned(mirrored(landmarks), align(mirrored(landmarks), right, SIZE), right, SIZE)
    assert torch.allclose(seen, as_right, atol=1e-4)

    image = torch.rand(1, 3, SIZE, SIZE) * 2 - 1
    crop = sample_crops(image, align(landmarks, left, SIZE), 64)
    crop_of_mirrored = sample_crops(image.flip(-1), align(mirrored(landmarks), right, SIZE), 64)
    assert torch.allclose(crop, crop_of_mirrored, atol=1e-4)


def test_crops_of_a_finer_frame_do_not_alias():
    rows = torch.arange(1024) % 2 * 2.0 - 1  # stripes of a pixel: their mean is grey
    image = rows.expand(1, 3, 1024, 1024)
    landmarks = face(size=1024)
    crop = sample_crops(image, align(landmarks, PARTS["mouth"], 1024), 64)
    assert crop.abs().mean() < 0.15


def test_masks_are_where_the_landmarks_are():
    part = PARTS["mouth"]
    landmarks = face(opening=20)
    points = to_aligned(landmarks, align(landmarks, part, SIZE), part, SIZE)
    inner, lips = part_masks(points, part, 96)[0]
    scale = 96 / (1.3 * 60)  # pixels of the crop to one of the frame
    exact = 0.5 * (40 + 16) * 20 * scale**2  # a hexagon, 40 and 16 wide, 20 high
    assert inner.sum().item() == pytest.approx(exact, rel=0.03)
    assert (lips >= inner - 1e-3).all() and lips.sum() > inner.sum()
    shut = to_aligned(face(opening=0), align(face(opening=0), part, SIZE), part, SIZE)
    assert part_masks(shut, part, 96)[0, 0].sum() < 0.15 * inner.sum()

    part = PARTS["right_eye"]
    points = to_aligned(landmarks, align(landmarks, part, SIZE), part, SIZE)
    lids, iris = part_masks(points, part, 64)[0]
    assert 0 < iris.sum() < lids.sum() and (iris <= lids + 1e-6).all()
    points[:, RIGHT_IRIS] = torch.nan
    lids_alone, no_iris = part_masks(points, part, 64)[0]
    assert torch.equal(lids_alone, lids) and no_iris.abs().max() == 0


def test_the_portrait_whose_mouth_is_most_like_the_wanted_one_is_seen():
    components = tiny_components()
    faces = [face(opening=opening)[0] for opening in (0.0, 12.0, 30.0)]
    images = [torch.full((3, SIZE, SIZE), value) for value in (-0.8, 0.1, 0.9)]
    sources = components.encode_portraits(images, faces)
    seen = {}
    generate = components.generate

    def spy(network, warped, portraits, masks, portrait_masks):
        seen[network] = portraits
        return generate(network, warped, portraits, masks, portrait_masks)

    components.generate = spy
    for opening, value in ((1.0, -0.8), (13.0, 0.1), (26.0, 0.9)):
        components(torch.zeros(1, 3, SIZE, SIZE), face(opening=opening), sources)
        assert seen["mouth"].mean().item() == pytest.approx(value, abs=1e-4)


def test_portraits_of_any_size_give_the_same_crops():
    components = tiny_components()
    smooth = F.interpolate(torch.rand(1, 3, 8, 8) * 2 - 1, (SIZE, SIZE), mode="bicubic").clamp(-1, 1)
    large = F.interpolate(smooth, (768, 768), mode="bicubic").clamp(-1, 1)
    sources = components.encode_portraits([smooth[0], large[0]], [face()[0], face(size=768)[0]])
    for name in PARTS:
        assert (sources.crops[name][0] - sources.crops[name][1]).abs().max() < 0.02
        assert torch.allclose(*sources.points[name], atol=1e-4)


def test_untrained_components_add_nothing_and_trained_ones_stay_within_their_crops():
    config = tiny_components().config
    landmarks, frames = face(), torch.rand(1, 3, SIZE, SIZE) * 2 - 1
    untrained = FsthFacialComponents(config)
    output = untrained(frames, landmarks, untrained.encode_portraits([frames[0]], [landmarks[0]]))
    assert all(residual.abs().max() == 0 for residual in output.residuals.values())

    trained = tiny_components()
    output = trained(frames, landmarks, trained.encode_portraits([frames[0]], [landmarks[0]]))
    for name, residual in output.residuals.items():
        assert residual.abs().max() > 0.01
        border = torch.cat([residual[..., 0, :], residual[..., -1, :], residual[..., 0], residual[..., -1]], dim=-1)
        assert border.abs().max() == 0
        assert output.alignments[name].shape == (1, 2, 3)


def test_several_frames_at_once_are_as_one_by_one():
    components = tiny_components()
    landmarks = torch.cat([face(opening=5), face(opening=25, turn=0.2)])
    frames = torch.rand(2, 3, SIZE, SIZE) * 2 - 1
    sources = components.encode_portraits([frames[0], frames[1]], list(landmarks))
    together = components(frames, landmarks, sources)
    for index in range(2):
        alone = components(frames[index, None], landmarks[index, None], sources)
        for name in PARTS:
            assert torch.allclose(together.residuals[name][index], alone.residuals[name][0], atol=1e-5)


def test_components_are_saved_and_loaded(tmp_path):
    components = tiny_components()
    components.save_pretrained(tmp_path)
    loaded = FsthFacialComponents.from_pretrained(tmp_path)
    assert type(loaded.config) is FsthComponentsConfig and loaded.config.mouth_size == 32
    state = components.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())


def test_components_are_saved_and_loaded_with_a_pipeline(tmp_path):
    components = tiny_components()
    FsthPipeline.from_pretrained(facial_components=components, discriminator=None).save_pretrained(tmp_path)
    loaded = FsthPipeline.from_pretrained(tmp_path).facial_components
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in components.state_dict().items())
    assert FsthPipeline.from_pretrained(tmp_path, facial_components=None).facial_components is None


def test_discriminators_score_patches_and_know_their_condition():
    discriminators = FsthComponentDiscriminators(tiny_components().config).eval()
    crops, warped, masks = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32), torch.rand(2, 2, 32, 32)
    scores, features = discriminators("mouth", crops, warped, masks)
    assert scores.shape == (2, 1, 4, 4) and len(features) == 4
    assert not torch.allclose(scores, discriminators("mouth", crops, warped, 1 - masks)[0])


def test_alignments_invert():
    alignment = align(face(turn=0.4), PARTS["left_eye"], SIZE)
    square = torch.tensor([[-1.0, -1], [1, 1], [0.3, -0.6]])[None]
    there = square @ alignment[:, :, :2].mT + alignment[:, None, :, 2]
    inverse = invert(alignment)
    assert torch.allclose(there @ inverse[:, :, :2].mT + inverse[:, None, :, 2], square, atol=1e-5)


def test_blend_is_whole_in_the_middle_and_nothing_at_the_border():
    blend = blend_mask(64)
    assert blend[20:44, 20:44].min() == 1 and max(blend[0].max(), blend[:, -1].max()) == 0


def test_similarity_prefers_the_same_shape():
    part = PARTS["mouth"]
    shapes = [to_aligned(face(opening=o), align(face(opening=o), part, SIZE), part, SIZE) for o in (0.0, 10.0, 12.0)]
    assert similarity(shapes[2], shapes[1], part) > similarity(shapes[2], shapes[0], part)
    assert similarity(shapes[1], shapes[1], part) == 0
