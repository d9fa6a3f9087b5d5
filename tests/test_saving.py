import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fsth_hub import FsthError, FsthPipeline, saving
from fsth_hub.media.writing import check_output_path, write_clip
from fsth_hub.models.errors import FsthWarning
from fsth_hub.pipelines import openvino_models
from fsth_hub.pipelines.identity import CONFIG_NAME, WEIGHTS_NAME, check_folder
from fsth_hub.provenance.credentials import Origin, sign
from fsth_hub.provenance.inspection import inspect
from fsth_hub.saving import LOCK, whole_file, workplace, write_json
from testing_utils.command_line import assert_one_line_error, read, run
from testing_utils.hub_server import ANN
from testing_utils.paths import DRIVER, PORTRAIT
from testing_utils.pipelines import clip, make_pipeline, picture, tuned_once


needs_locks = pytest.mark.skipif(sys.platform == "win32", reason="signals and locks of POSIX")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def noise(count: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (count, 64, 64, 3), np.uint8)


def start(code: str, *arguments) -> subprocess.Popen:
    """A Python process that says READY on its stdout; it hears signals even where the tests run in the background."""
    heard = "signal.signal(signal.SIGINT, signal.default_int_handler)"
    if hasattr(signal, "SIGHUP"):
        heard += "; signal.signal(signal.SIGHUP, signal.SIG_DFL)"  # which nohup has ignored
    code = f"import signal; {heard}\n{code}"
    words = [sys.executable, "-c", code, *map(str, arguments)]
    environment = os.environ | {"OPENCV_LOG_LEVEL": "ERROR"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(words, env=environment, **pipes)
    assert "READY" in process.stdout.readline(), process.communicate()
    return process


@contextmanager
def disk_of(size: int):
    """No file grows beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# Processes that are killed, and those that live.

WORK = """
import sys, time
from pathlib import Path
from fsth_hub.saving import workplace
with workplace(sys.argv[1]) as folder:
    Path(folder, "half").write_text("half")
    print("READY", flush=True)
    time.sleep(60)
"""


@needs_locks
def test_what_a_killed_process_left_is_swept_up_and_a_living_ones_is_not(tmp_path):
    killed, living = start(WORK, tmp_path), start(WORK, tmp_path)
    theirs = {path.parent for path in tmp_path.glob(".fsth-*/half")}
    assert len(theirs) == 2
    killed.kill()
    killed.communicate()
    (tmp_path / ".fsth-projects").mkdir()
    (tmp_path / ".fsth-projects" / "mine.txt").write_text("a folder of the user's, by chance of such a name")
    try:
        write_clip(tmp_path / "out.mp4", noise(), 25)
        left = {path.parent for path in tmp_path.glob(".fsth-*/half")}
        assert len(left) == 1 and left < theirs and names(tmp_path)[-1] == "out.mp4"
    finally:
        living.kill()
        living.communicate()
    check_output_path(tmp_path / "out.mp4")
    assert names(tmp_path) == [".fsth-projects", "out.mp4"] and names(tmp_path / ".fsth-projects") == ["mine.txt"]


def test_workplaces_of_threads_do_not_sweep_each_other(tmp_path):
    failed = []

    def work():
        try:
            for _ in range(100):
                with workplace(tmp_path) as folder:
                    (folder / "half").write_text("half")
                    assert names(folder) == ["half", LOCK]
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and names(tmp_path) == []


def test_a_second_interrupt_while_tidying_up_leaves_nothing(tmp_path, monkeypatch):
    real, calls = shutil.rmtree, []

    def interrupted(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 1:
            raise KeyboardInterrupt
        real(*arguments, **options)

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt), workplace(tmp_path) as folder:
        (folder / "half").write_text("half")
        raise KeyboardInterrupt
    assert names(tmp_path) == [] and len(calls) == 2


ANIMATE = """
import os, sys
from fsth_hub.cli import main
from fsth_hub.pipelines.pipeline_fsth import FsthPipeline
draw = FsthPipeline.generate_frames
def drawn(*arguments):
    print("READY", flush=True)
    return draw(*arguments)
FsthPipeline.generate_frames = drawn
sys.argv = ["fsth", *sys.argv[1:]]
main.main()
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_pipeline().save_pretrained(folder)
    return folder


@needs_locks
def test_a_signal_while_drawing_leaves_nothing(tmp_path, model):
    options = ["--driving", DRIVER, "--output", tmp_path / "out.mp4", "--model", model, "--device", "cpu"]
    process = start(ANIMATE, "animate", PORTRAIT, *options)
    assert_ends(process, signal.SIGTERM)
    assert names(tmp_path) == []


WRITE = """
import sys, time
from fsth_hub.cli.ending import one_sentence, set_up_process
from fsth_hub.saving import workplace
set_up_process()
with one_sentence(), workplace(sys.argv[1]):
    print("READY", flush=True)
    time.sleep(60)
"""


@needs_locks
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_the_exit_code_tells_the_signal(tmp_path, number):
    assert_ends(start(WRITE, tmp_path), number)
    assert names(tmp_path) == []


def assert_ends(process: subprocess.Popen, number: int) -> str:
    process.send_signal(number)
    process.send_signal(number)
    said, words = process.communicate(timeout=60)
    assert process.returncode == 128 + number, words
    assert words.startswith("fsth: stopped") and words.count("\n") == 1
    return said + words


PUBLISH = """
import sys
from fsth_hub.cli import main
print("READY", flush=True)
sys.argv = ["fsth", "publish", *sys.argv[1:]]
main.main()
"""


@needs_locks
@pytest.mark.parametrize("number, asked", [(signal.SIGTERM, "PUT /objects/"), (signal.SIGINT, "/commit/main")])
def test_a_signal_during_an_upload_publishes_nothing(tmp_path, model, hub, number, asked):
    """What is on the hub was there before, however much of it was sent, and the token is said nowhere."""
    (tmp_path / "work").mkdir()
    tuned_once(make_pipeline(), "lora").save_pretrained(tmp_path / "anna")
    with hub.holding(asked), pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(tmp_path / "work"))
        process = start(PUBLISH, tmp_path / "anna", "ann/portrait", "--i-have-consent", "--model", model)
        end = time.monotonic() + 60
        while not any(asked in request for request in hub.requests):
            assert process.poll() is None and time.monotonic() < end, process.communicate()
            time.sleep(0.05)
        words = assert_ends(process, number)
        assert set(hub.repositories["ann/portrait"].files()) == {".gitattributes"}
    assert ANN not in words and "/commit/" not in words
    assert not list((tmp_path / "work").glob(".fsth-*"))


SIGN = """
import sys, time
from pathlib import Path
from fsth_hub.cli import main
from fsth_hub.provenance import credentials
write = credentials._Disk.write
def slowly(disk, data):
    print("READY", flush=True)
    time.sleep(0.5)
    return write(disk, data)
credentials._Disk.write = slowly
def command(*_):
    credentials.sign(sys.argv[2], credentials.Origin("model"))
main.inspect_file = command
from fsth_hub.cli.ending import one_sentence, set_up_process
set_up_process()
with one_sentence():
    command()
"""


@needs_locks
def test_a_signal_while_signing_leaves_the_file_as_it_was(tmp_path):
    pytest.importorskip("c2pa")
    write_clip(tmp_path / "out.mp4", noise(), 25)
    before = (tmp_path / "out.mp4").read_bytes()
    process = start(SIGN, "sign", tmp_path / "out.mp4")
    process.terminate()
    _, words = process.communicate(timeout=60)
    assert (process.returncode, words.count("\n")) == (143, 1) and "SIGTERM" in words
    assert names(tmp_path) == ["out.mp4"] and (tmp_path / "out.mp4").read_bytes() == before


# A full disk.


@pytest.mark.parametrize("name", ["out.mp4", "out.gif"])
def test_a_full_disk_while_a_clip_is_written(tmp_path, name):
    with disk_of(5_000), pytest.raises(FsthError, match=f"^{name} cannot be written: File too large.$"):
        write_clip(tmp_path / name, noise(40), 25)
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["out.mp4", "out.gif"])
def test_a_full_disk_while_a_clip_is_signed(tmp_path, name):
    pytest.importorskip("c2pa")
    write_clip(tmp_path / name, noise(), 25)
    before = (tmp_path / name).read_bytes()
    finish = partial(sign, origin=Origin("model"))
    with disk_of(len(before) + 1000), pytest.raises(FsthError, match=f"^{name} cannot be signed: File too large.$"):
        write_clip(tmp_path / name, noise(), 25, finish=finish)
    assert names(tmp_path) == [name] and (tmp_path / name).read_bytes() == before


def test_a_full_disk_while_landmarks_are_drawn(tmp_path):
    with disk_of(5_000):
        result = run("landmarks", PORTRAIT, "--output", tmp_path / "out.png")
    assert_one_line_error(result, "out.png cannot be written: File too large.")
    assert names(tmp_path) == []


def test_a_full_disk_while_a_report_is_written(tmp_path):
    (tmp_path / "report.json").write_text("before")
    with disk_of(100), pytest.raises(FsthError, match="^report.json cannot be written: File too large.$"):
        write_json(tmp_path / "report.json", ["words"] * 1000)
    assert names(tmp_path) == ["report.json"] and (tmp_path / "report.json").read_text() == "before"


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_full_disk_while_an_identity_is_saved(tmp_path, method):
    person = tuned_once(make_pipeline(), method)
    person.save_pretrained(tmp_path / "ada")
    before = {path.name: path.read_bytes() for path in (tmp_path / "ada").iterdir()}
    with disk_of(2_000), pytest.raises(FsthError, match="cannot be written to .*ada: File too large.$"):
        person.save_pretrained(tmp_path / "ada")
    with disk_of(2_000), pytest.raises(FsthError, match="cannot be written to .*ben: File too large.$"):
        person.save_pretrained(tmp_path / "ben")
    assert names(tmp_path) == ["ada"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "ada").iterdir()} == before


def test_a_full_disk_while_a_pipeline_is_saved(tmp_path):
    pipe = make_pipeline()
    with disk_of(2_000), pytest.raises(FsthError, match="cannot be saved to .*new: File too large.$"):
        pipe.save_pretrained(tmp_path / "new")
    assert names(tmp_path) == []
    pipe.save_pretrained(tmp_path / "old", max_shard_size="100KB")
    (tmp_path / "old" / "notes.txt").write_text("mine")
    pieces = names(tmp_path / "old" / "generator")
    assert len(pieces) > 3
    with disk_of(2_000), pytest.raises(FsthError, match="cannot be saved"):
        pipe.save_pretrained(tmp_path / "old")
    assert names(tmp_path / "old" / "generator") == pieces
    pipe.save_pretrained(tmp_path / "old", max_shard_size="150KB")
    weights = [name for name in names(tmp_path / "old" / "generator") if name.endswith(".safetensors")]
    counts = {name.rpartition("-of-")[2] for name in weights}
    assert len(counts) == 1 and (tmp_path / "old" / "notes.txt").read_text() == "mine"
    assert FsthPipeline.from_pretrained(tmp_path / "old").generator.num_parameters() == pipe.generator.num_parameters()


def test_stdout_on_a_full_disk_is_one_sentence():
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    code = "from fsth_hub.cli.main import main; main()"
    with open("/dev/full", "w") as full:
        result = subprocess.run([sys.executable, "-c", code, "--help"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (result.returncode, result.stderr) == (1, "fsth: error: No space left on device.\n")


# Links, and what is no file.


def test_links_stay_and_their_targets_are_written(tmp_path):
    far, near = tmp_path / "far", tmp_path / "near"
    far.mkdir()
    near.mkdir()
    (far / "clip").write_text("before")
    (far / "clip").chmod(0o600)
    (near / "out.mp4").symlink_to("../far/clip")  # relative, and of another name
    (near / "dangling.gif").symlink_to(far / "new.gif")
    (near / "report.json").symlink_to(near / "second")
    (near / "second").symlink_to(far / "report.json")
    write_clip(near / "out.mp4", noise(), 25, finish=partial(sign, origin=Origin("model")))
    write_clip(near / "dangling.gif", noise(), 25)
    write_json(near / "report.json", 1)
    assert all(path.is_symlink() for path in near.iterdir()) and len(names(near)) == 4
    assert names(far) == ["clip", "new.gif", "report.json"] and (far / "clip").stat().st_mode & 0o777 == 0o600
    assert len(read(far / "clip")) == len(read(far / "new.gif")) == 3
    assert inspect(near / "out.mp4").ai_generated


def test_an_identity_and_a_pipeline_behind_links(tmp_path):
    (tmp_path / "far").mkdir()
    (tmp_path / "ada").symlink_to("far")
    (tmp_path / "model").symlink_to("models/tiny")
    pipe = make_pipeline()
    tuned_once(pipe, "lora").save_pretrained(tmp_path / "ada")
    pipe.save_pretrained(tmp_path / "model")
    assert (tmp_path / "ada").is_symlink() and (tmp_path / "far" / "identity.json").is_file()
    assert (tmp_path / "model").is_symlink() and (tmp_path / "models" / "tiny" / "model_index.json").is_file()
    assert names(tmp_path) == ["ada", "far", "model", "models"]


def test_what_is_no_file_is_refused_and_stays(tmp_path):
    (tmp_path / "loop.mp4").symlink_to("pool.mp4")
    (tmp_path / "pool.mp4").symlink_to("loop.mp4")
    (tmp_path / "lost.mp4").symlink_to("none/out.mp4")
    (tmp_path / "folder.mp4").mkdir()
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "null.mp4").symlink_to("/dev/null")
    before = names(tmp_path)
    reasons = {"loop": "link that leads back", "lost": "no folder", "folder": "a folder", "pipe": "device or a pipe"}
    for name, why in (reasons | {"null": "device or a pipe"}).items():
        with pytest.raises(FsthError, match=why):
            check_output_path(tmp_path / f"{name}.mp4")
        result = run("animate", PORTRAIT, "--driving", DRIVER, "--output", tmp_path / f"{name}.mp4")
        assert_one_line_error(result, why, f"{name}.mp4")
    with pytest.raises(FsthError, match="link that leads back"):
        check_folder(tmp_path / "loop.mp4")
    assert names(tmp_path) == before and Path("/dev/null").is_char_device()


def test_an_input_behind_a_link_is_not_replaced(tmp_path):
    (tmp_path / "out.mp4").symlink_to(DRIVER)
    result = run("animate", PORTRAIT, "--driving", DRIVER, "--output", tmp_path / "out.mp4")
    assert_one_line_error(result, "would replace a file that is needed")


# Two at once.


def test_of_two_that_write_one_clip_the_last_wins_whole(tmp_path):
    path = tmp_path / "out.mp4"

    def write(count):
        write_clip(path, noise(count), 25)

    threads = [threading.Thread(target=write, args=[count]) for count in (3, 5) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert names(tmp_path) == ["out.mp4"] and len(read(path)) in (3, 5)


def test_of_many_that_save_one_identity_each_leaves_a_whole_one(tmp_path):
    person, failed = tuned_once(make_pipeline(), "lora"), []

    def save():
        try:
            for _ in range(5):
                person.save_pretrained(tmp_path / "ada")
        except FsthError as error:
            failed.append(error)

    threads = [threading.Thread(target=save) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed and names(tmp_path) == ["ada"]
    assert load_file(tmp_path / "ada" / "identity.safetensors")


def test_an_identity_that_is_replaced_while_it_is_looked_at_is_no_other_folder(tmp_path, monkeypatch):
    folder, listdir = tmp_path / "ada", os.listdir
    folder.mkdir()
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        (folder / name).write_text("x")

    def replaced_by_another_process(path):
        monkeypatch.setattr(os, "listdir", listdir)
        folder.rename(tmp_path / "replaced")
        (tmp_path / "replaced" / CONFIG_NAME).unlink()  # it is going away, with what it holds
        shutil.copytree(tmp_path / "replaced", folder)
        (folder / CONFIG_NAME).write_text("x")
        return listdir(tmp_path / "replaced")

    monkeypatch.setattr(os, "listdir", replaced_by_another_process)
    assert check_folder(folder) == folder and os.listdir is listdir


# A home that cannot be written.


@pytest.mark.parametrize("home", ["/proc/nowhere", "relative"])
def test_without_a_place_for_a_key_the_clip_is_written_unsigned(tmp_path, monkeypatch, home):
    pytest.importorskip("c2pa")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", home)
    with pytest.warns(FsthWarning, match="will not be signed") as warned:
        output = make_pipeline()(picture(), clip(0, 20), output_path=tmp_path / "out.mp4")
    assert len([each for each in warned if each.category is FsthWarning]) == 1
    assert not output.report.credentials and len(read(tmp_path / "out.mp4")) == 2
    assert names(tmp_path) == ["out.mp4"]
    assert inspect(tmp_path / "out.mp4").credentials == "none"


def test_a_key_that_cannot_be_read_any_longer_costs_the_signature_alone(tmp_path, monkeypatch):
    pytest.importorskip("c2pa")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "fsth_hub" / "signing").mkdir(parents=True)
    with pytest.warns(FsthWarning, match="will not be signed"):
        assert not sign(PORTRAIT, Origin("model"))


# A console that cannot show a name.

SAY = """
import sys, warnings
from fsth_hub.cli.ending import one_sentence, set_up_process
from fsth_hub.models.errors import FsthError, FsthWarning
import typer
set_up_process()
with one_sentence():
    typer.echo(sys.argv[1])
    warnings.warn(sys.argv[1], FsthWarning)
    for step in __import__("tqdm").tqdm(range(3), desc=sys.argv[1]):
        pass
    if sys.argv[2:]:
        raise FsthError(sys.argv[1])
"""


@pytest.mark.parametrize("encoding", ["cp1252", "cp932", "ascii", "utf-8"])
@pytest.mark.parametrize("name", ["結果 é😀.mp4", os.fsdecode(b"\xff.mp4")])
def test_any_name_can_be_said(encoding, name):
    environment = os.environ | {"PYTHONIOENCODING": encoding}
    words = [sys.executable, "-c", SAY, os.fsencode(name)]
    result = subprocess.run(words, capture_output=True, env=environment)
    assert result.returncode == 0 and b"Traceback" not in result.stderr, result.stderr
    assert result.stdout.strip().endswith(b".mp4") and result.stderr.startswith(b"fsth: warning: ")
    result = subprocess.run([*words, "fail"], capture_output=True, env=environment)
    assert result.returncode == 1 and b"fsth: error: " in result.stderr and b"Traceback" not in result.stderr


def test_an_error_that_is_not_ours_keeps_its_number(tmp_path):
    with pytest.raises(FsthError, match=f"out.json cannot be written: {os.strerror(errno.EDQUOT)}"):
        with whole_file(tmp_path / "out.json"):
            raise OSError(errno.EDQUOT, "whatever")
    assert names(tmp_path) == []


# Windows, of which there is none here.


@pytest.mark.parametrize(
    "name", ["CON.mp4", "con", "Nul.tar.mp4", "com1.mp4", "LPT¹.mp4", "a:b.mp4", "a?.mp4", "a. ", "a.mp4."]
)
def test_names_that_windows_gives_another_meaning(tmp_path, monkeypatch, name):
    monkeypatch.setattr(saving, "IS_WINDOWS", True)
    with pytest.raises(FsthError, match="no name for a file on Windows"), whole_file(tmp_path / name):
        pass
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["console.mp4", "com.mp4", "com10.mp4", "a.con.mp4", "結果 (1).mp4", ".a"])
def test_other_names_are_names_on_windows(tmp_path, monkeypatch, name):
    monkeypatch.setattr(saving, "IS_WINDOWS", True)
    with whole_file(tmp_path / name) as unfinished:
        unfinished.write_text("whole")
    assert names(tmp_path) == [name]


def test_a_file_that_another_program_has_open_stays_as_it_was(tmp_path, monkeypatch):
    """Windows replaces no such file."""

    def refuse(*_):
        raise PermissionError(errno.EACCES, "in use", "secret path")

    (tmp_path / "a.json").write_text("before")
    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(FsthError, match="^a.json cannot be written: Permission denied.$"):
        write_json(tmp_path / "a.json", {})
    assert names(tmp_path) == ["a.json"] and (tmp_path / "a.json").read_text() == "before"


def test_without_locks_what_is_open_is_not_swept(tmp_path, monkeypatch):
    """Windows removes no file that is open."""
    monkeypatch.setattr(saving, "fcntl", None)
    unlink = Path.unlink
    with workplace(tmp_path) as living:

        def refuse(path, **options):
            if path.parent == living and path.name == LOCK:
                raise PermissionError(errno.EACCES, "in use")
            unlink(path, **options)

        (abandoned := tmp_path / ".fsth-abcdefgh").mkdir()
        (abandoned / LOCK).touch()
        (abandoned / "half").touch()
        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", refuse)
            with workplace(tmp_path):
                assert living.is_dir() and not abandoned.exists()
    assert names(tmp_path) == []


# A cache that can be read, and not written.


def test_a_kept_model_is_read_where_nothing_can_be_written(tmp_path, monkeypatch):
    if find_spec("openvino") is None:
        pytest.skip("OpenVINO is not installed")
    inputs = (torch.zeros(1, 3, 8, 8),)
    openvino_models.keep_model(openvino_models.trace(torch.nn.Conv2d(3, 4, 3), inputs), tmp_path / "kept" / "model")

    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "utime", refuse)
    assert openvino_models.read_model(tmp_path / "kept" / "model") is not None
    assert (tmp_path / "kept" / "model").is_dir()
