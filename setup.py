"""Builds the compiled engines. All else is in pyproject.toml.

Where there is no compiler, or no Linux, the package installs without them and runs on the
engine "iocp" on Windows, else on "selectors".
"""

import glob
import os
import sys

from setuptools import Extension, setup

SOURCES = sorted(glob.glob("src/completionport/native/*.pyx"))


def extensions() -> list[Extension]:
    if not sys.platform.startswith("linux") or os.environ.get("COMPLETIONPORT_PURE"):
        return []
    from Cython.Build import cythonize

    # For benchmarks/stats_cost.py: the same without what `stats` tells of times and counts.
    without = "COMPLETIONPORT_WITHOUT_STATS"
    modules = [
        Extension(
            "completionport.native." + os.path.splitext(os.path.basename(source))[0],
            [source],
            include_dirs=["src/completionport/native"],
            depends=glob.glob("src/completionport/native/*.h"),
            define_macros=[(without, "1")] if os.environ.get(without) else [],
            extra_compile_args=["-O2", "-g1", "-D_GNU_SOURCE", "-Wno-unused-function"],
            optional=True,
        )
        for source in SOURCES
    ]
    return cythonize(
        modules,
        include_path=["src"],
        nthreads=os.cpu_count() or 1,
        compiler_directives={
            "language_level": 3,
            "boundscheck": False,
            "wraparound": False,
            "cdivision": True,
            "freethreading_compatible": True,
            "annotation_typing": False,
        },
    )


setup(ext_modules=extensions())
