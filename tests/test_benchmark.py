"""The benchmark runs and measures; how fast, it alone may say."""

import json
import math

import pytest

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
    assert [(entry["dtype"], entry["portraits"], entry["fused"]) for entry in result["drawing"]] == [
        (dtype, number, fused) for dtype in ("float32", "bfloat16") for number in (1, 2) for fused in (False, True)
    ]
    first, *_, last = result["drawing"]
    assert first["speedup"] == 1 and last["speedup"] == pytest.approx(
        result["drawing"][2]["milliseconds"] / last["milliseconds"]
    )
    assert all(math.isfinite(number) and number > 0 for number in numbers(result))
    markdown = capsys.readouterr().out
    assert f"| 2 | bfloat16 | fused | {last['milliseconds']:.1f} |" in markdown and "1280 x 720" in markdown


def test_best_time_is_the_shortest_after_a_call_that_warms_up(monkeypatch):
    ticks = iter([0, 1, 10, 15, 20, 23, 30, 38])  # calls of 1 s (not counted), 5, 3 and 8 s
    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: next(ticks))
    assert benchmark.best_seconds(lambda: None, 3, benchmark.torch.device("cpu")) == 3


@pytest.mark.parametrize(
    ("times", "verdict"),
    [
        ({"problem": "no compiler"}, "impossible here: no compiler"),
        ({"milliseconds_before": 9, "milliseconds": 10, "seconds": 2, "pays_after_frames": None}, "does not pay"),
        ({"milliseconds_before": 9, "milliseconds": 5, "seconds": 2, "pays_after_frames": 500}, "after 500 frames"),
    ],
)
def test_compile_verdict(times, verdict):
    assert verdict in benchmark.compile_verdict(times)


def test_picture_without_a_face_is_refused(tiny_pipeline, tmp_path):
    benchmark.Image.new("RGB", (64, 64)).save(tmp_path / "grey.png")
    arguments = ["--model", str(tiny_pipeline), "--portrait", str(tmp_path / "grey.png"), "--num_frames", "1"]
    with pytest.raises(SystemExit, match="No face was found in grey.png"):
        benchmark.main([*arguments, "--repeats", "1"])
