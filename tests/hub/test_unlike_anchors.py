"""What differs between anchors is kept for each of them through saving and loading."""

import pytest
import timm
import torch

import timm_stitch


@pytest.mark.filterwarnings("ignore:the anchors were trained on images normalised differently")
@pytest.mark.parametrize(
    "names", [("test_efficientnet", "test_vit"), ("test_vit", "test_vit2"), ("test_vit2", "test_vit4")]
)
def test_anchors_that_pool_differently_load_as_they_were_saved(names, tmp_path):
    sizes = {name: {"img_size": 64} if "vit" in name else {} for name in names}
    net = timm_stitch.stitch([timm.create_model(n, num_classes=10, **sizes[n]).eval() for n in names]).eval()
    timm_stitch.save_pretrained(net, tmp_path / "net")
    again = timm.create_model(f"local-dir:{tmp_path / 'net'}", pretrained=True).eval()
    images = torch.randn(2, 3, 64, 64)
    for stitch_id in net.stitch_ids:
        torch.testing.assert_close(
            again(images, stitch_id=stitch_id), net(images, stitch_id=stitch_id), rtol=0, atol=1e-6
        )
