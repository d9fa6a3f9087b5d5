from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from hub_server import hub, running_hub  # noqa: F401 (fixtures; before huggingface_hub, see there)
from meta_training import train  # noqa: F401 (a fixture)
from safetensors.torch import save_file
from shards import NETWORKS, NUM_FRAMES, grey, write_shards
from test_losses import vgg_weights
from test_modeling import tiny


@pytest.fixture(scope="session", autouse=True)
def own_settings(tmp_path_factory):
    """Tests sign what they generate with keys of their own, not with the user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("settings")))
        patch.delenv("FSTH_C2PA_CERT", raising=False)
        patch.delenv("FSTH_C2PA_KEY", raising=False)
        yield


@pytest.fixture(scope="session")
def astronaut() -> np.ndarray:
    """A photograph that is in the public domain and comes with scikit-image: 512 x 512 x 3 uint8, one face."""
    return skimage.data.astronaut()


@pytest.fixture(scope="session")
def astronaut_clip(astronaut) -> list[np.ndarray]:
    """The astronaut's head, 256 x 256, wandering over the picture: 12 frames."""
    return [astronaut[2 * step : 256 + 2 * step, 90 + 4 * step : 346 + 4 * step] for step in range(12)]


@pytest.fixture
def shards(tmp_path) -> Path:
    """Two clips of ann, one of bob; frame i is grey, 30 i bright."""
    frames = [grey(30 * index) for index in range(NUM_FRAMES)]
    return write_shards(tmp_path / "shards", dict.fromkeys(["ann/a.b/1.mp4", "ann/2.mp4", "bob/1.mp4"], frames))


@pytest.fixture(scope="session")
def vgg(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("vgg") / "vgg.safetensors"
    save_file({name: 0.3 * weight for name, weight in vgg_weights((2, 2, 3, 3, 3)).items()}, path)
    return path


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained")
    for name, network in NETWORKS.items():
        tiny(network).save_pretrained(folder / name)
    return folder
