"""Clips as streams: pictures come and go one at a time, so the length of a clip costs no memory."""

import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

import av
import imageio.v3 as iio
import numpy as np
from PIL import Image

from ..checks import check_number
from ..models.errors import FsthError, VideoError
from .containers import (
    ClipFile,
    audio_stream,
    decode,
    is_file,
    name_of,
    open_binary,
    open_container,
    rereadable,
    start_time,
    video_stream,
)


if TYPE_CHECKING:
    from ..models.image_processing_fsth import Picture

Frames = Iterable["Picture"]  # also an array N x H x W x 3 or a tensor N x C x H x W

DEFAULT_FPS = 25.0
FPS_RANGE = (0.01, 1000)
MAX_FPS = 32.0  # phones say 30 and mean a little more; what is faster only costs time in a face
CRF = "18"  # visually without loss in x264

ANIMATIONS = ("GIF", "WEBP", "PNG")  # read through imageio and Pillow: FFmpeg knows no moving webp

# A palette of its own for every picture: a single one for all would need all of them at hand.
GIF_PALETTE = (
    {
        "split": ("split", ""),
        "palettegen": ("palettegen", "stats_mode=single"),
        "paletteuse": ("paletteuse", "new=1"),
    },
    [
        ("video_in", "split", 0, 0),
        ("split", "palettegen", 0, 0),
        ("split", "paletteuse", 1, 0),
        ("palettegen", "paletteuse", 0, 1),
        ("paletteuse", "video_out", 0, 0),
    ],
)


@dataclass(frozen=True)
class Clip:
    """A moving picture, read as a stream and as often as wanted: iterating gives H x W x 3 uint8 RGB, upright.

    Args:
        fps: Constant rate at which iteration gives frames, per second.
        width: Pixels, upright.
        height: Pixels, upright.
        duration: Seconds, None if the file does not say.
        audio_from: The file that holds the clip's sound, for `write_clip`; None if it has none.
        max_frames: Iteration ends after so many frames; None for all.
        read: Starts again at the first picture and gives (start in s, length in s, picture). Where the frames came
            from an iterator it does so once.
        file: What it is read of; None where it was given as frames.
    """

    fps: float
    width: int
    height: int
    duration: float | None
    audio_from: ClipFile | None
    max_frames: int | None
    read: Callable[[], Iterator[tuple[float, float, np.ndarray]]] = field(repr=False)
    file: ClipFile | None = field(default=None, repr=False)

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.file.name if isinstance(self.file, Path) else "the clip"

    @property
    def frame_count(self) -> int | None:
        """How many frames iteration should give; what the file's header says, so for progress bars only."""
        if self.duration is None:
            return self.max_frames
        count = max(1, round(self.duration * self.fps))
        return count if self.max_frames is None else min(count, self.max_frames)

    def __iter__(self) -> Iterator[np.ndarray]:
        return islice(self._resampled(), self.max_frames)

    def _resampled(self) -> Iterator[np.ndarray]:
        """For each tick of the constant rate the last picture that had begun by then, so sound stays in step."""
        count, end, held = 0, 0.0, None
        for start, length, picture in self.read():
            # A quarter of a frame's grace: rounded time stamps (mkv has milliseconds) must not double a frame.
            while held is not None and (count + 0.25) / self.fps < start:
                yield held
                count += 1
            held, end = picture, start + length
        while held is not None and count < max(1, round(end * self.fps)):
            yield held
            count += 1


def open_clip(
    source: "ClipFile | Frames | Clip",
    fps: float | None = None,
    max_frames: int | None = None,
    allow_still: bool = False,
) -> Clip:
    """Open a video file, or take frames, as a clip of constant frame rate.

    Args:
        source: A video (mp4, mov, webm, mkv, avi, mpg, gif, moving webp or png) as a path, bytes or a file object
            opened in binary mode; or frames of one size: an array N x H x W x 3, a tensor N x C x H x W, or any
            iterable of pictures as `load_image` takes them (of an iterator one is held at a time); or a clip.
        fps: Frames per second to give; defaults to the clip's average rate, or a whole part of it that is not above
            32. For frames, the rate at which they were taken, 25 by default.
        max_frames: Read no more than so many frames.
        allow_still: Take a file of a single picture too.

    Returns:
        The clip. Phone rotation is applied, a variable frame rate made constant.

    Raises:
        VideoError: The source is no clip that can be read.
    """
    if fps is not None:
        check_number("fps", fps, *FPS_RANGE)
    if max_frames is not None:
        check_number("max_frames", max_frames, 1, whole=True)
    if isinstance(source, Clip):
        limits = [limit for limit in (source.max_frames, max_frames) if limit is not None]
        return replace(source, fps=fps or source.fps, max_frames=min(limits, default=None))
    if is_file(source):
        return _open_file(source, fps, max_frames, allow_still)
    return _take_frames(source, fps or DEFAULT_FPS, max_frames)


def _take_frames(source: Frames, fps: float, max_frames: int | None) -> Clip:
    if getattr(source, "ndim", 4) != 4:
        raise VideoError(
            "The frames of a clip must be an array N x H x W x 3 or a tensor N x C x H x W, not "
            f"{tuple(source.shape)}."
        )
    try:
        unread = iter(source)
    except TypeError:
        raise VideoError(
            f"A clip must be a video file (path, bytes or file object) or its frames, not {type(source)}."
        ) from None
    once, first = unread is source, next(unread, None)
    if first is None:
        raise VideoError("The clip is empty: give at least one frame.")
    height, width = _picture(first).shape[:2]
    readings = [chain([first], unread)] if once else None
    del first, unread  # or the first frame would be kept

    def read():
        if once and not readings:
            raise VideoError("The clip's frames came from an iterator and have been read: give a file or a list.")
        pictures = readings.pop() if once else source
        for index, picture in enumerate(islice(_pictures(pictures), max_frames)):
            yield index / fps, 1 / fps, picture

    duration = len(source) / fps if hasattr(source, "__len__") else None
    return Clip(fps, width, height, duration, None, max_frames, read)


def check_output_path(path: str | os.PathLike) -> None:
    """Refuse (`VideoError`) what `write_clip` could not write, before there is anything to write."""
    with _workplace(path):
        pass


def _workplace(path: str | os.PathLike) -> tempfile.TemporaryDirectory:
    """A folder beside the target: renaming out of it is atomic, and it goes away with all that it holds."""
    if not isinstance(path, str | os.PathLike):
        raise VideoError(f"A clip is written to a path, not {type(path)}.")
    path = Path(path)
    if path.suffix.lower() not in WRITERS:
        raise VideoError(f"Cannot write {path.name}: a clip can be written as {' or '.join(WRITERS)}.")
    if path.is_dir():
        raise VideoError(f"Cannot write {path.name}: it is a folder; give the name of a file.")
    try:
        return tempfile.TemporaryDirectory(prefix=".fsth-", dir=path.absolute().parent)
    except OSError as error:
        raise VideoError(f"Cannot write {path.name} into {path.absolute().parent}: {error.strerror}.") from error


def write_clip(
    path: str | os.PathLike,
    frames: "Frames",
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
    with _workplace(path) as folder:
        path = Path(path)
        unfinished = Path(folder, path.name)
        # FFmpeg's broadcast rates are n / 1001.
        rate = Fraction(fps).limit_denominator(1001)
        try:
            count = WRITERS[path.suffix.lower()](unfinished, _pictures(frames), rate, audio_from, metadata or {})
        except av.FFmpegError as error:  # the disk is full, or the sound to keep is damaged
            raise VideoError(f"Cannot write {path.name}: {error.strerror}.") from error
        if finish is not None:
            finish(unfinished)
        unfinished.replace(path)
    return count


def read_metadata(file: ClipFile) -> dict[str, str]:
    """The container's fields, as `write_clip` wrote them; `VideoError` for what is no clip."""
    with open_container(file) as container:
        return dict(container.metadata)


def _open_file(file: ClipFile, fps: float | None, max_frames: int | None, allow_still: bool) -> Clip:
    file, audio_from = rereadable(file), None
    if _is_animation(file):
        read = partial(_read_animation, file)
        lengths = [length for _, length, _ in read()]
        duration = sum(lengths)
        rate = len(lengths) / duration if lengths else DEFAULT_FPS
    else:
        read = partial(_read_video, file)
        with open_container(file) as container:
            stream = video_stream(container)
            if stream is None:
                raise VideoError(f"{name_of(file)} has no moving picture, only sound: give a video.")
            rate = float(stream.average_rate or DEFAULT_FPS)
            duration = container.duration / av.time_base if container.duration else None
            audio_from = file if audio_stream(container) is not None else None
    first = [picture for _, _, picture in islice(read(), 2)]
    if not first:
        raise VideoError(f"No picture of {name_of(file)} can be decoded: the file is damaged or cut off.")
    if len(first) == 1 and not allow_still:
        raise VideoError(f"{name_of(file)} holds a single picture: give a video, in which the face moves.")
    height, width = first[0].shape[:2]
    fps = fps or rate / math.ceil(rate / MAX_FPS)
    return Clip(fps, width, height, duration, audio_from, max_frames, read, file)


def _is_animation(file: ClipFile) -> bool:
    try:
        with open_binary(file) as opened, Image.open(opened, formats=ANIMATIONS):
            return True
    except Exception:  # another kind of file, or a damaged one: Pillow raises nearly anything
        return False


def _read_video(file: ClipFile) -> Iterator[tuple[float, float, np.ndarray]]:
    with open_container(file) as container:
        stream = video_stream(container)
        stream.thread_type = "AUTO"
        zero, usual_length = start_time(container), 1 / float(stream.average_rate or DEFAULT_FPS)
        aspect = float(stream.sample_aspect_ratio or 1)  # of a pixel: some cameras' are not square
        size, start = None, -usual_length
        for frame in decode(container, stream):
            # The size may change within a file (a recorded call); the first picture's is kept.
            size = size or {"width": round(frame.width * aspect), "height": frame.height}
            start = start + usual_length if frame.time is None else frame.time - zero
            length = float(frame.duration * frame.time_base) if frame.duration else usual_length
            picture = np.rot90(frame.to_ndarray(format="rgb24", **size), frame.rotation // 90)
            yield start, length, np.ascontiguousarray(picture)


def _read_animation(file: ClipFile) -> Iterator[tuple[float, float, np.ndarray]]:
    try:
        with open_binary(file) as opened, iio.imopen(opened, "r", plugin="pillow") as animation:
            start = 0.0
            for index, picture in enumerate(animation.iter(mode="RGB")):
                milliseconds = animation.metadata(index=index).get("duration", 0)
                length = (milliseconds if milliseconds > 10 else 100) / 1000  # as browsers play it
                yield start, length, picture
                start += length
    except Exception:  # a damaged file: Pillow raises nearly anything
        return


def _picture(frame: "Picture") -> np.ndarray:
    if isinstance(frame, np.ndarray) and frame.dtype == np.uint8 and frame.ndim == 3 and frame.shape[2] == 3:
        return frame
    from ..models.image_processing_fsth import (
        load_image,  # here, so that files can be read and written without PyTorch
    )

    try:
        return load_image(frame, "A frame")
    except FsthError as error:
        raise VideoError(str(error)) from error


def _pictures(frames: Frames) -> Iterator[np.ndarray]:
    """The frames as H x W x 3 uint8, all of the first one's size."""
    shape = None
    for picture in map(_picture, frames):
        shape = shape or picture.shape
        if picture.shape != shape:
            raise VideoError(
                f"All frames must have one size, but {picture.shape[1]} x {picture.shape[0]} pixels follow on "
                f"{shape[1]} x {shape[0]}."
            )
        yield picture


def _first(pictures: Iterator[np.ndarray]) -> tuple[tuple[int, int], Iterator[np.ndarray]]:
    """Height and width of the pictures, and all of them."""
    first = next(pictures, None)
    if first is None:
        raise VideoError("There are no frames to write.")
    return first.shape[:2], chain([first], pictures)


def _write_mp4(path: Path, pictures: Iterator[np.ndarray], rate: Fraction, audio_from, metadata: dict) -> int:
    with ExitStack() as stack:
        source = None if audio_from is None else stack.enter_context(open_container(rereadable(audio_from)))
        (height, width), pictures = _first(pictures)
        # faststart: the index comes first, so that a browser can play while it loads.
        out = stack.enter_context(av.open(str(path), "w", options={"movflags": "+faststart"}))
        out.metadata.update(metadata)
        video = out.add_stream("libx264", rate=rate, options={"crf": CRF})
        video.width, video.height, video.pix_fmt = width + width % 2, height + height % 2, "yuv420p"
        # Said aloud, since players guess it from the size: BT.709 in all three, "limited" range.
        context = video.codec_context
        context.colorspace = context.color_primaries = context.color_trc = context.color_range = 1
        sound = iter(()) if source is None else _sound(source, out)

        packet, count = next(sound, None), 0
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
                packet = next(sound, None)
        out.mux(video.encode())
    return count


def _sound(source: av.container.InputContainer, out: av.container.OutputContainer) -> Iterator[av.Packet]:
    """Add a sound track to an output not yet begun; give its packets, in order, counted from the first picture."""
    track = audio_stream(source)
    if track is None:
        return
    offset, last = round(start_time(source) / track.time_base), -math.inf
    codec = track.codec_context.codec.canonical_name
    # These two play in an mp4 everywhere; but the AAC of a transport stream (no extradata) has another packet format.
    if codec == "mp3" or (codec == "aac" and track.codec_context.extradata):
        packets = _copied_sound(source, track, out.add_stream_from_template(track), offset)
    else:
        packets = _encoded_sound(source, track, out.add_stream("aac", rate=48_000, layout="stereo"), offset)
    for packet in packets:
        if packet.dts > last:  # clips pasted together start anew; the muxer would refuse
            last = packet.dts
            yield packet


def _copied_sound(source, track: av.AudioStream, stream: av.AudioStream, offset: int) -> Iterator[av.Packet]:
    for packet in source.demux(track):
        if packet.pts is None or packet.dts is None or packet.pts < packet.dts:  # the end, or damaged
            continue
        packet.pts, packet.dts = packet.pts - offset, packet.dts - offset
        # The packet just before the first picture stays: a decoder needs it to begin the next one cleanly.
        if packet.pts + 2 * (packet.duration or 0) > 0:
            packet.stream = stream
            yield packet


def _encoded_sound(source, track: av.AudioStream, stream: av.AudioStream, offset: int) -> Iterator[av.Packet]:
    for frame in decode(source, track):
        frame.pts -= offset
        if frame.time + frame.samples / frame.sample_rate > 0:
            yield from stream.encode(frame)
    yield from stream.encode()


def _write_gif(path: Path, pictures: Iterator[np.ndarray], rate: Fraction, audio_from, metadata: dict) -> int:
    (height, width), pictures = _first(pictures)
    with iio.imopen(path, "w", plugin="pyav") as out:
        out.init_video_stream("gif", fps=float(rate), pixel_format="pal8")
        # The plugin sets its filters up for 640 x 480; scale makes them take the real size.
        out.set_video_filter([("scale", f"{width}:{height}")], GIF_PALETTE)
        count = 0
        for picture in pictures:
            out.write_frame(picture)
            count += 1
    if "comment" in metadata:
        _add_gif_comment(path, metadata["comment"])
    return count


def _add_gif_comment(path: Path, comment: str) -> None:
    """FFmpeg's gif writer knows no comments: put the block after the header and the global colour table."""
    data, text = path.read_bytes(), comment.encode()
    end = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    parts = [text[at : at + 255] for at in range(0, len(text), 255)]
    block = b"\x21\xfe" + b"".join(bytes([len(part)]) + part for part in parts) + b"\x00"
    path.write_bytes(data[:end] + block + data[end:])


WRITERS = {".mp4": _write_mp4, ".gif": _write_gif}
