"""Shards from clips."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from shards import ROOT, grey

from fsth_hub.landmarks.layout import FACE
from fsth_hub.video import write_clip
from training.dataset import read_index


def prepare(clips: Path, shards: Path, *options: str) -> str:
    script = [sys.executable, ROOT / "training" / "prepare_dataset.py", clips, shards, "--num_workers", "1"]
    done = subprocess.run([*script, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_prepare_dataset_does_every_clip_once_and_reports_the_rest(astronaut_clip, tmp_path):
    clips, folder = tmp_path / "clips", tmp_path / "shards"
    options = ("--image_size", "128", "--frames_per_clip", "10", "--clips_per_shard", "3")
    for name in ("eileen/1.mp4", "nobody/1.mp4", "nobody/broken.mp4", "zoe/1.mp4"):
        (clips / name).parent.mkdir(parents=True, exist_ok=True)
    write_clip(clips / "eileen" / "1.mp4", astronaut_clip, 25)
    write_clip(clips / "nobody" / "1.mp4", [grey(90)] * 10, 25)
    (clips / "nobody" / "broken.mp4").write_bytes(b"no video")
    folder.mkdir()
    (folder / "shard-00000.tar").write_bytes(b"left over from a run that was killed")

    output = prepare(clips, folder, *options)
    assert "skipped: 1.mp4: a face was found in only 0 of 10 frames" in output
    assert "skipped: broken.mp4" in output
    assert "shard-00000.tar: 1 of 3 clips" in output
    (clip,) = read_index(folder)
    assert clip.identity == "eileen" and len(clip.frames) == len(clip.landmarks) == 10
    assert clip.image(0).size == (128, 128)
    # the square is fixed and she wanders to the left in it, her face within
    middles = clip.landmarks[:, FACE].mean(axis=1)
    assert middles[0, 0] - middles[-1, 0] > 10
    assert np.all((clip.landmarks[:, FACE] > 0) & (clip.landmarks[:, FACE] < 128))

    before = hashlib.sha256((folder / "shard-00000.tar").read_bytes()).digest()
    write_clip(clips / "zoe" / "1.mp4", astronaut_clip[::-1], 25)
    output = prepare(clips, folder, *options)
    assert "4 clips, 3 of them done before" in output and "skipped" not in output
    assert hashlib.sha256((folder / "shard-00000.tar").read_bytes()).digest() == before
    assert [clip.identity for clip in read_index(folder)] == ["eileen", "zoe"]
    entries = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    assert [(entry["source"], entry["frames"]) for entry in entries] == [
        ("eileen/1.mp4", 10), ("nobody/1.mp4", 0), ("nobody/broken.mp4", 0), ("zoe/1.mp4", 10)
    ]  # fmt: skip
    assert sorted(path.suffix for path in folder.iterdir()) == [".jsonl", ".tar", ".tar"]
