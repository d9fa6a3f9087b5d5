"""Make the README's picture: a shipped painting, the landmarks that drive it, and what the bundled model generates.

python scripts/make_figure.py
"""

from pathlib import Path

import numpy as np
from PIL import Image

from fsth_hub import FsthPipeline
from fsth_hub.landmarks.expression import Expression
from fsth_hub.models.landmark_drawing import rasterize_landmarks
from fsth_hub.pipelines.driving import DrivingMotion


ROOT = Path(__file__).parents[1]
PAINTING = ROOT / "fsth_hub" / "examples" / "portraits" / "la_velata.jpg"
SIZE = 320
EXPRESSIONS = (
    Expression(yaw=-14, gaze_x=-0.7),
    Expression(eye_right=-1, eye_left=-1, smile=0.4, pitch=8, roll=5),
    Expression(smile=0.9, mouth=0.3, yaw=8),
    Expression(brow_right=1, brow_left=1, eye_right=0.8, eye_left=0.8, mouth=0.25, pucker=0.3, roll=-6),
)


def main():
    pipe = FsthPipeline.from_pretrained()
    person = pipe.embed(PAINTING)
    motion = DrivingMotion.from_expressions(EXPRESSIONS)
    drawings = [rasterize_landmarks(points, SIZE) for points in motion.resized(SIZE).landmarks]
    frames = list(pipe.drive(person, motion, size=SIZE))
    portrait = np.asarray(Image.fromarray(person.crops[0]).resize((SIZE, SIZE), Image.Resampling.LANCZOS))
    blank = np.full_like(portrait, 255)
    rows = [np.concatenate(row, axis=1) for row in ([portrait, *frames], [blank, *drawings])]
    Image.fromarray(np.concatenate(rows)).save(ROOT / "docs" / "figure.jpg", quality=88)


if __name__ == "__main__":
    main()
