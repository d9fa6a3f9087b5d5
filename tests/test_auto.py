"""The Auto classes with the package, and networks, image processor and pipeline loaded by code that they carry."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel

from fsth_hub import FsthComponentDiscriminators, FsthComponentsConfig, FsthError, FsthFacialComponents
from fsth_hub.hub.remote_code import add_code
from fsth_hub.pipelines.loading import BUNDLED_MODEL
from fsth_hub.pipelines.pipeline_fsth import FsthPipeline
from testing_utils.networks import NETWORKS
from testing_utils.paths import ROOT
from testing_utils.pipelines import make_pipeline


WITHOUT_PACKAGE = "sys.modules['fsth_hub'] = None\n"

# Every outcome is what `answers` holds in the end, an exception's name and message where one was raised.
PRELUDE = """
import hashlib, json, sys
sys.path.insert(0, {root!r})
answers = {{}}
def attempt(name, action):
    try:
        answers[name] = action()
    except Exception as error:
        answers[name] = type(error).__name__ + ": " + str(error)
def weights(model):
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()
"""


def python(program: str, tmp_path: Path) -> dict:
    """Run a program in a process of its own, away from this checkout, and return its `answers`."""
    home = {"HF_HOME": str(tmp_path / "home"), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = subprocess.run(
        [
            sys.executable,
            "-I",
            "-c",
            PRELUDE.format(root=str(ROOT)) + program + "\nprint()\nprint(json.dumps(answers))",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        input="",  # nobody answers a question whether to trust code
        env=os.environ | home | {"HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def pipe() -> FsthPipeline:
    return make_pipeline()


@pytest.fixture(scope="module")
def carrying(pipe, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("carrying") / "pipeline"
    pipe.save_pretrained(folder)
    assert not list(folder.rglob("*.py")) and "auto_map" not in (folder / "generator" / "config.json").read_text()
    add_code(folder, pipe.component_classes())
    return folder


def test_auto_classes_know_ours_once_a_class_was_asked_for(carrying, tmp_path):
    small, module = str(BUNDLED_MODEL), "fsth_hub.models.modeling_fsth"
    program = f"""
import fsth_hub
from fsth_hub import FsthError
answers["light"] = not {{"torch", "transformers"}} & set(sys.modules)
from fsth_hub import FsthConfig
from transformers import AutoConfig, AutoImageProcessor, AutoModel
answers["config"] = type(AutoConfig.from_pretrained({small + "/embedder"!r})).__module__
kind = lambda item: [type(item).__module__, type(item).__name__]
for name in ("embedder", "generator", "discriminator"):
    answers[name] = kind(AutoModel.from_pretrained({small + "/"!r} + name))
answers["processor"] = kind(AutoImageProcessor.from_pretrained({small + "/image_processor"!r}))
# a folder that carries code loads with the package's class, trusted or not
for trust in (True, None):
    model = AutoModel.from_pretrained({str(carrying / "generator")!r}, trust_remote_code=trust)
    answers[f"carried {{trust}}"] = kind(model)
"""
    answers = python(program, tmp_path)
    assert answers.pop("light")
    assert answers.pop("config") == "fsth_hub.models.configuration_fsth"
    assert answers.pop("processor") == ["fsth_hub.models.image_processing_fsth", "FsthImageProcessor"]
    kinds = {name: [module, network.__name__] for name, network in NETWORKS.items()}
    assert answers == kinds | dict.fromkeys(["carried True", "carried None"], [module, "FsthGenerator"])


@pytest.mark.parametrize("network", [FsthFacialComponents, FsthComponentDiscriminators])
def test_auto_classes_know_the_facial_components(network, tmp_path):
    channels = (8, 8, 8)
    network(FsthComponentsConfig(mouth_channels=channels, eye_channels=channels)).save_pretrained(tmp_path)
    assert type(AutoModel.from_pretrained(tmp_path)) is network
    assert type(AutoConfig.from_pretrained(tmp_path)) is FsthComponentsConfig


def test_a_training_machine_registers_too(tmp_path):
    program = """
sys.modules.update(dict.fromkeys(("diffusers", "av", "gradio", "cv2", "pillow_heif")))
from fsth_hub import FsthConfig
from transformers import AutoConfig, AutoModel
from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING
config = AutoConfig.for_model("fsth")
answers["model"] = [network.__name__ for network in AutoModel._model_mapping[type(config)]]
answers["processor"] = IMAGE_PROCESSOR_MAPPING[type(config)]["pil"].__name__
"""
    answers = python(program, tmp_path)
    assert answers["model"] == [network.__name__ for network in NETWORKS.values()]
    assert answers["processor"] == "FsthImageProcessor"


def test_networks_and_image_processor_load_without_the_package(pipe, carrying, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (2, 80, 80, 3), np.uint8)
    points = np.random.default_rng(1).uniform(0, 80, (2, 78, 2))
    np.savez(tmp_path / "inputs.npz", images=images, points=points)
    program = (
        WITHOUT_PACKAGE
        + f"""
import numpy as np, torch
torch.set_num_threads(1)
from transformers import AutoConfig, AutoImageProcessor, AutoModel
folder = {str(carrying)!r}
attempt("package", lambda: __import__("fsth_hub"))
attempt("distrusted model", lambda: AutoModel.from_pretrained(folder + "/generator", trust_remote_code=False))
attempt("distrusted config", lambda: AutoConfig.from_pretrained(folder + "/generator"))
attempt("distrusted processor", lambda: AutoImageProcessor.from_pretrained(folder + "/image_processor"))
from diffusers import DiffusionPipeline
attempt("pipeline", lambda: DiffusionPipeline.from_pretrained(folder, trust_remote_code=True))
trust = {{"trust_remote_code": True}}
answers["config"] = AutoConfig.from_pretrained(folder + "/generator", **trust).image_size
E, G, D = (AutoModel.from_pretrained(folder + "/" + name, **trust) for name in {tuple(NETWORKS)!r})
answers["classes"] = [type(network).__name__ for network in (E, G, D)]
processor = AutoImageProcessor.from_pretrained(folder + "/image_processor", **trust)
data = np.load("inputs.npz")
portraits = processor(list(data["images"][:1]), data["points"][:1])
with_landmarks = processor(list(data["images"][:1]), data["points"][:1], return_landmarks=True)
driver = processor(data["images"][1], data["points"][1], return_landmarks=True)
{COMPUTE}
np.savez("outputs.npz", **outputs)
"""
    )
    answers = python(program, tmp_path)
    assert answers["package"].startswith("ModuleNotFoundError")
    for name in ("model", "config", "processor"):
        assert "trust_remote_code=True" in answers[f"distrusted {name}"]
    assert answers["pipeline"].startswith("ImportError: This pipeline needs the package fsth_hub; install it")
    assert answers["config"] == pipe.size
    assert answers["classes"] == [network.__name__ for network in NETWORKS.values()]

    processor = pipe.image_processor
    scope = {"torch": torch, "portraits": processor(list(images[:1]), points[:1])}
    scope["with_landmarks"] = processor(list(images[:1]), points[:1], return_landmarks=True)
    scope["driver"] = processor(images[1], points[1], return_landmarks=True)
    own = FsthPipeline.from_pretrained(carrying)
    scope |= {name[0].upper(): getattr(own, name).to(memory_format=torch.contiguous_format) for name in NETWORKS}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    exec(COMPUTE, scope)
    torch.set_num_threads(threads)
    with np.load(tmp_path / "outputs.npz") as outputs:
        assert set(outputs) == set(scope["outputs"])
        for name, output in scope["outputs"].items():
            assert np.array_equal(outputs[name], output), name


# The same lines here and in the process without the package.
COMPUTE = """
drawings, points = driver["landmark_images"][0], driver["landmarks"][0]
with torch.no_grad():
    embedding = E(**portraits).embedding
    sources = G.encode_sources(**with_landmarks)
    frames = G(drawings, G.project(embedding), points, sources).images
    scores = D(frames, drawings, embedding).scores
outputs = {"drawings": drawings.numpy(), "frames": frames.numpy(), "scores": scores.numpy()}
"""


def test_carried_code_needs_no_more_than_the_networks(carrying):
    names = {path.name for path in (carrying / "generator").glob("*.py")}
    assert names == {
        "blocks.py",
        "component.py",
        "configuration_fsth.py",
        "downloading.py",
        "errors.py",
        "flow_refiner.py",
        "head_motion.py",
        "landmark_flow.py",
        "landmark_layout.py",
        "layers.py",
        "lids.py",
        "modeling_fsth.py",
        "openings.py",
        "rims.py",
        "source_skips.py",
        "triangulation.py",
    }


def test_diffusion_pipeline_loads_ours_where_the_package_is_installed(pipe, carrying, tmp_path):
    program = f"""
from diffusers import DiffusionPipeline
attempt("distrusted", lambda: DiffusionPipeline.from_pretrained({str(carrying)!r}))
pipe = DiffusionPipeline.from_pretrained({str(carrying)!r}, trust_remote_code=True)
answers["class"] = [type(pipe).__module__, type(pipe).__name__]
for name in {tuple(NETWORKS)!r}:
    answers[name] = weights(getattr(pipe, name))
pipe.save_pretrained("again")
"""
    answers = python(program, tmp_path)
    assert "trust_remote_code=True" in answers["distrusted"]
    assert answers["class"] == ["fsth_hub.pipelines.pipeline_fsth", "FsthPipeline"]
    scope = {}
    exec(PRELUDE.format(root=str(ROOT)), scope)
    for name in NETWORKS:
        assert answers[name] == scope["weights"](getattr(pipe, name))
    # what was loaded from a folder with code is saved without
    again = tmp_path / "again"
    assert not list(again.rglob("*.py")) and not [p for p in again.rglob("*.json") if "auto_map" in p.read_text()]


def test_own_loader_executes_no_carried_code(pipe, carrying, tmp_path):
    folder = tmp_path / "hostile"
    pipe.save_pretrained(folder)
    add_code(folder, pipe.component_classes())
    for path in folder.rglob("*.py"):
        path.write_text("raise SystemExit('executed')\n")
    own = FsthPipeline.from_pretrained(folder)
    assert all(torch.equal(own.generator.state_dict()[k], v) for k, v in pipe.generator.state_dict().items())


def test_network_and_image_processor_carry_code_once_registered(tmp_path):
    program = """
from fsth_hub import FsthConfig, FsthGenerator, FsthImageProcessor
tiny = dict(image_size=64, base_channels=8, max_channels=16, embedding_dim=12, num_residual_blocks=1)
model = FsthGenerator(FsthConfig(**tiny))
model.save_pretrained("plain")
FsthGenerator.register_for_auto_class()
FsthImageProcessor.register_for_auto_class()
model.save_pretrained("generator")
FsthImageProcessor(size=64).save_pretrained("generator")
answers["weights"] = weights(model)
"""
    saved = python(program, tmp_path)
    assert not list((tmp_path / "plain").glob("*.py"))
    program = (
        WITHOUT_PACKAGE
        + """
from transformers import AutoImageProcessor, AutoModel
answers["weights"] = weights(AutoModel.from_pretrained("generator", trust_remote_code=True))
answers["size"] = AutoImageProcessor.from_pretrained("generator", trust_remote_code=True).side
"""
    )
    assert python(program, tmp_path) == {"weights": saved["weights"], "size": 64}


def test_code_is_added_only_to_a_pipeline(tmp_path):
    with pytest.raises(FsthError, match="holds no pipeline"):
        add_code(tmp_path, FsthPipeline.component_classes())
    assert not list(tmp_path.iterdir())
