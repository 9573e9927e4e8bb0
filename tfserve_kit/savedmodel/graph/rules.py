"""What a model that is served has no business with, by operation.

Source: the kernels in tensorflow/core/kernels (which inputs are file names, which attributes name
files or functions) and, for operations that are not tensorflow's own,
tensorflow_serving/model_servers/BUILD (SUPPORTED_TENSORFLOW_OPS).
"""

import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

Severity = Literal["error", "warning", "info"]


@dataclass(frozen=True, slots=True)
class Rule:
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
RESTORE_OPS = frozenset({"Restore", "RestoreSlice", "RestoreV2"})


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

# Operations, separated by blanks, to what is said of them.
_TABLE: tuple[tuple[str, Rule], ...] = (
    ("PyFunc PyFuncStateless EagerPyFunc", Rule("error", "calls Python code, which no server has")),
    ("ReadFile", Rule("error", "reads a file", file_inputs=(0,))),
    ("InitializeTableFromTextFile InitializeTableFromTextFileV2",
     Rule("error", "fills a table from a file", file_inputs=(1,))),
    ("WriteFile MatchingFiles FileSystemSetConfiguration",
     Rule("error", "uses the server's file system")),
    ("GenerateVocabRemapping", Rule("error", "reads files", file_inputs=(0, 1))),
    ("LoadAndRemapMatrix Restore RestoreSlice RestoreV2 DTensorRestoreV2",
     Rule("error", "reads a checkpoint")),
    ("Save SaveSlices SaveV2 DistributedSave MergeV2Checkpoints",
     Rule("error", "writes a checkpoint")),
    ("ImmutableConst", Rule("error", "maps a file into memory")),
    (_READERS, Rule("error", "reads files")),
    (_DATASET_FILES, Rule("error", "reads a dataset from files", file_inputs=(0,))),
    ("SqlDataset ExperimentalSqlDataset", Rule("error", "reads a database")),
    (_WRITERS, Rule("error", "writes files")),
    ("DatasetFromGraph", Rule("error", "runs a graph hidden in a tensor")),
    (_REMOTE, Rule("error", "talks to other machines or processes")),
    (_SUMMARIES, Rule("error", "writes logs for TensorBoard")),
    ("Abort", Rule("error", "ends the server")),
    ("DumpTensor", Rule("error", "writes tensors to files")),
    ("XlaCustomCall XlaCustomCallV2", Rule("error", "calls native code by name")),
    ("PrintV2", Rule("error", "writes to a file", applies=_prints_to_file)),
    ("DecodeProtoV2 EncodeProto",
     Rule("error", "reads its descriptors from a file", applies=_reads_descriptors)),
    (_DEBUGGERS, Rule("error", "sends tensors to a debugger", applies=_debugs_elsewhere)),
    ("CacheDataset CacheDatasetV2", Rule("error", "keeps a cache in files", file_inputs=(1,))),
    ("SimpleMLLoadModelFromPath", Rule("warning", "reads a forest's files", file_inputs=(0,))),
    ("SimpleMLLoadModelFromPathWithHandle",
     Rule("warning", "reads a forest's files", file_inputs=(1,))),
    ("PrintV2", Rule("warning", "writes to the server's log at each request",
                     applies=lambda node: not _prints_to_file(node), signatures_only=True)),
    ("Print", Rule("warning", "writes to the server's log", signatures_only=True)),
    (_ASSIGNMENTS, Rule("warning", "changes variables; each server and each version has its own",
                        signatures_only=True)),
    ("FusedBatchNorm FusedBatchNormV2 FusedBatchNormV3",
     Rule("warning", "normalizes with the batch's own statistics, as in training",
          applies=_is_training, signatures_only=True)),
    ("XlaCallModule", Rule("info", "runs compiled code, which is not looked into")),
)  # fmt: skip
_TRAINING = Rule("warning", "trains: it changes the weights", signatures_only=True)


@cache
def table() -> Mapping[str, tuple[Rule, ...]]:
    """Return the rules by operation."""
    rules: dict[str, tuple[Rule, ...]] = {}
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
