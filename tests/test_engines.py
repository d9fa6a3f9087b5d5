"""What computes frames changes how long they take, and no more."""

import sys
import threading
from functools import partial

import numpy as np
import pytest
import torch

from fsth_hub.models.blocks import NORM_EPS, instance_norm
from fsth_hub.models.errors import FsthError
from fsth_hub.models.folding import fold
from fsth_hub.models.image_processing_fsth import FsthImageProcessor
from fsth_hub.models.modeling_fsth import FsthGenerator
from fsth_hub.pipelines import engines, openvino_models
from fsth_hub.pipelines.pipeline_fsth import FsthPipeline
from testing_utils.networks import run_network, tiny, tiny_components
from testing_utils.pipelines import ScaledDetector, clip, frames_of, make_pipeline, picture, tuned_once


needs_openvino = pytest.mark.skipif(not engines.is_installed(), reason="OpenVINO is not installed (extra `fast`)")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def openvino(monkeypatch, cache):
    """OpenVINO counts as installed, and computes in float32, as tiny networks of random weights want it."""
    monkeypatch.setattr(engines, "is_installed", lambda: True)
    monkeypatch.setattr(openvino_models, "default_dtype", lambda device: torch.float32)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    return openvino_models


def complete_pipeline() -> FsthPipeline:
    pipe = make_pipeline()
    pipe.facial_components = tiny_components()
    return pipe


def both(pipe: FsthPipeline, person) -> list[np.ndarray]:
    frames = []
    for engine in ("torch", "openvino"):
        pipe.engine = engine
        frames.append(frames_of(pipe, person).astype(int))
    return frames


@needs_openvino
@pytest.mark.parametrize("portraits", [1, 3])
def test_engines_agree(openvino, portraits):
    one, other = both(complete_pipeline(), [picture(shift) for shift in range(portraits)])
    assert np.abs(one - other).max() <= 1


@needs_openvino
def test_engines_agree_where_networks_work_on_less_than_a_frame(openvino):
    pipe = make_pipeline(image_size=128, network_size=64)
    pipe.image_processor, pipe.detector = FsthImageProcessor(size=128), ScaledDetector()
    one, other = both(pipe, picture(height=192, width=192))
    assert one.shape == (2, 146, 146, 3)
    assert np.abs(one - other).max() <= 1


@needs_openvino
@pytest.mark.parametrize("method", ["full", "lora"])
def test_engines_agree_on_a_person_who_was_tuned(openvino, method):
    pipe = make_pipeline()
    one, other = both(pipe, tuned_once(pipe, method))
    assert np.abs(one - other).max() <= 1
    assert np.abs(other - frames_of(pipe, picture())).max() > 1


@needs_openvino
def test_the_bundled_model_is_right_in_the_precision_of_the_processor(monkeypatch, bundled, astronaut):
    monkeypatch.setattr(engines, "is_installed", lambda: True)
    person = bundled.embed(astronaut)
    draw = partial(bundled.generate_frame, bundled.generator_for(), person, person.landmarks + 2, 256)
    reference = draw_by(bundled, "torch", draw)
    error = np.abs(draw_by(bundled, "openvino", draw) - reference)
    assert error.max() <= 2 and error.mean() < 0.1


def draw_by(pipe: FsthPipeline, engine: str, draw) -> np.ndarray:
    before, pipe.engine = pipe.engine, engine
    try:
        return draw().astype(int)
    finally:
        pipe.engine = before


@needs_openvino
def test_threads_share_a_pipeline(openvino):
    pipe = complete_pipeline()
    people = [pipe.embed(picture(shift)) for shift in (0, 80)]
    expected = [frames_of(pipe, person) for person in people]
    wrong = []

    def draw(number):
        for _ in range(3):
            if not np.array_equal(frames_of(pipe, people[number]), expected[number]):
                wrong.append(number)

    threads = [threading.Thread(target=draw, args=(number,)) for number in (0, 1, 0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@needs_openvino
def test_a_model_is_converted_once_and_found_again(openvino, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = frames_of(complete_pipeline(), picture())
    monkeypatch.setattr(openvino, "trace", lambda *args: 1 / 0)
    pipe = complete_pipeline()
    pipe.engine = "openvino"
    assert np.array_equal(frames_of(pipe, picture()), first)
    with torch.no_grad():
        pipe.generator.head.weight += 0.05
    with pytest.raises(FsthError, match="ZeroDivisionError"):  # other weights are another model
        frames_of(pipe, picture())


@needs_openvino
def test_a_damaged_model_is_converted_again(openvino, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = frames_of(complete_pipeline(), picture())
    kept = list(openvino.cache_folder().iterdir())
    for folder in kept:
        (folder / "model.bin").write_bytes(b"")
    assert np.array_equal(frames_of(complete_pipeline(), picture()), first)
    assert sorted(openvino.cache_folder().iterdir()) == sorted(kept)
    assert all((folder / "model.bin").stat().st_size for folder in kept)


@needs_openvino
def test_only_so_much_is_kept(openvino, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(openvino, "MAX_KEPT", 1)
    frames_of(complete_pipeline(), picture())
    assert not list(openvino.cache_folder().iterdir())


@needs_openvino
def test_where_nothing_can_be_kept_frames_are_drawn_all_the_same(openvino, monkeypatch, tmp_path):
    (tmp_path / "fsth_hub").write_text("a file where the folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert len(frames_of(make_pipeline(), picture())) == 2


@needs_openvino
@pytest.mark.parametrize("failure", ["raises", "is wrong"])
def test_what_cannot_be_converted_is_left_to_pytorch(openvino, monkeypatch, tmp_path, caplog, failure):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    pipe = make_pipeline()
    pipe.engine = "torch"
    expected = frames_of(pipe, picture())
    if failure == "raises":
        monkeypatch.setattr(openvino, "trace", lambda *args: 1 / 0)
    else:
        call = openvino.OpenVinoModel.__call__
        monkeypatch.setattr(openvino.OpenVinoModel, "__call__", lambda *args: tuple(-x for x in call(*args)))
    pipe.engine = "auto"
    assert np.array_equal(frames_of(pipe, picture()), expected)
    assert len(caplog.messages) == 2 and "PyTorch" in caplog.text  # where to look, what to add
    pipe.engine = "openvino"
    with pytest.raises(FsthError, match="engine='torch'"):
        frames_of(pipe, picture())


@needs_openvino
def test_nothing_is_told_to_others(openvino):
    openvino.load_openvino()
    assert not {"openvino_telemetry", "openvino_telemetry.main"} & set(sys.modules)


def test_an_engine_must_be_one_and_be_there(monkeypatch):
    pipe = make_pipeline()
    with pytest.raises(FsthError, match="engine must be"):
        pipe.engine = "tensorrt"
    with pytest.raises(FsthError, match="pip install openvino"):
        pipe.engine = "openvino"
    assert pipe.engine == "auto"
    assert pipe(picture(), clip(0, 1)).report.engine == "torch"


def test_a_model_without_source_skips_is_computed_by_pytorch(monkeypatch):
    monkeypatch.setattr(engines, "is_installed", lambda: True)
    pipe = make_pipeline(source_skips=False)
    assert pipe(picture(), clip(0, 1)).report.engine == "torch"
    pipe.engine = "openvino"
    with pytest.raises(FsthError, match="source skips"):
        frames_of(pipe, picture())


def test_folded_networks_draw_the_same():
    generator = tiny(FsthGenerator)
    expected, folded = run_network(generator), run_network(fold(generator))
    assert torch.allclose(folded.images, expected.images, atol=1e-4)
    assert (expected.images - expected.warped).abs().max() > 0.01  # networks that add something


def test_one_picture_is_normalized_as_several_are():
    x = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0)) * 4 + 1
    scale, shift = torch.tensor([[0.5, 1, 2], [3, 4, 5]]), torch.tensor([[0.0, 1, -1], [2, 3, 4]])
    expected = normalized(x, scale, shift)
    assert torch.allclose(instance_norm(x, scale, shift), expected, atol=1e-5)
    with torch.no_grad():
        assert torch.allclose(instance_norm(x[:1], scale[:1], shift[:1]), expected[:1], atol=1e-5)


def normalized(x, scale, shift) -> torch.Tensor:
    mean, variance = x.mean(dim=(2, 3)), x.var(dim=(2, 3), correction=0)
    scale = scale / (variance + NORM_EPS).sqrt()
    return (x - mean[..., None, None]) * scale[..., None, None] + shift[..., None, None]
