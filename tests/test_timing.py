"""Picture and sound in step, whatever a file's time stamps do: clicks and white frames in the same moments."""

import av
import numpy as np
import pytest

from fsth_hub.media.reading import open_clip
from fsth_hub.media.writing import write_clip
from testing_utils.stepping import STEP, apart, cut, make_part, onsets


def written(folder, source):
    """The clip's frame count, and how far apart each flash and its click are in what is written, s."""
    clip = open_clip(source)
    count = write_clip(folder / "out.mp4", clip, clip.fps, clip.audio_from)
    assert clip.frame_count == count == len(list(clip))  # a total is right, or None
    flashes, clicks = onsets(folder / "out.mp4")
    return count, np.abs(apart(flashes[flashes > clicks.min() - 0.3], clicks))


def test_clips_pasted_together_are_whole_and_in_step(tmp_path):
    """Stamps start anew in the second part, leap by ten hours in the third, and start anew again."""
    parts = [make_part(tmp_path / f"{start}.ts", 2.0, start) for start in (5.0, 0.0, 36_000.0, 1.4)]
    (tmp_path / "all.ts").write_bytes(b"".join(part.read_bytes() for part in parts))
    count, off = written(tmp_path, tmp_path / "all.ts")
    assert count == 200 and len(off) == 7 and off.max() <= STEP
    flashes, clicks = onsets(tmp_path / "out.mp4")
    assert np.allclose(np.diff(flashes), 1, atol=1e-3) and np.allclose(np.diff(clicks), 1, atol=0.01)


def test_parts_whose_sound_ends_early_or_late_stay_in_step(tmp_path):
    """A part's sound that is too short is filled up with silence; of what is too long no more than a blink goes."""
    parts = [make_part(tmp_path / f"{number}.ts", 2.0) for number in range(3)]
    for name, seconds, count in (("short", 1.6, 150), ("long", 2.3, 157)):
        other = make_part(tmp_path / f"{name}.ts", seconds, times=np.arange(50) / 25)
        (tmp_path / "all.ts").write_bytes(b"".join(p.read_bytes() for p in (parts[0], other, parts[2])))
        pictures, off = written(tmp_path, tmp_path / "all.ts")
        assert pictures == count
        assert np.sort(off)[:4].max() <= STEP


@pytest.mark.parametrize("name", ["a.ts", "a.mkv", "a.mp4"])
def test_a_leap_that_frames_cannot_explain_is_closed(tmp_path, name):
    count, off = written(tmp_path, make_part(tmp_path / name, 3.0, leap=(1.52, 60.0)))
    assert count == 75 and len(off) == 2 and off.max() <= STEP
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
    count, off = written(tmp_path, make_part(tmp_path / name, 3.0, sound=sound, sound_from=0.7))
    assert count == 75 and len(off) == 2 and off.max() <= STEP


def test_a_hole_in_the_sound_is_silence(tmp_path):
    """Nothing is heard for three seconds; what follows stays with its pictures."""
    path = make_part(tmp_path / "a.mkv", 7.0, sound_leap=(1.5, 3.0))
    count, _ = written(tmp_path, path)
    _, clicks = onsets(tmp_path / "out.mp4")
    assert count == 175 and np.allclose(clicks[:3], [0, 1, 5], atol=STEP)


@pytest.mark.parametrize("pieces", [[(0, 1.4), (3.6, 6)], [(1.2, 6)], [(0.6, 2), (3, 4), (5, 6)]])
def test_what_an_edit_list_cuts_out_is_not_there(tmp_path, pieces):
    # without B-frames, after which FFmpeg's reader shows all but the first piece as late as they delay decoding
    path = cut(make_part(tmp_path / "a.mp4", 6.0, leap=(1e9, 1.0)), *pieces)
    count, off = written(tmp_path, path)
    assert count == round(25 * sum(end - start for start, end in pieces))
    whole = [second for start, end in pieces for second in range(6) if start < second <= end - 0.1]
    assert len(off) >= len(whole) and off.max() <= STEP


@pytest.mark.parametrize(
    "slowest, fastest, fps", [(25, 25, 25), (12, 12, 12), (10, 40, 30), (4, 30, 30), (60, 60, 30)]
)
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_rate_that_varies_stays_in_step(tmp_path, name, slowest, fastest, fps):
    """A constant rate is kept, or a whole part of it; where none would do it is 30."""
    steps = 1 / np.random.default_rng(0).uniform(slowest, fastest, 9 * fastest)
    times = np.r_[0, np.cumsum(steps)]
    path = make_part(tmp_path / name, 8.0, times=times[times < 8])
    _, off = written(tmp_path, path)
    assert len(off) == 7 and off.max() <= STEP
    assert abs(open_clip(path).fps - fps) < 0.05


def test_pictures_that_are_missing_change_no_rate(tmp_path):
    times = np.delete(np.arange(200) / 25, np.arange(5, 200, 9))
    path = make_part(tmp_path / "a.mp4", 8.0, times=times)
    _, off = written(tmp_path, path)
    assert len(off) == 7 and off.max() <= STEP and open_clip(path).fps == pytest.approx(25, abs=0.01)


@pytest.mark.parametrize("piece", [(0.68, 4.0), (0.6, 3.0), (2.68, 3.4), (1.96, 4.0)])
def test_an_edit_list_between_key_frames_shows_its_own_pictures_alone(tmp_path, piece):
    """With B-frames, of which some are decoded before the cut and shown after it, or the other way round."""
    path = tmp_path / "a.mp4"
    numbers = np.arange(100)
    with av.open(str(path), "w") as out:
        options = {"bf": "3", "b_strategy": "0", "g": "50", "sc_threshold": "0", "crf": "5"}
        video = out.add_stream("libx264", rate=25, options=options)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        for number in numbers:
            bits = np.repeat(number >> np.arange(8) & 1, 8) * 255
            picture = np.broadcast_to(bits[None, :, None], (48, 64, 3)).astype(np.uint8)
            out.mux(video.encode(av.VideoFrame.from_ndarray(picture)))
        out.mux(video.encode())
    clip = open_clip(cut(path, piece))
    shown = [int(((picture[24, 4::8, 0] > 128) << np.arange(8)).sum()) for picture in clip]
    assert shown == [number for number in numbers if piece[0] <= number / 25 + 1e-6 < piece[1]]
    assert clip.frame_count == len(shown)


@pytest.mark.parametrize("piece", [(0.68, 4.0), (1.2, 6.0)])
def test_what_such_a_cut_leaves_stays_in_step(tmp_path, piece):
    _, off = written(tmp_path, cut(make_part(tmp_path / "a.mp4", 6.0), piece))
    assert len(off) >= 3 and off.max() <= STEP
