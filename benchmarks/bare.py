"""A relay that only moves bytes: what anything between client and worker costs at the least.

`single-events` runs it beside llmd. A process that wakes up for one event finds cold caches and a
sleeping core, which costs many times what the same lines cost in a loop; only a relay under the
same conditions tells how much of a result that is.
"""

from __future__ import annotations

import gc
import select
import socket
import sys


def relay(listener: socket.socket, target: str) -> None:
    """Serve for ever: each connection gets one of its own to the target."""
    poll = select.epoll()
    poll.register(listener, select.EPOLLIN)
    others: dict[int, tuple[socket.socket, socket.socket]] = {}
    while True:
        for fd, _ in poll.poll():
            if fd == listener.fileno():
                near, _ = listener.accept()
                near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                far = socket.socket(socket.AF_UNIX)
                far.connect(target)
                for one, other in ((near, far), (far, near)):
                    others[one.fileno()] = (one, other)
                    poll.register(one, select.EPOLLIN)
            elif fd in others:
                one, other = others[fd]
                try:
                    data = one.recv(65536)
                    other.sendall(data)
                except OSError:
                    data = b""
                if not data:
                    for sock in (one, other):
                        del others[sock.fileno()]
                        sock.close()


def main() -> None:
    """Listen on a port of the kernel's choice, say which, and relay."""
    gc.disable()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        relay(listener, sys.argv[1])


if __name__ == "__main__":
    main()
