"""How fast a pipeline is on this machine, stage by stage, as Markdown and JSON.

    python training/benchmark.py --output benchmark.json

By default the bundled model and the example files of the package. Every time is the best of `--repeats`, since other
programs only ever slow a machine down. Frames are generated in float32 and bfloat16, with spectral norm computed anew
for each frame (the baseline) and folded into plain weights (`fused`, what the pipeline uses), from 1, 8 and 32
portraits. The generator works at 256 pixels whatever the size of the frames; what it takes to put frames of each size
together from the portraits' own pixels, and to find the exact flow, stands for itself.
"""

import argparse
import json
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

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
from fsth_hub.pipelines.pipeline_fsth import FsthPipeline


EXAMPLES = Path(__file__).parents[1] / "fsth_hub" / "examples"
PICTURE_SIZES = {"256 x 256": (256, 256), "1280 x 720": (1280, 720)}  # width, height
DTYPES = (torch.float32, torch.bfloat16)
FRAME_SIZES = (256, 512, 1024)  # pixels


def parse_args(arguments: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="pipeline folder or hub id; by default the bundled model")
    parser.add_argument("--portrait", type=Path, default=EXAMPLES / "astronaut.jpg", help="a picture with a face")
    parser.add_argument("--driving", type=Path, default=EXAMPLES / "driver.mp4", help="a clip with a face")
    parser.add_argument("--device", default="auto", help="cpu, cuda, mps; by default the fastest there is")
    parser.add_argument("--num_portraits", type=int, nargs="+", default=[1, 8, 32], help="the T to measure")
    parser.add_argument("--num_frames", type=int, default=8, help="frames generated, tracked or encoded in one repeat")
    parser.add_argument("--repeats", type=int, default=5, help="the best of so many counts")
    parser.add_argument("--compile", action="store_true", help="try torch.compile of the generator too")
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
        "torch": torch.__version__,
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
    """Milliseconds a frame, for every number of portraits, dtype and form of the generator."""
    entries = []
    for dtype in DTYPES:
        pipe.to(dtype=dtype)
        for number in args.num_portraits:
            person = pipe.embed([args.portrait] * number)
            for fused, generator in ((False, pipe.generator), (True, pipe.generator_for())):
                milliseconds = drawing_time(pipe, generator, person, landmarks, args.repeats)
                entry = {"portraits": number, "dtype": str(dtype).removeprefix("torch."), "fused": fused}
                baseline = next((e["milliseconds"] for e in entries if e["portraits"] == number), milliseconds)
                entries.append(entry | {"milliseconds": milliseconds, "speedup": baseline / milliseconds})
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
        drawing = pipe.image_processor.rasterize(landmarks[0]).to(pipe.device, pipe.dtype)
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


def drawing_time(pipe: FsthPipeline, generator, person, landmarks: list[np.ndarray], repeats: int) -> float:
    def generate():
        for points in landmarks:
            pipe.generate_frame(generator, person, points, pipe.size)

    return 1000 * best_seconds(generate, repeats, pipe.device) / len(landmarks)


def compile_times(pipe: FsthPipeline, landmarks: list[np.ndarray], args) -> dict:
    """What torch.compile of the fused generator costs and gives, with the fewest portraits and the default dtype."""
    person, plain = pipe.embed([args.portrait] * min(args.num_portraits)), pipe.generator_for()
    compiled = torch.compile(plain)
    started = time.perf_counter()
    try:
        pipe.generate_frame(compiled, person, landmarks[0])
    except Exception as error:  # no C++ compiler, or a device that it does not know
        return {"problem": f"{type(error).__name__}: {str(error).splitlines()[0]}"}
    seconds = time.perf_counter() - started
    before, after = (drawing_time(pipe, g, person, landmarks, args.repeats) for g in (plain, compiled))
    frames = 1000 * seconds / (before - after) if after < before else None
    return {"seconds": seconds, "milliseconds_before": before, "milliseconds": after, "pays_after_frames": frames}


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
    own_dtype = pipe.dtype

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
    if args.compile:
        result["compile"] = compile_times(pipe, landmarks, args)
    result["drawing"] = drawing_times(pipe, landmarks, args)
    pipe.to(dtype=own_dtype)
    result["peak_memory"] = peak_memory(pipe.device)
    return result


def to_markdown(result: dict) -> str:
    machine = f"{result['gpu'] or result['processor']}, {result['threads']} of {result['cores']} cores"
    if result["load_average"] is not None:
        machine += f" (load average {result['load_average']:.1f} when it began)"
    parameters = ", ".join(f"{name} {number / 1e6:.2f} M" for name, number in result["parameters"].items())
    lines = [
        f"{machine}; torch {result['torch']} on {result['device']}, {result['default_dtype']} by default; parameters:"
        f" {parameters}. Best of {result['repeats']}, {result['frames']} frames each.",
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
    if "compile" in result:
        lines.append(f"| torch.compile | {compile_verdict(result['compile'])} |")
    lines += [
        "",
        "| generate, portraits | dtype | spectral norm | ms per frame | against the first |",
        "|---|---|---|---|---|",
    ]
    for entry in result["drawing"]:
        form = "fused" if entry["fused"] else "per frame"
        cells = entry["portraits"], entry["dtype"], form, f"{entry['milliseconds']:.1f}", f"{entry['speedup']:.2f} x"
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def compile_verdict(times: dict) -> str:
    if "problem" in times:
        return f"impossible here: {times['problem']}"
    change = f"{times['milliseconds_before']:.1f} to {times['milliseconds']:.1f} ms per frame"
    if times["pays_after_frames"] is None:
        return f"{change}, after {times['seconds']:.0f} s: does not pay"
    return f"{change}, after {times['seconds']:.0f} s: pays after {times['pays_after_frames']:.0f} frames"


def main(arguments: list[str] | None = None):
    args = parse_args(arguments)
    try:
        result = measure(args)
    except FsthError as error:
        sys.exit(str(error))
    print(to_markdown(result))
    if args.output:
        args.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
