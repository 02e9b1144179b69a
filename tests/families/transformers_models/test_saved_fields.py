"""Each check of the fields in a stranger's configuration refuses by itself, in one line, and lets plain values pass."""

import pytest

pytest.importorskip("transformers", minversion="5.20")

from timm_stitch.families.transformers_models.saved_fields import (
    MOST_VALUES,
    check_anchor,
    check_generation,
    check_own,
)
from timm_stitch.families.transformers_models.task_names import MODEL_TYPE
from timm_stitch.families.transformers_models.wrapped_timm import check_wrapped


def refuses(check, *arguments, message):
    with pytest.raises(ValueError, match=f"^[^\n]*{message}[^\n]*$"):
        check(*arguments)


def nested(levels):
    config = {"model_type": "llava"}
    for _ in range(levels):
        config = {"model_type": "llava", "text_config": config}
    return config["text_config"]


OWN = [
    ({"auto_map": {"A": "b.c"}}, r"run other code \(auto_map\)"),
    ({"note": [0] * (MOST_VALUES + 1)}, "more than 200,000 values"),
    ({"num_labels": MOST_VALUES + 1}, "asks for names of 200,001 classes"),
    ({"text": {"num_labels": MOST_VALUES}, "num_labels": 1}, "is an object: expected a plain value"),
    ({"save_pretrained": 1}, "has save_pretrained, which is no field"),
    ({"note": {"a": 1}}, "note is an object: expected a plain value"),
    ({"note": "/etc/passwd"}, "note is '/etc/passwd': expected a word"),
    ({"note": ["a", ".."]}, r"note is '\.\.': expected a word"),
    ({"dtype": "load"}, "has dtype='load'"),
    ({"dtype": ["float32"]}, r"has dtype=\['float32'\]"),
    ({"id2label": {"0": "a" * 257}}, "id2label is not one short name for each"),
    ({"id2label": {"0": ["a"]}}, "id2label is not one short name for each"),
    ({"id2label": {"x": "a"}}, "id2label is not one short name for each"),
    ({"id2label": "a"}, "id2label is not one short name for each"),
    ({"label2id": {"a": "x"}}, "label2id is not one short name for each"),
]


@pytest.mark.parametrize(("values", "message"), OWN)
def test_own_fields_of_a_network_are_plain(values, message):
    refuses(check_own, values, message=message)
    check_own({"note": "a-word.1", "num_labels": 3, "id2label": {"0": "a b", "1": 2}, "dtype": "bfloat16"})


ANCHORS = [
    ({}, "has model_type=None"),
    ({"model_type": "nothing"}, "has model_type='nothing'"),
    ({"model_type": MODEL_TYPE}, f"has model_type='{MODEL_TYPE}'"),
    ({"model_type": "llava", "text_config": {"model_type": MODEL_TYPE}}, f"text_config has model_type='{MODEL_TYPE}'"),
    ({"model_type": ["bert"]}, "has model_type=.'bert'.,"),
    ({"model_type": "bert", "trust_remote_code": True}, r"run other code \(trust_remote_code\)"),
    ({"model_type": "bert", "weights_url": "x"}, r"run other code \(weights_url\)"),
    ({"model_type": "bert", "nobody_reads_this": 1}, "has nobody_reads_this, which transformers' configuration of"),
    ({"model_type": "bert", "num_hidden_layers": 10**6}, "num_hidden_layers"),
    ({"model_type": "bert", "hidden_size": 1 << 30}, "hidden_size"),
    ({"model_type": "bert", "hidden_act": "a/b"}, "hidden_act is 'a/b': expected a word"),
    ({"model_type": "llama", "rope_parameters": {"a b": 1}}, "rope_parameters has a field 'a b': expected names"),
    ({"model_type": "llama", "rope_parameters": {"a": {"b": ["/"]}}}, "rope_parameters.a.b is '/': expected a word"),
    (
        {"model_type": "vit", "image_size": [4096, 4096], "patch_size": 1},
        "has images of .4096, 4096. in patches of .1, 1.",
    ),
    ({"model_type": "vit", "image_size": 4096, "patch_size": [2, 2]}, "has images of .4096, 4096. in patches of"),
    ({"model_type": "llava", "text_config": {"model_type": "nothing"}}, "text_config has model_type='nothing'"),
    ({"model_type": "llava", "text_config": {"model_type": "bert", "_file": "x"}}, "_file"),
    ({"model_type": "gemma4_text", "per_layer_config": {"0": {"auto_map": 1}}}, "auto_map"),
    (nested(8), "lies more than 6 levels deep"),
    ({"model_type": "timm_wrapper", "architecture": "hf-hub:a/b"}, "wraps 'hf-hub:a/b', which is no model"),
]


@pytest.mark.parametrize(("values", "message"), ANCHORS)
def test_configurations_of_anchors_have_the_fields_of_their_type(values, message):
    refuses(check_anchor, "anchor 0", values, message=message)
    check_anchor("anchor 0", {"model_type": "bert", "hidden_size": 32, "_name_or_path": ""})
    check_anchor("anchor 0", {"model_type": "vit", "image_size": [224, 224], "patch_size": 16})
    check_anchor("anchor 0", nested(4))


GENERATION = [
    ({"compile_config": {"backend": "x"}}, r"run other code \(compile_config\)"),
    ({"bad_words_ids": [0] * (MOST_VALUES + 1)}, "more than 200,000 values"),
    ({"from_pretrained": 1}, "has from_pretrained, which is no setting"),
    ({"note": "/etc"}, "note is '/etc': expected a word"),
    ({"bad_words_ids": [[[[[[[[[[1]]]]]]]]]]}, "bad_words_ids"),
    ({"max_length": 1 << 60}, "max_length"),
]


@pytest.mark.parametrize(("values", "message"), GENERATION)
def test_settings_for_generating_are_plain(values, message):
    refuses(check_generation, values, message=message)
    check_generation({"stop_strings": ["/ two words"], "max_length": 20, "do_sample": True})


WRAPPED = [
    ("timm_backbone", {"architecture": "resnet18"}, "which is no model that timm makes"),
    ("timm_wrapper", {}, "wraps None, which is no model"),
    ("timm_wrapper", {"architecture": "nothing18"}, "wraps 'nothing18'"),
    ("timm_wrapper", {"architecture": "resnet18.a/b"}, "wraps 'resnet18.a/b'"),
    ("timm_wrapper", {"architecture": "snnet"}, "wraps 'snnet'"),
    ("timm_wrapper", {"architecture": "resnet18", "model_args": ["width"]}, r"has model_args of timm's \(\?\)"),
    ("timm_wrapper", {"architecture": "resnet18", "model_args": {"pretrained": True}}, r"model_args.*\(pretrained\)"),
    ("timm_wrapper", {"architecture": "resnet18", "model_args": {"width": "a"}}, "values that are no numbers"),
    ("timm_wrapper", {"architecture": "resnet18", "model_args": {"width": [1, "a"]}}, "values that are no numbers"),
]


@pytest.mark.parametrize(("kind", "values", "message"), WRAPPED)
def test_wrapped_models_are_timms_own_and_have_sizes_alone(kind, values, message):
    refuses(check_wrapped, "anchor 0", kind, values, message=message)
    check_wrapped("anchor 0", "timm_wrapper", {"architecture": "resnet18.a1_in1k", "model_args": {"width": [1, None]}})
    check_wrapped("anchor 0", "bert", {"architecture": "nothing18"})
