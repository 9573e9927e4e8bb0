"""What went wrong, as gRPC status codes: from HTTP statuses and from HTTP/2's reset codes."""

from collections.abc import Mapping

OK, CANCELLED, UNKNOWN, DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE = 0, 1, 2, 4, 13, 14

# The reverse of TensorFlow Serving's table, tensorflow_serving/util/net_http/public/
# response_code_enum.h and tensorflow_serving/model_servers/http_server.cc; what several codes
# share goes to the one that a server at work sends most.
_OF_REST: Mapping[int, int] = {
    200: OK, 400: 3, 401: 16, 403: 7, 404: 5, 405: 12, 408: CANCELLED, 409: 10, 412: 9, 413: 8,
    429: 8, 500: INTERNAL, 501: 12, 502: UNAVAILABLE, 503: UNAVAILABLE, 504: DEADLINE_EXCEEDED,
}  # fmt: skip
# Source: https://grpc.github.io/grpc/core/md_doc_http-grpc-status-mapping.html
_OF_GRPC_PROXY: Mapping[int, int] = {
    400: INTERNAL, 401: 16, 403: 7, 404: 12, 429: UNAVAILABLE, 502: UNAVAILABLE, 503: UNAVAILABLE,
    504: UNAVAILABLE,
}  # fmt: skip
# Source: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md, "Errors".
_OF_RESET: Mapping[int, int] = {8: CANCELLED, 11: 8, 12: 7}


def of_rest(http_status: int) -> int:
    """Return the gRPC code that an answer of the REST API stands for."""
    return _OF_REST.get(http_status, UNKNOWN)


def of_grpc_http(http_status: int) -> int:
    """Return the gRPC code of an HTTP answer that bears no grpc-status, such as a proxy's."""
    return _OF_GRPC_PROXY.get(http_status, UNKNOWN)


def of_reset(code: int) -> int:
    """Return the gRPC code of a stream that was reset with an error code of HTTP/2."""
    return _OF_RESET.get(code, INTERNAL)
