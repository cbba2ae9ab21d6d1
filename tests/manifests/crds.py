"""Objects that come with a CRD, against types and validators that were generated from it.

The npm packages of ``tests/fixtures/crds`` hold both. The validators know formats and ranges, but
take fields that do not exist; TypeScript refuses those, because each object is one literal.
"""

from __future__ import annotations

import json
import subprocess
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from tests.conftest import require_tool
from tests.manifests.documents import Document, kind_of
from tests.manifests.schemas import CUSTOM

_PACKAGES: Final = {
    "gateway.networking.k8s.io": "gateway-api",
    "monitoring.coreos.com": "prometheus-operator",
}
_COMPILER: Final = (
    "--noEmit",
    "--strict",
    "--skipLibCheck",
    *("--pretty", "false"),
    *("--target", "es2022"),
    *("--module", "nodenext"),
    *("--moduleResolution", "nodenext"),
)


def module_of(document: Document) -> str:
    """The module that has the types and the validator of a document's kind."""
    api_version, kind = document["apiVersion"], kind_of(document)
    if (api_version, kind) not in CUSTOM:
        raise LookupError(f"{api_version} {kind} is no kind with a CRD")
    group, version = api_version.split("/")
    return f"@kubernetes-models/{_PACKAGES[group]}/{group}/{version}/{kind}"


def crd_problems(folder: Path, documents: Mapping[str, Document]) -> dict[str, list[str]]:
    """What is wrong with each document, by its name (a word), in a folder with the packages."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for name, document in documents.items():
        text, module, kind = json.dumps(document, indent=1), module_of(document), kind_of(document)
        (folder / f"{name}.ts").write_text(
            f'import type {{ I{kind} }} from "{module}";\nexport const it: I{kind} = {text};\n'
        )
        (folder / f"{name}.json").write_text(json.dumps([module, kind, document]))
    for line in _run(
        folder, "node_modules/typescript/bin/tsc", *_COMPILER, *_files(documents, "ts")
    ):
        name, _, problem = line.partition(".ts(")
        found[name].append(problem)
    (folder / "validate.js").write_text(_VALIDATE)
    for line in _run(folder, "validate.js", *_files(documents, "json")):
        name, _, problem = line.partition(".json: ")
        found[name].append(problem)
    return dict(found)


_VALIDATE: Final = """
import { readFileSync } from "node:fs";
for (const file of process.argv.slice(2)) {
  const [module, kind, document] = JSON.parse(readFileSync(file));
  const Model = (await import(module))[kind];
  try { new Model(document).validate(); }
  catch (error) { console.log(`${file}: ${error.message}`); }
}
"""


def _files(documents: Mapping[str, Document], suffix: str) -> list[str]:
    return [f"{name}.{suffix}" for name in documents]


def _run(folder: Path, *script: str) -> list[str]:
    """The lines that a script prints; those that go on from the line before are left out."""
    done = subprocess.run(
        [require_tool("node"), *script],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    if done.stderr:
        raise RuntimeError(done.stderr)
    return [line for line in done.stdout.splitlines() if not line.startswith(" ")]
