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
from ..models.facial_components import FsthFacialComponents
from ..models.image_processing_fsth import normalize
from ..models.modeling_fsth import FsthGenerator, FsthPreTrainedModel
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
    tuned = identity.component_weights is not None
    if tuned and (
        pipe.facial_components is None or identity.components_fingerprint != fingerprint(pipe.facial_components)
    ):
        raise FsthError(
            f"The identity '{identity.name}' was fine-tuned with other facial components than this pipeline has; load "
            "the model with its own, or fine-tune again."
        )
    fit = identity.adain_parameters.shape[1] == sum(pipe.generator.adain_sizes)
    fit = fit and weights_fit(pipe.generator, identity.method, identity.weights)
    if not fit or tuned and not weights_fit(pipe.facial_components, identity.method, identity.component_weights):
        raise FsthError(
            f"The identity '{identity.name}' is damaged: its weights do not fit the model's. Make or fetch it again."
        )
    components = None
    if identity.method == "lora":
        generator = merge(pipe.generator, identity.weights)
    else:
        generator = copy.deepcopy(pipe.generator)
        generator.load_state_dict(identity.weights)
        if tuned:
            components = copy.deepcopy(pipe.facial_components)
            components.load_state_dict(identity.component_weights)
    inputs = pipe.prepare_portraits(identity.crops, identity.crop_landmarks)
    return _tuned_person(pipe, identity, generator, components, inputs)


def weights_fit(network: FsthPreTrainedModel, method: str, weights: dict[str, torch.Tensor]) -> bool:
    """Whether an identity's weights have the names and shapes of a network's, or of its low-rank updates."""
    expected = network.state_dict() if method == "full" else lora_parameters(add_lora(network, rank_of(weights)))
    shapes, expected = ({name: tensor.shape for name, tensor in each.items()} for each in (weights, expected))
    return shapes == expected


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
    components, component_inputs = None, {}
    if pipe.facial_components is not None and pipe.generator.config.source_skips:
        device = inputs[0].device
        components = settled(pipe.facial_components, device)
        component_inputs = {
            "components": components,
            "crops": list(normalize(torch.from_numpy(crops).to(device).permute(0, 3, 1, 2).float())),
            "crop_landmarks": list(torch.from_numpy(crop_landmarks).to(device)),
        }
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
            **component_inputs,
            method=method,
            steps=total,
            learning_rate=learning_rate,
            callback=report,
            seed=seed,
        )
    generator = tuned.generator.to(pipe.generator.dtype, memory_format=torch.channels_last)
    own_components = component_weights = None
    if components is not None:
        own_components = tuned.components.to(pipe.facial_components.dtype, memory_format=torch.channels_last)
        component_weights = own_components.state_dict() if tuned.lora is None else tuned.component_lora
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
        component_weights=component_weights,
        components_fingerprint=None if components is None else fingerprint(pipe.facial_components),
        steps=tuned.best_step,
        history=tuned.history,
    )
    return _tuned_person(pipe, identity, generator, own_components, inputs)


def check_discriminator(pipe: "FsthPipeline") -> None:
    """Refuse (`FsthError`) to fine-tune without a discriminator."""
    if pipe.discriminator is None:
        raise FsthError(
            "Fine-tuning needs the model's discriminator, and this pipeline has none: load it without "
            "`discriminator=None`."
        )


def _tuned_person(
    pipe: "FsthPipeline",
    identity: FsthIdentity,
    generator: FsthGenerator,
    components: FsthFacialComponents | None,
    inputs: list[torch.Tensor],
) -> FsthTunedPerson:
    """An identity with its networks and its portraits, as of [`FsthPipeline.prepare_portraits`]."""
    return FsthTunedPerson.of(
        identity,
        adain_parameters=identity.adain_parameters.to(generator.device, generator.dtype),
        sources=pipe.encode_sources(generator, *inputs),
        landmarks=inputs[2][0, 0].cpu().numpy(),
        generator=generator if identity.method == "full" else None,
        components=components if identity.method == "full" else None,
        base_generator=pipe.generator,
        base_components=pipe.facial_components,
    )
