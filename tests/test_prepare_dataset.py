"""Shards from clips."""

import hashlib
import importlib.util
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from argparse import Namespace
from pathlib import Path

import numpy as np
import psutil
import pytest

from fsth_hub.landmarks import get_detector, track_clip
from fsth_hub.media.writing import write_clip
from fsth_hub.models.landmark_layout import FACE
from testing_utils.paths import ROOT
from testing_utils.shards import grey
from training import prepare_dataset
from training.data.dataset import read_index
from training.prepare_dataset import Frames, Skipped, add_clip, process_clip, read_manifest, try_clip, write_shard


OPTIONS = ("--image_size", "128", "--frames_per_clip", "10")


def command(clips: Path, shards: Path, *options: str) -> list:
    return [sys.executable, ROOT / "training" / "prepare_dataset.py", clips, shards, "--num_workers", "1", *options]


def prepare(clips: Path, shards: Path, *options: str) -> str:
    done = subprocess.run(command(clips, shards, *OPTIONS, *options), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "[ WARN" not in done.stderr  # OpenCV on its backends
    return done.stdout


def digest(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest()


def sources(shards: Path) -> list[str]:
    """What lies in the shards, every clip as often as it is there."""
    found = []
    for shard in sorted(shards.glob("*.tar")):
        with tarfile.open(shard) as tar:
            found += [json.load(tar.extractfile(m))["source"] for m in tar if m.name.endswith(".json")]
    return found


def test_prepare_dataset_does_every_clip_once_and_reports_the_rest(astronaut_clip, tmp_path):
    clips, folder = tmp_path / "clips", tmp_path / "shards"
    for name in ("eileen/1.mp4", "nobody/1.mp4", "nobody/broken.mp4", "zoe/1.mp4"):
        (clips / name).parent.mkdir(parents=True, exist_ok=True)
    write_clip(clips / "eileen" / "1.mp4", astronaut_clip, 25)
    write_clip(clips / "nobody" / "1.mp4", [grey(90)] * 10, 25)
    (clips / "nobody" / "broken.mp4").write_bytes(b"no video")
    folder.mkdir()
    (folder / "shard-00000.tar").write_bytes(b"left over from a run that was killed")
    (folder / "shard-00007.tar").write_bytes(b"another, whose number is not needed again")

    output = prepare(clips, folder, "--clips_per_shard", "3")
    assert "skipped nobody/1.mp4: A face was found in only 0 of 10 frames" in output
    assert "shard-00000.tar: 1 of 3 clips" in output
    assert "1 clips kept (10 frames), 2 skipped" in output
    assert "  no_face: 1, such as nobody/1.mp4" in output and "  unreadable: 1, such as nobody/broken.mp4" in output
    (clip,) = read_index(folder)
    assert clip.identity == "eileen" and len(clip.frames) == len(clip.landmarks) == 10
    assert clip.image(0).size == (128, 128)
    matte = np.asarray(clip.matte(0))
    assert len(clip.mattes) == 10 and matte.shape == (128, 128) and matte.dtype == np.uint8
    x, y = clip.landmarks[0, FACE].mean(axis=0).astype(int)
    assert matte[y, x] == 255 > 40 > matte[0, 0]
    # the square is fixed and she wanders to the left in it, her face within
    middles = clip.landmarks[:, FACE].mean(axis=1)
    assert middles[0, 0] - middles[-1, 0] > 10
    assert np.all((clip.landmarks[:, FACE] > 0) & (clip.landmarks[:, FACE] < 128))

    before = digest(folder / "shard-00000.tar")
    write_clip(clips / "zoe" / "1.mp4", astronaut_clip[::-1], 25)
    output = prepare(clips, folder)
    assert "4 clips, 3 of them done before" in output and "skipped nobody" not in output
    assert "2 clips kept (20 frames), 2 skipped" in output
    assert digest(folder / "shard-00000.tar") == before
    assert [clip.identity for clip in read_index(folder)] == ["eileen", "zoe"]
    entries = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    assert [(entry["source"], entry["frames"], entry.get("reason")) for entry in entries] == [
        ("eileen/1.mp4", 10, None), ("nobody/1.mp4", 0, "no_face"), ("nobody/broken.mp4", 0, "unreadable"),
        ("zoe/1.mp4", 10, None),
    ]  # fmt: skip
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.jsonl", "shard-00000.tar", "shard-00001.tar"]


def test_a_run_that_is_killed_is_finished_by_the_next(astronaut_clip, tmp_path):
    clips, folder = tmp_path / "clips", tmp_path / "shards"
    (clips / "eileen").mkdir(parents=True)
    names = [f"eileen/{number}.mp4" for number in range(8)]
    write_clip(clips / names[0], astronaut_clip, 25)
    for name in names[1:]:
        os.link(clips / names[0], clips / name)
    manifest = folder / "manifest.jsonl"
    with subprocess.Popen(
        command(clips, folder, *OPTIONS, "--clips_per_shard", "2"), stdout=subprocess.DEVNULL, text=True
    ) as run:
        while not manifest.exists() or not manifest.stat().st_size:
            assert run.poll() is None
            time.sleep(0.005)
        processes = psutil.Process(run.pid).children()
        run.send_signal(signal.SIGKILL)
    assert processes and not psutil.wait_procs(processes, timeout=60)[1]
    before = {path: digest(path) for path in folder.glob("*.tar") if path.name in manifest.read_text()}
    assert 1 <= len(before) < 4
    assert "8 clips kept" in prepare(clips, folder, "--clips_per_shard", "2")
    assert sorted(sources(folder)) == names
    assert all(digest(path) == content for path, content in before.items())
    assert not list(folder.glob("*.partial"))


FATAL = """
import os, signal
from training.prepare_dataset import Frames

def read(path, args):
    if path.name == "segfault.mp4":
        os.kill(os.getpid(), signal.SIGSEGV)
    return Frames([path.name.encode()], [b"matte"], [], [])
"""


def test_a_clip_that_kills_its_process_is_reported_and_the_next_is_read(tmp_path, monkeypatch):
    (tmp_path / "fatal.py").write_text(FATAL)  # a module of its own, so that its process starts fast
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(prepare_dataset, "of_thread", Namespace())
    args = Namespace(clips=tmp_path, shards=tmp_path)
    group = [Path("ann/1.mp4"), Path("ann/segfault.mp4"), Path("bob/2.mp4")]
    entries = write_shard("shard-00000.tar", group, args, importlib.import_module("fatal").read)
    assert [entry["frames"] for entry in entries] == [1, 0, 1]
    assert entries[1]["reason"] == "crash" and "SIGSEGV" in entries[1]["skipped"]
    assert sources(tmp_path) == ["ann/1.mp4", "bob/2.mp4"]


def test_any_exception_of_a_clip_is_its_own(monkeypatch):
    monkeypatch.setattr(prepare_dataset, "open_clip", lambda path: {}[path])
    assert try_clip("odd", None) == Skipped("error", "KeyError: 'odd'")


@pytest.mark.parametrize(
    ("source", "identity", "video"),
    [
        ("id00012/21Uxsk56VDQ/00001.mp4", "id00012", "id00012/21Uxsk56VDQ"),
        ("dev/mp4/id00012/21Uxsk56VDQ/00001.mp4", "id00012", "dev/mp4/id00012/21Uxsk56VDQ"),
        ("ann/summer/1.mp4", "ann", "ann/summer"),
        ("ann/1.mp4", "ann", "ann/1.mp4"),
        ("1.mp4", "1.mp4", "1.mp4"),
    ],
)
def test_folders_say_whose_clip_it_is_and_from_which_video(source, identity, video):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        add_clip(tar, Path(source), Frames([], [], np.zeros((0, 78, 2)), []))
    buffer.seek(0)
    with tarfile.open(fileobj=buffer) as tar:
        description = json.load(tar.extractfile(tar.getmembers()[-1]))
    assert (description["identity"], description["video"]) == (identity, video)


@pytest.mark.parametrize("cut", [3, 40, 80])  # characters of the last entry that arrived
def test_a_shard_whose_entries_were_cut_off_is_made_again(tmp_path, cut):
    manifest = tmp_path / "manifest.jsonl"
    entries = [{"source": f"{number}.mp4", "shard": f"shard-{number // 2}.tar", "frames": 9} for number in range(4)]
    lines = [json.dumps(entry) + "\n" for entry in entries]
    manifest.write_text("".join(lines[:3]) + lines[3][:cut])
    whole = "".join(lines) if cut >= len(lines[3]) else "".join(lines[:2])
    assert read_manifest(manifest) == [json.loads(line) for line in whole.splitlines()]
    assert manifest.read_text() == whole


def test_frames_that_are_not_kept_need_not_be_tracked(astronaut, tmp_path):
    frames = [astronaut[step : 256 + step, 90 + 2 * step : 346 + 2 * step] for step in range(30)]
    write_clip(tmp_path / "1.mp4", frames, 25)
    args = Namespace(detector="mediapipe", frames_per_clip=10, image_size=256, no_crop=True)
    kept = process_clip(tmp_path / "1.mp4", args)
    assert kept.times == [pytest.approx(index * 3 / 25) for index in range(10)]
    tracked = [face.points for face in track_clip(frames, get_detector())][::3]
    difference = np.linalg.norm(kept.landmarks[:, FACE] - np.stack(tracked)[:, FACE], axis=-1).mean()
    assert difference < 1  # pixels; the face is 90 wide


def test_what_cannot_work_is_said_before_anything_is_written(tmp_path, monkeypatch, capsys):
    clips, arguments = tmp_path / "clips", [str(tmp_path / "clips"), str(tmp_path / "shards")]
    clips.mkdir()
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # of this process
    monkeypatch.setattr(sys, "argv", ["prepare_dataset.py", *arguments])
    with pytest.raises(SystemExit, match="There are no clips"):
        prepare_dataset.main()
    (clips / "1.mp4").touch()
    monkeypatch.setattr(sys, "argv", ["prepare_dataset.py", *arguments, "--detector", "x"])
    with pytest.raises(SystemExit):
        prepare_dataset.main()
    assert "--detector: invalid choice: 'x' (choose from " in capsys.readouterr().err
    assert not (tmp_path / "shards").exists()


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (extra `cluster`)")
def test_ray_makes_the_same_shards(astronaut_clip, tmp_path):
    clips = tmp_path / "clips"
    (clips / "eileen").mkdir(parents=True)
    write_clip(clips / "eileen" / "1.mp4", astronaut_clip, 25)
    (clips / "eileen" / "2.mp4").write_bytes(b"no video")
    assert "1 clips kept (10 frames), 1 skipped" in prepare(clips, tmp_path / "ray", "--engine", "ray")
    prepare(clips, tmp_path / "local")
    assert digest(tmp_path / "ray" / "shard-00000.tar") == digest(tmp_path / "local" / "shard-00000.tar")
