"""Processes that do tasks: one that dies costs its task alone, and none outlives whoever started it."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from fsth_hub.models.errors import FsthError
from fsth_hub.pipelines.workers import Crashed, ProcessWorker, run_parts, share_out
from testing_utils import tasks
from testing_utils.paths import ROOT


def wait_for(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def run(parts, make, num_workers):
    return run_parts(parts, lambda: ProcessWorker(make), num_workers)


def test_a_task_that_kills_its_process_costs_nothing_but_itself():
    results = dict(run([[1, 13, 3], [4]], tasks.make_double, 1))
    assert [results[number][0] for number in (1, 3, 4)] == [2, 6, 8]
    assert results[13] == Crashed("The process that computed it died of SIGSEGV.")
    assert results[1][1] != results[3][1] == results[4][1]


def test_workers_work_at_the_same_time(tmp_path):
    results = dict(run([[(str(tmp_path), "a")], [(str(tmp_path), "b")]], tasks.make_meeting, 2))
    assert len({process for process in results.values() if process}) == 2


@pytest.mark.parametrize(
    "make, words", [(tasks.make_nothing, "There is no such model"), (tasks.die_at_once, "died with status 3")]
)
def test_a_worker_that_cannot_begin_ends_the_run(make, words):
    with pytest.raises(FsthError, match=words):
        list(run([[1], [2]], make, 2))


def test_whoever_stops_to_listen_stops_the_work(tmp_path):
    mark = tmp_path / "at work"

    class First:
        def __call__(self, task):
            wait_for(mark.exists)
            return "first"

        def stop(self):
            pass

    makers = iter([First, lambda: ProcessWorker(tasks.make_endless)])
    before = set(psutil.Process().children())
    running = run_parts([[str(mark)], [str(mark)]], lambda: next(makers)(), 2)
    assert next(running)[1] == "first"
    running.close()
    assert not mark.exists()
    assert not [child for child in set(psutil.Process().children()) - before if "spawn_main" in str(child.cmdline())]


@pytest.mark.parametrize(
    "cores, wanted, expected",
    [
        ([4], None, (2, 2)),
        ([1, 1], None, (2, 1)),
        ([3, 3], None, (6, 1)),  # three of two cores would leave one without a place
        ([0, 4, 1], None, (2, 2)),
        ([8], 3, (3, 2)),
        ([3, 3], 3, (3, 1)),
        ([1, 1], 64, (2, 1)),
    ],
)
def test_every_worker_of_a_cluster_finds_a_place(cores, wanted, expected):
    assert share_out(cores, wanted, most=2) == expected


SCRIPT = """
import sys
from fsth_hub.pipelines.workers import ProcessWorker
from testing_utils import tasks

if __name__ == "__main__":
    ProcessWorker(tasks.make_endless)(sys.argv[1])
"""


def test_a_process_ends_with_the_one_that_started_it_and_tidies_up(tmp_path):
    mark, script = tmp_path / "at work", tmp_path / "run.py"
    script.write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    with subprocess.Popen([sys.executable, str(script), str(mark)], env=environment) as running:
        wait_for(mark.exists)
        processes = psutil.Process(running.pid).children()
        running.send_signal(signal.SIGKILL)
    assert processes and not psutil.wait_procs(processes, timeout=60)[1]
    assert not mark.exists()
