"""Mouth cues, the shapes of lips that somebody else heard in a voice: Rhubarb's JSON and TSV, or Oculus visemes."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from ..landmarks.expression import Expression
from ..landmarks.keyframes import MAX_FRAMES
from ..models.errors import FsthError
from .texts import read_text


FPS = 25.0
FADE = 0.06  # s, from one shape to the next
MAX_BYTES = 16 * 2**20
LAST_SECONDS = 0.2  # of a last cue that says when it begins alone

SHUT = Expression(mouth=-1)
# https://github.com/DanielSWolf/rhubarb-lip-sync: six basic shapes, three more, X for a pause.
RHUBARB = {
    "A": SHUT,
    "B": Expression(mouth=0.12, smile=0.15),
    "C": Expression(mouth=0.45),
    "D": Expression(mouth=0.9),
    "E": Expression(mouth=0.45, pucker=0.45),
    "F": Expression(mouth=0.2, pucker=0.9),
    "G": Expression(mouth=-0.4),
    "H": Expression(mouth=0.4),
    "X": SHUT,
}
OCULUS = {
    "sil": SHUT,
    "PP": SHUT,
    "FF": Expression(mouth=-0.4),
    "TH": Expression(mouth=0.2),
    "DD": Expression(mouth=0.2),
    "kk": Expression(mouth=0.25),
    "CH": Expression(mouth=0.2, pucker=0.4),
    "SS": Expression(mouth=0.1, smile=0.1),
    "nn": Expression(mouth=0.2),
    "RR": Expression(mouth=0.25, pucker=0.35),
    "aa": Expression(mouth=0.9),
    "E": Expression(mouth=0.5, smile=0.15),
    "ih": Expression(mouth=0.3, smile=0.25),
    "oh": Expression(mouth=0.55, pucker=0.5),
    "ou": Expression(mouth=0.25, pucker=0.9),
}

Cue = tuple[float, float, Expression]  # start and end in s, and the mouth


def read_cues(path: str | os.PathLike) -> tuple[list[Expression], float]:
    """The mouth of every frame, and frames per second.

    Args:
        path: Rhubarb's JSON (`mouthCues`) or TSV (a start in seconds and a shape in each line), with its own shapes or
            Oculus visemes; or visemes with `vtimes` and `vdurations` in milliseconds.

    Raises:
        FsthError: It holds no cues, or a shape that is not known.
    """
    name, text = Path(path).name, read_text(path, MAX_BYTES)
    try:
        timed = _from_json(json.loads(text)) if name.lower().endswith(".json") else _from_tsv(text)
        timed = [(float(start), float(end), str(shape)) for start, end, shape in timed]
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, RecursionError) as error:
        raise FsthError(f"{name} holds no mouth cues that can be read: give Rhubarb's JSON or TSV.") from error
    if not timed:
        raise FsthError(f"{name} holds no mouth cues: give Rhubarb's JSON or TSV.")
    shapes = [shape for _, _, shape in timed]
    table = RHUBARB if all(shape in RHUBARB for shape in shapes) else OCULUS
    last = 0.0
    for start, end, shape in timed:
        if shape not in table:
            raise FsthError(f"{name}: there is no mouth shape {shape[:40]!r}; use Rhubarb's or Oculus visemes.")
        if not last - 1e-6 <= start <= end <= MAX_FRAMES / FPS:
            raise FsthError(f"{name}: cues must go forward in time, up to {MAX_FRAMES / FPS:g} s.")
        last = start
    return draw_cues([(start, end, table[shape]) for start, end, shape in timed]), FPS


def draw_cues(cues: Sequence[Cue]) -> list[Expression]:
    """The mouth of every frame, `FPS` a second; shut where there is no cue. Every cue that shuts it does so in the
    frame nearest to its middle, however short it is."""
    times = [index / FPS for index in range(max(1, round(cues[-1][1] * FPS)))]
    frames, first = [], 0
    for time in times:
        low, high = time - FADE / 2, time + FADE / 2
        while first < len(cues) and cues[first][1] <= low:
            first += 1
        mouth, covered, at = Expression(), 0.0, first
        while at < len(cues) and cues[at][0] < high:
            start, end, shape = cues[at]
            share = max(min(end, high) - max(start, low), 0) / FADE
            mouth, covered, at = mouth + shape * share, covered + share, at + 1
        frames.append(mouth + SHUT * max(1 - covered, 0))
    for start, end, shape in cues:
        if shape == SHUT:
            frames[min(round((start + end) / 2 * FPS), len(frames) - 1)] = SHUT
    return frames


def _from_json(content: dict) -> list[tuple]:
    if "mouthCues" in content:
        return [(cue["start"], cue["end"], cue["value"]) for cue in content["mouthCues"]]
    rows = zip(content["vtimes"], content["vdurations"], content["visemes"], strict=True)
    return [(start / 1000, (start + length) / 1000, viseme) for start, length, viseme in rows]


def _from_tsv(text: str) -> list[tuple]:
    """Each cue lasts until the next one."""
    rows = [line.split("\t") for line in text.splitlines() if line.strip()]
    starts, shapes = [float(row[0]) for row in rows], [row[1].strip() for row in rows]
    ends = [*starts[1:], starts[-1] + LAST_SECONDS] if starts else []
    return list(zip(starts, ends, shapes, strict=True))
