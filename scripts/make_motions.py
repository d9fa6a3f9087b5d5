"""Make the motions that come with the package, of curves: nobody was filmed. They are in the public domain (CC0).

    python scripts/make_motions.py

Each begins and ends with the face at rest, so that it can be repeated.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from fsth_hub.landmarks.expression import Expression
from fsth_hub.media.motion_files import MOTIONS, SHIPPED, SUFFIX
from fsth_hub.pipelines.driving import DrivingMotion


FPS = 25
LICENCE = "CC0-1.0"


def bump(time: float, centre: float, width: float) -> float:
    """1 at the centre, falling to 0 smoothly at `width` seconds on either side."""
    return 0.5 + 0.5 * np.cos(np.pi * np.clip((time - centre) / width, -1, 1))


def held(time: float, begin: float, end: float, ease: float) -> float:
    """0, rising to 1 within `ease` seconds from `begin` on, and falling back to 0 at `end`."""
    share = np.clip(min(time - begin, end - time) / ease, 0, 1)
    return share * share * (3 - 2 * share)


def blinks(time: float, *centres: float) -> float:
    """How far the lids are down, for `eye_right` and `eye_left`."""
    return max(bump(time, centre, 0.14) for centre in centres)


def eyes(openness: float) -> dict[str, float]:
    return {"eye_right": openness, "eye_left": openness}


def brows(height: float) -> dict[str, float]:
    return {"brow_right": height, "brow_left": height}


# When, how far the mouth opens, how much it is puckered; and when the lips are shut.
VOWELS = (
    (0.45, 0.75, 0.1), (0.72, 0.35, -0.2), (1.0, 0.55, 0.6), (1.5, 0.9, 0.1), (1.8, 0.4, 0.7), (2.1, 0.6, -0.2),
    (2.75, 0.7, 0.0), (3.0, 0.35, 0.5), (3.3, 0.85, 0.2), (3.6, 0.3, -0.3), (4.15, 0.6, 0.3), (4.4, 0.4, -0.1),
)  # fmt: skip
SHUT = (1.25, 2.4, 3.85, 4.65)


def talk(time: float) -> Expression:
    mouth = max(size * bump(time, centre, 0.2) for centre, size, _ in VOWELS)
    mouth -= (mouth + 1) * max(bump(time, centre, 0.1) for centre in SHUT)
    pucker = sum(amount * bump(time, centre, 0.2) for centre, _, amount in VOWELS)
    sway = np.sin(np.pi * time / 5) ** 2
    return Expression.within(
        yaw=sway * (5 * np.sin(2 * np.pi * time / 2.5) + 3 * np.sin(2 * np.pi * time / 1.7)),
        pitch=4 * bump(time, 1.5, 0.45) + 3 * bump(time, 3.3, 0.4) - 2 * bump(time, 2.45, 0.4),
        roll=sway * 2.5 * np.sin(2 * np.pi * time / 3.1),
        mouth=mouth,
        pucker=pucker,
        smile=0.15 * held(time, 0.3, 4.7, 0.6),
        gaze_x=-0.5 * held(time, 2.3, 2.95, 0.1),
        **eyes(-blinks(time, 0.85, 2.3, 3.95)),
        **brows(0.6 * bump(time, 1.5, 0.5) + 0.5 * bump(time, 3.25, 0.45)),
    )


def smile(time: float) -> Expression:
    strength = held(time, 0.3, 3.3, 0.9)
    return Expression.within(
        smile=0.95 * strength,
        mouth=0.18 * strength,
        roll=3 * strength,
        pitch=-2 * strength,
        **eyes(-0.22 * strength - 0.9 * blinks(time, 2.5)),
        **brows(0.25 * strength),
    )


def laugh(time: float) -> Expression:
    strength = held(time, 0.2, 3.8, 0.7)
    shaking = strength * np.sin(2 * np.pi * 4.2 * time)
    return Expression.within(
        smile=strength,
        mouth=strength * 0.65 + 0.25 * shaking,
        pitch=-6 * strength + 1.6 * shaking,
        roll=4 * strength * np.sin(2 * np.pi * time / 4),
        shift_y=0.012 * shaking,
        **eyes(-0.5 * strength - 0.5 * bump(time, 2.2, 0.5)),
        **brows(0.35 * strength),
    )


def nod(time: float) -> Expression:
    down = bump(time, 0.7, 0.4) + 0.8 * bump(time, 1.45, 0.38) + 0.55 * bump(time, 2.15, 0.36)
    return Expression.within(
        pitch=15 * down - 3 * bump(time, 0.25, 0.25),
        gaze_y=-0.35 * down,
        smile=0.25 * held(time, 0.4, 2.8, 0.6),
        **eyes(-blinks(time, 0.62, 2.5)),
        **brows(0.2 * held(time, 0.3, 2.7, 0.5)),
    )


def shake(time: float) -> Expression:
    swing = held(time, 0.1, 2.9, 0.5) * np.sin(2 * np.pi * 1.25 * (time - 0.1))
    strength = held(time, 0.1, 2.9, 0.5)
    return Expression.within(
        yaw=16 * swing,
        roll=1.5 * swing,
        gaze_x=-0.55 * swing,
        frown=0.45 * strength,
        smile=-0.2 * strength,
        **eyes(-blinks(time, 0.55, 2.3)),
        **brows(-0.25 * strength),
    )


def look_around(time: float) -> Expression:
    aside = held(time, 0.4, 1.8, 0.45) - held(time, 1.9, 3.3, 0.45)  # the head comes after the eyes
    eyes_aside = held(time, 0.25, 1.65, 0.14) - held(time, 1.75, 3.15, 0.14)
    up = held(time, 3.3, 4.5, 0.4)
    return Expression.within(
        yaw=13 * aside,
        pitch=-7 * up,
        gaze_x=0.95 * eyes_aside - 0.35 * aside,
        gaze_y=-0.9 * held(time, 3.2, 4.4, 0.14),
        **eyes(-blinks(time, 0.3, 1.78, 3.22, 4.6) + 0.15 * up),
        **brows(0.5 * up + 0.15 * abs(aside)),
    )


def blink(time: float) -> Expression:
    breath = np.sin(np.pi * time / 3) ** 2
    return Expression.within(
        pitch=1.2 * breath,
        yaw=1.5 * breath * np.sin(2 * np.pi * time / 3),
        **eyes(-blinks(time, 0.8, 1.9, 2.15)),
    )


def surprise(time: float) -> Expression:
    strength = held(time, 0.35, 2.7, 0.28)
    return Expression.within(
        pitch=-5 * strength,
        zoom=-0.03 * strength,
        mouth=0.75 * strength,
        pucker=0.35 * strength,
        **eyes(strength - blinks(time, 0.2, 2.72) * (1 + strength)),
        **brows(strength),
    )


# Of the names in SHIPPED: what people read, seconds, the curves.
MADE: dict[str, tuple[str, float, Callable[[float], Expression]]] = {
    "talk": ("Talk", 5, talk),
    "smile": ("Smile", 3.6, smile),
    "laugh": ("Laugh", 4, laugh),
    "nod": ("Nod", 2.8, nod),
    "shake": ("Shake the head", 3, shake),
    "look-around": ("Look around", 4.8, look_around),
    "blink": ("Blink", 3, blink),
    "surprise": ("Be surprised", 3, surprise),
}


def make(name: str) -> DrivingMotion:
    title, seconds, curves = MADE[name]
    times = np.arange(round(seconds * FPS)) / FPS
    motion = DrivingMotion.from_expressions([curves(float(time)) for time in times], FPS, loop=True)
    motion.name, motion.licence = title, LICENCE
    return motion


def main(folder: Path = MOTIONS) -> None:
    for name in SHIPPED:
        make(name).save(folder / f"{name}{SUFFIX}")


if __name__ == "__main__":
    main()
