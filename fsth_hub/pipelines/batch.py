"""Many clips at once: by processes of this machine, or of a Ray cluster; killed and begun again, it does the rest."""

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

import cv2
import numpy as np
import torch

from ..checks import check_choice, check_number
from ..models.cropping import CropBox
from ..models.errors import FsthError, FsthWarning, NoFaceError, VideoError
from ..saving import reason
from .batch_jobs import Job, by_person
from .driving import DrivingMotion
from .identity import FsthIdentity
from .person import FsthPerson
from .portrait_picking import list_portraits, pick_from_clips
from .workers import Crashed, ProcessWorker, RayWorker, run_parts, share_out, start_ray


try:
    import fcntl
except ImportError:  # Windows: two runs at once are not noticed
    fcntl = None

if TYPE_CHECKING:
    from .pipeline_fsth import FsthPipeline

MANIFEST = "manifest.jsonl"
CORES_PER_WORKER = 2  # by default: a pipeline draws two frames at once

Load = Callable[[str | None, str | None], "FsthPipeline"]
Executor = Literal["local", "ray"]


# One row


class LastPerson:
    """`pipe.embed_crops`, but it keeps whom it embedded last: many rows of a batch show the same person."""

    def __init__(self, embed_crops: Callable[..., FsthPerson]):
        self._embed_crops, self._key, self._person = embed_crops, None, None

    def __call__(
        self, crops: Sequence[np.ndarray], landmarks: Sequence[np.ndarray], boxes: list[CropBox] | None = None
    ) -> FsthPerson:
        key = boxes, [(array.shape, hashlib.sha256(array.tobytes()).digest()) for array in (*crops, *landmarks)]
        if key != self._key:
            self._key, self._person = None, None  # two need not fit into memory
            self._key, self._person = key, self._embed_crops(crops, landmarks, boxes)
        return self._person


class RowAnimator:
    """
    Makes the clips of rows, with a pipeline of its own.

    Args:
        load: Takes name and revision of a model, `None` for the one that the batch is for, and loads its pipeline.
        model: Name of the model, unless it is the bundled one; an identity brings its own where none is named.
        output_dir: Where the clips go.
        num_threads: How many threads PyTorch and OpenCV are to take in this process.
    """

    def __init__(self, load: Load, model: str | None, output_dir: Path, num_threads: int):
        torch.set_num_threads(num_threads)
        cv2.setNumThreads(num_threads)
        self._load, self._model, self._output_dir = load, model, output_dir
        self._name = self._pipe = self._key = self._person = None
        self._pipe_of(model, None)  # what fails here is no row's fault

    def __call__(self, job: Job) -> dict:
        """The row's entry in the manifest."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", FsthWarning)
            entry = self._try(job)
        told = [" ".join(str(one.message).split()) for one in caught if issubclass(one.category, FsthWarning)]
        return entry | ({"warnings": told} if told else {})

    def _try(self, job: Job) -> dict:
        try:
            return self._animate(job)
        except NoFaceError as error:
            return failure("no_face", str(error))
        except VideoError as error:
            return failure("unreadable", str(error))
        except FsthError as error:
            return failure("unsuitable", str(error))
        except Exception as error:  # a run of days must not end with one odd file
            return failure("error", f"{type(error).__name__}: {error}")

    def _animate(self, job: Job) -> dict:
        output = self._output_dir / job.output
        output.parent.mkdir(parents=True, exist_ok=True)
        person = self._person_of(job)
        driving = job.driving
        if job.seconds is not None:
            driving = DrivingMotion.load(driving).looped(job.seconds)
        report = self._pipe(
            person,
            driving,
            motion=job.motion,
            motion_strength=job.motion_strength,
            smoothing=job.smoothing,
            size=job.size,
            regions=job.regions,
            sound=job.sound,
            paste_back=job.paste_back,
            crop=job.crop,
            face_index=job.face,
            shots=job.shots,
            driving_face_index=job.driving_face,
            num_frames=job.frames,
            fps=job.fps,
            watermark=job.watermark,
            credentials=job.credentials,
            output_path=output,
        ).report
        return {
            "frames": report.num_frames,
            "fps": report.fps,
            "size": report.size,
            "frames_without_face": len(report.frames_without_face),
            "seconds": report.seconds,
        }

    def _person_of(self, job: Job):
        """What the pipeline takes as portraits: a clip's frames are picked, and an identity read, once."""
        if job.person != self._key:
            self._key, self._person = None, None
            if job.identity is None:
                self._pipe_of(self._model, None)
                self._person = self._pictures_of(job)
            else:
                identity = FsthIdentity.from_pretrained(job.identity)
                # one of a local model names its folder alone, which need not be here
                own = self._model is None and "/" in identity.base_model
                name = (identity.base_model, identity.base_revision) if own else (self._model, None)
                self._person = self._pipe_of(*name).bind(identity)
            self._key = job.person
        return self._person

    def _pictures_of(self, job: Job) -> list:
        def pick(clip, face):
            return self._pipe.pick_portraits(clip, job.shots, face, job.crop)

        return pick_from_clips(list_portraits(job.portraits), job.face, pick)[0]

    def _pipe_of(self, model: str | None, revision: str | None) -> "FsthPipeline":
        if self._pipe is None or (model, revision) != self._name:
            self._pipe = None  # two need not fit into memory
            pipe = self._load(model, revision)
            pipe.set_progress_bar_config(disable=True)
            pipe.embed_crops = LastPerson(pipe.embed_crops)
            self._pipe, self._name = pipe, (model, revision)
        return self._pipe


def failure(kind: str, sentence: str) -> dict:
    """What the manifest says of a row that failed: a short code to group by, and a sentence."""
    return {"frames": 0, "reason": kind, "failed": " ".join(sentence.split())}


# All rows


def read_manifest(path: Path) -> dict[str, dict]:
    """The last entry of each output; a line that was cut off does not count."""
    try:
        *lines, _ = path.read_text(encoding="utf-8").split("\n") if path.exists() else [""]
        return {entry["output"]: entry for entry in map(json.loads, lines)}
    except (ValueError, KeyError, TypeError) as error:
        raise FsthError(f"{path} is no manifest of a batch: give another folder.") from error


def remaining_jobs(jobs: list[Job], output_dir: str | os.PathLike, model: str | None = None) -> list[Job]:
    """Rows that are to be made: those that were made before, and whose clips are there, are not; others failed, were
    changed since, or are new."""
    entries = read_manifest(Path(output_dir, MANIFEST))

    def is_done(job: Job) -> bool:
        entry = entries.get(job.output, {})
        same = entry.get("job") == job.digest(model) and entry.get("frames")
        return bool(same) and Path(output_dir, job.output).is_file()

    return [job for job in jobs if not is_done(job)]


def animate_batch(
    jobs: list[Job],
    output_dir: str | os.PathLike,
    load: Load,
    *,
    model: str | None = None,
    num_workers: int | None = None,
    executor: Executor = "local",
) -> Iterator[dict]:
    """
    Make the clips of [`read_jobs`], and give the manifest's entry of each as soon as it is written. Those that were
    made before ([`remaining_jobs`]) are left out; whoever stops to listen stops the work.

    Every worker is a process with its own pipeline, and takes its share of the cores; rows of one person go to one
    worker, which embeds the person once. Processes import the program's main file again, whose own doings have to
    stand below `if __name__ == "__main__":`.

    Args:
        jobs: of [`read_jobs`].
        output_dir: A folder, made if there is none. `manifest.jsonl` in it says what became of each row.
        load: Takes name and revision of a model and loads its pipeline, in the worker; a function that can be pickled.
        model: What `load` is to be given as the name for all that brings no model of its own.
        num_workers: By default one for every two cores.
        executor: "local" for processes of this machine, "ray" for those of a Ray cluster whose machines share the
            files.

    Raises:
        FsthError: No worker can begin, or another run is at work in the folder.
    """
    check_choice("executor", executor, ("local", "ray"))
    if num_workers is not None:
        check_number("num_workers", num_workers, 1, whole=True)
    output_dir = Path(output_dir).absolute()
    with _open_manifest(output_dir) as manifest:
        jobs = remaining_jobs(jobs, output_dir, model)
        if not jobs:
            return
        if executor == "ray":
            cores, gpus = start_ray()
            wanted = num_workers and min(num_workers, len(jobs))
            num_workers, num_threads = share_out(cores, wanted, CORES_PER_WORKER)
            num_workers = min(num_workers, len(jobs))
        else:
            num_workers = min(num_workers or max(1, _num_cores() // CORES_PER_WORKER), len(jobs))
            num_threads = max(1, _num_cores() // num_workers)
        make = partial(RowAnimator, load, model, output_dir, num_threads)
        make_worker = partial(ProcessWorker, make)
        if executor == "ray":
            make_worker = partial(RayWorker, make, num_threads, gpus and 1 / ceil(num_workers / gpus))
        for job, result in run_parts(by_person(jobs, num_workers), make_worker, num_workers):
            if isinstance(result, Crashed):
                result = failure("crash", result.cause)
            entry = {"output": job.output, "row": job.row, "job": job.digest(model)} | result
            manifest.write(json.dumps(entry).encode() + b"\n")
            yield entry


def _num_cores() -> int:
    """Those that this process may use, which in a container can be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _open_manifest(folder: Path) -> Iterator[BinaryIO]:
    """The manifest, to append to, held for this run: two at once would do everything twice."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / MANIFEST, "a+b", buffering=0)
    except OSError as error:
        raise FsthError(f"{folder} cannot be written to: {reason(error)}.") from error
    with file:
        try:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FsthError(f"Another run is at work in {folder}: wait for it, or end it.") from error
        except OSError:  # a file system without locks
            pass
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)  # of a line that was cut off the row is made again
        yield file
