"""How near the mouth of a motion that was made from a voice comes to that of the clip in which the voice speaks.

    python training/measure_mouth.py CLIP MOTION [CLIP MOTION ...] [--tracks FOLDER]

MOTION is what `DrivingMotion.load` takes, such as mouth cues that a program heard in CLIP's sound. Prints for each
clip the correlation of the openings of the two mouths, which is 0 for one that does not move, and how many of the
clip's closures are shut; and to judge these by, how many of the frames with an open mouth are shut as well, and how
often the same motion, moved by a second or more, has a correlation as high.
"""

import argparse
import hashlib
import sys
from pathlib import Path

import numpy as np


sys.path.insert(0, str(Path(__file__).parents[1]))  # runs from a checkout that is not installed

from fsth_hub import DrivingMotion
from fsth_hub.landmarks import get_detector, track_clip
from fsth_hub.landmarks.pose import Pose
from fsth_hub.media.reading import open_clip
from fsth_hub.models.errors import FsthError, NoFaceError
from training.evaluation.expression import mouth_openings


SHUT = 0.25  # of the way from the mouth's 5th to its 95th percentile: below it counts as shut
STILL = 0.01  # distances between the eyes: a mouth that opens no further does not move
MIN_SECONDS = 2.5  # of a clip, or there is nowhere to move a motion to
KEYS = ("correlation", "closures shut", "open frames shut", "as high by chance")


def parse_args(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", metavar="CLIP MOTION", help="pairs of files")
    parser.add_argument("--tracks", type=Path, help="folder to keep what is seen in the clips, to track them but once")
    args = parser.parse_args(arguments)
    if len(args.files) % 2:
        parser.error("give a motion for each clip")
    return args


def upright_openings(landmarks: list[np.ndarray | None]) -> np.ndarray:
    """How far the inner lips are apart in each frame, of the face turned to the front; NaN where there is no face."""
    nowhere = np.full((78, 2), np.nan)
    return mouth_openings(np.stack([nowhere if p is None else Pose.of(p).lift(p)[:, :2] for p in landmarks]))


def track(clip: Path, folder: Path | None) -> tuple[np.ndarray, float]:
    """The opening of the mouth in each frame of a clip, and frames per second."""
    kept = folder / f"{hashlib.sha256(clip.read_bytes()).hexdigest()[:16]}.npz" if folder else None
    if kept and kept.exists():
        with np.load(kept) as file:
            return file["openings"], float(file["fps"])
    frames = open_clip(clip)
    faces = track_clip(frames, get_detector())
    openings = upright_openings([None if face is None else face.points for face in faces])
    if np.isnan(openings).all():
        raise NoFaceError(f"No face was found in {clip.name}.")
    if kept:
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(kept, openings=openings, fps=frames.fps)
    return openings, frames.fps


def correlate(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's correlation where both are known; 0 where one of them does not move."""
    known = np.isfinite(a) & np.isfinite(b)
    a, b = a[known], b[known]
    return float(np.corrcoef(a, b)[0, 1]) if len(a) > 2 and min(np.ptp(a), np.ptp(b)) > STILL else 0.0


def is_shut(openings: np.ndarray, lowest: float) -> np.ndarray:
    """In which frames the mouth is shut; `lowest` is the opening of lips that meet."""
    return openings <= lowest + max(SHUT * (np.nanpercentile(openings, 95) - lowest), STILL)


def measure(clip: np.ndarray, made: np.ndarray, fps: float) -> dict[str, float]:
    """What `KEYS` names, of the mouth's openings in a clip and in what was made, frame by frame; shares are 0 to 1."""
    shut, made_shut = is_shut(clip, np.nanpercentile(clip, 5)), is_shut(made, 0.0)
    opened = np.isfinite(clip) & ~shut
    runs = np.flatnonzero(np.diff(np.r_[False, shut, False])).reshape(-1, 2)
    # lips that meet a frame earlier or later are seen to meet
    met = [made_shut[max(start - 1, 0) : stop + 1].any() for start, stop in runs]
    correlation, second = correlate(clip, made), round(fps)
    chance = [correlate(clip, np.roll(made, shift)) >= correlation for shift in range(second, len(made) - second)]
    values = correlation, np.mean(met), made_shut[opened].mean() if opened.any() else np.nan, np.mean(chance)
    return dict(zip(KEYS, map(float, values), strict=True))


def compare(clip: Path, motion: Path, tracks: Path | None) -> dict[str, float]:
    """What `KEYS` names, of two files."""
    driving = DrivingMotion.load(motion)
    openings, fps = track(clip, tracks)
    if len(openings) < MIN_SECONDS * fps:
        raise FsthError(f"{clip.name} is too short: give clips of {MIN_SECONDS:g} seconds or more.")
    made = upright_openings(driving.landmarks)
    at = np.arange(len(openings)) / fps
    return measure(openings, np.interp(at, np.arange(len(made)) / driving.fps, made), fps)


def main(arguments: list[str] | None = None):
    args = parse_args(arguments)
    rows = []
    print(f"| clip | {' | '.join(KEYS)} |\n|{'---|' * (1 + len(KEYS))}")
    for clip, motion in zip(args.files[::2], args.files[1::2], strict=True):
        try:
            rows.append(list(compare(clip, motion, args.tracks).values()))
        except (FsthError, OSError) as error:
            sys.exit(str(error))
        print(f"| {clip.name} | {' | '.join(f'{value:.2f}' for value in rows[-1])} |", flush=True)
    print(f"| median | {' | '.join(f'{value:.2f}' for value in np.nanmedian(rows, axis=0))} |")


if __name__ == "__main__":
    main()
