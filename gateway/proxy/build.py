"""Which build of the data plane this is: its sources as they are, or what mypyc has made of them.

Both come from the same sources; ``hatch_build.py`` compiles them if the wheel is to be a compiled
one.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Final, Literal


def _build() -> Literal["compiled", "pure"]:
    # Found, not imported: who only asks need not load the data plane. One module stands for all,
    # because a wheel has all binaries or none.
    spec = find_spec("gateway.proxy.connection")
    return "pure" if spec is None or str(spec.origin).endswith(".py") else "compiled"


BUILD: Final = _build()
