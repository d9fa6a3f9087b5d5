"""Few-shot adversarial fine-tuning of generator and discriminator on one person (arXiv 1905.08233 v2, section 3.4).

The person's AdaIN parameters, psi' = P e, and their vector in the discriminator, w' = e, start from the embedding and
become parameters; embedder and projection rest, and there is no match loss. Works on networks and tensors alone.

The generator is tuned in full, as in the paper, or through an adapter: low-rank updates of its convolutions. Its
source skips rest: the heads that are moved within still frames, for want of other pictures, are not how heads move,
and the flow of hair, shoulders and background would be learned from them (training/LOG.md, entry 7).
"""

import copy
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn

from . import losses
from .adapter import Adapter, add_lora, get_adapter, merge, start_lora
from .device import default_dtype
from .episodes import Episodes, make_episodes
from .errors import FsthError, FsthMemoryError, FsthWarning
from .modeling_fsth import FsthDiscriminator, FsthEmbedder, FsthGenerator


KINDS = ("full", "adapter")
MAX_PORTRAITS = 64
BATCH_SIZE = 2  # frames a step; the paper takes 8, for which a processor needs four times as long
# Too few steps leave an identity gap, too many forget how faces move. Later the authors advised 125 for one, 230 for
# thirty; here what one frame has to teach is learned sooner, and what is held out, the same frame deformed, does not
# tell when it is (256 pixels, LPIPS after 0, 40, 80, 120 steps: 0.0805, 0.0750, 0.0759, 0.0772).
STEPS_FOR_ONE, STEPS_FOR_MANY, MANY = 50, 230, 30
# The paper's. At 2e-4 two of three people whom the bundled model has not seen came out worse than untuned (40 steps on
# one portrait, LPIPS 0.0802 to 0.0839, 0.0750 to 0.0799, 0.1494 to 0.1457), at 5e-5 one (0.0809, 0.0725, 0.1453).
GENERATOR_LR, DISCRIMINATOR_LR = 5e-5, 2e-4
# LPIPS after 50 steps on one portrait, 10 frames, untuned, in full, by an adapter at 3e-4 and at 1e-3: id016 0.0741,
# 0.0725, 0.0720, 0.0820; id005 0.0793, 0.0823, 0.0829 and not better at 1e-3 either. There the portrait is learned by
# heart: deformed, which is what is held out, it comes nearer than in full (14.8 for 16.6), and other frames go astray.
ADAPTER_LR = 3e-4
# The bundled discriminator is hardly trained and has never met w' = e, so that its first scores are far off: with a
# weight of 1 frames came out slightly worse (0.0443) than with 0 (0.0437).
ADVERSARIAL_WEIGHT = 0.1
BETAS = (0.5, 0.999)
EVALUATE_EVERY = 10  # steps between looks at what is held out, and previews
PATIENCE = 5  # looks without improvement before it stops
HELD_OUT_DEFORMATIONS = 4
VGG19 = "timm/vgg19.tv_in1k"

# How far a portrait's embedding may lie from the mean of the others, in lengths of that. With the bundled model the
# frames of one clip stay below 0.03, and three quarters of all pairs of people are beyond this; landmarks do not tell.
SAME_PERSON = 0.06


@dataclass
class FineTuned:
    """
    Args:
        generator ([`FsthGenerator`]): a tuned float32 copy, in evaluation mode.
        adain_parameters (`torch.Tensor` of shape `(1, sum(adain_sizes))`): psi', tuned, float32.
        history (`list[dict]`): for each step its loss terms, and where it was looked at the score `held_out`.
        best_step (`int`): the step whose weights these are; 0 where no step was better than none.
        adapter (`dict`, *optional*): what [`merge`] makes the generator of, if that was not tuned in full.
    """

    generator: FsthGenerator
    adain_parameters: torch.Tensor
    history: list[dict[str, float]]
    best_step: int
    adapter: Adapter | None = None


class PixelLoss(nn.Module):
    """Mean absolute difference of pixels: the content loss where no pretrained network is at hand."""

    def forward(self, fake: torch.Tensor, real: torch.Tensor, landmarks: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"pixel": 10 * losses.content_loss([fake], [real])}


def load_content(vgg: str | Path | None = None, face_network: str | Path | None = None) -> nn.Module:
    """
    The content loss: [`ContentLoss`] over the given networks, or over the hub's VGG19 if none is given, or, with a
    warning, [`PixelLoss`] where that cannot be fetched.

    Args:
        vgg, face_network (`str` or `Path`, *optional*): safetensors files or hub repositories, see [`ContentLoss`].

    Raises:
        FsthError: A network that was given cannot be loaded.
    """
    try:
        return losses.ContentLoss(vgg or VGG19, face_network)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:  # all that a hub or file can raise
        given = " and ".join(str(name) for name in (vgg, face_network) if name)
        if given:
            raise FsthError(f"The content loss cannot be loaded from {given}: {error}") from error
    warnings.warn(
        f"{VGG19} cannot be fetched: fine-tuning compares pixels and the discriminator's features alone, which keeps "
        "less detail. Give the weights of a VGG for better results.",
        stacklevel=2,
    )
    return PixelLoss()


def default_steps(num_portraits: int) -> int:
    """50 for one portrait, 230 for thirty and more, in between by the logarithm of their number."""
    share = math.log(min(num_portraits, MANY)) / math.log(MANY)
    return round(STEPS_FOR_ONE + share * (STEPS_FOR_MANY - STEPS_FOR_ONE))


def warn_of_strangers(embeddings: torch.Tensor) -> None:
    """Warn if a portrait's embedding (T x N) is so unlike the others' that it must be somebody else's."""
    if len(embeddings) < 2:
        return
    others = (embeddings.sum(dim=0) - embeddings) / (len(embeddings) - 1)  # T x N
    distances = (embeddings - others).norm(dim=1) / others.norm(dim=1)
    if distances.max() > SAME_PERSON:
        number = distances.argmax().item() + 1
        warnings.warn(
            f"Portrait {number} seems to show another person than the other portraits: fine-tuning would mix them.",
            FsthWarning,
            stacklevel=3,
        )


def draw_targets(generator: FsthGenerator, adain_parameters: torch.Tensor, episodes: Episodes) -> torch.Tensor:
    """The frames of some episodes as the generator draws them, B x 3 x H x W."""
    images, drawings, landmarks = episodes.images, episodes.landmark_images, episodes.landmarks
    sources = None
    if generator.config.source_skips:
        parts = (images, drawings, landmarks, episodes.mattes)
        sources = generator.encode_sources(*(part[:, 1:] for part in parts))
    return generator(drawings[:, 0], adain_parameters.expand(len(images), -1), landmarks[:, 0], sources).images


def trainable_copy(network: nn.Module) -> nn.Module:
    return copy.deepcopy(network).float().to(memory_format=torch.channels_last).train().requires_grad_(True)


@torch.no_grad()
def evaluate(generator: FsthGenerator, adain_parameters, content: nn.Module, held_out: list[Episodes]):
    """Mean content loss on what is held out, and the first of its frames (3 x H x W in [-1, 1])."""
    generator.eval()
    total, preview = 0.0, None
    for episodes in held_out:
        fake = draw_targets(generator, adain_parameters, episodes)
        preview = fake[0].float().clamp(-1, 1) if preview is None else preview
        total += sum(content(fake, episodes.images[:, 0], episodes.landmarks[:, 0]).values()).item()
    generator.train()
    return total / len(held_out), preview


def fine_tune(
    embedder: FsthEmbedder,
    generator: FsthGenerator,
    discriminator: FsthDiscriminator,
    images: torch.Tensor,
    landmark_images: torch.Tensor,
    landmarks: torch.Tensor,
    mattes: torch.Tensor,
    content: nn.Module,
    *,
    kind: str = "full",
    steps: int | None = None,
    batch_size: int | None = None,
    generator_lr: float | None = None,
    discriminator_lr: float = DISCRIMINATOR_LR,
    adversarial_weight: float = ADVERSARIAL_WEIGHT,
    callback: Callable[[int, int, torch.Tensor | None, dict[str, float]], bool | None] | None = None,
    seed: int = 0,
) -> FineTuned:
    """
    Tune copies of generator and discriminator to one person; the given networks stay as they are.

    Args:
        embedder, generator, discriminator: meta-trained, of any precision, all on one device.
        images (`torch.Tensor` of shape `(1, T, 3, height, width)`): 1 to 64 portraits of the person, in [-1, 1].
        landmark_images (`torch.Tensor` of the same shape): their landmark drawings in [-1, 1].
        landmarks (`torch.Tensor` of shape `(1, T, 78, 2)`): pixels, x then y, NaN where absent.
        mattes (`torch.Tensor` of shape `(1, T, 1, height, width)`): how much of each pixel is the figure, 0 to 1.
        content (`nn.Module`): [`ContentLoss`], [`PixelLoss`], or what is called like them.
        kind (`str`, *optional*, defaults to `"full"`):
            `"full"` tunes the weights of the generator, `"adapter"` low-rank updates of its convolutions; either
            leaves its source skips as they are.
        steps (`int`, *optional*): at most so many; by default by the number of portraits, [`default_steps`].
        batch_size (`int`, *optional*): frames per step; by default two, of a lone portrait one.
        generator_lr, discriminator_lr (`float`): Adam's rates; the generator's by default by kind.
        adversarial_weight (`float`): of the discriminator's score; feature matching keeps the paper's 10.
        callback (`Callable`, *optional*):
            Called after each step with its number, the number of steps, every tenth time a preview (3 x H x W in
            [-1, 1], otherwise `None`), and the loss terms. `False` cancels.
        seed (`int`, *optional*, defaults to 0): of all that is drawn at random.

    Raises:
        FsthError: Another kind, too few or many portraits, a loss that is not finite, too little memory, or cancelled.
    """
    if kind not in KINDS:
        raise FsthError(f"Fine-tuning is of the kind {' or '.join(KINDS)}, not '{kind}'.")
    num_portraits = images.shape[1]
    if not 1 <= num_portraits <= MAX_PORTRAITS:
        raise FsthError(f"Fine-tuning takes 1 to {MAX_PORTRAITS} portraits, not {num_portraits}.")
    steps = default_steps(num_portraits) if steps is None else steps
    if steps < 1:
        raise FsthError(f"Fine-tuning takes at least one step, not {steps}.")
    device = images.device
    batch_size = batch_size or min(num_portraits, BATCH_SIZE)
    generator_lr = generator_lr or {"full": GENERATOR_LR, "adapter": ADAPTER_LR}[kind]
    content = content.to(device, memory_format=torch.channels_last)
    dtype = default_dtype(device)

    with torch.no_grad():
        embeddings = embedder(images.to(embedder.dtype), landmark_images.to(embedder.dtype)).frame_embeddings
        embedding = embeddings.mean(dim=1)  # 1 x N
        start = generator.project(embedding.to(generator.dtype)).float()
    warn_of_strangers(embeddings[0].float())
    images, landmarks, mattes = images[0].float(), landmarks[0].float(), mattes[0].float()

    def attempt(batch_size: int) -> FineTuned:
        rng = torch.Generator().manual_seed(seed)
        if kind == "adapter":
            tuned = add_lora(generator).train()
            start_lora(tuned, torch.Generator().manual_seed(seed))
        else:
            tuned = trainable_copy(generator)
            if generator.config.source_skips:
                tuned.source_skips.requires_grad_(False)
        judge = trainable_copy(discriminator)
        adain_parameters, person = (nn.Parameter(part.detach().clone()) for part in (start, embedding.float()))
        trained = [parameter for parameter in tuned.parameters() if parameter.requires_grad]
        tuned_optimizer = torch.optim.Adam([*trained, adain_parameters], generator_lr, BETAS)
        judge_optimizer = torch.optim.Adam([*judge.parameters(), person], discriminator_lr, BETAS)

        train = list(range(num_portraits))
        own = num_portraits < 3  # too few to hold one out
        kept = [index % num_portraits for index in range(HELD_OUT_DEFORMATIONS)]
        if not own:
            middle, last = num_portraits // 2, num_portraits // 2 + max(1, num_portraits // 8)
            kept, train = train[middle:last], train[:middle] + train[last:]
        held_rng = torch.Generator().manual_seed(seed + 1)
        held_out = [make_episodes(images, landmarks, mattes, [index], held_rng, own) for index in kept]

        def score():
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                return evaluate(tuned, adain_parameters, content, held_out)

        def snapshot():
            return {name: tensor.clone() for name, tensor in tuned.state_dict().items()}, adain_parameters.data.clone()

        best_score, preview = score()
        best_step, best = 0, snapshot()
        history = [{"step": 0, "held_out": best_score}]
        queue = []
        for step in range(1, steps + 1):
            while len(queue) < batch_size:
                queue += [train[position] for position in torch.randperm(len(train), generator=rng).tolist()]
            targets, queue = queue[:batch_size], queue[batch_size:]
            episodes = make_episodes(images, landmarks, mattes, targets, rng)
            real, drawing = episodes.images[:, 0], episodes.landmark_images[:, 0]
            people = person.expand(len(real), -1)

            # generator: its gradients must not leak into the discriminator
            judge.requires_grad_(False)
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                fake = draw_targets(tuned, adain_parameters, episodes)
                terms = content(fake, real, episodes.landmarks[:, 0])
                with torch.no_grad():
                    real_features = judge(real, drawing, people).features
                judged = judge(fake, drawing, people.detach())
                matching = losses.feature_matching_loss(judged.features, real_features)
                terms["feature_matching"] = losses.FEATURE_MATCHING_WEIGHT * matching
                terms["adversarial"] = adversarial_weight * losses.adversarial_loss(judged.scores)
                loss = sum(terms.values())
            loss.backward()
            tuned_optimizer.step()
            tuned_optimizer.zero_grad()

            # discriminator: both at once, for every pass advances the power iteration
            judge.requires_grad_(True)
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                judged = judge(torch.cat([real, fake.detach()]), drawing.repeat(2, 1, 1, 1), people.repeat(2, 1))
                terms["discriminator"] = losses.discriminator_loss(*judged.scores.chunk(2))
            terms["discriminator"].backward()
            judge_optimizer.step()
            judge_optimizer.zero_grad()

            values = {name: term.item() for name, term in terms.items()}
            if not all(math.isfinite(value) for value in values.values()):
                raise FsthError(f"The loss is not finite at step {step}; fine-tune at a lower rate.")
            preview = None
            if step % EVALUATE_EVERY == 0 or step == steps:
                values["held_out"], preview = score()
                if values["held_out"] < best_score:
                    best_score, best_step, best = values["held_out"], step, snapshot()
            history.append({"step": step, **values})
            if callback is not None and callback(step, steps, preview, values) is False:
                raise FsthError("Fine-tuning was cancelled.")
            if step - best_step >= PATIENCE * EVALUATE_EVERY:
                break
        tuned.load_state_dict(best[0])
        if kind == "adapter":
            adapter = get_adapter(tuned)
            return FineTuned(merge(generator, adapter).float(), best[1], history, best_step, adapter)
        return FineTuned(tuned.eval().requires_grad_(False), best[1], history, best_step)

    for size in dict.fromkeys((batch_size, max(1, batch_size // 2))):
        try:
            return attempt(size)
        except torch.OutOfMemoryError:
            pass  # the half is tried outside, where the failed attempt's tensors are gone
        torch.cuda.empty_cache()
    raise FsthMemoryError(
        f"Fine-tuning needs more memory, even with {size} frames at a time: use a larger GPU, or the CPU."
    )
