"""Make the README's picture from the examples: portrait, driving landmarks, and what the bundled model generates.

python scripts/make_figure.py
"""

from pathlib import Path

import numpy as np
from PIL import Image

from fsth_hub import FsthPipeline
from fsth_hub.landmarks import MotionAdapter, pick_reference
from fsth_hub.models.landmark_drawing import rasterize_landmarks


ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "fsth_hub" / "examples"
FRAMES = (12, 17, 41, 72)


def main():
    pipe = FsthPipeline.from_pretrained()
    person = pipe.embed(EXAMPLES / "astronaut.jpg")
    size = pipe.output_size(person)
    driving = pipe.read_driving(EXAMPLES / "driver.mp4")
    reference = driving.landmarks[pick_reference(person.landmarks, driving.landmarks)]
    adapt = MotionAdapter(person.landmarks, reference)
    drawings = [rasterize_landmarks(adapt(points) * (size / pipe.size), size) for points in driving.landmarks]
    frames = list(pipe.drive(person, driving, size=size))
    portrait = np.asarray(Image.fromarray(person.crops[0]).resize((size, size), Image.Resampling.LANCZOS))
    rows = [np.concatenate([portrait, *(frames[index] for index in FRAMES)], axis=1)]
    blank = np.full_like(portrait, 255)
    rows.append(np.concatenate([blank, *(drawings[index] for index in FRAMES)], axis=1))
    Image.fromarray(np.concatenate(rows)).save(ROOT / "docs" / "astronaut.jpg", quality=88)


if __name__ == "__main__":
    main()
