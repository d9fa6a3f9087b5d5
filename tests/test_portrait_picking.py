"""Portraits from a clip: which frames are picked, and clips wherever portraits go."""

import io
import tracemalloc
import warnings

import cv2
import numpy as np
import pytest
from PIL import Image

from fsth_hub.landmarks import Face
from fsth_hub.landmarks.portrait_picking import (
    EVEN,
    FIRST,
    SHUT_EYES,
    WIDE_MOUTH,
    Look,
    clear_frames,
    pick_frames,
)
from fsth_hub.media.reading import holds_clip, open_clip
from fsth_hub.models.errors import FsthError, FsthNotFoundError, FsthWarning, NoFaceError, VideoError
from fsth_hub.pipelines.portrait_picking import MAX_LOOKS, PickedPortrait, files_of, list_portraits
from testing_utils.clips import make_clip
from testing_utils.command_line import assert_one_line_error, run
from testing_utils.faces import face
from testing_utils.networks import SIZE
from testing_utils.paths import DRIVER, PORTRAIT
from testing_utils.pipelines import NO_FACE, StubDetector, make_pipeline, picture


TALKS = {"mouth": 6.0, "eyes": 15.0}


class TableDetector:
    """The first pixel of a frame says which of the faces it shows, or that there is none (255)."""

    def __init__(self, *faces: np.ndarray, others: tuple[np.ndarray, ...] = ()):
        self.faces, self.others = faces, others

    def track(self, image, previous):
        return None if image[0, 0, 0] == NO_FACE else Face(self.faces[image[0, 0, 0]], 1.0)

    def detect(self, image):
        found = self.track(image, None)
        return [] if found is None else [found, *(Face(points, 1.0) for points in self.others)]


def frame(number: int, blur: float = 0.0, light: float = 1.0) -> np.ndarray:
    image = np.random.default_rng(1).integers(80, 160, (256, 256, 3), np.uint8)
    image = cv2.GaussianBlur(image, (0, 0), blur) if blur else image
    image = (light * image).astype(np.uint8)
    image[0, 0] = number
    return image


def looks(*faces: np.ndarray, sharp: float = 100.0, light: float = 120.0) -> list[Look]:
    return [Look(points, index / 2, sharp, light, True) for index, points in enumerate(faces)]


def reasons(picks) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for pick in picks:
        found.setdefault(pick.why, []).append(pick.index)
    return found


# Which frames


def planted() -> list[np.ndarray]:
    """A head turns from side to side; frontal are frame 24, frame 22 with an open mouth, frame 26 with shut eyes."""
    faces = [face(**TALKS, yaw=yaw) for yaw in np.linspace(-25, 25, 49)]
    faces[22], faces[26] = face(mouth=25, eyes=15, yaw=-2), face(mouth=6, eyes=1, yaw=2)
    return faces


def test_planted_frames_are_found_for_what_they_show():
    picks = pick_frames(looks(*planted()), 8)
    found, numbers = reasons(picks), sorted(pick.index for pick in picks)
    assert picks[0].why == FIRST and abs(picks[0].index - 24) <= 1 and found[WIDE_MOUTH] == [22]
    assert len(found[EVEN]) == 6 and numbers[0] < 8 and numbers[-1] > 40  # both sides are there
    assert 26 not in numbers  # a blink, which counts only where there are many
    assert reasons(pick_frames(looks(*planted()), 16))[SHUT_EYES] == [26]


def test_blinks_give_way_to_their_neighbours():
    faces = [face(**TALKS)] * 15
    faces[0] = faces[7] = faces[14] = face(mouth=6, eyes=1)
    assert sorted(pick.index for pick in pick_frames(looks(*faces), 3)) in ([1, 6, 13], [1, 8, 13])


def test_an_open_mouth_among_the_others_is_enough():
    faces = planted()
    for number in range(7):
        faces[number] = face(mouth=24, eyes=15, yaw=number - 25)
    found = reasons(pick_frames(looks(*faces), 8))
    assert WIDE_MOUTH not in found and len(found[EVEN]) == 7


def test_first_portrait_is_frontal_with_open_eyes_and_the_sharpest_of_those():
    faces = [face(**TALKS, yaw=20), face(mouth=6, eyes=2), face(mouth=40, eyes=15), face(**TALKS), face(**TALKS)]
    seen = looks(*faces)
    seen[3] = Look(seen[3].points, seen[3].time, 70.0, 120.0, True)
    (pick,) = pick_frames(seen, 1)
    assert pick.index == 4 and pick.why == FIRST


def test_frames_that_are_blurred_dark_bright_quick_small_or_cut_are_left_out():
    good = looks(*[face(**TALKS)] * 8)
    bad = {
        1: {"sharpness": 30.0}, 2: {"brightness": 20.0}, 3: {"brightness": 250.0}, 4: {"movement": 0.2},
        5: {"whole": False}, 6: {"points": face(**TALKS, scale=0.1)},
    }  # fmt: skip
    for number, values in bad.items():
        good[number] = Look(**vars(good[number]) | values)
    assert clear_frames(good).tolist() == [0, 7]
    assert {pick.index for pick in pick_frames(good, 8)} == {0, 7}  # fewer rather than bad ones


def test_what_no_frame_has_is_not_asked_for():
    dim = [Look(face(**TALKS, scale=0.1), index / 2, 3.0, 12.0, False, 0.3) for index in range(4)]
    assert clear_frames(dim).tolist() == [0, 1, 2, 3]


def test_look_sees_blur_light_and_borders_of_the_face():
    points = face(**TALKS)
    plain, blurred, dark = (Look.at(frame(0, **how), points, 0) for how in ({}, {"blur": 2.0}, {"light": 0.3}))
    assert blurred.sharpness < 0.2 * plain.sharpness
    assert dark.brightness == pytest.approx(0.3 * plain.brightness, rel=0.05)
    assert plain.whole and plain.movement == 0
    cut = Look.at(frame(0), points + np.float32([100, 0]), 0, before=points)
    assert not cut.whole and cut.movement > 1
    assert not Look.at(frame(0), points + np.float32([1000, 0]), 0).whole
    # an enlarged face is not taken for a sharp one
    large = cv2.resize(frame(0, blur=2.0), (512, 512), interpolation=cv2.INTER_CUBIC)
    assert Look.at(large, 2 * points, 0).sharpness == pytest.approx(blurred.sharpness, rel=0.3)


# From clips


def test_blurred_and_black_frames_of_a_clip_are_never_picked():
    pipe = make_pipeline()
    faces = [face(**TALKS, yaw=index - 6) for index in range(12)]
    faces[5] = face(mouth=30, eyes=15)
    pipe.detector = TableDetector(*faces)
    spoiled = {3: {"blur": 3.0}, 7: {"light": 0.05}}
    clip = open_clip([frame(number, **spoiled.get(number, {})) for number in range(12)], fps=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        picked = pipe.pick_portraits(clip, shots=8)
    numbers = [round(2 * portrait.time) for portrait in picked]
    assert len(set(numbers)) == 8 and 5 in numbers and not {3, 7} & {*numbers}
    for number, portrait in zip(numbers, picked, strict=True):
        assert np.asarray(portrait.image)[0, 0, 0] == number and np.array_equal(portrait.landmarks, faces[number])
    assert len({portrait.box for portrait in picked}) == 1  # one square, so that the background stays


def test_person_walking_away_gets_squares_of_their_own():
    pipe = make_pipeline()
    pipe.detector = TableDetector(*(face(**TALKS, scale=0.2, centre=(40 + 18 * n, 140)) for n in range(10)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FsthWarning)
        picked = pipe.pick_portraits([frame(number) for number in range(10)], shots=5)
    assert len({portrait.box for portrait in picked}) > 1
    for portrait in picked:
        inside = (portrait.landmarks[:68] - portrait.box[:2]) / portrait.box.side
        assert (inside > 0).all() and (inside < 1).all()


def test_longest_shot_is_taken_and_said():
    pipe = make_pipeline()
    pipe.detector = TableDetector(face(**TALKS), face(**TALKS, scale=0.3, centre=(60, 80)))
    white = np.full((256, 256, 3), 255, np.uint8)
    white[0, 0] = 1
    frames = [frame(0)] * 4 + [white] * 8
    with pytest.warns(FsthWarning) as told:
        picked = pipe.pick_portraits(open_clip(frames, fps=2), shots=2)
    assert all(portrait.time >= 2 for portrait in picked)
    assert "The clip changes shots: portraits were taken from 0:02 to 0:05." in map(str, [w.message for w in told])


def test_what_is_missing_is_said():
    pipe = make_pipeline()
    pipe.detector = TableDetector(face(mouth=0.5), others=(face(scale=0.45, centre=(60, 60)),))
    with pytest.warns(FsthWarning) as told:
        picked = pipe.pick_portraits([frame(0)] * 3, shots=8)
    sentences = [str(warning.message) for warning in told]
    assert len(picked) == 3 and len(sentences) == 3
    assert "shows 2 people" in sentences[0] and "--face" in sentences[0]
    assert "Only 3 frames of the clip show the face clearly; 3 were taken." in sentences[1]
    assert "mouth is never open in the clip: teeth will be made up" in sentences[2]


def test_long_clips_are_looked_at_evenly_and_in_flat_memory():
    class Counting(StubDetector):
        looked = 0

        def track(self, image, previous):
            self.looked += 1
            return super().track(image, previous)

    def peak(count: int) -> tuple[int, int]:
        pipe = make_pipeline()
        pipe.detector = Counting()
        pictures = (picture(number // 20 % 40) for number in range(count))
        clip = open_clip([next(pictures)] * count)  # one picture, whatever the length
        tracemalloc.start()
        try:
            with pytest.warns(FsthWarning):
                assert len(pipe.pick_portraits(clip, shots=2)) == 2
            return tracemalloc.get_traced_memory()[1], pipe.detector.looked
        finally:
            tracemalloc.stop()

    (short, _), (long, looked) = peak(MAX_LOOKS), peak(4 * MAX_LOOKS)
    assert long < 1.5 * short + 200_000
    assert looked <= 2 * MAX_LOOKS


def test_clip_without_a_face_or_of_one_reading_is_refused():
    pipe = make_pipeline()
    with pytest.raises(NoFaceError, match="No face was found in the clip"):
        pipe.pick_portraits([picture(NO_FACE)] * 3)
    with pytest.raises(VideoError, match="from an iterator"):
        pipe.pick_portraits(picture() for _ in range(3))
    for shots in (0, 65, 1.5):
        with pytest.raises(FsthError, match="shots must be a whole number from 1 to 64"):
            pipe.pick_portraits([picture()] * 3, shots=shots)
        with pytest.raises(FsthError, match="shots must be a whole number from 1 to 64"):
            pipe(picture(), [picture()] * 3, shots=shots)


# Wherever portraits go


@pytest.fixture
def person(tmp_path):
    return make_clip(tmp_path / "person.mp4", [picture(shift) for shift in range(0, 60, 3)])


def save(pictures, path, **options):
    first, *others = map(Image.fromarray, pictures)
    first.save(path, save_all=True, append_images=others, **options)
    return path


def test_what_a_file_holds_makes_it_a_clip(tmp_path, person):
    pictures = [picture(0), picture(40)]
    assert holds_clip(person) and holds_clip(person.read_bytes())
    for suffix in ("gif", "webp", "png"):
        assert holds_clip(save(pictures, tmp_path / f"moving.{suffix}"))
        assert not holds_clip(save(pictures[:1], tmp_path / f"still.{suffix}"))
    for suffix in ("jpg", "avif", "heic"):
        try:
            Image.fromarray(pictures[0]).save(tmp_path / f"still.{suffix}")
        except (KeyError, ValueError):
            import pillow_heif

            pillow_heif.from_pillow(Image.fromarray(pictures[0])).save(tmp_path / f"still.{suffix}")
        assert not holds_clip(tmp_path / f"still.{suffix}")
    (tmp_path / "notes.txt").write_text("no picture")
    assert not holds_clip(tmp_path / "notes.txt") and not holds_clip(tmp_path / "absent.mp4")
    renamed = person.rename(tmp_path / "person.jpg")
    assert holds_clip(renamed)


@pytest.mark.filterwarnings("ignore::fsth_hub.models.errors.FsthWarning")
def test_clips_go_wherever_portraits_go(tmp_path, person):
    pipe = make_pipeline()
    still = tmp_path / "still.png"
    Image.fromarray(picture(8)).save(still)
    for source in (person, str(person), person.read_bytes(), io.BytesIO(person.read_bytes()), open_clip(person)):
        assert len(pipe.embed(source, shots=3).boxes) == 3
    assert len(pipe.embed([person, still], shots=3).boxes) == 4
    crops, landmarks, boxes = pipe.read_portraits([still, person], [0, 0], shots=2)
    assert len(crops) == len(landmarks) == len(boxes) == 3
    picked = pipe.pick_portraits(person, shots=3)
    assert len(pipe.embed(picked).boxes) == 3 and len(pipe.embed(picked[0]).boxes) == 1
    with pytest.raises(FsthError, match="2 portraits but face indices for 3"):
        pipe.embed([person, still], [0, 0, 0])
    with pytest.raises(FsthNotFoundError, match="There is no picture at"):
        pipe.embed(tmp_path / "absent.mp4")


@pytest.mark.filterwarnings("ignore::fsth_hub.models.errors.FsthWarning")
def test_clip_and_its_picked_portraits_give_the_same_frames(person):
    pipe, driving = make_pipeline(), [picture(0), picture(20)]
    options = {"output_type": "np", "watermark": False, "shots": 3}
    whole = pipe(person, driving, **options)
    picked = pipe(pipe.pick_portraits(person, shots=3), driving, **options)
    assert np.array_equal(whole.frames, picked.frames) and len(whole.report.portrait_boxes) == 3
    # what is signed tells of the clip, once
    assert whole.origin == picked.origin and [title for title, _ in whole.origin.ingredients] == [
        "portrait", "driving clip"
    ]  # fmt: skip
    assert whole.origin.ingredients[0][1] is not None
    pasted = pipe(person, driving, paste_back=True, output_type="np", shots=3)
    assert pasted.frames.shape[1:] == (2, SIZE, SIZE, 3)


def test_sources_are_told_once_for_each_clip(person):
    blank = Image.new("RGB", (4, 4))
    first, second = (PickedPortrait(blank, time, FIRST, None, None, person) for time in (0, 1))
    assert files_of([first, second, "a.png"]) == [person, "a.png"]
    assert [type(one).__name__ for one in list_portraits([person, blank])] == ["Clip", "Image"]


@pytest.mark.filterwarnings("ignore::fsth_hub.models.errors.FsthWarning")
def test_fine_tuning_takes_a_clip(person):
    from fsth_hub.finetuning.loop import PixelLoss

    identity = make_pipeline().fine_tune(person, shots=2, steps=1, content=PixelLoss())
    assert identity.num_portraits == 2


# The command line


def test_command_writes_portraits(tmp_path):
    result = run("portraits", DRIVER, "--output", tmp_path / "out", "--shots", 3, "--no-crop")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    files = sorted((tmp_path / "out").iterdir())
    assert [line.split(": ")[0] for line in lines] == [str(path) for path in files] and len(files) == 3
    assert FIRST in lines[0] and all(Image.open(path).size == (256, 256) for path in files)
    assert_one_line_error(run("portraits", tmp_path / "none.mp4", "--output", tmp_path), "There is no file")
    assert_one_line_error(run("portraits", DRIVER, "--output", files[0]), "is a file")
    assert_one_line_error(run("portraits", PORTRAIT, "--output", tmp_path), "not a video")


def test_animate_takes_a_clip_of_the_person(tmp_path):
    make_pipeline().save_pretrained(tmp_path / "model")
    output, beside = tmp_path / "out.mp4", tmp_path / "beside.mp4"
    result = run(
        "animate", DRIVER, "--driving", DRIVER, "--output", output, "--side-by-side", beside, "--shots", 2,
        "--frames", 2, "--model", tmp_path / "model", "--device", "cpu", "--json", "-",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert beside.exists() and result.stdout.count('"portrait_boxes"') == 1
