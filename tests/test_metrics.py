"""Measures of frames against the truth."""

import pytest
import torch
from test_losses import WEIGHTS
from test_modeling import SIZE

from fsth_hub.feature_networks import load_weights
from training.metrics import LPIPS


def test_lpips_of_equal_pictures_is_nothing_and_grows_with_noise():
    path = WEIGHTS / "alexnet_lpips.safetensors"
    if not path.exists():
        pytest.skip("the weights of LPIPS are not here")
    lpips = LPIPS(load_weights(str(path)))
    torch.manual_seed(0)
    pictures = torch.rand(2, 3, SIZE, SIZE) * 2 - 1
    noise = torch.randn_like(pictures)
    assert torch.equal(lpips(pictures, pictures), torch.zeros(2))
    distances = torch.stack([lpips(pictures + strength * noise, pictures) for strength in (0.05, 0.2, 0.8)])
    assert (distances[0] > 0).all() and (distances.diff(dim=0) > 0).all()
    assert torch.allclose(lpips(pictures + noise, pictures), lpips(pictures, pictures + noise), atol=1e-6)
