"""Few-shot adversarial fine-tuning of generator and discriminator on one person (arXiv 1905.08233 v2, section 3.4).

The person's AdaIN parameters, psi' = P e, and their vector in the discriminator, w' = e, start from the embedding and
become parameters; embedder and projection are frozen, and there is no match loss. Works on networks and tensors alone.

The generator is tuned in full, as in the paper, or by LoRA: low-rank updates of its convolutions. Its source skips
stay frozen: the heads that are moved within still frames, for want of other pictures, are not how heads move, and the
flow of hair, shoulders and background would be learned from them (training/LOG.md, entry 7).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate.utils import find_executable_batch_size
from safetensors import SafetensorError
from torch import nn

from ..landmarks.likeness import warn_of_strangers
from ..models.errors import FsthError, FsthMemoryError
from ..models.facial_components import FsthFacialComponents
from ..models.modeling_fsth import FsthDiscriminator, FsthEmbedder, FsthGenerator
from .components import ComponentTuner
from .episodes import Episodes, EpisodeSampler
from .feature_networks import FaceFeatures, VGGFeatures, load_weights
from .lora import Lora, get_lora, merge
from .losses import ADVERSARIAL_TERMS, CONTENT_TERMS, ContentLoss, Judgement, discriminator_loss, weigh, with_weights
from .names import METHODS
from .rehearsal import Rehearsal
from .trainable import BETAS, autocast, trainable_copy, tunable_copy


MAX_PORTRAITS = 64
BATCH_SIZE = 2  # frames a step; the paper takes 8, for which a processor needs four times as long
# Too few steps leave an identity gap, too many forget how faces move, which held-out deformations of one portrait do
# not tell (training/LOG.md, entry 5); the authors later advised 125 for one portrait and 230 for thirty.
STEPS_FOR_ONE, STEPS_FOR_MANY, MANY = 50, 230, 30
# The paper's, and for LoRA the highest at which one portrait is not learned by heart (training/LOG.md, Adapters).
LEARNING_RATES = {"full": 5e-5, "lora": 3e-4}
DISCRIMINATOR_LR = 2e-4
# The bundled discriminator is hardly trained and has never met w' = e, so that its first scores are far off.
ADVERSARIAL_WEIGHT = 0.1
# Beside the paper's: mouth and eyes enlarged, and LPIPS where the VGG has its heads. The bundled networks were
# meta-trained with them, and without them a person gained half as much in LPIPS (training/LOG.md, entry 19).
CONTENT_WEIGHTS = {"lpips": 200.0, "parts": 0.4}
EVALUATE_EVERY = 10  # steps between evaluations on what is held out, and previews
PATIENCE = 5  # evaluations without improvement before it stops
BUNDLED_VGG = Path(__file__).parent / "weights" / "vgg16_relu4_3.safetensors"


@dataclass
class FineTuned:
    """
    Args:
        generator ([`FsthGenerator`]): a tuned float32 copy, in evaluation mode.
        adain_parameters (`torch.Tensor` of shape `(1, sum(adain_sizes))`): psi', tuned, float32.
        history (`list[dict]`): for each step its loss terms, and where it was evaluated the score `held_out`.
        best_step (`int`): the step whose weights these are; 0 where no step was better than none.
        lora (`dict`, *optional*): what [`merge`] makes the generator of, if that was not tuned in full.
        components ([`FsthFacialComponents`], *optional*): a tuned float32 copy, where there were some.
        component_lora (`dict`, *optional*): as `lora`, of these.
    """

    generator: FsthGenerator
    adain_parameters: torch.Tensor
    history: list[dict[str, float]]
    best_step: int
    lora: Lora | None = None
    components: FsthFacialComponents | None = None
    component_lora: Lora | None = None


class PixelLoss(ContentLoss):
    """Mean absolute difference of pixels: a content loss without a network, quick and less sharp."""

    def __init__(self):
        super().__init__(terms=with_weights(CONTENT_TERMS, {"pixel": 10}))


def load_content(vgg: str | Path | None = None, face_network: str | Path | None = None) -> ContentLoss:
    """
    The content loss over the given networks, the paper's terms and [`CONTENT_WEIGHTS`]; by default over the VGG16 of
    this package, which has the heads of LPIPS. Without heads that term is left out.

    Args:
        vgg, face_network (`str` or `Path`, *optional*):
            Safetensors files or hub repositories, as of [`ContentLoss.load`]; the paper's VGG19 is
            "timm/vgg19.tv_in1k".

    Raises:
        FsthError: A network that was given cannot be loaded.
    """
    try:
        backbone = VGGFeatures(load_weights(vgg or BUNDLED_VGG))
        face = FaceFeatures(load_weights(face_network)) if face_network else None
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:  # all that a hub or file can raise
        given = " and ".join(str(name) for name in (vgg or BUNDLED_VGG, face_network) if name)
        raise FsthError(f"The content loss cannot be loaded from {given}: {error}") from error
    lpips = CONTENT_WEIGHTS["lpips"] if len(backbone.heads) else 0.0
    return ContentLoss(backbone, face, with_weights(CONTENT_TERMS, CONTENT_WEIGHTS | {"lpips": lpips}))


def with_heads(content: nn.Module) -> VGGFeatures:
    """The backbone of a content loss where it has the heads of LPIPS, or else the package's own."""
    backbone = getattr(content, "backbone", None)
    return backbone if len(getattr(backbone, "heads", ())) else VGGFeatures(load_weights(BUNDLED_VGG))


def default_steps(num_portraits: int) -> int:
    """50 for one portrait, 230 for thirty and more, in between by the logarithm of their number."""
    share = math.log(min(num_portraits, MANY)) / math.log(MANY)
    return round(STEPS_FOR_ONE + share * (STEPS_FOR_MANY - STEPS_FOR_ONE))


def generate_targets(generator: FsthGenerator, adain_parameters: torch.Tensor, episodes: Episodes) -> torch.Tensor:
    """The target frames of some episodes as the generator makes them, B x 3 x H x W."""
    images, drawings, landmarks = episodes.images, episodes.landmark_images, episodes.landmarks
    sources = None
    if generator.config.source_skips:
        parts = (images, drawings, landmarks, episodes.mattes)
        sources = generator.encode_sources(*(part[:, 1:] for part in parts))
    return generator(drawings[:, 0], adain_parameters.expand(len(images), -1), landmarks[:, 0], sources).images


@torch.no_grad()
def evaluate(generator: FsthGenerator, adain_parameters, content: nn.Module, held_out: list[Episodes]):
    """Mean content loss on what is held out, and the first of its frames (3 x H x W in [-1, 1])."""
    generator.eval()
    total, preview = 0.0, None
    for episodes in held_out:
        fake = generate_targets(generator, adain_parameters, episodes)
        preview = fake[0].float().clamp(-1, 1) if preview is None else preview
        total += sum(content(fake, episodes.images[:, 0], episodes.landmarks[:, 0]).values()).item()
    generator.train()
    return total / len(held_out), preview


class Tuner:
    """
    Copies of the networks on their way to one person, and the best that they have been.

    Args:
        generator ([`FsthGenerator`]): of [`tunable_copy`].
        discriminator ([`FsthDiscriminator`]): of [`trainable_copy`].
        adain_parameters, person (`torch.Tensor` of shape `(1, ...)`): where psi' and w' start, float32.
        content (`nn.Module`): the content loss, on the device.
        sampler ([`EpisodeSampler`]): of the person's portraits.
        learning_rate, discriminator_lr, adversarial_weight (`float`): as in [`fine_tune`].
        components ([`ComponentTuner`], *optional*): which takes its steps beside the generator.
        rehearsal ([`Rehearsal`], *optional*): what the generator is not to forget.
    """

    def __init__(
        self,
        generator: FsthGenerator,
        discriminator: FsthDiscriminator,
        adain_parameters: torch.Tensor,
        person: torch.Tensor,
        content: nn.Module,
        sampler: EpisodeSampler,
        learning_rate: float,
        discriminator_lr: float,
        adversarial_weight: float,
        components: ComponentTuner | None = None,
        rehearsal: Rehearsal | None = None,
    ):
        self.components, self.rehearsal = components, rehearsal
        self.generator, self.discriminator, self.content, self.sampler = generator, discriminator, content, sampler
        self.adain_parameters, self.person = (nn.Parameter(part.clone()) for part in (adain_parameters, person))
        tuned = [parameter for parameter in generator.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.Adam([*tuned, self.adain_parameters], learning_rate, BETAS)
        judging = [*discriminator.parameters(), self.person]
        self.discriminator_optimizer = torch.optim.Adam(judging, discriminator_lr, BETAS)
        adversarial, matching, _ = with_weights(ADVERSARIAL_TERMS, {"adversarial": adversarial_weight})
        self.adversarial_terms = (matching, adversarial)
        self.device = person.device
        self.best_score, self.best_step, self.best = math.inf, 0, None

    def step(self, episodes: Episodes) -> dict[str, float]:
        """One update of the generator, psi', the discriminator and the components; gives the loss terms."""
        real, drawing = episodes.images[:, 0], episodes.landmark_images[:, 0]
        people = self.person.expand(len(real), -1)

        # generator: its gradients must not leak into the discriminator
        self.discriminator.requires_grad_(False)
        with autocast(self.device):
            fake = generate_targets(self.generator, self.adain_parameters, episodes)
            terms = self.content(fake, real, episodes.landmarks[:, 0])
            with torch.no_grad():
                real_features = self.discriminator(real, drawing, people).features
            judged = self.discriminator(fake, drawing, people.detach())
            terms |= weigh(self.adversarial_terms, Judgement(judged.scores, judged.features, real_features))
            if self.rehearsal is not None:
                terms["rehearsal"] = self.rehearsal.term(self.generator, self.adain_parameters)
            loss = sum(terms.values())
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

        # discriminator: both at once, for every pass advances the power iteration
        self.discriminator.requires_grad_(True)
        with autocast(self.device):
            pairs = torch.cat([real, fake.detach()]), drawing.repeat(2, 1, 1, 1), people.repeat(2, 1)
            terms["discriminator"] = discriminator_loss(*self.discriminator(*pairs).scores.chunk(2))
        terms["discriminator"].backward()
        self.discriminator_optimizer.step()
        self.discriminator_optimizer.zero_grad()
        values = {name: term.item() for name, term in terms.items()}
        return values if self.components is None else values | self.components.step()

    def evaluate(self, step: int) -> tuple[float, torch.Tensor]:
        """Score and preview of [`evaluate`]; the weights of the best step are kept."""
        with autocast(self.device):
            score, preview = evaluate(self.generator, self.adain_parameters, self.content, self.sampler.held_out)
        if self.best is None or score < self.best_score:
            weights = {name: tensor.clone() for name, tensor in self.generator.state_dict().items()}
            self.best_score, self.best_step, self.best = score, step, (weights, self.adain_parameters.data.clone())
        if self.components is not None:
            self.components.evaluate(step)
        return score, preview

    def run(self, batch_size: int, steps: int, callback: Callable | None) -> list[dict[str, float]]:
        """Take the steps, or fewer where they have long not helped; gives the history, see [`FineTuned`]."""
        history = [{"step": 0, "held_out": self.evaluate(0)[0]}]
        for step in range(1, steps + 1):
            values, preview = self.step(self.sampler.sample(batch_size)), None
            if not all(math.isfinite(value) for value in values.values()):
                rate = self.optimizer.param_groups[0]["lr"]
                raise FsthError(
                    f"The loss is not finite at step {step}: fine-tune with a learning_rate lower than {rate:g}."
                )
            if step % EVALUATE_EVERY == 0 or step == steps:
                values["held_out"], preview = self.evaluate(step)
            history.append({"step": step, **values})
            if callback is not None:
                callback(step, steps, preview, values)
            if step - self.best_step >= PATIENCE * EVALUATE_EVERY:
                break
        return history

    def best_generator(self) -> tuple[FsthGenerator, torch.Tensor]:
        """The generator and psi' as they were at their best."""
        weights, adain_parameters = self.best
        self.generator.load_state_dict(weights)
        return self.generator.eval().requires_grad_(False), adain_parameters


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
    components: FsthFacialComponents | None = None,
    crops: Sequence[torch.Tensor] = (),
    crop_landmarks: Sequence[torch.Tensor] = (),
    method: str = "full",
    steps: int | None = None,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    discriminator_lr: float = DISCRIMINATOR_LR,
    adversarial_weight: float = ADVERSARIAL_WEIGHT,
    callback: Callable[[int, int, torch.Tensor | None, dict[str, float]], None] | None = None,
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
        content (`nn.Module`): [`ContentLoss`], or what is called like it.
        components ([`FsthFacialComponents`], *optional*): to be tuned too, on the portraits as large as they are:
        crops (`Sequence` of `torch.Tensor` of shape `(3, size, size)`): these, in [-1, 1].
        crop_landmarks (`Sequence` of `torch.Tensor` of shape `(78, 2)`): their pixels.
        method (`str`, *optional*, defaults to `"full"`):
            `"full"` tunes the weights of the generator, `"lora"` low-rank updates of its convolutions; either leaves
            its source skips as they are.
        steps (`int`, *optional*): at most so many; by default by the number of portraits, [`default_steps`].
        batch_size (`int`, *optional*):
            Frames per step, halved where memory is too small; by default two, of a lone portrait one.
        learning_rate (`float`, *optional*): Adam's for the generator; by default by method, `LEARNING_RATES`.
        discriminator_lr (`float`): Adam's for the discriminator.
        adversarial_weight (`float`): of the discriminator's score; feature matching keeps the paper's 10.
        callback (`Callable`, *optional*):
            Called after each step with its number, the number of steps, every tenth time a preview (3 x H x W in
            [-1, 1], otherwise `None`), and the loss terms. What it raises ends fine-tuning and reaches the caller.
        seed (`int`, *optional*, defaults to 0): of all that is sampled.

    Raises:
        FsthError: Another method, too few or many portraits, a rate of nothing, or a loss that is not finite.
        FsthMemoryError: Memory is too small for one frame at a time.
    """
    num_portraits, device = images.shape[1], images.device
    check_options(method, num_portraits, steps, batch_size, learning_rate)
    steps = steps or default_steps(num_portraits)
    batch_size = batch_size or min(num_portraits, BATCH_SIZE)
    learning_rate = learning_rate or LEARNING_RATES[method]
    content = content.to(device, memory_format=torch.channels_last)
    vgg = None if components is None else with_heads(content).to(device, memory_format=torch.channels_last)

    with torch.no_grad():
        embeddings = embedder(images.to(embedder.dtype), landmark_images.to(embedder.dtype)).frame_embeddings
        embedding = embeddings.mean(dim=1)  # 1 x N
        adain_parameters = generator.project(embedding.to(generator.dtype)).float()
    warn_of_strangers(embeddings[0].float().cpu().numpy(), landmarks[0].float().cpu().numpy())

    def attempt(batch_size: int) -> FineTuned:
        inputs = images[0].float(), landmarks[0].float(), mattes[0].float()
        sampler, beside, rehearsal = EpisodeSampler(*inputs, seed), None, None
        if generator.config.source_skips:
            rehearsal = Rehearsal(generator, adain_parameters, *inputs, seed + 2)
        if components is not None:
            portraits = crops, crop_landmarks, sampler.train, sampler.kept
            beside = ComponentTuner(components, method, *portraits, vgg, seed)
        tuner = Tuner(
            tunable_copy(generator, method, seed),
            trainable_copy(discriminator),
            adain_parameters,
            embedding.float(),
            content,
            sampler,
            learning_rate,
            discriminator_lr,
            adversarial_weight,
            beside,
            rehearsal,
        )
        history = tuner.run(batch_size, steps, callback)
        tuned, tuned_parameters = tuner.best_generator()
        result = FineTuned(tuned, tuned_parameters, history, tuner.best_step)
        result.components = None if beside is None else beside.best_components()
        if method == "lora":
            result.lora = get_lora(tuned)
            result.generator = merge(generator, result.lora).float()
            if beside is not None:
                result.component_lora = get_lora(result.components)
                result.components = merge(components, result.component_lora).float()
        return result

    return with_less_memory(attempt, batch_size)


def check_options(
    method: str, num_portraits: int, steps: int | None, batch_size: int | None, learning_rate: float | None
) -> None:
    """Refuse (`FsthError`) what [`fine_tune`] cannot work with."""
    if method not in METHODS:
        raise FsthError(f"The method of fine-tuning is {' or '.join(METHODS)}, not '{method}'.")
    if not 1 <= num_portraits <= MAX_PORTRAITS:
        raise FsthError(f"Fine-tuning takes 1 to {MAX_PORTRAITS} portraits, not {num_portraits}.")
    if steps is not None and steps < 1:
        raise FsthError(f"Fine-tuning takes at least one step, not {steps}.")
    if batch_size is not None and batch_size < 1:
        raise FsthError(f"The batch_size must be at least one frame, not {batch_size}.")
    if learning_rate is not None and not 0 < learning_rate < math.inf:
        raise FsthError(f"The learning_rate must be a number above 0, such as 5e-5, not {learning_rate}.")


def with_less_memory(attempt: Callable[[int], FineTuned], batch_size: int) -> FineTuned:
    """What an attempt gives, begun anew with half as many frames a step as long as memory does not suffice."""
    size = batch_size

    def halve() -> int:
        nonlocal size
        size //= 2
        return size

    try:
        return find_executable_batch_size(attempt, batch_size, halve)()
    except RuntimeError as error:
        if size:  # another error
            raise
        raise FsthMemoryError(
            "Fine-tuning needs more memory, even with one frame at a time: use a larger GPU, or the CPU."
        ) from error
