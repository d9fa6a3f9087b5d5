"""The paper's evaluation (arXiv 1905.08233, section 4) on people that the models have not seen.

    python training/evaluate.py SHARDS --lpips ALEXNET.safetensors --identity_network ARCFACE.onnx --output_dir RUN

Self-reenactment: of one clip of each person, T portraits from its first half stand for the person, and frames of its
second half are generated from their landmarks and compared with the truth. Beside each model, feed-forward and tuned,
stand the first portrait as it is and the portrait warped by the landmarks alone. Cross-reenactment (`--cross`): the
portrait is driven by other people's clips. Portraits (`--portraits`, `--drivers`): paintings and photographs are
driven by clips, and eyes and mouth compared with what the landmarks ask for.

Writes evaluation.json, evaluation.md and picture grids. What is measured is saved at once: killed and started again,
or started with more models, shots or people, the script measures what is not there yet.
"""

import argparse
import hashlib
import json
import platform
import shlex
import sys
from pathlib import Path

import numpy as np
import torch
from huggingface_hub.errors import HFValidationError


sys.path.insert(0, str(Path(__file__).parents[1]))  # runs from a checkout that is not installed

from fsth_hub.device import default_device, default_dtype
from fsth_hub.finetuning.feature_networks import LPIPS, load_weights
from fsth_hub.finetuning.loop import BUNDLED_VGG, METHODS, load_content
from fsth_hub.landmarks import get_detector
from fsth_hub.models.errors import FsthError
from fsth_hub.models.landmark_drawing import rasterize_landmarks
from fsth_hub.pipelines.pipeline_fsth import FsthPipeline
from training.data.dataset import ClipRecord, read_index
from training.evaluation.metrics import IdentityNetwork
from training.evaluation.portraits import PortraitReenactment, files_hash, list_pictures, read_motion, read_portrait
from training.evaluation.reenactment import (
    NUM_DRIVERS,
    CrossReenactment,
    Instruments,
    SelfReenactment,
    feed_forward,
    fine_tuned,
    one_clip_per_person,
    picked_frames,
    source_frames,
    timed,
    unmoved_portrait,
    warped_portrait,
)
from training.evaluation.report import DRIVER, RESULTS, UNMOVED, WARP, check_markers, render, save_strip, strip_path


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path, nargs="?", help="shards of people the models were not trained on")
    parser.add_argument(
        "--model", action="append", metavar="NAME=FOLDER_OR_ID", help="repeatable; by default the bundled model"
    )
    parser.add_argument("--lpips", help="AlexNet with LPIPS heads: safetensors file or hub repository")
    parser.add_argument("--identity_network", help="ONNX file of a face-recognition network, for CSIM")
    parser.add_argument("--shots", type=int, nargs="+", default=[1, 8, 32], help="numbers of portraits, T")
    parser.add_argument(
        "--pick",
        default="even",
        choices=["even", "picked"],
        help="portraits evenly spread, or as the pipeline picks",
    )
    parser.add_argument("--num_frames", type=int, default=32, help="frames generated per clip, at most")
    parser.add_argument("--people", type=int, help="no more than so many people")
    parser.add_argument(
        "--fine_tune", nargs="+", default=[], choices=METHODS, help="also fine-tune each model on each person"
    )
    parser.add_argument("--people_fine_tuned", type=int, help="no more than so many people for each T")
    parser.add_argument("--fine_tune_steps", type=int, help="by default what the pipeline takes for T")
    parser.add_argument(
        "--vgg",
        help="for fine-tuning: ImageNet VGG, safetensors file or hub repository; by default the package's VGG16",
    )
    parser.add_argument("--face_network", help="for fine-tuning, optional: safetensors file or hub repository")
    parser.add_argument("--cross", action="store_true", help="also cross-reenactment, with the least T")
    parser.add_argument(
        "--portraits",
        action="append",
        default=[],
        metavar="NAME=FOLDER_OR_LIST",
        help="repeatable: pictures, or a .txt with a path in each line, to be driven by --drivers, T = 1",
    )
    parser.add_argument("--drivers", type=Path, nargs="+", default=[], help="clips that drive --portraits")
    parser.add_argument("--max_portraits", type=int, help="no more than so many pictures of each --portraits")
    parser.add_argument("--dtype", default="auto", choices=["auto", "float32", "bfloat16"])
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--write", type=Path, action="append", default=[], help="a file with markers for the tables")
    parser.add_argument("--render_only", action="store_true", help="tables and grids of OUTPUT_DIR/evaluation.json")
    args = parser.parse_args(argv)
    if not args.render_only:
        missing = [name for name in ("shards", "lpips", "identity_network") if getattr(args, name) is None]
        if missing:
            parser.error(f"{', '.join(missing)} must be given, except with --render_only")
        if min(args.shots) < 1 or args.num_frames < 1:
            parser.error("--shots and --num_frames must be at least 1")
    args.shots = sorted(set(args.shots))
    args.models = {}
    for text in args.model or ["bundled"]:
        name, separator, source = text.partition("=")
        if not name or not (source if separator else name == "bundled"):
            parser.error(f"--model {text}: give NAME=FOLDER_OR_ID, or bundled")
        args.models[name] = source or None
    if args.portraits and not args.drivers:
        parser.error("--portraits are to be driven: give --drivers")
    groups = {}
    for text in args.portraits:
        name, _, source = text.partition("=")
        if not name or not source or "/" in name:
            parser.error(f"--portraits {text}: give NAME=FOLDER_OR_LIST")
        groups[name] = Path(source)
    args.portraits = groups
    return args


def sha256(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def weights_hash(pipe: FsthPipeline) -> str:
    """Of all weight files of a pipeline, in the order of their names."""
    folder = Path(pipe.model_source.folder)
    return sha256(*(path.read_bytes() for path in sorted(folder.rglob("*.safetensors"))))


def network_description(path_or_repo: str | Path) -> dict:
    path = Path(path_or_repo)
    return {"file": path.name, "sha256": sha256(path.read_bytes())} if path.is_file() else {"file": path_or_repo}


def hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def describe_settings(args, clips: list[ClipRecord], pipes: dict[str, FsthPipeline]) -> dict:
    """All that numbers depend on, except for how many of them are asked for."""
    uses = {"LPIPS": args.lpips, "CSIM": args.identity_network}
    if args.fine_tune:
        uses |= {"content loss": args.vgg or BUNDLED_VGG, "face content loss": args.face_network}
    pipe = next(iter(pipes.values()))
    return {
        "data": {
            "num_frames": args.num_frames,
            "pick": args.pick,
            "sha256": sha256(*(part for clip in clips for part in (clip.key.encode(), clip.landmarks.tobytes()))),
        },
        "models": {name: {"sha256": weights_hash(pipe)} for name, pipe in pipes.items()},
        "networks": {use: network_description(path) for use, path in uses.items() if path},
        "fine_tuning": {"steps": args.fine_tune_steps} if args.fine_tune else {},
        "portraits": {
            name: {"pictures": files_hash(list_pictures(source)), "drivers": files_hash(args.drivers)}
            for name, source in args.portraits.items()
        },
        "machine": {
            "hardware": hardware(pipe.device),
            "device": str(pipe.device),
            "dtype": str(pipe.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        },
    }


def open_results(path: Path, settings: dict) -> dict:
    """What was measured before with these settings, to go on from; an `FsthError` where it was with others."""
    if not path.exists():
        return {"settings": settings, "commands": [], "people": {}}
    results = json.loads(path.read_text())
    before = results["settings"]
    before["data"].setdefault("pick", "even")  # measured before there was another way
    other = [
        f"{group} {name}"
        for group, values in settings.items()
        for name, value in values.items()
        if name in before.get(group, {}) and before[group][name] != value
    ]
    if other:
        raise FsthError(f"{path} was measured with other settings ({', '.join(other)}): give another --output_dir.")
    # models in the order of this call, whichever was measured first: the tables compare the first with the others
    results["settings"] = {group: values | before.get(group, {}) for group, values in settings.items()}
    return results


def command_line(args) -> str:
    """The command for others to repeat: files by their names, wherever they lie here."""

    def public(path_or_repo: str) -> str:
        return Path(path_or_repo).resolve().name if Path(path_or_repo).exists() else path_or_repo

    parts = ["python", "training/evaluate.py", f"SHARDS/{public(args.shards)}"]
    for name, source in args.models.items():
        parts += ["--model", name if source is None else f"{name}={public(source)}"]
    for name in ("lpips", "identity_network", "vgg", "face_network"):
        if getattr(args, name) is not None:
            parts += [f"--{name}", public(getattr(args, name))]
    parts += ["--shots", *map(str, args.shots), "--num_frames", str(args.num_frames)]
    parts += ["--pick", args.pick] * (args.pick != "even")
    for name in ("people", "people_fine_tuned", "fine_tune_steps"):
        if getattr(args, name) is not None:
            parts += [f"--{name}", str(getattr(args, name))]
    parts += ["--fine_tune", *args.fine_tune] * bool(args.fine_tune) + ["--cross"] * args.cross
    for name, source in args.portraits.items():
        parts += ["--portraits", f"{name}={public(source)}"]
    if args.portraits:
        parts += ["--drivers", *map(public, args.drivers)]
        parts += ["--max_portraits", str(args.max_portraits)] * (args.max_portraits is not None)
    return shlex.join([*parts, "--output_dir", "RUN/evaluation"])


def save_results(path: Path, results: dict):
    """Whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(results, indent=1) + "\n")
    partial.replace(path)


def measure(args):
    clips = one_clip_per_person(read_index(args.shards))
    device = default_device()
    dtype = default_dtype(device) if args.dtype == "auto" else getattr(torch, args.dtype)
    pipes = {
        name: FsthPipeline.from_pretrained(source, dtype=dtype).to(device) for name, source in args.models.items()
    }
    if args.cross and len(clips) < 2:
        raise FsthError("Cross-reenactment takes clips of two people at least.")
    side = clips[0].image(0).width
    for name, pipe in pipes.items():
        if pipe.size != side:
            raise FsthError(f"The shards hold frames of {side} pixels, and {name} generates {pipe.size}.")
    instruments = Instruments(LPIPS(load_weights(args.lpips)), IdentityNetwork(args.identity_network), get_detector())

    methods = {UNMOVED: unmoved_portrait, WARP: warped_portrait}
    for name, pipe in pipes.items():
        methods[f"{name} FF"] = feed_forward(pipe, pipe.generator_for())
    tuned = {}
    if args.fine_tune:
        content = load_content(args.vgg, args.face_network)
        tuned = {
            f"{name} FT {method}": fine_tuned(pipe, method, content, args.fine_tune_steps)
            for name, pipe in pipes.items()
            for method in args.fine_tune
        }

    path = args.output_dir / RESULTS
    results = open_results(path, describe_settings(args, clips, pipes))
    if command_line(args) not in results["commands"]:
        results["commands"].append(command_line(args))
    args.output_dir.mkdir(parents=True, exist_ok=True)
    num_fine_tuned = dict.fromkeys(args.shots, 0)
    for number, clip in enumerate(clips[: args.people]):
        name = clip.identity
        empty = {"clip": clip.key, "frames": len(clip.frames), "left_out": [], "self": {}, "cross": {}}
        person = results["people"].setdefault(name, empty)
        tasks = [SelfReenactment(clip, args.num_frames, instruments)]
        if args.cross:
            drivers = [clips[(number + 1 + offset) % len(clips)] for offset in range(min(NUM_DRIVERS, len(clips) - 1))]
            tasks.append(CrossReenactment(clip, drivers, args.num_frames, instruments))

        for shots in args.shots:
            even = args.pick == "even"
            sources = source_frames(len(clip.frames), shots) if even else picked_frames(clip, shots)
            if sources is None:
                print(f"{name}: too few frames ({len(clip.frames)}) for T = {shots}", flush=True)
                person["left_out"] = sorted({*person["left_out"], shots})
                continue
            crops, landmarks = [np.asarray(clip.image(index)) for index in sources], clip.landmarks[sources]
            num_fine_tuned[shots] += 1
            beyond_limit = args.people_fine_tuned is not None and num_fine_tuned[shots] > args.people_fine_tuned
            wanted = methods if beyond_limit else methods | tuned
            if shots > args.shots[0]:
                tasks = tasks[:1]
                wanted = {method: prepare for method, prepare in wanted.items() if method != UNMOVED}
            measure_tasks(args.output_dir, results, person, name, tasks, wanted, shots, (crops, landmarks))
    measure_portraits(args, results, next(iter(pipes.values())), methods, instruments)
    save_results(path, results)


def measure_portraits(args, results: dict, pipe: FsthPipeline, methods: dict, instruments: Instruments):
    """Each picture of `--portraits`, driven by each of `--drivers`."""
    pipe.set_progress_bar_config(disable=True)
    pipe.detector = instruments.detector
    motions = [read_motion(pipe, driver) for driver in args.drivers] if args.portraits else []
    for group, source in args.portraits.items():
        measured = results.setdefault("portraits", {}).setdefault(group, {"left_out": [], "people": {}})
        for picture in list_pictures(source)[: args.max_portraits]:
            found = read_portrait(pipe, picture)
            if found is None:
                print(f"{group}, {picture.name}: no face was found", flush=True)
                measured["left_out"] = sorted({*measured["left_out"], picture.name})
                continue
            portrait, own = found
            person = measured["people"].setdefault(picture.name, {PortraitReenactment.name: {}})
            task = PortraitReenactment(portrait, own, motions, instruments)
            person[task.name].setdefault("1", {})[DRIVER] = task.measure_driver()
            name = f"{group}/{picture.name}"
            measure_tasks(args.output_dir, results, person, name, [task], methods, 1, ([portrait], own[None]))


def measure_tasks(
    folder: Path, results: dict, person: dict, name: str, tasks: list, methods: dict, shots: int, sources
):
    """By each method what is not measured yet. `person` is the part of the results that is filled in, `sources` are
    the portraits and their landmarks.
    """
    for method, prepare in methods.items():
        wanted = [task for task in tasks if method not in person[task.name].get(str(shots), {})]
        if not wanted:
            continue
        generate, costs = prepare(*sources)
        for task in wanted:
            fake, times = zip(*(timed(generate, points) for points in task.targets), strict=True)
            measured = task.measure(fake, [generate(points) for points in task.extras])
            numbers = {key: round(value, 4) for key, value in measured.items() if value is not None}
            print(f"{name}, T = {shots}, {task.name}, {method}: {numbers}", flush=True)
            seconds = costs.get("seconds", {}) | {"generate": float(np.median(times))}
            measured |= costs | {"seconds": seconds}
            person[task.name].setdefault(str(shots), {})[method] = measured
            save_pictures(folder, name, task, shots, method, sources[0][0], fake)
            save_results(folder / RESULTS, results)


def save_pictures(folder: Path, name: str, task, shots: int, method: str, portrait: np.ndarray, fake):
    """Some frames of a method, and what belongs beside them in a grid."""
    drawings = {index: rasterize_landmarks(task.targets[index], len(portrait)) for index in task.shown}
    columns = {"portrait": [portrait] * len(fake), "landmarks": drawings, method: fake}
    if task.real:
        columns[task.real_title] = task.real
    for column, frames in columns.items():
        save_strip(strip_path(folder, name, task.name, str(shots), column), [frames[index] for index in task.shown])


def main(argv=None):
    args = parse_args(argv)
    try:
        for path in args.write:  # not only after hours
            check_markers(path)
        if not args.render_only:
            measure(args)
        render(args.output_dir, args.write)
    except (FsthError, HFValidationError, OSError) as error:  # of networks and files that are not there, too
        sys.exit(str(error))


if __name__ == "__main__":
    main()
