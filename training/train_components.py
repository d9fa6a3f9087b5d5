"""Trains the facial components, mouth and eyes, on aligned crops of clips and stills, with Accelerate.

    python training/train_components.py SHARDS --stills STILLS --vgg VGG --output_dir RUN
    accelerate launch training/train_components.py SHARDS ...                        # all GPUs of a machine

A step trains both networks on a batch of their own: first against pixels and LPIPS alone, then against their
discriminators too. What is sampled depends on seed, step and rank alone, and a run goes on with --resume. The
networks, as moving averages, are in OUTPUT_DIR/model.
"""

import argparse
import json
import math
import sys
import time
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
from fsth_hub.finetuning.feature_networks import VGGFeatures, load_weights
from fsth_hub.finetuning.losses import adversarial_loss, discriminator_loss, feature_matching_loss
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
FALL_FROM = 0.6  # of the steps, after which the rate falls
WINDOW = 2 / 3  # of a crop's side, at random: what LPIPS sees of it in one step


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
    add("--learning_rate", type=float, default=4e-4, help="of the generators")
    add("--discriminator_learning_rate", type=float, help="by default that of the generators")
    add(
        "--fall",
        action=switch,
        default=True,
        help="to nothing in the last 40 %% of the steps or minutes",
    )
    add("--ema_decay", type=float, default=0.998, help="of the averaged networks")
    add("--adversarial_start", type=int, default=2000, help="pixels and LPIPS alone up to and including this step")
    add("--pixel_weight", type=float, default=2.0, help="of the mean absolute difference")
    add("--lpips_weight", type=float, default=4.0)
    add("--adversarial_weight", type=float, default=0.15)
    add("--feature_matching_weight", type=float, default=1.0)
    add("--mixed_precision", choices=["no", "bf16"], default="bf16")
    add("--save_every", type=int, default=500, help="steps between checkpoints and validations")
    add("--keep_checkpoints", type=int, default=2)
    add("--log_every", type=int, default=50)
    add("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if args.discriminator_learning_rate is None:
        args.discriminator_learning_rate = args.learning_rate
    return args


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


def window_of(crops: torch.Tensor, corner: tuple[int, int], window: int) -> torch.Tensor:
    top, left = corner
    return crops[..., top : top + window, left : left + window]


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
    if args.pretrained:
        components = FsthFacialComponents.from_pretrained(args.pretrained / "facial_components", dtype=torch.float32)
    else:
        components = FsthFacialComponents(FsthComponentsConfig())
    folder = args.pretrained and args.pretrained / "component_discriminators"
    if folder and folder.exists():
        discriminators = FsthComponentDiscriminators.from_pretrained(folder, dtype=torch.float32)
    else:  # a pipeline has none
        discriminators = FsthComponentDiscriminators(components.config)
    still_shares = {"mouth": args.mouth_still_share, "eye": args.eye_still_share}
    trained = [network for network in components.config.networks if batch_sizes[network]]
    learner = ComponentLearner(components).to(device, memory_format=torch.channels_last)
    discriminators = discriminators.to(device, memory_format=torch.channels_last)
    average = AveragedModel(learner, multi_avg_fn=moving_average(args.ema_decay)).requires_grad_(False).eval()
    vgg = VGGFeatures(load_weights(args.vgg)).to(device, memory_format=torch.channels_last)
    rates = args.learning_rate, args.discriminator_learning_rate
    optimizers = [
        torch.optim.AdamW(module.parameters(), rate, (0.5, 0.99))
        for module, rate in zip((learner, discriminators), rates, strict=True)
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
        for optimizer, rate in zip(optimizers, rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1, step / 100) * (1 - fallen) + 1e-6
        adversarial = step > args.adversarial_start
        terms, discriminator_terms, generated = {}, [], {}
        for network in trained:
            rng = np.random.default_rng([args.seed, step, rank, NETWORKS.index(network)])
            batch = crops[network].batch(rng, batch_sizes[network], still_shares[network])
            window = math.ceil(sizes[network] * WINDOW / 16) * 16
            corner = tuple(rng.integers(sizes[network] - window + 1, size=2).tolist())
            with accelerator.autocast():
                fake = learner(network, batch)
                seen = (window_of(crops, corner, window) for crops in (fake, batch["images"]))
                own = {
                    "pixel": args.pixel_weight * pixel_loss(fake, batch["images"], batch["masks"]),
                    "lpips": args.lpips_weight * perceptual_loss(vgg, *seen),
                }
                if adversarial:
                    condition = batch["warped"], batch["masks"]
                    bare["discriminators"].requires_grad_(False)
                    scores, features = discriminators(network, fake, *condition)
                    with torch.no_grad():
                        _, wanted = discriminators(network, batch["images"], *condition)
                    own["adversarial"] = args.adversarial_weight * adversarial_loss(scores)
                    own["matching"] = args.feature_matching_weight * feature_matching_loss(features, wanted)
                    bare["discriminators"].requires_grad_(True)
            terms |= {f"{network}_{name}": term for name, term in own.items()}
            generated[network] = (batch, fake.detach())
        accelerator.backward(sum(terms.values()))
        accelerator.clip_grad_norm_(learner.parameters(), 1.0)
        optimizers[0].step()
        optimizers[0].zero_grad()
        average.update_parameters(bare["learner"])
        if adversarial:
            for network, (batch, fake) in generated.items():
                with accelerator.autocast():
                    condition = batch["warped"], batch["masks"]
                    real_scores, _ = discriminators(network, batch["images"], *condition)
                    fake_scores, _ = discriminators(network, fake, *condition)
                    discriminator_terms.append(discriminator_loss(real_scores, fake_scores))
                terms[f"{network}_discriminator"] = discriminator_terms[-1]
            accelerator.backward(sum(discriminator_terms))
            optimizers[1].step()
            optimizers[1].zero_grad()

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
