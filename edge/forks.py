"""What a forked process never waits for: a property and a lock whose holder, another thread, was not forked with it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Generic, TypeVar, overload

__all__ = ["ProcessLock", "lazy_property"]

T = TypeVar("T")
V = TypeVar("V")


class lazy_property(Generic[T, V]):
    """A property that is computed when it is first read, and stored in the object.

    functools.cached_property has a lock for all objects of the class until Python 3.12, and a process that was forked while a
    thread held it waits for ever. This one has none: two threads that read it at once may both compute it.
    """

    def __init__(self, compute: Callable[[T], V]) -> None:
        self._compute = compute
        self.__doc__ = compute.__doc__

    def __set_name__(self, owner: type[T], name: str) -> None:
        self._name = name

    @overload
    def __get__(self, instance: None, owner: type[T]) -> lazy_property[T, V]: ...

    @overload
    def __get__(self, instance: T, owner: type[T]) -> V: ...

    def __get__(self, instance: T | None, owner: type[T]) -> lazy_property[T, V] | V:
        if instance is None:
            return self
        # The value hides this object, which has no __set__, from then on.
        return vars(instance).setdefault(self._name, self._compute(instance))  # type: ignore[no-any-return]


class ProcessLock:
    """A lock between the threads of one process, for use with `with`.

    A forked process begins with a free one: the thread that held it was not forked with it, and would never release it there.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew)

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *exc: object) -> None:
        self._lock.release()

    def _renew(self) -> None:
        self._lock = threading.Lock()
