"""How the batch size of a recipe is shared out."""

from pytorch_lightning import Trainer

from networks import InputError


def device_batch_size(total: int, trainer: Trainer | None, training: bool) -> int:
    """Samples that one device takes at a time, so that a recipe's batch size holds on any hardware.

    Args:
        total: `data.batch_size`, over all devices and, in training, over all accumulated steps.
        trainer: None outside a run, where there is one device and no accumulation.
        training: evaluation accumulates nothing.

    Raises:
        InputError: `total` does not divide evenly.
    """
    devices = trainer.world_size if trainer else 1
    steps = trainer.accumulate_grad_batches if trainer and training else 1
    if total < 1 or total % (devices * steps):
        raise InputError(
            f"data.batch_size={total} is the total and is no multiple of {devices} devices x {steps} accumulated "
            f"steps; take a multiple of {devices * steps}"
        )
    return total // (devices * steps)
