"""A teacher's terms, and that it stays outside the student."""

import numpy as np
import pytest
import timm
import torch
from pytorch_lightning import Callback, Trainer, seed_everything
from torch import nn
from torch.nn import functional as F

from callbacks import Distillation, ExactResume, LastCheckpoint
from callbacks.distillation import attention_map, attention_matching, logit_matching
from datamodules import Digits
from lightning_modules import Biprop, Classifier, ExpertBinary
from networks import InputError

SIZE = (1, 8, 8)


class Net(nn.Module):
    def __init__(self, width=4, stride=2, classes=10):
        super().__init__()
        self.layer1 = self.stage(1, width, 1)
        self.layer2 = self.stage(width, width, stride)
        self.layer3 = self.stage(width, 2 * width, 1)
        self.fc = nn.Linear(2 * width, classes)
        self.seen = []

    def stage(self, c, o, stride):
        return nn.Sequential(nn.Conv2d(c, o, 3, stride, 1), nn.BatchNorm2d(o), nn.ReLU())

    def forward(self, x):
        self.seen.append(x)
        return self.fc(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


class Stop(Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, *args):
        if trainer.global_step == self.step:
            next(c for c in trainer.callbacks if isinstance(c, LastCheckpoint))._signal = 15


def teacher(**options):
    torch.manual_seed(7)
    return Net(width=6, **options)


def run(folder, distillation, *callbacks, module=None, resume=False, **options):
    seed_everything(0)
    module = module or Classifier(Net(), 10, SIZE, mixup_alpha=0.2)
    trainer = Trainer(**{
        "max_epochs": 2, "limit_train_batches": 8, "limit_val_batches": 2, "default_root_dir": folder, "logger": False,
        "callbacks": [distillation, ExactResume(), LastCheckpoint(folder), *callbacks], "num_sanity_val_steps": 1,
        "enable_progress_bar": False, "enable_model_summary": False, **options,
    })  # fmt: skip
    stopped = any(isinstance(callback, Stop) for callback in callbacks)
    with pytest.raises(SystemExit) if stopped else torch.enable_grad():
        trainer.fit(module, Digits(), ckpt_path=folder / "last.ckpt" if resume else None, weights_only=True)
    return module, trainer


def refused(distillation, module=None):
    with pytest.raises(InputError) as error:
        distillation.prepare(module or Classifier(Net(), 10, SIZE))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_logit_matching_is_kl_of_the_samples():
    s, t = torch.randn(2, 5, 1000, dtype=torch.double).unbind()
    s.requires_grad_(), t.requires_grad_()
    by_elements = 1000 * F.kl_div(s.log_softmax(1), t.softmax(1), reduction="mean")  # as released
    loss = logit_matching(s, t.detach())
    assert loss.item() == pytest.approx(by_elements.item(), rel=1e-6)
    loss.backward()
    assert s.grad.abs().max() > 0
    assert t.grad is None
    assert logit_matching(t, t).item() == 0
    p, q = (t / 3).softmax(1), (s / 3).softmax(1)
    assert logit_matching(s, t, 3).item() == pytest.approx((p * (p / q).log()).sum(1).mean().item(), rel=1e-5)


def test_attention_matching():
    one_hot = torch.zeros(1, 1, 4, 4, dtype=torch.double)
    other = one_hot.clone()
    one_hot[..., 0, 0], other[..., 2, 1] = 1, 1

    def loss(*pairs):
        return 1000 * attention_matching([attention_map(a) for a, _ in pairs], [attention_map(b) for _, b in pairs])

    assert loss((one_hot, other)).item() == pytest.approx(125, rel=1e-12)
    assert loss((one_hot, torch.ones_like(one_hot))).item() == pytest.approx(93.75, rel=1e-12)
    assert loss((one_hot, other), (other, one_hot), (one_hot, one_hot)).item() == pytest.approx(250, rel=1e-12)
    a, b = torch.randn(3, 5, 4, 4, dtype=torch.double), torch.randn(3, 7, 4, 4, dtype=torch.double)
    assert loss((a, a)).item() == 0
    repeated = loss((3 * a.repeat(1, 4, 1, 1), b / 7))
    assert repeated.item() == pytest.approx(loss((a, b)).item(), rel=1e-12)
    norm = [F.normalize((x**2).mean(1).flatten(1)) for x in (a, b)]
    assert loss((a, b)).item() == pytest.approx(1000 * ((norm[0] - norm[1]) ** 2).mean().item(), rel=1e-12)


def test_the_loss_of_a_step_and_what_the_teacher_sees(tmp_path):
    class FirstStep(Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if trainer.global_step == 1:
                self.loss, self.images, self.labels = outputs["loss"].item(), *batch

    first, untouched = FirstStep(), teacher()
    distillation = Distillation(teacher(), layers="layer[23]", logit_weight=0.7, attention_weight=900)
    module, trainer = run(tmp_path, distillation, first, max_epochs=1)
    student_net, theirs = module.network, distillation.teacher
    training = [x for x in student_net.seen if x.grad_fn is None and len(x) == 32]
    assert len(theirs.seen) == 8  # once in each step, never in validation
    for seen in theirs.seen:
        assert any(seen.shape == x.shape and torch.equal(seen, x) for x in training)
    assert not any(torch.equal(seen, first.images) for seen in theirs.seen)  # mixed
    seed_everything(0)
    student = Classifier(Net(), 10, SIZE, mixup_alpha=0.2)
    mixed = theirs.seen[0]
    maps = {"student": [], "teacher": []}
    for net, found in ((student.network, maps["student"]), (untouched.eval(), maps["teacher"])):
        for layer in (net.layer2, net.layer3):
            layer.register_forward_hook(lambda m, a, y, found=found: found.append(y.pow(2).mean(1).flatten(1)))
    s, t = student.train()(mixed), untouched(mixed)
    attention = sum((F.normalize(a) - F.normalize(b)).pow(2).mean() for a, b in zip(*maps.values(), strict=True))
    state = np.random.get_state()  # noqa: NPY002
    np.random.set_state(state)  # noqa: NPY002
    images, lam = first.images, _mixing(first.images, mixed)
    labels = F.one_hot(first.labels, 10).float()
    targets = lam * labels + (1 - lam) * labels.flip(0)
    cross_entropy = -(targets * s.log_softmax(1)).sum(1).mean()
    kl = F.kl_div(s.log_softmax(1), t.softmax(1), reduction="batchmean")
    assert images.shape == mixed.shape
    assert first.loss == pytest.approx((cross_entropy + 0.7 * kl + 900 * attention).item(), rel=1e-4)
    means = trainer.callback_metrics
    assert means["train/logit_matching"] > 0
    assert means["train/attention_matching"] > 0


def _mixing(images, mixed):
    """lam of mixed = lam * images + (1 - lam) * flipped."""
    d = images - images.flip(0)
    return ((mixed - images.flip(0)) * d).sum() / d.square().sum()


def test_the_teacher_is_untouched_and_outside(tmp_path):
    distillation, before = Distillation(teacher(), layers="layer[23]"), teacher().state_dict()
    module, trainer = run(tmp_path, distillation)
    after = distillation.teacher
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.state_dict().items())
    assert not any(m.training for m in after.modules())
    assert not any(p.requires_grad or p.grad is not None for p in after.parameters())
    inside = {id(p) for p in after.parameters()}
    assert not inside & {id(p) for p in module.parameters()}
    assert not inside & {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    plain, _ = run(tmp_path / "plain", Distillation(teacher(), attention_weight=0, layers="none"))
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert (
        checkpoint["state_dict"].keys() == plain.state_dict().keys() == Classifier(Net(), 10, SIZE).state_dict().keys()
    )
    assert module.loss_terms == {}
    for net in (module.network, after):
        assert not any(m._forward_hooks for m in net.modules())


def test_nothing_is_left_after_an_exception(tmp_path):
    class Fails(Callback):
        def on_train_batch_start(self, *args):
            raise KeyError("in the step")

    module, distillation = Classifier(Net(), 10, SIZE), Distillation(teacher(), layers="layer[23]")
    with pytest.raises(KeyError, match="in the step"):
        run(tmp_path, distillation, Fails(), module=module)
    assert module.loss_terms == {}
    assert not any(m._forward_hooks for net in (module.network, distillation.teacher) for m in net.modules())


def test_a_named_teacher_with_a_checkpoint_of_ours_is_at_its_step(tmp_path):
    args = {"blocks": [1, 1, 1, 1], "expansion": 0.125, "groups": [1, 1, 1, 1], "stem": "cifar"}
    trained = ExpertBinary("expert_binary_resnet", 10, SIZE, args, step="fp", schedule="constant")
    saver = Trainer(max_epochs=0, logger=False, enable_checkpointing=False, enable_model_summary=False)
    saver.fit(trained, Digits(), weights_only=True)
    saver.save_checkpoint(tmp_path / "fp.ckpt")
    distillation = Distillation("expert_binary_resnet", args, str(tmp_path / "fp.ckpt"), attention_weight=0)
    distillation.prepare(Classifier(Net(), 10, SIZE))
    x = torch.randn(4, *SIZE)
    assert torch.equal(distillation.teacher(x), trained.eval()(x))


@pytest.mark.parametrize("validate", [False, True])
def test_accuracy_and_agreement_are_those_of_the_images(tmp_path, validate):
    class Seen(Callback):
        def __init__(self):
            self.rows = {"train": [], "val": []}

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            self.note("train", batch, module)

        def on_validation_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if not trainer.sanity_checking:
                self.note("val", batch, module)

        def note(self, stage, batch, module):
            t = teacher().eval()(batch[0]).argmax(1)
            self.rows[stage] += list(zip((t == batch[1]).tolist(), [len(batch[1])] * len(t), strict=True))

    seen, module = Seen(), Classifier(Net(), 10, SIZE)
    distillation = Distillation(teacher(), layers="layer[23]", validate=validate)
    module, trainer = run(tmp_path, distillation, seen, module=module, max_epochs=1)
    metrics = trainer.callback_metrics
    assert metrics["train/teacher_top1"].item() == pytest.approx(np.mean([hit for hit, _ in seen.rows["train"]]))
    assert ("val/teacher_top1" in metrics) == ("val/agreement" in metrics) == validate
    assert len(distillation.teacher.seen) == 8 + validate * (2 + 1)  # and the sanity check
    if validate:
        assert metrics["val/teacher_top1"].item() == pytest.approx(np.mean([hit for hit, _ in seen.rows["val"]]))
        data = Digits()
        data.setup()
        batches = list(data.val_dataloader())[:2]
        module.eval()
        agree = torch.cat([teacher().eval()(x).argmax(1) == module(x).argmax(1) for x, _ in batches])
        assert metrics["val/agreement"].item() == pytest.approx(agree.float().mean().item())


@pytest.mark.parametrize("step", [8, 11])  # at the end of an epoch, and inside the next
def test_a_resumed_run_is_the_same(tmp_path, step):
    def distillation():
        return Distillation(teacher(), layers="layer[23]", validate=True)

    whole, straight = run(tmp_path / "whole", distillation())
    run(tmp_path / "parts", distillation(), Stop(step))
    parts, resumed = run(tmp_path / "parts", distillation(), resume=True)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), parts.state_dict().values(), strict=True))
    assert straight.callback_metrics.keys() == resumed.callback_metrics.keys()
    for name, value in straight.callback_metrics.items():
        if name != "train/loss_step":
            assert value.item() == resumed.callback_metrics[name].item(), name


def test_accumulated_steps_ask_for_every_part(tmp_path):
    distillation = Distillation(teacher(), layers="layer[23]")
    _, trainer = run(tmp_path, distillation, accumulate_grad_batches=2, max_epochs=1)
    assert trainer.global_step == 4
    assert [len(x) for x in distillation.teacher.seen] == [16] * 8


def test_mixed_precision_gives_nearly_the_same_terms(tmp_path):
    terms = []
    for precision in ("32-true", "bf16-mixed"):
        distillation = Distillation(teacher(), layers="layer[23]")
        _, trainer = run(tmp_path / precision, distillation, precision=precision, max_epochs=1, limit_train_batches=1)
        terms.append(
            {name: trainer.callback_metrics[f"train/{name}_matching"].item() for name in ("logit", "attention")}
        )
    assert terms[1] == pytest.approx(terms[0], rel=0.05)
    assert terms[1] != terms[0]


def test_a_biprop_student_learns_under_a_teacher_of_ours(tmp_path):
    torch.manual_seed(3)
    args = {"blocks": [1, 1, 1, 1], "expansion": 0.25, "groups": [1, 1, 1, 1], "stem": "cifar"}
    trained = ExpertBinary("expert_binary_resnet", 10, SIZE, args, step="experts", schedule="constant")
    with torch.no_grad():
        for p in trained.parameters():
            p.add_(0.1 * torch.randn_like(p))
    saver = Trainer(max_epochs=0, logger=False, enable_checkpointing=False, enable_model_summary=False)
    saver.fit(trained, Digits(), weights_only=True)
    saver.save_checkpoint(tmp_path / "teacher.ckpt")
    distillation = Distillation(checkpoint=str(tmp_path / "teacher.ckpt"), attention_weight=0)
    student = Biprop("conv2", 10, SIZE, {"width": 0.1, "img_size": 8})
    _, trainer = run(tmp_path, distillation, module=student, max_epochs=1)
    assert trainer.callback_metrics["train/logit_matching"] > 0
    assert {layer.step for layer in distillation.teacher.layers.values()} == {"experts"}
    x = torch.randn(4, *SIZE)
    assert torch.equal(distillation.teacher(x), trained.eval()(x))


def test_a_state_dict_makes_a_teacher_of_a_name(tmp_path):
    args = {"in_chans": 1, "num_classes": 10}
    net = timm.create_model("cifar_resnet20", **args)
    torch.save(net.state_dict(), tmp_path / "net.pt")
    distillation = Distillation("cifar_resnet20", checkpoint=str(tmp_path / "net.pt"), attention_weight=0)
    distillation.prepare(Classifier(Net(), 10, SIZE))
    x = torch.randn(2, *SIZE)
    assert torch.equal(distillation.teacher(x), net.eval()(x))


def test_refusals(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="no teacher: give teacher"):
        Distillation()
    with pytest.raises(InputError, match="one is more than 0"):
        Distillation("resnet18", logit_weight=0, attention_weight=0)
    with pytest.raises(InputError, match=r"temperature=0 divides logits"):
        Distillation("resnet18", temperature=0)
    assert "outputs of size (7,), the student has 10 classes" in refused(Distillation(teacher(classes=7)))
    wrong = refused(Distillation(teacher(stride=1), layers="layer[23]"))
    assert "student's layer2 gives (4, 4, 4), the teacher's layer2 (6, 8, 8)" in wrong
    counts = refused(Distillation(teacher(), layers="layer[23]", teacher_layers="layer3"))
    assert "finds 2 layers 'layer[23]' in the student (layer2, layer3) and 1 'layer3' in the teacher" in counts
    assert "finds 0 layers 'stages.*'" in refused(Distillation(teacher(), layers="stages.*"))
    assert "compares equal heights" in refused(Distillation(teacher(), layers="fc"))
    nowhere = refused(Distillation("resnet18", checkpoint="nowhere.pt"))
    assert nowhere.startswith("the teacher's checkpoint: no file at nowhere.pt; it takes")
    torch.save(teacher().state_dict(), tmp_path / "own.pt")
    assert "give the teacher by name too" in refused(Distillation(checkpoint=str(tmp_path / "own.pt")))
    message = refused(Distillation("cifar_resnet20", checkpoint=str(tmp_path / "own.pt")))
    assert "own.pt is not of this teacher" in message
    assert "timm has no my_own.Net" in refused(Distillation("my_own.Net"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    message = refused(Distillation("resnet18.a1_in1k", teacher_args={"cache_dir": str(tmp_path)}))
    assert message.startswith("no pretrained teacher: network resnet18.a1_in1k cannot be built")
    assert message.endswith("Distillation.checkpoint takes a file of weights")
