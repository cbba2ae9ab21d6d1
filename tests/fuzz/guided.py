"""Coverage-guided fuzzing of the gateway's parsers against the oracle (atheris, libFuzzer).

    python -m tests.fuzz.guided requests -max_total_time=60 build/fuzz/requests

The side is ``requests``, ``responses`` or ``frames``; all else goes to libFuzzer. The seeds of
``tests/fuzz/seeds`` and the dictionary are used in any case. Of an input the first byte says where
the rest is cut and whom it answers, so that every finding is one byte string; it is printed as a
call that shows it again.
"""

from __future__ import annotations

import atexit
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import atheris

with atheris.instrument_imports(include=["gateway.proxy", "tests.fuzz"]):
    from tests.fuzz.compare import check_requests, check_responses
    from tests.fuzz.frames import check_frames

_HERE: Final = Path(__file__).parent
_METHODS: Final = (b"GET", b"HEAD", b"POST", b"GET")


def _cuts(option: int, size: int) -> Sequence[int]:
    """Nowhere, everywhere, or in a few places."""
    if option == 0:
        return ()
    return range(size) if option == 1 else (option, option * 7, option * 31)


def _call(side: str, data: bytes) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """What an input stands for."""
    option, data = data[0], data[1:]
    if side == "responses":
        cuts = _cuts(option >> 3, len(data))
        method, ended = _METHODS[option & 3], bool(option & 4)
        return check_responses, (data, cuts), {"method": method, "ended": ended}
    check = check_requests if side == "requests" else check_frames
    return check, (data, _cuts(option, len(data))), {}


def main(argv: list[str]) -> None:
    """Fuzz until libFuzzer has enough, or until something is found."""
    program, side, *options = argv
    seeds = _HERE / "seeds" / side
    if not seeds.is_dir():
        sys.exit(f"no such side: {side}; there are requests, responses and frames")

    def run(data: bytes) -> None:
        if not data:
            return
        check, arguments, options = _call(side, data)
        try:
            check(*arguments, **options)
        except Exception:
            named = "".join(f", {name}={value!r}" for name, value in options.items())
            sys.stdout.write(traceback.format_exc())
            sys.stdout.write(f"FOUND {check.__name__}{arguments!r}"[:-1] + f"{named})\n")
            sys.stdout.flush()
            raise

    fixed = [f"-dict={_HERE / 'http.dict'}"] if side != "frames" else []
    if all(option.startswith("-") for option in options):
        # libFuzzer writes to the first folder it is given; the seeds are ours.
        folder = tempfile.mkdtemp(prefix="gateway-fuzz-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        options.append(folder)
    atheris.Setup([program, *fixed, "-max_len=2048", *options, str(seeds)], run)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv)
