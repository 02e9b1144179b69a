"""The cards of the authors' networks: `python tests/official_cards.py` writes them into hub_cards/."""

from pathlib import Path

import timm

from timm_stitch.families.registry import family_of
from timm_stitch.hub.model_card import render_card
from timm_stitch.models.published import NETWORKS, SEGMENTATION, published_table

CARDS = Path(__file__).parent.parent / "hub_cards"


def official_card(name: str) -> str:
    """The card of a published network, from what hub_cards/ has of it."""
    model = timm.create_model(name, device="meta")
    table = published_table(name)
    where = {"dataset": "ILSVRC/imagenet-1k", "split": "validation"}
    rows = [row | where for row in table["stitches"]]
    config = {
        "architecture": name,
        "pretrained_cfg": model.pretrained_cfg,
        "model_args": {"stitched_norm": NETWORKS[name].count.stitched_norm},
    }
    base_models = [timm.get_pretrained_cfg(anchor).hf_hub_id for anchor in NETWORKS[name].anchors]
    stitches = table | {"plan": model.plan.to_dict(), "stitches": rows}
    return render_card(stitches, config, base_models=[b if "/" in b else f"timm/{b}" for b in base_models])


def segmentation_card(name: str) -> str:
    """The card of a published segmentation network."""
    table = published_table(name)
    model = timm.create_model(f"{name}.{table['tag']}", device="meta")
    where = {"dataset": "zhoubolei/scene_parse_150", "split": "validation"}
    stitches = table | {"plan": model.plan.to_dict(), "stitches": [row | where for row in table["stitches"]]}
    config = {**family_of(model).config_of(model), "architecture": f"{name}.{table['tag']}"}
    base_models = [f"timm/{anchor}" for anchor in SEGMENTATION[name].started_from]
    return render_card(stitches, config, base_models=base_models)


CARD_OF = dict.fromkeys(NETWORKS, official_card) | {
    name: segmentation_card for name in SEGMENTATION if published_table(name)
}

if __name__ == "__main__":
    for network, card in CARD_OF.items():
        (CARDS / network / "README.md").write_text(card(network), encoding="utf-8")
