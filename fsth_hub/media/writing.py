"""Clips written as their frames come: an mp4 with sound, or a gif."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np

from ..checks import check_number
from ..models.errors import VideoError
from ..saving import check_file, whole_file
from .containers import ClipFile, rereadable
from .frames import FPS_RANGE, Frames, to_arrays
from .sound import Sound


CRF = "18"  # visually without loss in x264


def check_output_path(path: str | os.PathLike) -> None:
    """Refuse (`VideoError`) what `write_clip` could not write, before there is anything to write."""
    _check_name(path)
    check_file(path, VideoError)


def write_clip(
    path: str | os.PathLike,
    frames: Frames,
    fps: float,
    audio_from: ClipFile | None = None,
    metadata: dict[str, str] | None = None,
    finish: Callable[[Path], object] | None = None,
) -> int:
    """Write frames as they come: .mp4 (H.264, with sound) or .gif. Nothing is left behind if something fails.

    Args:
        path: Where to write; what is there is replaced once the new clip is complete.
        frames: Pictures of one size, as `load_image` takes them; of an odd size, the mp4 repeats the last row or
            column, since H.264 needs even ones.
        fps: Frames per second.
        audio_from: The video whose sound to keep, from its first picture on and no longer than the frames last.
        metadata: Container fields such as `title` and `comment` (a gif keeps the comment alone).
        finish: Called with the complete file before it takes its place, to sign it.

    Returns:
        The number of frames written.

    Raises:
        FsthError: `fps`; [`VideoError`] where the path or a frame does not fit, there is no frame, or `audio_from`
            cannot be read.
    """
    check_number("fps", fps, *FPS_RANGE)
    path = _check_name(path)
    # FFmpeg's broadcast rates are n / 1001.
    rate = Fraction(fps).limit_denominator(1001)
    with whole_file(path, VideoError) as unfinished:
        try:
            count = WRITERS[path.suffix.lower()](unfinished, to_arrays(frames), rate, audio_from, metadata or {})
        except av.FFmpegError as error:  # the disk is full, or the sound to keep is damaged
            raise VideoError(f"{path.name} cannot be written: {error.strerror}.") from error
        if finish is not None:
            finish(unfinished)
    return count


def _check_name(path: str | os.PathLike) -> Path:
    if not isinstance(path, str | os.PathLike):
        raise VideoError(f"A clip is written to a path, not {type(path)}.")
    path = Path(path)
    if path.suffix.lower() not in WRITERS:
        raise VideoError(f"{path.name} cannot be written: a clip can be written as {' or '.join(WRITERS)}.")
    return path


def _first(pictures: Iterator[np.ndarray]) -> tuple[tuple[int, int], Iterator[np.ndarray]]:
    """Height and width of the pictures, and all of them."""
    first = next(pictures, None)
    if first is None:
        raise VideoError("There are no frames to write.")
    return first.shape[:2], chain([first], pictures)


def _write_mp4(path: Path, pictures: Iterator[np.ndarray], rate: Fraction, audio_from, metadata: dict) -> int:
    with ExitStack() as stack:
        sound = None if audio_from is None else Sound(rereadable(audio_from))
        (height, width), pictures = _first(pictures)
        # faststart: the index comes first, so that a browser can play while it loads.
        out = stack.enter_context(av.open(str(path), "w", options={"movflags": "+faststart"}))
        out.metadata.update(metadata)
        video = out.add_stream("libx264", rate=rate, options={"crf": CRF})
        video.width, video.height, video.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
        # Said aloud, since players guess it from the size: BT.709 in all three, "limited" range.
        context = video.codec_context
        context.colorspace = context.color_primaries = context.color_trc = context.color_range = 1
        packets = iter(()) if sound is None else stack.enter_context(closing(sound.packets(out)))

        packet, count = next(packets, None), 0
        for picture in pictures:
            picture = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
            frame.pts, frame.time_base = count, 1 / rate
            out.mux(video.encode(frame))
            count += 1
            # As much sound as there is picture: in step for players that stream, and cut where the picture ends.
            while packet is not None and packet.pts * packet.time_base < count / rate:
                out.mux(packet)
                packet = next(packets, None)
        out.mux(video.encode())
    return count


def _write_gif(path: Path, pictures: Iterator[np.ndarray], rate: Fraction, audio_from, metadata: dict) -> int:
    (height, width), pictures = _first(pictures)
    with av.open(str(path), "w") as out:
        stream = out.add_stream("gif", rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, "pal8"
        graph, count = _palette_graph(width, height, rate), 0
        for picture in pictures:
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = count, 1 / rate
            graph.push(frame)
            out.mux(stream.encode(graph.pull()))
            count += 1
        out.mux(stream.encode())
    if "comment" in metadata:
        _add_gif_comment(path, metadata["comment"])
    return count


def _palette_graph(width: int, height: int, rate: Fraction) -> av.filter.Graph:
    """Gives each RGB picture in 256 colours of its own: a palette for all of them would need all at hand."""
    graph = av.filter.Graph()
    source = graph.add_buffer(width=width, height=height, format="rgb24", time_base=1 / rate)
    split, generate = graph.add("split"), graph.add("palettegen", "stats_mode=single")
    use, sink = graph.add("paletteuse", "new=1"), graph.add("buffersink")
    source.link_to(split)
    split.link_to(use, 0, 0)
    split.link_to(generate, 1, 0)
    generate.link_to(use, 0, 1)
    use.link_to(sink)
    graph.configure()
    return graph


def _add_gif_comment(path: Path, comment: str) -> None:
    """FFmpeg's gif writer knows no comments: put the block after the header and the global colour table."""
    data, text = path.read_bytes(), comment.encode()
    end = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    parts = [text[at : at + 255] for at in range(0, len(text), 255)]
    block = b"\x21\xfe" + b"".join(bytes([len(part)]) + part for part in parts) + b"\x00"
    path.write_bytes(data[:end] + block + data[end:])


WRITERS = {".mp4": _write_mp4, ".gif": _write_gif}
