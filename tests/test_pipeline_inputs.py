"""What the pipeline takes, refuses and gives."""

import io
import json
import weakref
from dataclasses import FrozenInstanceError
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from diffusers.utils import export_to_video, export_utils
from diffusers.video_processor import VideoProcessor
from PIL import Image

from fsth_hub.media.reading import open_clip
from fsth_hub.models.errors import FsthError, VideoError
from fsth_hub.pipelines.side_by_side import write_side_by_side
from testing_utils.clips import make_clip
from testing_utils.networks import SIZE
from testing_utils.pipelines import NO_FACE, arrays, clip, make_pipeline, picture


@pytest.fixture
def pipe():
    return make_pipeline()


# What it gives.


def test_report_is_json_and_the_tuple_has_a_place_for_everything(pipe, tmp_path):
    output = pipe(picture(), clip(0, 20, NO_FACE))
    report = json.loads(json.dumps(output.report.to_dict()))
    assert report["sound"] is False and report["num_frames"] == 3 and report["frames_without_face"] == [2]
    assert report["driving_box"] == list(output.driving.box) and len(report["portrait_boxes"]) == 1
    assert set(report["seconds"]) == {"embed", "landmarks", "frames"}
    with pytest.raises(FrozenInstanceError):
        output.report.fps = 3
    given = pipe(picture(), clip(0, 20), output_path=Path(tmp_path, "result.gif"), return_dict=False)
    frames, fps, audio_from, report, origin, driving = given
    assert (frames, fps, audio_from, report.num_frames) == (None, 25.0, None, 2)
    assert (origin is not None) == report.credentials and len(driving.landmarks) == 2


@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
def test_frames_are_those_of_diffusers_video_pipelines(pipe, output_type, tmp_path, monkeypatch):
    output = pipe(picture(), clip(0, 20, 40), output_type=output_type)
    pictures = arrays(pipe(picture(), clip(0, 20, 40)).frames[0])
    if output_type == "pil":
        assert len(output.frames) == 1 and np.array_equal(arrays(output.frames[0]), pictures)
    else:
        expected = torch.from_numpy(pictures)[None].permute(0, 4, 1, 2, 3) / 127.5 - 1  # B x C x N x H x W
        expected = VideoProcessor().postprocess_video(expected, output_type)
        assert type(output.frames) is type(expected) and output.frames.shape == expected.shape
        assert output.frames.dtype == expected.dtype and abs(output.frames - expected).max() < 1e-6
    monkeypatch.setattr(export_utils, "is_imageio_available", lambda: False)  # it would want imageio-ffmpeg
    if output_type != "pt":  # diffusers exports none
        exported = export_to_video(output.frames[0], str(tmp_path / "exported.mp4"), fps=output.fps)
        frames = np.stack(list(open_clip(exported)))
        assert frames.shape == pictures.shape
    assert output.save(tmp_path / "saved.mp4") == 3
    assert np.abs(np.stack(list(open_clip(tmp_path / "saved.mp4"))).astype(int) - pictures).mean() < 12


def test_callback_gets_what_is_returned(pipe):
    calls = []
    output = pipe(picture(), clip(0, 20), callback_on_frame_end=lambda *arguments: calls.append(arguments))
    assert [call[:3] for call in calls] == [(pipe, 0, 2), (pipe, 1, 2)]
    assert np.array_equal([frame for *_, frame in calls], arrays(output.frames[0]))


# What it refuses.


@pytest.mark.parametrize(
    "options",
    [
        *({"num_frames": value} for value in (0, -1, 2.0, True, "3")),
        *({"fps": value} for value in ("25", 0, -1, float("nan"), float("inf"), True)),
        *({"motion_strength": value} for value in ("1", -0.1, float("nan"), None)),
        *({"smoothing": value} for value in ("0", 2, float("nan"), None)),
        *({"size": value} for value in ("512", 512.0, True, 65, float("nan"))),
        *({"face_index": value} for value in ("0", -1, 0.0, [0, -1], None)),
        *({"driving_face_index": value} for value in ("0", -1, 0.0, None)),
        *({"reference_frame": value} for value in ("0", -1, 0.0)),
        *({name: "no"} for name in ("crop", "paste_back", "watermark", "credentials", "return_dict")),
        *({"motion": value} for value in ("sideways", None, ["relative"])),
        *({"output_type": value} for value in ("latent", None, 3)),
        *({"callback_on_frame_end": value} for value in ("print", 3)),
        *({"output_path": value} for value in (3, "out.avi", "no/such/folder/out.mp4")),
    ],
    ids=str,
)
def test_bad_arguments_are_one_sentence_before_any_work(pipe, options):
    def work(*_):
        raise AssertionError("work was done")

    pipe.detector.detect = work
    ((name, value),) = options.items()
    with pytest.raises(FsthError) as caught:
        pipe(picture(), clip(0, 20), **options)
    words = str(caught.value)
    assert name in words or name == "output_path" and ("path" in words or Path(value).name in words)
    assert "\n" not in words and words.endswith(".") and ". " not in words


def test_unknown_arguments_are_refused(pipe):
    with pytest.raises(TypeError, match="callback"):
        pipe(picture(), clip(0), callback=print)


def test_arguments_that_cannot_be_together(pipe, tmp_path):
    person, motion = pipe.embed(picture()), pipe.read_driving(clip(0, 20))
    for inputs, options, words in [
        ((person, clip(0)), {"face_index": 1}, "face_index"),
        ((person, motion), {"fps": 30}, "fps and driving_face_index"),
        ((person, motion), {"driving_face_index": 1}, "fps and driving_face_index"),
        ((person, clip(0)), {"output_type": "np", "output_path": tmp_path / "out.mp4"}, "output_type"),
        ((person, clip(0)), {"motion": "absolute", "motion_strength": 2}, "motion_strength"),
    ]:
        with pytest.raises(FsthError, match=words):
            pipe(*inputs, **options)


def test_what_is_no_input_is_one_sentence(pipe):
    for driving in (None, 3, picture(), Image.fromarray(picture()), torch.zeros(3, 4, 4), [3], io.StringIO("text")):
        with pytest.raises(FsthError) as caught:
            pipe(picture(), driving)
        assert "\n" not in str(caught.value)
    with pytest.raises(VideoError, match="C x H x W where it is a tensor"):
        pipe(picture(), torch.zeros(2, SIZE, SIZE, 3))
    for portraits in (None, 3, [None], io.StringIO("text")):
        with pytest.raises(FsthError, match="file"):
            pipe(portraits, clip(0))


# What it takes.


def test_num_frames_and_fps_are_honoured_whatever_drives(pipe, tmp_path):
    shifts = [*range(0, 40, 4)]
    path = make_clip(tmp_path / "driver.mp4", clip(*shifts))  # 25 frames per second
    for driving in (path, str(path), path.read_bytes(), open(path, "rb"), open_clip(path), open_clip(clip(*shifts))):
        output = pipe(picture(), driving, num_frames=2, fps=12.5)
        assert len(output.frames[0]) == 2 and output.fps == output.report.fps == 12.5
        assert pipe(picture(), driving, fps=12.5).report.num_frames == 5
    for driving in (clip(*shifts), (frame for frame in clip(*shifts))):
        output = pipe(picture(), driving, num_frames=2, fps=12.5)
        assert len(output.frames[0]) == 2 and output.fps == 12.5
    motion = pipe.read_driving(clip(*shifts))
    output = pipe(picture(), motion, num_frames=2)
    assert len(output.frames[0]) == 2 and output.fps == 25 and len(motion.landmarks) == 10
    assert pipe(picture(), open_clip(path, max_frames=3), num_frames=9).report.num_frames == 3


def test_any_kind_of_frames_drives_alike(pipe):
    frames = np.stack(clip(0, 20, 40))
    tensor = torch.from_numpy(frames).permute(0, 3, 1, 2)
    expected = arrays(pipe(picture(), frames).frames[0])
    for driving in (
        list(frames), [Image.fromarray(frame) for frame in frames], tuple(tensor), tensor, frames / 255, tensor / 255,
        iter(frames), (frame for frame in frames), map(Image.fromarray, frames),
    ):  # fmt: skip
        assert np.array_equal(arrays(pipe(picture(), driving).frames[0]), expected)


def test_a_generator_drives_in_constant_memory_and_gives_no_more_than_is_asked(pipe):
    alive, given = [], 0

    def driver():
        nonlocal given
        while True:
            frame = picture(4 * given % 200)
            alive.append(weakref.ref(frame))
            given += 1
            assert sum(reference() is not None for reference in alive) < 5
            yield frame
            del frame

    output = pipe(picture(), driver(), num_frames=20)
    assert len(output.frames[0]) == given == 20


def test_files_in_memory_drive_with_their_sound(pipe, tmp_path):
    driver = make_clip(tmp_path / "driver.mp4", [np.full((SIZE, SIZE, 3), 40, np.uint8)] * 50, sound="aac")
    data = driver.read_bytes()
    Image.fromarray(picture()).save(tmp_path / "portrait.png")
    portrait = (tmp_path / "portrait.png").read_bytes()
    for index, driving in enumerate((data, io.BytesIO(data), open(driver, "rb"))):
        path = tmp_path / f"{index}.mp4"
        output = pipe(io.BytesIO(portrait), driving, num_frames=10, output_path=path, paste_back=True)
        assert output.report.sound
        with av.open(str(path)) as container:
            assert container.streams.audio and container.duration / av.time_base == pytest.approx(10 / 25, abs=0.06)
        assert write_side_by_side(tmp_path / "beside.mp4", portrait, driving, output, open_clip(path), pipe.size) == 10
