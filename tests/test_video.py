import gc
import io
import itertools
import weakref
from fractions import Fraction
from pathlib import Path

import av
import imageio.v3 as iio
import numpy as np
import pytest
from PIL import Image

from fsth_hub.media import reading
from fsth_hub.media.high_dynamic_range import HLG, PQ, light_to_pq
from fsth_hub.media.reading import open_clip
from fsth_hub.media.writing import write_clip
from fsth_hub.models.errors import FsthError, FsthNotFoundError, VideoError
from testing_utils.clips import click, make_clip, sound_of


RAW = Path(__file__).parents[2] / "shared" / "data" / "raw"
RED, BLUE = (230, 20, 20), (20, 20, 230)


def picture(value: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Grey `value`, with a red upper left and a blue upper right quarter, so that a turn is seen."""
    image = np.full((height, width, 3), value, np.uint8)
    image[: height // 2, : width // 2] = RED
    image[: height // 2, width // 2 :] = BLUE
    return image


def value_of(image: np.ndarray) -> float:
    return float(image[-image.shape[0] // 4 :].mean())


def grey(count):
    return [picture(20 + 200 * index // count) for index in range(count)]


# reading


@pytest.mark.parametrize(
    "name, codec",
    [("a.mp4", "libx264"), ("a.mov", "libx264"), ("a.mkv", "libx264"), ("a.webm", "libvpx"), ("a.mpg", "mpeg2video")],
)
def test_reads_every_container_twice(tmp_path, name, codec):
    clip = open_clip(make_clip(tmp_path / name, grey(10), codec=codec))
    assert (clip.fps, clip.width, clip.height, clip.audio_from) == (25, 64, 48, None)
    first, second = list(clip), list(clip)
    assert len(first) == 10
    np.testing.assert_array_equal(first, second)
    for index, image in enumerate(first):
        assert image.shape == (48, 64, 3) and image.dtype == np.uint8
        assert abs(value_of(image) - (20 + 20 * index)) < 8
    np.testing.assert_allclose(first[0][12, 16], RED, atol=25)


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_phone_rotation_is_applied(tmp_path, rotation):
    stored = picture(100)
    path = make_clip(tmp_path / "phone.mp4", [stored] * 3, rotation=rotation)
    clip = open_clip(path)
    upright = np.rot90(stored, rotation // 90)
    assert (clip.height, clip.width) == upright.shape[:2]
    assert np.abs(next(iter(clip)).astype(int) - upright).mean() < 6


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("quarters", range(4))
def test_all_eight_orientations(tmp_path, quarters, mirrored):
    """A display matrix turns, and mirrors from left to right what is turned, as FFmpeg shows it."""
    stored = picture(100)
    cos, sin = ((1, 0), (0, 1), (-1, 0), (0, -1))[quarters]  # clockwise, with y down
    matrix = np.array([[cos, sin], [-sin, cos]]) * ([-1, 1] if mirrored else [1, 1])
    path = tmp_path / "selfie.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        (a, b), (c, d) = matrix.tolist()
        stream.set_display_matrix([a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30])
        for _ in range(3):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(stored)))
        out.mux(stream.encode())
    upright = np.rot90(stored, -quarters)
    upright = upright[:, ::-1] if mirrored else upright
    clip = open_clip(path)
    assert (clip.height, clip.width) == upright.shape[:2]
    assert np.abs(next(iter(clip)).astype(int) - upright).mean() < 6


@pytest.mark.parametrize("held, called", [("mp4", "a.gif"), ("webm", "a.mp4"), ("gif", "a.mp4"), ("webp", "a.mov"),
                                          ("png", "a.webm"), ("mp4", "a.mp3"), ("mkv", "a.webp")])  # fmt: skip
def test_what_a_file_holds_decides_and_not_its_name(tmp_path, held, called):
    path = tmp_path / f"right.{held}"
    if held in ("gif", "webp", "png"):
        first, *others = map(Image.fromarray, grey(6))
        first.save(path, save_all=True, append_images=others, duration=40)
    else:
        make_clip(path, grey(6), codec="libvpx" if held == "webm" else "libx264")
    clip = open_clip(path.rename(tmp_path / called))
    assert [round(value_of(image) / 10) for image in clip] == [round(value_of(image) / 10) for image in grey(6)]


@pytest.mark.parametrize("transfer", [HLG, PQ])
def test_high_dynamic_range_is_tone_mapped(tmp_path, transfer):
    """Of the light of an ordinary screen what is dark and half bright stays, and a ten times brighter one is white."""
    nits = np.array([5.0, 20.0, 1000.0])
    light = (nits / 1000) ** (1 / 1.2)  # of the scene
    hlg = np.where(
        light < 1 / 12, np.sqrt(3 * light), 0.17883277 * np.log(np.maximum(12 * light - 0.2846, 0.1)) + 0.55991073
    )
    signals = hlg if transfer == HLG else light_to_pq(nits)
    grey_bars = np.repeat(np.repeat(signals, 32)[None, :, None], 48, axis=0).repeat(3, axis=2)
    with av.open(str(tmp_path / "hdr.mov"), "w") as out:
        stream = out.add_stream("libx265", rate=25, options={"x265-params": "log-level=none", "crf": "8"})
        stream.height, stream.width, stream.pix_fmt = 48, 96, "yuv420p10le"
        context = stream.codec_context
        context.color_primaries, context.color_trc, context.colorspace, context.color_range = 9, transfer, 9, 1
        for index in range(3):
            frame = av.VideoFrame.from_ndarray((grey_bars * 65535).astype(np.uint16), format="rgb48le")
            frame = frame.reformat(format="yuv420p10le", dst_colorspace="BT2020", dst_color_range="MPEG")
            frame.pts, frame.color_primaries, frame.color_trc, frame.colorspace = index, 9, transfer, 9
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    shown = next(iter(open_clip(tmp_path / "hdr.mov"))).astype(int)
    levels = shown[:, 16::32].mean(axis=(0, 2))
    srgb = 255 * (1.055 * (nits[:2] / 100) ** (1 / 2.4) - 0.055)
    np.testing.assert_allclose(levels, [*srgb, 255], atol=6)
    assert np.ptp(shown[:, 16::32], axis=2).max() < 6  # grey is grey


def test_the_default_sound_is_kept(tmp_path):
    """Two tracks: the first is silent, and the second, which clicks, is marked to be played."""
    path = tmp_path / "two.mkv"
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=25)
        video.height, video.width, video.pix_fmt = 48, 64, "yuv420p"
        tracks = [out.add_stream("aac", rate=48_000, layout="mono") for _ in range(2)]
        tracks[0].disposition, tracks[1].disposition = 0, av.stream.Disposition.default
        for image in grey(40):
            out.mux(video.encode(av.VideoFrame.from_ndarray(image)))
        out.mux(video.encode())
        for track, loudness in zip(tracks, (0, 1), strict=True):
            chunk = av.AudioFrame.from_ndarray(loudness * click(1.5, 48_000, 1.0), format="fltp", layout="mono")
            chunk.sample_rate = 48_000
            out.mux(track.encode(chunk) + track.encode())
    clip = open_clip(path)
    write_clip(tmp_path / "out.mp4", clip, 25, clip.audio_from)
    assert abs(sound_of(tmp_path / "out.mp4")[3] - 1.0) < 0.04


@pytest.mark.parametrize("name", ["vfr.mkv", "vfr.mp4"])
def test_variable_frame_rate_becomes_constant(tmp_path, name):
    times = [100 * (index // 2) + 20 * (index % 2) for index in range(20)]  # 20 ms, 80 ms, 20 ms, ...
    path = make_clip(tmp_path / name, grey(20), times)
    frames = list(open_clip(path, fps=25))
    assert len(frames) in (24, 25)  # 0.94 s to 1 s: containers differ in how long the last picture stays
    for tick, image in enumerate(frames):
        shown = max(index for index, time in enumerate(times) if time <= 40 * tick + 10)
        assert abs(value_of(image) - value_of(grey(20)[shown])) < 6, tick


def test_rounded_time_stamps_double_no_frame(tmp_path):
    times = [round(1000 * index / 30) for index in range(30)]
    values = [value_of(image) for image in open_clip(make_clip(tmp_path / "a.mkv", grey(30), times), fps=30)]
    np.testing.assert_allclose(values, [value_of(image) for image in grey(30)], atol=4)


def test_frame_rate_can_be_chosen_and_is_sane_by_default(tmp_path):
    path = make_clip(tmp_path / "fast.mp4", grey(30), fps=60)
    clip = open_clip(path)
    assert clip.fps == 30
    assert len(list(clip)) == clip.frame_count == 15
    assert len(list(open_clip(path, fps=10))) == 5
    assert len(list(open_clip(path, max_frames=4))) == open_clip(path, max_frames=4).frame_count == 4


def test_pixels_that_are_not_square(tmp_path):
    path = make_clip(tmp_path / "tape.mp4", grey(3), aspect=Fraction(3, 2))
    clip = open_clip(path)
    assert (clip.width, clip.height) == (96, 48) and next(iter(clip)).shape == (48, 96, 3)


def test_a_clip_recorded_in_a_browser_is_measured(tmp_path):
    path = make_clip(tmp_path / "live.webm", grey(10), codec="libvpx", options={"live": "1"})
    clip = open_clip(path)
    assert clip.duration == pytest.approx(0.4) and clip.frame_count == 10
    assert len(list(clip)) == 10 and open_clip(path, max_frames=5).frame_count == 5


def test_reads_animations(tmp_path):
    frames = grey(6)
    iio.imwrite(tmp_path / "a.gif", np.stack(frames), plugin="pillow", duration=[40, 40, 120, 40, 40, 40], loop=0)
    clip = open_clip(tmp_path / "a.gif", fps=25)
    assert clip.duration == pytest.approx(0.32) and clip.audio_from is None
    shown = [frames[index] for index in (0, 1, 2, 2, 2, 3, 4, 5)]
    np.testing.assert_allclose([value_of(i) for i in clip], [value_of(i) for i in shown], atol=2)
    pil = [Image.fromarray(frame) for frame in frames]
    pil[0].save(tmp_path / "a.webp", save_all=True, append_images=pil[1:], duration=40, lossless=True)
    np.testing.assert_array_equal(list(open_clip(tmp_path / "a.webp")), frames)


def test_takes_frames_as_a_clip():
    frames = grey(5)
    clip = open_clip(np.stack(frames))
    assert (clip.fps, clip.width, clip.height, clip.duration, clip.audio_from) == (25, 64, 48, 0.2, None)
    np.testing.assert_array_equal(list(clip), frames)
    pil = [Image.fromarray(frame) for frame in frames]
    np.testing.assert_array_equal(list(open_clip(pil, fps=30, max_frames=2)), frames[:2])
    with pytest.raises(VideoError, match="one size"):
        list(open_clip([frames[0], frames[0][:-2]]))
    with pytest.raises(VideoError, match="uint8"):
        open_clip(np.zeros((3, 8, 8, 3), np.int64))
    with pytest.raises(VideoError, match="empty"):
        open_clip([])


class Pipe(io.RawIOBase):
    """A file that can be read once, from its beginning to its end."""

    def __init__(self, data: bytes):
        self.inner = io.BytesIO(data)

    def readable(self):
        return True

    def readinto(self, buffer):
        return self.inner.readinto(buffer)


@pytest.mark.parametrize("name", ["a.mp4", "a.gif", "a.webp", "a.png"])
def test_reads_files_in_memory(tmp_path, name):
    """Bytes, file objects that can seek or cannot; each twice, at the same time; the caller's stay open."""
    path = tmp_path / name
    if name == "a.mp4":
        make_clip(path, grey(6), sound="aac")
    else:
        first, *others = map(Image.fromarray, grey(6))
        first.save(path, save_all=True, append_images=others, duration=40)
    data, expected = path.read_bytes(), list(open_clip(path))
    assert len(expected) == 6
    with open(path, "rb") as opened:
        for source in (data, io.BytesIO(data), opened, Pipe(data)):
            clip = open_clip(source)
            for first, second, frame in zip(clip, clip, expected, strict=True):
                assert np.array_equal(first, frame) and np.array_equal(second, frame)
            if name == "a.mp4":
                assert write_clip(tmp_path / "out.mp4", clip, clip.fps, clip.audio_from) == 6
                assert open_clip(tmp_path / "out.mp4").audio_from is not None
        assert not opened.closed


def test_frames_of_an_iterator_are_read_once_and_no_more_than_are_asked():
    asked = []
    clip = open_clip((asked.append(index) or picture(index) for index in itertools.count()), fps=10, max_frames=3)
    assert (clip.fps, clip.duration, clip.frame_count) == (10, None, 3) and asked == [0]
    assert [frame[-1, -1, 0] for frame in clip] == [0, 1, 2] and asked == [0, 1, 2]
    with pytest.raises(VideoError, match="have been read"):
        list(clip)


def test_a_clip_can_be_opened_anew(tmp_path):
    clip = open_clip(make_clip(tmp_path / "a.mp4", grey(10)), max_frames=4)
    assert open_clip(clip) == clip
    assert len(list(open_clip(clip, max_frames=9))) == 4 and len(list(open_clip(clip, max_frames=2))) == 2
    assert open_clip(clip, fps=12.5).fps == 12.5


@pytest.mark.parametrize("options", [{"fps": 0}, {"fps": "25"}, {"fps": float("nan")}, {"max_frames": 0}], ids=str)
def test_bad_options_are_named(options):
    with pytest.raises(FsthError, match=f"^{next(iter(options))} must be a"):
        open_clip(grey(3), **options)


def test_what_is_no_clip_is_one_sentence(tmp_path):
    Image.fromarray(picture(9)).save(tmp_path / "still.jpg")
    Image.fromarray(picture(9)).save(tmp_path / "still.gif")
    Image.fromarray(picture(9)).save(tmp_path / "renamed.gif", format="png")
    (tmp_path / "text.mp4").write_text("not a clip " * 100)
    (tmp_path / "broken.gif").write_bytes(b"GIF89a broken")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "list.mp4").write_text("#EXTM3U\n#EXTINF:10,\n/etc/hostname\n#EXT-X-ENDLIST\n")
    with av.open(str(tmp_path / "sound.m4a"), "w", format="mp4") as out:
        cover = out.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        audio = out.add_stream("aac", rate=48_000, layout="mono")
        out.mux(cover.encode(av.VideoFrame.from_ndarray(picture(9))) + cover.encode())
        chunk = av.AudioFrame.from_ndarray(click(0.5, 48_000, 0), format="fltp", layout="mono")
        chunk.sample_rate = 48_000
        out.mux(audio.encode(chunk) + audio.encode())
    cases = {
        "still.jpg": "not a video", "still.gif": "single picture",
        "renamed.gif": "single picture", "broken.gif": "No picture", "text.mp4": "not a video",
        "empty.mp4": "not a video", "list.mp4": "not a video", "sound.m4a": "no moving picture",
    }  # fmt: skip
    for name, reason in cases.items():
        with pytest.raises(VideoError, match=reason) as caught:
            open_clip(tmp_path / name)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 200, name
    for absent in (tmp_path / "missing.mp4", tmp_path, "https://example.org/clip.mp4"):
        with pytest.raises(FsthNotFoundError, match="no file"):
            open_clip(absent)


def test_damaged_clips_give_the_frames_they_have(tmp_path):
    noise = np.random.default_rng(0).integers(0, 255, (40, 48, 64, 3), np.uint8)  # every packet is large
    write_clip(tmp_path / "whole.mp4", noise, 25, audio_from=make_clip(tmp_path / "a.mp4", grey(5), sound="aac"))
    whole = (tmp_path / "whole.mp4").read_bytes()  # its index comes first
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "hole.mp4").write_bytes(whole[: len(whole) // 2] + bytes(3000) + whole[len(whole) // 2 + 3000 :])
    for name, least, most in [("cut.mp4", 15, 25), ("hole.mp4", 30, 40)]:
        clip = open_clip(tmp_path / name)
        count = write_clip(tmp_path / "out.mp4", clip, clip.fps, audio_from=clip.audio_from)
        assert least <= count <= most and len(list(open_clip(tmp_path / "out.mp4"))) == count
    (tmp_path / "head.mp4").write_bytes(whole[:3000])
    with pytest.raises(VideoError, match="No picture"):
        open_clip(tmp_path / "head.mp4")
    late = make_clip(tmp_path / "late.mp4", grey(20)).read_bytes()  # its index comes last
    (tmp_path / "cut.mp4").write_bytes(late[: len(late) // 2])
    with pytest.raises(VideoError, match="damaged"):
        open_clip(tmp_path / "cut.mp4")


# writing


@pytest.mark.parametrize("height, width", [(48, 64), (47, 63)])
def test_writes_what_it_was_given(tmp_path, height, width):
    frames = [picture(20 + 20 * index, height, width) for index in range(10)]
    metadata = {"title": "a title", "comment": "AI-generated"}
    assert write_clip(tmp_path / "out.mp4", iter(frames), 30000 / 1001, metadata=metadata) == 10
    with av.open(str(tmp_path / "out.mp4")) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
        assert stream.average_rate == Fraction(30000, 1001)
        assert not container.streams.audio
        assert metadata.items() <= container.metadata.items()
        luma = next(container.decode(stream)).to_ndarray()[:48]
        bt709 = 16 + 219 / 255 * np.dot(RED, (0.2126, 0.7152, 0.0722))
        assert stream.colorspace == 1 and abs(luma[4:20, 4:28].mean() - bt709) < 2
    clip = open_clip(tmp_path / "out.mp4")
    assert (clip.height, clip.width) == (48, 64)
    for image, frame in zip(clip, frames, strict=True):
        np.testing.assert_allclose(image[4:20, 4:28].mean((0, 1)), RED, atol=5)
        np.testing.assert_allclose(image[4:20, 36:60].mean((0, 1)), BLUE, atol=5)
        np.testing.assert_allclose(image[28:44].mean(), frame[-1, -1, 0], atol=5)
        np.testing.assert_allclose(image[-1, -1], frame[-1, -1], atol=12)  # the edge, repeated: no black border


def test_writes_gif(tmp_path):
    frames = [picture(20 + 20 * index, 47, 63) for index in range(9)]
    comment = "AI-generated " * 30
    assert write_clip(tmp_path / "out.gif", map(Image.fromarray, frames), 30, metadata={"comment": comment}) == 9
    with Image.open(tmp_path / "out.gif") as gif:
        assert gif.size == (63, 47) and gif.n_frames == 9 and gif.info["loop"] == 0
        assert gif.info["comment"] == comment.encode()
    clip = open_clip(tmp_path / "out.gif")
    assert clip.duration == pytest.approx(0.3)
    for image, frame in zip(clip, frames, strict=True):
        assert np.abs(image.astype(int) - frame).mean() < 4


SOUNDS = [
    ("a.mp4", "libx264", "aac"), ("a.mp4", "libx264", "mp3"), ("a.mkv", "libx264", "aac"), ("a.ts", "libx264", "aac"),
    ("a.webm", "libvpx", "libopus"), ("a.mpg", "mpeg2video", "mp2"), ("a.mov", "libx264", "pcm_s16le"),
]  # fmt: skip


@pytest.mark.parametrize("name, codec, sound", SOUNDS)
def test_sound_stays_in_step(tmp_path, name, codec, sound):
    clip = open_clip(make_clip(tmp_path / name, grey(35), codec=codec, sound=sound))
    assert clip.audio_from
    count = write_clip(tmp_path / "out.mp4", clip, clip.fps, audio_from=clip.audio_from)
    codec, start, end, onset = sound_of(tmp_path / "out.mp4")
    assert codec == (sound if sound in ("aac", "mp3") else "aac")
    assert abs(onset - 1.0) < 0.04
    assert start < 0.04 and abs(end - count / 25) < 0.06  # 2 s of sound, cut where the picture ends


@pytest.mark.parametrize("sound", ["aac", "libopus"])
@pytest.mark.parametrize("picture_at, sound_at", [(0.3, 0.0), (0.0, 0.3)])
def test_start_offsets_are_kept(tmp_path, sound, picture_at, sound_at):
    times = [round(1000 * picture_at) + 40 * index for index in range(35)]
    path = make_clip(tmp_path / "late.mkv", grey(35), times, sound=sound, sound_from=sound_at)
    clip = open_clip(path)
    assert abs(value_of(next(iter(clip))) - 20) < 5
    write_clip(tmp_path / "out.mp4", clip, 25, audio_from=path)
    _, _, end, onset = sound_of(tmp_path / "out.mp4")
    assert abs(onset - (1.0 - picture_at)) < 0.04
    assert abs(end - 35 / 25) < 0.06
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert next(container.decode(video=0)).time == 0
    with av.open(str(tmp_path / "out.mp4")) as container:  # what was heard before the first picture is not in the file
        first = next(container.demux(audio=0))
        assert first.pts * first.time_base > -0.07


def test_sound_shorter_than_the_picture(tmp_path):
    path = make_clip(tmp_path / "a.mp4", grey(10), sound="aac")
    assert write_clip(tmp_path / "out.mp4", itertools.islice(itertools.cycle(grey(10)), 80), 25, audio_from=path) == 80
    _, _, end, onset = sound_of(tmp_path / "out.mp4")
    assert abs(onset - 1.0) < 0.04 and abs(end - 2.0) < 0.06
    assert len(list(open_clip(tmp_path / "out.mp4"))) == 80


@pytest.mark.parametrize("sound", ["aac", "mp2"])
def test_sound_that_starts_anew(tmp_path, sound):
    path = make_clip(tmp_path / "a.ts", grey(55), sound=sound)
    path.write_bytes(2 * path.read_bytes())
    assert write_clip(tmp_path / "out.mp4", grey(90), 25, audio_from=path) == 90
    assert abs(sound_of(tmp_path / "out.mp4")[3] - 1.0) < 0.04


def test_no_sound_to_keep(tmp_path):
    path = make_clip(tmp_path / "silent.mp4", grey(5))
    write_clip(tmp_path / "out.mp4", grey(5), 25, audio_from=path)
    assert open_clip(tmp_path / "out.mp4").audio_from is None
    with pytest.raises(VideoError, match="not a video"):
        write_clip(tmp_path / "out2.mp4", grey(5), 25, audio_from=Path(__file__))


@pytest.mark.parametrize("name", ["out.mp4", "out.gif"])
@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, GeneratorExit])
@pytest.mark.parametrize("good", [0, 3])
def test_a_failure_leaves_nothing_behind(tmp_path, name, error, good):
    def frames():
        yield from grey(good) if good else []
        raise error("stop")

    (tmp_path / name).write_text("what was there")
    with pytest.raises(error, match="stop"):
        write_clip(tmp_path / name, frames(), 25)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "what was there"


def test_what_cannot_be_written_is_one_sentence(tmp_path):
    for name, frames, reason in [
        ("out.xyz", grey(2), ".mp4 or .gif"), ("out.mp4", [], "no frames"), ("out.gif", [], "no frames"),
        ("none/out.mp4", grey(2), "no folder .*none"), ("out.mp4", [picture(0), picture(0, 30)], "one size"),
        ("out.mp4", [np.zeros((8, 8, 3), int)], "uint8"),
    ]:  # fmt: skip
        with pytest.raises(VideoError, match=reason):
            write_clip(tmp_path / name, frames, 25)
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["long.mp4", "long.gif"])
def test_writing_keeps_no_frames(tmp_path, name):
    alive = set()

    def frames():
        for index in range(100):
            frame = picture(index)
            alive.add(index)
            weakref.finalize(frame, alive.remove, index)
            assert len(alive) <= 5
            yield frame

    assert write_clip(tmp_path / name, frames(), 25) == 100
    assert not alive


def test_reading_decodes_as_it_is_asked(tmp_path, monkeypatch):
    clip = open_clip(make_clip(tmp_path / "long.mp4", grey(100)))
    decoded = 0

    def counted(*args):
        nonlocal decoded
        for frame in decode(*args):
            decoded += 1
            yield frame

    decode = reading.decode
    monkeypatch.setattr(reading, "decode", counted)
    for asked, _ in enumerate(clip, 1):
        assert decoded <= asked + 1
    assert asked == 100


@pytest.mark.skipif(not RAW.exists(), reason="needs the raw clips of shared/data")
@pytest.mark.parametrize("name", ["id000.mp4", "id003.mp4", "id004.mp4", "id007.mpg", "id008.mp4", "id009.mp4"])
def test_raw_clips(tmp_path, name):
    clip = open_clip(RAW / name, max_frames=20)
    assert clip.audio_from and clip.fps in (25, 30) and 2 < clip.duration < 40
    count = write_clip(tmp_path / "out.mp4", (frame[::4, ::4] for frame in clip), clip.fps, clip.audio_from)
    assert count == 20
    assert abs(sound_of(tmp_path / "out.mp4")[2] - count / clip.fps) < 0.07


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_an_animation_that_says_it_is_huge_is_refused(tmp_path):
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "green")]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:])
    data = bytearray((tmp_path / "a.webp").read_bytes())
    at = data.index(b"VP8X") + 12
    data[at : at + 6] = (16_383).to_bytes(3, "little") + (8_191).to_bytes(3, "little")
    with pytest.raises(VideoError, match="too large: give a clip of at most 35 megapixels"):
        open_clip(bytes(data))


def test_an_animation_is_decoded_once_to_be_opened(tmp_path, monkeypatch):
    """Large pictures take a second each."""
    frames = [Image.new("RGB", (64, 48), colour) for colour in ("red", "green", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=40)
    decoded, read = [], reading._read_animation

    def counted(file):
        for picture in read(file):
            decoded.append(picture)
            yield picture

    monkeypatch.setattr(reading, "_read_animation", counted)
    clip = open_clip(tmp_path / "a.gif")
    assert (len(decoded), clip.frame_count, clip.width, clip.height) == (3, 3, 64, 48)


@pytest.mark.parametrize("turn", [0, 90, 180, -90])
def test_side_data_of_an_unknown_kind_leaves_the_turn(turn):
    class Frame:
        rotation = turn

        @property
        def side_data(self):
            raise ValueError("31 is not a valid Type")

    seen = np.arange(12).reshape(3, 4)
    assert np.array_equal(reading._upright(seen, reading._way_up(Frame())), np.rot90(seen, turn // 90))


def test_decoded_frames_do_not_wait_for_garbage_collection(tmp_path):
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("h264", rate=25, width=64, height=64, pix_fmt="yuv420p", options={"g": "1"})
        for shade in [*range(40), None]:
            picture = None if shade is None else np.full((64, 64, 3), shade, np.uint8)
            frame = None if shade is None else av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(stream.encode(frame))
    gc.collect()
    gc.disable()
    try:
        for number, _ in enumerate(open_clip(path)):
            if number % 13 == 12:  # to look at all objects takes long
                assert sum(isinstance(each, av.VideoFrame) for each in gc.get_objects()) < 10
        assert number == 39
    finally:
        gc.enable()
