"""Models of transformers as anchors: identities that every user relies on, and what is refused."""

import copy
import subprocess
import sys

import pytest
import torch

hf = pytest.importorskip("transformers", minversion="5.20")

from tiny import TEXT_LABELS, bert, gpt2, hf_vit, llama, rows_of, texts  # noqa: E402

import timm_stitch  # noqa: E402
from timm_stitch.plan.stitch_plan import LayerSpec, Segment, Stitch, StitchPlan  # noqa: E402


class Words:
    """A vocabulary."""

    def __init__(self, **vocab):
        self.vocab = vocab

    def get_vocab(self):
        return self.vocab


@pytest.fixture
def pair():
    torch.manual_seed(0)
    return timm_stitch.stitch([bert(32, 3), bert(48, 5, seed=1)])


def test_a_stitch_is_the_front_the_layer_and_the_back(pair):
    batch, stitch = texts(), pair.plan[3]
    (layer, before, after), (small, large) = stitch.joints[0], pair.anchors
    h = small(**batch, output_hidden_states=True).hidden_states[before.stop]
    h = pair.stitching_layers[layer](h)
    mask = (1.0 - batch["attention_mask"][:, None, None].float()) * torch.finfo(torch.float32).min
    for block in list(large.bert.encoder.layer)[after.start :]:
        h = block(h, mask)
    logits = large.classifier(large.bert.pooler(h))
    torch.testing.assert_close(pair(**batch, stitch_id=3).logits, logits, rtol=0, atol=1e-6)


def test_losses_and_gradients_of_one_id_a_row_are_those_of_the_rows(pair):
    batch, ids = texts(labels=True), [2, 5, 2, 0]
    pair(**batch, stitch_id=ids).loss.backward()
    mixed = {name: p.grad.clone() for name, p in pair.named_parameters() if p.grad is not None}
    pair.zero_grad()
    losses = [pair(**rows_of(batch, slice(i, i + 1)), stitch_id=k).loss for i, k in enumerate(ids)]
    torch.stack(losses).mean().backward()
    assert set(mixed) == {name for name, p in pair.named_parameters() if p.grad is not None}
    for name, p in pair.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(mixed[name], p.grad, rtol=1e-4, atol=1e-6)


def test_an_anchor_has_the_gradients_of_the_model():
    anchor, batch = bert(32, 3), texts(labels=True)
    alone = copy.deepcopy(anchor)
    alone(**batch).loss.backward()
    net = timm_stitch.stitch([anchor, bert(48, 5, seed=1)])
    net(**batch, stitch_id=0).loss.backward()
    for name, p in alone.named_parameters():
        assert torch.equal(p.grad, dict(anchor.named_parameters())[name].grad)


def test_outputs_asked_for_are_not_lost(pair):
    out = pair(**texts(), stitch_id=1, output_hidden_states=True)
    assert len(out.hidden_states) == 6
    assert isinstance(pair(**texts(), stitch_id=3, return_dict=False), tuple)


def test_left_padding_is_right_with_position_ids():
    net, batch = timm_stitch.stitch([gpt2(32, 3), gpt2(48, 4, seed=1)]), texts(left=True)
    positions = (batch["attention_mask"].cumsum(-1) - 1).clamp_min(0)
    whole = net(**batch, position_ids=positions, stitch_id=3).logits[1, 4:]
    alone = net(input_ids=batch["input_ids"][1:2, 4:], stitch_id=3).logits[0]
    torch.testing.assert_close(whole, alone, rtol=0, atol=1e-5)


def test_set_stitch_hooks_and_compiled_layers(pair):
    batch, ran = texts(), []
    handle = pair.register_stitch_hook(lambda model, stitch_id, rows: ran.append((stitch_id, rows)))
    assert torch.equal(pair.set_stitch(4)(**batch).logits, pair(**batch, stitch_id=4).logits)
    assert pair.config.stitch_id == 4
    pair(**batch, stitch_id=[2, 2, 3, 2])
    handle.remove()
    assert ran[:2] == [(4, 4), (4, 4)]
    assert sorted(ran[2:]) == [(2, 3), (3, 1)]
    expected = pair(**batch, stitch_id=3).logits
    pair.compile(backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(pair(**batch, stitch_id=3).logits, expected)


def test_gradient_checkpointing_changes_nothing(pair):
    batch = texts(labels=True)
    for module in pair.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    pair.train()
    found = []
    for checkpointed in (False, True):
        if checkpointed:
            pair.activation_checkpointing_enable()
        pair.zero_grad()
        pair(**batch, stitch_id=3).loss.backward()
        found.append([p.grad.clone() for p in pair.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: [bert(), bert(cls=hf.BertForMaskedLM)],
            r"whose tasks differ \(.*ForSequenceC.*ForMaskedLM",
        ),
        (lambda: [bert(), _with(bert(), vocab_size=98)], "whose vocabularies differ .*stitch models of one tokenizer"),
        (lambda: [bert(), _with(bert(), id2label={0: "a", 1: "b", 2: "c"})], "whose labels differ"),
        (lambda: [gpt2(), _with(gpt2(), eos_token_id=3)], "tokens for padding, beginning and end differ"),
        (lambda: [hf_vit(), _vit_of_other_patches()], "positions that they make of one input differ"),
    ],
)
def test_anchors_that_do_not_fit_are_refused(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        timm_stitch.stitch(make())
    assert "\n" not in str(caught.value)


def _with(model, **changes):
    for name, value in changes.items():
        setattr(model.config, name, value)
    return model


def _vit_of_other_patches():
    config = copy.deepcopy(hf_vit().config)
    config.patch_size = 16
    return hf.ViTForImageClassification(config)


def test_models_that_cannot_be_opened_are_refused_and_left_alone():
    config = hf.AlbertConfig(
        vocab_size=99,
        hidden_size=32,
        embedding_size=16,
        num_attention_heads=2,
        num_hidden_layers=3,
        intermediate_size=64,
    )
    albert = hf.AlbertForSequenceClassification(config)
    kinds = [type(module) for module in albert.modules()]
    with pytest.raises(TypeError, match="has no single row of layers"):
        timm_stitch.stitch([albert, bert()])
    assert [type(module) for module in albert.modules()] == kinds
    t5 = hf.T5ForSequenceClassification(
        hf.T5Config(vocab_size=99, d_model=32, d_ff=32, num_layers=2, num_heads=2, d_kv=8)
    )
    with pytest.raises(TypeError, match="has an encoder and a decoder"):
        timm_stitch.stitch([t5, t5])
    with pytest.raises(TypeError, match="cannot stitch models of timm and transformers into one network"):
        timm_stitch.stitch([torch.nn.Identity(), bert()])


def test_a_model_whose_layers_need_another_is_refused():
    model = bert(32, 3)
    layers = model.bert.encoder.layer
    model.bert.encoder.register_forward_pre_hook(lambda *_: layers[2].__dict__.update(seen=0))
    layers[0].register_forward_hook(lambda module, args, out: setattr(layers[2], "seen", out))
    layers[2].register_forward_pre_hook(lambda module, args: (args[0] + module.__dict__.pop("seen", 0), *args[1:]))
    with pytest.raises(TypeError, match="gives another output when its layers from 1 on run alone"):
        timm_stitch.stitch([model, bert(48, 5)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_ids": torch.full((4, 10), 99)}, "input_ids has 99, and the anchors know tokens 0 to 98"),
        ({"input_ids": torch.zeros(4, 65).long(), "attention_mask": None}, "texts of 65 tokens do not fit: .* take 64"),
        ({"attention_mask": torch.ones(4, 9)}, r"attention_mask of shape \(4, 9\) does not fit input_ids of shape"),
        ({"labels": torch.tensor([0, 1, 3, 0])}, "labels has 3: expected 0 to 2, or -100"),
        ({"input_ids": torch.rand(4, 10)}, "expected whole numbers of shape"),
        ({"input_ids": None}, "have none of input_ids, inputs_embeds, pixel_values"),
        ({"stitch_id": [0, 1]}, "stitch_id has 2 ids for a batch of 4 rows"),
        ({"stitch_id": 99}, "stitch_id=99 is not in this plan"),
    ],
)
def test_inputs_that_do_not_fit_are_refused_in_one_line(pair, change, message):
    with pytest.raises(ValueError, match=message) as caught:
        pair(**(texts() | change))
    assert "\n" not in str(caught.value)


def test_costs_grow_with_the_length(pair):
    short, long = (pair.stitch_table(length=n) for n in (16, 32))
    assert all(2 * a["macs"] < b["macs"] < 2.5 * a["macs"] for a, b in zip(short, long, strict=True))
    assert pair.stitch_table() == pair.stitch_table(length=64)  # as many as the anchors take
    with pytest.raises(ValueError, match="length=65 is out of range: the anchors take 1 to 64 tokens"):
        pair.stitch_table(length=65)


def test_costs_count_every_product():
    width, depth, length = 32, 3, 16
    net = timm_stitch.stitch([bert(width, depth), bert(48, 5)])
    products = length * (4 * width**2 + 2 * width * 2 * width) + 2 * length**2 * width  # of one layer
    norms = 5 * length * width * (2 * depth + 1)
    expected = depth * products + norms + width**2 + width * TEXT_LABELS
    assert net.stitch_table(length=length)[0]["macs"] == expected


def in_line(anchors):
    """Each block of the first is followed by the next of the second."""
    depth, width = anchors[0].depth, anchors[0].widths[0]
    layers = tuple(LayerSpec(0, 1, width, width) for _ in range(depth - 1))
    alone = [Stitch(n, (Segment(n, 0, depth),)) for n in (0, 1)]
    pairs = [Stitch(k + 1, (Segment(0, 0, k), Segment(1, k, depth)), (k - 1,)) for k in range(1, depth)]
    return StitchPlan(tuple(anchors), layers, (*alone, *pairs))


def test_least_squares_recovers_an_anchor_stitched_to_its_copy(caplog):
    anchor = bert(32, 3)
    net = timm_stitch.stitch([anchor, copy.deepcopy(anchor)], plan=in_line)
    residuals = timm_stitch.least_squares_init(net, [texts(16, 30, seed=s) for s in range(3)])
    assert max(residuals.values()) < 1e-5
    batch = texts()
    for k in net.stitch_ids:
        torch.testing.assert_close(net(**batch, stitch_id=k).logits, anchor(**batch).logits, rtol=0, atol=1e-4)
    timm_stitch.least_squares_init(net, texts(8, 20))
    assert "least squares had 156 positions for 33 unknowns per channel" in caplog.text
    with pytest.raises(ValueError, match="least squares needs at least 33 positions"):
        timm_stitch.least_squares_init(net, texts(2, 8))


def test_least_squares_leaves_out_padding_and_a_decoders_first_position():
    front, back = llama(32, 3), llama(48, 4, seed=1)
    net = timm_stitch.stitch([front, back], kernel_size=1)
    batch = texts(24, 12, left=True)
    timm_stitch.least_squares_init(net, batch)
    (number, before, after) = net.plan[3].joints[0]
    leaving = front(**batch, output_hidden_states=True).hidden_states[before.stop]
    entering = back(**batch, output_hidden_states=True).hidden_states[after.start]
    real = batch["attention_mask"].bool()
    real = real & (real.cumsum(-1) > 1)
    pairs = net.plan.pairs(number)
    assert pairs == [(before.stop, after.start)]
    x = torch.cat([leaving[real], torch.ones(int(real.sum()), 1)], 1).double()
    solution = torch.linalg.lstsq(x, entering[real].double()).solution.float()
    torch.testing.assert_close(net.stitching_layers[number].weight, solution[:-1].T, rtol=0, atol=1e-3)


def test_nothing_imports_transformers_before_it_is_asked_for():
    code = "import sys, timm_stitch; assert 'transformers' not in sys.modules, 'imported'"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_tokenizers_must_agree():
    with pytest.raises(ValueError, match="the anchors' tokenizers differ: 'b' is 1 for one and 2 for another"):
        timm_stitch.stitch([bert(), bert()], tokenizers=[Words(a=0, b=1), Words(a=0, b=2)])


def test_what_is_no_list_of_models_or_tokenizers_is_named(pair):
    small, large = bert(32), bert(48)
    with pytest.raises(
        TypeError, match=r"models must be a list, .* got BertForSequenceClassification: stitch\(\[small"
    ):
        timm_stitch.stitch(small, large)
    for tokenizers in (Words(a=0), [Words(a=0)]):
        with pytest.raises(ValueError, match="tokenizers must be a list of one for each of 2 anchors, got 1"):
            timm_stitch.stitch([small, large], tokenizers=tokenizers)
    with pytest.raises(TypeError, match="tokenizers must be tokenizers of transformers, got str 'bert-base-uncased'"):
        timm_stitch.stitch([small, large], tokenizers=["bert-base-uncased", "bert-base-uncased"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda net, b: net(b), "input_ids must be a tensor .* got dict: give the batch as keyword arguments"),
        (lambda net, b: net("a film"), "input_ids must be a tensor .* got str: make batches of tensors, by tokenizer"),
        (lambda net, b: net(**{k: v.tolist() for k, v in b.items()}), "input_ids must be a tensor .* got list: make"),
        (lambda net, b: net(attention_mask=b["attention_mask"]), r"\['attention_mask'\] have none of input_ids"),
        (lambda net, b: timm_stitch.evaluate(net, [b]), "no labels: expected a mapping of tensors with 'labels'"),
        (lambda net, b: timm_stitch.evaluate(net, [items()[0]]), "this is one item of a dataset, whose label"),
        (lambda net, b: timm_stitch.least_squares_init(net, [texts(1)]), "give more images, or more and longer texts"),
    ],
)
def test_inputs_that_are_no_batches_are_named(pair, call, message):
    with pytest.raises(ValueError, match=message):
        call(pair, texts())


def items():
    return [{"input_ids": [5, 6, 7], "attention_mask": [1, 1, 1], "labels": 1}] * 8


def test_a_loader_is_no_dataset(pair):
    loader = torch.utils.data.DataLoader(items(), batch_size=4)
    with pytest.raises(TypeError, match="train_data must be a dataset, not a DataLoader"):
        timm_stitch.train(pair, timm_stitch.TrainConfig(epochs=1, batch_size=4, workers=0), train_data=loader)


def test_an_extracted_network_keeps_its_rows(pair, caplog):
    pair.results.add([{"stitch_id": 3, "top1": 50.0}])
    assert pair.extract(3).stitch_table()[0]["top1"] == 50
    assert not caplog.records
