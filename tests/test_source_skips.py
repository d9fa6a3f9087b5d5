"""What the generator makes of portraits before its networks see them: colours for a mouth, and a still background."""

import numpy as np
import pytest
import torch

from fsth_hub.landmarks.pose import MEAN_FACE, Pose
from fsth_hub.models.configuration_fsth import FsthConfig
from fsth_hub.models.landmark_layout import OUTER_LIPS
from fsth_hub.models.modeling_fsth import FsthGenerator
from fsth_hub.models.source_skips import CAVITY_LIGHT, OUTSIDE_FACE, cavity_colours, fade_width, skin_light


SIZE = 64


def landmarks(mouth: float = 2.0, shift: float = 0.0) -> torch.Tensor:
    """A frontal face in 64 pixels, its mouth open by so many hundredths of the distance between the eyes."""
    upright = MEAN_FACE.copy()
    upright[65:68, 1] = upright[[63, 62, 61], 1] + mouth
    points = Pose(np.eye(3), 0.17, np.array([SIZE / 2 + shift, SIZE / 2])).project(upright)
    return torch.from_numpy(points.astype(np.float32))


def picture(skin, lips=None) -> torch.Tensor:
    """One colour (RGB, 0 to 1), with lips of another."""
    image = torch.tensor(skin).view(3, 1, 1).expand(3, SIZE, SIZE).clone()
    if lips is not None:
        x, y = landmarks()[OUTER_LIPS].T
        rows, columns = slice(int(y.min()) - 1, int(y.max()) + 2), slice(int(x.min()) - 2, int(x.max()) + 3)
        image[:, rows, columns] = torch.tensor(lips).view(3, 1, 1)
    return (image * 2 - 1)[None, None]  # 1 x 1 x 3 x 64 x 64


def test_light_is_the_skins_colour_over_its_mean():
    points = landmarks()[None, None]
    light = skin_light(picture((0.6, 0.3, 0.3), lips=(0.9, 0.0, 0.0)), points)
    torch.testing.assert_close(light.flatten(), torch.tensor([1.5, 0.75, 0.75]))
    grey = skin_light(picture((0.4, 0.4, 0.4)), points)
    torch.testing.assert_close(grey, torch.ones(1, 1, 3, 1, 1))
    assert torch.isfinite(skin_light(picture((0.0, 0.0, 0.0)), points)).all()


def test_cavity_has_the_colour_of_the_lips_in_the_dark():
    cavity = cavity_colours(picture((0.6, 0.5, 0.4), lips=(0.8, 0.2, 0.2)), landmarks()[None, None])
    expected = torch.tensor([0.8, 0.2, 0.2]) * CAVITY_LIGHT * 2 - 1
    torch.testing.assert_close(cavity.flatten(), expected)


def test_fade_widens_with_the_background():
    mattes = torch.stack([torch.ones(1, 32, 32), torch.full((1, 32, 32), 0.5), torch.zeros(1, 32, 32)])
    narrow, middle, wide = fade_width(mattes).tolist()
    assert narrow == pytest.approx(0.18) and narrow < middle < wide == pytest.approx(0.5)


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(0)
    network = FsthGenerator(FsthConfig(image_size=SIZE, base_channels=8, max_channels=16, embedding_dim=16)).eval()
    torch.nn.init.normal_(network.head.weight, std=0.3)  # a decoder that changes everything it may
    return network


def generate(generator, portrait, mattes, driving):
    points = landmarks()[None, None]
    drawing = torch.zeros_like(portrait)
    with torch.no_grad():
        sources = generator.encode_sources(portrait, drawing, points, mattes)
        parameters = generator.project(torch.zeros(1, 16))
        return generator(drawing[:, 0], parameters, driving[None], sources)


def test_background_is_the_portraits_own(generator):
    """Neither the flow nor the decoder touches what the matte calls background."""
    portrait = torch.rand(1, 1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mattes = torch.zeros(1, 1, 1, SIZE, SIZE)
    mattes[..., 20:52, 26:38] = 1
    output = generate(generator, portrait, mattes, landmarks(shift=3))
    torch.testing.assert_close(output.images[..., :, :4], portrait[:, 0, ..., :4], atol=1e-5, rtol=0)
    inside = (output.images - portrait[:, 0])[..., 24:48, 26:38]
    assert inside.abs().mean() > 0.05
    without = generate(generator, portrait, None, landmarks(shift=3))
    assert (without.images - portrait[:, 0])[..., :4].abs().max() > 0.01


def test_outside_the_face_fewer_portraits_count(generator):
    """Heads are at other places in each: what lies around would be the mean of several."""
    points = torch.stack([landmarks(), landmarks(shift=0.5)])[None]
    portraits = torch.zeros(1, 2, 3, SIZE, SIZE)
    with torch.no_grad():
        sources = generator.encode_sources(portraits, portraits, points)
        shares = generator.source_skips(sources, portraits[:, 0], landmarks()[None]).composition.shares[0, :, 0]
    ratios = (shares[0] / shares[1]).log()  # 16 x 16, as the refiner has nothing to say yet
    assert ratios[8, 8] > 0.02
    assert ratios[0, 0] == pytest.approx(OUTSIDE_FACE * ratios[8, 8].item(), rel=1e-3)


@pytest.mark.parametrize(("skin", "light"), [((0.5, 0.5, 0.5), (1, 1, 1)), ((0.75, 0.5, 0.25), (1.5, 1, 0.5))])
def test_what_is_drawn_in_a_mouth_takes_the_light_of_the_face(generator, skin, light):
    points, portrait = landmarks(mouth=40)[None], picture(skin)
    sources = generator.encode_sources(portrait, torch.zeros_like(portrait), landmarks()[None, None])
    with torch.no_grad():
        fused = generator.source_skips(sources, torch.zeros_like(portrait[:, 0]), points)
    shade, gain = fused.composition.shade[0, 0, 0], fused.gain[0]  # 64 x 64, 3 x 64 x 64
    y, x = divmod(int(shade.argmin()), SIZE)
    assert shade[y, x] < 0.4
    expected = shade[y, x] + (1 - shade[y, x]) * torch.tensor(light)
    torch.testing.assert_close(gain[:, y, x], expected, atol=1e-3, rtol=0)
    torch.testing.assert_close(gain[:, :8], torch.ones(3, 8, SIZE), atol=1e-4, rtol=0)
