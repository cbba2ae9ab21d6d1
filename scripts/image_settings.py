"""How this machine reaches the registries of packages, for builds of the images on it.

``python scripts/image_settings.py --release trixie --wheels /mnt/wheels --canary WORD FOLDER``
writes into FOLDER

    pip.environment     this machine's settings of pip, as variables; its files are below /mnt
    machine.conf        this machine's settings of apt that say how it gets at mirrors
    sources.list        Debian's mirrors of this machine, for another release
    build-sources.list  the same, for a build, which has the cache folder at /mnt
    pip.conf, apt.conf  the build's secrets

None of this is to be found in an image afterwards, nor in this repository.
"""

from __future__ import annotations

import argparse
import ast
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

_MOUNTED: Final = "/mnt"
_KEYRING: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"
#: pip's settings that say from where and how, in the order in which later ones prevail.
_SECTIONS: Final = ("global", "install", "download", ":env:")
_NETWORK: Final = frozenset(
    {
        "cert", "client-cert", "default-timeout", "extra-index-url", "find-links", "index-url",
        "no-index", "proxy", "retries", "timeout", "trusted-host",
    }
)  # fmt: skip


def pip_environment(listing: str, ours: Mapping[str, str]) -> dict[str, str]:
    """Variables that have pip, in a container with this machine's root at /mnt, do as here.

    ``listing`` is what ``pip config list`` prints, ``ours`` the environment.
    """
    found: dict[tuple[str, str], str] = {}
    for line in listing.splitlines():
        name, _, value = line.partition("=")
        section, _, key = name.rpartition(".")
        if key in _NETWORK:
            found[section, key] = ast.literal_eval(value)
    merged = {
        f"PIP_{key.upper().replace('-', '_')}": _mounted(found[section, key])
        for section in _SECTIONS
        for key in sorted(_NETWORK)
        if (section, key) in found
    }
    bundle = ours.get("REQUESTS_CA_BUNDLE") or ours.get("SSL_CERT_FILE")
    if bundle:
        merged.setdefault("PIP_CERT", _mounted(bundle))
    netrc = Path(ours.get("NETRC") or Path.home() / ".netrc")
    if netrc.is_file():
        merged["NETRC"] = _mounted(str(netrc))
    return merged


def _mounted(value: str) -> str:
    """``value`` with the paths of this machine, of which there may be several, below /mnt."""
    return " ".join(_mounted_path(word) for word in value.split())


def _mounted_path(word: str) -> str:
    prefix = "file://" if word.startswith("file:///") else ""
    path = word.removeprefix(prefix)
    return f"{prefix}{_MOUNTED}{Path(path).resolve()}" if path.startswith("/") else word


def sources(targets: str, *, release: str, keyring: str = _KEYRING) -> str:
    """Debian's mirrors of this machine as a sources.list for ``release``.

    ``targets`` has a line for each source of this machine: origin, label and address.
    """
    mirrors: dict[str, str] = {}
    for line in targets.splitlines():
        origin, label, address = line.split("|")
        if origin == "Debian" and label in ("Debian", "Debian-Security"):
            mirrors.setdefault(label, address.rstrip("/"))
    if "Debian" not in mirrors:
        raise SystemExit("apt on this machine names no mirror of Debian: add one to its sources")
    main = mirrors["Debian"]
    security = mirrors.get("Debian-Security", f"{main}-security")
    suites = [(main, release), (main, f"{release}-updates"), (security, f"{release}-security")]
    return "".join(
        f"deb [signed-by={keyring}] {address} {suite} main\n" for address, suite in suites
    )


def apt_network(dump: str) -> Iterator[str]:
    """The lines of ``apt-config dump`` that say how mirrors are reached."""
    yield 'Acquire::Retries "3";'
    for line in dump.splitlines():
        if line.lower().startswith(("acquire::http::", "acquire::https::")):
            yield line


def build_apt(network: str) -> str:
    """apt's settings for a build: sources, lists and packages in the cache folder."""
    bundle = Path("/etc/ssl/certs/ca-certificates.crt")
    kept = [line for line in network.splitlines() if "cainfo" not in line.lower()]
    return "\n".join(
        [
            *kept,
            f'Acquire::https::CAInfo "{_MOUNTED}/ca-certificates.crt";' if bundle.exists() else "",
            f'Dir::Etc::SourceList "{_MOUNTED}/sources.list";',
            f'Dir::Etc::SourceParts "{_MOUNTED}/none";',
            f'Dir::State::Lists "{_MOUNTED}/apt/lists/";',
            f'Dir::Cache::Archives "{_MOUNTED}/apt/archives/";',
            'APT::Keep-Downloaded-Packages "true";',
            "",
        ]
    )


def _said(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)  # noqa: S603
    return done.stdout


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--release", required=True)
    parser.add_argument("--wheels", required=True)
    parser.add_argument("--canary", required=True)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    targets = _said(
        "apt-get", "indextargets", "--format", "$(ORIGIN)|$(LABEL)|$(REPO_URI)",
        "Created-By: Packages",
    )  # fmt: skip
    network = "\n".join(apt_network(_said("apt-config", "dump")))
    listing = _said(sys.executable, "-m", "pip", "--disable-pip-version-check", "config", "list")
    environment = pip_environment(listing, os.environ)
    word = f"# {given.canary}\n"
    texts = {
        "pip.environment": "".join(f"{key}={value}\n" for key, value in environment.items()),
        "machine.conf": network + "\n",
        "sources.list": sources(targets, release=given.release),
        "build-sources.list": word + sources(targets, release=given.release),
        "pip.conf": f"{word}[global]\nno-index = true\nfind-links = {given.wheels}\n",
        "apt.conf": f"// {given.canary}\n{build_apt(network)}",
    }
    for name, text in texts.items():
        (given.folder / name).write_text(text, "utf-8")


if __name__ == "__main__":
    main()
