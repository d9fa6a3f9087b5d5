"""Measures of a mouth that was made from a voice, against the mouth that spoke."""

import json

import numpy as np
import pytest

from fsth_hub.landmarks.expression import Expression
from fsth_hub.models.errors import NoFaceError
from testing_utils.clips import make_clip
from testing_utils.pipelines import StubDetector, clip
from training import measure_mouth
from training.measure_mouth import KEYS, measure


FPS = 25.0


def speaking(seed: int, count: int = 200) -> np.ndarray:
    """Openings of a mouth in distances between the eyes: words of random length, and lips that meet between them."""
    rng, openings = np.random.default_rng(seed), []
    while len(openings) < count:
        openings += [0.01] * 3 + list(0.3 * np.sin(np.linspace(0.2, np.pi - 0.2, rng.integers(4, 15))))
    return np.array(openings[:count])


def test_a_mouth_is_its_own_best_likeness():
    mouth = speaking(0)
    values = measure(mouth + 0.05, 0.5 * mouth, FPS)  # another face's lips, which are never quite shut
    assert tuple(values) == KEYS
    assert values["correlation"] == pytest.approx(1) and values["closures shut"] == 1
    assert values["open frames shut"] < 0.05 and values["as high by chance"] == 0


def test_another_voice_does_no_better_than_chance():
    values = measure(speaking(0), speaking(1), FPS)
    assert abs(values["correlation"]) < 0.4 and values["as high by chance"] > 0.02


def test_a_mouth_that_stays_shut_gains_nothing_by_it():
    values = measure(speaking(0), np.full(200, 1e-5), FPS)
    assert values == dict(zip(KEYS, (0, 1, 1, 1), strict=True))


def test_closures_that_are_missed_and_frames_without_a_face():
    mouth = speaking(0)
    made = np.where(np.arange(200) < 100, mouth, np.maximum(mouth, 0.2))
    mouth[40:60] = np.nan
    values = measure(mouth, made, FPS)
    assert 0.3 < values["closures shut"] < 0.7 and 0 < values["correlation"] < 1


def test_files(tmp_path, monkeypatch, capsys):
    openings = measure_mouth.upright_openings(
        [Expression(mouth=-1 if index % 20 < 6 else 0.9).landmarks() for index in range(100)]
    )
    monkeypatch.setattr(measure_mouth, "track", lambda clip, folder: (openings, FPS))
    cues = [{"start": s, "end": s + d, "value": v} for i in range(5) for s, d, v in ((0.8 * i, 0.24, "A"),
            (0.8 * i + 0.24, 0.56, "D"))]  # fmt: skip
    (tmp_path / "cues.json").write_text(json.dumps({"mouthCues": cues}))
    measure_mouth.main([str(tmp_path / "clip.mp4"), str(tmp_path / "cues.json")])
    header, _, clip, median = capsys.readouterr().out.splitlines()
    assert [cell.strip() for cell in header.split("|")[2:-1]] == list(KEYS)
    correlation, shut, too, _ = (float(cell) for cell in clip.split("|")[2:-1])
    assert correlation > 0.9 and shut == 1 and too < 0.1
    assert clip.split("|")[2:] == median.split("|")[2:]

    openings = openings[:50]
    with pytest.raises(SystemExit, match="clip.mp4 is too short"):
        measure_mouth.main([str(tmp_path / "clip.mp4"), str(tmp_path / "cues.json")])
    with pytest.raises(SystemExit, match="none.json"):
        measure_mouth.main([str(tmp_path / "clip.mp4"), str(tmp_path / "none.json")])


def test_a_clip_is_tracked_once(tmp_path, monkeypatch):
    path, detector = make_clip(tmp_path / "clip.mp4", clip(0, 8, 16), fps=10), StubDetector()
    monkeypatch.setattr(measure_mouth, "get_detector", lambda: detector)
    first, fps = measure_mouth.track(path, tmp_path / "tracks")
    assert fps == 10 and len(first) == 3 and np.isfinite(first).all()
    looks = detector.detected + detector.tracked
    again, fps = measure_mouth.track(path, tmp_path / "tracks")
    assert fps == 10 and np.array_equal(first, again) and detector.detected + detector.tracked == looks
    detector.num_faces = 0
    other = make_clip(tmp_path / "other.mp4", clip(40, 8), fps=10)
    with pytest.raises(NoFaceError, match="No face was found in other.mp4"):
        measure_mouth.track(other, tmp_path / "tracks")
