"""A pipeline is loaded, put together and saved as diffusers' own are."""

import json
import logging
import subprocess
import sys

import pytest
import torch
from diffusers import DiffusionPipeline

from fsth_hub.cli.checks import model_of
from fsth_hub.models.errors import FsthError
from fsth_hub.models.modeling_fsth import FsthDiscriminator, FsthGenerator
from fsth_hub.pipelines.pipeline_fsth import FsthPipeline
from testing_utils.networks import tiny
from testing_utils.paths import ROOT
from testing_utils.pipelines import StubDetector, arrays, clip, make_pipeline, picture


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "heads"
    make_pipeline().save_pretrained(folder)
    return folder


def draw(pipe, portraits=None):
    pipe.set_progress_bar_config(disable=True)
    pipe.detector = StubDetector()
    return arrays(pipe(picture() if portraits is None else portraits, clip(0, 20), credentials=False).frames)


# Arguments.


def test_components_that_are_given_replace_the_folders(folder):
    mine, detector = tiny(FsthGenerator).train(), StubDetector()
    layout = [tensor.stride() for tensor in mine.parameters()]
    pipe = FsthPipeline.from_pretrained(folder, generator=mine, detector=detector)
    assert pipe.generator is mine and pipe.detector is detector
    assert pipe.model_name == "unnamed"  # what is made from it is not made from that folder's generator
    frames = draw(pipe)
    # and stay as they were given
    assert mine.training and [tensor.stride() for tensor in mine.parameters()] == layout
    assert frames.std() > 1


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_both_names_of_the_precision_are_taken(folder, name):
    pipe = FsthPipeline.from_pretrained(folder, **{name: torch.bfloat16})
    assert pipe.generator.dtype == pipe.embedder.dtype == torch.bfloat16
    each = FsthPipeline.from_pretrained(folder, **{name: {"embedder": torch.bfloat16, "default": torch.float32}})
    assert (each.embedder.dtype, each.generator.dtype) == (torch.bfloat16, torch.float32)
    assert draw(each).std() > 1


@pytest.mark.parametrize("options", [{"device_map": "cpu"}, {"device_map": "balanced"}, {"low_cpu_mem_usage": False}])
def test_device_map_and_memory(folder, options):
    pipe = FsthPipeline.from_pretrained(folder, **options)
    assert (abs(draw(pipe).astype(int) - draw(FsthPipeline.from_pretrained(folder))) <= 1).all()


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"device": "cpu"}, TypeError, "takes no `device`: neither is it an argument, nor a component"),
        ({"generator_": None}, TypeError, "takes no `generator_`"),
        ({"quantization_config": None}, TypeError, "takes no `quantization_config`"),
        ({"generator": None}, FsthError, "cannot do without its generator; only these may be None: discriminator"),
        ({"generator": "mine"}, FsthError, "`generator` must be of the class FsthGenerator, not <class 'str'>"),
        ({"generator": tiny(FsthDiscriminator)}, FsthError, "`generator` must be of the class FsthGenerator"),
        ({"use_safetensors": False}, FsthError, "pickled weights can run code"),
        ({"dtype": "auto"}, FsthError, "`dtype` must be a torch.dtype"),
        ({"dtype": {"unet": torch.float16}}, FsthError, "`dtype` names 'unet', which is no component"),
        ({"dtype": torch.float16, "torch_dtype": torch.float16}, FsthError, "not both"),
        ({"device_map": "cpu", "low_cpu_mem_usage": False}, FsthError, "leave one of the two out"),
        ({"device_map": "everywhere"}, FsthError, "everywhere not supported"),
        ({"variant": "fp8"}, FsthError, "fp8"),
    ],
)
def test_what_cannot_be_is_refused(folder, options, error, message):
    with pytest.raises(error, match=message):
        FsthPipeline.from_pretrained(folder, **options)


def test_saving_takes_what_diffusers_takes(tmp_path):
    pipe = make_pipeline()
    pipe.save_pretrained(tmp_path, True, "fp16", "20KB")
    assert len(list((tmp_path / "generator").glob("model.fp16-*.safetensors"))) > 1
    with pytest.raises(FsthError, match="safetensors alone"):
        pipe.save_pretrained(tmp_path / "pickled", safe_serialization=False)
    with pytest.raises(TypeError, match="takes private, repo_id with push_to_hub=True alone"):
        pipe.save_pretrained(tmp_path / "pushed", repo_id="ann/heads", private=True)
    with pytest.raises(TypeError, match="colour"):
        pipe.save_pretrained(tmp_path / "pushed", push_to_hub=True, colour="red")
    assert [path.name for path in tmp_path.iterdir() if path.name in ("pickled", "pushed")] == []


def test_saving_publishes_where_it_is_asked_to(hub, tmp_path):
    make_pipeline().save_pretrained(tmp_path / "heads", push_to_hub=True, repo_id="ann/heads", commit_message="First")
    repository = hub.repositories["ann/heads"]
    assert repository.private and {"model_index.json", "generator/model.safetensors"} < repository.files().keys()
    assert (tmp_path / "heads" / "model_index.json").is_file()


def test_force_download_downloads_again(hub, folder, tmp_path):
    hub.add("ann/heads", {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()})
    generator = []
    for options in ({}, {}, {"force_download": True}):
        asked = len(hub.requests)
        FsthPipeline.from_pretrained("ann/heads", cache_dir=tmp_path, **options)
        generator.append(sum("model.safetensors" in str(request) for request in hub.requests[asked:]))
    assert generator[1] == 0 < generator[2]


# The discriminator.


def test_without_discriminator(folder, tmp_path, caplog):
    (tmp_path / "heads").symlink_to(folder)
    pipe = FsthPipeline.from_pretrained(tmp_path / "heads", discriminator=None)
    assert pipe.discriminator is None
    pipe.to("cpu", torch.float32)
    with_it = FsthPipeline.from_pretrained(folder)
    assert (draw(pipe) == draw(with_it)).all()
    with pytest.raises(FsthError, match="Fine-tuning needs the model's discriminator"):
        pipe.fine_tune(picture())
    with pytest.raises(FsthError, match="Fine-tuning needs the model's discriminator"):
        pipe.fine_tune_crops([picture()], [StubDetector().points(picture())])
    # saved without, loaded without, published without
    with caplog.at_level(logging.WARNING):
        pipe.save_pretrained(tmp_path / "again")
        again = FsthPipeline.from_pretrained(tmp_path / "again")
    assert not (tmp_path / "again" / "discriminator").exists() and again.discriminator is None
    assert not caplog.records
    # one that comes later is saved
    again.discriminator = with_it.discriminator
    again.save_pretrained(tmp_path / "complete")
    assert FsthPipeline.from_pretrained(tmp_path / "complete").discriminator is not None


def test_discriminator_that_is_not_wanted_is_not_read(tmp_path):
    pipe = make_pipeline()
    pipe.save_pretrained(tmp_path)
    (tmp_path / "discriminator" / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(FsthError, match="cannot be loaded"):
        FsthPipeline.from_pretrained(tmp_path)
    assert FsthPipeline.from_pretrained(tmp_path, discriminator=None).discriminator is None


def test_pipeline_without_discriminator_is_published_with_its_code(hub, tmp_path):
    pipe = FsthPipeline(**make_pipeline().components | {"discriminator": None})
    pipe.push_to_hub("ann/heads", include_code=True)
    files = hub.repositories["ann/heads"].files()
    assert "discriminator" not in files["README.md"].decode() and not [f for f in files if "discriminator/" in f]
    assert FsthPipeline.from_pretrained("ann/heads", cache_dir=tmp_path).discriminator is None


# A component of one's own.


class WithOneMore(FsthPipeline):
    _optional_components = [*FsthPipeline._optional_components, "critic"]

    def __init__(
        self,
        embedder,
        generator,
        image_processor,
        discriminator=None,
        facial_components=None,
        detector=None,
        critic=None,
    ):
        super().__init__(embedder, generator, image_processor, discriminator, facial_components, detector)
        self.register_modules(critic=critic)

    __init__.__annotations__ = FsthPipeline.__init__.__annotations__ | {"critic": FsthDiscriminator | None}


def test_any_optional_component_is_saved_and_loaded(folder, tmp_path):
    assert WithOneMore.from_pretrained(folder).critic is None
    critic = tiny(FsthDiscriminator)
    WithOneMore(**make_pipeline().components, critic=critic).save_pretrained(tmp_path)
    loaded = WithOneMore.from_pretrained(tmp_path)
    assert torch.equal(loaded.critic.realism.bias, critic.realism.bias)
    assert WithOneMore.from_pretrained(tmp_path, critic=None).critic is None


# One model, one name.


def named(folder, **options):
    pipe = FsthPipeline.from_pretrained(folder, detector=StubDetector(), **options)
    assert pipe.model_name == "heads" and pipe.model_revision is None
    return pipe


@pytest.mark.parametrize(
    "again", [FsthPipeline.from_pipe, lambda pipe: FsthPipeline(**pipe.components), lambda pipe: pipe.to("cpu")]
)
def test_name_and_detector_stay(folder, again):
    pipe = named(folder)
    other = again(pipe)
    assert (other.model_name, other.model_source, other.detector) == ("heads", pipe.model_source, pipe.detector)
    other.model_name = "mine"
    assert other.model_name == "mine" and other.model_revision is None


def test_revision_stays(hub, folder, tmp_path):
    hub.add("ann/heads", {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()})
    pipe = FsthPipeline.from_pretrained("ann/heads", cache_dir=tmp_path)
    revision = hub.repositories["ann/heads"].sha("main")
    for same in (pipe, FsthPipeline.from_pipe(pipe), FsthPipeline(**pipe.components)):
        assert (same.model_name, same.model_revision) == ("ann/heads", revision)


def test_saved_index_tells_nothing_of_this_machine(folder, tmp_path):
    named(folder).save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert str(folder) not in json.dumps(index) and "_name_or_path" not in index
    assert index["detector"] == [None, None] and index["_class_name"] == "FsthPipeline"


# By the base class.


def test_base_class_loads_it_once_the_pipeline_was_asked_for(folder, tmp_path):
    program = f"""
from fsth_hub import FsthPipeline
from diffusers import DiffusionPipeline
pipe = DiffusionPipeline.from_pretrained({str(folder)!r})
print(type(pipe).__name__, pipe.model_name, pipe.generator.dtype)
"""
    command = [sys.executable, "-c", program]
    result = subprocess.run(command, env={"PYTHONPATH": str(ROOT)}, cwd=tmp_path, capture_output=True, text=True)
    assert result.stdout == "FsthPipeline heads torch.float32\n", result.stderr


def test_base_class_draws_the_same(folder):
    assert (draw(DiffusionPipeline.from_pretrained(folder)) == draw(FsthPipeline.from_pretrained(folder))).all()


@pytest.mark.parametrize(
    "file, key, value, words",
    [
        ("generator/config.json", "network_size", {"a": 1}, "one of its files is damaged"),
        ("image_processor/preprocessor_config.json", "size", {"height": 128, "width": 128}, "128 pixels, but its"),
        ("embedder/config.json", "image_size", 128, "image_size is not one for all"),
    ],
)
def test_configurations_that_were_changed_are_one_sentence(tmp_path, file, key, value, words):
    make_pipeline().save_pretrained(tmp_path)
    config = json.loads((tmp_path / file).read_text())
    (tmp_path / file).write_text(json.dumps(config | {key: value}))
    with pytest.raises(FsthError, match=words) as told:
        FsthPipeline.from_pretrained(tmp_path)
    assert "\n" not in str(told.value) and str(told.value).endswith(".")


def test_an_index_that_is_nested_deeply_is_one_sentence(tmp_path):
    (tmp_path / "model_index.json").write_text("[" * 100_000)
    with pytest.raises(FsthError, match="its model_index.json is missing or names another"):
        FsthPipeline.from_pretrained(tmp_path)


def test_an_identity_that_is_nested_deeply_is_one_sentence(tmp_path):
    (tmp_path / "identity.json").write_text("[" * 100_000)
    with pytest.raises(FsthError, match="holds no identity that can be read"):
        model_of(tmp_path)
