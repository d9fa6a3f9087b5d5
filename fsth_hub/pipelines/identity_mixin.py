"""How a pipeline makes identities by fine-tuning, and binds those that were made."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from ..finetuning.loop import default_steps, fine_tune, load_content
from ..finetuning.lora import add_lora, lora_parameters, merge, rank_of
from ..models.cropping import CropBox
from ..models.errors import FsthError
from ..models.modeling_fsth import FsthGenerator, FsthPreTrainedModel, is_hooked
from .identity import FsthIdentity, FsthTunedPerson, describe, fingerprint
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
    ) -> FsthTunedPerson:
        """[`FsthIdentity.from_pretrained`], whose arguments these are, and [`~FsthPipeline.bind`] in one."""
        options = {"revision": revision, "token": token, "cache_dir": cache_dir}
        return self.bind(FsthIdentity.from_pretrained(name, local_files_only=local_files_only, **options))

    def bind(self, identity: FsthIdentity) -> FsthTunedPerson:
        """
        Make an identity ready to be driven; several can share this pipeline, whose networks stay as they are.

        Raises:
            FsthError: It was fine-tuned from another model, or its tensors do not fit the model's.
        """
        if identity.fingerprint != fingerprint(self.generator):
            raise FsthError(
                f"The identity '{identity.name}' was fine-tuned from another model "
                f"({describe(identity.base_model, identity.base_revision)}) than the one that is loaded "
                f"({describe(self.model_name, self.model_revision)}); load that model, or fine-tune again."
            )
        if identity.method == "lora":
            expected = lora_parameters(add_lora(self.generator, rank_of(identity.weights)))
        else:
            expected = self.generator.state_dict()
        shapes = {name: tensor.shape for name, tensor in identity.weights.items()}
        if shapes != {name: tensor.shape for name, tensor in expected.items()} or (
            identity.adain_parameters.shape[1] != sum(self.generator.adain_sizes)
        ):
            raise FsthError(
                f"The identity '{identity.name}' is damaged: its weights do not fit the model's. Make or fetch it "
                "again."
            )
        if identity.method == "lora":
            generator = merge(self.generator, identity.weights)
        else:
            generator = copy.deepcopy(self.generator)
            generator.load_state_dict(identity.weights)
        return self._tuned_person(identity, generator, self.prepare_portraits(identity.crops, identity.crop_landmarks))

    def _tuned_person(
        self, identity: FsthIdentity, generator: FsthGenerator, inputs: list[torch.Tensor]
    ) -> FsthTunedPerson:
        """An identity with its generator and its portraits, as of [`~FsthPipeline.prepare_portraits`]."""
        return FsthTunedPerson.of(
            identity,
            adain_parameters=identity.adain_parameters.to(generator.device, generator.dtype),
            sources=self.encode_sources(generator, *inputs),
            landmarks=inputs[2][0, 0].cpu().numpy(),
            generator=generator if identity.method == "full" else None,
            base_generator=self.generator,
        )

    def fine_tune(
        self,
        portraits: Portrait | Sequence[Portrait],
        *,
        method: str = "full",
        steps: int | None = None,
        learning_rate: float | None = None,
        content: nn.Module | None = None,
        callback: Callable[[int, int, np.ndarray | None, dict[str, float]], None] | None = None,
        seed: int = 0,
        face_index: int = 0,
        crop: bool = True,
    ) -> FsthTunedPerson:
        """
        Fine-tune the model to a person (section 3.4); the pipeline's own networks stay as they are.

        ```python
        identity = pipe.fine_tune(["one.jpg", "two.jpg"])
        identity.save_pretrained("ada")
        pipe(pipe.load_identity("ada"), "driver.mp4").save("result.mp4")
        ```

        Args:
            portraits, face_index, crop: as in [`~FsthPipeline.embed`]; 1 to 64 portraits.
            method (`str`, *optional*, defaults to `"full"`):
                `"full"` tunes the generator itself, as the paper does, and keeps all its weights; `"lora"` tunes and
                keeps low-rank updates of its convolutions, about 1 MB with the bundled model. Either leaves its source
                skips as they are, and keeps crops of the head besides, 0.8 MB for each portrait at 512 pixels.
            steps (`int`, *optional*): At most so many; by default 50 for one portrait to 230 for thirty.
            learning_rate (`float`, *optional*): Adam's; by default the paper's 5e-5, or 3e-4 for LoRA.
            content (`nn.Module`, *optional*):
                A [`ContentLoss`]; by default over the hub's VGG19, or pixels alone where that cannot be fetched.
            callback (`Callable`, *optional*):
                Called after each step with its number, the number of steps, every tenth time a preview
                (256 x 256 x 3 uint8, otherwise `None`), and the loss terms. What it raises ends fine-tuning and
                reaches the caller; nothing is left then.
            seed (`int`, *optional*, defaults to 0): Of the order and deformations of the portraits.

        Raises:
            FsthError: A portrait or option cannot be used, the loss is not finite, or memory is too small.
        """
        self._check_discriminator()
        crops, landmarks, boxes = self.read_portraits(portraits, face_index, crop)
        options = {"method": method, "steps": steps, "learning_rate": learning_rate, "content": content}
        options |= {"callback": callback, "seed": seed}
        return self.fine_tune_crops(crops, landmarks, boxes=boxes, **options)

    def fine_tune_crops(
        self,
        crops: Sequence[np.ndarray],
        landmarks: Sequence[np.ndarray],
        *,
        boxes: list[CropBox] | None = None,
        method: str = "full",
        steps: int | None = None,
        learning_rate: float | None = None,
        content: nn.Module | None = None,
        callback: Callable[[int, int, np.ndarray | None, dict[str, float]], None] | None = None,
        seed: int = 0,
    ) -> FsthTunedPerson:
        """The same for head crops whose landmarks are known, as in [`~FsthPipeline.embed_crops`]."""
        self._check_discriminator()
        crops, crop_landmarks = to_one_size(crops, landmarks)
        inputs = self.prepare_portraits(crops, crop_landmarks)
        networks = [settled(part, inputs[0].device) for part in (self.embedder, self.generator, self.discriminator)]
        total = default_steps(len(crops)) if steps is None else steps
        with self.progress_bar(total=total) as progress:

            def report(step, steps, preview, terms):
                progress.update(step - progress.n)
                if callback is not None:
                    preview = None if preview is None else self.image_processor.postprocess(preview[None])[0]
                    callback(step, steps, preview, terms)

            tuned = fine_tune(
                *networks,
                *inputs,
                content or load_content(),
                method=method,
                steps=total,
                learning_rate=learning_rate,
                callback=report,
                seed=seed,
            )
        generator = tuned.generator.to(self.generator.dtype, memory_format=torch.channels_last)
        identity = FsthIdentity(
            method=method,
            weights=generator.state_dict() if tuned.lora is None else tuned.lora,
            adain_parameters=tuned.adain_parameters,
            crops=crops,
            crop_landmarks=crop_landmarks,
            boxes=boxes or [],
            base_model=self.model_name,
            base_revision=self.model_revision,
            fingerprint=fingerprint(self.generator),
            steps=tuned.best_step,
            history=tuned.history,
        )
        return self._tuned_person(identity, generator, inputs)

    def _check_discriminator(self) -> None:
        if self.discriminator is None:
            raise FsthError(
                "Fine-tuning needs the model's discriminator, and this pipeline has none: load it without "
                "`discriminator=None`."
            )
