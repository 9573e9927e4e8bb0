"""What a run counts of the contents of answers."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class Tally:
    """What is known of the answers of a run beside their samples.

    Attributes:
        checked: answers that were held against what was expected.
        decoded: those of them that were decoded in full.
        versions: right answers by the version that gave them, over gRPC.
        without_rows: outputs whose number of rows could not be checked.
    """

    checked: int = 0
    decoded: int = 0
    versions: Counter[int] = field(default_factory=Counter)
    without_rows: set[str] = field(default_factory=set)

    def add(self, other: "Tally") -> None:
        """Add what another process counted."""
        self.checked += other.checked
        self.decoded += other.decoded
        self.versions.update(other.versions)
        self.without_rows |= other.without_rows
