"""ExpertBinary in its four steps, against sections 6, 10.2 and 11 of the spec."""

import math
from types import SimpleNamespace

import pytest
import timm
import torch
from pytorch_lightning import Callback, Trainer, seed_everything
from pytorch_lightning.loggers import CSVLogger
from runs import Stop, same, without_hours
from torch import nn

from callbacks import Distillation, ExactResume, LastCheckpoint, LayerMonitor, TrainingCurves
from datamodules import Digits
from lightning_modules import Biprop, Classifier, ExpertBinary
from networks import InputError
from networks.expert_binary import STEPS, layers, routed

NET = dict(blocks=[1, 1, 1, 1], expansion=0.125, groups=[1, 1, 2, 2], stem="cifar", deep=False)
ORDERS = {  # of steps that may begin with the weights of others: those before, by whether there is more than one expert
    True: {
        "fp": ("fp",),
        "one_expert": ("fp", "one_expert"),
        "experts": ("one_expert", "experts"),
        "binary": ("experts", "binary"),
    },
    False: {"fp": ("fp",), "one_expert": ("fp", "one_expert"), "binary": ("one_expert", "binary")},
}
REFUSED = [
    *((before, 4, step, 4) for step, fit in ORDERS[True].items() for before in STEPS if before not in fit),
    *((before, 1, step, 1) for step, fit in ORDERS[False].items() for before in ORDERS[False] if before not in fit),
    ("one_expert", 1, "binary", 4),
    ("experts", 4, "binary", 1),
]


def build(step, num_experts=4, seed=0, network_args=NET, **options):
    torch.manual_seed(seed)
    return ExpertBinary(
        "expert_binary_resnet", 10, (1, 8, 8), network_args, step=step, num_experts=num_experts, **options
    )


def build_tiny(step, num_experts=4, **options):
    """Much quicker to build: one convolution to replace."""
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3), nn.Flatten(), nn.Linear(32, 10))
    return ExpertBinary(net, 10, (1, 8, 8), step=step, num_experts=num_experts, **options)


@pytest.fixture(autouse=True, scope="module")
def _undrawn():
    """tests/callbacks/test_layer_monitor.py looks at the pictures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("callbacks.layer_monitor.draw", lambda *args: None)
        yield


def fit(module, folder, callbacks=(), resume=None, data=None, **options):
    """A short run, and the trainer that has it."""
    given = dict(max_epochs=1, limit_train_batches=3, limit_val_batches=1, logger=False, enable_checkpointing=False)
    trainer = Trainer(
        default_root_dir=folder, enable_progress_bar=False, enable_model_summary=False, callbacks=list(callbacks),
        **{**given, **options},
    )  # fmt: skip
    trainer.fit(module, datamodule=data or Digits(), ckpt_path=resume, weights_only=True)
    return trainer


def trained(step, num_experts, path, **options):
    """State before and after a short run whose checkpoint is at `path`."""
    module = build(step, num_experts, **options)
    before = copy(module)
    fit(module, path.parent).save_checkpoint(path)
    return before, copy(module)


def written(module, path):
    """A checkpoint of a module that never trained."""
    checkpoint = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    module.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, path)
    return str(path)


def copy(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def inputs(n=32):
    """Images whose channels have averages of their own, or all would go to one expert."""
    generator = torch.Generator().manual_seed(2)
    return torch.randn(n, 1, 8, 8, generator=generator) + 2 * torch.randn(n, 1, 1, 1, generator=generator)


def choices(module):
    """Expert of each sample in each layer, by forward hooks: filled by every forward."""
    seen = {}
    for name, layer in module.layers.items():
        layer.gate.register_forward_hook(lambda _, args, phi, name=name: seen.update({name: phi.argmax(-1)}))
    return seen


@pytest.fixture(scope="module")
def one_expert(tmp_path_factory):
    """Runs of step one_expert, by the number of experts: path, state before, state after."""
    folder = tmp_path_factory.mktemp("one_expert")
    return {n: (folder / f"{n}.ckpt", *trained("one_expert", n, folder / f"{n}.ckpt")) for n in (1, 4)}


@pytest.fixture(scope="module")
def experts(one_expert, tmp_path_factory):
    """A run of step experts that began with one: path, state after."""
    path = tmp_path_factory.mktemp("experts") / "last.ckpt"
    start = str(one_expert[4][0])
    _, after = trained("experts", 4, path, initial_checkpoint=start, optimizer=lambda p: torch.optim.AdamW(p, lr=0.05))
    return path, after


@pytest.mark.parametrize("n", [1, 4])
def test_one_expert_becomes_all_and_nothing_else_changes(one_expert, n, capsys):
    path, before, after = one_expert[n]
    single = build("one_expert", n, seed=1)
    single.load_state_dict(after)
    module = build("experts", 4, seed=2, initial_checkpoint=str(path))
    as_built = copy(module)
    module.load_initial()
    assert module.initial_checkpoint is None
    now = copy(module)
    kernels = {f"network.{name}.weight" for name in module.layers}
    gates = {name for name in now if ".gate." in name}
    assert len(kernels) == 8
    assert len(gates) == 16
    for name in kernels:
        assert now[name].shape[0] == 4
        assert all(torch.equal(expert, after[name][0]) for expert in now[name])
        assert not torch.equal(after[name][0], before[name][0])
    for name in gates:  # with N experts the run before has them, untouched: they are as built there
        assert torch.equal(now[name], as_built[name] if n == 1 else before[name])
    rest = now.keys() - kernels - gates
    assert all(torch.equal(now[name], after[name]) for name in rest)
    assert now.keys() - gates == after.keys() - gates
    chosen = choices(module)
    x = inputs().double()
    with torch.no_grad():
        logits, expected = module.double().eval()(x), single.double().eval()(x)
    assert torch.allclose(logits, expected, rtol=1e-10, atol=1e-10)
    assert logits.std() > 0.1
    assert sum(len(set(winners.tolist())) > 1 for winners in chosen.values()) >= 4
    for name in kernels:  # copies of their own, not views of one
        expert = module.get_parameter(name)
        with torch.no_grad():
            expert[1].zero_()
        assert expert[0].abs().sum() > 0


def test_the_report_says_what_was_copied(one_expert, monkeypatch):
    said = []
    monkeypatch.setattr("lightning_modules.task.rank_zero_info", said.append)
    for n, missing in ((1, ["  not in it, as built: 16, such as network.layer1.0.units.0.conv.gate.bias"]), (4, [])):
        build("experts", 4, initial_checkpoint=str(one_expert[n][0])).load_initial()
        first, *lines = said.pop().splitlines()
        total = len(one_expert[4][1])
        assert first == f"{total - 16 * (n == 1)} of {total} tensors start from {one_expert[n][0]}"
        assert [line.split(", network.layer1.0.units.0.conv.gate.w")[0] for line in lines] == [
            *missing,
            "  the one expert of each layer is now in all 4",
        ]


def test_experts_start_from_experts_as_they_are(experts):
    path, after = experts
    assert all(
        not torch.equal(tensor[0], tensor[1]) for name, tensor in after.items() if name.endswith("conv.weight")
        if tensor.ndim == 5
    )  # fmt: skip
    module = build("experts", seed=5, initial_checkpoint=str(path))
    module.load_initial()
    assert same(copy(module), after)


def test_a_resumed_run_keeps_its_different_experts(one_expert, experts, tmp_path):
    """Also where the config still names the checkpoint that it began with."""
    seen = []

    class Look(Callback):
        def on_train_start(self, trainer, module):
            seen.append(copy(module))

    start = str(one_expert[4][0])
    optimizer = lambda p: torch.optim.AdamW(p, lr=0.05)  # noqa: E731
    module = build("experts", seed=6, initial_checkpoint=start, optimizer=optimizer)
    fit(module, tmp_path, [Look()], resume=experts[0], max_epochs=2)
    assert same(seen[0], experts[1])
    assert not same(copy(module), experts[1])


class Kernels:
    """In place of torch.nn.functional in the layers: keeps what binary convolutions multiply."""

    def __init__(self, monkeypatch):
        self.seen = []
        for module in (layers, routed):
            monkeypatch.setattr(module, "F", SimpleNamespace(conv2d=self.conv2d))

    def conv2d(self, x, kernel, *args):
        self.seen.append((x.detach(), kernel.detach()))
        return nn.functional.conv2d(x, kernel, *args)


def signs(tensor):
    return torch.where(tensor >= 0, 1.0, -1.0)


def test_from_experts_to_binary_no_parameter_changes_and_kernels_are_signs(experts, monkeypatch):
    path, after = experts
    module = build("binary", seed=7, initial_checkpoint=str(path))
    module.load_initial()
    assert same(copy(module), after)
    chosen, seen = choices(module), Kernels(monkeypatch).seen
    for training in (True, False):
        seen.clear()
        with torch.no_grad():
            module.train(training)(inputs())
        assert len(module.layers) == 8
        assert {layer.step for layer in module.layers.values()} == {"binary"}
        # One convolution for each expert in use, in their order.
        used = [(name, expert) for name in module.layers for expert in chosen[name].unique().tolist()]
        for (x, kernel), (name, expert) in zip(seen, used, strict=True):
            assert set(x.unique().tolist()) == set(kernel.unique().tolist()) == {-1, 1}
            assert torch.equal(kernel, signs(after[f"network.{name}.weight"][expert]))
    assert sum(len(set(winners.tolist())) > 1 for winners in chosen.values()) >= 4
    before = build("experts", seed=8)
    before.load_state_dict(after)
    seen.clear()
    with torch.no_grad():
        before.eval()(inputs())
    assert len(seen) >= 8
    assert all(set(x.unique().tolist()) == {-1, 1} and kernel.unique().numel() > 100 for x, kernel in seen)


def test_one_expert_becomes_binary_where_there_is_one(one_expert, monkeypatch):
    path, _, after = one_expert[1]
    module = build("binary", 1, seed=7, initial_checkpoint=str(path))
    module.load_initial()
    assert same(copy(module), after)
    assert not any("gate" in name for name in after)
    seen = Kernels(monkeypatch).seen
    with torch.no_grad():
        module(inputs())
    for (x, kernel), name in zip(seen, module.layers, strict=True):
        assert set(x.unique().tolist()) == {-1, 1}
        assert torch.equal(kernel, signs(after[f"network.{name}.weight"][0]))


def test_every_order_that_fits_is_taken(tmp_path):
    for several, fitting in ORDERS.items():
        n = 4 if several else 1
        for step, befores in fitting.items():
            for before in befores:
                source = build_tiny(before, n)
                module = build_tiny(step, n, initial_checkpoint=written(source, tmp_path / "before.ckpt"))
                module.load_initial()
                replicated = (before, step) == ("one_expert", "experts")
                for name, tensor in source.state_dict().items():
                    expected = tensor[:1].expand_as(tensor) if replicated and tensor.ndim == 5 else tensor
                    assert torch.equal(module.state_dict()[name], expected)


@pytest.mark.parametrize(("before", "n_before", "step", "n"), REFUSED)
def test_wrong_orders_are_refused_in_one_line(tmp_path, before, n_before, step, n):
    path = written(build_tiny(before, n_before), tmp_path / "before.ckpt")
    module = build_tiny(step, n, initial_checkpoint=path)
    as_built = copy(module)
    fitting = " or ".join(map(repr, ORDERS[n > 1][step]))
    with pytest.raises(InputError) as error:
        module.load_initial()
    assert str(error.value) == (
        f"{path} is of step {before!r}: step {step!r} of a network with {n} experts starts from {fitting}"
    )
    assert same(copy(module), as_built)


@pytest.mark.parametrize(("before", "step"), [("experts", "experts"), ("experts", "binary"), ("fp", "one_expert")])
def test_another_number_of_experts_is_refused_where_none_are_copied(tmp_path, before, step):
    written(build_tiny(before, 2), tmp_path / "two.ckpt")
    with pytest.raises(InputError, match=r"two.ckpt has num_experts=2, not 4: only 'experts' multiplies them") as error:
        build_tiny(step, 4, initial_checkpoint=str(tmp_path / "two.ckpt")).load_initial()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("method", [Biprop, Classifier])
@pytest.mark.parametrize("step", STEPS)
def test_checkpoints_of_other_methods_are_refused_in_one_line(tmp_path, method, step):
    path = written(method("conv2", 10, (1, 8, 8), {"width": 0.1}), tmp_path / "other.ckpt")
    with pytest.raises(InputError) as error:
        build_tiny(step, initial_checkpoint=path).load_initial()
    line = str(error.value)
    assert line.startswith(f"{path} is of {method.__name__}: step {step!r} of a network with 4 experts starts from ")
    assert "\n" not in line


def test_a_plain_state_dict_is_taken_as_it_is(one_expert, tmp_path):
    _, _, after = one_expert[4]
    torch.save(after, tmp_path / "module.pt")
    torch.save({name.removeprefix("network."): tensor for name, tensor in after.items()}, tmp_path / "network.pt")
    for name in ("module.pt", "network.pt"):
        module = build("experts", seed=3, initial_checkpoint=str(tmp_path / name))
        module.load_initial()
        assert same(copy(module), after)
        assert all(not torch.equal(layer.weight[0], layer.weight[1]) for layer in module.layers.values())
    torch.save(one_expert[1][2], tmp_path / "single.pt")
    module = build("experts", seed=3, initial_checkpoint=str(tmp_path / "single.pt"))
    as_built = copy(module)
    module.load_initial()
    for name, tensor in module.state_dict().items():
        expected = as_built[name] if ".gate." in name else one_expert[1][2][name]
        assert torch.equal(tensor, expected.expand_as(tensor) if tensor.ndim == 5 else expected)


@pytest.mark.parametrize("step", ["experts", "binary"])
def test_experts_that_would_stay_as_built_are_refused(tmp_path, step):
    other = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Conv2d(3, 3, 3), nn.Flatten(), nn.Linear(48, 10))
    path = written(ExpertBinary(other, 10, (1, 8, 8), step="experts"), tmp_path / "other.ckpt")
    with pytest.raises(InputError, match=r"of another network: it has no weights for the experts of 1\.1$"):
        build_tiny(step, initial_checkpoint=path).load_initial()


def test_options_for_experts_that_a_network_brings_are_refused():
    net = layers.ExpertBinaryConv2d(1, 4, 3, num_experts=2)
    network = nn.Sequential(net, nn.Flatten(), nn.Linear(144, 10))
    ExpertBinary(network, 10, (1, 8, 8), step="experts")
    with pytest.raises(InputError, match="give num_experts, rescale to it"):
        ExpertBinary(network, 10, (1, 8, 8), num_experts=8, rescale=True)


def test_saving_leaves_the_counts_of_the_epoch_alone(monkeypatch):
    module = build_tiny("experts")
    module(torch.randn(6, 1, 8, 8))
    (gate,) = [layer.gate for layer in module.layers.values()]
    before = gate.counts.clone()
    strategy = SimpleNamespace(reduce=lambda tensor, reduce_op: tensor.mul_(2))  # two processes, in place as DDP's
    monkeypatch.setattr(module, "_trainer", SimpleNamespace(strategy=strategy))
    monkeypatch.setattr(ExpertBinary, "trainer", property(lambda self: self._trainer))
    checkpoint = {}
    module.on_save_checkpoint(checkpoint)
    assert torch.equal(gate.counts, before)
    assert torch.equal(next(iter(checkpoint["expert_binary"]["counts"].values())), 2 * before)
    monkeypatch.undo()
    module.to("meta")(torch.randn(4, 1, 8, 8, device="meta"))  # counts follow the device


def test_refusals_when_built():
    with pytest.raises(InputError, match=r"with num_experts=1 there is no step 'experts': 'binary' follows 'one_expe"):
        build("experts", 1)
    for name, value in (
        ("num_experts", 2), ("temperature", 1.0), ("gate_grad", "softmax"), ("routing", "winner"), ("rescale", False)
    ):  # fmt: skip
        with pytest.raises(InputError, match=f"^network_args has {name}: give model.{name} instead$"):
            build("binary", network_args={**NET, name: value})
    with pytest.raises(InputError, match=r"^network_args has num_experts, rescale: give model.num_experts instead$"):
        build("binary", network_args={**NET, "rescale": True, "num_experts": 2})
    with pytest.raises(InputError, match="step is one of fp, one_expert, experts, binary; got 'stage2'"):
        build("stage2")
    with pytest.raises(InputError, match="fp_activation is one of identity, tanh; got 'relu'"):
        build("fp", fp_activation="relu")
    with pytest.raises(InputError, match="temperature=0"):
        build("binary", temperature=0)
    with pytest.raises(InputError, match="num_experts=0: a layer has at least one"):
        build("binary", 0)


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10)),
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 10)),  # the first layer stays real
    ],
)
def test_a_network_without_a_convolution_to_replace_is_refused(network):
    with pytest.raises(InputError) as error:
        ExpertBinary(network, 10, (1, 8, 8))
    assert str(error.value) == "the network has no inner nn.Conv2d to replace: Classifier trains it as it is"


@pytest.mark.parametrize("step", STEPS)
def test_options_reach_every_layer(step):
    options = dict(temperature=0.3, gate_grad="sigmoid", routing="mixture", rescale=True)
    conv4 = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 10))
    for module in (
        build(step, 3, fp_activation="tanh", **options),
        ExpertBinary(conv4, 10, (1, 8, 8), step=step, num_experts=3, fp_activation="tanh", **options),
    ):
        found = module.layers.values()
        assert len(found) in (1, 8)
        assert {
            (layer.step, layer.fp_activation, layer.num_experts, layer.routing, layer.rescale is not None)
            for layer in found
        } == {(step, "tanh", 3, "mixture", True)}
        assert {(layer.gate.temperature, layer.gate.gradient, layer.gate.routing) for layer in found} == {
            (0.3, "sigmoid", "mixture")
        }


def test_a_network_of_timm_is_trained_by_surgery(tmp_path):
    torch.manual_seed(0)
    args = {"zero_init_last": False}  # else the first step trains nothing inside the blocks
    module = ExpertBinary("resnet18", 10, (1, 8, 8), args, step="binary", num_experts=2)
    plain = {name for name, layer in timm.create_model("resnet18").named_modules() if isinstance(layer, nn.Conv2d)}
    real = {name for name in plain if name == "conv1" or "downsample" in name}
    assert {name.removesuffix(".1") for name in module.layers} == plain - real
    assert len(module.layers) == 16
    before = copy(module)
    trainer = Trainer(
        max_epochs=1, limit_train_batches=1, limit_val_batches=0, default_root_dir=tmp_path, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=Digits(batch_size=4))
    after = module.state_dict()
    for name, layer in module.layers.items():
        used = layer.gate.counts
        assert used.sum() == 4
        moved = [(after[f"network.{name}.weight"][i] != before[f"network.{name}.weight"][i]).any() for i in range(2)]
        assert moved == (used > 0).tolist()  # no decay moves an expert that nobody chose
    assert module(inputs(3)).shape == (3, 10)


@pytest.mark.parametrize("step", STEPS)
def test_weights_decay_in_all_steps_but_the_last(tmp_path, step):
    module = build(step, rescale=True)
    gates = {name: p.clone() for name, p in module.named_parameters() if ".gate." in name}
    groups = fit(module, tmp_path, limit_train_batches=1).optimizers[0].param_groups
    optimised = [id(p) for group in groups for p in group["params"]]
    named = {id(p): name for name, p in module.named_parameters()}
    assert len(optimised) == len(set(optimised))
    assert [group["weight_decay"] for group in groups] == [0.0 if step == "binary" else 1e-2]
    bypassed = step in ("fp", "one_expert")
    assert named.keys() - set(optimised) == ({i for i, name in named.items() if name in gates} if bypassed else set())
    assert len(gates) == 16
    for name, tensor in gates.items():
        assert module.get_parameter(name).requires_grad != bypassed
        assert torch.equal(module.get_parameter(name), tensor) == bypassed


def test_a_checkpoint_of_another_step_is_neither_tested_nor_resumed(experts, tmp_path):
    path = experts[0]
    quiet = dict(logger=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path)
    line = "the checkpoint was trained with step=experts, this model has binary; give the config that it was trained"
    with pytest.raises(InputError, match=line):
        Trainer(**quiet).test(build("binary"), datamodule=Digits(), ckpt_path=path, weights_only=True)
    with pytest.raises(InputError, match=line):
        Trainer(max_epochs=2, **quiet).fit(build("binary"), datamodule=Digits(), ckpt_path=path, weights_only=True)
    checkpoint = torch.load(path, weights_only=True)
    for options, message in [
        (dict(num_experts=3), "num_experts=4, this model has 3"),
        (dict(routing="mixture"), "routing=winner, this model has mixture"),
        (dict(rescale=True), "rescale=False, this model has True"),
        (dict(network_args={**NET, "deep": True}), "network_args="),
    ]:
        with pytest.raises(InputError, match=f"^the checkpoint was trained with {message}"):
            build("experts", **options).on_load_checkpoint(checkpoint)
    build("experts").on_load_checkpoint(checkpoint)
    loaded = ExpertBinary.load_from_checkpoint(path, weights_only=True)
    assert same(copy(loaded), experts[1])
    assert {layer.step for layer in loaded.layers.values()} == {"experts"}


class Count(Callback):
    """By hand: samples of training for each expert in each epoch, and signs around it."""

    def __init__(self):
        self.epochs, self.signs = [], []

    def signs_of(self, module):
        return {name: layer.weight.detach() >= 0 for name, layer in module.layers.items()}

    def on_train_start(self, trainer, module):
        self.signs.append(self.signs_of(module))
        for name, layer in module.layers.items():
            if layer.gate is not None:
                layer.gate.register_forward_hook(lambda gate, args, phi, name=name: self.add(gate, name, phi))

    def add(self, gate, name, phi):
        if gate.training:
            counts = self.epochs[-1].setdefault(name, [0] * phi.shape[1])
            for expert in phi.argmax(-1).tolist():
                counts[expert] += 1

    def on_train_epoch_start(self, trainer, module):
        self.epochs.append({})

    def on_train_epoch_end(self, trainer, module):
        self.signs.append(self.signs_of(module))


def monitored(module, folder, **options):
    """Rows of LayerMonitor, and those counted by hand."""
    count = Count()
    trainer = fit(module, folder, [count], max_epochs=2, limit_train_batches=4, logger=CSVLogger(folder), **options)
    return next(callback for callback in trainer.callbacks if isinstance(callback, LayerMonitor)).history, count


def fast(parameters):
    return torch.optim.Adam(parameters, lr=0.03)


@pytest.mark.parametrize(("step", "routing"), [("experts", "winner"), ("binary", "winner"), ("binary", "mixture")])
def test_shares_entropy_and_flips_are_those_counted_by_hand(tmp_path, step, routing):
    module = build(step, 3, optimizer=fast, routing=routing)
    history, count = monitored(module, tmp_path)
    assert len(history) == len(count.epochs) == 2
    names = {f"expert_{i}_share" for i in range(3)}
    several = 0
    for row, counts, before, after in zip(history, count.epochs, count.signs[:-1], count.signs[1:], strict=True):
        assert row.keys() == {"weight_flips", "expert_entropy"} | names
        for metric in row.values():
            assert metric.keys() == module.layers.keys() == counts.keys()
        for name, per_expert in counts.items():
            assert sum(per_expert) == 4 * 32
            shares = [row[f"expert_{i}_share"][name] for i in range(3)]
            assert shares == [n / 128 for n in per_expert]
            assert sum(shares) == pytest.approx(1, abs=1e-12)
            entropy = -sum(n / 128 * math.log(n / 128, 2) for n in per_expert if n)
            assert row["expert_entropy"][name] == pytest.approx(entropy, abs=1e-12)
            several += sum(n > 0 for n in per_expert) > 1
            assert row["weight_flips"][name] == (before[name] != after[name]).double().mean().item()
        assert sum(row["weight_flips"].values()) > 0
    assert several >= 4


@pytest.mark.parametrize(("step", "n"), [("fp", 4), ("one_expert", 4), ("one_expert", 1), ("binary", 1)])
def test_without_a_gate_there_are_flips_alone_of_the_one_expert(tmp_path, step, n):
    module = build(step, n, optimizer=fast)
    history, count = monitored(module, tmp_path)
    for row, before, after in zip(history, count.signs[:-1], count.signs[1:], strict=True):
        assert row.keys() == {"weight_flips"}
        assert row["weight_flips"] == {
            name: (before[name][0] != after[name][0]).double().mean().item() for name in module.layers
        }
    assert sum(history[0]["weight_flips"].values()) > 0
    assert all(layer.gate is None or layer.gate.counts is None for layer in module.layers.values())


def test_entropy_by_hand_and_counts_begin_anew():
    module = build("binary", 4)
    assert module.layer_metrics()["weight_flips"] == dict.fromkeys(module.layers, 0.0)
    first, second, *rest = module.layers.values()
    first.gate.counts = torch.tensor([2, 2, 4, 0])
    second.gate.counts = torch.tensor([0, 7, 0, 0])
    first_name, second_name, *_ = module.layers
    with torch.no_grad():
        first.weight[3, 0, 0, 0, 0].neg_()
    metrics = module.layer_metrics()
    assert metrics["expert_entropy"][first_name] == 1.5
    assert metrics["expert_entropy"][second_name] == 0
    assert [metrics[f"expert_{i}_share"][first_name] for i in range(4)] == [0.25, 0.25, 0.5, 0]
    assert metrics["weight_flips"][first_name] == 1 / first.weight.numel()
    assert metrics["weight_flips"][second_name] == 0
    assert all(layer.gate.counts is None for layer in (first, second, *rest))
    assert module.layer_metrics()["expert_0_share"] == dict.fromkeys(module.layers, 0.0)


def run(folder, start, stop=None, resume=False):
    """Weights, curves and the monitor's history of a run with mixtures of images, three epochs of four steps."""
    seed_everything(0)
    callbacks = [ExactResume(), LastCheckpoint(folder / "checkpoints"), TrainingCurves()]
    step = "binary" if "experts" in str(start.parent) else "experts"
    module = build(step, 4, initial_checkpoint=str(start), mixup_alpha=0.4, optimizer=fast)
    with pytest.raises(SystemExit) if stop else torch.enable_grad():
        trainer = fit(
            module, folder, callbacks + ([Stop(stop)] if stop else []), max_epochs=3, limit_train_batches=4,
            logger=CSVLogger(folder, "", ""), enable_checkpointing=True,
            resume=folder / "checkpoints/last.ckpt" if resume else None,
        )  # fmt: skip
    if stop:
        return None
    monitor = next(callback for callback in trainer.callbacks if isinstance(callback, LayerMonitor))
    curves = without_hours(callbacks[2].history)
    return copy(module), curves, monitor.history, trainer.optimizers[0].state_dict()["state"]


@pytest.fixture(scope="module")
def uninterrupted(one_expert, experts, tmp_path_factory):
    starts = {"experts": one_expert[1][0], "binary": experts[0]}
    return {step: (start, run(tmp_path_factory.mktemp(f"to_{step}"), start)) for step, start in starts.items()}


@pytest.mark.parametrize(  # inside the first epoch, at its end, and inside the next
    ("step", "stop"), [("experts", 2), ("experts", 4), ("experts", 6), ("binary", 6)]
)
def test_a_resumed_run_is_the_one_that_was_not_interrupted(tmp_path, uninterrupted, step, stop):
    start, whole = uninterrupted[step]
    assert len(whole[1]) == len(whole[2]) == 3
    run(tmp_path, start, stop)
    assert same(run(tmp_path, start, resume=True), whole)


def test_a_small_network_learns_digits_in_all_steps(tmp_path):
    """With rescale and teachers, as the paper's marked rows: about 200 steps of 64 images."""
    network = dict(blocks=[1, 1, 1, 1], expansion=0.25, groups=[4, 4, 4, 4], stem="cifar", deep=False)
    path, top1 = None, {}
    for step, epochs in (("fp", 2), ("one_expert", 2), ("experts", 3), ("binary", 4)):
        losses = []

        class Losses(Callback):
            def on_train_epoch_end(self, trainer, module, losses=losses):
                losses.append(trainer.callback_metrics["train/loss"].item())

        seed_everything(0)
        module = build(
            step, 2, network_args=network, rescale=True, initial_checkpoint=path,
            optimizer=lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.01),
        )  # fmt: skip
        teacher = {"one_expert": "fp", "experts": "fp", "binary": "experts"}.get(step)
        weight = 0 if step == "binary" else 1000
        callbacks = [Distillation(checkpoint=str(tmp_path / teacher), attention_weight=weight)] if teacher else []
        trainer = fit(
            module, tmp_path, [*callbacks, Losses()], data=Digits(64), max_epochs=epochs, limit_train_batches=1.0,
            limit_val_batches=1.0,
        )  # fmt: skip
        path = str(tmp_path / step)
        trainer.save_checkpoint(path)
        top1[step] = trainer.callback_metrics["val/top1"].item()
        assert losses[-1] < 0.6 * losses[0]
        if step in ("experts", "binary"):
            second = [layer.gate.counts.min() / layer.gate.counts.sum() for layer in module.layers.values()]
            assert sum(share > 0.05 for share in second) >= 6
            assert not any(torch.equal(*layer.weight) for layer in module.layers.values())
    assert top1["experts"] > 0.8
    assert top1["binary"] > top1["experts"] - 0.1  # 18 of 180 images; ten were lost on one kind of processor
