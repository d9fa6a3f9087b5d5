"""Packs what a training run needs into one small folder, for a large GPU that is lent for minutes.

    python training/pack.py SHARDS STILLS PACK --vgg VGG --megabytes 34

Frames and stills become WebP, as many of each clip and as many stills as fit; the VGG keeps the stages that losses
look at. `training/gpu.sh` trains from the folder.
"""

import argparse
import csv
import io
import json
import math
import sys
import tarfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file


sys.path.insert(0, str(Path(__file__).parents[1]))  # runs from a checkout that is not installed

from fsth_hub.finetuning.feature_networks import load_weights
from training.checkpoints import empty_folder, replace_folder
from training.data.component_dataset import list_stills
from training.data.dataset import ClipRecord, read_index


MATTE_SIZE = 128  # pixels
STILL_SIZE = 256  # pixels around the face, of a still's 384
QUALITY = {"RGB": 80, "L": 70}
LAST_LAYER = 21  # of VGG16, relu4_3
TAR_OVERHEAD = 800  # bytes a member of an archive takes besides its own
LANDMARKS = 700  # bytes, of one face
STILLS_SHARE = 0.5  # of the room for pictures


def webp(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "WEBP", quality=QUALITY[image.mode])
    return data.getvalue()


def pack_vgg(source: str, path: Path) -> int:
    """Half of a VGG16, in half precision, with its heads; returns the bytes."""
    kept = {}
    for name, weight in load_weights(source).items():
        kind, number = name.split(".")[:2]
        if kind.startswith("lin") or (kind == "features" and int(number) <= LAST_LAYER):
            kept[name] = weight.half()
    kept.pop("lin4.weight", None)  # of the stage that is left out
    save_file(kept, path)
    return path.stat().st_size


def pack_clips(clips: list[ClipRecord], folder: Path, room: int) -> int:
    """As many frames of each clip, evenly spread, as have room in all; returns their number."""
    probe = [len(webp(clip.image(0))) + len(webp(small_matte(clip, 0))) for clip in clips[:: max(1, len(clips) // 20)]]
    count = max(2, math.floor(room / (np.mean(probe) + 2 * TAR_OVERHEAD + LANDMARKS) / len(clips)))
    folder.mkdir()
    total = 0
    with tarfile.open(folder / "shard-00000.tar", "w") as tar:
        for clip in clips:
            chosen = np.unique(np.linspace(0, len(clip.frames) - 1, count).round().astype(int))
            for position, frame in enumerate(chosen):
                add(tar, f"{clip.key}.{position:04d}.jpg", webp(clip.image(frame)))
                add(tar, f"{clip.key}.{position:04d}.png", webp(small_matte(clip, frame)))
            points = io.BytesIO()
            np.save(points, clip.landmarks[chosen])
            add(tar, f"{clip.key}.landmarks.npy", points.getvalue())
            times = [clip.times[frame] for frame in chosen]
            about = {"identity": clip.identity, "source": clip.key, "times": times}
            add(tar, f"{clip.key}.json", json.dumps(about).encode())
            total += len(chosen)
    return total


def small_matte(clip: ClipRecord, frame: int) -> Image.Image:
    return clip.matte(frame).resize((MATTE_SIZE, MATTE_SIZE), Image.Resampling.BOX)


def add(tar: tarfile.TarFile, name: str, data: bytes):
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def pack_stills(source: Path, folder: Path, room: int) -> int:
    """Faces of as many stills as have room, none that is held out; returns their number."""
    (folder / "crops").mkdir(parents=True)
    stills = list_stills(source, held_out=False)
    np.random.default_rng(0).shuffle(stills)
    landmarks, rows = [], []
    for path, points in stills:
        with Image.open(path) as image:
            margin = np.array([(side - STILL_SIZE) // 2 for side in image.size]).clip(0)
            box = (*margin, *(margin + [min(side, STILL_SIZE) for side in image.size]))
            data = webp(image.convert("RGB").crop(tuple(int(value) for value in box)))
        room -= len(data) + LANDMARKS
        if room < 0:
            break
        (folder / "crops" / path.name).write_bytes(data)
        landmarks.append(points - margin)
        rows.append([path.name, "packed", 1000])
    with open(folder / "index.csv", "w", newline="") as file:
        csv.writer(file).writerows([["file", "source", "crop_side_px_in_original"], *rows])
    np.savez(folder / "landmarks.npz", points=np.array(landmarks, np.float32).reshape(-1, 78, 2))
    return len(rows)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path, help="folder of training shards (training/prepare_dataset.py)")
    parser.add_argument("stills", type=Path, help="folder of head crops with index.csv and landmarks.npz")
    parser.add_argument("pack", type=Path, help="folder to write; what lies there is replaced")
    parser.add_argument("--vgg", required=True, help="VGG16 with the heads of LPIPS, file or hub repository")
    parser.add_argument("--megabytes", type=float, default=34, help="of the whole folder")
    args = parser.parse_args(argv)
    partial = empty_folder(args.pack.with_suffix(".partial"))
    room = int(args.megabytes * 1e6) - pack_vgg(args.vgg, partial / "vgg.safetensors")
    if room <= 0:
        sys.exit(f"The VGG alone takes more than {args.megabytes:g} megabytes.")
    pictures = int(room * 0.97)  # tar headers and landmarks take the rest
    report = {"stills": pack_stills(args.stills, partial / "stills", int(pictures * STILLS_SHARE))}
    report["frames"] = pack_clips(read_index(args.shards), partial / "shards", int(pictures * (1 - STILLS_SHARE)))
    replace_folder(partial, args.pack)
    report["megabytes"] = round(sum(path.stat().st_size for path in args.pack.rglob("*") if path.is_file()) / 1e6, 1)
    print(json.dumps(report))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
