"""Requests between members over MPREG's fabric, where the nodes are MPREG servers (imports MPREG when it is used)."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
from base64 import b64decode, b64encode
from typing import Any

from mpreg_mq.cluster.transport import Handler, NobodyThereError, Transport
from mpreg_mq.errors import ConfigurationError
from mpreg_mq.events.nats.engine import UnansweredError

logger = logging.getLogger("mpreg_mq")

COMMAND = "mq.cluster."
"""Prefix of a member's command at its server; the fabric finds the server that has it."""

LEAST_SECRET_LENGTH = 16
MAX_CONNECTIONS = 64

_COMMAND_NOT_FOUND = 1001


class FabricTransport:
    """A :class:`~mpreg_mq.cluster.transport.Transport` over the fabric of a running MPREG server.

    MPREG lets every client call every command. Requests are therefore signed with a secret that the nodes share, and
    unsigned ones are refused; who can read the network can still read and repeat them, so use it as you use MPREG.

    MPREG runs the commands of one connection one after another, so each request that is under way has a connection to
    the own server, at most 64 at once.

    Args:
        server: the node's ``MPREGServer``, which runs.
        secret: at least 16 characters, the same on all nodes.

    Raises:
        ConfigurationError: the secret is too short.
    """

    def __init__(self, server: Any, secret: str) -> None:
        if not isinstance(secret, str) or len(secret) < LEAST_SECRET_LENGTH:
            found = f"{len(secret)} characters" if isinstance(secret, str) else type(secret).__name__
            raise ConfigurationError(
                f"FabricTransport.secret: got {found}, expected text of at least {LEAST_SECRET_LENGTH} characters"
            )
        self._server = server
        self._secret = secret.encode()
        self._handler: Handler | None = None
        self._idle: list[Any] = []
        self._limit = asyncio.Semaphore(MAX_CONNECTIONS)

    def _signature(self, member: str, text: str) -> str:
        return hmac.new(self._secret, f"{member}\0{text}".encode(), "sha256").hexdigest()

    async def serve(self, member: str, handler: Handler) -> None:
        """See :meth:`Transport.serve`. The server keeps the command after :meth:`stop`; it answers that it is over."""
        self._handler = handler

        async def ask(request: str, signature: str) -> dict[str, str]:
            # Whatever happens is an answer: MPREG logs what is raised with the values of variables.
            if not isinstance(request, str) or not isinstance(signature, str):
                return {"error": "denied"}
            if not hmac.compare_digest(signature.encode(), self._signature(member, request).encode()):
                return {"error": "denied"}
            if self._handler is None:
                return {"error": "gone"}
            try:
                return {"reply": b64encode(await self._handler(b64decode(request))).decode()}
            except Exception as error:
                logger.error("cluster: a request over the fabric failed: %s", type(error).__name__)
                return {"error": "failed"}

        self._server.register_command(COMMAND + member, ask, [])

    async def ask(self, member: str, request: bytes, seconds: float) -> bytes:
        """See :meth:`Transport.ask`."""
        text = b64encode(request).decode()
        try:
            async with asyncio.timeout(seconds), self._limit:
                answer = await self._call(COMMAND + member, text, self._signature(member, text), seconds)
        except TimeoutError:
            raise UnansweredError(f"{member}: no answer within {seconds:g} s over the fabric") from None
        error = answer.get("error") if isinstance(answer, dict) else "no answer of ours"
        if error in ("gone", "denied"):
            raise NobodyThereError(f"{member}: {error}")
        if error is not None:
            raise UnansweredError(f"{member}: {error}")
        return b64decode(answer["reply"])

    async def _call(self, command: str, request: str, signature: str, seconds: float) -> Any:
        api = self._idle.pop() if self._idle else None
        try:
            if api is None:
                api = await self._connect()
            answer = await api.call(command, timeout=seconds, request=request, signature=signature)
        except asyncio.CancelledError:
            await self._drop(api)
            raise
        # What MPREG's client raises has no common class.
        except Exception as error:
            if getattr(getattr(error, "rpc_error", None), "code", None) == _COMMAND_NOT_FOUND:
                self._idle.append(api)
                raise NobodyThereError(command) from error
            await self._drop(api)
            raise UnansweredError(f"{command}: {type(error).__name__}: {error}") from error
        self._idle.append(api)
        return answer

    async def _connect(self) -> Any:
        from mpreg.client.client_api import MPREGClientAPI  # type: ignore[import-not-found]

        api = MPREGClientAPI(str(self._server.cluster.local_url), full_log=False)
        await api.connect()
        return api

    @staticmethod
    async def _drop(api: Any) -> None:
        if api is not None:
            with contextlib.suppress(Exception):
                await api.disconnect()

    async def stop(self) -> None:
        """Answer no more, and close the connections."""
        self._handler = None
        idle, self._idle = self._idle, []
        for api in idle:
            await self._drop(api)


class FirstReachable:
    """Several transports in the order of preference: a member that the first does not reach is asked over the next."""

    def __init__(self, *transports: Transport) -> None:
        self._transports = transports

    async def serve(self, member: str, handler: Handler) -> None:
        """Answer on all of them."""
        for transport in self._transports:
            await transport.serve(member, handler)

    async def ask(self, member: str, request: bytes, seconds: float) -> bytes:
        """Ask over the first that reaches the member."""
        for transport in self._transports[:-1]:
            try:
                return await transport.ask(member, request, seconds)
            except NobodyThereError:
                continue
        return await self._transports[-1].ask(member, request, seconds)

    async def stop(self) -> None:
        """Stop all of them."""
        for transport in self._transports:
            await transport.stop()
