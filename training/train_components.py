"""Trains the facial components, mouth and eyes, on aligned crops of clips and stills, with Accelerate.

    python training/train_components.py SHARDS --stills STILLS --vgg VGG --output_dir RUN
    accelerate launch training/train_components.py SHARDS ...                        # all GPUs of a machine

A step trains both networks on a batch of their own: first against pixels and LPIPS alone, then against their
discriminators too, which judge the activations that LPIPS compares. What is sampled depends on seed, step and rank
alone, and a run goes on with --resume. The networks, as moving averages, are in OUTPUT_DIR/model.
"""

import argparse
import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import set_seed
from PIL import Image
from torch import nn
from torch.optim.swa_utils import AveragedModel


sys.path.insert(0, str(Path(__file__).parents[1]))  # runs from a checkout that is not installed

from fsth_hub.finetuning.components import perceptual_loss, pixel_loss
from fsth_hub.finetuning.feature_networks import VGGFeatures, load_weights, lpips_distance
from fsth_hub.finetuning.losses import hinge
from fsth_hub.models.errors import FsthError
from fsth_hub.models.facial_components import FsthComponentDiscriminators, FsthComponentsConfig, FsthFacialComponents
from training.checkpoints import (
    append_line,
    empty_folder,
    last_checkpoint,
    load_checkpoint,
    replace_folder,
    rewind_log,
    save_checkpoint,
    to_column,
)
from training.data.component_dataset import ComponentCrops


NETWORKS = ("mouth", "eye")
NUM_VALIDATION, VALIDATION_STILLS = 96, 0.25  # crops of each network, and the share of stills among them
NUM_SHOWN = 14
NUM_JUDGED = 4  # stages of the VGG16 that the discriminators judge: the fifth sees hardly more than the whole crop
FALL_FROM = 0.6  # of the steps, after which the rate falls
WINDOW = 2 / 3, 5 / 6  # of a crop's height and width, at random: what LPIPS and discriminators see of it in one step
AROUND = 0.05  # what a patch counts for that shows nothing of the opening, one that shows nothing else having 1


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add, switch = parser.add_argument, argparse.BooleanOptionalAction
    add("shards", type=Path, help="folder of training shards (training/prepare_dataset.py)")
    add("--stills", type=Path, help="folder of head crops with index.csv and landmarks.npz")
    add("--validation_shards", type=Path, help="shards of people who are not in the training shards")
    add("--output_dir", type=Path, required=True, help="checkpoints, logs, sheets and the model")
    add("--pretrained", type=Path, help="folder with facial_components/, and perhaps discriminators, to start from")
    add("--resume", action=switch, default=False, help="go on from the last checkpoint in OUTPUT_DIR")
    add("--vgg", required=True, help="VGG16 with the heads of LPIPS, safetensors file or hub repository")
    add("--max_steps", type=int, default=20_000)
    add("--max_minutes", type=float, default=math.inf, help="save and stop after so long")
    add("--mouth_batch_size", type=int, default=16, help="mouths per process and step; 0 leaves them as they are")
    add("--eye_batch_size", type=int, default=12, help="eyes per process and step; 0 leaves them as they are")
    add("--mouth_still_share", type=float, default=0.4, help="of the mouths that are stills")
    add("--eye_still_share", type=float, default=0.15, help="of the eyes that are stills, which hardly ever are shut")
    add("--learning_rate", type=float, default=4e-4)
    add(
        "--fall",
        action=switch,
        default=True,
        help="to nothing in the last 40 %% of the steps or minutes",
    )
    add("--ema_decay", type=float, default=0.998, help="of the averaged networks")
    add("--adversarial_start", type=int, default=2000, help="pixels and LPIPS alone up to and including this step")
    add("--pixel_weight", type=float, default=10.0, help="of the mean absolute difference")
    add("--inside_weight", type=float, default=0.7, help="of pixels within lips and lids, those around having 1")
    add("--lpips_weight", type=float, default=3.0)
    add("--adversarial_weight", type=float, default=0.1)
    add("--segmentation_weight", type=float, default=3.0, help="of opening, lips and iris where the masks have them")
    add("--mixed_precision", choices=["no", "bf16"], default="bf16")
    add("--save_every", type=int, default=500, help="steps between checkpoints and validations")
    add("--keep_checkpoints", type=int, default=2)
    add("--log_every", type=int, default=50)
    add("--seed", type=int, default=0)
    return parser.parse_args(argv)


class ComponentLearner(nn.Module):
    """The generators as one module whose forward pass distributed training sees."""

    def __init__(self, components: FsthFacialComponents):
        super().__init__()
        self.components = components

    def forward(self, network: str, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        inputs = (batch[name] for name in ("warped", "portraits", "masks", "portrait_masks"))
        return batch["warped"] + self.components.generate(network, *inputs).float()


def moving_average(decay: float):
    """For `AveragedModel`: over few steps at first, for the networks' start is not worth to be kept."""

    @torch.no_grad()
    def update(averaged, current, count):
        count = count.item()
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + count) / (10 + count)))

    return update


def sample_window(rng: np.random.Generator, size: int) -> tuple[slice, slice]:
    """Rows and columns of crops of this size, in multiples of 16."""
    sides = [math.ceil(size * share / 16) * 16 for share in WINDOW]
    corner = [int(rng.integers(size - side + 1)) for side in sides]
    return tuple(slice(first, first + side) for first, side in zip(corner, sides, strict=True))


def mean_loss(loss, openings: torch.Tensor, *scores: list[torch.Tensor]) -> torch.Tensor:
    """
    The mean over all patches and stages of what `loss` makes of their scores: patches at an opening count more, for
    around it the warped portrait is as real as can be.

    Args:
        openings (`torch.Tensor` of shape `(batch, 1, height, width)`): 0 to 1.
        scores (`list[torch.Tensor]`): of [`FsthComponentDiscriminators`], a list for each argument of `loss`.
    """
    total = 0.0
    for stage in zip(*scores, strict=True):
        weights = AROUND + F.adaptive_avg_pool2d(openings, stage[0].shape[-2:])
        total = total + (loss(*(patches.float() for patches in stage)) * weights).sum() / weights.sum()
    return total / len(scores[0])


def segmentation_loss(found: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the logits of masks (B x 2 x h x w) and the masks (B x 2 x H x W, 0 to 1)."""
    return F.binary_cross_entropy_with_logits(found.float(), F.interpolate(masks, found.shape[-2:], mode="area"))


def activations_of(vgg: VGGFeatures, crops: torch.Tensor) -> list[torch.Tensor]:
    """The last of each stage, which LPIPS compares and the discriminators judge."""
    return vgg(crops.contiguous(memory_format=torch.channels_last), last=True)[1]


def load_networks(args, vgg: VGGFeatures) -> tuple[FsthFacialComponents, FsthComponentDiscriminators]:
    """What training starts from, in float32."""
    if args.pretrained:
        components = FsthFacialComponents.from_pretrained(args.pretrained / "facial_components", dtype=torch.float32)
    else:
        components = FsthFacialComponents(FsthComponentsConfig())
    folder = args.pretrained and args.pretrained / "component_discriminators"
    if folder and folder.exists():
        return components, FsthComponentDiscriminators.from_pretrained(folder, dtype=torch.float32)
    # a pipeline has none
    changes = {"activation_channels": [head.shape[1] for head in vgg.heads][:NUM_JUDGED]}
    config = FsthComponentsConfig(**components.config.to_diff_dict() | changes)
    return components, FsthComponentDiscriminators(config)


@dataclass
class JudgedCrops:
    """What a discriminator has to learn from a batch of its network's crops.

    Args:
        activations (`list[torch.Tensor]`): of each stage that it judges, real crops before generated ones.
        condition (`tuple[torch.Tensor, torch.Tensor]`): warped crops and masks, of the real ones alone.
    """

    activations: list[torch.Tensor]
    condition: tuple[torch.Tensor, torch.Tensor]


class ComponentLosses:
    """The weighted terms of generators and discriminators; the networks may be wrapped by Accelerate."""

    def __init__(self, args, learner, discriminators, vgg: VGGFeatures, num_judged: int):
        self.args, self.learner, self.discriminators, self.vgg = args, learner, discriminators, vgg
        self.num_judged = num_judged

    def of_generator(
        self, network: str, batch: dict[str, torch.Tensor], window: tuple[slice, slice], heard: bool
    ) -> tuple[dict[str, torch.Tensor], JudgedCrops]:
        """Of a batch of crops; `heard` says whether the discriminators are."""
        args, (rows, columns) = self.args, window
        seen = {name: x[..., rows, columns] for name, x in batch.items()}
        condition = seen["warped"], seen["masks"]
        fake = self.learner(network, batch)
        with torch.no_grad():
            real_activations = activations_of(self.vgg, seen["images"])
        activations = activations_of(self.vgg, fake[..., rows, columns])
        terms = {
            "pixel": args.pixel_weight * pixel_loss(fake, batch["images"], batch["masks"], args.inside_weight),
            "lpips": args.lpips_weight * lpips_distance(activations, real_activations, self.vgg.heads),
        }
        if heard:
            self.discriminators.requires_grad_(False)
            scores, found = self.discriminators(network, activations[: self.num_judged], *condition)
            self.discriminators.requires_grad_(True)
            terms["adversarial"] = args.adversarial_weight * mean_loss(torch.neg, seen["masks"][:, :1], scores)
            terms["segmentation"] = args.segmentation_weight * segmentation_loss(found, seen["masks"])
        both = [torch.cat([real, fake.detach()]) for real, fake in zip(real_activations, activations, strict=True)]
        return terms, JudgedCrops(both[: self.num_judged], condition)

    def of_discriminator(self, network: str, judged: JudgedCrops) -> dict[str, torch.Tensor]:
        # real and generated at once, for every pass advances the power iteration
        warped, masks = judged.condition
        scores, found = self.discriminators(
            network, judged.activations, torch.cat([warped] * 2), torch.cat([masks] * 2)
        )
        real, fake = zip(*(patches.chunk(2) for patches in scores), strict=True)
        return {
            "discriminator": mean_loss(hinge, masks[:, :1], real, fake),
            "segmentation_of_real": segmentation_loss(found.chunk(2)[0], masks),
        }


@torch.no_grad()
def validate(learner, vgg, batch: dict, network: str, chunk: int = 24) -> tuple[dict[str, float], np.ndarray]:
    """LPIPS and pixels of the averaged network over those of the warp, and a sheet."""
    parts = [
        {name: x[start : start + chunk] for name, x in batch.items()}
        for start in range(0, len(batch["images"]), chunk)
    ]
    fake = torch.cat([learner(network, part) for part in parts]).clamp(-1, 1)
    scores = {}
    for name, images in (("", fake), ("_warped", batch["warped"])):
        pairs = zip(images.split(chunk), batch["images"].split(chunk), strict=True)
        distances = [perceptual_loss(vgg, *pair).item() for pair in pairs]
        scores[f"{network}_lpips{name}"] = float(np.mean(distances))
        scores[f"{network}_pixel{name}"] = F.l1_loss(images, batch["images"]).item()
    shown = np.linspace(0, len(fake) - 1, NUM_SHOWN).astype(int)
    columns = [to_column(x[shown]) for x in (batch["portraits"], batch["warped"], fake, batch["images"])]
    return scores, np.concatenate(columns, axis=1)


def save_model(folder: Path, components: FsthFacialComponents, discriminators: FsthComponentDiscriminators):
    partial = empty_folder(folder.with_suffix(".partial"))
    for name, model in (("facial_components", components), ("component_discriminators", discriminators)):
        half = {key: value.half() for key, value in model.state_dict().items()}
        model.save_pretrained(partial / name, state_dict=half)
    replace_folder(partial, folder)


def main(argv=None):
    args = parse_args(argv)
    started = time.monotonic()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    checkpoint = last_checkpoint(args.output_dir)
    if checkpoint and not args.resume:
        raise FsthError(f"{checkpoint} is there already: go on from it with --resume, or choose another --output_dir.")
    accelerator = Accelerator(mixed_precision=args.mixed_precision)
    device, rank = accelerator.device, accelerator.process_index
    batch_sizes = {"mouth": args.mouth_batch_size, "eye": args.eye_batch_size}

    # networks
    set_seed(args.seed)
    vgg = VGGFeatures(load_weights(args.vgg)).to(device, memory_format=torch.channels_last)
    components, discriminators = load_networks(args, vgg)
    num_judged = len(discriminators.config.activation_channels)
    still_shares = {"mouth": args.mouth_still_share, "eye": args.eye_still_share}
    trained = [network for network in components.config.networks if batch_sizes[network]]
    learner = ComponentLearner(components).to(device, memory_format=torch.channels_last)
    discriminators = discriminators.to(device, memory_format=torch.channels_last)
    average = AveragedModel(learner, multi_avg_fn=moving_average(args.ema_decay)).requires_grad_(False).eval()
    optimizers = [
        torch.optim.AdamW(module.parameters(), args.learning_rate, (0.5, 0.99)) for module in (learner, discriminators)
    ]
    everything = {"components": learner, "discriminators": discriminators, "average": average}
    states = dict(zip(("components_optimizer", "discriminators_optimizer"), optimizers, strict=True))
    first_step = 1
    if checkpoint:
        first_step = load_checkpoint(checkpoint, everything, states)["step"] + 1
        rewind_log(args.output_dir / "log.jsonl", first_step - 1)
        rewind_log(args.output_dir / "validation.jsonl", first_step - 1)
    bare = {"learner": learner, "discriminators": discriminators}
    learner, discriminators, *optimizers = accelerator.prepare(learner, discriminators, *optimizers)
    losses = ComponentLosses(args, learner, discriminators, vgg, num_judged)

    # data
    sizes = {network: components.config.size_of(network) for network in trained}
    crops = {
        network: ComponentCrops(network, sizes[network], args.shards, args.stills).to(device) for network in trained
    }
    held_out = {}
    if args.validation_shards and accelerator.is_main_process:
        for network in trained:
            own = ComponentCrops(network, sizes[network], args.validation_shards, args.stills, held_out=True).to(
                device
            )
            rng = np.random.default_rng(1)
            held_out[network] = own.batch(rng, NUM_VALIDATION, VALIDATION_STILLS if args.stills else 0, augment=False)
    accelerator.print(f"{ {n: len(c.images) for n, c in crops.items()} } crops, {time.monotonic() - started:.0f} s")

    totals: dict[str, list[float]] = {}
    seconds, minutes = time.monotonic(), 0.0
    for step in range(first_step, args.max_steps + 1):
        progress = max(step / args.max_steps, minutes / args.max_minutes if args.max_minutes else 1)
        fallen = min(1.0, max(0.0, (progress - FALL_FROM) / (1 - FALL_FROM))) if args.fall else 0.0
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = args.learning_rate * min(1, step / 100) * (1 - fallen) + 1e-6
        terms, judged = {}, {}
        for network in trained:
            rng = np.random.default_rng([args.seed, step, rank, NETWORKS.index(network)])
            batch = crops[network].batch(rng, batch_sizes[network], still_shares[network])
            window = sample_window(rng, sizes[network])
            with accelerator.autocast():
                own, judged[network] = losses.of_generator(network, batch, window, step > args.adversarial_start)
            terms |= {f"{network}_{name}": term for name, term in own.items()}
        accelerator.backward(sum(terms.values()))
        accelerator.clip_grad_norm_(learner.parameters(), 1.0)
        optimizers[0].step()
        optimizers[0].zero_grad()
        average.update_parameters(bare["learner"])
        discriminator_terms = {}
        with accelerator.autocast():
            for network, crops_of_both in judged.items():
                own = losses.of_discriminator(network, crops_of_both)
                discriminator_terms |= {f"{network}_{name}": term for name, term in own.items()}
        accelerator.backward(sum(discriminator_terms.values()))
        optimizers[1].step()
        optimizers[1].zero_grad()
        terms |= discriminator_terms

        names = list(terms)
        own = [terms[name].detach().float() for name in names]
        own.append(torch.tensor((time.monotonic() - started) / 60, device=device))
        *values, minutes = accelerator.reduce(torch.stack(own), "mean").tolist()
        if not np.isfinite(values).all():
            raise FsthError(f"The loss is not finite at step {step}: {dict(zip(names, values, strict=True))}.")
        for name, value in zip(names, values, strict=True):
            totals.setdefault(name, []).append(value)
        last_step = step == args.max_steps or minutes > args.max_minutes
        if step % args.log_every == 0 or last_step:
            entry = {"step": step} | {name: round(float(np.mean(each)), 4) for name, each in totals.items()}
            count = max(map(len, totals.values())) * sum(batch_sizes.values()) * accelerator.num_processes
            entry["crops_per_second"] = round(count / (time.monotonic() - seconds), 1)
            if accelerator.is_main_process:
                append_line(args.output_dir / "log.jsonl", entry)
            accelerator.print(json.dumps(entry))
            totals, seconds = {}, time.monotonic()
        if (step % args.save_every == 0 or last_step) and accelerator.is_main_process:
            entry = {"step": step}
            for network, batch in held_out.items():
                with accelerator.autocast():
                    scores, sheet = validate(average.module, vgg, batch, network)
                entry |= {name: round(score, 4) for name, score in scores.items()}
                Image.fromarray(sheet).save(args.output_dir / f"{network}-{step:07d}.jpg", quality=92)
            append_line(args.output_dir / "validation.jsonl", entry)
            accelerator.print(json.dumps(entry))
            networks = {"components": bare["learner"], "discriminators": bare["discriminators"], "average": average}
            save_checkpoint(args.output_dir, step, networks, states, {"minutes": minutes}, args.keep_checkpoints)
            save_model(args.output_dir / "model", average.module.components, bare["discriminators"])
            seconds = time.monotonic()
        if last_step:
            break
    accelerator.wait_for_everyone()
    accelerator.end_training()


if __name__ == "__main__":
    try:
        main()
    except FsthError as error:
        sys.exit(str(error))
