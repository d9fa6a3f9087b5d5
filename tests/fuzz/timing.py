"""Picture and sound over three minutes, whatever time stamps do: how far clicks are from their flashes.

    python tests/fuzz/timing.py --seconds 180

Clips with a flash and a click in each second are read and written as drivers are; a line each says by how many
milliseconds the sound is late (early, below 0), and fails above 20.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path


TESTS = Path(__file__).parents[1]
if __name__ == "__main__":
    sys.path[0] = str(TESTS)  # and not this folder

import numpy as np  # noqa: E402

from fsth_hub.media.reading import open_clip  # noqa: E402
from fsth_hub.media.writing import write_clip  # noqa: E402
from testing_utils.stepping import STEP, apart, cut, make_part, onsets  # noqa: E402


def variable(kind: str, seconds: float) -> np.ndarray:
    """When the pictures of a recording of variable rate begin, s."""
    rng = np.random.default_rng(0)
    if kind == "phone":  # 30 a second, each a little early or late, and 24 where it is dark
        count = round(40 * seconds)
        steps = np.where(np.arange(count) // 200 % 3 == 2, 1 / 24, 1 / 30) + rng.uniform(-0.004, 0.004, count)
    elif kind == "jitter":  # 25 a second on average
        steps = rng.uniform(0.02, 0.06, round(26 * seconds))
    elif kind == "call":  # between 5 and 30 a second, as the network allows
        steps = 1 / rng.uniform(5, 30, round(31 * seconds))
    elif kind == "dropped":  # 25 a second, of which one in ten is missing
        steps = rng.choice([0.04, 0.08], round(26 * seconds), p=[0.9, 0.1])
    else:  # a screen: a picture when something changes
        steps = np.maximum(rng.exponential(0.1, round(61 * seconds)), 1 / 60)
    times = np.r_[0, np.cumsum(steps)]
    return times[times < seconds]


def pasted(folder: Path, name: str, starts: list[float], seconds: float) -> Path:
    """Parts whose stamps begin at these times, one after the other in a transport stream."""
    parts = [make_part(folder / f"{number}.ts", seconds / len(starts), start) for number, start in enumerate(starts)]
    (folder / name).write_bytes(b"".join(part.read_bytes() for part in parts))
    return folder / name


def clips(folder: Path, seconds: float) -> Iterator[tuple[str, Callable[[], Path]]]:
    """By name, clips to be made."""
    for suffix in ("mp4", "mkv", "ts"):
        yield f"constant rate, {suffix}", lambda s=suffix: make_part(folder / f"a.{s}", seconds)
    for kind in ("phone", "jitter", "call", "dropped", "screen"):
        for suffix in ("mp4", "mkv"):
            yield (
                f"variable rate ({kind}), {suffix}",
                lambda k=kind, s=suffix: make_part(folder / f"a.{s}", seconds, times=variable(k, seconds)),
            )
    count = max(2, round(seconds / 20))
    yield "stamps restart, ts", lambda: pasted(folder, "a.ts", [1.4] * count, seconds)
    yield (
        "stamps go backwards, ts",
        lambda: pasted(folder, "a.ts", [1.4 + 60 * (count - n) for n in range(count)], seconds),
    )
    yield "stamps leap, ts", lambda: pasted(folder, "a.ts", [1.4 + 3600.013 * n for n in range(count)], seconds)
    for suffix in ("ts", "mkv", "mp4"):
        for leap in (60.0, 0.75) if suffix == "ts" else (60.0,):
            yield (
                f"a leap of {leap} s, {suffix}",
                lambda s=suffix, by=leap: make_part(folder / f"a.{s}", seconds, leap=(seconds / 2 + 0.12, by)),
            )
    yield "sound starts late, mkv", lambda: make_part(folder / "a.mkv", seconds, sound_from=0.7)
    pieces = [(0.6 + 20 * n, 15.1 + 20 * n) for n in range(count)]
    yield "edit list, mp4", lambda: cut(make_part(folder / "a.mp4", seconds, leap=(1e9, 1.0)), *pieces)


def measure(folder: Path, source: Path) -> tuple[float, int, np.ndarray]:
    """Frames per second, frames, and by how much each click is later than its flash, s."""
    clip = open_clip(source)
    count = write_clip(folder / "out.mp4", clip, clip.fps, clip.audio_from)
    flashes, clicks = onsets(folder / "out.mp4")
    return clip.fps, count, apart(flashes[flashes > clicks.min() - 0.3], clicks)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--only", default="", help="clips whose name has this in it")
    options, failed = parser.parse_args(), 0
    for name, make in clips(Path("."), options.seconds):
        if options.only not in name:
            continue
        with tempfile.TemporaryDirectory() as folder:
            make = dict(clips(Path(folder), options.seconds))[name]
            fps, count, off = measure(Path(folder), make())
        failed += np.abs(off).max() > STEP
        print(
            f"{name}: {len(off)} flashes, {count} frames at {fps:.2f}/s, {1000 * off.min():+.1f} to "
            f"{1000 * off.max():+.1f} ms, mean {1000 * off.mean():+.1f}",
            flush=True,
        )
    return failed


if __name__ == "__main__":
    sys.exit(main())
