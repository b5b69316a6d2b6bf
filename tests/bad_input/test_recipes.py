"""Networks, methods and numbers that cannot work: refused before a run begins."""

import pytest

FIT = "fit -c small.yaml "
EXPERTS = FIT + "--model ExpertBinary --model.network expert_binary_resnet --model.network_args null "
RULE = FIT + "--model Epitome --model.network conv2 --model.rules "
SEARCHED = FIT + "--model ReXNet --model.network channel_search_net "
TEACHER = FIT + "--trainer.callbacks+=callbacks.Distillation --trainer.callbacks.attention_weight 0 "

CASES = [
    # networks
    (FIT + "--model.network resnet81", 1, "no network is called 'resnet81'; did you mean resnet18"),
    (FIT + "--model.network_args.widht 2", 1, "conv2 cannot be built", "unexpected keyword argument 'widht'"),
    (FIT + "--model.network_args.width 0", 1, "width=0 is impossible", "at least 0.015625"),
    (FIT + "--model.network wsnet_esc50 --model.network_args null", 1, "SoundNet8ESC50 does not accept an input of"),
    (FIT + "--model.network torch.nn.Identity --model.network_args null", 1, "outputs of size", "not (10,), one per"),
    (FIT + "--model.network_args.pretrained true", 1, "conv2 has no pretrained weights"),
    (FIT + "--model.num_classes 100", 1, "num_classes was given as 100, but Digits has 10: leave it out"),
    (FIT + "--model Detector --model.network ssdlite", 1, "Detector learns objects, and Digits gives labels"),
    # methods
    *(
        (FIT + f"--model.keep_fraction {k}", 1, "weights KEPT, above 0 and at most 1; got")
        for k in (0, -1, 1.5, ".nan")
    ),
    (FIT + "--model.keep_fraction half", 2, "model.keep_fraction: Expected a float. Got value: half"),
    (EXPERTS + "--model.num_experts 0", 1, "num_experts=0: a layer has at least one"),
    (EXPERTS + "--model.temperature 0", 1, "temperature=0", "a positive one"),
    (RULE + "0", 1, "multiplier=0", "more than 0 and at most 1"),
    (RULE + "2", 1, "multiplier=2", "more than 0 and at most 1"),
    (RULE + "'[{pattern: nowhere}]'", 1, "pattern='nowhere'", "no such"),
    (RULE + "'[{pattern: \"(\"}]'", 1, "its pattern is no regular expression"),
    (SEARCHED + "--model.network_args '{channels: [16, 8]}'", 1, "channels=[16, 8] must be positive and must not decr"),
    (FIT + "--model ReXNet --model.network rexnet --model.network_args.width 0", 1, "width=0 must be positive"),
    (TEACHER + "--trainer.callbacks.teacher resnet81", 1, "no pretrained teacher: timm has no resnet81"),
    (TEACHER + "--trainer.callbacks.checkpoint nowhere.ckpt", 1, "the teacher's checkpoint: no file at nowhere.ckpt"),
    (FIT + "--trainer.callbacks+=callbacks.TemperatureAnnealing --trainer.callbacks.start 0", 1, "must be positive"),
    # optimiser and schedule
    (FIT + "--model.optimizer.lr -0.1", 1, "model.optimizer: Invalid learning rate: -0.1"),
    (FIT + "--model.schedule steps", 1, "drop_epochs=() go with schedule='steps'"),
    (
        FIT + "--model.warmup_epochs 5",
        1,
        "ends with trainer.max_epochs: give more than warmup_epochs=5",
    ),
    (FIT + "--model.mixup_alpha 0.2 --data.batch_size 33", 1, "mixup pairs samples", "even shares"),
    (FIT + "--trainer.max_epochs 0 --model.schedule constant", 1, "trainer.max_epochs=0 trains nothing"),
    (FIT + "--trainer.max_epochs -1", 1, "the cosine schedule ends with trainer.max_epochs"),
    (FIT + "--trainer.max_epochs -5", 1, "trainer: `max_epochs` must be a non-negative integer or -1"),
    # batches
    (FIT + "--data.batch_size 0", 1, "data.batch_size=0 is the total", "take a multiple of 1"),
    (FIT + "--data.batch_size 2000", 1, "data.batch_size=2000 is more than the 1257 samples to train"),
    (FIT + "--data.batch_size 33 --trainer.accelerator cpu --trainer.devices 2", 1, "take a multiple of 2"),
    (FIT + "--data.num_workers -1", 1, "data.num_workers=-1 must not be negative"),
    (FIT + "--trainer.accumulate_grad_batches 0", 1, "trainer.accumulate_grad_batches=0 must be at least 1"),
    (FIT + "--trainer.gradient_clip_val -1", 1, "trainer.gradient_clip_val=-1", "must be at least 0"),
    (FIT + "--trainer.limit_train_batches 0", 1, "trainer.limit_train_batches=0 of 39 batches leaves none to train on"),
    (FIT + "--trainer.check_val_every_n_epoch 0", 1, "trainer.check_val_every_n_epoch=0 must be at least 1"),
    (
        FIT + "--trainer.val_check_interval 50",
        1,
        "trainer.val_check_interval=50 is more than the 4 batches",
        "give less",
    ),
    # machines, loggers, seeds
    (FIT + "--trainer.devices 0", 1, "devices", "give --trainer.accelerator and --trainer.devices"),
    (FIT + "--trainer.accelerator gpuu", 1, "accelerator='gpuu'", "give --trainer.accelerator and --trainer.devices"),
    (FIT + "--trainer.strategy ddpp", 1, "strategy='ddpp'"),
    (FIT + "--trainer.logger NoLogger", 2, "trainer.logger", "NoLogger"),
    (FIT + "--trainer.logger TensorBoardLogger", 2, "trainer.logger", "required: save_dir"),
    (FIT + "--seed_everything -1", 1, "seed_everything=-1 must lie in 0 to 2**32 - 1"),
    (FIT + "--checkpoint.mode maximal", 1, "`mode` can be min, max but got maximal"),
    (FIT + "--trainer.enable_checkpointing false", 1, "leave --trainer.enable_checkpointing out"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0].removeprefix(FIT))
def test_a_recipe_that_cannot_work(case, refuse):
    refuse(*case)


def test_a_wrong_monitor_is_refused_before_the_first_epoch(refuse):
    refuse(FIT + "--checkpoint.monitor val/nothing", 1, "checkpoint.monitor", "val/nothing")


def test_a_library_that_a_logger_needs(refuse, monkeypatch):
    def missing(self, name: str | None = None):
        raise ModuleNotFoundError("Requirement 'comet-ml' not met. HINT: Try running `pip install -U comet-ml`")

    monkeypatch.setattr("pytorch_lightning.loggers.CometLogger.__init__", missing)
    refuse(FIT + "--trainer.logger pytorch_lightning.loggers.CometLogger", 1, "'comet-ml' not met", "pip install")
