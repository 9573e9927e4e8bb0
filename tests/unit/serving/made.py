"""A model server in memory, and its handle: it serves from the disk what it is told to."""

from pathlib import Path

from tfserve_kit import protos
from tfserve_kit.clients import VersionStatus
from tfserve_kit.deployment import render
from tfserve_kit.deployment.flags import MODEL_CONFIG
from tfserve_kit.engines.base import Phase, State, endpoints
from tfserve_kit.engines.records import CONFIG, DEPLOYMENT
from tfserve_kit.errors import InvalidRequest, ModelNotFound, ServerUnreachable
from tfserve_kit.repository import list_versions


class Server:
    """As the official one it takes a whole configuration, and looks at labels before it loads."""

    engine = "memory"

    def __init__(self, home, spec):
        self.home, self.spec, self.server_name = home, spec, home.name
        self.endpoints = endpoints(spec.server)
        self.url = self.endpoints.grpc
        self.broken = {}  # version -> why it does not load
        self.unseen = set()  # base paths that it cannot read
        self.told = []  # configurations, as text
        self.phase, self.exit_code, self.answers, self.stopped = Phase.RUNNING, None, True, 0
        self._models = {}
        text = render.render(spec)[MODEL_CONFIG]
        self.keep({DEPLOYMENT: spec.model_dump_json(), f"{CONFIG}/{MODEL_CONFIG}": text})
        self.reload(protos.from_text("ModelServerConfig", text))

    # The handle

    @property
    def models(self):
        return {name: each.base_path for name, each in self._models.items()}

    def keep(self, files):
        for name, text in files.items():
            (self.home / name).parent.mkdir(parents=True, exist_ok=True)
            (self.home / name).write_text(text)

    def sees(self, base_path):
        return base_path not in self.unseen

    def state(self):
        return State(self.phase, self.exit_code)

    def logs(self, *, tail=None, follow=False):
        return iter(["E first", "E last"][-(tail or 2) :])

    def stop(self, *, grace_s=10.0):
        self.stopped += 1

    # Its client

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def connect(self, *_, **__):
        return self

    def reload(self, config, *, timeout_s=1.0):
        self.told.append(str(config))
        models = {each.name: each for each in config.model_config_list.config}
        for name, each in models.items():
            lacking = set(each.version_labels.values()) - self.available(name)
            if lacking and self._models:  # not at its start
                raise InvalidRequest(f"no version {min(lacking)} of {name} for a label")
        self._models = models

    def labels(self, model):
        return dict(self._models[model].version_labels)

    def available(self, model):
        if model not in self._models:
            return set()
        return {each.version for each in self.status_of(model) if each.state == "AVAILABLE"}

    def status(self, target, *, timeout_s=1.0):
        if not self.answers:
            raise ServerUnreachable("nothing answers")
        if target.model not in self._models:
            raise ModelNotFound(f"no model {target.model}")
        return self.status_of(target.model)

    def status_of(self, model):
        config = self._models[model]
        there = [each.number for each in list_versions(Path(config.base_path))]
        pinned = set(config.model_version_policy.specific.versions)
        return [
            VersionStatus(n, "END", self.broken[n]) if n in self.broken
            else VersionStatus(n, "AVAILABLE")
            for n in there if n in (pinned or there[-1:])
        ]  # fmt: skip
