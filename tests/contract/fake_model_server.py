"""Takes the place of tensorflow_model_server where only its life matters: same flags, real ports.

It answers GetModelStatus for the models of its configuration file; the rest is UNIMPLEMENTED. Its
own argument `--fake=...` chooses another life:

    exit:N     say a few lines, end with status N
    never      live, but never open a port
    loading    open the ports, but never finish loading
    failed     open the ports, with a load that failed
    deaf       ignore SIGTERM
    noisy      write bytes that are no UTF-8
"""

import signal
import socket
import sys
import threading
from concurrent import futures
from pathlib import Path

FAILED = 255


def main(arguments):
    lives = [each.removeprefix("--fake=") for each in arguments if each.startswith("--fake=")]
    life, _, code = (lives[-1] if lives else "").partition(":")
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: life == "deaf" or stop.set())
    say(f"fake model server, {len(arguments)} arguments")
    if life == "exit":
        say("something is wrong\nit cannot go on")
        return int(code)
    if life == "noisy":
        sys.stdout.buffer.write(b"no utf-8: \xff\n")
        sys.stdout.flush()
    if life == "never":
        stop.wait()
        return 0
    return serve(arguments, life, stop)


def say(text):
    print(text, flush=True)


def serve(arguments, life, stop):
    import grpc  # here, so that the short lives are quick

    from tfserve_kit import protos
    from tfserve_kit.deployment import flags

    values = flags.parse(arguments).values
    try:
        text = Path(values["model_config_file"]).read_text("utf-8")
        configs = protos.from_text("ModelServerConfig", text).model_config_list.config
        server = grpc.server(
            futures.ThreadPoolExecutor(2),
            handlers=[handler(status_of(configs, life))],
            options=[("grpc.so_reuseport", 0)],
        )
        listen(server, f"0.0.0.0:{values['port']}", values["ssl_config_file"])
        rest = socket.create_server(("0.0.0.0", values["rest_api_port"]))
    except (OSError, RuntimeError, protos.TextFormatError) as error:
        say(f"Failed to start server. Error: {error}")
        return FAILED
    with rest:
        server.start()
        say("Running gRPC ModelServer")
        stop.wait()
        server.stop(None).wait()
    say("ended as it was told to")
    return 0


def listen(server, address, ssl_config_file):
    """Open a port, with the TLS of an SSLConfig if there is one."""
    import grpc

    from tfserve_kit import protos

    if not ssl_config_file:
        server.add_insecure_port(address)
        return
    config = protos.from_text("SSLConfig", Path(ssl_config_file).read_text("utf-8"))
    credentials = grpc.ssl_server_credentials(
        [(config.server_key.encode(), config.server_cert.encode())],
        config.custom_ca.encode() or None,
        config.client_verify,
    )
    server.add_secure_port(address, credentials)


def status_of(configs, life):
    """Return what answers GetModelStatus: each model has its newest version, in one state."""
    import grpc

    from tfserve_kit import protos
    from tfserve_kit.repository import list_versions

    newest = {each.name: max(list_versions(Path(each.base_path))).number for each in configs}
    state = {
        "loading": {"state": "LOADING"},
        "failed": {"state": "END", "status": {"error_code": 11, "error_message": "cut off"}},
    }.get(life, {"state": "AVAILABLE"})

    def answer(request, context):
        name = protos.GetModelStatusRequest.FromString(request).model_spec.name
        if name not in newest:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Could not find any versions of model {name}")
        version = {"version": newest[name], **state}
        return protos.GetModelStatusResponse(model_version_status=[version]).SerializeToString()

    return answer


def handler(answer):
    import grpc

    service, method = "tensorflow.serving.ModelService", "GetModelStatus"
    methods = {method: grpc.unary_unary_rpc_method_handler(answer)}
    return grpc.method_handlers_generic_handler(service, methods)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
