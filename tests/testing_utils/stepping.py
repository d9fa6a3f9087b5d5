"""Clips in which a white frame and a click come in the same moment, whatever their time stamps do, and how far apart
the two are afterwards."""

import math
from fractions import Fraction

import av
import numpy as np


RATE = 48_000
STEP = 0.02  # s that picture and sound may be apart


def make_part(path, seconds, start=0.0, leap=(1e9, 0.0), sound="aac", sound_leap=None, sound_from=0.0, times=None):
    """
    A grey clip with a white frame and a click at each second, or as soon after it as there is a picture; its stamps
    begin at `start` s, and after `leap[0]` s are later by `leap[1]` s.
    """
    times = np.arange(round(seconds * 25)) / 25 if times is None else np.asarray(times)
    moments = times[np.searchsorted(times + 1e-6, np.arange(math.ceil(times[-1])))]
    with av.open(str(path), "w") as out:
        video = out.add_stream(
            "libx264", rate=25, options={"preset": "ultrafast", "bf": "0" if leap[1] else "2", "b_strategy": "0"}
        )
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        video.codec_context.time_base = Fraction(1, 1000)
        audio = out.add_stream(sound, rate=RATE, layout="mono")
        packets = []
        for time in times:
            since = time - moments
            value = 255 if ((since > -1e-6) & (since < 0.039)).any() else 60
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), value, np.uint8))
            frame.pts = round(1000 * (start + time + (leap[1] if time >= leap[0] else 0)))
            frame.time_base = Fraction(1, 1000)
            packets += video.encode(frame)
        packets += video.encode()
        clock = np.arange(round(sound_from * RATE), round(seconds * RATE)) / RATE
        latest = np.searchsorted(moments, clock + 1e-6) - 1
        since = clock - moments[latest]
        tone = (np.sin(2 * np.pi * 1000 * since) * (since < 0.02) * (latest >= 0)).astype(np.float32)
        size = audio.codec_context.frame_size or 1024
        at, later = sound_leap or leap
        heard = []
        for index in range(0, len(tone) - size + 1, size):
            chunk = av.AudioFrame.from_ndarray(tone[None, index : index + size], format="fltp", layout="mono")
            chunk.sample_rate, chunk.pts = RATE, index
            heard += audio.encode(chunk)
        for packet in heard + audio.encode():  # moved here, for PyAV encodes no stamps that leap
            time = float(packet.pts * packet.time_base) + sound_from
            moved = round((sound_from + start + (later if time >= at else 0)) / packet.time_base)
            packet.pts, packet.dts = packet.pts + moved, packet.dts + moved
            packets.append(packet)
        for packet in sorted(packets, key=lambda packet: packet.dts * packet.time_base):
            out.mux(packet)
    return path


def onsets(path):
    """When white begins and when clicks do, in s."""
    with av.open(str(path)) as container:
        pictures = [(frame.time, frame.to_ndarray(format="gray").mean() > 150) for frame in container.decode(video=0)]
    with av.open(str(path)) as container:
        resampler, loud = av.AudioResampler(format="flt", layout="mono"), []
        for frame in container.decode(audio=0):
            for piece in resampler.resample(frame):
                loud.append(piece.time + np.flatnonzero(np.abs(piece.to_ndarray()[0]) > 0.3) / piece.sample_rate)
    loud = np.concatenate(loud)
    flashes = [
        time for (time, white), (_, before) in zip(pictures[1:], pictures, strict=False) if white and not before
    ]
    return np.array(flashes), loud[np.diff(loud, prepend=-1) > 0.1]


def apart(flashes, clicks):
    """How far each flash is from its click, s; later sound is positive."""
    nearest = clicks[np.abs(clicks - flashes[:, None]).argmin(axis=1)]
    return nearest - flashes


def cut(path, *pieces):
    """Have an mp4's edit lists play pieces of its media alone, each from one time to another, s."""
    data = bytearray(path.read_bytes())

    def atoms(start, end):
        while start < end:
            size = int.from_bytes(data[start : start + 4], "big")
            yield bytes(data[start + 4 : start + 8]), start, start + size
            start += size

    def find(name, start, end):
        return next((at, stop) for found, at, stop in atoms(start, end) if found == name)

    moov, end = find(b"moov", 0, len(data))
    assert end == len(data)  # nothing lies behind that would be moved
    movie_scale = int.from_bytes(data[find(b"mvhd", moov + 8, end)[0] + 20 :][:4], "big")
    for trak in reversed([at for name, at, _ in atoms(moov + 8, end) if name == b"trak"]):
        trak_end = trak + int.from_bytes(data[trak : trak + 4], "big")
        mdia, mdia_end = find(b"mdia", trak + 8, trak_end)
        scale = int.from_bytes(data[find(b"mdhd", mdia + 8, mdia_end)[0] + 20 :][:4], "big")
        edts, edts_end = find(b"edts", trak + 8, trak_end)
        first = int.from_bytes(data[edts_end - 8 : edts_end - 4], "big")
        entries = [(round((b - a) * movie_scale), first + round(a * scale), 1 << 16) for a, b in pieces]
        content = bytes(4) + len(entries).to_bytes(4, "big")
        content += b"".join(number.to_bytes(4, "big") for entry in entries for number in entry)
        elst = (len(content) + 8).to_bytes(4, "big") + b"elst" + content
        new = (len(elst) + 8).to_bytes(4, "big") + b"edts" + elst
        more = len(new) - (edts_end - edts)
        for place in (trak, moov):
            data[place : place + 4] = (int.from_bytes(data[place : place + 4], "big") + more).to_bytes(4, "big")
        data[edts:edts_end] = new
    path.write_bytes(data)
    return path
