"""Batches of what never ends, or comes when it comes: items are taken by a thread while earlier ones are worked on."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Iterable
from typing import TypeVar

T = TypeVar("T")


def read_ahead(
    items: Iterable[T], size: int, wait: float | None = None, drop: bool = False
) -> Generator[list[T], None, None]:
    """Lists of at most ``size`` items, in order; at most as many more are taken ahead.

    A list begins with the first item that waits, and waits ``wait`` seconds for others (None: until it is full). With
    ``drop`` the source never waits: an item that comes while ``size`` wait takes the place of the oldest of them. What
    ``items`` raises is raised here, after what came before it. Closing waits until the source gives its next item.
    """
    waiting: deque[T] = deque(maxlen=size if drop else None)
    changed = threading.Condition()
    has_ended = is_closed = False
    error: BaseException | None = None

    def read() -> None:
        nonlocal has_ended, error
        try:
            for item in items:
                with changed:
                    changed.wait_for(lambda: drop or len(waiting) < size or is_closed)
                    if is_closed:
                        break
                    waiting.append(item)
                    changed.notify_all()
        except BaseException as caught:
            error = caught
        with changed:
            has_ended = True
            changed.notify_all()

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        while True:
            with changed:
                changed.wait_for(lambda: waiting or has_ended)
                changed.wait_for(lambda: len(waiting) >= size or has_ended, wait)
                batch = [waiting.popleft() for _ in range(min(size, len(waiting)))]
                changed.notify_all()
            if batch:
                yield batch
            elif error is not None:
                raise error
            else:
                return
    finally:
        with changed:
            is_closed = True
            changed.notify_all()
        thread.join()
