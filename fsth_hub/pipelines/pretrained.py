"""How a pipeline is loaded, saved and published."""

import inspect
import json
import tempfile
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel

from ..hub.client import create_repository, publish
from ..models.downloading import fetch
from ..models.errors import FsthError
from ..models.modeling_fsth import ModelSource, is_hooked
from .person import MAX_SIZE


BUNDLED_MODEL = Path(__file__).parents[1] / "checkpoints" / "small"
INDEX = "model_index.json"


def class_names(folder: Path) -> list[str]:
    """What a folder says that its pipeline's class is: a name, and where the code was included its module's, too."""
    try:
        names = json.loads((folder / INDEX).read_text())["_class_name"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return names if isinstance(names, list) else [names]


def source_of(name: str | Path, folder: Path) -> ModelSource:
    """What was loaded by this name from this folder, a repository's being its snapshot's."""
    if folder == BUNDLED_MODEL:
        return ModelSource("bundled", None, str(folder))
    if Path(name).is_dir():  # its name and not its path, for identities that are made from it carry it along
        return ModelSource(folder.resolve().name, None, str(folder))
    return ModelSource(str(name), folder.name, str(folder))


class FsthPretrainedMixin:
    """Goes before `DiffusionPipeline`, whose loading and saving it narrows to folders of safetensors."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path | None = None,
        *,
        dtype: torch.dtype | dict[str, torch.dtype] | None = None,
        torch_dtype: torch.dtype | dict[str, torch.dtype] | None = None,
        device_map: str | None = None,
        max_memory: dict | None = None,
        low_cpu_mem_usage: bool = True,
        use_safetensors: bool | None = None,
        variant: str | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
        trust_remote_code: bool = False,
        **components,
    ) -> Self:
        """
        Load a pipeline, as `DiffusionPipeline.from_pretrained` does: onto the CPU and in float32 unless something else
        is said. Code that a folder may carry is not executed.

        ```python
        pipe = FsthPipeline.from_pretrained(dtype=torch.bfloat16, discriminator=None).to("cuda")
        ```

        Args:
            pretrained_model_name_or_path (`str` or `Path`, *optional*):
                A folder of [`~FsthPipeline.save_pretrained`] or the id of a hub repository; by default the small model
                that ships with the package, which needs no network.
            dtype (`torch.dtype` or `dict`, *optional*, defaults to `torch.float32`):
                One for all networks, or by name of the component, `"default"` being the others'.
            torch_dtype: The older name of `dtype`.
            device_map (`str`, *optional*): `"balanced"`, or the one device on which all components are loaded.
            max_memory (`dict`, *optional*): How much a device may take, for `device_map="balanced"`.
            low_cpu_mem_usage (`bool`, *optional*, defaults to `True`):
                Networks take memory once while they are loaded; `False` is refused with a `device_map`.
            use_safetensors (`bool`, *optional*): `False` is refused: pickled weights are never read.
            variant (`str`, *optional*): Which weights, such as `"fp16"` for those in `model.fp16.safetensors`.
            revision, token, cache_dir, local_files_only, force_download: as in `huggingface_hub.snapshot_download`.
            trust_remote_code (`bool`, *optional*): Makes no difference: a folder's own code is not needed here.
            components: Those to take instead of the folder's, by name; `None` for an optional one to do without.

        Raises:
            FsthError: There is no such folder or repository, or it holds no pipeline that can be loaded so.
            TypeError: There is no such argument, and no component of that name.
        """
        if torch_dtype is not None and dtype is not None:
            raise FsthError("Give `dtype` or `torch_dtype`, which is its older name, but not both.")
        dtype = torch_dtype if dtype is None else dtype
        cls._check_components(components, {} if not isinstance(dtype, dict) else dtype)
        dtypes = dtype.values() if isinstance(dtype, dict) else [] if dtype is None else [dtype]
        if not all(isinstance(value, torch.dtype) for value in dtypes):
            raise FsthError(f"`dtype` must be a torch.dtype, such as torch.bfloat16, or a dictionary, not {dtype!r}.")
        if use_safetensors is False:
            raise FsthError("`use_safetensors=False` is refused: pickled weights can run code and are never read.")
        if device_map is not None and not low_cpu_mem_usage:
            raise FsthError("`device_map` needs `low_cpu_mem_usage=True`: leave one of the two out.")
        name = BUNDLED_MODEL if pretrained_model_name_or_path is None else pretrained_model_name_or_path
        options = {"revision": revision, "token": token, "cache_dir": cache_dir, "force_download": force_download}
        # a repository as a folder: diffusers cannot import the classes of another package from the hub itself
        folder = fetch(name, local_files_only=local_files_only, **options)
        if "FsthPipeline" not in (names := class_names(folder)) and cls.__name__ not in names:
            raise FsthError(f"{name} holds no pipeline of fsth_hub: its {INDEX} is missing or names another.")
        try:
            pipe = super().from_pretrained(
                str(folder),
                dtype=torch.float32 if dtype is None else dtype,
                device_map=device_map,
                max_memory=max_memory,
                low_cpu_mem_usage=low_cpu_mem_usage,
                use_safetensors=True,
                variant=variant,
                **components,
            )
        except SafetensorError as error:
            raise FsthError(
                f"The pipeline in {name} cannot be loaded: its weights are cut off or no safetensors."
            ) from error
        except OSError as error:
            weights = "model.safetensors" if variant is None else f"model.{variant}.safetensors"
            raise FsthError(
                f"The pipeline in {name} cannot be loaded: a network's config.json or {weights} is missing or damaged "
                "(pickled weights such as .bin and .ckpt are never read)."
            ) from error
        except (ValueError, RuntimeError) as error:  # also NotImplementedError, for a device map
            raise FsthError(f"The pipeline in {name} cannot be loaded: {error}") from error
        for name, network in pipe.components.items():
            if name not in components and isinstance(network, PreTrainedModel) and not is_hooked(network):
                network.to(memory_format=torch.channels_last)  # as inference takes it
        if "generator" not in components:
            pipe.generator.source = source_of(name, folder)
        return pipe

    @classmethod
    def load_config(cls, *args, **kwargs):
        """As in diffusers, but what classes the components have is this class's to say, and not the folder's: so no
        code that lies there is looked for."""
        loaded = super().load_config(*args, **kwargs)
        index = loaded[0] if isinstance(loaded, tuple) else loaded
        index["_class_name"] = cls.__name__
        for name, component in cls.component_classes().items():
            if index.get(name, (None,))[0] is not None:
                index[name] = [component.__module__, component.__name__]
        return loaded

    @classmethod
    def component_classes(cls) -> dict[str, type]:
        """The classes of what a pipeline is made of, optional components among them, by name."""
        names, _ = cls._get_signature_keys(cls)
        types = cls._get_signature_types()
        return {name: next(kind for kind in types[name] if kind is not type(None)) for name in names}

    @classmethod
    def _check_components(cls, components: dict, dtypes: dict) -> None:
        """Refuse arguments that are no components, and components and precisions that cannot be taken."""
        classes = cls.component_classes()
        for name, component in components.items():
            if name not in classes:
                raise TypeError(
                    f"{cls.__name__}.from_pretrained takes no `{name}`: neither is it an argument, nor a component "
                    f"({', '.join(classes)})."
                )
            if component is None and name not in cls._optional_components:
                optional = ", ".join(cls._optional_components)
                raise FsthError(f"A pipeline cannot do without its {name}; only these may be None: {optional}.")
            # what torch.compile makes of a network wraps it
            if component is not None and not isinstance(getattr(component, "_orig_mod", component), classes[name]):
                raise FsthError(f"`{name}` must be of the class {classes[name].__name__}, not {type(component)}.")
        for name in dtypes.keys() - classes.keys() - {"default"}:
            raise FsthError(f"`dtype` names '{name}', which is no component: they are {', '.join(classes)}.")

    @property
    def model_source(self) -> ModelSource:
        """Where the model comes from, which is what its generator says: identities are made of that."""
        if self.generator.source is not None:
            return self.generator.source
        name, folder = self.config.get("_name_or_path"), Path(self.generator.name_or_path).parent
        # by plain `DiffusionPipeline`, unless this generator was given to it
        if name is not None and (Path(name) == folder or f"models--{str(name).replace('/', '--')}" in folder.parts):
            return source_of(name, folder)
        return ModelSource("unnamed")

    @property
    def model_name(self) -> str:
        """Id of the hub repository or name of the folder that the model was loaded from, "bundled", or "unnamed"."""
        return self.model_source.name

    @model_name.setter
    def model_name(self, name: str):
        self.generator.source = ModelSource(name)

    @property
    def model_revision(self) -> str | None:
        """The commit, of a model from the hub."""
        return self.model_source.revision

    def save_pretrained(
        self,
        save_directory: str | Path,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        *,
        repo_id: str | None = None,
        **publishing,
    ) -> None:
        """
        Save the networks in the precision that they are in, as safetensors, and the image processor.

        Args:
            save_directory (`str` or `Path`): Other variants that lie there stay.
            safe_serialization (`bool`, *optional*, defaults to `True`): `False` is refused: pickles are not written.
            variant (`str`, *optional*): Part of the weights' file names, such as `"fp16"`; the others' are without.
            max_shard_size (`int` or `str`, *optional*): Of one file of weights, such as `"15MB"`.
            push_to_hub (`bool`, *optional*, defaults to `False`): Publish the pipeline, too.
            repo_id (`str`, *optional*): Where to, by default a repository of the directory's name.
            publishing: What else [`~FsthPipeline.push_to_hub`] takes.
        """
        if not safe_serialization:
            raise FsthError("`safe_serialization=False` is refused: weights are saved as safetensors alone.")
        if push_to_hub:
            repo_id = repo_id or Path(save_directory).absolute().name
            inspect.signature(self.push_to_hub).bind(repo_id, variant=variant, **publishing)  # before anything is done
        elif repo_id is not None or publishing:
            names = ", ".join([*publishing, *["repo_id"] * (repo_id is not None)])
            raise TypeError(f"save_pretrained takes {names} with push_to_hub=True alone.")
        for name in self._optional_components:
            if isinstance(getattr(self, name), PreTrainedModel):  # diffusers forgets one that was added later
                self.register_modules(**{name: getattr(self, name)})
        super().save_pretrained(save_directory, variant=variant, max_shard_size=max_shard_size)
        path = Path(save_directory, INDEX)
        index = json.loads(path.read_text())
        # where it was loaded from, on this machine
        path.write_text(json.dumps({key: index[key] for key in index if key != "_name_or_path"}, indent=2) + "\n")
        if variant is not None:
            for path in Path(save_directory).glob("*/config.json"):
                # Its precision is that of the variant that was saved last, and loading any other would follow it.
                config = json.loads(path.read_text())
                config.pop("dtype", None)
                path.write_text(json.dumps(config, indent=2) + "\n")
        if push_to_hub:
            self.push_to_hub(repo_id, variant=variant, **publishing)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        variant: str | None = None,
        private: bool = True,
        revision: str | None = None,
        token: str | bool | None = None,
        commit_message: str = "Upload pipeline",
        include_code: bool = False,
    ) -> str:
        """
        Publish the pipeline on the hub, with a card, for `from_pretrained(repo_id)`.

        Args:
            repo_id, private, token: as in [`~hub.create_repository`].
            revision, commit_message: as in [`~hub.publish`].
            variant (`str`, *optional*): as in [`~FsthPipeline.save_pretrained`].
            include_code (`bool`, *optional*, defaults to `False`):
                Add what those need who load it without this package, with `trust_remote_code=True`.

        Returns:
            `str`: The address of the commit.

        Raises:
            FsthError: The repository cannot be written to, or the upload broke off; nothing there has changed then.
        """
        from ..hub.model_card import PipelineFigures, write_pipeline_card

        networks = {name: part for name, part in self.components.items() if isinstance(part, PreTrainedModel)}
        figures = PipelineFigures(
            base_model=self.model_name,
            size=self.size,
            max_size=MAX_SIZE,
            source_skips=self.generator.config.source_skips,
            parameters={name: network.num_parameters() for name, network in networks.items()},
        )
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            self.save_pretrained(folder, variant=variant)
            if include_code:
                from ..hub.remote_code import add_code

                add_code(folder, self.component_classes())
            repo_id = create_repository(repo_id, private=private, token=token)  # with its owner, for the card
            write_pipeline_card(figures, folder, repo_id, self.model_source.folder)
            return publish(folder, repo_id, revision=revision, token=token, commit_message=commit_message)
