"""A static scan of `saved_model.pb`: what would run in a server, and what of it had better not.

Nothing is run and tensorflow is not needed. Every node of the graph and of its function library is
looked at once; one counts as run if a signature, the init operation or the restoring of variables
needs it. What the scan cannot see is said in docs/inspect.md.
"""

from tfserve_kit.savedmodel.graph.facts import WARMUP_PATH, Facts, facts
from tfserve_kit.savedmodel.graph.rules import Severity
from tfserve_kit.savedmodel.graph.scan import Finding, Scan, foreign_operations, meta_graph, scan

__all__ = [
    "WARMUP_PATH",
    "Facts",
    "Finding",
    "Scan",
    "Severity",
    "facts",
    "foreign_operations",
    "meta_graph",
    "scan",
]
