"""The identity that fine-tuning makes of a person: read, written, published, and bound to its model."""

import copy
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..finetuning.lora import load_lora, merge, save_lora
from ..finetuning.names import METHODS
from ..hub.client import create_repository, publish
from ..hub.model_card import CONSENT, IdentityFigures, ModelCard, identity_card, licence_of, write_identity_card
from ..models.cropping import CropBox
from ..models.downloading import fetch
from ..models.errors import FsthError, FsthNotFoundError
from ..models.facial_components import FsthFacialComponents
from ..models.image_loading import load_image
from ..models.landmark_layout import FACE, NUM_POINTS
from ..models.modeling_fsth import FsthGenerator, FsthPreTrainedModel, is_hooked
from ..saving import put_folder, reason, workplace
from .names import COMPONENTS_FOLDER, CONFIG_NAME, WEIGHTS_NAME
from .person import FsthPerson


GENERATOR_PREFIX, COMPONENTS_PREFIX = "generator.", "facial_components."  # of the tensors of what is tuned in full
FIGURES = {"base_model": str, "fingerprint": str, "num_portraits": int, "steps": int, "boxes": list, "history": list}
TEXTS = ("base_revision", "components_fingerprint", "consent")  # if there are any
# all that a file's content raises
DAMAGES = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError, SafetensorError)


@dataclass(kw_only=True)
class FsthIdentity:
    """
    What fine-tuning keeps of a person (section 3.4), whatever model is at hand; `pipe.bind(identity)` makes it move.

    Args:
        method (`str`): `"full"` or `"lora"`.
        weights (`dict[str, torch.Tensor]`): of the generator, or its low-rank updates, see `finetuning/lora.py`.
        adain_parameters (`torch.Tensor` of shape `(1, num_parameters)`): the person's own, tuned.
        crops (`np.ndarray` of shape `(T, size, size, 3)`): the portraits' head crops, uint8 RGB.
        crop_landmarks (`np.ndarray` of shape `(T, 78, 2)`): their landmarks, pixels of the crops.
        boxes (`list[CropBox]`): where in each portrait the head was cut out, pixels of the portrait.
        base_model (`str`): name of the model that was tuned.
        fingerprint (`str`): of its generator, [`fingerprint`].
        steps (`int`): after how many steps the weights are these.
        history (`list[dict]`): loss terms and held-out score by step, see [`FineTuned`].
        base_revision (`str`, *optional*): the commit of that model, if it came from the hub.
        component_weights (`dict[str, torch.Tensor]`, *optional*): as `weights`, of the facial components.
        components_fingerprint (`str`, *optional*): of those that were tuned, [`fingerprint`].
        consent (`str`, *optional*): what was stated when the identity was published.
        name (`str`): of the folder or the hub repository that it was loaded from.
    """

    method: str
    weights: dict[str, torch.Tensor]
    adain_parameters: torch.Tensor
    crops: np.ndarray
    crop_landmarks: np.ndarray
    boxes: list[CropBox]
    base_model: str
    fingerprint: str
    steps: int
    history: list[dict[str, float]] = field(default_factory=list)
    base_revision: str | None = None
    component_weights: dict[str, torch.Tensor] | None = None
    components_fingerprint: str | None = None
    consent: str | None = None
    name: str = "unnamed"

    @property
    def num_portraits(self) -> int:
        return len(self.crops)

    def save_pretrained(self, folder: str | Path) -> None:
        """
        Write the identity as safetensors and JSON, whole or not at all; an identity that lies there is replaced. One
        of LoRA is also what PEFT saves: `PeftModel.from_pretrained(pipe.generator, folder)` loads its weights; those
        of the facial components lie in `facial_components/`.

        Raises:
            FsthError: The folder holds something else, or cannot be written.
        """
        folder = check_folder(folder)
        tensors = {
            "adain_parameters": self.adain_parameters,
            "crops": torch.from_numpy(self.crops),
            "crop_landmarks": torch.from_numpy(self.crop_landmarks),
        }
        if self.method == "full":
            tensors |= {f"{GENERATOR_PREFIX}{name}": tensor for name, tensor in self.weights.items()}
            components = self.component_weights or {}
            tensors |= {f"{COMPONENTS_PREFIX}{name}": tensor for name, tensor in components.items()}
        config = {
            "method": self.method,
            "base_model": self.base_model,
            "base_revision": self.base_revision,
            "fingerprint": self.fingerprint,
            "components_fingerprint": self.components_fingerprint,
            "num_portraits": self.num_portraits,
            "steps": self.steps,
            "boxes": [list(box) for box in self.boxes],
            "history": self.history,
            "consent": self.consent,
        }
        try:
            folder = Path(os.path.realpath(folder))  # a link stays
            folder.parent.mkdir(parents=True, exist_ok=True)
            with workplace(folder.parent) as temporary:
                whole = Path(temporary, "identity")
                whole.mkdir()
                save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, whole / WEIGHTS_NAME)
                if self.method == "lora":
                    save_lora(self.weights, whole, self.base_model)
                    if self.component_weights is not None:
                        save_lora(self.component_weights, whole / COMPONENTS_FOLDER, self.base_model)
                (whole / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n")
                put_folder(whole, folder)
        except (OSError, SafetensorError) as error:
            raise FsthError(f"The identity cannot be written to {folder}: {reason(error)}.") from error

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ) -> "FsthIdentity":
        """
        Read an identity; no model is needed.

        Args:
            name (`str` or `Path`): A folder of [`~FsthIdentity.save_pretrained`] or the id of a hub repository.
            revision, token, cache_dir, local_files_only: as in `huggingface_hub.snapshot_download`.

        Raises:
            FsthError: It is damaged; [`FsthNotFoundError`] where there is no identity of that name.
        """
        options = {"revision": revision, "token": token, "cache_dir": cache_dir}
        folder = fetch(name, local_files_only=local_files_only, **options)
        missing = [file for file in (CONFIG_NAME, WEIGHTS_NAME) if not (folder / file).is_file()]
        if missing:
            raise FsthNotFoundError(
                f"{name} holds no identity, for {missing[0]} is missing: give a folder or repository that fine-tuning "
                "has written (pickled weights such as .bin and .ckpt are never read)."
            )
        try:
            identity = cls(**_read(folder))
        except DAMAGES as error:
            raise FsthError(f"The identity in {name} is damaged ({reason(error)}): make or fetch it again.") from error
        identity.name = folder.resolve().name if Path(name).is_dir() else str(name)
        return identity


def _read(folder: Path) -> dict:
    """The fields of an [`FsthIdentity`]; raises one of `DAMAGES` where the files do not agree with each other."""
    config, tensors = json.loads((folder / CONFIG_NAME).read_text()), load_file(folder / WEIGHTS_NAME)
    for key, kind in FIGURES.items():
        if type(config.get(key)) is not kind:
            raise ValueError(f"{key} is no {kind.__name__} in {CONFIG_NAME}")
    if config.get("method") not in METHODS:
        raise ValueError(f"method is not {' or '.join(METHODS)} in {CONFIG_NAME}")
    if not all(isinstance(config.get(key), str | None) for key in TEXTS):
        raise ValueError(f"{', '.join(TEXTS)} must be texts in {CONFIG_NAME}")
    if not all(isinstance(value, int | float) for entry in config["history"] for value in entry.values()):
        raise ValueError(f"history holds more than numbers in {CONFIG_NAME}")

    # copies, for the same reason as in `FsthPreTrainedModel.from_pretrained`
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    missing = [name for name in ("adain_parameters", "crops", "crop_landmarks") if name not in tensors]
    if missing:
        raise ValueError(f"{missing[0]} is missing in {WEIGHTS_NAME}")
    adain_parameters, crops, landmarks = (tensors.pop(n) for n in ("adain_parameters", "crops", "crop_landmarks"))
    count, size = config["num_portraits"], crops.shape[1] if crops.ndim == 4 else 0
    if count < 1 or size < 1 or crops.shape != (count, size, size, 3) or crops.dtype != torch.uint8:
        raise ValueError("the crops are not square pictures, one for each portrait")
    if landmarks.shape != (count, NUM_POINTS, 2) or landmarks.dtype != torch.float32:
        raise ValueError("the landmarks are not those of the crops")
    distances = landmarks.abs().nan_to_num(-1)  # irises may be NaN
    if landmarks[:, FACE].isnan().any() or (distances > 100 * size).any():
        raise ValueError("the landmarks are those of no face")
    if adain_parameters.ndim != 2 or len(adain_parameters) != 1 or not adain_parameters.is_floating_point():
        raise ValueError("adain_parameters are not those of one person")
    weights, component_weights = (
        {name.removeprefix(prefix): tensors.pop(name) for name in list(tensors) if name.startswith(prefix)}
        for prefix in (GENERATOR_PREFIX, COMPONENTS_PREFIX)
    )
    in_full, with_components = config["method"] == "full", config.get("components_fingerprint") is not None
    expected = in_full, in_full and with_components
    floating = all(tensor.is_floating_point() for each in (weights, component_weights) for tensor in each.values())
    if tensors or not floating or (bool(weights), bool(component_weights)) != expected:
        raise ValueError(f"{WEIGHTS_NAME} holds other tensors than an identity's")
    if not in_full:
        weights = load_lora(folder)
        component_weights = load_lora(folder / COMPONENTS_FOLDER) if with_components else {}
    if not all(
        tensor.isfinite().all() for tensor in (adain_parameters, *weights.values(), *component_weights.values())
    ):
        raise ValueError("weights are no finite numbers")
    return {
        "method": config["method"],
        "weights": weights,
        "component_weights": component_weights or None,
        "components_fingerprint": config.get("components_fingerprint"),
        "adain_parameters": adain_parameters,
        "crops": crops.numpy(),
        "crop_landmarks": landmarks.numpy(),
        "boxes": [CropBox(*map(float, box[:3]), *map(int, box[3:])) for box in config["boxes"]],
        "base_model": config["base_model"],
        "fingerprint": config["fingerprint"],
        "steps": config["steps"],
        "history": config["history"],
        "base_revision": config.get("base_revision"),
        "consent": config.get("consent"),
    }


@dataclass(kw_only=True)
class FsthTunedPerson(FsthIdentity, FsthPerson):
    """
    An identity that can be driven as any person: of `pipe.fine_tune`, `pipe.load_identity` and `pipe.bind`.

    Args:
        generator, components (*optional*): their own, where these were tuned in full.
        base_generator ([`FsthGenerator`]), base_components ([`FsthFacialComponents`], *optional*):
            What was tuned, which is the pipeline's. Of LoRA only the updates are kept in memory: several people share
            the pipeline's weights.
        others: as in [`FsthIdentity`] and [`FsthPerson`].
    """

    base_generator: FsthGenerator
    base_components: FsthFacialComponents | None = None

    @classmethod
    def of(cls, identity: FsthIdentity, **others) -> "FsthTunedPerson":
        """The identity with what it lacks, or what is to be another."""
        return cls(**{field.name: getattr(identity, field.name) for field in fields(FsthIdentity)} | others)

    @property
    def own_weights(self) -> tuple:
        return (self.generator,) if self.method == "full" else (self.base_generator, self.weights)

    def tuned_generator(self, generator: FsthGenerator | None = None) -> FsthGenerator:
        return self.generator if self.method == "full" else merge(self.base_generator, self.weights)

    @property
    def own_component_weights(self) -> tuple:
        if self.component_weights is None:
            return ()
        return (self.components,) if self.method == "full" else (self.base_components, self.component_weights)

    def tuned_components(self, components: FsthFacialComponents) -> FsthFacialComponents:
        if self.component_weights is None:
            return components
        return self.components if self.method == "full" else merge(self.base_components, self.component_weights)

    def figures(self, num_photographs: int = 0) -> IdentityFigures:
        """What the person's card says."""
        source = self.base_generator.source
        return IdentityFigures(
            method=self.method,
            base_model=self.base_model,
            base_revision=self.base_revision,
            fingerprint=self.fingerprint,
            num_portraits=self.num_portraits,
            steps=self.steps,
            history=self.history,
            crop_size=self.crops.shape[1],
            keeps_crops=self.sources is not None,
            num_photographs=num_photographs,
            **({"licence": licence_of(Path(source.folder))} if source is not None and source.folder else {}),
        )

    def preview(self) -> Image.Image:
        """Four generated frames side by side."""
        from .preview import generate_preview

        components = None if self.base_components is None else self.tuned_components(self.base_components)
        return generate_preview(self, self.tuned_generator(), components)

    def card(self, repo_id: str) -> ModelCard:
        """The card for a repository without photographs."""
        return identity_card(self.figures(), repo_id)

    def write_card(self, folder: str | Path, repo_id: str, num_photographs: int = 0) -> None:
        """Write the card and its picture into the folder of [`~FsthIdentity.save_pretrained`]."""
        write_identity_card(self.figures(num_photographs), self.preview(), folder, repo_id)

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
            repo_id, private, token: as in [`~hub.create_repository`].
            revision, commit_message: as in [`~hub.publish`].
            consent (`bool`): Whether you make the statement `CONSENT` of `model_card.py`; nothing happens otherwise.
            photographs (`Sequence` of paths, *optional*): Pictures to add, without their metadata and file names.

        Returns:
            `str`: The address of the commit.

        Raises:
            FsthError: There is no consent, a photograph cannot be read, or the repository cannot be written to.
        """
        if consent is not True:
            raise FsthError(f"Nothing was published: it takes consent=True, by which you state that {CONSENT}.")
        pictures = [Image.fromarray(load_image(photograph)) for photograph in photographs]
        with workplace() as temporary:
            folder = Path(temporary, "identity")
            replace(self, consent=CONSENT).save_pretrained(folder)
            for number, picture in enumerate(pictures, start=1):
                path = folder / "photographs" / f"{number}.jpg"
                path.parent.mkdir(exist_ok=True)
                picture.save(path, quality=95)
            repo_id = create_repository(repo_id, private=private, token=token)  # with its owner, for the card
            self.write_card(folder, repo_id, len(pictures))
            return publish(folder, repo_id, revision=revision, token=token, commit_message=commit_message)


def describe(model: str, revision: str | None) -> str:
    return f"'{model}'" if revision is None else f"'{model}' at revision {revision[:12]}"


def check_folder(folder: str | Path) -> Path:
    """Refuse (`FsthError`) a place for an identity where something else lies or nothing can be written."""
    folder = Path(folder)
    try:
        target = Path(os.path.realpath(folder))
        if target.is_symlink():
            raise FsthError(f"{folder} cannot be written: it is a link that leads back to itself.")
        if _is_foreign(target):
            raise FsthError(f"{folder} holds something else than an identity: give a new folder.")
        with workplace(next(parent for parent in target.parents if parent.exists())):
            return folder
    except OSError as error:
        raise FsthError(f"{folder} cannot be written: {reason(error)}.") from error


def _is_foreign(target: Path) -> bool:
    """Whether something else than an identity lies there, though another process may replace it meanwhile."""
    while True:
        try:
            before, names = target.stat(), os.listdir(target)
            if os.path.samestat(before, target.stat()):  # or else it was replaced, and may be half removed
                return bool(names) and not {CONFIG_NAME, WEIGHTS_NAME}.issubset(names)
        except FileNotFoundError:
            if not target.exists():
                return False
        except NotADirectoryError:
            return True


def fingerprint(network: FsthPreTrainedModel) -> str:
    """SHA-256 of a network's weights, rounded to bfloat16 so that it is the same in whichever precision they are."""
    digest = hashlib.sha256()
    network = copy.deepcopy(network) if is_hooked(network) else network  # its weights may be anywhere
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        rounded = tensor.detach().to("cpu", torch.bfloat16, memory_format=torch.contiguous_format)
        digest.update(rounded.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
