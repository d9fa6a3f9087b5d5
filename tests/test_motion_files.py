"""Motions: made, saved, loaded, repeated, mixed; and what is refused."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from fsth_hub.landmarks import MotionAdapter
from fsth_hub.landmarks.expression import RESTING_LANDMARKS, Expression
from fsth_hub.media import motion_files
from fsth_hub.media.expression_files import read_expressions, write_expressions
from fsth_hub.media.motion_files import SHIPPED, is_motion, list_motions, shipped_path
from fsth_hub.models.cropping import CropBox
from fsth_hub.models.errors import FsthError
from fsth_hub.pipelines.driving import DrivingMotion, adapt_motion
from testing_utils.clips import make_clip, sound_of
from testing_utils.faces import EYE, MOUTH, face, opening
from testing_utils.pipelines import clip


def filmed(frames, fps=25.0, **fields) -> DrivingMotion:
    return DrivingMotion(frames, fps, CropBox(3, 4, 200), **fields)


def lively(width=1.0, mouth=3.0, count=40, turning=1.0, **options) -> list[np.ndarray]:
    """Somebody who nods, blinks and speaks; the same motion whatever their face."""
    frames = []
    for index in range(count):
        t = index / 25
        words = mouth + 12 * np.sin(4 * t) ** 2
        angles = {"yaw": 6 * turning * np.sin(2 * t), "pitch": 4 * turning * np.sin(3 * t)}
        frames.append(
            face(
                width=width,
                mouth=words,
                eyes=15 - 9 * (index % 12 == 5),
                gaze=3 * width * np.sin(t),
                **angles,
                **options,
            )
        )
    return frames


def equal(one, other) -> bool:
    return len(one) == len(other) and all(
        (a is None) == (b is None) and (a is None or np.array_equal(a, b, equal_nan=True))
        for a, b in zip(one, other, strict=True)
    )


# Files.


@pytest.mark.parametrize("fps", [25.0, 30000 / 1001, 24000 / 1001, 12.3456789, 1 / 3])
def test_round_trip_to_the_bit(tmp_path, fps):
    frames = lively(count=6)
    frames[2] = frames[5] = None
    frames[3][68:] = np.nan
    motion = filmed(frames, fps)
    motion.save(tmp_path / "a.motion.safetensors", name="Añna", licence="CC0-1.0", keep_face_shape=True)
    loaded = DrivingMotion.load(tmp_path / "a.motion.safetensors")
    assert equal(loaded.landmarks, frames) and loaded.fps == fps and loaded.missing == [2, 5]
    assert (loaded.face, loaded.origin, loaded.loop, loaded.audio_from) == ("driver", "clip", False, None)
    assert (loaded.name, loaded.licence, loaded.size, loaded.box) == ("Añna", "CC0-1.0", 256, CropBox(0, 0, 256))
    assert np.array_equal(loaded.reference, motion.unmoved().astype(np.float32))
    loaded.save(tmp_path / "b.motion.safetensors", keep_face_shape=True)
    first, again = (load_file(tmp_path / f"{name}.motion.safetensors") for name in "ab")
    assert all(np.array_equal(first[key], again[key], equal_nan=True) for key in ("landmarks", "reference"))


def test_the_rate_is_a_fraction_and_nothing_else_is_told(tmp_path):
    filmed(lively(count=3), 30000 / 1001).save(tmp_path / "a.motion.safetensors")
    with safe_open(tmp_path / "a.motion.safetensors", "np") as file:
        fields = file.metadata()
        assert set(file.keys()) == {"landmarks", "reference"} and file.get_tensor("landmarks").dtype == np.float32
    assert fields.pop("made_with").startswith("fsth_hub ")
    assert fields == {"format": "fsth_hub.motion", "version": "1", "fps": "30000/1001", "size": "256", "loop": "false",
                      "face": "resting", "origin": "clip"}  # fmt: skip


@pytest.mark.parametrize("turning, limit", [(0, 0.1), (1, 0.7)], ids=["face", "face and head"])
def test_the_drivers_face_is_taken_out(tmp_path, turning, limit):
    """Two people of other proportions and sizes who move alike come out alike, in pixels of 256."""
    narrow = lively(width=0.9, turning=turning)
    broad = lively(width=1.15, turning=turning, scale=0.6, centre=(120.0, 150.0))
    apart = np.abs(narrow[0] - broad[0]).max()
    saved = []
    for index, frames in enumerate((narrow, broad)):
        path = tmp_path / f"{index}.motion.safetensors"
        replace(filmed(frames), reference=frames[0]).save(path)
        saved.append(np.stack(DrivingMotion.load(path).landmarks))
    assert apart > 5 and np.abs(saved[0] - saved[1]).max() < limit
    assert np.abs(saved[0][0] - RESTING_LANDMARKS).max() < 1e-3 and np.ptp(saved[0], axis=0).max() > 5


def test_on_the_resting_face_the_head_is_not_held_back():
    frames = [face(), face(yaw=40), face(centre=(190.0, 140.0), scale=0.9)]
    rested = replace(filmed(frames), reference=frames[0]).on_resting_face()
    back = MotionAdapter(frames[0], RESTING_LANDMARKS, limited=False)
    for points, expected in zip(rested.landmarks, frames, strict=True):
        np.testing.assert_allclose(back(points), expected, atol=1.5)


def test_a_saved_motion_drives_as_the_clip_does(tmp_path):
    portrait, frames = face(width=0.95, eyes=12.0, mouth=1.0, scale=0.45), lively()
    motion = replace(filmed(frames), reference=frames[0])
    motion.save(tmp_path / "a.motion.safetensors")
    options = ("relative", None, 1.0, 0.0)
    direct = np.stack(list(adapt_motion(portrait, motion, *options)))
    loaded = np.stack(list(adapt_motion(portrait, DrivingMotion.load(tmp_path / "a.motion.safetensors"), *options)))
    assert np.abs(direct - loaded).max() < 1.5 and np.abs(direct - portrait).max() > 5


def test_sound_is_saved_only_if_asked_for(tmp_path):
    source = make_clip(tmp_path / "driver.mp4", clip(*range(50)), sound="aac")
    motion = filmed(lively(count=50), audio_from=source)
    motion.save(tmp_path / "a.motion.safetensors")
    assert DrivingMotion.load(tmp_path / "a.motion.safetensors").audio_from is None
    motion.save(tmp_path / "b.motion.safetensors", sound=True)
    (tmp_path / "b.m4a").write_bytes(DrivingMotion.load(tmp_path / "b.motion.safetensors").audio_from)
    codec, begin, end, click = sound_of(tmp_path / "b.m4a")
    assert codec == "aac" and click == pytest.approx(1, abs=0.04) and end == pytest.approx(2, abs=0.1)
    with pytest.raises(FsthError, match="There is no sound to save"):
        filmed(lively(count=2)).save(tmp_path / "c.motion.safetensors", sound=True)
    assert not (tmp_path / "c.motion.safetensors").exists()


def write_raw(path, tensors=None, **fields):
    points = np.stack(lively(count=3))
    tensors = {"landmarks": points, "reference": points[0]} | (tensors or {})
    known = {"format": "fsth_hub.motion", "version": "1", "fps": "25", "size": "256", "loop": "false"}
    known |= {"face": "driver", "origin": "clip"}
    known |= fields
    save_file({k: v for k, v in tensors.items() if v is not None}, path, {k: v for k, v in known.items() if v})
    return path


def spoiled(value, where=(1, 5, 0)) -> dict[str, np.ndarray]:
    points = np.stack(lively(count=3))
    points[where] = value
    return {"landmarks": points}


@pytest.mark.parametrize(
    "tensors, fields, words",
    [
        ({"landmarks": np.zeros((3, 68, 2), np.float32)}, {}, "its landmarks are 3 x 68 x 2"),
        ({"landmarks": np.zeros((0, 78, 2), np.float32)}, {}, "its landmarks are 0 x 78 x 2"),
        ({"landmarks": np.zeros((3, 78, 2), np.float32)}, {}, "no face can be"),
        ({"landmarks": np.full((3, 78, 2), np.nan, np.float32)}, {}, "shows no face"),
        ({"landmarks": np.zeros((3, 78, 2), np.float64)}, {}, "'landmarks' that does not belong"),
        ({"landmarks": None}, {}, "holds no landmarks"),
        ({"reference": None}, {}, "holds no landmarks"),
        ({"reference": np.full((78, 2), np.nan, np.float32)}, {}, "shows no face"),
        ({"weights": np.zeros(3, np.float32)}, {}, "'weights' that does not belong"),
        (spoiled(np.inf), {}, "no face can be"),
        (spoiled(np.nan), {}, "a face is incomplete"),
        (spoiled(np.nan, (1, 70)), {}, "a face is incomplete"),
        (spoiled(1e9), {}, "no face can be"),
        ({}, {"format": "other"}, "is no motion: make one"),
        ({}, {"version": "2"}, r"x.motion.safetensors was made by a newer fsth_hub \(motion version 2\): update."),
        ({}, {"version": "one"}, "its field 'version'"),
        ({}, {"fps": "0/1"}, "its field 'fps'"),
        ({}, {"fps": "1/0"}, "its field 'fps'"),
        ({}, {"fps": "25.0"}, "its field 'fps'"),
        ({}, {"fps": "9999999"}, "out of range"),
        ({}, {"size": "999999"}, "out of range"),
        ({}, {"loop": "yes"}, "its field 'loop'"),
        ({}, {"face": "anna"}, "its field 'face'"),
        ({}, {"origin": ""}, "its field 'origin'"),
    ],
)  # fmt: skip
def test_foreign_and_damaged_files_are_refused(tmp_path, tensors, fields, words):
    path = write_raw(tmp_path / "x.motion.safetensors", tensors, **fields)
    with pytest.raises(FsthError, match=words) as caught:
        DrivingMotion.load(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


def test_other_files_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "x.motion.safetensors"
    for data in (b"", b"\x80\x04K\x01.", b"\xff" * 100, write_raw(tmp_path / "y.safetensors").read_bytes()[:-9]):
        path.write_bytes(data)
        with pytest.raises(FsthError, match="x.motion.safetensors is no motion that can be used"):
            DrivingMotion.load(path)
    with open(path, "wb") as file:
        file.truncate(65 * 2**20)
    with pytest.raises(FsthError, match="is larger than 64 MB"):
        DrivingMotion.load(path)
    with pytest.raises(FsthError, match="There is no file"):
        DrivingMotion.load(tmp_path / "z.motion.safetensors")
    with pytest.raises(FsthError, match="read from a path"):
        DrivingMotion.load(3)


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was opened",))


@pytest.mark.parametrize("name", ["nod.pkl", "nod.PKL", "nod.pickle", "nod.exp", "nod.pt"])
def test_pickles_are_never_opened(tmp_path, name):
    (tmp_path / name).write_bytes(pickle.dumps(Trap()))
    with pytest.raises(FsthError) as caught:
        DrivingMotion.load(tmp_path / name)
    assert str(caught.value) == (
        f"{name} is a pickle, which may run code: fsth_hub never opens one. Make a motion from the clip itself."
    )


def test_what_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    motion = filmed(lively(count=3))
    refused = {"a.safetensors": "must end in .motion.safetensors", "no/a.motion.safetensors": "cannot be written"}
    for name, words in refused.items():
        with pytest.raises(FsthError, match=words):
            motion.save(tmp_path / name)
    monkeypatch.setattr(motion_files, "MAX_BYTES", 1000)
    with pytest.raises(FsthError, match="save a shorter clip"):
        motion.save(tmp_path / "a.motion.safetensors")
    assert not list(tmp_path.iterdir())


# Those that come with the package.


def test_eight_motions_ship_and_can_be_repeated():
    motions = list_motions()
    assert [motion.name for motion in motions] == list(SHIPPED) and len(motions) == 8
    assert all(motion.title and 2 < motion.seconds < 6 for motion in motions)
    assert sum(path.stat().st_size for path in motion_files.MOTIONS.iterdir()) < 500_000
    for name in SHIPPED:
        motion = DrivingMotion.load(f"motion:{name}")
        assert (motion.loop, motion.face, motion.licence, motion.missing) == (True, "resting", "CC0-1.0", [])
        points = np.stack([*motion.landmarks, motion.landmarks[0]])
        assert np.abs(points[0] - RESTING_LANDMARKS).max() < 0.01 and np.abs(points[-2] - points[0]).max() < 0.1
        assert 2 < np.abs(np.diff(points, axis=0)).max() < 7  # pixels of 256


def test_the_script_makes_what_ships():
    import runpy

    from testing_utils.paths import ROOT

    make = runpy.run_path(str(ROOT / "scripts" / "make_motions.py"))["make"]
    for name in SHIPPED:
        made, shipped = make(name), DrivingMotion.load(f"motion:{name}")
        np.testing.assert_allclose(made.landmarks, shipped.landmarks, atol=1e-3)
        assert made.name == shipped.name


def test_motions_do_what_they_say():
    def spread(name, measure):
        values = [measure(points) for points in DrivingMotion.load(f"motion:{name}").landmarks]
        return max(values) - min(values)

    def eye(points):
        return opening(points, EYE)

    def mouth(points):
        return opening(points, MOUTH)

    assert spread("nod", lambda p: p[30, 1]) > 8 > spread("nod", lambda p: p[30, 0]) + 6
    assert spread("shake", lambda p: p[30, 0]) > 12 and spread("look-around", lambda p: p[68, 0]) > 8
    assert spread("blink", eye) > 0.12 and spread("talk", mouth) > 0.3 and spread("surprise", mouth) > 0.15
    assert spread("smile", lambda p: p[48, 1]) > 6 and spread("laugh", mouth) > 0.15


def test_a_motion_that_is_not_there():
    with pytest.raises(FsthError, match=r"There is no motion 'wink'; there are: talk, smile, .* surprise\."):
        DrivingMotion.load("motion:wink")
    assert is_motion("motion:wink") and is_motion("A.MOTION.SAFETENSORS") and is_motion("x.pkl")
    assert not is_motion("a.mp4") and not is_motion(b"motion:nod") and not is_motion([3])
    assert shipped_path("nod").is_file()


# Repeated and mixed.


def test_looped_to_a_length():
    nod = DrivingMotion.load("motion:nod")
    assert len(nod.landmarks) == 70
    six, one, twice = nod.looped(seconds=6), nod.looped(seconds=1), nod.looped(seconds=5.6)
    assert (len(six.landmarks), six.loop) == (150, False) and (len(one.landmarks), one.loop) == (25, False)
    assert (len(twice.landmarks), twice.loop) == (140, True)
    assert all(six.landmarks[i] is nod.landmarks[i % 70] for i in range(150))
    assert nod.looped().landmarks == nod.landmarks
    with pytest.raises(FsthError, match="seconds must be a number"):
        nod.looped(seconds=float("inf"))


def test_a_clip_that_is_saved_as_a_loop_has_no_seam(tmp_path):
    frames = lively(count=120)
    filmed(frames).save(tmp_path / "a.motion.safetensors", loop=True)
    loop = DrivingMotion.load(tmp_path / "a.motion.safetensors")
    points = np.stack([*loop.landmarks, loop.landmarks[0]])
    steps = np.abs(np.diff(points, axis=0)).max(axis=(1, 2))
    assert loop.loop and len(loop.landmarks) >= 60 and steps[-1] <= steps[:-1].max()


def test_regions_of_another_motion():
    nod, talk = DrivingMotion.load("motion:nod"), DrivingMotion.load("motion:talk")
    both = nod.looped(5).with_regions(talk, "mouth")
    mouths = [np.array([opening(p, MOUTH) for p in motion.landmarks]) for motion in (both, talk)]
    np.testing.assert_allclose(*mouths, atol=0.02)
    noses = [np.array([p[30, 1] for p in motion.landmarks]) for motion in (both, nod.looped(5))]
    np.testing.assert_allclose(*noses, atol=0.6)
    slower = replace(talk, fps=12.5, landmarks=talk.landmarks[::2])
    np.testing.assert_allclose([opening(p, MOUTH) for p in nod.with_regions(slower, "mouth").landmarks][:60:2],
                               mouths[1][:60:2], atol=0.02)  # fmt: skip
    gaps = replace(talk, landmarks=[None, *talk.landmarks[1:]])
    assert nod.with_regions(gaps, "mouth").missing == [] and gaps.with_regions(nod, "head").missing == [0]
    assert nod.with_regions(filmed(lively()), "mouth").origin == "clip" and both.origin == "keyframes"
    with pytest.raises(FsthError, match="There is no region"):
        nod.with_regions(talk, "teeth")


# Keyframes.


SMILE, TURN = Expression(smile=1), Expression(yaw=10)


def test_keyframes_are_met_and_eased_between():
    motion = DrivingMotion.from_keyframes([(0.4, Expression()), (0.8, SMILE), (2, TURN)])
    assert len(motion.landmarks) == 51 and not motion.loop and motion.origin == "keyframes"
    for index, expression in ((0, Expression()), (10, Expression()), (20, SMILE), (15, SMILE * 0.5), (50, TURN)):
        np.testing.assert_allclose(motion.landmarks[index], expression.landmarks(), atol=1e-3)
    steps = np.abs(np.diff(np.stack(motion.landmarks[10:21]), axis=0)).max(axis=(1, 2))
    assert steps[0] < 0.5 * steps[4] > steps[-1]


def test_keyframes_that_repeat_come_back():
    motion = DrivingMotion.from_keyframes([(0, Expression()), (0.8, SMILE)], loop=True)
    assert len(motion.landmarks) == 40 and motion.loop
    np.testing.assert_allclose(motion.landmarks[20], SMILE.landmarks(), atol=1e-3)
    assert np.abs(motion.landmarks[-1] - motion.landmarks[0]).max() < 0.2
    closed = DrivingMotion.from_keyframes([(0, TURN), (1, SMILE), (2, TURN)], loop=True)
    assert len(closed.landmarks) == 50
    assert len(DrivingMotion.from_keyframes([(0, SMILE)]).landmarks) == 1


@pytest.mark.parametrize(
    "keyframes, fps, words",
    [
        ([(1.2, SMILE), (0.8, TURN)], 25, "Keyframes must go forward in time: 0.8 s comes after 1.2 s."),
        ([(0, SMILE), (0, TURN)], 25, "Keyframes must go forward"),
        ([], 25, "Give at least one keyframe"),
        ([(0, {"smile": 1})], 25, "A keyframe needs an Expression"),
        ([SMILE], 25, "A keyframe is a time in seconds and an expression"),
        ([(-1, SMILE)], 25, "from 0 to 3600 s, not -1"),
        ([(float("nan"), SMILE)], 25, "from 0 to 3600 s, not nan"),
        ([("1", SMILE)], 25, "from 0 to 3600 s"),
        ([(0, SMILE), (3600, TURN)], 1000, "at most 100000"),
        ([(0, SMILE)], 0, "fps must be"),
    ],
)  # fmt: skip
def test_keyframes_that_do_not_fit(keyframes, fps, words):
    with pytest.raises(FsthError, match=words):
        DrivingMotion.from_keyframes(keyframes, fps)


def test_keyframes_in_a_file(tmp_path):
    path = tmp_path / "x.expressions.json"
    content = {"format": "fsth_hub.expressions", "version": 1, "fps": 25, "loop": True}
    content["keyframes"] = [{"t": 0}, {"t": 0.8, "smile": 1}]
    path.write_text(json.dumps(content))
    motion = DrivingMotion.load(path)
    assert equal(
        motion.landmarks, DrivingMotion.from_keyframes([(0, Expression()), (0.8, SMILE)], loop=True).landmarks
    )
    keyframes = [(0, TURN), (0.5, SMILE + TURN), (1.25, Expression(eye_left=-0.5))]
    write_expressions(path, keyframes, 12.5, False)
    assert read_expressions(path) == (keyframes, 12.5, False)


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "is no JSON that can be read"),
        ("[" * 100_000, "is no JSON that can be read"),
        ("[]", "holds no expressions"),
        ('{"format": "fsth_hub.motion"}', "holds no expressions"),
        ('{"version": 2}', "newer fsth_hub"),
        ('{"keyframes": {}}', "a list of keyframes"),
        ('{"colour": 1}', "there is no field 'colour'"),
        ('{"fps": "25"}', "fps must be"),
        ('{"fps": NaN}', "fps must be"),
        ('{"loop": 1}', "loop must be"),
        ('{"keyframes": []}', "at least one keyframe"),
        ('{"keyframes": [{"smile": 1}]}', "needs its time"),
        ('{"keyframes": [{"t": 0, "grin": 1}]}', "There is no control 'grin'"),
        ('{"keyframes": [{"t": 0, "smile": 3}]}', "smile is from -0.4 to 1, not 3."),
        ('{"keyframes": [{"t": 0, "smile": 1e999}]}', "smile is from -0.4 to 1, not inf."),
        ('{"keyframes": [{"t": null}]}', "time is from 0"),
    ],
)  # fmt: skip
def test_files_of_keyframes_that_do_not_fit(tmp_path, text, words):
    path = tmp_path / "x.expressions.json"
    if text.startswith("{") and "format" not in text:
        given = json.loads(text)
        text = json.dumps({"format": "fsth_hub.expressions", "version": 1, "keyframes": [{"t": 0}]} | given)
    path.write_text(text)
    with pytest.raises(FsthError, match=words) as caught:
        DrivingMotion.load(path)
    assert "\n" not in str(caught.value)
