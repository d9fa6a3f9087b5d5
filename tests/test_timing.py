"""Picture and sound in step, whatever a file's time stamps do: clicks and white frames in the same moments."""

from fractions import Fraction

import av
import numpy as np
import pytest

from fsth_hub.media.reading import open_clip
from fsth_hub.media.writing import write_clip


RATE = 48_000
STEP = 0.02  # s that picture and sound may be apart


def make_part(path, seconds, start=0.0, leap=(1e9, 0.0), sound="aac", sound_leap=None, sound_from=0.0, times=None):
    """
    A grey clip with a white frame and a click at each second; its stamps begin at `start` s, and after `leap[0]` s
    are later by `leap[1]` s.
    """
    times = np.arange(round(seconds * 25)) / 25 if times is None else times
    with av.open(str(path), "w") as out:
        video = out.add_stream(
            "libx264", rate=25, options={"preset": "ultrafast", "bf": "0" if leap[1] else "2", "b_strategy": "0"}
        )
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        video.codec_context.time_base = Fraction(1, 1000)
        audio = out.add_stream(sound, rate=RATE, layout="mono")
        packets = []
        for time in times:
            value = 255 if time % 1 < 0.039 else 60
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), value, np.uint8))
            frame.pts = round(1000 * (start + time + (leap[1] if time >= leap[0] else 0)))
            frame.time_base = Fraction(1, 1000)
            packets += video.encode(frame)
        packets += video.encode()
        clock = np.arange(round(sound_from * RATE), round(seconds * RATE)) / RATE
        tone = (np.sin(2 * np.pi * 1000 * clock) * (clock % 1 < 0.02)).astype(np.float32)
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


def written(folder, source):
    """The clip's frame count, and how far apart each flash and its click are in what is written, s."""
    clip = open_clip(source)
    count = write_clip(folder / "out.mp4", clip, clip.fps, clip.audio_from)
    assert clip.frame_count == count == len(list(clip))  # a total is right, or None
    flashes, clicks = onsets(folder / "out.mp4")
    return count, np.array([np.abs(clicks - flash).min() for flash in flashes if flash > clicks.min() - 0.3])


def test_clips_pasted_together_are_whole_and_in_step(tmp_path):
    """Stamps start anew in the second part, leap by ten hours in the third, and start anew again."""
    parts = [make_part(tmp_path / f"{start}.ts", 2.0, start) for start in (5.0, 0.0, 36_000.0, 1.4)]
    (tmp_path / "all.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    count, apart = written(tmp_path, tmp_path / "all.ts")
    assert count == 200 and len(apart) == 7 and apart.max() <= STEP
    flashes, clicks = onsets(tmp_path / "out.mp4")
    assert np.allclose(np.diff(flashes), 1, atol=1e-3) and np.allclose(np.diff(clicks), 1, atol=0.01)


def test_parts_whose_sound_ends_early_or_late_stay_in_step(tmp_path):
    """A part's sound that is too short is filled up with silence; of what is too long no more than a blink goes."""
    parts = [make_part(tmp_path / f"{number}.ts", 2.0) for number in range(3)]
    for name, seconds, count in (("short", 1.6, 150), ("long", 2.3, 157)):
        other = make_part(tmp_path / f"{name}.ts", seconds, times=np.arange(50) / 25)
        (tmp_path / "all.ts").write_bytes(b"".join(p.read_bytes() for p in (parts[0], other, parts[2])))
        pictures, apart = written(tmp_path, tmp_path / "all.ts")
        assert pictures == count
        assert np.sort(apart)[:4].max() <= STEP


@pytest.mark.parametrize("name", ["a.ts", "a.mkv", "a.mp4"])
def test_a_leap_that_frames_cannot_explain_is_closed(tmp_path, name):
    count, apart = written(tmp_path, make_part(tmp_path / name, 3.0, leap=(1.52, 60.0)))
    assert count == 75 and len(apart) == 2 and apart.max() <= STEP
    assert np.allclose(np.diff(onsets(tmp_path / "out.mp4")[0]), 1, atol=2e-3)
    assert abs(open_clip(tmp_path / name).fps - 25) < 0.1


@pytest.mark.parametrize("name", ["a.mkv", "a.mp4"])
def test_a_picture_stays_as_long_as_the_sound_goes_on(tmp_path, name):
    times = np.arange(175) / 25
    path = make_part(tmp_path / name, 7.0, times=times[(times < 2) | (times > 4.98)])
    clip = open_clip(path, fps=25)
    count = write_clip(tmp_path / "out.mp4", clip, 25, clip.audio_from)
    flashes, clicks = onsets(tmp_path / "out.mp4")
    assert 174 <= count <= 177 and np.abs(clicks - flashes[-1]).min() <= STEP and flashes[-1] > 5.9


@pytest.mark.parametrize("name, sound", [("a.mp4", "aac"), ("a.mkv", "aac"), ("a.mkv", "libopus")])
def test_sound_that_starts_late_keeps_its_offset(tmp_path, name, sound):
    count, apart = written(tmp_path, make_part(tmp_path / name, 3.0, sound=sound, sound_from=0.7))
    assert count == 75 and len(apart) == 2 and apart.max() <= STEP


def test_a_hole_in_the_sound_is_silence(tmp_path):
    """Nothing is heard for three seconds; what follows stays with its pictures."""
    path = make_part(tmp_path / "a.mkv", 7.0, sound_leap=(1.5, 3.0))
    count, _ = written(tmp_path, path)
    _, clicks = onsets(tmp_path / "out.mp4")
    assert count == 175 and np.allclose(clicks[:3], [0, 1, 5], atol=STEP)


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


@pytest.mark.parametrize("pieces", [[(0, 1.4), (3.6, 6)], [(1.2, 6)], [(0.6, 2), (3, 4), (5, 6)]])
def test_what_an_edit_list_cuts_out_is_not_there(tmp_path, pieces):
    # without B-frames, after which FFmpeg's reader shows all but the first piece as late as they delay decoding
    path = cut(make_part(tmp_path / "a.mp4", 6.0, leap=(1e9, 1.0)), *pieces)
    count, apart = written(tmp_path, path)
    assert count == round(25 * sum(end - start for start, end in pieces))
    whole = [second for start, end in pieces for second in range(6) if start < second <= end - 0.1]
    assert len(apart) >= len(whole) and apart.max() <= STEP
