"""What `torch.compile` does to a pipeline: the same frames, of everybody, and nothing else."""

import shutil

import numpy as np
import pytest
import torch

from fsth_hub.models.errors import FsthError
from fsth_hub.pipelines import engines
from testing_utils.pipelines import clip, frames_of, make_pipeline, picture, tuned, tuned_once


class Graphs(list):
    """A compiler that compiles nothing, and counts."""

    def __call__(self, graph, inputs):
        self.append(graph)
        return graph.forward


@pytest.fixture(autouse=True)
def nothing_compiled():
    torch._dynamo.reset()


@pytest.fixture
def pipe():
    return make_pipeline()


def compile_in_place(pipe, **options):
    pipe.generator.compile(**options)


def compile_and_assign(pipe, **options):
    pipe.generator = torch.compile(pipe.generator, **options)


@pytest.mark.parametrize("compile_generator", [compile_in_place, compile_and_assign])
def test_a_compiled_generator_generates_the_same_of_everybody(pipe, compile_generator):
    people = [pipe.embed(picture()), tuned_once(pipe, "full"), tuned_once(pipe, "lora")]
    expected = [frames_of(pipe, person) for person in people]
    graphs = Graphs()
    compile_generator(pipe, backend=graphs)
    for person, frames in zip(people, expected, strict=True):
        assert np.abs(frames_of(pipe, person).astype(int) - frames).max() <= 1
    # once for all of them, and the flow, which is all data, in between and not in a hundred pieces
    assert 1 <= len(graphs) <= 3


def test_a_short_last_batch_is_compiled_too(pipe):
    person, motion = pipe.embed(picture()), pipe.read_driving(clip(0, 20, 40, 60, 80))
    expected = np.stack(list(pipe.drive(person, motion)))
    compile_in_place(pipe, backend=Graphs())
    frames = np.stack(list(pipe.drive(person, motion, batch_size=2)))
    assert np.abs(frames.astype(int) - expected).max() <= 1


def test_who_was_fine_tuned_before_goes_with_a_compiled_model(pipe, tmp_path):
    tuned(pipe).save_pretrained(tmp_path / "ada")
    for compile_generator in (compile_in_place, compile_and_assign):
        other = make_pipeline()
        compile_generator(other, backend=Graphs())
        other.load_identity(tmp_path / "ada")


def test_fine_tuning_compiles_nothing(pipe):
    graphs = Graphs()
    compile_in_place(pipe, backend=graphs)
    tuned(pipe)
    assert not graphs


def test_openvino_leaves_what_is_compiled_alone(pipe, monkeypatch):
    monkeypatch.setattr(engines, "is_installed", lambda: True)
    pipe.generator.eval()
    assert engines.pick_engine("auto", pipe.generator) == "openvino"
    compile_in_place(pipe, backend=Graphs())
    assert engines.pick_engine("auto", pipe.generator) == "torch"
    with pytest.raises(FsthError, match="torch.compile"):
        engines.pick_engine("openvino", pipe.generator)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="PyTorch compiles for a processor with g++")
def test_what_inductor_compiles_generates_the_same(pipe, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    person, motion = pipe.embed(picture()), pipe.read_driving(clip(0, 20))
    expected = np.stack(list(pipe.drive(person, motion)))
    compile_in_place(pipe)
    frames = np.stack(list(pipe.drive(person, motion, batch_size=2)))
    assert np.abs(frames.astype(int) - expected).max() <= 1
