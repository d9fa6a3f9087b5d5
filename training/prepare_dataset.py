"""Make training shards from a folder of clips: head crops and landmarks, in WebDataset's tar layout.

    python training/prepare_dataset.py CLIPS SHARDS

Clips lie anywhere below CLIPS; the first folder below it names the person (VoxCeleb2: id00012/video/00001.mp4). Each
shard is written whole or not at all, and `manifest.jsonl` beside the shards says what became of each clip: killed and
started again, the script does the rest and nothing twice. A clip that cannot be used is reported and skipped.
"""

import argparse
import io
import json
import os
import tarfile
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote

import numpy as np
from PIL import Image

from fsth_hub.errors import FsthError
from fsth_hub.landmarks import crop_box, crop_image, get_detector, to_crop, track_clip, whole_frame
from fsth_hub.video import open_clip


SUFFIXES = {".mp4", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".m4v"}
JPEG_QUALITY = 92
MIN_FRAMES = 9  # K = 8 and one to draw


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path, help="folder of clips, one folder per person")
    parser.add_argument("shards", type=Path, help="folder to write shards and manifest.jsonl to")
    parser.add_argument("--image_size", type=int, default=256, help="side of the crops in pixels")
    parser.add_argument("--frames_per_clip", type=int, default=64, help="at most so many frames, evenly spaced")
    parser.add_argument("--clips_per_shard", type=int, default=32, help="clips in one tar file")
    parser.add_argument("--detector", default="mediapipe", help="mediapipe or face-alignment")
    parser.add_argument("--no_crop", action="store_true", help="the clips are square head crops already")
    parser.add_argument("--num_workers", type=int, default=os.cpu_count(), help="processes")
    return parser.parse_args()


@lru_cache
def detector_of_process(name: str):
    return get_detector(name)


def process_clip(path: Path, args) -> tuple[list[bytes], np.ndarray, list[float]]:
    """Crops (JPEG), landmarks (frames x 78 x 2, pixels of the crop) and times (s) of one clip, or an `FsthError`."""
    clip = open_clip(path)
    # two passes, so that no clip has to fit into memory: where the face is, then its crops
    faces = list(track_clip(clip, detector_of_process(args.detector)))
    found = [index for index, face in enumerate(faces) if face is not None]
    if len(found) < MIN_FRAMES:
        raise FsthError(f"{path.name}: a face was found in only {len(found)} of {len(faces)} frames.")
    spaced = np.linspace(0, len(found) - 1, min(len(found), args.frames_per_clip)).round().astype(int)
    chosen = [found[position] for position in spaced]
    box = crop_box(np.stack([faces[index].points for index in found]))
    if args.no_crop:
        box = whole_frame(clip.width, clip.height, path.name)
    wanted, crops = set(chosen), []
    for index, frame in enumerate(clip):
        if index in wanted:
            buffer = io.BytesIO()
            Image.fromarray(crop_image(frame, box, args.image_size)).save(buffer, "JPEG", quality=JPEG_QUALITY)
            crops.append(buffer.getvalue())
    landmarks = to_crop(np.stack([faces[index].points for index in chosen]), box, args.image_size)
    return crops, landmarks, [index / clip.fps for index in chosen]


def try_clip(path: Path, args):
    try:
        return process_clip(path, args), None
    except FsthError as error:
        return None, str(error)


def add_bytes(tar: tarfile.TarFile, name: str, content: bytes):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def add_clip(tar: tarfile.TarFile, relative: Path, crops: list[bytes], landmarks: np.ndarray, times: list[float]):
    # one key for each path, without the dot at which WebDataset's keys end
    key = quote(relative.as_posix(), safe="").replace(".", "%2E")
    for index, crop in enumerate(crops):
        add_bytes(tar, f"{key}.{index:04d}.jpg", crop)
    buffer = io.BytesIO()
    np.save(buffer, landmarks)
    add_bytes(tar, f"{key}.landmarks.npy", buffer.getvalue())
    description = {"identity": relative.parts[0], "source": relative.as_posix(), "times": times}
    add_bytes(tar, f"{key}.json", json.dumps(description).encode())


def main():
    args = parse_args()
    args.shards.mkdir(parents=True, exist_ok=True)
    manifest = args.shards / "manifest.jsonl"
    lines = manifest.read_text().splitlines() if manifest.exists() else []
    entries = [json.loads(line) for line in lines]
    done = {entry["source"] for entry in entries}
    # a shard that the manifest does not name was cut off between the two writes, and is made again
    next_shard = len({entry["shard"] for entry in entries})
    relatives = sorted(p.relative_to(args.clips) for p in args.clips.rglob("*") if p.suffix.lower() in SUFFIXES)
    remaining = [relative for relative in relatives if relative.as_posix() not in done]
    print(f"{len(relatives)} clips, {len(relatives) - len(remaining)} of them done before")

    with ProcessPoolExecutor(args.num_workers) as pool:
        for start in range(0, len(remaining), args.clips_per_shard):
            group = remaining[start : start + args.clips_per_shard]
            shard = args.shards / f"shard-{next_shard:05d}.tar"
            next_shard += 1
            partial = shard.with_suffix(".partial")
            entries = []
            with tarfile.open(partial, "w") as tar:
                results = pool.map(try_clip, [args.clips / relative for relative in group], [args] * len(group))
                for relative, (clip, problem) in zip(group, results, strict=True):
                    entry = {"source": relative.as_posix(), "shard": shard.name, "frames": 0}
                    if problem is None:
                        add_clip(tar, relative, *clip)
                        entry["frames"] = len(clip[0])
                    else:
                        entry["skipped"] = problem
                        print(f"skipped: {problem}")
                    entries.append(entry)
            partial.replace(shard)
            with open(manifest, "a") as file:
                file.writelines(json.dumps(entry) + "\n" for entry in entries)
            print(f"{shard.name}: {sum(entry['frames'] > 0 for entry in entries)} of {len(group)} clips")


if __name__ == "__main__":
    main()
