"""Builds the compiled engines. All else is in pyproject.toml.

Where there is no compiler, or no Linux, the package installs without them and runs on the
engine "iocp" on Windows, else on "selectors". COMPLETIONPORT_COMPILED=1 makes what can't be
compiled an error, as `setup.py build_ext` does; COMPLETIONPORT_PURE=1 leaves it out.
"""

import glob
import os
import sys

from setuptools import Extension, setup

NATIVE = "src/completionport/native"
SOURCES = sorted(glob.glob(f"{NATIVE}/*/*.pyx"))
HEADERS = sorted(glob.glob(f"{NATIVE}/*/*.h"))


def extensions() -> list[Extension]:
    if not sys.platform.startswith("linux") or os.environ.get("COMPLETIONPORT_PURE"):
        return []
    from Cython.Build import cythonize

    # For benchmarks/builds.py: the same without what `stats` tells of times and counts. For
    # tests/test_faults_of_the_ring.py: requests fail at random, see ring_faults.h.
    variants = ("COMPLETIONPORT_WITHOUT_STATS", "COMPLETIONPORT_FAULTS")
    modules = [
        Extension(
            os.path.splitext(os.path.relpath(source, "src"))[0].replace(os.sep, "."),
            [source],
            include_dirs=sorted({os.path.dirname(header) for header in HEADERS}),
            depends=HEADERS,
            define_macros=[(name, "1") for name in variants if os.environ.get(name)],
            extra_compile_args=["-O2", "-g1", "-D_GNU_SOURCE", "-Wno-unused-function"],
        )
        for source in SOURCES
    ]
    modules = cythonize(
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
    # Said behind `cythonize`, which makes new objects of them and forgets it.
    must = "build_ext" in sys.argv or os.environ.get("COMPLETIONPORT_COMPILED")
    for module in modules:
        module.optional = not must
    return modules


# `parallel`: the C compiler takes most of the time.
setup(ext_modules=extensions(), options={"build_ext": {"parallel": os.cpu_count() or 1}})
