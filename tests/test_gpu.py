"""What is prepared for a lent GPU: packing, and the script that trains from the pack."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from testing_utils.feature_networks import vgg_weights
from testing_utils.paths import ROOT
from training import pack
from training.data.component_dataset import list_stills
from training.data.dataset import read_index


BUNDLED = ROOT / "fsth_hub" / "checkpoints" / "small"


def write_vgg(path: Path, in_use: int = 5) -> Path:
    torch.manual_seed(0)
    heads = {f"lin{level}.weight": torch.full((1, 2, 1, 1), 0.5) for level in range(in_use)}
    save_file({name: 0.3 * weight for name, weight in vgg_weights((2, 2, 3, 3, 3)).items()} | heads, path)
    return path


@pytest.fixture
def packed(face_clips, stills, tmp_path, monkeypatch):
    monkeypatch.setattr(pack, "STILL_SIZE", 48)
    pack.main(
        [str(face_clips), str(stills), str(tmp_path / "pack"), "--vgg", str(write_vgg(tmp_path / "vgg.safetensors"))]
    )
    return tmp_path / "pack"


def test_a_pack_holds_what_training_reads(packed, face_clips, stills):
    originals, kept = read_index(face_clips), read_index(packed / "shards")
    assert [clip.key for clip in kept] == [clip.key for clip in originals]
    assert all(np.isfinite(clip.landmarks).any() and len(clip.frames) == len(clip.landmarks) for clip in kept)
    error = np.abs(np.asarray(kept[0].image(0)).astype(int) - np.asarray(originals[0].image(0)))
    assert error.mean() < 8 and kept[0].matte(0).getextrema()[1] == 255

    there, here = (
        {path.name: (path, points) for path, points in list_stills(folder, False)}
        for folder in (stills, packed / "stills")
    )
    assert here.keys() == there.keys()
    for name in list(here)[:3]:
        (whole, points), (cropped, moved) = there[name], here[name]
        assert Image.open(cropped).size == (48, 48)
        assert np.allclose(points - moved, 8)  # of 64 pixels
        inner = np.asarray(Image.open(whole).convert("RGB")).astype(int)[8:56, 8:56]
        assert np.abs(np.asarray(Image.open(cropped).convert("RGB")) - inner).mean() < 8
    held_out = {path.name for path, _ in list_stills(stills, True)}
    assert not held_out & {path.name for path in (packed / "stills" / "crops").iterdir()}

    vgg = load_file(packed / "vgg.safetensors")
    assert {name for name in vgg if name.startswith("lin")} == {f"lin{level}.weight" for level in range(4)}
    assert max(int(name.split(".")[1]) for name in vgg if name.startswith("features")) == pack.LAST_LAYER
    assert all(weight.dtype == torch.float16 for weight in vgg.values())


def test_a_pack_is_no_larger_than_it_may_be(face_clips, stills, tmp_path, capsys):
    vgg = write_vgg(tmp_path / "vgg.safetensors")
    pack.main([str(face_clips), str(stills), str(tmp_path / "small"), "--vgg", str(vgg), "--megabytes", "0.08"])
    report = json.loads(capsys.readouterr().out)
    size = sum(path.stat().st_size for path in (tmp_path / "small").rglob("*") if path.is_file())
    assert size < 0.09e6 and 0 < report["stills"] < 96 and report["frames"] >= 4
    with pytest.raises(SystemExit, match="VGG alone"):
        pack.main([str(face_clips), str(stills), str(tmp_path / "no"), "--vgg", str(vgg), "--megabytes", "0.001"])
    assert not (tmp_path / "no").exists()


def dry_run(stage: str, packed: Path, out: Path) -> subprocess.CompletedProcess:
    environment = os.environ | {
        "PYTHON": sys.executable,
        "BATCH": "1",
        "WORKERS": "0",
        "ACCELERATE_USE_CPU": "true",
        "ADVERSARIAL_START": "0",
    }
    command = ["bash", ROOT / "training" / "gpu.sh", stage, packed, BUNDLED, out, "0"]
    return subprocess.run([str(part) for part in command], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(
    "stage", ["components", *(pytest.param(name, marks=pytest.mark.slow) for name in ("whole", "adversarial"))]
)
def test_the_script_trains_and_leaves_few_small_files(packed, tmp_path, stage):
    result = dry_run(stage, packed, tmp_path / "out")
    assert result.returncode == 0, result.stderr
    files = list((tmp_path / "out").iterdir())
    assert len(files) <= 8 and max(path.stat().st_size for path in files) <= 15_000_000
    subprocess.run("cat out/model.tar.* | tar x", shell=True, check=True, cwd=tmp_path)
    names = {path.name for path in (tmp_path / "model").iterdir()}
    networks = {"components": {"facial_components", "component_discriminators"}}
    assert names == networks.get(stage, {"embedder", "generator", "discriminator"})
    if stage == "components":
        assert json.loads((tmp_path / "out" / "log.jsonl").read_text())["step"] == 1
        start, model = (
            load_file(folder / "facial_components" / "model.safetensors") for folder in (BUNDLED, tmp_path / "model")
        )
        assert all((model[key] - start[key]).abs().max() < 0.01 for key in start)  # gone on from what there was


def test_an_unknown_stage_is_refused(packed, tmp_path):
    result = dry_run("everything", packed, tmp_path / "out")
    assert result.returncode == 2 and "must be components, whole or adversarial" in result.stderr
