"""The flags of meta_train.py, given on the command line or in a file."""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

import yaml

from fsth_hub.finetuning.losses import ADVERSARIAL_TERMS, CONTENT_TERMS, LossTerm


TERMS = (*CONTENT_TERMS, *ADVERSARIAL_TERMS)
# By name, of both versions of the paper; v2 raised the content weights and lowered the match weight.
V2_WEIGHTS = {term.name: term.weight for term in TERMS}
LOSS_WEIGHTS = {"v1": V2_WEIGHTS | {"vgg": 0.01, "face": 0.002, "match": 80.0}, "v2": V2_WEIGHTS}


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    def _get_help_string(self, action):
        return action.help if action.default is None else super()._get_help_string(action)


def parse_args(argv: list[str], description: str) -> argparse.Namespace:
    """Flags of the command line, which win, and of the file that --config names."""
    parser = argparse.ArgumentParser(
        description=description,
        usage="%(prog)s SHARDS --output_dir RUN --vgg VGG [--FLAG VALUE ...]",
        formatter_class=HelpFormatter,
        allow_abbrev=False,
    )
    switch = argparse.BooleanOptionalAction
    parser.add_argument("shards", type=Path, help="folder of training shards (training/prepare_dataset.py)")

    add = parser.add_argument_group("run").add_argument
    add("--config", type=Path, help="JSON or YAML file of flags and values; flags on the command line win")
    add("--output_dir", type=Path, required=True, help="checkpoints, logs, samples and the model; shared by all nodes")
    add("--resume", action=switch, default=False, help="go on from the last checkpoint in OUTPUT_DIR, if there is one")
    add("--max_steps", type=int, default=100_000, help="generator updates in all")
    add("--max_minutes", type=float, default=math.inf, help="save and stop after so long")
    add("--seed", type=int, default=0, help="of the networks' start and of every episode")
    add("--mixed_precision", choices=["no", "bf16"], default="bf16", help="bf16: half the memory, float32 weights")
    add("--save_every", type=int, default=200, help="steps between checkpoints")
    add("--keep_checkpoints", type=int, default=2, help="of the last ones; 0 keeps all")
    add("--log_every", type=int, default=20, help="steps between lines of OUTPUT_DIR/log.jsonl")
    add("--sample_every", type=int, default=200, help="steps between sample pictures and validations")
    add("--report_to", help="trackers besides log.jsonl, separated by commas: tensorboard, wandb, ... or all")
    add("--push_to_hub", metavar="REPO", help="upload the model there at the end; needs `hf auth login` or HF_TOKEN")
    add("--hub_public", action=switch, default=False, help="anyone may see REPO, if it is new")

    add = parser.add_argument_group("data").add_argument
    add("--validation_shards", type=Path, help="shards of people who are not in the training shards")
    add("--image_size", type=int, default=256, help="side of the training frames in pixels, a multiple of 64")
    add("--network_size", type=int, help="side in pixels of what the networks work on, a multiple of 16: IMAGE_SIZE")
    add("--num_sources", type=int, default=8, help="K, portraits per episode; the paper has 8")
    add("--vary_sources", action=switch, default=False, help="sample K from 1 .. num_sources for each batch")
    add("--far_sources", action=switch, default=False, help="portraits whose eyes and mouth are unlike the frame's")
    add("--batch_size", type=int, default=8, help="episodes per process; the paper gives none, its authors' code 8")
    add(
        "--gradient_accumulation_steps", type=int, default=1,
        help="batches per update of the generator, and of the discriminator: the same as a batch that much larger",
    )  # fmt: skip
    add("--num_workers", type=int, default=2, help="processes per process that load episodes")

    add = parser.add_argument_group("networks").add_argument
    add("--preset", choices=["small", "paper"], default="small", help="small is what the package ships")
    add("--pretrained", type=Path, help="folder of networks to start from, with fresh optimisers and person vectors")
    add("--self_attention", action=switch, help="on in the paper preset as in the paper; its authors' code has none")
    add("--source_skips", action=switch, help="off in the paper preset; hundreds of people are too few without them")
    add("--ema_decay", type=float, default=0.999, help="of the averaged embedder and generator; the authors' code")

    add = parser.add_argument_group("optimisation").add_argument
    add("--generator_lr", type=float, default=5e-5, help="Adam, embedder and generator; the paper's")
    add("--discriminator_lr", type=float, default=2e-4, help="Adam, discriminator; the paper's")
    add("--beta1", type=float, default=0.0, help="Adam; the paper gives none, its authors' code 0")
    add("--lr_schedule", choices=["constant", "cosine"], default="constant", help="cosine falls to 0 at max_steps")
    add("--warmup_steps", type=int, default=0, help="both rates rise linearly for so many steps of their networks")
    add(
        "--discriminator_steps", type=int, default=2,
        help="discriminator updates per generator's: 2 in the paper, 1 in its authors' code",
    )  # fmt: skip
    add("--adversarial_start", type=int, default=0, help="content loss alone up to and including this step")

    add = parser.add_argument_group("losses").add_argument
    add(
        "--vgg", required=True,
        help="VGG trained on ImageNet, safetensors file or hub repository: timm/vgg19.tv_in1k is the paper's VGG19 "
        "but for the scale of its input, which we make up for; VGG16 serves where that cannot be had",
    )  # fmt: skip
    add("--face_network", help="in VGGFace's place, whose weights have no clear licence; without it no such term")
    add("--loss_weights", choices=list(LOSS_WEIGHTS), default="v2", help="weights of that version of the paper")
    add("--window", type=int, help="side in pixels of a random square for the VGG and LPIPS, sampled for each step")
    for term in TERMS:
        versions = {version: weights[term.name] for version, weights in LOSS_WEIGHTS.items()}
        same = len(set(versions.values())) == 1
        defaults = f"{term.weight:g}" if same else ", ".join(f"{w:g} in {version}" for version, w in versions.items())
        add(f"--{term.name}_weight", type=float, help=f"{term.about}: {defaults}")

    # the file's flags come first: of a flag that is given twice the last counts
    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    early.add_argument("--config", type=Path)
    config = early.parse_known_args(argv)[0].config
    try:
        args = parser.parse_args((flags_of_file(config) if config else []) + argv)
    except (OSError, ValueError, yaml.YAMLError) as error:
        parser.error(f"--config {config} cannot be read: {error}")

    if args.image_size < 64 or args.image_size % 64:
        parser.error(f"--image_size must be a positive multiple of 64, not {args.image_size}")
    for name in (
        "batch_size",
        "gradient_accumulation_steps",
        "num_sources",
        "log_every",
        "sample_every",
        "save_every",
    ):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, not {getattr(args, name)}")
    if args.pretrained and (args.self_attention, args.source_skips) != (None, None):
        parser.error("--pretrained brings its own networks: leave out --self_attention and --source_skips")
    if args.self_attention is None:
        args.self_attention = args.preset == "paper"
    if args.source_skips is None:
        args.source_skips = args.preset == "small"
    for name, weight in LOSS_WEIGHTS[args.loss_weights].items():
        if getattr(args, f"{name}_weight") is None:
            setattr(args, f"{name}_weight", weight)
    return args


def weights_of(args: argparse.Namespace, terms: Sequence[LossTerm]) -> dict[str, float]:
    """The weights that the flags give some loss terms, by name."""
    return {term.name: getattr(args, f"{term.name}_weight") for term in terms}


def flags_of_file(path: Path) -> list[str]:
    """`{"batch_size": 4, "resume": true}` as `["--batch_size=4", "--resume"]`, so that argparse judges it alike."""
    read = json.loads if path.suffix == ".json" else yaml.safe_load
    values = read(path.read_text())
    if not isinstance(values, dict):
        raise ValueError("it must be a mapping of flags to values")
    flags = {True: "--{}", False: "--no-{}"}
    return [
        flags[value].format(name) if isinstance(value, bool) else f"--{name}={value}"
        for name, value in values.items()
        if value is not None
    ]
