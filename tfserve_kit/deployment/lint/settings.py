"""Rules about batching, monitoring and flags: values that cannot work, or do nothing together."""

from collections.abc import Iterator

from tfserve_kit.deployment.lint.facts import TFLITE_FILE, Facts
from tfserve_kit.deployment.lint.findings import Rule, Severity
from tfserve_kit.errors import Problem

# From here on a batch is hardly filled by those who happen to wait.
_LARGE_BATCH = 32
# More threads than this for each CPU only wait for each other.
_THREADS_PER_CPU = 4
# A failing load that is given up within this time disturbs nobody much.
_SHORT_STALL_S = 10


def _batch_never_full(facts: Facts) -> Iterator[Problem]:
    """Each handler thread waits for its answer, so no more requests than threads are there.

    Without a timeout nobody waits for a batch to fill, and the default size is no wish.
    Source: tensorflow_serving/batching/README.md, model_servers/server.h (threads).
    """
    batching, size = facts.batching, facts.max_batch_size
    if batching is None or not (batching.max_batch_size or batching.batch_timeout_micros):
        return
    most = max(facts.handlers.values())
    if size > most:
        threads = " and ".join(f"{name} is {count}" for name, count in facts.handlers.items())
        text = f"is {size}, but {threads}: requests of one row never fill a batch beyond {most}"
        remedy = f"set these flags to {2 * size} under [server.flags], or this to at most {most}"
        yield Problem("batching.max_batch_size", text, remedy)


def _batch_timeout_zero(facts: Facts) -> Iterator[Problem]:
    """Then a batch is closed as soon as a batch thread is free, whatever it holds.

    Source: tensorflow/core/kernels/batching_util/shared_batch_scheduler.h.
    """
    if facts.batching is None or facts.batching.batch_timeout_micros:
        return
    if facts.max_batch_size >= _LARGE_BATCH:
        text = f"is 0: batches of up to {facts.max_batch_size} only form while all threads are busy"
        remedy = "set it to what a request may wait, such as 1000"
        yield Problem("batching.batch_timeout_micros", text, remedy)


def _queue_too_short(facts: Facts) -> Iterator[Problem]:
    """Without room in the queue a request gets 503. Source: as for `batch-timeout-zero`."""
    batching = facts.batching
    if batching is None or batching.max_enqueued_batches is None:
        return
    running = batching.num_batch_threads or facts.machine.cpus
    room = (batching.max_enqueued_batches + running) * facts.max_batch_size
    requests = sum(facts.handlers.values())
    if room < requests:
        text = (
            f"is {batching.max_enqueued_batches}: with {running} running there is room for {room} "
            f"rows, but {requests} requests are handled at once; the rest is refused"
        )
        yield Problem("batching.max_enqueued_batches", text, "raise it, or expect 503 at peaks")


def _many_batch_threads(facts: Facts) -> Iterator[Problem]:
    """Source: tensorflow_serving/batching/README.md, which wants one for each CPU."""
    threads = facts.batching and facts.batching.num_batch_threads
    if threads and threads > _THREADS_PER_CPU * facts.machine.cpus:
        text = f"is {threads}, on {facts.machine.cpus} CPUs"
        yield Problem("batching.num_batch_threads", text, f"start from {facts.machine.cpus}")


def _rest_gives_up_early(facts: Facts) -> Iterator[Problem]:
    """Source: tensorflow_serving/batching/batching_session.cc: 429 to who waits too long."""
    wait_ms = ((facts.batching and facts.batching.batch_timeout_micros) or 0) / 1000
    timeout_ms = facts.flags["rest_api_timeout_in_ms"]
    if wait_ms and wait_ms >= timeout_ms:
        text = f"is {timeout_ms}, but a batch may wait {wait_ms:g} ms to fill"
        remedy = "raise it, or lower batch_timeout_micros"
        yield Problem("server.flags.rest_api_timeout_in_ms", text, remedy)


def _one_load_blocks_all(facts: Facts) -> Iterator[Problem]:
    """Without load threads the repetitions of a failed load hold up the manager's own thread.

    Source: tensorflow_serving/core/basic_manager.cc (InlineExecutor).
    """
    retries, pause = facts.flags["max_num_load_retries"], facts.flags["load_retry_interval_micros"]
    stall_s = retries * pause / 1e6
    several = len(facts.spec.models) > 1
    if several and not facts.flags["num_load_threads"] and stall_s > _SHORT_STALL_S:
        text = (
            f"is 0: while a version that fails is tried {retries + 1} times, over {stall_s:g} s, "
            "no other model is loaded or unloaded"
        )
        remedy = (
            "set num_load_threads = 1, max_num_load_retries = 1 and "
            "load_retry_interval_micros = 1000000 under [server.flags]"
        )
        yield Problem("server.flags.num_load_threads", text, remedy)


_POLL = "file_system_poll_wait_seconds"


def _never_looks(facts: Facts) -> Iterator[Problem]:
    """Not even once: no version is ever found, and no port opens.

    Source: tensorflow_serving/sources/storage_path/file_system_storage_path_source.cc.
    """
    if facts.flags[_POLL] < 0:
        text = f"is {facts.flags[_POLL]}: the server never looks for versions, and never gets ready"
        yield Problem(f"server.flags.{_POLL}", text, "remove it; 0 looks once")


def _pushes_unnoticed(facts: Facts) -> Iterator[Problem]:
    """Source: as for `never-looks`."""
    waiting = [name for name, each in facts.spec.models.items() if not each.versions.specific]
    if facts.flags[_POLL] == 0 and waiting:
        text = f"is 0: versions of {', '.join(waiting)} that are pushed later are never noticed"
        yield Problem(f"server.flags.{_POLL}", text, "set it to 1 or more, or restart after a push")


def _monitoring_path_clash(facts: Facts) -> Iterator[Problem]:
    """Whatever asks for this path gets the page, never what REST has there.

    Source: tensorflow_serving/model_servers/http_server.cc.
    """
    page = facts.spec.monitoring
    if page and page.prometheus and page.path.lower().startswith("/v1/"):
        text = f"is {page.path}, among the paths of models: the page hides what has this path"
        yield Problem("monitoring.path", text, "leave it out, or choose one outside /v1/")


def _fatal_flag(facts: Facts) -> Iterator[Problem]:
    """Values that the server fails or crashes on at its start.

    Source: tensorflow_serving/model_servers/server.cc, main.cc.
    """
    threads, given = "rest_api_num_threads", facts.flags["grpc_channel_arguments"]
    if facts.flags[threads] < 1:
        text = f"is {facts.flags[threads]}: the server aborts"
        yield Problem(f"server.flags.{threads}", text, "set it to 1 or more")
    if wrong := [each for each in given.split(",") if each and "=" not in each]:
        text = f"has {wrong[0]!r} without a value: the server crashes"
        yield Problem("server.flags.grpc_channel_arguments", text, "write key=value,key=value")
    kinds = ("session", "intra_op", "inter_op")
    if all(facts.flags[f"tensorflow_{kind}_parallelism"] for kind in kinds):
        text = "contradicts the intra_op and inter_op flags: the server does not start with all"
        path = "server.flags.tensorflow_session_parallelism"
        yield Problem(path, text, "remove it, or the other two")


# Flags that do something only if another is true.
_NEEDED = {
    "num_tflite_pools": "prefer_tflite_model",
    "num_tflite_interpreters_per_pool": "prefer_tflite_model",
    "num_request_iterations_for_warmup": "enable_model_warmup",
    "enable_per_model_batching_parameters": "enable_batching",
}
# What a platform_config_file replaces.
_REPLACED = (
    "tensorflow_session_parallelism",
    "tensorflow_intra_op_parallelism",
    "tensorflow_inter_op_parallelism",
)


def _without_effect(facts: Facts) -> Iterator[Problem]:
    """Source: tensorflow_serving/model_servers/server.cc."""
    given, batching = facts.spec.server.flags, facts.batching
    for name, needed in _NEEDED.items():
        if given.get(name) and not facts.flags[needed]:
            needs = "[batching]" if needed == "enable_batching" else f"{needed} = true"
            text = f"does nothing: it needs {needs}"
            yield Problem(f"server.flags.{name}", text, "add that, or remove it")
    if batching and batching.max_execution_batch_size and not batching.enable_large_batch_splitting:
        text = "does nothing: it needs enable_large_batch_splitting = true"
        yield Problem("batching.max_execution_batch_size", text, "add that, or remove it")
    if given.get("platform_config_file"):
        names = [f"server.flags.{name}" for name in _REPLACED if given.get(name)]
        for path in names + ["batching"] * (batching is not None):
            text = "does nothing: platform_config_file replaces it"
            yield Problem(path, text, "say it in that file, or remove one of them")


def _no_tflite_model(facts: Facts) -> Iterator[Problem]:
    """Source: tensorflow_serving/servables/tensorflow/saved_model_bundle_factory.cc."""
    loaded = [(base, version) for base in facts.bases for version in base.loaded]
    if not facts.flags["prefer_tflite_model"] or not loaded or facts.remote:
        return
    if not any(base.serves_tflite(version) for base, version in loaded):
        text = f"does nothing: no version that will be loaded holds a {TFLITE_FILE}"
        yield Problem("server.flags.prefer_tflite_model", text, "remove it, or push one with it")


_E, _W, _I = Severity.ERROR, Severity.WARNING, Severity.INFO

RULES = (
    Rule("never-looks", _E,
         "a negative `file_system_poll_wait_seconds`: no version is ever found",
         _never_looks),
    Rule("fatal-flag", _E,
         "flags that the server crashes on or does not start with",
         _fatal_flag),
    Rule("batch-never-full", _W,
         "`max_batch_size` is above the number of requests that are handled at once",
         _batch_never_full),
    Rule("rest-gives-up-early", _W,
         "REST requests time out before a batch that is not full is run",
         _rest_gives_up_early),
    Rule("pushes-unnoticed", _W,
         "`file_system_poll_wait_seconds` 0 looks for versions only at the start",
         _pushes_unnoticed),
    Rule("monitoring-path-clash", _W,
         "the page of metrics lies among the paths of the REST API",
         _monitoring_path_clash),
    Rule("without-effect", _W,
         "a setting does nothing, because it needs another or another replaces it",
         _without_effect),
    Rule("no-tflite-model", _W,
         "`prefer_tflite_model`, but no version has such a model",
         _no_tflite_model),
    Rule("batch-timeout-zero", _I,
         "large batches, but no time to fill them",
         _batch_timeout_zero),
    Rule("queue-too-short", _I,
         "less room for waiting rows than requests that are handled at once",
         _queue_too_short),
    Rule("many-batch-threads", _I,
         "more than four batch threads for each CPU",
         _many_batch_threads),
    Rule("one-load-blocks-all", _I,
         "with several models, a version that fails to load holds up all of them for minutes",
         _one_load_blocks_all),
)  # fmt: skip
