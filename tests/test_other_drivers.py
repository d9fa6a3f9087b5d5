"""What drives besides clips: recordings of ARKit's shapes, mouth cues, and sound from elsewhere."""

import json

import numpy as np
import pytest

from fsth_hub.landmarks.arkit import SHAPES, expression_of
from fsth_hub.landmarks.expression import Expression
from fsth_hub.media.live_link import read_live_link
from fsth_hub.media.mouth_cues import FPS, OCULUS, RHUBARB, read_cues
from fsth_hub.media.sound import read_sound
from fsth_hub.models.errors import FsthError, FsthWarning, VideoError
from fsth_hub.pipelines.driving import DrivingMotion
from testing_utils.clips import click, make_clip, sound_of
from testing_utils.faces import EYE, MOUTH, opening
from testing_utils.pipelines import clip


HEAD = ("HeadYaw", "HeadPitch", "HeadRoll")
COLUMNS = ("Timecode", "BlendShapeCount", *SHAPES, "TongueOut", *HEAD, "LeftEyeYaw")


def timecode(seconds: float, base: int = 60) -> str:
    whole, part = divmod(seconds, 1)
    return f"{int(whole // 3600):02}:{int(whole // 60 % 60):02}:{int(whole % 60):02}:{part * base:06.3f}"


def write_csv(path, rows, times=None, columns=COLUMNS, base=60):
    times = [12 * 3600 + index / 30 for index in range(len(rows))] if times is None else times
    lines = [",".join(columns)]
    for time, row in zip(times, rows, strict=True):
        values = {"Timecode": timecode(time, base), "BlendShapeCount": "61"} | {k: f"{v:.10f}" for k, v in row.items()}
        lines.append(",".join(values.get(column, "0.0000000000") for column in columns))
    path.write_text("\n".join(lines) + "\n")
    return path


def shapes(**values) -> dict[str, float]:
    return dict.fromkeys(SHAPES, 0.0) | values


# ARKit.


@pytest.mark.parametrize(
    "given, expected",
    [
        ({}, Expression()),
        ({"EyeBlinkLeft": 1}, Expression(eye_left=-1)),
        ({"EyeBlinkRight": 0.5, "EyeWideLeft": 0.25}, Expression(eye_right=-0.5, eye_left=0.25)),
        ({"JawOpen": 0.25}, Expression(mouth=0.5)),
        ({"JawOpen": 0.9}, Expression(mouth=1)),
        ({"JawOpen": 0.5, "MouthClose": 0.5}, Expression()),
        ({"MouthClose": 0.2}, Expression(mouth=-0.4)),
        ({"MouthSmileLeft": 0.8, "MouthSmileRight": 0.6}, Expression(smile=0.7)),
        ({"MouthFrownLeft": 1, "MouthFrownRight": 1}, Expression(smile=-0.4)),
        ({"MouthPucker": 0.5}, Expression(pucker=0.5)),
        ({"BrowInnerUp": 1, "BrowOuterUpLeft": 1, "BrowOuterUpRight": 0}, Expression(brow_left=1, brow_right=0.5)),
        ({"BrowDownLeft": 1, "BrowDownRight": 1}, Expression(brow_left=-0.5, brow_right=-0.5, frown=1)),
        # both eyes to the person's left, which is the right of the picture
        ({"EyeLookOutLeft": 0.5, "EyeLookInRight": 0.5}, Expression(gaze_x=0.7)),
        ({"EyeLookInLeft": 0.5, "EyeLookInRight": 0.5}, Expression(cross=0.7)),
        ({"EyeLookDownLeft": 0.5, "EyeLookDownRight": 0.5}, Expression(gaze_y=0.7)),
    ],
    ids=str,
)  # fmt: skip
def test_arkits_shapes(given, expected):
    made = expression_of(shapes(**given))
    for name in Expression.__dataclass_fields__:
        assert getattr(made, name) == pytest.approx(getattr(expected, name)), name


def test_the_head_turns_as_in_live_link_face():
    made = expression_of(shapes(), yaw=-np.radians(10), pitch=np.radians(5), roll=np.radians(3))
    assert (made.yaw, made.pitch, made.roll) == pytest.approx((10, 5, 3))


def test_a_recording_drives(tmp_path):
    rows = [{"EyeBlinkLeft": i == 15, "JawOpen": i / 60, "HeadYaw": -0.1 * i / 30} for i in range(31)]
    motion = DrivingMotion.load(write_csv(tmp_path / "take.csv", rows))
    assert (motion.fps, len(motion.landmarks), motion.origin, motion.face) == (30, 31, "arkit", "resting")
    right, left = EYE, ((43, 47), (44, 46))
    assert opening(motion.landmarks[15], left) < 0.01 < opening(motion.landmarks[15], right) - 0.1
    assert opening(motion.landmarks[30], MOUTH) > opening(motion.landmarks[0], MOUTH) + 0.2
    assert motion.landmarks[30][30, 0] > motion.landmarks[0][30, 0] + 2


@pytest.mark.parametrize("rate, base, fps", [(30, 60, 30), (60, 60, 30), (24, 24, 24), (25, 25, 25), (30, 30, 30)])
def test_the_rate_is_that_of_the_times(tmp_path, rate, base, fps):
    rows = [{"JawOpen": index % 2, "HeadYaw": 0.01} for index in range(3 * rate)]
    times = [3600 * 23 + 3599 + 60 * 59 - 3540 + index / rate for index in range(len(rows))]
    expressions, found = read_live_link(write_csv(tmp_path / "a.csv", rows, times, base=base))
    assert found == pytest.approx(fps, abs=0.02) and len(expressions) == pytest.approx(3 * fps, abs=1)


def test_rows_that_come_late_are_put_where_they_belong(tmp_path):
    times = [0, 1, 2, 3, 6, 7, 8, 9, 10, 11, 12]
    rows = [{"JawOpen": time / 40, "HeadYaw": 0.01} for time in times]
    expressions, fps = read_live_link(write_csv(tmp_path / "a.csv", rows, [50 + time / 30 for time in times]))
    at = np.arange(len(expressions)) / fps * 30
    np.testing.assert_allclose([e.mouth for e in expressions], at / 20, atol=0.01)


def test_over_midnight(tmp_path):
    rows = [{"HeadYaw": 0.01}] * 60
    path = write_csv(tmp_path / "a.csv", rows, [(86399 + index / 30) % 86400 for index in range(60)])
    assert len(read_live_link(path)[0]) == 60


def test_a_head_that_was_not_recorded_keeps_still(tmp_path):
    path = write_csv(tmp_path / "take.csv", [{"JawOpen": 0.2}] * 5)
    with pytest.warns(FsthWarning, match="The head columns of take.csv are all zero: the head keeps still."):
        expressions, _ = read_live_link(path)
    assert {(e.yaw, e.pitch, e.roll) for e in expressions} == {(0, 0, 0)}


def spoil(text: str, change) -> str:
    return change(text.splitlines())


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda s: s.replace("EyeBlinkLeft", "Eye"), "take.csv has no column EyeBlinkLeft: export it from Live Link"),
        (lambda s: s.replace("Timecode", "Time"), "has no column Timecode"),
        (lambda s: s.splitlines()[0], "has no rows"),
        (lambda s: "", "it is empty or damaged"),
        (lambda s: '"' + s, "damaged"),
        (lambda s: s.replace("0.2000000000", "nan", 1), "row 2 is damaged"),
        (lambda s: s.replace("0.2000000000", "1e300", 1), "row 2 is damaged"),
        (lambda s: s.replace("0.2000000000", "much", 1), "row 2 is damaged"),
        (lambda s: s[:-60], "row 6 is damaged"),
        (lambda s: s.replace("12:00:00", "yesterday", 1), "row 2 has no time"),
        (lambda s: s.replace("12:00:00:04", "12:00:00:00", 1), "the time of row 4 is not after"),
        (lambda s: s.replace("12:00:00:08", "99:00:00:08", 1), "span .* too long"),
    ],
)  # fmt: skip
def test_recordings_that_cannot_be_used(tmp_path, change, words):
    path = write_csv(tmp_path / "take.csv", [{"JawOpen": 0.2, "HeadYaw": 0.1}] * 5)
    path.write_text(change(path.read_text()))
    with pytest.raises(FsthError, match=words) as caught:
        DrivingMotion.load(path)
    assert "\n" not in str(caught.value)


# Mouth cues.


def rhubarb(*cues) -> str:
    values = [{"start": start, "end": end, "value": value} for start, end, value in cues]
    return json.dumps({"metadata": {"soundFile": "voice.wav", "duration": cues[-1][1]}, "mouthCues": values})


WORDS = (0, 0.2, "X"), (0.2, 0.6, "D"), (0.6, 0.65, "A"), (0.65, 1.0, "F"), (1.0, 1.4, "X")


def test_cues_are_met_faded_and_always_shut(tmp_path):
    (tmp_path / "cues.json").write_text(rhubarb(*WORDS))
    mouths, fps = read_cues(tmp_path / "cues.json")
    assert fps == FPS and len(mouths) == 35
    assert (
        mouths[2] == RHUBARB["X"]
        and mouths[10].mouth == pytest.approx(0.9)
        and mouths[20].pucker == pytest.approx(0.9)
    )
    assert mouths[16] == RHUBARB["A"]  # 50 ms, but there is a frame that shows it
    assert -0.9 < mouths[5].mouth < 0.7  # on its way from shut to open


def test_every_way_of_telling_cues_says_the_same(tmp_path):
    (tmp_path / "a.json").write_text(rhubarb(*WORDS))
    (tmp_path / "a.tsv").write_text("".join(f"{start}\t{value}\n" for start, _, value in WORDS))
    names = {"X": "sil", "D": "aa", "A": "PP", "F": "ou"}
    (tmp_path / "b.tsv").write_text("".join(f"{start}\t{names[value]}\n" for start, _, value in WORDS))
    timed = {"visemes": [names[value] for *_, value in WORDS], "vtimes": [1000 * start for start, *_ in WORDS],
             "vdurations": [1000 * (end - start) for start, end, _ in WORDS]}  # fmt: skip
    (tmp_path / "b.json").write_text(json.dumps(timed))
    rhubarbs, oculus = ([read_cues(tmp_path / f"{name}.{kind}")[0] for kind in ("json", "tsv")] for name in "ab")
    assert rhubarbs[0][:30] == rhubarbs[1][:30]
    for one, other in zip(oculus[0][:30], oculus[1][:30], strict=True):
        assert one.mouth == pytest.approx(other.mouth) and one.pucker == pytest.approx(other.pucker)
    assert oculus[0][16] == rhubarbs[0][16] and oculus[0][10].mouth == pytest.approx(0.9)


def test_tables_are_whole():
    assert set(RHUBARB) == set("ABCDEFGHX") and len(OCULUS) == 15
    assert OCULUS["PP"].mouth == RHUBARB["A"].mouth == RHUBARB["X"].mouth == -1


def test_a_head_and_blinks_go_with_the_mouth(tmp_path):
    (tmp_path / "cues.json").write_text(rhubarb((0, 3, "X"), (3, 4, "D")))
    motion = DrivingMotion.load(tmp_path / "cues.json")
    assert (len(motion.landmarks), motion.origin, motion.name, motion.licence) == (100, "cues", None, None)
    eyes = [opening(points, EYE) for points in motion.landmarks]
    noses = [points[30, 0] for points in motion.landmarks]
    mouths = [opening(points, MOUTH) for points in motion.landmarks]
    assert min(eyes) < 0.02 and np.ptp(noses) > 3
    assert max(mouths[:70]) < 0.02 < 0.2 < min(mouths[80:95])


@pytest.mark.parametrize(
    "name, text, words",
    [
        ("a.json", "{", "holds no mouth cues that can be read"),
        ("a.json", "[]", "holds no mouth cues that can be read"),
        ("a.json", '{"mouthCues": []}', "holds no mouth cues"),
        ("a.json", '{"mouthCues": [{"start": 0}]}', "holds no mouth cues that can be read"),
        ("a.json", '{"mouthCues": 3}', "holds no mouth cues that can be read"),
        ("a.json", rhubarb((0, 1, "Q")), "there is no mouth shape 'Q'"),
        ("a.json", rhubarb((0, 1, 3)), "there is no mouth shape '3'"),
        ("a.json", rhubarb((0, 1, ["A"])), "there is no mouth shape"),
        ("a.json", rhubarb((1, 2, "A"), (0, 1, "B")), "must go forward in time"),
        ("a.json", rhubarb((0, 1e9, "A")), "must go forward in time, up to 4000 s"),
        ("a.json", rhubarb((0, float("nan"), "A")), "must go forward in time"),
        ("a.tsv", "", "holds no mouth cues"),
        ("a.tsv", "0.1 A\n", "holds no mouth cues that can be read"),
        ("a.tsv", "start\tvalue\n", "holds no mouth cues that can be read"),
    ],
)  # fmt: skip
def test_cues_that_cannot_be_used(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(FsthError, match=words) as caught:
        DrivingMotion.load(tmp_path / name)
    assert "\n" not in str(caught.value)


# Sound.


def write_wav(path, seconds=2.0, at=1.0):
    import wave

    samples = (click(seconds, 48_000, at)[0] * 30_000).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(48_000)
        file.writeframes(samples.tobytes())
    return path


def test_sound_of_a_recording_and_of_a_clip(tmp_path):
    made = make_clip(tmp_path / "a.mkv", clip(*range(50)), sound="libopus", options=None)
    for source in (write_wav(tmp_path / "a.wav"), made):
        (tmp_path / "out.m4a").write_bytes(read_sound(source))
        codec, _, end, onset = sound_of(tmp_path / "out.m4a")
        assert codec == "aac" and onset == pytest.approx(1, abs=0.04) and end == pytest.approx(2, abs=0.1)
    (tmp_path / "out.m4a").write_bytes(read_sound(tmp_path / "a.wav", seconds=0.5))
    assert sound_of(tmp_path / "out.m4a")[2] == pytest.approx(0.5, abs=0.1)


def test_what_has_no_sound_is_refused(tmp_path):
    silent = make_clip(tmp_path / "a.mp4", clip(*range(5)))
    with pytest.raises(VideoError, match="a.mp4 has no sound"):
        read_sound(silent)
    (tmp_path / "a.wav").write_text("#EXTM3U\nfile:///etc/passwd\n")
    with pytest.raises(VideoError, match="a.wav is not sound that can be read"):
        read_sound(tmp_path / "a.wav")
    with pytest.raises(FsthError, match="There is no file"):
        read_sound(tmp_path / "none.wav")
