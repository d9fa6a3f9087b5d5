"""What benchmark.py has measured, as Markdown."""

from pathlib import Path


BEGIN, END = "<!-- speed: training/benchmark.py -->", "<!-- end of speed -->"


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
        for stage, ms in times.items():
            name = "exact and smooth flow" if stage == "flow" else f"compose {stage} x {stage}"
            lines.append(f"| {name}, {number} portraits | {ms:.1f} ms per frame |")
    lines.append(f"| encode | {result['milliseconds_to_encode']:.1f} ms per frame |")
    lines += [f"| peak memory, {name} | {mb:.0f} MB |" for name, mb in result["peak_memory"].items()]
    return "\n".join([*lines, "", *generation_table(result["generation"])])


def generation_table(entries: list[dict]) -> list[str]:
    lines = [
        "| a frame, from portraits | pixels | engine | ms | ms of the processor | times as fast as the first |",
        "|---|---|---|---|---|---|",
    ]
    for entry in entries:
        engine = f"{entry['engine']}, {entry['dtype']}" if entry["engine"] == "torch" else entry["engine"]
        figures = f"{entry['milliseconds']:.0f} | {entry['processor_milliseconds']:.0f} | {entry['speedup']:.2f}"
        lines.append(f"| {entry['portraits']} | {entry['size']} | {engine} | {figures} |")
    return lines


def settings_table(results: dict[str, dict]) -> list[str]:
    """All settings side by side, after a line on machine and versions."""
    columns, first = {name: figures(result) for name, result in results.items()}, next(iter(results.values()))
    names = dict.fromkeys(name for column in columns.values() for name in column)
    lines = [
        f"{first['gpu'] or first['processor']}, {first['threads']} threads on {first['cores']} cores; Python"
        f" {first['python']}, torch {first['torch']}, OpenVINO {first['openvino']}, OpenCV {first['opencv']}.",
        "",
        f"| | {' | '.join(columns)} |",
        "|---|" + "---|" * len(columns),
    ]
    return lines + [f"| {n} | {' | '.join(column.get(n, '–') for column in columns.values())} |" for n in names]


def figures(result: dict) -> dict[str, str]:
    """What stands in a column of that table; of as few portraits as were measured."""
    rows = {"instructions": result["instructions"], "OpenMP": result["openmp"]}
    if result["load_average"] is not None:
        rows["load average"] = f"{result['load_average']:.1f} to {result['load_average_after']:.1f}"
    rows["follow a face, 1280 x 720, ms"] = f"{result['milliseconds_for_landmarks']['1280 x 720']['follow']:.1f}"
    fewest = min(entry["portraits"] for entry in result["generation"])
    for entry in result["generation"]:
        if entry["portraits"] == fewest:
            engine = f"{entry['engine']}, {entry['dtype']}" if entry["engine"] == "torch" else entry["engine"]
            rows[f"generate a frame of {entry['size']} pixels, {engine}, ms"] = f"{entry['milliseconds']:.0f}"
    if times := result.get("milliseconds_to_compose", {}).get(str(fewest)):
        rows["of that, exact and smooth flow, ms"] = f"{times['flow']:.1f}"
        rows["of that, compose 512 x 512, ms"] = f"{times['512']:.1f}"
    rows["encode, ms"] = f"{result['milliseconds_to_encode']:.1f}"
    for name, times in result["whole_path"].items():
        parts = f"{times['landmarks']:.0f} + {times['frames']:.0f}"
        rows[f"whole path, {name}: frames a second (ms: landmarks + frames)"] = (
            f"{times['frames_per_second']:.1f} ({parts})"
        )
    return rows


def write_table(path: Path, table: str) -> None:
    """Replace what stands between the two marks of a Markdown file."""
    before, rest = path.read_text().split(BEGIN)
    path.write_text(f"{before}{BEGIN}\n{table}\n{END}{rest.split(END)[1]}")
