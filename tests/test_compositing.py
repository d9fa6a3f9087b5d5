"""Frames of any size, put together from the portraits' own pixels."""

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from fsth_hub.media import compositing
from fsth_hub.media.compositing import MAX_LAYERS, Compositor
from fsth_hub.models.aligned_crops import blend_mask
from fsth_hub.models.errors import FsthError
from fsth_hub.models.facial_components import FsthComponentsOutput
from fsth_hub.models.source_skips import Composition


SEEN = 64  # side of what the networks see here


def picture(size: int, seed: int = 0, cells: int = 16) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(20, 236, (cells, cells, 3), np.uint8)
    return np.asarray(Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC))


def disc(radius: float = 0.3) -> np.ndarray:
    rows, columns = (np.mgrid[:SEEN, :SEEN] + 0.5) / SEEN - 0.5
    return np.clip((radius - np.hypot(columns, rows)) * SEEN / 2 + 0.5, 0, 1).astype(np.float32)


def still(count: int = 1, chosen=None) -> Composition:
    """Portraits that stay where they are, each with as large a share as the others."""
    return Composition(
        chosen=torch.tensor([list(range(count)) if chosen is None else chosen]),
        cavities=torch.zeros(1, count, 3, 1, 1),
        flow=torch.zeros(1, count, SEEN, SEEN, 2),
        shares=torch.full((1, count, 1, SEEN // 4, SEEN // 4), 1 / count),
        shade=torch.ones(1, count, 1, SEEN, SEEN),
        residual=torch.zeros(1, 3, SEEN, SEEN),
    )


def apart(frame: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.abs(frame.astype(int) - other)


@pytest.mark.parametrize("matte", [disc(), np.zeros_like(disc()), np.ones_like(disc())])
@pytest.mark.parametrize("size", [256, 320, 512])
def test_what_does_not_move_is_the_crop(size, matte):
    crop = picture(512, cells=64)
    (frame,) = Compositor([crop], [matte], size)(still())
    assert frame.shape == (size, size, 3) and frame.dtype == np.uint8
    expected = np.asarray(Image.fromarray(crop).resize((size, size), Image.Resampling.BICUBIC))
    assert apart(frame, expected).max() <= 1


def components_at(alignment, value: float, size: int = 32) -> FsthComponentsOutput:
    residual = value * blend_mask(size).expand(1, 3, size, size)
    return FsthComponentsOutput(
        residuals={"mouth": residual},
        alignments={"mouth": torch.tensor([alignment])},
    )


@pytest.mark.parametrize("size", [128, 256, 512])
def test_components_take_the_place_of_the_residual_where_they_decide(size):
    crop, composition = np.full((512, 512, 3), 100, np.uint8), still()
    composition.residual[:] = 0.4  # 51 levels
    components = components_at([[0.3, 0.0, 0.1], [0.0, 0.3, -0.2]], -0.2)
    seen = []

    def retouch(frames):
        seen.extend(frames)
        return components

    frame = Compositor([crop], [np.ones_like(disc())], size)(composition, retouch)[0][..., 0].astype(float)
    assert seen[0].shape == (size, size, 3) and np.abs(seen[0] - 100).max() < 1  # without the residual
    places = (np.arange(size) + 0.5) * 2 / size - 1
    reach = np.maximum(np.abs(places[None] - 0.1), np.abs(places[:, None] + 0.2)) / 0.3
    assert np.abs(frame[reach < 0.55] - (100 - 25.5)).max() <= 1
    assert np.abs(frame[reach > 1] - 151).max() <= 1
    # it blends over, without an edge: 76 levels over an eighth of the crop
    assert np.abs(np.diff(frame, axis=0)).max() < 3 * 76 / (size * 0.3 / 8)


def test_a_component_is_where_its_alignment_says_turned_and_mirrored():
    crop, size = np.full((256, 256, 3), 100, np.uint8), 256
    residual = torch.zeros(1, 3, 32, 32)
    residual[..., 8:12, 20:24] = 0.5  # above the middle, towards the right
    turn = np.array([[0.0, -0.4], [0.4, 0.0]])
    for axes in (turn, turn * [-1, 1]):
        alignment = torch.tensor(np.column_stack([axes, [0.1, 0.2]])).float()[None]
        components = FsthComponentsOutput(residuals={"eye": residual}, alignments={"eye": alignment})
        (frame,) = Compositor([crop], [np.ones_like(disc())], size)(still(), lambda _: components)  # noqa: B023
        rows, columns = np.nonzero(frame[..., 0] > 120)
        place = axes @ ([22 / 16 - 1, 10 / 16 - 1]) + [0.1, 0.2]
        found = np.array([columns.mean(), rows.mean()]) * 2 / size + 1 / size - 1
        assert np.abs(found - place).max() < 0.01


def test_a_component_beyond_the_frame_changes_nothing():
    crop = picture(256)
    components = components_at([[0.2, 0.0, 1.5], [0.0, 0.2, 0.0]], 0.5)
    (frame,) = Compositor([crop], [np.ones_like(disc())], 256)(still(), lambda _: components)
    assert apart(frame, crop).max() <= 1


def test_detail_of_a_large_crop_survives_where_it_moves():
    crop = picture(512, cells=200)  # finer than 256 pixels can show
    composition = still()
    composition.flow[:] = 2 * 8 / 512  # eight pixels
    (large,), (small,) = (Compositor([crop], [np.ones_like(disc())], size)(composition) for size in (512, 256))
    enlarged = np.asarray(Image.fromarray(small).resize((512, 512), Image.Resampling.BICUBIC))
    inner, moved = slice(16, 480), slice(24, 488)
    assert apart(large[inner, inner], crop[moved, moved]).mean() < 1
    assert apart(enlarged[inner, inner], crop[moved, moved]).mean() > 10


def test_figure_moves_and_background_stays():
    crop, composition = picture(256), still()
    compositor = Compositor([crop], [disc()], 256)
    frames = compositor(composition)
    for far in (0.06, -0.1):
        composition.flow[..., 0] = far
        frames += compositor(composition)
    rows, columns = np.mgrid[:256, :256] / 256 - 0.5
    background = np.hypot(columns, rows) > 0.3 + 0.15
    assert all(np.array_equal(frame[background], frames[0][background]) for frame in frames)
    assert all(np.array_equal(frame[background], crop[background]) for frame in frames)
    assert apart(frames[1], frames[2])[~background].mean() > 5


def head_at_the_border(top: float) -> np.ndarray:
    """A matte of a head of a fifth of the side whose top is so much of the side below the upper border."""
    rows, columns = (np.mgrid[:SEEN, :SEEN] + 0.5) / SEEN - [[[0.0]], [[0.5]]]
    return np.clip((0.2 - np.hypot(columns, rows - 0.2 - top)) * SEEN + 0.5, 0, 1).astype(np.float32)


def test_a_head_that_the_upper_border_cuts_is_rounded_off_as_it_comes_down():
    cut, whole = (head_at_the_border(top) for top in (-0.04, 0.0))
    frames = {}
    for name, matte, down in (("cut", cut, 0.1), ("whole", whole, 0.06)):
        crop = np.uint8(np.rint(200 - 150 * cv2.resize(matte, (256, 256))))[..., None].repeat(3, axis=2)
        composition = still()
        composition.flow[..., 1] = -2 * down
        (frames[name],) = Compositor([crop], [matte], 256)(composition)
    assert frames["whole"][:13].min() > 190 and frames["whole"][20, 128, 0] < 60  # where its top is
    assert frames["cut"][:13].min() > 190 and frames["cut"][20, 128, 0] < 60
    assert apart(frames["cut"], frames["whole"]).mean() < 2


def test_a_head_that_the_upper_border_cuts_has_no_streaks_above():
    crop, composition = picture(256, cells=64), still()
    composition.flow[..., 1] = -2 * 24 / 256
    (frame,) = Compositor([crop], [np.ones_like(disc())], 256)(composition)
    assert apart(frame[1:24], crop[23:0:-1]).mean() < 1  # its own mirror image
    assert apart(frame[1:24], frame[:23]).mean() > 5


def test_residual_is_added_at_the_frames_own_size():
    composition = still()
    composition.residual[:, 0, : SEEN // 2] = 0.2
    composition.residual[:, 1] = 3
    crop = picture(320)
    (frame,) = Compositor([crop], [disc()], 320)(composition)
    assert apart(frame[:140, :, 0], (crop[:140, :, 0] + 25.5).clip(0, 255)).max() <= 1
    assert apart(frame[180:, :, 0], crop[180:, :, 0]).max() <= 1
    assert (frame[..., 1] == 255).all() and apart(frame[..., 2], crop[..., 2]).max() <= 1


def test_a_mouth_has_the_colour_of_its_cavity_where_it_is_open():
    composition, crop = still(), picture(256)
    composition.shade[..., 40:46, 24:40] = 0
    composition.cavities[:] = torch.tensor([-0.8, -1.0, -0.9])[:, None, None]
    (frame,) = Compositor([crop], [np.ones_like(disc())], 256)(composition)
    assert apart(frame[164:180, 104:152], np.array([25, 0, 13])).max() <= 1
    outside = np.ones((256, 256), bool)
    outside[156:188, 92:164] = False
    assert np.array_equal(frame[outside], crop[outside])


def test_portraits_count_by_their_shares():
    crops = [picture(256, seed) for seed in range(3)]
    mattes = [np.ones_like(disc())] * 3
    composition = still(2, chosen=[2, 0])
    composition.shares[0, :, 0, :, :8] = torch.tensor([1.0, 0.0])[:, None, None]
    composition.shares[0, :, 0, :, 8:] = torch.tensor([0.3, 0.7])[:, None, None]
    (frame,) = Compositor(crops, mattes, 256)(composition)
    assert apart(frame[:, :100], crops[2][:, :100]).max() <= 1
    assert apart(frame[:, 156:], 0.3 * crops[2][:, 156:] + 0.7 * crops[0][:, 156:]).max() <= 1
    # who counts almost nothing is left out, and the others make up for it
    composition.shares[0, 0], composition.shares[0, 1] = 0.01, 0.99
    assert apart(Compositor(crops, mattes, 256)(composition)[0], crops[0]).max() <= 1


def test_crops_of_different_sizes_come_together():
    crops = [picture(size) for size in (512, 256, 300)]
    (frame,) = Compositor(crops, [np.ones_like(disc())] * 3, 400)(still(3))
    expected = [np.asarray(Image.fromarray(crop).resize((400, 400), Image.Resampling.BICUBIC)) for crop in crops]
    assert apart(frame, np.mean(expected, axis=0)).max() <= 1


def test_few_layers_are_kept(monkeypatch):
    made, plates = [], compositing.background_plates

    def counting(*args):
        made.append(args[0].shape[1])
        return plates(*args)

    monkeypatch.setattr(compositing, "background_plates", counting)
    count = MAX_LAYERS + 12
    crops = [picture(SEEN, seed) for seed in range(count)]
    compositor = Compositor(crops, [disc()] * count, SEEN)
    first = compositor(still(1, chosen=[0]))
    compositor(still(1, chosen=[0]))
    assert len(made) == 1
    for index in range(1, count):
        compositor(still(1, chosen=[index]))
        compositor(still(1, chosen=[1]))  # is never the one that was not wanted for longest
    assert len(made) == count and len(compositor._layers) == MAX_LAYERS
    assert max(made) <= compositing.MAX_DONORS + 2
    assert np.array_equal(compositor(still(1, chosen=[0])), first) and len(made) == count + 1


# The bundled model.


@pytest.fixture(scope="module")
def pipe(bundled):
    return bundled


@pytest.fixture(scope="module")
def person(pipe, astronaut):
    return pipe.embed(astronaut)


@pytest.fixture(scope="module")
def generator(pipe):
    return pipe.generator.fold_spectral_norm()


def nodding(points: np.ndarray) -> np.ndarray:
    return points + np.float32([5, -3])


@pytest.mark.parametrize("dtype, near", [(torch.float32, 0.3), (torch.bfloat16, 1)])
def test_at_their_size_it_is_what_the_networks_draw(pipe, person, generator, dtype, near):
    points = nodding(person.landmarks)
    drawing, sources = pipe.image_processor.rasterize(points).to(dtype), person.sources
    sources = sources.map(lambda tensor: tensor.to(dtype) if tensor is not sources.landmarks else tensor)
    generator = generator.to(dtype)
    with torch.no_grad():
        output = generator(drawing, person.adain_parameters.to(dtype), torch.from_numpy(points)[None], sources)
    generator.float()
    (frame,) = person.compositor(256)(output.composition)
    difference = apart(frame, pipe.image_processor.postprocess(output.images)[0])
    assert difference.mean() < near
    # at the figure's edge the matte is sampled in another way
    edge = cv2.morphologyEx(sources.mattes[0, 0, 0].float().numpy(), cv2.MORPH_GRADIENT, np.ones((25, 25))) > 0.05
    assert (~edge).mean() > 0.5 and difference[~edge].max() <= 3


def test_background_of_a_photograph_stays_the_same(pipe, person, generator):
    points = person.landmarks
    frames = [pipe.generate_frame(generator, person, points) for points in (points, nodding(points))]
    background = cv2.dilate((person.sources.mattes[0, 0, 0].numpy() > 0).astype(np.uint8), np.ones((47, 47))) == 0
    assert background.mean() > 0.1 and np.array_equal(frames[0][background], frames[1][background])
    assert np.array_equal(frames[0][background], person.crops[0][background])
    assert apart(*frames)[~background].mean() > 3


def test_frames_of_a_large_portrait_are_larger_and_the_same(pipe, astronaut, generator):
    large = np.asarray(Image.fromarray(astronaut).resize((1400, 1400), Image.Resampling.BICUBIC))
    person = pipe.embed(large)
    assert 512 < person.max_size < 700
    frames = {
        size: pipe.generate_frame(generator, person, nodding(person.landmarks), size) for size in (None, 256, 320)
    }
    assert {size: len(frame) for size, frame in frames.items()} == {None: 512, 256: 256, 320: 320}
    for size in (256, 320):
        reduced = np.asarray(Image.fromarray(frames[None]).resize((size, size), Image.Resampling.BICUBIC))
        assert apart(frames[size], reduced).mean() < 2


@pytest.mark.parametrize("name", ["shares", "residual"])
def test_what_is_not_finite_is_refused(name):
    """Weights may be damaged, and half precision overflows."""
    composition = still(2)
    getattr(composition, name)[..., 0, 0] = float("nan")
    with pytest.raises(FsthError, match="not finite"):
        Compositor([picture(64), picture(64, 1)], [disc(), disc()], 64)(composition)
