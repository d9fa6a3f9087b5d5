import math

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fsth_hub.finetuning import losses
from fsth_hub.finetuning.feature_networks import (
    FACE_STRIDES,
    LPIPS,
    FaceFeatures,
    VGGFeatures,
    crop_around,
    load_weights,
    lpips_distance,
)
from fsth_hub.finetuning.losses import CONTENT_TERMS, ContentLoss, LossTerm, with_weights
from fsth_hub.models.errors import FsthError
from testing_utils.feature_networks import vgg_weights
from testing_utils.paths import WEIGHTS


def test_hinge_has_neither_sigmoid_nor_a_reward_beyond_the_margin():
    real, fake = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 0.25])
    # real: max(0, 1 - 2) = 0 and 0.5; fake: max(0, 1 - 3) = 0 and 1.25
    assert losses.discriminator_loss(real, fake).item() == pytest.approx(0.25 + 0.625)
    assert losses.adversarial_loss(torch.tensor([5.0, -1.0])).item() == pytest.approx(-2.0)


def test_content_loss_sums_layers():
    fake = [torch.full((1, 2, 2, 2), 1.0), torch.zeros(1, 4, 1, 1)]
    real = [torch.full((1, 2, 2, 2), 3.0), torch.full((1, 4, 1, 1), 0.5)]
    assert losses.content_loss(fake, real).item() == pytest.approx(2.0 + 0.5)


def test_feature_matching_averages_layers_and_stops_at_the_real_maps():
    fake = [torch.zeros(1, 2, requires_grad=True), torch.zeros(1, 2, requires_grad=True)]
    real = [torch.ones(1, 2, requires_grad=True), torch.full((1, 2), 3.0, requires_grad=True)]
    loss = losses.feature_matching_loss(fake, real)
    assert loss.item() == pytest.approx((1 + 3) / 2)
    loss.backward()
    assert fake[0].grad is not None and real[0].grad is None


def test_match_loss_trains_the_embedder_only():
    embeddings = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]], requires_grad=True)  # 1 x 2 x 2
    person = torch.tensor([[0.0, 2.0]], requires_grad=True)
    loss = losses.match_loss(embeddings, person)
    assert loss.item() == pytest.approx((1 + 2 + 0 + 2) / 4)
    loss.backward()
    assert embeddings.grad is not None and person.grad is None


@pytest.mark.parametrize(
    "depths, taps", [((2, 2, 3, 3, 3), [1, 6, 11, 18, 25]), ((2, 2, 4, 4, 4), [1, 6, 11, 20, 29])], ids=["16", "19"]
)
def test_vgg_taps_are_the_first_activation_of_each_stage(depths, taps):
    torch.manual_seed(0)
    weights = vgg_weights(depths)
    layers = []  # torchvision's own sequence
    for depth in depths:
        for _ in range(depth):
            name = f"features.{len(layers)}"
            layer = nn.Conv2d(2 if layers else 3, 2, 3, padding=1)
            layer.load_state_dict({part: weights[f"{name}.{part}"] for part in ("weight", "bias")})
            layers += [layer, nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
    images = torch.rand(1, 3, 32, 32) * 2 - 1
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).view(2, 3, 1, 1)
    x = ((images + 1) / 2 - mean) / std
    expected = []
    for index, layer in enumerate(layers):
        x = layer(x)
        if index in taps:
            expected.append(x)
    activations, _ = VGGFeatures(weights)(images)
    assert len(activations) == 5
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(activations, expected, strict=True))


@pytest.fixture
def vgg_file(tmp_path):
    torch.manual_seed(0)
    weights = vgg_weights((2, 2, 3, 3, 3))
    heads = {f"lin{level}.weight": torch.rand(1, 2, 1, 1) for level in range(5)}
    save_file(weights | heads, tmp_path / "vgg.safetensors")
    return tmp_path / "vgg.safetensors"


def test_lpips_term_weighs_normalised_differences_of_the_last_activations(vgg_file):
    torch.manual_seed(1)
    fake, real = torch.rand(2, 2, 3, 32, 32) * 2 - 1
    fake.requires_grad_(True)
    content = ContentLoss.load(vgg_file, weights={"vgg": 0, "lpips": 10})
    lasts = [content.backbone(images, last=True)[1] for images in (fake, real)]
    expected = 0.0
    for head, a, b in zip(content.backbone.heads, *lasts, strict=True):
        a, b = (maps / maps.norm(dim=1, keepdim=True).clamp(min=1e-12) for maps in (a, b))
        expected += ((a - b) ** 2 * head).sum(dim=1).mean()
    terms = content(fake, real, torch.zeros(2, 78, 2))
    assert terms["lpips"].item() == pytest.approx(10 * expected.item(), rel=1e-4)
    terms["lpips"].backward()
    assert fake.grad.abs().sum() > 0
    assert content(real, real, torch.zeros(2, 78, 2))["lpips"] == 0


def test_lpips_term_without_heads_is_refused(tmp_path):
    save_file(vgg_weights((2, 2, 3, 3, 3)), tmp_path / "vgg.safetensors")
    with pytest.raises(FsthError, match="no heads of LPIPS"):
        ContentLoss.load(tmp_path / "vgg.safetensors", weights={"lpips": 1})


def test_a_new_term_is_one_entry_and_a_new_backbone_an_argument(vgg_file):
    class Halves(nn.Module):
        loss_scale = 3.0

        def forward(self, images, last=False):
            return [images[..., :16], images[..., 16:]], []

    fake, real = torch.full((2, 1, 3, 32, 32), 0.5).unbind()
    real[..., :16] = 0
    darker = LossTerm("darker", 2.0, lambda seen: (seen.real - seen.fake).mean(), "of the brightness")
    terms = ContentLoss(Halves(), terms=(*CONTENT_TERMS, darker))(fake, real, torch.zeros(1, 78, 2))
    assert terms.keys() == {"vgg", "darker"}
    assert terms["vgg"].item() == pytest.approx(0.15 * 3 * 0.5) and terms["darker"].item() == pytest.approx(-0.5)
    with pytest.raises(FsthError, match="no loss term 'lerning': choose of vgg, lpips"):
        with_weights(CONTENT_TERMS, {"lerning": 1})


def test_a_weight_of_nothing_switches_a_term_off_and_networks_are_asked_once(vgg_file, monkeypatch):
    looks = []
    forward = VGGFeatures.forward
    monkeypatch.setattr(VGGFeatures, "forward", lambda *args, **kwargs: (looks.append(1), forward(*args, **kwargs))[1])
    content = ContentLoss.load(vgg_file, weights={"lpips": 1, "pixel": 0.0})
    fake, real = torch.rand(2, 1, 3, 32, 32)
    assert content(fake, real, torch.zeros(1, 78, 2)).keys() == {"vgg", "lpips"} and len(looks) == 2


def test_one_lpips_serves_losses_and_metrics():
    torch.manual_seed(0)
    weights, channels = {}, 3
    for level, (index, *_) in enumerate(LPIPS.LAYERS):
        size = {0: 11, 3: 5}.get(index, 3)
        weights[f"features.{index}.weight"] = torch.randn(4, channels, size, size)
        weights[f"features.{index}.bias"] = torch.zeros(4)
        weights[f"lin{level}.weight"] = torch.rand(1, 4, 1, 1)
        channels = 4
    lpips = LPIPS(weights)
    images, truth = torch.rand(2, 3, 3, 64, 64) * 2 - 1
    distances = lpips(images, truth)
    assert distances.shape == (3,) and (distances > 0).all() and not lpips(truth, truth).any()
    assert torch.allclose(distances.mean(), lpips_distance(lpips.features(images), lpips.features(truth), lpips.heads))


def test_window_compares_a_part_of_the_frames(vgg_file):
    content = ContentLoss.load(vgg_file)
    real, fake = torch.zeros(2, 1, 3, 64, 64)
    fake[..., :16, 32:48] = 1
    landmarks = torch.zeros(1, 78, 2)
    where_they_differ, elsewhere = (content(fake, real, landmarks, (left, 0, 16))["vgg"] for left in (32, 0))
    assert elsewhere == 0 < where_they_differ
    assert torch.equal(where_they_differ, content(fake[..., :16, 32:48], real[..., :16, 32:48], landmarks)["vgg"])


def test_face_crop_is_the_face_and_passes_gradients():
    images = torch.zeros(1, 3, 128, 128, requires_grad=True)
    landmarks = torch.full((1, 78, 2), float("nan"))
    landmarks[:, :68] = 64
    landmarks[:, 0], landmarks[:, 16] = torch.tensor([44.0, 64.0]), torch.tensor([84.0, 64.0])  # 40 pixels wide
    crop_around(images, landmarks[:, :68], 1.3, 224).sum().backward()
    seen = images.grad[0, 0].abs() > 0
    columns = seen.any(dim=0).nonzero().flatten()
    assert (columns.min().item(), columns.max().item()) == pytest.approx((64 - 26, 64 + 26), abs=1.5)


def test_face_network_tells_people_apart():
    path = WEIGHTS / "face_features_mobilenet_v1.safetensors"
    if not path.exists():
        pytest.skip("the face network is not here")
    network = FaceFeatures(load_weights(str(path)))
    landmarks = torch.rand(1, 78, 2) * 40 + 40
    taps = network(torch.rand(1, 3, 128, 128) * 2 - 1, landmarks)
    assert [tap.shape[-1] for tap in taps] == [112, 56, 28, 14, 7]
    assert taps[-1].shape[1] == 1024 and max(tap.max().item() for tap in taps) <= 6
    assert math.prod(FACE_STRIDES) == 16
