"""What loading and saving a pipeline takes besides diffusers' own: where models come from, what cannot be loaded, and
that what is saved is whole."""

import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from safetensors import SafetensorError

from ..models.errors import FsthError
from ..models.modeling_fsth import FsthPreTrainedModel, ModelSource
from ..saving import reason, workplace


BUNDLED_MODEL = Path(__file__).parents[1] / "checkpoints" / "small"
INDEX = "model_index.json"


def class_names(folder: Path) -> list[str]:
    """What a folder says that its pipeline's class is: a name, and where the code was included its module's, too."""
    try:
        names = json.loads((folder / INDEX).read_text())["_class_name"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # the last where it is nested deeply
        return []
    return names if isinstance(names, list) else [names]


def forget(path: Path, key: str) -> None:
    """Take a key out of a JSON file."""
    config = json.loads(path.read_text())
    config.pop(key, None)
    path.write_text(json.dumps(config, indent=2) + "\n")


def source_of(name: str | Path, folder: Path) -> ModelSource:
    """What was loaded by this name from this folder, a repository's being its snapshot's."""
    if folder == BUNDLED_MODEL:
        return ModelSource("bundled", None, str(folder))
    if Path(name).is_dir():  # its name and not its path, for identities that are made from it carry it along
        return ModelSource(folder.resolve().name, None, str(folder))
    return ModelSource(str(name), folder.name, str(folder))


def check_components(
    pipeline: str, classes: Mapping[str, type], optional: Collection[str], components: Mapping, dtype
) -> None:
    """
    Refuse arguments of `from_pretrained` that are no components, and components and precisions that cannot be taken.

    Args:
        pipeline (`str`): name of the class.
        classes (`Mapping[str, type]`): of its components, by name.
        optional (`Collection[str]`): which of them may be `None`.
        components (`Mapping`): what was given.
        dtype (`torch.dtype`, `dict` or `None`): the precision of all, or by name.

    Raises:
        FsthError: A component or a precision is of the wrong kind.
        TypeError: There is no such argument, and no component of that name.
    """
    for name, component in components.items():
        if name not in classes:
            raise TypeError(
                f"{pipeline}.from_pretrained takes no `{name}`: neither is it an argument, nor a component "
                f"({', '.join(classes)})."
            )
        if component is None and name not in optional:
            raise FsthError(f"A pipeline cannot do without its {name}; only these may be None: {', '.join(optional)}.")
        # what torch.compile makes of a network wraps it
        if component is not None and not isinstance(getattr(component, "_orig_mod", component), classes[name]):
            raise FsthError(f"`{name}` must be of the class {classes[name].__name__}, not {type(component)}.")
    for name in (dtype.keys() if isinstance(dtype, dict) else set()) - classes.keys() - {"default"}:
        raise FsthError(f"`dtype` names '{name}', which is no component: they are {', '.join(classes)}.")
    dtypes = dtype.values() if isinstance(dtype, dict) else [] if dtype is None else [dtype]
    if not all(isinstance(value, torch.dtype) for value in dtypes):
        raise FsthError(f"`dtype` must be a torch.dtype, such as torch.bfloat16, or a dictionary, not {dtype!r}.")


def check_fit(name: str | Path, networks: Mapping[str, FsthPreTrainedModel | None], size: int) -> None:
    """
    Refuse (`FsthError`) networks that do not go together, or not with pictures of a size, such as those of a folder
    whose configurations were changed.
    """
    there = {part: network.config for part, network in networks.items() if network is not None}
    for field in ("image_size", "embedding_dim"):
        values = {part: getattr(config, field) for part, config in there.items()}
        if len(set(values.values())) > 1:
            told = ", ".join(f"{value} of its {part}" for part, value in values.items())
            raise FsthError(f"The pipeline in {name} cannot be loaded: {field} is not one for all ({told}).")
        if field == "image_size" and {size} != set(values.values()):
            raise FsthError(
                f"The pipeline in {name} cannot be loaded: its image processor gives pictures of {size} pixels, but "
                f"its networks take {values['generator']}."
            )


def loading_error(name: str | Path, variant: str | None, error: Exception) -> FsthError:
    """A sentence for what stopped the loading of a pipeline."""
    if isinstance(error, SafetensorError):
        why = "its weights are cut off or no safetensors."
    elif isinstance(error, OSError):
        weights = "model.safetensors" if variant is None else f"model.{variant}.safetensors"
        why = (
            f"a network's config.json or {weights} is missing or damaged (pickled weights such as .bin and .ckpt are "
            "never read)."
        )
    elif type(error) in (FsthError, ValueError, RuntimeError):  # they explain themselves
        why = f"{reason(error)}."
    else:
        why = f"one of its files is damaged ({reason(error)})."
    return FsthError(f"The pipeline in {name} cannot be loaded: {why}")


@contextmanager
def merged_folder(folder: str | Path) -> Iterator[Path]:
    """
    A place to save a pipeline to, whose files go into `folder` once all are there, to others that may lie in it.

    Raises:
        FsthError: `folder` cannot be written; it has stayed as it was.
    """
    target = Path(os.path.realpath(folder))
    is_new = not target.exists()
    try:
        target.mkdir(parents=True, exist_ok=True)
        with workplace(target) as temporary:
            new = Path(temporary, "new")
            new.mkdir()
            yield new
            files = [path.relative_to(new) for path in new.rglob("*") if path.is_file()]
            for name in sorted(files, key=lambda name: name.name == INDEX):  # without which nothing loads, at the end
                (target / name).parent.mkdir(exist_ok=True)
                (new / name).replace(target / name)
            _remove_old_shards(target, files)
    except (OSError, SafetensorError) as error:
        if isinstance(error, FsthError):
            raise
        raise FsthError(f"The pipeline cannot be saved to {folder}: {reason(error)}.") from error
    finally:
        if is_new:
            with suppress(OSError):  # it holds something, as it should
                target.rmdir()


def _remove_old_shards(folder: Path, written: list[Path]) -> None:
    """As transformers does where it saves over something: weights that were cut in other pieces than now."""
    shard = re.compile(r"-\d{5}-of-\d{5}")
    for name in written:
        if name.suffix == ".safetensors":
            weights = shard.sub("", name.stem)
            for path in (folder / name.parent).glob("*.safetensors"):
                is_piece = shard.search(path.stem) and shard.sub("", path.stem) == weights
                if is_piece and path.relative_to(folder) not in written:
                    path.unlink()
