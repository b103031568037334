"""
`make upstream-tests`: fetches the source package of the pinned Transformers from the package registry, takes its tests
(they stay in .cache, none of it is ours to keep) and runs them on Nexus.
"""

import hashlib
import os
import subprocess
import sys
import tarfile
from pathlib import Path

VERSION = "5.24.0"
SHA256 = "906cb8c3cb2123575e263962586a4d21a979ce97feeb95fe6aaf66fe6ae88bf3"
ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache" / "upstream"


def main() -> int:
    archive = CACHE / f"transformers-{VERSION}.tar.gz"
    if not archive.exists():
        download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation"]
        download += ["--no-binary", "transformers", "--dest", str(CACHE), f"transformers=={VERSION}"]
        subprocess.run(download, check=True)
    if hashlib.sha256(archive.read_bytes()).hexdigest() != SHA256:
        sys.exit(f"{archive} has another checksum than the tested one; delete it and run again.")
    package = CACHE / "transformers_tests"  # a name of its own, beside our own `tests`
    package.mkdir(exist_ok=True)
    (package / "__init__.py").touch()
    prefix = f"transformers-{VERSION}/tests/"
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            name = member.name.removeprefix(prefix)
            if member.isfile() and member.name.startswith(prefix) and "/" not in name:
                (package / name).write_bytes(tar.extractfile(member).read())
    environment = os.environ | {"PYTHONPATH": str(CACHE), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib"]
    tests += ["--confcutdir=tests/upstream", "tests/upstream/nexus_upstream.py"]  # upstream has markers of its own
    return subprocess.run([*tests, *sys.argv[1:]], cwd=ROOT, env=environment).returncode


if __name__ == "__main__":
    sys.exit(main())
