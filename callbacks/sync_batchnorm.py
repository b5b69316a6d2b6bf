"""Batch normalisation over all devices."""

from pytorch_lightning.plugins.layer_sync import LayerSync
from timm.layers import convert_sync_batchnorm
from torch import nn


class SyncBatchNorm(LayerSync):
    """`trainer.sync_batchnorm` by timm's conversion.

    Lightning's is torch's, which drops the activations that timm puts into layers of batch normalisation. Nothing is
    turned back after a run, for these layers work without processes too.
    """

    def apply(self, model: nn.Module) -> nn.Module:
        return convert_sync_batchnorm(model)

    def revert(self, model: nn.Module) -> nn.Module:
        return model
