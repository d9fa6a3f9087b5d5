"""Facial components: aligned crops, masks, what the networks are given, and how their work comes into a frame."""

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassClassValidationError

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
from fsth_hub.models.facial_components import (
    FsthComponentDiscriminators,
    FsthComponentsConfig,
    FsthFacialComponents,
    limit_blue,
)
from fsth_hub.models.landmark_layout import FLIP, LEFT_EYE, LEFT_IRIS, RIGHT_EYE, RIGHT_IRIS
from testing_utils.faces import frontal_face
from testing_utils.networks import tiny_components


SIZE = 256


def mirrored(points: torch.Tensor) -> torch.Tensor:
    return points[:, FLIP.copy()] * torch.tensor([-1.0, 1.0]) + torch.tensor([float(SIZE), 0.0])


@pytest.mark.parametrize("name", list(PARTS))
def test_a_crop_is_centred_level_and_as_large_as_the_face(name):
    part = PARTS[name]
    for turn in (0.0, 0.7):
        for size in (256, 512):
            landmarks = frontal_face(turn=turn, size=size)
            points = to_aligned(landmarks, align(landmarks, part, size), part, size)
            centre = RIGHT_EYE if part.network == "eye" else list(part.centre)  # the left eye looks like a right one
            assert points[0, centre].mean(dim=0).abs().max() < 1e-4
            assert torch.allclose(
                points, to_aligned(frontal_face(), align(frontal_face(), part, SIZE), part, SIZE), atol=1e-4
            )


def test_the_left_eye_is_seen_as_the_right_one_of_the_mirrored_face():
    landmarks = frontal_face()
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
    landmarks = frontal_face(size=1024)
    crop = sample_crops(image, align(landmarks, PARTS["mouth"], 1024), 64)
    assert crop.abs().mean() < 0.15


def test_masks_are_where_the_landmarks_are():
    part = PARTS["mouth"]
    landmarks = frontal_face(opening=20)
    points = to_aligned(landmarks, align(landmarks, part, SIZE), part, SIZE)
    inner, lips = part_masks(points, part, 96)[0]
    scale = 96 / (1.3 * 60)  # pixels of the crop to one of the frame
    exact = 0.5 * (40 + 16) * 20 * scale**2  # a hexagon, 40 and 16 wide, 20 high, within the curve
    assert 1.02 * exact < inner.sum().item() < 1.08 * exact
    assert (lips >= inner - 1e-3).all() and lips.sum() > inner.sum()
    shut = to_aligned(frontal_face(opening=0), align(frontal_face(opening=0), part, SIZE), part, SIZE)
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
    faces = [frontal_face(opening=opening)[0] for opening in (0.0, 12.0, 30.0)]
    images = [torch.full((3, SIZE, SIZE), value) for value in (-0.8, 0.1, 0.9)]
    sources = components.encode_portraits(images, faces)
    seen = {}
    generate = components.generate

    def spy(network, warped, portraits, masks, portrait_masks):
        seen[network] = portraits
        return generate(network, warped, portraits, masks, portrait_masks)

    components.generate = spy
    for opening, value in ((1.0, -0.8), (13.0, 0.1), (26.0, 0.9)):
        components(torch.zeros(1, 3, SIZE, SIZE), frontal_face(opening=opening), sources)
        assert seen["mouth"].mean().item() == pytest.approx(value, abs=1e-4)


def test_portraits_of_any_size_give_the_same_crops():
    components = tiny_components()
    smooth = F.interpolate(torch.rand(1, 3, 8, 8) * 2 - 1, (SIZE, SIZE), mode="bicubic").clamp(-1, 1)
    large = F.interpolate(smooth, (768, 768), mode="bicubic").clamp(-1, 1)
    sources = components.encode_portraits([smooth[0], large[0]], [frontal_face()[0], frontal_face(size=768)[0]])
    for name in PARTS:
        assert (sources.crops[name][0] - sources.crops[name][1]).abs().max() < 0.02
        assert torch.allclose(*sources.points[name], atol=1e-4)


def test_untrained_components_add_nothing_and_trained_ones_stay_within_their_crops():
    config = tiny_components().config
    landmarks, frames = frontal_face(), torch.rand(1, 3, SIZE, SIZE) * 2 - 1
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
    landmarks = torch.cat([frontal_face(opening=5), frontal_face(opening=25, turn=0.2)])
    frames = torch.rand(2, 3, SIZE, SIZE) * 2 - 1
    sources = components.encode_portraits([frames[0], frames[1]], list(landmarks))
    together = components(frames, landmarks, sources)
    for index in range(2):
        alone = components(frames[index, None], landmarks[index, None], sources)
        for name in PARTS:
            assert torch.allclose(together.residuals[name][index], alone.residuals[name][0], atol=5e-5)


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
    config = FsthComponentsConfig(**tiny_components().config.to_diff_dict() | {"activation_channels": (4, 5, 6, 7)})
    discriminators = FsthComponentDiscriminators(config).eval()
    activations = [torch.rand(2, count, side, side) for count, side in ((4, 32), (5, 16), (6, 8), (7, 4))]
    warped, masks = torch.rand(2, 3, 32, 32), torch.rand(2, 2, 32, 32)
    scores, found = discriminators("mouth", activations, warped, masks)
    assert [patches.shape for patches in scores] == [(2, 1, side, side) for side in (8, 8, 8, 4)]
    brighter, found_brighter = discriminators("mouth", [100 * maps for maps in activations], warped, masks)
    condition, found_elsewhere = discriminators("mouth", activations, warped, 1 - masks)
    # what a crop shows is found in the crop alone
    assert found.shape == (2, 2, 16, 16) and torch.equal(found, found_elsewhere) and found.std() > 0.01
    assert torch.allclose(found, found_brighter, atol=1e-4)
    for patches, alike, unlike in zip(scores, brighter, condition, strict=True):
        assert torch.allclose(patches, alike, atol=1e-4) and not torch.allclose(patches, unlike, atol=1e-2)


def test_alignments_invert():
    alignment = align(frontal_face(turn=0.4), PARTS["left_eye"], SIZE)
    square = torch.tensor([[-1.0, -1], [1, 1], [0.3, -0.6]])[None]
    there = square @ alignment[:, :, :2].mT + alignment[:, None, :, 2]
    inverse = invert(alignment)
    assert torch.allclose(there @ inverse[:, :, :2].mT + inverse[:, None, :, 2], square, atol=1e-5)


def test_blend_is_whole_in_the_middle_and_nothing_at_the_border():
    blend = blend_mask(64)
    assert blend[20:44, 20:44].min() == 1 and max(blend[0].max(), blend[:, -1].max()) == 0


def test_similarity_prefers_the_same_shape():
    part = PARTS["mouth"]
    shapes = [
        to_aligned(frontal_face(opening=o), align(frontal_face(opening=o), part, SIZE), part, SIZE)
        for o in (0.0, 10.0, 12.0)
    ]
    assert similarity(shapes[2], shapes[1], part) > similarity(shapes[2], shapes[0], part)
    assert similarity(shapes[1], shapes[1], part) == 0


def test_there_may_be_one_network_alone(tmp_path):
    config = FsthComponentsConfig(**{**tiny_components().config.to_diff_dict(), "networks": ["mouth"]})
    FsthFacialComponents(config).save_pretrained(tmp_path)
    components = FsthFacialComponents.from_pretrained(tmp_path)
    assert not hasattr(components, "eye")
    landmarks, frames = frontal_face(), torch.rand(1, 3, SIZE, SIZE) * 2 - 1
    output = components(frames, landmarks, components.encode_portraits([frames[0]], [landmarks[0]]))
    assert set(output.residuals) == set(output.alignments) == {"mouth"}
    with pytest.raises(StrictDataclassClassValidationError, match="not \\['nose'\\]"):
        FsthComponentsConfig(networks=["nose"])


def test_the_white_of_the_eyes_is_known():
    """Of the brighter eye, without its iris; and not of eyes that are shut."""
    components, points = tiny_components(), frontal_face()
    image = torch.full((3, SIZE, SIZE), -0.5)
    image[0] = 0.6  # skin is red
    for eye, shade in ((RIGHT_EYE, 0.5), (LEFT_EYE, 1.0)):
        left, top = (int(v) for v in points[0, eye].amin(dim=0))
        right, bottom = (int(v) for v in points[0, eye].amax(dim=0))
        image[:, top : bottom + 1, left : right + 1] = shade * torch.tensor([1.6, 1.2, 0.8])[:, None, None] - 1
    for iris in (RIGHT_IRIS, LEFT_IRIS):
        x, y = (int(v) for v in points[0, iris[0]])
        image[:, y - 3 : y + 4, x - 3 : x + 4] = 1.0  # brighter than the white, and no part of it
    whites = components.encode_portraits([image], [points[0]]).whites
    assert torch.allclose(whites, torch.tensor([1.6, 1.2, 0.8]), atol=0.05)
    assert components.encode_portraits([image], [frontal_face(closed=True)[0]]).whites.isnan().all()


def test_teeth_take_the_light_of_the_face():
    whites = torch.tensor([1.6, 1.2, 0.6])
    dark = torch.tensor([0.3, 0.2, 0.1])  # between the lips
    crops = (dark - 1)[None, :, None, None].repeat(1, 1, 4, 4)
    teeth, tongue = torch.tensor([1.0, 1.0, 1.1]), torch.tensor([1.2, 0.5, 0.4])
    residuals = torch.stack([teeth, tongue], dim=1)[None, :, :, None].repeat(1, 1, 2, 4) - dark[:, None, None]
    mask = torch.ones(1, 1, 4, 4)
    made = crops + 1 + limit_blue(residuals, crops, whites, mask)
    assert torch.allclose(made[0, :, 0].mean(dim=0), teeth.mean().expand(4))  # as bright as before
    assert (made[0, 2, 0] / made[0, 0, 0]).max() < 1.03 * 0.6 / 1.6
    assert torch.allclose(made[0, :, 1], tongue[:, None].expand(3, 4))  # which was redder than that
    assert torch.equal(limit_blue(residuals, crops, whites, 0 * mask), residuals)
    assert torch.allclose(limit_blue(residuals, crops, torch.full((3,), torch.nan), mask), residuals)
    black = torch.full_like(crops, -1.0)
    assert limit_blue(torch.zeros_like(black), black, torch.full((3,), torch.nan), mask).abs().max() == 0
    # what the portrait itself shows stays as it is
    blue = torch.tensor([-0.5, 0.2, 0.9])[None, :, None, None].expand(1, 3, 4, 4)
    assert limit_blue(torch.zeros_like(blue), blue, whites, mask).abs().max() < 1e-6


@pytest.mark.parametrize("closed", [True, False])
def test_lids_take_the_light_of_the_face(closed, monkeypatch):
    """And nothing of an eye between them."""
    components, points, skin = tiny_components(), frontal_face(closed=closed), torch.tensor([0.6, 0.4, 0.2])
    monkeypatch.setattr(FsthFacialComponents, "generate", lambda self, network, warped, *others: bluish(warped))
    sources = components.encode_portraits([torch.zeros(3, SIZE, SIZE)], [frontal_face()[0]])
    sources.whites = torch.tensor([1.6, 1.2, 0.6])
    frame = (skin - 1)[None, :, None, None].expand(1, 3, SIZE, SIZE)
    made = components(frame, points, sources).residuals["right_eye"][0] + skin[:, None, None]
    middle = made.shape[-1] // 2
    below = middle + 2  # within an open eye, and the upper lid above it
    for place, limited in (((below, middle), closed), ((4, middle), True)):
        assert (made[2][place] < 1.03 * made[0][place] * 0.6 / 1.6) == limited
    assert made.mean(dim=0) == pytest.approx((bluish(made) + skin[:, None, None]).mean(dim=0), abs=1e-4)


def test_lids_may_be_as_blue_as_the_skin_around():
    """What was taken for the white of an eye may be a lid in the shade."""
    residuals, crops = torch.zeros(1, 3, 8, 8), torch.tensor([0.0, -0.2, -0.2])[None, :, None, None].expand(1, 3, 8, 8)
    residuals[:, 1:, 2:6, 2:6] = 0.05  # 0.85 of red; 1.0, 0.8, 0.8 around
    limited = limit_blue(residuals, crops, torch.tensor([1.2, 0.7, 0.7]), torch.ones(1, 1, 8, 8))
    assert limited == pytest.approx(residuals)


def bluish(crops: torch.Tensor) -> torch.Tensor:
    return torch.tensor([0.4, 0.5, 0.6])[:, None, None].expand_as(crops)
