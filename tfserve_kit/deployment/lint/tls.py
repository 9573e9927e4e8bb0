"""Rules about TLS: whether the server and tfkit's own clients would come together."""

from collections.abc import Iterator

from tfserve_kit.deployment import tls
from tfserve_kit.deployment.lint.facts import Facts
from tfserve_kit.deployment.lint.findings import Rule, Severity
from tfserve_kit.errors import Problem, SpecError

_THIS_MACHINE = frozenset({"127.0.0.1", "localhost", "::1"})


def _tls_unusable(facts: Facts) -> Iterator[Problem]:
    """Source: tensorflow_serving/model_servers/server.cc (credentials from the SSLConfig)."""
    try:
        tls.of_deployment(facts.spec)
    except SpecError as error:
        yield from error.problems


def _rest_stays_plain(facts: Facts) -> Iterator[Problem]:
    """Source: tensorflow_serving/model_servers/server.cc: the HTTP server takes no credentials."""
    server = facts.spec.server
    if server.flags.get(tls.FLAG) and server.host not in _THIS_MACHINE:
        text = f"is {server.host}, and REST has no TLS: anybody on the network reads along"
        remedy = "put a proxy with TLS before rest_port, or keep that port from others"
        yield Problem("server.host", text, remedy)


RULES = (
    Rule("tls-unusable", Severity.ERROR,
         "`ssl_config_file` is no SSLConfig, or its server and tfkit would not come together",
         _tls_unusable),
    Rule("rest-stays-plain", Severity.WARNING,
         "gRPC has TLS, REST has none and is open to other machines",
         _rest_stays_plain),
)  # fmt: skip
