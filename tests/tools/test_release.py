"""What a release is made of: one version, forms for issues, and a wheel that works where nothing else of moeify is."""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml

import moeify

ROOT = Path(__file__).resolve().parents[2]
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))


def test_one_version_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert project["version"] == citation["version"] == moeify.__version__
    assert project["license"] == citation["license"]
    assert citation["cff-version"] == "1.2.0" and citation["authors"]
    assert f"## {moeify.__version__}" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.stem)
def test_forms_for_issues_are_what_github_takes(form: Path) -> None:
    document = yaml.safe_load(form.read_text())
    if form.stem == "config":
        assert document == {"blank_issues_enabled": True}
        return
    assert document["name"] and document["description"]
    parts = document["body"]
    assert {part["type"] for part in parts} <= {"textarea", "input"}
    assert all(part["attributes"]["label"] for part in parts)
    assert len({part["id"] for part in parts}) == len(parts)
    assert any(part.get("validations", {}).get("required") for part in parts)


@pytest.mark.slow
def test_a_wheel_upcycles_the_demo_in_an_empty_environment(tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(ROOT / "moeify", source / "moeify", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    build = ("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path / "dist"), str(source))
    subprocess.run([*pip, *build], check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").iterdir()
    assert re.fullmatch(rf"moeify-{re.escape(moeify.__version__)}-py3-none-any\.whl", wheel.name)
    inside = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in inside} == {"moeify", f"moeify-{moeify.__version__}.dist-info"}
    place = tmp_path / "empty"
    venv.create(place, with_pip=False)
    sites = place / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    install = ("--python", str(place / "bin" / "python"), "install", "--no-deps", "--no-index", str(wheel))
    subprocess.run([*pip, *install], check=True, capture_output=True)
    # A bare path: what the packages beside it make of .pth files, such as moeify's own, is not followed.
    (sites / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    bare = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    bare |= {"HF_HUB_OFFLINE": "1", "PATH": f"{place / 'bin'}:{bare['PATH']}"}

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=bare, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    home = Path(run("python", "-c", "import moeify; print(moeify.__file__)").strip()).parent
    assert home == sites / "moeify"
    made = json.loads(run("moeify", "upcycle", str(home / "demo" / "gpt2"), "moe", "--experts", "2", "--json"))
    assert made["num_experts"] == 2
    assert (tmp_path / "moe" / "modeling_moe.py").is_file()
    assert '"bit_exact"' in run("moeify", "verify", str(home / "demo" / "gpt2"), "moe", "--json")
