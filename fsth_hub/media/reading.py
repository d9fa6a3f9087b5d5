"""Clips as streams: pictures come one at a time, so the length of a clip costs no memory."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path

import av
import imageio.v3 as iio
import numpy as np
from av.sidedata.sidedata import Type
from PIL import Image

from ..checks import check_number
from ..models.errors import VideoError
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
from .frames import FPS_RANGE, Frames, to_array, to_arrays
from .high_dynamic_range import ToneMapper, needs_mapping
from .rates import average_rate, constant_rate, ticks
from .timeline import Timeline


DEFAULT_FPS = 25.0
MAX_PIXELS = 8192 * 4320  # of a frame: the largest that cameras film, 8K; four of them in a gif take seconds

# HEIC and AVIF: FFmpeg opens these pictures too.
STILL_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"avif", b"avis")
ANIMATIONS = ("GIF", "WEBP", "PNG")  # read through imageio and Pillow: FFmpeg knows no moving webp
# How a picture is turned by a multiple of 90 degrees against the clock, see `_way_up`.
TURNS = ((False, 1, 1), (True, -1, 1), (False, -1, -1), (True, 1, -1))


@dataclass(frozen=True)
class Clip:
    """A moving picture, read as a stream and as often as wanted: iterating gives H x W x 3 uint8 RGB, upright.

    Args:
        fps: Constant rate at which iteration gives frames, per second.
        width: Pixels, upright.
        height: Pixels, upright.
        duration: Seconds, None if the file does not tell.
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
        """How many frames iteration gives, unless pictures are damaged; None where that is not known."""
        if self.duration is None:
            return self.max_frames
        count = _ticks(self.duration, self.fps)
        return count if self.max_frames is None else min(count, self.max_frames)

    def __iter__(self) -> Iterator[np.ndarray]:
        return islice(self._resampled(), self.max_frames)

    def _resampled(self) -> Iterator[np.ndarray]:
        """For each tick of the constant rate the last picture that has begun, or is about to: sound stays in step."""
        count, end, held = 0, 0.0, None
        for start, length, picture in self.read():
            while held is not None and count < ticks(start, self.fps):
                yield held
                count += 1
            held, end = picture, start + length
        while held is not None and count < _ticks(end, self.fps):
            yield held
            count += 1


def _ticks(seconds: float, fps: float) -> int:
    """How many frames of a constant rate begin within so many seconds."""
    return max(1, int(ticks(seconds, fps)))


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
        fps: Frames per second to give; defaults to the clip's own rate, or a whole part of it that is not above 32,
            and to 30 where the rate varies and sound would be out of step. For frames, the rate at which they were
            taken, 25 by default.
        max_frames: Read no more than so many frames.
        allow_still: Take a file of a single picture too.

    Returns:
        The clip: turned and mirrored as the file says, of constant frame rate, its colours sRGB. What the file holds
        decides how it is read, not its name.

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
    height, width = to_array(first).shape[:2]
    readings = [chain([first], unread)] if once else None
    del first, unread  # or the first frame would be kept

    def read():
        if once and not readings:
            raise VideoError("The clip's frames came from an iterator and have been read: give a file or a list.")
        pictures = readings.pop() if once else source
        for index, picture in enumerate(islice(to_arrays(pictures), max_frames)):
            yield index / fps, 1 / fps, picture

    duration = len(source) / fps if hasattr(source, "__len__") else None
    return Clip(fps, width, height, duration, None, max_frames, read)


def _open_file(file: ClipFile, fps: float | None, max_frames: int | None, allow_still: bool) -> Clip:
    file, audio_from = rereadable(file), None
    if _is_animation(file):
        read = partial(_read_animation, file)
        lengths, shape = [], None
        for _, length, picture in read():  # decoded once, for that takes seconds where pictures are large
            lengths.append(length)
            shape = shape or picture.shape
        duration, count = sum(lengths), len(lengths)
        usual = constant_rate(np.zeros(1), count / duration if lengths else DEFAULT_FPS)
    else:
        rate, usual, duration, has_sound = _measure(file)
        read = partial(_read_video, file, rate)
        audio_from = file if has_sound else None
        first = [picture.shape for _, _, picture in islice(read(), 2)]
        count, shape = len(first), next(iter(first), None)
    if not count:
        raise VideoError(f"No picture of {name_of(file)} can be decoded: the file is damaged or cut off.")
    if count == 1 and not allow_still:
        raise VideoError(f"{name_of(file)} holds a single picture: give a video, in which the face moves.")
    height, width = shape[:2]
    return Clip(fps or usual, width, height, duration, audio_from, max_frames, read, file)


def holds_clip(file: ClipFile) -> bool:
    """Whether a file holds a moving picture: a video, or a gif, webp or png of several frames."""
    try:
        with open_binary(file) as opened:
            start = opened.read(12)
        if _is_animation(file):
            with open_binary(file) as opened, Image.open(opened, formats=ANIMATIONS) as picture:
                return getattr(picture, "n_frames", 1) > 1
        if start[4:8] == b"ftyp" and start[8:] in STILL_BRANDS:
            return False
        with open_container(file) as container:
            return video_stream(container) is not None
    except Exception:  # no file, another kind of file, or a damaged one: whoever reads it as a picture says so
        return False


def _is_animation(file: ClipFile) -> bool:
    try:
        with open_binary(file) as opened, Image.open(opened, formats=ANIMATIONS) as animation:
            size = animation.size
    except Image.DecompressionBombError:
        size = (MAX_PIXELS, 2)
    except Exception:  # another kind of file, or a damaged one: Pillow raises nearly anything
        return False
    _check_pixels(file, *size)
    return True


def _check_pixels(file: ClipFile, width: int, height: int) -> None:
    """Refuse pictures that would fill the memory: a small file can say that they are of any size."""
    if width * height > MAX_PIXELS:
        raise VideoError(f"{name_of(file)} is too large: give a clip of at most {MAX_PIXELS // 10**6} megapixels.")


def _measure(file: ClipFile) -> tuple[float, float, float | None, bool]:
    """Frames per second on average and to be given at, the length in s or None if it cannot be told, and whether there
    is sound.

    Packets are looked at, and not what the header says: recordings that broke off or begin anew say anything.
    """
    zero = start_time(file)
    with open_container(file) as container:
        stream, sound = video_stream(container), audio_stream(container)
        if stream is None:
            raise VideoError(f"{name_of(file)} has no moving picture, only sound: give a video.")
        rate, timeline = float(stream.average_rate or DEFAULT_FPS), Timeline(container, stream, sound)
        starts, last, length, known = [], -math.inf, None, True
        for packet in timeline.packets(stream):
            if packet.dts is None or packet.is_discard or packet.is_corrupt:
                continue
            known = known and packet.pts is not None
            start = float((packet.dts if packet.pts is None else packet.pts) * packet.time_base) - zero
            starts.append(start)
            if start >= last:
                last, length = start, float(packet.duration * packet.time_base) if packet.duration else None
    starts = np.sort(starts)
    if timeline.was_mended:  # the average is over the leap, too
        rate = average_rate(starts) or rate
    rate = float(np.clip(rate, *FPS_RANGE))
    duration = last + (length or 1 / rate) if known and len(starts) else None
    return rate, constant_rate(starts if known and len(starts) else np.zeros(1), rate), duration, sound is not None


def _read_video(file: ClipFile, rate: float) -> Iterator[tuple[float, float, np.ndarray]]:
    zero = start_time(file)
    with open_container(file) as container:
        stream = video_stream(container)
        stream.thread_type = "AUTO"
        aspect = float(stream.sample_aspect_ratio or 1)  # of a pixel: some cameras' are not square
        size, start, tone_mappers = None, -1 / rate, {}
        # looked up where it changes: what a frame has beside it holds the frame until garbage is collected
        rotation = way_up = None
        for frame in decode(Timeline(container, stream, audio_stream(container)).packets(stream)):
            # The size may change within a file (a recorded call); the first picture's is kept.
            size = size or (max(1, round(frame.width * aspect)), frame.height)
            _check_pixels(file, *size)
            start = start + 1 / rate if frame.time is None else frame.time - zero
            length = float(frame.duration * frame.time_base) if frame.duration else 1 / rate
            if needs_mapping(frame):
                transfer = frame.color_trc
                tone_mappers[transfer] = tone_mappers.get(transfer) or ToneMapper(transfer)
                picture = tone_mappers[transfer](frame, *size)
            else:
                picture = frame.to_ndarray(format="rgb24", width=size[0], height=size[1])
            if frame.rotation != rotation:
                rotation, way_up = frame.rotation, _way_up(frame)
            yield start, length, np.ascontiguousarray(_upright(picture, way_up))


def _way_up(frame: av.VideoFrame) -> tuple[bool, int, int]:
    """How pictures come to stand as the display matrix of a frame says, to the nearest right angle: whether rows and
    columns change places, and the steps through rows and columns then."""
    try:
        data = next((data for data in frame.side_data if data.type == Type.DISPLAYMATRIX), None)
    except ValueError:  # PyAV lists nothing beside a kind that it does not know, but it tells the turn
        return TURNS[round(frame.rotation / 90) % 4]
    if data is None:
        return TURNS[0]
    # x' = a x + c y, y' = b x + d y, as players show it
    a, b, _, c, d = np.frombuffer(bytes(data), np.int32)[:5]
    swapped = bool(abs(b) > abs(a))
    if swapped:
        a, d = c, b
    return swapped, -1 if d < 0 else 1, -1 if a < 0 else 1


def _upright(picture: np.ndarray, way_up: tuple[bool, int, int]) -> np.ndarray:
    """A picture set upright by what [`_way_up`] found."""
    swapped, down, right = way_up
    return (picture.swapaxes(0, 1) if swapped else picture)[::down, ::right]


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


def read_metadata(file: ClipFile) -> dict[str, str]:
    """The container's fields, as `write_clip` wrote them; `VideoError` for what is no clip."""
    with open_container(file) as container:
        return dict(container.metadata)
