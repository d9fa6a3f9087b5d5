"""Frames that the networks generate several at a time are those that they generate one by one."""

import threading

import numpy as np
import pytest
import torch

from fsth_hub.models.aligned_crops import PARTS, align, sample_crops
from fsth_hub.models.errors import FsthError
from fsth_hub.models.source_skips import Composition
from fsth_hub.pipelines import engines, parallel
from fsth_hub.pipelines.parallel import in_batches, pick_batch_size
from testing_utils.faces import frontal_face
from testing_utils.networks import tiny_components
from testing_utils.pipelines import CrowdDetector, arrays, clip, make_pipeline, picture, row, tuned_once


SHIFTS = (0, 20, 40, 60, 80)


@pytest.fixture
def pipe():
    return make_pipeline()


def frames_by(pipe, person, batch_size, **options) -> np.ndarray:
    return arrays(pipe.drive(person, pipe.read_driving(clip(*SHIFTS)), batch_size=batch_size, **options)).astype(int)


def assert_same(frames: np.ndarray, others: np.ndarray) -> None:
    """To far less than half a grey level: seldom does rounding go the other way."""
    assert frames.shape == others.shape
    difference = np.abs(frames - others)
    assert difference.max() <= 1 and (difference > 0).mean() < 0.02


def spy_on_calls(pipe, monkeypatch) -> list[int]:
    """How many frames each call of the networks was for."""
    counts, generate_frames = [], pipe.generate_frames
    monkeypatch.setattr(pipe, "generate_frames", lambda *args: counts.append(len(args[2])) or generate_frames(*args))
    return counts


# The same frames.


@pytest.mark.parametrize("num_portraits", [1, 2, 6])
@pytest.mark.parametrize("components", [False, True])
def test_frames_are_the_same(pipe, num_portraits, components):
    if components:
        pipe.register_modules(facial_components=tiny_components())
    person = pipe.embed([picture(10 * number) for number in range(num_portraits)])
    expected = frames_by(pipe, person, 1)
    assert np.abs(np.diff(expected, axis=0)).mean() > 0.5
    for batch_size in (2, 8):
        assert_same(frames_by(pipe, person, batch_size), expected)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_frames_of_who_was_fine_tuned_are_the_same(pipe, method):
    person = tuned_once(pipe, method)
    assert_same(frames_by(pipe, person, 3), frames_by(pipe, person, 1))


def test_frames_without_source_skips_are_the_same():
    pipe = make_pipeline(source_skips=False)
    person = pipe.embed(picture())
    assert_same(frames_by(pipe, person, 3), frames_by(pipe, person, 1))


def test_frames_of_the_bundled_model_are_the_same(bundled, astronaut):
    person = bundled.embed([astronaut, np.ascontiguousarray(astronaut[:, ::-1])])
    motion = bundled.read_driving("motion:nod").first(3)
    one, many = (arrays(bundled.drive(person, motion, batch_size=count)).astype(int) for count in (1, 3))
    assert_same(many, one)


def test_everybody_of_a_group_is_the_same(pipe):
    pipe.detector = CrowdDetector()
    one, many = (
        arrays(pipe.animate_group(row(0, 0), clip(*SHIFTS), watermark=False, batch_size=count).frames[0]).astype(int)
        for count in (1, 2)
    )
    assert_same(many, one)


def test_crops_do_not_depend_on_what_else_is_cropped():
    """A frame in which the face is larger is sampled more finely, and it alone."""
    part, images = PARTS["mouth"], torch.rand(4, 3, 512, 512) * 2 - 1
    alignment = torch.cat([scale * align(frontal_face(size=512), part, 512) for scale in (0.4, 0.4, 1.6, 0.4)])
    together = sample_crops(images, alignment, 64)
    alone = [sample_crops(images[n : n + 1], alignment[n : n + 1], 64) for n in range(4)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)


def test_a_composition_is_split_without_a_copy():
    shapes = {"chosen": (3, 2), "flow": (3, 2, 4, 4, 2), "residual": (3, 3, 4, 4)}
    whole = Composition(**{name: torch.rand(shape) for name, shape in shapes.items()})
    parts = whole.split()
    assert len(parts) == 3 and parts[1].shares is None
    for name, shape in shapes.items():
        assert parts[1][name].shape == (1, *shape[1:])
        assert parts[1][name].data_ptr() == whole[name][1].data_ptr()


# So many at a time, in order.


@pytest.mark.parametrize("count, expected", [(None, [1] * 5), (1, [1] * 5), (2, [2, 2, 1]), (5, [5]), (9, [5])])
def test_the_networks_get_as_many_as_were_asked_for(pipe, monkeypatch, count, expected):
    counts = spy_on_calls(pipe, monkeypatch)
    progress = []
    output = pipe(
        picture(), clip(*SHIFTS), batch_size=count, callback_on_frame_end=lambda *args: progress.append(args[1:3])
    )
    assert counts == expected and len(output.frames[0]) == 5
    assert progress == [(index, 5) for index in range(5)]


def test_the_default_is_for_the_device():
    sizes = [pick_batch_size(None, torch.device(device), "torch") for device in ("cpu", "cuda", "mps")]
    assert sizes == [1, 8, 8]
    assert pick_batch_size(3, torch.device("cpu"), "torch") == pick_batch_size(3, torch.device("cuda"), "torch") == 3


def test_openvino_gets_one_frame_whatever_is_asked_for(pipe, monkeypatch):
    monkeypatch.setattr(engines, "is_installed", lambda: True)
    person, counts = pipe.embed(picture()), []
    monkeypatch.setattr(pipe, "_computed", lambda network, make: network)
    monkeypatch.setattr(pipe, "generate_frames", lambda *args: counts.append(len(args[2])) or [picture()])
    frames_by(pipe, person, 4)
    assert counts == [1] * 5


def test_no_more_is_read_than_a_batch():
    read = []
    batches = in_batches((read.append(number) or number for number in range(9)), 4)
    for expected, so_far in (([0, 1, 2, 3], 4), ([4, 5, 6, 7], 8), ([8], 9)):
        assert next(batches) == expected and len(read) == so_far
    assert list(batches) == []


@pytest.mark.parametrize("batch_size", [0, -1, 2.0, True, "3"])
def test_what_is_no_batch_size_is_one_sentence(pipe, batch_size):
    person, motion = pipe.embed(picture()), pipe.read_driving(clip(0))
    for call in (pipe, lambda *args, **options: list(pipe.drive(*args, **options))):
        with pytest.raises(FsthError, match=r"^batch_size must be a whole number of 1 or more, not [^.]+(\.0)?\.$"):
            call(person, motion, batch_size=batch_size)


# When it ends early.


def test_an_error_comes_after_the_batches_before_it(pipe, monkeypatch):
    generate_frames, calls = pipe.generate_frames, []

    def failing(*args):
        calls.append(args)
        if len(calls) == 2:
            raise FsthError("The second batch fails.")
        return generate_frames(*args)

    monkeypatch.setattr(pipe, "generate_frames", failing)
    frames = pipe.drive(pipe.embed(picture()), pipe.read_driving(clip(*SHIFTS)), batch_size=2)
    assert [next(frames).shape for _ in range(2)] == [(64, 64, 3)] * 2
    with pytest.raises(FsthError, match="second batch"):
        next(frames)
    assert len(calls) == 2


def test_whoever_stops_early_leaves_no_work_behind(pipe, monkeypatch):
    monkeypatch.setattr(parallel, "num_workers", lambda *_: 2)
    before, left = set(threading.enumerate()), []
    monkeypatch.setattr(pipe, "maybe_free_model_hooks", lambda: left.append(set(threading.enumerate()) - before))
    frames = pipe.drive(pipe.embed(picture()), pipe.read_driving(clip(*SHIFTS)), batch_size=2)
    next(frames)
    frames.close()
    assert left == [set()]
