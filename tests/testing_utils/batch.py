"""What the processes of a batch load in place of a real model, and tables for them."""

import csv
import os
import signal
from pathlib import Path

from fsth_hub.pipelines.pipeline_fsth import FsthPipeline
from testing_utils.pipelines import StubDetector, make_pipeline


FATAL = 250  # of a picture's first pixel: whoever looks at it dies


class FatalDetector(StubDetector):
    def detect(self, image):
        if image[0, 0, 0] == FATAL:
            os.kill(os.getpid(), signal.SIGSEGV)
        return super().detect(image)


def load_tiny(model: str | None, revision: str | None) -> FsthPipeline:
    """A tiny pipeline; whom it embeds is noted in the file that FSTH_TEST_EMBEDDED names, a process a line."""
    pipe = make_pipeline()
    pipe.engine, pipe.detector = "torch", FatalDetector()
    embed_crops = pipe.embed_crops

    def noting(*args):
        with open(os.environ["FSTH_TEST_EMBEDDED"], "a") as file:
            file.write(f"{os.getpid()}\n")
        return embed_crops(*args)

    if "FSTH_TEST_EMBEDDED" in os.environ:
        pipe.embed_crops = noting
    return pipe


def write_table(path: Path, rows: list[dict]) -> Path:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    return path
