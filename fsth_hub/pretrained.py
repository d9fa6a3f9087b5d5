"""How a pipeline is loaded, saved and published."""

import json
import tempfile
from pathlib import Path
from typing import Self

import torch
from safetensors import SafetensorError

from .device import default_device, default_dtype
from .errors import FsthError
from .facial_components import FsthFacialComponents
from .hub import create_repository, fetch, publish
from .image_processing_fsth import FsthImageProcessor
from .modeling_fsth import FsthDiscriminator, FsthEmbedder, FsthGenerator
from .person import MAX_SIZE


NETWORKS = {"embedder": FsthEmbedder, "generator": FsthGenerator, "discriminator": FsthDiscriminator}
BUNDLED_MODEL = Path(__file__).parent / "checkpoints" / "small"


def is_pipeline(folder: Path) -> bool:
    try:
        index = json.loads((folder / "model_index.json").read_text())
        return "FsthPipeline" in index["_class_name"]  # a name, or a list with it where the code was included
    except (OSError, ValueError, KeyError, TypeError):
        return False


class FsthPretrainedMixin:
    """Goes before `DiffusionPipeline`, whose loading and saving it narrows to folders of safetensors."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path | None = None,
        *,
        device: str | torch.device = "auto",
        dtype: torch.dtype | str = "auto",
        variant: str | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ) -> Self:
        """
        Load a pipeline and put it where it runs fastest.

        Args:
            pretrained_model_name_or_path (`str` or `Path`, *optional*):
                A folder of [`~FsthPipeline.save_pretrained`] or the id of a hub repository; by default the small model
                that ships with the package, which needs no network.
            device (`str` or `torch.device`, *optional*, defaults to `"auto"`): CUDA, then Apple's MPS, then the CPU.
            dtype (`torch.dtype` or `str`, *optional*, defaults to `"auto"`):
                bfloat16 where the device computes with it, float32 elsewhere.
            variant (`str`, *optional*): Which weights, such as `"fp16"` for those in `model.fp16.safetensors`.
            revision, token, cache_dir, local_files_only: as in `huggingface_hub.snapshot_download`.

        Raises:
            FsthError: There is no such folder or repository, or it holds no pipeline that can be loaded.
        """
        device = default_device() if device == "auto" else torch.device(device)
        dtype = default_dtype(device) if dtype == "auto" else dtype
        name = pretrained_model_name_or_path or BUNDLED_MODEL
        # a repository as a folder: diffusers cannot import the classes of another package from the hub itself
        options = {"revision": revision, "token": token, "cache_dir": cache_dir}
        folder = fetch(name, local_files_only=local_files_only, **options)
        if not is_pipeline(folder):
            raise FsthError(f"{name} holds no pipeline of fsth_hub: its model_index.json is missing or names another.")
        try:
            # not by diffusers, which would execute the code that a folder may carry for people without this package
            options = {"dtype": dtype, "variant": variant, "use_safetensors": True}
            networks = {name: network.from_pretrained(folder / name, **options) for name, network in NETWORKS.items()}
            if (folder / "facial_components").is_dir():
                components = FsthFacialComponents.from_pretrained(folder / "facial_components", **options)
                networks["facial_components"] = components
            processor = FsthImageProcessor.from_pretrained(folder / "image_processor")
            pipe = cls(**networks, image_processor=processor)
            pipe.register_to_config(_name_or_path=str(folder))
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
        except (ValueError, RuntimeError) as error:
            raise FsthError(f"The pipeline in {name} cannot be loaded: {error}") from error
        # a folder's name and not its path, for identities that are made from it carry it along
        if folder == BUNDLED_MODEL:
            pipe.model_name = "bundled"
        elif Path(name).is_dir():
            pipe.model_name = folder.resolve().name
        else:
            pipe.model_name, pipe.model_revision = str(name), folder.name
        return pipe.to(device)

    def save_pretrained(
        self, folder: str | Path, *, variant: str | None = None, max_shard_size: int | str | None = None
    ) -> None:
        """
        Save the networks in the precision that they are in, as safetensors, and the image processor.

        Args:
            folder (`str` or `Path`): Other variants that lie there stay.
            variant (`str`, *optional*): Part of the weights' file names, such as `"fp16"`; the others' are without.
            max_shard_size (`int` or `str`, *optional*): Of one file of weights, such as `"15MB"`.
        """
        super().save_pretrained(folder, variant=variant, max_shard_size=max_shard_size)
        if variant is None:
            return
        for path in Path(folder).glob("*/config.json"):
            # Its precision is that of the variant that was saved last, and loading any other would follow it.
            config = json.loads(path.read_text())
            config.pop("dtype", None)
            path.write_text(json.dumps(config, indent=2) + "\n")

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
        from .model_card import PipelineFigures, write_pipeline_card

        networks = {name: getattr(self, name) for name in NETWORKS}
        figures = PipelineFigures(
            base_model=self.model_name,
            size=self.size,
            max_size=MAX_SIZE,
            source_skips=self.generator.config.source_skips,
            parameters={name: network.num_parameters() for name, network in networks.items() if network is not None},
        )
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            self.save_pretrained(folder, variant=variant)
            if include_code:
                from .remote_code import add_code

                add_code(folder)
            repo_id = create_repository(repo_id, private=private, token=token)  # with its owner, for the card
            write_pipeline_card(figures, folder, repo_id, self.config.get("_name_or_path"))
            return publish(folder, repo_id, revision=revision, token=token, commit_message=commit_message)
