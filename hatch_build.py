"""Compiles the hot modules of the data plane into the wheel, if that is asked for.

``HATCH_BUILD_HOOKS_ENABLE=1 pip install .`` does; otherwise the wheel is pure Python and needs no
compiler. The modules are listed in ``pyproject.toml``; their sources stay in the wheel, and are
what a Python without fitting binaries would run.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

#: Names the library that all compiled modules share; it lies beside the package.
_GROUP = "preview_gateway"
#: The C compiler's; 0 is for whoever wants to know soon whether it compiles at all.
_OPT_LEVEL = os.environ.get("PREVIEW_GATEWAY_OPT_LEVEL", "3")


class CompileHook(BuildHookInterface[Any]):
    """Lets mypyc translate the modules into C, and the machine's C compiler do the rest."""

    _folder: str | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Add the binaries to what goes into the wheel. An editable install has none."""
        if version == "editable":
            return  # stale binaries beside sources that are being edited would be a trap
        self._folder = tempfile.mkdtemp(prefix="preview-gateway-build-")
        built = _compile(Path(self.root), Path(self._folder), self.config["modules"])
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
        build_data["force_include"].update(
            {str(path): str(path.relative_to(built)) for path in built.rglob("*") if path.is_file()}
        )

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was built."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


def _compile(root: Path, folder: Path, modules: list[str]) -> Path:
    """Compile ``modules`` of the project at ``root``; returns a folder as it is in the wheel."""
    # Only here: who builds a pure wheel has none of them.
    from mypyc.build import mypycify
    from setuptools import Distribution
    from setuptools.errors import BaseError

    sources, built = folder / "sources", folder / "built"
    shutil.copytree(root / "gateway", sources / "gateway")
    shutil.copy(root / "pyproject.toml", sources)  # mypy's settings
    with contextlib.chdir(sources):  # where mypy finds them, and leaves its cache
        paths = [module.replace(".", os.sep) + ".py" for module in modules]
        # One library for all modules: calls between them are plain C calls.
        extensions = mypycify(
            paths, opt_level=_OPT_LEVEL, debug_level="0", target_dir="c", group_name=_GROUP
        )
        # No setup(): it would take the settings of this project for its own.
        command = Distribution({"ext_modules": extensions}).get_command_obj("build_ext")
        command.build_lib, command.build_temp = str(built), str(folder / "temp")
        command.ensure_finalized()
        try:
            command.run()
        except BaseError as exc:
            raise RuntimeError(
                "cannot compile the data plane: install a C compiler and the headers of Python, "
                "or build the pure wheel, without HATCH_BUILD_HOOKS_ENABLE"
            ) from exc
    return built
