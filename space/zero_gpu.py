"""Clips generated on ZeroGPU, which lends a GPU to a function while it runs, in a process forked for it.

To be imported before torch, which `spaces` patches: so `spaces` is imported first here.

What goes into that process and comes out of it is pickled, so neither the job, which is threads and locks, nor the
studio with its networks can be an argument. The networks wait on the processor instead, where the forked process
finds them in its memory and moves them to its GPU. (Moved there in this process they would be ZeroGPU's stand-ins for
tensors, of use to no thread but the main one, and to none after the launch: the live tab could not work.)
"""

from collections.abc import Iterator
from dataclasses import dataclass

import spaces

from fsth_hub.demo.errors import told_to_visitor
from fsth_hub.demo.jobs import Worker
from fsth_hub.demo.studio import Studio
from fsth_hub.demo.tabs.animator import Animator
from fsth_hub.device import default_device, default_dtype


@dataclass(frozen=True)
class Done:
    """The last that the process sends: what the work returned."""

    result: object


def generate_on_gpu(studio: Studio) -> None:
    """Have the Animate tab work in a process with a GPU, on the quota of the visitor who asked for the clip."""
    generate = Animator._generate

    @spaces.GPU
    def in_gpu_process(*arguments) -> Iterator[object]:
        """What the work reports to its job, and then what it returns, as `Done`."""
        device = default_device()
        studio.pipeline().to(device, default_dtype(device))
        with told_to_visitor():  # only Gradio's own errors come out of the process whole
            # a worker of its own: the other's thread was not forked
            yield from Worker().stream(None, lambda job: job.report(Done(generate(Animator(studio), *arguments, job))))

    def generate_elsewhere(animator: Animator, *arguments) -> object:
        *arguments, job = arguments
        for report in in_gpu_process(*arguments):
            if isinstance(report, Done):
                result = report.result
            else:
                job.report(report)  # raises where nobody waits any longer, which ends the process's work too
        return result

    Animator._generate = generate_elsewhere
