"""Backbones of detectors: the feature maps of a network at some strides."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from networks import complexity, registry
from networks.errors import InputError


class Taps(nn.Module):
    """A network that gives its feature maps at some strides instead of classes.

    They come from `forward_intermediates`, timm's way to read feature maps, so that names of weights stay those of the
    classifier, and its checkpoints, tickets and epitomes fit. What does not lead to the maps is dropped.

    Args:
        network: of timm, or one in whose layers a method of ours has put its own; changed in place.
        strides: of the maps, in input pixels; of several maps with one stride the last.
        final: one map more, the one before the classifier (in ReXNet and EfficientNet of the penultimate convolution).

    Shape:
        x: (B, 3, H, W); returns maps (B, channels[i], H / strides[i], W / strides[i]) by "0", "1", ...

    Raises:
        InputError: the network gives no intermediate maps, has none of such a stride, or takes images of one size only.
    """

    def __init__(self, network: nn.Module, strides: Sequence[int], final: bool = False) -> None:
        super().__init__()
        if not hasattr(network, "forward_intermediates"):
            raise InputError(f"{type(network).__name__} gives no feature maps of inner layers: take another backbone")
        info: Any = network.feature_info
        info = getattr(info, "info", info)
        last_of = {entry["reduction"]: index for index, entry in enumerate(info)}
        if missing := sorted(set(strides) - last_of.keys()):
            raise InputError(f"{type(network).__name__} has feature maps at strides {[*last_of]}, not at {missing}")
        self.indices = [last_of[stride] for stride in strides]
        self.channels = [info[index]["num_chs"] for index in self.indices]
        self.final, self.last_stride = final, info[-1]["reduction"]
        self.network: Any = network
        timms: Any = network
        if final:
            self.channels.append(timms.num_features)
            timms.reset_classifier(0, "")
        else:
            self.indices = timms.prune_intermediate_layers(self.indices, prune_norm=True)
        self._drop_unused()

    @property
    def statistics(self) -> dict[str, list[float]]:
        """torchvision's options by which images are normalised as for the weights that timm has of the network."""
        cfg = getattr(self.network, "pretrained_cfg", None) or {}
        return {f"image_{name}": list(cfg[name]) for name in ("mean", "std") if cfg.get(name)}

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        if self.final:
            last, maps = self.network.forward_intermediates(x, indices=self.indices)
            maps = [*maps, last]
        else:
            maps = self.network.forward_intermediates(x, indices=self.indices, intermediates_only=True)
        return OrderedDict((str(i), each) for i, each in enumerate(maps))

    def _drop_unused(self) -> None:
        """A parameter that no loss reaches stops data-parallel training, and would be counted."""
        try:
            called = complexity.output_sizes(self, (3, 256, 320))  # detectors have images of many sizes
        except InputError as error:
            raise InputError(f"{type(self.network).__name__} is no backbone for detectors: {error}") from error
        for name, layer in list(self.named_modules()):
            if name not in called and next(layer.parameters(recurse=False), None) is not None:
                parent, _, child = name.rpartition(".")
                setattr(self.get_submodule(parent), child, nn.Identity())


def taps(
    backbone: str | nn.Module,
    backbone_args: Mapping[str, Any] | None,
    pretrained: bool,
    strides: Sequence[int],
    final: bool = False,
) -> Taps:
    """The taps of a backbone given by name or as a network.

    Raises:
        InputError: what `networks.create` refuses, weights out of reach, and what `Taps` refuses.
    """
    if isinstance(backbone, nn.Module):
        if pretrained or backbone_args:
            raise InputError("pretrained and backbone_args go with a backbone by name; here it is built already")
        return Taps(backbone, strides, final)
    if not isinstance(backbone, str):
        raise InputError(f"{backbone=} is neither a name nor a network")
    if not isinstance(backbone_args or {}, Mapping):
        raise InputError(f"{backbone_args=} are arguments by name, such as {{width: 0.9}}")
    args = {**(backbone_args or {}), **({"pretrained": True} if pretrained else {})}
    try:
        network = registry.create(backbone, (3, 224, 224), args=args)
    except InputError as error:
        remedies = []
        if pretrained:
            weights = "--model.network_args.pretrained false"
            remedies.append(f"{weights} starts from random weights, --model.initial_checkpoint FILE from a file's")
        elif backbone_args:
            remedies.append("a backbone without such arguments: --model.network_args.backbone_args {}")
        raise InputError("; ".join([str(error), *remedies])) from error
    return Taps(network, strides, final)
