"""The benchmark runs and measures; how fast, it alone may say."""

import json
import math
from pathlib import Path

import pytest
import torch

from fsth_hub.device import default_dtype
from testing_utils.pipelines import make_pipeline
from training import benchmark, benchmark_tables


@pytest.fixture(scope="module")
def tiny_pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    make_pipeline().save_pretrained(folder)
    return folder


def numbers(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for part in value for number in numbers(part)]
    return [value] if isinstance(value, (int, float)) and not isinstance(value, bool) else []


def test_benchmark_measures_every_stage(tiny_pipeline, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(benchmark, "FRAME_SIZES", (96, 192))  # those of people take long
    output = tmp_path / "benchmark.json"
    few = ["--num_portraits", "1", "2", "--num_frames", "2", "--repeats", "1"]
    benchmark.main(["--model", str(tiny_pipeline), "--device", "cpu", "--output", str(output), *few])
    result = json.loads(output.read_text())
    assert set(result) >= {"processor", "torch", "threads", "default_dtype", "device", "parameters", "seconds_to_load"}
    assert set(result["seconds_to_embed"]) == {"1", "2"}
    assert set(result["milliseconds_for_landmarks"]) == {"256 x 256", "1280 x 720"}
    assert {number: set(times) for number, times in result["milliseconds_to_compose"].items()} == {
        number: {"flow", "96", "192"} for number in ("1", "2")
    }
    assert result["peak_memory"]["process_mb"] > 100
    sizes = sorted({entry["size"] for entry in result["generation"]})
    assert sizes[0] == 64 and [
        (entry["engine"], entry["dtype"], entry["portraits"], entry["size"]) for entry in result["generation"]
    ] == [("torch", dtype, number, size) for dtype in dtypes() for number in (1, 2) for size in sizes]
    engines = [f"torch, {dtype}, {number} at once" for dtype in dtypes() for number in (1, 2)]
    assert list(result["whole_path"]) == engines
    for times in result["whole_path"].values():
        assert times["embed"] + times["landmarks"] + times["frames"] <= times["all"] * 1.01
        assert times["frames_per_second"] == pytest.approx(1000 / times["all"])
    first, *_, last = result["generation"]
    same = result["generation"][2 * len(sizes) - 1]  # by the first engine, from as many portraits, of that size
    assert first["speedup"] == 1 and last["speedup"] == pytest.approx(same["milliseconds"] / last["milliseconds"])
    assert all(math.isfinite(number) and number > 0 for number in numbers(result))
    markdown = capsys.readouterr().out
    assert (
        f"| 2 | {sizes[-1]} | torch, {last['dtype']} | {last['milliseconds']:.0f} |" in markdown
        and "1280 x 720" in markdown
    )


def dtypes() -> list[str]:
    fastest = str(default_dtype(torch.device("cpu"))).removeprefix("torch.")
    return ["float32"] if fastest == "float32" else ["float32", fastest]


def result_of(engine: str, milliseconds: float) -> dict:
    """What was measured, as far as the table of settings shows it."""
    entry = {"portraits": 1, "size": 512, "engine": engine, "dtype": "float32", "milliseconds": milliseconds}
    machine = {"gpu": None, "processor": "Some CPU", "threads": 2, "cores": 2, "load_average": None}
    versions = {"python": "3.11", "torch": "2.13", "openvino": "2026", "opencv": "4.13"}
    stages = {"landmarks": 12.0, "frames": 34.0, "frames_per_second": 21.5}
    return (
        machine
        | versions
        | {
            "instructions": "AVX2",
            "openmp": "passive",
            "milliseconds_for_landmarks": {"1280 x 720": {"follow": 9.0}},
            "milliseconds_to_compose": {"1": {"flow": 3.0, "512": 5.0}},
            "milliseconds_to_encode": 2.0,
            "generation": [entry, entry | {"portraits": 8}],
            "whole_path": {engine: stages},
        }
    )


def test_all_settings_are_written_between_the_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{benchmark_tables.BEGIN}\nold\n{benchmark_tables.END}\nafter\n")
    results = {"default": result_of("torch", 100.4), "avx2": result_of("openvino", 40.4)}
    benchmark_tables.write_table(page, "\n".join(benchmark_tables.settings_table(results)))
    text = page.read_text()
    assert text.startswith(f"before\n{benchmark_tables.BEGIN}\nSome CPU, 2 threads") and text.endswith("-->\nafter\n")
    for line in (
        "| | default | avx2 |",
        "| instructions | AVX2 | AVX2 |",
        "| generate a frame of 512 pixels, torch, float32, ms | 100 | – |",
        "| generate a frame of 512 pixels, openvino, ms | – | 40 |",
        "| whole path, openvino: frames a second (ms: landmarks + frames) | – | 21.5 (12 + 34) |",
    ):
        assert line in text.splitlines()
    assert "old" not in text


def test_settings_are_measured_in_processes_of_their_own(monkeypatch, tmp_path):
    seen = []

    def run(command, env, **options):
        seen.append(env.get("OMP_WAIT_POLICY"))
        assert benchmark.parse_args(command[2:]).write is None  # they would write beside each other
        Path(command[command.index("--output") + 1]).write_text("{}")

    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setattr(benchmark.subprocess, "run", run)
    arguments = ["--settings", "default", "passive", "--write", "README.md"]
    assert benchmark.measure_settings(benchmark.parse_args(arguments), arguments) == {"default": {}, "passive": {}}
    assert seen == [None, "PASSIVE"]


def test_best_time_is_the_shortest_after_a_call_that_warms_up(monkeypatch):
    ticks = iter([0, 1, 10, 15, 20, 23, 30, 38])  # calls of 1 s (not counted), 5, 3 and 8 s
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: next(ticks))
    assert benchmark.best_seconds(lambda: None, 3, benchmark.torch.device("cpu")) == 3


def test_picture_without_a_face_is_refused(tiny_pipeline, tmp_path):
    benchmark.Image.new("RGB", (64, 64)).save(tmp_path / "grey.png")
    arguments = ["--model", str(tiny_pipeline), "--portrait", str(tmp_path / "grey.png"), "--num_frames", "1"]
    with pytest.raises(SystemExit, match="No face was found in grey.png"):
        benchmark.main([*arguments, "--repeats", "1"])
