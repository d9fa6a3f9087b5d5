"""Meta-learning of embedder, generator and discriminator (arXiv 1905.08233 v2, section 3.3), with Accelerate.

    python training/meta_train.py SHARDS --output_dir runs/small --vgg vgg16.safetensors

Runs on one CPU, one GPU or many (`accelerate launch` or `torchrun`), in float32 or bfloat16. Needs torch,
transformers, accelerate, safetensors, numpy and pillow alone. A checkpoint holds everything that resuming needs; the
networks for inference are the exponential moving averages in OUTPUT_DIR/model.
"""

import argparse
import json
import shutil
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from PIL import Image
from torch import nn
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, WeightedRandomSampler


sys.path.insert(0, str(Path(__file__).parents[1]))  # runs from a checkout that is not installed

from fsth_hub import losses
from fsth_hub.configuration_fsth import FsthConfig
from fsth_hub.losses import ContentLoss
from fsth_hub.modeling_fsth import FsthDiscriminator, FsthEmbedder, FsthGenerator
from training.dataset import EpisodeDataset, read_index


POWER_ITERATIONS = 15


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path, help="folder of training shards (training/prepare_dataset.py)")
    parser.add_argument("--output_dir", type=Path, required=True, help="checkpoints, log, samples and the model")
    parser.add_argument("--validation_shards", type=Path, help="shards of people who are not in the training shards")
    parser.add_argument("--preset", choices=["small", "paper"], default="small", help="networks to train")
    parser.add_argument("--pretrained", type=Path, help="folder of networks to start from, with fresh optimisers")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in OUTPUT_DIR")
    parser.add_argument("--vgg", required=True, help="VGG of the content loss: safetensors file or hub repository")
    parser.add_argument("--face_network", help="face network of the content loss; without it that term is left out")
    parser.add_argument("--image_size", type=int, default=256, help="side of the training frames in pixels")
    parser.add_argument("--num_sources", type=int, default=8, help="K, portraits per episode")
    parser.add_argument("--vary_sources", action="store_true", help="draw K from 1 .. num_sources for each step")
    parser.add_argument(
        "--far_sources", action="store_true", help="portraits whose eyes and mouth are unlike the frame's"
    )
    parser.add_argument("--batch_size", type=int, default=8, help="episodes per process and step")
    parser.add_argument("--max_steps", type=int, default=100_000, help="generator steps in all")
    parser.add_argument("--max_minutes", type=float, default=float("inf"), help="save and stop after so long")
    parser.add_argument("--generator_lr", type=float, default=5e-5, help="Adam, embedder and generator")
    parser.add_argument("--discriminator_lr", type=float, default=2e-4, help="Adam, discriminator")
    parser.add_argument("--warmup_steps", type=int, default=0, help="both rates rise linearly for so many steps")
    parser.add_argument("--beta1", type=float, default=0.0, help="Adam; the authors' code has 0")
    parser.add_argument("--discriminator_steps", type=int, default=2, help="discriminator updates per generator's")
    parser.add_argument("--adversarial_start", type=int, default=0, help="content loss alone before this step")
    parser.add_argument("--vgg_weight", type=float, default=losses.VGG_WEIGHT, help="for a Caffe-scaled VGG")
    parser.add_argument("--face_weight", type=float, default=losses.FACE_WEIGHT, help="for a Caffe-scaled VGGFace")
    parser.add_argument("--pixel_weight", type=float, default=0.0, help="of the mean absolute difference of pixels")
    parser.add_argument("--parts_weight", type=float, default=0.0, help="of the VGG loss on mouth and eyes enlarged")
    parser.add_argument("--adversarial_weight", type=float, default=1.0, help="of minus the discriminator's score")
    parser.add_argument("--feature_matching_weight", type=float, default=losses.FEATURE_MATCHING_WEIGHT)
    parser.add_argument("--match_weight", type=float, default=losses.MATCH_WEIGHT)
    parser.add_argument("--ema_decay", type=float, default=0.999, help="of the averaged embedder and generator")
    parser.add_argument("--mixed_precision", choices=["no", "bf16"], default="bf16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num_workers", type=int, default=2, help="data loading processes")
    parser.add_argument("--log_every", type=int, default=20, help="steps between lines of OUTPUT_DIR/log.jsonl")
    parser.add_argument("--sample_every", type=int, default=200, help="steps between sample pictures and validations")
    parser.add_argument("--save_every", type=int, default=200, help="steps between checkpoints")
    parser.add_argument("--keep_checkpoints", type=int, default=2)
    return parser.parse_args(argv)


class MetaLearner(nn.Module):
    """Embedder and generator as one module, so that distributed training sees one forward pass."""

    def __init__(self, embedder: FsthEmbedder, generator: FsthGenerator):
        super().__init__()
        self.embedder = embedder
        self.generator = generator

    def forward(self, images, landmark_images, landmarks):
        """Draw frame 0 of each episode as the person of frames 1 .. K; B x (1 + K) x ..."""
        sources = images[:, 1:], landmark_images[:, 1:]
        embedder_output = self.embedder(*sources)
        adain_parameters = self.generator.project(embedder_output.embedding)
        if self.generator.config.source_skips:
            pyramid = self.generator.encode_sources(*sources, landmarks[:, 1:])
            output = self.generator(landmark_images[:, 0], adain_parameters, landmarks[:, 0], pyramid)
        else:
            output = self.generator(landmark_images[:, 0], adain_parameters)
        return output.images, output.warped, embedder_output.frame_embeddings


def build_networks(args, num_clips: int):
    make_config = FsthConfig.paper if args.preset == "paper" else FsthConfig
    if not args.pretrained:
        config = make_config()
        networks = [network(config) for network in (FsthEmbedder, FsthGenerator)]
        return *networks, FsthDiscriminator(make_config(num_identities=num_clips))
    embedder, generator, saved = (
        network.from_pretrained(args.pretrained / name, dtype=torch.float32)
        for network, name in (
            (FsthEmbedder, "embedder"),
            (FsthGenerator, "generator"),
            (FsthDiscriminator, "discriminator"),
        )
    )
    # a saved discriminator knows no training video: W starts anew, the rest goes on
    discriminator = FsthDiscriminator(FsthConfig(**saved.config.to_diff_dict() | {"num_identities": num_clips}))
    discriminator.load_state_dict(saved.state_dict(), strict=False)
    return embedder.train(), generator.train(), discriminator


def settle_spectral_norm(network: nn.Module):
    """Bring the power iteration of averaged weights to its end: the vectors that came with them are other weights'."""
    network.train()
    with torch.no_grad():
        for module in network.modules():
            if parametrize.is_parametrized(module, "weight"):
                for _ in range(POWER_ITERATIONS):
                    module.weight  # noqa: B018 (in training mode every look at it is one iteration)
    network.eval()


def save_networks(folder: Path, learner: MetaLearner, discriminator: FsthDiscriminator):
    """The networks for inference and fine-tuning, half precision, without the training videos' person vectors."""
    config = FsthConfig(**discriminator.config.to_diff_dict() | {"num_identities": 0})
    released = FsthDiscriminator(config)
    released.load_state_dict({k: v for k, v in discriminator.state_dict().items() if k != "identities.weight"})
    networks = {"embedder": learner.embedder, "generator": learner.generator, "discriminator": released}
    for name, network in networks.items():
        half = {key: value.half() for key, value in network.state_dict().items()}
        network.save_pretrained(folder / name, state_dict=half, max_shard_size="15MB")


def save_checkpoint(accelerator: Accelerator, args, step: int, learner, discriminator):
    """Everything in OUTPUT_DIR/checkpoint-STEP, written under another name until it is whole."""
    folder = args.output_dir / f"checkpoint-{step:07d}"
    partial = folder.with_suffix(".partial")
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)
        partial.replace(folder)
        for old in sorted(args.output_dir.glob("checkpoint-???????"))[: -args.keep_checkpoints]:
            shutil.rmtree(old)
        save_networks(args.output_dir / "model", learner, discriminator)


def to_pixels(images: torch.Tensor) -> np.ndarray:
    """B x 3 x H x W in [-1, 1] to the rows of one picture, BH x W x 3 uint8."""
    pixels = ((images.float().clamp(-1, 1) + 1) * 127.5).round().byte().cpu()
    return pixels.permute(0, 2, 3, 1).flatten(0, 1).numpy()


@torch.no_grad()
def validate(learner: MetaLearner, content: ContentLoss, batches, picture: Path) -> dict[str, float]:
    """Content terms of the averaged generator on fixed episodes, beside the warp's, and a picture of some."""
    totals, columns = {}, []
    for images, landmark_images, landmarks in batches:
        fake, warped, _ = learner(images, landmark_images, landmarks)
        warped = images[:, 1] if warped is None else warped
        for suffix, frames in (("", fake), ("_warped", warped)):
            for name, term in content(frames, images[:, 0], landmarks[:, 0]).items():
                totals[name + suffix] = totals.get(name + suffix, 0) + term.item() / len(batches)
        shown = (images[:, 1], landmark_images[:, 0], warped, fake, images[:, 0])
        columns.append(np.concatenate([to_pixels(part) for part in shown], axis=1))
    Image.fromarray(np.concatenate(columns[:2])).save(picture, quality=90)
    return totals


def to_device(batch, device, num_sources: int):
    """uint8 pixels to [-1, 1] on the device, the frame to draw and the first `num_sources` portraits."""
    images, landmark_images = (
        batch[key][:, : 1 + num_sources].to(device, non_blocking=True).float() / 127.5 - 1
        for key in ("images", "landmark_images")
    )
    return images, landmark_images, batch["landmarks"][:, : 1 + num_sources].to(device)


def main(argv=None):
    args = parse_args(argv)
    started = time.monotonic()
    accelerator = Accelerator(mixed_precision=args.mixed_precision)
    set_seed(args.seed, device_specific=True)
    device = accelerator.device
    args.output_dir.mkdir(parents=True, exist_ok=True)

    # data: every person equally often, however many clips there are of them
    clips = read_index(args.shards)
    dataset = EpisodeDataset(clips, args.image_size, args.num_sources, far_sources=args.far_sources)
    clips_of = Counter(clip.identity for clip in dataset.clips)
    weights = [1 / clips_of[clip.identity] for clip in dataset.clips]
    batches = args.max_steps * max(args.discriminator_steps, 1)
    sampler = WeightedRandomSampler(weights, batches * args.batch_size * accelerator.num_processes)
    loader = DataLoader(
        dataset,
        args.batch_size,
        sampler=sampler,
        num_workers=args.num_workers,
        drop_last=True,
        pin_memory=device.type == "cuda",
    )

    # networks and optimisers
    embedder, generator, discriminator = build_networks(args, len(dataset))
    learner = MetaLearner(embedder, generator).to(device, memory_format=torch.channels_last)
    discriminator = discriminator.to(device, memory_format=torch.channels_last)
    term_weights = {
        name: getattr(args, name) for name in ("vgg_weight", "face_weight", "parts_weight", "pixel_weight")
    }
    content = ContentLoss(args.vgg, args.face_network, **term_weights).to(device, memory_format=torch.channels_last)
    average = AveragedModel(learner, multi_avg_fn=get_ema_multi_avg_fn(args.ema_decay))
    betas = (args.beta1, 0.999)
    generator_optimizer = torch.optim.Adam(learner.parameters(), args.generator_lr, betas)
    discriminator_optimizer = torch.optim.Adam(discriminator.parameters(), args.discriminator_lr, betas)
    learner, discriminator, generator_optimizer, discriminator_optimizer, loader = accelerator.prepare(
        learner, discriminator, generator_optimizer, discriminator_optimizer, loader
    )
    accelerator.register_for_checkpointing(average)
    bare_discriminator = accelerator.unwrap_model(discriminator)

    first_step = 0
    checkpoints = sorted(args.output_dir.glob("checkpoint-???????"))
    if args.resume and checkpoints:
        accelerator.load_state(str(checkpoints[-1]))
        first_step = int(checkpoints[-1].name.split("-")[1])
        set_seed(args.seed + first_step, device_specific=True)  # other episodes than the first time
        accelerator.print(f"resumed {checkpoints[-1]}")

    validation = []
    if args.validation_shards and accelerator.is_main_process:
        held_out = EpisodeDataset(
            read_index(args.validation_shards), args.image_size, 1, augment=False, far_sources=args.far_sources
        )
        with torch.random.fork_rng():  # the same episodes every time
            torch.manual_seed(0)
            batch = torch.utils.data.default_collate([held_out[i % len(held_out)] for i in range(32)])
        validation = list(zip(*(part.split(4) for part in to_device(batch, device, 1)), strict=True))

    def save(step: int):
        save_checkpoint(accelerator, args, step, average.module, bare_discriminator)

    episodes = iter(loader)
    log, images_seen, interval_started = {}, 0, time.monotonic()
    for step in range(first_step + 1, args.max_steps + 1):
        num_sources = args.num_sources
        if args.vary_sources:  # the same on every process, and after resuming
            num_sources = int(np.random.default_rng([args.seed, step]).integers(1, args.num_sources + 1))
        adversarial = step > args.adversarial_start

        for optimizer, rate in (
            (generator_optimizer, args.generator_lr),
            (discriminator_optimizer, args.discriminator_lr),
        ):
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1, (step - first_step) / max(args.warmup_steps, 1))

        # generator: its gradients must not leak into the discriminator
        batch = next(episodes)
        images, landmark_images, landmarks = to_device(batch, device, num_sources)
        real, drawing = images[:, 0].contiguous(memory_format=torch.channels_last), landmark_images[:, 0]
        bare_discriminator.requires_grad_(False)
        with accelerator.autocast():
            fake, warped, frame_embeddings = learner(images, landmark_images, landmarks)
            terms = content(fake, real, landmarks[:, 0])
            if adversarial:
                person = bare_discriminator.identities(batch["clip"].to(device))
                with torch.no_grad():
                    real_features = discriminator(real, drawing, person).features
                judged = discriminator(fake, drawing, person)
                matching = losses.feature_matching_loss(judged.features, real_features)
                terms["adversarial"] = args.adversarial_weight * losses.adversarial_loss(judged.scores)
                terms["feature_matching"] = args.feature_matching_weight * matching
                terms["match"] = args.match_weight * losses.match_loss(frame_embeddings, person)
            loss = sum(terms.values())
        if not torch.isfinite(accelerator.reduce(loss.detach())):
            values = {name: term.item() for name, term in terms.items()}
            sys.exit(f"The loss is not finite at step {step}: {values}. Resume at a lower rate.")
        accelerator.backward(loss)
        generator_optimizer.step()
        generator_optimizer.zero_grad()
        average.update_parameters(accelerator.unwrap_model(learner))
        bare_discriminator.requires_grad_(True)

        # discriminator: the frames just drawn first, then new ones if it takes more than one step
        for discriminator_step in range(args.discriminator_steps if adversarial else 0):
            if discriminator_step > 0:
                batch = next(episodes)
                images, landmark_images, landmarks = to_device(batch, device, num_sources)
                real, drawing = images[:, 0], landmark_images[:, 0]
                with torch.no_grad(), accelerator.autocast():
                    fake, _, _ = learner(images, landmark_images, landmarks)
            with accelerator.autocast():
                # one pass over both: two would advance the power iteration, and synchronise, twice
                person = bare_discriminator.identities(batch["clip"].to(device))
                judged = discriminator(
                    torch.cat([real, fake.detach()]), drawing.repeat(2, 1, 1, 1), person.repeat(2, 1)
                )
                terms["discriminator"] = losses.discriminator_loss(*judged.scores.chunk(2))
            accelerator.backward(terms["discriminator"])
            discriminator_optimizer.step()
            discriminator_optimizer.zero_grad()

        for name, term in terms.items():
            log[name] = log.get(name, 0.0) + term.item() / args.log_every
        images_seen += len(real) * accelerator.num_processes
        if step % args.log_every == 0:
            rate = images_seen / (time.monotonic() - interval_started)
            log = {"step": step, **{name: round(value, 4) for name, value in log.items()}}
            log |= {"images_per_second": round(rate, 2), "minutes": round((time.monotonic() - started) / 60, 1)}
            if accelerator.is_main_process:
                with open(args.output_dir / "log.jsonl", "a") as file:
                    file.write(json.dumps(log) + "\n")
            accelerator.print(log)
            log, images_seen, interval_started = {}, 0, time.monotonic()

        # every process has its own clock, and all must stop together
        minutes = torch.tensor((time.monotonic() - started) / 60, device=device)
        out_of_time = accelerator.reduce(minutes, "mean").item() > args.max_minutes
        last = out_of_time or step == args.max_steps
        if last or step % args.save_every == 0 or step % args.sample_every == 0:
            settle_spectral_norm(average.module)
        if validation and (step % args.sample_every == 0 or last):
            with accelerator.autocast():
                scores = validate(average.module, content, validation, args.output_dir / f"sample-{step:07d}.jpg")
            with open(args.output_dir / "validation.jsonl", "a") as file:
                file.write(json.dumps({"step": step, **scores}) + "\n")
            accelerator.print(f"step {step}: validation {scores}")
            interval_started = time.monotonic()
        if step % args.save_every == 0 or last:
            save(step)
        if last:
            break
    accelerator.end_training()


if __name__ == "__main__":
    main()
