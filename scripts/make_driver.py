"""Make `driver.mp4`, the example clip that drives: a made-up motion on a photograph, drawn by the model itself.

Nobody was filmed. The landmarks of `astronaut.jpg` turn, nod, blink, look aside and speak a few vowels by the curves
below, the bundled model draws the frames, and a hum takes the place of a voice. Run it again when the model changes:

    python scripts/make_driver.py
"""

import tempfile
from pathlib import Path

import av
import numpy as np

from fsth_hub.landmarks.pose import Pose
from fsth_hub.media.writing import write_clip
from fsth_hub.models.landmark_layout import IRISES, JAW, LEFT_BROW, RIGHT_BROW
from fsth_hub.pipelines.pipeline_fsth import FsthPipeline
from fsth_hub.provenance.credentials import OUTPUT_METADATA


EXAMPLES = Path(__file__).parents[1] / "fsth_hub" / "examples"
FPS, SECONDS, SAMPLE_RATE = 25, 4.0, 48_000

# When the eyes are shut, when the lips, and the vowels: when, how far the mouth opens, how much narrower it gets
# (mean-face units, hundredths of the distance between the eyes). All lie away from the ends, so that the clip loops.
BLINKS = (0.7, 2.45, 3.5)
LIPS_SHUT = (1.43, 2.35, 3.3)
VOWELS = ((0.5, 20, 2), (0.85, 8, -4), (1.2, 14, 12), (1.65, 24, 4), (2.1, 10, 14), (2.6, 18, 0), (3.05, 12, 10))
MOUTH = np.arange(48, 68)
LOWER_LIP = np.array([55, 56, 57, 58, 59, 65, 66, 67])
UPPER_LIDS, LOWER_LIDS = np.array([37, 38, 43, 44]), np.array([41, 40, 47, 46])
# How much of the mouth's opening a point takes part in: the lower lip and the chin all, the corners a third.
OPENING = {**dict.fromkeys(LOWER_LIP.tolist(), 1.0), **dict.fromkeys((48, 54, 60, 64), 0.35)}
OPENING |= dict(zip(range(3, 14), (0.15, 0.4, 0.7, 0.9, 1, 1, 1, 0.9, 0.7, 0.4, 0.15), strict=True))


def bump(time: float, centre: float, width: float) -> float:
    """1 at the centre, falling to 0 smoothly at `width` seconds on either side."""
    return 0.5 + 0.5 * np.cos(np.pi * np.clip((time - centre) / width, -1, 1))


def expression(upright: np.ndarray, time: float) -> np.ndarray:
    """The face (78 x 3, mean-face units) as it looks at this time in s."""
    face = upright.copy()
    middle = face[MOUTH, 0].mean()
    opening = sum(size * bump(time, centre, 0.26) for centre, size, _ in VOWELS)
    narrowing = sum(amount * bump(time, centre, 0.26) for centre, _, amount in VOWELS)
    face[MOUTH, 0] += (face[MOUTH, 0] - middle) / np.ptp(upright[MOUTH, 0]) * -2 * narrowing
    for point, share in OPENING.items():
        face[point, 1] += 0.75 * opening * share if point in JAW else opening * share
    lips_shut = max(bump(time, centre, 0.16) for centre in LIPS_SHUT)
    face[LOWER_LIP, 1] -= lips_shut * (face[66, 1] - face[62, 1])

    brows = 9 * bump(time, 1.65, 0.6) + 5 * bump(time, 3.05, 0.4)
    face[np.r_[RIGHT_BROW, LEFT_BROW], 1] -= brows
    face[UPPER_LIDS, 1] -= 0.15 * brows

    gaze = 7 * (bump(time, 1.0, 0.35) - bump(time, 2.9, 0.4))
    face[IRISES, 0] += gaze
    shut = max(bump(time, centre, 0.14) for centre in BLINKS)
    face[UPPER_LIDS] += 0.95 * shut * (face[LOWER_LIDS] - face[UPPER_LIDS])
    return face


def head(pose: Pose, time: float) -> Pose:
    """The head's pose at this time: a slow turn to either side, two nods and a slight tilt."""
    around = 2 * np.pi * time / SECONDS
    yaw = np.radians(11) * np.sin(around)
    pitch = np.radians(4) * (1 - np.cos(2 * around)) / 2
    roll = np.radians(3) * np.sin(around) * np.cos(around)
    (cy, cp, cr), (sy, sp, sr) = np.cos((yaw, pitch, roll)), np.sin((yaw, pitch, roll))
    turn = np.array([(cy, 0, -sy), (0, 1, 0), (sy, 0, cy)])
    nod = np.array([(1, 0, 0), (0, cp, -sp), (0, sp, cp)])
    tilt = np.array([(cr, -sr, 0), (sr, cr, 0), (0, 0, 1)])
    return Pose(tilt @ nod @ turn @ pose.rotation, pose.scale, pose.centre + (0.06 * np.degrees(yaw), 0))


def motion(points: np.ndarray) -> list[np.ndarray]:
    """The landmarks (78 x 2, pixels of a crop) of every frame."""
    pose = Pose.of(points)
    upright = pose.lift(points)  # 78 x 3
    times = np.arange(round(SECONDS * FPS)) / FPS
    return [head(pose, time).project(expression(upright, time)).astype(np.float32) for time in times]


def write_hum(path: Path) -> None:
    """A quiet chord that swells with the vowels, as AAC."""
    times = np.arange(round(SECONDS * SAMPLE_RATE)) / SAMPLE_RATE
    swell = sum(size / 24 * bump(times, centre, 0.26) for centre, size, _ in VOWELS)
    chord = sum(np.sin(2 * np.pi * pitch * times) / overtone for overtone, pitch in ((1, 147), (2, 220), (4, 294)))
    samples = (0.06 * swell * chord).astype(np.float32)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None], format="fltp", layout="mono")
        frame.sample_rate = SAMPLE_RATE
        out.mux(stream.encode(frame))
        out.mux(stream.encode())


def main() -> None:
    pipe = FsthPipeline.from_pretrained()
    person = pipe.embed(EXAMPLES / "astronaut.jpg")
    generator = pipe.generator_for()
    frames = (pipe.generate_frame(generator, person, points) for points in pipe.progress_bar(motion(person.landmarks)))
    with tempfile.TemporaryDirectory() as folder:
        hum = Path(folder, "hum.m4a")
        write_hum(hum)
        write_clip(EXAMPLES / "driver.mp4", frames, FPS, hum, OUTPUT_METADATA)


if __name__ == "__main__":
    main()
