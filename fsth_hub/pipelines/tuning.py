"""A model fine-tuned to a person, and an identity made ready to be driven by the model that it was tuned from."""

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from ..finetuning.loop import default_steps, fine_tune, load_content
from ..finetuning.lora import add_lora, lora_parameters, merge, rank_of
from ..models.cropping import CropBox
from ..models.errors import FsthError
from ..models.modeling_fsth import FsthGenerator
from .identity import FsthIdentity, FsthTunedPerson, describe, fingerprint
from .portraits import settled, to_one_size


if TYPE_CHECKING:
    from .pipeline_fsth import FsthPipeline


def bind(pipe: "FsthPipeline", identity: FsthIdentity) -> FsthTunedPerson:
    """As [`FsthPipeline.bind`]."""
    if identity.fingerprint != fingerprint(pipe.generator):
        raise FsthError(
            f"The identity '{identity.name}' was fine-tuned from another model "
            f"({describe(identity.base_model, identity.base_revision)}) than the one that is loaded "
            f"({describe(pipe.model_name, pipe.model_revision)}); load that model, or fine-tune again."
        )
    if identity.method == "lora":
        expected = lora_parameters(add_lora(pipe.generator, rank_of(identity.weights)))
    else:
        expected = pipe.generator.state_dict()
    shapes = {name: tensor.shape for name, tensor in identity.weights.items()}
    if shapes != {name: tensor.shape for name, tensor in expected.items()} or (
        identity.adain_parameters.shape[1] != sum(pipe.generator.adain_sizes)
    ):
        raise FsthError(
            f"The identity '{identity.name}' is damaged: its weights do not fit the model's. Make or fetch it again."
        )
    if identity.method == "lora":
        generator = merge(pipe.generator, identity.weights)
    else:
        generator = copy.deepcopy(pipe.generator)
        generator.load_state_dict(identity.weights)
    return _tuned_person(pipe, identity, generator, pipe.prepare_portraits(identity.crops, identity.crop_landmarks))


def tune(
    pipe: "FsthPipeline",
    crops: Sequence[np.ndarray],
    landmarks: Sequence[np.ndarray],
    boxes: list[CropBox] | None,
    *,
    method: str,
    steps: int | None,
    learning_rate: float | None,
    content: nn.Module | None,
    callback: Callable[[int, int, np.ndarray | None, dict[str, float]], None] | None,
    seed: int,
) -> FsthTunedPerson:
    """As [`FsthPipeline.fine_tune_crops`]."""
    crops, crop_landmarks = to_one_size(crops, landmarks)
    inputs = pipe.prepare_portraits(crops, crop_landmarks)
    networks = [settled(part, inputs[0].device) for part in (pipe.embedder, pipe.generator, pipe.discriminator)]
    total = default_steps(len(crops)) if steps is None else steps
    with pipe.progress_bar(total=total) as progress:

        def report(step, steps, preview, terms):
            progress.update(step - progress.n)
            if callback is not None:
                preview = None if preview is None else pipe.image_processor.postprocess(preview[None])[0]
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
    generator = tuned.generator.to(pipe.generator.dtype, memory_format=torch.channels_last)
    identity = FsthIdentity(
        method=method,
        weights=generator.state_dict() if tuned.lora is None else tuned.lora,
        adain_parameters=tuned.adain_parameters,
        crops=crops,
        crop_landmarks=crop_landmarks,
        boxes=boxes or [],
        base_model=pipe.model_name,
        base_revision=pipe.model_revision,
        fingerprint=fingerprint(pipe.generator),
        steps=tuned.best_step,
        history=tuned.history,
    )
    return _tuned_person(pipe, identity, generator, inputs)


def check_discriminator(pipe: "FsthPipeline") -> None:
    """Refuse (`FsthError`) to fine-tune without a discriminator."""
    if pipe.discriminator is None:
        raise FsthError(
            "Fine-tuning needs the model's discriminator, and this pipeline has none: load it without "
            "`discriminator=None`."
        )


def _tuned_person(
    pipe: "FsthPipeline", identity: FsthIdentity, generator: FsthGenerator, inputs: list[torch.Tensor]
) -> FsthTunedPerson:
    """An identity with its generator and its portraits, as of [`FsthPipeline.prepare_portraits`]."""
    return FsthTunedPerson.of(
        identity,
        adain_parameters=identity.adain_parameters.to(generator.device, generator.dtype),
        sources=pipe.encode_sources(generator, *inputs),
        landmarks=inputs[2][0, 0].cpu().numpy(),
        generator=generator if identity.method == "full" else None,
        base_generator=pipe.generator,
    )
