"""What a process holds while a long 1080p clip is read, driven and encoded: it is to stay the same.

    python tests/fuzz/memory.py --frames 15000

The clip is the package's driver, enlarged once and copied packet by packet; networks and detector are tiny, for what
grows with a clip's length is in neither of them. Fails where a process holds more than `LIMIT_MB`, or grows by more
than landmarks and their smoothing need in the second half of reading, or of driving.
"""

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path


TESTS = Path(__file__).parents[1]
if __name__ == "__main__":
    sys.path[0] = str(TESTS)  # and not this folder

import av  # noqa: E402
import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from fsth_hub.media.reading import open_clip  # noqa: E402
from fsth_hub.media.writing import write_clip  # noqa: E402
from testing_utils.memory import resident  # noqa: E402
from testing_utils.paths import DRIVER  # noqa: E402
from testing_utils.pipelines import ScaledDetector, make_pipeline, picture  # noqa: E402


WIDTH, HEIGHT, LIMIT_MB = 1920, 1080, 1500
KB_A_FRAME = 10  # landmarks: 78 x 2 floats, of which a few copies are at work


def long_clip(path: Path, frames: int) -> Path:
    """The driver at 1080p, over and over, encoded once."""
    once = path.with_name(f"once-{path.name}")
    driver = open_clip(DRIVER, max_frames=25)
    write_clip(once, (np.array(Image.fromarray(frame).resize((WIDTH, HEIGHT))) for frame in driver), 25)
    with av.open(str(once)) as source, av.open(str(path), "w") as out:
        stream = source.streams.video[0]
        packets = [packet for packet in source.demux(stream) if packet.dts is not None]
        copied = out.add_stream_from_template(stream)
        length, first = len(packets) * packets[0].duration, packets[0].dts
        data = [(bytes(p), p.pts, p.dts, p.duration, p.is_keyframe) for p in packets]
        for number in range(frames):
            content, pts, dts, duration, is_key = data[number % len(data)]
            packet, shift = av.Packet(content), number // len(data) * length - first
            packet.pts, packet.dts, packet.duration = pts + shift, dts + shift, duration
            packet.is_keyframe, packet.time_base, packet.stream = is_key, stream.time_base, copied
            out.mux(packet)
    return path


def curve(folder: Path, frames: int, every: int, report: Callable[[str, int, float], None]) -> list[float]:
    """Reads the clip, then drives and encodes as many frames; MB that the process holds at each report."""
    pipe, sizes = make_pipeline(), []
    pipe.detector = ScaledDetector()

    def note(stage: str, number: int) -> None:
        if number % every == 0:
            sizes.append(resident())
            report(stage, number, sizes[-1])

    clip = open_clip(long_clip(folder / "long.mp4", frames))
    report("begun", 0, resident())

    def read() -> Iterator[np.ndarray]:
        for number, image in enumerate(clip.read(), start=1):
            note("read", number)
            yield image

    motion = pipe.read_driving(replace(clip, read=read))
    photograph = folder / "portrait.png"
    Image.fromarray(picture(0, HEIGHT, HEIGHT)).save(photograph)
    options = {"output_path": folder / "result.mp4", "size": 256}
    pipe(str(photograph), motion, callback_on_frame_end=lambda _, i, *__: note("drive", i + 1), **options)
    return sizes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=15000, help="15,000 are ten minutes")
    parser.add_argument("--every", type=int, default=500, help="frames between two looks")
    args = parser.parse_args()
    started, stages = time.monotonic(), {}

    def report(stage: str, number: int, size: float) -> None:
        stages.setdefault(stage, []).append(size)
        print(f"{stage} {number}: {size:.0f} MB, {time.monotonic() - started:.0f} s", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        curve(Path(folder), args.frames, args.every, report)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    del stages["begun"]
    # from the middle on: before that buffers fill, and the allocator finds out what is taken again and again
    grown = {stage: sizes[-1] - sizes[len(sizes) // 2] for stage, sizes in stages.items()}
    told = ", ".join(f"{stage} {size:+.1f} MB" for stage, size in grown.items())
    print(f"{args.frames} frames of {WIDTH} x {HEIGHT}: {told}; {peak:.0f} MB at the most")
    allowed = args.frames * KB_A_FRAME / 1024 + 30
    return int(peak > LIMIT_MB or any(size > allowed for size in grown.values()))


if __name__ == "__main__":
    sys.exit(main())
