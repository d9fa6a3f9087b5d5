"""The command `fsth batch`: many clips from a table. PyTorch is imported as in main.py."""

from collections import Counter
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ..landmarks import DEFAULT_DETECTOR, get_detector
from ..models.errors import FsthError
from . import loading as cli_loading
from .options import DetectorOption, DeviceOption, DtypeOption, EngineOption, ModelOption


if TYPE_CHECKING:
    from ..pipelines.pipeline_fsth import FsthPipeline


def batch(
    table: Annotated[
        Path,
        typer.Argument(
            metavar="JOBS.csv",
            help="A clip a row: columns portraits (several: a.jpg;b.jpg) or identity, driving, output, and any option "
            "of fsth animate, such as paste_back or frames. Paths are relative to it.",
        ),
    ],
    output: Annotated[Path, typer.Option(metavar="DIR", help="The folder for the clips and manifest.jsonl.")],
    num_workers: Annotated[
        int | None,
        typer.Option(
            "--num-workers",
            "--num_workers",
            min=1,
            metavar="N",
            help="Processes, which share the cores; by default one for every two.",
            show_default=False,
        ),
    ] = None,
    executor: Annotated[
        Literal["local", "ray"],
        typer.Option(
            metavar="NAME",
            help="local: processes of this machine; ray: of a Ray cluster whose machines share the files.",
        ),
    ] = "local",
    model: ModelOption = None,
    detector: DetectorOption = DEFAULT_DETECTOR,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    engine: EngineOption = "auto",
) -> None:
    """Animate many people: a table in, a clip for each of its rows out.

    Begun again, it does what is not done. The exit code is 1 where a row failed; manifest.jsonl says which, and why.

    For example: fsth batch jobs.csv --output clips --num-workers 2
    """
    if output.exists() and not output.is_dir():
        raise FsthError(f"{output} is a file: give the name of a folder.")
    from tqdm import tqdm

    from ..models.configuration_fsth import FsthConfig
    from ..models.downloading import fetch
    from ..pipelines.batch import MANIFEST, animate_batch, remaining_jobs
    from ..pipelines.batch_jobs import check_jobs, read_jobs
    from ..pipelines.loading import BUNDLED_MODEL

    get_detector(detector)  # a wrong name, or weights that cannot be fetched, are no row's fault
    jobs = read_jobs(table)
    if model is not None and Path(model).exists():
        model = str(Path(model).absolute())  # other machines' processes have other folders
    remaining = remaining_jobs(jobs, output, model)
    folder = fetch(model or BUNDLED_MODEL)
    try:
        config = FsthConfig.from_pretrained(folder / "generator")
    except (OSError, ValueError) as error:
        raise FsthError(f"{model} holds no pipeline of fsth_hub: check the name.") from error
    check_jobs(remaining, config, table, output)
    load = partial(load_for_batch, device=device, dtype=dtype, engine=engine, detector=detector)
    entries, failed = [], Counter()
    run = animate_batch(jobs, output, load, model=model, num_workers=num_workers, executor=executor)
    with closing(run), tqdm(total=len(remaining), disable=None, leave=False, unit=" clips") as progress:
        for entry in run:
            entries.append(entry)
            if "failed" in entry:
                failed[entry["reason"]] += 1
                progress.write(f"row {entry['row']} failed: {entry['failed']}")
            progress.update()
    made = [entry["frames"] for entry in entries if entry["frames"]]
    summary = f"{output}: {len(made)} clips made ({sum(made)} frames), {len(jobs) - len(remaining)} done before"
    if failed:
        kinds = ", ".join(f"{kind}: {count}" for kind, count in failed.most_common())
        summary += f", {failed.total()} failed ({kinds}; {output / MANIFEST} says which)"
    typer.echo(summary)
    if failed:
        raise typer.Exit(1)


def load_for_batch(
    model: str | None, revision: str | None, device: str, dtype: str, engine: str, detector: str
) -> "FsthPipeline":
    """The pipeline of a worker, in its process."""
    pipe = cli_loading.load_pipeline(model, device, dtype, revision, engine)
    pipe.detector = get_detector(detector)
    return pipe
