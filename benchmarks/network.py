"""Hosts on one machine: network namespaces with an address, a name and a view of the disk of their own."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path


_SLEEP = ["sleep", "infinity"]  # the process that keeps a namespace
_BRIDGE, _ADDRESS = "kgl-bridge", "10.77.0."


class NoNamespacesError(OSError):
    """This machine makes no network namespaces, and why."""


@dataclass(frozen=True)
class Host:
    """
    A host of a [`network`].

    Attributes:
        name: its host name.
        address: its IPv4 address.
        enter: start of a command that runs on it.
        switch: start of a command that runs on the switch, where its cable can be pulled.
        cable: the switch's end of its cable.
    """

    name: str
    address: str
    enter: tuple[str, ...]
    switch: tuple[str, ...]
    cable: str

    def start(self, command: Sequence[str], cwd: Path, **options: object) -> subprocess.Popen:
        """Start a command on the host in a folder; gloo binds to the host's own address."""
        environment = dict(os.environ) | {"GLOO_SOCKET_IFNAME": "eth0"} | options.pop("env", {})
        inside = ["sh", "-c", 'cd "$0" && exec "$@"', str(cwd), *command]
        return subprocess.Popen([*self.enter, *inside], env=environment, text=True, **options)

    def run(self, *command: str) -> None:
        """Run a command on the host to its end."""
        _run(*self.enter, *command)

    def mount(self, folder: Path, at: Path) -> None:
        """Show a folder at another path, on this host alone."""
        at.mkdir(parents=True, exist_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        self.run("mount", "--bind", str(folder), str(at))

    def cut_off(self) -> None:
        """Pull the cable: connections are not closed, nothing arrives any more."""
        _run(*self.switch, "ip", "link", "set", self.cable, "down")

    def reconnect(self) -> None:
        """Put the cable back."""
        _run(*self.switch, "ip", "link", "set", self.cable, "up")


@contextmanager
def network(count: int) -> Iterator[list[Host]]:
    """
    Make `count` hosts, `host-1` and so on, on one switch; they are gone when the context ends.

    As an ordinary user it takes user namespaces; root needs none.

    Raises:
        NoNamespacesError: the kernel or a missing program does not let this user make them.
    """
    user = ("-U", "--preserve-credentials") if os.geteuid() != 0 else ()
    with ExitStack() as stack:
        names = stack.enter_context(tempfile.NamedTemporaryFile("w", encoding="utf-8"))
        names.write("127.0.0.1 localhost\n")
        names.writelines(f"{_ADDRESS}{number} host-{number}\n" for number in range(1, count + 1))
        names.flush()
        holder = stack.enter_context(_holder("unshare", *(("-r",) if user else ()), "-n"))
        switch = ("nsenter", "-t", str(holder), *user, "-n", "--")
        _run(*switch, "ip", "link", "set", "lo", "up")
        _run(*switch, "ip", "link", "add", _BRIDGE, "type", "bridge")
        _run(*switch, "ip", "link", "set", _BRIDGE, "up")
        hosts = []
        for number in range(1, count + 1):
            holder = stack.enter_context(_holder(*switch, "unshare", "-n", "-u", "-m"))
            enter = ("nsenter", "-t", str(holder), *user, "-n", "-u", "-m", "--")
            host = Host(f"host-{number}", f"{_ADDRESS}{number}", enter, switch, f"cable-{number}")
            link = ("type", "veth", "peer", "name", "eth0", "netns", str(holder))
            _run(*switch, "ip", "link", "add", host.cable, *link)
            _run(*switch, "ip", "link", "set", host.cable, "master", _BRIDGE, "up")
            host.run("ip", "addr", "add", f"{host.address}/24", "dev", "eth0")
            host.run("ip", "link", "set", "eth0", "up")
            host.run("ip", "link", "set", "lo", "up")
            host.run("hostname", host.name)
            host.run("mount", "--bind", names.name, "/etc/hosts")
            hosts.append(host)
        yield hosts


@contextmanager
def _holder(*command: str) -> Iterator[int]:
    """Run a process that keeps new namespaces; yield its number once it has them, which is when it sleeps."""
    try:
        holder = subprocess.Popen([*command, *_SLEEP], stderr=subprocess.PIPE, text=True)
    except OSError as error:
        raise NoNamespacesError(f"{command[0]}: {error.strerror}") from error
    try:
        for _ in range(500):
            if holder.poll() is not None:
                raise NoNamespacesError(f"{' '.join(command)}: {holder.stderr.read().strip()}")
            if Path(f"/proc/{holder.pid}/comm").read_text(encoding="utf-8").strip() == _SLEEP[0]:
                break
            time.sleep(0.01)
        yield holder.pid
    finally:
        holder.kill()
        holder.wait()


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise NoNamespacesError(f"{command[0]}: {error.strerror}") from error
    if done.returncode != 0:
        raise NoNamespacesError(f"{' '.join(command)}: {done.stderr.strip()}")


__all__ = ["Host", "NoNamespacesError", "network"]
