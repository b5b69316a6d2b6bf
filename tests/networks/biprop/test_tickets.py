"""Tickets as files: sizes, identical logits anywhere, damage, other networks; export without our layers."""

import copy
import itertools
import os
import random
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

import networks
from networks import InputError, bits, complexity
from networks.biprop import fold, load_ticket, plain_state_dict, save_ticket, subnet_layers
from networks.biprop.tickets import read

ROOT = Path(__file__).parents[3]
CONV2 = {"name": "conv2", "input_size": [1, 8, 8], "num_classes": 10, "args": {"width": 0.25}}
SIGNED = {**CONV2, "args": {"width": 0.25, "activation": "sign"}}
RESNET = {"name": "cifar_resnet20", "input_size": [3, 32, 32], "num_classes": 10, "args": {"activation": "sign"}}


def with_statistics(net):
    """Batch normalisation as after training."""
    with torch.no_grad():
        for norm in net.modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm):
                norm.running_mean.normal_(0, 0.3)
                norm.running_var.uniform_(0.5, 2)
                if norm.affine:
                    norm.weight.normal_()
                    norm.bias.normal_(0, 0.3)
    return net.eval()


def ticket(architecture=SIGNED, keep_fraction=0.3, **options):
    torch.manual_seed(0)
    net = networks.create(**architecture)
    networks.biprop.apply(net, keep_fraction, **options)
    return with_statistics(net)


def inputs(architecture, n=4):
    return torch.randn(n, *architecture["input_size"], generator=torch.Generator().manual_seed(1))


def logits(net, x):
    with torch.no_grad():
        return net(x)


def same_content(one, other):
    """Whether two ticket files hold the same metadata and tensors."""
    (metadata, tensors), (others, other_tensors) = read(one), read(other)
    equal = tensors.keys() == other_tensors.keys()
    return metadata == others and equal and all(torch.equal(t, other_tensors[name]) for name, t in tensors.items())


# Sizes, spec 10: bytes of masks, kept signs, gains and running statistics.


@pytest.mark.parametrize(
    ("name", "arguments", "k", "masks", "signs", "gains", "statistics"),
    [
        ("vgg_small", {}, 0.05, 0.582e6, 0.029e6, 28, 7.2e3),
        ("cifar_resnet18", {}, 0.2, 1.396e6, 0.279e6, 84, 38.4e3),
        ("vgg_small", {"activation": "sign", "variant": "bn", "width": 1.25}, 0.25, 0.906e6, 0.227e6, 28, 17.9e3),
        ("wrn50", {}, 0.2, 8.602e6, 1.720e6, 216, 272.9e3),
        ("wrn34", {"activation": "sign"}, 0.4, 6.034e6, 2.414e6, 148, 100.4e3),
    ],
)
def test_sizes_of_the_papers_tickets(tmp_path, name, arguments, k, masks, signs, gains, statistics):
    with torch.device("meta"):
        net = timm.create_model(name, **arguments)
    net.to_empty(device="cpu")
    networks.biprop.apply(net, k, init="signed_constant")  # the cheapest to draw
    layers = subnet_layers(net).values()
    norms = sum(m.num_features for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    mask_bytes = sum(-(-layer.weight.numel() // 8) for layer in layers)
    sign_bytes = sum(-(-layer.kept // 8) for layer in layers)
    rest = 4 * len(layers) + 8 * norms
    assert mask_bytes + rest == pytest.approx(masks + gains + statistics, rel=0.02)
    assert sign_bytes == pytest.approx(signs, rel=0.02)
    path = tmp_path / "ticket.safetensors"
    large = name.startswith("wrn")  # saved once: what "seed" leaves out is seen in the others
    for how in ("bits",) if large else ("bits", "seed"):
        save_ticket(net, path, signs=how)
        with path.open("rb") as file:
            header = 8 + struct.unpack("<Q", file.read(8))[0]
        assert path.stat().st_size - header == mask_bytes + rest + (sign_bytes if how == "bits" else 0)
        assert header < 0.02 * (masks + gains + statistics)


# Round trips.

TICKETS = {
    "relu": (CONV2, {}),
    "sign": (SIGNED, {}),
    "+bn": (SIGNED, {"train_bn": True}),
    "all kept": (CONV2, {"keep_fraction": 1.0}),
    "signed constant": (SIGNED, {"init": "signed_constant"}),
    "unsigned constant": (CONV2, {"init": "unsigned_constant"}),
    "edge-popup": (CONV2, {"init": "signed_constant", "binarize": "none"}),
    "floor_kn": (CONV2, {"keep_fraction": 0.1, "gain_count": "floor_kn"}),
    "global": (SIGNED, {"selection": "global", "train_bn": True}),
    "dense": (SIGNED, {"dense_first": True, "dense_last": True}),
    "resnet": (RESNET, {"train_bn": True}),
}


@pytest.mark.parametrize("signs", ["seed", "bits"])
@pytest.mark.parametrize("kind", TICKETS)
def test_a_loaded_ticket_computes_counts_and_is_saved_as_before(tmp_path, kind, signs):
    architecture, options = TICKETS[kind]
    net, x, paths = ticket(architecture, **options), inputs(architecture), [tmp_path / "1", tmp_path / "2"]
    save_ticket(net, paths[0], architecture, signs)
    loaded = load_ticket(paths[0])
    expected = logits(net, x)
    assert expected.std() > 1e-3
    assert torch.equal(logits(loaded, x), expected)
    assert torch.equal(logits(load_ticket(paths[0], networks.create(**architecture).train()), x), expected)
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    assert {name: layer.kept for name, layer in subnet_layers(loaded).items()} == {
        name: layer.kept for name, layer in subnet_layers(net).items()
    }
    if kind != "edge-popup":  # counted with 32 bits a weight before, as a sign and a gain now
        assert complexity.count(loaded, x.shape[1:]) == complexity.count(net, x.shape[1:])
    save_ticket(loaded, paths[1], architecture, signs)
    assert same_content(*paths)
    has_bits = signs == "bits" or kind == "unsigned constant"  # whose signs no seed gives
    assert {f"{name}.signs" in read(paths[0])[1] for name in subnet_layers(net)} == {has_bits}


def test_a_ticket_is_saved_to_the_same_bytes_each_time(tmp_path):
    net, path, files = ticket(), tmp_path / "t", set()
    for _ in range(5):
        save_ticket(net, path, SIGNED)
        files.add(path.read_bytes())
        net = load_ticket(path)
    assert len(files) == 1


def test_another_process_computes_the_same(tmp_path):
    kinds = ("relu", "sign", "+bn", "global", "resnet")
    for kind in kinds:
        architecture, options = TICKETS[kind]
        save_ticket(ticket(architecture, **options), tmp_path / kind, architecture)
    torch.save({kind: inputs(TICKETS[kind][0]) for kind in kinds}, tmp_path / "inputs")
    script = f"""
import torch, networks
torch.manual_seed(123)
torch.set_default_dtype(torch.float64)
found, threads = {{}}, {torch.get_num_threads()}
for kind, x in torch.load("inputs", weights_only=True).items():
    net = networks.biprop.load_ticket(kind)
    for more in (0, 1):
        torch.set_num_threads(threads + more)
        found[f"{{kind}} {{more}}"] = net(x)
torch.save(found, "found")
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path, env=environment, timeout=120)
    found = torch.load(tmp_path / "found", weights_only=True)
    for kind in kinds:
        architecture, options = TICKETS[kind]
        expected = logits(ticket(architecture, **options), inputs(architecture))
        assert torch.equal(found[f"{kind} 0"], expected)
        assert (found[f"{kind} 1"] - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_loading_leaves_generators_and_default_dtype_alone(tmp_path):
    save_ticket(ticket(), tmp_path / "t", SIGNED)
    torch.set_default_dtype(torch.float64)
    try:
        before = torch.get_rng_state(), str(np.random.get_state()), random.getstate()  # noqa: NPY002
        loaded = load_ticket(tmp_path / "t")
        after = torch.get_rng_state(), str(np.random.get_state()), random.getstate()  # noqa: NPY002
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    assert torch.equal(logits(loaded, inputs(SIGNED)), logits(ticket(), inputs(SIGNED)))


def test_signs_that_the_seed_does_not_give_are_stored(tmp_path):
    net = ticket()
    layers, path = subnet_layers(net), tmp_path / "t"
    pruned = (~layers["linear.0"].mask()).nonzero()[0].tolist()
    layers["linear.0"].weight.data[*pruned] *= -1  # whose sign nobody needs
    kept = layers["linear.3"].mask().nonzero()[0].tolist()
    layers["linear.3"].weight.data[*kept] *= -1
    save_ticket(net, path, SIGNED)
    assert [name for name in read(path)[1] if name.endswith(".signs")] == ["linear.3.signs"]
    assert torch.equal(logits(load_ticket(path), inputs(SIGNED)), logits(net, inputs(SIGNED)))


def test_a_kept_weight_of_zero_stays_zero(tmp_path):
    net = ticket()
    layer = net.linear[0]
    layer.weight.data[layer.mask().nonzero()[0].tolist()] = 0
    save_ticket(net, tmp_path / "t", SIGNED)
    loaded = load_ticket(tmp_path / "t")
    assert torch.equal(loaded.linear[0].effective_weight(), layer.effective_weight())
    assert torch.equal(logits(loaded, inputs(SIGNED)), logits(net, inputs(SIGNED)))


def test_global_tickets_with_an_empty_layer(tmp_path):
    def ordinary():
        return nn.Sequential(nn.Linear(1000, 10), nn.BatchNorm1d(10), nn.Linear(10, 1000))

    torch.manual_seed(0)
    net = ordinary()
    with pytest.warns(UserWarning, match="0 keep no weight"):
        networks.biprop.apply(net, 0.1, selection="global")
    with_statistics(net)
    x, paths = torch.randn(3, 1000), [tmp_path / "1", tmp_path / "2"]
    for signs in ("seed", "bits"):
        save_ticket(net, paths[0], signs=signs)
        loaded = load_ticket(paths[0], ordinary())
        assert torch.equal(logits(loaded, x), logits(net, x))
        assert [layer.kept for layer in subnet_layers(loaded).values()] == [0, 2000]
        assert complexity.count(loaded, (1000,)) == complexity.count(net, (1000,))
        save_ticket(loaded, paths[1], signs=signs)
        assert same_content(*paths)


# What is refused.


def test_what_is_no_ticket_is_not_saved_and_spoils_no_file(tmp_path):
    path = tmp_path / "t"
    save_ticket(ticket(), path, SIGNED)
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"convs.0 keeps real weights \(edge-popup\)"):
        save_ticket(ticket(binarize="none"), path, SIGNED)
    with pytest.raises(InputError, match="the network has no masked layer"):
        save_ticket(networks.create(**SIGNED), path, SIGNED)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["t"]


SMALLEST = {"name": "conv2", "input_size": [1, 4, 4], "num_classes": 2, "args": {"width": 1 / 64, "activation": "sign"}}


def test_every_flipped_bit_is_noticed(tmp_path):
    """Also where the changed text would mean the same: 1e-20 and 1E-20, 0.30000000000000004 and 0.30000000000000005."""

    def ordinary():
        return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3), nn.Linear(3, 2))

    path, missed = tmp_path / "t", []
    net = ordinary()
    networks.biprop.apply(net, 0.5, train_bn=True)
    net[0].keep_fraction, net[3].keep_fraction = 0.1 + 0.2, 1e-20
    net[2].weight.data.neg_()  # no longer what the seed gives
    save_ticket(net, path)
    whole, plain = path.read_bytes(), ordinary()
    assert [name for name in read(path)[1] if name.endswith(".signs")] == ["2.signs"]
    with path.open("r+b") as file:
        for position, bit in itertools.product(range(len(whole)), range(8)):
            os.pwrite(file.fileno(), bytes([whole[position] ^ 1 << bit]), position)
            try:
                load_ticket(path, plain)  # which is left alone for as long as nothing is loaded
                missed, plain = [*missed, (position, bit)], ordinary()
            except InputError as error:
                assert str(path) in str(error)  # noqa: PT017, thousands of files
            os.pwrite(file.fileno(), whole[position : position + 1], position)
    assert not missed
    load_ticket(path, plain)


def test_files_that_are_cut_short_or_no_tickets(tmp_path):
    path = tmp_path / "t"
    save_ticket(ticket(SMALLEST), path, SMALLEST)
    whole = path.read_bytes()
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    for length in (0, 1, 7, 8, 9, header // 2, header - 1, header, header + 1, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match="t is cut short or damaged, copy it again"):
            load_ticket(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(InputError, match="cut short or damaged"):
        load_ticket(path)
    with pytest.raises(InputError, match=r"no ticket at .*/absent"):
        load_ticket(tmp_path / "absent")
    networks.biprop.tickets.write(path, {"weight": torch.ones(2)}, {"format": "pt"})
    with pytest.raises(InputError, match="t is no ticket"):
        load_ticket(path)


def test_a_file_makes_us_build_nothing_but_registered_networks(tmp_path, monkeypatch):
    (tmp_path / "imported_by_a_ticket.py").write_text("def net():\n    raise SystemExit\n")
    monkeypatch.syspath_prepend(tmp_path)
    net = ticket(SMALLEST)
    for architecture in ({**SMALLEST, "name": "imported_by_a_ticket.net"}, None):
        save_ticket(net, tmp_path / "t", architecture)
        with pytest.raises(InputError, match="t is a ticket of a network of your own: give it"):
            load_ticket(tmp_path / "t")
    assert "imported_by_a_ticket" not in sys.modules
    assert torch.equal(
        logits(load_ticket(tmp_path / "t", networks.create(**SMALLEST)), inputs(SMALLEST)),
        logits(net, inputs(SMALLEST)),
    )


def conv2(**arguments):
    return timm.create_model(
        "conv2", **{"width": 0.25, "activation": "sign", "in_chans": 1, "img_size": 8, **arguments}
    )


def vgg_small(activation, variant):
    return timm.create_model("vgg_small", activation=activation, variant=variant, width=0.0625, img_size=8)


def resnet20(activation="sign"):
    return timm.create_model("cifar_resnet20", activation=activation, in_chans=1)


def linears(*sizes):
    return nn.Sequential(*(nn.Linear(*size) for size in sizes))


@pytest.mark.parametrize(
    ("own", "other"),
    [
        pytest.param(conv2, lambda: conv2(width=0.5), id="width"),
        pytest.param(conv2, lambda: conv2(num_classes=11), id="classes"),
        pytest.param(conv2, lambda: conv2(in_chans=3), id="channels"),
        pytest.param(conv2, lambda: timm.create_model("conv4", in_chans=1, img_size=8), id="depth"),
        pytest.param(conv2, lambda: conv2(activation="relu"), id="no norms"),
        pytest.param(lambda: conv2(activation="relu"), conv2, id="norms"),
        pytest.param(conv2, resnet20, id="name"),
        pytest.param(lambda: vgg_small("sign", "bn"), lambda: vgg_small("relu", "full"), id="activation"),
        pytest.param(resnet20, lambda: resnet20("relu"), id="activation of a resnet"),
        pytest.param(lambda: linears((6, 4), (4, 6)), lambda: linears((4, 6), (6, 4)), id="shapes of one size"),
        pytest.param(lambda: linears((3, 2)), lambda: linears((4, 2)), id="masks of one size"),
    ],
)
def test_tickets_of_other_networks_are_refused(tmp_path, own, other):
    net = own()
    networks.biprop.apply(net, 0.3)
    save_ticket(net, tmp_path / "t")
    load_ticket(tmp_path / "t", own())
    with pytest.raises(InputError, match="t is a ticket of another network"):
        load_ticket(tmp_path / "t", other())


# Without our layers.


@pytest.mark.parametrize("kind", TICKETS)
def test_an_ordinary_network_computes_the_same_bit_for_bit(kind):
    architecture, options = TICKETS[kind]
    net, plain = ticket(architecture, **options), networks.create(**architecture)
    plain.load_state_dict(plain_state_dict(net, plain))  # strict
    x = inputs(architecture)
    assert torch.equal(logits(plain.eval(), x), logits(net, x))
    assert not subnet_layers(plain)


def test_timms_network_gets_a_bias_of_zero():
    architecture = {"name": "resnet18", "input_size": [3, 64, 64], "num_classes": 7}
    net, plain = ticket(architecture, train_bn=True), networks.create(**architecture)
    plain.load_state_dict(plain_state_dict(net, plain))
    assert plain.fc.bias.tolist() == [0] * 7
    assert torch.allclose(logits(plain.eval(), inputs(architecture)), logits(net, inputs(architecture)), atol=1e-6)


def test_dense_layers_are_exported_with_their_bias():
    torch.manual_seed(0)
    net, plain = (nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)) for _ in "12")
    networks.biprop.apply(net, 0.5, dense_first=True, dense_last=True)
    plain.load_state_dict(plain_state_dict(net, plain))
    assert torch.equal(plain[0].bias, net[0].bias)
    x = torch.randn(6, 5)
    assert torch.allclose(logits(plain, x), logits(net.eval(), x), atol=1e-6)


def pairs(net):
    """Masked layers with the batch normalisation behind them, and whether max pooling stands between."""
    layers = [*net.convs, *net.linear]
    for i, layer in enumerate(layers):
        for pooled, norm in ((False, layers[i + 1 : i + 2]), (True, layers[i + 2 : i + 3])):
            if norm and isinstance(norm[0], nn.modules.batchnorm._BatchNorm) and hasattr(layer, "scores"):
                yield layer, norm[0], pooled


@pytest.mark.parametrize("train_bn", [False, True])
@pytest.mark.parametrize("options", [{}, {"selection": "global"}, {"gain_count": "floor_kn", "keep_fraction": 0.1}])
def test_folded_layers_compute_the_same(train_bn, options):
    net, found = ticket(train_bn=train_bn, **options), []
    for layer, norm, pooled in pairs(net):
        ternary, scale, shift = fold(layer, norm)
        assert (ternary.dtype, ternary.shape, scale.shape, shift.shape) == (
            torch.int8, layer.weight.shape, norm.running_mean.shape, norm.running_mean.shape
        )  # fmt: skip
        assert torch.equal(ternary.sign(), layer.effective_weight().sign())
        assert set(ternary.unique().tolist()) <= {-1, 0, 1}
        x = (
            torch.randn(4, layer.weight[0].numel())
            if layer.weight.ndim == 2
            else torch.randn(4, layer.in_channels, 8, 8)
        )
        pool = (lambda y: F.max_pool2d(y, 2)) if pooled else (lambda y: y)
        plain = F.linear(x, ternary.float()) if layer.weight.ndim == 2 else F.conv2d(x, ternary.float(), padding=1)
        shape = (-1,) if layer.weight.ndim == 2 else (-1, 1, 1)
        with torch.no_grad():
            expected, folded = norm(pool(layer(x))), scale.view(shape) * pool(plain) + shift.view(shape)
        assert expected.std() > 0.1
        assert (folded - expected).abs().max() <= 1e-5 * expected.abs().max()
        found.append((layer.weight.ndim, pooled))
    assert found == [(4, False), (4, True), (2, False), (2, False)]


def test_normalisation_without_running_statistics_cannot_be_folded():
    layer = networks.biprop.SubnetLinear(3, 2)
    with pytest.raises(InputError, match="without running statistics cannot be folded"):
        fold(layer, nn.BatchNorm1d(2, track_running_stats=False))


def test_the_bias_of_a_masked_layer_is_folded_too():
    torch.manual_seed(0)
    layer = networks.biprop.SubnetLinear(5, 3, bias=True)
    nn.init.normal_(layer.bias)
    norm, x = with_statistics(nn.BatchNorm1d(3)), torch.randn(4, 5)
    ternary, scale, shift = fold(layer, norm)
    assert torch.allclose(scale * (x @ ternary.float().T) + shift, norm(layer(x)), atol=1e-5)


def as_int(positive):
    """Bool tensor -> an integer with a bit for each entry."""
    return int.from_bytes(bits.pack(positive).numpy().tobytes(), "little")


@pytest.mark.parametrize("k", [0.1, 0.5, 1.0])
def test_a_binary_layer_is_popcounts_and_a_threshold(k):
    """dot = 2 * (agreements on kept positions) - (kept count); zero padding is in neither, spec 10 path 3."""
    torch.manual_seed(0)
    layer, norm = networks.biprop.SubnetConv2d(3, 4, 3, padding=1, keep_fraction=k), nn.BatchNorm2d(4)
    layer, norm = with_statistics(nn.Sequential(layer, norm))
    ternary, scale, shift = fold(layer, norm)
    x = torch.randint(0, 2, (2, 3, 5, 4)).float() * 2 - 1
    patches, inside = F.unfold(x, 3, padding=1), F.unfold(torch.ones(1, 3, 5, 4), 3, padding=1)[0] > 0
    weights = ternary.flatten(1)
    dots, counts = torch.empty(2, 4, 20), torch.empty(4, 20)
    for channel in range(4):
        signs, kept = as_int(weights[channel] > 0), as_int(weights[channel] != 0)
        for position in range(20):
            here = kept & as_int(inside[:, position])
            counts[channel, position] = here.bit_count()
            for image in range(2):
                agreements = (~(as_int(patches[image, :, position] > 0) ^ signs) & here).bit_count()
                dots[image, channel, position] = 2 * agreements - here.bit_count()
    dots, counts = dots.view(2, 4, 5, 4), counts.view(4, 5, 4)
    nonzero = ternary != 0
    assert torch.equal(counts[:, 0, 0], nonzero[:, :, 1:, 1:].sum((1, 2, 3)).float())
    assert torch.equal(counts[:, 4, 2], nonzero[:, :, :2].sum((1, 2, 3)).float())
    assert torch.equal(counts[:, 2, 3], nonzero[:, :, :, :2].sum((1, 2, 3)).float())
    assert torch.equal(counts[:, 2, 2], nonzero.sum((1, 2, 3)).float())
    assert torch.equal(dots, F.conv2d(x, ternary.float(), padding=1))
    with torch.no_grad():
        assert torch.allclose(layer(x), layer.gain() * dots, atol=1e-6)
        # sign(scale * dot + shift) is a comparison of the integer with -shift / scale, turned round where scale < 0.
        threshold, turned = (-shift / scale).view(-1, 1, 1), scale.sign().view(-1, 1, 1)
        assert bool((turned < 0).any())
        assert torch.equal(norm(layer(x)).sign(), turned * (dots - threshold).sign())


def test_copies_of_a_loaded_ticket_stand_alone(tmp_path):
    save_ticket(ticket(), tmp_path / "t", SIGNED)
    loaded = load_ticket(tmp_path / "t")
    twin, x = copy.deepcopy(loaded), inputs(SIGNED)
    before = logits(loaded, x)
    twin.linear[0].scores.data.zero_()
    assert not torch.equal(logits(twin, x), before)
    assert torch.equal(logits(loaded, x), before)


def test_edge_popups_real_weights_cannot_be_folded():
    layer = networks.biprop.SubnetLinear(3, 2, binarize="none")
    with pytest.raises(InputError, match="keeps real weights"):
        fold(layer, nn.BatchNorm1d(2))


def test_another_ordinary_network_is_refused():
    net = ticket(CONV2)
    for other in ({**CONV2, "args": {"width": 0.5}}, {**CONV2, "name": "conv4"}, SIGNED):
        with pytest.raises(InputError, match=r"is another than the ticket's: .* differs"):
            plain_state_dict(net, networks.create(**other))


def test_layers_that_stand_in_two_places(tmp_path):
    def tied():
        layer = nn.Linear(6, 6)
        return nn.Sequential(layer, nn.ReLU(), layer, nn.ReLU(), nn.Linear(6, 3))

    torch.manual_seed(0)
    net, x = tied(), torch.randn(4, 6)
    assert networks.biprop.apply(net, 0.5) == ["0", "2", "4"]
    assert net[0] is net[2]
    save_ticket(net.eval(), tmp_path / "t")
    assert torch.equal(logits(load_ticket(tmp_path / "t", tied()), x), logits(net, x))
    plain = tied()
    plain.load_state_dict(plain_state_dict(net, plain))
    assert torch.allclose(logits(plain, x), logits(net, x), atol=1e-6)
    net = tied()
    assert networks.biprop.apply(net, 0.5, dense_first=True) == ["4"]
    assert type(net[0]) is nn.Linear
    assert net[0] is net[2]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_tickets_of_other_dtypes(tmp_path, dtype):
    net, x = ticket().to(dtype), inputs(SIGNED).to(dtype)
    save_ticket(net, tmp_path / "t", SIGNED)
    assert torch.equal(logits(load_ticket(tmp_path / "t"), x), logits(net, x))


def test_a_loaded_ticket_in_half_precision(tmp_path):
    """More kept weights than float16 can count."""
    architecture = {"name": "conv2", "input_size": [1, 8, 8], "num_classes": 10}
    save_ticket(ticket(architecture, 0.5), tmp_path / "t", architecture)
    loaded, x = load_ticket(tmp_path / "t"), inputs(architecture)
    assert max(layer.kept for layer in subnet_layers(loaded).values()) > 65_504
    assert torch.allclose(logits(loaded.half(), x.half()).float(), logits(ticket(architecture, 0.5), x), atol=0.02)


def test_wrong_arguments(tmp_path):
    with pytest.raises(InputError, match="signs is one of seed, bits; got 'none'"):
        save_ticket(ticket(), tmp_path / "t", signs="none")
    with pytest.raises(InputError, match=r"arguments of networks\.create, name and input_size"):
        save_ticket(ticket(), tmp_path / "t", {"network": "conv2"})
    for place in (tmp_path, tmp_path / "absent" / "t"):
        with pytest.raises(InputError, match="cannot be written"):
            save_ticket(ticket(), place)
    assert [*tmp_path.parent.glob(f"{tmp_path.name}.*"), *tmp_path.iterdir()] == []
