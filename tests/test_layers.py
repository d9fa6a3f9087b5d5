"""Portraits as figures over background plates."""

import pytest
import torch
import torch.nn.functional as F

from fsth_hub.models.layers import background_plates, blur, fill


SIZE = 64


def pictures(count: int, seed: int = 0, cells: int = 8) -> torch.Tensor:
    """Smooth random pictures: 1 x count x 3 x SIZE x SIZE."""
    noise = torch.rand(count, 3, cells, cells, generator=torch.Generator().manual_seed(seed)) * 1.6 - 0.8
    return F.interpolate(noise, SIZE, mode="bicubic").clamp(-1, 1)[None]


def disc(x: float, y: float, radius: float = 12, softness: float = 0.01) -> torch.Tensor:
    """A matte: 1 x 1 x SIZE x SIZE."""
    rows, columns = torch.meshgrid(torch.arange(SIZE) + 0.5, torch.arange(SIZE) + 0.5, indexing="ij")
    return torch.sigmoid((radius - torch.hypot(columns - x, rows - y)) / softness)[None, None]


def scene(figure: torch.Tensor, background: torch.Tensor, mattes: torch.Tensor) -> torch.Tensor:
    """Figures before a background, 1 x K x 3 x SIZE x SIZE."""
    return mattes * figure + (1 - mattes) * background


@pytest.mark.parametrize(
    "mattes",
    [
        disc(30, 34, softness=2)[None].expand(1, 2, 1, SIZE, SIZE),
        torch.rand(1, 2, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(1)),
        torch.ones(1, 2, 1, SIZE, SIZE),
        torch.zeros(1, 2, 1, SIZE, SIZE),
        torch.full((1, 2, 1, SIZE, SIZE), 0.4),
    ],
)
def test_figure_over_its_plate_is_the_portrait(mattes):
    images = pictures(2)
    plates = background_plates(images, mattes)
    assert plates.shape == images.shape and plates.isfinite().all() and plates.abs().max() <= 1 + 1e-5
    figures = images - (1 - mattes) * plates
    assert torch.allclose(figures + (1 - mattes) * plates, images, atol=1e-6)
    # of the first one's background nothing is left in the figure
    outside = (F.max_pool2d(mattes[0, :1], 15, 1, 7) < 1e-6).expand(-1, 3, -1, -1)
    assert not outside.any() or figures[0, :1][outside].abs().max() < 1e-5


def test_plate_is_the_picture_where_nothing_is_figure():
    images, mattes = pictures(1), disc(20, 40)[None]
    plate = background_plates(images, mattes)
    apart = (plate - images)[0, 0].abs().amax(dim=0)
    far = F.max_pool2d(mattes[0], 13, 1, 6)[0, 0] < 1e-3
    assert apart[far].max() < 1e-6 and far.float().mean() > 0.5
    assert apart[mattes[0, 0, 0] > 0.5].mean() > 0.05


def test_what_another_portrait_shows_of_the_background_is_taken_from_there():
    background = pictures(1, seed=1)
    mattes = torch.stack([disc(20, 32), disc(46, 32)], dim=1)[0][None]
    images = scene(torch.ones(1), background, mattes)
    plates = background_plates(images, mattes)
    alone = background_plates(images[:, :1], mattes[:, :1])
    hole = mattes[0, 0, 0] > 0.5
    together, guessed = ((plate[0, 0] - background[0, 0])[:, hole].abs().mean() for plate in (plates, alone))
    assert together < 0.02 < 0.1 < guessed
    assert (plates[0, 1] - background[0, 0]).abs().mean() < 0.01


def test_another_background_fills_no_hole_and_gives_way_to_the_first():
    mattes = torch.stack([disc(20, 32), disc(46, 32), disc(32, 20)], dim=1)[0][None]
    backgrounds = torch.cat([pictures(1, seed=1), pictures(1, seed=2), pictures(1, seed=1)], dim=1)
    images = scene(torch.ones(1), backgrounds, mattes)
    plates = background_plates(images, mattes)
    without = background_plates(images[:, [0, 2]], mattes[:, [0, 2]])
    assert torch.allclose(plates[:, [0, 2]], without)
    assert torch.equal(plates[:, 1], plates[:, 0])


def test_plates_are_those_that_are_wanted_and_of_each_person_alone():
    mattes = torch.stack([disc(20, 32), disc(46, 32), disc(32, 20)], dim=1)[0][None].repeat(2, 1, 1, 1, 1)
    images = scene(torch.ones(1), torch.cat([pictures(1, seed=1), pictures(1, seed=2)]), mattes)
    plates = background_plates(images, mattes)
    assert torch.equal(background_plates(images, mattes, [2, 0]), plates[:, [2, 0]])
    for person in range(2):
        alone = background_plates(images[person : person + 1], mattes[person : person + 1])
        assert torch.allclose(plates[person : person + 1], alone, atol=1e-5)


@pytest.mark.parametrize("size", [SIZE, 65, 48])
@pytest.mark.parametrize("hole", ["disc", "half", "nearly all"])
def test_fill_continues_a_constant(size, hole):
    known = 1 - F.interpolate(disc(30, 34), size)
    if hole != "disc":
        known = torch.zeros(1, 1, size, size)
        known[..., : size // 2 if hole == "half" else 3] = 1
    colour = torch.tensor([0.5, -0.2, 0.9])[None, :, None, None]
    garbage = torch.where(known > 0.5, colour, torch.rand(1, 3, size, size) * 100)
    assert torch.allclose(fill(garbage * (known > 0.5), (known > 0.5).float()), colour, atol=1e-4)
    assert torch.allclose(fill(garbage, (known > 0.5).float()), colour, atol=1e-4)


def test_fill_continues_a_gradient():
    gradient = torch.linspace(-1, 1, SIZE).expand(1, 3, SIZE, SIZE)
    known = 1 - (disc(32, 32) > 0.5).float()
    filled = fill(gradient * known, known)
    assert torch.equal(filled[known.expand(1, 3, -1, -1) > 0], gradient[known.expand(1, 3, -1, -1) > 0])
    apart = (filled - gradient).abs()[0, 0][known[0, 0] == 0]
    assert apart.mean() < 0.08 and apart.max() < 0.25  # of a slope of 0.75 across the hole
    assert filled[0, 0, 32].diff().min() > -0.02


def test_blur_keeps_the_mean_and_spreads():
    maps = torch.zeros(1, 1, SIZE, SIZE)
    maps[..., 30, 20] = 1
    blurred = blur(maps, 2)
    assert blurred.sum().item() == pytest.approx(1, abs=1e-4) and blurred.max() < 0.05
    assert blurred.argmax() == 30 * SIZE + 20
    assert (blurred[0, 0] > 1e-7).sum() == 81
    assert torch.allclose(blur(torch.ones(1, 1, 8, 8), 2), torch.ones(1))
