"""Ask many batches at once, keep every answer as it comes, and lose none when something goes wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TypeVar

Q = TypeVar("Q")
A = TypeVar("A")


def ask_all(
    questions: Iterable[Q], ask: Callable[[Q], A], *, concurrency: int, stop: Callable[[], None]
) -> Iterator[tuple[Q, A]]:
    """Every question with its answer, in the order in which they come.

    At most `concurrency` are under way. After an error or Ctrl-C no new ones are asked, `stop` is
    called, those under way are still given, and then the error is raised.
    """
    waiting = iter(questions)
    running: dict[Future[A], Q] = {}
    failed: BaseException | None = None

    with ThreadPoolExecutor(concurrency, thread_name_prefix="edgekd-ask") as pool:

        def fill() -> None:
            while failed is None and len(running) < concurrency:
                try:
                    question = next(waiting)
                except StopIteration:
                    return
                running[pool.submit(ask, question)] = question

        fill()
        while running:
            try:
                done, _ = wait(running, return_when=FIRST_COMPLETED)
            except KeyboardInterrupt as interrupt:
                stop()
                failed, done = interrupt, set()
            for future in done:
                question = running.pop(future)
                error = future.exception()
                if error is None:
                    yield question, future.result()
                elif failed is None:
                    stop()
                    failed = error
            fill()
    if failed is not None:
        raise failed
