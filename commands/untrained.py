"""Build what a config describes, without fetching weights."""

from commands.train import FrugalCLI, leave_weights_out


class Untrained(FrugalCLI):
    """Model and data as a config describes them, without weights."""

    def __init__(self, arguments: list[str]) -> None:
        super().__init__(arguments, run=False)

    def before_instantiate_classes(self) -> None:
        super().before_instantiate_classes()
        leave_weights_out(self.config)
