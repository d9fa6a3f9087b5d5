"""Tables of an evaluation: numbers of a few invented people."""

import json

import numpy as np
import pytest
from huggingface_hub import ModelCard

from fsth_hub.models.errors import FsthError
from testing_utils.paths import BUNDLED_CARD
from training.evaluation.report import (
    BEGIN,
    END,
    MEASURES,
    PART_MEASURES,
    Report,
    interval,
    render,
    write_between_markers,
    write_model_index,
)


def measured(lpips: float, akd: float | None = 2.0, **seconds) -> dict:
    frames = {"frames": 4, "frames_without_face": 4 if akd is None else 1}
    return frames | {
        "lpips": lpips,
        "face_lpips": lpips / 2,
        "ssim": 0.5,
        "csim": 0.8,
        "akd": akd,
        "seconds": {"generate": 0.1} | seconds,
    }


def person(warp: float, model: float, tuned: float | None = None, many: float | None = None, akd=2.0) -> dict:
    """LPIPS of one person: warp, feed-forward and fine-tuned with one portrait, and feed-forward with eight."""
    ones = {"unmoved portrait": measured(0.9), "warp by landmarks": measured(warp)}
    ones["own FF"] = measured(model, akd, embed=0.25)
    if tuned is not None:
        ones["own FT full"] = measured(tuned, fine_tune=60.0) | {"megabytes": 20.14}
        ones["own FT lora"] = measured(tuned - 0.05, fine_tune=70.0) | {"megabytes": 1.16}
    own = {"1": ones} if many is None else {"1": ones, "8": {"own FF": measured(many, embed=0.5)}}
    frames = {"frames": 64, "left_out": []} if many is not None else {"frames": 10, "left_out": [8]}
    cross = {"frames": 4, "frames_without_face": 0, "csim": 0.6, "pose": 1.5, "expression": None, "seconds": {}}
    return {"clip": "k", **frames, "self": own, "cross": {"1": {"own FF": cross}}}


@pytest.fixture
def report():
    people = {
        "ann": person(0.30, 0.20, tuned=0.10, many=0.15),
        "bob": person(0.40, 0.25, tuned=0.30, many=0.10),
        "cid": person(0.50, 0.48, akd=None),
    }
    machine = {"hardware": "a machine", "threads": 2, "dtype": "float32", "torch": "2"}
    settings = {
        "data": {"num_frames": 4}, "machine": machine, "fine_tuning": {},
        "models": {"own": {"sha256": "0123456789abcdef"}}, "networks": {"LPIPS": {"file": "alex.safetensors"}},
    }  # fmt: skip
    return Report({"settings": settings, "people": people, "commands": ["python training/evaluate.py SHARDS/val"]})


def rows(table: str) -> dict[tuple, list[str]]:
    """Lines of a Markdown table by what comes before the number of people."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return {tuple(line[:2]): line[2:] for line in lines}


def test_interval_holds_the_mean_of_people_and_narrows_with_their_number():
    values = np.random.default_rng(1).normal(3, 1, 200)
    low, high = interval(values)
    error = values.std() / np.sqrt(200)
    assert (low, high) == pytest.approx((values.mean() - 1.96 * error, values.mean() + 1.96 * error), abs=0.03)
    assert interval(values) == (low, high)  # the same for the same numbers
    few = interval(values[:10])
    assert few[1] - few[0] > 3 * (high - low)


def test_rows_say_over_how_many_people_they_are(report):
    quality = rows(report.means("self", MEASURES))
    assert quality["1", "own FF"][:2] == ["3", "0.3100 [0.2000, 0.4800]"]
    assert quality["1", "own FT full"][:2] == ["2", "0.2000 [0.1000, 0.3000]"]
    assert quality["8", "own FF"][0] == "2"
    assert list(quality) == [
        ("1", "unmoved portrait"), ("1", "warp by landmarks"),
        ("1", "own FF"), ("1", "own FT full"), ("1", "own FT lora"), ("8", "own FF"),
    ]  # fmt: skip


def test_frames_without_a_face_are_counted_and_their_people_named(report):
    akd, faceless = rows(report.means("self", MEASURES))["1", "own FF"][-2:]
    assert akd == "2.00 [2.00, 2.00] (2 of the people)" and faceless == "6 of 12"


def test_differences_are_paired_and_tell_what_is_not_significant(report):
    differences = rows(report.differences())
    everybody = differences["own FF minus warp by landmarks, T = 1", "3"]
    assert everybody[0] == "-0.0900 [-0.1500, -0.0200]" and everybody[2] == "0.000 [0.000, 0.000] n.s."
    assert everybody[1] == "-0.0450 [-0.0750, -0.0100]" and everybody[4].endswith("(2 of the people)")
    # of those who were fine-tuned alone; one gains and one loses
    assert differences["own FT full minus own FF, T = 1", "2"][0] == "-0.0250 [-0.1000, 0.0500] n.s."
    assert differences["own FT lora minus own FF, T = 1", "2"][0] == "-0.0750 [-0.1500, 0.0000] n.s."
    assert differences["own FF, T = 8 minus T = 1", "2"][0] == "-0.1000 [-0.1500, -0.0500]"
    assert len(differences) == 4


def test_the_first_model_is_compared_with_each_other_one(report):
    report.results["settings"]["models"]["paper"] = {"sha256": "0"}
    report.people["ann"]["self"]["1"]["paper FF"] = measured(0.60)
    report.people["bob"]["self"]["1"]["paper FF"] = measured(0.75)
    differences = rows(report.differences())
    assert differences["own FF minus paper FF, T = 1", "2"][0] == "-0.4500 [-0.5000, -0.4000]"
    assert ("own FF minus own FF, T = 1", "2") not in differences


def test_numbers_of_portraits_are_compared_with_the_next_lower(report):
    for name, lpips in (("ann", 0.14), ("bob", 0.13)):
        report.people[name]["self"]["32"] = {"own FF": measured(lpips)}
    differences = rows(report.differences())
    assert differences["own FF, T = 32 minus T = 8", "2"][0] == "0.0100 [-0.0100, 0.0300] n.s."


def test_one_person_has_no_interval_and_no_significance(report):
    report.people = {"ann": report.people["ann"]}
    assert rows(report.means("self", MEASURES))["1", "own FF"][1] == "0.2000"
    assert rows(report.differences())["own FT full minus own FF, T = 1", "1"][0] == "-0.1000 n.s."


def test_cross_reenactment_compares_with_the_same_persons_own(report):
    row = rows(report.cross())["1", "own FF"]
    assert row[0] == "3" and [cell.split()[0] for cell in row[1:6]] == ["0.600", "0.800", "0.750", "1.50", "–"]


def test_parts_and_background_are_averaged_and_compared_where_there_are_any(report):
    for name, slope in (("ann", 0.5), ("bob", 0.7), ("cid", None)):
        for method, more in (("warp by landmarks", 0.3), ("own FF", 0.0)):
            values = {"mouth_slope": None if slope is None else slope - more, "swim": 0.25 + more}
            values["mouth_flicker"] = more - 0.5
            report.people[name]["self"]["1"][method] |= values
    means = rows(report.means("self", PART_MEASURES, with_faceless=False))["1", "own FF"]
    assert means[3] == "0.60 [0.50, 0.70] (2 of the people)" and means[-1] == "0.250 [0.250, 0.250]"
    assert means[1] == means[-2] == means[-4] == "–"  # measured before there was such a measure
    assert means[-3] == "-0.50 [-0.50, -0.50]"
    results = report.model_index()[1]
    assert [r.metric_value for r in results if r.metric_name == "flicker of the mouth"] == [-0.5]
    differences = rows(report.differences("self", PART_MEASURES))["own FF minus warp by landmarks, T = 1", "3"]
    assert differences[2] == "0.30 [0.30, 0.30] (2 of the people)" and differences[-1] == "-0.300 [-0.300, -0.300]"


def test_each_group_of_portraits_has_tables(report):
    assert "Portraits" not in report.markdown()

    def picture(slope):
        measured = {"frames": 24, "frames_without_face": 2, "csim": 0.9, "mouth_slope": slope}
        return {"portraits": {"1": {"warp by landmarks": measured | {"mouth_slope": 0.2}, "own FF": measured}}}

    people = {"a.jpg": picture(0.4), "b.jpg": picture(0.8)}
    report.results["portraits"] = {"paintings": {"left_out": ["c.jpg"], "people": people}}
    means, differences = map(rows, report.portraits()[1:])
    assert means["1", "own FF"][:3] == ["2", "0.900 [0.900, 0.900]", "0.60 [0.40, 0.80]"]
    assert means["1", "own FF"][-1] == "4 of 48"
    assert differences["own FF minus warp by landmarks, T = 1", "2"][1] == "0.40 [0.20, 0.60]"
    assert "*paintings*: 2 pictures" in report.markdown() and "No face was found in c.jpg." in report.markdown()


def test_markdown_names_times_people_left_out_command_and_weights(report):
    text = report.markdown()
    assert "| 1 | own FT full | – | 60.00 | 100 | 20.1 |" in text and "| 8 | own FF | 0.50 | – | 100 | – |" in text
    assert "Left out at T = 8, too few frames: cid (10 frames)." in text
    assert "```bash\npython training/evaluate.py SHARDS/val\n```" in text
    assert "own 0123456789ab" in text and "LPIPS alex.safetensors" in text


def test_tables_go_between_the_markers_and_nowhere_else(tmp_path):
    path = tmp_path / "README.md"
    path.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    for text in ("new\n", "newer\n"):
        write_between_markers(path, text)
        assert path.read_text() == f"before\n{BEGIN}\n{text}{END}\nafter\n"


@pytest.mark.parametrize("text", ["no markers", BEGIN, f"{END}\n{BEGIN}", f"{BEGIN}{BEGIN}{END}"])
def test_file_without_a_place_for_tables_is_refused(tmp_path, text):
    path = tmp_path / "README.md"
    path.write_text(text)
    with pytest.raises(FsthError, match="has no place for the tables"):
        write_between_markers(path, "new")
    assert path.read_text() == text
    with pytest.raises(FsthError, match="no file"):
        write_between_markers(tmp_path / "absent.md", "new")


def test_cards_get_tables_and_model_index_and_keep_the_rest(report, tmp_path):
    card, readme = tmp_path / "card.md", tmp_path / "README.md"
    card.write_bytes(BUNDLED_CARD.read_bytes())
    before = ModelCard.load(card)
    readme.write_text(f"# no front matter\n{BEGIN}\n{END}\n")
    (tmp_path / "evaluation.json").write_text(json.dumps(report.results))
    render(tmp_path, [card, readme])

    after = ModelCard.load(card)
    found = {(r.dataset_config, r.metric_name): r.metric_value for r in after.data.eval_results}
    assert found == {
        ("T = 1", "LPIPS"): 0.31, ("T = 1", "SSIM"): 0.5, ("T = 1", "CSIM"): 0.8, ("T = 1", "AKD, %"): 2.0,
        ("T = 8", "LPIPS"): 0.125, ("T = 8", "SSIM"): 0.5, ("T = 8", "CSIM"): 0.8, ("T = 8", "AKD, %"): 2.0,
        ("T = 1", "LPIPS of the face"): 0.155, ("T = 8", "LPIPS of the face"): 0.0625,
    }  # fmt: skip
    assert [r.dataset_name.split(" people")[0].split()[-1] for r in after.data.eval_results[::5]] == ["3", "2"]
    known, fresh = before.data.to_dict(), after.data.to_dict()
    assert [group["dataset"]["config"] for group in fresh["model-index"][0]["results"]] == ["T = 1", "T = 8"]
    assert fresh["model-index"][0]["name"] == "own"
    for data in (known, fresh):
        data.pop("model-index", None)
    assert known == fresh
    assert after.text.split(BEGIN)[0] == before.text.split(BEGIN)[0]
    assert after.text.split(END)[1] == before.text.split(END)[1]
    assert readme.read_text() == f"# no front matter\n{BEGIN}\n{report.markdown()}{END}\n"

    text = card.read_text()
    write_model_index(card, report)  # again: nothing more
    assert card.read_text() == text
