"""What users change in models of transformers acts in a network as it does alone, or is refused by name."""

import copy
import io
import pickle
import types

import pytest
import torch

hf = pytest.importorskip("transformers", minversion="5.20")

from tiny import bert, gpt2, llama, texts  # noqa: E402

import timm_stitch  # noqa: E402
import timm_stitch.text  # noqa: E402 (registers the Auto classes)

CLASSIFIER = hf.AutoModelForSequenceClassification


@pytest.fixture
def pair():
    torch.manual_seed(0)
    return timm_stitch.stitch([bert(32, 2), bert(48, 3, seed=1)])


@pytest.fixture
def language_pair():
    return timm_stitch.stitch([llama(32, 2), llama(48, 3, seed=1)])


def saved(network, tmp_path):
    network.save_pretrained(tmp_path / "network")
    return tmp_path / "network"


# ── one configuration ─────────────────────────────────────────────────────────────────────────────────


def test_a_padding_token_that_is_set_later_acts_on_the_anchors():
    def make(width, depth, **more):
        return llama(width, depth, hf.LlamaForSequenceClassification, **more)

    plain, batch = make(48, 3), texts()
    batch["input_ids"][1, -4:] = 2
    plain.config.pad_token_id = 2
    net = timm_stitch.stitch([make(32, 2), make(48, 3)])
    net.config.pad_token_id = 2
    assert torch.equal(net(**batch, stitch_id=1).logits, plain(**batch).logits)
    assert [anchor.config.pad_token_id for anchor in net.anchors] == [2, 2]
    again = type(net)(copy.deepcopy(net.config))
    assert again.anchors[0].config.pad_token_id == again.config.pad_token_id == 2


def test_the_fields_of_an_anchor_are_those_of_the_network(pair, tmp_path):
    pair.anchors[1].config.output_hidden_states = True
    assert pair.config.output_hidden_states
    assert pair.config.to_dict()["anchors"][1]["output_hidden_states"]
    assert CLASSIFIER.from_pretrained(saved(pair, tmp_path)).anchors[1].config.output_hidden_states


@pytest.mark.parametrize("when", ["set", "loaded", "extracted", "copied"])
def test_outputs_that_the_configuration_asks_for_are_there(pair, tmp_path, when):
    if when == "loaded":
        pair = CLASSIFIER.from_pretrained(saved(pair, tmp_path), output_hidden_states=True)
    elif when == "extracted":
        pair = pair.extract(1)
        pair.config.output_hidden_states = True
    elif when == "copied":
        pair = copy.deepcopy(pair)
        pair.config.output_hidden_states = True
    else:
        pair.config.output_hidden_states = True
    assert len(pair(**texts(), stitch_id=1).hidden_states) == 4


def test_a_field_that_differs_between_the_anchors_is_refused(pair):
    with pytest.raises(
        ValueError, match=r"config.hidden_size differs between the anchors \(32, 48\): set it in model.a"
    ):
        pair.config.hidden_size = 64
    assert [anchor.config.hidden_size for anchor in pair.anchors] == [32, 48]


def test_a_value_that_one_anchor_refuses_is_set_in_none(pair):
    pair.config._attn_implementation = "eager"
    pair.anchors[0].config._attn_implementation = "eager"
    with pytest.raises(ValueError, match="not supported"):
        pair.config.output_attentions = True
    assert not pair.anchors[0].config.output_attentions
    assert not pair.config.output_attentions


def test_anchors_of_eager_attention_give_attentions(tmp_path):
    net = timm_stitch.stitch([bert(32, 2, attn_implementation="eager"), bert(48, 3, attn_implementation="eager")])
    net.config.output_attentions = True
    again = timm_stitch.from_hub(timm_stitch.save_pretrained(net, tmp_path / "network"))
    assert [len(network(**texts(), stitch_id=1).attentions) for network in (net, again)] == [3, 3]


def test_other_classes_are_new_heads_or_an_error(pair, tmp_path):
    folder = saved(pair, tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        CLASSIFIER.from_pretrained(folder, num_labels=5)
    named = timm_stitch.save_pretrained(pair, tmp_path / "named")
    with pytest.raises(ValueError, match="do not fit num_labels: leave it out, or add ignore_mismatched_sizes=True"):
        timm_stitch.from_hub(named, num_labels=5)
    net = CLASSIFIER.from_pretrained(folder, num_labels=5, ignore_mismatched_sizes=True)
    assert [net(**texts(), stitch_id=k).logits.shape[-1] for k in net.stitch_ids] == [5] * net.num_stitches
    assert net.config.num_labels == 5
    with pytest.raises(ValueError, match=r"config.num_labels has 5 classes, and the anchors were built with 3: load"):
        pair.config.num_labels = 5


def test_arguments_of_from_pretrained_that_only_anchors_have_act_on_them(pair, tmp_path):
    net = CLASSIFIER.from_pretrained(saved(pair, tmp_path), hidden_dropout_prob=0.375)
    rates = {m.p for name, m in net.named_modules() if name.endswith("output.dropout")}
    assert rates == {0.375}
    assert net.config.to_dict()["anchors"][0]["hidden_dropout_prob"] == 0.375


def test_a_configuration_that_is_changed_before_loading_acts(pair, tmp_path):
    folder = saved(pair, tmp_path)
    config = hf.AutoConfig.from_pretrained(folder)
    config.output_hidden_states = True
    assert CLASSIFIER.from_pretrained(folder, config=config)(**texts()).hidden_states is not None


def test_a_cache_is_given_where_the_configuration_asks_for_it(language_pair):
    assert language_pair(**texts()).get("cache") is None
    language_pair.config.use_cache = True
    assert language_pair(**texts()).cache is not None
    config = hf.BertGenerationConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    encoders = timm_stitch.stitch([hf.BertGenerationDecoder(config).eval() for _ in range(2)], kernel_size=1)
    encoders.config.use_cache = True
    assert encoders(**texts()).get("cache") is None


# ── one stitch a row ──────────────────────────────────────────────────────────────────────────────────


def test_hidden_states_of_one_id_a_row_are_those_of_the_rows(pair):
    batch, ids = texts(), [1, 1, 2, 3]
    together = pair(**batch, stitch_id=ids, output_hidden_states=True).hidden_states
    for row, stitch_id in enumerate(ids):
        alone = pair(**batch, stitch_id=stitch_id, output_hidden_states=True).hidden_states
        for h, expected in zip(together[-len(alone) :], alone, strict=True):
            torch.testing.assert_close(h[row], expected[row])
    assert together[0][2].isnan().all()  # a layer that this row's stitch skips
    with pytest.raises(ValueError, match="hidden_states of stitches with different back anchors"):
        pair(**batch, stitch_id=[0, 1, 1, 1], output_hidden_states=True)


def test_outputs_of_layers_are_whole_in_every_door():
    net, batch = timm_stitch.stitch([bert(32, 3), bert(32, 3, seed=1)]), texts()
    for asked in ({"output_hidden_states": True}, {}):
        alone = {k: net(**batch, **asked, stitch_id=k).hidden_states for k in net.stitch_ids}
        for stitch_id, output in net.forward_each({**batch, **asked}):
            assert len(output.hidden_states) == len(alone[stitch_id])
            assert all(map(torch.equal, output.hidden_states, alone[stitch_id]))
        together = net(**batch, **asked, stitch_id=[0, 0, 2, 3]).hidden_states
        assert torch.equal(together[1][0], alone[0][1][0])
        net.config.output_hidden_states = True


@pytest.mark.parametrize("divided", [True, False])
def test_losses_of_one_id_a_row_add_up_as_the_anchors_do(language_pair, pair, divided):
    net, batch = (language_pair, texts()) if divided else (pair, texts(labels=True))
    batch |= {"labels": batch.get("labels", batch["input_ids"])}
    if not divided:  # a loss that does not know the number
        net.config.problem_type = "multi_label_classification"
        batch["labels"] = torch.nn.functional.one_hot(batch["labels"], 3).float()
    ids = [1, 2, 2, 3]
    alone = [
        net(**{k: v[i : i + 1] for k, v in batch.items()}, stitch_id=k, num_items_in_batch=77).loss
        for i, k in enumerate(ids)
    ]
    expected = sum(alone) if divided else sum(alone) / 4
    torch.testing.assert_close(net(**batch, stitch_id=ids, num_items_in_batch=77).loss, expected)


def test_what_belongs_to_one_stitch_is_refused_with_several(language_pair):
    with pytest.raises(ValueError, match="use_cache belongs to one stitch, and this call has several: leave it out"):
        language_pair(**texts(), stitch_id=[0, 1, 1, 1], use_cache=True)


def test_several_streams_of_activations_are_split_by_rows():
    def make(width, seed):
        torch.manual_seed(seed)
        config = hf.Gemma3nTextConfig(
            vocab_size=99, vocab_size_per_layer_input=99, hidden_size=width, hidden_size_per_layer_input=8,
            intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
            sliding_window=6, layer_types=["sliding_attention", "full_attention"], num_kv_shared_layers=0,
            max_position_embeddings=64, pad_token_id=0, laurel_rank=8, activation_sparsity_pattern=[0.0] * 2,
        )  # fmt: skip
        return hf.Gemma3nForCausalLM(config).eval()

    net, ids = timm_stitch.stitch([make(32, 0), make(48, 1)]), texts()["input_ids"]
    together = net(input_ids=ids, stitch_id=[0, 1, 2, 2]).logits
    for row, stitch_id in enumerate([0, 1, 2, 2]):
        torch.testing.assert_close(together[row], net(input_ids=ids[row : row + 1], stitch_id=stitch_id).logits[0])
    timm_stitch.least_squares_init(net, [texts(16, 20)])


# ── more tokens, longer texts, generation ─────────────────────────────────────────────────────────────


@pytest.mark.parametrize("make", [bert, llama, gpt2])
def test_embeddings_of_all_anchors_are_resized(make, tmp_path):
    net, batch = timm_stitch.stitch([make(32, 2), make(48, 3, seed=1)]), texts()
    before = net(**batch, stitch_id=3).logits
    assert net.resize_token_embeddings(105) is net.get_input_embeddings()
    assert torch.equal(net(**batch, stitch_id=3).logits[..., : before.shape[-1]], before)
    batch["input_ids"][0, 0] = 104
    again = timm_stitch.from_hub(timm_stitch.save_pretrained(net, tmp_path / "network"))
    for stitch_id in net.stitch_ids:
        torch.testing.assert_close(again(**batch, stitch_id=stitch_id).logits, net(**batch, stitch_id=stitch_id).logits)


def test_embeddings_are_resized_in_all_anchors_or_in_none(pair, monkeypatch):
    def fail(*_, **__):
        pair.anchors[1].config.vocab_size = 7
        raise NotImplementedError("no\nembeddings")

    before, batch = {k: v.clone() for k, v in pair.state_dict().items()}, texts()
    expected = pair(**batch, stitch_id=2).logits
    monkeypatch.setattr(pair.anchors[1], "set_input_embeddings", fail)
    with pytest.raises(
        ValueError, match=r"anchors\.1, a BertFor.*cannot be resized, so that no anchor was .*no embeddings"
    ):
        pair.resize_token_embeddings(105)
    assert {k: v.shape for k, v in pair.state_dict().items()} == {k: v.shape for k, v in before.items()}
    assert pair.config.vocab_size == 99
    assert torch.equal(pair(**batch, stitch_id=2).logits, expected)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="one stitch of a larger network"):
        pair.extract(2).resize_token_embeddings(105)
    with pytest.raises(ValueError, match=r"set those of model.anchors\[i\]"):
        pair.set_input_embeddings(torch.nn.Embedding(99, 32))


def test_texts_are_as_long_as_the_anchors_alone_take_them():
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    more = {"max_position_embeddings": 16, "rope_parameters": rope}
    plain, long = _llama(48, 3, **more), {"input_ids": torch.arange(5, 25)[None]}
    net = timm_stitch.stitch([_llama(32, 2, **more), _llama(48, 3, **more)])
    assert torch.equal(net(**long, stitch_id=1).logits, plain(**long).logits)
    assert net.max_positions is None
    short = hf.BertConfig(
        vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, num_labels=3,
        max_position_embeddings=16,
    )  # fmt: skip
    pair = timm_stitch.stitch([hf.BertForSequenceClassification(short).eval(), bert(48, 3)])
    assert pair(**long, stitch_id=1).logits.shape == (1, 3)
    with pytest.raises(ValueError, match="texts of 20 tokens do not fit: the anchors take 16"):
        pair(**long, stitch_id=2)


def _llama(width, depth, **more):
    torch.manual_seed(width)
    config = hf.LlamaConfig(
        vocab_size=99, hidden_size=width, num_hidden_layers=depth, num_attention_heads=4, intermediate_size=64, **more
    )
    return hf.LlamaForCausalLM(config).eval()


def test_text_is_generated_from_embeddings(language_pair):
    plain, ids = llama(48, 3, seed=1), texts(1)["input_ids"]
    embeds, more = plain.get_input_embeddings()(ids).detach(), {"max_new_tokens": 5, "do_sample": False}
    expected = plain.generate(inputs_embeds=embeds, **more)
    for network in (language_pair, language_pair.extract(1)):
        assert torch.equal(network.generate(inputs_embeds=embeds, stitch_id=1, **more), expected)
    front = language_pair.get_input_embeddings()(ids).detach()
    assert torch.equal(
        language_pair.generate(inputs_embeds=front, stitch_id=2, **more),
        language_pair.generate(ids, stitch_id=2, **more)[:, ids.shape[1] :],
    )
    with pytest.raises(ValueError, match=r"inputs_embeds has 48 channels.*of 32: give those of model.anchors\[0\]"):
        language_pair(inputs_embeds=embeds, stitch_id=2)
    with pytest.raises(ValueError, match="inputs_embeds needs a cache"):
        language_pair.generate(inputs_embeds=front, stitch_id=[2], **more)


def test_beams_of_one_id_a_row_are_those_of_the_rows(language_pair):
    ids, more = texts(2)["input_ids"][:1].expand(2, -1), {"num_beams": 2, "max_new_tokens": 4, "do_sample": False}
    together = language_pair.generate(ids, stitch_id=[1, 2], **more)
    for row, stitch_id in enumerate([1, 2]):
        assert torch.equal(together[row], language_pair.generate(ids[:1], stitch_id=stitch_id, **more)[0])


def test_a_draft_by_the_first_layers_is_refused_with_advice(language_pair):
    with pytest.raises(ValueError, match=r"assistant_early_exit drafts .*: give assistant_stitch_id"):
        language_pair.generate(texts(1)["input_ids"], assistant_early_exit=1)


# ── anchors with outputs on, and changed after stitching ──────────────────────────────────────────────


def test_anchors_give_the_outputs_that_they_were_made_to_give():
    net = timm_stitch.stitch([bert(32, 2, output_hidden_states=True), bert(48, 3, output_hidden_states=True)])
    assert len(net(**texts(), stitch_id=1).hidden_states) == 4
    config = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 32, "num_local_experts": 4}
    mixtrals = [
        hf.MixtralForCausalLM(
            hf.MixtralConfig(vocab_size=99, hidden_size=w, num_hidden_layers=2, output_router_logits=True, **config)
        ).eval()
        for w in (32, 48)
    ]
    net, batch = timm_stitch.stitch(mixtrals), {"input_ids": texts()["input_ids"]}
    assert len(net(**batch, stitch_id=1).router_logits) == 2
    with pytest.raises(ValueError, match=r"_l.* cannot be joined: call each stitch by itself"):
        net(**batch, labels=batch["input_ids"], stitch_id=[0, 1, 2, 2])


def test_memories_of_xlnet_belong_to_the_anchor_alone():
    def make(width):
        torch.manual_seed(width)
        config = hf.XLNetConfig(vocab_size=99, d_model=width, n_layer=2, n_head=4, d_inner=48, num_labels=3)
        return hf.XLNetForSequenceClassification(config).eval()

    net, plain, batch = timm_stitch.stitch([make(32), make(48)]), make(48), texts()
    alone = net(**batch, stitch_id=1)
    assert torch.equal(alone.logits, plain(**batch).logits)
    assert len(alone.mems) == 2
    assert net(**batch, stitch_id=2).get("mems") is None
    with pytest.raises(ValueError, match="mems are those of one model's layers"):
        net(**batch, stitch_id=2, mems=alone.mems)


def test_least_squares_at_lengths_that_the_model_pads_inside():
    def make(width):
        config = hf.LongformerConfig(
            vocab_size=99, hidden_size=width, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32,
            attention_window=8, max_position_embeddings=64, pad_token_id=1,
        )  # fmt: skip
        return hf.LongformerForMaskedLM(config).eval()

    net = timm_stitch.stitch([make(32), make(48)])
    assert timm_stitch.least_squares_init(net, [texts(16, 13)])


def test_a_list_of_layers_that_was_replaced_is_refused_by_name(pair):
    encoder, batch = pair.anchors[1].bert.encoder, texts()
    expected, layers = pair(**batch, stitch_id=2).logits, encoder.layer
    encoder.layer = torch.nn.ModuleList(layers)
    with pytest.raises(
        ValueError, match=r"bert.encoder.layer was a list of 3 layers when stitched and is now a ModuleL"
    ):
        pair(**batch, stitch_id=2)
    encoder.layer = layers
    layers.append(copy.deepcopy(layers[0]))
    with pytest.raises(ValueError, match="is now a LayerList of 4: stitch again"):
        pair(**batch, stitch_id=2)
    del layers._modules["3"]
    assert torch.equal(pair(**batch, stitch_id=2).logits, expected)


def test_an_anchor_that_no_longer_runs_its_layers_is_refused(pair):
    encoder = pair.anchors[1].bert.encoder
    encoder.forward = lambda h, *_, **__: types.SimpleNamespace(last_hidden_state=h, cache=None)
    with pytest.raises(ValueError, match=r"does not run the layers of bert\.encoder.layer in their order"):
        pair(**texts(), stitch_id=2)
    own = type(encoder).forward

    def twice(hidden_states, *args, **kwargs):
        return own(encoder, own(encoder, hidden_states, *args, **kwargs)[0], *args, **kwargs)

    encoder.forward = twice
    with pytest.raises(ValueError, match=r"does not run the layers of bert\.encoder.layer in their order"):
        pair(**texts(), stitch_id=2)


def forward_with_mean(encoder, hidden_states, *args, **kwargs):
    """What all layers give, on average."""
    outputs = []
    for layer in encoder.layer:
        hidden_states = layer(hidden_states)
        outputs.append(hidden_states)
    return types.SimpleNamespace(last_hidden_state=torch.stack(outputs).mean(0), cache=None)


class MeanEncoder(hf.models.bert.modeling_bert.BertEncoder):
    forward = forward_with_mean


def replace_forward(encoder):
    encoder.forward = types.MethodType(forward_with_mean, encoder)


def replace_class(encoder):
    encoder.__class__ = MeanEncoder


@pytest.mark.parametrize("change", [replace_forward, replace_class])
def test_an_anchor_whose_layers_need_more_than_the_activation_is_refused(pair, change):
    model, batch = pair.anchors[1], {"input_ids": texts()["input_ids"]}
    back = [s.stitch_id for s in pair.plan if s.anchors == (0, 1)]
    expected = pair(**batch, stitch_id=back[0]).logits
    twin = copy.deepcopy(pair)
    change(model.bert.encoder)
    for call in (
        lambda: pair(**batch, stitch_id=back[0]),
        lambda: pair(**batch, stitch_id=[0, 1, *back][: len(batch["input_ids"])]),
        lambda: dict(pair.forward_each(batch)),
        lambda: pair.extract(back[-1]),
        lambda: copy.deepcopy(pair)(**batch, stitch_id=back[0]),
    ):
        with pytest.raises(
            ValueError, match=r"anchors.1 has changed .*bert\.encoder.* was replaced: .*need more of the layers before"
        ):
            call()
    assert torch.equal(pair(**batch, stitch_id=1).logits, model(**batch).logits)
    model.bert.encoder.__dict__.pop("forward", None)
    model.bert.encoder.__class__ = MeanEncoder.__base__
    assert torch.equal(pair(**batch, stitch_id=back[0]).logits, expected)
    assert torch.equal(twin(**batch, stitch_id=back[0]).logits, expected)
    for network in (twin, pickle.loads(pickle.dumps(pair))):
        network(**batch, stitch_id=back[0])
        change(network.anchors[1].bert.encoder)
        with pytest.raises(ValueError, match=r"anchors.1 has changed"):
            network(**batch, stitch_id=back[0])


def test_a_list_of_layers_of_ones_own_is_refused():
    class Reversed(torch.nn.ModuleList):
        def __iter__(self):
            return reversed(list(super().__iter__()))

    model = bert()
    model.bert.encoder.layer = Reversed(model.bert.encoder.layer)
    with pytest.raises(TypeError, match=r"bert\.encoder\.layer is a Reversed: expected torch's ModuleList"):
        timm_stitch.stitch([model, bert(48, 4)])


@pytest.mark.parametrize("place", ["", "bert", "bert.encoder", "bert.embeddings", "bert.encoder.layer.2", "classifier"])
def test_hooks_run_on_extracted_stitches(pair, place):
    seen = []
    pair.anchors[1].get_submodule(place).register_forward_hook(lambda m, *_: seen.append(type(m)))
    for network in (pair, pair.extract(1), pair.extract(2)):
        seen.clear()
        network(**texts(), stitch_id=network.stitch_id if network is not pair else 2)
        assert seen, network.stitch_id


def test_methods_of_ones_own_run_on_extracted_stitches_or_are_refused(pair):
    batch, encoder = texts(), pair.anchors[1].bert.encoder

    def doubled(self, *args, **kwargs):
        output = type(self).forward(self, *args, **kwargs)
        return type(output)(output[0] * 2)

    encoder.forward = types.MethodType(doubled, encoder)
    assert torch.equal(pair.extract(2)(**batch).logits, pair(**batch, stitch_id=2).logits)
    encoder.forward = lambda *args, **kwargs: doubled(encoder, *args, **kwargs)
    with pytest.raises(
        ValueError, match=r"BertForSequenceClassification.bert.encoder.forward was replaced by .*lambda"
    ):
        pair.extract(2)


# ── extracted stitches ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("stitch_id", [1, 2])
def test_extracted_stitches_are_copied_pickled_and_exported(language_pair, pair, stitch_id):
    for network in (language_pair, pair):
        small, batch = network.extract(stitch_id), texts()
        expected = network(**batch, stitch_id=stitch_id).logits
        file = io.BytesIO()
        torch.save(small, file)
        file.seek(0)
        copies = (copy.deepcopy(small), pickle.loads(pickle.dumps(small)), torch.load(file, weights_only=False))
        assert all(torch.equal(twin(**batch).logits, expected) for twin in copies)
        program = torch.export.export(small, (), batch, strict=False).module()
        torch.testing.assert_close(program(**batch)["logits"], expected)


def test_the_layers_of_an_extracted_stitch_are_all_modules(pair):
    layers = pair.extract(2).anchors[1].bert.encoder.layer
    assert all(isinstance(layer, torch.nn.Module) for layer in layers)
    assert None not in layers._modules.values()
    assert len(layers) == 3


@torch.no_grad()
def test_hooks_on_what_a_front_does_not_reach_the_end_of_are_refused_by_name(pair):
    stitch = next(s for s in pair.plan if s.anchors == (0, 1))
    handle = pair.anchors[0].bert.encoder.register_forward_hook(lambda *_: None)
    for call in (lambda: pair(**texts(), stitch_id=stitch.stitch_id), lambda: dict(pair.forward_each(texts()))):
        with pytest.raises(
            ValueError, match=r"anchors.0.bert.encoder has hooks on its output, which it does not reach"
        ):
            call()
    assert pair(**texts(), stitch_id=0).logits.shape == (4, 3)
    handle.remove()
    pair(**texts(), stitch_id=stitch.stitch_id)


def test_weights_in_several_files_are_named(pair, tmp_path):
    pair.save_pretrained(tmp_path / "network", max_shard_size="10KB")
    assert torch.equal(
        CLASSIFIER.from_pretrained(tmp_path / "network")(**texts()).logits, pair.eval()(**texts()).logits
    )
    with pytest.raises(FileNotFoundError, match="are in several files, and only model"):
        timm_stitch.from_hub(tmp_path / "network")
