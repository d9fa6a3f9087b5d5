"""Damaged files of every format end in a result or in one sentence; and the fuzzer tells where they do not."""

import json

import pytest

from fsth_hub.models.errors import FsthError
from fuzz import fuzz, targets
from testing_utils.paths import ROOT


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory):
    return fuzz.Fuzzer(tmp_path_factory.mktemp("fuzz"), seed=7)


def test_a_few_dozen_inputs(fuzzer, tmp_path):
    formats = list(fuzz.seeds.FORMATS)
    ran = list(fuzz.fuzz(fuzzer, formats, float("inf"), 3 * len(formats), tmp_path))
    assert len(ran) == 3 * len(formats)
    assert not {name: outcome for name, _, outcome in ran if outcome.kind not in fuzz.ALLOWED}
    assert list(tmp_path.iterdir()) == []


def write_beside(out):
    (out.parent / "elsewhere").write_text("x")


def leave(out):
    (out.parent / "scratch" / "forgotten").write_text("x")
    raise FsthError("It is damaged.")


def fill_memory(out):
    kept = []
    while True:
        kept.append(b"x" * 2**26)


def no_sentence(out):
    raise FsthError("line\nline")


FAULTS = {
    "error": lambda out: 1 / 0,
    "crash": lambda out: __import__("os").abort(),
    "hang": lambda out: __import__("time").sleep(60),
    "memory": fill_memory,
    "outside": write_beside,
    "left behind": leave,
    "no sentence": no_sentence,
}


@pytest.mark.parametrize("kind", FAULTS)
def test_faults_are_seen_and_kept_for_a_replay(fuzzer, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(fuzz, "SECONDS", 5)
    monkeypatch.setattr(fuzz, "MEGABYTES", 512)

    def use(form, path, pipe, out):
        attempt = targets.SeveralWays()
        attempt(FAULTS[kind], out)
        return attempt.refusals

    monkeypatch.setattr(targets, "use", use)
    [(name, _, outcome)] = fuzz.fuzz(fuzzer, ["cues"], float("inf"), 1, tmp_path)
    assert outcome.kind == kind
    assert json.loads((tmp_path / name / "outcome.json").read_text())["kind"] == kind
    assert fuzz.replay(fuzzer, tmp_path / name).kind == kind
    monkeypatch.undo()
    assert fuzz.replay(fuzzer, tmp_path / name).kind in fuzz.ALLOWED


def test_the_same_seed_gives_the_same_input(fuzzer):
    first, again = (fuzzer.make("mp4", 5).read_bytes() for _ in range(2))
    assert first == again != fuzzer.make("mp4", 6).read_bytes()


def test_the_checks_run_it():
    assert "tests/fuzz/fuzz.py --minutes 2" in (ROOT / ".ci" / "run").read_text()
