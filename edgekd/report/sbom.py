"""What a run is made of: packages with versions and licences, and every artifact with its hash.

As a CycloneDX 1.6 document (ECMA-424).
"""

from __future__ import annotations

import datetime
import importlib.metadata
import re
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from edgekd.artifacts import sha256_file
from edgekd.report.contents import Contents

_ROOT = "edgekd"
_EXTRAS = ("quantize",)
# A licence's whole text is in the package; here is its name.
_LONGEST = 120
_MODELS = (".onnx", ".data", ".xml", ".bin", ".ort", ".safetensors")


def document(contents: Contents, others: Mapping[str, Path], licence: str | None) -> dict[str, Any]:
    """The bill of materials as JSON; the same run with the same packages gives the same document.

    `others` are files beside the stages' artifacts, by run-relative path. `licence` is that of the
    student, or None.
    """
    hashes = {
        path: (artifact.sha256, artifact.size)
        for record in contents.stages.values()
        for path, artifact in record.artifacts.items()
    }
    hashes |= {path: (sha256_file(file), file.stat().st_size) for path, file in others.items()}
    packages = installed(contents)
    files = [_file(path, *hashes[path]) for path in sorted(hashes)]
    model = {
        "type": "machine-learning-model",
        "bom-ref": "run",
        "name": str(contents.manifest.config.get("name", "run")),
        "licenses": [_named(licence or "unknown")],
    }
    seed = "\n".join([*(f"{path} {value}" for path, value in sorted(hashes.items())), *packages])
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": uuid.uuid5(uuid.NAMESPACE_OID, seed).urn,
        "version": 1,
        "metadata": {
            **_timestamp(contents),
            "tools": {
                "components": [
                    {"type": "application", "name": _ROOT, "version": contents.manifest.edgekd}
                ]
            },
            "component": model,
        },
        "components": [*map(_package, packages.values()), *files],
        "dependencies": [
            {"ref": "run", "dependsOn": [*map(_reference, packages.values())]},
            *(
                {
                    "ref": _reference(package),
                    "dependsOn": sorted(
                        {_reference(packages[name]) for name in _needs(package) if name in packages}
                    ),
                }
                for package in packages.values()
            ),
        ],
    }


@dataclass(frozen=True)
class Package:
    """What the metadata of an installed package says; `importlib` would read it anew at every look."""

    name: str
    version: str
    requires: tuple[str, ...]
    fields: Mapping[str, Any]

    @classmethod
    def find(cls, name: str) -> Package:
        """Raises PackageNotFoundError, or ValueError for what is no name."""
        distribution = importlib.metadata.distribution(name)
        metadata = distribution.metadata
        return cls(
            metadata["Name"],
            metadata["Version"],
            tuple(distribution.requires or ()),
            metadata.json,
        )


def installed(contents: Contents) -> dict[str, Package]:
    """What edgekd and the packages in the manifest need, by canonical name, sorted.

    Without edgekd itself, and only what is installed here.
    """
    found: dict[str, Package] = {}
    recorded = contents.manifest.environment.get("packages")
    waiting = [_ROOT, *(recorded if isinstance(recorded, Mapping) else ())]
    seen: set[str] = set()
    while waiting:
        name = canonicalize_name(str(waiting.pop()))
        if name in seen:
            continue
        seen.add(name)
        try:
            found[name] = Package.find(name)
        except (importlib.metadata.PackageNotFoundError, ValueError):
            continue
        waiting += _needs(found[name], _EXTRAS if name == _ROOT else ())
    found.pop(_ROOT, None)
    return dict(sorted(found.items()))


def _needs(package: Package, extras: tuple[str, ...] = ()) -> Iterator[str]:
    for text in package.requires:
        needed = Requirement(text)
        if needed.marker is None or any(
            needed.marker.evaluate({"extra": extra}) for extra in ("", *extras)
        ):
            yield canonicalize_name(needed.name)


def licences(package: Package) -> list[dict[str, Any]]:
    """What the package's metadata says of its licence, the most exact first; as CycloneDX has it."""
    fields = package.fields
    expression = fields.get("license_expression")
    if expression:
        return [{"expression": str(expression)}]
    classified = [
        text.rpartition("::")[2].strip()
        for text in fields.get("classifier", ())
        if text.startswith("License ::") and text.count("::") > 1
    ]
    free = " ".join(str(fields.get("license") or "").split())
    if classified:
        return [_named(name) for name in dict.fromkeys(classified)]
    return [_named(free if 0 < len(free) <= _LONGEST else "unknown")]


def licence_text(package: Package) -> str:
    """The same in one line."""
    return ", ".join(
        str(entry.get("expression") or entry["license"]["name"]) for entry in licences(package)
    )


def _named(name: str) -> dict[str, Any]:
    return {"license": {"name": name}}


def _reference(package: Package) -> str:
    """A package URL, purl-spec type pypi."""
    version = re.sub(r"[^A-Za-z0-9.+_-]", "", package.version).replace("+", "%2B")
    return f"pkg:pypi/{canonicalize_name(package.name)}@{version}"


def _package(package: Package) -> dict[str, Any]:
    return {
        "type": "library",
        "bom-ref": _reference(package),
        "name": package.name,
        "version": package.version,
        "purl": _reference(package),
        "licenses": licences(package),
    }


def _file(path: str, sha256: str, size: int) -> dict[str, Any]:
    return {
        "type": "machine-learning-model" if path.endswith(_MODELS) else "file",
        "bom-ref": f"file:{path}",
        "name": path,
        "hashes": [{"alg": "SHA-256", "content": sha256}],
        "properties": [{"name": "edgekd:size", "value": str(size)}],
    }


def _timestamp(contents: Contents) -> dict[str, str]:
    """When the last stage started: of the run, not of this document."""
    started = max((record.started for record in contents.stages.values()), default="")
    try:
        datetime.datetime.fromisoformat(started)
    except ValueError:
        return {}
    return {"timestamp": started}
