"""Detectors and tracking, on paintings and clips."""

from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import cv2
import numpy as np
import pytest
from PIL import Image

from fsth_hub.landmarks import Face, FaceTracker, get_detector, mediapipe, networks, track_clip
from fsth_hub.landmarks.mediapipe import MESH_TO_68
from fsth_hub.models.cropping import crop_box
from fsth_hub.models.errors import FsthError, NoFaceError
from fsth_hub.models.landmark_layout import (
    FACE,
    FLIP,
    INNER_LIPS,
    IRISES,
    JAW,
    LEFT_EYE,
    LEFT_IRIS,
    RIGHT_EYE,
    RIGHT_IRIS,
    interocular,
)
from testing_utils.paths import PORTRAIT


SHARED = Path(__file__).parents[2] / "shared" / "data"
PORTRAITS = ["dostoevsky.jpg", "girl_with_a_pearl_earring.jpg", "la_belle_ferronniere.webp", "la_velata.jpg",
             "lady_agnew.jpg", "lady_in_black.jpg", "lady_with_an_ermine.jpg", "mona_lisa.jpg"]  # fmt: skip
CLIPS = ["id000.mp4", "id003.mp4", "id004.mp4", "id007.mpg", "id008.mp4", "id009.mp4"]

needs_data = pytest.mark.skipif(not SHARED.exists(), reason="the shared portraits and clips are not here")


@pytest.fixture(scope="module")
def detector():
    return get_detector()


def test_every_point_has_a_vertex_of_the_mesh():
    assert len(set(MESH_TO_68)) == 68 and MESH_TO_68.max() < 468


def portrait(name):
    return np.asarray(Image.open(SHARED / "portraits" / name).convert("RGB"))


def frames_of(name, start, stop, step=1):
    capture = cv2.VideoCapture(str(SHARED / "raw" / name))
    frames = []
    for index in range(stop):
        frame = capture.read()[1]
        if index >= start and (index - start) % step == 0:
            frames.append(np.ascontiguousarray(frame[..., ::-1]))
    return frames


def turned(image, degrees):
    """The picture turned about its middle, and the 2 x 3 matrix that turns its points."""
    height, width = image.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1)
    return cv2.warpAffine(image, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE), matrix


def assert_is_a_face(points):
    """The parts lie where those of a face seen upright lie."""
    assert points.shape == (78, 2) and points.dtype == np.float32 and np.isfinite(points).all()
    middle = {name: points[group].mean(axis=0) for name, group in
              (("right", RIGHT_EYE), ("left", LEFT_EYE), ("mouth", INNER_LIPS))}  # fmt: skip
    assert middle["right"][0] < points[27, 0] + interocular(points) * 0.3 < middle["left"][0] + interocular(points)
    assert points[19, 1] < middle["right"][1] < points[33, 1] < middle["mouth"][1] < points[8, 1]
    assert points[24, 1] < middle["left"][1] < points[33, 1]
    assert (np.diff(points[JAW[:8], 1]) > 0).all() and (np.diff(points[JAW[9:], 1]) < 0).all()
    for eye, iris in ((RIGHT_EYE, RIGHT_IRIS), (LEFT_EYE, LEFT_IRIS)):
        centre, right, top, left, bottom = points[iris]
        assert points[eye[0], 0] < centre[0] < points[eye[3], 0]
        assert left[0] < centre[0] < right[0] and top[1] < centre[1] < bottom[1]


IRIS = mediapipe.WEIGHTS / "iris_landmark.tflite", ("output_eyes_contours_and_brows", "output_iris")


@pytest.mark.skipif(not networks.is_installed(), reason="OpenVINO is not installed (extra `fast`)")
@pytest.mark.parametrize("count", [1, 4, 7])
def test_openvino_sees_what_opencv_sees_however_many_patches_there_are(count):
    patches = list(np.random.default_rng(0).integers(0, 256, (count, 64, 64, 3), dtype=np.uint8))
    one, other = networks.OpenCVNetwork(*IRIS), networks.load_network(*IRIS, batch_size=4)
    assert isinstance(other, networks.OpenVinoNetwork)
    for expected, output in zip(one(patches), other(patches), strict=True):
        assert len(output) == count and np.ptp(expected) > 10
        np.testing.assert_allclose(output, expected, atol=1e-3)


@pytest.mark.parametrize("installed", [False, True])
def test_landmarks_need_no_openvino(monkeypatch, installed):
    """Neither where it is not installed nor where it cannot read the networks."""
    monkeypatch.setattr(networks, "is_installed", lambda: installed)
    monkeypatch.setattr(networks, "compiled", lambda *args: 1 / 0)
    detector = get_detector()
    assert isinstance(detector.mesh, networks.OpenCVNetwork) and isinstance(detector.iris, networks.OpenCVNetwork)
    assert_is_a_face(detector.detect(np.asarray(Image.open(PORTRAIT).convert("RGB")))[0].points)


@needs_data
@pytest.mark.parametrize("name", PORTRAITS)
def test_portraits(detector, name):
    faces = detector.detect(portrait(name))
    assert len(faces) == 1 and faces[0].score > 0.9
    assert_is_a_face(faces[0].points)


@needs_data
@pytest.mark.parametrize("name", CLIPS)
def test_clips(detector, name):
    for frame in frames_of(name, 0, 61, 20):
        faces = detector.detect(frame)
        assert len(faces) == 1
        assert faces[0].size > 0.1 * min(frame.shape[:2])


@needs_data
def test_lids_and_gaze(detector):
    """The woman of this clip winks with her left eye, then has both eyes shut."""
    frames = frames_of("id003.mp4", 0, 100)
    open_eyes, wink, shut = (detector.detect(frames[index])[0].points for index in (0, 30, 99))

    def opening(points, eye):
        lids = points[eye]
        return np.linalg.norm(lids[[1, 2]] - lids[[5, 4]], axis=1).mean() / np.linalg.norm(lids[0] - lids[3])

    assert opening(open_eyes, RIGHT_EYE) > 0.25 and opening(open_eyes, LEFT_EYE) > 0.25
    assert opening(wink, RIGHT_EYE) > 1.5 * opening(wink, LEFT_EYE)
    assert opening(shut, RIGHT_EYE) < 0.1 and opening(shut, LEFT_EYE) < 0.1


@pytest.mark.parametrize("kind", ["noise", "gradient", "black", "tiny"])
def test_no_face(detector, kind):
    image = {
        "noise": np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8),
        "gradient": np.repeat(np.linspace(0, 255, 320).astype(np.uint8)[None, :, None], 3, axis=2).repeat(240, axis=0),
        "black": np.zeros((240, 320, 3), np.uint8),
        "tiny": np.full((2, 3, 3), 128, np.uint8),
    }[kind]
    assert detector.detect(image) == []


@needs_data
def test_several_faces_come_largest_first(detector):
    small, large = portrait("mona_lisa.jpg")[:700], portrait("lady_with_an_ermine.jpg")[:1000]
    both = np.full((1000, small.shape[1] + large.shape[1], 3), 60, np.uint8)
    both[:700, : small.shape[1]], both[:, small.shape[1] :] = small, large
    faces = detector.detect(both)
    assert len(faces) == 2 and faces[0].size > 1.3 * faces[1].size
    assert faces[0].points[FACE, 0].min() > small.shape[1] > faces[1].points[FACE, 0].max()


@needs_data
@pytest.mark.parametrize("degrees", [-40, -20, 20, 40])
def test_tilted_head(detector, degrees):
    image = portrait("lady_in_black.jpg")
    upright = detector.detect(image)[0].points
    tilted, matrix = turned(image, degrees)
    error = detector.detect(tilted)[0].points - (upright @ matrix[:, :2].T + matrix[:, 2])
    assert np.linalg.norm(error, axis=1).mean() < 0.06 * interocular(upright)


@needs_data
def test_mirrored_picture_gives_flipped_points(detector):
    image = portrait("mona_lisa.jpg")
    points = detector.detect(image)[0].points
    mirrored = detector.detect(np.ascontiguousarray(image[:, ::-1]))[0].points[FLIP]
    mirrored[:, 0] = image.shape[1] - mirrored[:, 0]
    assert np.linalg.norm(mirrored - points, axis=1).mean() < 0.04 * interocular(points)


@needs_data
def test_small_and_dark_faces(detector):
    image = portrait("lady_with_an_ermine.jpg")
    assert len(detector.detect((image * 0.1).astype(np.uint8))) == 1
    scene = np.full((1080, 1920, 3), 90, np.uint8)
    small = cv2.resize(image, (150, 200), interpolation=cv2.INTER_AREA)
    scene[400:600, 900:1050] = small
    assert len(detector.detect(scene)) == 1


@needs_data
def test_crop_fits_the_prepared_clips(detector):
    """The clips to train on are cropped already: the crop of such a frame must be nearly all of it."""
    boxes = []
    for path in sorted((SHARED / "clips" / "val").glob("*/clip00.mp4"))[:8]:
        frame = cv2.VideoCapture(str(path)).read()[1]
        boxes.append(crop_box(detector.detect(np.ascontiguousarray(frame[..., ::-1]))[0].points))
    np.testing.assert_allclose(np.median(boxes, axis=0), [0, 0, 256, 0], atol=12)


def spread_of_points(detector, image, face):
    """How far the points lie apart that are found from eight places near the face's own, and their mean."""
    rng, found = np.random.default_rng(0), []
    unit = interocular(face.points)
    for _ in range(8):
        moved = face.points * np.exp(rng.normal(0, 0.04))
        moved += (face.points - moved).mean(axis=0) + rng.normal(0, 0.04 * unit, 2)
        found.append(detector.track(image, Face(moved.astype(np.float32), 1.0)).points / unit)
    return np.linalg.norm(np.std(found, axis=0), axis=1), np.mean(found, axis=0)


def test_points_tremble_less_than_in_a_single_view(detector, monkeypatch):
    image = np.asarray(Image.open(PORTRAIT).convert("RGB"))
    face = detector.detect(image)[0]
    spread, mean = spread_of_points(detector, image, face)
    monkeypatch.setattr(mediapipe, "VIEWS", ((np.eye(3), mediapipe.AS_NAMED),))
    monkeypatch.setattr(mediapipe, "EYE_VIEWS", (np.eye(3),))
    spread_of_one, mean_of_one = spread_of_points(detector, image, face)
    assert spread[FACE].mean() < 0.9 * spread_of_one[FACE].mean()
    assert spread[np.r_[RIGHT_EYE, LEFT_EYE]].mean() < 0.7 * spread_of_one[np.r_[RIGHT_EYE, LEFT_EYE]].mean()
    assert np.linalg.norm(mean - mean_of_one, axis=1).max() < 0.05  # none has taken the place of another


@needs_data
def test_tracking_agrees_with_detection(detector):
    frames = frames_of("id004.mp4", 0, 12)
    tracked = list(track_clip(frames, detector))
    last, detected = tracked[-1].points, detector.detect(frames[-1])[0].points
    assert np.linalg.norm(last - detected, axis=1).mean() < 0.05 * interocular(detected)


@needs_data
def test_tracking_loses_a_face_and_finds_it_elsewhere(detector):
    image = portrait("lady_in_black.jpg")[:400]
    height, width = image.shape[:2]
    canvas = np.full((height, 2 * width, 3), 40, np.uint8)
    left, right = canvas.copy(), canvas.copy()
    left[:, :width], right[:, width:] = image, image
    before, gone, after, still = track_clip([left, canvas, right, right], detector)
    assert gone is None
    np.testing.assert_allclose(after.points - before.points, np.tile([width, 0], (78, 1)), atol=3)
    np.testing.assert_allclose(still.points, after.points, atol=1.5)


class Scene(np.ndarray):
    """A grey picture that carries what a `ScriptedDetector` finds in it."""


def scene(faces, lost=False, value=90):
    picture = np.full((8, 8, 3), value, np.uint8).view(Scene)
    picture.faces, picture.lost = faces, lost
    return picture


class ScriptedDetector:
    """Shows the faces whose middles are listed for each frame; tracks until told that the face is lost."""

    def __init__(self):
        self.detections = 0

    def detect(self, image):
        self.detections += 1
        return [face_at(x) for x in image.faces]

    def track(self, image, previous):
        return None if image.lost else previous


def face_at(x):
    corners = np.zeros((78, 2), np.float32)
    corners[0] = 10  # so that it has a size
    return Face(corners + x, 1.0)


def middles(frames, detector, **kwargs):
    return [None if face is None else face.points[1, 0] for face in track_clip(frames, detector, **kwargs)]


def test_a_cut_is_another_shot_and_the_face_is_looked_for_anew():
    """The light changes at once in the third frame and the face stays; in the fifth it is elsewhere."""
    detector = ScriptedDetector()
    track = FaceTracker(detector)
    frames = [scene([10]), scene([10]), scene([10], value=250), scene([10], value=250), scene([70]), scene([70])]
    assert [track(frame).points[1, 0] for frame in frames] == [10, 10, 10, 10, 70, 70]
    assert track.shots == ((0, 4), (4, 6)) and detector.detections == 3


@pytest.mark.parametrize("step, num_shots", [(8, 1), (56, 2)])
def test_a_camera_that_moves_a_little_is_no_cut_and_a_jump_is_one(step, num_shots):
    """The same picture is seen from farther to the right; the tracker keeps to where the face was."""
    rng = np.random.default_rng(0)
    wall = cv2.resize(rng.integers(0, 256, (20, 40, 3), np.uint8), (256, 128), interpolation=cv2.INTER_CUBIC)
    track = FaceTracker(ScriptedDetector())
    for left, middle in ((60, 60), (60 + step, 60 - step)):
        picture = np.ascontiguousarray(wall[:, left : left + 128]).view(Scene)
        picture.faces, picture.lost = [middle], False
        track(picture)
    assert len(track.shots) == num_shots


def test_a_face_long_gone_is_looked_for_less_often_and_not_missed():
    detector = ScriptedDetector()
    track = FaceTracker(detector)
    frames = [scene([10])] + 200 * [scene([], lost=True)] + 6 * [scene([12])]
    found = [track(frame) is not None for frame in frames]
    assert detector.detections <= 12 + 190 / 5 + 2
    assert found[0] and not any(found[1:201]) and found[206]


def test_detector_runs_only_when_the_face_is_lost():
    detector = ScriptedDetector()
    frames = [scene([]), scene([10, 90]), scene([90, 10]), scene([90, 12], lost=True), scene([])]
    assert middles(frames, detector) == [None, 10, 10, 12, 12]
    assert detector.detections == 3


def test_face_index_picks_the_face_and_keeps_to_it():
    frames = [scene([10, 90]), scene([], lost=True), scene([20, 70])]
    assert middles(frames, ScriptedDetector(), face_index=1) == [90, None, 70]
    with pytest.raises(NoFaceError, match="Face 2"):
        middles(frames, ScriptedDetector(), face_index=2)


def test_tracking_streams():
    def endless():
        while True:
            yield scene([10])

    faces = track_clip(endless(), ScriptedDetector())
    assert next(faces).points[1, 0] == next(faces).points[1, 0] == 10


def test_face_alignment_offline_names_the_default(monkeypatch):
    def no_network(*args, **kwargs):
        raise URLError("Name or service not known")

    monkeypatch.setattr("face_alignment.utils.load_file_from_url", no_network)
    with pytest.raises(FsthError, match="'face-alignment' could not fetch its weights.*'mediapipe'"):
        get_detector("face-alignment")


def test_face_alignment_points(monkeypatch):
    large = np.random.default_rng(0).uniform(100, 300, (68, 2))

    class Networks:
        def __init__(self, landmarks_type, device, face_detector_kwargs, compile):
            assert landmarks_type.name == "TWO_D" and face_detector_kwargs == {"path_to_detector": "weights"}
            boxes = [[20, 20, 70, 70, 0.7], [100, 100, 300, 300, 0.9]]
            self.face_detector = SimpleNamespace(detect_from_image=lambda image: boxes if image.any() else [])

        def get_landmarks_from_image(self, image, detected_faces):
            return [large / 4, large][: len(detected_faces)]

    monkeypatch.setattr("face_alignment.utils.load_file_from_url", lambda url, check_hash: "weights")
    monkeypatch.setattr("face_alignment.FaceAlignment", Networks)
    detector = get_detector("face-alignment")
    picture, empty = np.full((400, 400, 3), 9, np.uint8), np.zeros((400, 400, 3), np.uint8)

    first, second = detector.detect(picture)
    np.testing.assert_allclose(first.points[FACE], large, rtol=1e-6)
    assert np.isnan(first.points[IRISES]).all() and first.score == 0.9 and second.score == 0.7
    assert detector.detect(empty) == [] and detector.track(empty, second) is None
    np.testing.assert_array_equal(detector.track(picture, second).points, second.points)
