"""The build's source distribution, which setup.cfg names: with the tests, and all that they need.

python -m build --sdist
"""

from setuptools.command.sdist import sdist


class WithTests(sdist):
    """setuptools' own knows the package alone."""

    def make_distribution(self) -> None:
        for folder in ("tests", "scripts", "weights/small", "weights/artwork", ".ci"):
            self.filelist.graft(folder)
        self.filelist.extend(["weights/README.md", ".gitignore"])
        self.filelist.global_exclude("*.py[co]")
        super().make_distribution()
