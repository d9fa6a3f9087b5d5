"""Landmarks of faces whose pose, eyes and mouth are known."""

import numpy as np
import torch

from fsth_hub.landmarks.pose import MEAN_FACE, Pose
from fsth_hub.models.landmark_layout import INNER_LIPS, LEFT_EYE, LEFT_IRIS, RIGHT_EYE, RIGHT_IRIS, interocular


MOUTH = ((61, 67), (62, 66), (63, 65))  # points of the upper and of the lower lip
EYE = ((37, 41), (38, 40))


def turn(yaw=0.0, pitch=0.0, roll=0.0):
    """The rotation of a head, degrees."""
    (cy, cp, cr), (sy, sp, sr) = np.cos(np.radians([yaw, pitch, roll])), np.sin(np.radians([yaw, pitch, roll]))
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_x = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    about_z = np.array([[cr, -sr, 0], [sr, cr, 0], [0, 0, 1]])
    return about_z @ about_x @ about_y


def face(width=1.0, eyes=15.0, mouth=4.0, gaze=0.0, scale=0.5, centre=(128.0, 140.0), **angles):
    """A face like the mean one: its width, its eyes' and its mouth's opening in units of the mean face, its pose."""
    upright = MEAN_FACE * [width, 1, 1]
    for iris in (RIGHT_IRIS, LEFT_IRIS):
        upright[iris, 0] += gaze
    for eye in (RIGHT_EYE, LEFT_EYE):
        for upper, lower in ((1, 5), (2, 4)):
            upright[eye[upper], 1] = upright[eye[lower], 1] - eyes
    for upper, lower in MOUTH:
        upright[lower, 1] = upright[upper, 1] + mouth
    return Pose(turn(**angles), scale, np.array(centre)).project(upright).astype(np.float32)


def opening(points, pairs):
    """Of an eye or the mouth, in distances between the eyes."""
    upper, lower = np.array(pairs).T
    return (points[lower, 1] - points[upper, 1]).mean() / interocular(points)


def frontal_face(opening: float = 20.0, closed: bool = False, turn: float = 0.0, size: int = 256) -> torch.Tensor:
    """A face of 78 points, 1 x 78 x 2 pixels, eyes 60 apart at 256; turned about the frame's centre (radians)."""
    points = np.full((78, 2), 128.0)
    points[:17] = np.stack([np.linspace(68, 188, 17), 110 + 100 * np.sin(np.linspace(0, np.pi, 17))], axis=1)
    points[17:22] = np.stack([np.linspace(75, 115, 5), np.full(5, 85)], axis=1)
    points[22:27] = np.stack([np.linspace(141, 181, 5), np.full(5, 85)], axis=1)
    points[27:31] = np.stack([np.full(4, 128), np.linspace(105, 140, 4)], axis=1)
    points[31:36] = np.stack([np.linspace(116, 140, 5), np.full(5, 148)], axis=1)
    lid = 1.0 if closed else 6.0
    offsets = np.array([(-14, 0), (-5, -lid), (5, -lid), (14, 0), (5, lid), (-5, lid)])
    for eye, iris, x in ((RIGHT_EYE, RIGHT_IRIS, 98), (LEFT_EYE, LEFT_IRIS, 158)):
        points[eye] = offsets + [x, 105]
        points[iris] = np.array([(0, 0), (5, 0), (0, -5), (-5, 0), (0, 5)]) + [x, 105]
    half = opening / 2
    upper = [(-25, 0), (-14, -8 - half), (-5, -11 - half), (0, -10 - half), (5, -11 - half), (14, -8 - half), (25, 0)]
    lower = [(14, 9 + half), (5, 12 + half), (0, 13 + half), (-5, 12 + half), (-14, 9 + half)]
    points[48:60] = np.array(upper + lower) + [128, 172]
    inner = [(-20, 0), (-8, -half), (0, -half), (8, -half), (20, 0), (8, half), (0, half), (-8, half)]
    points[INNER_LIPS] = np.array(inner) + [128, 172]
    rotation = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    points = ((points - 128) @ rotation + 128) * size / 256
    return torch.from_numpy(points).float()[None]
