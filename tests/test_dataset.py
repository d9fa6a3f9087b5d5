"""Episodes of training."""

import tarfile
from argparse import Namespace
from collections import Counter
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch

from fsth_hub.models.errors import FsthError
from fsth_hub.models.landmark_drawing import rasterize_landmarks
from fsth_hub.models.landmark_layout import FACE, IRISES
from testing_utils.networks import SIZE
from testing_utils.shards import LEFT_CORNER, NUM_FRAMES, RIGHT_CORNER, as_frames, grey, landmarks, write_shards
from training.data import dataset
from training.data.dataset import EpisodeDataset, EpisodeKey, read_index, sample_batches
from training.prepare_dataset import add_bytes, add_clip


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


def test_shards_without_mattes_are_to_be_made_anew(shards):
    path = sorted(shards.glob("*.tar"))[1]
    with tarfile.open(path) as tar:
        members = {member.name: tar.extractfile(member).read() for member in tar if not member.name.endswith("2.png")}
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            add_bytes(tar, name, content)
    with pytest.raises(FsthError, match=f"{path.name} has no mattes of ann%2F2%2Emp4: make the shards anew"):
        read_index(shards)


def test_folder_without_shards_is_named(tmp_path):
    with pytest.raises(FsthError, match="prepare_dataset.py"):
        read_index(tmp_path)


@pytest.mark.parametrize("augment", [True, False])
def test_episode_shapes_and_types(shards, augment):
    episodes = EpisodeDataset(read_index(shards), SIZE, max_sources=2, augment=augment)
    assert len(episodes) == 3
    episode = episodes[EpisodeKey(2, 2, (0,))]
    assert episode["clip"] == 2
    for name, channels in {"images": 3, "landmark_images": 3, "mattes": 1}.items():
        assert episode[name].shape == (3, channels, SIZE, SIZE) and episode[name].dtype == torch.uint8
    assert episode["landmarks"].shape == (3, 78, 2) and episode["landmarks"].dtype == torch.float32
    drawing = rasterize_landmarks(episode["landmarks"][0].numpy(), SIZE)
    assert np.array_equal(episode["landmark_images"][0].permute(1, 2, 0).numpy(), drawing)


def test_clips_with_too_few_frames_are_left_out(shards):
    assert len(EpisodeDataset(read_index(shards), SIZE, max_sources=NUM_FRAMES)) == 0


def test_the_frame_to_draw_is_never_among_the_portraits(shards):
    episodes = EpisodeDataset(read_index(shards), SIZE, max_sources=3, augment=False)
    targets = set()
    for seed in range(20):
        episode = episodes[EpisodeKey(0, 3, (seed,))]
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
        add_clip(tar, Path("ann/1.mp4"), as_frames([grey(30 * index) for index in range(NUM_FRAMES)], points))
    episodes = EpisodeDataset(read_index(folder), SIZE, max_sources=2, augment=False, far_sources=True)
    for seed in range(20):
        frames = (
            (episodes[EpisodeKey(0, 2, (seed,))]["images"].float().mean(dim=(1, 2, 3)) / 30).round().int().tolist()
        )
        assert len(set(frames)) == 3
        assert is_open[frames[1]] == is_open[frames[2]] != is_open[frames[0]]


def test_smaller_frames_take_their_landmarks_along(shards):
    clips = read_index(shards)
    key = EpisodeKey(0, 2, (0,))
    full, half = (EpisodeDataset(clips, size, 2, augment=False)[key] for size in (SIZE, SIZE // 2))
    assert half["images"].shape[-1] == SIZE // 2
    assert torch.allclose(half["landmarks"], full["landmarks"] / 2, atol=1e-4)


def test_landmarks_stay_on_what_they_mark(tmp_path):
    """
    A bright square, all that is figure, lies under one corner of an eye; a grey bar at the left says whether the
    picture is mirrored.
    """
    frame = grey(0)
    x, y = landmarks()[RIGHT_CORNER].round().astype(int)
    frame[:, :8] = 90
    frame[y - 3 : y + 3, x - 3 : x + 3] = 255
    points = landmarks() + (np.array([x, y]) - landmarks()[RIGHT_CORNER])
    points, matte = points.astype(np.float32), np.where(frame[..., 0] == 255, 255, 0).astype(np.uint8)
    clips = read_index(write_shards(tmp_path / "marked", {"ann/1.mp4": [frame] * 3}, points, matte))
    episodes = EpisodeDataset(clips, SIZE, max_sources=2)
    mirrored, places = [], []
    for seed in range(24):
        episode = episodes[EpisodeKey(0, 2, (seed,))]
        # one person in one light: what is done to one frame is done to all
        assert torch.equal(episode["images"][0], episode["images"][1])
        assert torch.equal(episode["landmarks"][0].nan_to_num(), episode["landmarks"][2].nan_to_num())
        image = episode["images"][0].float().mean(dim=0)  # S x S
        mirrored.append(bool(image[:4, :2].mean() < image[:4, -2:].mean()))
        bright = (image * (image > 0.75 * image.max())).numpy()
        figure = episode["mattes"][0, 0].numpy().astype(float)
        rows, columns = np.mgrid[:SIZE, :SIZE] + 0.5
        centre, of_figure = (
            [(part * grid).sum() / part.sum() for grid in (columns, rows)] for part in (bright, figure)
        )
        assert figure.max() == 255 and np.linalg.norm(np.subtract(of_figure, centre)) < 0.5
        corner = LEFT_CORNER if mirrored[-1] else RIGHT_CORNER
        assert np.linalg.norm(episode["landmarks"][0, corner].numpy() - centre) < 0.5
        places.append(centre)
    assert 4 < sum(mirrored) < 20
    assert np.ptp(places, axis=0).min() > 2  # and it does move


def test_light_of_an_episode_has_a_colour_unless_it_is_grey(shards, monkeypatch):
    monkeypatch.setattr(dataset, "COLOUR_RANGE", (1, 1))
    episodes = EpisodeDataset(read_index(shards), SIZE, max_sources=2)
    key, tints = EpisodeKey(0, 2, (3,)), {}
    for probability in (0.0, 1.0):
        monkeypatch.setattr(dataset, "GREYSCALE_PROBABILITY", probability)
        means = episodes[key]["images"].float().mean(dim=(2, 3))  # 3 x 3
        means = means[means.amax(dim=1) > 20]  # of a black frame no light is seen
        tints[probability] = means / means.mean(dim=1, keepdim=True)
    assert torch.allclose(tints[0.0][0], tints[0.0][1], atol=0.03)  # one light for all frames
    assert (tints[0.0] - 1).abs().max() > 0.03 and torch.allclose(tints[1.0], torch.ones(1))


def test_irises_are_left_out_of_whole_episodes(shards, monkeypatch):
    monkeypatch.setattr(dataset, "IRISLESS_PROBABILITY", 1.0)
    episode = EpisodeDataset(read_index(shards), SIZE, max_sources=2)[EpisodeKey(0, 2, (0,))]
    assert episode["landmarks"][:, IRISES].isnan().all() and episode["landmarks"][:, FACE].isfinite().all()


@pytest.mark.parametrize("far_sources", [True, False])
def test_same_key_same_episode(shards, far_sources):
    episodes = EpisodeDataset(read_index(shards), SIZE, max_sources=2, far_sources=far_sources)
    first = episodes[EpisodeKey(0, 2, (3, 1))]
    torch.rand(1), np.random.rand(1), episodes[EpisodeKey(1, 2, (3, 1))]  # whatever was drawn in between
    again, other = (episodes[EpisodeKey(0, 2, seed)] for seed in ((3, 1), (3, 2)))
    assert all(torch.equal(first[name].nan_to_num(), again[name].nan_to_num()) for name in list(first)[:3])
    assert not torch.equal(first["images"], other["images"])


def draw(clips, first_step=1, num_processes=1, rank=0, **options) -> list[list[EpisodeKey]]:
    args = {"seed": 0, "max_steps": 6, "adversarial_start": 1, "discriminator_steps": 2, "num_sources": 4}
    args |= {"vary_sources": True, "gradient_accumulation_steps": 1, "batch_size": 4} | options
    return list(sample_batches(clips, Namespace(**args), first_step, num_processes, rank))


def test_resumed_run_draws_what_the_unbroken_one_does(shards):
    clips = read_index(shards)
    batches = draw(clips)
    assert len(batches) == 1 + 5 * 2  # the discriminator's second update has a batch of its own
    assert draw(clips, first_step=4) == batches[-6:]
    assert len(set(chain(*batches))) == 11 * 4 and draw(clips, seed=1) != batches
    numbers = [{key.num_sources for key in batch} for batch in batches]
    assert all(len(number) == 1 for number in numbers) and len(set.union(*numbers)) > 1


def test_processes_and_accumulation_share_a_batch(shards):
    clips = read_index(shards)
    whole = draw(clips)
    halves = [draw(clips, batch_size=2, num_processes=2, rank=rank) for rank in range(2)]
    assert [first + second for first, second in zip(*halves, strict=True)] == whole
    assert list(chain(*draw(clips, batch_size=1, gradient_accumulation_steps=4))) == list(chain(*whole))


def test_people_are_drawn_equally_often(shards):
    clips = read_index(shards)  # two of ann, one of bob
    keys = chain(*draw(clips, max_steps=200))
    people = Counter(clips[key.clip].identity for key in keys)
    assert people["bob"] / people.total() == pytest.approx(0.5, abs=0.05)
