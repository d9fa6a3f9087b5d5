"""The code of the networks and of the image processor beside their weights, for people without this package."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers.dynamic_module_utils import custom_object_save

from ..models.errors import FsthError
from ..models.image_processing_fsth import FsthImageProcessor


INDEX = "model_index.json"
# What diffusers executes to find the classes that model_index.json names. It looks for import statements, and refuses
# the file with a list of modules where one is missing; `import_module` lets the file say itself what to install.
# diffusers copies these files of a local folder into one place, so they are all the same.
SHIM = '''"""Leads diffusers to the classes of fsth_hub."""

from importlib import import_module
from importlib.util import find_spec


if find_spec("fsth_hub") is None:
    raise ImportError("This pipeline needs the package fsth_hub; install it with `pip install fsth-hub`.")


def __getattr__(name):
    return getattr(import_module("fsth_hub"), name)
'''


def add_code(folder: str | Path, classes: Mapping[str, type]) -> None:
    """Make a saved pipeline loadable with `trust_remote_code=True` by the libraries' own classes.

    The networks and the image processor then load with `AutoModel`, `AutoConfig` and `AutoImageProcessor` where this
    package is not installed. The pipeline loads with plain `DiffusionPipeline` where it is installed, for it needs
    the detectors and the video code.

    Args:
        folder: Of [`FsthPipeline.save_pretrained`]; changed in place.
        classes: Of the pipeline's components, by name; those that the folder's index does without are left out.

    Raises:
        FsthError: It holds no such pipeline.
    """
    folder = Path(folder)
    files = [folder / INDEX, folder / "image_processor" / "preprocessor_config.json"]
    index = json.loads((folder / INDEX).read_text()) if (folder / INDEX).is_file() else {}
    networks = {
        name: network
        for name, network in classes.items()
        if issubclass(network, PreTrainedModel) and index.get(name, (None,))[0] is not None
    }
    files += [folder / name / "config.json" for name in networks]
    missing = sorted(path.relative_to(folder) for path in files if not path.is_file())
    if missing:
        raise FsthError(f"{folder} holds no pipeline of fsth_hub (no {missing[0]}); save one there first.")

    for name, network in networks.items():
        config = network.config_class.from_pretrained(folder / name)
        _carry(config, "AutoConfig", folder / name / "config.json")
        with torch.device("meta"):  # only its class matters
            _carry(network(config), "AutoModel", folder / name / "config.json")
    processor = FsthImageProcessor.from_pretrained(folder / "image_processor")
    _carry(processor, "AutoImageProcessor", folder / "image_processor" / "preprocessor_config.json")

    # in a repository transformers looks for code at the root, in a folder beside the configuration
    for path in folder.glob("*/*.py"):
        shutil.copyfile(path, folder / path.name)

    index["_class_name"] = ["pipeline", "FsthPipeline"]
    for name, component in {**networks, "image_processor": FsthImageProcessor}.items():
        index[name] = ["component", component.__name__]
        (folder / name / "component.py").write_text(SHIM)
    (folder / "pipeline.py").write_text(SHIM)
    _write_json(folder / INDEX, index)


def _carry(item, auto_class: str, path: Path) -> None:
    """Copy the code of an object beside its configuration file, and name its class there."""
    item._auto_class = auto_class
    config = json.loads(path.read_text())
    custom_object_save(item, path.parent, config)
    _write_json(path, config)


def _write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
