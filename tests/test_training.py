"""The training scripts, end to end on tiny shards and tiny networks."""

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file, save_file
from test_losses import WEIGHTS, vgg_weights
from test_modeling import SIZE, tiny, tiny_config

from fsth_hub.feature_networks import load_weights
from fsth_hub.landmarks import draw_landmarks
from fsth_hub.landmarks.layout import FACE, IRISES
from fsth_hub.landmarks.pose import MEAN_FACE, Pose
from fsth_hub.modeling_fsth import FsthDiscriminator, FsthEmbedder, FsthGenerator
from fsth_hub.video import write_clip
from training import dataset, meta_train
from training.dataset import EpisodeDataset, read_index
from training.metrics import LPIPS
from training.prepare_dataset import add_clip


ROOT = Path(__file__).parents[1]
NETWORKS = {"embedder": FsthEmbedder, "generator": FsthGenerator, "discriminator": FsthDiscriminator}
NUM_FRAMES = 6
RIGHT_CORNER, LEFT_CORNER = 36, 45  # outer corners of the eyes: mirror images of each other


def landmarks(shift: float = 0.0) -> np.ndarray:
    return Pose(np.eye(3), 0.1, np.array([30.0 + shift, 34.0])).project(MEAN_FACE).astype(np.float32)


def jpeg(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def grey(value: int) -> np.ndarray:
    return np.full((SIZE, SIZE, 3), value, np.uint8)


def write_shards(folder: Path, clips: dict[str, list[np.ndarray]], points=None) -> Path:
    """A shard for each clip; frame i of it has its landmarks i pixels to the right, or those that are given."""
    folder.mkdir(exist_ok=True)
    for number, (name, frames) in enumerate(clips.items()):
        with tarfile.open(folder / f"shard-{number:05d}.tar", "w") as tar:
            shifted = np.stack([landmarks(index) if points is None else points for index in range(len(frames))])
            times = [index / 25 for index in range(len(frames))]
            add_clip(tar, Path(name), [jpeg(frame) for frame in frames], shifted, times)
    return folder


@pytest.fixture
def shards(tmp_path) -> Path:
    """Two clips of ann, one of bob; frame i is grey, 30 i bright."""
    frames = [grey(30 * index) for index in range(NUM_FRAMES)]
    return write_shards(tmp_path / "shards", dict.fromkeys(["ann/a.b/1.mp4", "ann/2.mp4", "bob/1.mp4"], frames))


# Shards and episodes.


def test_index_finds_clips_people_and_frames(shards):
    clips = read_index(shards)
    assert [(clip.key, clip.identity) for clip in clips] == [
        ("ann%2Fa%2Eb%2F1%2Emp4", "ann"),
        ("ann%2F2%2Emp4", "ann"),
        ("bob%2F1%2Emp4", "bob"),
    ]
    for clip in clips:
        assert clip.landmarks.shape == (NUM_FRAMES, 78, 2)
        assert [round(np.asarray(clip.image(i)).mean() / 30) for i in range(NUM_FRAMES)] == list(range(NUM_FRAMES))


def test_folder_without_shards_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="prepare_dataset.py"):
        read_index(tmp_path)


@pytest.mark.parametrize("augment", [True, False])
def test_episode_shapes_and_types(shards, augment):
    episodes = EpisodeDataset(read_index(shards), SIZE, num_sources=2, augment=augment)
    assert len(episodes) == 3
    episode = episodes[2]
    assert episode["clip"] == 2
    for name in ("images", "landmark_images"):
        assert episode[name].shape == (3, 3, SIZE, SIZE) and episode[name].dtype == torch.uint8
    assert episode["landmarks"].shape == (3, 78, 2) and episode["landmarks"].dtype == torch.float32
    drawing = draw_landmarks(episode["landmarks"][0].numpy(), SIZE)
    assert np.array_equal(episode["landmark_images"][0].permute(1, 2, 0).numpy(), drawing)


def test_clips_with_too_few_frames_are_left_out(shards):
    assert len(EpisodeDataset(read_index(shards), SIZE, num_sources=NUM_FRAMES)) == 0


def test_the_frame_to_draw_is_never_among_the_portraits(shards):
    torch.manual_seed(0)
    episodes = EpisodeDataset(read_index(shards), SIZE, num_sources=3, augment=False)
    targets = set()
    for _ in range(20):
        episode = episodes[0]
        frames = (episode["images"].float().mean(dim=(1, 2, 3)) / 30).round().int().tolist()
        assert len(set(frames)) == 4
        targets.add(frames[0])
        # every picture comes with its own landmarks
        expected = [landmarks(index)[0, 0] for index in frames]
        assert np.allclose(episode["landmarks"][:, 0, 0].numpy(), expected, atol=1e-4)
    assert len(targets) > 3


def test_far_sources_are_those_whose_eyes_and_mouth_differ_most(tmp_path):
    """Half of the frames have the mouth open; whichever is drawn, the portraits show the other half."""
    folder = tmp_path / "shards"
    folder.mkdir()
    points = np.stack([landmarks(index) for index in range(NUM_FRAMES)])  # the head moves, which must not count
    is_open = np.arange(NUM_FRAMES) % 2 == 1
    points[is_open, 65:68, 1] += 5
    with tarfile.open(folder / "shard-00000.tar", "w") as tar:
        crops = [jpeg(grey(30 * index)) for index in range(NUM_FRAMES)]
        add_clip(tar, Path("ann/1.mp4"), crops, points, [0.0] * NUM_FRAMES)
    torch.manual_seed(0)
    episodes = EpisodeDataset(read_index(folder), SIZE, num_sources=2, augment=False, far_sources=True)
    for _ in range(20):
        frames = (episodes[0]["images"].float().mean(dim=(1, 2, 3)) / 30).round().int().tolist()
        assert len(set(frames)) == 3
        assert is_open[frames[1]] == is_open[frames[2]] != is_open[frames[0]]


def test_smaller_frames_take_their_landmarks_along(shards):
    clips = read_index(shards)
    torch.manual_seed(0)
    full = EpisodeDataset(clips, SIZE, 2, augment=False)[0]
    torch.manual_seed(0)
    half = EpisodeDataset(clips, SIZE // 2, 2, augment=False)[0]
    assert half["images"].shape[-1] == SIZE // 2
    assert torch.allclose(half["landmarks"], full["landmarks"] / 2, atol=1e-4)


def test_landmarks_stay_on_what_they_mark(tmp_path):
    """A bright square lies under one corner of an eye; a grey bar at the left says whether the picture is mirrored."""
    frame = grey(0)
    x, y = landmarks()[RIGHT_CORNER].round().astype(int)
    frame[:, :8] = 90
    frame[y - 3 : y + 3, x - 3 : x + 3] = 255
    points = landmarks() + (np.array([x, y]) - landmarks()[RIGHT_CORNER])
    clips = read_index(write_shards(tmp_path / "marked", {"ann/1.mp4": [frame] * 3}, points.astype(np.float32)))
    episodes = EpisodeDataset(clips, SIZE, num_sources=2)
    torch.manual_seed(0)
    mirrored, places = [], []
    for _ in range(24):
        episode = episodes[0]
        # one person in one light: what is done to one frame is done to all
        assert torch.equal(episode["images"][0], episode["images"][1])
        assert torch.equal(episode["landmarks"][0].nan_to_num(), episode["landmarks"][2].nan_to_num())
        image = episode["images"][0].float().mean(dim=0)  # S x S
        mirrored.append(bool(image[:4, :2].mean() < image[:4, -2:].mean()))
        bright = (image * (image > 0.75 * image.max())).numpy()
        rows, columns = np.mgrid[:SIZE, :SIZE] + 0.5
        centre = [(bright * grid).sum() / bright.sum() for grid in (columns, rows)]
        corner = LEFT_CORNER if mirrored[-1] else RIGHT_CORNER
        assert np.linalg.norm(episode["landmarks"][0, corner].numpy() - centre) < 0.5
        places.append(centre)
    assert 4 < sum(mirrored) < 20
    assert np.ptp(places, axis=0).min() > 2  # and it does move


def test_irises_are_left_out_of_whole_episodes(shards, monkeypatch):
    monkeypatch.setattr(dataset, "IRISLESS_PROBABILITY", 1.0)
    episode = EpisodeDataset(read_index(shards), SIZE, num_sources=2)[0]
    assert episode["landmarks"][:, IRISES].isnan().all() and episode["landmarks"][:, FACE].isfinite().all()


# Preparing shards.


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


# Meta-training.


@pytest.fixture(scope="module")
def vgg(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("vgg") / "vgg.safetensors"
    save_file({name: 0.3 * weight for name, weight in vgg_weights((2, 2, 3, 3, 3)).items()}, path)
    return path


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained")
    for name, network in NETWORKS.items():
        tiny(network).save_pretrained(folder / name)
    return folder


@pytest.fixture
def train(shards, vgg, tmp_path, monkeypatch):
    """Runs the script with these options, on tiny networks, and returns its folder."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(meta_train, "FsthConfig", tiny_config)
    output_dir = tmp_path / "run"

    def train(**options) -> Path:
        AcceleratorState._reset_state(reset_partial_state=True)  # a process has one accelerator, a script one process
        defaults = {"output_dir": output_dir, "vgg": vgg, "image_size": SIZE, "batch_size": 2, "num_sources": 2}
        defaults |= {"num_workers": 0, "max_steps": 2, "log_every": 1, "mixed_precision": "no", "warmup_steps": 0}
        arguments = [str(shards)]
        for name, value in (defaults | options).items():
            arguments += [f"--{name}"] if value is True else [f"--{name}", str(value)]
        meta_train.main(arguments)
        return (defaults | options)["output_dir"]

    return train


def log_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def weights_of(folder: Path, network: str) -> dict[str, torch.Tensor]:
    return load_file(folder / network / "model.safetensors")


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint*"))


def test_two_steps_leave_a_model_a_checkpoint_a_log_and_samples(train, shards, vgg):
    folder = train(
        validation_shards=shards,
        sample_every=1,
        mixed_precision="bf16",
        parts_weight=0.15,
        pixel_weight=10,
        vgg_size=32,
    )
    assert checkpoints(folder) == ["checkpoint-0000002"]
    log = log_of(folder)
    terms = {"vgg", "parts", "pixel", "adversarial", "feature_matching", "match", "discriminator"}
    assert [entry["step"] for entry in log] == [1, 2] and terms < log[0].keys()
    assert all(np.isfinite(list(entry.values())).all() for entry in log)
    for name, network in NETWORKS.items():
        model, info = network.from_pretrained(folder / "model" / name, output_loading_info=True)
        assert not info["missing_keys"] and model.config.image_size == SIZE
        assert model.config.num_identities == 0  # the training videos' vectors stay behind
        assert {tensor.dtype for tensor in weights_of(folder / "model", name).values()} == {torch.float16}
    # portrait, drawing, warp, result, truth beside each other, eight episodes below each other
    with Image.open(folder / "sample-0000002.jpg") as sample:
        assert sample.size == (5 * SIZE, 8 * SIZE)
    validation = [json.loads(line) for line in (folder / "validation.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in validation] == [1, 2] and all(entry["vgg"] > 0 for entry in validation)


def test_paper_networks_train_too(train, shards, monkeypatch):
    monkeypatch.setattr(meta_train, "FsthConfig", lambda **kwargs: tiny_config(**kwargs | {"source_skips": False}))
    folder = train(max_steps=1, validation_shards=shards, vary_sources=True)
    assert (folder / "sample-0000001.jpg").exists()
    assert not any("source_skips" in name for name in weights_of(folder / "model", "generator"))


def test_all_three_learn_and_the_average_lags_behind(train, pretrained, tmp_path):
    moved = {}
    for decay in (0.0, 0.9):
        folder = train(
            pretrained=pretrained, output_dir=tmp_path / str(decay), max_steps=3, ema_decay=decay, generator_lr=1e-3
        )
        for name in NETWORKS:
            before, after = weights_of(pretrained, name), weights_of(folder / "model", name)
            changes = [(after[key] - before[key]).abs().mean() for key in before if key.endswith("original")]
            moved[name, decay] = torch.stack(changes).mean().item()
    for name in ("embedder", "generator"):
        assert 0 < moved[name, 0.9] < 0.95 * moved[name, 0.0]
    assert moved["discriminator", 0.9] == pytest.approx(moved["discriminator", 0.0], rel=0.05)
    assert moved["discriminator", 0.9] > 1e-4


def test_pretrained_networks_go_on_from_where_they_were(train, pretrained):
    folder = train(pretrained=pretrained, max_steps=1, generator_lr=0, discriminator_lr=0)
    for name in NETWORKS:
        before, after = weights_of(pretrained, name), weights_of(folder / "model", name)
        assert before.keys() == after.keys()
        for key in before:
            if not key.endswith(("_u", "_v")):
                assert torch.equal(before[key].half(), after[key])


def test_generators_gradients_do_not_reach_the_discriminator(train, pretrained, tmp_path):
    """Its first update is made on frames drawn before any update, so the generator's loss must not matter to it."""
    after = []
    for weight in (0.0, 1e6):
        folder = train(
            pretrained=pretrained, output_dir=tmp_path / str(weight), max_steps=1, discriminator_steps=1,
            adversarial_weight=weight, feature_matching_weight=weight, generator_lr=1e-6,
        )  # fmt: skip
        after.append(weights_of(folder / "model", "discriminator"))
    before = weights_of(pretrained, "discriminator")
    assert all(torch.equal(after[0][key], after[1][key]) for key in before)
    assert any(not torch.equal(before[key].half(), after[0][key]) for key in before if key.endswith("original"))


def test_adversarial_terms_begin_when_they_are_told_to(train):
    log = log_of(train(adversarial_start=1, warmup_steps=2))
    assert "adversarial" not in log[0] and "discriminator" not in log[0]
    assert "adversarial" in log[1] and "discriminator" in log[1]


def test_resume_goes_on_and_old_checkpoints_go(train):
    folder = train(max_steps=3, save_every=1, keep_checkpoints=2)
    assert checkpoints(folder) == ["checkpoint-0000002", "checkpoint-0000003"]
    train(max_steps=5, save_every=1, keep_checkpoints=2, resume=True)
    assert [entry["step"] for entry in log_of(folder)] == [1, 2, 3, 4, 5]
    assert checkpoints(folder) == ["checkpoint-0000004", "checkpoint-0000005"]


def test_resume_brings_back_weights_and_average(train):
    options = {"ema_decay": 1.0, "adversarial_start": 2, "discriminator_steps": 1}  # the first step's weights for ever
    folder = train(max_steps=3, generator_lr=1e-3, **options)
    before = {name: weights_of(folder / "model", name) for name in NETWORKS}
    learner = load_file(folder / "checkpoint-0000003" / "model.safetensors")
    train(max_steps=4, generator_lr=0, discriminator_lr=0, resume=True, **options)
    resumed = load_file(folder / "checkpoint-0000004" / "model.safetensors")
    weights = [key for key in learner if key.endswith("original")]
    assert weights and all(torch.equal(resumed[key], learner[key]) for key in weights)
    for name in NETWORKS:
        after = weights_of(folder / "model", name)
        assert all(torch.equal(after[key], before[name][key]) for key in after if key.endswith("original"))
    average = before["generator"]["head.weight"]
    assert not torch.allclose(average.float(), learner["generator.head.weight"], atol=1e-4)


def test_time_limit_saves_and_stops(train):
    folder = train(max_steps=100, max_minutes=0)
    assert checkpoints(folder) == ["checkpoint-0000001"] and (folder / "model" / "generator").is_dir()


def test_two_processes_train_one_model(shards, vgg, pretrained, tmp_path):
    folder = tmp_path / "run"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launch, ROOT / "training" / "meta_train.py", shards, "--output_dir", folder, "--vgg", vgg]
    command += ["--pretrained", pretrained, "--validation_shards", shards]
    for name, value in {"image_size": SIZE, "batch_size": 2, "num_sources": 2, "max_steps": 2, "log_every": 1}.items():
        command += [f"--{name}", str(value)]
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    command += ["--num_workers", "0", "--mixed_precision", "no", "--vary_sources"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert [entry["step"] for entry in log_of(folder)] == [1, 2]  # written by one of them
    assert checkpoints(folder) == ["checkpoint-0000002"] and (folder / "sample-0000002.jpg").exists()


def test_loss_that_is_not_finite_stops_and_leaves_the_checkpoint_alone(train, vgg, tmp_path):
    def fingerprint():
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return {path: hashlib.sha256(path.read_bytes()).digest() for path in files}

    folder = train(max_steps=1)
    before = fingerprint()
    poisoned = tmp_path / "poisoned.safetensors"
    save_file(load_file(vgg) | {"features.0.bias": torch.full((2,), torch.nan)}, poisoned)
    with pytest.raises(SystemExit, match=r"not finite at step 2: .*'vgg': nan"):
        train(max_steps=2, resume=True, vgg=poisoned)
    assert fingerprint() == before


def test_meta_training_needs_no_package_for_pictures_and_clips():
    blocked = ("diffusers", "av", "gradio", "cv2", "face_alignment", "imageio", "pillow_heif", "skimage", "typer")
    program = f"import sys; sys.modules.update(dict.fromkeys({blocked})); import training.meta_train"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# Measures.


def test_lpips_of_equal_pictures_is_nothing_and_grows_with_noise():
    path = WEIGHTS / "alexnet_lpips.safetensors"
    if not path.exists():
        pytest.skip("the weights of LPIPS are not here")
    lpips = LPIPS(load_weights(str(path)))
    torch.manual_seed(0)
    pictures = torch.rand(2, 3, SIZE, SIZE) * 2 - 1
    noise = torch.randn_like(pictures)
    assert torch.equal(lpips(pictures, pictures), torch.zeros(2))
    distances = torch.stack([lpips(pictures + strength * noise, pictures) for strength in (0.05, 0.2, 0.8)])
    assert (distances[0] > 0).all() and (distances.diff(dim=0) > 0).all()
    assert torch.allclose(lpips(pictures + noise, pictures), lpips(pictures, pictures + noise), atol=1e-6)
