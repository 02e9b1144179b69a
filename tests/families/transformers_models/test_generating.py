"""Generation by stitches: caches, beams, a switch in the middle of a text, and a cheap stitch ahead."""

import pytest
import torch

hf = pytest.importorskip("transformers", minversion="5.20")

from tiny import bert, gemma3, gpt2, llama, mamba, texts  # noqa: E402

import timm_stitch  # noqa: E402
from timm_stitch.families.transformers_models.cache import StitchCache  # noqa: E402

PAIRS = {
    "llama": lambda: (llama(32, 3), llama(48, 4, seed=1)),
    "gpt2": lambda: (gpt2(32, 3), gpt2(48, 4, seed=1)),
    "gemma3": lambda: (gemma3(32, 4), gemma3(48, 6, seed=1)),  # sliding windows
    "mamba": lambda: (mamba(32, 3), mamba(48, 4, seed=1)),  # states instead of keys and values
}
LONG = {"max_new_tokens": 8, "min_new_tokens": 8}


@pytest.fixture(scope="module", params=PAIRS)
def net(request):
    anchors = PAIRS[request.param]()
    torch.manual_seed(0)
    return timm_stitch.stitch(anchors)


def test_an_anchor_generates_what_the_model_does(net):
    batch = texts(3, left=True)
    for number, anchor in enumerate(net.anchors):
        expected = anchor.generate(**batch, do_sample=False, **LONG)
        assert torch.equal(net.generate(**batch, stitch_id=number, do_sample=False, **LONG), expected)


@pytest.mark.parametrize("beams", [1, 3])
def test_generating_with_a_cache_equals_generating_without(net, beams):
    batch = texts(3, left=True)
    for k in net.stitch_ids[2:]:
        found = [
            net.generate(**batch, stitch_id=k, use_cache=cached, num_beams=beams, do_sample=False, **LONG)
            for cached in (True, False)
        ]
        assert torch.equal(*found), k


def test_a_cached_call_gives_the_logits_of_the_whole(net):
    k = net.stitch_ids[2]
    batch = texts(3, 12, left=True)
    if "Mamba" in type(net.anchors[0]).__name__:  # with a cache takes one token at a time, and no padding
        batch = {"input_ids": batch["input_ids"], "attention_mask": torch.ones_like(batch["input_ids"])}
    positions = (batch["attention_mask"].cumsum(-1) - 1).clamp_min(0)
    whole = net(**batch, position_ids=positions, stitch_id=k).logits
    cache = None
    for start, stop in ((0, 7), (7, 8), (8, 9) if "Mamba" in type(net.anchors[0]).__name__ else (8, 12)):
        out = net(
            input_ids=batch["input_ids"][:, start:stop],
            attention_mask=None if batch["attention_mask"].all() else batch["attention_mask"][:, :stop],
            position_ids=positions[:, start:stop], cache=cache, use_cache=True, stitch_id=k,
        )  # fmt: skip
        cache = out.cache
        real = batch["attention_mask"][:, start:stop].bool()
        torch.testing.assert_close(out.logits[real], whole[:, start:stop][real], rtol=0, atol=2e-5)
    assert isinstance(cache, StitchCache)


def test_a_switch_in_the_middle_is_exact(net):
    batch, first, second = texts(3, left=True), net.stitch_ids[-1], net.stitch_ids[2]
    half = net.generate(**batch, stitch_id=first, do_sample=False, max_new_tokens=4, min_new_tokens=4)
    mask = torch.cat([batch["attention_mask"], torch.ones(3, 4).long()], 1)
    expected = net.generate(
        input_ids=half, attention_mask=mask, stitch_id=second, do_sample=False, max_new_tokens=4, min_new_tokens=4
    )

    class Switch(hf.StoppingCriteria):
        def __call__(self, ids, scores, **kwargs):
            net.stitch_id = first if ids.shape[1] < 14 else second
            return torch.zeros(len(ids)).bool()

    net.set_stitch(first)
    found = net.generate(**batch, stopping_criteria=[Switch()], do_sample=False, **LONG)
    net.set_stitch(1)
    assert torch.equal(found, expected)


def test_each_row_by_its_own_stitch(net):
    batch, ids = texts(3, left=True), [2, 0, net.stitch_ids[-1]]
    found = net.generate(**batch, stitch_id=ids, do_sample=False, **LONG)
    for row, k in enumerate(ids):
        alone = net.generate(**{n: v[row : row + 1] for n, v in batch.items()}, stitch_id=k, do_sample=False, **LONG)
        assert torch.equal(found[row : row + 1], alone)


@pytest.mark.parametrize("make", [PAIRS["llama"], PAIRS["gpt2"], PAIRS["gemma3"]])
def test_a_cheap_stitch_ahead_changes_no_token(make):
    net, batch = timm_stitch.stitch(make()), texts(1)
    for dear in (1, net.stitch_ids[-1]):
        alone = net.generate(**batch, stitch_id=dear, do_sample=False, max_new_tokens=12)
        assert torch.equal(
            net.generate(**batch, stitch_id=dear, assistant_stitch_id=0, do_sample=False, max_new_tokens=12), alone
        )


def test_a_cache_of_another_model_is_refused():
    net = timm_stitch.stitch(PAIRS["llama"]())
    other = llama(32, 3)(**texts(1), use_cache=True).cache
    with pytest.raises(ValueError, match="this DynamicCache holds what another model has kept: begin with none"):
        net(**texts(1), cache=other, stitch_id=2)
    embeds = net.anchors[0].get_input_embeddings()(texts(1)["input_ids"])
    cache = net(inputs_embeds=embeds, use_cache=True, stitch_id=2).cache
    with pytest.raises(ValueError, match="filled by stitch 2 from embeddings, so that another stitch cannot go on"):
        net(input_ids=torch.tensor([[5]]), cache=cache, stitch_id=3)


def test_an_extracted_stitch_generates_the_same(net):
    batch, k = texts(3, left=True), net.stitch_ids[-1]
    expected = net.generate(**batch, stitch_id=k, do_sample=False, **LONG)
    assert torch.equal(net.extract(k).generate(**batch, do_sample=False, **LONG), expected)


def test_what_does_not_generate_says_so():
    assert not timm_stitch.stitch([bert(32, 3), bert(48, 3)]).can_generate()
