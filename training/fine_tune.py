"""Few-shot fine-tuning of many people (arXiv 1905.08233 v2, section 3.4), with Accelerate.

    python training/fine_tune.py PEOPLE --output_dir runs/identities --vgg vgg16.safetensors
    python training/fine_tune.py SHARDS --shots 8 --output_dir runs/identities --vgg vgg16.safetensors

PEOPLE is a folder of folders, each with the photographs of one person; SHARDS are those of prepare_dataset.py, of
which `--shots` frames spread over a person's first clip are taken. Processes (`accelerate launch` or `torchrun`) share
the people out. Each becomes OUTPUT_DIR/NAME, written whole or not at all, and is passed over if it is there: run again
what was interrupted. OUTPUT_DIR/summary.json says how it went.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
from accelerate import Accelerator
from accelerate.utils import gather_object


sys.path.insert(0, str(Path(__file__).parents[1]))  # runs from a checkout that is not installed

from fsth_hub.device import default_dtype
from fsth_hub.finetuning.loop import METHODS, load_content
from fsth_hub.models.errors import FsthError
from fsth_hub.pipelines.identity import CONFIG_NAME, FsthIdentity
from fsth_hub.pipelines.pipeline_fsth import FsthPipeline
from training.data.dataset import ClipRecord, read_index


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("people", type=Path, help="a folder of folders of photographs, or of shards")
    parser.add_argument("--output_dir", type=Path, required=True, help="identities and the summary")
    parser.add_argument("--shots", type=int, default=8, help="T, frames of a clip; for shards only")
    parser.add_argument("--model", help="pipeline folder or hub id; by default the bundled model")
    parser.add_argument("--method", choices=METHODS, default="full", help="all weights of the generator, or LoRA")
    parser.add_argument("--steps", type=int, help="at most so many; by default by the number of photographs")
    parser.add_argument("--learning_rate", type=float, help="Adam's for the generator; by default by the method")
    parser.add_argument(
        "--vgg", help="VGG of the content loss: safetensors file or hub id; by default the package's VGG16"
    )
    parser.add_argument("--face_network", help="face network of the content loss; without it that term is left out")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def find_people(folder: Path) -> dict[str, list[Path] | ClipRecord]:
    """Who is to be fine-tuned, by name: photographs or a clip."""
    if not folder.is_dir():
        raise FsthError(f"There is no folder {folder}: check the path.")
    if any(folder.glob("*.tar")):
        people = {}
        for clip in read_index(folder):
            people.setdefault(clip.identity, clip)
        return people
    photographs = {
        person.name: sorted(file for file in person.iterdir() if file.is_file() and not file.name.startswith("."))
        for person in sorted(folder.iterdir())
        if person.is_dir() and not person.name.startswith(".")
    }
    if not photographs:
        raise FsthError(f"{folder} holds neither shards nor folders of photographs.")
    return photographs


def fine_tune(pipe: FsthPipeline, source: list[Path] | ClipRecord, shots: int, **options) -> FsthIdentity:
    if not isinstance(source, ClipRecord):
        return pipe.fine_tune(source, **options)
    frames = np.linspace(0, len(source.frames) - 1, min(shots, len(source.frames))).round().astype(int)
    crops = [np.asarray(source.image(frame)) for frame in frames]
    return pipe.fine_tune_crops(crops, source.landmarks[frames], **options)


def summarise(folder: Path) -> dict:
    """What a finished identity says of itself: its score on what was held out, before and after."""
    config = json.loads((folder / CONFIG_NAME).read_text())
    held_out = {entry["step"]: entry["held_out"] for entry in config["history"] if "held_out" in entry}
    scores = {"held_out_before": held_out[0], "held_out_after": held_out[config["steps"]]}
    return {key: config[key] for key in ("method", "num_portraits", "steps")} | scores


def main(argv=None):
    args = parse_args(argv)
    accelerator = Accelerator()
    people = find_people(args.people)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    waiting = [name for name in people if not (args.output_dir / name / CONFIG_NAME).is_file()]
    accelerator.wait_for_everyone()  # before the first identity is written and the lists differ
    accelerator.print(
        f"{len(people)} people, {len(people) - len(waiting)} done, {accelerator.num_processes} processes"
    )

    device = accelerator.device
    pipe = FsthPipeline.from_pretrained(args.model, dtype=default_dtype(device)).to(device)
    pipe.set_progress_bar_config(disable=not accelerator.is_local_main_process, leave=False, unit=" steps")
    content = load_content(args.vgg, args.face_network)
    failed = {}
    with accelerator.split_between_processes(waiting) as own:
        for name in own:
            started = time.perf_counter()
            try:
                options = {"method": args.method, "steps": args.steps, "learning_rate": args.learning_rate}
                options |= {"content": content, "seed": args.seed}
                identity = fine_tune(pipe, people[name], args.shots, **options)
                identity.save_pretrained(args.output_dir / name)
            except FsthError as error:  # of one person; the others go on
                failed[name] = {"error": str(error)}
                print(f"{name}: {error}", flush=True)
                continue
            seconds = time.perf_counter() - started
            print(f"{name}: best after {identity.steps} steps, {seconds:.0f} s", flush=True)

    accelerator.wait_for_everyone()
    failures = dict(pair for part in gather_object([failed]) for pair in part.items())
    if accelerator.is_main_process:
        rows = {name: failures.get(name) or summarise(args.output_dir / name) for name in people}
        (args.output_dir / "summary.json").write_text(json.dumps(rows, indent=2) + "\n")
    accelerator.end_training()
    if failures and accelerator.is_main_process:
        sys.exit(f"{len(failures)} of {len(people)} people could not be fine-tuned; summary.json says why.")


if __name__ == "__main__":
    try:
        main()
    except FsthError as error:
        sys.exit(f"fine_tune.py: error: {error}")
