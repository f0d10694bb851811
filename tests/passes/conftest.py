import pytest
import torch

from dragsa.config import UNetConfig
from dragsa.model.unet import UNet


@pytest.fixture(scope="module")
def net() -> UNet:
    torch.manual_seed(0)
    return UNet(UNetConfig((8, 8, 8, 8), (2, 2, 2, 2), 16, 4)).requires_grad_(False)
