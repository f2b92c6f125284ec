"""Compiles the protocol when the project is built or installed; see `pyproject.toml`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

from grpc_tools import protoc
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PROTOCOLS: Final = (
    "csi/protocol/csi.proto",
    "modelcache/faces/scaler/protocol/externalscaler.proto",
)


def compile_protocols(root: Path) -> None:
    """Write each protocol's module and its types beside it. Ends the build when that fails."""
    well_known = Path(protoc.__file__).parent / "_proto"
    for proto in PROTOCOLS:
        arguments = [
            "protoc",
            f"--proto_path={root}",
            f"--proto_path={well_known}",
            f"--python_out={root}",
            f"--pyi_out={root}",
            str(root / proto),
        ]
        if protoc.main(arguments):
            sys.exit(f"{proto} could not be compiled")


class CompileProtocols(BuildHookInterface[Any]):
    """Run by the build backend before it collects files."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """See the base class."""
        del version, build_data
        compile_protocols(Path(self.root))
