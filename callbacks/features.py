"""Features before the classifier."""

from torch import nn


def classifiers(network: nn.Module) -> list[nn.Module]:
    """Layers of which the last that is called classifies: `network.get_classifier()`, or else every nn.Linear."""
    find = getattr(network, "get_classifier", None)
    classifier = find() if find else None
    if isinstance(classifier, nn.Module) and any(True for _ in classifier.parameters()):
        return [classifier]
    return [layer for layer in network.modules() if isinstance(layer, nn.Linear) and not is_gate(layer)]


def is_gate(module: nn.Module) -> bool:
    """Whether a module chooses experts."""
    return type(getattr(module, "num_experts", None)) is int
