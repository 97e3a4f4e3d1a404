import pytest
import torch

from dist_mnist.models.build import build_model
from dist_mnist.models.networks import MLP, ConvNet, ResidualBlock, ResNet
from tests.support.configs import make_config


@pytest.mark.parametrize("name", ["mlp", "cnn", "linear", "resnet"])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
def test_every_model_maps_images_to_logits(name: str, shape: tuple[int, int, int]) -> None:
    model = build_model(
        make_config(f"model={name}", f"data.image_shape={list(shape)}", "data.num_classes=7")
    )
    assert model(torch.zeros(3, *shape)).shape == (3, 7)


def test_the_tutorial_network_has_its_layers() -> None:
    model = build_model(make_config("experiment=tutorial"))
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    sizes = [(layer.in_features, layer.out_features) for layer in linear]
    assert sizes == [(784, 64), (64, 64), (64, 64), (64, 10)]
    totals = model(torch.randn(5, 1, 28, 28)).exp().sum(dim=1)
    torch.testing.assert_close(totals, torch.ones(5))  # it ends in log-softmax


def test_the_linear_model_is_one_layer() -> None:
    parameters = list(build_model(make_config("model=linear")).parameters())
    assert [tuple(p.shape) for p in parameters] == [(10, 784), (10,)]


def test_zero_residual_block_is_identity() -> None:
    model = ResNet((1, 28, 28), 10, channels=(8,), blocks_per_stage=1)
    block = model.features[-1]
    assert isinstance(block, ResidualBlock)
    for parameter in block.residual.parameters():
        torch.nn.init.zeros_(parameter)
    features = torch.rand(2, 8, 5, 5)
    torch.testing.assert_close(block(features), features)


def test_dropout_acts_in_train_mode_only() -> None:
    images = torch.randn(4, 1, 28, 28)
    for model in (MLP((1, 28, 28), 10, dropout=0.5), ConvNet((1, 28, 28), 10, dropout=0.5)):
        assert not torch.equal(model.train()(images), model(images))
        assert torch.equal(model.eval()(images), model(images))


@pytest.mark.parametrize(
    ("shape", "channels", "message"),
    [
        ((1, 28, 20), (16, 32, 64), "square"),
        ((1, 8, 8), (16, 32, 64), "too small"),
        ((1, 28, 28), (16, 32), "must have the same length"),
    ],
)
def test_a_network_that_cannot_be_is_refused(
    shape: tuple[int, int, int], channels: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ConvNet(shape, 10, channels=channels)
