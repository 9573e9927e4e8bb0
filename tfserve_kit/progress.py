"""How long operations tell what they are doing; how it is shown is decided in `cli/`."""

from typing import Protocol


class Progress(Protocol):
    """Receives the steps of an operation; must be quick and must not raise."""

    def step(self, text: str) -> None:
        """Begin a new step; `text` describes it in the present tense."""

    def note(self, text: str) -> None:
        """Tell something that the user should know besides, such as a warning."""

    def advance(self, done: int, total: int) -> None:
        """Report that `done` of `total` units (bytes, models, requests) of this step are ready."""


class Silent:
    """Shows nothing: the default everywhere below the command line."""

    def step(self, text: str) -> None:
        """Ignore the step."""

    def note(self, text: str) -> None:
        """Ignore the remark."""

    def advance(self, done: int, total: int) -> None:
        """Ignore the count."""


SILENT: Progress = Silent()
