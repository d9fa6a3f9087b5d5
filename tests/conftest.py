from testing_utils.hub_server import ANN, run_hub  # before huggingface_hub is imported, see there


# isort: split
import gc
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from fsth_hub.finetuning import loop as finetuning
from fsth_hub.pipelines import engines, parallel
from fsth_hub.pipelines.pipeline_fsth import FsthPipeline
from testing_utils.clips import make_clip
from testing_utils.feature_networks import vgg_weights
from testing_utils.meta_training import train_tiny
from testing_utils.networks import NETWORKS, tiny, tiny_config
from testing_utils.pipelines import picture
from testing_utils.shards import NUM_FRAMES, grey, write_shards
from testing_utils.stills import write_face_clips, write_stills
from training import networks


# What takes longest, first: with `--dist loadfile` no process is then left alone with one of these at the end.
LONG = """
browser/test_browser_at_hand.py browser/test_browser.py browser/test_browser_person.py test_identity.py
test_finetuning.py test_saving.py test_meta_train_equivalence.py test_component_tuning.py test_contracts.py
test_engines.py test_auto.py test_person_tab.py test_hub.py test_pipeline.py test_demo.py test_batch.py
test_benchmark.py test_train_flow.py test_prepare_dataset.py test_meta_train.py test_space.py
browser/test_browser_check.py
""".split()


def pytest_configure(config):
    config.option.loadscopereorder = False  # pytest-xdist's own order, which counts tests


def pytest_collection_modifyitems(items):
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path, len(LONG)))


def pytest_collection_finish():
    """Libraries stay until the end: fine-tuning collects garbage each time, and need not look through them."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def own_settings(tmp_path_factory):
    """Tests sign what they generate with keys of their own, not with the user's, keep converted models elsewhere, and
    have PyTorch compute everything, one frame after the other: what else there is has tests of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "is_installed", lambda: False)
        patch.setattr(parallel, "num_workers", lambda *_: 1)
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
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


@pytest.fixture
def face_clips(tmp_path):
    return write_face_clips(tmp_path / "clips")


@pytest.fixture
def stills(tmp_path):
    return write_stills(tmp_path / "stills")


@pytest.fixture(scope="session")
def vgg(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("vgg") / "vgg.safetensors"
    save_file({name: 0.3 * weight for name, weight in vgg_weights((2, 2, 3, 3, 3)).items()}, path)
    return path


@pytest.fixture(scope="session")
def vgg_with_heads(vgg, tmp_path_factory) -> Path:
    """The same with the heads of LPIPS."""
    path = tmp_path_factory.mktemp("vgg") / "vgg.safetensors"
    save_file(load_file(vgg) | {f"lin{level}.weight": torch.full((1, 2, 1, 1), 0.5) for level in range(5)}, path)
    return path


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained")
    for name, network in NETWORKS.items():
        tiny(network).save_pretrained(folder / name)
    return folder


@pytest.fixture
def train(shards, vgg, tmp_path, monkeypatch):
    """Meta-training, the real script on tiny networks: takes its options and returns its folder."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(networks, "FsthConfig", tiny_config)

    def train(shards=shards, **options) -> Path:
        return train_tiny(shards, **{"output_dir": tmp_path / "run", "vgg": vgg} | options)

    return train


@pytest.fixture(scope="session")
def running_hub():
    with run_hub() as hub:
        yield hub


@pytest.fixture
def hub(running_hub, monkeypatch):
    """The hub, empty, to which this process and those that it starts are logged in as ann."""
    monkeypatch.setenv("HF_TOKEN", ANN)
    running_hub.clear()
    return running_hub


@pytest.fixture(scope="session")
def bundled() -> FsthPipeline:
    """The bundled model with the real detector, on the processor; leave it as it is."""
    pipe = FsthPipeline.from_pretrained()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def steps_that_show(monkeypatch):
    """Rates at which two steps of tiny networks change a frame, and the last of them is the best."""
    for method in finetuning.METHODS:
        monkeypatch.setitem(finetuning.LEARNING_RATES, method, 5e-3)
    scores = iter(range(10_000, 0, -1))
    evaluate = finetuning.evaluate
    monkeypatch.setattr(finetuning, "evaluate", lambda *args: (next(scores), evaluate(*args)[1]))


@pytest.fixture
def files(tmp_path) -> tuple[str, str]:
    """A portrait and a clip that the tiny pipeline can read."""
    portrait, clip = tmp_path / "anna.png", tmp_path / "driver.mp4"
    Image.fromarray(picture(0)).save(portrait)
    make_clip(clip, [picture(shift) for shift in (0, 4, 8, 12, 16)])
    return str(portrait), str(clip)
