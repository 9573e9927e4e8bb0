"""Machines of a swarm on this one: Docker daemons in network namespaces, joined by a switch.

Each has its own address, data root and images, and can be killed as machines are. All that was made
is gone at the end: daemons, containers, mounts, namespaces. What a test run left that was killed is
removed by the next one. Takes root; nothing of the daemon that the machine itself has is touched.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import docker as sdk

from tfserve_kit.clock import SystemClock, wait_until

START_S = 180.0  # where all processors are busy
# A file for each swarm of this machine, locked as long as it is used, with the folder of its nodes;
# its number is also that of its network.
PLACES = Path("/run/tfkit-nodes")
MOST = 50  # swarms at once
TAIL = 30  # lines of a log
PREFIX = "tknode"  # of namespaces


def run(*command, check=True, **options):
    """Run a command and return what it printed."""
    done = subprocess.run(
        list(map(str, command)), check=check, stdout=subprocess.PIPE, text=True, **options
    )
    return done.stdout.strip()


def missing():
    """Return what this machine lacks for nodes; empty if it can have them."""
    if os.geteuid() != 0:
        return "network namespaces take root"
    absent = [each for each in ("dockerd", "ip", "nsenter") if not shutil.which(each)]
    return f"there is no {', '.join(absent)}" if absent else ""


class Node:
    """A Docker daemon with a network of its own.

    Attributes:
        address: where other nodes and this machine reach it.
        cable: the switch's namespace, and the port of it that the node is plugged into.
        url: as $DOCKER_HOST has it.
    """

    def __init__(self, name, address, folder, cable=()):
        self.name, self.address, self.folder, self.cable = name, address, folder, cable
        self.url = f"unix://{folder}/docker.sock"
        self.process = None

    def start(self, images=()):
        """Start the daemon, wait until it answers, and load images from files."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.log = (self.folder / "log").open("a")
        command = [
            "nsenter", f"--net=/run/netns/{self.name}", f"--uts={self._uts()}", "dockerd",
            f"--host={self.url}", f"--data-root={self.folder}/data",
            f"--exec-root={self.folder}/run", f"--pidfile={self.folder}/pid",
        ]  # fmt: skip
        self.process = subprocess.Popen(
            command,
            stdout=self.log,
            stderr=self.log,
            start_new_session=True,
            env={"PATH": os.environ["PATH"]},  # none of a test's own settings
        )
        answers = wait_until(self._answers, timeout_s=START_S, interval_s=0.1, clock=SystemClock())
        if not answers:
            raise RuntimeError(f"dockerd does not answer: {self.told()}")
        for image in images:
            self.load(image)

    def _uts(self):
        """Return a host name of its own to run in: a file that stands for the namespace."""
        file = self.folder / "uts"
        if not file.exists():
            file.touch()
            run("unshare", f"--uts={file}", "hostname", self.name)
        return file

    def _answers(self):
        if self.process.poll() is not None:
            return None
        asked = ("docker", "-H", self.url, "info", "--format", "{{.ID}}")
        return run(*asked, check=False, stderr=subprocess.DEVNULL) or None

    def told(self):
        """Return the end of the daemon's log."""
        return "\n".join((self.folder / "log").read_text().splitlines()[-TAIL:])

    def docker(self, *arguments, **options):
        """Run the docker command on this node."""
        return run("docker", "-H", self.url, *arguments, **options)

    def client(self):
        """Return a client of its daemon."""
        return sdk.DockerClient(self.url)

    def load(self, archive):
        """Load an image from a file."""
        self.docker("load", "--quiet", "--input", archive)

    @contextlib.contextmanager
    def unplugged(self):
        """Cut it off for a `with` block: it runs, and nothing arrives or is refused."""
        switch, port = self.cable
        _in(switch, "ip", "link", "set", port, "down")
        try:
            yield
        finally:
            _in(switch, "ip", "link", "set", port, "up")

    @contextlib.contextmanager
    def listening(self, port):
        """Have a port taken on it for a `with` block."""
        code = "import socket, sys; s = socket.create_server(('', int(sys.argv[1]))); print(1); "
        command = ["nsenter", f"--net=/run/netns/{self.name}", sys.executable, "-uc",
                   f"{code} sys.stdin.read()", str(port)]  # fmt: skip
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as taker:
            taker.stdout.readline()
            try:
                yield
            finally:
                taker.stdin.close()

    def kill(self):
        """Kill the daemon and all its containers, as when the power fails."""
        for process in self._processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        if self.process is not None:
            self.process.wait()

    def _processes(self):
        """Return what the daemon runs: first itself and its shims, then what is in containers."""
        mine = str(self.folder)
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdecimal():
                with contextlib.suppress(OSError):
                    command = (entry / "cmdline").read_bytes().decode(errors="replace")
                    if f"{mine}/" in command and int(entry.name) != os.getpid():
                        found.append(int(entry.name))
        children = []
        for each in found:
            with contextlib.suppress(OSError):
                text = Path(f"/proc/{each}/task/{each}/children").read_text()
                children += map(int, text.split())
        return [*found, *_below(children)]

    def remove(self):
        """End the daemon with all its containers, and remove what it kept."""
        if self.process is not None and self.process.poll() is None:
            left = self.docker("ps", "--all", "--quiet", check=False).split()
            self.docker("swarm", "leave", "--force", check=False, stderr=subprocess.DEVNULL)
            if left:
                self.docker("rm", "--force", *left, check=False, stderr=subprocess.DEVNULL)
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(20)
        self.kill()
        if self.process is not None:
            self.log.close()
        for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
            place = line.split()[4]
            if place.startswith(f"{self.folder}/"):
                run("umount", "--lazy", place, check=False)
        shutil.rmtree(self.folder, ignore_errors=True)


def _below(processes):
    """Return processes and all that they started."""
    found = list(processes)
    for each in found:
        with contextlib.suppress(OSError):
            found += map(int, Path(f"/proc/{each}/task/{each}/children").read_text().split())
    return found


@contextlib.contextmanager
def nodes(folder, count, images=()):
    """Run nodes for a `with` block; the first is the manager of their swarm.

    Args:
        folder: where they keep what they have; short, since sockets are there.
        count: how many.
        images: files with images, for each of them.
    """
    made = []
    with place(folder) as number, contextlib.ExitStack() as undo:
        tag, net = f"{PREFIX}{number}x", f"10.190.{number}"
        switch = f"{tag}s"
        _namespace(switch, undo)
        _in(switch, "ip", "link", "add", "br0", "type", "bridge")
        _in(switch, "ip", "link", "set", "br0", "up")
        run("ip", "link", "add", f"{tag}h", "type", "veth", "peer", "host", "netns", switch)
        _in(switch, "ip", "link", "set", "host", "master", "br0", "up")
        run("ip", "address", "add", f"{net}.1/24", "dev", f"{tag}h")
        run("ip", "link", "set", f"{tag}h", "up")
        for each in range(count):
            name, address, port = f"{tag}n{each}", f"{net}.{10 + each}", f"port{each}"
            _namespace(name, undo)
            run("ip", "link", "add", "eth0", "netns", name, "type", "veth",
                "peer", port, "netns", switch)  # fmt: skip
            _in(switch, "ip", "link", "set", port, "master", "br0", "up")
            _in(name, "ip", "address", "add", f"{address}/24", "dev", "eth0")
            _in(name, "ip", "link", "set", "eth0", "up")
            _in(name, "ip", "link", "set", "lo", "up")
            made.append(Node(name, address, Path(folder) / f"n{each}", (switch, port)))
        undo.callback(_each, made, Node.remove)
        _each(made, lambda node: node.start(images))
        _join(made)
        yield made


@contextlib.contextmanager
def place(folder):
    """Yield a number that no other swarm has, once nothing is left of killed ones."""
    PLACES.mkdir(exist_ok=True)
    with (PLACES / "looking").open("w") as looking:
        _lock(looking)
        places = [(PLACES / str(number)).open("a+") for number in range(MOST)]
        free = [each for each in places if _lock(each, fcntl.LOCK_NB)]
        for each in free:
            each.seek(0)
            _remove_left(Path(each.name).name, each.read())
            each.truncate(0)
        # The network tells of those whose files are elsewhere, or that are not quite gone yet.
        networks = {name for _, name in socket.if_nameindex()}
        mine = next(each for each in free if f"{PREFIX}{Path(each.name).name}xh" not in networks)
        for each in set(places) - {mine}:
            each.close()
        print(folder, end="", file=mine, flush=True)
    with mine:
        yield Path(mine.name).name
        mine.truncate(0)


def _lock(file, how=0):
    """Lock a file until it is closed; say whether it could be."""
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | how)
        return True
    return False


def _remove_left(number, folder):
    """Remove the nodes of a run that was killed: processes, mounts, files, namespaces."""
    for each in Path(folder).glob("n*") if folder else ():
        Node("", "", each).remove()
    for each in Path("/run/netns").glob(f"{PREFIX}{number}x*"):
        run("ip", "netns", "delete", each.name, check=False)


def _each(made, act):
    """Do something with all nodes at once."""
    with ThreadPoolExecutor() as threads:
        list(threads.map(act, made))


def _join(made):
    manager, *workers = made
    address = manager.address
    manager.docker("swarm", "init", "--advertise-addr", address, "--listen-addr", address)
    token = manager.docker("swarm", "join-token", "--quiet", "worker")
    for each in workers:  # one that takes long says so, and goes on
        each.docker("swarm", "join", "--token", token, "--advertise-addr", each.address,
                    "--listen-addr", each.address, f"{address}:2377", check=False)  # fmt: skip
    wait_until_ready(made)


def wait_until_ready(made):
    """Wait until the manager, which is the first, hears from all."""
    deadline_s = time.monotonic() + START_S
    while made[0].docker("node", "ls", "--format", "{{.Status}}").split() != ["Ready"] * len(made):
        if time.monotonic() > deadline_s:
            told = "\n".join(f"{each.name}:\n{each.told()}" for each in made)
            raise RuntimeError(f"the nodes do not become ready; {told}")
        time.sleep(0.2)


def _namespace(name, undo):
    run("ip", "netns", "add", name)
    undo.callback(run, "ip", "netns", "delete", name, check=False)


def _in(name, *command):
    run("ip", "netns", "exec", name, *command)
