"""A page and a socket on 127.0.0.1 through which one person drives a `Session`.

The socket speaks JSON.  The server sends the session's state (`Session.show`, and `pace`); a client answers each state of a
running episode with its inputs (`Session.hear`), and sends them whenever they change.  A step needs an answer, so where nobody
answers time stands still; steps are no closer together than real time.
"""

from __future__ import annotations

import collections
import json
import logging
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from safetensors import SafetensorError
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection, serve

from rdp_jax.config import ConfigError
from rdp_jax.data.episodes import DataError
from train.teleop_input import InputError
from train.teleop_session import DONE, RUNNING, Session

HOST = "127.0.0.1"
SOCKET_PATH = "/socket"
TAKEN = 4000
"""Close code of the socket for a second client."""
LARGEST = 2**16  # bytes of a client's message


class Pace:
    """Keeps steps `period` seconds apart, and says how close to real time they are.

    Args:
      period: seconds between steps; 0 for as fast as possible.
      clock: seconds.
    """

    WINDOW = 20  # steps over which the pace is measured

    def __init__(self, period: float, clock: Callable[[], float] = time.monotonic):
        self.period, self._clock = period, clock
        self.rest()

    def rest(self) -> None:
        """Forgets what was: a break is not slowness."""
        self._due = self._clock()
        self._times: collections.deque[float] = collections.deque(maxlen=self.WINDOW)

    def left(self) -> float:
        """Seconds until the next step is due; 0 if it is."""
        return max(0.0, self._due - self._clock())

    def tick(self) -> None:
        """A step is made now."""
        now = self._clock()
        # A step that came late is caught up with by the next one; a machine that is always late does not run after itself.
        self._due = max(self._due + self.period, now)
        self._times.append(now)

    @property
    def factor(self) -> float | None:
        """Simulated seconds per second of the latest steps, 1 for real time; None while there are too few."""
        if len(self._times) < 3 or self._times[-1] <= self._times[0]:
            return None
        return self.period * (len(self._times) - 1) / (self._times[-1] - self._times[0])


def listen(port: int) -> socket.socket:
    """A socket on 127.0.0.1 that listens on `port`, any free one for 0.  Raises `ConfigError`."""
    try:
        return socket.create_server((HOST, port))
    except OSError as error:
        raise ConfigError("port", port, f"a free port of this machine ({error.strerror or error})") from error


class Server:
    """Serves `session` until it is done.

    Args:
      session: what is driven.
      page: HTML.
      listening: see `listen`.
      period: seconds between steps; real time unless a program drives.

    Example:
      with Server(session, page, listen(0), 0.1) as server:
          server.wait()
    """

    def __init__(self, session: Session, page: str, listening: socket.socket, period: float):
        self.session, self.pace = session, Pace(period)
        self.port = listening.getsockname()[1]
        self._page = page.encode()
        self._over, self._driver = threading.Event(), threading.Lock()
        self._error: BaseException | None = None
        if session.phase == DONE:
            self._over.set()
        logger = logging.getLogger(__name__)
        # A browser opens connections that it never uses; websockets calls each an error.  Ours are raised by `wait`.
        logger.setLevel(logging.CRITICAL)
        self._web = serve(
            self._connected,
            sock=listening,
            process_request=self._request,
            compression=None,
            open_timeout=3.0,
            close_timeout=2.0,
            max_size=LARGEST,
            logger=logger,
        )
        self._thread = threading.Thread(target=self._web.serve_forever, daemon=True)

    @property
    def address(self) -> str:
        """Of the page."""
        return f"http://{HOST}:{self.port}/"

    def __enter__(self) -> Server:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._web.shutdown()
        self._thread.join()

    def wait(self) -> None:
        """Returns when the session is done; raises what went wrong while serving."""
        self._over.wait()
        if self._error is not None:
            raise self._error

    # --- HTTP ------------------------------------------------------------------------------------------------------------

    def _request(self, connection: ServerConnection, request: Request) -> Response | None:
        """The page, or None to go on and open the socket."""
        ours = {f"{name}:{self.port}" for name in (HOST, "localhost")}
        hosts, origins = request.headers.get_all("Host"), request.headers.get_all("Origin")
        # Another page open in the same browser could otherwise drive the robot, or read this one under a name of its own.
        if not set(hosts) <= ours or not set(origins) <= {f"http://{name}" for name in ours}:
            return connection.respond(403, "This page is for 127.0.0.1 only.\n")
        if request.path == SOCKET_PATH:
            return None
        if request.path != "/":
            return connection.respond(404, "There is only one page: /\n")
        headers = Headers()
        for name, value in (
            ("Content-Type", "text/html; charset=utf-8"),
            ("Content-Length", str(len(self._page))),
            ("Cache-Control", "no-store"),
            ("Connection", "close"),
        ):
            headers[name] = value
        return Response(200, "OK", headers, self._page)

    # --- the socket ------------------------------------------------------------------------------------------------------

    def _connected(self, connection: ServerConnection) -> None:
        if not self._driver.acquire(blocking=False):
            connection.close(TAKEN, "somebody else is at the controls")
            return
        try:
            self._drive(connection)
        except ConnectionClosed:
            pass
        except BaseException as error:
            self._error = error
            self._over.set()
        finally:
            self.session.pause()
            if self.session.phase == DONE:
                self._over.set()
            self._driver.release()

    def _drive(self, connection: ServerConnection) -> None:
        """Until the client goes, or the session is done."""
        session, pace = self.session, self.pace
        self._send(connection)
        while session.phase != DONE and not self._over.is_set():
            was_running = session.phase == RUNNING
            self._hear(connection, connection.recv())
            if not was_running:
                pace.rest()
            # What comes before the step is due replaces what came first.
            while session.phase == RUNNING:
                try:
                    self._hear(connection, connection.recv(timeout=pace.left()))
                except TimeoutError:
                    break
            if session.phase == RUNNING:
                pace.tick()
                session.step()
            self._send(connection)

    def _hear(self, connection: ServerConnection, message: Any) -> None:
        """Takes one message in; a bad one is answered, and changes nothing.

        So is one to keep what cannot be saved: the episode is still there, and can be kept once there is room for it.
        """
        try:
            self.session.hear(_parse(message))
        except InputError as error:
            connection.send(json.dumps({"error": str(error)}))
        except (OSError, SafetensorError, DataError) as error:
            connection.send(json.dumps({"error": f"not saved: {error}"}))

    def _send(self, connection: ServerConnection) -> None:
        connection.send(json.dumps({**self.session.show(), "pace": self.pace.factor}, allow_nan=False))


def _parse(message: str | bytes) -> dict[str, Any]:
    """A message as a dictionary.  Raises `InputError`."""
    try:
        found = json.loads(message)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise InputError(f"{message[:80]!r}, allowed: a JSON object")
    return found
