"""What faces tell of themselves; how it is written is for who starts them."""

from __future__ import annotations

from typing import Any, Protocol


class Log(Protocol):
    """Takes a fixed event name, and fields."""

    def debug(self, event: str, **fields: Any) -> Any:  # noqa: ANN401
        """For whoever looks for something."""
        ...

    def info(self, event: str, **fields: Any) -> Any:  # noqa: ANN401
        """As it should be."""
        ...

    def warning(self, event: str, **fields: Any) -> Any:  # noqa: ANN401
        """Something that heals, or that somebody should look at."""
        ...

    def error(self, event: str, **fields: Any) -> Any:  # noqa: ANN401
        """As it should not be."""
        ...
