"""`extract`, `convert`, `push` and `pull`: weights to files and the Hub, and back."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..plan.results import read_rows
from .numbers import in_range
from .options import add_model, add_verb, load_model, print_json, print_path, print_url

if TYPE_CHECKING:
    from ..network.stitchable import StitchableNetwork
    from .options import Verbs


def add_verbs(verbs: Verbs) -> None:
    """Add `extract`, `convert`, `push` and `pull` to the command line."""
    verb = add_verb(
        verbs,
        "extract",
        run_extract,
        "save one stitch to a safetensors file, which from_hub and every verb load",
        "extract net --stitch-id 24 --output 24.safetensors",
    )
    add_model(verb)
    verb.add_argument("--stitch-id", type=int, action=in_range(0), required=True, help="stitch to extract")
    verb.add_argument("--output", required=True, help="safetensors file to write")

    verb = add_verb(
        verbs,
        "convert",
        run_convert,
        "convert a checkpoint of the authors to a folder of timm_stitch",
        "convert snnet_deit.pth snnet_deit_tsb --output net",
    )
    verb.add_argument("checkpoint", help="file of the authors' checkpoint")
    verb.add_argument("name", help="registered name of its network, e.g. snnet_deit_tsb")
    verb.add_argument("--output", required=True, help="folder for the network")

    verb = add_verb(
        verbs,
        "push",
        run_push,
        "push a network to the Hub, with the token of huggingface_hub",
        "push net --repo user/name --results results.jsonl",
    )
    add_model(verb)
    verb.add_argument("--repo", required=True, metavar="USER/NAME", help="repository on the Hub, created if missing")
    verb.add_argument("--results", help="JSON lines file of eval, to publish with the network")
    verb.add_argument("--dataset", help="dataset that the results come from, e.g. imagenet-1k")
    verb.add_argument("--split", help="dataset split")
    verb.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    verb.add_argument("--revision", help="branch to push to (default: main)")
    verb.add_argument("--create-pr", action="store_true", help="open a pull request instead of a commit to the branch")
    verb.add_argument("--message", help="commit message")

    verb = add_verb(
        verbs,
        "pull",
        run_pull,
        "fetch a network from the Hub to a folder, or one stitch to a safetensors file",
        "pull user/name --stitch-id 24 --output 24.safetensors",
    )
    verb.add_argument("repo", metavar="USER/NAME", help="repository on the Hub")
    verb.add_argument("--stitch-id", type=int, action=in_range(0), help="stitch to fetch alone, to a safetensors file")
    verb.add_argument("--revision", help="branch, tag or commit to fetch (default: main)")
    verb.add_argument("--output", required=True, help="folder for the network, or file for one stitch")


def run_extract(options: argparse.Namespace) -> None:
    """Save one stitch's weights."""
    from ..hub.stitch_files import describe_whole

    model = load_model(options)
    small = model.extract(options.stitch_id)
    save_one_stitch(small, options, describe_whole(model))


def save_one_stitch(
    small: StitchableNetwork, options: argparse.Namespace, config: Mapping[str, Any] | None = None
) -> None:
    """Save one stitch's weights to the file `options.output`, which appears whole or not at all."""
    from ..hub.stitch_files import save_stitch

    path, name = save_stitch(small, options.output, config), small.plan.stitches[0].name
    params = sum(p.numel() for p in small.parameters())
    row = {"path": str(path), "stitch_id": options.stitch_id, "name": name, "params": params}
    if options.json:
        print_json(row)
    else:
        print(f"{path}: {params:,} parameters of {name}")


def run_convert(options: argparse.Namespace) -> None:
    """Convert a checkpoint of the authors to a folder of timm_stitch."""
    from ..hub.loading import load
    from ..hub.saving import save_pretrained
    from ..models.checkpoints import convert_checkpoint

    state, args = convert_checkpoint(options.checkpoint, options.name)
    model = load(options.name, pretrained=False, **args)
    model.load_state_dict(state)
    print_path(save_pretrained(model, options.output), options.json)


def run_push(options: argparse.Namespace) -> None:
    """Push a network to the Hub."""
    from ..hub.push import push_to_hub

    model = load_model(options)
    rows = read_rows(options.results) if options.results else None
    url = push_to_hub(
        model, options.repo, results=rows, dataset=options.dataset, split=options.split, private=options.private,
        revision=options.revision, create_pr=options.create_pr, commit_message=options.message,
    )  # fmt: skip
    print_url(url, options.json)


def run_pull(options: argparse.Namespace) -> None:
    """Fetch a network, or one stitch, from the Hub."""
    from ..hub.loading import from_hub
    from ..hub.saving import save_pretrained

    if options.stitch_id is not None:
        save_one_stitch(from_hub(options.repo, extract=options.stitch_id, revision=options.revision), options)
    else:
        print_path(save_pretrained(from_hub(options.repo, revision=options.revision), options.output), options.json)
