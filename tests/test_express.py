"""Nothing at hand but a portrait: expressions and motions through the pipeline."""

import json

import numpy as np
import pytest
from PIL import Image

from fsth_hub import DrivingMotion, Expression, FsthPipeline
from fsth_hub.landmarks.motion import MotionAdapter
from fsth_hub.media.motion_files import MOTIONS
from fsth_hub.models.errors import FsthError
from fsth_hub.models.landmark_layout import INNER_LIPS, NOSE_BRIDGE
from fsth_hub.provenance.inspection import inspect
from testing_utils.clips import make_clip, sound_of
from testing_utils.faces import face
from testing_utils.networks import SIZE
from testing_utils.pipelines import arrays, clip, make_pipeline, picture


NOD = MOTIONS / "nod.motion.safetensors"


@pytest.fixture
def pipe() -> FsthPipeline:
    return make_pipeline()


@pytest.fixture
def drawn(pipe, monkeypatch) -> list[np.ndarray]:
    """The landmarks of every frame that is drawn."""
    points, generate_frames = [], pipe.generate_frames
    monkeypatch.setattr(pipe, "generate_frames", lambda *args: points.extend(args[2]) or generate_frames(*args))
    return points


# Expressions.


def test_zero_is_the_portrait(pipe, drawn):
    person = pipe.embed(picture())
    same = pipe.express(person, Expression(), watermark=False)
    assert isinstance(same, Image.Image) and same.size == (SIZE, SIZE)
    assert np.abs(drawn[0] - person.landmarks).max() < 1e-4
    other = pipe.express(person, Expression(mouth=1, yaw=20), watermark=False)
    assert not np.array_equal(np.asarray(same), np.asarray(other))


def test_picture_and_clip_of_an_expression_agree(pipe):
    expression = Expression(smile=0.7, eye_left=-1)
    still = pipe.express(picture(), expression)
    moving = pipe(picture(), DrivingMotion.from_keyframes([(0, expression)])).frames[0]
    assert len(moving) == 1 and np.array_equal(np.asarray(still), np.asarray(moving[0]))


def test_written_picture_is_marked_and_signed(pipe, tmp_path):
    path = tmp_path / "smiling.png"
    made = pipe.express(picture(), Expression(smile=1), output_path=path)
    plain = pipe.express(picture(), Expression(smile=1), watermark=False)
    assert np.array_equal(np.asarray(Image.open(path)), np.asarray(made))
    assert not np.array_equal(np.asarray(made), np.asarray(plain))
    report = inspect(path)
    assert (report.credentials, report.ai_generated, report.ingredients) == ("valid", True, ("portrait",))
    assert "AI-generated" in report.comment
    pipe.express(picture(), Expression(smile=1), output_path=path, credentials=False)
    report = inspect(path)
    assert (report.credentials, report.ai_generated) == ("none", True)
    assert [each.name for each in tmp_path.iterdir()] == ["smiling.png"]


def test_pasted_back_it_is_the_whole_photograph(pipe):
    photograph = picture(height=2 * SIZE, width=3 * SIZE)
    pasted = pipe.express(photograph, Expression(mouth=1), paste_back=True, watermark=False)
    assert pasted.size == (3 * SIZE, 2 * SIZE)
    assert np.array_equal(np.asarray(pasted)[:, -SIZE:], photograph[:, -SIZE:])


@pytest.mark.parametrize(
    "options, words",
    [
        ({"expression": {"smile": 1}}, "must be an Expression, such as"),
        ({"paste_back": True}, "paste_back needs the photograph"),
        ({"size": 3}, "size must be"),
        ({"watermark": "no"}, "watermark must be True or False"),
        ({"output_path": "a.jpg"}, "must end in .png"),
        ({"output_path": "no/such/a.png"}, "there is no folder"),
    ],
)
def test_refused_before_any_work(pipe, options, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    person = pipe.embed(picture())
    monkeypatch.setattr(pipe, "generate_frames", lambda *_: pytest.fail("work was done"))
    with pytest.raises(FsthError, match=words):
        pipe.express(person, **{"expression": Expression()} | options)
    assert list(tmp_path.iterdir()) == []


# Motions.


def test_every_way_to_name_a_motion_drives_alike(pipe):
    person, frames = pipe.embed(picture()), []
    for driving in ("motion:nod", NOD, str(NOD), DrivingMotion.load(NOD), pipe.read_driving("motion:nod")):
        output = pipe(person, driving, num_frames=3)
        assert (output.fps, output.report.num_frames, output.report.sound) == (25, 3, False)
        frames.append(arrays(output.frames[0]))
    assert all(np.array_equal(frames[0], each) for each in frames[1:])
    assert pipe.read_driving("motion:nod", num_frames=2).landmarks[1].shape == (78, 2)


def test_motions_start_at_rest_and_are_not_smoothed(pipe, drawn):
    person = pipe.embed(picture())
    keyframes = [(0, Expression()), (0.04, Expression(mouth=1)), (0.08, Expression())]
    pipe(person, DrivingMotion.from_keyframes(keyframes), smoothing=0.5)
    assert np.abs(drawn[0] - person.landmarks).max() < 1e-4
    full = MotionAdapter(person.landmarks, Expression().landmarks())(Expression(mouth=1).landmarks())
    np.testing.assert_allclose(drawn[1], full, atol=1e-3)


def test_expressions_in_a_file_drive(pipe, tmp_path):
    content = {"format": "fsth_hub.expressions", "version": 1, "keyframes": [{"t": 0}, {"t": 0.16, "yaw": 20}]}
    (tmp_path / "x.expressions.json").write_text(json.dumps(content))
    assert pipe(picture(), tmp_path / "x.expressions.json").report.num_frames == 5


def test_regions_move_alone(pipe, drawn):
    person = pipe.embed(picture())
    motion = DrivingMotion.from_expressions([Expression(yaw=20, mouth=1, eye_left=-1)])
    for regions in (None, ["mouth"], "head"):
        list(pipe.drive(person, motion, regions=regions))
    everything, mouth, head = (points - person.landmarks for points in drawn)
    assert np.abs(mouth[INNER_LIPS]).max() > 1 and np.abs(mouth[NOSE_BRIDGE]).max() < 1e-3
    assert np.abs(head[NOSE_BRIDGE]).max() > 1 and np.abs(everything[NOSE_BRIDGE] - head[NOSE_BRIDGE]).max() < 0.05
    for regions in (None, ("mouth", "eyes")):
        pipe(picture(), clip(0, 40), regions=regions)
    assert (
        np.abs(drawn[4] - drawn[3]).max() > 1 and np.abs(drawn[6] - drawn[5]).max() < 1e-3
    )  # it is a head that moves


def test_motions_of_another_size_drive_absolutely(pipe, drawn, tmp_path):
    frames = [face(), face(mouth=20)]
    motion = DrivingMotion(frames, 25.0, (0, 0, 256))
    motion.save(tmp_path / "a.motion.safetensors", keep_face_shape=True)
    pipe(picture(), tmp_path / "a.motion.safetensors", motion="absolute", smoothing=0)
    np.testing.assert_allclose(drawn, np.stack(frames) * (SIZE / 256), atol=1e-4)


@pytest.mark.parametrize(
    "driving, options, words",
    [
        ("motion:wink", {}, "There is no motion 'wink'; there are: talk,"),
        ("nod.pkl", {}, "nod.pkl is a pickle"),
        ("motion:nod", {"motion": "absolute"}, "motion must be 'relative' here"),
        ("motion:nod", {"fps": 12}, "fps and driving_face_index are for clips"),
        ("motion:nod", {"regions": ("teeth",)}, "There is no region 'teeth'"),
        ("motion:nod", {"regions": ()}, "Give at least one region"),
        ("motion:nod", {"regions": ("eyes",), "motion": "absolute"}, "regions are for relative motion"),
        ("motion:nod", {"reference_frame": 70}, "reference_frame=70 is no frame"),
        ("motion:nod", {"sound": "none.wav"}, "There is no file none.wav"),
        ("none.expressions.json", {}, "There is no file none.expressions.json"),
    ],
)
def test_what_cannot_go_together(pipe, driving, options, words):
    with pytest.raises(FsthError, match=words) as caught:
        pipe(picture(), driving, num_frames=1, **options)
    assert "\n" not in str(caught.value)


def test_a_voice_goes_with_a_motion(pipe, tmp_path):
    voice = make_clip(tmp_path / "voice.mp4", clip(*range(50)), sound="aac")
    output = pipe(
        picture(), DrivingMotion.load("motion:blink").looped(1.2), sound=voice, output_path=tmp_path / "a.mp4"
    )
    assert output.report.sound and output.report.num_frames == 30
    assert sound_of(tmp_path / "a.mp4")[3] == pytest.approx(1, abs=0.05)


def test_origin_names_the_motion_and_its_file(pipe, tmp_path):
    pipe(picture(), NOD, num_frames=1, output_path=tmp_path / "a.mp4")
    report = inspect(tmp_path / "a.mp4")
    assert (report.credentials, report.ingredients) == ("valid", ("portrait", "motion"))
    output = pipe(picture(), "motion:nod", num_frames=1)
    assert output.origin.ingredients[1][1] is not None and output.driving.title == "motion"
    assert pipe(picture(), clip(0, 4)).origin.ingredients[1][0] == "driving clip"
