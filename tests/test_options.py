"""Flags of meta-training."""

import json

import pytest

from training.options import LOSS_WEIGHTS, parse_args


REQUIRED = ["SHARDS", "--output_dir=RUN", "--vgg=vgg.safetensors"]


def test_file_gives_flags_and_the_command_line_wins(tmp_path):
    for name, text in {
        "flags.json": json.dumps({"vgg": "v", "batch_size": 3, "generator_lr": 1e-5, "resume": True, "seed": None}),
        "flags.yaml": "vgg: v\nbatch_size: 3\ngenerator_lr: 1e-5\nresume: true\n",
    }.items():
        config = tmp_path / name
        config.write_text(text)
        args = parse_args(["SHARDS", "--output_dir=RUN", "--config", str(config), "--batch_size=5"], "")
        assert (args.vgg, args.batch_size, args.generator_lr, args.resume, args.seed) == ("v", 5, 1e-5, True, 0)
        args = parse_args(["SHARDS", "--output_dir=RUN", f"--config={config}", "--no-resume"], "")
        assert (args.batch_size, args.resume) == (3, False)


@pytest.mark.parametrize(
    "text, problem",
    [
        ('{"lerning_rate": 1}', "lerning_rate"),
        ('{"batch_size": "x"}', "batch_size"),
        ("[1]", "mapping"),
        ("{", "read"),
    ],
)
def test_bad_file_is_explained(tmp_path, capsys, text, problem):
    config = tmp_path / "flags.json"
    config.write_text(text)
    with pytest.raises(SystemExit):
        parse_args([*REQUIRED, "--config", str(config)], "")
    assert problem in capsys.readouterr().err.splitlines()[-1]


def test_paper_preset_has_the_papers_choices():
    args = parse_args([*REQUIRED, "--preset=paper"], "")
    assert args.self_attention and not args.source_skips
    assert (args.num_sources, args.discriminator_steps, args.generator_lr, args.discriminator_lr) == (8, 2, 5e-5, 2e-4)
    assert (args.vgg_weight, args.face_weight, args.feature_matching_weight, args.match_weight) == (
        0.15,
        0.025,
        10,
        10,
    )
    small = parse_args(REQUIRED, "")
    assert small.source_skips and not small.self_attention
    assert not parse_args([*REQUIRED, "--preset=paper", "--no-self_attention"], "").self_attention


def test_weights_of_the_papers_first_version():
    args = parse_args([*REQUIRED, "--loss_weights=v1", "--match_weight=5"], "")
    assert (args.vgg_weight, args.face_weight, args.feature_matching_weight, args.match_weight) == (0.01, 0.002, 10, 5)
    assert LOSS_WEIGHTS["v1"].keys() == LOSS_WEIGHTS["v2"].keys()


@pytest.mark.parametrize(
    "flags", [["--image_size=100"], ["--batch_size=0"], ["--pretrained=MODEL", "--self_attention"], ["--batch=3"]]
)
def test_flags_that_cannot_be_are_refused(flags):
    with pytest.raises(SystemExit):
        parse_args([*REQUIRED, *flags], "")


def test_help_explains_every_flag(capsys):
    with pytest.raises(SystemExit):
        parse_args(["--help"], "")
    lines = capsys.readouterr().out.splitlines()
    flags = [(line, after) for line, after in zip(lines, lines[1:], strict=False) if line.startswith("  --")]
    assert len(flags) > 40
    for line, after in flags:
        explained = "  " in line.strip() or after.startswith(" " * 20)
        assert explained, line
