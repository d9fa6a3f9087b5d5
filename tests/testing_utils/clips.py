"""Clips with sound, written without the package."""

from fractions import Fraction

import av
import numpy as np


def click(seconds: float, rate: int, at: float) -> np.ndarray:
    """Silence with 30 ms of 1 kHz at `at` s; 1 x samples, float32."""
    time = np.arange(round(seconds * rate)) / rate
    tone = np.sin(2 * np.pi * 1000 * time) * ((time >= at) & (time < at + 0.03))
    return tone[None].astype(np.float32)


def make_clip(
    path,
    frames,
    times_ms=None,
    codec="libx264",
    sound=None,
    sound_from=0.0,
    rotation=None,
    aspect=None,
    fps=25,
    options=None,
):
    """A clip of `frames` at `times_ms` (or at `fps`) with a click at 1 s in `sound` (a codec's name)."""
    base = Fraction(1, 1000)
    with av.open(str(path), "w", options=options) as out:
        stream = out.add_stream(codec, rate=fps)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if times_ms is not None:
            stream.codec_context.time_base = base
        if rotation is not None:
            stream.set_display_rotation(rotation)
        audio = None if sound is None else out.add_stream(sound, rate=48_000, layout="mono")
        for index, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(image)
            if times_ms is not None:
                frame.pts, frame.time_base = times_ms[index], base
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
        if audio is not None:
            chunk = av.AudioFrame.from_ndarray(click(2.0, 48_000, 1.0 - sound_from), format="fltp", layout="mono")
            chunk.sample_rate, chunk.pts = 48_000, round(sound_from * 48_000)
            out.mux(audio.encode(chunk))
            out.mux(audio.encode())
    return path


def sound_of(path) -> tuple[str, float, float, float]:
    """Codec of the sound, where it starts and ends, and where the click begins, in s."""
    with av.open(str(path)) as container:
        track = container.streams.audio[0]
        codec = track.codec_context.codec.canonical_name
        frames = list(container.decode(track))
    resampler = av.AudioResampler(format="flt", layout="mono")
    onset = None
    for frame in frames:
        for chunk in resampler.resample(frame):
            loud = np.flatnonzero(np.abs(chunk.to_ndarray()[0]) > 0.2)
            if onset is None and len(loud):
                onset = chunk.time + loud[0] / chunk.sample_rate
    end = frames[-1].time + frames[-1].samples / frames[-1].sample_rate
    return codec, frames[0].time, end, onset
