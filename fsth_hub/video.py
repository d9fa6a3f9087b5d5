"""Clips as streams: pictures come and go one at a time, so the length of a clip costs no memory."""

import math
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from itertools import chain, islice
from pathlib import Path

import av
import imageio.v3 as iio
import numpy as np
from PIL import Image

from .errors import VideoError


Frame = np.ndarray | Image.Image

DEFAULT_FPS = 25.0
MAX_FPS = 32.0  # phones say 30 and mean a little more; what is faster only costs time in a face
CRF = "18"  # visually without loss in x264

# Named, because FFmpeg would also open playlists, whose entries may point anywhere on this machine or the network.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,mpeg,mpegts,avi,gif"
ANIMATIONS = (".gif", ".webp")  # read through imageio and Pillow: FFmpeg knows no moving webp

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
        audio_path: The file that holds the clip's sound, for `write_clip(audio_from=...)`; None if it has none.
        max_frames: Iteration ends after so many frames; None for all.
        read: Starts again at the first picture and gives (start in s, length in s, picture).
    """

    fps: float
    width: int
    height: int
    duration: float | None
    audio_path: Path | None
    max_frames: int | None
    read: Callable[[], Iterator[tuple[float, float, np.ndarray]]] = field(repr=False)

    @property
    def has_audio(self) -> bool:
        return self.audio_path is not None

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
    source: str | os.PathLike | np.ndarray | Sequence[Frame],
    fps: float | None = None,
    max_frames: int | None = None,
    allow_still: bool = False,
) -> Clip:
    """Open a video file, or take frames, as a clip of constant frame rate.

    Args:
        source: A video (mp4, mov, webm, mkv, avi, mpg, gif, moving webp), or frames: N x H x W x 3 uint8 RGB or a
            list of pictures of one size.
        fps: Frames per second to give; defaults to the clip's average rate, or a whole part of it that is not above
            32. For frames, the rate at which they were taken, 25 by default.
        max_frames: Read no more than so many frames.
        allow_still: Take a file of a single picture too.

    Returns:
        The clip. Phone rotation is applied, a variable frame rate made constant.

    Raises:
        VideoError: The source is no clip that can be read.
    """
    if fps is not None and fps <= 0:
        raise VideoError(f"The frame rate must be above 0, not {fps}.")
    if isinstance(source, str | os.PathLike):
        return _open_file(Path(source), fps, max_frames, allow_still)
    if len(source) == 0:
        raise VideoError("The list of frames is empty.")
    fps = fps or DEFAULT_FPS
    height, width = _picture(source[0]).shape[:2]

    def read():
        for index, picture in enumerate(_pictures(source)):
            yield index / fps, 1 / fps, picture

    return Clip(fps, width, height, len(source) / fps, None, max_frames, read)


def write_clip(
    path: str | os.PathLike,
    frames: Iterable[Frame],
    fps: float,
    audio_from: str | os.PathLike | None = None,
    metadata: dict[str, str] | None = None,
    finish: Callable[[Path], object] | None = None,
) -> int:
    """Write frames as they come: .mp4 (H.264, with sound) or .gif. Nothing is left behind if something fails.

    Args:
        path: Where to write; what is there is replaced once the new clip is complete.
        frames: Pictures of one size, H x W x 3 uint8 RGB or PIL; of an odd size, the mp4 repeats the last row or
            column, since H.264 needs even ones.
        fps: Frames per second.
        audio_from: The video whose sound to keep, from its first picture on and no longer than the frames last.
        metadata: Container fields such as `title` and `comment` (a gif keeps the comment alone).
        finish: Called with the complete file before it takes its place, to sign it.

    Returns:
        The number of frames written.

    Raises:
        VideoError: The suffix or a frame does not fit, there is no frame, or `audio_from` cannot be read.
    """
    path = Path(path)
    writers = {".mp4": _write_mp4, ".gif": _write_gif}
    if path.suffix.lower() not in writers:
        raise VideoError(f"Cannot write {path.name}: a clip can be written as {' or '.join(writers)}.")
    if fps <= 0:
        raise VideoError(f"The frame rate must be above 0, not {fps}.")
    try:
        # A folder beside the target: renaming out of it is atomic, and it goes away with all that it holds.
        workplace = tempfile.TemporaryDirectory(prefix=".fsth-", dir=path.absolute().parent)
    except OSError as error:
        raise VideoError(f"Cannot write {path.name} into {path.absolute().parent}: {error.strerror}.") from error
    with workplace as folder:
        unfinished = Path(folder, path.name)
        # FFmpeg's broadcast rates are n / 1001.
        rate = Fraction(fps).limit_denominator(1001)
        try:
            count = writers[path.suffix.lower()](unfinished, _pictures(frames), rate, audio_from, metadata or {})
        except av.FFmpegError as error:  # the disk is full, or the sound to keep is damaged
            raise VideoError(f"Cannot write {path.name}: {error.strerror}.") from error
        if finish is not None:
            finish(unfinished)
        unfinished.replace(path)
    return count


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
    """The container's fields, as `write_clip` wrote them; `VideoError` for what is no clip."""
    with _open(Path(path)) as container:
        return dict(container.metadata)


def _open_file(path: Path, fps: float | None, max_frames: int | None, allow_still: bool) -> Clip:
    if not path.is_file():
        raise VideoError(f"There is no file {path}.")
    if path.suffix.lower() in ANIMATIONS:
        read, audio_path = partial(_read_animation, path), None
        lengths = [length for _, length, _ in read()]
        duration = sum(lengths)
        rate = len(lengths) / duration if lengths else DEFAULT_FPS
    else:
        read = partial(_read_video, path)
        with _open(path) as container:
            stream = _video_stream(container)
            if stream is None:
                raise VideoError(f"{path.name} has no moving picture, only sound: give a video.")
            rate = float(stream.average_rate or DEFAULT_FPS)
            duration = container.duration / av.time_base if container.duration else None
            audio_path = path if _audio_stream(container) is not None else None
    first = [picture for _, _, picture in islice(read(), 2)]
    if not first:
        raise VideoError(f"No picture of {path.name} can be decoded: the file is damaged or cut off.")
    if len(first) == 1 and not allow_still:
        raise VideoError(f"{path.name} holds a single picture: give a video, in which the face moves.")
    height, width = first[0].shape[:2]
    return Clip(fps or rate / math.ceil(rate / MAX_FPS), width, height, duration, audio_path, max_frames, read)


def _open(path: Path) -> av.container.InputContainer:
    try:
        return av.open(str(path.absolute()), metadata_errors="ignore", options={"format_whitelist": CONTAINERS})
    except (av.FFmpegError, OSError) as error:
        raise VideoError(
            f"{path.name} is not a video that can be read (mp4, mov, webm, mkv, avi, mpg, gif), or it is damaged."
        ) from error


def _video_stream(container: av.container.InputContainer) -> av.VideoStream | None:
    # The cover of a piece of music is a video stream too.
    cover = av.stream.Disposition.attached_pic
    return next((s for s in container.streams.video if s.codec_context and not s.disposition & cover), None)


def _audio_stream(container: av.container.InputContainer) -> av.AudioStream | None:
    # Phones add tracks that no free decoder knows; such a stream has no codec context.
    return next((s for s in container.streams.audio if s.codec_context), None)


def _start_time(container: av.container.InputContainer) -> float:
    """Time stamp of the first picture in s: the clip's zero, from which the sound is counted too."""
    stream = _video_stream(container)
    return 0.0 if stream is None or stream.start_time is None else float(stream.start_time * stream.time_base)


def _decode(container: av.container.InputContainer, stream: av.stream.Stream) -> Iterator[av.frame.Frame]:
    """All that can be decoded: what is damaged is left out."""
    for packet in container.demux(stream):
        try:
            yield from packet.decode()
        except av.FFmpegError:
            continue


def _read_video(path: Path) -> Iterator[tuple[float, float, np.ndarray]]:
    with _open(path) as container:
        stream = _video_stream(container)
        stream.thread_type = "AUTO"
        zero, usual_length = _start_time(container), 1 / float(stream.average_rate or DEFAULT_FPS)
        aspect = float(stream.sample_aspect_ratio or 1)  # of a pixel: some cameras' are not square
        size, start = None, -usual_length
        for frame in _decode(container, stream):
            # The size may change within a file (a recorded call); the first picture's is kept.
            size = size or {"width": round(frame.width * aspect), "height": frame.height}
            start = start + usual_length if frame.time is None else frame.time - zero
            length = float(frame.duration * frame.time_base) if frame.duration else usual_length
            picture = np.rot90(frame.to_ndarray(format="rgb24", **size), frame.rotation // 90)
            yield start, length, np.ascontiguousarray(picture)


def _read_animation(path: Path) -> Iterator[tuple[float, float, np.ndarray]]:
    try:
        with iio.imopen(path, "r", plugin="pillow") as file:
            start = 0.0
            for index, picture in enumerate(file.iter(mode="RGB")):
                milliseconds = file.metadata(index=index).get("duration", 0)
                length = (milliseconds if milliseconds > 10 else 100) / 1000  # as browsers play it
                yield start, length, picture
                start += length
    except Exception:  # a damaged file: Pillow raises nearly anything
        return


def _picture(frame: Frame) -> np.ndarray:
    picture = np.asarray(frame.convert("RGB") if isinstance(frame, Image.Image) else frame)
    if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3:
        raise VideoError(f"A frame must be H x W x 3 uint8 RGB, not {picture.dtype} of shape {picture.shape}.")
    return picture


def _pictures(frames: Iterable[Frame]) -> Iterator[np.ndarray]:
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
        source = None if audio_from is None else stack.enter_context(_open(Path(audio_from)))
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
    track = _audio_stream(source)
    if track is None:
        return
    offset, last = round(_start_time(source) / track.time_base), -math.inf
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
    for frame in _decode(source, track):
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
