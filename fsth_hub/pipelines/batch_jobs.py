"""The rows of a batch: read from a CSV file, and checked before any of them is computed."""

import csv
import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path

from ..checks import check_number
from ..landmarks.motion import check_motion
from ..landmarks.portrait_picking import DEFAULT_SHOTS, MAX_SHOTS
from ..landmarks.regions import check_regions
from ..landmarks.smoothing import DEFAULT_SMOOTHING, check_smoothing
from ..media.frames import FPS_RANGE
from ..media.motion_files import SCHEME, file_of, is_motion
from ..models.configuration_fsth import FsthConfig
from ..models.errors import FsthError, FsthNotFoundError
from .driving import DrivingMotion, check_drive
from .inputs import check_size


CLIPS = (".mp4", ".gif")
SEPARATOR = ";"  # between the portraits of a row
MOST_SHOWN = 3  # rows that cannot be used


@dataclass(frozen=True, kw_only=True)
class Job:
    """
    A row of a batch. Options are named as those of `fsth animate`, and mean the same.

    Args:
        row: Its number, the first below the heading being 1.
        output: The clip to write, below the folder of the results, with `/` between folders.
        driving: A file's path, or a motion that ships, such as "motion:nod".
        portraits: Files of one person.
        identity: A fine-tuned person instead: a folder, or the id of a hub repository.
    """

    row: int
    output: str
    driving: str
    portraits: tuple[str, ...] = ()
    identity: str | None = None
    motion: str = "relative"
    motion_strength: float = 1.0
    smoothing: float = DEFAULT_SMOOTHING
    size: int | None = None
    regions: tuple[str, ...] | None = None
    seconds: float | None = None
    sound: str | None = None
    paste_back: bool = False
    crop: bool = True
    face: int = 0
    shots: int = DEFAULT_SHOTS
    driving_face: int = 0
    frames: int | None = None
    fps: float | None = None
    watermark: bool = True
    credentials: bool = True

    @property
    def person(self) -> tuple:
        """Whom the row shows, and what they are read by: the same for rows that can share what was embedded."""
        return self.identity, self.portraits, self.face, self.shots, self.crop

    @property
    def files(self) -> tuple[str, ...]:
        """What the row reads that must be there."""
        driving = () if self.driving.startswith(SCHEME) else (self.driving,)
        return *self.portraits, *driving, *(() if self.sound is None else (self.sound,))

    def digest(self, model: str | None) -> str:
        """Changes with what the row asks for, wherever it stands in the table."""
        asked = asdict(replace(self, row=0)) | {"model": model}
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]


def read_jobs(table: str | os.PathLike) -> list[Job]:
    """
    The rows of a CSV file, with paths relative to it. What is written is checked, but not whether files are there.

    Raises:
        FsthError: The file cannot be read, has a column that is not known, or a row that cannot be used.
    """
    table = Path(table)
    if not table.is_file():
        raise FsthNotFoundError(f"There is no file {table}: check the path.")
    try:
        with open(table, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.reader(file, strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise FsthError(f"{table.name} is no CSV file in UTF-8: {error}.") from error
    filled = [[cell.strip() for cell in row] for row in rows if any(cell.strip() for cell in row)]
    if len(filled) < 2:
        raise FsthError(f"{table.name} has no rows: give a heading, such as portraits,driving,output, and rows below.")
    names = _columns(filled[0], table.name)
    folder, written_by = table.absolute().parent, {}

    def read(numbered: tuple[int, list[str]]) -> Job:
        job = _job(*numbered, names, folder)
        first = written_by.setdefault(os.path.normpath(job.output).casefold(), job.row)
        if first != job.row:
            raise FsthError(f"{job.output} is the output of row {first}, too")
        return job

    return _each(list(enumerate(filled[1:], start=1)), read, lambda numbered: numbered[0], table.name)


def check_jobs(jobs: list[Job], config: FsthConfig, table: str | os.PathLike, output_dir: str | os.PathLike) -> None:
    """
    Refuse (`FsthError`) rows whose files are not there, whose motions cannot be read, that would replace an input, or
    whose frames a generator of this config does not generate.
    """
    inputs = {os.path.realpath(path) for job in jobs for path in job.files}
    load_motion = lru_cache(DrivingMotion.load)  # the same few for many rows

    def check(job: Job) -> None:
        for path in job.files:
            if not os.path.isfile(path):
                raise FsthNotFoundError(f"there is no file {path}")
        if job.identity is None:
            check_size(job.size, config)
        elif os.path.isabs(job.identity) and not os.path.isdir(job.identity):
            raise FsthNotFoundError(f"there is no folder {job.identity}")
        driving = load_motion(job.driving) if is_motion(job.driving) else job.driving
        check_drive(driving, job.motion, job.regions)
        if os.path.realpath(Path(output_dir, job.output)) in inputs:
            raise FsthError(f"{job.output} would replace a file that is needed")

    _each(jobs, check, lambda job: job.row, Path(table).name)


def by_person(jobs: Iterable[Job], num_workers: int) -> list[list[Job]]:
    """
    The rows in parts of one person each, so that a worker embeds each person once; people with many rows are shared
    out among the workers.
    """
    people: dict[tuple, list[Job]] = {}
    for job in jobs:
        people.setdefault(job.person, []).append(job)
    share = max(1, -(-sum(map(len, people.values())) // num_workers))
    parts = [rows[start : start + share] for rows in people.values() for start in range(0, len(rows), share)]
    return sorted(parts, key=len, reverse=True)  # long ones first, so that workers end together


def _columns(heading: list[str], table: str) -> list[str]:
    """The fields of `Job` that the columns stand for."""
    known = [name for name in Job.__dataclass_fields__ if name != "row"]
    names = [name.lower().replace("-", "_").replace(" ", "_") for name in heading]
    for name, written in zip(names, heading, strict=True):
        if name not in known:
            near = get_close_matches(name, known, 1, 0.0)[0]
            raise FsthError(
                f"{table} has a column '{written[:40]}' that is not known; the nearest is '{near}', and there are: "
                f"{', '.join(known)}."
            )
        if names.count(name) > 1:
            raise FsthError(f"{table} has the column '{name}' twice: leave one out.")
    for name in ("driving", "output"):
        if name not in names:
            raise FsthError(f"{table} has no column '{name}', which every row needs.")
    return names


def _each(rows: list, function: Callable, number: Callable, table: str) -> list:
    """What the function makes of each row; `FsthError` with the first rows that it refuses."""
    made, refused = [], []
    for row in rows:
        try:
            made.append(function(row))
        except FsthError as error:
            refused.append(f"row {number(row)}: {str(error).rstrip('.')}")
    if refused:
        others = f"; and {len(refused) - MOST_SHOWN} more" if len(refused) > MOST_SHOWN else ""
        raise FsthError(f"{table}, {'; '.join(refused[:MOST_SHOWN])}{others}: nothing was begun.")
    return made


def _job(row: int, cells: list[str], names: list[str], folder: Path) -> Job:
    if len(cells) > len(names):
        raise FsthError(
            f"it has {len(cells)} cells, but there are {len(names)} columns: put text with commas in quotes"
        )
    if any("\0" in cell for cell in cells):
        raise FsthError("it has a character that no name can have: write the file anew")
    given = {name: _READERS[name](name, cell) for name, cell in zip(names, cells, strict=False) if cell}
    for name in ("driving", "output"):
        if name not in given:
            raise FsthError(f"its {name} is empty")
    paths = {name: _path(given[name], folder) for name in ("driving", "sound") if name in given}
    paths["portraits"] = tuple(_path(path, folder) for path in given.get("portraits", ()))
    if "identity" in given:
        local = _path(given["identity"], folder)
        # as everywhere, a folder comes before a hub repository; "owner/name" is the latter otherwise
        is_hub_id = given["identity"].count("/") == 1 and not given["identity"].startswith((".", "/", "~"))
        paths["identity"] = given["identity"] if is_hub_id and not os.path.isdir(local) else local
    job = Job(row=row, **(given | paths))
    _check(job)
    return job


def _check(job: Job) -> None:
    """Refuse what cannot work, whatever the files hold."""
    path = Path(job.output)
    if path.is_absolute() or ".." in path.parts or path.suffix.lower() not in CLIPS:
        raise FsthError(f"{job.output} must be a name below the output folder that ends in {' or '.join(CLIPS)}")
    if bool(job.portraits) == (job.identity is not None):
        raise FsthError("give either portraits or the identity of a fine-tuned person")
    if job.identity is not None and (job.paste_back or job.face):
        raise FsthError("paste_back and face are for portraits: leave them out where an identity is given")
    check_motion(job.motion, job.motion_strength)
    check_smoothing(job.smoothing)
    for name, high in (("face", float("inf")), ("driving_face", float("inf")), ("shots", MAX_SHOTS)):
        check_number(name, getattr(job, name), int(name == "shots"), high, whole=True)
    if job.frames is not None:
        check_number("frames", job.frames, 1, whole=True)
    if job.fps is not None:
        check_number("fps", job.fps, *FPS_RANGE)
    if not is_motion(job.driving):
        if job.seconds is not None:
            raise FsthError("seconds are for motions, which can be repeated: of a clip take the first frames")
        return
    if job.fps is not None or job.driving_face:
        raise FsthError("fps and driving_face are for clips, and not for a motion: leave them out")
    if job.driving.startswith(SCHEME):
        file_of(job.driving)
    if job.seconds is not None:
        check_number("seconds", job.seconds, 0)


def _path(text: str, folder: Path) -> str:
    return text if text.startswith(SCHEME) else os.path.normpath(folder / Path(text).expanduser())


# What cells say.


def _text(name: str, cell: str) -> str:
    return cell


def _list(name: str, cell: str) -> tuple[str, ...]:
    return tuple(part for part in map(str.strip, cell.split(SEPARATOR)) if part)


def _regions(name: str, cell: str) -> tuple[str, ...]:
    return check_regions(_list(name, cell.replace(",", SEPARATOR)))


def _number(name: str, cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        raise FsthError(f"{name} must be a number, not '{cell[:40]}'") from None


def _whole(name: str, cell: str) -> int:
    number = _number(name, cell)
    if not number.is_integer():
        raise FsthError(f"{name} must be a whole number, not '{cell[:40]}'")
    return int(number)


def _flag(name: str, cell: str) -> bool:
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if cell.lower() not in words:
        raise FsthError(f"{name} must be true or false, not '{cell[:40]}'")
    return words[cell.lower()]


_READERS = (
    dict.fromkeys(("output", "driving", "identity", "motion", "sound"), _text)
    | dict.fromkeys(("motion_strength", "smoothing", "seconds", "fps"), _number)
    | dict.fromkeys(("size", "face", "shots", "driving_face", "frames"), _whole)
    | dict.fromkeys(("paste_back", "crop", "watermark", "credentials"), _flag)
    | {"portraits": _list, "regions": _regions}
)
