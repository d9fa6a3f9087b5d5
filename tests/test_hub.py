"""Publishing and loading over a hub on loopback (`hub_server.py`), which real requests of the real client reach."""

import json
import os
import pickle
import re
import socket
import subprocess
import sys
import time
import traceback
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from huggingface_hub import HfApi, constants
from PIL import Image

from fsth_hub import FsthGenerator, FsthPipeline, FsthTunedPerson
from fsth_hub.hub.client import create_repository, publish
from fsth_hub.models.downloading import fetch
from fsth_hub.models.errors import FsthError, FsthNotFoundError
from fsth_hub.pipelines.identity import CONFIG_NAME, WEIGHTS_NAME
from testing_utils.hub_server import ANN, ANN_READS, BOB
from testing_utils.paths import ROOT
from testing_utils.pipelines import frames_of, make_pipeline, negative, picture, tuned


pytestmark = pytest.mark.usefixtures("steps_that_show")

TOKENS = (ANN, ANN_READS, BOB, "hf_UnknownToTheHub")
IDENTITY_FILES = {".gitattributes", "README.md", CONFIG_NAME, WEIGHTS_NAME}


@pytest.fixture(scope="module")
def pipe():
    return make_pipeline()


@pytest.fixture(scope="module")
def identity(pipe) -> FsthTunedPerson:
    return tuned(pipe)


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path) -> Path:
    """Something to publish: a small file and a large one."""
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(300_000))
    return folder


@pytest.fixture(autouse=True)
def tokens_stay_secret(hub, tmp_path, capfd, caplog):
    yield
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    published = [content for repository in hub.repositories.values() for content in repository.files().values()]
    texts = [*capfd.readouterr(), caplog.text, *hub.requests]
    for token in TOKENS:
        assert not any(token in text for text in texts)
        assert not any(token.encode() in content for content in written + published)
    assert not any(str(place).encode() in content for content in published for place in (tmp_path, ROOT))


@pytest.fixture
def quick_retries(monkeypatch):
    """The client tries again five times, with pauses that grow to eight seconds."""
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


@pytest.fixture
def closed_port():
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{reserved.getsockname()[1]}"


def sentence(call, *args, **options) -> str:
    """What a call that must fail says, which is one line, and nothing behind it names a token."""
    with pytest.raises(FsthError) as caught:
        call(*args, **options)
    error = caught.value
    while error is not None:
        text = "".join(traceback.format_exception(error)) + repr(error.args)
        assert not any(token in text for token in TOKENS)
        error = error.__cause__ or error.__context__
    assert "\n" not in str(caught.value)
    print(caught.value)
    return str(caught.value)


def upload(folder: Path, repo_id: str, private: bool = True, token: str | None = None, **options) -> str:
    return publish(folder, create_repository(repo_id, private=private, token=token), token=token, **options)


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def saved(pipe, identity, tmp_path_factory) -> dict[str, dict[str, bytes]]:
    """The files of a pipeline and of an identity made with it."""
    folder = tmp_path_factory.mktemp("saved")
    pipe.save_pretrained(folder / "base")
    identity.save_pretrained(folder / "ada")
    return {name: files_in(folder / name) for name in ("base", "ada")}


# The round trip.

LOAD_AND_DRAW = """
import sys, numpy as np, torch
from testing_utils.pipelines import StubDetector, frames_of
from fsth_hub import FsthPipeline
pipe = FsthPipeline.from_pretrained("ann/base", engine="torch")
pipe.set_progress_bar_config(disable=True)
pipe.detector = StubDetector()
np.save(sys.argv[1], frames_of(pipe, pipe.load_identity("ann/ada")))
"""


def test_fine_tuned_published_loaded_elsewhere_and_offline(hub, cache, tmp_path, monkeypatch):
    make_pipeline().push_to_hub("ann/base")
    pipe = FsthPipeline.from_pretrained("ann/base", cache_dir=tmp_path / "own")
    pipe.set_progress_bar_config(disable=True)
    pipe.detector = make_pipeline().detector
    identity = tuned(pipe, picture(), negative(picture(9)))
    identity.push_to_hub("ann/ada", consent=True)
    assert (identity.base_model, identity.base_revision) == ("ann/base", hub.repositories["ann/base"].sha("main"))
    expected = frames_of(pipe, identity)
    assert not np.array_equal(expected, frames_of(pipe, [picture(), negative(picture(9))]))

    elsewhere = os.environ | {"HF_HUB_CACHE": str(cache), "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [sys.executable, "-c", LOAD_AND_DRAW, tmp_path / "frames.npy"]
    result = subprocess.run(command, env=elsewhere, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert np.array_equal(np.load(tmp_path / "frames.npy"), expected)
    assert not any(token in result.stdout + result.stderr for token in TOKENS)

    asked = len(hub.requests)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # what the variable of that name sets
    offline = FsthPipeline.from_pretrained("ann/base", cache_dir=cache)
    offline.set_progress_bar_config(disable=True)
    offline.detector = pipe.detector
    assert np.array_equal(frames_of(offline, offline.load_identity("ann/ada", cache_dir=cache)), expected)
    assert len(hub.requests) == asked


# What is published.


@pytest.mark.parametrize("what", ["pipeline", "identity"])
def test_a_repository_is_created_once_for_each_push(hub, pipe, identity, monkeypatch, what):
    made = []
    create_repo = HfApi.create_repo
    monkeypatch.setattr(HfApi, "create_repo", lambda *args, **kwargs: made.append(1) or create_repo(*args, **kwargs))
    pipe.push_to_hub("ann/base") if what == "pipeline" else identity.push_to_hub("ann/ada", consent=True)
    assert len(made) == 1


def test_causes_are_logged_without_tokens_and_absent_is_an_os_error(hub, cache, caplog, monkeypatch):
    caplog.set_level("DEBUG", logger="fsth_hub.models.downloading")

    def quoting(*args, token=None, **options):
        raise ConnectionError(f"proxy.example: 407 for Bearer {token}, {ANN}, {BOB}")

    with pytest.raises(OSError):
        fetch("ann/nobody", cache_dir=cache)
    monkeypatch.setattr("fsth_hub.models.downloading.snapshot_download", quoting)
    with pytest.raises(FsthNotFoundError, match="connection failed"):
        fetch("ann/heads", token="secret-of-another-form", cache_dir=cache)
    assert "RepositoryNotFoundError" in caplog.text and "proxy.example: 407 for Bearer ***, ***, ***" in caplog.text


def test_identity_is_published_private_with_its_origin_and_nothing_of_this_machine(hub, pipe, identity, cache):
    address = identity.push_to_hub("ann/ada", consent=True)
    repository = hub.repositories["ann/ada"]
    assert repository.private and address.endswith(f"/ann/ada/commit/{repository.sha('main')}")
    files = repository.files()
    assert files.keys() - {"preview.jpg"} == IDENTITY_FILES
    config = json.loads(files[CONFIG_NAME])
    assert config["consent"] and config["base_model"] == "unnamed" and config["base_revision"] is None
    loaded = pipe.load_identity("ann/ada", cache_dir=cache)
    assert loaded.consent == config["consent"] and identity.consent is None
    assert np.array_equal(frames_of(pipe, loaded), frames_of(pipe, identity))


def test_without_consent_nothing_is_asked_of_the_hub(hub, identity):
    for options in ({}, {"consent": False}, {"consent": "no"}):
        assert "consent" in sentence(identity.push_to_hub, "ann/ada", **options)
    assert not hub.requests and not hub.repositories


def test_photographs_are_published_only_by_name_and_without_metadata(hub, identity, tmp_path, pipe, cache):
    photograph = tmp_path / "Ada in Paris.jpg"
    exif = Image.Exif()
    exif[0x010E], exif[0x0112] = "Ada, at home", 6  # description; to be turned by a quarter
    Image.new("RGB", (40, 20), "red").save(photograph, exif=exif)
    assert "nobody.jpg" in sentence(identity.push_to_hub, "ann/ada", consent=True, photographs=["nobody.jpg"])
    assert not hub.requests
    identity.push_to_hub("ann/ada", consent=True, photographs=[photograph])
    files = hub.repositories["ann/ada"].files()
    assert files.keys() - {"preview.jpg"} == IDENTITY_FILES | {"photographs/1.jpg"}
    assert b"Ada, at home" not in b"".join(files.values()) and b"Ada in Paris" not in b"".join(files.values())
    (tmp_path / "published.jpg").write_bytes(files["photographs/1.jpg"])
    with Image.open(tmp_path / "published.jpg") as published:
        assert not published.getexif() and published.size == (20, 40)
    pipe.load_identity("ann/ada", cache_dir=cache)
    assert not any(path.suffix == ".jpg" for path in cache.rglob("*"))  # not needed to draw


def test_public_only_if_asked(hub, folder):
    upload(folder, "ann/private")
    upload(folder, "ann/public", private=False)
    assert [hub.repositories[name].private for name in ("ann/private", "ann/public")] == [True, False]
    before = hub.repositories["ann/public"].sha("main")
    assert "everyone can see it" in sentence(upload, folder, "ann/public")
    assert hub.repositories["ann/public"].sha("main") == before
    assert FsthGenerator.push_to_hub.__kwdefaults__["private"] is True


def test_one_commit_keeps_other_files_and_a_name_alone_is_the_own(hub, folder, cache):
    upload(folder, "ann/heads", commit_message="First")
    (folder / "config.json").rename(folder / "other.json")
    upload(folder, "heads")
    repository = hub.repositories["ann/heads"]
    assert len(repository.commits) == 3  # the first is the repository's own
    assert repository.files().keys() == {".gitattributes", "config.json", "other.json", "model.safetensors"}
    assert fetch("ann/heads", cache_dir=cache).name == repository.sha("main")


def test_revisions_are_branches_and_commits(hub, folder, cache):
    upload(folder, "ann/heads")
    (folder / "config.json").write_text('{"second": 2}')
    upload(folder, "ann/heads", revision="second")
    repository = hub.repositories["ann/heads"]
    first, second = (repository.sha(branch) for branch in ("main", "second"))
    for revision, sha in ((None, first), ("second", second), (first, first)):
        fetched = fetch("ann/heads", revision=revision, cache_dir=cache)
        assert fetched.name == sha and (fetched / "config.json").read_bytes() == repository.files(sha)["config.json"]
    assert "no revision 'third'" in sentence(fetch, "ann/heads", revision="third", cache_dir=cache)


def test_networks_alone_and_variants(hub, pipe, cache, tmp_path, monkeypatch):
    pipe.push_to_hub("ann/base")
    assert "README.md" in hub.repositories["ann/base"].files() and hub.repositories["ann/base"].private
    half = make_pipeline().to(torch.float16)
    half.push_to_hub("ann/base", variant="fp16")
    weights = {name for name in hub.repositories["ann/base"].files() if name.startswith("generator/")}
    assert weights == {"generator/config.json", "generator/model.safetensors", "generator/model.fp16.safetensors"}
    options = {"subfolder": "generator", "cache_dir": cache}
    single, double = (FsthGenerator.from_pretrained("ann/base", variant=v, **options) for v in ("fp16", None))
    assert (single.dtype, double.dtype) == (torch.float16, torch.float32)
    for network, source in ((single, half), (double, pipe)):
        expected = source.generator.state_dict()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in network.state_dict().items())
    loaded = FsthPipeline.from_pretrained("ann/base", variant="fp16", cache_dir=cache)
    assert torch.equal(loaded.generator.head.bias, half.generator.head.bias.float())
    assert not torch.equal(loaded.generator.head.bias, pipe.generator.head.bias)
    assert "fp8" in sentence(FsthPipeline.from_pretrained, "ann/base", variant="fp8", cache_dir=cache)

    monkeypatch.chdir(tmp_path)
    pipe.generator.push_to_hub("ann/generator")
    assert hub.repositories["ann/generator"].private
    alone = FsthGenerator.from_pretrained("ann/generator", cache_dir=cache)
    assert torch.equal(alone.head.bias, pipe.generator.head.bias)


# What fails, and what it says.


def test_identity_of_another_revision_names_both(hub, pipe, identity, cache):
    other = make_pipeline()
    with torch.no_grad():
        other.generator.head.bias += 0.1
    other.push_to_hub("ann/base")
    loaded = FsthPipeline.from_pretrained("ann/base", cache_dir=cache)
    revision = hub.repositories["ann/base"].sha("main")
    assert (loaded.model_name, loaded.model_revision) == ("ann/base", revision)
    replace(identity, base_model="ann/base", base_revision="0123456789" * 4).push_to_hub("ann/ada", consent=True)
    said = sentence(loaded.load_identity, "ann/ada", cache_dir=cache)
    assert "from another model ('ann/base' at revision 012345678901) than the one that is loaded" in said
    assert f"('ann/base' at revision {revision[:12]})" in said
    pipe.load_identity("ann/ada", cache_dir=cache)  # the weights decide, not their name


@pytest.mark.parametrize("given", ["argument", "environment"])
@pytest.mark.parametrize(
    "token, fetching, publishing",
    [
        (ANN, None, None),
        (ANN_READS, None, "may not write"),
        (BOB, "no such repository, or it is private", "may not write"),
        ("hf_UnknownToTheHub", "needs a login that the hub accepts", "needs a login that the hub accepts"),
        (None, "no such repository, or it is private", "needs a login that the hub accepts"),
    ],
)
def test_who_may_do_what(hub, folder, cache, monkeypatch, token, fetching, publishing, given):
    repository = hub.add("ann/heads", files_in(folder))
    monkeypatch.delenv("HF_TOKEN")
    if given == "environment" and token:
        monkeypatch.setenv("HF_TOKEN", token)
    options = {"token": token} if given == "argument" else {}
    if fetching is None:
        assert files_in(fetch("ann/heads", cache_dir=cache, **options)) == files_in(folder)
    else:
        assert fetching in sentence(fetch, "ann/heads", cache_dir=cache, **options)
        assert not list(cache.glob("*/snapshots"))
    commits = len(repository.commits)
    (folder / "config.json").write_text('{"changed": true}')
    if publishing is None:
        upload(folder, "ann/heads", **options)
        assert len(repository.commits) == commits + 1
    else:
        for name in ("ann/heads", "ann/new"):
            assert publishing in sentence(upload, folder, name, **options)
        assert len(repository.commits) == commits and hub.repositories.keys() == {"ann/heads"}


@pytest.mark.parametrize("character", ["\u2026", "\nx"])
def test_a_token_that_no_header_can_hold(hub, folder, cache, character):
    for call in (lambda token: upload(folder, "ann/new", token=token), lambda token: fetch("ann/new", token=token)):
        sentence(call, f"{ANN}{character}")


def test_upload_that_breaks_off_changes_nothing_and_can_be_repeated(hub, pipe, identity, cache, quick_retries):
    with hub.losing("PUT"):
        said = sentence(identity.push_to_hub, "ann/ada", consent=True)
    assert "broke off and changed nothing" in said and "do the same again" in said
    assert hub.repositories["ann/ada"].files().keys() == {".gitattributes"} and not hub.objects
    identity.push_to_hub("ann/ada", consent=True)
    assert np.array_equal(frames_of(pipe, pipe.load_identity("ann/ada", cache_dir=cache)), frames_of(pipe, identity))


def test_download_that_breaks_off_leaves_nothing_that_looks_whole(hub, pipe, saved, cache, quick_retries):
    hub.add("ann/ada", saved["ada"])
    with hub.losing("GET"):
        assert "connection failed" in sentence(pipe.load_identity, "ann/ada", cache_dir=cache)
    assert "does not hold it whole" in sentence(pipe.load_identity, "ann/ada", cache_dir=cache, local_files_only=True)
    pipe.load_identity("ann/ada", cache_dir=cache)


def test_without_network_the_cache_serves(hub, pipe, folder, saved, cache, monkeypatch, closed_port):
    hub.add("ann/ada", saved["ada"])
    pipe.load_identity("ann/ada", cache_dir=cache)
    with monkeypatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", closed_port)
        pipe.load_identity("ann/ada", cache_dir=cache)
        assert "cannot be reached" in sentence(pipe.load_identity, "ann/bob", cache_dir=cache)
        assert "connection failed (ConnectError)" in sentence(upload, folder, "ann/new")
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        pipe.load_identity("ann/ada", cache_dir=cache)
        assert "is not asked" in sentence(pipe.load_identity, "ann/bob", cache_dir=cache)
        assert "HF_HUB_OFFLINE" in sentence(upload, folder, "ann/new")


@pytest.mark.parametrize("name", ["no such name", "/no/such/folder", "a/b/c", "ann/.."])
def test_names_that_are_none(hub, pipe, folder, cache, name):
    for call in (FsthPipeline.from_pretrained, pipe.load_identity):
        assert "no valid id" in sentence(call, name, cache_dir=cache)
    assert "no valid id" in sentence(upload, folder, name)
    assert not hub.requests


def test_repositories_of_something_else(hub, pipe, saved, cache):
    hub.add("ann/base", saved["base"])
    hub.add("ann/ada", saved["ada"])
    hub.add(
        "ann/diffusion", {"model_index.json": b'{"_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"]}'}
    )
    assert "ann/base holds no identity" in sentence(pipe.load_identity, "ann/base", cache_dir=cache)
    assert "ann/ada holds no pipeline" in sentence(FsthPipeline.from_pretrained, "ann/ada", cache_dir=cache)
    assert "ann/diffusion holds no pipeline" in sentence(
        FsthPipeline.from_pretrained, "ann/diffusion", cache_dir=cache
    )


class WritesAFile:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.write_text, (self.path, "unpickled")


@pytest.mark.parametrize("under_its_own_name", [True, False])
def test_pickles_are_neither_fetched_nor_read(hub, pipe, saved, cache, tmp_path, under_its_own_name):
    poison = pickle.dumps(WritesAFile(tmp_path / "victim"))
    for repository, weights, pickled, load in (
        ("ada", WEIGHTS_NAME, "identity.bin", pipe.load_identity),
        ("base", "discriminator/model.safetensors", "discriminator/pytorch_model.bin", FsthPipeline.from_pretrained),
        ("base", "model.safetensors", "pytorch_model.bin", FsthGenerator.from_pretrained),
    ):
        files = {path: content for path, content in saved[repository].items() if path != weights}
        files["config.json"] = saved["base"]["generator/config.json"]
        hub.add("ann/poison", files | {pickled if under_its_own_name else weights: poison})
        if load == FsthGenerator.from_pretrained:
            with pytest.raises(Exception, match="no file named model.safetensors|header"):
                load("ann/poison", cache_dir=cache)
        else:
            assert "ann/poison" in sentence(load, "ann/poison", cache_dir=cache)
        assert not (tmp_path / "victim").exists() and not list(cache.rglob("*.bin"))
    pickle.loads(poison)
    assert (tmp_path / "victim").exists()


def test_weights_that_are_cut_off_or_do_not_fit(hub, pipe, saved, cache):
    for repository, weights, load in (
        ("ada", WEIGHTS_NAME, pipe.load_identity),
        ("base", "discriminator/model.safetensors", FsthPipeline.from_pretrained),
    ):
        files = saved[repository]
        others = saved["base"]["embedder/model.safetensors"]
        for content, problem in ((files[weights][:-1000], "(damaged|cut off)"), (others, "(is missing|not fit)")):
            hub.add(f"ann/{repository}", files | {weights: content})
            said = sentence(load, f"ann/{repository}", cache_dir=cache)
            assert f"ann/{repository}" in said and re.search(problem, said)


def test_pipeline_with_its_code_is_loaded_by_the_libraries_own_classes(hub, pipe, cache):
    pipe.push_to_hub("ann/coded", include_code=True)
    with pytest.raises(ValueError, match="trust_remote_code"):
        DiffusionPipeline.from_pretrained("ann/coded", cache_dir=cache)
    loaded = DiffusionPipeline.from_pretrained("ann/coded", trust_remote_code=True, cache_dir=cache)
    assert type(loaded).__name__ == "FsthPipeline"
    assert torch.equal(loaded.generator.head.bias, pipe.generator.head.bias)
    program = f"""
import sys
sys.modules["fsth_hub"] = None  # as where the package is not installed: this process would take its classes
from transformers import AutoModel
options = dict(subfolder="generator", trust_remote_code=True, cache_dir={str(cache / "elsewhere")!r})
network = AutoModel.from_pretrained("ann/coded", **options)
print(type(network).__module__.split(".")[0], network.head.bias.tolist())
"""
    command = [sys.executable, "-c", program]
    told = subprocess.run(command, capture_output=True, text=True, cwd=cache, check=True).stdout
    assert told == f"transformers_modules {pipe.generator.head.bias.tolist()}\n"
    own = FsthPipeline.from_pretrained("ann/coded", cache_dir=cache)
    assert torch.equal(own.generator.head.bias, pipe.generator.head.bias)
