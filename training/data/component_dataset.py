"""Aligned crops of mouths and eyes to train the facial components on, all in memory, and pairs made of them.

Clips tell how faces move: a frame is the target, another one of the clip the portrait. Stills tell what thousands of
mouths and eyes look like: a still is the target, and the portrait is itself with another expression, to which the
landmarks' flow has deformed it, so that what the expression hides is gone. A batch is made where the networks are, on
a GPU too, and depends on seed, step and rank alone.
"""

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fsth_hub.finetuning.component_crops import centre_of, cut_crops, deform_crops, part_openings, warp_crops
from fsth_hub.models.aligned_crops import PARTS, part_masks
from fsth_hub.models.image_processing_fsth import normalize, to_pixels
from fsth_hub.models.landmark_layout import (
    FACE,
    FLIP,
    INNER_LIPS,
    JAW,
    LEFT_EYE,
    OUTER_LIPS,
    RIGHT_EYE,
    RIGHT_IRIS,
    interocular,
)
from training.data.dataset import is_held_out_still, read_index


MIN_CLIP_FRAMES = 9
CUT_AT_ONCE = 16  # pictures of a clip, which are floats then
MIN_STILL_SIDE = 200  # pixels that a head has in its original, below which it is not sharp
MAX_ASYMMETRY = 0.25  # of a still's landmarks, above which they are wrong or the face is in profile

# Of the targets, those that are taken from the part of a clip in which mouths are most open or eyes most shut, and how
# large that part is: a blink takes few frames of a clip.
EXTREME_SHARE, EXTREME_PART = 0.5, {"mouth": 1 / 4, "eye": 1 / 12}
FAR_SHARE = 0.7  # of the portraits that come from the half of the clip least like the target
OTHER_SHARE = 0.5  # of the examples in which another portrait's crop is seen, the most like of a few
OTHER_PORTRAITS = 6

# Augmentation, the same for all crops of an example
CONTRAST_RANGE, LIGHT_RANGE = (0.75, 1.2), (0.78, 1.08)  # the latter of each colour channel
WARM_PROBABILITY, WARMEST = 0.4, (1.0, 0.8, 0.35)  # as under old varnish: teeth must take the light of the face
GREYSCALE_PROBABILITY, IRISLESS_PROBABILITY = 0.07, 0.1

# What moves with an expression, and the point of the nose from which it is measured
MOVING = {"mouth": np.r_[JAW[4:13], OUTER_LIPS, INNER_LIPS], "eye": np.r_[17:22, RIGHT_EYE, RIGHT_IRIS]}
NOSE = 33


class ComponentCrops:
    """
    The crops of one network's part of all faces.

    Args:
        network (`str`): `"mouth"` or `"eye"`.
        size (`int`): side of the crops that the network sees; kept are more pixels, [`kept_size`].
        shards (`str` or `Path`): folder of prepared shards.
        stills (`str` or `Path`, *optional*): folder of head crops with `landmarks.npz` and `index.csv`.
        held_out (`bool`, *optional*, defaults to `False`): the stills that are kept for validation, or the others.
    """

    def __init__(self, network: str, size: int, shards, stills=None, held_out: bool = False):
        self.parts = [part for part in PARTS.values() if part.network == network]
        self.part = self.parts[0]
        self.size = size
        self.images, self.points, self.clips, people = [], [], [], []
        for clip in read_index(shards):
            known = np.flatnonzero(np.isfinite(clip.landmarks[:, FACE]).all(axis=(1, 2)))
            if len(known) < MIN_CLIP_FRAMES:
                continue
            for numbers in self._add([clip.image(frame) for frame in known], clip.landmarks[known]):
                self.clips.append(numbers)  # of either eye for itself
                people.append(clip.identity)
        count = Counter(people)
        self.clip_shares = np.array([1 / count[person] for person in people]) / len(count)
        self.stills = []
        for path, points in list_stills(Path(stills), held_out) if stills else []:
            with Image.open(path) as image:
                self.stills += self._add([image.convert("RGB")], points[None])
        self.stills = np.concatenate(self.stills) if self.stills else np.arange(0)
        self.images, self.points = torch.cat(self.images), torch.cat(self.points)
        self.openings = part_openings(self.points.numpy(), self.part)

    def _add(self, images: list[Image.Image], points: np.ndarray) -> list[np.ndarray]:
        """Keep the crops of pictures of one size; gives, by part, the numbers under which they are."""
        pictures = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2)
        pictures, landmarks = pictures.split(CUT_AT_ONCE), torch.from_numpy(points).float().split(CUT_AT_ONCE)
        numbers = [[] for _ in self.parts]
        for some, own in zip(pictures, landmarks, strict=True):
            some = normalize(some.contiguous())
            for part, of_part in zip(self.parts, numbers, strict=True):
                crops, cut = cut_crops(some, own, part, self.size)
                start = sum(map(len, self.points))
                of_part.append(np.arange(start, start + len(cut)))
                self.images.append(to_pixels(crops))
                self.points.append(cut)
        return [np.concatenate(of_part) for of_part in numbers]

    def to(self, device):
        self.images, self.points = self.images.to(device), self.points.to(device)
        return self

    def pick(self, rng: np.random.Generator, count: int, still_share: float) -> dict[str, np.ndarray]:
        """Which crops an example is made of: target, portrait and the portrait that is shown beside, and whether it is
        of a still; of those, target and portrait are the frames of a clip whose change of expression is taken over."""
        rows = []
        for _ in range(count):
            clip = self.clips[rng.choice(len(self.clips), p=self.clip_shares)]
            openings = self.openings[clip]
            if len(self.stills) and rng.random() < still_share:
                still = self._favour(rng, self.stills, self.openings[self.stills])
                like = np.abs(openings - self.openings[still]) + 0.02 * rng.random(len(clip))
                target = clip[np.argmin(like)]
                rows.append((still, target, self._far(rng, clip, target), 0, True))
            else:
                target = self._favour(rng, clip, openings)
                portrait = self._far(rng, clip, target)
                shown = portrait
                if rng.random() < OTHER_SHARE:
                    others = rng.choice(clip[clip != target], OTHER_PORTRAITS)
                    shown = others[np.argmin(np.abs(self.openings[others] - self.openings[target]))]
                rows.append((target, target, portrait, shown, False))
        names = ("picture", "target", "portrait", "shown", "still")
        return {name: np.array(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)}

    def _favour(self, rng, candidates, openings):
        if rng.random() < EXTREME_SHARE:
            network = self.part.network
            order = np.argsort(-openings if network == "mouth" else openings, kind="stable")
            candidates = candidates[order[: max(3, int(len(order) * EXTREME_PART[network]))]]
        return rng.choice(candidates)

    def _far(self, rng, clip, target):
        others = clip[clip != target]
        if rng.random() < FAR_SHARE:
            order = np.argsort(-np.abs(self.openings[others] - self.openings[target]), kind="stable")
            others = others[order[: max(4, len(order) // 2)]]
        return rng.choice(others)

    def batch(self, rng: np.random.Generator, count: int, still_share: float, augment: bool = True) -> dict:
        """
        Examples for the network.

        Returns:
            `dict` of `torch.Tensor`: `warped`, `portraits` and `images` (the truth), each `(count, 3, size, size)` in
            [-1, 1]; `masks` and `portrait_masks`, each `(count, 2, size, size)`, see [`part_masks`].
        """
        picked = {name: torch.from_numpy(values) for name, values in self.pick(rng, count, still_share).items()}
        is_still = picked.pop("still").to(self.images.device)
        picked = {name: values.to(self.images.device) for name, values in picked.items()}
        target, portrait, shown = (self.points[picked[name]] for name in ("picture", "portrait", "shown"))
        images, portraits, shown_images = (
            normalize(self.images[picked[name]]) for name in ("picture", "portrait", "shown")
        )
        if is_still.any():
            change = self.points[picked["portrait"]] - self.points[picked["target"]]
            change = change - change[:, NOSE, None]
            moved = target.clone()
            moving = MOVING[self.part.network]
            moved[:, moving] += change[:, moving].nan_to_num()
            deformed, moved = deform_crops(images[is_still], target[is_still], moved[is_still], self.part, self.size)
            portraits[is_still] = shown_images[is_still] = deformed
            portrait[is_still] = shown[is_still] = moved
        if augment:
            images, portraits, shown_images = self.jitter(rng, (images, portraits, shown_images))
            if self.part.network == "mouth":
                mirrored = torch.from_numpy(rng.random(count) < 0.5).to(images.device)
                images, portraits, shown_images = (mirror(x, mirrored) for x in (images, portraits, shown_images))
                target, portrait, shown = (mirror_points(x, mirrored) for x in (target, portrait, shown))
            else:
                irisless = torch.from_numpy(rng.random(count) < IRISLESS_PROBABILITY).to(images.device)
                target = target.clone()
                target[:, RIGHT_IRIS] = torch.where(irisless[:, None, None], torch.nan, target[:, RIGHT_IRIS])
        return {
            "warped": warp_crops(portraits, target, portrait, self.part, self.size),
            "portraits": centre_of(shown_images, self.size),
            "images": centre_of(images, self.size),
            "masks": part_masks(target, self.part, self.size),
            "portrait_masks": part_masks(shown, self.part, self.size),
        }

    def jitter(self, rng: np.random.Generator, pictures: tuple) -> list[torch.Tensor]:
        """Another light and contrast, the same for all pictures of an example."""
        count, device = len(pictures[0]), pictures[0].device
        contrast = torch.from_numpy(rng.uniform(*CONTRAST_RANGE, (count, 1, 1, 1))).float().to(device)
        warmth = rng.uniform(0, 1, (count, 1)) * (rng.random((count, 1)) < WARM_PROBABILITY)
        light = rng.uniform(*LIGHT_RANGE, (count, 3)) * (1 - warmth * (1 - np.array(WARMEST)))
        light = torch.from_numpy(light[:, :, None, None]).float().to(device)
        grey = torch.from_numpy(rng.random((count, 1, 1, 1)) < GREYSCALE_PROBABILITY).to(device)
        light = torch.where(grey, light[:, :1], light)
        jittered = []
        for picture in pictures:
            picture = torch.where(grey, picture.mean(dim=1, keepdim=True), picture)
            jittered.append((((picture * contrast) + 1) * light - 1).clamp(-1, 1))
        return jittered


def list_stills(folder: Path, held_out: bool) -> list[tuple[Path, np.ndarray]]:
    """The stills that can be used, with their landmarks (78 x 2, pixels)."""
    with open(folder / "index.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    landmarks = np.load(folder / "landmarks.npz", allow_pickle=False)["points"]
    chosen = []
    for row, points in zip(rows, landmarks, strict=True):
        wide_enough = int(float(row["crop_side_px_in_original"])) >= MIN_STILL_SIDE
        if is_held_out_still(row["file"]) == held_out and wide_enough and is_plausible(points):
            chosen.append((folder / "crops" / row["file"], points))
    return chosen


def is_plausible(points: np.ndarray) -> bool:
    """Whether landmarks (78 x 2) are those of a face that looks our way: they are nearly their own mirror image."""
    if not np.isfinite(points).all():
        return False
    right, left = points[RIGHT_EYE].mean(axis=0), points[LEFT_EYE].mean(axis=0)
    along = (left - right) / np.linalg.norm(left - right)
    local = (points - (left + right) / 2) @ np.stack([along, [-along[1], along[0]]], axis=1) / interocular(points)
    asymmetry = np.abs(local - local[FLIP] * [-1, 1])[:68].mean()
    return bool(asymmetry < MAX_ASYMMETRY)


def mirror(images, rows):
    return torch.where(rows[:, None, None, None], images.flip(-1), images)


def mirror_points(points, rows):
    mirrored = points[:, FLIP.copy()] * points.new_tensor([-1.0, 1.0])
    return torch.where(rows[:, None, None], mirrored, points)
