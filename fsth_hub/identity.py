"""The identity that fine-tuning makes of a person: saved, loaded, driven."""

import copy
import hashlib
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from .adapter import Adapter, add_lora, lora_parameters, merge, rank_of
from .cropping import CropBox
from .errors import FsthError
from .hub import create_repository, fetch, publish
from .image_processing_fsth import load_image
from .landmark_layout import NUM_POINTS
from .modeling_fsth import FsthGenerator, is_hooked
from .person import FsthPerson


if TYPE_CHECKING:
    from .pipeline_fsth import FsthPipeline

WEIGHTS_NAME, CONFIG_NAME = "identity.safetensors", "identity.json"
WEIGHTS_PREFIXES = {"full": "generator.", "adapter": "adapter."}  # of the tensors, by kind


@dataclass(kw_only=True)
class FsthIdentity(FsthPerson):
    """A person after fine-tuning (section 3.4), to be driven as any other and to be kept.

    Args:
        crops (`np.ndarray` of shape `(T, size, size, 3)`): the portraits' head crops, uint8 RGB.
        crop_landmarks (`np.ndarray` of shape `(T, 78, 2)`): their landmarks, pixels of the crops.
        base_model (`str`): name of the model that was tuned.
        fingerprint (`str`): of its generator, [`fingerprint`].
        steps (`int`): after how many steps the weights are these.
        history (`list[dict]`): loss terms and held-out score by step, see [`FineTuned`].
        base_generator ([`FsthGenerator`]): the one that was tuned, which is the pipeline's; not saved.
        adapter (`dict[str, torch.Tensor]`, *optional*):
            Low-rank updates of it ([`merge`]), kept instead of a generator of their own, in memory too: several such
            identities share the pipeline's weights.
        base_revision (`str`, *optional*): the commit of that model, if it came from the hub.
        consent (`str`, *optional*): what was stated when the identity was published.
        name (`str`): of the folder or the hub repository that it was loaded from.
    """

    crop_landmarks: np.ndarray
    base_model: str
    fingerprint: str
    steps: int
    base_generator: FsthGenerator
    history: list[dict[str, float]] = field(default_factory=list)
    adapter: Adapter | None = None
    base_revision: str | None = None
    consent: str | None = None
    name: str = "unnamed"

    @property
    def num_portraits(self) -> int:
        return len(self.crops)

    @property
    def kind(self) -> str:
        """What was tuned of the generator: `"full"`, all its weights, or `"adapter"`, low-rank updates of them."""
        return "full" if self.adapter is None else "adapter"

    @property
    def weights(self) -> tuple:
        return (self.generator,) if self.adapter is None else (self.base_generator, self.adapter)

    def tuned_generator(self, generator: FsthGenerator | None = None) -> FsthGenerator:
        return self.generator if self.adapter is None else merge(self.base_generator, self.adapter)

    def save_pretrained(self, folder: str | Path) -> None:
        """
        Write the identity as safetensors and JSON, whole or not at all; an identity that lies there is replaced.

        Raises:
            FsthError: The folder holds something else, or cannot be written.
        """
        folder = check_folder(folder)
        weights = self.generator.state_dict() if self.adapter is None else self.adapter
        tensors = {f"{WEIGHTS_PREFIXES[self.kind]}{name}": tensor for name, tensor in weights.items()}
        tensors |= {
            "adain_parameters": self.adain_parameters,
            "crops": torch.from_numpy(self.crops),
            "crop_landmarks": torch.from_numpy(self.crop_landmarks),
        }
        config = {
            "kind": self.kind,
            "base_model": self.base_model,
            "base_revision": self.base_revision,
            "fingerprint": self.fingerprint,
            "num_portraits": self.num_portraits,
            "steps": self.steps,
            "boxes": [list(box) for box in self.boxes],
            "history": self.history,
            "consent": self.consent,
        }
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
                whole = Path(temporary, "identity")
                whole.mkdir()
                save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, whole / WEIGHTS_NAME)
                (whole / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n")
                if folder.exists():
                    folder.rename(Path(temporary, "replaced"))
                whole.rename(folder)
        except (OSError, SafetensorError) as error:
            raise FsthError(f"The identity cannot be written to {folder}: {error}.") from error

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        pipe: "FsthPipeline",
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ) -> "FsthIdentity":
        """
        Load an identity for the pipeline whose model was tuned; several can share one pipeline.

        Args:
            name (`str` or `Path`): A folder of [`~FsthIdentity.save_pretrained`] or the id of a hub repository.
            pipe ([`FsthPipeline`]): With the model that was tuned.
            revision, token, cache_dir, local_files_only: as in `huggingface_hub.snapshot_download`.

        Raises:
            FsthError: There is no identity of that name, or a damaged one, or that of another model.
        """
        options = {"revision": revision, "token": token, "cache_dir": cache_dir}
        folder = fetch(name, local_files_only=local_files_only, **options)
        try:
            config = json.loads((folder / CONFIG_NAME).read_text())
            tensors = load_file(folder / WEIGHTS_NAME)
            base_model, own = config["base_model"], config["fingerprint"]
            prefix = WEIGHTS_PREFIXES[config["kind"]]
            boxes = [CropBox(*box) for box in config["boxes"]]
            count, steps, history = config["num_portraits"], config["steps"], config["history"]
            base_revision, consent = config.get("base_revision"), config.get("consent")
        except (FileNotFoundError, NotADirectoryError) as error:
            raise FsthError(
                f"{name} holds no identity: it needs {CONFIG_NAME} and {WEIGHTS_NAME}, as fine-tuning writes them "
                "(pickled weights such as .bin and .ckpt are never read)."
            ) from error
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
            raise FsthError(f"The identity in {name} is damaged; make or fetch it again.") from error
        if own != fingerprint(pipe.generator):
            raise FsthError(
                f"The identity in {name} was fine-tuned from another model ({describe(base_model, base_revision)}) "
                f"than the one that is loaded ({describe(pipe.model_name, pipe.model_revision)}); load that model, or "
                "fine-tune again."
            )
        weights = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        expected = pipe.generator.state_dict()
        if config["kind"] == "adapter":
            expected = lora_parameters(add_lora(pipe.generator, rank_of(weights)))
        side = tensors["crops"].shape[1] if tensors.get("crops") is not None and tensors["crops"].ndim == 4 else 0
        shapes = {f"{prefix}{name}": tensor.shape for name, tensor in expected.items()}
        shapes |= {
            "adain_parameters": (1, sum(pipe.generator.adain_sizes)),
            "crops": (count, side, side, 3),
            "crop_landmarks": (count, NUM_POINTS, 2),
        }
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if (
            found != {name: tuple(shape) for name, shape in shapes.items()}
            or tensors["crops"].dtype != torch.uint8
            or not all(tensor.is_floating_point() for tensor in weights.values())
        ):
            raise FsthError(f"The identity in {name} is damaged: its weights do not fit the model's.")

        # Copies, for the same reason as in `FsthPreTrainedModel.from_pretrained`.
        adapter = None
        if config["kind"] == "adapter":
            adapter = {name: tensor.clone() for name, tensor in weights.items()}
            generator = merge(pipe.generator, adapter)
        else:
            generator = copy.deepcopy(pipe.generator)
            generator.load_state_dict(weights)
        adain_parameters = tensors["adain_parameters"].clone().to(generator.device, generator.dtype)
        crops, crop_landmarks = (tensors[name].clone().numpy() for name in ("crops", "crop_landmarks"))
        inputs = pipe.prepare_portraits(crops, crop_landmarks)
        return cls(
            adain_parameters=adain_parameters,
            sources=pipe.encode_sources(generator, *inputs),
            landmarks=inputs[2][0, 0].cpu().numpy(),
            boxes=boxes,
            generator=generator if adapter is None else None,
            crops=crops,
            crop_landmarks=crop_landmarks,
            base_model=base_model,
            fingerprint=own,
            steps=steps,
            base_generator=pipe.generator,
            history=history,
            adapter=adapter,
            base_revision=base_revision,
            consent=consent,
            name=folder.resolve().name if Path(name).is_dir() else str(name),
        )

    def push_to_hub(
        self,
        repo_id: str,
        *,
        consent: bool = False,
        private: bool = True,
        revision: str | None = None,
        token: str | bool | None = None,
        commit_message: str = "Upload identity",
        photographs: Sequence[str | Path] = (),
    ) -> str:
        """
        Publish the identity on the hub, with a card, for `pipe.load_identity(repo_id)`.

        An identity made with source skips holds the portraits' head crops; of the photographs themselves only those
        are uploaded that are named.

        Args:
            repo_id, private, revision, token, commit_message: as in [`~hub.publish`].
            consent (`bool`): Whether you make the statement `CONSENT` of `model_card.py`; nothing happens otherwise.
            photographs (`Sequence` of paths, *optional*): Pictures to add, without their metadata and file names.

        Returns:
            `str`: The address of the commit.

        Raises:
            FsthError: There is no consent, a photograph cannot be read, or the repository cannot be written to.
        """
        from .model_card import CONSENT, write_identity_card

        if consent is not True:
            raise FsthError(f"Nothing was published: it takes consent=True, by which you state that {CONSENT}.")
        pictures = [Image.fromarray(load_image(photograph)) for photograph in photographs]
        published = replace(self, consent=CONSENT)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary, "identity")
            published.save_pretrained(folder)
            for number, picture in enumerate(pictures, start=1):
                path = folder / "photographs" / f"{number}.jpg"
                path.parent.mkdir(exist_ok=True)
                picture.save(path, quality=95)
            repo_id = create_repository(repo_id, private=private, token=token)  # with its owner, for the card
            write_identity_card(published, folder, repo_id)
            options = {"revision": revision, "token": token, "commit_message": commit_message}
            return publish(folder, repo_id, private=private, **options)


def describe(model: str, revision: str | None) -> str:
    return f"'{model}'" if revision is None else f"'{model}' at revision {revision[:12]}"


def check_folder(folder: str | Path) -> Path:
    """Refuse (`FsthError`) a place for an identity where something else lies or nothing can be written."""
    folder = Path(folder)
    is_identity = (folder / CONFIG_NAME).is_file() and (folder / WEIGHTS_NAME).is_file()
    if folder.is_file() or folder.is_dir() and any(folder.iterdir()) and not is_identity:
        raise FsthError(f"{folder} holds something else than an identity: give a new folder.")
    parent = next(parent for parent in folder.absolute().parents if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise FsthError(f"{folder} cannot be written: {error.strerror}.") from error
    return folder


def fingerprint(generator: FsthGenerator) -> str:
    """SHA-256 of a generator's weights, rounded to bfloat16 so that it is the same in whichever precision they are."""
    digest = hashlib.sha256()
    generator = copy.deepcopy(generator) if is_hooked(generator) else generator  # its weights may be anywhere
    for name, tensor in sorted(generator.state_dict().items()):
        digest.update(name.encode())
        rounded = tensor.detach().to("cpu", torch.bfloat16, memory_format=torch.contiguous_format)
        digest.update(rounded.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
