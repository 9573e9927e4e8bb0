"""The embedded engine: a model server on the tensorflow wheel that speaks TensorFlow Serving.

Bottom to top: `status`, `settings` (flags) -> `servable` -> `loader`, `tflite` (import tensorflow)
-> `versions` (what to do next) -> `source` (what is on disk) -> `manager` (does it) -> `handlers`
(requests as plain values) -> `grpc_surface`, `rest_surface` (bytes to bytes) -> `grpc_transport`,
`http_connection`, `http_transport` (sockets) -> `server` (puts them together) -> `__main__`.
"""
