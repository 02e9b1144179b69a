"""`list` and `plan`: the networks, and the stitches of one."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from ..errors import library_errors
from ..models.published import REGISTERED
from .numbers import in_range
from .options import add_model, add_plan_options, add_verb, load_model, plan_options, print_json, print_rows

if TYPE_CHECKING:
    from .options import Verbs


def add_verbs(verbs: Verbs) -> None:
    """Add `list` and `plan` to the command line."""
    verb = add_verb(
        verbs, "list", run_list, "list the registered networks, or those on the Hub", "list --hub deit --author timm"
    )
    verb.add_argument(
        "--hub", nargs="?", const="", metavar="SEARCH", help="networks on the Hub with SEARCH in their names"
    )
    verb.add_argument("--author", help="user or organisation on the Hub")
    verb.add_argument(
        "--limit",
        type=int,
        action=in_range(1, 1_000_000),
        default=50,
        help="largest number of networks to list (default: 50)",
    )

    verb = add_verb(
        verbs,
        "plan",
        run_plan,
        "list the stitches of a network and their costs; needs no weights",
        "plan deit_tiny_patch16_224 deit_small_patch16_224",
    )
    add_model(verb)
    add_plan_options(verb)
    verb.add_argument("--meet", action="store_true", help="print where two models can meet")


def run_list(options: argparse.Namespace) -> None:
    """Print the registered networks, or those on the Hub."""
    if options.hub is not None:
        from ..hub.push import list_hub

        rows = list_hub(options.hub or None, author=options.author, limit=options.limit)
        if not rows and not options.json:
            print("there is no such network on the Hub.")
            return
        print_rows(rows, options.json)
        return
    rows = [
        {
            "name": name,
            "stitches": network.stitches,
            "anchors": network.anchor_names,
            "weights": ", ".join(network.tags),
        }
        for name, network in sorted(REGISTERED.items())
    ]
    print_rows(rows, options.json)


def run_plan(options: argparse.Namespace) -> None:
    """Print the stitches of a network, or where two models can meet."""
    if options.meet and plan_options(options):
        raise ValueError("--meet prints where two models can meet under any plan: leave the options of a plan out.")
    if len(options.model) == 2 and options.meet:
        from ..families.registry import family_of_models
        from ..families.timm_models.train_checkpoints import make_model
        from ..hub.loading import to_source
        from ..network.compatibility import meeting_points

        with library_errors(f"timm cannot make {' or '.join(map(repr, options.model))}", RuntimeError):
            models = [make_model(to_source(name), False, device="meta") for name in options.model]
        print_rows(meeting_points(*map(family_of_models(models).open, models)), options.json)
        return
    model = load_model(options, weights=False)
    if not options.json and "plan_without_weights" in model.unsupported:
        model = load_model(options)
    if options.json:
        print_json(model.plan.to_dict())
    else:
        print_rows(model.stitch_table(), False)
