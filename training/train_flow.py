"""Teaches the flow refiner alone, from the optical flow between frames: the cheapest way to its share of the result.

    python training/train_flow.py SHARDS --validation_shards SHARDS --pretrained MODEL --output_dir RUN

Landmarks say nothing of hair, neck and shoulders; how they go with the head is learned here, from what is missing in
the landmarks' flow to that which dense inverse search (Kroeger et al., ECCV 2016) measures between portrait and frame.
The pairs of frames are worked out once (`pairs*.safetensors` in the output folder: a twentieth of a second of one core
and 160 kB each at a network size of 128, four times the room at 256) and seen many times, as the refiner learns
hundreds of them a second. meta_train.py, which trains it along with everything else, through the picture alone, goes
on from what this script saves in `model`. Needs opencv-python besides what meta_train.py needs.
"""

import argparse
import hashlib
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
from accelerate.utils import set_seed
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import get_linear_schedule_with_warmup


sys.path.insert(0, str(Path(__file__).parents[1]))  # runs from a checkout that is not installed

from fsth_hub.models.flow_refiner import FlowRefiner
from fsth_hub.models.head_motion import NUM_MOTIONS, head_motions
from fsth_hub.models.image_processing_fsth import normalize, to_pixels
from fsth_hub.models.landmark_flow import pixel_grid, portrait_flow, warp
from fsth_hub.models.source_skips import FLOW_UNIT, FsthSources, SourceSkips, fade_width, reduce
from training.checkpoints import save_networks
from training.data.dataset import ClipRecord, EpisodeDataset, EpisodeKey, read_index
from training.networks import load_networks


ERROR_WINDOW = 9  # pixels over which the measured flow is judged
MAX_ERROR = 0.25  # mean absolute difference, of [-1, 1], above which it has lost its way
MAX_RESIDUAL = 0.35  # normalized coordinates
WARMUP_STEPS = 50
PAIRS_AT_ONCE = 16
VALIDATION_PAIRS = 20  # of each validation clip


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path, help="folder of training shards (training/prepare_dataset.py)")
    parser.add_argument("--validation_shards", type=Path, help="shards of people who are not in the training shards")
    parser.add_argument("--pretrained", type=Path, required=True, help="folder of networks; all but the refiner stays")
    parser.add_argument("--output_dir", type=Path, required=True, help="for pairs and `model`, the three networks")
    parser.add_argument("--image_size", type=int, default=256, help="side of the training frames in pixels")
    parser.add_argument("--num_pairs", type=int, default=32_000, help="pairs of frames to work out, of all processes")
    parser.add_argument("--batch_size", type=int, default=64, help="pairs per process and step")
    parser.add_argument("--learning_rate", type=float, default=1e-3, help="AdamW; falls linearly to nothing")
    parser.add_argument("--max_steps", type=int, default=1000)
    parser.add_argument("--log_every", type=int, default=100, help="steps between lines, validations and savings")
    parser.add_argument("--num_workers", type=int, default=2, help="data loading processes")
    parser.add_argument("--mixed_precision", choices=["no", "bf16"], default="bf16")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def measure_residual_flow(
    frame, portrait, landmarks, portrait_landmarks, matte, portrait_matte, side: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    What the landmarks' flow lacks to the flow that is measured between a frame and the portrait.

    Args:
        frame, portrait (`torch.Tensor` of shape `(3, size, size)`): in [-1, 1].
        landmarks, portrait_landmarks (`torch.Tensor` of shape `(78, 2)`): pixels.
        matte, portrait_matte (`torch.Tensor` of shape `(1, size, size)`): how much is the figure, 0 to 1.
        side (`int`): of the result.

    Returns:
        The landmarks' flow (1 x size x size x 2, normalized coordinates), the residual flow (side x side x 2), and its
        weight (side x side): how much of each cell is figure, around the exact flow, and explained by the measured
        flow better than by the landmarks' or no worse.
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
    return flow, residual.permute(1, 2, 0), weight * (residual.norm(dim=0) < MAX_RESIDUAL)


def to_uint8(picture: torch.Tensor) -> np.ndarray:
    return to_pixels(picture).permute(1, 2, 0).numpy()


class FlowDataset(Dataset):
    """Pairs of frames, of episodes of one portrait: what the refiner sees, what it should say, and where that counts.

    Args:
        episodes ([`EpisodeDataset`]).
        skips ([`SourceSkips`]): whose encoder the refiner listens to.
    """

    def __init__(self, episodes: EpisodeDataset, skips: SourceSkips):
        self.episodes, self.skips = episodes, skips

    @torch.no_grad()
    def __getitem__(self, key: EpisodeKey) -> dict[str, torch.Tensor]:
        episode = self.episodes[key]
        images, drawings = (normalize(episode[name]) for name in ("images", "landmark_images"))
        landmarks, mattes = episode["landmarks"], episode["mattes"].float() / 255
        side = self.skips.config.working_size // 4
        flow, residual, weight = measure_residual_flow(*images, *landmarks, *mattes, side)
        features = self.skips.encode_features(images[1:], drawings[1:])
        portrait = FsthSources(images=images[1:], landmark_images=drawings[1:], features=features)
        seen = self.skips.refiner_input(portrait, drawings[:1], flow)[0]
        return {"seen": seen.half(), "landmarks": landmarks, "residual": residual.half(), "weight": weight.half()}


def sample_pairs(clips: list[ClipRecord], count: int, seed: tuple[int, ...]) -> list[EpisodeKey]:
    """Pairs of frames; people equally often, however many clips there are of them."""
    clips_of = Counter(clip.identity for clip in clips)
    shares = np.array([1 / clips_of[clip.identity] / len(clips_of) for clip in clips])
    chosen = np.random.default_rng(seed).choice(len(clips), count, p=shares)
    return [EpisodeKey(int(clip), 1, (*seed, position)) for position, clip in enumerate(chosen)]


def compute_pairs(dataset: FlowDataset, keys: list[EpisodeKey], num_workers: int, file: Path) -> dict:
    """The pairs as four tensors, of `file` if it has just these, otherwise worked out and saved there."""
    clips, encoder = dataset.episodes.clips, dataset.skips.encoder.state_dict().values()
    identity = hashlib.sha256(repr((dataset.episodes.image_size, keys, [clip.key for clip in clips])).encode())
    for array in (*(clip.landmarks for clip in clips), *(tensor.numpy() for tensor in encoder)):
        identity.update(array.tobytes())
    metadata = {"sha256": identity.hexdigest()}
    if file.exists():
        with safe_open(file, "pt") as saved:
            if saved.metadata() == metadata:
                return {name: saved.get_tensor(name) for name in saved.keys()}
    pairs = {}
    loader = DataLoader(dataset, sampler=keys, batch_size=PAIRS_AT_ONCE, num_workers=num_workers)
    for number, batch in enumerate(loader):
        for name, values in batch.items():
            whole = pairs.setdefault(name, values.new_empty(len(keys), *values.shape[1:]))
            whole[number * PAIRS_AT_ONCE :][: len(values)] = values
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    save_file(pairs, partial, metadata)
    partial.replace(file)
    return pairs


class FlowLearner(nn.Module):
    """The refiner and what is asked of it as one module, so that distributed training sees one forward pass.

    Args:
        refiner ([`FlowRefiner`]).
        image_size (`int`): side in pixels of the frames that the landmarks are of.
    """

    def __init__(self, refiner: FlowRefiner, image_size: int):
        super().__init__()
        self.refiner, self.image_size = refiner, image_size

    def forward(self, seen, landmarks, residual, weight, trust) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Mean end-point error of the refined flow and of the landmarks' own, in normalized coordinates, and how far
        confidence and visibility are from what they were (`trust`, B x 2 x h x w): the decoder goes by them.
        """
        flow = FLOW_UNIT * seen[:, -2:].permute(0, 2, 3, 1)  # B x h x w x 2
        motions = head_motions(landmarks[:, 0], landmarks[:, 1], flow, self.image_size)
        refined, *now = self.refiner(seen, motions)
        share = weight / weight.sum().clamp(min=1)  # B x h x w
        errors = (((f - residual).norm(dim=-1) * share).sum() for f in (refined, torch.zeros_like(refined)))
        return *errors, F.mse_loss(torch.cat(now, dim=1), trust)


@torch.no_grad()
def compute_trust(refiner: FlowRefiner, seen: torch.Tensor) -> torch.Tensor:
    """Confidence and visibility of each pair as the refiner has them, N x 2 x h x w."""
    still = torch.zeros(1, NUM_MOTIONS, *seen.shape[2:], 2)  # the flow is not asked for
    parts = [refiner(rows.float(), still)[1:] for rows in seen.split(PAIRS_AT_ONCE)]
    return torch.cat([torch.cat(part, dim=1) for part in parts])


def batch_of(pairs: dict[str, torch.Tensor], rows, device: torch.device) -> dict[str, torch.Tensor]:
    batch = {name: tensor[rows].to(device, torch.float32) for name, tensor in pairs.items()}
    return batch | {"seen": batch["seen"].to(memory_format=torch.channels_last)}


def main(argv=None):
    args = parse_args(argv)
    accelerator = Accelerator(mixed_precision=args.mixed_precision)
    set_seed(args.seed)
    embedder, generator, discriminator = load_networks(args.pretrained)
    if not generator.config.source_skips:
        sys.exit(f"The generator in {args.pretrained} has no source skips, and with them no flow to refine.")

    rank = accelerator.process_index
    skips = generator.source_skips
    episodes = EpisodeDataset(read_index(args.shards), args.image_size, 1)
    keys = sample_pairs(episodes.clips, args.num_pairs // accelerator.num_processes, (args.seed, rank))
    file = args.output_dir / f"pairs-{rank}.safetensors"
    pairs = compute_pairs(FlowDataset(episodes, skips), keys, args.num_workers, file)
    validation = None
    if args.validation_shards and accelerator.is_main_process:
        held_out = EpisodeDataset(read_index(args.validation_shards), args.image_size, 1, augment=False)
        keys = [EpisodeKey(clip, 1, (clip, n)) for n in range(VALIDATION_PAIRS) for clip in range(len(held_out))]
        file = args.output_dir / "pairs-validation.safetensors"
        validation = compute_pairs(FlowDataset(held_out, skips), keys, args.num_workers, file)
    for computed in filter(None, (pairs, validation)):
        computed["trust"] = compute_trust(skips.refiner, computed["seen"])

    learner = FlowLearner(skips.refiner, args.image_size).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(learner.parameters(), args.learning_rate)
    learner, optimizer = accelerator.prepare(learner, optimizer)
    schedule = get_linear_schedule_with_warmup(optimizer, WARMUP_STEPS, args.max_steps)
    sampler = torch.Generator().manual_seed(args.seed + rank)

    def validate() -> float | None:
        """Error over the landmarks' error, so that 1 is what is there without learning."""
        if validation is None:
            return None
        errors = np.zeros(2)
        with torch.no_grad(), accelerator.autocast():
            for rows in torch.arange(len(validation["weight"])).split(args.batch_size):
                batch = batch_of(validation, rows, accelerator.device)
                *found, _ = accelerator.unwrap_model(learner)(**batch)
                errors += [error.item() * batch["weight"].sum().item() for error in found]
        return round(errors[0] / errors[1], 4)

    best = validate()
    accelerator.print(json.dumps({"step": 0, "validation": best}))
    if accelerator.is_main_process:
        save_networks(args.output_dir / "model", embedder, generator, discriminator)
    started, seen = time.monotonic(), np.zeros(2)
    for step in range(1, args.max_steps + 1):
        rows = torch.randint(len(pairs["weight"]), (args.batch_size,), generator=sampler)
        with accelerator.autocast():
            error, baseline, distrust = learner(**batch_of(pairs, rows, accelerator.device))
        accelerator.backward(error / FLOW_UNIT + distrust)
        accelerator.clip_grad_norm_(learner.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        seen += error.item(), baseline.item()
        if accelerator.is_main_process and (step % args.log_every == 0 or step == args.max_steps):
            speed = step * args.batch_size * accelerator.num_processes / (time.monotonic() - started)
            line = {"step": step, "error": round(seen[0] / seen[1], 4), "validation": validate()}
            print(json.dumps(line | {"pairs_per_second": round(speed, 1)}), flush=True)
            seen[:] = 0
            if validation is None or line["validation"] < best:
                best = line["validation"]
                save_networks(args.output_dir / "model", embedder, generator, discriminator)
    accelerator.end_training()


if __name__ == "__main__":
    main()
