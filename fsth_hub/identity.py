"""The identity that fine-tuning makes of a person: saved, loaded, driven."""

import copy
import hashlib
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from .cropping import CropBox
from .errors import FsthError
from .finetuning import default_steps, fine_tune, load_content
from .landmark_layout import NUM_POINTS
from .modeling_fsth import FsthGenerator
from .person import FsthPerson, Portrait


if TYPE_CHECKING:
    from .pipeline_fsth import FsthPipeline

WEIGHTS_NAME, CONFIG_NAME = "identity.safetensors", "identity.json"


@dataclass(kw_only=True)
class FsthIdentity(FsthPerson):
    """A person after fine-tuning (section 3.4), to be driven as any other and to be kept.

    Args:
        crops (`np.ndarray` of shape `(T, height, width, 3)`): the portraits as the networks saw them, uint8 RGB.
        crop_landmarks (`np.ndarray` of shape `(T, 78, 2)`): their landmarks, pixels of the crops.
        base_model (`str`): name of the model that was tuned.
        fingerprint (`str`): of its generator, [`fingerprint`].
        steps (`int`): after how many steps the weights are these.
        history (`list[dict]`): loss terms and held-out score by step, see [`FineTuned`].
        name (`str`): of the folder from which it was loaded.
    """

    crops: np.ndarray
    crop_landmarks: np.ndarray
    base_model: str
    fingerprint: str
    steps: int
    history: list[dict[str, float]] = field(default_factory=list)
    name: str = "unnamed"

    @property
    def num_portraits(self) -> int:
        return len(self.crops)

    def save_pretrained(self, folder: str | Path) -> None:
        """
        Write the identity as safetensors and JSON, whole or not at all; an identity that lies there is replaced.

        Raises:
            FsthError: The folder holds something else, or cannot be written.
        """
        folder = check_folder(folder)
        tensors = {f"generator.{name}": tensor for name, tensor in self.generator.state_dict().items()}
        tensors |= {
            "adain_parameters": self.adain_parameters,
            "crops": torch.from_numpy(self.crops),
            "crop_landmarks": torch.from_numpy(self.crop_landmarks),
        }
        config = {
            "base_model": self.base_model,
            "fingerprint": self.fingerprint,
            "num_portraits": self.num_portraits,
            "steps": self.steps,
            "boxes": [list(box) for box in self.boxes],
            "history": self.history,
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
    def from_pretrained(cls, folder: str | Path, pipe: "FsthPipeline") -> "FsthIdentity":
        """
        Load an identity for the pipeline whose model was tuned; several can share one pipeline.

        Raises:
            FsthError: The folder holds no identity, or a damaged one, or that of another model.
        """
        folder = Path(folder)
        try:
            config = json.loads((folder / CONFIG_NAME).read_text())
            tensors = load_file(folder / WEIGHTS_NAME)
            base_model, own = config["base_model"], config["fingerprint"]
            boxes = [CropBox(*box) for box in config["boxes"]]
            count, steps, history = config["num_portraits"], config["steps"], config["history"]
        except (FileNotFoundError, NotADirectoryError) as error:
            raise FsthError(
                f"{folder} holds no identity: it needs {CONFIG_NAME} and {WEIGHTS_NAME}, as fine-tuning writes them."
            ) from error
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise FsthError(f"The identity in {folder} is damaged; make or fetch it again.") from error
        if own != fingerprint(pipe.generator):
            raise FsthError(
                f"The identity in {folder} was fine-tuned from another model ('{base_model}') than the one that is "
                f"loaded ('{pipe.model_name}'); load that model, or fine-tune again."
            )
        shapes = {f"generator.{name}": tensor.shape for name, tensor in pipe.generator.state_dict().items()}
        shapes |= {
            "adain_parameters": (1, sum(pipe.generator.adain_sizes)),
            "crops": (count, pipe.size, pipe.size, 3),
            "crop_landmarks": (count, NUM_POINTS, 2),
        }
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if found != {name: tuple(shape) for name, shape in shapes.items()} or tensors["crops"].dtype != torch.uint8:
            raise FsthError(f"The identity in {folder} is damaged: its weights do not fit the model's.")

        generator = copy.deepcopy(pipe.generator)
        generator.load_state_dict({name: tensors[f"generator.{name}"] for name in generator.state_dict()})
        # Copies, for the same reason as in `FsthPreTrainedModel.from_pretrained`.
        adain_parameters = tensors["adain_parameters"].clone().to(generator.device, generator.dtype)
        crops, crop_landmarks = (tensors[name].clone().numpy() for name in ("crops", "crop_landmarks"))
        return cls(
            adain_parameters=adain_parameters,
            sources=pipe.encode_sources(generator, *pipe.prepare_portraits(crops, crop_landmarks)),
            landmarks=crop_landmarks[0],
            boxes=boxes,
            generator=generator,
            crops=crops,
            crop_landmarks=crop_landmarks,
            base_model=base_model,
            fingerprint=own,
            steps=steps,
            history=history,
            name=folder.resolve().name,
        )


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
    for name, tensor in sorted(generator.state_dict().items()):
        digest.update(name.encode())
        rounded = tensor.detach().to("cpu", torch.bfloat16, memory_format=torch.contiguous_format)
        digest.update(rounded.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class FsthIdentityMixin:
    """How a pipeline makes identities by fine-tuning, and loads those that were made."""

    def fine_tune(
        self,
        portraits: Portrait | Sequence[Portrait],
        *,
        steps: int | None = None,
        content: nn.Module | None = None,
        callback: Callable[[int, int, np.ndarray | None, dict[str, float]], bool | None] | None = None,
        seed: int = 0,
        face_index: int = 0,
        crop: bool = True,
    ) -> FsthIdentity:
        """
        Fine-tune the model to a person (section 3.4); the pipeline's own networks stay as they are.

        ```python
        identity = pipe.fine_tune(["one.jpg", "two.jpg"])
        identity.save_pretrained("ada")
        pipe(FsthIdentity.from_pretrained("ada", pipe), "driver.mp4").save("result.mp4")
        ```

        Args:
            portraits, face_index, crop: as in [`~FsthPipeline.embed`]; 1 to 64 portraits.
            steps (`int`, *optional*): At most so many; by default 50 for one portrait to 230 for thirty.
            content (`nn.Module`, *optional*):
                A [`ContentLoss`]; by default over the hub's VGG19, or pixels alone where that cannot be fetched.
            callback (`Callable`, *optional*):
                Called after each step with its number, the number of steps, every tenth time a preview
                (256 x 256 x 3 uint8, otherwise `None`), and the loss terms. What it raises ends fine-tuning, as does
                `False`; nothing is left then.
            seed (`int`, *optional*, defaults to 0): Of the order and deformations of the portraits.

        Raises:
            FsthError: A portrait cannot be used, the loss is not finite, memory is too small, or it was cancelled.
        """
        crops, landmarks, boxes = self.read_portraits(portraits, face_index, crop)
        options = {"steps": steps, "content": content, "callback": callback, "seed": seed}
        return self.fine_tune_crops(crops, landmarks, boxes=boxes, **options)

    def fine_tune_crops(
        self,
        crops: Sequence[np.ndarray],
        landmarks: Sequence[np.ndarray],
        *,
        boxes: list[CropBox] | None = None,
        steps: int | None = None,
        content: nn.Module | None = None,
        callback: Callable[[int, int, np.ndarray | None, dict[str, float]], bool | None] | None = None,
        seed: int = 0,
    ) -> FsthIdentity:
        """The same for head crops whose landmarks are known, as in [`~FsthPipeline.embed_crops`]."""
        images, drawings, points = self.prepare_portraits(crops, landmarks)
        total = default_steps(len(crops)) if steps is None else steps
        with self.progress_bar(total=total) as progress:

            def report(step, steps, preview, losses):
                progress.update(step - progress.n)
                if callback is None:
                    return None
                preview = None if preview is None else self.image_processor.postprocess(preview[None])[0]
                return callback(step, steps, preview, losses)

            tuned = fine_tune(
                self.embedder,
                self.generator,
                self.discriminator,
                images,
                drawings,
                points,
                content or load_content(),
                steps=total,
                callback=report,
                seed=seed,
            )
        # What is kept is what the networks see: the same frames then come from memory and from a saved identity.
        seen = np.stack(self.image_processor.postprocess(images[0]))
        generator = tuned.generator.to(self.generator.dtype, memory_format=torch.channels_last)
        crop_landmarks = points[0].cpu().numpy()
        return FsthIdentity(
            adain_parameters=tuned.adain_parameters.to(generator.dtype),
            sources=self.encode_sources(generator, images, drawings, points),
            landmarks=crop_landmarks[0],
            boxes=boxes or [],
            generator=generator,
            crops=seen,
            crop_landmarks=crop_landmarks,
            base_model=self.model_name,
            fingerprint=fingerprint(self.generator),
            steps=tuned.best_step,
            history=tuned.history,
        )
