"""uvicorn's HTTP/1.1 with limits: on slow clients, on heads, on connections; what it refuses has the contract's shape."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol

from camserve.hosts.asgi.client import Base, Limits, describe_error, write_json

HEAD_END = b"\r\n\r\n"


class Connection(H11Protocol):
    """One connection. The limits are those of the application that uvicorn was given, a `Base`."""

    _receiving: asyncio.TimerHandle | None = None
    _sending: asyncio.TimerHandle | None = None
    _awaits = ""
    _head = 0
    app: Base

    @property
    def _limits(self) -> Limits:
        return self.app.limits

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Refuse a connection too many; wait for a head for so long."""
        super().connection_made(transport)  # type: ignore[arg-type]
        if len(self.connections) > self._limits.connections:
            most = self._limits.connections
            self._refuse(503, "QueueFull", f"{most} connections are open (camserve_max_connections); try again later")
            return
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all clocks."""
        self._stop()
        if self._sending is not None:
            self._sending.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what came, unless it is a head that is too long."""
        if self.transport.is_closing():
            return
        if self._is_idle():
            end = data.find(HEAD_END)
            self._head += len(data) if end < 0 else end
            if self._head > self._limits.head:
                self._refuse(431, "RequestTooLarge", f"the request's headers are longer than {self._limits.head} bytes")
                return
        super().data_received(data)
        if not self._is_idle():
            self._head = 0
        self._watch()

    def on_response_complete(self) -> None:
        """A next request may be in part there already."""
        super().on_response_complete()
        self._watch(begun=False)

    def pause_writing(self) -> None:
        """The client does not take its answer: wait for so long."""
        super().pause_writing()
        self._sending = self.loop.call_later(self._limits.send_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """It goes on."""
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 uvicorn's words, which are always the same
        """Refuse what is no HTTP."""
        self._refuse(400, "InvalidRequest", "this is no HTTP/1.1 request that can be read")

    def _is_idle(self) -> bool:
        """Whether the next bytes are a head's."""
        return self.conn.their_state is h11.IDLE and (self.cycle is None or self.cycle.response_complete)

    def _watch(self, begun: bool = True) -> None:
        """Start the clock of what is awaited; each runs from its beginning, however many bytes come."""
        if self.conn.their_state is h11.SEND_BODY:
            awaits, seconds = "body", self._limits.body_seconds
        elif self._is_idle() and begun:
            awaits, seconds = "head", self._limits.head_seconds
        else:
            awaits, seconds = "", 0.0
        if awaits != self._awaits:
            self._stop()
            self._awaits = awaits
            if awaits:
                self._receiving = self.loop.call_later(seconds, self._late, awaits, seconds)

    def _stop(self) -> None:
        if self._receiving is not None:
            self._receiving.cancel()
        self._receiving, self._awaits = None, ""

    def _late(self, awaits: str, seconds: float) -> None:
        self._refuse(408, "Timeout", f"the request's {awaits} did not come within {seconds:g} s")

    def _refuse(self, status: int, kind: str, message: str) -> None:
        """Answer past the application, unless it has answered this request or begun to, and close."""
        self._stop()
        if self._is_idle() or self.cycle is None or not self.cycle.response_started:
            body = write_json(describe_error(status, kind, message))
            phrase = STATUS_PHRASES[status].decode()
            head = f"HTTP/1.1 {status} {phrase}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
            self.transport.write(f"{head}connection: close\r\n\r\n".encode() + body)
        self.transport.close()
