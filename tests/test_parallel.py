"""Frames that are drawn two at a time come as if they were drawn one by one."""

import threading
import time

import numpy as np
import pytest
import torch

from fsth_hub.models.modeling_fsth import FsthGenerator
from fsth_hub.pipelines import parallel
from fsth_hub.pipelines.parallel import generate_ahead, num_workers, total_threads
from testing_utils.networks import tiny
from testing_utils.pipelines import clip, make_pipeline, picture


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_results_come_in_order_however_long_each_takes(workers):
    def draw(number):
        time.sleep(0.02 * (number % 3 == 0))
        return number

    assert list(generate_ahead(draw, range(10), workers)) == list(range(10))


def test_two_are_drawn_at_once():
    together = threading.Barrier(2, timeout=10)
    assert len(list(generate_ahead(lambda _: together.wait(), range(4), 2))) == 4


def test_nothing_is_drawn_far_ahead():
    drawn = []
    results = generate_ahead(lambda number: drawn.append(number), range(100), 2)
    next(results)
    time.sleep(0.05)
    assert len(drawn) <= 3
    results.close()
    assert len(drawn) <= 3


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_errors_come_in_their_turn_and_end_it(error):
    def draw(number):
        if number == 3:
            raise error
        return number

    before = set(threading.enumerate())
    results = generate_ahead(draw, range(100), 2)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(error):
        next(results)
    assert not set(threading.enumerate()) - before


def test_threads_of_pytorch_are_shared_and_given_back():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        assert set(generate_ahead(lambda _: torch.get_num_threads(), range(4), 2)) == {2}
        assert torch.get_num_threads() == 4
        seen = []
        later = threading.Thread(
            target=lambda: seen.append(torch.zeros(10_000).add(1).sum() and torch.get_num_threads())
        )
        later.start()
        later.join()
        assert seen == [4]
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("threads, workers", [(1, 1), (4, 2)])
def test_a_worker_knows_the_threads_of_all(threads, workers):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert num_workers(tiny(FsthGenerator)) == workers
        counts = generate_ahead(lambda _: (torch.get_num_threads(), total_threads()), range(4), workers)
        assert set(counts) == {(threads // workers, threads)}
    finally:
        torch.set_num_threads(before)


def test_a_clip_is_the_same(monkeypatch):
    frames = []
    for workers in (1, 2):
        monkeypatch.setattr(parallel, "num_workers", lambda *_, workers=workers: workers)
        result = make_pipeline()(picture(), clip(0, 20, 40, 60), watermark=False, output_type="np")
        frames.append(result.frames)
    assert np.array_equal(*frames)


def test_a_callback_that_gives_up_ends_it(monkeypatch, tmp_path):
    monkeypatch.setattr(parallel, "num_workers", lambda *_: 2)

    def callback(pipe, index, count, frame):
        if index == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_pipeline()(
            picture(), clip(0, 20, 40, 60), output_path=tmp_path / "out.mp4", callback_on_frame_end=callback
        )
    assert not list(tmp_path.iterdir())
