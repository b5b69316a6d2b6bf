"""Methods combined: a ticket under a teacher, epitomes in ReXNet."""

import copy

import torch
from pytorch_lightning import Trainer
from torch.nn import functional as F
from torch.utils.data import DataLoader

import networks
from callbacks import Distillation
from commands.train import FrugalCLI
from lightning_modules import Biprop, Classifier
from networks.complexity import count


def test_a_taught_ticket_moves_by_the_gradient_of_both_losses_and_keeps_its_weights():
    torch.manual_seed(0)
    given = dict(network="conv2", network_args={"width": 0.1}, num_classes=4, input_size=(1, 8, 8), schedule="constant")
    optimizer = lambda parameters: torch.optim.SGD(parameters, lr=0.5)  # noqa: E731
    ticket, teacher = Biprop(**given, optimizer=optimizer), Classifier(**given)
    images, labels = torch.randn(6, 1, 8, 8), torch.arange(6) % 4
    before = copy.deepcopy(ticket.network)

    # Literal: cross-entropy and KL(teacher || student) at a temperature of 2.
    with torch.no_grad():
        soft = (teacher.network.eval()(images) / 2).softmax(1)
    logits = before(images)
    matching = (soft * (soft.log() - (logits / 2).log_softmax(1))).sum(1).mean()
    assert matching > 0
    scores = {name: p for name, p in before.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(F.cross_entropy(logits, labels) + 3 * matching, list(scores.values()))
    expected = {name: p - 0.5 * g for (name, p), g in zip(scores.items(), gradients, strict=True)}

    distillation = Distillation(teacher, logit_weight=3, temperature=2, attention_weight=0)
    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    trainer = Trainer(accelerator="cpu", max_steps=1, callbacks=[distillation], **quiet)
    trainer.fit(ticket, DataLoader([(images, labels)], batch_size=None))
    for name, value in ticket.network.state_dict().items():
        if name in expected:
            torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-7)
            assert not torch.equal(value, scores[name])
        else:
            assert torch.equal(value, before.state_dict()[name]), name


def test_epitomes_in_rexnet_are_compared_at_equal_cost_and_are_a_dense_network_when_materialised():
    with torch.device("meta"):
        models = [
            FrugalCLI(["-c", f"configs/epitome/digits/{name}.yaml"], run=False).model
            for name in ("rexnet", "rexnet_dense", "rexnet_narrow")
        ]
    reports = [count(model.network, (1, 8, 8)) for model in models]
    assert [report.params for report in reports] == [12_442, 20_026, 12_560]
    assert [report.flops for report in reports] == [203_968, 351_424, 201_136]
    assert [len(model.layers) for model in models] == [8, 0, 0]

    torch.manual_seed(0)
    net = networks.create("channel_search_net", (1, 8, 8), 10, models[0].hparams.network_args)
    assert len(networks.epitome.apply(net, 0.5)) == 8
    x = torch.randn(4, 1, 8, 8)
    net(x).square().sum().backward()
    with torch.no_grad():
        for layer in networks.epitome.epitome_layers(net).values():
            layer.positions += 0.3 * torch.randn_like(layer.positions)
        expected = net.eval()(x)
        networks.epitome.materialise(net)
        torch.testing.assert_close(net(x), expected)
    assert count(net, (1, 8, 8)).params == reports[1].params
