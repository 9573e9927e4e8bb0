"""What a search leaves behind: a deployment file, a batching file, data and text."""

import math
import tomllib

import pytest

from tests.unit.tuning.simulated import Bed, small_batches_are_best
from tfserve_kit import deployment, protos
from tfserve_kit.deployment.spec import Batching
from tfserve_kit.errors import UsageError
from tfserve_kit.perf import gate
from tfserve_kit.tuning import Candidate, Effort, HighestRate, LowestLatency, Space, results, tune
from tfserve_kit.tuning.goals import Point, Proof, Score
from tfserve_kit.tuning.study import Tried
from tfserve_kit.tuning.tune import Tuned

GOAL = HighestRate(gate.parse("p95<50ms"))
CONFIG = """\
# Ours.
[server]
name = "web"  # on the left
flags = {num_load_threads = 2}

[models.digits]
base_path = "models/digits"
versions = "all"

[batching]
max_batch_size = 4
allowed_batch_sizes = [1, 4]
"""
BEST = Candidate(
    Batching(max_batch_size=8, num_batch_threads=1, allowed_batch_sizes=(1, 8)),
    {"grpc_max_threads": 64},
)


@pytest.fixture
def config(tmp_path):
    """A deployment file."""
    file = tmp_path / "tfkit.toml"
    file.write_text(CONFIG)
    return file


class TestWrite:
    def written(self, config, tmp_path, candidate=BEST):
        (tmp_path / "tuned").mkdir()
        files = results.write(candidate, deployment.load(config), config, tmp_path / "tuned")
        return {file.name: file.read_text() for file in files}

    def test_deployment_is_the_same_but_for_the_settings(self, config, tmp_path):
        texts = self.written(config, tmp_path)
        before, after = tomllib.loads(CONFIG), tomllib.loads(texts["tfkit.toml"])
        assert after.pop("batching") == {
            "max_batch_size": 8, "num_batch_threads": 1, "allowed_batch_sizes": [1, 8],
        }  # fmt: skip
        assert after["server"].pop("flags") == {"num_load_threads": 2, "grpc_max_threads": 64}
        assert after["models"]["digits"].pop("base_path") == "../models/digits"
        del before["batching"], before["server"]["flags"], before["models"]["digits"]["base_path"]
        assert after == before
        assert all(text.startswith("# written by tfkit tune\n") for text in texts.values())
        assert "# Ours." in texts["tfkit.toml"] and "# on the left" in texts["tfkit.toml"]

    def test_it_describes_what_was_measured(self, config, tmp_path):
        self.written(config, tmp_path)
        loaded = deployment.load(tmp_path / "tuned" / "tfkit.toml")
        assert loaded == BEST.applied(deployment.load(config))

    def test_batching_file_is_what_a_server_reads(self, config, tmp_path):
        text = self.written(config, tmp_path)["batching_config.txt"]
        message = protos.from_text("BatchingParameters", text)
        assert message.max_batch_size.value == 8 and list(message.allowed_batch_sizes) == [1, 8]

    def test_without_batching_there_is_no_section_and_no_file(self, config, tmp_path):
        texts = self.written(config, tmp_path, Candidate(None, {}))
        assert set(texts) == {"tfkit.toml"}
        assert "batching" not in tomllib.loads(texts["tfkit.toml"])

    def test_deployment_without_a_file_gets_one(self, tmp_path):
        bare = deployment.build({"models": {"m": {"base_path": "m"}}}, source="t", folder=tmp_path)
        text = results.as_toml(BEST, bare, None, tmp_path)
        assert tomllib.loads(text)["models"] == {"m": {"base_path": "m"}}

    def test_base_path_in_a_store_stays(self, tmp_path):
        models = {"m": {"base_path": "gs://bucket/m"}}
        bare = deployment.build({"models": models}, source="t", folder=tmp_path)
        text = results.as_toml(BEST, bare, None, tmp_path)
        assert tomllib.loads(text)["models"] == models

    def test_deployment_file_itself_may_be_rewritten(self, config, tmp_path):
        results.write(BEST, deployment.load(config), config, tmp_path)
        assert tomllib.loads(config.read_text())["models"]["digits"]["base_path"] == "models/digits"
        assert "written by" not in config.read_text()
        assert "written by tfkit" in (tmp_path / "batching_config.txt").read_text()
        names = {"tfkit.toml", "batching_config.txt"}
        assert {each.name for each in tmp_path.iterdir()} == names

    def test_folder_that_is_gone_is_named(self, config, tmp_path):
        with pytest.raises(UsageError, match="cannot write"):
            results.write(BEST, deployment.load(config), config, tmp_path / "gone")


def tried(number, *points, beaten=False, value=None, failure=""):
    scores = () if failure else (Score(value, points, beaten),)
    return Tried(number, Candidate(None, {}), scores, failure)


class TestText:
    def test_names_every_candidate_the_front_and_the_proof(self, tmp_path):
        space = Space(cpus=4, rows=1, protocol="grpc", patience_s=0.05)
        bed = Bed(small_batches_are_best)
        tuned = tune(bed, GOAL, space, Effort(tmp_path / "tuned", trials=12))
        text = results.as_text(tuned)
        lines = text.splitlines()
        assert lines[0] == "highest rate with p95<50ms"
        assert "/s  batching by default" in text and "beaten  no batching" in text
        assert sum(line.startswith("*") for line in lines) == 1
        assert "Pareto front" in text
        assert sum("/s -> " in line for line in lines) == 6
        assert f"Better: {tuned.proof.gain:.2f} times (95 % interval" in text

    def test_says_why_runs_do_not_count(self):
        late = Point(10, 0.1, held=False, invalid="the generator was late")
        text = results.as_text(Tuned(GOAL, (tried(0, late, value=None),), None, None))
        assert "1 of 1 runs count as failed, being INVALID: the generator was late" in text
        assert "never" in text and text.endswith("Nothing could be measured.")

    @pytest.mark.parametrize(("rounds", "said"), [(1, "1 round is"), (5, "5 rounds are")])
    def test_says_that_rounds_are_too_few_and_calls_nothing_unclear(self, rounds, said):
        best = tried(1, value=200.0)
        proof = Proof.of([(10.0, 70.6)] * rounds, GOAL.gain)
        text = results.as_text(Tuned(GOAL, (tried(0, value=10.0), best), best, proof))
        assert f"Not proved: {said} too few to tell (median 7.06 times)" in text
        assert "--rounds 6" in text and "Unclear" not in text

    def test_says_which_limit_refused_requests(self):
        full = Point(10, 0.1, held=False, failure="RESOURCE_EXHAUSTED")
        text = results.as_text(Tuned(GOAL, (tried(0, full, value=None),), None, None))
        assert "In 1 of 1 runs the server refused requests (RESOURCE_EXHAUSTED)" in text
        assert "grpc_max_threads" in text and "max_enqueued_batches" in text

    def test_says_where_nothing_keeps_the_limit(self):
        slow = Point(10, 0.1, held=False)
        text = results.as_text(Tuned(GOAL, (tried(0, slow, value=None),), None, None))
        assert text.endswith("None of the settings tried meets this.")

    @pytest.mark.parametrize(
        ("each", "word"),
        [
            (tried(0, failure="no"), "failed"),
            (tried(0, value=3.0, beaten=True), "beaten"),
            (tried(0, value=1234.0), "1,234/s"),
        ],
    )
    def test_says_what_became_of_a_candidate(self, each, word):
        assert word in results.as_text(Tuned(GOAL, (each,), None, None)).splitlines()[2]

    def test_default_that_wins_is_said_to(self):
        best = Tried(0, Candidate(), tried(0, value=3.0).scores)
        assert "default batching was the best" in results.as_text(Tuned(GOAL, (best,), best, None))
        unbatched = tried(0, value=3.0)
        text = results.as_text(Tuned(GOAL, (unbatched,), unbatched, None))
        assert "The server's default was the best" in text


class TestData:
    def test_infinite_values_are_null(self):
        best = tried(0, Point(9, None, held=False), value=0.1)
        proof = Proof.of([(math.inf, 0.1)] * 6, LowestLatency(9).gain)
        data = results.as_data(Tuned(LowestLatency(9), (best,), best, proof))
        assert data["proof"]["rounds"] == [[None, 0.1]] * 6
        assert data["proof"]["gain"] is None and data["outcome"] == "better"
        assert data["candidates"][0]["value"] == 0.1
