"""A static scan of `saved_model.pb`: what would run in a server, and what of it had better not.

Nothing is run and tensorflow is not needed. Every node of the graph and of its function library is
looked at once; one counts as run if a signature, the init operation or the restoring of variables
needs it. What the scan cannot see is said in docs/inspect.md.

Source: the kernels in tensorflow/core/kernels (which inputs are file names, which attributes name
files or functions) and, for operations that are not tensorflow's own,
tensorflow_serving/model_servers/BUILD (SUPPORTED_TENSORFLOW_OPS).
"""

import math
import pkgutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from tfserve_kit.errors import Problem, Severity, worst_first
from tfserve_kit.savedmodel import GRAPH_FILE, NOTE_PATH, VARIABLES_INDEX, WARMUP_FILE
from tfserve_kit.savedmodel.checkpoint import CheckpointError, StoredTensor, tensors
from tfserve_kit.savedmodel.graph import (
    MAIN,
    Graph,
    Origin,
    Reach,
    asset_files,
    node_name,
    origins,
    tensor_names,
    unanswerable,
)
from tfserve_kit.savedmodel.signatures import Signature, graph_signatures
from tfserve_kit.tensors import dtypes

_E, _W, _I = Severity.ERROR, Severity.WARNING, Severity.INFO


@dataclass(frozen=True, slots=True)
class _OpRule:
    """What is said of an operation that runs in a server.

    Attributes:
        severity: error for what must not be served.
        reason: what the operation does, as the end of a sentence that begins with its name.
        applies: whether the rule holds for a node; the NodeDef is given.
        file_inputs: which inputs name a file; files among the model's own assets are fine.
        signatures_only: loading may do it (setting variables); answering a request should not.
    """

    severity: Severity
    reason: str
    applies: Callable[[Any], bool] = lambda _: True
    file_inputs: tuple[int, ...] = ()
    signatures_only: bool = False


# Restoring reads the variables' files, and nothing else may.
_RESTORE_OPS = frozenset({"Restore", "RestoreSlice", "RestoreV2"})


@cache
def registered() -> frozenset[str]:
    """Return the names of all operations that tensorflow itself registers."""
    return frozenset((pkgutil.get_data("tfserve_kit.protos", "ops.txt") or b"").decode().split())


# Linked into the official server beside tensorflow's own.
_TEXT = """
    CaseFoldUTF8 ConstrainedSequence FastBertNormalize FastWordpieceTokenizeWithOffsets
    FindSourceOffsets MaxSpanningTree NormalizeUTF8 NormalizeUTF8WithOffsetsMap PhraseTokenize
    RegexSplitWithOffsets SentenceFragments SentenceFragmentsV2 SentencepieceDetokenizeOp
    SentencepieceIdToStringOp SentencepieceOp SentencepieceStringToIdOp SentencepieceTokenizeOp
    SentencepieceTokenizeWithOffsetsOp SentencepieceVocabSizeOp SplitMergeTokenizeWithOffsets
    TFText>BoiseTagsToOffsets TFText>ByteSplitByOffsets TFText>ByteSplitWithOffsets
    TFText>FastSentencepieceDetokenize TFText>FastSentencepieceTokenize
    TFText>FastWordpieceDetokenize TFText>NgramsStringJoin TFText>OffsetsToBoiseTags
    TFText>PhraseDetokenize TFText>RoundRobinGenerateMasks TFText>RoundRobinTrim
    TFText>Utf8Binarize TFText>WhitespaceTokenizeWithOffsetsV2 TokenizerFromLogits
    UnicodeScriptTokenizeWithOffsets WhitespaceTokenizeWithOffsets WordpieceTokenizeWithOffsets
"""
_FOREST = """
    SimpleMLCreateModelResource SimpleMLInferenceLeafIndexOpWithHandle SimpleMLInferenceOp
    SimpleMLInferenceOpWithHandle SimpleMLLoadModelFromPath SimpleMLLoadModelFromPathWithHandle
"""
TEXT_OPS, FOREST_OPS = frozenset(_TEXT.split()), frozenset(_FOREST.split())


def _attribute(node: Any, name: str) -> Any:
    return node.attr.get(name)


def _prints_to_file(node: Any) -> bool:
    stream = _attribute(node, "output_stream")
    return stream is not None and stream.s.startswith(b"file:")


def _reads_descriptors(node: Any) -> bool:
    source = _attribute(node, "descriptor_source")
    return source is not None and not source.s.startswith((b"local:", b"bytes:"))


def _debugs_elsewhere(node: Any) -> bool:
    urls = _attribute(node, "debug_urls")
    return urls is not None and any(not url.startswith(b"memcbk:") for url in urls.list.s)


def _is_training(node: Any) -> bool:
    flag = _attribute(node, "is_training")
    return flag is None or flag.b  # left out where it has its default, true


_READERS = """FixedLengthRecordReader FixedLengthRecordReaderV2 LMDBReader RecordInput
    TFRecordReader TFRecordReaderV2 TextLineReader TextLineReaderV2 WholeFileReader
    WholeFileReaderV2"""
_WRITERS = """CalibrationStatisticsSaver DatasetToTFRecord ExperimentalDatasetToTFRecord SaveDataset
    SaveDatasetV2 SnapshotDataset SnapshotDatasetV2"""
_ASSIGNMENTS = """Assign AssignAdd AssignAddVariableOp AssignSub AssignSubVariableOp
    AssignVariableOp ResourceScatterAdd ResourceScatterNdUpdate ResourceScatterUpdate ScatterAdd
    ScatterNdUpdate ScatterUpdate"""
_DEBUGGERS = """DebugIdentity DebugIdentityV2 DebugIdentityV3 DebugNanCount DebugNumericSummary
    DebugNumericSummaryV2"""
_DATASET_FILES = """CSVDataset CSVDatasetV2 ExperimentalCSVDataset ExperimentalLMDBDataset
    ExperimentalMatchingFilesDataset FixedLengthRecordDataset FixedLengthRecordDatasetV2 LMDBDataset
    ListSnapshotChunksDataset LoadDataset MatchingFilesDataset SnapshotChunkDataset
    SnapshotDatasetReader SnapshotNestedDatasetReader TFRecordDataset TFRecordDatasetV2
    TextLineDataset"""
_SUMMARIES = """CloseSummaryWriter CreateSummaryDbWriter CreateSummaryFileWriter FlushSummaryWriter
    ImportEvent StatsAggregatorSetSummaryWriter SummaryWriter WriteAudioSummary WriteGraphSummary
    WriteHistogramSummary WriteImageSummary WriteRawProtoSummary WriteScalarSummary WriteSummary"""
_REMOTE = """DataServiceDataset DataServiceDatasetV2 DataServiceDatasetV3 DataServiceDatasetV4
    DeleteRpcFutureResource RegisterDataset RegisterDatasetV2 RemoteCall RpcCall RpcCheckStatus
    RpcClient RpcGetValue RpcServer RpcServerRegister RpcServerStart Send Recv _Send _Recv _HostSend
    _HostRecv CollectiveAllToAllV2 CollectiveAllToAllV3 CollectiveAssignGroupV2 CollectiveBcastRecv
    CollectiveBcastRecvV2 CollectiveBcastSend CollectiveBcastSendV2 CollectiveGather
    CollectiveGatherV2 CollectiveInitializeCommunicator CollectiveReduce CollectiveReduceScatterV2
    CollectiveReduceV2 CollectiveReduceV3"""

_PYTHON = "PyFunc PyFuncStateless EagerPyFunc"
# Operations, separated by blanks, to what is said of them.
_TABLE: tuple[tuple[str, _OpRule], ...] = (
    (_PYTHON,
     _OpRule(_E, "calls Python code, which a server cannot execute")),
    ("ReadFile", _OpRule(_E, "reads a file", file_inputs=(0,))),
    ("InitializeTableFromTextFile InitializeTableFromTextFileV2",
     _OpRule(_E, "fills a table from a file", file_inputs=(1,))),
    ("WriteFile MatchingFiles FileSystemSetConfiguration",
     _OpRule(_E, "uses the server's file system")),
    ("GenerateVocabRemapping", _OpRule(_E, "reads files", file_inputs=(0, 1))),
    ("LoadAndRemapMatrix Restore RestoreSlice RestoreV2 DTensorRestoreV2",
     _OpRule(_E, "reads a checkpoint")),
    ("Save SaveSlices SaveV2 DistributedSave MergeV2Checkpoints",
     _OpRule(_E, "writes a checkpoint")),
    ("ImmutableConst", _OpRule(_E, "maps a file into memory")),
    (_READERS, _OpRule(_E, "reads files")),
    (_DATASET_FILES, _OpRule(_E, "reads a dataset from files", file_inputs=(0,))),
    ("SqlDataset ExperimentalSqlDataset", _OpRule(_E, "reads a database")),
    (_WRITERS, _OpRule(_E, "writes files")),
    ("DatasetFromGraph", _OpRule(_E, "runs a graph hidden in a tensor")),
    (_REMOTE, _OpRule(_E, "talks to other machines or processes")),
    (_SUMMARIES, _OpRule(_E, "writes logs for TensorBoard")),
    ("Abort", _OpRule(_E, "ends the server")),
    ("DumpTensor", _OpRule(_E, "writes tensors to files")),
    ("XlaCustomCall XlaCustomCallV2", _OpRule(_E, "calls native code by name")),
    ("PrintV2", _OpRule(_E, "writes to a file", applies=_prints_to_file)),
    ("DecodeProtoV2 EncodeProto",
     _OpRule(_E, "reads its descriptors from a file", applies=_reads_descriptors)),
    (_DEBUGGERS, _OpRule(_E, "sends tensors to a debugger", applies=_debugs_elsewhere)),
    ("CacheDataset CacheDatasetV2", _OpRule(_E, "keeps a cache in files", file_inputs=(1,))),
    ("SimpleMLLoadModelFromPath", _OpRule(_W, "reads a forest's files", file_inputs=(0,))),
    ("SimpleMLLoadModelFromPathWithHandle",
     _OpRule(_W, "reads a forest's files", file_inputs=(1,))),
    ("PrintV2", _OpRule(_W, "writes to the server's log on every request",
                      applies=lambda node: not _prints_to_file(node), signatures_only=True)),
    ("Print", _OpRule(_W, "writes to the server's log", signatures_only=True)),
    (_ASSIGNMENTS, _OpRule(_W, "changes variables; each server and each version has its own",
                         signatures_only=True)),
    ("FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3",
     _OpRule(_W, "normalizes with the batch's own statistics, as in training",
           applies=_is_training, signatures_only=True)),
    ("XlaCallModule", _OpRule(_I, "runs compiled code, which is not looked into")),
)  # fmt: skip
_TRAINING = _OpRule(_W, "trains: it changes the weights", signatures_only=True)


@cache
def rules_by_op() -> Mapping[str, tuple[_OpRule, ...]]:
    """Return the rules by operation."""
    rules: dict[str, tuple[_OpRule, ...]] = {}
    for names, rule in _TABLE:
        for name in names.split():
            rules[name] = (*rules.get(name, ()), rule)
    for name in registered():
        if _trains(name):
            rules[name] = (*rules.get(name, ()), _TRAINING)
    return rules


def _trains(name: str) -> bool:
    """Say whether an operation applies gradients: ApplyAdam, ResourceSparseApplyFtrl and others."""
    bare = name.removeprefix("Resource").removeprefix("Sparse")
    return bare.startswith("Apply")


# Bookkeeping of tf.train.Checkpoint, stored like a variable.
_SAVE_COUNTER = "save_counter/.ATTRIBUTES/VARIABLE_VALUE"


@dataclass(frozen=True, slots=True)
class Contents:
    """What a version directory holds.

    Attributes:
        tags: the tags of the graph, sorted.
        signatures: the callable signatures by name.
        tensorflow_version: the release that wrote the graph; empty if it does not say.
        variables: what the checkpoint holds, by name, without its own bookkeeping.
        assets: file names within `assets/`.
        warmup: whether there are recorded requests to warm up with.
        note: whether there is a preprocessing note.
        fingerprint: whether there is a `fingerprint.pb`.
    """

    tags: tuple[str, ...]
    signatures: Mapping[str, Signature]
    tensorflow_version: str
    variables: Mapping[str, StoredTensor]
    assets: tuple[str, ...]
    warmup: bool
    note: bool
    fingerprint: bool

    @property
    def parameters(self) -> int:
        """The number of values in all variables."""
        return sum(math.prod(variable.shape) for variable in self.variables.values())

    @property
    def parameter_bytes(self) -> int:
        """The size of all variables in bytes."""
        return sum(variable.size_bytes for variable in self.variables.values())


def read_contents(version_dir: Path, graph: Any) -> Contents:
    """Collect what a version directory holds; `graph` is its MetaGraphDef.

    An index of variables that cannot be read counts as none: `savedmodel.problems` names it.
    """
    try:
        stored = tensors(version_dir / VARIABLES_INDEX)
    except (FileNotFoundError, CheckpointError):
        stored = {}
    return Contents(
        tuple(sorted(graph.meta_info_def.tags)),
        graph_signatures(graph),
        graph.meta_info_def.tensorflow_version,
        {name: each for name, each in stored.items() if _is_variable(name, each)},
        tuple(sorted({asset.filename for asset in asset_files(graph)})),
        (version_dir / WARMUP_FILE).is_file(),
        (version_dir / NOTE_PATH).is_file(),
        (version_dir / "fingerprint.pb").is_file(),
    )


def _is_variable(name: str, stored: StoredTensor) -> bool:
    return stored.dtype is not dtypes.STRING and name != _SAVE_COUNTER


_NEVER_RUN = "; no server ever runs it here"


@dataclass(frozen=True, slots=True)
class Scan:
    """What a scan found.

    Attributes:
        findings: what whoever serves the graph should know, the worst first; the rule of each is
            the operation it is about, empty if it is about the graph.
        operations: how many nodes each operation has, the most frequent first.
        functions: number of functions in the library.
        unanswerable: why a signature can never answer, and how to export it, by its name.
    """

    findings: tuple[Problem, ...]
    operations: Mapping[str, int]
    functions: int
    unanswerable: Mapping[str, Mapping[str, str]]


def scan_graph(graph: Any) -> Scan:
    """Scan a MetaGraphDef; the time it takes grows with the number of nodes.

    Raises:
        ValueError: one of its assets is damaged.
    """
    return _Scanner(Graph(graph)).run()


def foreign_operations(graph: Any) -> list[str]:
    """Return the operations of a MetaGraphDef that tensorflow has not; others' servers may."""
    known = registered()
    names = {node.op for _, node in Graph(graph).every_node()}
    functions = {each.signature.name for each in graph.graph_def.library.function}
    return sorted(names - known - functions)


class _Scanner:
    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._served, self._initialized = graph.served(), graph.initialized()
        self._restored = graph.restored()
        self._found: dict[tuple[str, str, str], Problem] = {}
        self._counts: Counter[tuple[str, str, str]] = Counter()
        self._origins: dict[tuple[str, str, bool], set[Origin]] = {}

    def run(self) -> Scan:
        """Look at every node, then at the whole."""
        operations: Counter[str] = Counter()
        table = rules_by_op()
        for function, node in self._graph.every_node():
            operations[node.op] += 1
            self._check_origin(function, node)
            self._check_device(function, node)
            for rule in table.get(node.op, ()):
                self._check_rule(function, node, rule)
        for finding in self._whole():
            self._add("", finding)
        return Scan(
            tuple(sorted(self._counted(), key=lambda each: (worst_first(each), each.rule))),
            dict(operations.most_common()),
            len(self._graph.functions),
            unanswerable(self._graph),
        )

    def _check_rule(self, function: str, node: Any, rule: _OpRule) -> None:
        reach = self._reach(function, node, rule)
        root = reach and reach.root(function, node.name)
        if not rule.applies(node):
            return
        if root is None:
            loads = node.op in _RESTORE_OPS and self._restored.root(function, node.name)
            if rule.severity is _E and not loads:
                self._about(_I, function, node, rule.reason, _NEVER_RUN)
            return
        severity, detail = self._judged(function, node, rule, at_load=reach is not self._served)
        if severity is not None:
            self._about(severity, function, node, rule.reason, f"{detail}, run by {root}")

    def _reach(self, function: str, node: Any, rule: _OpRule) -> Reach | None:
        """Return the first purpose that runs a node and for which the rule holds."""
        purposes = [self._served, self._initialized, self._restored]
        if rule.signatures_only:
            purposes = purposes[:1]
        elif node.op in _RESTORE_OPS:
            purposes = purposes[:2]
        found = (each for each in purposes if each.root(function, node.name) is not None)
        return next(found, None)

    def _judged(
        self, function: str, node: Any, rule: _OpRule, *, at_load: bool
    ) -> tuple[Severity | None, str]:
        """Return how bad it is, None if it is not, and which file it is about."""
        if not rule.file_inputs:
            return rule.severity, ""
        sources = {
            origin
            for at in rule.file_inputs
            for tensor in node.input[at : at + 1]
            for origin in self._origins_of(function, tensor, at_load=at_load)
        }
        outside = [each for each in sources if each.kind != "asset"]
        if not outside:
            usual = node.op.startswith("InitializeTable")
            names = ", ".join(sorted({each.value for each in sources}))[:200]
            return None if usual else _I, f": its own asset {names}"
        if all(each.kind == "constant" and not each.value for each in outside):
            return None, ""  # no name: nothing is read or written
        first = max(outside, key=lambda each: (each.kind, each.value))
        named = (
            f"{first.value!r:.200}"
            if first.kind == "constant"
            else f"one whose name is computed ({first.value})"
        )
        return rule.severity, f": {named}"

    def _origins_of(self, function: str, tensor: str, *, at_load: bool) -> set[Origin]:
        key = (function, tensor, at_load)
        if key not in self._origins:
            found = origins(self._graph, (function, tensor), assets_are_fed=at_load)
            self._origins[key] = found
        return self._origins[key]

    def _check_origin(self, function: str, node: Any) -> None:
        """Look whether a server has the operation at all."""
        if node.op in registered() or node.op in self._graph.functions:
            return
        runs = function == MAIN or any(
            each.root(function, node.name) is not None
            for each in (self._served, self._initialized, self._restored)
        )
        packages = (("tensorflow_text", TEXT_OPS), ("decision forests", FOREST_OPS))
        for package, names in packages:
            if node.op in names:
                reason = f"is from {package}, which the official server has but TensorFlow does not"
                self._about(_W if runs else _I, function, node, reason, "")
                return
        reason = "is not an operation of TensorFlow: only a server built with it can run it"
        self._about(_E if runs else _I, function, node, reason, "")

    def _check_device(self, function: str, node: Any) -> None:
        if "GPU:" not in node.device.upper() or self._served.root(function, node.name) is None:
            return
        message = f"nodes are pinned to a GPU, such as {_place(function, node)}"
        remedy = "a server without one cannot run the model"
        self._add("device", Problem(GRAPH_FILE, message, remedy, _W))

    def _about(
        self, severity: Severity, function: str, node: Any, reason: str, detail: str
    ) -> None:
        """Add what is found of an operation, with the first place of it."""
        message = f"{reason}{detail} ({_place(function, node)})"
        remedy = f"export the model without it, or accept it with --allow-op {node.op}"
        if node.op in _PYTHON.split():
            remedy += "; requests will then fail"
        remedy = remedy if severity is _E else ""
        self._add(reason, Problem(node.op, message, remedy, severity, node.op))

    def _add(self, reason: str, finding: Problem) -> None:
        """Add a finding, or count it where the same was found before."""
        key = (finding.severity, finding.rule, reason or finding.message)
        self._found.setdefault(key, finding)
        self._counts[key] += 1

    def _counted(self) -> Iterator[Problem]:
        for key, finding in self._found.items():
            times = f" [{count} times]" if (count := self._counts[key]) > 1 else ""
            yield replace(finding, message=finding.message + times)

    def _whole(self) -> Iterator[Problem]:
        """Yield what is wrong with the graph as a whole."""
        meta = self._graph.meta_graph
        again = "export the model again"
        for name, definition in sorted(meta.signature_def.items()):
            for tensor in tensor_names([*definition.inputs.values(), *definition.outputs.values()]):
                if node_name(tensor) not in self._graph.nodes:
                    text = f"signature {name!r} names {tensor!r}, which is not in the graph"
                    yield Problem(GRAPH_FILE, text, again)
        yield from self._dangling()
        for asset in asset_files(meta):
            path = PurePosixPath(asset.filename)
            if path.is_absolute() or ".." in path.parts:
                text = f"asset {asset.filename!r} lies outside the model's assets"
                yield Problem(GRAPH_FILE, text, "export the model with the file inside it")
        compiled = [
            name
            for name, function in self._graph.functions.items()
            if "_XlaMustCompile" in function.attr and function.attr["_XlaMustCompile"].b
        ]
        if compiled:
            text = f"functions must be compiled by XLA, such as {compiled[0]!r}"
            times = f" [{len(compiled)} times]" if len(compiled) > 1 else ""
            yield Problem(GRAPH_FILE, text + times, severity=_I)

    def _dangling(self) -> Iterator[Problem]:
        """Yield the first node whose input is missing: no server loads such a graph."""
        for node in self._graph.nodes.values():
            for tensor in node.input:
                if node_name(tensor) not in self._graph.nodes:
                    text = f"node {node.name!r} needs {tensor!r}, which is not in the graph"
                    yield Problem(GRAPH_FILE, text, "export the model again")
                    return


def _place(function: str, node: Any) -> str:
    return f"node {node.name!r:.200}" + (
        f" of function {function!r:.200}" if function != MAIN else ""
    )
