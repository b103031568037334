"""Runs the fast tests with releases of Transformers after the pinned one: `make test-next`.

A release that setup.py admits has to pass, because `pip install` takes it. One outside the range is a warning.
"""

import re
import subprocess
import sys
from importlib import metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version


def releases_to_test(pinned: str, released: list[str], admitted: SpecifierSet) -> dict[str, bool]:
    """The newest release after the pinned one inside the range and the newest outside: version -> is it inside?"""
    newer = sorted(version for version in map(Version, released) if version > Version(pinned))
    inside = [version for version in newer if admitted.contains(version, prereleases=False)]
    outside = [version for version in newer if not admitted.contains(version, prereleases=True)]
    return {str(version): True for version in inside[-1:]} | {str(version): False for version in outside[-1:]}


def main() -> None:
    requirements = map(Requirement, metadata.requires("nexus-transformers"))
    admitted = next(requirement.specifier for requirement in requirements if requirement.name == "transformers")
    pip = [sys.executable, "-m", "pip", "index", "versions", "--pre", "transformers"]
    listing = subprocess.run(pip, check=True, stdout=subprocess.PIPE, text=True).stdout
    released = re.search(r"Available versions: (.*)", listing)[1].split(", ")
    pinned = metadata.version("transformers")
    releases = releases_to_test(pinned, released, admitted)
    if not releases:
        print(f"no release of transformers after {pinned}")
    for release, inside in releases.items():
        print(f"transformers {release} is {'inside' if inside else 'outside'} the tested range, {admitted}", flush=True)
        failed = subprocess.run(["make", "test-release", f"RELEASE={release}"]).returncode
        if failed and inside:
            sys.exit(f"The tests fail with transformers {release}, which setup.py admits")
        if failed:
            print(f"warning: the tests fail with transformers {release} (see above); setup.py does not admit it")


if __name__ == "__main__":
    main()
