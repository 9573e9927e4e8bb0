"""What watches a deployment says of it what the deployment says."""

import json
import re
from pathlib import Path

import pytest
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from tfserve_kit.deployment import Monitoring, build, monitoring
from tfserve_kit.embedded import metrics
from tfserve_kit.errors import SpecError

MODELS = {"digits": {"base_path": "/models/digits"}}


def spec(**sections):
    document = {"models": MODELS, "monitoring": {}, **sections}
    return build(document, source="test", folder=Path())


def render(hour_s=3600, **sections):
    return monitoring.render(spec(**sections), hour_s=hour_s)


def test_every_file_is_rendered():
    assert list(render()) == ["prometheus.yml", "rules.yml", "alertmanager.yml", "dashboard.json"]


def test_scrape_goes_where_the_page_is():
    server = {"name": "web", "host": "0.0.0.0", "rest_port": 9501}
    found = render(server=server, monitoring={"path": "/metrics"})["prometheus.yml"]
    assert 'job_name: "tfserving-web"' in found
    assert 'metrics_path: "/metrics"' in found
    assert '"127.0.0.1:9501"' in found
    assert "dns_sd_configs" not in found and "gateway" not in found


def test_address_of_ipv6_has_brackets():
    assert '"[::1]:8501"' in render(server={"host": "::1"})["prometheus.yml"]


def test_fleet_is_scraped_replica_by_replica_and_its_gateway_too():
    found = monitoring.render(
        spec(server={"engine": "swarm", "replicas": 2}, gateway={"metrics_port": 8404}),
        discovery={"name": "tfkit-default", "port": 8501},
    )
    scrape = found["prometheus.yml"]
    assert 'names: ["tfkit-default"]' in scrape and "port: 8501" in scrape
    assert 'job_name: "tfserving-default-gateway"' in scrape
    assert '"127.0.0.1:8404"' in scrape
    assert "GatewayHasNoServer" in found["rules.yml"]


@pytest.mark.parametrize(
    ("sections", "path"),
    [
        ({"monitoring": None}, "monitoring"),
        ({"monitoring": {"prometheus": False}}, "monitoring"),
        ({"server": {"rest_port": 0}}, "server.rest_port"),
        ({"monitoring": {"slo_latency_ms": 10**7}}, "monitoring.slo_latency_ms"),
    ],
)
def test_what_cannot_be_watched_is_refused_with_a_remedy(sections, path):
    document = {"models": MODELS, "monitoring": {}, **sections}
    document = {key: value for key, value in document.items() if value is not None}
    with pytest.raises(SpecError) as caught:
        monitoring.render(build(document, source="test", folder=Path()))
    assert [each.path for each in caught.value.problems] == [path]
    assert all(each.remedy for each in caught.value.problems)


@pytest.mark.parametrize(
    ("wanted_ms", "bound_us"), [(0.001, 10), (0.01, 10), (0.0101, 18), (500, 708_235.35)]
)
def test_latency_counts_from_the_next_bound_of_the_server(wanted_ms, bound_us):
    found = monitoring.latency_bound_us(Monitoring(slo_latency_ms=wanted_ms))
    assert found == pytest.approx(bound_us)


def test_bounds_are_those_that_the_embedded_engine_has():
    assert pytest.approx(metrics.REQUEST_LATENCY.buckets) == monitoring._BOUNDS_US


@pytest.mark.parametrize(
    ("hour_s", "windows"),
    [(3600, "5m 30m 1h 2h 6h 1d 3d"), (36, "3s 18s 36s 72s 216s 864s 2592s"), (0.12, "10ms")],
)
def test_windows_are_written_as_prometheus_reads_them(hour_s, windows):
    found = re.findall(r"serving_late:ratio_rate(\w+)\n", render(hour_s)["rules.yml"])
    assert found[: len(windows.split())] == windows.split()


def test_rules_about_batches_are_for_servers_that_batch():
    alone, batched = render()["rules.yml"], render(batching={"max_batch_size": 32})["rules.yml"]
    assert "QueueSaturated" not in alone and "max_batch_size" not in alone
    assert "QueueSaturated" in batched and "expr: vector(32)" in batched
    assert "expr: vector(1000)" in render(batching={})["rules.yml"]


def test_names_of_models_stay_in_their_quotes():
    name = 'a"b\\c\n\u2028{{ $x }}.*'
    line = next(
        line
        for line in render(models={name: {"base_path": "/m"}})["rules.yml"].splitlines()
        if "model_name=~" in line
    )
    quoted = re.search(r'model_name=~("(?:[^"\\]|\\.)*")', line)[1]
    assert re.fullmatch(json.loads(quoted), name)
    assert not re.fullmatch(json.loads(quoted), 'a"b\\c\n\u2028{{ $x }}...')


def known_keys(made, given, path=""):
    """Yield what of a JSON value another one lacks."""
    if isinstance(given, dict):
        for key, value in given.items():
            if not isinstance(made, dict) or key not in made:
                yield f"{path}.{key}"
            else:
                yield from known_keys(made[key], value, f"{path}.{key}")
    elif isinstance(given, list):
        assert len(made) == len(given)
        for number, (mine, theirs) in enumerate(zip(made, given, strict=True)):
            yield from known_keys(mine, theirs, f"{path}[{number}]")
    elif made != given:
        yield f"{path}: {made} is not {given}"


def test_dashboard_is_what_grafana_knows():
    """Its own library reads it, and writes it again with nothing lost."""
    plugins.register_default_plugins()
    given = json.loads(render()["dashboard.json"])
    made = json.loads(JSONEncoder(sort_keys=True).encode(Dashboard.from_json(given)))
    assert list(known_keys(made, given)) == []


def test_library_loses_what_grafana_does_not_know():
    given = monitoring.dashboard() | {"colour": "red"}
    plugins.register_default_plugins()
    made = json.loads(JSONEncoder(sort_keys=True).encode(Dashboard.from_json(given)))
    assert list(known_keys(made, given)) == [".colour"]


def test_panels_of_the_dashboard_do_not_overlap():
    places = [panel["gridPos"] for panel in monitoring.dashboard()["panels"]]
    cells = [
        (x, y)
        for place in places
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24
    ids = [panel["id"] for panel in monitoring.dashboard()["panels"]]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("wrong", [0, 1, 1.5, -1])
def test_share_is_between_none_and_all(wrong):
    with pytest.raises(ValueError, match="slo_fast"):
        Monitoring(slo_fast=wrong)
