"""Small clips and stills of faces to train facial components on."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image

from .faces import frontal_face
from .networks import SIZE
from .shards import write_shards


def texture(seed: int, size: int = SIZE) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), np.uint8)
    return np.asarray(Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC))


def write_face_clips(folder: Path) -> Path:
    """Shards of two people, whose faces rest while their pictures change."""
    points = frontal_face(size=SIZE)[0].numpy()
    frames = {f"{name}/1.mp4": [texture(seed + i) for i in range(10)] for seed, name in ((0, "ann"), (50, "bob"))}
    return write_shards(folder, frames, points)


def write_stills(folder: Path) -> Path:
    """101 stills, of which 0, 50 and 100 are held out; number 7 has landmarks that are wrong, 8 is too small."""
    (folder / "crops").mkdir(parents=True)
    points = np.repeat(frontal_face(opening=30, size=SIZE).numpy(), 101, axis=0)
    points[7, :48] += np.random.default_rng(0).uniform(-9, 9, (48, 2))
    with open(folder / "index.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file", "source", "crop_side_px_in_original"])
        for number in range(101):
            Image.fromarray(texture(number)).save(folder / "crops" / f"{number:05d}.jpg", quality=95)
            writer.writerow([f"{number:05d}.jpg", "made", 100 if number == 8 else 500])
    np.savez(folder / "landmarks.npz", points=points)
    return folder
