"""The benchmark runs and measures; how fast, it alone may say."""

import json
import math
from pathlib import Path

import pytest
import torch

from fsth_hub.device import default_dtype
from testing_utils.pipelines import make_pipeline
from training import benchmark


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


def test_benchmark_measures_every_stage(tiny_pipeline, tmp_path, capsys):
    output = tmp_path / "benchmark.json"
    few = ["--num_portraits", "1", "2", "--num_frames", "2", "--repeats", "1"]
    benchmark.main(["--model", str(tiny_pipeline), "--device", "cpu", "--output", str(output), *few])
    result = json.loads(output.read_text())
    assert set(result) >= {"processor", "torch", "threads", "default_dtype", "device", "parameters", "seconds_to_load"}
    assert set(result["seconds_to_embed"]) == {"1", "2"}
    assert set(result["milliseconds_for_landmarks"]) == {"256 x 256", "1280 x 720"}
    assert {number: set(times) for number, times in result["milliseconds_to_compose"].items()} == {
        number: {"flow", "256", "512", "1024"} for number in ("1", "2")
    }
    assert result["peak_memory"]["process_mb"] > 100
    sizes = sorted({entry["size"] for entry in result["generation"]})
    assert sizes[0] == 64 and [
        (entry["engine"], entry["dtype"], entry["portraits"], entry["size"]) for entry in result["generation"]
    ] == [("torch", dtype, number, size) for dtype in dtypes() for number in (1, 2) for size in sizes]
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


def test_the_table_is_written_between_its_marks(tmp_path):
    page = tmp_path / "README.md"
    page.write_text(f"before\n{benchmark.BEGIN}\nold\n{benchmark.END}\nafter\n")
    entry = {"portraits": 1, "size": 512, "engine": "openvino", "dtype": "float32", "milliseconds": 40.4}
    table = benchmark.generation_table([entry | {"processor_milliseconds": 80.2, "speedup": 3.456}])
    benchmark.write_table(page, "\n".join(table))
    text = page.read_text()
    assert text.startswith(f"before\n{benchmark.BEGIN}\n| a frame") and text.endswith(f"{benchmark.END}\nafter\n")
    assert "| 1 | 512 | openvino | 40 | 80 | 3.46 |" in text and "old" not in text


def test_settings_are_measured_in_processes_of_their_own(monkeypatch, tmp_path):
    seen = []

    def run(command, env, **options):
        seen.append(env.get("OMP_WAIT_POLICY"))
        Path(command[command.index("--output") + 1]).write_text("{}")

    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.setattr(benchmark.subprocess, "run", run)
    arguments = ["--settings", "default", "passive"]
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
