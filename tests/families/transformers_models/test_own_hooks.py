"""Hooks on anchors of transformers, replaced configurations and patched loops act as alone, or are refused by name."""

import copy
import types

import pytest
import torch

hf = pytest.importorskip("transformers", minversion="5.20")

from tiny import bert, texts  # noqa: E402

import timm_stitch  # noqa: E402
import timm_stitch.text  # noqa: E402 (registers the Auto classes)
from timm_stitch.families.transformers_models.cache import _lengthen  # noqa: E402

STITCHED = 2  # the id of a stitch that crosses, of which anchor 0 is the front


@pytest.fixture
def pair():
    torch.manual_seed(0)
    return timm_stitch.stitch([bert(32, 3), bert(48, 3, seed=1)])


@pytest.mark.parametrize(
    "register", ["register_forward_hook", "register_full_backward_hook", "register_full_backward_pre_hook"]
)
@torch.no_grad()
def test_hooks_on_the_output_of_a_front_are_refused_by_name(pair, register):
    handle = getattr(pair.anchors[0], register)(lambda *_: None)
    for call in (lambda: pair(**texts(), stitch_id=STITCHED), lambda: dict(pair.forward_each(texts()))):
        with pytest.raises(ValueError, match=r"anchors.0 has hooks on its output, which it does not reach"):
            call()
    if register == "register_forward_hook":  # torch warns of others that an output of transformers is no tensor
        assert pair(**texts(), stitch_id=0).logits.shape == (4, 3)
    handle.remove()
    pair(**texts(), stitch_id=STITCHED)


@torch.no_grad()
def test_hooks_on_the_inputs_of_a_front_and_on_a_back_run(pair):
    expected = pair(**{**texts(), "input_ids": texts()["input_ids"].flip(0)}, stitch_id=STITCHED).logits
    pair.anchors[0].register_forward_pre_hook(
        lambda module, args, kwargs: (args, {**kwargs, "input_ids": kwargs["input_ids"].flip(0)}), with_kwargs=True
    )
    seen = []
    pair.anchors[1].register_forward_hook(lambda module, args, output: seen.append(output.logits))
    assert torch.equal(pair(**texts(), stitch_id=STITCHED).logits, expected)
    assert torch.equal(seen[0], expected)


class Moving:
    """What Accelerate puts on a module as its hook."""

    def __init__(self):
        self.calls = []

    def pre_forward(self, module, *args, **kwargs):
        self.calls.append("before")
        return args, kwargs

    def post_forward(self, module, output):
        self.calls.append("after")
        return output


@torch.no_grad()
def test_the_hook_of_accelerate_on_a_front_runs_before_and_after_its_layers(pair):
    front, hook = pair.anchors[0], Moving()
    expected = pair(**texts(), stitch_id=STITCHED).logits
    front._hf_hook, front._old_forward = hook, front.forward

    def forward(*args, **kwargs):
        args, kwargs = hook.pre_forward(front, *args, **kwargs)
        return hook.post_forward(front, front._old_forward(*args, **kwargs))

    front.forward = forward
    for network in (pair, pair.extract(STITCHED)):
        assert torch.equal(network(**texts(), stitch_id=STITCHED).logits, expected)
        assert hook.calls == ["before", "after"]
        hook.calls.clear()


@torch.no_grad()
def test_hooks_of_sharding_on_a_front_get_its_activations(pair):
    expected, outputs = pair(**texts(), stitch_id=STITCHED).logits, []

    def post_forward(module, args, output):
        outputs.append(output)

    post_forward.__module__ = "torch.distributed.fsdp._fully_shard._fsdp_state"
    pair.anchors[0].register_forward_hook(post_forward)
    assert torch.equal(pair(**texts(), stitch_id=STITCHED).logits, expected)
    assert [h.shape for h in outputs[0].values()] == [(*texts()["input_ids"].shape, 32)]


def backwards(encoder, hidden_states, *args, **kwargs):
    for layer in reversed(encoder.layer):
        hidden_states = layer(hidden_states)
    return types.SimpleNamespace(last_hidden_state=hidden_states, cache=None)


@pytest.mark.parametrize("number", [0, 1])
@torch.no_grad()
def test_layers_that_run_in_another_order_are_the_anchors_alone(pair, number):
    encoder = pair.anchors[number].bert.encoder
    encoder.forward = types.MethodType(backwards, encoder)
    batch = {"input_ids": texts()["input_ids"]}
    assert torch.equal(pair(**batch, stitch_id=number).logits, pair.anchors[number](**batch).logits)
    for stitch in pair.plan:
        if not stitch.is_anchor:
            with pytest.raises(ValueError, match=r"does not run the layers of bert.encoder.layer in their order"):
                pair(**batch, stitch_id=stitch.stitch_id)


def test_a_configuration_that_replaces_an_anchors_is_that_of_the_network(pair, tmp_path):
    config = copy.deepcopy(pair.anchors[1].config)
    config.id2label = {0: "a", 1: "b", 2: "c"}
    pair.anchors[1].config = config
    assert pair.config.id2label == config.id2label
    pair.config.problem_type = "multi_label_classification"
    assert config.problem_type == "multi_label_classification"
    assert copy.deepcopy(pair).config.problem_type == pair.extract(STITCHED).config.problem_type == config.problem_type
    again = timm_stitch.from_hub(timm_stitch.save_pretrained(pair, tmp_path / "network"))
    assert again.anchors[1].config.id2label == config.id2label
    assert again.anchors[1].config.problem_type == config.problem_type


@pytest.mark.parametrize("name", ["export", "linear_probe", "serve"])
def test_what_a_network_does_not_do_is_an_attribute_error_that_says_what_to_do(pair, name):
    assert not hasattr(pair, name)
    with pytest.raises(AttributeError, match=r"timm's models[:,] |are not exported by timm_stitch: extract a stitch"):
        getattr(pair, name)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = pair.nothing


def rwkv(width):
    config = hf.RwkvConfig(
        vocab_size=99, hidden_size=width, attention_hidden_size=width, num_hidden_layers=3, context_length=64
    )
    return hf.RwkvForCausalLM(config).eval()


def test_a_model_with_states_of_its_own_generates_what_it_does_alone():
    torch.manual_seed(0)
    models = [rwkv(32), rwkv(48)]
    for model in models:
        for parameter in model.parameters():
            parameter.data.normal_(0, 0.5)
    network, ids = timm_stitch.stitch(copy.deepcopy(models)), texts()["input_ids"][:1]
    settings = {"max_new_tokens": 4, "do_sample": False}
    expected = models[1].generate(ids, **settings)
    assert torch.equal(network.generate(ids, stitch_id=1, **settings), expected)
    with pytest.raises(ValueError, match="inputs_embeds needs a cache, which belongs to one stitch"):
        network.generate(inputs_embeds=models[1].get_input_embeddings()(ids), stitch_id=1, **settings)
    with pytest.raises(ValueError, match=r"RwkvForCausalLM takes no cache of transformers: give the whole text"):
        network(ids, stitch_id=1, cache=hf.DynamicCache())


@torch.no_grad()
def test_attentions_of_a_stitch_whose_layers_give_one_output(pair):
    torch.manual_seed(0)
    config = {"vocab_size": 99, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64}
    sizes = [hf.MPNetConfig(hidden_size=w, **config, attn_implementation="eager") for w in (32, 48)]
    network = timm_stitch.stitch([hf.MPNetForMaskedLM(size).eval() for size in sizes])
    network.config.output_attentions = True
    stitch = next(s for s in network.plan if s.anchors == (0, 1))
    attentions = network(input_ids=texts()["input_ids"], stitch_id=stitch.stitch_id).attentions
    skipped = stitch.segments[-1].start
    assert [attention is None for attention in attentions] == [True] * skipped + [False] * (3 - skipped)


@torch.no_grad()
def test_attentions_that_need_every_layer_are_refused_in_one_line():
    sizes = {"vocab_size": 99, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    configs = [
        hf.LongformerConfig(hidden_size=w, attention_window=8, max_position_embeddings=64, **sizes) for w in (32, 48)
    ]
    network = timm_stitch.stitch([hf.LongformerForMaskedLM(config).eval() for config in configs])
    network.config.output_attentions = True
    stitch = network.plan.stitches[-1]
    with pytest.raises(ValueError, match=r"leaves layers out, and its models do not give the outputs of single layers"):
        network(**texts(), stitch_id=stitch.stitch_id)


def test_the_cache_of_a_layer_that_ran_is_not_made_longer():
    ran, skipped = hf.cache_utils.DynamicLayer(), hf.cache_utils.DynamicLayer()
    ran.update(torch.ones(1, 2, 3, 16), torch.ones(1, 2, 3, 16))
    for layer in (ran, skipped):
        _lengthen(layer, 0, 1, 3, torch.device("cpu"))
        assert layer.get_seq_length() == 3
    assert ran.keys.shape == (1, 2, 3, 16)
