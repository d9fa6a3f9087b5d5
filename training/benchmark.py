"""How fast a pipeline is on this machine, stage by stage, as Markdown and JSON.

    python training/benchmark.py --output benchmark.json
    python training/benchmark.py --settings default passive avx2 --write README.md

By default the bundled model and the example files of the package. Stages are timed alone, the best of `--repeats`,
since other programs only ever slow a machine down. Frames are drawn by each engine in turn, one frame after the other,
so that what else the machine does hits all of them alike; there the median of the wall clock and of the processor's
time counts, and ratios say more than either.

`--settings` measures anew, each in a process of its own: as PyTorch comes (its threads spin while they wait),
`passive` (they sleep, as in programs that compute in several threads), or with the instructions of a laptop (`avx2`,
as far as libraries let themselves be told).
"""

import argparse
import copy
import importlib.metadata
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image


sys.path.insert(0, str(Path(__file__).parents[1]))  # runs from a checkout that is not installed

from fsth_hub.device import default_device, default_dtype
from fsth_hub.media.reading import open_clip
from fsth_hub.media.writing import write_clip
from fsth_hub.models.errors import FsthError, NoFaceError
from fsth_hub.models.image_processing_fsth import load_image
from fsth_hub.models.landmark_flow import portrait_flow
from fsth_hub.pipelines import engines
from fsth_hub.pipelines.person import DEFAULT_SIZE
from fsth_hub.pipelines.pipeline_fsth import FsthPipeline


EXAMPLES = Path(__file__).parents[1] / "fsth_hub" / "examples"
SETTINGS = {  # variables of the environment, read when libraries are loaded
    "default": {},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"},
    "avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"},
}
BEGIN, END = "<!-- speed: training/benchmark.py -->", "<!-- end of speed -->"
PICTURE_SIZES = {"256 x 256": (256, 256), "1280 x 720": (1280, 720)}  # width, height
FRAME_SIZES = (256, 512, 1024)  # pixels


def parse_args(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="pipeline folder or hub id; by default the bundled model")
    parser.add_argument("--portrait", type=Path, default=EXAMPLES / "astronaut.jpg", help="a picture with a face")
    parser.add_argument("--driving", type=Path, default=EXAMPLES / "driver.mp4", help="a clip with a face")
    parser.add_argument("--device", default="auto", help="cpu, cuda, mps; by default the fastest there is")
    parser.add_argument("--num_portraits", type=int, nargs="+", default=[1, 8, 32], help="the T to measure")
    parser.add_argument("--num_frames", type=int, default=8, help="frames drawn, tracked or encoded in one repeat")
    parser.add_argument("--repeats", type=int, default=5, help="the best of so many counts")
    parser.add_argument("--settings", nargs="*", choices=SETTINGS, help="measure under each of these; see above")
    parser.add_argument("--write", type=Path, help=f"Markdown file whose lines after '{BEGIN}' to replace")
    parser.add_argument("--output", type=Path, help="file for the JSON; the Markdown goes to stdout")
    return parser.parse_args(arguments)


def best_seconds(function: Callable, repeats: int, device: torch.device) -> float:
    """Seconds of the fastest of several calls, after one that warms up."""

    def synchronize():  # a GPU is only told what to do; its work is over later
        if device.type in ("cuda", "mps"):
            getattr(torch, device.type).synchronize()

    seconds = []
    for _ in range(1 + repeats):
        synchronize()
        started = time.perf_counter()
        function()
        synchronize()
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")  # `platform` knows no names on Linux
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def instructions() -> str:
    """What PyTorch computes with on this processor, and what else this has for networks."""
    wide = ("avx512_bf16", "amx_bf16", "avx512_vnni", "avx_vnni")
    capabilities = torch.cpu.get_capabilities()
    return " ".join([torch.backends.cpu.get_cpu_capability(), *(name for name in wide if capabilities.get(name))])


def describe(pipe: FsthPipeline) -> dict:
    networks = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    cuda = pipe.device.type == "cuda"
    return {
        "device": str(pipe.device),
        "gpu": torch.cuda.get_device_name(pipe.device) if cuda else None,
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        # other programs that run beside the benchmark show here: for times to compare, well below one for each core
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "instructions": instructions(),
        "openmp": os.environ.get("OMP_WAIT_POLICY", "default").lower(),
        "torch": torch.__version__,
        "openvino": importlib.metadata.version("openvino") if engines.is_installed() else None,
        "opencv": cv2.__version__,
        "python": platform.python_version(),
        "default_dtype": str(pipe.dtype).removeprefix("torch."),
        "image_size": pipe.size,
        "parameters": {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()},
    }


def peak_memory(device: torch.device) -> dict:
    """Megabytes: of the whole process, and of tensors on the GPU."""
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, kilobytes elsewhere
    peak = {"process_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit}
    if device.type == "cuda":
        peak["cuda_mb"] = torch.cuda.max_memory_allocated(device) / 2**20
    return peak


def landmark_times(pipe: FsthPipeline, frame: np.ndarray, args) -> dict[str, dict[str, float]]:
    """Milliseconds to find a face and to follow it, in pictures of each size."""
    times = {}
    for name, (width, height) in PICTURE_SIZES.items():
        # the frame stands in the middle and fills the height, as a speaker does
        side = min(width, height)
        picture = np.zeros((height, width, 3), np.uint8)
        left = (width - side) // 2
        picture[:, left : left + side] = Image.fromarray(frame).resize((side, side))
        face = next(iter(pipe.detector.detect(picture)), None)
        if face is None:
            raise NoFaceError(f"No face was found in {args.driving.name}, scaled to {name}.")

        def find(picture=picture):
            pipe.detector.detect(picture)

        def follow(picture=picture, face=face):
            for _ in range(args.num_frames):
                pipe.detector.track(picture, face)

        cpu = torch.device("cpu")
        followed = best_seconds(follow, args.repeats, cpu) / args.num_frames
        times[name] = {"find": 1000 * best_seconds(find, args.repeats, cpu), "follow": 1000 * followed}
    return times


def drawing_times(pipe: FsthPipeline, landmarks: list[np.ndarray], args) -> list[dict]:
    """Milliseconds a frame by number of portraits, size, engine and precision, drawn in turn."""
    own, own_components, kinds = pipe.dtype, pipe.facial_components, [("torch", torch.float32)]
    if default_dtype(pipe.device) != torch.float32:
        kinds.append(("torch", default_dtype(pipe.device)))
    if engines.is_installed() and pipe.device.type == "cpu" and pipe.generator.config.source_skips:
        kinds.append(("openvino", torch.float32))  # which takes the precision that the processor is quickest in
    portraits = [[args.portrait] * number for number in args.num_portraits]
    variants = {}
    for engine, dtype in kinds:
        pipe.to(dtype=dtype)
        pipe.engine = engine
        generator, components = pipe.generator_for(), copy.deepcopy(own_components)
        for number, person in zip(args.num_portraits, map(pipe.embed, portraits), strict=True):
            for size in sorted({pipe.output_size(person, size) for size in (pipe.size, DEFAULT_SIZE)}):
                name = number, size, engine, str(dtype).removeprefix("torch.")
                variants[name] = generator, components, person, []
    for points in [landmarks[0], *landmarks * args.repeats]:  # the first warms up
        for (_, size, pipe.engine, _), (generator, pipe.facial_components, person, times) in variants.items():
            wall, processor = time.perf_counter(), time.process_time()
            pipe.generate_frame(generator, person, points, size)
            times.append((time.perf_counter() - wall, time.process_time() - processor))
    pipe.engine, pipe.facial_components = "auto", own_components
    pipe.to(dtype=own)
    entries = []
    for (number, size, engine, dtype), (*_, times) in variants.items():
        wall, processor = (1000 * statistics.median(column) for column in zip(*times[1:], strict=True))
        entry = {"portraits": number, "size": size, "engine": engine, "dtype": dtype}
        entry |= {"milliseconds": wall, "processor_milliseconds": processor}
        baseline = next((e for e in entries if (e["portraits"], e["size"]) == (number, size)), entry)
        entries.append(entry | {"speedup": baseline["milliseconds"] / wall})
    return entries


def composing_times(pipe: FsthPipeline, landmarks: list[np.ndarray], args) -> dict[str, dict[str, float]]:
    """Milliseconds a frame to put frames of each size together, from each number of portraits, and for the flow."""
    generator, times = pipe.generator_for(), {}
    picture = Image.fromarray(load_image(args.portrait))
    box = pipe.embed(args.portrait).boxes[0]
    # enlarged until the head has the pixels, for what a pixel shows costs nothing
    scale = max(FRAME_SIZES) / box.side
    portrait = picture.resize([round(scale * length) for length in picture.size])
    for number in args.num_portraits:
        person = pipe.embed([portrait] * number)
        drawing = pipe.image_processor.draw(landmarks[0]).to(pipe.device, pipe.dtype)
        points = torch.from_numpy(landmarks[0])[None].to(pipe.device)
        with torch.no_grad():
            composition = generator(drawing, person.adain_parameters, points, person.sources).composition
        count = composition.chosen.shape[1]
        points, own = points.expand(count, -1, -1), person.sources.landmarks[0, :count]
        flow = best_seconds(partial(portrait_flow, points, own, pipe.size), args.repeats, pipe.device)
        times[str(number)] = {"flow": 1000 * flow}
        for size in FRAME_SIZES:
            compose = partial(person.compositor(size), composition)
            times[str(number)][str(size)] = 1000 * best_seconds(compose, args.repeats, pipe.device)
    return times


def encoding_time(pipe: FsthPipeline, landmarks: list[np.ndarray], args) -> float:
    """Milliseconds a frame, written as H.264."""
    generator, person = pipe.generator_for(), pipe.embed(args.portrait)
    frames = [pipe.generate_frame(generator, person, points) for points in landmarks]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "clip.mp4")
        seconds = best_seconds(lambda: write_clip(path, frames, 25), args.repeats, torch.device("cpu"))
    return 1000 * seconds / len(frames)


def measure(args) -> dict:
    started = time.perf_counter()
    device = default_device() if args.device == "auto" else torch.device(args.device)
    pipe = FsthPipeline.from_pretrained(args.model, dtype=default_dtype(device)).to(device)
    seconds_to_load = time.perf_counter() - started
    result = describe(pipe) | {"frames": args.num_frames, "repeats": args.repeats, "seconds_to_load": seconds_to_load}
    pipe.set_progress_bar_config(disable=True)

    driving = pipe.read_driving(args.driving, num_frames=args.num_frames)
    landmarks = [points for points in driving.landmarks if points is not None]
    frame = next(iter(open_clip(args.driving)))
    result["milliseconds_for_landmarks"] = landmark_times(pipe, frame, args)
    result["seconds_to_embed"] = {
        str(number): best_seconds(partial(pipe.embed, [args.portrait] * number), args.repeats, pipe.device)
        for number in args.num_portraits
    }
    result["milliseconds_to_encode"] = encoding_time(pipe, landmarks, args)
    if pipe.generator.config.source_skips:
        result["milliseconds_to_compose"] = composing_times(pipe, landmarks, args)
    result["drawing"] = drawing_times(pipe, landmarks, args)
    result["load_average_after"] = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    result["peak_memory"] = peak_memory(pipe.device)
    return result


def to_markdown(result: dict) -> str:
    machine = f"{result['gpu'] or result['processor']}, {result['threads']} of {result['cores']} cores"
    if result["load_average"] is not None:
        machine += f" (load average {result['load_average']:.1f} to {result['load_average_after']:.1f})"
    parameters = ", ".join(f"{name} {number / 1e6:.2f} M" for name, number in result["parameters"].items())
    lines = [
        f"{machine}, {result['instructions']}; torch {result['torch']} on {result['device']},"
        f" {result['default_dtype']} by default, OpenVINO {result['openvino']}, OpenMP {result['openmp']};"
        f" parameters: {parameters}. Best of {result['repeats']}, {result['frames']} frames each.",
        "",
        "| stage | |",
        "|---|---|",
        f"| load the pipeline | {result['seconds_to_load']:.2f} s |",
    ]
    lines += [f"| embed {number} portraits | {s:.2f} s |" for number, s in result["seconds_to_embed"].items()]
    for size, times in result["milliseconds_for_landmarks"].items():
        lines += [f"| {verb} a face, {size} | {ms:.1f} ms per frame |" for verb, ms in times.items()]
    for number, times in result.get("milliseconds_to_compose", {}).items():
        lines.append(f"| exact and smooth flow, {number} portraits | {times['flow']:.1f} ms per frame |")
        for size in FRAME_SIZES:
            lines.append(f"| compose {size} x {size}, {number} portraits | {times[str(size)]:.1f} ms per frame |")
    lines.append(f"| encode | {result['milliseconds_to_encode']:.1f} ms per frame |")
    lines += [f"| peak memory, {name} | {mb:.0f} MB |" for name, mb in result["peak_memory"].items()]
    return "\n".join([*lines, "", *drawing_table(result["drawing"])])


def drawing_table(entries: list[dict]) -> list[str]:
    lines = [
        "| a frame, from portraits | pixels | engine | ms | ms of the processor | times as fast as the first |",
        "|---|---|---|---|---|---|",
    ]
    for entry in entries:
        engine = f"{entry['engine']}, {entry['dtype']}" if entry["engine"] == "torch" else entry["engine"]
        figures = f"{entry['milliseconds']:.0f} | {entry['processor_milliseconds']:.0f} | {entry['speedup']:.2f}"
        lines.append(f"| {entry['portraits']} | {entry['size']} | {engine} | {figures} |")
    return lines


def measure_settings(args, arguments: list[str]) -> dict[str, dict]:
    """The results of processes of their own, by setting."""
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for setting in args.settings:
            path = Path(folder, f"{setting}.json")
            command = [sys.executable, __file__, *arguments, "--settings", "--output", str(path)]
            subprocess.run(command, env=os.environ | SETTINGS[setting], check=True, stdout=subprocess.DEVNULL)
            results[setting] = json.loads(path.read_text())
    return results


def write_table(path: Path, table: str) -> None:
    """Replace what stands between the two marks of a Markdown file."""
    before, rest = path.read_text().split(BEGIN)
    path.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.split(END)[1]}")


def main(arguments: list[str] | None = None):
    args = parse_args(arguments)
    arguments = sys.argv[1:] if arguments is None else arguments
    if args.settings:
        result = measure_settings(args, arguments)
        text = "\n\n".join(f"**{setting}**: {to_markdown(each)}" for setting, each in result.items())
        first = next(iter(result.values()))
    else:
        try:
            result = first = measure(args)
        except FsthError as error:
            sys.exit(str(error))
        text = to_markdown(result)
    print(text)
    if args.output:
        args.output.write_text(json.dumps(result, indent=2) + "\n")
    if args.write:
        fewest = [e for e in first["drawing"] if e["portraits"] == min(args.num_portraits)]
        write_table(args.write, "\n".join(drawing_table(fewest)))


if __name__ == "__main__":
    main()
