"""Meta-learning of embedder, generator and discriminator (arXiv 1905.08233 v2, section 3.3), with Accelerate.

    python training/meta_train.py SHARDS --output_dir RUN --vgg timm/vgg19.tv_in1k
    accelerate launch training/meta_train.py SHARDS ...                              # all GPUs of a machine
    torchrun --nnodes 4 --nproc_per_node 8 --rdzv_backend c10d --rdzv_endpoint HOST:29500 \\
        training/meta_train.py SHARDS ...                                            # the same line on four machines

Runs on one CPU, one GPU or many, in float32 or bfloat16. Needs torch, transformers, accelerate, safetensors, numpy
and pillow alone. What is sampled depends on the seed and the step alone, so a run that is resumed goes on exactly
where its last checkpoint was made, on as many processes as there are then. The networks for inference are the
exponential moving averages in OUTPUT_DIR/model.
"""

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import ProjectConfiguration, set_seed
from PIL import Image
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, default_collate
from transformers import get_constant_schedule_with_warmup, get_cosine_schedule_with_warmup


sys.path.insert(0, str(Path(__file__).parents[1]))  # runs from a checkout that is not installed

from fsth_hub.finetuning import losses
from fsth_hub.finetuning.losses import ADVERSARIAL_TERMS, CONTENT_TERMS, ContentLoss, Judgement, LossTerm
from fsth_hub.hub.client import create_repository, publish
from fsth_hub.models.errors import FsthError
from fsth_hub.models.image_processing_fsth import normalize
from training.checkpoints import (
    append_line,
    last_checkpoint,
    load_checkpoint,
    rewind_log,
    save_checkpoint,
    save_networks,
    to_column,
)
from training.data.dataset import EpisodeDataset, EpisodeKey, read_index, sample_batches
from training.networks import MetaLearner, build_networks, settle_spectral_norm
from training.options import parse_args, weights_of


def make_schedule(args, optimizer: torch.optim.Optimizer, rate: float, steps_done: int, num_steps: int):
    """The rates of a network's coming steps: a function of the flags and the step, so resuming starts nothing anew."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] = rate
    if args.lr_schedule == "cosine":
        return get_cosine_schedule_with_warmup(optimizer, args.warmup_steps, num_steps + 1, last_epoch=steps_done)
    return get_constant_schedule_with_warmup(optimizer, args.warmup_steps, last_epoch=steps_done)


def make_accelerator(args) -> Accelerator:
    """With the trackers of --report_to: `FsthError` if one is not installed."""
    trackers = args.report_to.split(",") if args.report_to else []
    available = [str(tracker) for tracker in get_available_trackers()]
    missing = sorted(set(trackers) - {"all", *available})
    if missing:
        raise FsthError(f"--report_to {missing[0]}: that tracker is not installed or unknown; there are: {available}.")
    return Accelerator(
        mixed_precision=args.mixed_precision,
        gradient_accumulation_steps=args.gradient_accumulation_steps,
        log_with=trackers or None,
        project_config=ProjectConfiguration(logging_dir=args.output_dir / "trackers"),
    )


def track_picture(accelerator: Accelerator, picture: np.ndarray, step: int):
    """picture: H x W x 3 uint8, to the trackers that show pictures."""
    for tracker in accelerator.trackers:
        if tracker.name == "tensorboard":
            tracker.log_images({"sample": picture[None]}, step, dataformats="NHWC")
        elif tracker.name == "wandb":
            tracker.log_images({"sample": [picture]}, step)


@torch.no_grad()
def validate(learner: MetaLearner, content: ContentLoss, batches) -> tuple[dict[str, float], np.ndarray]:
    """Content terms of the averaged generator on fixed episodes, beside the warp's, and a picture of some."""
    totals, columns = {}, []
    for images, landmark_images, landmarks, mattes in batches:
        fake, warped, _ = learner(images, landmark_images, landmarks, mattes)
        warped = images[:, 1] if warped is None else warped
        for suffix, frames in (("", fake), ("_warped", warped)):
            for name, term in content(frames, images[:, 0], landmarks[:, 0]).items():
                totals[name + suffix] = totals.get(name + suffix, 0) + term.item() / len(batches)
        shown = (images[:, 1], landmark_images[:, 0], warped, fake, images[:, 0])
        columns.append(np.concatenate([to_column(part) for part in shown], axis=1))
    return totals, np.concatenate(columns[:2])


def sample_window(args, step: int) -> tuple[int, int, int] | None:
    """Where to compare frames in this step; the same on every process and after resuming."""
    if not args.window:
        return None
    left, top = np.random.default_rng([args.seed, step]).integers(args.image_size - args.window + 1, size=2)
    return int(left), int(top), args.window


def to_device(batch, device):
    """uint8 pixels to [-1, 1] on the device."""
    images, landmark_images = (
        normalize(batch[key].to(device, non_blocking=True)) for key in ("images", "landmark_images")
    )
    landmarks, mattes = (batch[key].to(device, non_blocking=True) for key in ("landmarks", "mattes"))
    return images, landmark_images, landmarks, mattes.float() / 255


@dataclass
class Training:
    """Networks, optimisers and losses of a run.

    Args:
        learner, discriminator, generator_optimizer, discriminator_optimizer: as Accelerate prepared them.
        networks (`dict[str, nn.Module]`): `"learner"`, `"discriminator"` and `"average"` as they are, for checkpoints.
        optimizers (`dict[str, torch.optim.Optimizer]`): the same of the optimisers.
        generator_schedule, discriminator_schedule: their rates.
        content ([`ContentLoss`]): compares frames.
        adversarial_terms (`tuple[LossTerm]`): of what the discriminator says.
    """

    args: argparse.Namespace
    accelerator: Accelerator
    learner: nn.Module
    discriminator: nn.Module
    generator_optimizer: torch.optim.Optimizer
    discriminator_optimizer: torch.optim.Optimizer
    networks: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]
    generator_schedule: torch.optim.lr_scheduler.LRScheduler
    discriminator_schedule: torch.optim.lr_scheduler.LRScheduler
    content: ContentLoss
    adversarial_terms: tuple[LossTerm, ...]


def make_training(args, accelerator: Accelerator, num_clips: int, checkpoint: Path | None) -> tuple[Training, dict]:
    """Networks and optimisers, new or as a checkpoint left them, and that run's `progress`: its `step`, the `log` of
    each step's terms since the last line, the `seconds` that these took, and all its `minutes`."""
    device = accelerator.device
    embedder, generator, discriminator = build_networks(args, num_clips)
    learner = MetaLearner(embedder, generator).to(device, memory_format=torch.channels_last)
    discriminator = discriminator.to(device, memory_format=torch.channels_last)
    content = ContentLoss.load(args.vgg, args.face_network, weights_of(args, CONTENT_TERMS))
    content = content.to(device, memory_format=torch.channels_last)
    average = AveragedModel(learner, multi_avg_fn=get_ema_multi_avg_fn(args.ema_decay))
    betas = (args.beta1, 0.999)
    generator_optimizer = torch.optim.Adam(learner.parameters(), args.generator_lr, betas)
    discriminator_optimizer = torch.optim.Adam(discriminator.parameters(), args.discriminator_lr, betas)

    progress = {"step": 0, "log": {}, "seconds": 0.0, "minutes": 0.0}
    networks = {"learner": learner, "discriminator": discriminator, "average": average}
    optimizers = {"generator_optimizer": generator_optimizer, "discriminator_optimizer": discriminator_optimizer}
    if checkpoint:
        try:
            progress = load_checkpoint(checkpoint, networks, optimizers)
        except (OSError, RuntimeError) as error:
            problem = str(error).splitlines()[0]
            raise FsthError(
                f"{checkpoint} does not fit; resume with the same shards and networks. ({problem})"
            ) from error
        accelerator.print(f"resumed {checkpoint}")

    # the discriminator's rate starts when the discriminator does
    step, start = progress["step"], args.adversarial_start
    generator_schedule = make_schedule(args, generator_optimizer, args.generator_lr, step, args.max_steps)
    discriminator_schedule = make_schedule(
        args, discriminator_optimizer, args.discriminator_lr, max(step - start, 0), args.max_steps - start
    )
    training = Training(
        args,
        accelerator,
        *accelerator.prepare(learner, discriminator, generator_optimizer, discriminator_optimizer),
        networks,
        optimizers,
        generator_schedule,
        discriminator_schedule,
        content,
        losses.with_weights(ADVERSARIAL_TERMS, weights_of(args, ADVERSARIAL_TERMS)),
    )
    return training, progress


def update_generator(training: Training, batches: Iterator, step: int, terms: dict) -> list[tuple]:
    """
    One update of embedder and generator.

    Args:
        batches (`Iterator`): of the loader.
        terms (`dict`): to which the loss terms are added.

    Returns:
        `list[tuple]`: for each part of the update real frames, landmark drawings, clips' numbers and generated frames.
    """
    args, accelerator, learner = training.args, training.accelerator, training.learner
    discriminator = training.networks["discriminator"]
    window, generated = sample_window(args, step), []
    discriminator.requires_grad_(False)  # the generator's gradients must not leak into it
    for part in range(args.gradient_accumulation_steps):
        batch = next(batches)
        images, landmark_images, landmarks, mattes = to_device(batch, accelerator.device)
        real, drawing = images[:, 0].contiguous(memory_format=torch.channels_last), landmark_images[:, 0]
        clip = batch["clip"].to(accelerator.device)
        # a pass in training mode is a power iteration: one for an update, however many parts it has
        learner.train(part == 0)
        discriminator.train(part == 0)
        with accelerator.accumulate(learner):
            with accelerator.autocast():
                fake, _, frame_embeddings = learner(images, landmark_images, landmarks, mattes)
                part_terms = training.content(fake, real, landmarks[:, 0], window)
                if step > args.adversarial_start:
                    person = discriminator.identities(clip)
                    judged = discriminator(fake, drawing, person)
                    discriminator.eval()
                    with torch.no_grad():
                        real_features = discriminator(real, drawing, person).features
                    judgement = Judgement(judged.scores, judged.features, real_features, frame_embeddings, person)
                    part_terms |= losses.weigh(training.adversarial_terms, judgement)
            accelerator.backward(sum(part_terms.values()))
            training.generator_optimizer.step()
            training.generator_optimizer.zero_grad()
        for name, term in part_terms.items():
            terms[name] += term.detach() / args.gradient_accumulation_steps
        generated.append((real, drawing, clip, fake.detach()))
    training.networks["average"].update_parameters(training.networks["learner"])
    discriminator.requires_grad_(True)
    return generated


def update_discriminator(training: Training, batches: Iterator, generated: list[tuple], terms: dict) -> None:
    """Its updates of one step: on the frames that [`update_generator`] has just generated, then on new ones."""
    args, accelerator = training.args, training.accelerator
    for update in range(args.discriminator_steps):
        for part in range(args.gradient_accumulation_steps):
            if update == 0:
                real, drawing, clip, fake = generated[part]
            else:
                batch = next(batches)
                images, landmark_images, landmarks, mattes = to_device(batch, accelerator.device)
                real, drawing, clip = images[:, 0], landmark_images[:, 0], batch["clip"].to(accelerator.device)
                training.learner.train(part == 0)
                with torch.no_grad(), accelerator.autocast():
                    fake, _, _ = training.learner(images, landmark_images, landmarks, mattes)
            training.discriminator.train(part == 0)
            with accelerator.accumulate(training.discriminator):
                with accelerator.autocast():
                    # one pass over both: two would advance the power iteration, and synchronise, twice
                    person = training.networks["discriminator"].identities(clip).repeat(2, 1)
                    pairs = torch.cat([real, fake]), drawing.repeat(2, 1, 1, 1), person
                    loss = losses.discriminator_loss(*training.discriminator(*pairs).scores.chunk(2))
                accelerator.backward(loss)
                training.discriminator_optimizer.step()
                training.discriminator_optimizer.zero_grad()
            terms["discriminator"] += loss.detach() / (args.gradient_accumulation_steps * args.discriminator_steps)


def write_log(training: Training, step: int, log: dict[str, list[float]], seconds: float, minutes: float) -> None:
    """A line of the terms' means since the last one."""
    args, accelerator = training.args, training.accelerator
    episodes_per_step = args.gradient_accumulation_steps * args.batch_size * accelerator.num_processes
    entry = {name: round(float(np.mean(values)), 4) for name, values in log.items()}
    entry["images_per_second"] = round(max(map(len, log.values())) * episodes_per_step / seconds, 2)
    entry["minutes"] = round(minutes, 1)
    entry["learning_rate"] = training.generator_schedule.get_last_lr()[0]
    if accelerator.device.type == "cuda":
        entry["gpu_gigabytes"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
    if accelerator.is_main_process:
        append_line(args.output_dir / "log.jsonl", {"step": step, **entry})
    accelerator.log(entry, step)
    accelerator.print({"step": step, **entry})


def write_validation(training: Training, step: int, validation: list) -> None:
    """The averaged generator's scores, and a picture."""
    args, accelerator = training.args, training.accelerator
    with accelerator.autocast():
        scores, picture = validate(training.networks["average"].module, training.content, validation)
    Image.fromarray(picture).save(args.output_dir / f"sample-{step:07d}.jpg", quality=90)
    append_line(args.output_dir / "validation.jsonl", {"step": step, **scores})
    accelerator.log({f"validation/{name}": score for name, score in scores.items()}, step)
    track_picture(accelerator, picture, step)
    accelerator.print(f"step {step}: validation {scores}")


def save(training: Training, step: int, progress: dict) -> None:
    """A checkpoint to resume from, and the networks for inference."""
    args, average = training.args, training.networks["average"].module
    save_checkpoint(args.output_dir, step, training.networks, training.optimizers, progress, args.keep_checkpoints)
    save_networks(args.output_dir / "model", average.embedder, average.generator, training.networks["discriminator"])


def held_out_batches(args, device) -> list[tuple]:
    """32 fixed episodes of the validation clips, four at a time, as [`to_device`] gives them."""
    clips = read_index(args.validation_shards)
    dataset = EpisodeDataset(clips, args.image_size, 1, augment=False, far_sources=args.far_sources)
    batch = default_collate([dataset[EpisodeKey(i % len(dataset), 1, (i,))] for i in range(32)])
    return list(zip(*(part.split(4) for part in to_device(batch, device)), strict=True))


def main(argv=None):
    args = parse_args(sys.argv[1:] if argv is None else argv, __doc__)
    started = time.monotonic()
    checkpoint = last_checkpoint(args.output_dir)
    if checkpoint and not args.resume:
        raise FsthError(f"{checkpoint} is there already: go on from it with --resume, or choose another --output_dir.")
    clips = read_index(args.shards)
    dataset = EpisodeDataset(clips, args.image_size, args.num_sources, far_sources=args.far_sources)
    if not len(dataset):
        raise FsthError(f"No clip in {args.shards} has more than {args.num_sources} frames: lower --num_sources.")
    accelerator = make_accelerator(args)
    device, main_process = accelerator.device, accelerator.is_main_process
    if main_process:
        if args.push_to_hub:
            args.push_to_hub = create_repository(args.push_to_hub, private=not args.hub_public)  # before training
        args.output_dir.mkdir(parents=True, exist_ok=True)
    accelerator.init_trackers("fsth_hub", {name: str(value) for name, value in vars(args).items()})

    # networks, and data from where an earlier run stopped
    set_seed(args.seed)
    training, progress = make_training(args, accelerator, len(dataset), checkpoint)
    step, minutes_before = progress.pop("step"), progress["minutes"]
    if main_process:
        for name in ("log.jsonl", "validation.jsonl"):
            rewind_log(args.output_dir / name, step)
    sampler = sample_batches(dataset.clips, args, step + 1, accelerator.num_processes, accelerator.process_index)
    pinned = device.type == "cuda"
    batches = iter(DataLoader(dataset, batch_sampler=sampler, num_workers=args.num_workers, pin_memory=pinned))
    validation = held_out_batches(args, device) if args.validation_shards and main_process else []

    while step < args.max_steps:
        step += 1
        step_started = time.monotonic()
        adversarial = step > args.adversarial_start
        terms = defaultdict(float)
        generated = update_generator(training, batches, step, terms)
        if adversarial:
            update_discriminator(training, batches, generated, terms)

        # every process has its own losses and its own clock, and all must log and stop together
        own = [*terms.values(), torch.tensor((time.monotonic() - started) / 60, device=device)]
        *values, minutes = accelerator.reduce(torch.stack(own), "mean").tolist()
        values = dict(zip(terms, values, strict=True))
        if not np.isfinite(list(values.values())).all():
            raise FsthError(f"The loss is not finite at step {step}: {values}. Resume at a lower rate.")
        for name, value in values.items():
            progress["log"].setdefault(name, []).append(value)
        progress["seconds"] += time.monotonic() - step_started
        progress["minutes"] = minutes_before + minutes
        if step % args.log_every == 0:
            write_log(training, step, **progress)
            progress |= {"log": {}, "seconds": 0.0}
        training.generator_schedule.step()
        if adversarial:
            training.discriminator_schedule.step()

        last_step = minutes > args.max_minutes or step == args.max_steps
        saves = last_step or step % args.save_every == 0
        samples = last_step or step % args.sample_every == 0
        if saves or samples:
            settle_spectral_norm(training.networks["average"].module)
        if samples and validation:
            write_validation(training, step, validation)
        if saves and main_process:
            save(training, step, progress)
        if last_step:
            break

    accelerator.wait_for_everyone()
    if args.push_to_hub and main_process:
        accelerator.print(f"the model is in {args.output_dir / 'model'}")
        message = "Upload the trained networks"
        accelerator.print(publish(args.output_dir / "model", args.push_to_hub, commit_message=message))
    accelerator.end_training()


if __name__ == "__main__":
    try:
        main()
    except FsthError as error:
        sys.exit(str(error))
