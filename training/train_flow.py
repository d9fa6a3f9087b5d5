"""Teaches the flow refiner alone, from the optical flow between frames: the cheapest way to its share of the result.

    python training/train_flow.py SHARDS --pretrained MODEL --output_dir RUN/model

Landmarks say nothing of hair, neck and shoulders; how they go with the head is learned here, from what is missing in
the landmarks' flow to that which dense inverse search (Kroeger et al., ECCV 2016) measures between portrait and frame.
A step takes a sixth of the time of one of meta_train.py, which trains the refiner along with everything else, through
the picture alone, and goes on from what this script saves. Needs opencv-python besides what meta_train.py needs.
"""

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import send_to_device, set_seed
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import get_linear_schedule_with_warmup


sys.path.insert(0, str(Path(__file__).parents[1]))  # runs from a checkout that is not installed

from fsth_hub.models.image_processing_fsth import normalize, to_pixels
from fsth_hub.models.landmark_flow import pixel_grid, portrait_flow, warp
from fsth_hub.models.source_skips import FLOW_UNIT, SourceSkips, fade_width, reduce
from training.checkpoints import save_networks
from training.data.dataset import ClipRecord, EpisodeDataset, EpisodeKey, read_index
from training.networks import load_networks


ERROR_WINDOW = 9  # pixels over which the measured flow is judged
MAX_ERROR = 0.25  # mean absolute difference, of [-1, 1], above which it has lost its way
MAX_RESIDUAL = 0.35  # normalized coordinates
WARMUP_STEPS = 50


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path, help="folder of training shards (training/prepare_dataset.py)")
    parser.add_argument("--validation_shards", type=Path, help="shards of people who are not in the training shards")
    parser.add_argument("--pretrained", type=Path, required=True, help="folder of networks; all but the refiner stays")
    parser.add_argument("--output_dir", type=Path, required=True, help="where to save the three networks")
    parser.add_argument("--image_size", type=int, default=256, help="side of the training frames in pixels")
    parser.add_argument("--batch_size", type=int, default=16, help="pairs of frames per process and step")
    parser.add_argument("--learning_rate", type=float, default=5e-4, help="AdamW; falls linearly to nothing")
    parser.add_argument("--max_steps", type=int, default=1000)
    parser.add_argument("--log_every", type=int, default=50, help="steps between lines, validations and savings")
    parser.add_argument("--num_workers", type=int, default=2, help="data loading processes")
    parser.add_argument("--mixed_precision", choices=["no", "bf16"], default="bf16")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def measure_residual_flow(
    frame, portrait, landmarks, portrait_landmarks, matte, portrait_matte, side: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    What the landmarks' flow lacks to the flow that is measured between a frame and the portrait.

    Args:
        frame, portrait (`torch.Tensor` of shape `(3, size, size)`): in [-1, 1].
        landmarks, portrait_landmarks (`torch.Tensor` of shape `(78, 2)`): pixels.
        matte, portrait_matte (`torch.Tensor` of shape `(1, size, size)`): how much is the figure, 0 to 1.
        side (`int`): of the result.

    Returns:
        The residual flow (side x side x 2, normalized coordinates), and its weight (side x side): how much of each
        cell is figure, around the exact flow, and explained by the measured flow better than by the landmarks' or no
        worse.
    """
    size = frame.shape[-1]
    grid = pixel_grid(size, size, "cpu")
    known = portrait_flow(landmarks[None], portrait_landmarks[None], size, fade_width(portrait_matte[None]))
    flow = known.flow  # 1 x size x size x 2
    warped = warp(portrait[None], flow, grid)

    grey = [cv2.cvtColor(to_uint8(picture), cv2.COLOR_RGB2GRAY) for picture in (frame, warped[0])]
    search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    step = torch.from_numpy(search.calc(*grey, None))[None] * 2 / size  # from the frame into the warped portrait
    measured = step + warp(flow.permute(0, 3, 1, 2), step, grid).permute(0, 2, 3, 1)

    def error(picture):
        difference = (picture - frame).abs().mean(dim=1, keepdim=True)
        return F.avg_pool2d(difference, ERROR_WINDOW, 1, ERROR_WINDOW // 2)

    after = error(warp(portrait[None], measured, grid))
    explained = ((after <= error(warped) * 1.02 + 1e-3) & (after < MAX_ERROR)).float()  # 1 x 1 x size x size
    explained = explained * matte * (1 - known.exactness.permute(0, 3, 1, 2))
    weight = reduce(explained, side)[0, 0]
    residual = reduce((measured - flow).permute(0, 3, 1, 2) * explained, side)[0] / weight.clamp(min=1e-3)
    return residual.permute(1, 2, 0), weight * (residual.norm(dim=0) < MAX_RESIDUAL)


def to_uint8(picture: torch.Tensor) -> np.ndarray:
    return to_pixels(picture).permute(1, 2, 0).numpy()


class FlowDataset(Dataset):
    """Episodes of one portrait, with the flow to be learned."""

    def __init__(self, episodes: EpisodeDataset, side: int):
        self.episodes, self.side = episodes, side

    def __getitem__(self, key: EpisodeKey) -> dict[str, torch.Tensor]:
        episode = self.episodes[key]
        images, drawings = (normalize(episode[name]) for name in ("images", "landmark_images"))
        landmarks, mattes = episode["landmarks"], episode["mattes"].float() / 255
        residual, weight = measure_residual_flow(*images, *landmarks, *mattes, self.side)
        inputs = {"images": images, "drawings": drawings, "landmarks": landmarks, "mattes": mattes}
        return inputs | {"residual": residual, "weight": weight}


class FlowLearner(nn.Module):
    """Source skips as one module, so that distributed training sees one forward pass."""

    def __init__(self, skips: SourceSkips):
        super().__init__()
        self.skips = skips

    def forward(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean end-point error of the refined flow and of the landmarks' own, in normalized coordinates."""
        sources = self.skips.encode(*(batch[name][:, 1:] for name in ("images", "drawings", "landmarks", "mattes")))
        sources = sources.map(lambda tensor: tensor[:, 0])
        drawings = batch["drawings"][:, 0]
        known = self.skips.look(sources, batch["landmarks"][:, 0], drawings.shape[-1])
        flow, _, _ = self.skips.refine(sources, drawings, known)
        share = batch["weight"] / batch["weight"].sum().clamp(min=1)  # B x h x w
        return tuple(((f - batch["residual"]).norm(dim=-1) * share).sum() for f in (flow, torch.zeros_like(flow)))


def sample_pairs(clips: list[ClipRecord], args, num_processes: int) -> list[list[EpisodeKey]]:
    """Batches of pairs of frames; people equally often, however many clips there are of them."""
    clips_of = Counter(clip.identity for clip in clips)
    shares = np.array([1 / clips_of[clip.identity] / len(clips_of) for clip in clips])
    chosen = np.random.default_rng(args.seed).choice(
        len(clips), (args.max_steps * num_processes, args.batch_size), p=shares
    )
    return [
        [EpisodeKey(int(clip), 1, (args.seed, number, position)) for position, clip in enumerate(batch)]
        for number, batch in enumerate(chosen)
    ]


def main(argv=None):
    args = parse_args(argv)
    accelerator = Accelerator(mixed_precision=args.mixed_precision)
    set_seed(args.seed)
    embedder, generator, discriminator = load_networks(args.pretrained)
    if not generator.config.source_skips:
        sys.exit(f"The generator in {args.pretrained} has no source skips, and with them no flow to refine.")

    episodes = EpisodeDataset(read_index(args.shards), args.image_size, 1)
    side = generator.config.working_size // 4  # of the refiner's maps
    batches = sample_pairs(episodes.clips, args, accelerator.num_processes)
    loader = DataLoader(FlowDataset(episodes, side), batch_sampler=batches, num_workers=args.num_workers)
    validation = []
    if args.validation_shards:
        held_out = EpisodeDataset(read_index(args.validation_shards), args.image_size, 1, augment=False)
        keys = [[EpisodeKey(clip, 1, (clip, sample)) for clip in range(len(held_out))] for sample in range(2)]
        validation = [
            send_to_device(batch, accelerator.device)
            for batch in DataLoader(FlowDataset(held_out, side), batch_sampler=keys)
        ]

    generator.source_skips.encoder.requires_grad_(False)  # its features are the decoder's, too
    learner = FlowLearner(generator.source_skips).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(generator.source_skips.refiner.parameters(), args.learning_rate)
    learner, optimizer, loader = accelerator.prepare(learner, optimizer, loader)
    schedule = get_linear_schedule_with_warmup(optimizer, WARMUP_STEPS, args.max_steps)
    started, seen = time.monotonic(), np.zeros(2)
    for step, batch in enumerate(loader, start=1):
        with accelerator.autocast():
            error, baseline = learner(batch)
        accelerator.backward(error / FLOW_UNIT)
        accelerator.clip_grad_norm_(learner.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        seen += error.item(), baseline.item()
        if step % args.log_every == 0 or step == args.max_steps:
            # of the landmarks' error, so that 1 is what is there without learning
            line = {"step": step, "error": round(seen[0] / seen[1], 4)}
            with torch.no_grad(), accelerator.autocast():
                errors = np.array([[value.item() for value in learner(batch)] for batch in validation])
            if validation:
                line["validation"] = round(float(np.divide(*errors.sum(axis=0))), 4)
            line["images_per_second"] = round(
                step * args.batch_size * accelerator.num_processes / (time.monotonic() - started), 1
            )
            accelerator.print(json.dumps(line))
            seen[:] = 0
            if accelerator.is_main_process:
                save_networks(args.output_dir, embedder, generator, discriminator)
    accelerator.end_training()


if __name__ == "__main__":
    main()
