"""The sound of a clip, in step with its pictures, for an mp4 or in a file of its own."""

import io
import math
from collections.abc import Iterable, Iterator

import av
import numpy as np

from ..models.errors import VideoError
from .containers import (
    SOUND_FILES,
    ClipFile,
    audio_stream,
    decode,
    name_of,
    open_container,
    rereadable,
    start_time,
    video_stream,
)
from .timeline import Timeline


RATE, BIT_RATE = 48_000, 96_000  # samples and bits per second, of what is encoded
HOLE = 0.01  # s: less is how stamps are rounded


class Sound:
    """The sound track of a file, counted from its first picture; `VideoError` if the file cannot be read.

    Args:
        file: What can be opened more than once.
    """

    def __init__(self, file: ClipFile):
        self.file, self.zero = file, start_time(file)

    def packets(self, out: av.container.OutputContainer) -> Iterator[av.Packet]:
        """Add a track to an output not yet begun; give its packets, in order. There are none if there is no sound."""
        with open_container(self.file) as source:
            track = audio_stream(source)
            if track is None:
                return
            packets = Timeline(source, track, video_stream(source)).packets(track)
            # These two play in an mp4 everywhere; but the AAC of a transport stream (no extradata) has another packet
            # format.
            codec = track.codec_context.codec.canonical_name
            if (codec == "mp3" or (codec == "aac" and track.codec_context.extradata)) and self._is_whole():
                packets = self._copied(packets, out.add_stream_from_template(track))
            else:
                packets = _encoded(packets, out.add_stream("aac", rate=RATE, layout="stereo"), self.zero)
            last = -math.inf
            for packet in packets:
                if packet.dts > last:  # a stray one; the muxer would refuse
                    last = packet.dts
                    yield packet

    def _is_whole(self) -> bool:
        """Whether packets follow on one another: players go on over a hole, and are out of step after it, the more so
        after many small ones."""
        with open_container(self.file) as source:
            track, end = audio_stream(source), None
            context = track.codec_context
            length = context.frame_size / context.sample_rate if context.frame_size and context.sample_rate else None
            for packet in Timeline(source, track, video_stream(source)).packets(track):
                if packet.pts is None:
                    continue
                start = float(packet.pts * packet.time_base)
                if end is not None and abs(start - end) > HOLE:
                    return False
                # not from this packet's stamp, which may be rounded, or off by a little
                end = (start if end is None else end) + (length or float((packet.duration or 0) * packet.time_base))
        return True

    def _copied(self, packets: Iterable[av.Packet], stream: av.AudioStream) -> Iterator[av.Packet]:
        for packet in packets:
            # the end, or damaged, or what the file's edit list leaves out
            if packet.pts is None or packet.dts is None or packet.pts < packet.dts or packet.is_discard:
                continue
            offset = round(self.zero / packet.time_base)
            packet.pts, packet.dts = packet.pts - offset, packet.dts - offset
            # The packet just before the first picture stays: a decoder needs it to begin the next one cleanly.
            if packet.pts + 2 * (packet.duration or 0) > 0:
                packet.stream = stream
                yield packet


def read_sound(file: ClipFile, seconds: float | None = None) -> bytes:
    """The sound of a file as m4a (AAC, stereo), counted from its first picture if it has one.

    Args:
        file: A clip, or wav, mp3, flac, ogg, m4a, aac or aiff; a path, bytes or a file object.
        seconds: No more than so many.

    Raises:
        VideoError: It cannot be read, or has no sound.
    """
    file, made = rereadable(file), io.BytesIO()
    zero = start_time(file, SOUND_FILES)
    with open_container(file, SOUND_FILES) as source, av.open(made, "w", format="ipod") as out:
        track = audio_stream(source)
        if track is None:
            raise VideoError(f"{name_of(file)} has no sound.")
        stream = out.add_stream("aac", rate=RATE, layout="stereo")
        stream.bit_rate = BIT_RATE
        for packet in _encoded(Timeline(source, track, video_stream(source)).packets(track), stream, zero):
            if seconds is not None and packet.pts * packet.time_base >= seconds:
                break
            out.mux(packet)
    return made.getvalue()


def _encoded(packets: Iterable[av.Packet], stream: av.AudioStream, zero: float) -> Iterator[av.Packet]:
    count = 0
    for samples in _continuous(decode(packets), zero):
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="stereo")
        frame.sample_rate, frame.pts = RATE, count
        count += samples.shape[1]
        yield from stream.encode(frame)
    yield from stream.encode()


def _continuous(frames: Iterable[av.AudioFrame], zero: float) -> Iterator[np.ndarray]:
    """Sound from the first picture on without a hole, 2 x n float32: silence where there is none, nothing twice."""
    done = 0  # samples given
    resampler, kind = None, None
    for frame in frames:
        if frame.time is None:
            continue
        start = round((frame.time - zero) * RATE)
        if kind != (frame.format.name, frame.layout.name, frame.sample_rate):  # clips pasted together may differ
            kind = (frame.format.name, frame.layout.name, frame.sample_rate)
            resampler = av.AudioResampler(format="fltp", layout="stereo", rate=RATE)
        frame.pts = None
        samples = np.concatenate([piece.to_ndarray() for piece in resampler.resample(frame)] or [np.empty((2, 0))], 1)
        while start - done > HOLE * RATE:
            silence = np.zeros((2, min(start - done, RATE)), np.float32)
            done += silence.shape[1]
            yield silence
        samples = samples[:, max(0, done - start) if done - start > HOLE * RATE or done == 0 else 0 :]
        done += samples.shape[1]
        if samples.shape[1]:
            yield np.ascontiguousarray(samples, np.float32)
