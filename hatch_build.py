"""What an installation adds to the Python files: the compiled library, where there is a C compiler.

Without one the package is pure Python, and the service says so when it starts.
"""

from __future__ import annotations

import importlib.util
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CompiledLibrary(BuildHookInterface[Any]):
    """Builds in place, so that editable installations have it, too."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if self.target_name != "wheel":
            return
        path = Path(self.root) / "service/native/build.py"
        spec = importlib.util.spec_from_file_location("build", path)
        if spec is None or spec.loader is None:
            raise ImportError(path)
        native = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(native)
        try:
            library = native.build()
        except native.BuildError as error:
            # An older library would be refused at start, where nobody could build it anew.
            native.LIBRARY.unlink(missing_ok=True)
            self.app.display_warning(f"without the compiled library: {error}")
            return
        build_data["artifacts"].append(str(library.relative_to(self.root)))
        # It is called through ctypes: any Python on this platform.
        system = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["pure_python"], build_data["tag"] = False, f"py3-none-{system}"
