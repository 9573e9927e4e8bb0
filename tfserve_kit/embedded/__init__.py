"""The embedded engine: a model server on the tensorflow wheel that speaks TensorFlow Serving.

Bottom to top: `limits`, `status`, `ledger` (what a request may hold), `signatures`, `metrics` ->
`unrolled` (several requests in one run), `servable` (a loaded version), `batching` (around one) ->
`settings` (flags) -> `manager` (which versions are loaded, lends them) -> `handlers` (requests as
plain values) -> `messages`, `json_reader`, `json_writer`, `json_process` -> `grpc_surface`,
`rest_surface` (bytes to bytes) -> `lanes`, `running` (who works when) -> `http2`, `grpc_protocol`
(without sockets) -> `front` (event loop, ports) -> `grpc_transport`, `http_transport` (connections)
-> `server` (puts them together) -> `__main__`. `loader` alone imports tensorflow.
"""
