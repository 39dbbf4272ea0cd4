"""What appears in a spool, as the kernel tells it (inotify(7)): a hint that shortens a wait, never the truth.

Events may be lost, or not be had at all: then nothing changes but how soon a unit is found.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable
from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from inotify_simple import Event, INotify

MOST_DIRECTORIES = 1000
"""Directories that are watched at most; what appears in others is found by the next regular pass."""
MOST_OURS = 1000

_CREATE, _DELETE, _MOVED_TO, _CLOSE_WRITE = 0x100, 0x200, 0x80, 0x8
_IS_DIRECTORY, _OVERFLOW, _IGNORED = 0x40000000, 0x4000, 0x8000
_ONLY_DIRECTORY, _NOT_UNLINKED = 0x01000000, 0x04000000
_WANTED = _CREATE | _MOVED_TO | _CLOSE_WRITE | _ONLY_DIRECTORY | _NOT_UNLINKED
"""Neither unlinking nor moving away: most of that is our own doing, and no reason to look."""
_NONE_LEFT = {errno.ENOSPC, errno.ENOMEM, errno.EMFILE, errno.ENFILE}


class Watch:
    """Watches the directories that the scans of one stream go through.

    ``ignored`` tells names that are no units, ``complain`` is told once why not all can be watched. For one thread.
    """

    def __init__(self, ignored: Callable[[str], bool], stop_file: str, complain: Callable[[str], object]) -> None:
        self._ignored = ignored
        self._stop_file = stop_file
        self._complain = complain
        self._is_full = False
        self._paths: dict[int, str] = {}
        """The watched directories by the numbers that the kernel gave them."""
        self._passed: set[int] = set()
        """Those that the scan has gone through."""
        self._known: frozenset[str] = frozenset()
        """Their paths when the pass began."""
        self._ours: set[str] = set()
        self._inotify = self._opened()

    def _opened(self) -> INotify | None:
        try:
            from inotify_simple import INotify

            return INotify(nonblocking=True)
        except (ImportError, OSError) as error:
            self._give_up(error)
            return None

    def _give_up(self, error: Exception) -> None:
        """No more directories are watched; one line says so."""
        if not self._is_full:
            self._is_full = True
            self._complain(getattr(error, "strerror", None) or str(error))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._inotify is not None:
            self._inotify.close()
            self._inotify = None

    @property
    def fd(self) -> int | None:
        """What becomes readable when something happens; None where nothing is watched."""
        return None if self._inotify is None else self._inotify.fileno()

    # -- passes ------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """A pass begins, and will see for itself what was told until now."""
        self._events()
        self._passed.clear()
        self._known = frozenset(self._paths.values())
        self._ours.clear()

    def enter(self, path: str, fd: int) -> None:
        """The scan goes through the directory ``path``, which is open as ``fd``, from now on."""
        has_room = not self._is_full and len(self._paths) < MOST_DIRECTORIES
        if self._inotify is None or not (has_room or path in self._known):
            return
        wanted = _WANTED if path else _WANTED | _DELETE
        try:
            # By its descriptor: no name that changes under our hands leads to another place.
            number = self._inotify.add_watch(f"/proc/self/fd/{fd}", wanted)
        except OSError as error:
            if error.errno in _NONE_LEFT:
                self._give_up(error)
            return
        self._paths[number] = path
        self._passed.add(number)

    def end(self) -> None:
        """A pass has gone through the whole spool: directories that it did not see are gone."""
        for number in self._paths.keys() - self._passed:
            self._leave(number)

    def _leave(self, number: int) -> None:
        del self._paths[number]
        if self._inotify is not None:
            with suppress(OSError):  # the kernel has let go of it by itself
                self._inotify.rm_watch(number)

    def expect(self, path: str) -> None:
        """We put a unit back under its name ourselves, which is no news."""
        if len(self._ours) < MOST_OURS:
            self._ours.add(path)

    # -- between them ------------------------------------------------------------------------------------

    def due(self, since: float, settle_time: float) -> float:
        """When a pass would find what was told since the last call; infinity where nothing was told.

        ``since`` is when that happened at the earliest. A unit has to settle first; a new directory has to be
        watched, and the end of a stop file to be seen, at once.
        """
        return since + min((self._delay(event, settle_time) for event in self._events()), default=inf)

    def _delay(self, event: Event, settle_time: float) -> float:
        """How long after an event it is time to look; infinity where it is no reason to."""
        if event.mask & _OVERFLOW:
            return 0.0
        if event.mask & _IGNORED:
            self._paths.pop(event.wd, None)
        if (path := self._paths.get(event.wd)) is None:
            return inf
        if event.mask & _DELETE:
            return 0.0 if event.name == self._stop_file else inf
        if not event.name or self._ignored(event.name):
            return inf
        if event.mask & _IS_DIRECTORY:
            return 0.0
        if event.mask & _CREATE or self._is_ours(f"{path}/{event.name}" if path else event.name, event):
            return inf
        return settle_time

    def _is_ours(self, path: str, event: Event) -> bool:
        if event.mask & _MOVED_TO and path in self._ours:
            self._ours.remove(path)
            return True
        return False

    def _events(self) -> Iterable[Event]:
        if self._inotify is None:
            return ()
        try:
            events: Iterable[Event] = self._inotify.read(timeout=0)
            return events
        except OSError:
            return ()
