"""MobileNetV2 with epitomes: python benchmarks/epitome.py [layers|network|inference]

Of each layer shape with an epitome, of a training step of the whole at m = 0.5, and of inference at m = 0.5 and 0.18:
the dense network, which is what a user would train without the method; the literal version, which makes each weight by
a product with tent kernels; and ours, with fixed positions and with learned ones. Times are medians of runs in turn,
ratios are to the first line of each group, memory is a fresh process's peak.
"""

import argparse

import timm
import torch
from timing import compare, header, own_peak, peak_memory
from torch import nn
from torch.nn import functional as F

from networks.complexity import count
from networks.epitome import EpitomeConv2d, epitome_layers

BATCH = 32
SIZE = (3, 224, 224)
ALTERNATIVES = ("dense", "literal", "none", "param")
FORMATS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}


class LiteralConv(EpitomeConv2d):
    """The layer in the plainest words: tent kernels, their product with the epitome, a convolution."""

    def forward(self, x):
        length, n = self.size[self.axis], self.epitome.shape[self.axis]
        row = torch.arange(length)
        at = self.positions[row // n] % n + row % n
        distance = at[:, None, None] - torch.arange(n)[None, :, None] - torch.tensor([0, n, 2 * n])
        kernel = (1 - distance.abs()).clamp(min=0).sum(-1)  # (length, n)
        weight = torch.tensordot(kernel, self.epitome, ([1], [self.axis])).movedim(0, self.axis)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation)


def network(alternative, multiplier=0.5):
    torch.manual_seed(0)
    if alternative == "dense":
        return timm.create_model("mobilenetv2_100")
    positions = "none" if alternative == "none" else "param"
    net = timm.create_model("epitome_mobilenetv2", multiplier=multiplier, positions=positions)
    for layer in epitome_layers(net).values():
        if layer.positions is not None:
            nn.init.uniform_(layer.positions, 0, 4)
        if alternative == "literal":
            layer.__class__ = LiteralConv
    return net


def training_step(alternative, layout):
    net = network(alternative).to(memory_format=FORMATS[layout])
    optimizer = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9)
    x, labels = torch.randn(BATCH, *SIZE).to(memory_format=FORMATS[layout]), torch.arange(BATCH)

    def step():
        optimizer.zero_grad()
        F.cross_entropy(net(x), labels).backward()
        optimizer.step()

    return step


def shapes():
    """Channels, filters, shared axis and side of every distinct layer with an epitome, and how often it is there."""
    counts = {}

    def look(layer, args, _):
        key = layer.in_channels, layer.out_channels, layer.share, args[0].shape[-1]
        counts[key] = counts.get(key, 0) + 1

    with torch.device("meta"), torch.no_grad():
        net = timm.create_model("epitome_mobilenetv2")
        for layer in epitome_layers(net).values():
            layer.register_forward_hook(look)
        net(torch.empty(1, *SIZE))
    return counts


def layer(alternative, shape, multiplier):
    channels, filters, share, _ = shape
    torch.manual_seed(0)
    if alternative == "dense":
        return nn.Conv2d(channels, filters, 1, bias=False)
    source = "none" if alternative == "none" else "param"
    execution = "reuse" if alternative == "param, reuse" else "auto"
    made = EpitomeConv2d(
        channels, filters, 1, bias=False, multiplier=multiplier, share=share, positions=source, execution=execution
    )
    if made.positions is not None:
        nn.init.uniform_(made.positions, 0, 4)
    return made


def compare_layers(layout, multiplier):
    for shape, times in shapes().items():
        channels, filters, share, side = shape
        built = {name: layer(name, shape, multiplier) for name in ("dense", "none", "param", "param, reuse")}
        x = torch.randn(BATCH, channels, side, side).to(memory_format=FORMATS[layout]).requires_grad_()

        def step(conv, x=x):
            conv(x).sum().backward()
            conv.zero_grad()
            x.grad = None

        title = f'{channels} -> {filters} channels, share="{share}", m = {multiplier}, {side}x{side} ({times} there)'
        compare(f"training step, {title}, batch {BATCH}, {layout}", {k: lambda c=c: step(c) for k, c in built.items()})
        with torch.no_grad():
            compare(f"inference, {title}, {layout}", {k: lambda c=c, x=x: c(x) for k, c in built.items()})


def compare_steps(layout):
    steps = {name: training_step(name, layout) for name in ALTERNATIVES}
    compare(f"training step of MobileNetV2, m = 0.5, batch {BATCH}, 224 pixels, {layout}", steps, rounds=5)
    print("\npeak memory of that step")
    for name in ALTERNATIVES:
        print(f"  {name:<42} {peak_memory(__file__, name, '--layout', layout):9.0f} MiB")


def compare_inference(layout):
    for batch in (1, BATCH):
        x = torch.randn(batch, *SIZE).to(memory_format=FORMATS[layout])
        nets = {"dense": network("dense")}
        for m in (0.5, 0.18):
            nets |= {f"{name}, m = {m}": network(name, m) for name in ("none", "param")}
        runs = {}
        for name, net in nets.items():
            net = net.eval().to(memory_format=FORMATS[layout])
            madds = count(net, SIZE).flops / 1e6
            runs[f"{name} ({madds:.0f} M multiply-adds)"] = lambda net=net, x=x: net(x)
        with torch.inference_mode():
            compare(f"inference of MobileNetV2, batch {batch}, 224 pixels, {layout}", runs, rounds=15)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", nargs="?", choices=("layers", "network", "inference"), help="the default is all")
    parser.add_argument("--layout", choices=FORMATS, help="the default is both")
    parser.add_argument("--only", choices=ALTERNATIVES, help="run one alternative and print the peak memory in MiB")
    options = parser.parse_args()
    if options.only:
        run = training_step(options.only, options.layout)
        for _ in range(3):
            run()
        print(own_peak())
        return
    header()
    for layout in [options.layout] if options.layout else FORMATS:
        if options.part in (None, "layers"):
            for multiplier in (0.5, 0.18):
                compare_layers(layout, multiplier)
        if options.part in (None, "network"):
            compare_steps(layout)
        if options.part in (None, "inference"):
            compare_inference(layout)


if __name__ == "__main__":
    main()
