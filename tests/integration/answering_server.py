"""A process that answers gRPC and REST, at once or later, and counts what it did.

Its standard input takes settings as lines of JSON: `{"delay_s": 0.1}` holds every request for so
long, `{"median_s": 0.1, "sigma": 0.5, "seed": 1}` for lognormal times; `"slots": 4` lets four of
them be held at a time, others wait before that. The line `"told"` makes it print how many requests
came, and for how long it truly held those that it answered since the last such line. It ends with
its standard input.
"""

import asyncio
import contextlib
import json
import os
import random
import sys
import threading
import time

import grpc


class Work:
    """What becomes of a request, over either protocol."""

    def __init__(self):
        self._drawn_s = lambda: 0.0
        self._slots = contextlib.nullcontext()
        self._came = 0
        self._held_ns = []

    async def hold(self):
        came_ns = time.monotonic_ns()
        self._came += 1
        delay_s = self._drawn_s()
        if delay_s:
            async with self._slots:
                await asyncio.sleep(delay_s)
        self._held_ns.append(time.monotonic_ns() - came_ns)

    def set(self, *, delay_s=0.0, median_s=0.0, sigma=0.0, seed=0, slots=0):
        source = random.Random(seed)
        self._slots = asyncio.Semaphore(slots) if slots else contextlib.nullcontext()
        self._drawn_s = lambda: delay_s + median_s * source.lognormvariate(0, sigma)

    def tell(self):
        told = [self._came, self._held_ns]
        self._came, self._held_ns = 0, []
        return told

    def obey(self, loop):
        """Do what standard input says, until its end."""
        for line in sys.stdin:
            loop.call_soon_threadsafe(self._obey, json.loads(line))
        os._exit(0)

    def _obey(self, order):
        if order == "told":
            print(json.dumps(self.tell()), flush=True)
        else:
            self.set(**order)


class Grpc(grpc.GenericRpcHandler):
    def __init__(self, work):
        self._work = work

    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(self._answer)

    async def _answer(self, request, context):
        await self._work.hold()
        return request


async def answer_rest(work, reader, writer):
    with contextlib.suppress(OSError, asyncio.IncompleteReadError):
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            if head.startswith(b"get "):  # a gateway asks how its model is
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nAVAILABLE")
                continue
            size = int(head.partition(b"content-length:")[2].split(b"\r\n")[0])
            body = await reader.readexactly(size)
            await work.hold()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (size, body))
    writer.close()


async def main(grpc_port, rest_port, host):
    work = Work()
    server = grpc.aio.server(handlers=[Grpc(work)])
    grpc_port = server.add_insecure_port(f"{host}:{grpc_port}")
    await server.start()
    rest = await asyncio.start_server(
        lambda *streams: answer_rest(work, *streams), host, rest_port,
        reuse_port=True, backlog=1000,
    )  # fmt: skip
    print(grpc_port, rest.sockets[0].getsockname()[1], flush=True)
    threading.Thread(target=work.obey, args=(asyncio.get_running_loop(),), daemon=True).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*map(int, sys.argv[1:3]), sys.argv[3]))
