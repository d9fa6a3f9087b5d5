"""The sound of a clip, or of a recording without pictures, in a file of its own."""

import io
from pathlib import Path

import av

from ..models.errors import VideoError
from .containers import CONTAINERS, ClipFile, audio_stream, decode, name_of, open_binary, rereadable, start_time


# Named, as those of clips are: a playlist may point anywhere.
SOUND_FILES = f"{CONTAINERS},wav,mp3,flac,ogg,aac,aiff"
RATE, BIT_RATE = 48_000, 96_000


def read_sound(file: ClipFile, seconds: float | None = None) -> bytes:
    """The sound of a file as m4a (AAC, stereo), counted from its first picture if it has one.

    Args:
        file: A clip, or wav, mp3, flac, ogg, m4a, aac or aiff; a path, bytes or a file object.
        seconds: No more than so many.

    Raises:
        VideoError: It cannot be read, or has no sound.
    """
    file, made = rereadable(file), io.BytesIO()
    source = str(Path(file).absolute()) if isinstance(file, Path) else open_binary(file)
    try:
        with av.open(source, metadata_errors="ignore", options={"format_whitelist": SOUND_FILES}) as container:
            track = audio_stream(container)
            if track is None:
                raise VideoError(f"{name_of(file)} has no sound.")
            zero = start_time(container)
            with av.open(made, "w", format="ipod") as out:
                stream = out.add_stream("aac", rate=RATE, layout="stereo")
                stream.bit_rate = BIT_RATE
                for frame in decode(container, track):
                    if frame.pts is None:
                        continue
                    time = frame.time - zero
                    if seconds is not None and time >= seconds:
                        break
                    if time + frame.samples / frame.sample_rate <= 0:
                        continue
                    frame.pts -= round(zero / frame.time_base)
                    out.mux(stream.encode(frame))
                out.mux(stream.encode())
    except (av.FFmpegError, OSError) as error:
        raise VideoError(
            f"{name_of(file)} is no sound that can be read (wav, mp3, flac, ogg, m4a), or it is damaged."
        ) from error
    return made.getvalue()
