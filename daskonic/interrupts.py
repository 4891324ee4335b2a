"""Work that Ctrl-C ends and does not cut in two."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, TypeVar

__all__ = ["shielded"]

Result = TypeVar("Result")


def shielded(give_up: Callable[[], None], function: Callable[..., Result], *arguments: Any) -> Result:
    """Call a function where no signal strikes; should one strike here ``give_up`` asks it to end, which is waited for.

    Python raises KeyboardInterrupt in the main thread between any two instructions: also between taking a permit and
    noting who has it, which would be lost for good. So where this is the main thread the function runs on another one.
    """
    if threading.current_thread() is not threading.main_thread():
        return function(*arguments)
    with ThreadPoolExecutor(1, thread_name_prefix="daskonic-call") as apart:
        try:
            return apart.submit(copy_context().run, function, *arguments).result()
        except BaseException:  # whatever a handler of signals raises
            give_up()
            raise
