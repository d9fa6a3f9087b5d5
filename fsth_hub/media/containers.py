"""Files that hold clips, opened: whatever they were given as, as often as wanted, and nothing that they point to."""

import io
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import av

from ..models.errors import FsthNotFoundError, VideoError


ClipFile = str | os.PathLike | bytes | BinaryIO

# Named, because FFmpeg would also open playlists, whose entries may point anywhere on this machine or the network.
CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,mpeg,mpegts,avi,gif"
SOUND_FILES = f"{CONTAINERS},wav,mp3,flac,ogg,aac,aiff"


class _Reader(io.RawIOBase):
    """A place of its own in a file object: picture and sound are read at the same time, and more than once."""

    def __init__(self, file: BinaryIO):
        self.file, self.place = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        offset, whence = (self.place + offset, os.SEEK_SET) if whence == os.SEEK_CUR else (offset, whence)
        self.file.seek(offset, whence)
        self.place = self.file.tell()
        return self.place

    def readinto(self, buffer) -> int:
        self.file.seek(self.place)
        data = self.file.read(len(buffer))
        buffer[: len(data)] = data
        self.place += len(data)
        return len(data)


def is_file(source: object) -> bool:
    """Whether this is a file (a path, bytes or a file object) and no frames."""
    return isinstance(source, str | os.PathLike | bytes) or hasattr(source, "read")


def open_binary(file: ClipFile) -> BinaryIO:
    """A file from its beginning, whatever it was given as; closing it leaves the caller's own file object open."""
    if isinstance(file, str | os.PathLike):
        return open(file, "rb")
    return io.BytesIO(file) if isinstance(file, bytes) else _Reader(file)


def name_of(file: ClipFile) -> str:
    return Path(file).name if isinstance(file, str | os.PathLike) else "The clip"


def rereadable(file: ClipFile) -> ClipFile:
    """What can be opened more than once: a pipe or download is kept on the disk while the clip is used."""
    if isinstance(file, str | os.PathLike):
        if not Path(file).is_file():
            hint = ": download it first and give the file" if "://" in str(file) else ""
            raise FsthNotFoundError(f"There is no file {file}{hint}.")
        return Path(file)
    if isinstance(file, io.TextIOBase):
        raise VideoError("A clip's file object must give bytes: open the file in binary mode ('rb').")
    if hasattr(file, "read") and not (hasattr(file, "seekable") and file.seekable()):
        kept = tempfile.TemporaryFile()
        shutil.copyfileobj(file, kept)
        return kept
    return file


def open_container(file: ClipFile, containers: str = CONTAINERS) -> av.container.InputContainer:
    # A file object without a name: FFmpeg would believe the end of a name more than what lies in the file.
    source = _Reader(open_binary(file)) if isinstance(file, str | os.PathLike) else open_binary(file)
    try:
        return av.open(source, metadata_errors="ignore", options={"format_whitelist": containers})
    except (av.FFmpegError, OSError) as error:
        kind = "a video that can be read (mp4, mov, webm, mkv, avi, mpg, gif)"
        if containers is SOUND_FILES:
            kind = "sound that can be read (wav, mp3, flac, ogg, m4a)"
        raise VideoError(f"{name_of(file)} is not {kind}, or it is damaged.") from error


def video_stream(container: av.container.InputContainer) -> av.VideoStream | None:
    # The cover of a piece of music is a video stream too.
    cover = av.stream.Disposition.attached_pic
    return _default(s for s in container.streams.video if s.codec_context and not s.disposition & cover)


def audio_stream(container: av.container.InputContainer) -> av.AudioStream | None:
    # Phones add tracks that no free decoder knows; such a stream has no codec context.
    return _default(s for s in container.streams.audio if s.codec_context)


def _default(streams: Iterator[av.stream.Stream]) -> av.stream.Stream | None:
    """The stream that the file says is to be played, or the first one."""
    streams = list(streams)
    marked = [stream for stream in streams if stream.disposition & av.stream.Disposition.default]
    return next(iter(marked or streams), None)


def start_time(file: ClipFile, containers: str = CONTAINERS) -> float:
    """Time stamp of the first picture in s: the clip's zero, from which the sound is counted too."""
    with open_container(file, containers) as container:
        stream = video_stream(container)
        first, before = math.inf, -math.inf
        for packet in () if stream is None else container.demux(stream):
            if packet.pts is None or packet.is_discard:
                continue
            stamp = packet.pts if packet.dts is None else packet.dts
            # After an edit list's cut the first packet may be shown after others, but none before it is decoded.
            if not before <= stamp < first:  # and where stamps start anew, what follows is another part
                break
            first, before = min(first, packet.pts), stamp
        return 0.0 if first == math.inf else float(first * stream.time_base)


def decode(packets: Iterable[av.Packet]) -> Iterator[av.frame.Frame]:
    """All that can be decoded: what is damaged is left out."""
    for packet in packets:
        try:
            yield from packet.decode()
        except av.FFmpegError:
            continue
