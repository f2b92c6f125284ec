"""What shows moments of something while it goes on: nothing, or drawings over each other."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Generic, Protocol, Self, TypeVar

if TYPE_CHECKING:
    from rich.console import RenderableType

Moment = TypeVar("Moment")
Shown_contra = TypeVar("Shown_contra", contravariant=True)


class Display(AbstractContextManager["Display[Shown_contra]"], Protocol[Shown_contra]):
    """Shows moments while it is entered."""

    def __call__(self, moment: Shown_contra) -> None:
        """Show this one."""
        ...


class Silence(Generic[Moment]):
    """Shows nothing."""

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End."""

    def __call__(self, moment: Moment) -> None:
        """See Display."""


class Drawn(Silence[Moment]):
    """Drawings over each other, with rich; wiped in the end."""

    def __init__(self, draw: Callable[[Moment], RenderableType]) -> None:
        # rich costs 40 ms to import, so only where there is a terminal to draw on.
        from rich.console import Console  # noqa: PLC0415
        from rich.live import Live  # noqa: PLC0415

        self._draw = draw
        self._live = Live(console=Console(stderr=True), transient=True, refresh_per_second=10)

    def __enter__(self) -> Self:
        """Start drawing."""
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Wipe what was drawn."""
        self._live.stop()

    def __call__(self, moment: Moment) -> None:
        """See Display."""
        self._live.update(self._draw(moment))
