"""`python answering_server.py`: answers gRPC and REST at once; prints the two ports."""

import socketserver
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler

import grpc


class Everything(grpc.GenericRpcHandler):
    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(lambda request, context: request)


class Rest(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet
    disable_nagle_algorithm = True

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


class RestServer(socketserver.ThreadingTCPServer):
    daemon_threads = True
    request_queue_size = 100

    def handle_error(self, request, client_address):
        pass


if __name__ == "__main__":
    server = grpc.server(ThreadPoolExecutor(8), handlers=[Everything()])
    grpc_port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    rest = RestServer(("127.0.0.1", 0), Rest)
    threading.Thread(target=rest.serve_forever, daemon=True).start()
    sys.stdout.write(f"{grpc_port} {rest.server_address[1]}\n")
    sys.stdout.flush()
    sys.stdin.read()  # until the test is over
