"""Devices and precisions, offload, threads and copies: a person is drawn right wherever pipeline and person lie."""

import copy
import pickle
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module

from fsth_hub.finetuning.loop import PixelLoss
from fsth_hub.landmarks import get_detector
from fsth_hub.models.errors import FsthError, FsthWarning
from fsth_hub.models.modeling_fsth import is_hooked
from fsth_hub.pipelines.caching import Cache, weights_state
from fsth_hub.provenance import credentials as provenance
from testing_utils.contracts import offload
from testing_utils.pipelines import clip, frames_of, make_pipeline, picture, tuned_once


@pytest.fixture
def pipe():
    return make_pipeline()


# Devices and precisions.


def test_precise_parts_stay_precise(pipe):
    _, sources = pipe.embed(picture()).inputs(torch.device("cpu"), torch.bfloat16)
    precise = {name for name, value in sources.items() if name != "features" and value.dtype == torch.float32}
    assert precise == {"landmarks", "cavities", "light"}
    assert {feature.dtype for feature in sources.features} == {torch.bfloat16}


def test_networks_are_left_as_they_are_given(pipe):
    networks = (pipe.embedder, pipe.generator, pipe.discriminator)
    before = [copy.deepcopy(network.state_dict()) for network in networks]
    pipe.fine_tune(picture(), steps=1, content=PixelLoss())
    frames_of(pipe, picture())
    for network, state in zip(networks, before, strict=True):
        assert network.training
        assert all(torch.equal(tensor, state[name]) for name, tensor in network.state_dict().items())


# Offload.


class Recording(ModelHook):
    def __init__(self):
        self.running, self.runs = 0, 0

    def pre_forward(self, module, *args, **kwargs):
        self.running, self.runs = self.running + 1, self.runs + 1
        return args, kwargs

    def post_forward(self, module, output):
        self.running -= 1
        return output


def watch(network: torch.nn.Module) -> Recording:
    """Have a network's parts refuse to compute outside of what its hook sees."""
    hook = Recording()
    add_hook_to_module(network, hook)

    def inside(*_):
        assert hook.running, "computed without the hook, which would have brought the weights"

    for part in network.modules():
        if part is not network:
            part.register_forward_pre_hook(inside)
    return hook


def test_all_that_networks_compute_goes_through_their_hooks(pipe):
    expected = frames_of(pipe, picture())
    hooks = [watch(network) for network in (pipe.embedder, pipe.generator, pipe.discriminator)]
    # in their own memory layout, and so not to the last bit
    assert (np.abs(frames_of(pipe, picture()).astype(int) - expected) <= 1).all()
    # embedding; projecting, encoding the portrait, and two frames; nothing
    assert [hook.runs for hook in hooks] == [1, 2 + 2, 0]


@pytest.mark.parametrize("way", ["model", "sequential"])
def test_offloaded_pipeline_is_fine_tuned(pipe, way, tmp_path):
    expected = make_pipeline().fine_tune(picture(), steps=1, content=PixelLoss())
    offload(pipe, way)
    identity = pipe.fine_tune(picture(), steps=1, content=PixelLoss())
    assert identity.fingerprint == expected.fingerprint
    assert torch.allclose(identity.adain_parameters, expected.adain_parameters, atol=1e-4)
    identity.save_pretrained(tmp_path / "ada")
    assert np.array_equal(frames_of(pipe, pipe.load_identity(tmp_path / "ada")), frames_of(pipe, identity))


def test_group_offload_is_refused_and_nothing_has_changed(pipe):
    with pytest.raises(FsthError, match="enable_model_cpu_offload"):
        pipe.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")
    assert not any(is_hooked(network) for network in (pipe.embedder, pipe.generator, pipe.discriminator))


def test_hooks_are_freed_after_a_clip(pipe, monkeypatch):
    freed = []
    monkeypatch.setattr(pipe, "maybe_free_model_hooks", lambda: freed.append(True))
    frames_of(pipe, picture())
    assert freed == [True]

    def give_up(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipe(picture(), clip(0), callback_on_frame_end=give_up, credentials=False)
    assert freed == [True, True]


# Threads.


def in_threads(*functions) -> list:
    """What each returns or raises, all of them started at once."""
    results, barrier = [None] * len(functions), threading.Barrier(len(functions))

    def run(index):
        barrier.wait()
        try:
            results[index] = functions[index]()
        except BaseException as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=[index]) for index in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_threads_share_a_pipeline(pipe):
    negative = 255 - picture()
    negative[0, 0] = 20
    people = [pipe.embed(picture()), pipe.embed(negative), tuned_once(pipe, "full"), tuned_once(pipe, "lora")]
    expected = [frames_of(make_pipeline(), people[0]), frames_of(make_pipeline(), people[1])]
    expected += [frames_of(pipe, copy.deepcopy(person)) for person in people[2:]]
    results = in_threads(*(lambda person=person: frames_of(pipe, person) for person in 2 * people))
    for result, right in zip(results, 2 * expected, strict=True):
        assert np.array_equal(result, right)


def test_threads_share_a_person_at_different_sizes(pipe):
    person = pipe.embed(np.ascontiguousarray(picture().repeat(4, 0).repeat(4, 1)), crop=False)
    motion = pipe.read_driving(clip(0, 20))
    sizes = [64, 100, 128] * 2
    results = in_threads(*(lambda size=size: list(pipe.drive(person, motion, size=size)) for size in sizes))
    for size, result in zip(sizes, results, strict=True):
        assert np.array_equal(result, list(pipe.drive(person, motion, size=size)))


def test_threads_share_a_detector(astronaut):
    detector = get_detector()
    pictures = [astronaut, np.ascontiguousarray(astronaut[:, ::-1])]
    expected = [detector.detect(image)[0].points for image in pictures]

    def look(image):
        return [detector.detect(image)[0].points for _ in range(3)]

    for found, right in zip(in_threads(*(lambda i=i: look(i) for i in pictures)), expected, strict=True):
        assert all(np.array_equal(points, right, equal_nan=True) for points in found)


# Copies.


def test_nothing_that_is_kept_is_copied(pipe):
    person = pipe.embed(picture())
    sizes = [len(pickle.dumps(item)) for item in (pipe, person)]
    frames_of(pipe, person)
    assert [len(pickle.dumps(item)) for item in (pipe, person)] == sizes
    assert replace(person)._compositors is not person._compositors


def test_default_detector_is_copied_and_pickled(astronaut):
    detector = get_detector()
    for other in (copy.deepcopy(detector), pickle.loads(pickle.dumps(detector))):
        assert np.array_equal(other.detect(astronaut)[0].points, detector.detect(astronaut)[0].points, equal_nan=True)


# The cache.


def test_cache_keeps_the_last_owners_and_lets_them_go():
    class Owner:
        pass

    kept, owners, made = Cache(2), [Owner(), Owner(), Owner()], []

    def get(owner, state=0):
        return kept.get(owner, state, lambda: made.append(owner) or object())

    first = get(owners[0])
    assert get(owners[0]) is first and get(owners[0], 1) is not first and len(made) == 2
    get(owners[1])
    get(owners[0], 1)
    assert len(made) == 3
    get(owners[2])
    get(owners[0], 1)
    assert len(made) == 4 and len(kept._entries) == 2
    made.clear()
    del owners[2]
    get(owners[0], 1)
    assert len(kept._entries) == 1 and not made


def test_weights_state_sees_what_changes():
    layer = torch.nn.Linear(2, 2)
    state = weights_state([{"layer": layer}])
    assert weights_state([{"layer": layer}]) == state
    with torch.no_grad():
        layer.bias.add_(0)
    changed = weights_state(layer)
    assert changed != state
    layer.weight = torch.nn.Parameter(layer.weight.detach().clone())
    assert weights_state(layer) != changed
    with torch.inference_mode():
        assert weights_state(torch.zeros(2))  # has no version


# Keys.


def test_no_key_is_made_before_something_is_saved(pipe, tmp_path, monkeypatch):
    pytest.importorskip("c2pa")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    output = pipe(picture(), clip(0, 20))
    assert not (tmp_path / "settings").exists()
    output.save(tmp_path / "result.mp4")
    assert (tmp_path / "settings" / "fsth_hub" / "signing" / "key.pem").is_file()
    assert provenance.check_credentials()


def test_a_place_where_no_key_can_be_kept_costs_the_signature(pipe, tmp_path, monkeypatch):
    pytest.importorskip("c2pa")
    (tmp_path / "settings").write_text("a file")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    with pytest.warns(FsthWarning, match="No key to sign with can be kept"):
        output = pipe(picture(), clip(0, 20), output_path=tmp_path / "result.mp4")
    assert not output.report.credentials and (tmp_path / "result.mp4").is_file()
