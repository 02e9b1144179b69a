"""Every class has a name of its own, and names of strangers are texts or refused."""

import pytest

from timm_stitch.deployment.class_names import class_names


def named(model, names, **more):
    model.pretrained_cfg = {**model.pretrained_cfg, "label_names": names, **more}
    return class_names(model)


LETTERS = list("defghij")


def test_no_two_classes_have_one_name(model):
    assert named(model, ["cat", "cat", "dog", *LETTERS])[:3] == ["cat (0)", "cat (1)", "dog"]
    names = named(model, ["cat", "cat", "cat (1)", *LETTERS])
    assert len(set(names)) == 10
    assert all(name.startswith("cat (") for name in names[:3])


def test_many_names_are_compared_in_one_pass(model):
    model.num_classes = 200_000
    assert len(set(class_names(model, ["same"] * 200_000))) == 200_000


@pytest.mark.parametrize(
    ("names", "more"),
    [([[1]] * 10, {}), ([None] * 10, {}), (list("abc") + LETTERS, {"label_descriptions": ["x"]})],
)
def test_names_that_are_no_texts_are_refused(model, names, more):
    with pytest.raises(ValueError, match="label_names and label_descriptions of this network must be texts"):
        named(model, names, **more)


def test_markup_stays_a_text(model):
    assert named(model, ["<script>", "**b**", "c", *LETTERS])[:2] == ["<script>", "**b**"]
