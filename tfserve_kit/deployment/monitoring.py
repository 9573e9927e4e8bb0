"""A deployment becomes what watches it: Prometheus, its rules, Alertmanager, Grafana.

Metrics are the official server's (tensorflow_serving/servables/tensorflow/util.cc, batching/), the
embedded engine's (`embedded.metrics`) and HAProxy's. Alerts follow the burn rates of
https://sre.google/workbook/alerting-on-slos/.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tfserve_kit.deployment.render import text
from tfserve_kit.deployment.spec import Monitoring, Spec
from tfserve_kit.errors import Problem, SpecError

PROMETHEUS, RULES, ALERTMANAGER = "prometheus.yml", "rules.yml", "alertmanager.yml"
DASHBOARD = "dashboard.json"

# What a caller can do nothing about. RESOURCE_EXHAUSTED has alerts of its own.
_FAILURES = "UNKNOWN|INTERNAL|UNAVAILABLE|DATA_LOSS|DEADLINE_EXCEEDED|ABORTED|UNIMPLEMENTED"
# By severity: how many times too fast, and the hours of the long and the short window.
_BURNS: Mapping[str, Sequence[tuple[float, float, float]]] = {
    "page": [(14.4, 1, 1 / 12), (6, 6, 1 / 2)],
    "ticket": [(3, 24, 2), (1, 72, 6)],
}
_DAYS = 30
# Bounds of the official server's latencies, in microseconds: 10, 18, ...
_BOUNDS_US = tuple(10 * 1.8**exponent for exponent in range(33))


def render(
    spec: Spec,
    *,
    templates: Path | None = None,
    discovery: Mapping[str, Any] | None = None,
    scrape_s: float = 15,
    hour_s: float = 3600,
) -> dict[str, str]:
    """Return the files that watch a deployment: name to text.

    Args:
        spec: a checked deployment with `[monitoring]`.
        templates: a folder whose templates replace ours, one by one.
        discovery: `name` and `port` of DNS that leads to each replica; None for the one address of
            the deployment.
        scrape_s: time between two looks at a server, in seconds.
        hour_s: how long an hour of the alerts' windows is; less makes them quick, for trials.

    Raises:
        SpecError: the server shows no metrics or has no fixed port, or a template is broken.
    """
    options, values = _options(spec), _rule_values(hour_s)
    bound_us = latency_bound_us(options)
    host = "127.0.0.1" if spec.server.is_everywhere else spec.server.host
    values |= {
        "job": job(spec),
        "path": options.path,
        "target": _place(host, spec.server.rest_port),
        "discovery": discovery,
        "gateway": spec.gateway and spec.gateway.metrics_port
        and _place(host, spec.gateway.metrics_port),
        "scrape": _duration(scrape_s),
        "models": "|".join(map(re.escape, spec.models)),
        "failures": _FAILURES,
        "objectives": _objectives(options),
        "bound_us": f"{bound_us:.0f}",
        "bound_ms": f"{bound_us / 1000:.4g}",
        # Prometheus 3 writes whole bounds as 18.0.
        "bound": re.escape(f"{bound_us:g}") + r"(\.0)?",
        "max_batch_size": spec.batching and spec.batching.most_rows,
    }  # fmt: skip
    names = (PROMETHEUS, RULES, ALERTMANAGER)
    return {
        **{name: text(name, values, templates=templates) for name in names},
        DASHBOARD: json.dumps(dashboard(), indent=1, ensure_ascii=False) + "\n",
    }


def job(spec: Spec) -> str:
    """Return what Prometheus calls the servers of a deployment."""
    return f"tfserving-{spec.server.name}"


def latency_bound_us(options: Monitoring) -> float:
    """Return what stands for `slo_latency_ms`: the next bound of the server's buckets.

    Raises:
        SpecError: there is none so high.
    """
    wanted_us = options.slo_latency_ms * 1000
    found = next((bound for bound in _BOUNDS_US if bound * (1 + 1e-9) >= wanted_us), math.inf)
    if math.isinf(found):
        text = f"{options.slo_latency_ms:g} is above the server's last bucket"
        remedy = f"give at most {_BOUNDS_US[-1] / 1000:.0f}"
        raise SpecError("monitoring", [Problem("monitoring.slo_latency_ms", text, remedy)])
    return found


def _options(spec: Spec) -> Monitoring:
    if not spec.monitoring or not spec.monitoring.prometheus:
        remedy = "add the section [monitoring] with prometheus = true, and restart the server"
        raise SpecError("monitoring", [Problem("monitoring", "no metrics are shown", remedy)])
    if not spec.server.rest_port:
        remedy = "give a fixed port: rest_port = 8501"
        raise SpecError(
            "monitoring", [Problem("server.rest_port", "0 finds another port each time", remedy)]
        )
    return spec.monitoring


def _place(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _objectives(options: Monitoring) -> list[tuple[str, str, str, str]]:
    failed, late = 1 - options.slo_answered, 1 - options.slo_fast
    return [
        ("ErrorBudgetBurn", "serving_failed", f"{failed:.6g}", "of the requests fail"),
        ("LatencyBudgetBurn", "serving_late", f"{late:.6g}", "of the answers come late"),
        (
            "ResourceExhausted",
            "serving_exhausted",
            f"{failed:.6g}",
            "of the requests are refused for want of capacity",
        ),
    ]


def _rule_values(hour_s: float) -> dict[str, Any]:
    def window(hours: float) -> str:
        return _duration(hours * hour_s)

    burns = {
        severity: [(factor, window(long), window(short)) for factor, long, short in speeds]
        for severity, speeds in _BURNS.items()
    }
    hours = sorted({each for speeds in _BURNS.values() for _, *both in speeds for each in both})
    return {
        "burns": burns,
        "windows": list(map(window, hours)),
        "days": _DAYS,
        "soon": window(1 / 60),
        "while_s": window(1 / 12),
        "swap": window(1 / 4),
        "hour": window(1),
    }


def _duration(seconds: float) -> str:
    """Return a time as Prometheus writes it, in its largest unit that leaves no fraction."""
    millis = max(1, round(seconds * 1000))
    units = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}
    unit = next(unit for unit, size in units.items() if millis % size == 0)
    return f"{millis // units[unit]}{unit}"


# The dashboard. Where a panel has values: with the official server, the embedded engine, batching
# of either, or the gateway.
OFFICIAL, EMBEDDED, BATCHING, GATEWAY = "official", "embedded", "batching", "gateway"
_BOTH = (OFFICIAL, EMBEDDED)
_HERE = 'job=~"$job", instance=~"$instance"'
_MODEL = f'{_HERE}, model_name=~"$model"'
# Questions about a model's state have no API: those of health checks above all.
_WORK = f'{_MODEL}, API!=""'
_RATE = "$__rate_interval"


def _rate(metric: str, labels: str = _HERE) -> str:
    return f"rate({metric}{{{labels}}}[{_RATE}])"


def _quantiles(histogram: str, by: str = "", labels: str = _HERE) -> list[tuple[str, str]]:
    """Return a query and a legend for each quantile."""
    keys = f"le, {by}" if by else "le"
    return [
        (
            f"histogram_quantile({q}, sum by ({keys}) ({_rate(f'{histogram}_bucket', labels)}))",
            f"{_legend(by)} p{q * 100:g}".strip(),
        )
        for q in (0.5, 0.9, 0.99)
    ]


def _sum(metric: str, by: str, labels: str = _HERE) -> list[tuple[str, str]]:
    """Return a query for the rate of a counter by some labels, and a legend of these."""
    return [(f"sum by ({by}) ({_rate(metric, labels)})", _legend(by))]


def _legend(labels: str) -> str:
    return " ".join(f"{{{{{each}}}}}" for each in labels.split(", ") if each)


_SERVING, _CORE = ":tensorflow:serving:", ":tensorflow:core:"
_SESSION = f"{_SERVING}batching_session:"
_ROWS, _PADDING = f"{_SESSION}processed_batch_size", f"{_SESSION}padding_size"
_PADDED = f"sum({_rate(f'{_PADDING}_sum')})"
_COMPUTED = f"sum({_rate(f'{_ROWS}_sum')})"
_BATCHES = f"sum({_rate(f'{_ROWS}_count')})"
_LOADED = f':tensorflow:cc:saved_model:load_attempt_count{{{_HERE}, status="success"}}'
_LOAD_TIME = f":tensorflow:cc:saved_model:load_latency{{{_HERE}}}"
_BUILDS, _BUILD_TIME = (f"{_CORE}graph_build_{each}{{{_HERE}}}" for each in ("calls", "time_usecs"))
_MOST_ROWS = 'scalar(max(job:serving_max_batch_size:rows{job=~"$job"}))'
_GATEWAYS, _HAPROXY = 'job=~"$gateway"', "haproxy_backend_"

Panel = tuple[str, str, Sequence[str], Sequence[tuple[str, str]]]
# Rows of panels: title, unit, where it has values, and (query, legend) of each line.
PANELS: Mapping[str, Sequence[Panel]] = {
    "Requests": [
        ("Answers", "reqps", _BOTH, _sum(f"{_SERVING}request_latency_count", "model_name", _WORK)),
        ("Errors by code", "reqps", _BOTH,
         _sum(f"{_SERVING}request_count", "model_name, status", f'{_MODEL}, status!="OK"')),
        ("Latency", "µs", _BOTH, _quantiles(f"{_SERVING}request_latency", "model_name", _WORK)),
        ("Latency by API", "µs", _BOTH,
         _quantiles(f"{_SERVING}request_latency", "model_name, entrypoint, API", _WORK)),
        ("Latency of the model, queue included", "µs", _BOTH,
         _quantiles(f"{_SERVING}runtime_latency", "model_name", _MODEL)),
        ("Latency of the model by version and signature", "µs", (EMBEDDED,),
         _quantiles("tfkit_runtime_latency", "model_name, version, signature", _MODEL)),
    ],
    "Batching": [
        ("Rows of a batch", "short", (BATCHING,),
         [(f"({_COMPUTED} - {_PADDED}) / {_BATCHES}", "mean"),
          (f"{_COMPUTED} / {_BATCHES}", "mean with padding")]),
        ("Fill and padding", "percentunit", (BATCHING,),
         [(f"({_COMPUTED} - {_PADDED}) / {_BATCHES} / {_MOST_ROWS}", "rows of max_batch_size"),
          (f"{_PADDED} / {_COMPUTED}", "padding of rows computed")]),
        ("Time in the queue", "µs", (BATCHING,), _quantiles(f"{_SESSION}queuing_latency")),
        ("Batches", "ops", (BATCHING,), [(_BATCHES, "batches")]),
    ],
    "Models": [
        ("Versions in service", "short", (EMBEDDED,),
         [(f"sum by (model_name, version) (tfkit_model_version_available{{{_MODEL}}})",
           "{{model_name}} {{version}}")]),
        ("Versions loaded since the start", "short", _BOTH,
         [(f"sum by (model_path) ({_LOADED})", "{{model_path}}")]),
        ("Mean time of a load", "µs", _BOTH,
         [(f"sum by (model_path) ({_LOAD_TIME}) / sum by (model_path) ({_LOADED})",
           "{{model_path}}")]),
        ("Graph runs", "µs", _BOTH, _quantiles(f"{_CORE}graph_run_time_usecs_histogram")),
        ("Mean time to build a graph", "µs", _BOTH,
         [(f"sum by (instance) ({_BUILD_TIME}) / sum by (instance) ({_BUILDS})", "{{instance}}")]),
    ],
    "Process": [
        ("Answers to Prometheus", "short", _BOTH, [(f"up{{{_HERE}}}", "{{instance}}")]),
        ("Memory", "bytes", (EMBEDDED,),
         [(f"process_resident_memory_bytes{{{_HERE}}}", "{{instance}}")]),
        ("Processors busy", "short", (EMBEDDED,),
         [(_rate("process_cpu_seconds_total"), "{{instance}}")]),
        ("Time since the start", "s", (EMBEDDED,),
         [(f"time() - process_start_time_seconds{{{_HERE}}}", "{{instance}}")]),
        ("Program", "short", (EMBEDDED,),
         [(f"tfkit_build_info{{{_HERE}}}",
           "{{instance}} tfkit {{version}}, tensorflow {{tensorflow}}")]),
    ],
    "Gateway": [
        ("Rate at the gateway", "reqps", (GATEWAY,),
         _sum(f"{_HAPROXY}http_requests_total", "proxy", _GATEWAYS)),
        ("HTTP status", "reqps", (GATEWAY,),
         _sum(f"{_HAPROXY}http_responses_total", "proxy, code", _GATEWAYS)),
        ("Replicas in service", "short", (GATEWAY,),
         [(f"{_HAPROXY}active_servers{{{_GATEWAYS}}}", "{{proxy}}")]),
        ("Mean of the last 1024 requests", "s", (GATEWAY,),
         [(f"{_HAPROXY}{each}_time_average_seconds{{{_GATEWAYS}}}", f"{{{{proxy}}}} {each}")
          for each in ("total", "queue", "connect")]),
        ("Sent to another replica", "reqps", (GATEWAY,),
         _sum(f"{_HAPROXY}redispatch_warnings_total", "proxy", _GATEWAYS)),
    ],
}  # fmt: skip

_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_WIDTH, _HEIGHT, _COLUMNS = 8, 8, 24
_KINDS = {
    OFFICIAL: "the official server",
    EMBEDDED: "the embedded engine",
    BATCHING: "servers that batch",
    GATEWAY: "the gateway",
}


def dashboard() -> dict[str, Any]:
    """Return the dashboard for every kind of server, as Grafana's JSON."""
    panels: list[dict[str, Any]] = []
    y = 0
    for title, row in PANELS.items():
        place = {"x": 0, "y": y, "w": _COLUMNS, "h": 1}
        panels.append({"type": "row", "title": title, "collapsed": False, "gridPos": place,
                       "id": len(panels) + 1, "panels": []})  # fmt: skip
        y += 1
        for number, panel in enumerate(row):
            column = number * _WIDTH % _COLUMNS
            place = {"x": column, "y": y, "w": _WIDTH, "h": _HEIGHT}
            panels.append(_panel(panel, len(panels) + 1, place))
            if column + _WIDTH == _COLUMNS or number == len(row) - 1:
                y += _HEIGHT
    return {
        "uid": "tfkit-serving",
        "title": "TensorFlow Serving",
        "description": "written by tfkit render",  # `output` knows the file by this
        "tags": ["tensorflow-serving", "tfkit"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": _variables()},
        "panels": panels,
    }


def _panel(panel: Panel, number: int, place: Mapping[str, int]) -> dict[str, Any]:
    title, unit, where, queries = panel
    return {
        "type": "timeseries",
        "id": number,
        "title": title,
        "description": "From " + " and ".join(_KINDS[each] for each in where),
        "gridPos": dict(place),
        "datasource": _SOURCE,
        "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
        "options": {
            "legend": {
                "displayMode": "list",
                "placement": "bottom",
                "showLegend": True,
                "calcs": [],
            },
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "targets": [
            {
                "refId": chr(ord("A") + i),
                "datasource": _SOURCE,
                "expr": expr,
                "legendFormat": legend,
            }
            for i, (expr, legend) in enumerate(queries)
        ],
    }


def _variables() -> list[dict[str, Any]]:
    source = {"type": "datasource", "name": "datasource", "label": "Data source",
              "query": "prometheus"}  # fmt: skip
    asked = {
        "job": "label_values(:tensorflow:serving:request_count, job)",
        "instance": 'label_values(up{job=~"$job"}, instance)',
        "model": 'label_values(:tensorflow:serving:request_count{job=~"$job"}, model_name)',
        "gateway": "label_values(haproxy_process_start_time_seconds, job)",
    }
    return [source] + [
        {
            "type": "query",
            "name": name,
            "label": name.capitalize(),
            "datasource": _SOURCE,
            "query": query,
            "refresh": 2,
            "multi": True,
            "includeAll": True,
            "current": {"text": "All", "value": "$__all"},
        }
        for name, query in asked.items()
    ]
