"""A Python that has every package of this one but moeify, as on a stranger's machine."""

import subprocess
import sys
import sysconfig
from pathlib import Path


def python_without_moeify(folder: Path) -> Path:
    """Make a virtual environment in ``folder`` that borrows the packages of this one.

    A folder named in a ``.pth`` file is searched, but ``.pth`` files inside it are not read, and
    such a file is what an editable install of moeify consists of.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = folder / "bin" / "python"
    # A regular install would be borrowed with the rest.
    search = "import importlib.util as u; raise SystemExit(u.find_spec('moeify') is not None)"
    subprocess.run([str(python), "-I", "-c", search], check=True)
    return python
