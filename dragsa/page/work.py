"""The one thread that edits: tasks wait in a queue, one runs at a time, and each can be ended."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


class Ended(Exception):
    """A task was ended from outside, in the middle of its work."""


@dataclass(eq=False)
class Task:
    """Something to do for one owner.

    `background`: nobody waits for it; `about` tells it from others. `stopping`: its drag is to end with the next
    update, and its picture to be finished. `ended`: it is to raise `Ended` as soon as it is told of anything.
    """

    owner: Any
    do: Callable[[Task], None]
    background: bool = False
    about: Any = None
    stopping: bool = False
    ended: bool = False


class Worker:
    """Runs tasks one after another in a thread of its own, in the order in which they came."""

    def __init__(self) -> None:
        self.running: Task | None = None
        self._waiting: deque[Task] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="dragsa-edits", daemon=True)
        self._thread.start()

    def add(self, task: Task) -> int:
        """Put a task at the queue's end, or before those that nobody waits for; return how many are before it."""
        with self._changed:
            place = len(self._waiting)
            while place and self._waiting[place - 1].background and not task.background:
                place -= 1
            self._waiting.insert(place, task)
            self._changed.notify_all()
            return place + (self.running is not None)

    def of(self, owner: Any) -> list[Task]:
        """Return the owner's tasks but those that were ended, the running one first."""
        with self._changed:
            every = ([] if self.running is None else [self.running]) + list(self._waiting)
            return [task for task in every if task.owner is owner and not task.ended]

    def end(self, task: Task) -> None:
        """Take a task from the queue, or end it at its next event where it runs."""
        with self._changed:
            task.ended = True
            if task in self._waiting:
                self._waiting.remove(task)

    def close(self) -> None:
        """End everything; return when the thread has ended, or after a minute."""
        with self._changed:
            self._closed = True
            for task in (*self._waiting, *([self.running] if self.running else [])):
                task.ended = True
            self._waiting.clear()
            self._changed.notify_all()
        self._thread.join(60)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                self.running = self._waiting.popleft()
            try:
                self.running.do(self.running)
            finally:
                with self._changed:
                    self.running = None
