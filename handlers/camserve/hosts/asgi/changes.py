"""Models that come and go while others are served: TorchServe's management API, for an update without a stop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager

from camserve.core.errors import ConfigError
from camserve.hosts.batcher import Batcher
from camserve.hosts.hosted import Hosted
from camserve.hosts.worker import HostError, LoadError

Open = Callable[[str, str], AbstractContextManager[Hosted]]
"""Opens an archive of the model store, given its file's name and, if another than its own, the model's name."""


class Changes:
    """Changes which models are served. It lives in the loop of the batchers; one change is made at a time.

    Args:
        batchers: what is served, in this order: of the versions of one name the first is the default.
        open_archive: opens an archive of the store; raises `ConfigError`.
        make: makes the batcher of an archive, not started.
    """

    def __init__(self, batchers: list[Batcher], open_archive: Open, make: Callable[[Hosted], Batcher]) -> None:
        self._batchers = batchers
        self._open = open_archive
        self._make = make
        self._folders: dict[tuple[str, str], contextlib.ExitStack] = {}
        self._turn = asyncio.Lock()

    async def register(self, file: str, name: str = "") -> Hosted:
        """Load an archive beside the others; a further version of a model is asked for by its number until it is the default.

        Raises:
            HostError: 400, it cannot be opened; 409, this version is served; 500, it does not load.
        """
        async with self._turn:
            loop = asyncio.get_running_loop()
            with contextlib.ExitStack() as stack:
                try:
                    hosted = await loop.run_in_executor(None, stack.enter_context, self._open(file, name))
                except ConfigError as error:
                    raise HostError(400, "BadRequestException", str(error)) from None
                if any(self._is(each, hosted.name, hosted.version) for each in self._batchers):
                    message = f"Model version {hosted.version} is already registered for model {hosted.name}"
                    raise HostError(409, "ConflictStatusException", message)
                batcher = self._make(hosted)
                try:
                    await batcher.start()
                except LoadError as error:
                    await batcher.stop()
                    message = f"the model {hosted.name} {hosted.version} does not load: {error}"
                    raise HostError(500, "InternalServerException", message) from None
                self._batchers.append(batcher)
                self._folders[hosted.name, hosted.version] = stack.pop_all()
                return hosted

    async def set_default(self, name: str, version: str) -> None:
        """Let requests that name no version go to this one.

        Raises:
            HostError: 404.
        """
        async with self._turn:
            found = self._find(name, version)
            self._batchers.remove(found)
            self._batchers.insert(0, found)

    async def unregister(self, name: str, version: str | None) -> str:
        """Serve a version no more, once what it has is answered; return which.

        Raises:
            HostError: 404; 403, it is the default and there are others.
        """
        async with self._turn:
            found = self._find(name, version)
            versions = [each for each in self._batchers if each.hosted.name == name]
            if found is versions[0] and len(versions) > 1:
                message = f"Cannot remove default version for model {name}: make another the default first"
                raise HostError(403, "InvalidModelVersionException", message)
            self._batchers.remove(found)
            while not found.idle:
                await asyncio.sleep(0.02)
            await found.stop()
            folder = self._folders.pop((name, found.hosted.version), None)
            if folder is not None:
                await asyncio.get_running_loop().run_in_executor(None, folder.close)
            return found.hosted.version

    def close(self) -> None:
        """Remove what was unpacked."""
        for folder in self._folders.values():
            folder.close()

    def _find(self, name: str, version: str | None) -> Batcher:
        named = [each for each in self._batchers if each.hosted.name == name]
        found = next((each for each in named if version in (None, each.hosted.version)), None)
        if found is None:
            what = f"Model not found: {name}" if not named else f"Model version: {version} does not exist for model: {name}"
            raise HostError(404, "ModelNotFoundException" if not named else "ModelVersionNotFoundException", what)
        return found

    @staticmethod
    def _is(batcher: Batcher, name: str, version: str) -> bool:
        return (batcher.hosted.name, batcher.hosted.version) == (name, version)
