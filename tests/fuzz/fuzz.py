"""Damaged files of every format, each put to its uses in a process of its own: a result, or one sentence.

    python tests/fuzz/fuzz.py --minutes 2 --seed 0 --format all --report report.json
    python tests/fuzz/fuzz.py --replay fuzz-failures/png-0-17

An input fails if anything but an `FsthError` is raised, if its process crashes, takes longer than `SECONDS` or more
memory than `MEGABYTES` over its start, writes outside of its folder, or leaves something half-written. Failing inputs
are kept for `--replay`.
"""

import os


for threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[threads] = "1"  # threads do not live on in a forked child, which would wait for them

import argparse  # noqa: E402
import faulthandler  # noqa: E402
import gc  # noqa: E402
import json  # noqa: E402
import random  # noqa: E402
import shutil  # noqa: E402
import signal  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
import traceback  # noqa: E402
from collections import Counter  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from dataclasses import asdict, dataclass  # noqa: E402
from pathlib import Path  # noqa: E402


TESTS = Path(__file__).parents[1]
if __name__ == "__main__":
    sys.path[0] = str(TESTS)  # and not this folder, whose package has the name of this file

import cv2  # noqa: E402
import torch  # noqa: E402

from fuzz import mutations, seeds, targets  # noqa: E402


SECONDS, MEGABYTES = 30, 2048
LONGEST_SENTENCE = 700  # characters
ALLOWED = ("result", "refused")
SCRATCH, OUT, INPUT = "scratch", "out", "input"


@dataclass(frozen=True)
class Outcome:
    """What became of an input.

    Args:
        kind: "result", "refused", "error", "crash", "hang", "memory", "outside", "left behind" or "no sentence".
        says: The sentences with which it was refused, or what went wrong.
        seconds: How long it took.
        megabytes: By how much its process grew.
    """

    kind: str
    says: str
    seconds: float
    megabytes: float


class Fuzzer:
    """A warm pipeline and sound inputs, of which each child gets a damaged copy.

    Args:
        folder: An empty one, for all that is written.
        seed: Of the mutations; the same gives the same inputs.
    """

    def __init__(self, folder: Path, seed: int = 0):
        torch.set_num_threads(1)
        cv2.setNumThreads(0)
        os.environ["XDG_CONFIG_HOME"] = str(folder / "settings")  # keys to sign with
        self.folder, self.seed = folder, seed
        self.pipe = seeds.fuzzed_pipeline()
        (folder / "seeds").mkdir()
        self.seeds = seeds.make_seeds(folder / "seeds", self.pipe)
        for kind in ("png", "mp4", "zip", "model"):  # all is imported, and whatever is kept is there
            targets.use(kind, self.seeds[kind][0], self.pipe, _empty(folder / OUT))
        # Clips that a child freed for its parent would wait for their decoders' threads, which it has not.
        gc.collect()
        gc.freeze()
        for kind, sound in self.seeds.items():
            outcome = self.run(kind, sound[0])
            if outcome.kind != "result":
                raise RuntimeError(f"A sound {kind} came to this: {outcome}")

    def make(self, kind: str, index: int) -> Path:
        """Damage a copy of a sound input; the same every time."""
        rng = random.Random(f"{self.seed}/{kind}/{index}")
        sound, place = rng.choice(self.seeds[kind]), _empty(self.folder / INPUT)
        copy = place / sound.name
        (shutil.copytree if sound.is_dir() else shutil.copy)(sound, copy)
        mutations.damage(kind, copy, rng)
        return copy

    def run(self, kind: str, path: Path) -> Outcome:
        """Put an input to its uses in a child."""
        scratch, out = _empty(self.folder / SCRATCH), _empty(self.folder / OUT)
        said = self.folder / "said"
        started, process = time.monotonic(), os.fork()
        if process == 0:
            _child(kind, path, self.pipe, out, scratch, said)
        start, most, status = _resident(process), 0.0, None
        while status is None:
            done, code = os.waitpid(process, os.WNOHANG)
            if done:
                status = code
                break
            most = max(most, _resident(process) - start)
            stopped = "memory" if most > MEGABYTES else "hang" if time.monotonic() - started > SECONDS else None
            if stopped:
                os.kill(process, signal.SIGKILL)
                os.waitpid(process, 0)
                return Outcome(stopped, _tail(said), time.monotonic() - started, most)
            time.sleep(0.005)
        seconds, code = time.monotonic() - started, os.waitstatus_to_exitcode(status)
        return Outcome(*self._judge(code, said), seconds, most)

    def _judge(self, code: int, said: Path) -> tuple[str, str]:
        if code == 70:
            return "outside", _tail(said)
        if code < 0 or code not in (0, 1):
            return "crash", f"{signal.Signals(-code).name if code < 0 else code}: {_tail(said)}"
        if code == 1:
            return "error", _tail(said)
        refusals = json.loads(said.with_suffix(".json").read_text())
        left = [path for path in (self.folder / SCRATCH).rglob("*") if path.is_file()]
        left += (self.folder / OUT).rglob(".fsth-*")
        if left:
            return "left behind", str(left[:3])
        for text in refusals:
            if not text.strip().endswith((".", ")")) or not text.isprintable() or len(text) > LONGEST_SENTENCE:
                return "no sentence", repr(text)[:1000]
        return ("refused", " | ".join(refusals)) if refusals else ("result", "")


def _child(kind: str, path: Path, pipe, out: Path, scratch: Path, said: Path) -> None:
    code = 1
    try:
        with open(said, "wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        faulthandler.enable()
        os.chdir(scratch)
        os.environ["TMPDIR"] = tempfile.tempdir = str(scratch)
        result = said.with_suffix(".json")
        targets.confine(out, scratch, result)
        result.write_text(json.dumps(targets.use(kind, path, pipe, out)))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _resident(process: int) -> float:
    """Megabytes that a process holds."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except (OSError, IndexError):
        return 0.0


def _tail(said: Path) -> str:
    """The end of what a child wrote, without faulthandler's list of all that is loaded."""
    text = said.read_bytes().decode(errors="replace") if said.exists() else ""
    return text.split("\nExtension modules: ")[0][-2500:]


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def fuzz(
    fuzzer: Fuzzer, formats: list[str], until: float, most: int, kept: Path
) -> Iterator[tuple[str, str, Outcome]]:
    """Formats in turn until a time (of `time.monotonic`) or a number of inputs; failing ones are copied to `kept`."""
    for index in range(most):
        kind = formats[index % len(formats)]
        if time.monotonic() > until:
            return
        number = index // len(formats)
        path = fuzzer.make(kind, number)
        outcome = fuzzer.run(kind, path)
        name = f"{kind}-{fuzzer.seed}-{number}"
        if outcome.kind not in ALLOWED:
            shutil.rmtree(kept / name, ignore_errors=True)
            (kept / name).mkdir(parents=True)
            path.rename(kept / name / path.name)
            (kept / name / "outcome.json").write_text(json.dumps(asdict(outcome), indent=2))
        yield name, kind, outcome


def replay(fuzzer: Fuzzer, case: Path) -> Outcome:
    """A kept input once more."""
    path = next(path for path in sorted(case.iterdir()) if path.name != "outcome.json")
    return fuzzer.run(case.name.split("-")[0], path)


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=2.0, help="how long to go on")
    parser.add_argument("--inputs", type=int, default=10**9, help="how many at most")
    parser.add_argument("--seed", type=int, default=0, help="of the mutations")
    parser.add_argument("--format", default="all", help=f"all, or some of {','.join(seeds.FORMATS)}")
    parser.add_argument("--report", type=Path, help="JSON to write: counts, failures")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-failures"), help="folder for failing inputs")
    parser.add_argument("--replay", type=Path, help="a folder in there: run that input alone")
    args = parser.parse_args(arguments)
    args.formats = list(seeds.FORMATS) if args.format == "all" else args.format.split(",")
    if unknown := set(args.formats) - set(seeds.FORMATS):
        parser.error(f"there is no format {', '.join(sorted(unknown))}")
    return args


def main(arguments: list[str] | None = None) -> int:
    args = parse_args(arguments)
    until = time.monotonic() + 60 * args.minutes
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        fuzzer = Fuzzer(Path(folder), args.seed)
        if args.replay:
            outcome = replay(fuzzer, args.replay.resolve())
            print(f"{args.replay}: {outcome.kind} in {outcome.seconds:.1f} s\n{outcome.says}")
            return outcome.kind not in ALLOWED
        counts, failures, most = {kind: Counter() for kind in args.formats}, {}, 0.0
        seconds, sentences = Counter(), {kind: Counter() for kind in args.formats}
        for name, kind, outcome in fuzz(fuzzer, args.formats, until, args.inputs, args.keep):
            counts[kind][outcome.kind] += 1
            seconds[kind] += outcome.seconds
            sentences[kind][outcome.says[:LONGEST_SENTENCE]] += outcome.kind == "refused"
            most = max(most, outcome.megabytes)
            if outcome.kind not in ALLOWED:
                failures[name] = asdict(outcome)
                print(f"{name}: {outcome.kind}\n{outcome.says}", flush=True)
    for kind, count in counts.items():
        each = ", ".join(f"{number} {name}" for name, number in sorted(count.items()))
        print(f"{kind:14} {each}; {seconds[kind] / max(1, count.total()):.2f} s each")
    total = sum(count.total() for count in counts.values())
    print(f"{total} inputs, {len(failures)} failed; at most {most:.0f} MB more than at the start")
    if args.report:
        report = {"seed": args.seed, "inputs": total, "counts": counts, "failures": failures, "megabytes": most}
        report["sentences"] = {kind: said.most_common() for kind, said in sentences.items()}
        args.report.write_text(json.dumps(report, indent=2) + "\n")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main())
