"""Make training shards from a folder of clips: head crops and landmarks, in WebDataset's tar layout.

    python training/prepare_dataset.py CLIPS SHARDS
    python training/prepare_dataset.py vox2/dev/mp4 SHARDS --no_crop --engine ray    # VoxCeleb2, on many machines

Clips lie anywhere below CLIPS; the first folder below it names the person. VoxCeleb2's own folders (.../id00012/
21Uxsk56VDQ/00001.mp4: person, video, utterance) are known wherever CLIPS begins.

Every worker writes whole shards, so that workers never wait for one another and no clip passes through a bottleneck;
clips are read in a process of their own, so that one that kills its decoder costs nothing but itself. A shard appears
when it is complete, and `manifest.jsonl` beside the shards says what became of each clip: killed and started again,
the script does the rest and nothing twice. A clip that cannot be used is reported and skipped.
"""

import argparse
import io
import json
import math
import os
import re
import signal
import sys
import tarfile
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import lru_cache, partial
from itertools import count, islice
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import numpy as np
from PIL import Image


ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # runs from a checkout that is not installed

from fsth_hub.landmarks import DEFAULT_DETECTOR, DETECTORS, Face, describe_detectors, get_detector, track_clip
from fsth_hub.media.matting import cut_out
from fsth_hub.media.reading import open_clip
from fsth_hub.models.cropping import crop_box, crop_image, to_crop, whole_frame
from fsth_hub.models.errors import FsthError, NoFaceError, VideoError
from fsth_hub.models.landmark_layout import FACE
from fsth_hub.pipelines.workers import Crashed, ProcessWorker, start_ray


SUFFIXES = {".mp4", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".m4v"}
VOXCELEB2 = re.compile(r"(?:^|/)(id\d{5})/[\w-]{11}/\d{5}\.mp4$")
JPEG_QUALITY = 92
MIN_FRAMES = 9  # K = 8 and one to generate
# Where there are more frames than are kept, every second or third is enough to follow a face.
MAX_STRIDE = 3
# The landmarks of a face that moved by more than this share of its size are looked for once more, from where it is:
# with every third frame they are then 0.9 % of the distance between the eyes off (0.8 % if all are tracked, 1.2 % if
# looked for once; median of nine clips), at half the cost of tracking all.
FAST = 0.02


class Frames(NamedTuple):
    """What is kept of a clip: crops (JPEG), mattes (PNG, greyscale), landmarks (frames x 78 x 2, pixels of the crop)
    and times (s)."""

    crops: list[bytes]
    mattes: list[bytes]
    landmarks: np.ndarray
    times: list[float]


class Skipped(NamedTuple):
    """Why a clip is left out: a short code to group by, and a sentence."""

    reason: str
    sentence: str


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", type=Path, help="folder of clips, one folder per person")
    parser.add_argument("shards", type=Path, help="folder to write shards and manifest.jsonl to")
    parser.add_argument("--image_size", type=int, default=256, help="side of the crops in pixels")
    parser.add_argument("--frames_per_clip", type=int, default=64, help="at most so many frames, evenly spaced")
    parser.add_argument("--clips_per_shard", type=int, default=32, help="clips in one tar file, at most")
    parser.add_argument("--detector", default=DEFAULT_DETECTOR, choices=list(DETECTORS), help=describe_detectors())
    parser.add_argument("--no_crop", action="store_true", help="the clips are square head crops already")
    parser.add_argument("--num_workers", type=int, help="by default one for each core")
    engine_help = "processes of this machine, or of a Ray cluster whose machines share the folders and this checkout"
    parser.add_argument("--engine", default="local", choices=["local", "ray"], help=engine_help)
    return parser.parse_args()


# one clip


@lru_cache
def detector_of_process(name: str):
    import cv2

    # there is a process for every core already, and what OpenCV says about its backends is no news of the clips
    cv2.setNumThreads(1)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
    return get_detector(name)


class SteadyDetector:
    """A detector for frames that do not follow closely on each other."""

    def __init__(self, detector):
        self.detector = detector
        self.detect = detector.detect

    def track(self, image: np.ndarray, previous: Face) -> Face | None:
        face = self.detector.track(image, previous)
        if face is not None and np.abs(face.points[FACE] - previous.points[FACE]).mean() > FAST * face.size:
            face = self.detector.track(image, face)
        return face


def process_clip(path: Path, args) -> Frames:
    """The frames of one clip that are kept, or an `FsthError`."""
    clip = open_clip(path)
    stride = min(MAX_STRIDE, max(1, (clip.frame_count or 0) // max(args.frames_per_clip, MIN_FRAMES)))
    detector = detector_of_process(args.detector)
    if stride > 1:
        detector = SteadyDetector(detector)
    # two passes, so that no clip has to fit into memory: where the face is, then its crops
    faces = list(track_clip(islice(clip, 0, None, stride), detector))
    found = [index for index, face in enumerate(faces) if face is not None]
    if len(found) < MIN_FRAMES:
        raise NoFaceError(f"A face was found in only {len(found)} of {len(faces)} frames.")
    spaced = np.linspace(0, len(found) - 1, min(len(found), args.frames_per_clip)).round().astype(int)
    chosen = [found[position] for position in spaced]
    box = crop_box(np.stack([faces[index].points for index in found]))
    if args.no_crop:
        box = whole_frame(clip.width, clip.height, path.name)
    wanted, crops, mattes = set(chosen), [], []
    for index, frame in enumerate(islice(clip, 0, chosen[-1] * stride + 1, stride)):
        if index in wanted:
            crop = crop_image(frame, box, args.image_size)
            matte = cut_out(crop, to_crop(faces[index].points, box, args.image_size))
            crops.append(encode(crop, "JPEG", quality=JPEG_QUALITY))
            matte = Image.fromarray((matte * 255).round().astype(np.uint8)).resize(crop.shape[:2])
            mattes.append(encode(np.asarray(matte), "PNG"))
    landmarks = to_crop(np.stack([faces[index].points for index in chosen]), box, args.image_size)
    return Frames(crops, mattes, landmarks, [index * stride / clip.fps for index in chosen])


def encode(picture: np.ndarray, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format, **options)
    return buffer.getvalue()


def try_clip(path: Path, args) -> Frames | Skipped:
    try:
        return process_clip(path, args)
    except NoFaceError as error:
        return Skipped("no_face", str(error))
    except VideoError as error:
        return Skipped("unreadable", str(error))
    except FsthError as error:
        return Skipped("unsuitable", str(error))
    except Exception as error:  # a run of days must not end with one odd file
        return Skipped("error", f"{type(error).__name__}: {error}")


def reader(function: Callable[[Path, argparse.Namespace], Frames | Skipped], args) -> Callable:
    """What a process that reads clips calls on each."""
    return lambda path: function(path, args)


# one shard


def add_bytes(tar: tarfile.TarFile, name: str, content: bytes):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def add_clip(tar: tarfile.TarFile, relative: Path, frames: Frames):
    # one key for each path, without the dot at which WebDataset's keys end
    key = quote(relative.as_posix(), safe="").replace(".", "%2E")
    for index, (crop, matte) in enumerate(zip(frames.crops, frames.mattes, strict=True)):
        add_bytes(tar, f"{key}.{index:04d}.jpg", crop)
        add_bytes(tar, f"{key}.{index:04d}.png", matte)
    buffer = io.BytesIO()
    np.save(buffer, frames.landmarks)
    add_bytes(tar, f"{key}.landmarks.npy", buffer.getvalue())
    known = VOXCELEB2.search(relative.as_posix())
    # clips below a person's folder that share a folder come from one video; those in it stand for themselves
    video = relative.parent if known or len(relative.parts) > 2 else relative
    description = {
        "identity": known[1] if known else relative.parts[0],
        "video": video.as_posix(),
        "source": relative.as_posix(),
        "times": frames.times,
    }
    add_bytes(tar, f"{key}.json", json.dumps(description).encode())


of_thread = threading.local()


def write_shard(name: str, group: list[Path], args, function=try_clip) -> list[dict]:
    """Write the shard of these clips (paths below `args.clips`); returns their lines of the manifest."""
    if not hasattr(of_thread, "process"):
        of_thread.process = ProcessWorker(partial(reader, function, args))
    unfinished, entries = args.shards / f"{name}.partial", []
    with tarfile.open(unfinished, "w") as tar:
        for relative in group:
            result = of_thread.process(args.clips / relative)
            entry = {"source": relative.as_posix(), "shard": name, "frames": 0}
            if isinstance(result, Crashed):
                result = Skipped("crash", result.cause)
            if isinstance(result, Skipped):
                entry |= {"reason": result.reason, "skipped": result.sentence}
            else:
                add_clip(tar, relative, result)
                entry["frames"] = len(result.crops)
            entries.append(entry)
    unfinished.replace(args.shards / name)
    return entries


# all shards


def run_local(tasks: Iterable[tuple[str, list[Path]]], args) -> Iterator[list[dict]]:
    pool = ThreadPoolExecutor(args.num_workers)  # a thread only waits for its process and writes
    try:
        for future in as_completed([pool.submit(write_shard, *task, args) for task in tasks]):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)  # where one fails (the disk is full), the others would


def run_ray(tasks: Iterable[tuple[str, list[Path]]], args) -> Iterator[list[dict]]:
    import ray

    # by its name in the package: what `__main__` defines, processes of other machines could not import
    from training.prepare_dataset import write_shard

    remote, tasks = ray.remote(write_shard), iter(tasks)
    waiting = [remote.remote(*task, args) for task in islice(tasks, args.num_workers)]
    while waiting:
        done, waiting = ray.wait(waiting)
        waiting += [remote.remote(*task, args) for task in islice(tasks, len(done))]
        yield from ray.get(done)


def read_manifest(path: Path) -> list[dict]:
    """The entries of shards that were written; the rest of a line that was cut off goes, with its whole shard."""
    text = path.read_text() if path.exists() else ""
    *lines, rest = text.split("\n")
    entries = [json.loads(line) for line in lines]
    if rest:
        last = re.search(r'"shard": "([^"]+)"', rest)
        cut = {last[1]} if last else {entry["shard"] for entry in entries[-1:]}
        entries = [entry for entry in entries if entry["shard"] not in cut]
        replacement = path.with_suffix(".partial")
        replacement.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
        replacement.replace(path)
    return entries


def summary(entries: list[dict]) -> str:
    kept = [entry["frames"] for entry in entries if entry["frames"]]
    skipped: dict[str, list[dict]] = {}
    for entry in entries:
        if not entry["frames"]:
            skipped.setdefault(entry.get("reason", "unknown"), []).append(entry)
    lines = [f"{len(kept)} clips kept ({sum(kept)} frames), {len(entries) - len(kept)} skipped"]
    for reason, group in sorted(skipped.items(), key=lambda item: -len(item[1])):
        lines.append(f"  {reason}: {len(group)}, such as {group[0]['source']}: {group[0]['skipped']}")
    return "\n".join(lines)


def main():
    args = parse_args()
    # Ctrl-C ends a run like any other kill, at once: the next one makes what was begun
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    args.clips, args.shards = args.clips.resolve(), args.shards.resolve()  # other processes have other folders
    relatives = sorted(p.relative_to(args.clips) for p in args.clips.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not relatives:
        sys.exit(f"There are no clips ({', '.join(sorted(SUFFIXES))}) below {args.clips}.")
    try:
        detector_of_process(args.detector)  # a wrong name, or weights that cannot be fetched, are not the clips' fault
        cores = sum(start_ray()[0]) if args.engine == "ray" else os.cpu_count()
    except FsthError as error:
        sys.exit(str(error))
    args.num_workers = args.num_workers or cores

    args.shards.mkdir(parents=True, exist_ok=True)
    manifest = args.shards / "manifest.jsonl"
    entries = read_manifest(manifest)
    done, written = {entry["source"] for entry in entries}, {entry["shard"] for entry in entries}
    # what the manifest does not name was cut off between the two writes, and is made again
    for path in [*args.shards.glob("shard-*.tar"), *args.shards.glob("shard-*.tar.partial")]:
        if path.name not in written:
            path.unlink()
    remaining = [relative for relative in relatives if relative.as_posix() not in done]
    print(f"{len(relatives)} clips, {len(relatives) - len(remaining)} of them done before", flush=True)

    size = min(args.clips_per_shard, max(1, math.ceil(len(remaining) / args.num_workers)))
    groups = [remaining[start : start + size] for start in range(0, len(remaining), size)]
    names = (name for number in count() if (name := f"shard-{number:05d}.tar") not in written)
    run = run_ray if args.engine == "ray" else run_local
    for shard in run(zip(names, groups, strict=False), args):
        with open(manifest, "a") as file:
            file.write("".join(json.dumps(entry) + "\n" for entry in shard))
        for entry in shard:
            if "skipped" in entry:
                print(f"skipped {entry['source']}: {entry['skipped']}")
        print(f"{shard[0]['shard']}: {sum(entry['frames'] > 0 for entry in shard)} of {len(shard)} clips", flush=True)
        entries += shard
    print(summary(entries))


if __name__ == "__main__":
    main()
