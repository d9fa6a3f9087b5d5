"""How a pipeline makes identities by fine-tuning, and loads those that were made."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from .cropping import CropBox
from .errors import FsthError
from .finetuning import default_steps, fine_tune, load_content
from .identity import FsthIdentity, fingerprint
from .modeling_fsth import FsthPreTrainedModel, is_hooked
from .person import DEFAULT_SIZE, Portrait


def to_one_size(crops: Sequence[np.ndarray], landmarks: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Head crops of any sizes, and their landmarks, at the size of the first one, at most `DEFAULT_SIZE`."""
    side = min(len(crops[0]), DEFAULT_SIZE)
    resized = [Image.fromarray(crop).resize((side, side), Image.Resampling.BICUBIC) for crop in crops]
    points = [points * (side / len(crop)) for points, crop in zip(landmarks, crops, strict=True)]
    return np.stack(resized), np.stack(points).astype(np.float32)


def settled(network: FsthPreTrainedModel, device: torch.device) -> FsthPreTrainedModel:
    """A network to start from: itself, or a copy where it is offloaded or where using it would change it."""
    moves = network.training or is_hooked(network)
    return copy.deepcopy(network).eval().to(device) if moves else network


class FsthIdentityMixin:
    """Of a pipeline that knows [`FsthPersonMixin`]."""

    def load_identity(
        self,
        name: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
    ) -> FsthIdentity:
        """[`FsthIdentity.from_pretrained`] for this pipeline; its networks stay as they are."""
        options = {"revision": revision, "token": token, "cache_dir": cache_dir}
        return FsthIdentity.from_pretrained(name, self, local_files_only=local_files_only, **options)

    def fine_tune(
        self,
        portraits: Portrait | Sequence[Portrait],
        *,
        kind: str = "full",
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
        pipe(pipe.load_identity("ada"), "driver.mp4").save("result.mp4")
        ```

        Args:
            portraits, face_index, crop: as in [`~FsthPipeline.embed`]; 1 to 64 portraits.
            kind (`str`, *optional*, defaults to `"full"`):
                `"full"` tunes the generator itself, as the paper does, and keeps all its weights; `"adapter"` tunes
                and keeps low-rank updates of its convolutions, about 1 MB with the bundled model. Either leaves its
                source skips as they are, and keeps crops of the head besides, 0.8 MB for each portrait at 512 pixels.
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
        self._check_discriminator()
        crops, landmarks, boxes = self.read_portraits(portraits, face_index, crop)
        options = {"kind": kind, "steps": steps, "content": content, "callback": callback, "seed": seed}
        return self.fine_tune_crops(crops, landmarks, boxes=boxes, **options)

    def fine_tune_crops(
        self,
        crops: Sequence[np.ndarray],
        landmarks: Sequence[np.ndarray],
        *,
        boxes: list[CropBox] | None = None,
        kind: str = "full",
        steps: int | None = None,
        content: nn.Module | None = None,
        callback: Callable[[int, int, np.ndarray | None, dict[str, float]], bool | None] | None = None,
        seed: int = 0,
    ) -> FsthIdentity:
        """The same for head crops whose landmarks are known, as in [`~FsthPipeline.embed_crops`]."""
        self._check_discriminator()
        crops, crop_landmarks = to_one_size(crops, landmarks)
        images, drawings, points, mattes = self.prepare_portraits(crops, crop_landmarks)
        networks = [settled(part, images.device) for part in (self.embedder, self.generator, self.discriminator)]
        total = default_steps(len(crops)) if steps is None else steps
        with self.progress_bar(total=total) as progress:

            def report(step, steps, preview, losses):
                progress.update(step - progress.n)
                if callback is None:
                    return None
                preview = None if preview is None else self.image_processor.postprocess(preview[None])[0]
                return callback(step, steps, preview, losses)

            tuned = fine_tune(
                *networks,
                images,
                drawings,
                points,
                mattes,
                content or load_content(),
                kind=kind,
                steps=total,
                callback=report,
                seed=seed,
            )
        generator = tuned.generator.to(self.generator.dtype, memory_format=torch.channels_last)
        return FsthIdentity(
            adain_parameters=tuned.adain_parameters.to(generator.dtype),
            sources=self.encode_sources(generator, images, drawings, points, mattes),
            landmarks=points[0, 0].cpu().numpy(),
            boxes=boxes or [],
            generator=generator if tuned.adapter is None else None,
            crops=crops,
            crop_landmarks=crop_landmarks,
            base_model=self.model_name,
            base_revision=self.model_revision,
            fingerprint=fingerprint(self.generator),
            steps=tuned.best_step,
            base_generator=self.generator,
            history=tuned.history,
            adapter=tuned.adapter,
        )

    def _check_discriminator(self) -> None:
        if self.discriminator is None:
            raise FsthError(
                "Fine-tuning needs the model's discriminator, and this pipeline has none: load it without "
                "`discriminator=None`."
            )
