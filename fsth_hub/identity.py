"""A person as the pipeline knows them, and the identity that fine-tuning makes of one: saved, loaded, driven."""

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
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from .errors import FsthError, NoFaceError
from .finetuning import default_steps, fine_tune, load_content
from .image_processing_fsth import load_image
from .landmarks import NUM_POINTS, CropBox, whole_frame
from .modeling_fsth import FsthGenerator
from .source_skips import FsthSources


if TYPE_CHECKING:
    from .pipeline_fsth import FsthPipeline

Portrait = str | Path | Image.Image | np.ndarray

WEIGHTS_NAME, CONFIG_NAME = "identity.safetensors", "identity.json"


@dataclass
class FsthPerson:
    """What a person's portraits come to, computed once.

    Args:
        adain_parameters (`torch.Tensor` of shape `(1, num_parameters)`): the generator's, for this person.
        sources (`FsthSources`, *optional*): the portraits' feature pyramids; with source skips only.
        landmarks (`np.ndarray` of shape `(78, 2)`): of the first portrait, pixels of its crop.
        boxes (`list[CropBox]`): where in each portrait the head was cut out, pixels of the portrait.
        generator ([`FsthGenerator`], *optional*): tuned to this person; by default the pipeline's own draws them.
    """

    adain_parameters: torch.Tensor
    sources: FsthSources | None
    landmarks: np.ndarray
    boxes: list[CropBox]
    generator: FsthGenerator | None = None


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
    """

    crops: np.ndarray
    crop_landmarks: np.ndarray
    base_model: str
    fingerprint: str
    steps: int
    history: list[dict[str, float]] = field(default_factory=list)

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
    """How a pipeline gets to know a person from portraits: at a glance, or by fine-tuning."""

    def embed(self, portraits: Portrait | Sequence[Portrait], face_index: int = 0, crop: bool = True) -> FsthPerson:
        """
        Learn a person from one or more portraits (section 3.4 without fine-tuning).

        Args:
            portraits: A picture or several of one person: paths, PIL images, or H x W x 3 uint8 RGB arrays.
            face_index (`int`, *optional*, defaults to 0): Which face of a picture, counted from the largest.
            crop (`bool`, *optional*, defaults to `True`): `False` if the pictures are square head crops already.

        Raises:
            FsthError: A picture cannot be read or has too few faces; [`NoFaceError`] where it has none.
        """
        return self.embed_crops(*self.read_portraits(portraits, face_index, crop))

    def read_portraits(
        self, portraits: Portrait | Sequence[Portrait], face_index: int = 0, crop: bool = True
    ) -> tuple[list[np.ndarray], list[np.ndarray], list[CropBox]]:
        """Cut the heads out of portraits: the crops, their landmarks, and the squares, as `embed_crops` takes them."""
        single_array = isinstance(portraits, np.ndarray) and portraits.ndim < 4
        if single_array or isinstance(portraits, (str, Path, Image.Image)):
            portraits = [portraits]
        if len(portraits) == 0:
            raise FsthError("Give at least one portrait.")
        crops, landmarks, boxes = [], [], []
        for number, portrait in enumerate(portraits, start=1):
            name = Path(portrait).name if isinstance(portrait, (str, Path)) else f"portrait {number}"
            image = load_image(portrait)
            faces = self.detector.detect(image)
            if not faces:
                raise NoFaceError(f"No face was found in {name}; use a picture in which the face is seen clearly.")
            if not 0 <= face_index < len(faces):
                raise FsthError(f"Face {face_index} was asked for, but {name} shows {len(faces)}, counted from 0.")
            points = faces[face_index].points
            box = None if crop else whole_frame(*image.shape[1::-1], name)
            for values, value in zip(
                (crops, landmarks, boxes), self.image_processor.crop(image, points, box), strict=True
            ):
                values.append(value)
        return crops, landmarks, boxes

    @torch.no_grad()
    def embed_crops(
        self, crops: Sequence[np.ndarray], landmarks: Sequence[np.ndarray], boxes: list[CropBox] | None = None
    ) -> FsthPerson:
        """
        The same for head crops whose landmarks are known.

        Args:
            crops: Each 256 x 256 x 3 uint8 RGB.
            landmarks: For each crop 78 x 2, pixels of the crop.
            boxes (`list[CropBox]`, *optional*): Where the crops come from.
        """
        images, drawings, points = self.prepare_portraits(crops, landmarks)
        embedding = self.embedder(self._to_dtype(images), self._to_dtype(drawings)).embedding
        sources = self.encode_sources(self.generator, images, drawings, points)
        return FsthPerson(self.generator.project(embedding), sources, points[0, 0].cpu().numpy(), boxes or [])

    def prepare_portraits(self, crops: Sequence[np.ndarray], landmarks: Sequence[np.ndarray]) -> list[torch.Tensor]:
        """Head crops (pictures), their drawings and landmarks as the networks take them, 1 x K x ..., float32."""
        inputs = self.image_processor.preprocess(list(crops), list(landmarks))
        return [
            inputs["pixel_values"].to(self.device, memory_format=torch.channels_last)[None],  # 1 x K x 3 x 256 x 256
            inputs["landmark_images"].to(self.device, memory_format=torch.channels_last)[None],
            inputs["landmarks"].to(self.device)[None],  # 1 x K x 78 x 2
        ]

    @torch.no_grad()
    def encode_sources(self, generator: FsthGenerator, images, landmark_images, landmarks) -> FsthSources | None:
        """What a generator, this pipeline's or a tuned one, keeps of portraits; `None` without source skips."""
        if not generator.config.source_skips:
            return None
        return generator.encode_sources(self._to_dtype(images), self._to_dtype(landmark_images), landmarks)

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
