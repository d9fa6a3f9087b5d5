"""Tables and picture grids of what `evaluate.py` has measured: means over people, intervals, paired differences."""

import json
from itertools import pairwise
from pathlib import Path
from urllib.parse import quote

import numpy as np
from huggingface_hub import EvalResult, ModelCard
from PIL import Image, ImageDraw, ImageFont

from fsth_hub.finetuning.loop import METHODS
from fsth_hub.models.errors import FsthError


RESULTS = "evaluation.json"
UNMOVED, WARP, DRIVER = "unmoved portrait", "warp by landmarks", "driver's own frames"
BEGIN, END = "<!-- evaluation:begin -->", "<!-- evaluation:end -->"
RESAMPLES = 10_000
HEADER_HEIGHT = 28  # of a grid's column titles, pixels
PEOPLE_SHOWN = 12

# key of a measure: its title and its decimals
MEASURES = {
    "lpips": ("LPIPS ↓", 4),
    "face_lpips": ("LPIPS of the face ↓", 4),
    "ssim": ("SSIM ↑", 3),
    "csim": ("CSIM ↑", 3),
    "akd": ("AKD, % ↓", 2),
}
CROSS_MEASURES = {
    "csim": ("CSIM to the portrait ↑", 3),
    "pose": ("pose, ° ↓", 2),
    "expression": ("expression, % ↓", 2),
}
EXPRESSION_MEASURES = {
    "mouth_slope": ("mouth, slope → 1", 2),
    "mouth_corr": ("mouth, correlation ↑", 2),
    "eyes_slope": ("eyes, slope → 1", 2),
    "eyes_corr": ("eyes, correlation ↑", 2),
    "blink": ("blink → 1", 2),
}
PART_MEASURES = {
    "mouth_lpips": ("LPIPS of the mouth ↓", 4),
    "eyes_lpips": ("LPIPS of the eyes ↓", 4),
    **EXPRESSION_MEASURES,
    "face_flicker": ("flicker of the face → 0", 2),
    "mouth_flicker": ("flicker of the mouth → 0", 2),
    "eyes_flicker": ("flicker of the eyes → 0", 2),
    "swim": ("background swim, pixels ↓", 3),
}
PORTRAIT_MEASURES = {"csim": CROSS_MEASURES["csim"], **EXPRESSION_MEASURES}


def interval(values) -> tuple[float, float]:
    """95 % of the means of people sampled with replacement."""
    values = np.asarray(values, float)
    samples = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.percentile(values[samples].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def cell(values: list[float | None], decimals: int, people: int, paired: bool = False) -> str:
    """Mean and interval over those of `people` people who have a value; for paired differences their significance."""
    values = [value for value in values if value is not None]
    if not values:
        return "–"
    text = f"{np.mean(values):.{decimals}f}"
    if len(values) > 1:  # one person tells nothing about the next
        low, high = interval(values)
        text += f" [{low:.{decimals}f}, {high:.{decimals}f}]"
    if paired and (len(values) == 1 or low <= 0 <= high):
        text += " n.s."
    return text if len(values) == people else f"{text} ({len(values)} of the people)"


def table(header: list[str], rows: list[list]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(value) for value in line) + " |" for line in lines)


class Report:
    """
    Args:
        results (`dict`): what `evaluate.py` writes to evaluation.json. `people` holds for each person under `self` and
            `cross`, number of shots and method what was measured; `portraits` for each group people with `portraits`.
    """

    def __init__(self, results: dict):
        self.results = results
        self.people = results["people"]

    def of(self, task: str, shots: str, method: str) -> dict[str, dict]:
        """What was measured of everybody for whom it was, by person."""
        found = {name: person[task].get(shots, {}).get(method) for name, person in self.people.items()}
        return {name: measured for name, measured in found.items() if measured}

    def shots(self, task: str) -> list[str]:
        return sorted({shots for person in self.people.values() for shots in person[task]}, key=int)

    def methods(self, task: str, shots: str) -> list[str]:
        """Baselines, then each model feed-forward and fine-tuned, as they were measured."""
        found = {method for person in self.people.values() for method in person[task].get(shots, {})}
        order = [UNMOVED, DRIVER, WARP]
        for name in self.results["settings"]["models"]:
            order += variants(name)
        return [method for method in order if method in found]

    def rows(self, task: str):
        """Number of shots, method, and its people. The first portrait stays the same whatever the number."""
        for shots in self.shots(task):
            for method in self.methods(task, shots):
                if method != UNMOVED or shots == self.shots(task)[0]:
                    yield shots, method, self.of(task, shots, method)

    def means(self, task: str, measures: dict, with_faceless: bool = True) -> str:
        rows = []
        for shots, method, people in self.rows(task):
            measured = [
                cell([p.get(key) for p in people.values()], d, len(people)) for key, (_, d) in measures.items()
            ]
            rows.append([shots, method, len(people), *measured] + [faceless(people)] * with_faceless)
        titles = [title for title, _ in measures.values()] + ["no face"] * with_faceless
        return table(["T", "method", "people", *titles], rows)

    def differences(self, task: str = "self", measures: dict = MEASURES) -> str:
        """Paired over the people that both have: what everybody shows is not lost in how people differ."""
        pairs = []
        shots = self.shots(task)
        first, *others = self.results["settings"]["models"]
        for name in (first, *others):
            for t in shots:
                feed_forward, *tuned = variants(name)
                pairs += [((t, feed_forward), (t, WARP))] + [((t, method), (t, feed_forward)) for method in tuned]
            for fewer, t in pairwise(shots):
                pairs += [((t, method), (fewer, method)) for method in variants(name)]
        for name in others:
            for t in shots:
                pairs += [((t, own), (t, other)) for own, other in zip(variants(first), variants(name), strict=True)]
        rows = []
        for (t, method), (other_t, other) in pairs:
            left, right = self.of(task, t, method), self.of(task, other_t, other)
            both = left.keys() & right.keys()
            if not both:
                continue
            title = f"{method} minus {other}, T = {t}" if t == other_t else f"{method}, T = {t} minus T = {other_t}"
            measured = []
            for key, (_, decimals) in measures.items():
                values = [(left[name].get(key), right[name].get(key)) for name in sorted(both)]
                values = [None if None in pair else pair[0] - pair[1] for pair in values]
                measured.append(cell(values, decimals, len(both), paired=True))
            rows.append([title, len(both), *measured])
        return table(["difference", "people", *(title for title, _ in measures.values())], rows)

    def times(self) -> str:
        rows = []
        for shots, method, people in self.rows("self"):
            if method == UNMOVED:
                continue
            seconds = {
                key: np.median([p["seconds"][key] for p in people.values()]) if all_have(people, key) else None
                for key in ("embed", "fine_tune", "generate")
            }
            embed, fine_tune = ("–" if seconds[k] is None else f"{seconds[k]:.2f}" for k in ("embed", "fine_tune"))
            sizes = [p["megabytes"] for p in people.values() if "megabytes" in p]
            size = f"{np.median(sizes):.1f}" if sizes else "–"
            rows.append([shots, method, embed, fine_tune, f"{1000 * seconds['generate']:.0f}", size])
        return table(["T", "method", "embed, s", "fine-tune, s", "a frame, ms", "identity, MB"], rows)

    def cross(self) -> str:
        rows = []
        for shots, method, people in self.rows("cross"):
            csim, pose, expression = (
                cell([p[key] for p in people.values()], d, len(people)) for key, (_, d) in CROSS_MEASURES.items()
            )
            own = {name: self.people[name]["self"][shots][method]["csim"] for name in people}
            ratios = [people[name]["csim"] / own[name] for name in people]
            csims = [csim, cell(list(own.values()), 3, len(people)), cell(ratios, 3, len(people))]
            rows.append([shots, method, len(people), *csims, pose, expression, faceless(people)])
        csim, *others = (title for title, _ in CROSS_MEASURES.values())
        header = ["T", "method", "people", csim, "CSIM in self-reenactment", "ratio ↑", *others, "no face"]
        return table(header, rows)

    def model_index(self) -> tuple[str, list[EvalResult]]:
        """The first model and its feed-forward means as the front matter of a model card has them."""
        name = next(iter(self.results["settings"]["models"]))
        results = []
        for shots in self.shots("self"):
            people = self.of("self", shots, f"{name} FF")
            for key, (title, decimals) in (MEASURES | PART_MEASURES).items():
                values = [p[key] for p in people.values() if p.get(key) is not None]
                if values:
                    result = EvalResult(
                        task_type="image-to-video",
                        task_name="self-reenactment",
                        dataset_type="held-out-clips",  # nowhere on the hub; the card's text says what they are
                        dataset_name=f"One clip each of {len(people)} people who are not in the training data",
                        dataset_config=f"T = {shots}",  # numbers of one configuration stand together
                        metric_type=key,
                        metric_name=title.rstrip(" ↓↑→01"),
                        metric_value=round(float(np.mean(values)), decimals),
                    )
                    results.append(result)
        return name, results

    def portraits(self) -> list[str]:
        """A table of means and one of differences for each group of portraits, with what they show."""
        parts = []
        for group, measured in self.results.get("portraits", {}).items():
            report = Report(self.results | {"people": measured["people"]})
            missing = f" No face was found in {', '.join(measured['left_out'])}." if measured["left_out"] else ""
            parts += [
                f"Portraits *{group}*: {len(measured['people'])} pictures driven by clips in relative motion; CSIM is "
                f"to the portrait. *{DRIVER.capitalize()}* is what the detector sees of the expression in the "
                f"driver's frames: less than 1 where a blink that it sees half is led to its end.{missing}",
                report.means("portraits", PORTRAIT_MEASURES),
                report.differences("portraits", PORTRAIT_MEASURES),
            ]
        return parts

    def left_out(self) -> str:
        """Who has too few frames for which number of shots; empty where nobody."""
        short = {}
        for name, person in self.people.items():
            for shots in person["left_out"]:
                short.setdefault(shots, []).append(f"{name} ({person['frames']} frames)")
        return "".join(f" Left out at T = {t}, too few frames: {', '.join(short[t])}." for t in sorted(short))

    def markdown(self) -> str:
        settings = self.results["settings"]
        data, machine = settings["data"], settings["machine"]
        models = ", ".join(f"{name} {model['sha256'][:12]}" for name, model in settings["models"].items())
        networks = ", ".join(f"{use} {network['file']}" for use, network in settings["networks"].items())
        parts = [
            f"Self-reenactment of {len(self.people)} people whom the models have not seen, one clip each: the T "
            "portraits come from the first half of the clip, up to "
            f"{data['num_frames']} frames of the second half are generated from their landmarks. FF is feed-forward, "
            "FT fine-tuned, in full or by LoRA. Means over people, with 95 % intervals bootstrapped over people. "
            "*LPIPS of the face* compares the face enlarged, where the frame's is mostly of hair and background. "
            "AKD is over the frames in which a face was found; the others are counted under *no face*."
            f"{self.left_out()}",
            self.means("self", MEASURES),
            "Differences, paired over the people that both have; *n.s.*: zero lies within the interval, so the "
            "difference is not significant. Minus is better for LPIPS and AKD, plus for SSIM and CSIM.",
            self.differences(),
            "Expression and background. Mouth and eyes are compared level and enlarged. *Slope* and *correlation* are "
            "of the openings that the detector sees on the generated frames against those that the landmarks ask for: "
            "a slope of 1 delivers all, 0 nothing; people whose landmarks hardly ask for anything have none. *Blink* "
            "is how far eyes close that are to close, in parts of the way asked. These count up to 12 frames more, "
            "those with the most closed eyes and the most open mouths. *Flicker* is the warping error (Lai et "
            "al. 2018) over the up to 12 successive frames in which the face moves most: the root of the mean square "
            "by which a frame differs from the next one, pulled back by the optical flow of the true frames, in grey "
            "levels of 255, less that of the truth. At 0 the parts are as steady as the truth, below 0 smoother; "
            "what moves otherwise than the truth counts, too. *Swim* is the optical flow from one generated frame to "
            "the next where the true background stands still.",
            self.means("self", PART_MEASURES, with_faceless=False),
            self.differences("self", PART_MEASURES),
            "Time, and size of what is saved of a person, median over people, on "
            f"{machine['hardware']} ({machine['threads']} threads, {machine['dtype']}, PyTorch {machine['torch']}):",
            self.times(),
        ]
        if self.shots("cross"):
            parts += [
                "Cross-reenactment: the portrait driven by other people's clips, relative motion. The ratio is that "
                "of CSIM to the portrait to the same person's CSIM in self-reenactment, which is to the truth. Pose "
                "(yaw, pitch, roll) and expression (openings of eyes and mouth) are compared with the driver's, each "
                "as the change from the portrait or from the driver's reference frame.",
                self.cross(),
                "Expression in cross-reenactment, of what the drivers' landmarks ask of the portrait:",
                self.means("cross", EXPRESSION_MEASURES, with_faceless=False),
                self.differences("cross", CROSS_MEASURES | EXPRESSION_MEASURES),
            ]
        parts += self.portraits()
        commands = "\n".join(self.results["commands"])
        parts += [f"Weights (SHA-256): {models}. Networks: {networks}.", f"```bash\n{commands}\n```"]
        return "\n\n".join(parts) + "\n"


def variants(model: str) -> list[str]:
    """What is measured of a model: feed-forward, and each method of fine-tuning."""
    return [f"{model} FF", *(f"{model} FT {method}" for method in METHODS)]


def all_have(people: dict[str, dict], key: str) -> bool:
    return all(person["seconds"].get(key) is not None for person in people.values())


def faceless(people: dict[str, dict]) -> str:
    """How many of all generated frames show no face to the detector."""
    missing, frames = (sum(p[key] for p in people.values()) for key in ("frames_without_face", "frames"))
    return f"{missing} of {frames}"


def check_markers(path: Path):
    """That there is one place in the file to write the tables to, or an `FsthError`."""
    if not path.is_file():
        raise FsthError(f"There is no file {path} to write the tables to.")
    text = path.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise FsthError(f"{path} has no place for the tables: put {BEGIN} and {END} there, once and in this order.")


def write_between_markers(path: Path, markdown: str):
    check_markers(path)
    text = path.read_text()
    before, after = text[: text.index(BEGIN) + len(BEGIN)], text[text.index(END) :]
    path.write_text(f"{before}\n{markdown}{after}")


def write_model_index(path: Path, report: Report):
    """Bring the front matter of a model card up to date; a file without front matter stays as it is."""
    if not path.read_text().startswith("---\n"):
        return
    card = ModelCard.load(path)
    card.data.model_name, card.data.eval_results = report.model_index()
    card.save(path)


def strip_path(folder: Path, identity: str, task: str, shots: str, column: str) -> Path:
    """Where the shown frames of a person in one column of a grid lie, below each other in one picture."""
    return folder / "pictures" / quote(identity, safe="") / f"{task}-{shots}-{quote(column, safe='')}.jpg"


def save_strip(path: Path, frames: list[np.ndarray]):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(frames)).save(path, quality=95)


def save_grid(target: Path, task: str, shots: str, identities: list[str], columns: list[str]):
    """The strips that there are beside `target` in one picture; a person whom a column does not have is grey there."""
    rows = []
    for identity in identities[:PEOPLE_SHOWN]:
        paths = [strip_path(target.parent, identity, task, shots, column) for column in columns]
        strips = [np.asarray(Image.open(path)) if path.exists() else None for path in paths]
        known = [strip for strip in strips if strip is not None]
        if known:
            blank = np.full_like(known[0], 128)
            rows.append(np.concatenate([blank if strip is None else strip for strip in strips], axis=1))
    if not rows:
        return
    header = Image.new("RGB", (rows[0].shape[1], HEADER_HEIGHT), "white")
    draw, width = ImageDraw.Draw(header), rows[0].shape[1] // len(columns)
    for number, column in enumerate(columns):
        draw.text((number * width + 4, 4), column, "black", ImageFont.load_default(16))
    Image.fromarray(np.concatenate([np.asarray(header), *rows])).save(target, quality=90)


def render(folder: Path, write: list[Path]):
    """evaluation.md and the grids from FOLDER/evaluation.json; the tables and `model-index` into the files `write`."""
    path = folder / RESULTS
    if not path.is_file():
        raise FsthError(f"There is no evaluation.json in {folder}; measure first.")
    report = Report(json.loads(path.read_text()))
    markdown = report.markdown()
    (folder / "evaluation.md").write_text(markdown)
    for task, ends in (("self", ("portrait", "truth")), ("cross", ("portrait", "driver"))):
        for shots in report.shots(task):
            methods = [method for method in report.methods(task, shots) if method != UNMOVED]
            columns = [ends[0], "landmarks", *methods, ends[1]]
            save_grid(folder / f"{task}-{shots}.jpg", task, shots, list(report.people), columns)
    for group, measured in report.results.get("portraits", {}).items():
        names = [f"{group}/{name}" for name in measured["people"]]
        methods = [f"{name} FF" for name in report.results["settings"]["models"]]
        save_grid(folder / f"{group}.jpg", "portraits", "1", names, ["portrait", "landmarks", WARP, *methods])
    for target in write:
        write_between_markers(target, markdown)
        write_model_index(target, report)
    print(markdown)
