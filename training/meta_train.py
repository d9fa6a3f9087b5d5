"""Meta-learning of embedder, generator and discriminator (arXiv 1905.08233 v2, section 3.3), with Accelerate.

    python training/meta_train.py SHARDS --output_dir RUN --vgg timm/vgg19.tv_in1k
    accelerate launch training/meta_train.py SHARDS ...                              # all GPUs of a machine
    torchrun --nnodes 4 --nproc_per_node 8 --rdzv_backend c10d --rdzv_endpoint HOST:29500 \\
        training/meta_train.py SHARDS ...                                            # the same line on four machines

Runs on one CPU, one GPU or many, in float32 or bfloat16. Needs torch, transformers, accelerate, safetensors, numpy
and pillow alone. What is drawn at random depends on the seed and the step alone, so a run that is resumed goes on
exactly where its last checkpoint was made, on as many processes as there are then. The networks for inference are the
exponential moving averages in OUTPUT_DIR/model.
"""

import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import ProjectConfiguration, set_seed
from PIL import Image
from torch import nn
from torch.nn.utils import parametrize
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, default_collate
from transformers import get_constant_schedule_with_warmup, get_cosine_schedule_with_warmup


sys.path.insert(0, str(Path(__file__).parents[1]))  # runs from a checkout that is not installed

from fsth_hub.finetuning import losses
from fsth_hub.finetuning.losses import ADVERSARIAL_TERMS, CONTENT_TERMS, ContentLoss, Judgement
from fsth_hub.hub.client import create_repository, publish
from fsth_hub.models.configuration_fsth import FsthConfig
from fsth_hub.models.errors import FsthError
from fsth_hub.models.image_processing_fsth import normalize
from fsth_hub.models.modeling_fsth import FsthDiscriminator, FsthEmbedder, FsthGenerator
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
from training.options import parse_args, weights_of


POWER_ITERATIONS = 15


class MetaLearner(nn.Module):
    """Embedder and generator as one module, so that distributed training sees one forward pass."""

    def __init__(self, embedder: FsthEmbedder, generator: FsthGenerator):
        super().__init__()
        self.embedder = embedder
        self.generator = generator

    def forward(self, images, landmark_images, landmarks, mattes):
        """Draw frame 0 of each episode as the person of frames 1 .. K; B x (1 + K) x ..."""
        sources = images[:, 1:], landmark_images[:, 1:]
        embedder_output = self.embedder(*sources)
        adain_parameters = self.generator.project(embedder_output.embedding)
        if self.generator.config.source_skips:
            pyramid = self.generator.encode_sources(*sources, landmarks[:, 1:], mattes[:, 1:])
            output = self.generator(landmark_images[:, 0], adain_parameters, landmarks[:, 0], pyramid)
        else:
            output = self.generator(landmark_images[:, 0], adain_parameters)
        return output.images, output.warped, embedder_output.frame_embeddings


def build_networks(args, num_clips: int):
    if not args.pretrained:
        make_config = FsthConfig.paper if args.preset == "paper" else FsthConfig
        names = ("image_size", "network_size", "self_attention", "source_skips")
        options = {name: getattr(args, name) for name in names}
        networks = [network(make_config(**options)) for network in (FsthEmbedder, FsthGenerator)]
        return *networks, FsthDiscriminator(make_config(**options, num_identities=num_clips))
    embedder, generator, saved = (
        network.from_pretrained(args.pretrained / name, dtype=torch.float32)
        for network, name in (
            (FsthEmbedder, "embedder"),
            (FsthGenerator, "generator"),
            (FsthDiscriminator, "discriminator"),
        )
    )
    network_size = args.network_size or saved.config.network_size
    sizes = {"image_size": args.image_size, "network_size": network_size and min(network_size, args.image_size)}
    for network in (embedder, generator):
        network.config.update(sizes)
    # a saved discriminator knows no training video: W starts anew, the rest goes on
    changes = sizes | {"num_identities": num_clips}
    discriminator = FsthDiscriminator(FsthConfig(**saved.config.to_diff_dict() | changes))
    discriminator.load_state_dict(saved.state_dict(), strict=False)
    return embedder.train(), generator.train(), discriminator


def make_schedule(args, optimizer: torch.optim.Optimizer, rate: float, steps_done: int, num_steps: int):
    """The rates of a network's coming steps: a function of the flags and the step, so resuming starts nothing anew."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] = rate
    if args.lr_schedule == "cosine":
        return get_cosine_schedule_with_warmup(optimizer, args.warmup_steps, num_steps + 1, last_epoch=steps_done)
    return get_constant_schedule_with_warmup(optimizer, args.warmup_steps, last_epoch=steps_done)


def settle_spectral_norm(network: nn.Module):
    """Bring the power iteration of averaged weights to its end: the vectors that came with them are other weights'."""
    network.train()
    with torch.no_grad():
        for module in network.modules():
            if parametrize.is_parametrized(module, "weight"):
                for _ in range(POWER_ITERATIONS):
                    module.weight  # noqa: B018 (in training mode every look at it is one iteration)
    network.eval()


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
    device = accelerator.device
    if accelerator.is_main_process:
        if args.push_to_hub:
            args.push_to_hub = create_repository(args.push_to_hub, private=not args.hub_public)  # before training
        args.output_dir.mkdir(parents=True, exist_ok=True)
    accelerator.init_trackers("fsth_hub", {name: str(value) for name, value in vars(args).items()})

    # networks and optimisers
    set_seed(args.seed)
    embedder, generator, discriminator = build_networks(args, len(dataset))
    learner = MetaLearner(embedder, generator).to(device, memory_format=torch.channels_last)
    discriminator = discriminator.to(device, memory_format=torch.channels_last)
    content = ContentLoss.load(args.vgg, args.face_network, weights_of(args, CONTENT_TERMS))
    content = content.to(device, memory_format=torch.channels_last)
    adversarial_terms = losses.with_weights(ADVERSARIAL_TERMS, weights_of(args, ADVERSARIAL_TERMS))
    average = AveragedModel(learner, multi_avg_fn=get_ema_multi_avg_fn(args.ema_decay))
    betas = (args.beta1, 0.999)
    generator_optimizer = torch.optim.Adam(learner.parameters(), args.generator_lr, betas)
    discriminator_optimizer = torch.optim.Adam(discriminator.parameters(), args.discriminator_lr, betas)

    # where an earlier run stopped; `log` holds the terms of each step since the last line
    step, progress = 0, {"log": {}, "seconds": 0.0, "minutes": 0.0}
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
        step = progress.pop("step")
        accelerator.print(f"resumed {checkpoint}")
    log, seconds, minutes_before = progress["log"], progress["seconds"], progress["minutes"]
    if accelerator.is_main_process:
        for name in ("log.jsonl", "validation.jsonl"):
            rewind_log(args.output_dir / name, step)
    # the discriminator's rate starts when the discriminator does
    start = args.adversarial_start
    generator_schedule = make_schedule(args, generator_optimizer, args.generator_lr, step, args.max_steps)
    discriminator_schedule = make_schedule(
        args, discriminator_optimizer, args.discriminator_lr, max(step - start, 0), args.max_steps - start
    )
    bare_learner, bare_discriminator = learner, discriminator
    learner, discriminator, generator_optimizer, discriminator_optimizer = accelerator.prepare(
        learner, discriminator, generator_optimizer, discriminator_optimizer
    )

    loader = DataLoader(
        dataset,
        batch_sampler=sample_batches(
            dataset.clips, args, step + 1, accelerator.num_processes, accelerator.process_index
        ),
        num_workers=args.num_workers,
        pin_memory=device.type == "cuda",
    )
    validation = []
    if args.validation_shards and accelerator.is_main_process:
        held_out = EpisodeDataset(
            read_index(args.validation_shards), args.image_size, 1, augment=False, far_sources=args.far_sources
        )
        batch = default_collate([held_out[EpisodeKey(i % len(held_out), 1, (i,))] for i in range(32)])
        validation = list(zip(*(part.split(4) for part in to_device(batch, device)), strict=True))

    def save():
        if accelerator.is_main_process:
            progress = {"log": log, "seconds": seconds, "minutes": minutes_before + minutes}
            save_checkpoint(args.output_dir, step, networks, optimizers, progress, args.keep_checkpoints)
            save_networks(
                args.output_dir / "model", average.module.embedder, average.module.generator, bare_discriminator
            )

    batches = iter(loader)
    num_parts = args.gradient_accumulation_steps
    episodes_per_step = num_parts * args.batch_size * accelerator.num_processes
    while step < args.max_steps:
        step += 1
        step_started = time.monotonic()
        adversarial = step > args.adversarial_start
        terms, drawn = defaultdict(float), []
        window = sample_window(args, step)

        # generator: its gradients must not leak into the discriminator
        bare_discriminator.requires_grad_(False)
        for part in range(num_parts):
            batch = next(batches)
            images, landmark_images, landmarks, mattes = to_device(batch, device)
            real, drawing = images[:, 0].contiguous(memory_format=torch.channels_last), landmark_images[:, 0]
            clip = batch["clip"].to(device)
            # a pass in training mode is a power iteration: one for an update, however many parts it has
            learner.train(part == 0)
            bare_discriminator.train(part == 0)
            with accelerator.accumulate(learner):
                with accelerator.autocast():
                    fake, _, frame_embeddings = learner(images, landmark_images, landmarks, mattes)
                    part_terms = content(fake, real, landmarks[:, 0], window)
                    if adversarial:
                        person = bare_discriminator.identities(clip)
                        judged = bare_discriminator(fake, drawing, person)
                        bare_discriminator.eval()
                        with torch.no_grad():
                            real_features = bare_discriminator(real, drawing, person).features
                        judgement = Judgement(judged.scores, judged.features, real_features, frame_embeddings, person)
                        part_terms |= losses.weigh(adversarial_terms, judgement)
                accelerator.backward(sum(part_terms.values()))
                generator_optimizer.step()
                generator_optimizer.zero_grad()
            for name, term in part_terms.items():
                terms[name] += term.detach() / num_parts
            drawn.append((real, drawing, clip, fake.detach()))
        average.update_parameters(bare_learner)
        bare_discriminator.requires_grad_(True)

        # discriminator: the frames just drawn first, then new ones if it takes more than one update
        num_updates = args.discriminator_steps if adversarial else 0
        for update in range(num_updates):
            for part in range(num_parts):
                if update == 0:
                    real, drawing, clip, fake = drawn[part]
                else:
                    batch = next(batches)
                    images, landmark_images, landmarks, mattes = to_device(batch, device)
                    real, drawing, clip = images[:, 0], landmark_images[:, 0], batch["clip"].to(device)
                    learner.train(part == 0)
                    with torch.no_grad(), accelerator.autocast():
                        fake, _, _ = learner(images, landmark_images, landmarks, mattes)
                discriminator.train(part == 0)
                with accelerator.accumulate(discriminator):
                    with accelerator.autocast():
                        # one pass over both: two would advance the power iteration, and synchronise, twice
                        person = bare_discriminator.identities(clip).repeat(2, 1)
                        judged = discriminator(torch.cat([real, fake]), drawing.repeat(2, 1, 1, 1), person)
                        loss = losses.discriminator_loss(*judged.scores.chunk(2))
                    accelerator.backward(loss)
                    discriminator_optimizer.step()
                    discriminator_optimizer.zero_grad()
                terms["discriminator"] += loss.detach() / (num_parts * num_updates)

        # every process has its own losses and its own clock, and all must log and stop together
        own = [*terms.values(), torch.tensor((time.monotonic() - started) / 60, device=device)]
        *values, minutes = accelerator.reduce(torch.stack(own), "mean").tolist()
        values = dict(zip(terms, values, strict=True))
        if not np.isfinite(list(values.values())).all():
            raise FsthError(f"The loss is not finite at step {step}: {values}. Resume at a lower rate.")
        for name, value in values.items():
            log.setdefault(name, []).append(value)
        seconds += time.monotonic() - step_started
        if step % args.log_every == 0:
            entry = {name: round(float(np.mean(values)), 4) for name, values in log.items()}
            entry["images_per_second"] = round(max(map(len, log.values())) * episodes_per_step / seconds, 2)
            entry["minutes"] = round(minutes_before + minutes, 1)
            entry["learning_rate"] = generator_schedule.get_last_lr()[0]
            if device.type == "cuda":
                entry["gpu_gigabytes"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
            if accelerator.is_main_process:
                append_line(args.output_dir / "log.jsonl", {"step": step, **entry})
            accelerator.log(entry, step)
            accelerator.print({"step": step, **entry})
            log, seconds = {}, 0.0
        generator_schedule.step()
        if adversarial:
            discriminator_schedule.step()

        last_step = minutes > args.max_minutes or step == args.max_steps
        if last_step or step % args.save_every == 0 or step % args.sample_every == 0:
            settle_spectral_norm(average.module)
        if validation and (step % args.sample_every == 0 or last_step):
            with accelerator.autocast():
                scores, picture = validate(average.module, content, validation)
            Image.fromarray(picture).save(args.output_dir / f"sample-{step:07d}.jpg", quality=90)
            append_line(args.output_dir / "validation.jsonl", {"step": step, **scores})
            accelerator.log({f"validation/{name}": score for name, score in scores.items()}, step)
            track_picture(accelerator, picture, step)
            accelerator.print(f"step {step}: validation {scores}")
        if step % args.save_every == 0 or last_step:
            save()
        if last_step:
            break

    accelerator.wait_for_everyone()
    if args.push_to_hub and accelerator.is_main_process:
        accelerator.print(f"the model is in {args.output_dir / 'model'}")
        message = "Upload the trained networks"
        accelerator.print(publish(args.output_dir / "model", args.push_to_hub, commit_message=message))
    accelerator.end_training()


if __name__ == "__main__":
    try:
        main()
    except FsthError as error:
        sys.exit(str(error))
