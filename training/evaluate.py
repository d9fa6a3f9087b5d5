"""Self-reenactment of unseen people (arXiv 1905.08233, section 4): one portrait drives the rest of its own clip.

    python training/evaluate.py SHARDS --lpips alexnet_lpips.safetensors --output_dir runs/evaluation

The first frame of each clip is the portrait, feed-forward; frames spread over the rest are drawn from their landmarks
and compared with the truth. Beside the model stand the portrait as it is and the portrait warped by the landmarks
alone. Writes evaluation.json, a Markdown table and a picture; intervals are bootstrapped over people.
"""

import argparse
import json
import platform
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image


sys.path.insert(0, str(Path(__file__).parents[1]))  # runs from a checkout that is not installed

from fsth_hub.feature_networks import load_weights
from fsth_hub.pipeline_fsth import FsthPipeline
from fsth_hub.source_skips import landmark_flow, pixel_grid, resize_flow, warp
from training.dataset import Clip, read_index
from training.metrics import LPIPS


METHODS = ("unmoved portrait", "warp by landmarks", "model")
CLIPS_SHOWN, FRAMES_SHOWN = 6, 2


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path, help="shards of people the model was not trained on")
    parser.add_argument("--model", help="pipeline folder or hub id; by default the bundled model")
    parser.add_argument("--lpips", required=True, help="AlexNet with LPIPS heads: safetensors file or hub repository")
    parser.add_argument("--num_frames", type=int, default=32, help="frames drawn per clip")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--output_dir", type=Path, required=True)
    return parser.parse_args()


def evaluate_clip(pipe: FsthPipeline, lpips: LPIPS, clip: Clip, num_frames: int):
    """LPIPS of each method (frames drawn, 3), the seconds per drawn frame, and the pictures of some frames."""
    chosen = np.linspace(1, len(clip.frames) - 1, min(num_frames, len(clip.frames) - 1)).round().astype(int)
    images = [np.asarray(clip.image(index)) for index in (0, *chosen)]
    landmarks = clip.landmarks[[0, *chosen]]
    inputs = pipe.image_processor.preprocess(images, landmarks)
    truth, portrait = inputs["pixel_values"][1:], inputs["pixel_values"][:1]
    person = pipe.embed_crops(images[:1], landmarks[:1])
    generator = pipe.generator.fused()
    size = portrait.shape[-1]
    small, full = pixel_grid(size // 4, size // 4, "cpu"), pixel_grid(size, size, "cpu")

    distances, rows, seconds = [], [], 0.0
    for index, real in enumerate(truth):
        started = time.perf_counter()
        drawn = pipe.draw_frame(generator, person, inputs["landmarks"][1 + index].numpy())
        seconds += time.perf_counter() - started
        # what people get: 8-bit pictures
        drawn = torch.from_numpy(drawn).permute(2, 0, 1)[None] / 127.5 - 1
        points = inputs["landmarks"][1 + index : 2 + index], inputs["landmarks"][:1]
        flow = landmark_flow(*points, size, small).unflatten(1, small.shape[:2])
        warped = warp(portrait, resize_flow(flow, size, size), full)
        frames = torch.cat([portrait, warped, drawn])
        distances.append(lpips(frames, real.expand_as(frames)).tolist())
        if index in np.linspace(0, len(truth) - 1, FRAMES_SHOWN + 1).astype(int)[1:]:
            row = pipe.image_processor.postprocess(torch.cat([frames, real[None]]))
            rows.append(np.concatenate(row, axis=1))
    return np.array(distances), seconds / len(truth), rows


def interval(values: np.ndarray, resamples: int = 10_000) -> tuple[float, float]:
    """95 % of the means of people drawn with replacement."""
    draws = np.random.default_rng(0).integers(len(values), size=(resamples, len(values)))
    low, high = np.percentile(values[draws].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def main():
    args = parse_args()
    dtype = args.dtype if args.dtype == "auto" else getattr(torch, args.dtype)
    pipe = FsthPipeline.from_pretrained(args.model, dtype=dtype)
    lpips = LPIPS(load_weights(args.lpips))
    clips = read_index(args.shards)
    people, pictures, seconds = {}, [], []
    for number, clip in enumerate(clips):
        distances, frame_seconds, rows = evaluate_clip(pipe, lpips, clip, args.num_frames)
        people.setdefault(clip.identity, []).append(distances.mean(axis=0))
        seconds.append(frame_seconds)
        if number % max(1, len(clips) // CLIPS_SHOWN) == 0:
            pictures += rows
        print(clip.key, dict(zip(METHODS, distances.mean(axis=0).round(4).tolist(), strict=True)), flush=True)

    means = np.array([np.mean(clips, axis=0) for clips in people.values()])  # people x methods
    result = {
        "protocol": "self-reenactment, one-shot, feed-forward, LPIPS (AlexNet)",
        "people": len(people),
        "clips": len(clips),
        "frames_per_clip": args.num_frames,
        "lpips": {m: [float(means[:, i].mean()), *interval(means[:, i])] for i, m in enumerate(METHODS)},
        # paired over people, so that a small difference that everybody shows is not lost among people
        "model_minus_warp": [float((means[:, 2] - means[:, 1]).mean()), *interval(means[:, 2] - means[:, 1])],
        "seconds_per_frame": float(np.median(seconds)),
        "hardware": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads",
        "device": str(pipe.device),
        "dtype": str(pipe.dtype),
    }
    args.output_dir.mkdir(parents=True, exist_ok=True)
    (args.output_dir / "evaluation.json").write_text(json.dumps(result, indent=2) + "\n")
    Image.fromarray(np.concatenate(pictures)).save(args.output_dir / "evaluation.jpg", quality=92)
    table = ["| | LPIPS | 95 % interval |", "|---|---|---|"]
    for method, (mean, low, high) in (result["lpips"] | {"model minus warp": result["model_minus_warp"]}).items():
        table.append(f"| {method} | {mean:.4f} | {low:.4f} to {high:.4f} |")
    (args.output_dir / "evaluation.md").write_text("\n".join(table) + "\n")
    print("\n".join(table))


if __name__ == "__main__":
    main()
