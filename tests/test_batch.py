"""Many clips from a table: what is refused, what is done once, what a fault costs."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from fsth_hub.media.reading import open_clip
from fsth_hub.media.writing import write_clip
from fsth_hub.models.errors import FsthError
from fsth_hub.pipelines import batch
from fsth_hub.pipelines.batch import RowAnimator, animate_batch
from fsth_hub.pipelines.batch_jobs import by_person, check_jobs, read_jobs
from fsth_hub.provenance.inspection import inspect
from testing_utils.batch import FATAL, load_tiny, write_table
from testing_utils.command_line import assert_one_line_error, run
from testing_utils.networks import tiny_config
from testing_utils.paths import DRIVER, PORTRAIT, ROOT
from testing_utils.pipelines import NO_FACE, clip, make_pipeline, picture, tuned_once


QUICK = {"watermark": "no", "credentials": "no"}


@pytest.fixture
def inputs(tmp_path) -> Path:
    """A folder with portraits, one of them deadly and one of nobody, and a driver of three frames."""
    for name, shift in {"ann": 0, "bob": 8, "fatal": FATAL, "nobody": NO_FACE}.items():
        Image.fromarray(picture(shift)).save(tmp_path / f"{name}.png")
    write_clip(tmp_path / "driver.mp4", clip(0, 20, 40), 25)
    return tmp_path


def table(folder: Path, *rows: dict) -> Path:
    """A row for each, driven by the clip unless it says otherwise."""
    return write_table(folder / "jobs.csv", [{"driving": "driver.mp4"} | QUICK | row for row in rows])


def row(person: str, output: str, **others) -> dict:
    return {"portraits": f"{person}.png", "output": output} | others


def animate(folder: Path, *rows: dict, **options) -> list[dict]:
    return list(animate_batch(read_jobs(table(folder, *rows)), folder / "out", load_tiny, **options))


def manifest(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "out" / "manifest.jsonl").read_text().splitlines()]


# The table.


def test_cells_become_the_options_of_a_row_and_paths_are_the_tables(inputs):
    (inputs / "jobs.csv").write_text(
        "\ufeffPortraits,driving,Output,motion-strength,regions,paste_back,frames,size,sound\n"
        'ann.png; bob.png,motion:nod,a/b.mp4,0.5,"eyes, mouth",yes,7,,driver.mp4\n'
        "\n"
        "ann.png,driver.mp4,c.gif\n"
    )
    first, second = read_jobs(inputs / "jobs.csv")
    assert first.portraits == (str(inputs / "ann.png"), str(inputs / "bob.png")) and first.driving == "motion:nod"
    assert (first.output, first.motion_strength, first.regions) == ("a/b.mp4", 0.5, ("eyes", "mouth"))
    assert (first.paste_back, first.frames, first.size, first.sound) == (True, 7, None, str(inputs / "driver.mp4"))
    assert (second.row, second.driving, second.paste_back) == (2, str(inputs / "driver.mp4"), False)
    assert first.digest(None) != second.digest(None) and second.digest(None) != second.digest("other")


@pytest.mark.parametrize(
    "rows, words",
    [
        ([row("ann", "a.mp4", motion_strenght=1)], ["'motion_strenght' that is not known", "nearest is 'motion_str"]),
        ([row("ann", "a.avi")], ["row 1: a.avi must be a name below the output folder that ends in .mp4 or .gif"]),
        ([row("ann", "../a.mp4")], ["row 1: ../a.mp4 must be a name below the output folder"]),
        ([row("ann", "a.mp4"), row("bob", "./A.mp4")], ["row 2: ./A.mp4 is the output of row 1, too"]),
        ([row("ann", "a.mp4", motion_strength="x")], ["row 1: motion_strength must be a number, not 'x'"]),
        ([row("ann", "a.mp4", motion_strength="nan")], ["row 1: motion_strength must be a number from 0 to 2"]),
        ([row("ann", "a.mp4", motion="absolut")], ["row 1: motion must be 'relative' or 'absolute', not 'absolut'"]),
        ([row("ann", "a.mp4", frames="2.5")], ["row 1: frames must be a whole number, not '2.5'"]),
        ([row("ann", "a.mp4", frames="0")], ["row 1: frames must be a whole number of 1 or more"]),
        ([row("ann", "a.mp4", paste_back="maybe")], ["row 1: paste_back must be true or false, not 'maybe'"]),
        ([row("ann", "a.mp4", regions="ears")], ["row 1: There is no region 'ears'"]),
        ([row("ann", "a.mp4", driving="motion:dance")], ["row 1: There is no motion 'dance'"]),
        ([row("ann", "a.mp4", driving="motion:nod", fps="9")], ["row 1: fps and driving_face are for clips"]),
        ([row("ann", "a.mp4", seconds="3")], ["row 1: seconds are for motions"]),
        ([row("ann", "a.mp4", identity="x/y")], ["row 1: give either portraits or the identity"]),
        ([{"output": "a.mp4"}], ["row 1: give either portraits or the identity"]),
        ([row("ann", "")], ["row 1: its output is empty"]),
        ([row("ann", "a.mp4", size="x")] * 5, ["row 3: size", "and 2 more: nothing was begun."]),
    ],
)  # fmt: skip
def test_rows_that_cannot_be_used_are_refused_by_number(inputs, rows, words):
    with pytest.raises(FsthError) as refusal:
        read_jobs(table(inputs, *rows))
    assert "\n" not in str(refusal.value)
    for word in ["jobs.csv", *words]:
        assert word in str(refusal.value)


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "has no rows"),
        ("portraits,driving,output\n", "has no rows"),
        ("portraits,driving\na.png,b.mp4\n", "no column 'output'"),
        ("output,driving,output\na.mp4,b.mp4,c.mp4\n", "the column 'output' twice"),
        ("portraits,driving,output\na.png,b.mp4,c.mp4,d\n", "4 cells, but there are 3 columns"),
        ('portraits,driving,output\na.png,b.mp4,"c', "no CSV file in UTF-8"),
        (b"portraits,driving,output\n\xff.png,b.mp4,c.mp4\n", "no CSV file in UTF-8"),
        ("portraits,driving,output\n\0.png,b.mp4,c.mp4\n", "a character that no name can have"),
    ],
)
def test_tables_that_cannot_be_used_are_refused_in_a_sentence(tmp_path, text, words):
    path = tmp_path / "jobs.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(FsthError, match=words):
        check_jobs(read_jobs(path), tiny_config(), path, tmp_path)


@pytest.mark.parametrize(
    "others, words",
    [
        ({"portraits": "gone.png"}, "row 1: there is no file .*gone.png"),
        ({"driving": "gone.mp4"}, "row 1: there is no file .*gone.mp4"),
        ({"sound": "gone.wav"}, "row 1: there is no file .*gone.wav"),
        ({"portraits": "", "identity": "./gone"}, "row 1: there is no folder .*gone"),
        ({"size": 256}, "row 1: size must be left out"),
        ({"driving": "motion:nod", "motion": "absolute"}, "row 1: motion must be 'relative' here"),
        ({"driving": "bad.motion.safetensors"}, "row 1: bad.motion.safetensors is no motion"),
        ({"output": "driver.mp4"}, "row 1: driver.mp4 would replace a file that is needed"),
    ],
)
def test_files_are_looked_at_before_anything_is_begun(inputs, others, words):
    (inputs / "bad.motion.safetensors").write_bytes(b"none")
    path = table(inputs, row("ann", "a.mp4") | others)
    with pytest.raises(FsthError, match=words):
        check_jobs(read_jobs(path), tiny_config(source_skips=False), path, inputs)


def test_rows_of_a_person_stay_together_but_no_worker_idles(inputs):
    jobs = read_jobs(table(inputs, *(row("bob" if n == 2 else "ann", f"{n}.mp4") for n in range(6))))
    parts = [[job.row - 1 for job in part] for part in by_person(jobs, 2)]
    assert parts == [[0, 1, 3], [4, 5], [2]]
    assert len(by_person(jobs, 1)) == 2 and by_person([], 2) == []


# One row.


def test_a_person_is_embedded_once_whatever_the_rows_ask_for(inputs):
    calls, pipe = [], make_pipeline()
    embed_crops = pipe.embed_crops
    pipe.embed_crops = lambda *args: calls.append(args) or embed_crops(*args)
    animate_row = RowAnimator(lambda *_: pipe, None, inputs / "out", 1)
    rows = row("ann", "1.mp4"), row("ann", "2.mp4", paste_back="yes", watermark="yes"), row("bob", "3.mp4")
    jobs = read_jobs(table(inputs, *rows, row("ann", "4.mp4", driving="motion:nod", seconds="0.2")))
    entries = [animate_row(job) for job in (*jobs[:2], jobs[3], jobs[2])]
    assert [entry["frames"] for entry in entries] == [3, 3, 5, 3] and len(calls) == 2
    assert open_clip(inputs / "out" / "2.mp4").width == picture().shape[1]
    same = make_pipeline()(inputs / "ann.png", inputs / "driver.mp4", output_path=inputs / "one.mp4", watermark=False)
    assert same.report.size == entries[0]["size"]
    assert np.array_equal(list(open_clip(inputs / "one.mp4")), list(open_clip(inputs / "out" / "1.mp4")))


def test_a_row_is_signed_with_its_portraits_as_a_single_clip_is(inputs):
    animate_row = RowAnimator(load_tiny, None, inputs, 1)
    jobs = read_jobs(table(inputs, *(row("ann", f"{n}.mp4", credentials="yes", watermark="yes") for n in "12")))
    assert [animate_row(job)["frames"] for job in jobs] == [3, 3]
    make_pipeline()(inputs / "ann.png", inputs / "driver.mp4", output_path=inputs / "one.mp4")
    first, second, single = (inspect(inputs / f"{name}.mp4").to_dict() for name in ("1", "2", "one"))
    assert first["credentials"] == "valid"
    assert first["ingredients"] == second["ingredients"] == single["ingredients"]


def test_clips_and_identities_are_people_too(inputs):
    pipe = make_pipeline()
    tuned_once(pipe, "lora").save_pretrained(inputs / "ada")
    rows = {"portraits": "driver.mp4", "output": "1.mp4"}, {"identity": "ada", "output": "2.mp4"}
    animate_row = RowAnimator(load_tiny, None, inputs / "out", 1)
    jobs = read_jobs(table(inputs, *rows))
    check_jobs(jobs, tiny_config(), inputs / "jobs.csv", inputs / "out")
    assert [animate_row(job)["frames"] for job in jobs] == [3, 3]


# All rows.


@pytest.mark.slow
def test_what_fails_costs_nothing_but_itself_and_is_tried_again_next_time(inputs, monkeypatch):
    monkeypatch.setenv("FSTH_TEST_EMBEDDED", str(inputs / "embedded"))
    (inputs / "broken.mp4").write_bytes(b"no video")
    rows = [row("ann", "1.mp4"), row("fatal", "2.mp4"), row("nobody", "3.mp4"), row("bob", "4/5.gif")]
    rows += [row("ann", "6.mp4", driving="broken.mp4"), row("ann", "7.mp4")]
    entries = {entry["row"]: entry for entry in animate(inputs, *rows, num_workers=2)}
    assert {number: entry.get("reason") for number, entry in sorted(entries.items())} == {
        1: None, 2: "crash", 3: "no_face", 4: None, 5: "unreadable", 6: None,
    }  # fmt: skip
    assert "died of SIGSEGV" in entries[2]["failed"] and "No face was found in nobody.png" in entries[3]["failed"]
    assert sorted(manifest(inputs), key=lambda entry: entry["row"]) == [entries[n] for n in range(1, 7)]
    assert len((inputs / "embedded").read_text().split()) == 2  # ann and bob
    clips = {path: path.stat() for path in (inputs / "out").rglob("*.*") if path.suffix in (".mp4", ".gif")}
    assert {path.name for path in clips} == {"1.mp4", "5.gif", "7.mp4"}

    (inputs / "broken.mp4").write_bytes((inputs / "driver.mp4").read_bytes())
    rows[0] = row("ann", "1.mp4", frames="2")  # changed
    rows[1] = row("bob", "2.mp4")
    (inputs / "out" / "7.mp4").unlink()
    again = {entry["output"]: entry["frames"] for entry in animate(inputs, *rows[::-1], num_workers=1)}
    assert again == {"7.mp4": 3, "6.mp4": 3, "1.mp4": 2, "2.mp4": 3, "3.mp4": 0}
    assert (inputs / "out" / "4" / "5.gif").stat() == clips[inputs / "out" / "4" / "5.gif"]


def test_another_folder_or_a_second_run_is_refused(inputs, monkeypatch):
    monkeypatch.setattr(batch, "run_parts", lambda parts, *_: ((job, {"frames": 1}) for part in parts for job in part))
    jobs = read_jobs(table(inputs, row("ann", "1.mp4"), row("bob", "2.mp4")))
    first = animate_batch(jobs, inputs / "out", load_tiny)
    next(first)
    with pytest.raises(FsthError, match="Another run is at work"):
        next(animate_batch(jobs, inputs / "out", load_tiny))
    first.close()
    assert len(list(animate_batch(jobs, inputs / "out", load_tiny))) == 2
    (inputs / "out" / "manifest.jsonl").write_text("[1]\n")
    with pytest.raises(FsthError, match="is no manifest of a batch"):
        next(animate_batch(jobs, inputs / "out", load_tiny))


SCRIPT = """
import sys
from fsth_hub.pipelines import batch
from fsth_hub.pipelines.batch import animate_batch
from fsth_hub.pipelines.batch_jobs import read_jobs
from testing_utils.batch import load_tiny

if __name__ == "__main__":
    for entry in animate_batch(read_jobs(sys.argv[1]), sys.argv[2], load_tiny, num_workers=1):
        print(entry["row"], flush=True)
"""


@pytest.mark.slow
def test_a_run_that_is_killed_is_finished_by_the_next_and_nothing_is_done_twice(inputs):
    rows = [row("ann", f"{n}.mp4") for n in range(6)]
    script, out = inputs / "run.py", inputs / "out"
    script.write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    command = [sys.executable, str(script), str(table(inputs, *rows)), str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as running:
        assert running.stdout.readline() == "1\n"
        processes = psutil.Process(running.pid).children()
        running.send_signal(signal.SIGKILL)
    assert processes and not psutil.wait_procs(processes, timeout=60)[1]
    done = [entry["output"] for entry in manifest(inputs)]
    assert 1 <= len(done) < 6
    before = {name: (out / name).stat() for name in done}
    with open(out / "manifest.jsonl", "a") as file:
        file.write('{"output": "5.mp4", "row": 6, "fra')  # cut off

    assert sorted(done + [entry["output"] for entry in animate(inputs, *rows)]) == [f"{n}.mp4" for n in range(6)]
    assert sorted(entry["output"] for entry in manifest(inputs)) == [f"{n}.mp4" for n in range(6)]
    assert all((out / name).stat() == stat for name, stat in before.items())
    assert sorted(path.name for path in out.iterdir()) == [*(f"{n}.mp4" for n in range(6)), "manifest.jsonl"]


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed (extra `cluster`)")
def test_ray_makes_the_same_clips_and_survives_the_same_rows(inputs, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "tests"), *sys.path]))
    rows = [row("ann", "1.mp4"), row("fatal", "2.mp4"), row("bob", "3.mp4")]
    entries = {entry["row"]: entry for entry in animate(inputs, *rows, executor="ray", num_workers=1)}
    assert [entries[n].get("reason") for n in (1, 2, 3)] == [None, "crash", None]
    clips = [(inputs / "out" / f"{n}.mp4").read_bytes() for n in (1, 3)]
    (inputs / "out").rename(inputs / "ray")
    animate(inputs, *rows, num_workers=1)
    assert clips == [(inputs / "out" / f"{n}.mp4").read_bytes() for n in (1, 3)]


# The command.


def test_the_command_makes_clips_goes_on_and_exits_with_what_failed(tmp_path):
    make_pipeline().save_pretrained(tmp_path / "tiny")
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(tmp_path / "wall.png")
    rows = [{"portraits": PORTRAIT, "driving": DRIVER, "output": "1.mp4", "frames": 2} | QUICK]
    rows += [rows[0] | {"portraits": "wall.png", "output": "2.mp4"}]
    options = ["--output", tmp_path / "out", "--model", tmp_path / "tiny", "--num_workers", 1, "--device", "cpu"]
    path = write_table(tmp_path / "jobs.csv", rows)
    result = run("batch", path, *options)
    assert result.exit_code == 1, result.output
    assert "row 2 failed: No face was found in wall.png" in result.output
    assert "1 clips made (2 frames), 0 done before, 1 failed (no_face: 1; " in result.stdout
    assert len(list(open_clip(tmp_path / "out" / "1.mp4"))) == 2

    write_table(path, rows[:1])
    result = run("batch", path, *options)
    assert result.exit_code == 0 and "0 clips made (0 frames), 1 done before\n" in result.stdout
    result = run("batch", path, *options[:2], "--model", tmp_path)
    assert_one_line_error(result, "holds no pipeline of fsth_hub")
    result = run("batch", write_table(path, [rows[0] | {"portrait": "x"}]), *options)
    assert_one_line_error(result, "'portrait' that is not known; the nearest is 'portraits'")
