"""What other tools do to a network, beside the same done to a plain timm model."""

import pytest
import timm
import torch

import timm_stitch

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def vits():
    sizes = {"num_heads": 2, "depth": 4, "img_size": 32, "patch_size": 8, "num_classes": 10}
    return [timm.create_model("vit_tiny_patch16_224", embed_dim=width, **sizes).eval() for width in (32, 64)]


def staged():
    return [timm.create_model(name, num_classes=10).eval() for name in ("test_convnext", "test_convnext2")]


def replica(network):
    """What torch.nn.parallel.replicate makes for one device, with copies in place of another device's tensors."""
    twins = {module: module._replicate_for_data_parallel() for module in network.modules()}
    for module, twin in twins.items():
        twin._former_parameters = {}
        for name, child in module._modules.items():
            twin._modules[name] = None if child is None else twins[child]
        for name, parameter in module._parameters.items():
            if parameter is not None:
                setattr(twin, name, parameter.detach().clone().requires_grad_())
    return twins[network]


@pytest.mark.parametrize("anchors", [vits, staged])
def test_replicas_of_data_parallel_run_their_own_anchors(anchors):
    models = anchors()
    net = timm_stitch.stitch(models).eval()
    images = IMAGES if anchors is vits else torch.randn(2, 3, 64, 64)
    for whole, args in ((models[1], {}), (net, {"stitch_id": 2})):
        twin = replica(whole)
        out = twin(images, **args)
        assert torch.equal(out, whole(images, **args))
        out.sum().backward()
        assert all(parameter.grad is None for parameter in whole.parameters())


def test_parametrised_modules_can_be_extracted():
    anchors = vits()
    for anchor in anchors:
        torch.nn.utils.parametrizations.weight_norm(anchor.head)
    net = timm_stitch.stitch(anchors).eval()
    assert torch.equal(net.extract(2)(IMAGES), net(IMAGES, stitch_id=2))
    assert torch.equal(net.extract(2, copy=True)(IMAGES), net(IMAGES, stitch_id=2))
    assert len(net.backbone(2)(IMAGES)) == 3
